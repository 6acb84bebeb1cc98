"""Figures of dense MLPs looked at as mixtures of experts."""

import numpy as np
import pandas as pd
import plotly.graph_objects as go
from plotly.subplots import make_subplots
from scipy.cluster.hierarchy import dendrogram

from ..analysis.distance import family_tree
from ..languages import LANGUAGES, by_family
from ..studies.deactivation import TOGETHER
from ..studies.experts import LAYERWISE, UNIFORM
from .style import COLOURS, asymmetric, layer_step

_PANELS = 5  # side by side


def expert_heatmap(table: pd.DataFrame) -> go.Figure:
    """Heatmaps of `expert_table`, a panel per language, those of one family side by side: layers by experts."""
    languages = by_family(list(table.language.unique()))
    columns = min(_PANELS, len(languages))
    figure = make_subplots(
        -(-len(languages) // columns), columns, subplot_titles=languages, shared_xaxes=True, shared_yaxes=True,
        horizontal_spacing=0.02, vertical_spacing=0.12, x_title="expert", y_title="layer",
    )  # fmt: skip
    for i, language in enumerate(languages):
        part = table[table.language == language]
        wide, low, high = (part.pivot(index="layer", columns="expert", values=v) for v in ("frequency", "low", "high"))
        figure.add_heatmap(
            z=wide.to_numpy(),
            x=list(wide.columns),
            y=list(wide.index),
            customdata=np.stack([low.to_numpy(), high.to_numpy()], axis=-1),
            coloraxis="coloraxis",
            hovertemplate=(
                f"{language}, layer %{{y}}, expert %{{x}}<br>used by %{{z:.1%}} of the tokens<br>95 % interval "
                "%{customdata[0]:.1%} to %{customdata[1]:.1%}<extra></extra>"
            ),
            row=i // columns + 1,
            col=i % columns + 1,
        )
    figure.update_layout(title="Which experts each language uses")
    figure.update_layout(
        coloraxis={
            "colorscale": "Viridis",
            "cmin": 0,
            "colorbar": {"title": {"text": "share<br>of tokens"}, "tickformat": ".0%"},
        }
    )
    return figure.update_yaxes(autorange="reversed", dtick=layer_step(table.layer.nunique()))


def language_tree(similarity: pd.DataFrame) -> go.Figure:
    """Dendrogram of `similarity_table`'s first routing: languages that use similar experts meet early.

    Colours of the names are families.
    """
    part = similarity[similarity.routing == similarity.routing.iloc[0]]
    square = part.pivot(index="language", columns="other", values="cosine")
    names = list(part.language.unique())
    drawn = dendrogram(family_tree(square.loc[names, names]), labels=names, no_plot=True)
    figure = go.Figure()
    for x, y in zip(drawn["icoord"], drawn["dcoord"], strict=True):
        figure.add_scatter(
            x=x, y=y, mode="lines", line={"color": COLOURS[7]}, showlegend=False,
            hovertemplate="they meet at 1 - cosine = %{y:.4f}<extra></extra>",
        )  # fmt: skip
    places = {name: 5 + 10 * i for i, name in enumerate(drawn["ivl"])}
    families: dict[str, list[str]] = {}
    for name in by_family(names):
        families.setdefault(LANGUAGES[name].family if name in LANGUAGES else "unknown", []).append(name)
    for i, (family, own) in enumerate(families.items()):
        figure.add_scatter(
            x=[places[name] for name in own], y=[0.0] * len(own), mode="markers", name=family,
            marker={"color": COLOURS[i % len(COLOURS)], "size": 13}, text=own,
            hovertemplate=f"%{{text}}<br>{family}<extra></extra>",
        )  # fmt: skip
    figure.update_layout(title="Languages by the experts that they use", xaxis_title="language")
    figure.update_xaxes(tickvals=list(places.values()), ticktext=list(places), showgrid=False, zeroline=False)
    return figure.update_layout(yaxis_title="distance, 1 - cosine of the frequencies")


def pruning_curves(curve: pd.DataFrame, *, language: str = TOGETHER) -> go.Figure:
    """Lines of `pruning_curve`: what pruning a language's least frequent experts costs it, beside random experts.

    Args:
        language: all together by default.
    """
    part = curve[curve.language == language]
    if part.empty:
        known = ", ".join(k for k in curve.language.unique() if k != TOGETHER)
        raise ValueError(f"language must be one of this table's, {known}, got {language!r}")
    figure = go.Figure()
    for kind, dash in ((UNIFORM, "solid"), (LAYERWISE, "dash")):
        rows = part[part.layers == kind].sort_values("rate")
        for name, prefix, colour in (("least frequent", "", COLOURS[0]), ("random", "random_", COLOURS[7])):
            change, low, high = (rows[prefix + column] for column in ("change", "low", "high"))
            figure.add_scatter(
                x=rows.rate,
                y=change,
                name=f"{name} experts, {kind} rates",
                mode="lines+markers",
                line={"color": colour, "dash": dash},
                error_y=asymmetric(change, low, high),
                customdata=pd.concat([low, high, rows.n_neurons, rows.intact], axis=1).to_numpy(),
                hovertemplate=(
                    f"{name} experts off, {kind} rates<br>%{{x:.1%}} of the experts (%{{customdata[2]:,.0f}} "
                    "neurons)<br>loss %{y:+.3f} nats per token<br>95 % interval %{customdata[0]:+.3f} to "
                    "%{customdata[1]:+.3f}<br>intact %{customdata[3]:.3f}<extra></extra>"
                ),
            )
    where = "all languages" if language == TOGETHER else language
    figure.update_layout(title=f"What pruning experts costs ({where})", xaxis_title="share of experts pruned")
    figure.update_xaxes(tickformat=".0%")
    return figure.update_layout(yaxis_title="change of loss, nats per token")
