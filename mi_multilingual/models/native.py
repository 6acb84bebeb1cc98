"""Passes by the transformers model behind a hooked one: the same weights, without the cost of hooks nobody uses.

A HookedTransformer from `load_model` holds views of a transformers model's weights; a TransformerBridge is built around
one. That model runs a pass several times faster, so it does wherever it computes the same: as long as the weights are
still shared, and no hooks are installed but those of this package.
"""

from __future__ import annotations

import copy
import operator
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager, nullcontext
from dataclasses import dataclass, field, replace
from itertools import chain
from typing import Any

import torch
from torch import Tensor
from torch.nn import Module
from torch.utils.hooks import RemovableHandle
from transformers import PreTrainedModel
from transformers.pytorch_utils import Conv1D

from .stamps import Stamp, bridge_stamps, hold, stamps

HookFunction = Callable[[Tensor, Any], Tensor | None]

_ATTRIBUTE = "_native"


@dataclass(frozen=True)
class _Place:
    """Where a hook's numbers are in the transformers model."""

    module: Module
    at_input: bool
    columns: slice | None = None
    """Which of the module's outputs, where one matrix makes several things."""
    d_head: int | None = None
    """Size of a head, where numbers are ordered by heads."""


@dataclass(frozen=True)
class _Wrapped:
    """A module of the transformers model that a bridge has put another one around."""

    parent: Module
    name: str
    wrapper: Module
    original: Module


@dataclass(frozen=True)
class _Lent:
    """A linear map without a bias, and the hooked MLP that has one in its place."""

    module: Module
    mlp: Module

    def is_changed(self) -> bool:
        return bool(self.mlp.b_out.any())


@dataclass(frozen=True)
class _InForce:
    """Hooks installed on the hooked model that a native pass must have too."""

    hooks: tuple[tuple[str, HookFunction], ...]
    enter: Callable[..., None] | None
    ids: frozenset[int]


@dataclass
class Native:
    """The transformers model behind a hooked one."""

    hf_model: PreTrainedModel
    model: Any
    modules: list[Module]
    """All of the hooked model, in which hooks can be installed."""
    at_rest: frozenset[int]
    """Hooks that were there at loading, which a bridge's own work needs."""
    wrapped: list[_Wrapped]
    places: dict[str, _Place]
    first_block: Module | None
    stamps: list[Stamp] = field(default_factory=list)
    lent: list[_Lent] = field(default_factory=list)
    in_force: list[_InForce] = field(default_factory=list)

    def stands_in(self) -> bool:
        """Whether a native pass computes what a hooked one does."""
        mine = self.at_rest.union(*(hooks.ids for hooks in self.in_force))
        now = list(self.model.modules())
        if len(now) != len(self.modules) or not all(map(operator.is_, now, self.modules)):
            return False
        return _hook_ids(self.modules) == mine and hold(self.stamps)


def attach(model: Any, hf_model: PreTrainedModel) -> None:
    """Let a hooked model use the transformers model that it shares its weights with."""
    wrapped, blocks = list(_wrapped_modules(hf_model)), list(model.blocks)
    with _unwrapped(wrapped):
        places, first_block = _places(model, blocks, hf_model)
    modules = list(model.modules())
    native = Native(hf_model, model, modules, _hook_ids(modules), wrapped, places, first_block)
    if not hasattr(model, "original_model"):
        native.lent = _lent_biases(model, places)
        native.stamps = stamps(model, hf_model, {id(bias.mlp.b_out) for bias in native.lent})
    else:
        with _unwrapped(wrapped):
            native.stamps = bridge_stamps(modules, hf_model)
    # Not by attribute: a module's parts are moved, saved and counted with it.
    model.__dict__[_ATTRIBUTE] = native


def native_of(model: Any) -> Native | None:
    return model.__dict__.get(_ATTRIBUTE)


def takes_padding(model: Any) -> bool:
    """Whether prompts of several lengths may run together, padded at the left.

    Only transformers hides padding in all architectures, and changes at some positions count from a row's beginning.
    """
    native = native_of(model)
    return native is not None and native.stands_in() and all(entry.enter is None for entry in native.in_force)


