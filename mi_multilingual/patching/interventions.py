"""Neurons switched off, or held at a value, while the model runs."""

from collections.abc import Callable, Iterator
from contextlib import contextmanager

import torch
from jaxtyping import Bool, Float
from torch import Tensor

from ..models import HookedModel, fingerprint
from ..models import site as site_of
from ..neurons import NeuronSet
from ..recording import ActivationStats

Hook = Callable[[Tensor, object], Tensor]


@contextmanager
def ablate(
    model: HookedModel, neurons: NeuronSet, *, mean_of: tuple[ActivationStats, str] | None = None
) -> Iterator[HookedModel]:
    """Within the block, every neuron of the set (all its groups together) is zero at every position.

    Also during generation, with other hooks, and nested; the hooks come off at the end and when the body raises.

    Args:
        mean_of: statistics recorded at site "post" and a language: hold each neuron at its mean there instead of zero.

    Raises:
        ValueError: neurons of another model, or statistics of another model or site.
    """
    check_fits(model, neurons)
    values = torch.zeros(neurons.masks.shape[1:]) if mean_of is None else mean_values(model, *mean_of)
    with model.hooks(fwd_hooks=ablation_hooks(model, neurons.union(), values)):
        yield model


def ablation_hooks(
    model: HookedModel, mask: Bool[Tensor, "layer neuron"], values: Float[Tensor, "layer neuron"]
) -> list[tuple[str, Hook]]:
    """Hooks that hold the chosen neurons at `values`; layers without one get none."""
    post = site_of(model, "post")
    device = model.cfg.device

    def hold(chosen: Bool[Tensor, " neuron"], value: Float[Tensor, " neuron"]) -> Hook:
        def hook(activation: Float[Tensor, "batch pos neuron"], hook: object) -> Float[Tensor, "batch pos neuron"]:
            return torch.where(chosen, value.to(activation.dtype), activation)

        return hook

    layers = mask.any(dim=1).nonzero().flatten().tolist()
    return [(post.hook_name(layer), hold(mask[layer].to(device), values[layer].to(device))) for layer in layers]


def mean_values(model: HookedModel, stats: ActivationStats, language: str) -> Float[Tensor, "layer neuron"]:
    """Mean activation in the language at "post", the site that interventions write to."""
    if stats.site != "post":
        raise ValueError(
            f"mean ablation writes to site 'post', the statistics are of {stats.site!r}; record(site='post')"
        )
    if stats.model_fingerprint != fingerprint(model):
        raise ValueError(f"the statistics were recorded on another model ({stats.model!r}); record this one")
    return stats.take([language]).mean()[..., 0].float()


def check_fits(model: HookedModel, neurons: NeuronSet) -> None:
    """Raise unless the set can belong to the model."""
    shape = (model.cfg.n_layers, model.cfg.d_mlp)
    if tuple(neurons.masks.shape[1:]) != shape:
        raise ValueError(
            f"the neuron set is for {tuple(neurons.masks.shape[1:])} (layers, neurons a layer), the model has {shape}; "
            "load the model the set was made for"
        )
    if neurons.model_fingerprint and neurons.model_fingerprint != fingerprint(model):
        raise ValueError(
            f"the neuron set was made for other weights ({neurons.model!r}); identify neurons of this model"
        )
