"""Interactive figures: a table or a noun in, a plotly Figure out; nothing is shown or written."""

from collections.abc import Sequence
from typing import Any

import numpy as np
import pandas as pd
import plotly.graph_objects as go
from plotly.subplots import make_subplots

from .analysis.lape import lape_entropy
from .evaluation.intervals import wilson_interval
from .neurons import NeuronScores, NeuronSet
from .recording import ActivationStats

CHANGES = "RdBu_r"
AMOUNTS = "Viridis"
COLOURS = ("#0b6e75", "#d1603d", "#5b7fd4", "#b8952d", "#7a5aa6", "#3f9b5f", "#c44d80", "#7d8590", "#8a6d3b", "#2aa1c0")


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
    flat = neurons.masks.flatten(1).long()
    hover = "%{y} and %{x}<br>Jaccard overlap %{z:.3f}<br>%{customdata} neurons in both<extra></extra>"
    return overlap_heatmap(neurons.jaccard(), hover, title, customdata=(flat @ flat.T).numpy(), zmin=0)


def overlap_heatmap(table: pd.DataFrame, hover: str, title: str, **options: Any) -> go.Figure:
    """Heatmap of a square table of Jaccard overlaps, its diagonal left blank."""
    values = table.to_numpy(copy=True)
    np.fill_diagonal(values, np.nan)
    heat = go.Heatmap(
        z=values,
        x=list(table.columns),
        y=list(table.index),
        colorscale=AMOUNTS,
        colorbar={"title": {"text": "Jaccard<br>overlap"}},
        hovertemplate=hover,
        **options,
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
    p = active / n
    low, high = wilson_interval(p, n.astype(float))
    bars = go.Bar(
        x=list(stats.languages),
        y=p,
        error_y={"type": "data", "symmetric": False, "array": high - p, "arrayminus": p - low},
        customdata=np.stack([active, n, stats.mean()[layer, neuron].numpy()], axis=-1),
        hovertemplate=(
            "%{x}: %{y:.4f}<br>%{customdata[0]:,} of %{customdata[1]:,} tokens<br>"
            "mean activation %{customdata[2]:.4g}<extra></extra>"
        ),
    )
    figure = go.Figure(bars).update_layout(title=f"Neuron {layer}.{neuron}", xaxis_title="language")
    return figure.update_layout(yaxis_title="activation probability").update_yaxes(rangemode="tozero")


def leaderboard(table: pd.DataFrame) -> go.Figure:
    """Bars of a `leaderboard`: specificity of each detector, nats a token, with its 95 % interval, best on top."""
    bars = go.Bar(
        x=table.specificity,
        y=table.detector,
        orientation="h",
        error_x={
            "type": "data",
            "symmetric": False,
            "array": table.high - table.specificity,
            "arrayminus": table.specificity - table.low,
        },
        customdata=table[["own", "elsewhere", "low", "high", "n_neurons", "hits"]].to_numpy(),
        hovertemplate=(
            "%{y} (%{customdata[4]:.0f} neurons a language)<br>specificity %{x:+.4f} nats a token<br>"
            "95 % interval %{customdata[2]:+.4f} to %{customdata[3]:+.4f}<br>own language %{customdata[0]:+.4f}, "
            "others %{customdata[1]:+.4f}<br>own language hurt most in %{customdata[5]} languages<extra></extra>"
        ),
    )
    figure = go.Figure(bars).update_layout(title="Whose neurons matter to their language alone")
    figure.update_layout(xaxis_title="own loss less mean loss of the others, nats a token")
    # The names of detectors are long; without a distance the title would stand on them.
    title = {"text": "detector", "standoff": 12}
    return figure.update_yaxes(autorange="reversed", type="category", title=title, automargin=True)


def sharing_by_layer(shares: pd.DataFrame, *, threshold: float = 0.0) -> go.Figure:
    """Lines of `Sharing.layer_shares`: share of each type a layer, mean over inputs, with the band of min and max.

    The first task of the table is shown.
    """
    part = shares[(shares.threshold == threshold) & (shares.task == shares.task.iloc[0])]
    if part.empty:
        raise ValueError(f"no threshold {threshold} in this table; it has {sorted(shares.threshold.unique())}")
    figure = go.Figure()
    for i, (name, rows) in enumerate(part.groupby("type", sort=False)):
        colour = COLOURS[i]
        band = {"x": [*rows.layer, *rows.layer[::-1]], "y": [*rows["max"], *rows["min"][::-1]]}
        figure.add_scatter(
            **band, fill="toself", mode="none", fillcolor=colour, opacity=0.15, legendgroup=name, showlegend=False,
            hoverinfo="skip",
        )  # fmt: skip
        figure.add_scatter(
            x=rows.layer,
            y=rows["mean"],
            name=name,
            legendgroup=name,
            mode="lines+markers",
            line={"color": colour},
            customdata=rows[["min", "max", "low", "high"]].to_numpy(),
            hovertemplate=(
                f"{name}<br>layer %{{x}}: %{{y:.2%}} of its neurons<br>95 % interval %{{customdata[2]:.2%}} to "
                "%{customdata[3]:.2%}<br>over inputs %{customdata[0]:.2%} to %{customdata[1]:.2%}<extra></extra>"
            ),
        )
    figure.update_layout(title="How many languages use the same neuron", xaxis_title="layer")
    figure.update_xaxes(dtick=max(1, part.layer.nunique() // 16))
    return figure.update_layout(yaxis_title="share of the layer's neurons").update_yaxes(tickformat=".0%")


def activity_overlap(table: pd.DataFrame) -> go.Figure:
    """Heatmap of `Sharing.overlap`: mean Jaccard overlap of the active neurons of two languages, similar ones near."""
    hover = "%{y} and %{x}<br>mean Jaccard overlap over inputs %{z:.3f}<extra></extra>"
    return overlap_heatmap(table, hover, "Which languages use the same neurons")


def type_contributions(table: pd.DataFrame) -> go.Figure:
    """Bars of `attribution`: share of each type among all neurons and among those of highest contribution, a layer."""
    mean = table.groupby(["layer", "type"], sort=False)[["share", "top_share"]].mean().reset_index()
    figure = go.Figure()
    for i, (name, rows) in enumerate(mean.groupby("type", sort=False)):
        for column, pattern, what in (("share", "/", "all"), ("top_share", "", "top")):
            figure.add_bar(
                x=[[f"layer {layer}" for layer in rows.layer], [what] * len(rows)],
                y=rows[column],
                name=name,
                legendgroup=name,
                showlegend=column == "top_share",
                marker={"color": COLOURS[i], "pattern": {"shape": pattern}},
                hovertemplate=f"{name}<br>{what}: %{{y:.2%}}<extra></extra>",
            )
    figure.update_layout(title="Which neurons carry the answer", barmode="stack", xaxis_title="layer")
    figure.update_layout(yaxis_title="share of neurons")
    return figure.update_yaxes(tickformat=".0%")


def found_and_chance(table: pd.DataFrame) -> go.Figure:
    """Bars of `permutation_test`: neurons found a language, those that stay significant, and what chance finds."""
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
            error_y={
                "type": "data",
                "symmetric": False,
                "array": table.chance_high - table.chance_mean,
                "arrayminus": 0 * table.found,
            },
            customdata=table[["chance_high"]].to_numpy(),
            hovertemplate="%{x}: %{y:.1f} with shuffled labels (95 % below %{customdata[0]:.0f})<extra></extra>",
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
            name=str(name),
            mode="lines+markers",
            line={"color": COLOURS[i % len(COLOURS)]},
            error_y={
                "type": "data",
                "symmetric": False,
                "array": rows.high - rows.f1,
                "arrayminus": rows.f1 - rows.low,
            },
            hovertemplate=f"{name}<br>{axis} %{{x}}<br>F1 %{{y:.3f}}<extra></extra>",
        )
    figure.update_layout(title=title, xaxis_title=axis, yaxis_title="F1")
    return figure.update_yaxes(range=[0, 1.03])


def grid(table: pd.DataFrame, row: str, column: str, value: str) -> pd.DataFrame:
    """`value` by `row` and `column`, both in order of first appearance."""
    wide = table.pivot(index=row, columns=column, values=value)
    return wide.loc[table[row].unique(), table[column].unique()]


def neuron_map(stats: ActivationStats, neurons: NeuronSet) -> go.Figure:
    """Points: entropy of every neuron of a group by layer, a colour a group; the groups of a layer side by side."""
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
    figure.update_xaxes(tickvals=list(range(neurons.masks.shape[1])), zeroline=False)
    return figure.update_layout(yaxis_title="entropy, nats")


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


def share_heatmap(share: pd.DataFrame, further: Sequence[pd.DataFrame], hover: str, colorbar: str) -> go.Heatmap:
    """Shares as colours from 0 to 1, with further tables of the same shape for the hover text."""
    return go.Heatmap(
        z=share.to_numpy(),
        x=list(share.columns),
        y=list(share.index),
        customdata=np.stack([table.to_numpy() for table in further], axis=-1),
        colorscale=AMOUNTS,
        zmin=0,
        zmax=1,
        colorbar={"title": {"text": colorbar}, "tickformat": ".0%"},
        texttemplate="%{z:.0%}",
        hovertemplate=hover,
    )


def steering_matrix(table: pd.DataFrame, *, title: str = "Which language a steered model answers in") -> go.Figure:
    """Heatmap of `steering_shares` by source, target and condition: share of steered outputs in the target language.

    Rows are the languages of the prompts; hover shows what the unsteered model and random neurons do.
    """
    steered = table[table.condition == "steered"]
    columns = ("in_target", "low", "high", "in_source", "elsewhere", "n")
    grids = [grid(steered, "source", "target", name) for name in columns]
    others = [
        grid(table[table.condition == c], "source", "target", "in_target").reindex_like(grids[0])
        if (table.condition == c).any()
        else grids[0] * np.nan
        for c in ("unsteered", "random")
    ]
    hover = (
        "prompt: %{y}<br>steered to: %{x}<br>%{z:.0%} of %{customdata[4]} outputs in %{x}<br>"
        "95 % interval %{customdata[0]:.0%} to %{customdata[1]:.0%}<br>in the prompt's language "
        "%{customdata[2]:.0%}, elsewhere %{customdata[3]:.0%}<br>unsteered %{customdata[5]:.0%}, "
        "random neurons %{customdata[6]:.0%}<extra></extra>"
    )
    heat = share_heatmap(grids[0], [*grids[1:], *others], hover, "share in the<br>target language")
    figure = go.Figure(heat).update_layout(
        title=title, xaxis_title="language steered to", yaxis_title="language of the prompt"
    )
    return figure.update_yaxes(autorange="reversed", type="category").update_xaxes(type="category")


def steering_curve(
    table: pd.DataFrame, *, x: str = "strength", title: str = "How strongly to steer, and what it costs"
) -> go.Figure:
    """Share in the target language above, perplexity under the model as it is below, over strength or rate.

    Args:
        table: `steering_shares` and `steering_quality` by `x` and condition, merged.
    """
    figure = make_subplots(rows=2, cols=1, shared_xaxes=True, vertical_spacing=0.08)
    baseline = table[table.condition == "unsteered"]
    # The unsteered model is the beginning of the other lines, at 0, and drawn on top of them.
    names = sorted(table.condition.unique(), key=lambda name: name == "unsteered")
    for i, name in enumerate(names):
        rows = table[table.condition == name]
        rows = rows if name == "unsteered" else pd.concat([baseline, rows])
        rows = rows.sort_values(x)
        line = {"name": name, "legendgroup": name, "mode": "lines+markers", "marker": {"color": COLOURS[i]}}
        figure.add_scatter(
            x=rows[x],
            y=rows.in_target,
            error_y=asymmetric(rows.in_target, rows.low, rows.high),
            customdata=rows[["n", "low", "high", "in_source", "elsewhere"]].to_numpy(),
            hovertemplate=(
                f"{name}, {x} %{{x}}<br>%{{y:.0%}} of %{{customdata[0]}} outputs in the target language<br>"
                "95 % interval %{customdata[1]:.0%} to %{customdata[2]:.0%}<br>in the prompt's language "
                "%{customdata[3]:.0%}, elsewhere %{customdata[4]:.0%}<extra></extra>"
            ),
            row=1,
            col=1,
            **line,
        )
        figure.add_scatter(
            x=rows[x],
            y=rows.ppl,
            error_y=asymmetric(rows.ppl, np.exp(rows.nll_low), np.exp(rows.nll_high)),
            customdata=np.stack([np.exp(rows.nll_low), np.exp(rows.nll_high), rows.distinct_2], axis=-1),
            hovertemplate=(
                f"{name}, {x} %{{x}}<br>perplexity %{{y:.1f}} a token<br>95 % interval %{{customdata[0]:.1f}} to "
                "%{customdata[1]:.1f}<br>distinct bigrams %{customdata[2]:.0%}<extra></extra>"
            ),
            showlegend=False,
            row=2,
            col=1,
            **line,
        )
    figure.update_layout(title=title, height=560)
    figure.update_yaxes(title_text="in the target language", tickformat=".0%", range=[-0.03, 1.05], row=1, col=1)
    ticks = [digit * 10**power for power in range(7) for digit in (1, 2, 5)]  # plotly writes only a digit by default
    names_of_ticks = [f"{tick:,}" for tick in ticks]
    figure.update_yaxes(
        title_text="perplexity a token", type="log", tickvals=ticks, ticktext=names_of_ticks, row=2, col=1
    )
    return figure.update_xaxes(title_text=x, row=2, col=1)


def asymmetric(middle: pd.Series, low: pd.Series, high: pd.Series) -> dict[str, Any]:
    """Error bars from an interval."""
    return {"type": "data", "symmetric": False, "array": high - middle, "arrayminus": middle - low}


def fallback(
    table: pd.DataFrame,
    *,
    condition: str = "steered",
    title: str = "Which language remains when languages are switched off",
) -> go.Figure:
    """Heatmap of `found_shares` of a `fallback_study`: a row for every further language off, a column a language found.

    Args:
        table: by n_off, off and condition.
        condition: "steered" for the languages' neurons, "random" for as many random ones.
    """
    part = table[table.condition.isin(["unsteered", condition])]
    if not (part.condition == condition).any():
        raise ValueError(f"no condition {condition!r} in this table; it has {', '.join(table.condition.unique())}")
    part = part.sort_values("n_off", kind="stable")
    step = np.where(part.n_off == 0, "none", "+ " + part.off)
    part = part.assign(step=step, found=part.found.replace("", "none found"))
    grids = [grid(part, "step", "found", name) for name in ("share", "low", "high", "n", "n_off")]
    hover = (
        "%{y} (%{customdata[3]} languages off)<br>%{z:.0%} of %{customdata[2]} outputs in %{x}<br>"
        "95 % interval %{customdata[0]:.0%} to %{customdata[1]:.0%}<extra></extra>"
    )
    heat = share_heatmap(grids[0], grids[1:], hover, "share of<br>outputs")
    figure = go.Figure(heat).update_layout(
        title=title, xaxis_title="language of the output", yaxis_title="switched off, one after another"
    )
    return figure.update_yaxes(autorange="reversed", type="category").update_xaxes(type="category")


CHANGE_UNITS = {"loss": "nats a token", "margin": "nats"}


def sweep_effects(effects: pd.DataFrame) -> go.Figure:
    """Change of every measure by setting of a sweep, a panel a measure; crosses: as many random neurons.

    Args:
        effects: of `mi_multilingual.experiments.summary.effects`.
    """
    measures = list(effects[["evaluation", "measure"]].drop_duplicates().itertuples(index=False, name=None))
    titles = [f"{measure} ({evaluation})" for evaluation, measure in measures]
    figure = make_subplots(cols=len(measures), shared_yaxes=True, horizontal_spacing=0.03, subplot_titles=titles)
    colours = {name: COLOURS[i % len(COLOURS)] for i, name in enumerate(effects["where"].unique())}
    named: set[str] = set()
    for col, (evaluation, measure) in enumerate(measures, start=1):
        panel = effects[(effects.evaluation == evaluation) & (effects.measure == measure)]
        for where, neurons in panel[["where", "neurons"]].drop_duplicates().itertuples(index=False, name=None):
            part = panel[(panel["where"] == where) & (panel.neurons == neurons)]
            name = f"{where}, {neurons}"
            trace = sweep_points(part, name, colours[where], measure).update(showlegend=name not in named)
            figure.add_trace(trace, row=1, col=col)
            named.add(name)
        figure.update_xaxes(title_text=f"change, {CHANGE_UNITS.get(measure, 'share')}", row=1, col=col)
    order = list(effects.setting.unique())
    height = 200 + len(order) * max(24, 9 * len(named))
    figure.update_yaxes(type="category", categoryorder="array", categoryarray=order, range=[len(order) - 0.5, -0.5])
    return figure.update_layout(title="What the settings of the sweep change", height=height, scattermode="group")


def sweep_points(part: pd.DataFrame, name: str, colour: str, measure: str) -> go.Scatter:
    """The settings of one kind of neurons and text in one panel of `sweep_effects`."""
    return go.Scatter(
        x=part.change,
        y=part.setting,
        orientation="h",
        error_x={
            "type": "data",
            "array": part.high - part.change,
            "arrayminus": part.change - part.low,
            "color": colour,
            "thickness": 1,
            "width": 2,
        },
        mode="markers",
        name=name,
        legendgroup=name,
        marker={"color": colour, "symbol": "x" if name.endswith("random") else "circle"},
        customdata=part[["low", "high", "n", "base", "value"]].to_numpy(),
        hovertemplate=(
            f"%{{y}}<br>{name} neurons<br>{measure} %{{customdata[3]:.4f}} to %{{customdata[4]:.4f}}, change "
            "%{x:+.4f}<br>95 % interval %{customdata[0]:+.4f} to %{customdata[1]:+.4f} over %{customdata[2]} languages"
            "<extra></extra>"
        ),
    )
