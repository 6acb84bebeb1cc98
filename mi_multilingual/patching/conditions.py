"""One way the model is run, beside its random controls."""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from typing import Any

import torch
from tqdm.auto import tqdm

from ..display import Summarised
from ..models.hooked import HookedModel, is_gated
from ..neurons import NeuronSet
from .changes import Intervention, changes, check_applicable, check_fits
from .hooks import hooked
from .weights import NotWritableError, check_writable, rewritten

INTACT, CHOSEN, RANDOM = "intact", "chosen", "random"
"""What stands in the column `condition` of every table: the model as it is, with the chosen neurons changed, or with as
many random ones in the same layers."""
NOT_RANDOM = -1
"""The seed of what is not random."""


@dataclass(frozen=True, eq=False, repr=False)
class Condition(Summarised):
    """One way the model is run: what is done to it, and what tables call it.

    Names of groups stand in a column of their own (`group`), so no language can be mistaken for a control.
    """

    labels: Mapping[str, Any] = field(default_factory=lambda: dict(_AS_IT_IS))
    """Columns of every row measured under it; among them condition, group, seed (-1 where nothing is random) and
    n_neurons (changed)."""
    interventions: tuple[Intervention, ...] = ()

    def summary(self) -> tuple[str, Mapping[str, Sequence[Any]]]:
        labels = ", ".join(f"{name}={value!r}" for name, value in self.labels.items())
        kinds = [f"{i.kind} at {i.site}" for i in self.interventions]
        return labels, {"intervention": kinds, "neurons": [int(i.neurons.union().sum()) for i in self.interventions]}


_AS_IT_IS: Mapping[str, Any] = {"condition": INTACT, "group": "", "seed": NOT_RANDOM, "n_neurons": 0}


def zero(neurons: NeuronSet) -> tuple[Intervention, ...]:
    """The neurons off, at every position."""
    return (Intervention("zero", neurons),)


def with_controls(
    neurons: NeuronSet,
    seeds: Sequence[int] = (0, 1, 2),
    *,
    change: Callable[[NeuronSet], tuple[Intervention, ...]] = zero,
    groups: Sequence[str] | None = None,
    number: int = 0,
    n_sets: int = 1,
) -> Iterator[Condition]:
    """Every group's neurons changed, and beside each as many random ones per layer, drawn anew for every seed.

    Args:
        seeds: of the random neurons; none for no control.
        change: what is done to the neurons of a group, given as a set of that one group.
        groups: those to change, all by default. The draw is of the whole set, so a group's random neurons are the same
            whichever others are changed.
        number, n_sets: which of how many sets with the same seeds this is, such as one per question; every set draws
            neurons of its own.

    Raises:
        ValueError: seeds that are negative or repeat, or a group that the set does not have.

    Example:
        >>> import mi_multilingual as mm
        >>> neurons = mm.NeuronSet.of({"none": [(0, 3), (1, 5)]}, shape=(2, 8))
        >>> for condition in mm.with_controls(neurons, seeds=[0]):
        ...     print(dict(condition.labels))
        {'condition': 'chosen', 'group': 'none', 'seed': -1, 'n_neurons': 2}
        {'condition': 'random', 'group': 'none', 'seed': 0, 'n_neurons': 2}
    """
    sets = beside_random(neurons, seeds, number=number, n_sets=n_sets)
    wanted = neurons.take(neurons.groups if groups is None else groups).groups
    return (condition_of(name, drawn[group], change, seed) for group in wanted for name, seed, drawn in sets)


def beside_random(
    neurons: NeuronSet, seeds: Sequence[int], *, number: int = 0, n_sets: int = 1
) -> list[tuple[str, int, NeuronSet]]:
    """The set and its random counterparts: condition, seed and neurons of each. Arguments are those of `with_controls`.

    For what changes the neurons of several groups at once; `with_controls` takes one group after another.
    """
    check_seeds(seeds)
    controls = [(RANDOM, seed, layer_matched_random(neurons, seed=seed * n_sets + number)) for seed in seeds]
    return [(CHOSEN, NOT_RANDOM, neurons), *controls]


def condition_of(
    condition: str,
    neurons: NeuronSet,
    change: Callable[[NeuronSet], tuple[Intervention, ...]] = zero,
    seed: int = NOT_RANDOM,
) -> Condition:
    """One group's neurons changed; nothing is done where it has none."""
    labels = labels_of(condition, neurons, seed)
    return Condition(labels, change(neurons) if labels["n_neurons"] else ())


