"""Neurons switched off, held at a value, raised or scaled while the model runs."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from jaxtyping import Bool, Float
from torch import Tensor

from ..models.hooked import HookedModel, is_gated, site_of
from ..models.native import in_force
from ..neurons import PARTS, NeuronSet
from .changes import Change, Intervention, changes, check_applicable, check_fits
from .positions import Place

_Hook = Callable[[Tensor, object], Tensor | None]


@contextmanager
def steer(model: HookedModel, *interventions: Intervention) -> Iterator[HookedModel]:
    """Within the block, the interventions act on every forward pass, in the order given.

    During generation they act at every step, with and without the cache. The prompt is the first pass over a text;
    what later passes add to it is generated: a pass that goes on from a cache, or one whose input is that of the pass
    before and one token more. Blocks nest, and other hooks may be there too; all come off at the end, also when the
    body raises. A neuron that one intervention fixes (zero, set) may be written by no other at the same positions,
    unless to the same value; adds and scales of a neuron follow one another.

    Raises:
        ValueError: before anything runs: no intervention, an empty set, neurons of another model, or two
            interventions that contradict each other.
    """
    check_applicable(model, interventions)
    with hooked(model, changes(interventions, gated=is_gated(model))):
        yield model


@contextmanager
def ablate(model: HookedModel, neurons: NeuronSet) -> Iterator[HookedModel]:
    """Within the block, every neuron of the set (all its groups together) is zero at every position.

    Also during generation, with other hooks, and nested; the hooks come off at the end and when the body raises.
    An empty set changes nothing. To hold neurons at their mean instead, `steer` with `set_to_mean`.

    Raises:
        ValueError: neurons of another model.

    Example:
        >>> import mi_multilingual as mm
        >>> model = mm.load_model("demo")
        >>> neurons = mm.NeuronSet.of({"some": [(3, 7), (3, 8)]}, shape=(4, 1536))
        >>> with mm.ablate(model, neurons):
        ...     texts = mm.generate(model, ["The dog"], max_new_tokens=3, progress=False)
    """
    check_fits(model, neurons)
    with hooked(model, changes([Intervention("zero", neurons)], gated=is_gated(model))):
        yield model


@contextmanager
def hooked(model: HookedModel, steps: Sequence[Change]) -> Iterator[None]:
    """Within the block, the steps act on every forward pass, one after another."""
    place = Place()
    watched = any(step.positions != "all" for step in steps)
    with in_force(model, _change_hooks(model, steps, place), place.enter if watched else None):
        yield


def _change_hooks(model: HookedModel, steps: Sequence[Change], place: Place) -> list[tuple[str, _Hook]]:
    """Hooks that make the changes; layers without one get none."""
    by_part = {part: [step for step in steps if step.part == part] for part in PARTS}
    hooks = _mlp_hooks(model, by_part.pop("mlp"), place)
    for part, its_steps in by_part.items():
        for layer in range(model.cfg.n_layers):
            rows = _change_rows(its_steps, layer, model.cfg.device)
            if rows:
                hooks.append((f"blocks.{layer}.attn.hook_{part}", _head_hook(rows, place)))
    return hooks


def _head_hook(rows: Sequence[ActivationChange], place: Place) -> _Hook:
    """A hook on queries, keys or values that changes columns."""

    def hook(given: Float[Tensor, "batch pos head d_head"], hook: object) -> Float[Tensor, "batch pos head d_head"]:
        columns = given.flatten(2)
        for row in rows:
            columns = changed(columns, None, row, place)
        return columns.unflatten(2, given.shape[2:])

    return hook


def _mlp_hooks(model: HookedModel, steps: Sequence[Change], place: Place) -> list[tuple[str, _Hook]]:
    """Hooks on the MLPs.

    Act(gate) itself has no hook, so a change to it is made to the product, with `up` read in the same pass.
    """
    post, ups, hooks = site_of(model, "post"), {}, []

    def keep(layer: int) -> _Hook:
        def hook(up: Float[Tensor, "batch pos neuron"], hook: object) -> None:
            ups[layer] = up

        return hook

    def act(layer: int, rows: list[ActivationChange]) -> _Hook:
        def hook(activation: Float[Tensor, "batch pos neuron"], hook: object) -> Float[Tensor, "batch pos neuron"]:
            up = ups.pop(layer, None)
            for row in rows:
                activation = changed(activation, up, row, place)
            return activation

        return hook

    for layer in range(model.cfg.n_layers):
        rows = _change_rows(steps, layer, model.cfg.device)
        if any(row.up_factor is not None for row in rows):
            hooks.append((site_of(model, "up").hook_name(layer), keep(layer)))
        if rows:
            hooks.append((post.hook_name(layer), act(layer, rows)))
    return hooks


@dataclass(frozen=True, eq=False)
class ActivationChange:
    """One layer of a `Change`, on the model's device; None where nothing is multiplied."""

    chosen: Bool[Tensor, " neuron"]
    factor: Float[Tensor, " neuron"] | None
    up_factor: Float[Tensor, " neuron"] | None
    offset: Float[Tensor, " neuron"]
    positions: str | tuple[int, ...]


def _change_rows(steps: Sequence[Change], layer: int, device: Any) -> list[ActivationChange]:
    """The layer's part of the steps, without those that leave it alone."""
    return [_change_row(step, layer, device) for step in steps if step.chosen[layer].any()]


def _change_row(step: Change, layer: int, device: Any) -> ActivationChange:
    chosen, factor, up_factor, offset = (
        t[layer].to(device) for t in (step.chosen, step.factor.float(), step.up_factor.float(), step.offset.float())
    )
    fixed = bool((factor[chosen] == 0).all())
    return ActivationChange(
        chosen, None if fixed else factor, up_factor if up_factor.any() else None, offset, step.positions
    )


def changed(
    activation: Float[Tensor, "batch pos neuron"],
    up: Float[Tensor, "batch pos neuron"] | None,
    row: ActivationChange,
    place: Place,
) -> Float[Tensor, "batch pos neuron"]:
    """The activations after the change; those not chosen bit for bit as they were."""
    value = row.offset.to(activation)
    if row.up_factor is not None and up is not None:
        value = value + row.up_factor.to(activation) * up
    if row.factor is not None:
        value = value + row.factor.to(activation) * activation
    where = row.chosen.to(activation.device)
    if row.positions != "all":
        where = where & place.among(row.positions, activation.shape[1]).to(where.device)[..., None]
    return torch.where(where, value, activation)
