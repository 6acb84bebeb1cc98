"""Sections on how alike languages are represented."""

import pandas as pd

from ... import plots
from ...studies.representations import TOGETHER
from ..files import (
    DOMINANCE,
    NEURON_LAYERS,
    REPRESENTATION_EFFECTS,
    REPRESENTATION_LAYERS,
    REPRESENTATION_SHAPE,
    U_SHAPE,
)
from ..languages import listed, named
from ..section import Figure, Section
from ..tables import Column, column, interval, language_column

_NUMBER = "{:.4f}"


def _certain(low: float, high: float) -> str:
    """What an interval says of its number."""
    return "certainly above 0" if low > 0 else "certainly below 0" if high < 0 else "not certainly apart from 0"


def shape_findings(layers: pd.DataFrame, shape: pd.DataFrame) -> list[str]:
    """Whether likeness rises in the middle layers, and whether that is more than the floor does."""
    rows = shape.set_index("measure")
    found = [
        f"In the middle layers translations are {rows.change['similarity']:+.3f} more similar than in the first and "
        f"last ones (95 % interval {rows.low['similarity']:+.3f} to {rows.high['similarity']:+.3f}), and sentences "
        f"that are no translations {rows.change['floor']:+.3f}."
    ]
    row = rows.loc["corrected"]
    return [
        *found,
        f"What is left of the difference is {row.change:+.3f} ({row.low:+.3f} to {row.high:+.3f}): "
        f"{_certain(row.low, row.high)}.",
    ]


def dominance_findings(table: pd.DataFrame) -> list[str]:
    """Languages that others are near to in the middle layer, where their interval lies above all others'."""
    part = table[~table.shifted]
    middle = part[part.layer == sorted(part.layer.unique())[part.layer.nunique() // 2]].set_index("language")
    first = middle.value.idxmax()
    if middle.low[first] > middle.high.drop(first).max():
        return [f"In the middle layer the others are nearest to {named(str(first))}."]
    return [
        f"In the middle layer no language dominates: the interval of {named(str(first))}, the highest, meets others."
    ]


def effect_findings(table: pd.DataFrame) -> list[str]:
    """What neurons are worth to the likeness of all languages at the last layer."""
    part = table[(table.language == TOGETHER) & (table.layer == table.layer.max())]
    sentences = []
    for group, rows in part.groupby("group", sort=False):
        row = rows.set_index("measure").loc["similarity"]
        sentences.append(
            f"Without the neurons of {named(str(group))} ({row.n_neurons:,.0f}) the similarity of translations after "
            f"the last block changes by {row.change:+.3f}, {row.beyond:+.3f} beyond as many random ones (95 % interval "
            f"{row.beyond_low:+.3f} to {row.beyond_high:+.3f}): {_certain(row.beyond_low, row.beyond_high)}."
        )
    return sentences


def u_findings(table: pd.DataFrame) -> list[str]:
    """Whether the neurons of all languages gather at both ends."""
    row = table[table.group == TOGETHER].iloc[0]
    ends = [f"{share:.0%} in the {name}" for name, share in (("first", row["first"]), ("last", row["last"]))]
    return [
        f"{row.share:.0%} of the language neurons lie in the outer thirds of the layers (95 % interval {row.low:.0%} "
        f"to {row.high:.0%}; {row.even:.0%} if all layers had as many): {listed(ends)}. With the layers' numbers dealt "
        f"out anew that happens with p = {row.p:.3f}; the smallest p that so few layers allow is {row.smallest_p:.4f}."
    ]


SECTIONS = (
    Section(
        "representations",
        "Likeness of languages by layer",
        (REPRESENTATION_LAYERS, REPRESENTATION_SHAPE),
        "Means over pairs of languages of vectors of the same sentences; 95 % intervals by bootstrap over sentences. "
        "The floor is the similarity of sentences that are no translations.",
        (
            column("measure"),
            column("layer", "after block"),
            column("n", "sentences", "{:,}"),
            column("value", "", _NUMBER),
            interval(_NUMBER),
        ),
        findings=shape_findings,
        folded=True,
        figures=(
            Figure(
                "similarity-by-layer",
                (REPRESENTATION_LAYERS, NEURON_LAYERS),
                plots.similarity_by_layer,
                "Similarity of sentences with their translations, its floor, and the difference; bars: language "
                "neurons in the block before.",
                wide=True,
            ),
        ),
    ),
    Section(
        "dominance",
        "Which language the others are near to",
        (DOMINANCE,),
        "Mean over the other languages of the similarity above the floor; shifted: after their mean vectors were moved "
        "onto the language's.",
        (
            language_column(),
            column("layer", "after block"),
            column("shifted"),
            column("n", "sentences", "{:,}"),
            column("value", "", _NUMBER),
            interval(_NUMBER),
        ),
        findings=dominance_findings,
        folded=True,
        figures=(
            Figure(
                "dominance-by-layer",
                (DOMINANCE,),
                plots.dominance_by_layer,
                "Not shifted; with 95 % intervals.",
                wide=True,
            ),
        ),
    ),
    Section(
        "representation-effects",
        "Likeness of languages without neurons",
        (REPRESENTATION_EFFECTS,),
        "Changes against the intact model with 95 % intervals by bootstrap over sentences, beside as many random "
        "neurons per layer.",
        (
            language_column("group", "switched off"),
            column("measure"),
            column("layer", "after block"),
            language_column(),
            column("n_neurons", "neurons", "{:,}"),
            column("intact", "", _NUMBER),
            column("change", "", "{:+.4f}"),
            interval("{:+.4f}"),
            column("random_change", "change, random neurons", "{:+.4f}"),
            Column(("beyond_low", "beyond_high"), "beyond random, 95 % interval", "{:+.4f} to {:+.4f}"),
        ),
        findings=effect_findings,
        folded=True,
        figures=(
            Figure(
                "representation-change",
                (REPRESENTATION_EFFECTS,),
                plots.representation_change,
                "How the similarity of translations changes without the neurons.",
                wide=True,
            ),
        ),
    ),
    Section(
        "u-shape",
        "Whether neurons gather at both ends",
        (U_SHAPE,),
        "Shares of the neurons in the outer thirds of the layers with 95 % Wilson intervals; p: the layers' numbers "
        "dealt out anew. An empty group is the neurons of any language.",
        (
            language_column("group", "neurons of"),
            column("n_neurons", "neurons", "{:,}"),
            column("first", "first third", "{:.1%}"),
            column("last", "last third", "{:.1%}"),
            column("share", "both", "{:.1%}"),
            interval("{:.1%}"),
            column("even", "if even", "{:.1%}"),
            column("p", "", "{:.4f}"),
            column("smallest_p", "smallest p", "{:.4f}"),
        ),
        findings=u_findings,
        language="group",
    ),
)
