"""Neurons whose mean activation in a language is among the highest of the model."""

import torch

from ..evidence.activations import ActivationStats
from ..neurons import NeuronScores, NeuronSet
from .entropy import at_least_two, quantile_bar


def activation_percentile(stats: ActivationStats, *, percentile: float = 0.9) -> NeuronSet:
    """Neurons whose mean activation in a language exceeds that `percentile` of all neurons' means in the language.

    The percentile is the value of rank `round(percentile * n)`, as in LAPE.

    Raises:
        ValueError: fewer than two languages, a language without tokens, or a percentile outside (0, 1].

    Source: the activation-percentile neurons of Mondal et al. 2025, arXiv:2503.17456.
    """
    scores = activation_percentile_scores(stats)
    means = scores.values.permute(2, 0, 1)
    masks = torch.stack([mean > quantile_bar(mean, percentile, "percentile") for mean in means])
    return scores.to_set(masks, percentile=percentile)


def activation_percentile_scores(stats: ActivationStats) -> NeuronScores:
    """Mean activations as a ranking."""
    at_least_two(stats.languages)
    origin = (stats.model, stats.model_fingerprint)
    return NeuronScores(stats.mean(), stats.languages, "activation_percentile", {}, *origin)
