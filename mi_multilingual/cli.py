"""The command `mi-multilingual`: parse, call, print."""

import math
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer
from rich.console import Console
from rich.table import Table

if TYPE_CHECKING:
    from .experiments.sweep import Progress, Runner

HELP = """
Find the neurons of a multilingual language model that belong to one language, switch them off, and look.

The main job on the embedded model and text:

    mi-multilingual demo

The same step by step on your own model and a folder of <language>.txt files:

    mi-multilingual record gpt2 my-texts --out run/stats.safetensors --window 256

    mi-multilingual identify run/stats.safetensors --out run/neurons.safetensors

    mi-multilingual ablate gpt2 my-other-texts run/neurons.safetensors --out run/matrix.parquet

    mi-multilingual report run

Hundreds of such measurements from one file, stopped and resumed at will:

    mi-multilingual plan study.yaml

    mi-multilingual run study.yaml --set rate=0.05

A mistake is told in one line; --debug shows where it happened.
"""

INTERRUPTED = 130  # the exit code of Ctrl-C, as shells have it
app = typer.Typer(help=HELP, add_completion=False, no_args_is_help=True, pretty_exceptions_enable=False)
console = Console()

Model = Annotated[str, typer.Argument(help="Hugging Face id, a local checkpoint folder, or 'demo'")]
CorpusName = Annotated[
    str, typer.Argument(metavar="CORPUS", help="folder of <language>.txt, .txt.gz, .jsonl or .parquet files, or 'demo'")
]
Languages = Annotated[str | None, typer.Option(help="only these, e.g. en,fr,ja")]
Split = Annotated[str | None, typer.Option(help="part of the corpus, e.g. 'identify' or 'evaluate' of the demo")]
Window = Annotated[int | None, typer.Option(min=2, help="tokens a row; the model's whole context by default")]
Layout = Annotated[str, typer.Option(help="'stream': all text of a language cut into windows; 'documents': one a row")]
Quiet = Annotated[bool, typer.Option("--quiet", help="no progress bars")]


@app.command()
def demo(
    out: Annotated[Path, typer.Option(help="run folder to write")] = Path("runs/demo"), quiet: Quiet = False
) -> None:
    """The main job on the embedded model and corpus: language neurons, their ablation, a report."""
    from .demo.job import run_demo

    page = run_demo(out, progress=not quiet)
    console.print(f"open [bold]{page}[/bold] in a browser")


@app.command()
def record(
    model: Model,
    corpus: CorpusName,
    out: Annotated[Path, typer.Option(help="statistics to write (.safetensors)")],
    site: Annotated[str, typer.Option(help="where neurons are read: gate, post or up")] = "gate",
    window: Window = None,
    batch_size: Annotated[
        int | None, typer.Option(min=1, help="rows a forward pass; chosen from the window by default")
    ] = None,
    languages: Languages = None,
    split: Split = None,
    layout: Layout = "stream",
    quiet: Quiet = False,
) -> None:
    """Record activation statistics of every neuron in every language.

    Interrupted with Ctrl-C, the same command goes on where it stopped (from OUT.partial).
    """
    from .corpora import load_corpus
    from .evidence.activations import record as record_stats
    from .models.loading import load_model

    checkpoint = out.with_name(out.name + ".partial")
    stats = record_stats(
        load_model(model),
        load_corpus(corpus, languages=split_names(languages), split=split),
        site=site,
        window=window,
        batch_size=batch_size or "auto",
        layout=layout,
        progress=not quiet,
        checkpoint=checkpoint,
    )
    stats.save(out)
    checkpoint.unlink(missing_ok=True)
    table = Table("language", "tokens", "active share")
    share = stats.activation_probability().mean(dim=(0, 1))
    for language, n, p in zip(stats.languages, stats.n_tokens.tolist(), share.tolist(), strict=True):
        table.add_row(language, f"{n:,}", f"{p:.4f}")
    console.print(table)


@app.command()
def identify(
    stats: Annotated[Path, typer.Argument(help="statistics written by `record`")],
    out: Annotated[Path, typer.Option(help="neuron set to write (.safetensors)")],
    top_rate: Annotated[float, typer.Option(help="share of all neurons kept, over all languages together")] = 0.01,
    filter_rate: Annotated[
        float, typer.Option(help="quantile of all probabilities a neuron must exceed at all")
    ] = 0.95,
    activation_bar_ratio: Annotated[float, typer.Option(help="quantile it must exceed to belong to a language")] = 0.95,
) -> None:
    """Choose language neurons by LAPE."""
    from .detectors.lape import lape
    from .evidence.activations import ActivationStats

    neurons = lape(
        ActivationStats.load(stats),
        top_rate=top_rate,
        filter_rate=filter_rate,
        activation_bar_ratio=activation_bar_ratio,
    )
    neurons.save(out)
    table = Table("language", "neurons")
    for language, n in neurons.sizes().items():
        table.add_row(str(language), str(n))
    console.print(table)


