"""Pages that are made while the site is built: the reference, and the notebooks as they were executed."""

from typing import Any

import nbformat
from mkdocs.exceptions import PluginError
from mkdocs.structure.files import File, Files
from plotly.offline import get_plotlyjs

from reference import pages
from tutorials import EXECUTED, ROOT, page


def on_files(files: Files, *, config: Any) -> Files:
    for path, content in pages().items():
        files.append(File.generated(config, path, content=content))
    for notebook in sorted((ROOT / "notebooks").glob("*.ipynb")):
        executed = EXECUTED / notebook.name
        if not executed.exists():
            raise PluginError(f"{executed} must be there, the notebook with its outputs; run `make docs`")
        content = page(nbformat.read(executed, as_version=4), notebook.name)
        files.append(File.generated(config, f"tutorials/{notebook.stem}.md", content=content))
        files.append(File.generated(config, f"tutorials/{notebook.name}", abs_src_path=str(notebook)))
    # Once for the whole site, which needs no network.
    files.append(File.generated(config, "assets/plotly.min.js", content=get_plotlyjs()))
    return files
