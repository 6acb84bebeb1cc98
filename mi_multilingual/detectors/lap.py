"""Language activation probability, the plain threshold that LAPE is compared with."""

from ..evidence.activations import ActivationStats
from ..neurons import NeuronScores, NeuronSet
from .lape import checked_probability

_PUBLISHED_THRESHOLD = 0.95


def lap(stats: ActivationStats, *, rate: float | None = None, threshold: float | None = None) -> NeuronSet:
    """Neurons active at more than `threshold` of a language's tokens, whatever they do in other languages.

    Args:
        rate: instead of a threshold, the share of all neurons that every language gets, those most often active.
        threshold: 0.95, the paper's, where no rate is given.

    Raises:
        ValueError: fewer than two languages, a language without tokens, rate and threshold together, or one of them
            outside its range.

    Source: the baseline LAP of Tang et al. 2024, arXiv:2402.16438, section 3.
    """
    if rate is not None and threshold is not None:
        raise ValueError(f"lap takes a rate or a threshold, got rate={rate} and threshold={threshold}; leave one out")
    scores = lap_scores(stats)
    if rate is not None:
        return scores.top_share(rate)
    bar = _PUBLISHED_THRESHOLD if threshold is None else threshold
    if not 0 <= bar < 1:
        raise ValueError(f"threshold must be a probability that can be exceeded, from 0 to below 1, got {bar}")
    return scores.to_set((scores.values > bar).permute(2, 0, 1), threshold=bar)


def lap_scores(stats: ActivationStats) -> NeuronScores:
    """Activation probabilities as a ranking."""
    probability = checked_probability(stats)
    return NeuronScores(probability, stats.languages, "lap", {}, stats.model, stats.model_fingerprint)
