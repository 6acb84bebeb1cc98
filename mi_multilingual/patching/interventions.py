"""Neurons switched off, held at a value, raised or scaled while the model runs."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass, replace
from typing import Any

import torch
from jaxtyping import Bool, Float, Shaped
from torch import Tensor

from ..models import HookedModel, fingerprint, is_gated, neurons_shape
from ..models import site as site_of
from ..neurons import PARTS, NeuronSet
from ..recording import ActivationStats

Hook = Callable[[Tensor, object], Tensor | None]
KINDS, SITES, SPANS = ("zero", "set", "add", "scale"), ("gate", "post"), ("all", "prompt", "generated")


@dataclass(frozen=True, eq=False)
class Intervention:
    """What to do to some neurons, where, and at which positions.

    ======  =====================================  ====================
    kind    the neuron's activation becomes        value
    ======  =====================================  ====================
    zero    0                                      none
    set     value                                  any number
    add     activation + value                     any number
    scale   value * activation                     any number
    ======  =====================================  ====================

    With a gated MLP, site "gate" is act(gate) before it is multiplied, "post" the product (`mi_multilingual.site`);
    zero and scale are the same at both. Without a gate the sites are one.

    Columns of W_Q, W_K and W_V (parts "q", "k", "v") can be zero or scaled, and have no site: theirs is what the column
    and its bias give, before any norm or rotation, so that zero is the column at zero (`record_impact` ranks columns
    of W_Q and W_K by what they give after rotation). With grouped queries every head that reads a key or value column
    is without it.
    """

    kind: str
    neurons: NeuronSet
    """All its groups together are meant."""
    value: float | int | Shaped[Tensor, ...] | None = None
    """A number for all of them, or a (layer, neuron) table, such as medians or percentiles of a language."""
    site: str = "gate"
    positions: str | tuple[int, ...] = "all"
    """"all", "prompt", "generated", or places in the text counted from 0, BOS and padding included."""

    def __post_init__(self) -> None:
        for name, given, known in (("kind", self.kind, KINDS), ("site", self.site, SITES)):
            if given not in known:
                raise ValueError(f"unknown {name} {given!r}; choose {', '.join(known)}")
        check_positions(self.positions)
        if self.neurons.part != "mlp" and self.kind not in ("zero", "scale"):
            raise ValueError(
                f"kind {self.kind!r} is for neurons of the MLP, these are columns of W_{self.neurons.part.upper()}; "
                "use zero or scale"
            )
        if (self.kind == "zero") != (self.value is None):
            raise ValueError(
                f"kind {self.kind!r} with value {self.value!r}: zero takes no value, set, add and scale need one"
            )
        shape = tuple(self.neurons.masks.shape[1:])
        if isinstance(self.value, Tensor) and tuple(self.value.shape) not in ((), shape):
            raise ValueError(
                f"values of shape {tuple(self.value.shape)} do not fit neurons of shape {shape} (layers, neurons a "
                "layer); give one number, or a table of the neurons' shape"
            )
        bad = (self.neurons.union() & ~self.table().isfinite()).nonzero().tolist()
        if bad:
            layer, neuron = bad[0]
            raise ValueError(
                f"the value of layer {layer}, neuron {neuron} is {self.table()[layer, neuron].item()} "
                f"({len(bad)} such values); give finite numbers for every chosen neuron"
            )

    def table(self) -> Float[Tensor, "layer neuron"]:
        """The value of every neuron, float64; 0 where there is none."""
        value = torch.as_tensor(0.0 if self.value is None else self.value).detach().cpu().double()
        return value.expand(self.neurons.masks.shape[1:])


def check_positions(positions: str | tuple[int, ...]) -> None:
    if isinstance(positions, str) and positions not in SPANS:
        raise ValueError(f"unknown positions {positions!r}; choose {', '.join(SPANS)} or give a tuple of numbers")
    if isinstance(positions, tuple) and (not positions or min(positions) < 0):
        raise ValueError(f"positions {positions} name no place in a text; give numbers from 0, at least one")


def set_to_mean(
    neurons: NeuronSet,
    stats: ActivationStats,
    language: str,
    *,
    strength: float = 1.0,
    positions: str | tuple[int, ...] = "all",
) -> Intervention:
    """Hold the neurons at `strength` times their mean activation in the language, at the site of the recording.

    Strength 1 is the steering of Tang et al. 2024.

    Raises:
        ValueError: a language without statistics, statistics of site "up", or of another model than the neurons'.
    """
    value = strength * mean_of(stats, language)
    return Intervention("set", of_recording(neurons, stats), value, stats.site, positions)


def add_mean(
    neurons: NeuronSet,
    stats: ActivationStats,
    language: str,
    *,
    strength: float = 1.0,
    positions: str | tuple[int, ...] = "all",
) -> Intervention:
    """Add `strength` times the mean activation in the language (Gurgurov et al. 2025, arXiv 2507.22608).

    Raises:
        ValueError: as `set_to_mean`.
    """
    value = strength * mean_of(stats, language)
    return Intervention("add", of_recording(neurons, stats), value, stats.site, positions)


def add_mean_difference(
    neurons: NeuronSet,
    stats: ActivationStats,
    language: str,
    *,
    strength: float = 1.0,
    positions: str | tuple[int, ...] = "all",
) -> Intervention:
    """Add `strength` times (mean in the language - mean over the other languages, each of the same weight).

    Gurgurov et al. 2025 (arXiv 2507.22608), "diff-mean".

    Raises:
        ValueError: as `set_to_mean`, or statistics of one language only.
    """
    others = [k for k in stats.languages if k != language]
    if not others:
        raise ValueError(f"the statistics cover {language!r} only; record other languages to take a difference from")
    value = strength * (mean_of(stats, language) - stats.take(others).mean().mean(dim=-1))
    return Intervention("add", of_recording(neurons, stats), value, stats.site, positions)


def mean_of(stats: ActivationStats, language: str) -> Float[Tensor, "layer neuron"]:
    return stats.take([language]).mean()[..., 0]


def of_recording(neurons: NeuronSet, stats: ActivationStats) -> NeuronSet:
    """The neurons, bound to the model that the statistics are of."""
    if stats.site not in SITES:
        raise ValueError(f"the statistics are of site {stats.site!r}, which nothing writes to; record gate or post")
    if neurons.model_fingerprint not in ("", stats.model_fingerprint):
        raise ValueError(
            f"the neurons are of {neurons.model!r}, the statistics of {stats.model!r}, other weights; "
            "record the model the neurons were found in"
        )
    return replace(neurons, model_fingerprint=stats.model_fingerprint)


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
def ablate(
    model: HookedModel, neurons: NeuronSet, *, mean_of: tuple[ActivationStats, str] | None = None
) -> Iterator[HookedModel]:
    """Within the block, every neuron of the set (all its groups together) is zero at every position.

    Also during generation, with other hooks, and nested; the hooks come off at the end and when the body raises.
    An empty set changes nothing.

    Args:
        mean_of: statistics recorded at site "post" and a language: hold each neuron at its mean there instead of zero.

    Raises:
        ValueError: neurons of another model, or statistics of another model or site.
    """
    check_fits(model, neurons)
    if mean_of is None:
        intervention = Intervention("zero", neurons)
    else:
        intervention = Intervention("set", neurons, mean_values(model, *mean_of), "post")
    with hooked(model, changes([intervention], gated=is_gated(model))):
        yield model


def mean_values(model: HookedModel, stats: ActivationStats, language: str) -> Float[Tensor, "layer neuron"]:
    """Mean activation in the language at "post", the site that mean ablation writes to."""
    if stats.site != "post":
        raise ValueError(
            f"mean ablation writes to site 'post', the statistics are of {stats.site!r}; record(site='post')"
        )
    if stats.model_fingerprint != fingerprint(model):
        raise ValueError(f"the statistics were recorded on another model ({stats.model!r}); record this one")
    return stats.take([language]).mean()[..., 0]


def check_applicable(model: HookedModel, interventions: Sequence[Intervention]) -> None:
    """Raise unless there is something to do, and it can be done to this model."""
    if not interventions:
        raise ValueError("no intervention was given; give at least one")
    for i, intervention in enumerate(interventions, start=1):
        if not intervention.neurons.union().any():
            raise ValueError(
                f"intervention {i} ({intervention.kind}) has no neurons: the groups {intervention.neurons.groups} are "
                "empty; choose others, or leave it out"
            )
    known: str | None = None
    for intervention in interventions:
        known = check_fits(model, intervention.neurons, known)
    check_consistent(interventions, gated=is_gated(model))


def check_fits(model: HookedModel, neurons: NeuronSet, known: str | None = None) -> str | None:
    """Raise unless the set can belong to the model.

    Args:
        known: the model's fingerprint, where the caller has it.

    Returns:
        the model's fingerprint, where it was needed.
    """
    shape = neurons_shape(model, neurons.part)
    if tuple(neurons.masks.shape[1:]) != shape:
        raise ValueError(
            f"the neuron set is for {tuple(neurons.masks.shape[1:])} (layers, {neurons.part} neurons a layer), the "
            f"model has {shape}; load the model the set was made for"
        )
    if not neurons.model_fingerprint:
        return known
    known = known or fingerprint(model)
    if neurons.model_fingerprint != known:
        raise ValueError(
            f"the neuron set was made for other weights ({neurons.model!r}); identify neurons of this model"
        )
    return known


def check_consistent(interventions: Sequence[Intervention], *, gated: bool) -> None:
    """Raise where one intervention fixes a neuron that another writes differently at the same positions."""
    for (i, one), (j, other) in itertools.combinations(enumerate(interventions, start=1), 2):
        fixing = [x.kind in ("zero", "set") for x in (one, other)]
        meet = one.neurons.part == other.neurons.part and may_meet(one.positions, other.positions)
        if not any(fixing) or not meet:
            continue
        left, right = change(one, gated=gated), change(other, gated=gated)
        differ = (left.offset != right.offset) | (left.up_factor != right.up_factor)
        both = left.chosen & right.chosen & (differ if all(fixing) else True)
        if both.any():
            layer, neuron = both.nonzero()[0].tolist()
            raise ValueError(
                f"interventions {i} ({one.kind}) and {j} ({other.kind}) contradict each other at layer {layer}, neuron "
                f"{neuron} ({int(both.sum())} such neurons); take them out of one set, as in "
                "replace(neurons, masks=neurons.masks & ~other.union())"
            )


def may_meet(one: str | tuple[int, ...], other: str | tuple[int, ...]) -> bool:
    """Whether some position can be in both."""
    if isinstance(one, tuple) and isinstance(other, tuple):
        return bool(set(one) & set(other))
    return {one, other} != {"prompt", "generated"}


@dataclass(frozen=True, eq=False)
class Change:
    """What becomes of neurons at some positions: factor * post + up_factor * up + offset.

    Every intervention is of this form, and so is one after another. `post` is what goes into the output weights, or
    what a column of W_Q, W_K or W_V gives; `up` is what a gated MLP multiplies act(gate) by. Neurons that are not
    chosen have 1, 0, 0.
    """

    chosen: Bool[Tensor, "layer neuron"]
    factor: Float[Tensor, "layer neuron"]
    up_factor: Float[Tensor, "layer neuron"]
    offset: Float[Tensor, "layer neuron"]
    positions: str | tuple[int, ...]
    part: str


def change(intervention: Intervention, *, gated: bool) -> Change:
    """The intervention in numbers, float64."""
    chosen = intervention.neurons.union().cpu()
    value = torch.where(chosen, intervention.table(), 0.0)
    nothing = torch.zeros_like(value)
    factor = {"zero": nothing, "set": nothing, "add": nothing + 1, "scale": value}[intervention.kind]
    shift = value if intervention.kind in ("set", "add") else nothing
    at_gate = gated and intervention.site == "gate"
    up_factor, offset = (shift, nothing) if at_gate else (nothing, shift)
    factor = torch.where(chosen, factor, 1.0)
    return Change(chosen, factor, up_factor, offset, intervention.positions, intervention.neurons.part)


def changes(interventions: Iterable[Intervention], *, gated: bool) -> list[Change]:
    """The interventions in numbers, in their order, those alike in part and positions that follow each other in one."""
    steps: list[Change] = []
    for intervention in interventions:
        step = change(intervention, gated=gated)
        if steps and (steps[-1].part, steps[-1].positions) == (step.part, step.positions):
            step = one_after_another(steps.pop(), step)
        steps.append(step)
    return steps


def one_after_another(first: Change, then: Change) -> Change:
    return Change(
        first.chosen | then.chosen,
        then.factor * first.factor,
        then.factor * first.up_factor + then.up_factor,
        then.factor * first.offset + then.offset,
        then.positions,
        then.part,
    )


@dataclass
class Place:
    """Where in its text the forward pass stands that is running."""

    start: int = 0
    """Tokens before it, whose keys and values come from a cache."""
    n_prompt: int = 0
    embedded: Tensor | None = None
    """What went into the first block."""

    def enter(self, module: torch.nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        """Called before the first block, whose arguments hold the cache: no other place tells a step's position."""
        given = (*args, *kwargs.values())
        embedded = next(x for x in given if isinstance(x, Tensor) and x.ndim == 3).detach()
        self.start = cached_length(given)
        if self.start == 0 and not one_token_more(self.embedded, embedded):
            self.n_prompt = embedded.shape[1]
        self.embedded = embedded

    def among(self, positions: str | tuple[int, ...], n_tokens: int) -> Bool[Tensor, " pos"]:
        """Which of the tokens of this pass are meant."""
        place = torch.arange(self.start, self.start + n_tokens)
        if isinstance(positions, tuple):
            return torch.isin(place, torch.tensor(positions))
        return place < self.n_prompt if positions == "prompt" else place >= self.n_prompt