@app.command()
def ablate(
    model: Model,
    corpus: CorpusName,
    neurons: Annotated[Path, typer.Argument(help="neuron set written by `identify`")],
    out: Annotated[Path, typer.Option(help="table to write (.parquet)")],
    window: Window = None,
    languages: Languages = None,
    split: Split = None,
    layout: Layout = "stream",
    quiet: Quiet = False,
) -> None:
    """Switch off each language's neurons and measure the loss of every language, with random controls."""
    from .corpora import load_corpus
    from .models.loading import load_model
    from .neurons import NeuronSet
    from .studies.ablation import perplexity_matrix

    chosen = NeuronSet.load(neurons)
    texts = load_corpus(corpus, languages=split_names(languages), split=split)
    matrix = perplexity_matrix(load_model(model), texts, chosen, window=window, layout=layout, progress=not quiet)
    out.parent.mkdir(parents=True, exist_ok=True)
    matrix.to_parquet(out)
    shown = matrix[matrix.ablated != "none"].pivot_table(
        index="ablated", columns="evaluated", values="change", sort=False
    )
    table = Table("switched off", *shown.columns, title="change of the loss, nats a token")
    for name, row in shown.iterrows():
        table.add_row(str(name), *(f"{x:+.3f}" for x in row))
    console.print(table)


@app.command()
def compare(
    model: Model,
    corpus: CorpusName,
    out: Annotated[Path, typer.Option(help="table to write (.parquet)")],
    neurons: Annotated[int, typer.Option(min=1, help="neurons a language that every detector gives")] = 20,
    identify_split: Annotated[str | None, typer.Option(help="part of the corpus to find neurons on")] = None,
    evaluate_split: Annotated[str | None, typer.Option(help="part of the corpus to switch them off on")] = None,
    languages: Languages = None,
    quiet: Quiet = False,
) -> None:
    """Rank detectors by what their neurons do when switched off, against random neurons in the same layers."""
    from .corpora import load_corpus
    from .models.loading import load_model
    from .studies.leaderboard import leaderboard, ranking_stability, rankings

    loaded, names = load_model(model), split_names(languages)
    identify, evaluate = (load_corpus(corpus, languages=names, split=s) for s in (identify_split, evaluate_split))
    found = {name: s.top(neurons) for name, s in rankings(loaded, identify, progress=not quiet).items()}
    board = leaderboard(loaded, evaluate, found, layout="documents", progress=not quiet)
    board["stability"] = board.detector.map(ranking_stability(loaded, identify, neurons, progress=not quiet))
    out.parent.mkdir(parents=True, exist_ok=True)
    board.to_parquet(out)
    table = Table("detector", "own", "others", "specificity", "95 % interval", "halves agree", title="nats a token")
    for row in board.to_dict("records"):
        interval = f"{row['low']:+.4f} to {row['high']:+.4f}"
        numbers = [f"{row[name]:+.4f}" for name in ("own", "elsewhere", "specificity")]
        stability = "" if math.isnan(row["stability"]) else f"{row['stability']:.2f}"
        table.add_row(row["detector"], *numbers, interval, stability)
    console.print(table)


@app.command()
def report(
    folder: Annotated[
        Path, typer.Argument(help="run folder with stats.safetensors, neurons.safetensors and matrix.parquet")
    ],
    compare: Annotated[Path | None, typer.Option(help="another run folder to set beside it")] = None,
) -> None:
    """Make report.html from the files of a run folder."""
    from .report import write_report

    console.print(f"open [bold]{write_report(folder, compare=compare)}[/bold] in a browser")


