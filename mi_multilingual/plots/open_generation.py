"""Figures of open-ended generation."""

import pandas as pd
import plotly.graph_objects as go

from ..patching.conditions import CHOSEN, INTACT, RANDOM
from ..studies.open_generation import LAYERS, OFF, RAISED, UNIFORM
from .steering import CONDITION_WORDS
from .style import COLOURS, asymmetric, grid, named_axes, share_heatmap

_ROWS = {"": "<i>as it is</i>", UNIFORM: "<i>random, uniform</i>", LAYERS: "<i>random, by layer</i>"}


def language_off(
    table: pd.DataFrame, *, title: str = "Answers in the language asked for, without a language"
) -> go.Figure:
    """Heatmap of `open_generation_table`: rows are the language switched off, columns the language asked.

    The first rows are the model as it is and without as many random neurons as all languages have together; the hover
    text says what random neurons of the row's own number do.
    """
    own = table[table.group == ""].assign(row=lambda t: t.drawn.map(_ROWS))
    chosen = table[(table.change == OFF) & (table.condition == CHOSEN)].assign(row=lambda t: t.group)
    shown = pd.concat([own, chosen])
    random = table[(table.change == OFF) & (table.condition == RANDOM) & (table.group != "")].assign(
        row=lambda t: t.group
    )
    share, *further = (
        grid(shown, "row", "source", name) for name in ("in_target", "low", "high", "n", "unknown", "mixed")
    )
    further.append(
        grid(random, "row", "source", "in_target").reindex_like(share) if len(random) else share * float("nan")
    )
    hover = (
        "off: %{y}<br>asked in: %{x}<br>%{z:.0%} of %{customdata[2]} answers in %{x}<br>95 % interval "
        "%{customdata[0]:.0%} to %{customdata[1]:.0%}<br>unknown %{customdata[3]:.0%}, mixed %{customdata[4]:.0%}<br>"
        "as many random neurons off, by layer: %{customdata[5]:.0%}<extra></extra>"
    )
    figure = go.Figure(share_heatmap(share, further, hover, "share in the<br>language asked")).update_layout(
        title=title, xaxis_title="language asked", yaxis_title="switched off"
    )
    return named_axes(figure)


def language_raised(
    table: pd.DataFrame, *, title: str = "Answers in the language asked for, its neurons raised"
) -> go.Figure:
    """Bars of `open_generation_table`: the model as it is, with the language's own neurons raised, with random ones."""
    parts = {INTACT: table[table.change == ""], **dict(iter(table[table.change == RAISED].groupby("condition")))}
    names = {**CONDITION_WORDS, CHOSEN: "raised"}
    figure = go.Figure()
    for i, condition in enumerate(c for c in (INTACT, CHOSEN, RANDOM) if c in parts):
        rows = parts[condition]
        bars = go.Bar(
            x=rows.target,
            y=rows.in_target,
            error_y=asymmetric(rows.in_target, rows.low, rows.high),
            customdata=rows[["n", "low", "high", "unknown", "mixed"]].to_numpy(),
            name=names[condition],
            marker={"color": COLOURS[i]},
            hovertemplate=(
                f"{names[condition]}, asked in %{{x}}<br>%{{y:.0%}} of %{{customdata[0]}} answers in %{{x}}<br>95 % "
                "interval %{customdata[1]:.0%} to %{customdata[2]:.0%}<br>unknown %{customdata[3]:.0%}, mixed "
                "%{customdata[4]:.0%}<extra></extra>"
            ),
        )
        figure.add_trace(bars)
    figure.update_layout(title=title, barmode="group", xaxis_title="language asked", xaxis_type="category")
    return figure.update_yaxes(title_text="share in the language asked", tickformat=".0%", range=[0, 1.05])
