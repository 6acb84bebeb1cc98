"""Two runs side by side: sizes and agreement of their neurons, and what switching them off does."""

from __future__ import annotations

import math

import numpy as np
import pandas as pd
import plotly.graph_objects as go

from ..display import spoken
from ..neurons import NeuronSet
from ..patching.conditions import CHOSEN
from ..plots.style import COLOURS, asymmetric
from .files import MATRIX, NEURONS
from .languages import named
from .measured import difference, mean_of
from .run import Run
from .section import SIGNED, Figure, Section, Shown, drawing, filled
from .tables import column, language_column

_ENDS = ("", "_low", "_high")
_NATS, _BITS = "nats per token", "bits per byte"
_COLUMNS = (
    language_column(),
    column("size", "neurons", "{:,}"),
    column("other_size", "neurons there", "{:,}"),
    column("jaccard", "Jaccard overlap", "{:.2f}"),
    column("own", "own effect", SIGNED),
    column("own_low own_high", "95 % interval", f"{SIGNED} to {SIGNED}"),
    column("other_own", "own effect there", SIGNED),
    column("other_own_low other_own_high", "95 % interval there", f"{SIGNED} to {SIGNED}"),
    column("difference", "difference", SIGNED),
    column("difference_low difference_high", "95 % interval of the difference", f"{SIGNED} to {SIGNED}"),
    column("elsewhere", "on other languages", SIGNED),
    column("other_elsewhere", "on others there", SIGNED),
    column("elsewhere_difference", "difference on others", SIGNED),
    column("elsewhere_difference_low elsewhere_difference_high", "its 95 % interval", f"{SIGNED} to {SIGNED}"),
)
"""What the table of a comparison shows."""


def compared(mine: Run, theirs: Run) -> Shown:
    """The section that compares a run with another one.

    Neurons are matched only where both are of one model; else effects are in bits per byte, which do not depend on
    the tokenizer.

    Raises:
        ValueError: a run without neurons or matrix, or no language in both.
    """
    for run in (mine, theirs):
        if not run.has(NEURONS, MATRIX):
            raise ValueError(
                f"runs to compare must have {NEURONS} and {MATRIX}, got {run.folder} without "
                f"{NEURONS if not run.has(NEURONS) else MATRIX}; add it, or choose another run"
            )
    same = _same_model(mine.neurons, theirs.neurons)
    unit = _NATS if same else _BITS
    table = comparison(mine, theirs, unit)
    section = Section(
        "comparison",
        f"Compared with {theirs.folder.name}",
        caption=_notes(mine, theirs, same),
        columns=_COLUMNS,
    )
    name = theirs.folder.name
    figure = Figure("comparison-own", (), lambda: _own_effects(table, name, unit), "Error bars: 95 % intervals.", True)
    return filled(section, table, [drawing(figure, figure.draw())], differences(table, unit))


def _same_model(mine: NeuronSet, theirs: NeuronSet) -> bool:
    """Whether a neuron of one is the neuron of that place in the other."""
    alike = mine.masks.shape[1:] == theirs.masks.shape[1:] and mine.part == theirs.part
    return bool(alike and mine.model_fingerprint == theirs.model_fingerprint)


def comparison(mine: Run, theirs: Run, unit: str) -> pd.DataFrame:
    """One row for each language of both runs: sizes, Jaccard overlap, own effects, effects on the other languages.

    The overlap is NaN where the neurons cannot be matched. Intervals of differences are made as if the two runs were
    independent.
    """
    ours, others = _effects_by_language(mine, unit), _effects_by_language(theirs, unit)
    both = [k for k in ours.index if k in others.index]
    if not both:
        raise ValueError(
            f"runs to compare must have a language in common, got {', '.join(ours.index) or 'none'} in {mine.folder} "
            f"and {', '.join(others.index) or 'none'} in {theirs.folder}; choose another run"
        )
    table = ours.loc[both].join(others.loc[both].add_prefix("other_"))
    table["jaccard"] = np.nan
    if _same_model(mine.neurons, theirs.neurons):
        table["jaccard"] = mine.neurons.take(both).agreement(theirs.neurons.take(both))
    for name, to in (("own", "difference"), ("elsewhere", "elsewhere_difference")):
        mine_theirs = (tuple(table[f"{run}{name}{end}"].to_numpy() for end in _ENDS) for run in ("", "other_"))
        for end, values in zip(_ENDS, difference(*mine_theirs), strict=True):
            table[f"{to}{end}"] = values
    return table.rename_axis("language").reset_index()


