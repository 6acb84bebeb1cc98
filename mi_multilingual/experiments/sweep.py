"""Running a study: cell after cell, each once, whatever happens in between."""

import importlib.metadata
import os
import platform
import subprocess
import time
import traceback
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import pandas as pd
import torch
from tqdm.auto import tqdm

from ..detectors.average_precision import medians
from ..models.hooked import HookedModel, is_gated
from ..neurons import PARTS, NeuronSet
from ..patching.changes import Intervention, add_mean, add_mean_difference, check_fits, set_to_mean
from ..patching.conditions import layer_matched_random
from ..patching.hooks import steer
from ..patching.weights import rewritten
from .cells import NOT_RANDOM, Cell, cells_of, region
from .config import Study
from .context import Context
from .detectors import evidence_of
from .measures import answers_without_own, compared, observe
from .store import Store, Unwritable
from .summary import effects

PACKAGES = ("mi_multilingual", "transformer-lens", "torch", "transformers", "numpy", "pandas", "pyarrow", "pydantic")
COLUMNS = ("model", "detector", "parameters", "rate", "site", "layers", "part", "intervention", "ablated", "seed")
ANOTHER_DRAW = 1_000_003  # between the seeds of parts: q and k columns drawn alike would undo each other's effect


@dataclass(frozen=True, eq=False)
class Attempt:
    """What became of one cell: a table, or an error."""

    cell: Any
    table: pd.DataFrame | None
    seconds: float
    error: str = ""
    trace: str = ""


Runner = Callable[[Sequence[Cell], Context], Iterator[Attempt | str]]
"""Runs cells in any order and place, and yields an attempt for each as it ends; a cell's error must not end it.

In between it may yield words on what it is doing, for the progress bar. The context has been used to plan; another
process makes its own: `Context(context.study, context.folder)`.
"""


@dataclass(frozen=True, eq=False)
class Progress:
    """How far a sweep is."""

    n_cells: int
    done: int
    failed: pd.DataFrame
    """A row a failed cell: cell, what it was, and error."""
    broken: tuple[str, ...]
    """Result files whose content is not what was written; their cells run again."""
    outdated: int
    """Results of cells that are not in the study as it is now, kept but not in its table."""
    holder: str
    """Who is running it now; empty where nobody is."""
    seconds: float
    """That the cells which are done took, together."""

    @property
    def complete(self) -> bool:
        return self.done == self.n_cells


def run(study: Study, folder: Path | str, *, runner: Runner | None = None, progress: bool = True) -> Progress:
    """Run the study's cells that have no result yet; interrupted at any moment, the same call goes on.

    Args:
        folder: the run folder (see `mi_multilingual.experiments.store`); may hold an earlier run.
        runner: `serial` by default.

    Returns:
        how far it came; cells that failed are listed there, and the others ran.

    Raises:
        ValueError: before anything runs: an input that cannot be loaded, or a folder that another process holds.
        Unwritable: the disk is full or the folder read-only; what is done is safe.
    """
    from .loading import placed

    study = placed(study, Path.cwd())
    store = Store(Path(folder))
    with store.locked():
        store.sweep_up()
        context = Context(study, store.folder)
        inputs = context.inputs()
        cells = cells_of(study, inputs)
        write_plan(store, study, cells, asdict(inputs))
        complete(store, cells, lambda todo: (runner or serial)(todo, context), progress=progress)
        write_tables(store, cells)
    return status(folder)


def resume(folder: Path | str, *, runner: Runner | None = None, progress: bool = True) -> Progress:
    """Go on with the run in the folder, by the study it began with; inputs that changed since are run anew."""
    return run(read_study(folder), folder, runner=runner, progress=progress)


def read_study(folder: Path | str) -> Study:
    """The study of a run folder."""
    from .loading import load_study

    path = Store(Path(folder)).path("study.yaml")
    if not path.exists():
        raise ValueError(f"{folder} has no study.yaml, so it is no sweep; begin one with `mi-multilingual run`")
    return load_study(path)


