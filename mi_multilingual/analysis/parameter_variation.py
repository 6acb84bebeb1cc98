"""Neurons whose weights a language leaves alone when the model is tuned on it."""

from collections.abc import Mapping

import torch
from jaxtyping import Float
from torch import Tensor

from ..models import HookedModel, fingerprint, is_gated, model_name
from ..neurons import NeuronScores, NeuronSet
from .lape import at_least_two, scores_by_entropy, select_by_entropy

SMALLEST = 1e-12  # of a change, so that an untouched neuron has a finite stability


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


def relative_change(base: HookedModel, tuned: Mapping[str, HookedModel]) -> Float[Tensor, "layer neuron language"]:
    """|tuned - base| / |base| of a neuron's weights (in, gate where there is one, and out, as one vector), float64."""
    at_least_two(tuple(tuned))
    before = neuron_vectors(base)
    size = before.norm(dim=-1)
    changes = []
    for language, model in tuned.items():
        after = neuron_vectors(model)
        if after.shape != before.shape:
            raise ValueError(
                f"the model tuned on {language!r} has neurons of shape {tuple(after.shape)}, the base model "
                f"{tuple(before.shape)}; give checkpoints of one model"
            )
        change = (after - before).norm(dim=-1)
        if not change.isfinite().all():
            layer, neuron = (~change.isfinite()).nonzero()[0].tolist()
            raise ValueError(f"the weights of neuron {layer}.{neuron} are not finite after tuning on {language!r}")
        changes.append(torch.where(size > 0, change / size.clamp(min=SMALLEST), 0.0))
    return torch.stack(changes, dim=-1)


def neuron_vectors(model: HookedModel) -> Float[Tensor, "layer neuron weight"]:
    """Each neuron's weights as one vector, float64."""
    names = ("W_gate", "W_in") if is_gated(model) else ("W_in",)
    rows = []
    for layer in range(model.cfg.n_layers):
        mlp = model.blocks[layer].mlp
        columns = [getattr(mlp, name).detach().T for name in names]
        rows.append(torch.cat([*columns, mlp.W_out.detach()], dim=1).double().cpu())
    return torch.stack(rows)
