"""Neurons whose weights a language leaves alone when the model is tuned on it."""

from jaxtyping import Float
from torch import Tensor

from ..evidence.weight_change import SMALLEST, WeightChange
from ..neurons import NeuronScores, NeuronSet
from .entropy import scores_by_entropy, select_by_entropy


def parameter_variation(
    change: WeightChange, *, rate: float = 0.01, filter_rate: float = 0.95, activation_bar_ratio: float = 0.95
) -> NeuronSet:
    """Neurons that change little when the model is tuned on one language and much when it is tuned on others.

    Weight of a neuron for a language is its stability, one over the relative change; neurons are chosen from the
    stabilities as LAPE chooses from probabilities, so that low entropy means: stable in few languages. Parameters and
    errors are those of `lape`.

    Args:
        change: what `record_weight_change` returned.

    Source: the baseline PV of Tang et al. 2024, arXiv:2402.16438, section 3.
    """
    parameters = {"rate": rate, "filter_rate": filter_rate, "activation_bar_ratio": activation_bar_ratio}
    masks = select_by_entropy(stability(change), **parameters)
    origin = (change.model, change.model_fingerprint)
    return NeuronSet(masks, change.languages, "parameter_variation", parameters, *origin)


def parameter_variation_scores(
    change: WeightChange, *, filter_rate: float = 0.95, activation_bar_ratio: float = 0.95
) -> NeuronScores:
    """Parameter variation as a ranking, as `lape_scores`."""
    parameters = {"filter_rate": filter_rate, "activation_bar_ratio": activation_bar_ratio}
    values = scores_by_entropy(stability(change), **parameters)
    origin = (change.model, change.model_fingerprint)
    return NeuronScores(values, change.languages, "parameter_variation", parameters, *origin)


def stability(change: WeightChange) -> Float[Tensor, "layer neuron language"]:
    """One over the relative change of each neuron's weights; finite for a neuron that was not touched."""
    return 1 / change.relative.clamp(min=SMALLEST)
