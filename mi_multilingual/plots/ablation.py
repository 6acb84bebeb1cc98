"""Figures of `perplexity_matrix`."""

import numpy as np
import pandas as pd
import plotly.graph_objects as go

from .style import CHANGES, grid


def perplexity_change(
    matrix: pd.DataFrame, *, title: str = "What switching off a language's neurons does"
) -> go.Figure:
    """Heatmap of a `perplexity_matrix`: rows the ablated neurons, columns the evaluated language, colour centred at 0.

    Random controls stand in one last row, averaged over seeds.
    """
    table = (
        matrix[matrix.ablated != "none"]
        .groupby(["ablated", "evaluated"], sort=False, as_index=False)
        .agg(
            change=("change", "mean"),
            low=("low", "mean"),
            high=("high", "mean"),
            nll=("nll", "mean"),
            n=("n_neurons", "mean"),
        )
    )
    grids = {name: grid(table, "ablated", "evaluated", name) for name in ("change", "low", "high", "nll", "n")}
    change = grids["change"]
    reach = float(np.nanmax(np.abs(change.to_numpy()))) or 1.0
    heat = go.Heatmap(
        z=change.to_numpy(),
        x=list(change.columns),
        y=list(change.index),
        customdata=np.stack([grids[name].to_numpy() for name in ("low", "high", "nll", "n")], axis=-1),
        colorscale=CHANGES,
        zmid=0,
        zmin=-reach,
        zmax=reach,
        colorbar={"title": {"text": "change,<br>nats a token"}},
        texttemplate="%{z:.3f}",
        hovertemplate=(
            "off: %{y} (%{customdata[3]:.0f} neurons)<br>text: %{x}<br>change %{z:+.4f} nats a token<br>"
            "95 % interval %{customdata[0]:+.4f} to %{customdata[1]:+.4f}<br>loss %{customdata[2]:.3f}<extra></extra>"
        ),
    )
    figure = go.Figure(heat).update_layout(
        title=title, xaxis_title="language of the text", yaxis_title="neurons switched off"
    )
    return figure.update_yaxes(autorange="reversed", type="category").update_xaxes(side="bottom", type="category")
