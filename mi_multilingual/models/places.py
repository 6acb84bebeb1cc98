"""Where a transformers model has the numbers that the hook points of a hooked model carry."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

import torch
from jaxtyping import Float
from torch import Tensor
from torch.nn import Module
from torch.utils.hooks import RemovableHandle

if TYPE_CHECKING:  # takes seconds to import
    from transformers import PreTrainedModel

HookFunction = Callable[[Tensor, Any], Tensor | None]

ACTIVATED = "mlp.activated"
"""End of the name of act(gate) in a gated MLP, for which TransformerLens has no hook point."""


@dataclass(frozen=True)
class Place:
    """Where a hook's numbers are in the transformers model."""

    module: Module
    at_input: bool
    columns: slice | None = None
    """Which of the module's outputs, where one matrix makes several things."""
    d_head: int | None = None
    """Size of a head, where numbers are ordered by heads."""


def find_places(
    model: Any, hooked_blocks: Sequence[Any], hf_model: PreTrainedModel
) -> tuple[dict[str, Place], list[Module]]:
    """Where the transformers model has what hook points carry, by their names, and its blocks."""
    paths = {id(module): path for path, module in hf_model.named_modules()}
    linears = [m for m in hf_model.modules() if _is_linear(m)]
    places: dict[str, Place] = {}
    blocks = []
    for layer, block in enumerate(hooked_blocks):
        found = _block_places(model, block, linears)
        if model.cfg.gated_mlp and (gate := found["mlp.hook_pre"]) and id(gate.module) in paths:
            mlp = hf_model.get_submodule(paths[id(gate.module)].rpartition(".")[0])
            found[ACTIVATED] = _activation_place(mlp, model.cfg.act_fn)
        found = {name: place for name, place in found.items() if place and id(place.module) in paths}
        if "mlp.hook_post" in found:
            # A block is what its list of blocks knows by a number.
            parts = paths[id(found["mlp.hook_post"].module)].split(".")
            number = next((i for i, part in enumerate(parts) if part.isdecimal()), None)
            if number is not None:
                blocks.append(hf_model.get_submodule(".".join(parts[: number + 1])))
                found["hook_resid_pre"] = Place(blocks[-1], at_input=True)
                found["hook_resid_post"] = Place(blocks[-1], at_input=False)
        places |= {f"blocks.{layer}.{name}": place for name, place in found.items()}
    return places, blocks if len(blocks) == len(hooked_blocks) else []


def _block_places(model: Any, block: Any, linears: Sequence[Module]) -> dict[str, Place | None]:
    """Where one block's hook points are, by the end of their names."""
    matrices = _bridged if hasattr(model, "original_model") else _viewed
    gate = {"mlp.hook_pre": ("gate", False), "mlp.hook_pre_linear": ("in", False)}
    mlp = {**(gate if model.cfg.gated_mlp else {"mlp.hook_pre": ("in", False)}), "mlp.hook_post": ("out", True)}
    # A bridge alone has this hook; natively it is what the MLP writes before any norm behind it.
    mlp["mlp.out.hook_out"] = ("out", False)
    places = {hook: matrices(block, name, at_input, linears) for hook, (name, at_input) in mlp.items()}
    for name in ("q", "k", "v"):
        place = matrices(block, name, False, linears)
        places[f"attn.hook_{name}"] = place and replace(place, d_head=model.cfg.d_head)
    return places


def _activation_place(mlp: Module, name: str) -> Place | None:
    """What the activation function of a gated MLP gives, where that is a module of its own."""
    from transformers.activations import ACT2FN

    kind = type(ACT2FN[name]) if name in ACT2FN else None
    found = [Place(child, at_input=False) for child in mlp.children() if type(child) is kind]
    return found[0] if len(found) == 1 else None


def _bridged(block: Any, name: str, at_input: bool, linears: Sequence[Module]) -> Place | None:
    """The module that a bridge calls by this name."""
    part = getattr(block.attn if name in ("q", "k", "v") else block.mlp, name, None)
    module = getattr(part, "original_component", None)
    return Place(module, at_input) if _is_linear(module) else None


def _is_linear(module: Any) -> bool:
    from transformers.pytorch_utils import Conv1D

    return isinstance(module, torch.nn.Linear | Conv1D)


def _viewed(block: Any, name: str, at_input: bool, linears: Sequence[Module]) -> Place | None:
    """The module of whose weights the hooked model's matrix is a view."""
    if name in ("q", "k", "v"):
        grouped = "_" if name != "q" and hasattr(block.attn, "_W_K") else ""
        weight = getattr(block.attn, f"{grouped}W_{name.upper()}")
    else:
        weight = getattr(block.mlp, f"W_{name}")
    for module in linears:
        offset = weight.data_ptr() - module.weight.data_ptr()
        if 0 <= offset < module.weight.nbytes and weight.device == module.weight.device:
            return Place(module, at_input, _columns_of(weight, module, offset)) if _fits(weight, module) else None
    return None


def _fits(weight: Tensor, module: Module) -> bool:
    """Whether the matrix is the module's whole weight, or some rows of a Linear's."""
    if weight.numel() == module.weight.numel():
        return True
    return isinstance(module, torch.nn.Linear) and weight.transpose(-1, -2).is_contiguous()


def _columns_of(weight: Tensor, module: Module, offset: int) -> slice | None:
    """Which of the module's outputs the matrix makes; None for all."""
    if weight.numel() == module.weight.numel():
        return None
    width = module.weight.shape[1]
    first = offset // weight.element_size() // width
    return slice(first, first + weight.numel() // width)


def watched_shape(first: Sequence[Module], stack: ExitStack) -> list[torch.Size]:
    """A list that holds (batch, pos) of the pass that is running, seen at the first block."""
    shape: list[torch.Size] = [torch.Size()]

    def watch(module: Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        shape[0] = residual_of(args, kwargs).shape[:2]

    for block in first:
        stack.callback(block.register_forward_pre_hook(watch, with_kwargs=True).remove)
    return shape


def residual_of(args: tuple[Any, ...], kwargs: dict[str, Any]) -> Float[Tensor, "batch pos d_model"]:
    """What comes into a block, among its arguments."""
    return next(x for x in (*args, *kwargs.values()) if isinstance(x, Tensor) and x.ndim == 3)


def installed(place: Place, function: HookFunction, shape: list[torch.Size]) -> RemovableHandle:
    """The function on a module of the transformers model."""

    def new(whole: Tensor) -> Tensor | None:
        given = whole if place.columns is None else whole[..., place.columns]
        # Some models run their MLPs on (batch * pos) rows.
        carried = given if given.ndim == 3 else given.unflatten(0, shape[0])
        carried = carried if place.d_head is None else carried.unflatten(-1, (-1, place.d_head))
        changed = function(carried, None)
        if changed is None or changed is carried:
            return None
        if place.columns is None:
            return changed.reshape(whole.shape)
        out = whole.clone()
        out[..., place.columns] = changed.reshape(given.shape)
        return out

    def before(module: Module, args: tuple[Any, ...]) -> tuple[Any, ...] | None:
        changed = new(args[0])
        return None if changed is None else (changed, *args[1:])

    def after(module: Module, args: tuple[Any, ...], output: Any) -> Any:
        changed = new(output[0] if isinstance(output, tuple) else output)
        if changed is None:
            return None
        return (changed, *output[1:]) if isinstance(output, tuple) else changed

    if place.at_input:
        return place.module.register_forward_pre_hook(before)
    return place.module.register_forward_hook(after)
