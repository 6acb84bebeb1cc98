"""Losses under a condition: a cell of the perplexity matrix, and layers switched off one at a time."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import torch
from generating import random_neurons, switched_off
from jaxtyping import Float
from subjects import DEFAULT, Subject
from timing import Case
from torch import Tensor

from mi_multilingual import NeuronSet, Reading, ablate, applied, layer_sweep, with_controls
from mi_multilingual.corpora import Corpus
from mi_multilingual.evaluation.perplexity import corpus_rows, logit_batches, row_losses
from mi_multilingual.models.hooked import HookedModel
from mi_multilingual.patching.conditions import Condition
from mi_multilingual.tokens import TokenRows

_WINDOW = 128
_OFF = 0.02
_SAME = {torch.float32: 1e-4, torch.bfloat16: 2e-2}
"""Largest relative difference of a loss; zeros written into weights round otherwise than zeros written by hooks."""
_SWEEP = 0.15
"""Of the usual work for each layer."""
_SWEPT = 10
"""Layers of a sweep at the most, from all over the model."""


def matrix_cases(subject: Subject) -> Iterator[Case]:
    text, reading = _text(subject, subject.n_rows(_WINDOW))
    rows = {name: corpus_rows(model, text, reading)["en"] for name, model in subject.ours.items()}
    neurons = random_neurons(subject, _OFF)
    [condition] = with_controls(neurons, seeds=[])
    plain = rows[DEFAULT]
    with switched_off(subject, neurons):
        expected = _plain_losses(subject, plain)
    ways = {"transformers, intact": lambda: _plain_losses(subject, plain) is None or None}
    for backend, model in subject.ours.items():
        ways[f"intact, {backend}"] = lambda m=model, r=rows[backend]: row_losses(m, r) is None or None
        ways[f"cell, {backend}"] = lambda m=model, r=rows[backend]: _cell(m, r, condition)
    title = f"losses with {_OFF:.0%} of the neurons off, {plain.tokens.numel()} tokens, in units of a plain pass"
    yield Case(
        title,
        ways,
        plain.tokens.numel(),
        goals={f"cell, {DEFAULT}": 1.02},
        expected=expected,
        difference=_relative,
        limit=_SAME[subject.dtype],
    )


def sweep_cases(subject: Subject) -> Iterator[Case]:
    text, reading = _text(subject, subject.n_rows(_WINDOW, _SWEEP))
    step = -(-subject.n_layers // _SWEPT)
    layers = list(range(step // 2, subject.n_layers, step))
    neurons = random_neurons(subject, _OFF).in_layers(layers)
    rows = corpus_rows(subject.ours[DEFAULT], text, reading)["en"]
    expected = _plain_sweep(subject, neurons, layers, rows)
    ways = {"transformers, hooks by hand": lambda: _plain_sweep(subject, neurons, layers, rows)}
    ways[f"whole passes, {DEFAULT}"] = lambda: _whole_passes(subject.ours[DEFAULT], neurons, layers, rows)
    for backend, model in subject.ours.items():
        ways[f"layer_sweep, {backend}"] = lambda m=model: _swept(m, text, neurons, reading)
    title = f"losses with {_OFF:.0%} of the neurons off, layer by layer, in units of plain passes"
    yield Case(
        title,
        ways,
        rows.tokens.numel() * (len(layers) + 1),
        goals={f"layer_sweep, {DEFAULT}": 0.6},
        expected=expected,
        difference=_relative,
        limit=_SAME[subject.dtype],
    )


def _relative(expected: Tensor, got: Tensor) -> float:
    return float(((got - expected).abs() / expected).max())


def _text(subject: Subject, n_rows: int) -> tuple[Corpus, Reading]:
    n_tokens = n_rows * _WINDOW
    return subject.text("en", n_tokens, "evaluate"), Reading(window=_WINDOW, bos="none", max_tokens=n_tokens)


@torch.no_grad()
def _plain_losses(subject: Subject, rows: TokenRows) -> Float[Tensor, " row"]:
    """Sum of the losses of each row by the transformers model, the batches those of this package."""
    found = []
    for batch in logit_batches(subject.ours[DEFAULT], rows):
        tokens = batch.tokens.to(subject.device)
        logits = subject.hf(input_ids=tokens, use_cache=False).logits[:, :-1].float()
        nll = torch.nn.functional.cross_entropy(logits.flatten(0, 1), tokens[:, 1:].flatten(), reduction="none")
        found.append(nll.view(len(tokens), -1).cpu().double().sum(1))
    return torch.cat(found)


def _cell(model: HookedModel, rows: TokenRows, condition: Condition) -> Float[Tensor, " row"]:
    with applied(model, condition):
        return row_losses(model, rows).nll


def _plain_sweep(
    subject: Subject, neurons: NeuronSet, layers: Sequence[int], rows: TokenRows
) -> Float[Tensor, " layer"]:
    """Loss per token with the neurons of each layer off; the pass of the intact model is that which changes are of."""
    found = [_plain_losses(subject, rows)]
    for layer in layers:
        with switched_off(subject, neurons.in_layers([layer])):
            found.append(_plain_losses(subject, rows))
    return torch.stack(found[1:]).sum(1) / rows.valid[:, 1:].sum()


def _whole_passes(
    model: HookedModel, neurons: NeuronSet, layers: Sequence[int], rows: TokenRows
) -> Float[Tensor, " layer"]:
    """The same by this package, without a sweep's short cut."""
    found = [row_losses(model, rows)]
    for layer in layers:
        with ablate(model, neurons.in_layers([layer])):
            found.append(row_losses(model, rows))
    return torch.stack([losses.nll.sum() / losses.n_tokens.sum() for losses in found[1:]])


def _swept(model: HookedModel, text: Corpus, neurons: NeuronSet, reading: Reading) -> Float[Tensor, " layer"]:
    table = layer_sweep(model, text, neurons, seeds=[], reading=reading, progress=False)
    return torch.tensor(table["nll"].to_numpy())