@app.command()
def evaluate(
    model: Model,
    tasks: Annotated[str, typer.Option(help="of the lm-evaluation-harness, e.g. xcopa_id,xcopa_th")],
    out: Annotated[Path, typer.Option(help="table to write (.parquet)")],
    neurons: Annotated[Path | None, typer.Option(help="neuron set to intervene on; else the model as it is")] = None,
    groups: Annotated[str | None, typer.Option(help="of the neuron set, e.g. fr,de; all by default")] = None,
    intervention: Annotated[str | None, typer.Option(help="zero (by default), set, add or scale")] = None,
    value: Annotated[float | None, typer.Option(help="for set, add and scale")] = None,
    site: Annotated[str, typer.Option(help="where: gate or post")] = "gate",
    include_path: Annotated[Path | None, typer.Option(help="folder with task definitions of your own")] = None,
    limit: Annotated[int | None, typer.Option(min=1, help="at most so many items a task, to try things out")] = None,
    batch_size: Annotated[int, typer.Option(min=1, help="texts a forward pass")] = 8,
) -> None:
    """Run tasks of the lm-evaluation-harness, with neurons switched off or steered."""
    from .evaluation.harness import harness_scores

    scores = harness_scores(
        model,
        split_names(tasks) or (),
        neurons=neurons,
        intervention=intervention,
        groups=split_names(groups),
        value=value,
        site=site,
        include_path=include_path,
        limit=limit,
        batch_size=batch_size,
    )
    out.parent.mkdir(parents=True, exist_ok=True)
    scores.to_parquet(out)
    table = Table("task", "metric", "filter", "value", "stderr", "n")
    for row in scores.to_dict("records"):
        numbers = (f"{row['value']:.4f}", f"{row['stderr']:.4f}", f"{row['n']:.0f}")
        table.add_row(row["task"], row["metric"], row["filter"], *numbers)
    console.print(table)


StudyFile = Annotated[Path, typer.Argument(help="YAML file of the study")]
Set = Annotated[list[str] | None, typer.Option("--set", metavar="KEY=VALUE", help="over the file, e.g. rate=0.05")]
Folder = Annotated[Path, typer.Argument(help="run folder of a sweep")]
Ray = Annotated[
    str | None,
    typer.Option(help="share the work out on Ray: 'local' (all cores or GPUs here), 'auto', or a cluster's address"),
]


@app.command()
def run(
    study: StudyFile,
    out: Annotated[Path | None, typer.Option(help="run folder; runs/<name of the study> by default")] = None,
    set_: Set = None,
    ray: Ray = None,
    quiet: Quiet = False,
) -> None:
    """Run all cells of a study; stopped at any moment, the same command goes on."""
    from .experiments.loading import load_study
    from .experiments.sweep import run as run_study

    settings = load_study(study, set_ or ())
    folder = out or Path("runs") / settings.name
    print_progress(folder, run_study(settings, folder, runner=runner_on(ray), progress=not quiet))


@app.command()
def plan(study: StudyFile, set_: Set = None) -> None:
    """Cells, tokens, time and memory of a study, before anything of it runs."""
    from .experiments.loading import load_study
    from .experiments.planning import plan as plan_study

    made = plan_study(load_study(study, set_ or ()))
    table = Table("model", "work", "times", "tokens", "seconds", title=f"{len(made.cells):,} cells")
    for row in made.steps.itertuples():
        table.add_row(row.model, row.work, f"{row.times:,}", f"{row.tokens:,}", f"{row.seconds:,.1f}")
    console.print(table)
    console.print(f"about {made.seconds:,.0f} s in one process and {made.memory / 2**30:.2f} GiB ({made.basis})")
    for note in made.notes:
        console.print(f"note: {note}")


@app.command()
def resume(folder: Folder, ray: Ray = None, quiet: Quiet = False) -> None:
    """Go on with a sweep: cells without a result, and those whose inputs changed."""
    from .experiments.sweep import resume as resume_study

    print_progress(folder, resume_study(folder, runner=runner_on(ray), progress=not quiet))


@app.command()
def status(folder: Folder) -> None:
    """How far a sweep is, and what failed."""
    from .experiments.sweep import status as status_of

    print_progress(folder, status_of(folder))


def runner_on(ray: str | None) -> "Runner | None":
    """What runs the cells at this address; None, this process, where there is none."""
    from .experiments.cluster import on_ray

    return None if ray is None else on_ray(ray)


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


def split_names(languages: str | None) -> tuple[str, ...] | None:
    return tuple(name.strip() for name in languages.split(",")) if languages else None


def main(arguments: list[str] | None = None) -> int:
    """Run the command; a mistake of the user's is one line on stderr and exit code 1, its trace shown with --debug."""
    arguments = sys.argv[1:] if arguments is None else arguments
    debug = "--debug" in arguments
    try:
        app(args=[a for a in arguments if a != "--debug"])
    except SystemExit as stop:
        if stop.code == INTERRUPTED:
            print("stopped; `record`, `run` and `resume` go on where they were when called again", file=sys.stderr)
        return int(stop.code or 0)
    except (ValueError, OSError, ImportError) as error:
        if debug:
            raise
        print(f"error: {' '.join(str(error).split())}", file=sys.stderr)
        return 1
    return 0
