"""Figures of `perplexity_matrix` and `layer_sweep`."""

import pandas as pd
import plotly.graph_objects as go

from ..patching.conditions import CHOSEN, RANDOM
from .style import COLOURS, RANDOM_NEURONS, change_heatmap, grid, layer_step, named_axes


def perplexity_change(
    matrix: pd.DataFrame, *, title: str = "What switching off a language's neurons does"
) -> go.Figure:
    """Heatmap of a `perplexity_matrix`: rows the neurons switched off, columns the language of the text.

    Colours are centred at 0. Random neurons stand in one last row, averaged over seeds.
    """
    parts = [matrix[matrix.condition == CHOSEN], _random_row(matrix)]
    table = pd.concat([part for part in parts if len(part)], ignore_index=True)
    names = ("change", "low", "high", "nll", "n_neurons")
    change, *further = (grid(table, "group", "evaluated", name) for name in names)
    hover = (
        "off: %{y} (%{customdata[3]:.0f} neurons)<br>text: %{x}<br>change %{z:+.4f} nats per token<br>"
        "95 % interval %{customdata[0]:+.4f} to %{customdata[1]:+.4f}<br>loss %{customdata[2]:.3f}<extra></extra>"
    )
    heat = change_heatmap(change, further, hover, "change,<br>nats per token", texttemplate="%{z:.3f}")
    figure = go.Figure(heat).update_layout(
        title=title, xaxis_title="language of the text", yaxis_title="neurons switched off"
    )
    return named_axes(figure).update_xaxes(side="bottom")


def change_by_layer(sweep: pd.DataFrame, *, title: str = "What switching off one layer's neurons does") -> go.Figure:
    """Lines of a `layer_sweep`: every language's change by layer, where its own neurons are off; random ones in grey.

    A set of one group shows that group's effect on every language.
    """
    own = sweep if sweep.group.nunique() == 1 else sweep[sweep.group == sweep.evaluated]
    figure = go.Figure()
    for i, (language, rows) in enumerate(own[own.condition == CHOSEN].groupby("evaluated", sort=False)):
        figure.add_scatter(
            x=rows.layer,
            y=rows.change,
            customdata=rows[["low", "high", "n_neurons"]],
            name=str(language),
            mode="lines+markers",
            line={"color": COLOURS[i % len(COLOURS)]},
            hovertemplate="text: %{fullData.name}<br>layer %{x} (%{customdata[2]} neurons off)<br>change %{y:+.4f} "
            "nats per token<br>95 % interval %{customdata[0]:+.4f} to %{customdata[1]:+.4f}<extra></extra>",
        )
    means = own[own.condition == RANDOM].groupby(["evaluated", "layer"], as_index=False, sort=False).change.mean()
    for language, rows in means.groupby("evaluated", sort=False):
        figure.add_scatter(
            x=rows.layer,
            y=rows.change,
            customdata=[[language]] * len(rows),
            name=RANDOM_NEURONS,
            legendgroup="random",
            showlegend=bool(language == means.evaluated.iloc[0]),
            line={"color": COLOURS[7], "dash": "dot"},
            hovertemplate="random neurons, text: %{customdata[0]}<br>layer %{x}<br>change %{y:+.4f} nats per token"
            "<extra></extra>",
        )
    figure.update_layout(title=title, yaxis_title="change of the loss, nats per token")
    return figure.update_xaxes(title="layer", dtick=layer_step(int(own.layer.max()) + 1))


def _random_row(matrix: pd.DataFrame) -> pd.DataFrame:
    """The random neurons of every language, averaged over seeds, as the rows of one more group."""
    random = matrix[matrix.condition == RANDOM].groupby("evaluated", sort=False, as_index=False)
    means = random[["change", "low", "high", "nll", "n_neurons"]].mean()
    return means.assign(group=RANDOM_NEURONS)
