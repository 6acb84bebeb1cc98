"""What the page knows about single neurons, as compact JSON."""

from __future__ import annotations

import math
from typing import Any

import pandas as pd
import torch

from ..analysis.examples import BROKEN
from ..detectors.lape import lape_entropy
from ..neurons import NeuronSet
from .files import NEURON_EXAMPLES, NEURON_LOGITS, NEURONS, STATS
from .languages import named
from .run import Run

MOST_NUMBERS = 1_000_000
"""Numbers of statistics in the page: above it, those of language neurons only."""


def neuron_data(run: Run) -> dict[str, Any] | None:
    """Statistics of every neuron, and examples and logit effects of those that have them; None without statistics.

    Arrays go by neuron, then language. `index` names the neurons of the arrays, or is None where they are all there.
    """
    if not run.has(STATS):
        return None
    stats = run.stats
    neurons = run.neurons if run.has(NEURONS) else None
    n_layers, n_neurons, n_languages = stats.active.shape
    index = None
    if 3 * stats.active.numel() > MOST_NUMBERS:
        index = neurons.union().nonzero().tolist() if neurons else []
    rows = [layer * n_neurons + j for layer, j in index] if index is not None else list(range(n_layers * n_neurons))
    parts = {"active": stats.active, "mean": stats.mean(), "maximum": stats.maximum}
    flat = {name: part.reshape(-1, n_languages)[rows].flatten().tolist() for name, part in parts.items()}
    return {
        "languages": list(stats.languages),
        "tokens": stats.n_tokens.tolist(),
        "layers": n_layers,
        "neurons": n_neurons,
        "site": stats.site,
        "threshold": stats.threshold,
        "index": [f"{layer}.{j}" for layer, j in index] if index is not None else None,
        "active": flat["active"],
        "mean": [_rounded(x) for x in flat["mean"]],
        "maximum": [_rounded(x) for x in flat["maximum"]],
        "entropy": [_rounded(x) for x in lape_entropy(stats).flatten()[rows].tolist()],
        "members": members(neurons) if neurons else {},
        "names": {name: named(name) for name in [*stats.languages, *(neurons or ())]},
        "examples": examples(run.read(NEURON_EXAMPLES)) if run.has(NEURON_EXAMPLES) else {},
        "logits": logits(run.read(NEURON_LOGITS)) if run.has(NEURON_LOGITS) else {},
    }


def _rounded(x: float) -> float | int | None:
    """Three significant digits, which is what a reader sees; None for what is not finite."""
    if not math.isfinite(x):
        return None
    short = float(f"{x:.3g}")
    return int(short) if short.is_integer() else short


def members(neurons: NeuronSet) -> dict[str, list[str]]:
    """The groups of every neuron that is in one, layer by layer."""
    found: dict[str, list[str]] = {}
    for layer, j in neurons.union().nonzero().tolist():
        belongs = neurons.masks[:, layer, j]
        found[f"{layer}.{j}"] = [neurons.groups[k] for k in torch.nonzero(belongs).flatten().tolist()]
    return found


def examples(table: pd.DataFrame) -> dict[str, dict[str, list[list[Any]]]]:
    """By neuron and language: [index of the token itself, texts, activations] of every example, best first."""
    found: dict[str, dict[str, list[list[Any]]]] = {}
    for row in table.sort_values("rank", kind="stable").itertuples():
        texts, values, peak = whole_characters(list(row.tokens), list(row.activations), row.peak)
        by_language = found.setdefault(f"{row.layer}.{row.neuron}", {})
        by_language.setdefault(row.language, []).append([peak, texts, [_rounded(x) for x in values]])
    return found


def whole_characters(texts: list[str], values: list[float], peak: int) -> tuple[list[str], list[float], int]:
    """Tokens that share a character as one piece, with the highest of their activations."""
    pieces: list[str] = []
    heights: list[float] = []
    where = 0
    for i, (text, value) in enumerate(zip(texts, values, strict=True)):
        if text or not pieces:
            pieces.append(text)
            heights.append(value)
        else:
            heights[-1] = max(heights[-1], value)
        if i == peak:
            where = len(pieces) - 1
    # The text was cut between tokens, perhaps within a character.
    pieces[0], pieces[-1] = pieces[0].lstrip(BROKEN), pieces[-1].rstrip(BROKEN)
    return pieces, heights, where


def logits(table: pd.DataFrame) -> dict[str, list[list[list[Any]]]]:
    """By neuron: [promoted, suppressed], each a list of [token, effect]."""
    found: dict[str, list[list[list[Any]]]] = {}
    for row in table.sort_values("rank", kind="stable").itertuples():
        both = found.setdefault(f"{row.layer}.{row.neuron}", [[], []])
        both[row.direction == "suppressed"].append([row.token, _rounded(row.effect)])
    return found
