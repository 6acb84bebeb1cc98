"""Claims on dense models looked at as mixtures of experts."""

from collections.abc import Mapping

import numpy as np
import pandas as pd

from mi_multilingual.evaluation.intervals import ratio_interval, wilson_interval
from mi_multilingual.patching.conditions import CHOSEN
from mi_multilingual.studies.deactivation import TOGETHER
from mi_multilingual.studies.experts import LAYERWISE, UNIFORM

from .claim import Claim, Effect

_LIU = "Liu et al. 2024, arXiv:2402.16367"
_Tables = Mapping[str, pd.DataFrame]


def _families(tables: _Tables) -> Effect:
    """Correlation of the tree of languages with their families, less those with languages permuted."""
    table, control = tables["expert_families"], "the languages permuted"
    rows = table[table.routing == "base"]
    if rows.empty:
        return Effect(np.nan, np.nan, np.nan, control)
    row = rows.iloc[0]
    return Effect(float(row.r), float(row.low), float(row.high), control)


def _shared(tables: _Tables) -> Effect:
    """Share of experts that are frequent in all languages, less that of independent languages.

    Layers in which hardly any neuron is active are left out: there ties decide, for the first experts.
    """
    told = [layer for layer, part in tables["experts"].groupby("layer") if not _first_in_all(part)]
    table = tables["expert_types"]
    rows = table[table.layer.isin(told) & (table.type == "all-shared")]
    n_experts = tables["experts"].expert.nunique() * len(told)
    share = rows.n_experts.sum() / n_experts
    value, low, high = (float(x - rows.chance.iloc[0]) for x in (share, *wilson_interval(share, n_experts)))
    return Effect(value, low, high, "languages that use as many experts independently")


def _first_in_all(layer: pd.DataFrame) -> bool:
    """Whether the experts that each language uses most are those of the lowest numbers."""
    by_language = layer.pivot(index="language", columns="expert", values="frequency").to_numpy()
    n_used = round(by_language.sum(axis=1).mean())
    return bool((by_language[:, :n_used].min(axis=1) > by_language[:, n_used:].max(axis=1)).all())


def _pruned(tables: _Tables) -> Effect:
    """Loss without the least frequent experts less that without random ones, at the largest uniform rate."""
    table = tables["pruning"]
    part = table[(table.layers == UNIFORM) & (table.language == TOGETHER)]
    row = part.loc[part.rate.idxmax()]
    return Effect(float(row.beyond), float(row.beyond_low), float(row.beyond_high), "random experts of the same layers")


def _layerwise(tables: _Tables) -> Effect:
    """Loss at layer-wise rates less that at one rate for all layers, as many experts pruned, at the largest rate."""
    table = tables["pruning_rows"]
    part = table[(table.condition == CHOSEN) & (table.rate == table.rate.max())]
    rows = part.pivot(index=["group", "row"], columns="layers", values=["nll", "n_tokens"])
    difference = (rows["nll"][LAYERWISE] - rows["nll"][UNIFORM]).to_numpy(float)
    n_tokens = rows["n_tokens"][UNIFORM].to_numpy(float)
    low, high = ratio_interval(difference, n_tokens)
    return Effect(float(difference.sum() / n_tokens.sum()), low, high, "as many experts pruned at one rate")


CLAIMS = (
    Claim(
        _LIU,
        "Languages of one family use similar experts.",
        "in words: frequencies cluster by family",
        "experts",
        _families,
        "correlation of tree and families",
        1,
        0.1,
    ),
    Claim(
        _LIU,
        "Some experts are used often by all languages.",
        "in words: languages share high-frequency experts beside those of their own",
        "experts",
        _shared,
        "share of experts",
        1,
        0.01,
    ),
    Claim(
        _LIU,
        "Pruning a language's least frequent experts hurts less than pruning random ones.",
        "in words: lower perplexity than with random experts pruned at the same rate",
        "experts",
        _pruned,
        "nats per token",
        -1,
        0.01,
    ),
    Claim(
        _LIU,
        "Layer-wise rates from activation levels hurt less than one rate.",
        "in words: lower perplexity at the same total",
        "experts",
        _layerwise,
        "nats per token",
        -1,
        0.005,
    ),
)
