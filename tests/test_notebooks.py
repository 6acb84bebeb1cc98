import subprocess
import sys
from pathlib import Path

import nbformat
import pytest

NOTEBOOKS = sorted((Path(__file__).parents[1] / "notebooks").glob("*.ipynb"))

pytestmark = [pytest.mark.slow, pytest.mark.notebook]


@pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda p: p.stem)
def test_the_notebook_runs_from_top_to_bottom(path, tmp_path):
    # As a script: the kernel's sockets fail under this suite's strict warnings.
    cells = nbformat.read(path, as_version=4).cells
    script = tmp_path / "notebook.py"
    script.write_text("\n".join(c.source for c in cells if c.cell_type == "code"), encoding="utf-8")
    subprocess.run([sys.executable, str(script)], check=True, cwd=tmp_path)


@pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda p: p.stem)
def test_the_notebook_is_kept_without_outputs(path):
    for cell in nbformat.read(path, as_version=4).cells:
        assert cell.get("outputs", []) == []
        assert cell.get("execution_count") is None
