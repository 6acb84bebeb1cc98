"""Language activation probability, the plain threshold that LAPE is compared with."""

from ..evidence.activations import ActivationStats
from ..neurons import NeuronScores, NeuronSet
from .lape import checked_probability


def lap(stats: ActivationStats, *, threshold: float = 0.95) -> NeuronSet:
    """Neurons active at more than `threshold` of a language's tokens, whatever they do in other languages.

    Raises:
        ValueError: fewer than two languages, a language without tokens, or a threshold outside [0, 1).

    Source: the baseline LAP of Tang et al. 2024, arXiv:2402.16438, section 3.
    """
    if not 0 <= threshold < 1:
        raise ValueError(f"threshold={threshold} is no probability that can be exceeded; give one in [0, 1)")
    scores = lap_scores(stats)
    return scores.to_set((scores.values > threshold).permute(2, 0, 1), threshold=threshold)


def lap_scores(stats: ActivationStats) -> NeuronScores:
    """Activation probabilities as a ranking."""
    probability = checked_probability(stats)
    return NeuronScores(probability, stats.languages, "lap", {}, stats.model, stats.model_fingerprint)
