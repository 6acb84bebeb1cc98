"""Figures of neurons that languages share, and of what they add to answers."""

import numpy as np
import pandas as pd
import plotly.graph_objects as go
from plotly.subplots import make_subplots

from ..evidence.sharing import TYPES
from .style import COLOURS, asymmetric, grid, layer_step, overlap_heatmap, share_heatmap


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


def sharing_by_task(table: pd.DataFrame, *, threshold: float | None = None) -> go.Figure:
    """Lines of `type_shares`, a panel per task: share of each type per layer, with the band of min and max.

    Dots below a line are the share of neurons that had the type for all questions of the task.

    Args:
        threshold: the lowest of the table by default.
    """
    part = _at_threshold(table, threshold)
    tasks = list(part.task.unique())
    figure = make_subplots(1, len(tasks), subplot_titles=tasks, shared_yaxes=True, horizontal_spacing=0.03)
    for rows in (rows for _, rows in part.groupby(["task", "type"], sort=False)):
        task, name = rows.task.iloc[0], rows.type.iloc[0]
        colour, place = COLOURS[TYPES.index(name)], {"row": 1, "col": tasks.index(task) + 1}
        shared = {"legendgroup": name, "hoverinfo": "skip", "showlegend": False}
        band = {"x": [*rows.layer, *rows.layer[::-1]], "y": [*rows["max"], *rows["min"][::-1]]}
        figure.add_scatter(**band, fill="toself", mode="none", fillcolor=colour, opacity=0.15, **shared, **place)
        figure.add_scatter(
            x=rows.layer,
            y=rows["mean"],
            name=name,
            legendgroup=name,
            showlegend=task == tasks[0],
            mode="lines+markers",
            line={"color": colour},
            customdata=rows[["low", "high", "min", "max", "repeated", "chance", "n_inputs"]].to_numpy(),
            hovertemplate=(
                f"{task}: {name}<br>layer %{{x}}: %{{y:.2%}} of its neurons<br>mean of %{{customdata[6]}} questions<br>"
                "95 % interval %{customdata[0]:.2%} to %{customdata[1]:.2%}<br>over questions %{customdata[2]:.2%} to "
                "%{customdata[3]:.2%}<br>for all of them %{customdata[4]:.2%}<br>if languages were independent "
                "%{customdata[5]:.2%}<extra></extra>"
            ),
            **place,
        )
        dots = {"mode": "markers", "marker": {"color": colour, "symbol": "circle-open", "size": 9}}
        figure.add_scatter(x=rows.layer, y=rows.repeated, **dots, **shared, **place)
    figure.update_layout(title="What languages share, by task (open dots: the same type for all questions)")
    figure.update_xaxes(title="layer", dtick=layer_step(part.layer.nunique())).update_yaxes(tickformat=".0%")
    return figure.update_yaxes(title="share of the layer's neurons", col=1)


def _at_threshold(table: pd.DataFrame, threshold: float | None) -> pd.DataFrame:
    known = sorted(table.threshold.unique())
    threshold = known[0] if threshold is None else threshold
    if threshold not in known:
        raise ValueError(
            f"threshold must be one of this table's, {', '.join(f'{h:g}' for h in known)}, got {threshold}"
        )
    return table.loc[table.threshold == threshold]


def repeated_types(table: pd.DataFrame, *, threshold: float | None = None) -> go.Figure:
    """Stacked bars of `type_shares`: share of each type per layer, the part that is the same for all questions below.

    Args:
        threshold: the lowest of the table by default.
    """
    mean = _at_threshold(table, threshold).groupby(["layer", "type"], sort=False)[["mean", "repeated"]].mean()
    figure = go.Figure()
    for i, name in enumerate(TYPES):
        rows = mean.xs(name, level="type").sort_index()
        places = [[f"layer {layer}" for layer in rows.index], [name] * len(rows)]
        for what, heights, pattern in (
            ("for all questions", rows.repeated, ""),
            ("for some", rows["mean"] - rows.repeated, "/"),
        ):
            figure.add_bar(
                x=places,
                y=heights,
                name=f"{name}, {what}",
                marker={"color": COLOURS[i], "pattern": {"shape": pattern}},
                hovertemplate=f"%{{x}}<br>{name} {what}: %{{y:.2%}}<extra></extra>",
            )
    figure.update_layout(title="Which neurons keep their type over all questions (mean over tasks)", barmode="stack")
    figure.update_layout(xaxis_title="layer and type", yaxis_title="share of the layer's neurons")
    return figure.update_yaxes(tickformat=".0%").update_xaxes(showticklabels=True)


def threshold_grid(table: pd.DataFrame) -> go.Figure:
    """Lines of `type_shares`, a panel per type: share per layer above each threshold, mean over tasks."""
    mean = table.groupby(["threshold", "layer", "type"], sort=False)["mean"].mean().reset_index()
    thresholds = sorted(mean.threshold.unique())
    figure = make_subplots(1, len(TYPES), subplot_titles=TYPES, horizontal_spacing=0.06)
    for i, name in enumerate(TYPES):
        for h, threshold in enumerate(thresholds):
            rows = mean[(mean.type == name) & (mean.threshold == threshold)]
            figure.add_scatter(
                x=rows.layer,
                y=rows["mean"],
                name=f"above {threshold:g}",
                legendgroup=str(threshold),
                showlegend=i == 0,
                mode="lines+markers",
                line={"color": COLOURS[h % len(COLOURS)]},
                hovertemplate=f"{name}, active above {threshold:g}<br>layer %{{x}}: %{{y:.2%}}<extra></extra>",
                row=1,
                col=i + 1,
            )
    figure.update_layout(title="What a higher threshold of activity changes")
    figure.update_xaxes(title="layer", dtick=layer_step(mean.layer.nunique())).update_yaxes(tickformat=".1%")
    return figure.update_yaxes(title="share of the layer's neurons", col=1)


