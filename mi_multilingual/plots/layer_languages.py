"""Figures of what a model says after every block, and of its regions."""

from collections.abc import Sequence

import numpy as np
import pandas as pd
import plotly.graph_objects as go
from plotly.subplots import make_subplots

from ..patching.conditions import CHOSEN, INTACT, RANDOM
from .style import COLOURS, change_heatmap, grid, layer_step, named_axes

_COLUMNS = 5
_CONDITION_TITLES = {INTACT: "", CHOSEN: ", without its neurons", RANDOM: ", without as many random neurons"}


def layer_languages(shares: pd.DataFrame, *, condition: str = INTACT, position: str = "prompt") -> go.Figure:
    """Stacked areas of `layer_language_shares`: which languages are decoded after each block, by prompt language.

    Args:
        condition: "intact", or without each prompt language's neurons ("chosen") or as many random ones ("random").
        position: tokens of the "prompt", or those "generated" after it.

    Raises:
        ValueError: the table has no rows of the condition and position.
    """
    under = shares.condition == condition if "condition" in shares else condition == INTACT
    part = shares[under & (shares.position == position)]
    if part.empty:
        raise ValueError(f"shares must have rows of condition {condition!r} at {position!r} tokens, got none")
    languages = part.language.unique()
    figure = _panels([f"prompts in {k}" for k in languages])
    for panel, language in enumerate(languages):
        mine = part[part.language == language]
        for number, (decoded, rows) in enumerate(mine.groupby("decoded", sort=False)):
            area = _area(rows, str(decoded), COLOURS[number % len(COLOURS)], first=panel == 0)
            figure.add_trace(area, *_place(panel))
    title = f"Languages decoded after each block{_CONDITION_TITLES[condition]}"
    figure.update_yaxes(range=[0, 1], tickformat=".0%")
    return _finished(figure, part, title, "share of the tokens<br>that have a language")


def _area(rows: pd.DataFrame, decoded: str, colour: str, *, first: bool) -> go.Scatter:
    """One language's share by layer, on top of the others'."""
    return go.Scatter(
        x=rows.layer,
        y=rows.share,
        name=decoded,
        legendgroup=decoded,
        showlegend=first,
        stackgroup="shares",
        mode="lines",
        line={"width": 0.5, "color": colour},
        fillcolor=colour,
        customdata=rows[["low", "high", "shared", "none", "n"]].to_numpy(),
        hovertemplate=(
            f"{decoded} after block %{{x}}<br>%{{y:.0%}} of tokens with a language<br>95 % interval "
            "%{customdata[0]:.0%} to %{customdata[1]:.0%}<br>of all top tokens %{customdata[2]:.0%} are shared, "
            "%{customdata[3]:.0%} of no language<br>%{customdata[4]} prompts<extra></extra>"
        ),
    )


def layer_words(means: pd.DataFrame, *, condition: str = INTACT) -> go.Figure:
    """Lines of `layer_word_means`: how likely the word is after each block, in the prompt's language and in others.

    Args:
        condition: as of `layer_languages`.
    """
    under = means.condition == condition if "condition" in means else condition == INTACT
    part = means[under & means.probability.notna()]
    languages = part.language.unique()
    figure = _panels([f"prompts in {k}" for k in languages])
    seen: set[str] = set()
    for panel, language in enumerate(languages):
        mine = part[part.language == language]
        for decoded, rows in mine.groupby("decoded", sort=False):
            name = "the prompt's language" if decoded == language else str(decoded)
            colour = COLOURS[0] if decoded == language else COLOURS[1]
            for trace in _line_with_band(rows, name, colour, first=name not in seen):
                figure.add_trace(trace, *_place(panel))
            seen.add(name)
    figure.update_yaxes(range=[0, 1], tickformat=".0%")
    title = f"How likely the word is after each block{_CONDITION_TITLES[condition]}"
    return _finished(figure, part, title, "probability of<br>its first tokens")


