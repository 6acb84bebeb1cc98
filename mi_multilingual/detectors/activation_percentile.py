"""Neurons whose mean activation in a language is among the highest of the model."""

import torch

from ..corpora import at_least_two
from ..evidence.activations import ActivationStats
from ..neurons import NeuronScores, NeuronSet
from .entropy import quantile_bar, rank


def activation_percentile(stats: ActivationStats, *, rate: float = 0.1) -> NeuronSet:
    """Neurons whose mean activation in a language exceeds the quantile `1 - rate` of all neurons' means in it.

    The quantile is the value of rank `round((1 - rate) * n)`, as in LAPE; 0.1, the paper's, is its 90th percentile.

    Raises:
        ValueError: fewer than two languages, a language without tokens, or a rate outside (0, 1).

    Source: the activation-percentile neurons of Mondal et al. 2025, arXiv:2503.17456.
    """
    scores = activation_percentile_scores(stats)
    means = scores.values.permute(2, 0, 1)
    rank(rate, means[0].numel(), "rate")
    masks = torch.stack([mean > quantile_bar(mean, 1 - rate, "1 - rate") for mean in means])
    return scores.to_set(masks, rate=rate)


def activation_percentile_scores(stats: ActivationStats) -> NeuronScores:
    """Mean activations as a ranking."""
    at_least_two(stats.languages)
    origin = (stats.model, stats.model_fingerprint)
    return NeuronScores(stats.mean(), stats.languages, "activation_percentile", {}, *origin)
