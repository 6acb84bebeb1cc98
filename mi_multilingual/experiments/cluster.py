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

from ..evidence.activations import (
    ActivationStats,
    batch_shape,
    batch_stats,
    checked_finite,
    corpus_batches,
    joined,
    nothing_recorded,
)
from ..models.hooked import site_of
from ..tokens import TokenRows
from .cells import Cell
from .context import Context, base_key
from .detectors import Evidence, needs, save
from .measures import Observations
from .sweep import Attempt, Runner, run_cell
from .workers import Outcome, Pool, workers

Recording = tuple[Evidence, Cell]
"""Evidence, and a cell that needs it."""


def on_ray(address: str, *, n_workers: int | None = None) -> Runner:
    """A runner for `run` and `resume` that shares the work out over a Ray cluster.

    Recordings are cut into batches, which are added up in the order of a recording in one process; so every number is
    that of the serial run, to the last bit where the workers compute as this process would (one thread, or the same
    GPU). Cells then go to workers one by one; each worker has its model in memory over all of them. What fails, or
    loses its worker, is tried again (see `mi_multilingual.experiments.workers`).

    Args:
        address: "local", "auto" or the address of a cluster. Its machines must see the run folder, and models and
            texts that lie in folders.
        n_workers: at most so many; one a GPU by default, without GPUs one a core.
    """

    def runner(cells: Sequence[Cell], context: Context) -> Iterator[Attempt | str]:
        # What this process loaded to plan the cells leaves the memory of the GPU to the workers.
        context.forget_model()
        gc.collect()
        torch.cuda.empty_cache()
        with workers(address, partial(Context, context.study, context.folder), n_workers=n_workers) as pool:
            # A model after another, so that each worker loads each model once.
            for name in dict.fromkeys(cell.model for cell in cells):
                yield from record_and_run(pool, [cell for cell in cells if cell.model == name], context)

    return runner


def record_and_run(pool: Pool, cells: Sequence[Cell], context: Context) -> Iterator[Attempt | str]:
    """All cells of one model: what they choose neurons from, what they compare with, then themselves."""
    errors: dict[Evidence, Outcome] = {}
    yield from record_missing(pool, cells, context, errors)
    yield ""
    ready = []
    for cell in cells:
        wrong = next((errors[e] for e in needs(cell) if e in errors), None)
        if wrong is None:
            ready.append(cell)
        else:
            yield Attempt(cell, None, 0.0, wrong.error, wrong.trace)
    # Made once, not once a worker; where it fails, the cells will say why.
    firsts = {base_key(cell): cell for cell in reversed(ready)}
    bases = {base_key(o.item): o.result for o in pool.run(base, reversed(firsts.values()))}
    for outcome in pool.run(measured, ((cell, bases[base_key(cell)]) for cell in ready)):
        table, seconds = outcome.result or (None, 0.0)
        yield Attempt(outcome.item[0], table, seconds, outcome.error, outcome.trace)


def record_missing(
    pool: Pool, cells: Sequence[Cell], context: Context, errors: dict[Evidence, Outcome]
) -> Iterator[str]:
    """Everything the cells choose neurons from that is not in the run folder yet; failures go to `errors`."""
    missing = [r for r in recordings(cells) if not there(r, context)]
    for recording in [r for r in missing if r[0].kind == "stats"]:
        try:
            yield from record_by_batches(pool, recording, context)
        except Failed as failed:
            errors[recording[0]] = failed.outcome
        except ValueError as error:
            errors[recording[0]] = Outcome(0, recording, error=f"ValueError: {error}", trace=traceback.format_exc())
    for outcome in pool.run(record_whole, [r for r in missing if r[0].kind != "stats"]):
        yield f"recorded {outcome.item[0].kind}"
        if outcome.error:
            errors[outcome.item[0]] = outcome


def recordings(cells: Sequence[Cell]) -> list[Recording]:
    """What the cells need, each once."""
    found: dict[Evidence, Cell] = {}
    for cell in cells:
        for evidence in needs(cell):
            found.setdefault(evidence, cell)
    return list(found.items())


def there(recording: Recording, context: Context) -> bool:
    path = context.cached(recording[0].kind, recording[0].key)
    return path is not None and path.exists()


def record_by_batches(pool: Pool, recording: Recording, context: Context) -> Iterator[str]:
    """Statistics of one recording, a batch a worker, kept in the run folder.

    Raises:
        Failed: a batch could not be recorded.
    """
    evidence, _ = recording
    [begun] = map(checked, pool.run(begin, [recording]))
    empty, tokenizer, shape = begun.result
    batches = corpus_batches(context.corpus("identify"), tokenizer, **shape, layout=evidence.layout)
    parts = {language: empty.take([language]) for language in empty.languages}
    early: dict[int, ActivationStats] = {}
    n_added, n_tokens, started = 0, 0, time.monotonic()
    for outcome in map(checked, pool.run(one_batch, ((recording, batch) for batch in batches))):
        early[outcome.index] = outcome.result
        # Added in the order of the batches: in another order the last bits of the sums would differ.
        while n_added in early:
            part = early.pop(n_added)
            parts[part.languages[0]] += part
            n_added += 1
        n_tokens += int(outcome.result.n_tokens)
        yield f"recording: {n_tokens:,} tokens, {n_tokens / (time.monotonic() - started):,.0f} a second"
    save(context.cached(evidence.kind, evidence.key), checked_finite(joined(parts)))


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


def begin(context: Context, recording: Recording) -> tuple[ActivationStats, Any, dict[str, int]]:
    """In a worker: the statistics of nothing, the tokenizer, and window and batch size."""
    evidence, cell = recording
    context.check(cell)
    model = context.model(cell.model)
    window, batch_size = batch_shape(model, evidence.window, "auto")
    empty = nothing_recorded(model, context.corpus("identify"), site=evidence.site)
    return empty, model.tokenizer, {"window": window, "batch_size": batch_size}


def one_batch(context: Context, item: tuple[Recording, TokenRows]) -> ActivationStats:
    """In a worker: the statistics of one batch."""
    (evidence, cell), batch = item
    context.check(cell)
    model = context.model(cell.model)
    corpus = context.corpus("identify")
    empty = context.once(("recorded", evidence.key), lambda: nothing_recorded(model, corpus, site=evidence.site))
    return batch_stats(model, site_of(model, evidence.site), batch, empty.take([batch.language]))


def record_whole(context: Context, recording: Recording) -> None:
    """In a worker: a recording that is not cut, kept in the run folder."""
    evidence, cell = recording
    context.check(cell)
    context.recorded(evidence, cell.model)


def base(context: Context, cell: Cell) -> list[Observations]:
    """In a worker: what the cell measures, of the unchanged model."""
    return context.base(cell)


def measured(context: Context, item: tuple[Cell, list[Observations] | None]) -> tuple[pd.DataFrame, float]:
    """In a worker: the rows of a cell, and the seconds they took."""
    cell, known = item
    started = time.monotonic()
    context.model(cell.model)
    if known is not None:
        context.made[base_key(cell)] = known
    table = run_cell(cell, context)
    return table, time.monotonic() - started
