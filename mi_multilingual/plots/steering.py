"""Figures of the steering studies."""

import numpy as np
import pandas as pd
import plotly.graph_objects as go
from plotly.subplots import make_subplots

from ..patching.conditions import CHOSEN, INTACT, RANDOM
from .style import COLOURS, asymmetric, grid, named_axes, share_heatmap

CONDITION_WORDS = {INTACT: "as it is", CHOSEN: "steered", RANDOM: "random neurons"}
"""How a condition of the steering studies is said."""


def steering_matrix(table: pd.DataFrame, *, title: str = "Which language a steered model answers in") -> go.Figure:
    """Heatmap of `steering_shares` by source, target and condition: share of steered outputs in the target language.

    Rows are the languages of the prompts; the hover text says what the model as it is and random neurons do.
    """
    steered = table[table.condition == CHOSEN]
    columns = ("in_target", "low", "high", "in_source", "elsewhere", "n")
    grids = [grid(steered, "source", "target", name) for name in columns]
    others = [
        grid(table[table.condition == c], "source", "target", "in_target").reindex_like(grids[0])
        if (table.condition == c).any()
        else grids[0] * np.nan
        for c in (INTACT, RANDOM)
    ]
    hover = (
        "prompt: %{y}<br>steered to: %{x}<br>%{z:.0%} of %{customdata[4]} outputs in %{x}<br>"
        "95 % interval %{customdata[0]:.0%} to %{customdata[1]:.0%}<br>in the prompt's language "
        "%{customdata[2]:.0%}, elsewhere %{customdata[3]:.0%}<br>as it is %{customdata[5]:.0%}, "
        "random neurons %{customdata[6]:.0%}<extra></extra>"
    )
    heat = share_heatmap(grids[0], [*grids[1:], *others], hover, "share in the<br>target language")
    figure = go.Figure(heat).update_layout(
        title=title, xaxis_title="language steered to", yaxis_title="language of the prompt"
    )
    return named_axes(figure)


def steering_curve(
    table: pd.DataFrame, *, x: str = "strength", title: str = "How strongly to steer, and what it costs"
) -> go.Figure:
    """Share in the target language above, perplexity under the model as it is below, over strength or rate.

    Args:
        table: `steering_shares` and `steering_quality` by `x` and condition, merged.
    """
    figure = make_subplots(rows=2, cols=1, shared_xaxes=True, vertical_spacing=0.08)
    baseline = table[table.condition == INTACT]
    # The model as it is is the beginning of the other lines, at 0, and drawn on top of them.
    conditions = sorted(table.condition.unique(), key=lambda condition: condition == INTACT)
    for i, condition in enumerate(conditions):
        rows = table[table.condition == condition]
        rows = rows if condition == INTACT else pd.concat([baseline, rows])
        for row, line in enumerate(_curve_lines(rows.sort_values(x), x, CONDITION_WORDS[condition]), start=1):
            figure.add_trace(line.update(marker={"color": COLOURS[i]}, mode="lines+markers"), row=row, col=1)
    figure.update_layout(title=title, height=560)
    figure.update_yaxes(title_text="in the target language", tickformat=".0%", range=[-0.03, 1.05], row=1, col=1)
    ticks = [digit * 10**power for power in range(7) for digit in (1, 2, 5)]  # plotly writes only a digit by default
    names_of_ticks = [f"{tick:,}" for tick in ticks]
    figure.update_yaxes(
        title_text="perplexity per token", type="log", tickvals=ticks, ticktext=names_of_ticks, row=2, col=1
    )
    return figure.update_xaxes(title_text=x, row=2, col=1)


def _curve_lines(rows: pd.DataFrame, x: str, name: str) -> tuple[go.Scatter, go.Scatter]:
    """One condition of a `steering_curve`: its share in the target language, and its perplexity."""
    share = go.Scatter(
        x=rows[x],
        y=rows.in_target,
        error_y=asymmetric(rows.in_target, rows.low, rows.high),
        customdata=rows[["n", "low", "high", "in_source", "elsewhere"]].to_numpy(),
        name=name,
        legendgroup=name,
        hovertemplate=(
            f"{name}, {x} %{{x}}<br>%{{y:.0%}} of %{{customdata[0]}} outputs in the target language<br>"
            "95 % interval %{customdata[1]:.0%} to %{customdata[2]:.0%}<br>in the prompt's language "
            "%{customdata[3]:.0%}, elsewhere %{customdata[4]:.0%}<extra></extra>"
        ),
    )
    low, high = np.exp(rows.nll_low), np.exp(rows.nll_high)
    cost = go.Scatter(
        x=rows[x],
        y=rows.ppl,
        error_y=asymmetric(rows.ppl, low, high),
        customdata=np.stack([low, high, rows.distinct_2], axis=-1),
        name=name,
        legendgroup=name,
        showlegend=False,
        hovertemplate=(
            f"{name}, {x} %{{x}}<br>perplexity per token %{{y:.1f}}<br>95 % interval %{{customdata[0]:.1f}} to "
            "%{customdata[1]:.1f}<br>distinct bigrams %{customdata[2]:.0%}<extra></extra>"
        ),
    )
    return share, cost


def fallback(
    table: pd.DataFrame,
    *,
    condition: str = CHOSEN,
    title: str = "Which language remains when languages are switched off",
) -> go.Figure:
    """Heatmap of `found_shares` of a `fallback_study`: one row for each further language off, one column for each
    language found.

    Args:
        table: by n_off, off and condition.
        condition: "chosen" for the languages' neurons, "random" for as many random ones.
    """
    part = table[table.condition.isin([INTACT, condition])]
    if condition == INTACT or not (part.condition == condition).any():
        known = [name for name in table.condition.unique() if name != INTACT]
        raise ValueError(f"condition must be one of this table's, {', '.join(known)}, got {condition!r}")
    part = part.sort_values("n_off", kind="stable")
    step = np.where(part.n_off == 0, "none", "+ " + part.off)
    part = part.assign(step=step, found=part.found.replace("", "none found"))
    share, *further = (grid(part, "step", "found", name) for name in ("share", "low", "high", "n", "n_off"))
    hover = (
        "%{y} (%{customdata[3]} languages off)<br>%{z:.0%} of %{customdata[2]} outputs in %{x}<br>"
        "95 % interval %{customdata[0]:.0%} to %{customdata[1]:.0%}<extra></extra>"
    )
    figure = go.Figure(share_heatmap(share, further, hover, "share of<br>outputs")).update_layout(
        title=title, xaxis_title="language of the output", yaxis_title="switched off, one after another"
    )
    return named_axes(figure)