def copied(model: Any) -> Any:
    """A copy of the model without hooks, which shares nothing with the original."""
    native = native_of(model)
    if native is None or hasattr(model, "original_model"):
        whole = copy.deepcopy(model)
    else:
        whole = copy.deepcopy(model, _copied_views(model, native.hf_model))
    whole.reset_hooks()
    if native is not None:
        attach(whole, native_of(whole).hf_model)
    return whole


def _copied_views(model: Any, hf_model: PreTrainedModel) -> dict[int, Any]:
    """What `deepcopy` is to take for copied: parameters that are views stay views, of the other model's copy."""
    known: dict[int, Any] = {}
    known[id(hf_model)] = copied_model = copy.deepcopy(hf_model, known)
    copies = zip(hf_model.parameters(), copied_model.parameters(), strict=True)
    owners = {old.untyped_storage().data_ptr(): (old, new) for old, new in copies}
    for view in model.parameters():
        old, new = owners.get(view.untyped_storage().data_ptr(), (None, None))
        if old is not None:
            start = view.storage_offset() - old.storage_offset() + new.storage_offset()
            data = new.detach().as_strided(view.shape, view.stride(), start)
            known[id(view)] = torch.nn.Parameter(data, requires_grad=view.requires_grad)
    return known


@contextmanager
def native_pass(model: Any, hooks: Sequence[tuple[str, HookFunction]] = ()) -> Iterator[PreTrainedModel | None]:
    """Within the block, the transformers model with the hooks in force and these; None where it cannot stand in.

    Args:
        hooks: names of the hooked model's hook points, and what to call with the numbers there and None.
    """
    native = native_of(model)
    asked = [*(h for entry in native.in_force for h in entry.hooks), *hooks] if native else []
    if native is None or any(name not in native.places for name, _ in asked) or not native.stands_in():
        yield None
        return
    with ExitStack() as stack:
        stack.enter_context(_unwrapped(native.wrapped))
        stack.enter_context(_with_biases(native.lent))
        if native.first_block is not None:
            shape = _watched_shape(native.first_block, stack)
            for entry in native.in_force:
                if entry.enter is not None:
                    handle = native.first_block.register_forward_pre_hook(entry.enter, with_kwargs=True)
                    stack.callback(handle.remove)
            for name, function in asked:
                stack.callback(_installed(native.places[name], function, shape).remove)
        yield native.hf_model


@contextmanager
def in_force(
    model: Any, hooks: Sequence[tuple[str, HookFunction]], enter: Callable[..., None] | None = None
) -> Iterator[None]:
    """Within the block, the hooks act on every pass of the model, hooked or native.

    Args:
        enter: called before the first block with its arguments, as a forward pre-hook with keywords is.
    """
    native = native_of(model)
    before = _hook_ids(native.modules) if native else frozenset()
    handle = model.blocks[0].register_forward_pre_hook(enter, with_kwargs=True) if enter else None
    try:
        with model.hooks(fwd_hooks=list(hooks)) if hooks else nullcontext():
            if native is None:
                yield
                return
            entry = _InForce(tuple(hooks), enter, _hook_ids(native.modules) - before)
            native.in_force.append(entry)
            try:
                yield
            finally:
                native.in_force.remove(entry)
    finally:
        if handle is not None:
            handle.remove()


def _hook_ids(modules: Sequence[Module]) -> frozenset[int]:
    return frozenset(
        chain.from_iterable((*m._forward_hooks, *m._forward_pre_hooks, *m._backward_hooks) for m in modules)
    )


def _lent_biases(model: Any, places: dict[str, _Place]) -> list[_Lent]:
    """The output biases of MLPs that have none in the transformers model; they are zero at first."""
    found = []
    for layer in range(model.cfg.n_layers):
        place, mlp = places.get(f"blocks.{layer}.mlp.hook_post"), model.blocks[layer].mlp
        if place is not None and place.module.bias is None:
            found.append(_Lent(place.module, mlp))
    return found


def _wrapped_modules(module: Module) -> Iterator[_Wrapped]:
    for name, child in list(module._modules.items()):
        if child is None:
            continue
        original = getattr(child, "original_component", None)
        if original is not None:
            yield _Wrapped(module, name, child, original)
        yield from _wrapped_modules(child if original is None else original)


