"""Neurons whose weights stand out by how much they change when the model is tuned on a language."""

from jaxtyping import Float
from torch import Tensor

from ..evidence.weight_change import SMALLEST, WeightChange
from ..neurons import NeuronScores, NeuronSet
from .entropy import scores_by_entropy, select_by_entropy

MARKS = ("smallest", "largest")


def parameter_variation(
    change: WeightChange,
    *,
    rate: float = 0.01,
    filter_rate: float = 0.95,
    activation_bar_ratio: float = 0.95,
    mark: str = "smallest",
) -> NeuronSet:
    """Neurons that change little when the model is tuned on one language and much when it is tuned on others.

    Neurons are chosen from weights as LAPE chooses from probabilities, so that low entropy means: a weight for few
    languages. Parameters and errors are those of `lape`.

    Args:
        change: what `record_weight_change` returned.
        mark: the change that marks a language. "smallest", as published: a neuron's weight for a language is its
            stability, one over the relative change. "largest": the weight is the relative change itself.

    Source: the baseline PV of Tang et al. 2024, arXiv:2402.16438, section 3; "largest" is ours.
    """
    parameters = {"rate": rate, "filter_rate": filter_rate, "activation_bar_ratio": activation_bar_ratio}
    masks = select_by_entropy(_weights(change, mark), **parameters)
    return NeuronSet(masks, change.languages, "parameter_variation", {**parameters, "mark": mark}, *_origin(change))


def parameter_variation_scores(
    change: WeightChange, *, filter_rate: float = 0.95, activation_bar_ratio: float = 0.95, mark: str = "smallest"
) -> NeuronScores:
    """Parameter variation as a ranking, as `lape_scores`."""
    parameters = {"filter_rate": filter_rate, "activation_bar_ratio": activation_bar_ratio}
    values = scores_by_entropy(_weights(change, mark), **parameters)
    return NeuronScores(values, change.languages, "parameter_variation", {**parameters, "mark": mark}, *_origin(change))


def _weights(change: WeightChange, mark: str) -> Float[Tensor, "layer neuron language"]:
    if mark not in MARKS:
        raise ValueError(f"mark must be one of {', '.join(MARKS)}, got {mark!r}")
    return stability(change) if mark == "smallest" else change.relative


def _origin(change: WeightChange) -> tuple[str, str]:
    return change.model, change.model_fingerprint


def stability(change: WeightChange) -> Float[Tensor, "layer neuron language"]:
    """One over the relative change of each neuron's weights; finite for a neuron that was not touched."""
    return 1 / change.relative.clamp(min=SMALLEST)