def status(folder: Path | str) -> Progress:
    """How far the sweep in the folder is; reads only."""
    store = Store(Path(folder))
    cells = planned(store)
    keys = [cell.key for cell in cells]
    whole, broken = store.check_results(keys)
    failures = store.failures()
    failed = [(c.key, in_words(c), failures[c.key]["error"]) for c in cells if c.key in failures and c.key not in whole]
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
    """The table of a sweep, cells in the order of the study: one row a measure, language evaluated and cell.

    =============  ====================================================================================================
    cell           key of the cell, the name of its file in results/
    model          as the study names it
    detector       and parameters (JSON), rate (NaN where the detector takes none), site, layers, part
    intervention   in words: zero, set -1.5, set mean, add 2 x mean-difference ...
    ablated        the language (of detector sharing: the type) whose neurons are changed
    seed           of random neurons in their place, as many a layer; -1: the detected neurons themselves
    n_neurons      changed; where every question loses neurons of its own, on average
    evaluation     language, facts, generation, or the name of a task set
    evaluated      language of the text, question or prompt; "none" for text without a prompt
    measure        loss (nats a token), accuracy, margin (the right answer's lead, nats), target share, own share
    n              rows of text, questions or texts
    base, value    the measure of the model as it is, and as it was changed
    change         value - base, with low and high, its 95 % bootstrap interval
    =============  ====================================================================================================
    """
    store = Store(Path(folder))
    return store.table([cell.key for cell in planned(store)])


def planned(store: Store) -> list[Cell]:
    """The cells of the folder's study."""
    return [Cell.of(content) for content in store.read_json("cells.json")]


def in_words(cell: Cell) -> str:
    """The cell in a few words, for a list of failures."""
    who = cell.ablated if cell.seed == NOT_RANDOM else f"{cell.ablated} (random {cell.seed})"
    rate = "" if cell.rate is None else f" {cell.rate:g}"
    return f"{cell.model}, {cell.detector}{rate} at {cell.site}, {cell.intervention}, {who}, {cell.evaluation}"


def write_plan(store: Store, study: Study, cells: Sequence[Cell], inputs: dict[str, Any]) -> None:
    """Everything of the folder that is known before the first cell runs."""
    import yaml

    settings = yaml.safe_dump(study.model_dump(mode="json"), sort_keys=False, allow_unicode=True)
    store.write(store.path("study.yaml"), settings.encode())
    store.write_json("fingerprints.json", inputs)
    store.write_json("environment.json", [*earlier_starts(store), environment(study)])
    store.write_json("cells.json", [asdict(cell) for cell in cells])


def write_tables(store: Store, cells: Sequence[Cell]) -> None:
    """The results in one table, and what they say of each setting; both can be made again from results/."""
    table = store.table([cell.key for cell in cells])
    made = {} if table.empty else {"sweep.parquet": table, "sweep_effects.parquet": effects(table)}
    for name in ("sweep.parquet", "sweep_effects.parquet"):
        if name in made:
            store.write(store.path(name), made[name].to_parquet(index=False))
        else:
            store.path(name).unlink(missing_ok=True)


def earlier_starts(store: Store) -> list[dict[str, Any]]:
    """The environments of earlier starts; a damaged file is set aside."""
    path = store.path("environment.json")
    if not path.exists():
        return []
    try:
        return store.read_json("environment.json")
    except ValueError:
        store.set_aside(path)
        return []


def environment(study: Study) -> dict[str, Any]:
    """Versions, commit, hardware and seeds of this start."""
    gpus = [torch.cuda.get_device_name(i) for i in range(torch.cuda.device_count())]
    return {
        "started": time.strftime("%Y-%m-%dT%H:%M:%S%z"),
        "versions": {name: importlib.metadata.version(name) for name in PACKAGES},
        "python": platform.python_version(),
        "commit": commit(),
        "platform": platform.platform(),
        "processors": os.cpu_count(),
        "threads": torch.get_num_threads(),
        "gpus": gpus,
        "seeds": {"random neurons": list(study.seeds), "generation": study.generation.seed, "bootstrap": 0},
    }


