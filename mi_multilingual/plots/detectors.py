"""Figures of detectors compared, and of how far their neurons can be trusted."""

import pandas as pd
import plotly.graph_objects as go

from ..display import spoken
from ..neurons import NeuronScores, NeuronSet
from ..patching.conditions import RANDOM
from .style import COLOURS, RANDOM_NEURONS, asymmetric


def leaderboard(table: pd.DataFrame) -> go.Figure:
    """Bars of a `leaderboard`: specificity of each detector, nats per token, with its 95 % interval, best on top."""
    bars = go.Bar(
        x=table.specificity,
        y=table.detector.map(spoken).where(table.condition != RANDOM, RANDOM_NEURONS),
        orientation="h",
        error_x=asymmetric(table.specificity, table.low, table.high),
        customdata=table[["own", "elsewhere", "low", "high", "n_neurons", "hits"]].to_numpy(),
        hovertemplate=(
            "%{y} (%{customdata[4]:.0f} neurons per language)<br>specificity %{x:+.4f} nats per token<br>"
            "95 % interval %{customdata[2]:+.4f} to %{customdata[3]:+.4f}<br>own language %{customdata[0]:+.4f}, "
            "others %{customdata[1]:+.4f}<br>own language hurt most in %{customdata[5]} languages<extra></extra>"
        ),
    )
    figure = go.Figure(bars).update_layout(title="Whose neurons matter to their language alone")
    figure.update_layout(xaxis_title="own loss less mean loss of the others, nats per token")
    # The names of detectors are long; without a distance the title would stand on them.
    title = {"text": "detector", "standoff": 12}
    return figure.update_yaxes(autorange="reversed", type="category", title=title, automargin=True)


def found_and_chance(table: pd.DataFrame) -> go.Figure:
    """Bars of `permutation_test`: neurons found per language, those that stay significant, and what chance finds."""
    bars = [
        go.Bar(x=table.language, y=table.found, name="found", hovertemplate="%{x}: %{y} neurons found<extra></extra>"),
        go.Bar(
            x=table.language,
            y=table.significant,
            name="significant",
            hovertemplate="%{x}: %{y} neurons significant after correction<extra></extra>",
        ),
        go.Bar(
            x=table.language,
            y=table.chance_mean,
            name="by chance",
            error_y=asymmetric(table.chance_mean, table.chance_mean, table.chance_high),
            customdata=table[["chance_high"]].to_numpy(),
            hovertemplate=(
                "%{x}: %{y:.1f} neurons with shuffled labels on average<br>at most %{customdata[0]:.0f} in 95 % of the "
                "shuffles<extra></extra>"
            ),
        ),
    ]
    figure = go.Figure(bars).update_layout(title="More than chance would find?", barmode="group")
    return figure.update_layout(xaxis_title="language", yaxis_title="neurons")


def membership(scores: NeuronScores, neurons: NeuronSet) -> go.Figure:
    """Histogram of `lape_membership`: how often the neurons of a set are selected again when documents are redrawn."""
    chosen = neurons.masks.permute(1, 2, 0)
    values = [scores.values[..., k][chosen[..., k]].numpy() for k in range(len(scores.languages))]
    bars = [
        go.Histogram(
            x=v,
            name=language,
            xbins={"start": 0, "end": 1.0001, "size": 0.1},
            hovertemplate=f"{language}<br>selected in %{{x}} of the resamples<br>%{{y}} neurons<extra></extra>",
        )
        for language, v in zip(scores.languages, values, strict=True)
    ]
    figure = go.Figure(bars).update_layout(title="How sure is each membership", barmode="stack")
    return figure.update_layout(xaxis_title="share of resamples that select the neuron", yaxis_title="neurons")


def recovery(table: pd.DataFrame, axis: str, *, title: str) -> go.Figure:
    """Lines of a planted benchmark: mean F1 of each detector over `axis`, with 95 % intervals over seeds.

    Args:
        table: columns detector, `axis`, f1, low, high.
    """
    figure = go.Figure()
    for i, (name, rows) in enumerate(table.groupby("detector", sort=False)):
        figure.add_scatter(
            x=rows[axis],
            y=rows.f1,
            name=spoken(str(name)),
            mode="lines+markers",
            line={"color": COLOURS[i % len(COLOURS)]},
            error_y=asymmetric(rows.f1, rows.low, rows.high),
            hovertemplate=f"{spoken(str(name))}<br>{axis} %{{x}}<br>F1 %{{y:.3f}}<extra></extra>",
        )
    figure.update_layout(title=title, xaxis_title=axis, yaxis_title="F1")
    return figure.update_yaxes(range=[0, 1.03])
