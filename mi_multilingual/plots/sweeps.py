"""Figures of sweeps."""

import pandas as pd
import plotly.graph_objects as go
from plotly.subplots import make_subplots

from ..patching.conditions import CHOSEN, RANDOM
from .style import CHANGE_UNITS, COLOURS, asymmetric

CONDITION_WORDS = {CHOSEN: "chosen neurons", RANDOM: "random neurons"}
"""How a condition of a sweep is said."""
_SYMBOLS = {CHOSEN: "circle", RANDOM: "x"}


def sweep_effects(effects: pd.DataFrame) -> go.Figure:
    """Change of every measure by setting of a sweep, one panel for each measure; crosses: as many random neurons.

    Args:
        effects: of `mi_multilingual.experiments.summary.effects`.
    """
    measures = list(effects[["evaluation", "measure"]].drop_duplicates().itertuples(index=False, name=None))
    titles = [f"{measure} ({evaluation})" for evaluation, measure in measures]
    figure = make_subplots(cols=len(measures), shared_yaxes=True, horizontal_spacing=0.03, subplot_titles=titles)
    colours = {name: COLOURS[i % len(COLOURS)] for i, name in enumerate(effects["where"].unique())}
    named: set[str] = set()
    for col, (evaluation, measure) in enumerate(measures, start=1):
        panel = effects[(effects.evaluation == evaluation) & (effects.measure == measure)]
        for where, condition in panel[["where", "condition"]].drop_duplicates().itertuples(index=False, name=None):
            part = panel[(panel["where"] == where) & (panel.condition == condition)]
            trace = _sweep_points(part, f"{where}, {CONDITION_WORDS[condition]}", _SYMBOLS[condition], colours[where])
            trace.update(showlegend=trace.name not in named)
            figure.add_trace(trace, row=1, col=col)
            named.add(trace.name)
        figure.update_xaxes(title_text=f"change, {CHANGE_UNITS.get(measure, 'share')}", row=1, col=col)
    order = list(effects.setting.unique())
    height = 200 + len(order) * max(24, 9 * len(named))
    figure.update_yaxes(type="category", categoryorder="array", categoryarray=order, range=[len(order) - 0.5, -0.5])
    return figure.update_layout(title="What the settings of the sweep change", height=height, scattermode="group")


def _sweep_points(part: pd.DataFrame, name: str, symbol: str, colour: str) -> go.Scatter:
    """The settings of one kind of neurons and text in one panel of `sweep_effects`."""
    return go.Scatter(
        x=part.change,
        y=part.setting,
        orientation="h",
        error_x={**asymmetric(part.change, part.low, part.high), "color": colour, "thickness": 1, "width": 2},
        mode="markers",
        name=name,
        legendgroup=name,
        marker={"color": colour, "symbol": symbol},
        customdata=part[["low", "high", "n", "base", "value"]].to_numpy(),
        hovertemplate=(
            f"%{{y}}<br>{name}<br>from %{{customdata[3]:.4f}} to %{{customdata[4]:.4f}}, a change of "
            "%{x:+.4f}<br>95 % interval %{customdata[0]:+.4f} to %{customdata[1]:+.4f} over %{customdata[2]} languages"
            "<extra></extra>"
        ),
    )
