"""Figures of answers without neurons."""

import numpy as np
import pandas as pd
import plotly.graph_objects as go

from ..studies.deactivation import TOGETHER
from .style import COLOURS, RANDOM_NEURONS, asymmetric, change_heatmap, grid, named_axes

_MEASURE_UNITS = {"accuracy": "share of right answers", "margin": "lead of the right answer, nats"}


def deactivation_bars(effects: pd.DataFrame, *, measure: str = "margin", language: str = TOGETHER) -> go.Figure:
    """Bars of `deactivation_effects`: change of a measure without each kind of neurons, beside as many random ones.

    Args:
        language: the one asked in; all together by default.
    """
    part = _effects_of(effects, measure)
    if language not in set(part.language):
        known = ", ".join(part.language[part.language != TOGETHER].unique())
        raise ValueError(f"language must be one of this table's, {known}, got {language!r}")
    part = part[part.language == language]
    labels = [f"{group}<br>{n:,.0f} neurons" for group, n in zip(part.group, part.n_neurons, strict=True)]
    figure = go.Figure()
    for name, prefix, colour, level in (
        ("these neurons", "", COLOURS[0], "value"),
        ("as many random neurons", "random_", COLOURS[7], "random"),
    ):
        change, low, high = (part[prefix + column] for column in ("change", "low", "high"))
        figure.add_bar(
            x=labels,
            y=change,
            name=name,
            marker={"color": colour},
            error_y=asymmetric(change, low, high),
            customdata=np.stack([low, high, part[level], part.intact, part.n_items], axis=-1),
            hovertemplate=(
                f"%{{x}}<br>{name} switched off<br>change %{{y:+.3f}}<br>95 % interval %{{customdata[0]:+.3f}} to "
                f"%{{customdata[1]:+.3f}}<br>{measure} %{{customdata[2]:.3f}}, intact %{{customdata[3]:.3f}} "
                f"({_MEASURE_UNITS[measure]})<br>%{{customdata[4]}} questions<extra></extra>"
            ),
        )
    where = "all languages" if language == TOGETHER else language
    figure.update_layout(title=f"What answers lose without neurons ({where})", barmode="group")
    return figure.update_layout(
        xaxis_title="neurons switched off", yaxis_title=f"change of {measure}<br>({_MEASURE_UNITS[measure]})"
    )


def deactivation_matrix(effects: pd.DataFrame, *, measure: str = "margin") -> go.Figure:
    """Heatmap of `deactivation_effects`: rows the neurons switched off, columns the language asked, colour the change.

    The last row is the mean over the random neurons of all rows.
    """
    part = _effects_of(effects, measure)
    part = part[part.language != TOGETHER]
    table = pd.concat([part, _random_row(part)], ignore_index=True)
    names = ("low", "high", "value", "intact", "beyond", "n_neurons")
    change, *further = (grid(table, "group", "language", name) for name in ("change", *names))
    hover = (
        "off: %{y} (%{customdata[5]:,.0f} neurons)<br>asked in %{x}<br>change %{z:+.3f}<br>95 % interval "
        f"%{{customdata[0]:+.3f}} to %{{customdata[1]:+.3f}}<br>{measure} %{{customdata[2]:.3f}}, intact "
        f"%{{customdata[3]:.3f}} ({_MEASURE_UNITS[measure]})<br>beyond random %{{customdata[4]:+.3f}}<extra></extra>"
    )
    heat = change_heatmap(
        change, further, hover, f"change of<br>{measure}", texttemplate="%{z:+.2f}", reversescale=True
    )
    figure = go.Figure(heat).update_layout(title="Questions in one language without the neurons of another")
    return named_axes(figure.update_layout(xaxis_title="language asked", yaxis_title="neurons switched off"))


def _random_row(part: pd.DataFrame) -> pd.DataFrame:
    """The random neurons of every language asked, averaged over groups, as the rows of one more group."""
    columns = {"random_change": "change", "random_low": "low", "random_high": "high", "random": "value"}
    means = part.groupby("language", sort=False, as_index=False)[[*columns, "intact"]].mean()
    return means.rename(columns=columns).assign(group=RANDOM_NEURONS, n_neurons=part.n_neurons.mean(), beyond=0.0)


def _effects_of(effects: pd.DataFrame, measure: str) -> pd.DataFrame:
    """The rows of one measure."""
    if measure not in _MEASURE_UNITS:
        raise ValueError(f"measure must be one of {', '.join(_MEASURE_UNITS)}, got {measure!r}")
    return effects.loc[effects.measure == measure]
