"""What a sweep ran on: versions, commit, hardware and seeds of every start."""

from __future__ import annotations

import importlib.metadata
import os
import platform
import subprocess
import time
from typing import Any

import torch

from .config import Models, Study
from .store import Store

_PACKAGES = ("mi_multilingual", "transformer-lens", "torch", "transformers", "numpy", "pandas", "pyarrow", "pydantic")


def earlier_starts(store: Store) -> list[dict[str, Any]]:
    """The environments of earlier starts; a damaged file is set aside."""
    path = store.path("environment.json")
    if not path.exists():
        return []
    try:
        return store.read_json("environment.json")
    except ValueError:
        store.set_aside(path)
        return []


def environment(study: Models) -> dict[str, Any]:
    """Versions, commit, hardware and seeds of this start."""
    gpus = [torch.cuda.get_device_name(i) for i in range(torch.cuda.device_count())]
    generation = {"generation": study.generation.seed} if isinstance(study, Study) else {}
    return {
        "started": time.strftime("%Y-%m-%dT%H:%M:%S%z"),
        "versions": {name: importlib.metadata.version(name) for name in _PACKAGES},
        "python": platform.python_version(),
        "commit": commit(),
        "platform": platform.platform(),
        "processors": os.cpu_count(),
        "threads": torch.get_num_threads(),
        "gpus": gpus,
        "seeds": {"random neurons": list(study.seeds), **generation, "bootstrap": 0},
    }


def commit() -> str | None:
    """The git commit of the working folder, with "+" where files were changed; None outside a repository."""
    try:
        found = subprocess.run(
            ["git", "describe", "--always", "--abbrev=40", "--dirty=+"],
            capture_output=True,
            text=True,
            timeout=10,
            check=True,
        )
    except (OSError, subprocess.SubprocessError):
        return None
    return found.stdout.strip()
