"""Running the cells of a study: each under its condition, beside the model as it is."""

from __future__ import annotations

import time
import traceback
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

import numpy as np
import pandas as pd

from ..detectors.average_precision import medians
from ..neurons import PARTS, NeuronSet
from ..patching.changes import Intervention, add_mean, add_mean_difference, set_to_mean
from ..patching.conditions import NOT_RANDOM, Condition, applied, beside_random, condition_of, labelled, zero
from ..studies.deactivation import checked_questions, margins, question_types
from .attempts import in_one_line, tried_again
from .cells import Cell
from .context import Context
from .measures import Observations, by_language, compared, observe
from .recordings import VALUES_FROM, choices_of, recording_of
from .store import Unwritable
from .whole import WholeCell, WholeContext, run_whole

Changing = Callable[[NeuronSet], tuple[Intervention, ...]]
_ANOTHER_DRAW = 1_000_003  # between the seeds of parts: q and k columns drawn alike would undo each other's effect


@dataclass(frozen=True, eq=False)
class Attempt:
    """What became of one cell: a table, or an error."""

    cell: Any
    table: pd.DataFrame | None
    seconds: float
    error: str = ""
    trace: str = ""


AnyCell = Cell | WholeCell
AnyContext = Context | WholeContext
Runner = Callable[[Sequence[AnyCell], AnyContext], Iterator[Attempt | str]]
"""Runs cells in any order and place, and yields an attempt for each as it ends; a cell's error must not end it.

In between it may yield words on what it is doing, for the progress bar. The context has been used to plan; another
process makes its own: `Context(context.study, context.folder)`.
"""


def serial(cells: Sequence[AnyCell], context: AnyContext) -> Iterator[Attempt]:
    """The cells one after another in this process."""
    for cell in cells:
        yield _attempted(cell, context)


def _attempted(cell: AnyCell, context: AnyContext) -> Attempt:
    """What becomes of the cell; an error is part of the answer, except that the folder cannot be written."""
    started, number = time.monotonic(), 0
    while True:
        number += 1
        try:
            return Attempt(cell, _run_any(cell, context), time.monotonic() - started)
        except Unwritable:
            raise
        except Exception as error:
            if not tried_again(error, number):
                seconds = time.monotonic() - started
                return Attempt(cell, None, seconds, in_one_line(error), traceback.format_exc())


def _run_any(cell: AnyCell, context: AnyContext) -> pd.DataFrame:
    """The rows of a cell of either kind of study file."""
    if isinstance(cell, WholeCell):
        assert isinstance(context, WholeContext), "each kind of cell has a kind of context"
        return run_whole(cell, context)
    assert isinstance(context, Context), "each kind of cell has a kind of context"
    return run_cell(cell, context)


def run_cell(cell: Cell, context: Context) -> pd.DataFrame:
    """The rows of one cell (see `results`); needs nothing but its arguments and leaves the model as it was."""
    context.check(cell)
    base = context.base(cell)
    labels, now = (_under_own_conditions if cell.by_input else _under_condition)(cell, context)
    table = compared(now, base)
    described = {**_setting_of(cell), **labels, "evaluation": cell.evaluation}
    return pd.concat([pd.DataFrame([described] * len(table)), table], axis=1)


def _setting_of(cell: Cell) -> dict[str, Any]:
    """The columns of a cell's rows that say how its neurons were found and what was done to them."""
    names = ("model", "detector", "parameters", "rate", "site", "layers", "part")
    values = {name: getattr(cell, name) for name in names} | {"intervention": cell.intervention.words}
    return {"cell": cell.key, **values, "rate": float("nan") if cell.rate is None else cell.rate}


def _under_condition(cell: Cell, context: Context) -> tuple[Mapping[str, Any], list[Observations]]:
    """Labels of the cell's condition, and what is measured under it."""
    condition = condition_for(cell, context)
    with applied(context.model(cell.model), condition) as model:
        return condition.labels, observe(model, cell.measurement, context.texts)


def _under_own_conditions(cell: Cell, context: Context) -> tuple[Mapping[str, Any], list[Observations]]:
    """`_under_condition` where every question has neurons, and so a condition, of its own; n_neurons is their mean.

    The same numbers as `deactivation_study`, which takes all types and seeds at once.
    """
    model, bos = context.model(cell.model), cell.reading.bos
    questions = checked_questions(model, context.texts.questions[cell.evaluation], bos)
    conditions, scores = [], []
    for number, (same, types) in enumerate(
        question_types(model, questions, float(dict(cell.settings)["threshold"]), bos)
    ):
        condition = _condition_in(cell, types, context.layers(cell), number=number, n_sets=len(questions))
        with applied(model, condition):
            scores += margins(model, same)
        conditions.append(condition)
    n_neurons = round(float(np.mean([condition.labels["n_neurons"] for condition in conditions])))
    asked = [question for same in questions for question in same]
    return labelled(conditions[0], n_neurons=n_neurons).labels, by_language(asked, scores)


def condition_for(cell: Cell, context: Context) -> Condition:
    """The group's neurons changed, or random ones in their place, in all parts of the cell together."""
    parts = []
    for choice in choices_of(cell):
        change = partial(_interventions_of, cell, context)
        draw = _ANOTHER_DRAW * PARTS.index(choice.part)
        found = context.neurons(choice, cell.model)
        parts.append(_condition_in(cell, found, context.layers(cell), change, number=draw))
    n_neurons = sum(condition.labels["n_neurons"] for condition in parts)
    interventions = tuple(i for condition in parts for i in condition.interventions)
    return Condition({**parts[0].labels, "n_neurons": n_neurons}, interventions)


def _condition_in(
    cell: Cell, found: NeuronSet, layers: range, change: Changing = zero, *, number: int = 0, n_sets: int = 1
) -> Condition:
    """The cell's group of these neurons changed in these layers, or as many random ones per layer.

    Args:
        number, n_sets: as of `with_controls`.
    """
    neurons = found.in_layers(layers)
    seeds = [] if cell.seed == NOT_RANDOM else [cell.seed]
    name, seed, drawn = beside_random(neurons, seeds, number=number, n_sets=n_sets)[-1]
    return condition_of(name, drawn[cell.group], change, seed)


def _interventions_of(cell: Cell, context: Context, neurons: NeuronSet) -> tuple[Intervention, ...]:
    """What the cell does to its neurons."""
    kind, value = cell.intervention.kind, cell.intervention.value
    site = "post" if cell.site == "up" else cell.site
    if not isinstance(value, str):
        return (Intervention(kind, neurons, value, site),)
    evidence = context.recorded(recording_of(cell, VALUES_FROM[value]), cell.model)
    if value == "median":
        return (Intervention(kind, neurons, medians(evidence)[..., evidence.languages.index(cell.group)], site),)
    if kind == "set":
        return (set_to_mean(neurons, evidence, cell.group),)
    add = add_mean if value == "mean" else add_mean_difference
    return (add(neurons, evidence, cell.group, strength=cell.intervention.strength),)