def cached_length(arguments: Iterable[Any]) -> int:
    """Tokens in the cache among the arguments of a block, of transformers or TransformerLens; 0 without one."""
    for x in arguments:
        if hasattr(x, "get_seq_length"):
            return int(x.get_seq_length())
        if hasattr(x, "past_keys"):
            return int(x.past_keys.shape[1])
    return 0


def one_token_more(before: Tensor | None, now: Tensor) -> bool:
    """Whether `now` (batch, pos, width) is `before` and one more token: a step of generation without a cache."""
    if before is None or now.shape != (before.shape[0], before.shape[1] + 1, before.shape[2]):
        return False
    return torch.allclose(now[:, :-1], before, rtol=1e-4, atol=1e-6)


@contextmanager
def hooked(model: HookedModel, steps: Sequence[Change]) -> Iterator[None]:
    """Within the block, the steps act on every forward pass, one after another."""
    place = Place()
    watched = any(step.positions != "all" for step in steps)
    handle = model.blocks[0].register_forward_pre_hook(place.enter, with_kwargs=True) if watched else None
    try:
        hooks = change_hooks(model, steps, place)
        with model.hooks(fwd_hooks=hooks) if hooks else nullcontext():
            yield
    finally:
        if handle is not None:
            handle.remove()


def change_hooks(model: HookedModel, steps: Sequence[Change], place: Place) -> list[tuple[str, Hook]]:
    """Hooks that make the changes; layers without one get none."""
    by_part = {part: [step for step in steps if step.part == part] for part in PARTS}
    hooks = mlp_hooks(model, by_part.pop("mlp"), place)
    for part, its_steps in by_part.items():
        for layer in range(model.cfg.n_layers):
            rows = change_rows(its_steps, layer, model.cfg.device)
            if rows:
                hooks.append((f"blocks.{layer}.attn.hook_{part}", head_hook(rows, place)))
    return hooks


