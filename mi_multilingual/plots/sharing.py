"""Figures of neurons that languages share, and of what they add to answers."""

import pandas as pd
import plotly.graph_objects as go

from .style import COLOURS, layer_step, overlap_heatmap


def sharing_by_layer(shares: pd.DataFrame, *, threshold: float = 0.0) -> go.Figure:
    """Lines of `Sharing.layer_shares`: share of each type per layer, mean over inputs, with the band of min and max.

    The first task of the table is shown.
    """
    part = shares[(shares.threshold == threshold) & (shares.task == shares.task.iloc[0])]
    if part.empty:
        known = ", ".join(f"{value:g}" for value in sorted(shares.threshold.unique()))
        raise ValueError(f"threshold must be one of this table's, {known}, got {threshold:g}")
    figure = go.Figure()
    for i, (name, rows) in enumerate(part.groupby("type", sort=False)):
        colour = COLOURS[i]
        band = {"x": [*rows.layer, *rows.layer[::-1]], "y": [*rows["max"], *rows["min"][::-1]]}
        figure.add_scatter(
            **band, fill="toself", mode="none", fillcolor=colour, opacity=0.15, legendgroup=name, showlegend=False,
            hoverinfo="skip",
        )  # fmt: skip
        figure.add_scatter(
            x=rows.layer,
            y=rows["mean"],
            name=name,
            legendgroup=name,
            mode="lines+markers",
            line={"color": colour},
            customdata=rows[["min", "max", "low", "high"]].to_numpy(),
            hovertemplate=(
                f"{name}<br>layer %{{x}}: %{{y:.2%}} of its neurons<br>95 % interval %{{customdata[2]:.2%}} to "
                "%{customdata[3]:.2%}<br>over inputs %{customdata[0]:.2%} to %{customdata[1]:.2%}<extra></extra>"
            ),
        )
    figure.update_layout(title="How many languages use the same neuron", xaxis_title="layer")
    figure.update_xaxes(dtick=layer_step(part.layer.nunique()))
    return figure.update_layout(yaxis_title="share of the layer's neurons").update_yaxes(tickformat=".0%")


def activity_overlap(table: pd.DataFrame) -> go.Figure:
    """Heatmap of `Sharing.overlap`: mean overlap of the active neurons of two languages, similar ones together."""
    hover = "%{y} and %{x}<br>mean Jaccard overlap over inputs %{z:.3f}<extra></extra>"
    return overlap_heatmap(table, hover, "Which languages use the same neurons")


def type_contributions(table: pd.DataFrame) -> go.Figure:
    """Bars of `attribution`: share of each type per layer, among all neurons and those of highest contribution."""
    mean = table.groupby(["layer", "type"], sort=False)[["share", "top_share"]].mean().reset_index()
    figure = go.Figure()
    for i, (name, rows) in enumerate(mean.groupby("type", sort=False)):
        for column, pattern, what, among in (
            ("share", "/", "all", "all neurons"),
            ("top_share", "", "top", "those that contribute most"),
        ):
            figure.add_bar(
                x=[[f"layer {layer}" for layer in rows.layer], [what] * len(rows)],
                y=rows[column],
                name=name,
                legendgroup=name,
                showlegend=column == "top_share",
                marker={"color": COLOURS[i], "pattern": {"shape": pattern}},
                hovertemplate=f"{name}<br>%{{y:.2%}} of {among}<extra></extra>",
            )
    figure.update_layout(title="Which neurons carry the answer", barmode="stack", xaxis_title="layer")
    figure.update_layout(yaxis_title="share of neurons")
    return figure.update_yaxes(tickformat=".0%")