def commit() -> str | None:
    """The git commit of the working folder, with "+" where files were changed; None outside a repository."""
    try:
        found = subprocess.run(
            ["git", "describe", "--always", "--abbrev=40", "--dirty=+"],
            capture_output=True,
            text=True,
            timeout=10,
            check=True,
        )
    except (OSError, subprocess.SubprocessError):
        return None
    return found.stdout.strip()


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


def serial(cells: Sequence[Cell], context: Context) -> Iterator[Attempt]:
    """The cells one after another in this process."""
    for cell in cells:
        yield attempt(cell, context)


def attempt(cell: Cell, context: Context) -> Attempt:
    """Run the cell; an error becomes part of the answer, except that the folder cannot be written."""
    started = time.monotonic()
    try:
        table = run_cell(cell, context)
    except Unwritable:
        raise
    except Exception as error:
        reason = " ".join(f"{type(error).__name__}: {error}".split())
        return Attempt(cell, None, time.monotonic() - started, reason, traceback.format_exc())
    return Attempt(cell, table, time.monotonic() - started)


def run_cell(cell: Cell, context: Context) -> pd.DataFrame:
    """The rows of one cell (see `results`); needs nothing but its arguments and leaves the model as it was."""
    context.check(cell)
    model, base = context.model(cell.model), context.base(cell)
    if cell.by_input:
        now, n_neurons = answers_without_own(model, cell, context.texts())
    else:
        neurons = own_neurons(cell, context)
        n_neurons = sum(int(one.union().sum()) for one in neurons)
        with applied(model, cell, neurons, context):
            now = observe(model, cell, context.texts())
    table = compared(now, base)
    own = {"cell": cell.key} | {name: getattr(cell, name) for name in COLUMNS}
    own |= {"rate": float("nan") if cell.rate is None else cell.rate, "n_neurons": n_neurons}
    own |= {"evaluation": cell.evaluation}
    return pd.concat([pd.DataFrame([own] * len(table)), table], axis=1)


def own_neurons(cell: Cell, context: Context) -> tuple[NeuronSet, ...]:
    """The neurons the cell changes: of one group, in its layers, or random ones in their place; a set a part."""
    found = []
    for neurons in context.neurons(cell):
        inside = neurons.in_layers(region(cell.layers, neurons.masks.shape[1]))
        if cell.seed != NOT_RANDOM:
            inside = layer_matched_random(inside, seed=cell.seed + ANOTHER_DRAW * PARTS.index(neurons.part))
        found.append(inside[cell.ablated])
    return tuple(found)


def applied(
    model: HookedModel, cell: Cell, neurons: Sequence[NeuronSet], context: Context
) -> AbstractContextManager[Any]:
    """The model with the cell's neurons changed: in its weights where they can carry it, by hooks elsewhere."""
    for one in neurons:
        check_fits(model, one)
    interventions = [intervention_of(cell, one, context) for one in neurons if one.union().any()]
    if not interventions:
        return nullcontext()
    by_hook = is_gated(model) and interventions[0].site == "gate" and cell.kind in ("set", "add")
    return steer(model, *interventions) if by_hook else rewritten(model, interventions)


def intervention_of(cell: Cell, neurons: NeuronSet, context: Context) -> Intervention:
    """What the cell does to its neurons."""
    site = "post" if cell.site == "up" else cell.site
    if not isinstance(cell.value, str):
        return Intervention(cell.kind, neurons, cell.value, site)
    if cell.value == "median":
        texts = context.recorded(evidence_of(cell, "texts"), cell.model)
        table = medians(texts)[..., texts.languages.index(cell.ablated)]
        return Intervention("set", neurons, table, site)
    stats = context.recorded(evidence_of(cell, "stats"), cell.model)
    if cell.kind == "set":
        return set_to_mean(neurons, stats, cell.ablated)
    add = add_mean if cell.value == "mean" else add_mean_difference
    return add(neurons, stats, cell.ablated, strength=cell.strength)
