"""Figures of sets of neurons and of single neurons."""

import numpy as np
import plotly.graph_objects as go

from ..detectors.lape import lape_entropy
from ..evaluation.intervals import wilson_interval
from ..evidence.activations import ActivationStats
from ..languages import by_family
from ..neurons import NeuronSet
from .style import COLOURS, asymmetric, layer_step, overlap_heatmap


def layer_counts(neurons: NeuronSet, *, title: str = "Where the neurons sit") -> go.Figure:
    """Stacked bars: number of neurons per layer, one colour for each group."""
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
    return figure.update_xaxes(dtick=layer_step(neurons.masks.shape[1]))


def overlap(neurons: NeuronSet, *, title: str = "Which languages share neurons") -> go.Figure:
    """Heatmap of the Jaccard overlap of every two groups; a group with itself is left blank.

    Languages of one family stand side by side.
    """
    neurons = neurons.take(by_family(neurons.groups))
    flat = neurons.masks.flatten(1).long()
    hover = "%{y} and %{x}<br>Jaccard overlap %{z:.3f}<br>%{customdata} neurons in both<extra></extra>"
    return overlap_heatmap(neurons.jaccard(), hover, title, customdata=(flat @ flat.T).numpy(), zmin=0)


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
            hovertemplate=f"{name}<br>entropy %{{x}} nats<br>%{{y}} neurons<extra></extra>",
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
            f"neuron must be one of layers 0..{n_layers - 1} and neurons 0..{n_neurons - 1}, got {layer}.{neuron}"
        )
    active, n = stats.active[layer, neuron].numpy(), stats.n_tokens.numpy()
    p = active / n
    low, high = wilson_interval(p, n.astype(float))
    bars = go.Bar(
        x=list(stats.languages),
        y=p,
        error_y=asymmetric(p, low, high),
        customdata=np.stack([active, n, stats.mean()[layer, neuron].numpy()], axis=-1),
        hovertemplate=(
            "%{x}: %{y:.4f}<br>%{customdata[0]:,} of %{customdata[1]:,} tokens<br>"
            "mean activation %{customdata[2]:.4g}<extra></extra>"
        ),
    )
    figure = go.Figure(bars).update_layout(title=f"Neuron {layer}.{neuron}", xaxis_title="language")
    return figure.update_layout(yaxis_title="activation probability").update_yaxes(rangemode="tozero")


def neuron_map(stats: ActivationStats, neurons: NeuronSet) -> go.Figure:
    """Points: entropy of every neuron of a group by layer, one colour for each group, groups side by side."""
    entropy, n = lape_entropy(stats), len(neurons.groups)
    probability = stats.activation_probability()
    figure = go.Figure()
    for i, (group, mask) in enumerate(zip(neurons.groups, neurons.masks, strict=True)):
        layer, index = (part.tolist() for part in mask.nonzero(as_tuple=True))
        most = probability[layer, index].argmax(dim=-1).tolist()
        figure.add_scatter(
            x=[place + 0.7 * ((i + 0.5) / n - 0.5) for place in layer],
            y=entropy[layer, index].numpy(),
            text=[f"{place}.{j}" for place, j in zip(layer, index, strict=True)],
            customdata=[stats.languages[k] for k in most],
            meta="neuron",
            mode="markers",
            name=group,
            marker={"size": 6, "opacity": 0.75, "color": COLOURS[i % len(COLOURS)]},
            hovertemplate=(
                f"neuron %{{text}} of {group}<br>entropy %{{y:.3f}} nats<br>fires most often in %{{customdata}}"
                "<extra></extra>"
            ),
        )
    figure.update_layout(title="How specific the neurons are", xaxis_title="layer")
    figure.update_xaxes(
        tickvals=list(range(0, neurons.masks.shape[1], layer_step(neurons.masks.shape[1]))), zeroline=False
    )
    return figure.update_layout(yaxis_title="entropy, nats")