def head_hook(rows: Sequence[ChangeRow], place: Place) -> Hook:
    """A hook on queries, keys or values that changes columns."""

    def hook(given: Float[Tensor, "batch pos head d_head"], hook: object) -> Float[Tensor, "batch pos head d_head"]:
        columns = given.flatten(2)
        for row in rows:
            columns = changed(columns, None, row, place)
        return columns.unflatten(2, given.shape[2:])

    return hook


def mlp_hooks(model: HookedModel, steps: Sequence[Change], place: Place) -> list[tuple[str, Hook]]:
    """Hooks on the MLPs.

    Act(gate) itself has no hook, so a change to it is made to the product, with `up` read in the same pass.
    """
    post, ups, hooks = site_of(model, "post"), {}, []

    def keep(layer: int) -> Hook:
        def hook(up: Float[Tensor, "batch pos neuron"], hook: object) -> None:
            ups[layer] = up

        return hook

    def act(layer: int, rows: list[ChangeRow]) -> Hook:
        def hook(activation: Float[Tensor, "batch pos neuron"], hook: object) -> Float[Tensor, "batch pos neuron"]:
            up = ups.pop(layer, None)
            for row in rows:
                activation = changed(activation, up, row, place)
            return activation

        return hook

    for layer in range(model.cfg.n_layers):
        rows = change_rows(steps, layer, model.cfg.device)
        if any(row.up_factor is not None for row in rows):
            hooks.append((site_of(model, "up").hook_name(layer), keep(layer)))
        if rows:
            hooks.append((post.hook_name(layer), act(layer, rows)))
    return hooks


