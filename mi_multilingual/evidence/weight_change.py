"""How much each neuron's weights change when the model is tuned on a language."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor

from ..corpora import at_least_two
from ..display import Summarised, size
from ..models.hooked import HookedModel, fingerprint, is_gated, model_name, weight_of

SMALLEST = 1e-12  # of a weight vector, below which its relative change is taken to be none


@dataclass(frozen=True, eq=False, repr=False)
class WeightChange(Summarised):
    """Relative change of each neuron's weights when the model is tuned on each language alone."""

    relative: Float[Tensor, "layer neuron language"]
    """|tuned - base| / |base| of the neuron's weights (in, gate where there is one, out, as one vector), float64."""
    languages: tuple[str, ...]
    model: str
    model_fingerprint: str

    def summary(self) -> tuple[str, Mapping[str, Sequence[Any]]]:
        head = f"{self.model}, {size(self.relative)}"
        return head, {"tuned on": self.languages, "mean relative change": self.relative.mean(dim=(0, 1)).tolist()}


def record_weight_change(base: HookedModel, tuned: Mapping[str, HookedModel]) -> WeightChange:
    """Relative change of each neuron's weights by tuning on each language.

    Args:
        tuned: for each language, the base model after tuning on that language alone.

    Raises:
        ValueError: fewer than two languages, models of different shape, or weights that are not finite.

    Source: the baseline PV of Tang et al. 2024, arXiv:2402.16438, section 3.
    """
    at_least_two(tuple(tuned))
    before = _neuron_vectors(base)
    size = before.norm(dim=-1)
    changes = []
    for language, model in tuned.items():
        after = _neuron_vectors(model)
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
    return WeightChange(torch.stack(changes, dim=-1), tuple(tuned), model_name(base), fingerprint(base))


def _neuron_vectors(model: HookedModel) -> Float[Tensor, "layer neuron weight"]:
    """Each neuron's weights as one vector, float64."""
    names = ("W_gate", "W_in") if is_gated(model) else ("W_in",)
    rows = []
    for layer in range(model.cfg.n_layers):
        columns = [weight_of(model, f"blocks.{layer}.mlp.{name}").T for name in names]
        rows.append(torch.cat([*columns, weight_of(model, f"blocks.{layer}.mlp.W_out")], dim=1).double().cpu())
    return torch.stack(rows)
