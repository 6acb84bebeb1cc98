"""Commands for whole studies, by their names."""

from pathlib import Path
from typing import Annotated

import typer
import yaml

from .options import Quiet, Settings, check_dtype, pairs, split_names
from .tables import console, print_settings


def studies() -> None:
    """List the studies: their tables, and what they can be asked for."""
    from ..studies.table import STUDIES
    from .settings import setting_rows

    for name, row in STUDIES.items():
        console.print()
        print_settings(f"{name}: {', '.join(row.tables)}; {row.source}", setting_rows(row.settings))
    console.print("\n`study NAME MODEL --out FOLDER --set KEY=VALUE` runs one whole.")


def study(
    name: Annotated[str, typer.Argument(help="one of those that `studies` lists")],
    model: Annotated[str, typer.Argument(help="Hugging Face id, a local checkpoint folder, or 'demo'")],
    out: Annotated[Path, typer.Option(help="run folder to write")],
    corpus: Annotated[str, typer.Option(help="folder of <language>.<split>.txt files and so on, or 'demo'")] = "demo",
    identify_split: Annotated[str, typer.Option(help="part of the corpus to find neurons on")] = "identify",
    evaluate_split: Annotated[str, typer.Option(help="part of the corpus that is measured")] = "evaluate",
    languages: Annotated[str | None, typer.Option(help="only these, e.g. en,fr,ja")] = None,
    max_documents: Annotated[int | None, typer.Option(min=1, help="measured at most, per language")] = None,
    dtype: Annotated[str, typer.Option(help="of the weights")] = "float32",
    set_: Settings = None,
    quiet: Quiet = False,
) -> None:
    """Run one study whole: all its tables and a page that shows them; called again, it does what is left."""
    check_dtype(dtype, ("float32", "bfloat16", "float16"))
    from ..experiments.loading import checked_study
    from ..experiments.sweep import run
    from ..report.page import write_report
    from .sweeps import print_progress

    text = {"source": corpus, "identify": identify_split, "evaluate": evaluate_split}
    text |= {} if languages is None else {"languages": split_names(languages)}
    text |= {} if max_documents is None else {"evaluate_documents": max_documents}
    settings = {key: yaml.safe_load(value) for key, value in pairs(set_).items()}
    given = {"study": name, "model": model, "corpus": text, "settings": settings, "dtype": dtype, "name": name}
    print_progress(out, run(checked_study(given), out, progress=not quiet))
    console.print(f"open [bold]{write_report(out)}[/bold] in a browser")
