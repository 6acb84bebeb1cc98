"""Sections on neurons that languages share, and on those that carry answers."""

import pandas as pd

from ... import plots
from ...evaluation.intervals import mean_interval
from ..files import ATTRIBUTION, OVERLAP, SHARING
from ..measured import apart
from ..section import Figure, Section
from ..tables import column, language_column


def _sharing_table(table: pd.DataFrame) -> pd.DataFrame:
    """Share and stability of each type over all layers, one row for each threshold and type."""
    weighted = table.assign(kept=table.stability.fillna(0.0) * table.n_neurons)
    total = weighted.groupby(["threshold", "type"], sort=False).agg(
        mean=("mean", "mean"), kept=("kept", "sum"), n_neurons=("n_neurons", "sum")
    )
    return total.assign(stability=total.kept / total.n_neurons.clip(lower=1)).reset_index()


def sharing_findings(table: pd.DataFrame) -> list[str]:
    """What `Sharing.layer_shares` says at its lowest threshold and first task."""
    part = table[(table.threshold == table.threshold.min()) & (table.task == table.task.iloc[0])]
    sentences = []
    for kind in ("all-shared", "specific"):
        rows = part[part.type == kind]
        if len(rows):
            most, least = rows.loc[rows["mean"].idxmax()], rows.loc[rows["mean"].idxmin()]
            certain = apart(most.low, most.high, least.low, least.high)
            change = "" if certain else "; the two intervals overlap"
            sentences.append(
                f"{kind.capitalize()} neurons are {share(least)} to {share(most)} of a layer's neurons{change}."
            )
    return sentences


def share(row: pd.Series) -> str:
    """The mean of a layer and its interval; rounding of an interval about zero must not show a negative share."""
    low, high = (max(0.0, x) for x in (row.low, row.high))
    return f"{row['mean']:.2%} (layer {row.layer}; {low:.2%} to {high:.2%})"


def contribution_findings(table: pd.DataFrame) -> list[str]:
    """Which types are more frequent among the neurons of highest contribution than among all, by an `attribution`."""
    mean = table.groupby(["language", "type"], sort=False)[["share", "top_share"]].mean()
    sentences = []
    for kind, part in mean.groupby("type", sort=False):
        low, high = mean_interval((part.top_share - part.share).to_numpy())
        if low > 0:
            sentences.append(
                f"{str(kind).capitalize()} neurons are {part.share.mean():.2%} of all, but {part.top_share.mean():.2%} "
                f"of those that contribute most to the answers: {100 * low:.2f} to {100 * high:.2f} points more (95 % "
                "interval over languages)."
            )
    return sentences


SECTIONS = (
    Section(
        "sharing",
        "Neurons that languages share",
        (SHARING,),
        "Means over layers. Usual type: the one a neuron has for most inputs.",
        (
            column("threshold", "active above"),
            column("type"),
            column("mean", "share of neurons", "{:.2%}"),
            column("stability", "share of inputs with the neuron's usual type", "{:.2f}"),
        ),
        build=_sharing_table,
        findings=sharing_findings,
        figures=(
            Figure(
                "sharing-layers",
                (SHARING,),
                plots.sharing_by_layer,
                "Types of neuron at the last token of parallel sentences; the band spans all sentences.",
            ),
            Figure(
                "sharing-overlap",
                (OVERLAP,),
                plots.activity_overlap,
                "Languages that use the same neurons for the same sentence; ordered by similarity.",
            ),
        ),
    ),
    Section(
        "attribution",
        "Neurons that carry answers",
        (ATTRIBUTION,),
        "At the last token of fact questions. Share of each type among a layer's neurons and among the tenth that "
        "contributes most; effective scores: what the neurons of the type add to the answer's logit directly.",
        (
            language_column(),
            column("layer"),
            column("type"),
            column("share", "share of neurons", "{:.1%}"),
            column("top_share", "share of the top tenth", "{:.1%}"),
            column("effective_mean", "effective score, mean", "{:+.4f}"),
            column("effective_max", "highest", "{:+.3f}"),
            column("effective_min", "lowest", "{:+.3f}"),
        ),
        findings=contribution_findings,
        folded=True,
        figures=(
            Figure(
                "sharing-attribution",
                (ATTRIBUTION,),
                plots.type_contributions,
                "Types among all neurons of a layer and among the tenth that contributes most, at fact questions.",
                wide=True,
            ),
        ),
    ),
)
