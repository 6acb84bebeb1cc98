"""Figures of the ways to choose language neurons, side by side."""

import numpy as np
import pandas as pd
import plotly.graph_objects as go
from plotly.subplots import make_subplots

from ..patching.conditions import CHOSEN, INTACT, RANDOM
from ..studies.lape_tables import MATCHED, TOGETHER
from .style import COLOURS, RANDOM_NEURONS, asymmetric, change_heatmap, grid, named_axes

_UNITS = {"nats": ("", "change,<br>nats per token"), "ppl": ("ppl_", "change of<br>perplexity")}
_COLUMNS = 3


def ablation_panels(matrix: pd.DataFrame, *, unit: str = "nats") -> go.Figure:
    """Heatmaps of `ablation_matrix`, a panel for each method and each control, in the same colours.

    Rows are the neurons switched off, columns the languages of the text. Random neurons are averaged over seeds; of
    controls only those that were measured in all languages are shown.

    Args:
        unit: "nats" per token, or "ppl", perplexity per token.

    Raises:
        ValueError: another unit.
    """
    if unit not in _UNITS:
        raise ValueError(f"unit must be one of {', '.join(_UNITS)}, got {unit!r}")
    prefix, colorbar = _UNITS[unit]
    panels = _panels(matrix, prefix)
    n_rows = -(-len(panels) // _COLUMNS)
    axes = {"x_title": "language of the text", "y_title": "neurons switched off"}
    figure = make_subplots(n_rows, _COLUMNS, subplot_titles=list(panels), vertical_spacing=0.2 / n_rows, **axes)
    reach = max(float(np.abs(part[f"{prefix}change"]).max()) for part in panels.values()) or 1.0
    names = (f"{prefix}low", f"{prefix}high", "n_neurons", "ppl")
    hover = (
        "off: %{y} (%{customdata[2]:.0f} neurons)<br>text: %{x}<br>change %{z:+.3f}<br>95 % interval "
        "%{customdata[0]:+.3f} to %{customdata[1]:+.3f}<br>perplexity %{customdata[3]:.1f}<extra></extra>"
    )
    for i, part in enumerate(panels.values()):
        change, *further = (grid(part, "group", "evaluated", name) for name in (f"{prefix}change", *names))
        heat = change_heatmap(change, further, hover, colorbar, showscale=i == 0)
        heat.update(zmin=-reach, zmax=reach)
        figure.add_trace(heat, row=i // _COLUMNS + 1, col=i % _COLUMNS + 1)
    words = "in perplexity, " if unit == "ppl" else ""
    figure.update_layout(title=f"What switching off neurons does, {words}method by method", height=90 + 300 * n_rows)
    return named_axes(figure)


def _panels(matrix: pd.DataFrame, prefix: str) -> dict[str, pd.DataFrame]:
    """Title of the panel -> its cells."""
    chosen = pd.DataFrame(matrix[matrix.condition == CHOSEN])
    panels: dict[str, pd.DataFrame] = {str(name): part for name, part in chosen.groupby("method", sort=False)}
    keys, columns = ["group", "evaluated"], [f"{prefix}change", f"{prefix}low", f"{prefix}high", "n_neurons", "ppl"]
    first = chosen.method.iloc[0]
    for name, part in matrix[matrix.condition == RANDOM].groupby("method", sort=False):
        means = pd.DataFrame(part.groupby(keys, sort=False, as_index=False)[columns].mean())
        if len(means) == means.group.nunique() * means.evaluated.nunique():
            panels[f"{MATCHED}, as {first}" if name == first else str(name)] = means
    return panels


def ablation_bars(comparison: pd.DataFrame) -> go.Figure:
    """Bars of `ablation_comparison`: what a language loses without its own neurons and without those of others."""
    figure = go.Figure()
    for measure, name, colour in (("own", "own neurons off", COLOURS[1]), ("others", "those of others", COLOURS[7])):
        part = comparison[comparison.measure == measure]
        figure.add_bar(
            x=[f"{m}<br>{n:,.0f} neurons" for m, n in zip(part.method, part.n_neurons, strict=True)],
            y=part.value,
            name=name,
            marker={"color": colour},
            error_y=asymmetric(part.value, part.low, part.high),
            customdata=part[["low", "high"]],
            hovertemplate=f"%{{x}} per language<br>{name}: %{{y:+.4f}} nats per token<br>95 % interval "
            "%{customdata[0]:+.4f} to %{customdata[1]:+.4f}<extra></extra>",
        )
    figure.update_layout(title="Methods by what a language loses", barmode="group")
    return figure.update_layout(yaxis_title="change of the loss, nats per token")


def loss_against_size(curve: pd.DataFrame, *, group: str = TOGETHER) -> go.Figure:
    """Lines of `curve_table`: the loss of a language against the number of its neurons that are off.

    Args:
        group: the language; the mean over all by default.

    Raises:
        ValueError: a group that the table does not have.
    """
    if group not in set(curve.group):
        known = ", ".join(curve.group[curve.group != TOGETHER].unique())
        raise ValueError(f"group must be one of {known}, got {group!r}")
    part, figure = curve[(curve.group == group) & (curve.condition != INTACT)], go.Figure()
    for condition, name, colour in (
        (CHOSEN, "neurons of the language", COLOURS[1]),
        (RANDOM, RANDOM_NEURONS, COLOURS[7]),
    ):
        rows = part[part.condition == condition]
        figure.add_scatter(
            x=rows.n_neurons,
            y=rows.change,
            error_y=asymmetric(rows.change, rows.low, rows.high),
            customdata=rows[["low", "high"]],
            name=name,
            mode="lines+markers",
            line={"color": colour},
            hovertemplate="%{x:.0f} neurons off<br>change %{y:+.4f} nats per token<br>95 % interval "
            "%{customdata[0]:+.4f} to %{customdata[1]:+.4f}<extra></extra>",
        )
    where = "mean over languages" if group == TOGETHER else group
    figure.update_layout(title=f"The more neurons, the more loss ({where})")
    figure.update_layout(yaxis_title="change of the loss, nats per token")
    return figure.update_xaxes(title="neurons of a language switched off", type="log")
