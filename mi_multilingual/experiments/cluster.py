"""The cells of a study on a Ray cluster: the same cells, the same numbers, many at a time."""

from __future__ import annotations

import gc
import time
import traceback
from collections.abc import Iterator, Sequence
from functools import partial
from typing import Any

import pandas as pd
import torch
from transformers import PreTrainedTokenizerBase

from ..evidence.activations import (
    ActivationStats,
    batch_stats,
    checked_batch_size,
    checked_finite,
    corpus_batches,
    joined,
    nothing_recorded,
)
from ..evidence.table import kind_of
from ..models.hooked import as_it_runs, site_of
from ..storage import save
from ..tokens import TokenRows, tokenizer_rows
from .attempts import in_one_line
from .cells import Cell
from .context import Context
from .execution import Attempt, Runner, run_cell
from .measures import Observations
from .recordings import Recording, needs
from .whole import WholeCell, WholeContext, run_whole
from .workers import Outcome, Pool, workers

_Wanted = tuple[Recording, Cell]
"""A recording, and a cell that needs it."""


def on_ray(address: str, *, n_workers: int | None = None) -> Runner:
    """A runner for `run` and `resume` that shares the work out over a Ray cluster.

    Recordings are cut into batches, which are added up in the order of a recording in one process; so every number is
    that of the serial run, to the last bit where the workers compute as this process would (one thread, or the same
    GPU). Cells then go to workers one by one; each worker has its model in memory over all of them. What fails, or
    loses its worker, is tried again (see `mi_multilingual.experiments.workers`).

    Args:
        address: "local", "auto" or the address of a cluster. Its machines must see the run folder, and models and
            texts that lie in folders.
        n_workers: at most so many; one per GPU by default, without GPUs one per core.
    """

    def runner(cells: Sequence[Any], context: Any) -> Iterator[Attempt | str]:
        # What this process loaded to plan the cells leaves the memory of the GPU to the workers.
        context.forget_model()
        gc.collect()
        torch.cuda.empty_cache()
        with workers(address, partial(type(context), context.study, context.folder), n_workers=n_workers) as pool:
            if isinstance(context, WholeContext):
                yield from _run_whole_studies(pool, cells)
                return
            # A model after another, so that each worker loads each model once.
            for name in dict.fromkeys(cell.model for cell in cells):
                yield from record_and_run(pool, [cell for cell in cells if cell.model == name], context)

    return runner


def _run_whole_studies(pool: Pool, cells: Sequence[WholeCell]) -> Iterator[Attempt]:
    """Whole studies, one per worker at a time."""
    for outcome in pool.run(_whole_rows, cells):
        table, seconds = outcome.result or (None, 0.0)
        yield Attempt(outcome.item, table, seconds, outcome.error, outcome.trace)


def _whole_rows(context: WholeContext, cell: WholeCell) -> tuple[pd.DataFrame, float]:
    """In a worker: the rows of a whole study, and the seconds they took."""
    started = time.monotonic()
    table = run_whole(cell, context)
    return table, time.monotonic() - started


def record_and_run(pool: Pool, cells: Sequence[Cell], context: Context) -> Iterator[Attempt | str]:
    """All cells of one model, after what they choose neurons from and what they are compared with."""
    errors: dict[Recording, Outcome] = {}
    yield from _record_missing(pool, cells, context, errors)
    yield ""
    ready = []
    for cell in cells:
        wrong = next((errors[recording] for recording in needs(cell) if recording in errors), None)
        if wrong is None:
            ready.append(cell)
        else:
            yield Attempt(cell, None, 0.0, wrong.error, wrong.trace)
    # Made once, not once per worker; where it fails, the cells will say why.
    firsts = {cell.measurement: cell for cell in reversed(ready)}
    bases = {o.item.measurement: o.result for o in pool.run(_cell_base, reversed(firsts.values()))}
    for outcome in pool.run(cell_rows, ((cell, bases[cell.measurement]) for cell in ready)):
        table, seconds = outcome.result or (None, 0.0)
        yield Attempt(outcome.item[0], table, seconds, outcome.error, outcome.trace)


def _record_missing(
    pool: Pool, cells: Sequence[Cell], context: Context, errors: dict[Recording, Outcome]
) -> Iterator[str]:
    """Everything the cells choose neurons from that is not in the run folder yet; failures go to `errors`."""
    missing = [wanted for wanted in _all_wanted(cells) if not there(wanted[0], context)]
    in_batches = [wanted for wanted in missing if kind_of(wanted[0].kind).noun is ActivationStats]
    for wanted in in_batches:
        try:
            yield from _record_by_batches(pool, wanted, context)
        except Failed as failed:
            errors[wanted[0]] = failed.outcome
        except ValueError as error:
            errors[wanted[0]] = Outcome(0, wanted, error=in_one_line(error), trace=traceback.format_exc())
    for outcome in pool.run(_record_whole, [wanted for wanted in missing if wanted not in in_batches]):
        yield f"recorded {outcome.item[0].kind}"
        if outcome.error:
            errors[outcome.item[0]] = outcome


