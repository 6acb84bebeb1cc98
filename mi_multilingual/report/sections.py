"""What the page shows: one row of SECTIONS a section, made from the files of a run where they exist."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import pandas as pd
import plotly.graph_objects as go

from .. import plots
from ..detectors.lape import lape_entropy
from ..evidence.activations import ActivationStats
from ..neurons import NeuronSet
from . import findings
from .run import MATRIX, NEURONS, STATS, Run
from .tables import LONGEST, NEURON, Column, cells, column, described, interval, style

LISTED = 100  # neurons a language in the table of language neurons
SIGNED = "{:+.4f}"


@dataclass(frozen=True)
class Figure:
    """A figure made from files of the run."""

    id: str
    files: tuple[str, ...]
    draw: Callable[..., go.Figure]
    """Gets what the files hold, one argument a file."""
    caption: str
    wide: bool = False


@dataclass(frozen=True)
class Section:
    """A part of the page: findings, figures and a table; what has no file in the run is left out."""

    id: str
    title: str
    files: tuple[str, ...] = ()
    """What the table and the findings are made from; parquet, safetensors, or JSON that is a list of records."""
    caption: str = ""
    """How to read the table."""
    columns: tuple[Column, ...] = ()
    """Of the table; none: all columns under their own names."""
    build: Callable[..., pd.DataFrame] = lambda table, *rest: table
    """The table from what the files hold, one argument a file."""
    findings: findings.Finding = lambda *files: []
    """Sentences from what the files hold, one argument a file."""
    figures: tuple[Figure, ...] = ()
    language: str = "language"
    """Column by which the language switch filters the rows, where the table has it."""
    folded: bool = False
    """The table is shown on demand only."""


@dataclass(frozen=True)
class Shown:
    """A section as the template needs it."""

    section: Section
    figures: list[dict[str, Any]] = field(default_factory=list)
    findings: list[str] = field(default_factory=list)
    columns: list[dict[str, Any]] = field(default_factory=list)
    rows: list[dict[str, Any]] = field(default_factory=list)
    n_left_out: int = 0


def shown(section: Section, run: Run) -> Shown | None:
    """The section of this run; None where the run has nothing for it."""
    drawn = [
        drawing(f, f.draw(*map(run.load, f.files)))
        for f in section.figures
        if run.has(*f.files) and all(len(run.table(name)) for name in f.files if name.endswith(".parquet"))
    ]
    table = pd.DataFrame()
    if section.files and run.has(*section.files):
        table = section.build(*map(run.load, section.files))
    if table.empty:
        return Shown(section, drawn) if drawn else None
    return filled(section, table, drawn, section.findings(*map(run.load, section.files)))


def drawing(figure: Figure, drawn: go.Figure) -> dict[str, Any]:
    """A figure as the template needs it; its title stands above it as text, which can wrap."""
    title = str(drawn.layout.title.text or "")
    return {
        "id": figure.id,
        "title": title,
        "caption": figure.caption,
        "wide": figure.wide,
        "json": str(drawn.to_json()),
    }


def filled(section: Section, table: pd.DataFrame, drawn: list[dict[str, Any]], said: list[str]) -> Shown:
    """The section with this table in it."""
    columns, part = described(table, section.columns), table.head(LONGEST)
    languages = part[section.language].astype(str).tolist() if section.language in part else [""] * len(part)
    return Shown(
        section,
        drawn,
        said,
        [{"title": c.title, "names": list(c.names), "style": style(part, c)} for c in columns],
        [{"language": k, "cells": row} for k, row in zip(languages, cells(part, columns), strict=True)],
        len(table) - len(part),
    )


def language_table(matrix: pd.DataFrame, stats: ActivationStats, neurons: NeuronSet) -> pd.DataFrame:
    """One row a language: neurons, tokens, loss, and the effect of its own neurons, of others' and of random ones."""
    tokens = dict(zip(stats.languages, stats.n_tokens.tolist(), strict=True))
    sizes = neurons.sizes()
    rows = []
    for language, part in matrix.groupby("evaluated", sort=False):
        if not (part.ablated == language).any():
            continue
        base, own = (part[part.ablated == name].iloc[0] for name in ("none", language))
        rows.append(
            {
                "language": language,
                "n_neurons": sizes[language],
                "n_tokens": tokens.get(str(language), 0),
                "ppl": base.ppl,
                "bits_per_byte": base.bits_per_byte,
                "own": own.change,
                "low": own.low,
                "high": own.high,
                "others": part[~part.ablated.isin(["none", "random", language])].change.mean(),
                "random": part[part.ablated == "random"].change.mean(),
            }
        )
    return pd.DataFrame(rows)


