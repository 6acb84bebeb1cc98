"""The page: the sections of a run, the pages of its neurons, and what draws them."""

from __future__ import annotations

import base64
import hashlib
import json
from importlib import resources
from pathlib import Path
from typing import Any

import jinja2
from plotly.offline import get_plotlyjs

from ..display import spoken
from .comparison import compared
from .files import NEURONS, PAGE, STATS
from .languages import named
from .neuron_pages import neuron_data
from .run import Run
from .section import Shown, shown
from .sections import SECTIONS


def write_report(folder: Path | str, *, compare: Path | str | None = None) -> Path:
    """Write `report.html` from the files of a run and return its path. The page needs no network.

    Every file that `mi_multilingual.report.sections.SECTIONS` names is shown where it exists; stats.safetensors,
    neuron_examples.parquet and neuron_logits.parquet make the pages of neurons, run.json says how the run was made
    (`mi_multilingual.report.files` says what each file holds).

    Args:
        compare: another run folder, whose neurons and effects are set beside this one's.

    Raises:
        ValueError: nothing to show in the folder, a file of version 0.1 in it, or nothing to compare in the other.
    """
    run = Run(Path(folder))
    parts = [part for section in SECTIONS if (part := shown(section, run))]
    if not parts:
        raise ValueError(
            f"folder must hold a run, got {folder} without {STATS} or any other file of one; run "
            f"`mi-multilingual demo --out {folder}` or the single steps first"
        )
    if compare is not None:
        parts.insert(0, compared(run, Run(Path(compare))))
    target = run.folder / PAGE
    target.write_text(page(run, parts), encoding="utf-8")
    return target


def page(run: Run, parts: list[Shown]) -> str:
    """The whole page."""
    scripts = [get_plotlyjs().replace("\r\n", "\n"), _asset("report.js")]
    neurons = neuron_data(run)
    about_neurons = json.dumps(neurons, ensure_ascii=False, separators=(",", ":"), allow_nan=False)
    figures = ",".join(f"{json.dumps(f['id'])}:{f['json']}" for part in parts for f in part.figures)
    return (
        environment()
        .get_template("report.html.j2")
        .render(
            name=run.stats.model if run.has(STATS) else run.folder.name,
            title=f"Language neurons of {run.stats.model}" if run.has(STATS) else f"Run {run.folder.name}",
            lead=lead(run),
            languages={k: named(k) for k in neurons["languages"]} if neurons else {},
            parts=parts,
            made=run.made(),
            neurons=neurons is not None,
            data=f'{{"figures":{{{figures}}},"neurons":{about_neurons}}}',
            style=_asset("report.css"),
            scripts=scripts,
            hashes=[base64.b64encode(hashlib.sha256(text.encode()).digest()).decode() for text in scripts],
        )
    )


def lead(run: Run) -> str:
    """What the run is, where it has found neurons, and what its own notes say."""
    notes = run.about().get("notes", [])
    if not run.has(STATS, NEURONS):
        return " ".join(notes)
    method = run.neurons.method.upper() if run.neurons.method == "lape" else spoken(run.neurons.method)
    recorded = (
        f"{len(run.stats.languages)} languages, {int(run.stats.n_tokens.sum()):,} tokens recorded at site "
        f"“{run.stats.site}”, neurons by {method}."
    )
    return " ".join([recorded, *notes])


def _asset(name: str) -> str:
    return resources.files(__package__).joinpath("templates", name).read_text(encoding="utf-8")


def environment() -> jinja2.Environment:
    """Templates with every value escaped unless it was made safe on purpose."""
    env = jinja2.Environment(
        loader=jinja2.PackageLoader(__package__),
        autoescape=True,
        undefined=jinja2.StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    env.filters["script_json"] = script_json
    return env


def script_json(value: Any) -> str:
    """JSON that may stand inside a script element: no character that could end it, nor a line of a script."""
    text = value if isinstance(value, str) else json.dumps(value)
    for character in "<>&\u2028\u2029":
        text = text.replace(character, f"\\u{ord(character):04x}")
    return text