def _line_with_band(rows: pd.DataFrame, name: str, colour: str, *, first: bool) -> tuple[go.Scatter, go.Scatter]:
    """A mean by layer and its interval."""
    around = go.Scatter(
        x=[*rows.layer, *rows.layer[::-1]],
        y=[*rows.high, *rows.low[::-1]],
        mode="lines",
        fill="toself",
        fillcolor=colour,
        opacity=0.2,
        line={"width": 0},
        legendgroup=name,
        showlegend=False,
        hoverinfo="skip",
    )
    line = go.Scatter(
        x=rows.layer,
        y=rows.probability,
        name=name,
        legendgroup=name,
        showlegend=first,
        mode="lines",
        line={"color": colour},
        customdata=np.stack([rows.low, rows.high, rows.n - rows.n_dropped, rows.n_dropped], axis=-1),
        hovertemplate=(
            f"word in {name}<br>after block %{{x}}: %{{y:.1%}}<br>95 % interval %{{customdata[0]:.1%}} to "
            "%{customdata[1]:.1%}<br>%{customdata[2]} words, %{customdata[3]} dropped<extra></extra>"
        ),
    )
    return around, line


def region_effects(effects: pd.DataFrame, *, measure: str = "loss") -> go.Figure:
    """Heatmap of `region_effects`: a language's neurons off by structure and region, colour what its own text loses.

    Args:
        measure: "loss" (nats per token) or "margin" (nats per question).

    Raises:
        ValueError: the table has no rows of the measure.
    """
    own = effects[(effects.measure == measure) & (effects.evaluated == effects.group)]
    if own.empty:
        known = ", ".join(effects.measure.unique())
        raise ValueError(f"measure must be one of this table's, {known}, got {measure!r}")
    own = own.assign(place=own.structure + "<br>" + own.region)
    names = ("low", "high", "random_change", "beyond", "beyond_low", "beyond_high", "n_neurons", "rule")
    change, *further = (grid(own, "group", "place", name) for name in ("change", *names))
    hover = (
        "%{y}: %{customdata[6]:,} neurons off in %{x} (%{customdata[7]})<br>change %{z:+.3f} nats<br>95 % interval "
        "%{customdata[0]:+.3f} to %{customdata[1]:+.3f}<br>random neurons %{customdata[2]:+.3f}<br>beyond random "
        "%{customdata[3]:+.3f}, 95 % interval %{customdata[4]:+.3f} to %{customdata[5]:+.3f}<extra></extra>"
    )
    unit = "nats per token" if measure == "loss" else "nats"
    heat = change_heatmap(change, further, hover, f"change of<br>{measure}<br>({unit})", texttemplate="%{z:+.2f}")
    heat.reversescale = measure != "loss"
    figure = go.Figure(heat).update_layout(
        title=f"A language's neurons off by region: its own {measure}",
        xaxis_title="neurons off",
        yaxis_title="language",
    )
    return named_axes(figure)


def _panels(titles: Sequence[str]) -> go.Figure:
    rows = -(-len(titles) // _COLUMNS)
    figure = make_subplots(
        rows=rows,
        cols=min(_COLUMNS, len(titles)),
        subplot_titles=titles,
        shared_xaxes=True,
        shared_yaxes=True,
        vertical_spacing=0.25 / rows,
        horizontal_spacing=0.02,
    )
    return figure.update_layout(height=180 + 200 * rows)


def _place(panel: int) -> tuple[int, int]:
    """Row and column of a panel."""
    return panel // _COLUMNS + 1, panel % _COLUMNS + 1


def _finished(figure: go.Figure, part: pd.DataFrame, title: str, unit: str) -> go.Figure:
    figure.update_layout(title=title).update_xaxes(dtick=2 * layer_step(int(part.layer.max()) + 1))
    last = -(-part.language.nunique() // _COLUMNS)
    figure.update_xaxes(title_text="layer", row=last)
    return figure.update_yaxes(title_text=unit, col=1)