@dataclass(frozen=True, eq=False)
class ChangeRow:
    """One layer of a `Change`, on the model's device; None where nothing is multiplied."""

    chosen: Bool[Tensor, " neuron"]
    factor: Float[Tensor, " neuron"] | None
    up_factor: Float[Tensor, " neuron"] | None
    offset: Float[Tensor, " neuron"]
    positions: str | tuple[int, ...]


def change_rows(steps: Sequence[Change], layer: int, device: Any) -> list[ChangeRow]:
    """The layer's part of the steps, without those that leave it alone."""
    return [change_row(step, layer, device) for step in steps if step.chosen[layer].any()]


def change_row(step: Change, layer: int, device: Any) -> ChangeRow:
    chosen, factor, up_factor, offset = (
        t[layer].to(device) for t in (step.chosen, step.factor.float(), step.up_factor.float(), step.offset.float())
    )
    fixed = bool((factor[chosen] == 0).all())
    return ChangeRow(chosen, None if fixed else factor, up_factor if up_factor.any() else None, offset, step.positions)


def changed(
    activation: Float[Tensor, "batch pos neuron"],
    up: Float[Tensor, "batch pos neuron"] | None,
    row: ChangeRow,
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
        where = where & place.among(row.positions, activation.shape[1]).to(where.device)[:, None]
    return torch.where(where, value, activation)