def neuron_table(neurons: NeuronSet, stats: ActivationStats) -> pd.DataFrame:
    """The neurons of least entropy of every language: language, layer, neuron, entropy, probability, elsewhere."""
    probability = stats.activation_probability()
    frame = neurons.to_frame().rename(columns={"group": "language"})
    known = frame.language.isin(stats.languages).to_numpy()
    frame = frame[known].reset_index(drop=True)
    k = [stats.languages.index(g) for g in frame.language]
    layer, neuron = frame.layer.tolist(), frame.neuron.tolist()
    frame["entropy"] = lape_entropy(stats)[layer, neuron].numpy()
    frame["probability"] = probability[layer, neuron, k].numpy()
    total = probability[layer, neuron].sum(-1).numpy()
    frame["elsewhere"] = (total - frame.probability) / max(1, len(stats.languages) - 1)
    order = {g: i for i, g in enumerate(neurons.groups)}
    best = frame.sort_values("entropy", kind="stable").groupby("language", sort=False).head(LISTED)
    return best.sort_values("language", key=lambda names: names.map(order), kind="stable")


def sharing_table(table: pd.DataFrame) -> pd.DataFrame:
    """Share and stability of each type over all layers, a row a threshold and type."""
    weighted = table.assign(kept=table.stability.fillna(0.0) * table.n_neurons)
    total = weighted.groupby(["threshold", "type"], sort=False).agg(
        mean=("mean", "mean"), kept=("kept", "sum"), n_neurons=("n_neurons", "sum")
    )
    return total.assign(stability=total.kept / total.n_neurons.clip(lower=1)).reset_index()


DEACTIVATED = (
    column("off", "switched off"),
    column("language", "asked in"),
    column("measure"),
    column("n_items", "questions", "{:,}"),
    column("n_neurons", "neurons", "{:,.0f}"),
    column("intact", "", "{:.3f}"),
    column("value", "without", "{:.3f}"),
    column("change", "", "{:+.3f}"),
    interval("{:+.3f}"),
    column("random_change", "random: change", "{:+.3f}"),
    Column(("beyond_low", "beyond_high"), "beyond random, 95 % interval", "{:+.3f} to {:+.3f}"),
)

