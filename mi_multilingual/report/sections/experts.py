"""Sections on dense MLPs looked at as mixtures of experts."""

import pandas as pd

from ... import plots
from ...studies.deactivation import TOGETHER
from ..files import EXPERT_FAMILIES, EXPERT_SIMILARITY, EXPERT_TUNED, EXPERT_TYPES, EXPERTS, PRUNING
from ..languages import named
from ..section import Figure, Section
from ..tables import Column, column, interval, language_column


def _of_language(code: str) -> str:
    return "all languages" if code == TOGETHER else named(code)


def _over_layers(table: pd.DataFrame) -> pd.DataFrame:
    """The rows of all layers together."""
    return table.loc[table.layer == -1]


def type_findings(table: pd.DataFrame) -> list[str]:
    """Which kinds of experts are more frequent than chance would have it, by `expert_types`."""
    whole = _over_layers(table)
    return [
        f"{row.share:.0%} of the experts are {row.type} (95 % interval {row.low:.0%} to {row.high:.0%}); "
        f"{row.chance:.1%} would be if languages used experts independently."
        for row in whole.itertuples()
        if row.low > row.chance or row.high < row.chance
    ]


def family_findings(table: pd.DataFrame) -> list[str]:
    """Whether the tree of languages follows families, by `family_table`."""
    return [
        f"Languages of one family {'use' if row.r > 0 else 'do not use'} similar experts: r = {row.r:+.2f}, "
        f"p = {row.p:.4f}."
        if row.p < 0.05
        else f"Whether languages of one family use similar experts is not certain: r = {row.r:+.2f}, p = {row.p:.2f}."
        for row in table.itertuples()
    ]


def pruning_findings(table: pd.DataFrame) -> list[str]:
    """What pruning the least frequent experts costs beside random ones, by `pruning_curve`."""
    whole = table[(table.language == TOGETHER) & (table.rate == table.rate.max())]
    return [
        f"Without the {row.rate:.0%} least frequent experts ({row.layers} rates) the loss changes by {row.change:+.2f} "
        f"nats per token (95 % interval {row.low:+.2f} to {row.high:+.2f}), without random ones "
        f"by {row.random_change:+.2f}."
        for row in whole.itertuples()
    ]


SECTIONS = (
    Section(
        "experts",
        "Experts of a dense model",
        (EXPERT_TYPES,),
        "The neurons of a layer in groups of equal size. All-shared: among the most frequent of the layer in every "
        "language. Chance: if languages used experts independently.",
        (
            column("type"),
            column("n_experts", "experts"),
            column("share", "share of all", "{:.1%}"),
            interval("{:.1%}"),
            column("chance", "", "{:.1%}"),
        ),
        build=_over_layers,
        findings=type_findings,
        figures=(
            Figure(
                "experts-figure",
                (EXPERTS,),
                plots.expert_heatmap,
                "Share of a language's tokens that use it.",
                wide=True,
            ),
            Figure(
                "expert-tree",
                (EXPERT_SIMILARITY,),
                plots.language_tree,
                "Average linkage of 1 - cosine of the languages' frequencies; colours are families.",
            ),
        ),
    ),
    Section(
        "expert-families",
        "Do experts follow families",
        (EXPERT_FAMILIES,),
        "Mantel's correlation of the heights at which languages meet in the tree with whether their families differ; p "
        "by permuting the languages (two-sided). Interval: the correlation less those of the permutations.",
        (
            column("routing"),
            column("r", "", "{:+.3f}"),
            interval("{:+.3f}"),
            column("p", "", "{:.4f}"),
            column("n_pairs", "pairs"),
            column("permutations", "", "{:,}"),
        ),
        findings=family_findings,
    ),
    Section(
        "expert-tuned",
        "Experts before and after tuning",
        (EXPERT_TUNED,),
        "Cosine of a layer's frequencies in the two models; moved: uses per token that went to other experts.",
        (language_column(), column("layer"), column("cosine", "", "{:.4f}"), column("moved", "", "{:.3f}")),
        folded=True,
    ),
    Section(
        "pruning",
        "Pruning a language's experts",
        (PRUNING,),
        "Loss of each language without its least frequent experts, beside as many random experts of the same layers. "
        "Layer-wise: layers whose neurons are seldom active lose more. 95 % intervals by bootstrap over rows of text.",
        (
            column("layers", "rates"),
            column("rate", "pruned", "{:.1%}"),
            column("language", words=_of_language),
            column("n_neurons", "neurons", "{:,.0f}"),
            column("change", "loss, nats per token", "{:+.3f}"),
            interval("{:+.3f}"),
            column("random_change", "random experts", "{:+.3f}"),
            Column(("beyond_low", "beyond_high"), "beyond random, 95 % interval", "{:+.3f} to {:+.3f}"),
        ),
        findings=pruning_findings,
        folded=True,
        figures=(
            Figure(
                "pruning-figure", (PRUNING,), plots.pruning_curves, "All languages; bars are 95 % intervals.", wide=True
            ),
        ),
    ),
)
