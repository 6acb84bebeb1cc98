"""Figures of how alike languages are represented."""

import numpy as np
import pandas as pd
import plotly.graph_objects as go

from .style import COLOURS, asymmetric, layer_step

_WORDS = {
    "similarity": "similarity of translations",
    "floor": "similarity of other sentences",
    "corrected": "similarity above the floor",
    "retrieval": "translation is nearest",
    "mexa": "nearest in both directions",
    "cka": "linear CKA",
}
"""What the measures of representations are called."""
_LAYERS = "residual stream after this many blocks"


def similarity_by_layer(
    layers: pd.DataFrame, counts: pd.DataFrame, *, measures: tuple[str, ...] = ("similarity", "floor", "corrected")
) -> go.Figure:
    """Lines of `layer_means` with their 95 % bands, and as bars the neurons of the block before.

    Args:
        counts: numbers of neurons by group and layer, from `NeuronSet.counts`.
    """
    n_neurons = counts.groupby("layer").n_neurons.sum()
    figure = go.Figure()
    figure.add_bar(
        x=n_neurons.index + 1,
        y=n_neurons,
        yaxis="y2",
        name="language neurons in the block",
        marker={"color": COLOURS[7], "opacity": 0.35},
        hovertemplate="block %{x}<br>%{y} neurons<extra></extra>",
    )
    for colour, measure in zip(COLOURS, measures, strict=False):
        part = layers[layers.measure == measure]
        _add_band(figure, part.layer, part.low, part.high, colour, _WORDS[measure])
        figure.add_scatter(
            x=part.layer,
            y=part.value,
            customdata=part[["low", "high", "n"]],
            name=_WORDS[measure],
            legendgroup=_WORDS[measure],
            mode="lines+markers",
            line={"color": colour},
            hovertemplate=f"{_WORDS[measure]}<br>after block %{{x}}: %{{y:.3f}}<br>95 % interval "
            f"%{{customdata[0]:.3f}} "
            "to %{customdata[1]:.3f}<br>%{customdata[2]} sentences<extra></extra>",
        )
    figure.update_layout(
        title="Likeness of languages beside their neurons, layer by layer",
        yaxis={"title": "mean over pairs of languages", "overlaying": "y2", "tickmode": "auto", "rangemode": "tozero"},
        yaxis2={"title": "neurons", "side": "right", "showgrid": False, "rangemode": "tozero"},
        legend={"orientation": "h", "y": -0.2},
    )
    return figure.update_xaxes(title=_LAYERS, dtick=layer_step(int(layers.layer.max()) + 1))


def dominance_by_layer(table: pd.DataFrame, *, shifted: bool = False) -> go.Figure:
    """Lines of `dominance`, a language each, with 95 % intervals.

    Args:
        shifted: which rows, where the table has both kinds in a column of this name.
    """
    part = table[table.shifted == shifted] if "shifted" in table else table
    figure = go.Figure()
    for i, (language, rows) in enumerate(part.groupby("language", sort=False)):
        figure.add_scatter(
            x=rows.layer,
            y=rows.value,
            customdata=rows[["low", "high", "n"]],
            error_y={**asymmetric(rows.value, rows.low, rows.high), "thickness": 1},
            name=str(language),
            mode="lines+markers",
            line={"color": COLOURS[i % len(COLOURS)]},
            hovertemplate="near to %{fullData.name} after block %{x}: %{y:.3f}<br>95 % interval "
            "%{customdata[0]:.3f} to %{customdata[1]:.3f}<br>%{customdata[2]} sentences<extra></extra>",
        )
    figure.update_layout(title="Which language the others are near to", yaxis_title="similarity above the floor")
    return figure.update_xaxes(title=_LAYERS, dtick=layer_step(int(part.layer.max()) + 1))


def representation_change(effects: pd.DataFrame, *, measure: str = "similarity") -> go.Figure:
    """Bars of `representation_effects` by layer: change of a measure without neurons, beside as many random ones.

    Where there are several groups, bars are of every group's own language; of one group, of all languages together.

    Raises:
        ValueError: a measure that the table does not have.
    """
    if measure not in set(effects.measure):
        raise ValueError(f"measure must be one of {', '.join(effects.measure.unique())}, got {measure!r}")
    part = effects[effects.measure == measure]
    several = part.group.nunique() > 1
    part = part[part.group == part.language] if several else part[part.language == ""]
    figure = go.Figure()
    for i, (group, rows) in enumerate(part.groupby("group", sort=False)):
        name = f"{group} off" if several else "language neurons off"
        _add_bars(figure, rows, name, COLOURS[i % len(COLOURS)], "")
    if not several:
        _add_bars(figure, part, "as many random neurons off", COLOURS[7], "random_")
    figure.update_layout(title="Likeness of languages without neurons", barmode="group")
    figure.update_layout(yaxis_title=f"change of {_WORDS[measure]}")
    return figure.update_xaxes(title=_LAYERS, dtick=layer_step(int(part.layer.max()) + 1))


def _add_bars(figure: go.Figure, rows: pd.DataFrame, name: str, colour: str, prefix: str) -> None:
    """The change of one condition by layer."""
    change, low, high = (rows[f"{prefix}{column}"] for column in ("change", "low", "high"))
    figure.add_bar(
        x=rows.layer,
        y=change,
        name=name,
        marker={"color": colour},
        error_y=asymmetric(change, low, high),
        customdata=np.stack([low, high, rows.intact, rows.n_neurons, rows.beyond], axis=-1),
        hovertemplate=f"{name}<br>after block %{{x}}: %{{y:+.4f}}<br>95 % interval %{{customdata[0]:+.4f}} to "
        "%{customdata[1]:+.4f}<br>intact %{customdata[2]:.3f}<br>%{customdata[3]:,.0f} neurons; beyond random "
        "%{customdata[4]:+.4f}<extra></extra>",
    )


def _add_band(figure: go.Figure, x: pd.Series, low: pd.Series, high: pd.Series, colour: str, name: str) -> None:
    """An interval as an area behind a line."""
    figure.add_scatter(
        x=[*x, *x[::-1]],
        y=[*high, *low[::-1]],
        fill="toself",
        fillcolor=colour,
        opacity=0.2,
        line={"width": 0},
        mode="lines",
        hoverinfo="skip",
        showlegend=False,
        legendgroup=name,
    )
