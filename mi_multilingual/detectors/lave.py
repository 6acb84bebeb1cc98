"""Language activation value entropy: LAPE on mean activations instead of probabilities."""

from jaxtyping import Float
from torch import Tensor

from ..corpora import at_least_two
from ..evidence.activations import ActivationStats
from ..neurons import NeuronScores, NeuronSet
from .entropy import scores_by_entropy, select_by_entropy

MEANS = ("clipped", "absolute")


def lave(
    stats: ActivationStats,
    *,
    rate: float = 0.01,
    filter_rate: float = 0.95,
    activation_bar_ratio: float = 0.95,
    means: str = "clipped",
) -> NeuronSet:
    """Neurons whose mean activation is large in few languages, chosen as LAPE chooses.

    Other parameters and errors are those of `lape`.

    Args:
        means: how a mean below zero counts, since an entropy needs weights that are not negative: "clipped", as zero;
            "absolute", by its size. The paper does not say.

    Source: the baseline LAVE of Tang et al. 2024, arXiv:2402.16438, section 3.
    """
    rates = {"rate": rate, "filter_rate": filter_rate, "activation_bar_ratio": activation_bar_ratio}
    masks = select_by_entropy(_weights(stats, means), **rates)
    return NeuronSet(masks, stats.languages, "lave", {**rates, "means": means}, stats.model, stats.model_fingerprint)


def lave_scores(
    stats: ActivationStats, *, filter_rate: float = 0.95, activation_bar_ratio: float = 0.95, means: str = "clipped"
) -> NeuronScores:
    """LAVE as a ranking, as `lape_scores`."""
    bars = {"filter_rate": filter_rate, "activation_bar_ratio": activation_bar_ratio}
    values = scores_by_entropy(_weights(stats, means), **bars)
    return NeuronScores(values, stats.languages, "lave", {**bars, "means": means}, stats.model, stats.model_fingerprint)


def _weights(stats: ActivationStats, means: str) -> Float[Tensor, "layer neuron language"]:
    """Mean activation as a number that is not negative, float64."""
    if means not in MEANS:
        raise ValueError(f"means must be one of {', '.join(MEANS)}, got {means!r}")
    at_least_two(stats.languages)
    return stats.mean().clamp(min=0) if means == "clipped" else stats.mean().abs()
