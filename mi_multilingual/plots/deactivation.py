"""Figures of answers without neurons."""

import numpy as np
import pandas as pd
import plotly.graph_objects as go

from .style import CHANGES, COLOURS, grid

MEASURE_UNITS = {"accuracy": "share of right answers", "margin": "lead of the right answer, nats"}


def deactivation_bars(effects: pd.DataFrame, *, measure: str = "margin", language: str = "all") -> go.Figure:
    """Bars of `deactivation_effects`: change of a measure without each kind of neurons, beside as many random ones."""
    part = effects_of(effects, measure)
    if language not in set(part.language):
        raise ValueError(f"no answers in {language!r} in this table; it has {', '.join(part.language.unique())}")
    part = part[part.language == language]
    labels = [f"{off}<br>{n:,.0f} neurons" for off, n in zip(part.off, part.n_neurons, strict=True)]
    figure = go.Figure()
    for name, prefix, colour, level in (
        ("these neurons", "", COLOURS[0], "value"),
        ("as many random", "random_", COLOURS[7], "random"),
    ):
        change, low, high = (part[prefix + column] for column in ("change", "low", "high"))
        figure.add_bar(
            x=labels,
            y=change,
            name=name,
            marker={"color": colour},
            error_y={"type": "data", "symmetric": False, "array": high - change, "arrayminus": change - low},
            customdata=np.stack([low, high, part[level], part.intact, part.n_items], axis=-1),
            hovertemplate=(
                f"%{{x}}, {name} off<br>change %{{y:+.3f}}<br>95 % interval %{{customdata[0]:+.3f}} to "
                f"%{{customdata[1]:+.3f}}<br>{measure} %{{customdata[2]:.3f}}, intact %{{customdata[3]:.3f}} "
                f"({MEASURE_UNITS[measure]})<br>%{{customdata[4]}} questions<extra></extra>"
            ),
        )
    where = "all languages" if language == "all" else language
    figure.update_layout(title=f"What answers lose without neurons ({where})", barmode="group")
    figure.update_layout(
        xaxis_title="neurons switched off", yaxis_title=f"change of {measure}<br>({MEASURE_UNITS[measure]})"
    )
    return figure


def deactivation_matrix(effects: pd.DataFrame, *, measure: str = "margin") -> go.Figure:
    """Heatmap of `deactivation_effects`: rows the neurons switched off, columns the language asked, colour the change.

    The last row is the mean over the random neurons of all rows.
    """
    part = effects_of(effects, measure)
    part = part[part.language != "all"]
    random = part.groupby("language", sort=False)[
        ["random_change", "random_low", "random_high", "random", "intact"]
    ].mean()
    random.columns = ["change", "low", "high", "value", "intact"]
    random = random.reset_index().assign(off="random", n_neurons=part.n_neurons.mean(), beyond=0.0)
    table = pd.concat([part, random], ignore_index=True)
    names = ("change", "low", "high", "value", "intact", "beyond", "n_neurons")
    grids = [grid(table, "off", "language", name).to_numpy() for name in names]
    change = grid(table, "off", "language", "change")
    reach = float(np.nanmax(np.abs(change.to_numpy()))) or 1.0
    heat = go.Heatmap(
        z=change.to_numpy(),
        x=list(change.columns),
        y=list(change.index),
        customdata=np.stack(grids, axis=-1),
        colorscale=CHANGES,
        reversescale=True,
        zmin=-reach,
        zmid=0,
        zmax=reach,
        colorbar={"title": {"text": f"change of<br>{measure}"}},
        texttemplate="%{z:+.2f}",
        hovertemplate=(
            "off: %{y} (%{customdata[6]:,.0f} neurons)<br>asked in %{x}<br>change %{z:+.3f}<br>95 % interval "
            f"%{{customdata[1]:+.3f}} to %{{customdata[2]:+.3f}}<br>{measure} %{{customdata[3]:.3f}}, intact "
            "%{customdata[4]:.3f} "
            f"({MEASURE_UNITS[measure]})<br>beyond random %{{customdata[5]:+.3f}}<extra></extra>"
        ),
    )
    figure = go.Figure(heat).update_layout(title="Questions in one language without the neurons of another")
    figure.update_layout(xaxis_title="language asked", yaxis_title="neurons switched off")
    return figure.update_yaxes(autorange="reversed", type="category").update_xaxes(type="category")


def effects_of(effects: pd.DataFrame, measure: str) -> pd.DataFrame:
    """The rows of one measure."""
    if measure not in MEASURE_UNITS:
        raise ValueError(f"unknown measure {measure!r}; choose {', '.join(MEASURE_UNITS)}")
    return effects.loc[effects.measure == measure]