def labels_of(condition: str, neurons: NeuronSet, seed: int = NOT_RANDOM) -> dict[str, Any]:
    """What tables call it when the neurons of this one group are changed."""
    n_neurons = int(neurons.union().sum())
    return {"condition": condition, "group": neurons.groups[0], "seed": seed, "n_neurons": n_neurons}


def labelled(condition: Condition, **labels: Any) -> Condition:
    """The condition with further labels, or others in their place."""
    return replace(condition, labels={**condition.labels, **labels})


def check_seeds(seeds: Sequence[int]) -> None:
    if len(set(seeds)) < len(seeds) or any(seed < 0 for seed in seeds):
        raise ValueError(f"seeds must be different numbers from 0, got {tuple(seeds)}")


def measured(
    model: HookedModel,
    conditions: Collection[Condition],
    measure: Callable[[Condition], Iterable[Mapping[str, Any]]],
    *,
    title: str = "conditions",
    progress: bool = True,
) -> list[dict[str, Any]]:
    """What `measure` finds under every condition: its rows, each beside the condition's labels.

    Args:
        measure: called with the condition that the model is run under at that time.
        title: stands before the progress bar.

    Raises:
        ValueError: as `applied`.
    """
    rows = []
    for condition in tqdm(conditions, desc=title, unit="condition", disable=not progress):
        with applied(model, condition):
            rows += [{**condition.labels, **row} for row in measure(condition)]
    return rows


@contextmanager
def applied(model: HookedModel, condition: Condition) -> Iterator[HookedModel]:
    """Within the block, the model is run under the condition: by its weights where they can carry it, else by hooks.

    Weights cost nothing per token. Every intervention that acts at all positions and is a constant at the output
    weights can be carried by them (see `bake`).

    Raises:
        ValueError: neurons of another model, or interventions that contradict each other.

    Example:
        >>> import mi_multilingual as mm
        >>> model = mm.load_model("demo")
        >>> neurons = mm.NeuronSet.of({"some": [(3, 7)]}, shape=(4, 1536))
        >>> [condition] = mm.with_controls(neurons, seeds=[])
        >>> with mm.applied(model, condition):
        ...     text = mm.generate(model, ["The dog"], max_new_tokens=3, progress=False)
    """
    if not condition.interventions:
        yield model
        return
    check_applicable(model, condition.interventions)
    if _by_weights(model, condition.interventions):
        with rewritten(model, condition.interventions):
            yield model
    else:
        with hooked(model, changes(condition.interventions, gated=is_gated(model))):
            yield model


def _by_weights(model: HookedModel, interventions: Sequence[Intervention]) -> bool:
    """Whether the output weights can carry all of them."""
    try:
        check_writable(model, interventions)
    except NotWritableError:
        return False
    return True


def check_groups(model: HookedModel, neurons: NeuronSet) -> None:
    """Raise unless the set belongs to the model and no group of it is empty."""
    check_fits(model, neurons)
    sizes = neurons.sizes()
    if (sizes == 0).any():
        raise ValueError(f"every group must have neurons, got none for {sizes.idxmin()!r}; leave it out with take(...)")


def uniform_random(neurons: NeuronSet, *, seed: int) -> NeuronSet:
    """As many neurons per group, drawn without replacement from the whole model (the baseline of Tang et al. 2024)."""
    random = torch.Generator().manual_seed(seed)
    masks = torch.zeros(neurons.masks.shape, dtype=torch.bool)
    for mask, original in zip(masks, neurons.masks, strict=True):
        mask.view(-1)[torch.randperm(mask.numel(), generator=random)[: int(original.sum())]] = True
    return replace(neurons, masks=masks, method="uniform random", parameters={"seed": seed, "matches": neurons.method})


def layer_matched_random(neurons: NeuronSet, *, seed: int) -> NeuronSet:
    """As many neurons per group AND layer, drawn without replacement: the sharper control, layers differ in effect."""
    random = torch.Generator().manual_seed(seed)
    masks = torch.zeros(neurons.masks.shape, dtype=torch.bool)
    for mask, original in zip(masks.flatten(0, 1), neurons.masks.flatten(0, 1), strict=True):
        mask[torch.randperm(mask.numel(), generator=random)[: int(original.sum())]] = True
    return replace(
        neurons, masks=masks, method="layer-matched random", parameters={"seed": seed, "matches": neurons.method}
    )
