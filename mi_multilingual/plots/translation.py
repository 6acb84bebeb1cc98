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
        table: of one or several ways of holding neurons (column `way`), one column of figures for each.
    """
    ways = table.way.unique() if "way" in table else [""]
    subtitles = [f"{way} in the language" if way else "" for way in ways]
    figure = make_subplots(
        rows=3, cols=len(ways), shared_xaxes=True, column_titles=subtitles, vertical_spacing=0.06, shared_yaxes=True
    )
    for column, way in enumerate(ways, start=1):
        own = table[table.way == way] if way else table
        for row, (measure, words) in enumerate(_MEASURES.items(), start=1):
            for bars in _bars(own[own.measure == measure], measure, words, first=row == column == 1):
                figure.add_trace(bars, row=row, col=column)
            figure.update_yaxes(title_text=words if column == 1 else "", row=row, col=column)
    for row, measure in enumerate(_MEASURES, start=1):
        # Said here, since plotly.js finds no range for bars on axes that match.
        highest = 1.0 if measure == "share" else max(1.0, float(table.high[table.measure == measure].max()))
        figure.update_yaxes(range=[0, 1.05 * highest], tickformat=".0%" if measure == "share" else "", row=row)
    return figure.update_layout(title=title, barmode="group", height=700).update_xaxes(
        title_text="target language", row=3
    )


def _bars(part: pd.DataFrame, measure: str, words: str, *, first: bool) -> list[go.Bar]:
    """The bars of one measure, a colour for each condition."""
    form = ":.0%" if measure == "share" else ":.1f"
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
                f"{_WORDS[condition]}, into %{{x}}<br>{words} %{{y{form}}} over %{{customdata[0]}} sentences<br>95 % "
                f"interval %{{customdata[1]{form}}} to %{{customdata[2]{form}}}<extra></extra>"
            ),
        )
        bars.append(bar)
    return bars
