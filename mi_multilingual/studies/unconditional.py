"""What does a model write from nothing when the neurons of a language are held at a value?"""

from collections.abc import Mapping, Sequence
from typing import Any

import pandas as pd
from jaxtyping import Float
from torch import Tensor

from ..models.hooked import HookedModel
from ..neurons import NeuronSet
from ..patching.changes import Intervention
from ..patching.conditions import check_groups, with_controls
from .steering import intact, outputs


def unconditional_study(
    model: HookedModel,
    neurons: NeuronSet,
    values: Mapping[str, Float[Tensor, "layer neuron"]],
    *,
    n_texts: int = 20,
    site: str = "gate",
    seeds: Sequence[int] = (0, 1, 2),
    progress: bool = True,
    **decoding: Any,
) -> pd.DataFrame:
    """Texts drawn from BOS with each language's neurons held at a value (Kojima et al. 2024, section 4).

    Args:
        values: language -> what its neurons are held at, such as
            dict(zip(texts.languages, medians(texts).unbind(-1))) or the same of stats.mean(), read at `site`.
        n_texts: number of texts per language and condition.
        decoding: options of `generate`; `temperature` is 1 where it is not given.

    Returns:
        columns source (""), target, condition, seed, prompt (""), continuation, found.

    Raises:
        ValueError: before anything runs: a language without neurons, values that do not fit or are not finite,
            neurons of another model, greedy decoding, or no texts.
    """
    drawing = {"temperature": 1.0, **decoding}
    if n_texts < 1 or drawing["temperature"] == 0:
        raise ValueError(
            f"n_texts must be at least 1 and temperature above 0, got {n_texts} and {drawing['temperature']}; greedy "
            "texts would all be the same"
        )
    if not values:
        raise ValueError("values must hold at least one language, got none; give {language: (layer, neuron) table}")
    check_groups(model, neurons.take(list(values)))

    def held(one: NeuronSet) -> tuple[Intervention, ...]:
        return (Intervention("set", one, values[one.groups[0]], site),)

    steered = intact([("", k) for k in values])
    for condition in with_controls(neurons, seeds, change=held, groups=list(values)):
        steered[condition] = [("", condition.labels["group"])]
    return outputs(model, {"": ("",) * n_texts}, steered, neurons.groups, progress, drawing)