def _all_wanted(cells: Sequence[Cell]) -> list[_Wanted]:
    """Everything that the cells need, each once."""
    found: dict[Recording, Cell] = {}
    for cell in cells:
        for recording in needs(cell):
            found.setdefault(recording, cell)
    return list(found.items())


def there(recording: Recording, context: Context) -> bool:
    path = context.cached(recording)
    return path is not None and path.exists()


def _record_by_batches(pool: Pool, wanted: _Wanted, context: Context) -> Iterator[str]:
    """Statistics of one recording, one batch per worker, kept in the run folder.

    Raises:
        Failed: a batch could not be recorded.
    """
    path = context.cached(wanted[0])
    assert path is not None, "a sweep on a cluster has a folder"
    [begun] = map(checked, pool.run(begin, [wanted]))
    empty, tokenizer, batch_size = begun.result
    rows = list(tokenizer_rows(tokenizer, context.corpus("identify"), empty.reading, progress=False))
    batches, n_all = corpus_batches(rows, batch_size), sum(own.n_tokens for own in rows)
    parts = {language: empty.take([language]) for language in empty.languages}
    early: dict[int, ActivationStats] = {}
    n_added, n_tokens, started = 0, 0, time.monotonic()
    for outcome in map(checked, pool.run(one_batch, ((wanted, batch) for batch in batches))):
        early[outcome.index] = outcome.result
        # Added in the order of the batches: in another order the last bits of the sums would differ.
        while n_added in early:
            part = early.pop(n_added)
            parts[part.languages[0]] += part
            n_added += 1
        n_tokens += int(outcome.result.n_tokens)
        yield f"recording: {n_tokens:,} of {n_all:,} tokens, {n_tokens / (time.monotonic() - started):,.0f} per second"
    save(checked_finite(joined(parts)), path)


class Failed(Exception):
    """A step of a recording failed for good."""

    def __init__(self, outcome: Outcome):
        super().__init__(outcome.error)
        self.outcome = outcome


def checked(outcome: Outcome) -> Outcome:
    """The outcome, if it has a result."""
    if outcome.error:
        raise Failed(outcome)
    return outcome


def _beginning(context: Context, wanted: _Wanted) -> ActivationStats:
    """In a worker: the statistics of nothing, as the recording wants them."""
    recording, cell = wanted
    context.check(cell)
    model, corpus = context.model(cell.model), context.corpus("identify")

    def make() -> ActivationStats:
        return nothing_recorded(model, corpus, recording.reading, site=recording.site, **dict(recording.options))

    return context.beginnings.once(recording, make)


def begin(context: Context, wanted: _Wanted) -> tuple[ActivationStats, PreTrainedTokenizerBase, int]:
    """In a worker: the statistics of nothing, the tokenizer, and the rows of a batch."""
    empty, model = _beginning(context, wanted), context.model(wanted[1].model)
    return empty, model.tokenizer, checked_batch_size(model, empty.reading, "auto")


def one_batch(context: Context, item: tuple[_Wanted, TokenRows]) -> ActivationStats:
    """In a worker: the statistics of one batch."""
    (recording, cell), batch = item
    empty = _beginning(context, (recording, cell))
    model = context.model(cell.model)
    reader = as_it_runs(model, site_of(model, recording.site))
    return batch_stats(model, reader, batch, empty.take([batch.language]))


def _record_whole(context: Context, wanted: _Wanted) -> None:
    """In a worker: a recording that is not cut, kept in the run folder."""
    recording, cell = wanted
    context.check(cell)
    context.recorded(recording, cell.model)


def _cell_base(context: Context, cell: Cell) -> list[Observations]:
    """In a worker: the cell's measure of the unchanged model."""
    return context.base(cell)


def cell_rows(context: Context, item: tuple[Cell, list[Observations] | None]) -> tuple[pd.DataFrame, float]:
    """In a worker: the rows of a cell, and the seconds they took."""
    cell, known = item
    started = time.monotonic()
    context.model(cell.model)
    if known is not None:
        context.bases.once(cell.measurement, lambda: known)
    table = run_cell(cell, context)
    return table, time.monotonic() - started
