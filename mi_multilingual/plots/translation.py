"""Figures of translation under intervention."""

import pandas as pd
import plotly.graph_objects as go
from plotly.subplots import make_subplots

from ..patching.conditions import CHOSEN, INTACT, RANDOM
from .style import COLOURS, asymmetric

_MEASURES = {"share": "in the target language", "bleu": "BLEU", "chrf": "chrF"}
_WORDS = {INTACT: "as it is", CHOSEN: "held", RANDOM: "random neurons"}


def translation(table: pd.DataFrame, *, title: str = "Translation with a language's neurons held") -> go.Figure:
    """Bars of `translation_scores` by target language: share in the target, BLEU and chrF, with 95 % intervals.

    Args:
        table: of one or several of the measures, one row of figures for each, and of one or several ways of holding
            neurons (column `way`), one column for each.
    """
    ways = table.way.unique() if "way" in table else [""]
    measures = [name for name in _MEASURES if (table.measure == name).any()]
    figure = make_subplots(
        rows=len(measures),
        cols=len(ways),
        shared_xaxes=True,
        shared_yaxes=True,
        column_titles=[f"held at the {way}" if way else "" for way in ways],
        vertical_spacing=0.06,
    )
    for column, way in enumerate(ways, start=1):
        own = table[table.way == way] if way else table
        for row, measure in enumerate(measures, start=1):
            for bars in _bars(own[own.measure == measure], measure, first=row == column == 1):
                figure.add_trace(bars, row=row, col=column)
    for row, measure in enumerate(measures, start=1):
        # Said here, since plotly.js finds no range for bars on axes that match.
        highest = 1.0 if measure == "share" else max(1.0, float(table.high[table.measure == measure].max()))
        figure.update_yaxes(range=[0, 1.05 * highest], tickformat=".0%" if measure == "share" else "", row=row)
        figure.update_yaxes(title_text=_MEASURES[measure], row=row, col=1)
    figure.update_xaxes(type="category").update_xaxes(title_text="target language", row=len(measures))
    return figure.update_layout(title=title, barmode="group", height=160 + 200 * len(measures))


def _bars(part: pd.DataFrame, measure: str, *, first: bool) -> list[go.Bar]:
    """The bars of one measure, a colour for each condition."""
    form, words = ":.0%" if measure == "share" else ":.1f", _MEASURES[measure]
    bars = []
    for i, condition in enumerate((INTACT, CHOSEN, RANDOM)):
        rows = part[part.condition == condition]
        bar = go.Bar(
            x=rows.target,
            y=rows.value,
            error_y=asymmetric(rows.value, rows.low, rows.high),
            customdata=rows[["n", "low", "high"]].to_numpy(),
            name=_WORDS[condition],
            legendgroup=condition,
            showlegend=first,
            marker={"color": COLOURS[i]},
            hovertemplate=(
                f"{_WORDS[condition]}, into %{{x}}<br>{words} %{{y{form}}} over %{{customdata[0]}} texts<br>95 % "
                f"interval %{{customdata[1]{form}}} to %{{customdata[2]{form}}}<extra></extra>"
            ),
        )
        bars.append(bar)
    return bars
