"""Language activation value entropy: LAPE on mean activations instead of probabilities."""

from jaxtyping import Float
from torch import Tensor

from ..corpora import at_least_two
from ..evidence.activations import ActivationStats
from ..neurons import NeuronScores, NeuronSet
from .entropy import scores_by_entropy, select_by_entropy


def lave(
    stats: ActivationStats, *, rate: float = 0.01, filter_rate: float = 0.95, activation_bar_ratio: float = 0.95
) -> NeuronSet:
    """Neurons whose mean activation is large in few languages, chosen as LAPE chooses.

    Means below zero count as zero: an entropy needs weights that are not negative. Parameters and errors are those of
    `lape`.

    Source: the baseline LAVE of Tang et al. 2024, arXiv:2402.16438, section 3.
    """
    parameters = {"rate": rate, "filter_rate": filter_rate, "activation_bar_ratio": activation_bar_ratio}
    masks = select_by_entropy(_clipped_mean(stats), **parameters)
    return NeuronSet(masks, stats.languages, "lave", parameters, stats.model, stats.model_fingerprint)


def lave_scores(
    stats: ActivationStats, *, filter_rate: float = 0.95, activation_bar_ratio: float = 0.95
) -> NeuronScores:
    """LAVE as a ranking, as `lape_scores`."""
    parameters = {"filter_rate": filter_rate, "activation_bar_ratio": activation_bar_ratio}
    values = scores_by_entropy(_clipped_mean(stats), **parameters)
    return NeuronScores(values, stats.languages, "lave", parameters, stats.model, stats.model_fingerprint)


def _clipped_mean(stats: ActivationStats) -> Float[Tensor, "layer neuron language"]:
    """Mean activation, at least 0, float64."""
    at_least_two(stats.languages)
    return stats.mean().clamp(min=0)
