"""Passes that begin in the midst of a model, where nothing before has changed."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from jaxtyping import Float, Int
from torch import Tensor
from torch.nn import Module

from .losses import native_losses
from .native import native_of, native_pass
from .places import residual_of


@dataclass(frozen=True)
class BlockInputs:
    """What came into each block of a pass, from which the pass can go on anew."""

    tokens: Int[Tensor, "batch pos"]
    residuals: list[Float[Tensor, "batch pos d_model"]]
    in_tuple: bool
    """Whether blocks give a tuple, as some architectures do."""


@torch.no_grad()
def block_inputs(
    model: Any, tokens: Int[Tensor, "batch pos"]
) -> tuple[BlockInputs, Float[Tensor, "batch pos_less_1"]] | None:
    """What comes into each block, and the losses; None where transformers cannot run the pass."""
    residuals, kinds = [], []

    def enter(module: Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        residuals.append(residual_of(args, kwargs))

    shared = native_of(model)
    with native_pass(model) as native, ExitStack() as stack:
        if native is None or shared is None:
            return None
        blocks = shared.blocks
        for block in blocks:
            stack.callback(block.register_forward_pre_hook(enter, with_kwargs=True).remove)
        seen = blocks[0].register_forward_hook(lambda module, args, output: kinds.append(isinstance(output, tuple)))
        stack.callback(seen.remove)
        losses = native_losses(shared, tokens)
    return BlockInputs(tokens, residuals, kinds[0]), losses


@torch.no_grad()
def losses_from(model: Any, before: BlockInputs, layer: int) -> Float[Tensor, "batch pos_less_1"] | None:
    """Losses of the pass from this layer on, where nothing has changed before it; None as in `block_inputs`."""
    shared = native_of(model)
    with native_pass(model) as native, ExitStack() as stack:
        if native is None or shared is None:
            return None
        blocks = shared.blocks
        for block in blocks[:layer]:
            stack.enter_context(_left_out(block, before.in_tuple))
        enter = _entering(before.residuals[layer])
        stack.callback(blocks[layer].register_forward_pre_hook(enter, with_kwargs=True).remove)
        return native_losses(shared, before.tokens)


def _entering(residual: Float[Tensor, "batch pos d_model"]) -> Callable[..., tuple[tuple[Any, ...], dict[str, Any]]]:
    """A pre-hook that puts another residual stream in the place of a block's own."""

    def enter(module: Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> tuple[tuple[Any, ...], dict[str, Any]]:
        old = residual_of(args, kwargs)
        new = tuple(residual if x is old else x for x in args)
        return new, {name: residual if x is old else x for name, x in kwargs.items()}

    return enter


@contextmanager
def _left_out(block: Module, in_tuple: bool) -> Iterator[None]:
    """Within the block of code, the model's block hands on what it is given."""
    own = block.__dict__.get("forward")

    def hand_on(*args: Any, **kwargs: Any) -> Any:
        residual = residual_of(args, kwargs)
        return (residual,) if in_tuple else residual

    block.forward = hand_on
    try:
        yield
    finally:
        if own is None:
            del block.forward
        else:
            block.forward = own