@contextmanager
def _unwrapped(wrapped: Sequence[_Wrapped]) -> Iterator[None]:
    """Within the block, the transformers model has its own modules where a bridge's stood."""
    try:
        for w in wrapped:
            w.parent._modules[w.name] = w.original
        yield
    finally:
        for w in wrapped:
            w.parent._modules[w.name] = w.wrapper


@contextmanager
def _with_biases(lent: Sequence[_Lent]) -> Iterator[None]:
    """Within the block, biases that were written into the hooked model are there in the transformers model too."""
    changed = [bias for bias in lent if bias.is_changed()]
    try:
        for bias in changed:
            bias.module.bias = bias.mlp.b_out
        yield
    finally:
        for bias in changed:
            bias.module.bias = None


def _places(
    model: Any, hooked_blocks: Sequence[Any], hf_model: PreTrainedModel
) -> tuple[dict[str, _Place], Module | None]:
    """Where the transformers model has what hook points carry, by their names, and its first block."""
    paths = {id(module): path for path, module in hf_model.named_modules()}
    linears = [m for m in hf_model.modules() if isinstance(m, torch.nn.Linear | Conv1D)]
    places: dict[str, _Place] = {}
    blocks = []
    for layer, block in enumerate(hooked_blocks):
        found = _block_places(model, block, linears)
        found = {name: place for name, place in found.items() if place and id(place.module) in paths}
        if "mlp.hook_post" in found:
            # A block is what its list of blocks knows by a number.
            parts = paths[id(found["mlp.hook_post"].module)].split(".")
            number = next((i for i, part in enumerate(parts) if part.isdecimal()), None)
            if number is not None:
                blocks.append(hf_model.get_submodule(".".join(parts[: number + 1])))
                found["hook_resid_post"] = _Place(blocks[-1], at_input=False)
        places |= {f"blocks.{layer}.{name}": place for name, place in found.items()}
    return places, blocks[0] if blocks else None


def _block_places(model: Any, block: Any, linears: Sequence[Module]) -> dict[str, _Place | None]:
    """Where one block's hook points are, by the end of their names."""
    matrices = _bridged if hasattr(model, "original_model") else _viewed
    gate = {"mlp.hook_pre": ("gate", False), "mlp.hook_pre_linear": ("in", False)}
    mlp = {**(gate if model.cfg.gated_mlp else {"mlp.hook_pre": ("in", False)}), "mlp.hook_post": ("out", True)}
    places = {hook: matrices(block, name, at_input, linears) for hook, (name, at_input) in mlp.items()}
    for name in ("q", "k", "v"):
        place = matrices(block, name, False, linears)
        places[f"attn.hook_{name}"] = place and replace(place, d_head=model.cfg.d_head)
    return places


def _bridged(block: Any, name: str, at_input: bool, linears: Sequence[Module]) -> _Place | None:
    """The module that a bridge calls by this name."""
    part = getattr(block.attn if name in ("q", "k", "v") else block.mlp, name, None)
    module = getattr(part, "original_component", None)
    return _Place(module, at_input) if isinstance(module, torch.nn.Linear | Conv1D) else None


def _viewed(block: Any, name: str, at_input: bool, linears: Sequence[Module]) -> _Place | None:
    """The module of whose weights the hooked model's matrix is a view."""
    if name in ("q", "k", "v"):
        grouped = "_" if name != "q" and hasattr(block.attn, "_W_K") else ""
        weight = getattr(block.attn, f"{grouped}W_{name.upper()}")
    else:
        weight = getattr(block.mlp, f"W_{name}")
    for module in linears:
        offset = weight.data_ptr() - module.weight.data_ptr()
        if 0 <= offset < module.weight.nbytes and weight.device == module.weight.device:
            return _Place(module, at_input, _columns_of(weight, module, offset)) if _fits(weight, module) else None
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


def _watched_shape(first_block: Module, stack: ExitStack) -> list[torch.Size]:
    """A list that holds (batch, pos) of the pass that is running."""
    shape: list[torch.Size] = [torch.Size()]

    def watch(module: Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        shape[0] = next(x for x in (*args, *kwargs.values()) if isinstance(x, Tensor) and x.ndim == 3).shape[:2]

    stack.callback(first_block.register_forward_pre_hook(watch, with_kwargs=True).remove)
    return shape


def _installed(place: _Place, function: HookFunction, shape: list[torch.Size]) -> RemovableHandle:
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
