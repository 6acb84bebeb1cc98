"""Interactive figures: a table or a noun in, a plotly Figure out; nothing is shown or written."""

import numpy as np
import pandas as pd
import plotly.graph_objects as go

from .analysis.lape import lape_entropy
from .neurons import NeuronSet
from .recording import ActivationStats

CHANGES = "RdBu_r"
AMOUNTS = "Viridis"


def perplexity_change(
    matrix: pd.DataFrame, *, title: str = "What switching off a language's neurons does"
) -> go.Figure:
    """Heatmap of a `perplexity_matrix`: rows the ablated neurons, columns the evaluated language, colour centred at 0.

    Random controls stand in one last row, averaged over seeds.
    """
    table = (
        matrix[matrix.ablated != "none"]
        .groupby(["ablated", "evaluated"], sort=False, as_index=False)
        .agg(
            change=("change", "mean"),
            low=("low", "mean"),
            high=("high", "mean"),
            nll=("nll", "mean"),
            n=("n_neurons", "mean"),
        )
    )
    grids = {name: grid(table, "ablated", "evaluated", name) for name in ("change", "low", "high", "nll", "n")}
    change = grids["change"]
    reach = float(np.nanmax(np.abs(change.to_numpy()))) or 1.0
    heat = go.Heatmap(
        z=change.to_numpy(),
        x=list(change.columns),
        y=list(change.index),
        customdata=np.stack([grids[name].to_numpy() for name in ("low", "high", "nll", "n")], axis=-1),
        colorscale=CHANGES,
        zmid=0,
        zmin=-reach,
        zmax=reach,
        colorbar={"title": {"text": "change,<br>nats a token"}},
        texttemplate="%{z:.3f}",
        hovertemplate=(
            "off: %{y} (%{customdata[3]:.0f} neurons)<br>text: %{x}<br>change %{z:+.4f} nats a token<br>"
            "95 % interval %{customdata[0]:+.4f} to %{customdata[1]:+.4f}<br>loss %{customdata[2]:.3f}<extra></extra>"
        ),
    )
    figure = go.Figure(heat).update_layout(
        title=title, xaxis_title="language of the text", yaxis_title="neurons switched off"
    )
    return figure.update_yaxes(autorange="reversed", type="category").update_xaxes(side="bottom", type="category")


def layer_counts(neurons: NeuronSet, *, title: str = "Where the neurons sit") -> go.Figure:
    """Stacked bars: number of neurons a layer, a colour a group."""
    counts = neurons.counts()
    bars = [
        go.Bar(
            x=part.layer,
            y=part.n_neurons,
            name=group,
            hovertemplate=f"{group}<br>layer %{{x}}<br>%{{y}} neurons<extra></extra>",
        )
        for group, part in counts.groupby("group", sort=False)
    ]
    figure = go.Figure(bars).update_layout(
        title=title, barmode="stack", xaxis_title="layer", yaxis_title="neurons", bargap=0.25
    )
    return figure.update_xaxes(dtick=max(1, neurons.masks.shape[1] // 16))


def overlap(neurons: NeuronSet, *, title: str = "Which languages share neurons") -> go.Figure:
    """Heatmap of the Jaccard overlap of every two groups; a group with itself is left blank."""
    table = neurons.jaccard()
    shared = neurons.masks.flatten(1).long() @ neurons.masks.flatten(1).long().T
    values = table.to_numpy(copy=True)
    np.fill_diagonal(values, np.nan)
    heat = go.Heatmap(
        z=values,
        x=list(table.columns),
        y=list(table.index),
        customdata=shared.numpy(),
        colorscale=AMOUNTS,
        zmin=0,
        colorbar={"title": {"text": "Jaccard<br>overlap"}},
        hovertemplate="%{y} and %{x}<br>Jaccard overlap %{z:.3f}<br>%{customdata} neurons in both<extra></extra>",
    )
    figure = go.Figure(heat).update_layout(title=title, xaxis_title="language", yaxis_title="language")
    return figure.update_yaxes(autorange="reversed", type="category").update_xaxes(type="category")


def entropy_histogram(stats: ActivationStats, neurons: NeuronSet | None = None) -> go.Figure:
    """Histogram of the activation probability entropy (nats): neurons that ever fire, and those of `neurons` beside."""
    fires = (stats.active > 0).any(dim=-1)
    entropy = lape_entropy(stats)
    chosen = neurons.union() if neurons is not None else fires & False
    edges = {"start": 0.0, "end": float(np.log(len(stats.languages))) + 1e-6}
    edges["size"] = edges["end"] / 60
    bars = [
        go.Histogram(
            x=entropy[part].numpy(),
            name=name,
            xbins=edges,
            hovertemplate=f"{name}<br>%{{x}} nats<br>%{{y}} neurons<extra></extra>",
        )
        for name, part in (("other neurons", fires & ~chosen), ("selected", fires & chosen))
        if part.any()
    ]
    figure = go.Figure(bars).update_layout(title="How evenly neurons fire over the languages", barmode="stack")
    return figure.update_layout(xaxis_title="entropy of the activation probabilities, nats", yaxis_title="neurons")


def neuron_profile(stats: ActivationStats, layer: int, neuron: int) -> go.Figure:
    """Bars: activation probability of one neuron in each language, with a 95 % Wilson interval over tokens."""
    n_layers, n_neurons, _ = stats.active.shape
    if not (0 <= layer < n_layers and 0 <= neuron < n_neurons):
        raise ValueError(
            f"there is no neuron {layer}.{neuron}; layers are 0..{n_layers - 1}, neurons 0..{n_neurons - 1}"
        )
    active, n = stats.active[layer, neuron].numpy(), stats.n_tokens.numpy()
    p, z = active / n, 1.96
    centre = (p + z**2 / (2 * n)) / (1 + z**2 / n)
    half = z * np.sqrt(p * (1 - p) / n + z**2 / (4 * n**2)) / (1 + z**2 / n)
    bars = go.Bar(
        x=list(stats.languages),
        y=p,
        error_y={"type": "data", "symmetric": False, "array": centre + half - p, "arrayminus": p - centre + half},
        customdata=np.stack([active, n, stats.mean()[layer, neuron].numpy()], axis=-1),
        hovertemplate=(
            "%{x}: %{y:.4f}<br>%{customdata[0]:,} of %{customdata[1]:,} tokens<br>"
            "mean activation %{customdata[2]:.4g}<extra></extra>"
        ),
    )
    figure = go.Figure(bars).update_layout(title=f"Neuron {layer}.{neuron}", xaxis_title="language")
    return figure.update_layout(yaxis_title="activation probability").update_yaxes(rangemode="tozero")


def grid(table: pd.DataFrame, row: str, column: str, value: str) -> pd.DataFrame:
    """`value` by `row` and `column`, both in order of first appearance."""
    wide = table.pivot(index=row, columns=column, values=value)
    return wide.loc[table[row].unique(), table[column].unique()]
