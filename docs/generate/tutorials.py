"""Notebooks run from top to bottom, and the run as a page.

python docs/generate/tutorials.py notebooks/01_quickstart.ipynb   # -> build/notebooks/01_quickstart.ipynb
"""

import json
import os
import re
import sys
import tempfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import nbformat

ROOT = Path(__file__).parents[2]
EXECUTED = ROOT / "build" / "notebooks"
TIMEOUT = 300  # seconds per cell
FIGURE, WIDGET = "application/vnd.plotly.v1+json", "application/vnd.jupyter.widget-view+json"
HEIGHT = 450  # pixels of a figure that does not say
SCRIPTS = """
<script src="../assets/plotly.min.js"></script>
<script src="../assets/figures.js"></script>
"""


def execute(notebook: Path) -> Path:
    """Run a notebook in a folder of its own; returns the copy with its outputs, written only if no cell fails."""
    from nbclient import NotebookClient

    content = nbformat.read(notebook, as_version=4)
    # Figures as data only: by default every one brings a script that is fetched from the network.
    environment = {**os.environ, "PLOTLY_RENDERER": "plotly_mimetype"}
    with tempfile.TemporaryDirectory() as folder:
        where = {"metadata": {"path": folder}}
        client = NotebookClient(content, timeout=TIMEOUT, resources=where, coalesce_streams=True)
        client.execute(env=environment)
    EXECUTED.mkdir(parents=True, exist_ok=True)
    written = EXECUTED / notebook.name
    nbformat.write(content, written)
    return written


def page(notebook: nbformat.NotebookNode, name: str) -> str:
    """A notebook with its outputs as Markdown: text, code, and behind each piece of code what came out."""
    parts = []
    for cell in notebook.cells:
        if cell.cell_type == "markdown":
            parts.append(cell.source)
        else:
            parts += [fenced(cell.source, "python"), *filter(None, map(shown, cell.outputs))]
    title, *rest = parts[0].split("\n", 1)
    note = f"This page is the notebook [{name}]({name}), run from top to bottom; its figures are interactive."
    return "\n\n".join([title, note, *rest, *parts[1:], SCRIPTS])


def shown(output: Mapping[str, Any]) -> str:
    """One output as Markdown; nothing for a progress bar."""
    if output["output_type"] == "stream":
        return fenced(output["text"].rstrip(), "text") if output["name"] == "stdout" else ""
    data = output["data"]
    if FIGURE in data:
        return figure(data[FIGURE])
    if WIDGET in data:
        return "*(A widget, which needs the notebook.)*" if output["output_type"] == "execute_result" else ""
    if "text/html" in data:
        return table(data["text/html"])
    return fenced(data["text/plain"], "text")


def figure(drawn: Mapping[str, Any]) -> str:
    """The data of a figure, drawn by docs/assets/figures.js when the page is opened."""
    height = drawn["layout"].get("height", HEIGHT)
    # "</" would end the script, wherever in a text it stands.
    content = json.dumps({key: drawn[key] for key in ("data", "layout")}, ensure_ascii=False).replace("</", "<\\/")
    return f'<div class="figure" style="height: {height}px"><script type="application/json">{content}</script></div>'


def table(html: str) -> str:
    """A table without the style that pandas gives it, so that it gets the site's."""
    without_style = re.sub("<style.*?</style>", "", html, flags=re.DOTALL)
    plain = without_style.replace(' border="1" class="dataframe"', "").replace(' style="text-align: right;"', "")
    return "\n".join(line for line in plain.splitlines() if line.strip())


def fenced(text: str, language: str) -> str:
    return f"```{language}\n{text}\n```"


if __name__ == "__main__":
    for argument in sys.argv[1:]:
        print(execute(Path(argument)))
