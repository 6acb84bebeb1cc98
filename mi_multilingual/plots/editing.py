"""Figures of edited facts."""

import numpy as np
import pandas as pd
import plotly.graph_objects as go
from plotly.subplots import make_subplots

from ..evidence.sharing import TYPES
from ..studies.editing_tables import MEASURES, OTHERS, OWN
from .style import COLOURS, asymmetric, grid, named_axes, share_heatmap

_FOLLOWED = {
    "success": "asked<br>as edited",
    "generality": "asked<br>in other words",
    "locality": "other facts<br>unchanged",
}
_TOKENS = {"last": "last token of the prompt", "subject": "where the subject ends"}


def editing_matrix(effects: pd.DataFrame, *, editor: str = "rank one") -> go.Figure:
    """Heatmaps of `editing_effects`: rows the language edited in, columns the language asked in, one for each measure.

    Raises:
        ValueError: an editor that the table does not have.
    """
    part = effects[effects.editor == editor]
    if part.empty:
        raise ValueError(f"editor must be one of {', '.join(effects.editor.unique())}, got {editor!r}")
    # Of two lines, the upper one would be cut off where the title stands outside the figure.
    titles = [_FOLLOWED[name].replace("<br>", " ") for name in MEASURES]
    figure = make_subplots(rows=1, cols=3, shared_yaxes=True, subplot_titles=titles)
    hover = (
        "edited in %{y}, asked in %{x}<br>%{z:.0%} of %{customdata[4]} facts<br>95 % interval %{customdata[0]:.0%} to "
        "%{customdata[1]:.0%}<br>after the edit of another fact %{customdata[2]:.0%}<br>beyond that "
        "%{customdata[3]:+.0%}<extra></extra>"
    )
    for number, measure in enumerate(MEASURES, start=1):
        cell = part[part.measure == measure]
        value, *further = (
            grid(cell, "edited", "asked", name) for name in ("value", "low", "high", "random", "beyond", "n_records")
        )
        heat = share_heatmap(value, further, hover, "share<br>of facts")
        figure.add_trace(
            heat.update(showscale=number == 3, textfont={"size": 9 if value.shape[1] < 8 else 7}), row=1, col=number
        )
    figure.update_layout(title=f"Facts edited in one language and asked for in another ({editor})")
    figure.update_xaxes(title_text="language asked in").update_yaxes(title_text="language edited in", row=1, col=1)
    return named_axes(figure)


def editing_transfer(transfer: pd.DataFrame) -> go.Figure:
    """Bars of `editing_transfer`: each measure in the language edited in and in the others, beside other edits."""
    editors = transfer.editor.unique().tolist()
    figure = make_subplots(rows=1, cols=len(editors), shared_yaxes=True, subplot_titles=editors)
    for column, editor in enumerate(editors, start=1):
        for scope, colour in ((OWN, COLOURS[0]), (OTHERS, COLOURS[1])):
            part = transfer[(transfer.editor == editor) & (transfer.scope == scope)]
            for trace in _scope_traces(part, editor, scope, colour):
                figure.add_trace(trace.update(showlegend=column == 1), row=1, col=column)
    figure.update_layout(
        title="How many edits are followed, and what else changes", barmode="group", scattermode="group"
    )
    figure.update_xaxes(tickangle=0).update_yaxes(title_text="share of facts", row=1, col=1)
    return figure.update_yaxes(tickformat=".0%", range=[-0.03, 1.05])


def _scope_traces(part: pd.DataFrame, editor: str, scope: str, colour: str) -> tuple[go.Bar, go.Scatter]:
    """One editor's measures in the own language or in others, and the same where another fact was edited."""
    names = part.measure.map(_FOLLOWED)
    bars = go.Bar(
        x=names,
        y=part.value,
        name=scope,
        legendgroup=scope,
        offsetgroup=scope,
        marker={"color": colour},
        error_y=asymmetric(part.value, part.low, part.high),
        customdata=part[["low", "high", "random", "n_records"]].to_numpy(),
        hovertemplate=(
            f"{editor}, {scope}<br>%{{x}}<br>%{{y:.0%}} of %{{customdata[3]}} facts<br>95 % interval "
            "%{customdata[0]:.0%} to %{customdata[1]:.0%}<br>another fact edited: %{customdata[2]:.0%}<extra></extra>"
        ),
    )
    control = go.Scatter(
        x=names,
        y=part.random,
        name=f"{scope}, another fact edited",
        legendgroup=f"{scope}, control",
        offsetgroup=scope,
        mode="markers",
        marker={"color": "black", "symbol": "line-ew-open" if scope == OWN else "circle-open", "size": 10},
        hovertemplate=f"{editor}, {scope}<br>another fact edited: %{{y:.0%}}<extra></extra>",
    )
    return bars, control


def editing_neurons(effects: pd.DataFrame) -> go.Figure:
    """Bars of `editing_neuron_effects`: how much of an update each type of neuron carries, beside its size."""
    figure = go.Figure()
    for token, colour in zip(_TOKENS, COLOURS, strict=False):
        part = effects[effects.token == token].set_index("type").reindex(list(TYPES))
        figure.add_bar(
            x=list(TYPES),
            y=part.beyond,
            name=_TOKENS[token],
            marker={"color": colour},
            error_y=asymmetric(part.beyond, part.beyond_low, part.beyond_high),
            customdata=np.stack([part.carried, part.share, part.beyond_low, part.beyond_high, part.n_records], axis=-1),
            hovertemplate=(
                f"%{{x}}, typed at: {_TOKENS[token]}<br>carry %{{customdata[0]:.1%}} of the update, are "
                "%{customdata[1]:.1%} of the neurons<br>difference %{y:+.1%}, 95 % interval %{customdata[2]:+.1%} to "
                "%{customdata[3]:+.1%}<br>%{customdata[4]} facts<extra></extra>"
            ),
        )
    figure.update_layout(title="Which neurons carry an edit", barmode="group", legend_title_text="typed at")
    figure.update_xaxes(title_text="type of neuron")
    return figure.update_yaxes(title_text="share of the update less share of neurons", tickformat="+.0%")