def _effects_by_language(run: Run, unit: str) -> pd.DataFrame:
    """By language: size of its set; own and elsewhere (mean over the other languages), each with low and high."""
    matrix, sizes = run.read(MATRIX), run.neurons.sizes()
    scale = matrix.n_tokens / matrix.n_bytes / math.log(2) if unit == _BITS else 1.0
    matrix = matrix.assign(**{name: matrix[name] * scale for name in ("change", "low", "high")})
    rows = {}
    for language in sizes.index:
        off = matrix[(matrix.condition == CHOSEN) & (matrix.group == language)]
        own, rest = off[off.evaluated == language], off[off.evaluated != language]
        if own.empty:
            continue
        row = {"size": sizes[language]}
        for name, part in (("own", own), ("elsewhere", rest)):
            change, low, high = mean_of(*(part[c].to_numpy() for c in ("change", "low", "high")))
            row |= {name: change, f"{name}_low": low, f"{name}_high": high}
        rows[language] = row
    return pd.DataFrame.from_dict(rows, orient="index")


def differences(table: pd.DataFrame, unit: str) -> list[str]:
    """The comparison in words."""
    more, less = (int(n) for n in ((table.difference_low > 0).sum(), (table.difference_high < 0).sum()))
    sentences = [
        f"The own effect is larger here in {more} and smaller in {less} of {len(table)} languages; in the others the "
        f"interval of the difference includes zero ({unit})."
    ]
    if table.jaccard.notna().any():
        least, most = table.loc[table.jaccard.idxmin()], table.loc[table.jaccard.idxmax()]
        sentences.append(
            f"The sets overlap by {table.jaccard.mean():.2f} on average (Jaccard), from {least.jaccard:.2f} "
            f"for {named(least.language)} to {most.jaccard:.2f} for {named(most.language)}."
        )
    return sentences


def _notes(mine: Run, theirs: Run, same: bool) -> str:
    """What is compared, and what is not comparable."""
    methods = [f"{spoken(run.neurons.method)} on {run.neurons.model or 'an unknown model'}" for run in (mine, theirs)]
    said = [f"Here: {methods[0]}; there: {methods[1]}."]
    if not same:
        said.append(
            "The models differ: their neurons cannot be matched, so there is no overlap, and effects are given in bits "
            "per byte, which do not depend on the tokenizer."
        )
    texts = [run.about().get("evaluated_on") for run in (mine, theirs)]
    if None in texts:
        said.append("Whether both were measured on the same text is not known.")
    elif texts[0] != texts[1]:
        said.append("They were measured on different texts, which alone can change effects.")
    languages = [set(run.neurons.groups) for run in (mine, theirs)]
    for name, only in (("here", languages[0] - languages[1]), ("there", languages[1] - languages[0])):
        if only:
            said.append(f"Only {name}: {', '.join(map(named, sorted(only)))}.")
    said.append(
        "Intervals of differences are made as if the two runs were independent; on the same text they are wider than "
        "needed."
    )
    return " ".join(said)


def _own_effects(table: pd.DataFrame, name: str, unit: str) -> go.Figure:
    """Bars: own effect of every language in both runs, with 95 % intervals."""
    bars = []
    for prefix, run, colour in (("", "here", COLOURS[0]), ("other_", name, COLOURS[1])):
        own, low, high = (table[f"{prefix}own{end}"] for end in ("", "_low", "_high"))
        bars.append(
            go.Bar(
                x=table.language,
                y=own,
                name=run,
                marker={"color": colour},
                error_y=asymmetric(own, low, high),
                customdata=np.stack([low, high], axis=-1),
                hovertemplate=f"%{{x}}: %{{y:+.4f}} {unit}<br>95 % interval %{{customdata[0]:+.4f}} to "
                "%{customdata[1]:+.4f}",
            )
        )
    figure = go.Figure(bars).update_layout(title="Own effect in both runs", barmode="group", xaxis_title="language")
    return figure.update_layout(yaxis_title=f"change of the loss, {unit}").update_xaxes(type="category")
