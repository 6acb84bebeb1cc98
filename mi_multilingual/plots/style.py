"""What the figures share: colours, words, error bars, heatmaps."""

from collections.abc import Sequence
from typing import Any

import numpy as np
import pandas as pd
import plotly.graph_objects as go

from ..languages import by_family

_CHANGES = "RdBu_r"

_AMOUNTS = "Viridis"

COLOURS = ("#0b6e75", "#d1603d", "#5b7fd4", "#b8952d", "#7a5aa6", "#3f9b5f", "#c44d80", "#7d8590", "#8a6d3b", "#2aa1c0")

RANDOM_NEURONS = "<i>random neurons</i>"
"""The control on an axis of names, where its italics tell it from every name of a group."""

CHANGE_UNITS = {"loss": "nats per token", "margin": "nats"}
"""Unit of the change of a measure; shares have none."""


def layer_step(n_layers: int) -> int:
    """Layers from one tick of an axis to the next, such that their numbers stand side by side."""
    return -(-n_layers // 16)


def overlap_heatmap(table: pd.DataFrame, hover: str, title: str, **options: Any) -> go.Figure:
    """Heatmap of a square table of Jaccard overlaps, its diagonal left blank."""
    values = table.to_numpy(copy=True)
    np.fill_diagonal(values, np.nan)
    heat = go.Heatmap(
        z=values,
        x=list(table.columns),
        y=list(table.index),
        colorscale=_AMOUNTS,
        colorbar={"title": {"text": "Jaccard<br>overlap"}},
        hovertemplate=hover,
        **options,
    )
    figure = go.Figure(heat).update_layout(title=title, xaxis_title="language", yaxis_title="language")
    return named_axes(figure)


def change_heatmap(
    change: pd.DataFrame, further: Sequence[pd.DataFrame], hover: str, colorbar: str, **options: Any
) -> go.Heatmap:
    """Changes as colours centred at zero, with further tables of the same shape for the hover text."""
    reach = float(np.nanmax(np.abs(change.to_numpy()))) or 1.0
    return go.Heatmap(
        z=change.to_numpy(),
        x=list(change.columns),
        y=list(change.index),
        customdata=np.stack([table.to_numpy() for table in further], axis=-1),
        colorscale=_CHANGES,
        zmid=0,
        zmin=-reach,
        zmax=reach,
        colorbar={"title": {"text": colorbar}},
        hovertemplate=hover,
        **options,
    )


def share_heatmap(share: pd.DataFrame, further: Sequence[pd.DataFrame], hover: str, colorbar: str) -> go.Heatmap:
    """Shares as colours from 0 to 1, with further tables of the same shape for the hover text."""
    return go.Heatmap(
        z=share.to_numpy(),
        x=list(share.columns),
        y=list(share.index),
        customdata=np.stack([table.to_numpy() for table in further], axis=-1),
        colorscale=_AMOUNTS,
        zmin=0,
        zmax=1,
        colorbar={"title": {"text": colorbar}, "tickformat": ".0%"},
        texttemplate="%{z:.0%}",
        hovertemplate=hover,
    )


def named_axes(figure: go.Figure) -> go.Figure:
    """A heatmap whose rows and columns have names, the first row on top."""
    return figure.update_yaxes(autorange="reversed", type="category").update_xaxes(type="category")


def grid(table: pd.DataFrame, row: str, column: str, value: str) -> pd.DataFrame:
    """`value` by `row` and `column`, both in order of first appearance, but languages of one family side by side."""
    wide = table.pivot(index=row, columns=column, values=value)
    return wide.loc[by_family(list(table[row].unique())), by_family(list(table[column].unique()))]


_Numbers = pd.Series | np.ndarray


def asymmetric(middle: _Numbers, low: _Numbers, high: _Numbers) -> dict[str, Any]:
    """Error bars from an interval."""
    return {"type": "data", "symmetric": False, "array": high - middle, "arrayminus": middle - low}
