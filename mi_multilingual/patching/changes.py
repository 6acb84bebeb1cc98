"""What is done to neurons, in words and in numbers: interventions, their checks, and how they follow one another."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, replace

import torch
from jaxtyping import Bool, Float, Shaped
from torch import Tensor

from ..evidence.activations import ActivationStats
from ..models.hooked import HookedModel, fingerprint, is_gated, neurons_shape
from ..neurons import NeuronSet

_KINDS, _SITES, _SPANS = ("zero", "set", "add", "scale"), ("gate", "post"), ("all", "template", "prompt", "generated")


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
    """"all", "template", "prompt", "generated", or places in the text counted from 0, BOS and padding included. In
    generation with `chat=True`, "prompt" is what users say, and "template" all that stands around it: special tokens,
    roles, system messages, earlier answers. Otherwise "prompt" is the whole prompt."""

    def __post_init__(self) -> None:
        for name, given, known in (("kind", self.kind, _KINDS), ("site", self.site, _SITES)):
            if given not in known:
                raise ValueError(f"{name} must be one of {', '.join(known)}, got {given!r}")
        _check_positions(self.positions)
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
                f"values of shape {tuple(self.value.shape)} do not fit neurons of shape {shape} (layers, neurons per "
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


def _check_positions(positions: str | tuple[int, ...]) -> None:
    if isinstance(positions, str) and positions not in _SPANS:
        raise ValueError(f"positions must be {', '.join(_SPANS)} or a tuple of numbers, got {positions!r}")
    if isinstance(positions, tuple) and (not positions or min(positions) < 0):
        raise ValueError(f"positions must be numbers from 0, at least one, got {positions}")


def set_to_mean(
    neurons: NeuronSet,
    stats: ActivationStats,
    language: str,
    *,
    strength: float = 1.0,
    positions: str | tuple[int, ...] = "all",
) -> Intervention:
    """Hold the neurons at `strength` times their mean activation in the language, at the site of the recording.

    Strength 1 is the steering of Tang et al. 2024. The mean is over all tokens of the language.

    Raises:
        ValueError: a language without statistics, statistics of site "up", or of another model than the neurons'.
    """
    value = strength * _mean_of(stats, language)
    return Intervention("set", _of_recording(neurons, stats), value, stats.site, positions)


def set_to_active_mean(
    neurons: NeuronSet,
    stats: ActivationStats,
    language: str,
    *,
    strength: float = 1.0,
    positions: str | tuple[int, ...] = "all",
) -> Intervention:
    """`set_to_mean` with the mean over the language's tokens at which the neuron is active; 0 where it never is.

    Higher than the mean over all tokens, the more so the rarer a neuron is active. Ours.

    Raises:
        ValueError: as `set_to_mean`.
    """
    value = strength * stats.take([language]).active_mean()[..., 0]
    return Intervention("set", _of_recording(neurons, stats), value, stats.site, positions)


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
    value = strength * _mean_of(stats, language)
    return Intervention("add", _of_recording(neurons, stats), value, stats.site, positions)


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
    value = strength * (_mean_of(stats, language) - stats.take(others).mean().mean(dim=-1))
    return Intervention("add", _of_recording(neurons, stats), value, stats.site, positions)


RAISING: dict[str, Callable[..., Intervention]] = {
    "set_to_mean": set_to_mean,
    "set_to_active_mean": set_to_active_mean,
    "add_mean": add_mean,
    "add_mean_difference": add_mean_difference,
}
"""How neurons are raised: functions of neurons, statistics, language and strength. The first is that of
Tang et al. 2024, and what every study of steering does unless it is told otherwise."""


def _mean_of(stats: ActivationStats, language: str) -> Float[Tensor, "layer neuron"]:
    return stats.take([language]).mean()[..., 0]


def _of_recording(neurons: NeuronSet, stats: ActivationStats) -> NeuronSet:
    """The neurons, bound to the model that the statistics are of."""
    if stats.site not in _SITES:
        raise ValueError(f"the statistics are of site {stats.site!r}, which nothing writes to; record gate or post")
    if neurons.model_fingerprint not in ("", stats.model_fingerprint):
        raise ValueError(
            f"the neurons are of {neurons.model!r}, the statistics of {stats.model!r}, other weights; "
            "record the model the neurons were found in"
        )
    return replace(neurons, model_fingerprint=stats.model_fingerprint)


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
    _check_consistent(interventions, gated=is_gated(model))


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
            f"the neuron set must be of {shape[0]} layers x {shape[1]} {neurons.part} neurons, got "
            f"{neurons.masks.shape[1]} x {neurons.masks.shape[2]}; load the model the set was made for"
        )
    if not neurons.model_fingerprint:
        return known
    known = known or fingerprint(model)
    if neurons.model_fingerprint != known:
        raise ValueError(
            f"the neuron set was made for other weights ({neurons.model!r}); identify neurons of this model"
        )
    return known


def _check_consistent(interventions: Sequence[Intervention], *, gated: bool) -> None:
    """Raise where one intervention fixes a neuron that another writes differently at the same positions."""
    for (i, one), (j, other) in itertools.combinations(enumerate(interventions, start=1), 2):
        fixing = [x.kind in ("zero", "set") for x in (one, other)]
        meet = one.neurons.part == other.neurons.part and _may_meet(one.positions, other.positions)
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


def _may_meet(one: str | tuple[int, ...], other: str | tuple[int, ...]) -> bool:
    """Whether some position can be in both."""
    if isinstance(one, tuple) and isinstance(other, tuple):
        return bool(set(one) & set(other))
    return one == other or "all" in (one, other) or not (isinstance(one, str) and isinstance(other, str))


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
            step = _one_after_another(steps.pop(), step)
        steps.append(step)
    return steps


def _one_after_another(first: Change, then: Change) -> Change:
    return Change(
        first.chosen | then.chosen,
        then.factor * first.factor,
        then.factor * first.up_factor + then.up_factor,
        then.factor * first.offset + then.offset,
        then.positions,
        then.part,
    )
