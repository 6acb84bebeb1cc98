"""Neurons whose weights a language leaves alone when the model is tuned on it."""

from collections.abc import Mapping

from jaxtyping import Float
from torch import Tensor

from ..evidence.weight_change import SMALLEST, relative_change
from ..models.hooked import HookedModel, fingerprint, model_name
from ..neurons import NeuronScores, NeuronSet
from .entropy import scores_by_entropy, select_by_entropy


def parameter_variation(
    base: HookedModel,
    tuned: Mapping[str, HookedModel],
    *,
    top_rate: float = 0.01,
    filter_rate: float = 0.95,
    activation_bar_ratio: float = 0.95,
) -> NeuronSet:
    """Neurons that change little when the model is tuned on one language and much when it is tuned on others.

    Weight of a neuron for a language is its stability, one over the relative change; neurons are chosen from the
    stabilities as LAPE chooses from probabilities, so that low entropy means: stable in few languages.

    Args:
        tuned: for each language, the base model after tuning on that language alone.

    Raises:
        ValueError: fewer than two languages, models of different shape, or weights that are not finite.

    Source: the baseline PV of Tang et al. 2024, arXiv:2402.16438, section 3.
    """
    parameters = {"top_rate": top_rate, "filter_rate": filter_rate, "activation_bar_ratio": activation_bar_ratio}
    masks = select_by_entropy(stability(base, tuned), **parameters)
    origin = (model_name(base), fingerprint(base))
    return NeuronSet(masks, tuple(tuned), "parameter_variation", parameters, *origin)


def parameter_variation_scores(
    base: HookedModel,
    tuned: Mapping[str, HookedModel],
    *,
    filter_rate: float = 0.95,
    activation_bar_ratio: float = 0.95,
) -> NeuronScores:
    """Parameter variation as a ranking, as `lape_scores`."""
    parameters = {"filter_rate": filter_rate, "activation_bar_ratio": activation_bar_ratio}
    values = scores_by_entropy(stability(base, tuned), **parameters)
    origin = (model_name(base), fingerprint(base))
    return NeuronScores(values, tuple(tuned), "parameter_variation", parameters, *origin)


def stability(base: HookedModel, tuned: Mapping[str, HookedModel]) -> Float[Tensor, "layer neuron language"]:
    """One over the relative change of each neuron's weights."""
    return 1 / relative_change(base, tuned).clamp(min=SMALLEST)
