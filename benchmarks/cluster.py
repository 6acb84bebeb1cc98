"""What Ray costs: cells of a study on workers of one core each, against one process of one thread.

    OMP_NUM_THREADS=1 python benchmarks/cluster.py

Efficiency is the time of one process over that of all workers together, divided by the number of workers. Since cores
may share memory and caches, the same cells also run on as many plain processes without Ray: what they lose is the
machine's. The three take turns. Starting is counted apart. The table goes to standard output, to be put into LOG.md.
"""

import argparse
import multiprocessing
import tempfile
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path
from statistics import median

import torch

from mi_multilingual.experiments.cells import Cell, cells_of
from mi_multilingual.experiments.cluster import record_and_run
from mi_multilingual.experiments.config import Study
from mi_multilingual.experiments.context import Context
from mi_multilingual.experiments.execution import condition_for, run_cell, serial
from mi_multilingual.experiments.workers import workers

SECONDS_TO_WARM_UP = 2.0


def study_of(n_documents: int) -> Study:
    """Language neurons of the demo model, switched off on the demo's first sentences of every language."""
    corpus = {"identify_documents": 20, "evaluate_documents": n_documents}
    return Study.model_validate({"model": "demo", "corpus": corpus, "rate": 0.05, "seeds": []})


def warmed_up(context: Context, cell: Cell) -> None:
    """Everything that cells share; slow enough that every worker takes its part."""
    context.check(cell)
    condition_for(cell, context)
    context.base(cell)
    time.sleep(SECONDS_TO_WARM_UP)


def begin_plain(study: Study, folder: Path) -> None:
    global PLAIN
    torch.set_num_threads(1)
    PLAIN = Context(study, folder)


def warm_plain(cell: Cell) -> None:
    warmed_up(PLAIN, cell)


def run_plain(cell: Cell) -> None:
    run_cell(cell, PLAIN)


def seconds_of(call: Callable[[], object]) -> float:
    started = time.perf_counter()
    call()
    return time.perf_counter() - started


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--workers", type=int, default=2)
    parser.add_argument("--cells", type=int, default=10, help="at most 10")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--documents", type=int, default=20, help="per language, in a cell; at most 24")
    options = parser.parse_args()
    torch.set_num_threads(1)
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        study = study_of(options.documents)
        context = Context(study, folder)
        cells = cells_of(study, context.inputs())[: options.cells]
        list(serial(cells[:1], context))
        compare(study, folder, context, cells, options)


def compare(study: Study, folder: Path, context: Context, cells: tuple[Cell, ...], options: argparse.Namespace) -> None:
    """Print the table."""
    n = options.workers
    begun = time.perf_counter()
    processes = multiprocessing.get_context("spawn").Pool(n, begin_plain, (study, folder))
    with processes, workers("local", partial(Context, study, folder), n_workers=n) as pool:
        processes.map(warm_plain, cells[:1] * n, chunksize=1)
        assert not [o.error for o in pool.run(warmed_up, cells[:1] * n) if o.error]
        print(
            f"torch {torch.__version__}; {len(cells)} cells; start of all workers {time.perf_counter() - begun:.1f} s\n"
        )
        calls = {
            "one process": lambda: list(serial(cells, context)),
            "plain processes": lambda: processes.map(run_plain, cells, chunksize=1),
            "Ray": lambda: list(record_and_run(pool, cells, context)),
        }
        rounds = [{name: seconds_of(call) for name, call in calls.items()} for _ in range(options.rounds)]
        processes.close()
        processes.join()
    print("| cells on | s per cell | efficiency, median of rounds | least | most |\n|---|---|---|---|---|")
    for name in calls:
        share = [r["one process"] / r[name] / (1 if name == "one process" else n) for r in rounds]
        shown = name if name == "one process" else f"{n} {name.removeprefix('Ray') or 'workers on Ray'}"
        a_cell = median(r[name] for r in rounds) / len(cells)
        print(f"| {shown} | {a_cell:.3f} | {median(share):.3f} | {min(share):.3f} | {max(share):.3f} |")


if __name__ == "__main__":
    main()
