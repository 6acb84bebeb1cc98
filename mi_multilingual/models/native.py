"""Passes by the transformers model behind a hooked one: the same weights, without the cost of hooks nobody uses.

A HookedTransformer from `load_model` holds views of a transformers model's weights; a TransformerBridge is built around
one. That model runs a pass several times faster, so it does wherever it computes the same: as long as the weights are
still shared, and no hooks are installed but those of this package.
"""

from __future__ import annotations

import copy
import operator
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import ExitStack, contextmanager, nullcontext
from dataclasses import dataclass, field
from itertools import chain
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor
from torch.nn import Module, ReLU

from .placed import check_whole, is_placed
from .places import HookFunction, Place, find_places, installed, watched_shape
from .stamps import Stamp, bridge_stamps, hold, stamps

if TYPE_CHECKING:  # takes seconds to import
    from transformers import PreTrainedModel

_ATTRIBUTE = "_native"


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
    places: dict[str, Place]
    blocks: list[Module]
    """Of the transformers model; none where they were not found."""
    plain_unembedding: bool
    """Whether logits are a linear map's, to which the model does nothing more, such as capping them."""
    stamps: list[Stamp] = field(default_factory=list)
    lent: list[_Lent] = field(default_factory=list)
    in_force: list[_InForce] = field(default_factory=list)

    def stands_in(self) -> bool:
        """Whether a native pass computes what a hooked one does."""
        if not self.blocks or not self.knows(name for entry in self.in_force for name, _ in entry.hooks):
            return False
        now = list(self.model.modules())
        if len(now) != len(self.modules) or not all(map(operator.is_, now, self.modules)):
            return False
        mine = self.at_rest.union(*(entry.ids for entry in self.in_force))
        return _hook_ids(self.modules) == mine and hold(self.stamps)

    def knows(self, names: Iterable[str]) -> bool:
        """Whether the transformers model has what these hook points carry."""
        return all(name in self.places for name in names)


def attach(model: Any, hf_model: PreTrainedModel) -> None:
    """Let a hooked model use the transformers model that it shares its weights with."""
    wrapped, blocks = list(_wrapped_modules(hf_model)), list(model.blocks)
    with _unwrapped(wrapped):
        places, its_blocks = find_places(model, blocks, hf_model)
        plain = _unembeds_plainly(hf_model)
    modules = list(model.modules())
    native = Native(hf_model, model, modules, _hook_ids(modules), wrapped, places, its_blocks, plain)
    if not hasattr(model, "original_model"):
        native.lent = _lent_biases(model, places)
        native.stamps = stamps(model, hf_model, {id(bias.mlp.b_out) for bias in native.lent})
    else:
        with _unwrapped(wrapped):
            native.stamps = bridge_stamps(modules, hf_model)
    # Not by attribute: a module's parts are moved, saved and counted with it.
    model.__dict__[_ATTRIBUTE] = native


@torch.no_grad()
def _unembeds_plainly(hf_model: Any) -> bool:
    """`Native.plain_unembedding`, found out by a pass of one token."""
    unembedding = hf_model.get_output_embeddings()
    if type(unembedding) is not torch.nn.Linear or is_placed(hf_model):
        return False
    made: list[Tensor] = []
    handle = unembedding.register_forward_hook(lambda module, given, logits: made.append(logits.clone()))
    try:
        token = torch.zeros(1, 1, dtype=torch.int64, device=unembedding.weight.device)
        logits = hf_model(input_ids=token, use_cache=False).logits
    finally:
        handle.remove()
    return logits.dtype == made[0].dtype and torch.equal(logits, made[0])


def native_of(model: Any) -> Native | None:
    return model.__dict__.get(_ATTRIBUTE)


def runs_in_parts(model: Any) -> bool:
    """Whether rows may be padded at the left, and texts run part by part from a cache.

    Only transformers does both in all architectures, and changes at some positions count from a row's beginning.
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
    mine = native_of(whole)
    if mine is not None:
        attach(whole, mine.hf_model)
    return whole


def _copied_views(model: Any, hf_model: PreTrainedModel) -> dict[int, Any]:
    """What `deepcopy` is to take for copied: parameters that are views stay views, of the other model's copy."""
    known: dict[int, Any] = {}
    known[id(hf_model)] = copied_model = copy.deepcopy(hf_model, known)
    copies = zip(hf_model.parameters(), copied_model.parameters(), strict=True)
    owners = {old.untyped_storage().data_ptr(): (old, new) for old, new in copies}
    for view in model.parameters():
        if pair := owners.get(view.untyped_storage().data_ptr()):
            old, new = pair
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
    if native is None or not native.knows(name for name, _ in hooks) or not native.stands_in():
        check_whole(model)
        yield None
        return
    asked = [*(hook for entry in native.in_force for hook in entry.hooks), *hooks]
    with ExitStack() as stack:
        stack.enter_context(_unwrapped(native.wrapped))
        stack.enter_context(_with_biases(native.lent))
        shape = watched_shape(native.blocks[:1], stack)
        for entry in native.in_force:
            if entry.enter is not None:
                handle = native.blocks[0].register_forward_pre_hook(entry.enter, with_kwargs=True)
                stack.callback(handle.remove)
        for name, function in asked:
            stack.callback(installed(native.places[name], function, shape).remove)
        yield native.hf_model


@contextmanager
def activated_in_place(hf_model: PreTrainedModel) -> Iterator[None]:
    """Within the block, ReLU writes over its input; the SiLU and GELU of transformers cannot.

    New memory for its output is a tenth of the time of a small model's pass. Only for passes of which nobody keeps the
    input of the activation function; where gradients are enabled, nothing changes.
    """
    functions = [] if torch.is_grad_enabled() else [m for m in hf_model.modules() if type(m) is ReLU and not m.inplace]
    try:
        for function in functions:
            function.inplace = True
        yield
    finally:
        for function in functions:
            function.inplace = False


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


def _lent_biases(model: Any, places: dict[str, Place]) -> list[_Lent]:
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
