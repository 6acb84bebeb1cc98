"""Figures of tuning: what a language gains and the others lose, and what parallel text does to sharing and answers."""

import numpy as np
import pandas as pd
import plotly.graph_objects as go

from ..studies.alignment_tuning import ALIGNED, ALONE, MIXED
from ..studies.tuning import FULL, OTHERS, OWN
from .style import COLOURS, asymmetric, change_heatmap, grid, named_axes

_ARMS = {"chosen": "its neurons", "random": "as many random neurons", FULL: "all weights"}
_ARM_COLOURS = {"chosen": COLOURS[0], "random": COLOURS[7], FULL: COLOURS[1]}
_MEASURES = {OWN: "the language tuned on", OTHERS: "the other languages"}
_TEXTS = {ALIGNED: "same documents<br>at every step", MIXED: "same text,<br>any order", ALONE: "one language<br>only"}
_UNITS = {
    "all_shared": ("all-shared neurons", "share of all neurons", ".3%"),
    "accuracy": ("right answers", "share of questions", ".1%"),
    "margin": ("the right answer's lead", "nats", ".3f"),
}


def tuning_bars(summary: pd.DataFrame, *, title: str = "What tuning does, by what is tuned") -> go.Figure:
    """Bars of a `tuning_summary`: change of the loss of the language tuned on, and of the others, for every arm."""
    whole = summary[summary.versus == ""]
    figure = go.Figure()
    for arm, part in whole.groupby("arm", sort=False):
        figure.add_bar(
            x=part.measure.map(_MEASURES),
            y=part.change,
            name=_ARMS[str(arm)],
            marker={"color": _ARM_COLOURS[str(arm)]},
            error_y=asymmetric(part.change, part.low, part.high),
            customdata=part[["low", "high"]],
            hovertemplate="tuned: %{fullData.name}<br>loss of %{x}<br>change %{y:+.4f} nats per token<br>"
            "95 % interval %{customdata[0]:+.4f} to %{customdata[1]:+.4f}<extra></extra>",
        )
    figure.update_layout(title=title, barmode="group", xaxis_title="whose loss", legend_title="what is tuned")
    return figure.update_yaxes(title="change of the loss,<br>nats per token")


def tuning_matrix(effects: pd.DataFrame, *, arm: str = "chosen", title: str = "") -> go.Figure:
    """Heatmap of `tuning_effects`: rows the language tuned on, columns the language of the text.

    Args:
        arm: what is tuned: "chosen", "random" or "full".
    """
    part = effects[effects.arm == arm]
    if part.empty:
        raise ValueError(f"arm must be one of {', '.join(effects.arm.unique())}, got {arm!r}")
    names = ("low", "high", "before", "after", "learning_rate")
    change, *further = (grid(part, "group", "evaluated", name) for name in ("change", *names))
    hover = (
        "tuned on: %{y}<br>text: %{x}<br>change %{z:+.4f} nats per token<br>"
        "95 % interval %{customdata[0]:+.4f} to %{customdata[1]:+.4f}<br>loss %{customdata[2]:.3f} before, "
        "%{customdata[3]:.3f} after<br>learning rate %{customdata[4]:.2g}<extra></extra>"
    )
    heat = change_heatmap(change, further, hover, "change,<br>nats per token", texttemplate="%{z:.2f}")
    figure = go.Figure(heat).update_layout(
        title=title or f"Tuning {_ARMS[arm]}: change of every language's loss",
        xaxis_title="language of the text",
        yaxis_title="language tuned on",
    )
    return named_axes(figure).update_xaxes(side="bottom")


def alignment_bars(effects: pd.DataFrame, *, measure: str = "all_shared") -> go.Figure:
    """Bars of `alignment_effects`: change of a measure on held-out questions, by the text that was tuned on.

    Args:
        measure: "all_shared", "accuracy" or "margin".
    """
    if measure not in _UNITS:
        raise ValueError(f"measure must be one of {', '.join(_UNITS)}, got {measure!r}")
    part = effects[effects.measure == measure]
    what, unit, form = _UNITS[measure]
    figure = go.Figure(
        go.Bar(
            x=part.arm.map(_TEXTS),
            y=part.change,
            marker={"color": COLOURS[0]},
            error_y=asymmetric(part.change, part.low, part.high),
            customdata=np.stack([part.low, part.high, part.intact, part.value, part.n_items], axis=-1),
            hovertemplate=f"tuned on: %{{x}}<br>change %{{y:+{form}}}<br>95 % interval %{{customdata[0]:+{form}}} to "
            f"%{{customdata[1]:+{form}}}<br>before %{{customdata[2]:{form}}}, after %{{customdata[3]:{form}}}<br>"
            "%{customdata[4]} questions<extra></extra>",
        )
    )
    figure.update_layout(title=f"Tuning on text of several languages: {what}", xaxis_title="text tuned on")
    tick = "~%" if "%" in form else None
    return figure.update_yaxes(title=f"change of {what}<br>({unit})", tickformat=tick)
