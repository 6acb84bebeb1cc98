"""A sweep in its run folder: begun, gone on with, looked at, read back."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pandas as pd
import yaml
from pydantic_core import to_jsonable_python
from tqdm.auto import tqdm

from .cells import SCHEMA, Cell, cells_of
from .config import Models, Study
from .context import Context
from .environment import earlier_starts, environment
from .execution import AnyCell, AnyContext, Attempt, Runner, serial
from .loading import load_study, placed
from .store import Store, Unreadable, damaged
from .summary import effects
from .whole import SCHEMA as WHOLE_SCHEMA
from .whole import WholeCell, WholeContext, WholeStudies, tables_of, whole_cells, write_tables

_KINDS: dict[str | None, type[AnyCell]] = {SCHEMA: Cell, WHOLE_SCHEMA: WholeCell}


@dataclass(frozen=True, eq=False)
class Progress:
    """How far a sweep is."""

    n_cells: int
    done: int
    failed: pd.DataFrame
    """One row per failed cell: cell, what it was, and error."""
    broken: tuple[str, ...]
    """Result files whose content is not what was written; their cells run again."""
    outdated: int
    """Results of cells that are not in the study as it is now, kept but not in its table."""
    holder: str
    """Who is running it now; empty where nobody is."""
    seconds: float
    """Time that the cells took which are done, together."""

    @property
    def complete(self) -> bool:
        return self.done == self.n_cells


def run(study: Models, folder: Path | str, *, runner: Runner | None = None, progress: bool = True) -> Progress:
    """Run the study's cells that have no result yet; interrupted at any moment, the same call goes on.

    Args:
        folder: the run folder (see `mi_multilingual.experiments.store`); may hold an earlier run.
        runner: `serial` by default.

    Returns:
        how far it came; cells that failed are listed there, and the others ran.

    Raises:
        ValueError: before anything runs: an input that cannot be loaded, or a folder that another process holds or
            another version of this package wrote.
        Unwritable: the disk is full or the folder read-only; what is done is safe.
    """
    study = placed(study, Path.cwd())
    store = Store(Path(folder))
    with suppress(Unreadable):  # a list of cells that is not there or damaged is written anew
        planned(store)
    with store.locked():
        store.sweep_up()
        context, inputs, cells = _begun(study, store.folder)
        _write_plan(store, study, cells, to_jsonable_python(inputs))
        complete(store, cells, lambda todo: (runner or serial)(todo, context), progress=progress)
        _write_tables(store, cells)
    return status(folder)


def _begun(study: Models, folder: Path) -> tuple[AnyContext, Any, Sequence[AnyCell]]:
    """The context of the study's cells, the fingerprints of what goes in, and the cells."""
    if isinstance(study, WholeStudies):
        whole = WholeContext(study, folder)
        return whole, (inputs := whole.inputs()), whole_cells(study, inputs)
    assert isinstance(study, Study), "there are two kinds of study files"
    context = Context(study, folder)
    return context, (inputs := context.inputs()), cells_of(study, inputs)


def resume(folder: Path | str, *, runner: Runner | None = None, progress: bool = True) -> Progress:
    """Go on with the run in the folder, by the study it began with; inputs that changed since are run anew."""
    return run(read_study(folder), folder, runner=runner, progress=progress)


def read_study(folder: Path | str) -> Models:
    """The study of a run folder."""
    path = Store(Path(folder)).path("study.yaml")
    if not path.exists():
        raise ValueError(f"{folder} must hold a sweep, got no study.yaml; begin one with `mi-multilingual run`")
    return load_study(path)


def status(folder: Path | str) -> Progress:
    """How far the sweep in the folder is; reads only."""
    store = Store(Path(folder))
    cells = planned(store)
    keys = [cell.key for cell in cells]
    whole, broken = store.check_results(keys)
    failures = store.failures()
    failed = [(c.key, c.words, failures[c.key]["error"]) for c in cells if c.key in failures and c.key not in whole]
    return Progress(
        len(cells),
        len(whole),
        pd.DataFrame(failed, columns=["cell", "what", "error"]),
        tuple(broken),
        len(set(store.results()) - set(keys)),
        store.holder() if store.is_held() else "",
        float(sum(store.seconds(keys))),
    )


