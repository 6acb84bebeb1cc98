"""Commands on studies: many measurements from one file."""

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from .options import Quiet, Settings
from .tables import console, print_rows

if TYPE_CHECKING:
    from ..experiments.sweep import Progress, Runner

_StudyFile = Annotated[Path, typer.Argument(help="YAML file of the study")]
_Folder = Annotated[Path, typer.Argument(help="run folder of a sweep")]
Ray = Annotated[
    str | None,
    typer.Option(help="share the work out on Ray: 'local' (all cores or GPUs here), 'auto', or a cluster's address"),
]


def plan(study: _StudyFile, set_: Settings = None) -> None:
    """Cells, tokens, time and memory of a study, before anything of it runs."""
    from ..experiments.loading import load_study
    from ..experiments.planning import plan as plan_study

    made = plan_study(load_study(study, set_ or ()))
    rows = [
        (row.model, row.work, f"{row.times:,}", _number(row.tokens), f"{row.seconds:,.1f}")
        for row in made.steps.itertuples()
    ]
    print_rows(f"{len(made.cells):,} cells", ("model", "work", "times", "tokens", "seconds"), rows)
    console.print(f"about {made.seconds:,.0f} s in one process and {made.memory / 2**30:.2f} GiB ({made.basis})")
    for note in made.notes:
        console.print(f"note: {note}")


def _number(n: Any) -> str:
    """The number; a dash where it is not known."""
    return "-" if n != n else f"{n:,.0f}"


def run(
    study: _StudyFile,
    out: Annotated[Path | None, typer.Option(help="run folder; runs/<name of the study> by default")] = None,
    set_: Settings = None,
    ray: Ray = None,
    quiet: Quiet = False,
) -> None:
    """Run all cells of a study; stopped at any moment, the same command goes on."""
    from ..experiments.loading import load_study
    from ..experiments.sweep import run as run_study

    settings = load_study(study, set_ or ())
    folder = out or Path("runs") / settings.name
    print_progress(folder, run_study(settings, folder, runner=_runner_on(ray), progress=not quiet))


def resume(folder: _Folder, ray: Ray = None, quiet: Quiet = False) -> None:
    """Go on with a sweep: cells without a result, and those whose inputs changed."""
    from ..experiments.sweep import resume as resume_study

    print_progress(folder, resume_study(folder, runner=_runner_on(ray), progress=not quiet))


def status(folder: _Folder) -> None:
    """How far a sweep is, and what failed."""
    from ..experiments.sweep import status as status_of

    print_progress(folder, status_of(folder))


def _runner_on(ray: str | None) -> "Runner | None":
    """What runs the cells at this address; None, this process, where there is none."""
    if ray is None:
        return None
    from ..experiments.cluster import on_ray

    return on_ray(ray)


def print_progress(folder: Path, progress: "Progress") -> None:
    """Say how far the sweep is; exit code 1 where cells failed."""
    console.print(f"{progress.done} of {progress.n_cells} cells done in {folder}, {progress.seconds:.0f} s of work")
    if progress.holder:
        console.print(f"running: {progress.holder}")
    for name in progress.broken:
        console.print(f"damaged: {name}; its cell runs again with the next start")
    for row in progress.failed.itertuples():
        console.print(f"failed: {row.what}: {row.error}", markup=False)
    if len(progress.failed):
        raise typer.Exit(1)