def active_by_language(table: pd.DataFrame, *, threshold: float | None = None) -> go.Figure:
    """Heatmap of the share of every layer's neurons that is active in each language, mean over tasks.

    Args:
        table: `means_over_inputs` of the active shares of `sharing_study`.
        threshold: the lowest of the table by default.
    """
    part = _at_threshold(table, threshold).groupby(["language", "layer"], sort=False)[["mean", "low", "high"]]
    mean = part.mean().reset_index()
    share, *further = (grid(mean, "language", "layer", name) for name in ("mean", "low", "high"))
    hover = (
        "%{y}, layer %{x}: %{z:.2%} of its neurons active<br>95 % interval, mean of the tasks' %{customdata[0]:.2%} to "
        "%{customdata[1]:.2%}<extra></extra>"
    )
    heat = share_heatmap(share, further, hover, "neurons<br>active").update(
        zmax=None, zmin=None, texttemplate="%{z:.1%}"
    )
    figure = go.Figure(heat).update_layout(title="How many neurons are active at the last token, by language")
    figure.update_yaxes(autorange="reversed", type="category").update_xaxes(type="category")
    return figure.update_layout(xaxis_title="layer", yaxis_title="language")


_MEASURES = {
    "top_share": "share of the neurons that contribute most",
    "contribution_mean": "contribution of a neuron, mean",
    "contribution_sum": "contribution, sum",
    "effective_mean": "effective score of a neuron, mean, logits",
    "effective_max": "highest effective score, logits",
    "normed_mean": "effective score with the final norm, mean, logits",
}


def contributions(table: pd.DataFrame, *, measure: str = "contribution_mean", language: str | None = None) -> go.Figure:
    """Lines of `contribution_table`, a panel per task: what the neurons of each type add to the answers, per layer.

    Args:
        measure: one of those of `attribution_by_input`.
        language: of the questions; the first of the table by default.
    """
    if measure not in _MEASURES:
        raise ValueError(f"measure must be one of {', '.join(_MEASURES)}, got {measure!r}")
    language = table.language.iloc[0] if language is None else language
    part = table[(table.measure == measure) & (table.language == language)]
    if part.empty:
        raise ValueError(
            f"language must be one of this table's, {', '.join(table.language.unique())}, got {language!r}"
        )
    tasks = list(part.task.unique())
    figure = make_subplots(1, len(tasks), subplot_titles=tasks, shared_yaxes=True, horizontal_spacing=0.03)
    for rows in (rows for _, rows in part.groupby(["task", "type"], sort=False)):
        task, name = rows.task.iloc[0], rows.type.iloc[0]
        figure.add_scatter(
            x=rows.layer,
            y=rows["mean"],
            error_y=asymmetric(rows["mean"], rows.low, rows.high),
            name=name,
            legendgroup=name,
            showlegend=task == tasks[0],
            mode="lines+markers",
            line={"color": COLOURS[TYPES.index(name)]},
            customdata=rows[["low", "high", "n_inputs"]].to_numpy(),
            hovertemplate=(
                f"{task}: {name}<br>layer %{{x}}: %{{y:.4g}}<br>95 % interval %{{customdata[0]:.4g}} to "
                "%{customdata[1]:.4g}<br>%{customdata[2]} questions with such neurons<extra></extra>"
            ),
            row=1,
            col=tasks.index(task) + 1,
        )
    figure.update_layout(title=f"What neurons of each type add at the last token ({language})")
    figure.update_xaxes(title="layer", dtick=layer_step(part.layer.nunique()))
    return figure.update_yaxes(title=_MEASURES[measure].replace(", ", ",<br>"), col=1)


_RELATIONS = {1: "same branch", 2: "same family", 3: "other family"}


def overlap_against_distance(pairs: pd.DataFrame) -> go.Figure:
    """Points of `pairs_of`: overlap of the active neurons of two languages against how far apart the two are."""
    random = np.random.default_rng(0)
    figure = go.Figure()
    for i, (name, common) in enumerate((("no common script", pairs.script == 1), ("common script", pairs.script < 1))):
        rows = pairs[common]
        figure.add_scatter(
            x=rows.family + random.uniform(-0.15, 0.15, len(rows)),
            y=rows.overlap,
            mode="markers",
            name=name,
            marker={"color": COLOURS[1 - i], "size": 9, "opacity": 0.75},
            text=[f"{a} and {b}" for a, b in zip(rows.language, rows.other, strict=True)],
            hovertemplate=f"%{{text}} ({name})<br>overlap %{{y:.3f}}<extra></extra>",
        )
    means = pairs.groupby("family").overlap.mean()
    figure.add_scatter(
        x=means.index,
        y=means,
        mode="markers",
        name="mean",
        marker={"symbol": "line-ew-open", "size": 46, "color": COLOURS[7], "line": {"width": 3}},
        hovertemplate="mean overlap %{y:.3f}<extra></extra>",
    )
    figure.update_layout(title="Do related languages use the same neurons", xaxis_title="the two languages are of the")
    figure.update_xaxes(tickvals=list(_RELATIONS), ticktext=list(_RELATIONS.values()))
    return figure.update_layout(yaxis_title="mean Jaccard overlap of active neurons")