def results(folder: Path | str) -> pd.DataFrame:
    """The table of a sweep, cells in the order of the study: one row per cell, language evaluated and measure.

    =============  ====================================================================================================
    cell           key of the cell, the name of its file in results/
    model          as the study names it, and @revision where it gives revisions
    detector       and parameters (JSON), rate (NaN where the detector takes none), site, layers, part
    intervention   in words: zero, set -1.5, set mean, add 2 x mean-difference ...
    condition      "chosen": the group's own neurons are changed; "random": as many random ones per layer
    group          the language, or the type of detector sharing, whose neurons are changed
    seed           of the random neurons; -1 for the group's own
    n_neurons      changed; where every question loses neurons of its own, on average
    evaluation     language, facts, generation, or the name of a task set
    evaluated      language of the text, question or prompt; empty for text without a prompt
    measure        loss (nats per token), accuracy, margin (the right answer's lead, nats), target share, own share
    n              rows of text, questions or texts
    base, value    the measure of the model as it is, and as it was changed
    change         value - base, with low and high, its 95 % bootstrap interval
    =============  ====================================================================================================

    Raises:
        ValueError: a folder that is no sweep, or one of another version of this package.
    """
    store = Store(Path(folder))
    return store.table([cell.key for cell in planned(store)])


def study_tables(folder: Path | str) -> dict[str, pd.DataFrame]:
    """The tables of a run of whole studies, by name: columns model and settings (JSON), then those of the study.

    Raises:
        ValueError: a folder that is no run of whole studies, or one of another version of this package.
    """
    rows = Store(Path(folder)).table([cell.key for cell in planned(Store(Path(folder)))])
    if "content" not in rows:
        raise ValueError(f"folder must hold whole studies that have run, got {folder}; `results` reads sweeps")
    found: dict[str, list[pd.DataFrame]] = {}
    for _, own in rows.groupby("cell", sort=False):
        labels = {"model": own.model.iloc[0], "settings": own.settings.iloc[0]}
        for name, table in tables_of(own).items():
            if taken := [label for label in labels if label in table]:
                raise ValueError(f"{name} of {folder} must not have a column {taken[0]!r} of its own; run it again")
            named = pd.DataFrame([labels] * len(table), index=table.index)
            found.setdefault(name, []).append(pd.concat([named, table], axis=1))
    return {name: pd.concat(parts, ignore_index=True) for name, parts in found.items()}


def planned(store: Store) -> list[AnyCell]:
    """The cells of the folder's study.

    Raises:
        Unreadable: there are none, or the file is damaged.
        ValueError: another version of this package wrote them.
    """
    content = store.read_json("cells.json")
    kind = _KINDS.get(content.get("schema")) if isinstance(content, dict) else None
    if kind is None:
        raise ValueError(
            f"{store.folder} was written by another version of mi_multilingual, whose numbers are not added to; begin "
            f"anew with `mi-multilingual run {store.folder}/study.yaml --out ANOTHER_FOLDER`"
        )
    try:
        return [kind.of(cell) for cell in content["cells"]]
    except (KeyError, ValueError) as error:
        raise damaged(store.path("cells.json"), "other fields") from error


def _write_plan(store: Store, study: Models, cells: Sequence[AnyCell], inputs: dict[str, Any]) -> None:
    """Everything of the folder that is known before the first cell runs."""
    settings = yaml.safe_dump(study.model_dump(mode="json"), sort_keys=False, allow_unicode=True)
    store.write(store.path("study.yaml"), settings.encode())
    store.write_json("fingerprints.json", inputs)
    store.write_json("environment.json", [*earlier_starts(store), environment(study)])
    schema = WHOLE_SCHEMA if isinstance(study, WholeStudies) else SCHEMA
    store.write_json("cells.json", {"schema": schema, "cells": [cell.plain() for cell in cells]})


def _write_tables(store: Store, cells: Sequence[AnyCell]) -> None:
    """The results in one table, and what they say of each setting; both can be made again from results/."""
    table = store.table([cell.key for cell in cells])
    if "content" in table:
        write_tables(table, store.folder)
        return
    made = {} if table.empty else {"sweep.parquet": table, "sweep_effects.parquet": effects(table)}
    for name in ("sweep.parquet", "sweep_effects.parquet"):
        if name in made:
            store.write(store.path(name), made[name].to_parquet(index=False))
        else:
            store.path(name).unlink(missing_ok=True)


def complete(
    store: Store,
    cells: Sequence[Any],
    runner: Callable[[Sequence[Any]], Iterator[Attempt | str]],
    *,
    progress: bool = True,
) -> None:
    """Run the cells without a whole result file, and write each result as it comes. The lock must be held."""
    done, _ = store.check_results([cell.key for cell in cells], set_aside=True)
    todo = [cell for cell in cells if cell.key not in done]
    n_failed = 0
    with tqdm(total=len(cells), initial=len(cells) - len(todo), desc="cells", unit="cell", disable=not progress) as bar:
        for attempt in runner(todo) if todo else ():
            if isinstance(attempt, str):
                bar.set_postfix_str(attempt)
                continue
            if attempt.table is not None:
                store.add_result(attempt.cell.key, attempt.table, seconds=attempt.seconds)
            else:
                n_failed += 1
                store.add_failure(attempt.cell.key, {"error": attempt.error, "trace": attempt.trace})
                bar.set_postfix_str(f"{n_failed} failed")
            bar.update()
