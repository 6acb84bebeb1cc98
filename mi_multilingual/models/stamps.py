"""Whether two models still hold the parameters that they shared, or had alike, when they were loaded."""

from __future__ import annotations

from collections.abc import Container, Sequence
from dataclasses import dataclass
from itertools import chain, count
from math import gcd
from typing import TYPE_CHECKING, Any

import torch
from jaxtyping import Float
from torch import Tensor
from torch.nn import Module

if TYPE_CHECKING:  # takes seconds to import
    from transformers import PreTrainedModel

_SUMMED, _SAMPLED = 2**18, 2**15
"""Numbers of a parameter up to which all are summed to see changes, and the most of a larger one."""

_EACH = 4
"""Numbers of each row and of each column that are enough to see a change of it."""


@dataclass(frozen=True)
class Stamp:
    """What tells whether a parameter is the one it was when the model was loaded."""

    parameters: dict[str, Any]
    name: str
    address: int
    version: int | None
    """None where both models share the numbers, so that a change concerns both."""
    total: float | None
    """A sum of them, since the version does not tell of changes through `.data`."""

    def is_in_place(self) -> bool:
        tensor = self.parameters.get(self.name)
        return tensor is not None and tensor.data_ptr() == self.address and self.version in (None, tensor._version)


def hold(all_stamps: Sequence[Stamp]) -> bool:
    """Whether all parameters are what they were."""
    if not all(stamp.is_in_place() for stamp in all_stamps):
        return False
    own = [stamp for stamp in all_stamps if stamp.total is not None]
    # All sums are on their way before the first is waited for.
    totals = [sampled_sum(stamp.parameters[stamp.name]) for stamp in own]
    return all(float(total) == stamp.total for stamp, total in zip(own, totals, strict=True))


def sampled_sum(tensor: Tensor) -> Float[Tensor, ""]:
    """The sum of the numbers; in large matrices of a sample of them, from every row and column."""
    tensor = tensor.detach()
    # In the order in which they are stored, since turning a matrix round would copy it.
    turned = tensor.ndim > 1 and not tensor.is_contiguous()
    tensor = tensor.transpose(-1, -2) if turned else tensor
    flat = tensor.reshape(-1)
    if len(flat) > _SUMMED:
        # A step that has no divisor in common with the width comes by all columns.
        least = len(flat) // min(_SAMPLED, _EACH * max(tensor.shape))
        step = next(n for n in count(max(1, least)) if gcd(n, tensor.shape[-1]) == 1)
        flat = flat[::step]
    return flat.sum(dtype=torch.float32 if flat.device.type == "mps" else torch.float64)


def _stamp(module: Module, name: str, *, shared: bool) -> Stamp:
    parameter: Any = module._parameters[name]
    numbers = (None, None) if shared or parameter.is_meta else (parameter._version, float(sampled_sum(parameter)))
    return Stamp(module._parameters, name, parameter.data_ptr(), *numbers)


def stamps(model: Any, hf_model: PreTrainedModel, left_out: Container[int]) -> list[Stamp]:
    """Stamps of the parameters of both models.

    Args:
        left_out: ids of parameters that may change.
    """
    mine, its = ({p.untyped_storage().data_ptr() for p in m.parameters()} for m in (model, hf_model))
    return [
        _stamp(module, name, shared=parameter.untyped_storage().data_ptr() in mine & its)
        for module in chain(model.modules(), hf_model.modules())
        for name, parameter in module._parameters.items()
        if parameter is not None and id(parameter) not in left_out
    ]


def bridge_stamps(modules: Sequence[Module], hf_model: PreTrainedModel) -> list[Stamp]:
    """Stamps where a bridge runs copies of parts of a matrix, such as queries, keys and values that one matrix makes.

    A change of a copy is none of the matrix, and the other way round.
    """
    its = {id(module) for module in hf_model.modules()}
    linears = [m for m in modules if isinstance(m, torch.nn.Linear) and id(m) not in its]
    copies = {id(m) for m in linears}
    holders = [m for m in modules if any(id(_original(child)) in copies for child in m.children())]
    for holder in holders:
        rest = {id(_original(getattr(holder, name, None))) for name in ("o", "out")}
        linears += [m for m in holder.modules() if id(m) in its and id(m) not in rest and m._parameters]
    return [_stamp(m, name, shared=False) for m in linears for name, p in m._parameters.items() if p is not None]


def _original(component: Any) -> Any:
    """What a bridge has put its component around."""
    return getattr(component, "original_component", None)