SECTIONS = (
    Section(
        "effects",
        "Effects",
        (MATRIX,),
        "Change of the loss when the neurons of one language are switched off, nats a token, with 95 % intervals by "
        "bootstrap over rows of text; “random”: as many neurons drawn in the same layers.",
        (
            column("ablated", "switched off"),
            column("evaluated", "text"),
            column("seed"),
            column("n_neurons", "neurons", "{:,}"),
            column("change", "change, nats a token", SIGNED),
            interval(SIGNED),
            column("nll", "loss, nats a token", "{:.4f}"),
            column("n_tokens", "tokens", "{:,}"),
        ),
        findings=findings.ablation,
        language="evaluated",
        folded=True,
        figures=(
            Figure(
                "change",
                (MATRIX,),
                plots.perplexity_change,
                "Red: text of the column was harder to predict when the neurons of the row were zero. Language "
                "neurons show as a red diagonal; the last row: as many random neurons in the same layers.",
                wide=True,
            ),
        ),
    ),
    Section(
        "languages",
        "Languages",
        (MATRIX, STATS, NEURONS),
        "Nats a token where neurons are switched off. Perplexity a token cannot be compared across languages; the "
        "changes and bits a byte can.",
        (
            column("language"),
            column("n_neurons", "neurons", "{:,}"),
            column("n_tokens", "tokens recorded", "{:,}"),
            column("ppl", "perplexity a token", "{:.1f}"),
            column("bits_per_byte", "bits a byte", "{:.3f}"),
            column("own", "own neurons off", SIGNED),
            interval(SIGNED),
            column("others", "other languages' neurons off", SIGNED),
            column("random", "random neurons off", SIGNED),
        ),
        build=language_table,
    ),
    Section(
        "neurons",
        "Language neurons",
        (NEURONS, STATS),
        f"At most {LISTED} a language, of least entropy first. A neuron leads to its own page.",
        (
            column("language"),
            NEURON,
            column("entropy", "entropy, nats", "{:.3f}"),
            column("probability", "activation probability", "{:.3f}"),
            column("elsewhere", "mean of other languages", "{:.4f}"),
        ),
        build=neuron_table,
        findings=lambda neurons, stats: findings.sizes(neurons),
        figures=(
            Figure(
                "map",
                (STATS, NEURONS),
                plots.neuron_map,
                "Every point is a neuron of a language: the lower, the more of its activity is in one language. Click "
                "one for its page.",
            ),
            Figure(
                "layers",
                (NEURONS,),
                plots.layer_counts,
                "Neurons of each language by layer, input at the left, output at the right.",
            ),
            Figure(
                "overlap",
                (NEURONS,),
                plots.overlap,
                "Share of neurons that two languages have in common; related ones stand out.",
            ),
            Figure(
                "entropy",
                (STATS, NEURONS),
                plots.entropy_histogram,
                "Left: neurons that fire in one language only. Right: neurons that fire equally often in all.",
            ),
        ),
    ),
    Section(
        "significance",
        "More than chance?",
        ("significance.parquet",),
        "Chance: language labels shuffled over documents. Significant: 5 % false discoveries allowed (Benjamini and "
        "Hochberg). Agreement: Jaccard overlap of the sets found on random halves of the documents, from the lowest to "
        "the highest.",
        (
            column("language"),
            column("found", "neurons found"),
            column("significant"),
            column("chance_mean", "by chance, mean", "{:.1f}"),
            column("chance_high", "by chance, 95 % below", "{:.0f}"),
            column("agreement", "agreement of two halves", "{:.2f}"),
            column("low high", "lowest to highest", "{:.2f} to {:.2f}"),
        ),
        findings=findings.significance,
        figures=(
            Figure(
                "trust-chance",
                ("significance.parquet",),
                plots.found_and_chance,
                "Neurons found, those that stay significant after correction, and what shuffled labels give.",
            ),
            Figure(
                "trust-membership",
                ("membership.safetensors", NEURONS),
                plots.membership,
                "Right: neurons that are chosen again whatever sentences the corpus happens to hold.",
            ),
        ),
    ),
    Section(
        "leaderboard",
        "Detectors compared",
        ("leaderboard.parquet",),
        "Change of the loss when the neurons are switched off, nats a token, means over languages; intervals by "
        "bootstrap over rows of text. Stability: mean Jaccard overlap of the sets on two halves of the corpus.",
        (
            column("detector"),
            column("n_neurons", "neurons a language", "{:.0f}"),
            column("own", "own language", SIGNED),
            column("elsewhere", "other languages", SIGNED),
            column("specificity", "specificity", SIGNED),
            interval(SIGNED),
            column("hits", "languages hurt most by their own"),
            column("stability", "stability", "{:.2f}"),
        ),
        findings=findings.detectors,
        figures=(
            Figure(
                "detectors",
                ("leaderboard.parquet",),
                plots.leaderboard,
                "Equally many neurons of each detector switched off; right: they matter to their own language alone.",
                wide=True,
            ),
        ),
    ),
    Section(
        "sharing",
        "Neurons that languages share",
        ("sharing.parquet",),
        "Means over layers. Usual type: the one a neuron has for most inputs.",
        (
            column("threshold", "active above"),
            column("type"),
            column("mean", "share of neurons", "{:.2%}"),
            column("stability", "share of inputs with the neuron's usual type", "{:.2f}"),
        ),
        build=sharing_table,
        findings=findings.sharing,
        figures=(
            Figure(
                "sharing-layers",
                ("sharing.parquet",),
                plots.sharing_by_layer,
                "Types of neuron at the last token of parallel sentences; the band spans all sentences.",
            ),
            Figure(
                "sharing-overlap",
                ("overlap.parquet",),
                plots.activity_overlap,
                "Languages that use the same neurons for the same sentence; ordered by similarity.",
            ),
        ),
    ),
    Section(
        "attribution",
        "Neurons that carry answers",
        ("attribution.parquet",),
        "At the last token of fact questions. Share of each type among a layer's neurons and among the tenth that "
        "contributes most; effective scores: what the neurons of the type add to the answer's logit directly.",
        (
            column("language"),
            column("layer"),
            column("type"),
            column("share", "share of neurons", "{:.1%}"),
            column("top_share", "share of the top tenth", "{:.1%}"),
            column("effective_mean", "effective score, mean", "{:+.4f}"),
            column("effective_max", "highest", "{:+.3f}"),
            column("effective_min", "lowest", "{:+.3f}"),
        ),
        findings=findings.contributions,
        folded=True,
        figures=(
            Figure(
                "sharing-attribution",
                ("attribution.parquet",),
                plots.type_contributions,
                "Types among all neurons of a layer and among the tenth that contributes most, at fact questions.",
                wide=True,
            ),
        ),
    ),
    Section(
        "steering",
        "Steering",
        ("steering.parquet",),
        "Prompts of one language, continued with its own neurons off and those of another raised: share of outputs in "
        "the language wanted, with 95 % Wilson intervals, beside the model as it is and as many random neurons.",
        (
            column("source", "prompt"),
            column("target", "steered to"),
            column("condition"),
            column("n", "outputs", "{:,}"),
            column("in_target", "in the target", "{:.0%}"),
            interval("{:.0%}"),
            column("in_source", "in the prompt's", "{:.0%}"),
            column("elsewhere", "elsewhere", "{:.0%}"),
        ),
        findings=findings.steering,
        language="target",
        folded=True,
        figures=(
            Figure(
                "steering-matrix",
                ("steering.parquet",),
                plots.steering_matrix,
                "Share of outputs in the language of the column, for prompts in that of the row.",
                wide=True,
            ),
        ),
    ),
    Section(
        "steering-curve",
        "Strength of steering",
        ("steering_curve.parquet",),
        "Held-out prompts, steered to the other languages; strength times the mean activation is added. Perplexity is "
        "that of the outputs under the model as it is, a cost in fluency.",
        (
            column("strength", "", "{:g}"),
            column("condition"),
            column("n", "outputs", "{:,}"),
            column("in_target", "in the target", "{:.0%}"),
            interval("{:.0%}"),
            column("ppl", "perplexity a token", "{:.1f}"),
            Column(("nll_low", "nll_high"), "loss, nats a token: 95 % interval", "{:.2f} to {:.2f}"),
            column("distinct_2", "distinct pairs of words", "{:.0%}"),
        ),
        figures=(
            Figure(
                "steering-strength",
                ("steering_curve.parquet",),
                plots.steering_curve,
                "Above: outputs in the language wanted. Below: what it costs.",
                wide=True,
            ),
        ),
    ),
    Section(
        "steering-examples",
        "Steered text",
        ("steering_examples.json",),
        "One prompt a target, failures too; in brackets the language that was identified.",
        (
            column("source", "prompt in"),
            column("target", "steered to"),
            column("prompt"),
            Column(("unsteered", "found_unsteered"), "as it is", "{} ({})"),
            Column(("steered", "found_steered"), "steered", "{} ({})"),
            column("strength", "", "{:g}"),
        ),
        language="target",
    ),
    Section(
        "deactivation",
        "Types of neuron switched off",
        ("deactivation.parquet",),
        "Each question without its own all-shared, partial-shared, specific or non-activated neurons, beside as many "
        "random ones a layer. Margin: how far the right answer leads the best wrong one, nats. 95 % intervals by "
        "bootstrap over questions.",
        DEACTIVATED,
        findings=findings.deactivation,
        figures=(
            Figure(
                "deactivation-bars",
                ("deactivation.parquet",),
                plots.deactivation_bars,
                "How far the right answer falls back without the neurons of each type.",
                wide=True,
            ),
        ),
    ),
    Section(
        "sweep-effects",
        "Sweep",
        ("sweep_effects.parquet",),
        "What a setting changes, mean over languages with a 95 % bootstrap interval over them: in text of the language "
        "whose neurons are changed (own), of the others, or without every question's neurons of a type; “random”: as "
        "many random neurons in the same layers.",
        (
            column("setting"),
            column("evaluation"),
            column("measure"),
            column("where"),
            column("neurons"),
            column("n", "languages"),
            column("base", "unchanged", "{:.4f}"),
            column("change", "", SIGNED),
            interval(SIGNED),
        ),
        findings=findings.sweep,
        figures=(
            Figure(
                "sweep",
                ("sweep_effects.parquet",),
                plots.sweep_effects,
                "Where dots of one colour stand apart from its crosses, the neurons that were found do what random "
                "ones do not.",
                wide=True,
            ),
        ),
    ),
    Section(
        "sweep-cells",
        "Every cell of the sweep",
        ("sweep.parquet",),
        "A row a cell, language evaluated and measure; 95 % intervals by bootstrap over rows of text or questions, "
        "of shares by matched pairs. Seed -1: the neurons that were found; others: of random neurons.",
        (
            column("model"),
            column("detector"),
            column("rate", "", "{:g}"),
            column("site"),
            column("layers"),
            column("part"),
            column("intervention"),
            column("ablated", "neurons of"),
            column("seed"),
            column("n_neurons", "neurons", "{:,}"),
            column("evaluation"),
            column("evaluated", "measured on"),
            column("measure"),
            column("n"),
            column("base", "unchanged", "{:.4f}"),
            column("change", "", SIGNED),
            interval(SIGNED),
        ),
        language="evaluated",
        folded=True,
    ),
    Section(
        "facts",
        "Facts",
        ("facts.parquet",),
        "Accuracy with a 95 % Wilson interval over the countries asked.",
        (
            column("language"),
            column("relation"),
            column("wording"),
            column("n", "questions", "{:,}"),
            column("accuracy", "", "{:.2f}"),
            interval("{:.2f}"),
        ),
        findings=findings.facts,
    ),
    Section(
        "cross-facts",
        "Facts across languages",
        ("cross_facts.parquet",),
        "Facts asked in one language with the neurons of another switched off; columns as above.",
        DEACTIVATED,
        folded=True,
        figures=(
            Figure(
                "cross-facts-matrix",
                ("cross_facts.parquet",),
                plots.deactivation_matrix,
                "Red: answers in the language of the column lead by less without the neurons of the row.",
                wide=True,
            ),
        ),
    ),
    Section(
        "examples",
        "Continuations",
        ("continuations.json",),
        columns=(column("language"), column("prompt"), column("continuation", "continued by the model")),
    ),
)
"""Every section of the page in its order. A new table of a run needs a row here and nothing else."""
