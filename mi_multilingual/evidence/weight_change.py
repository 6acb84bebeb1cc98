"""How much each neuron's weights change when the model is tuned on a language."""

from collections.abc import Mapping

import torch
from jaxtyping import Float
from torch import Tensor

from ..detectors.entropy import at_least_two
from ..models.hooked import HookedModel, is_gated

SMALLEST = 1e-12  # of a change, so that an untouched neuron has a finite stability


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
