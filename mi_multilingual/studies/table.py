"""One row for each study that can be run whole, by its name: its tables, its settings, its source.

Study files, the command `study`, the demo and the documentation's table of claims read this table. A new study is one
file beside this one and one row here.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

import pandas as pd

from ..detectors.table import Setting
from . import editing
from .given import Given

Tables = Mapping[str, pd.DataFrame]
"""Name of a table -> the table; written as name.parquet into a run folder, where the report finds it."""


@dataclass(frozen=True)
class StudyRow:
    """A whole study."""

    run: Callable[[Given], Tables]
    """From what is given, all its tables."""
    tables: tuple[str, ...]
    """The names of its tables, the same in every run."""
    settings: Mapping[str, Setting] = field(default_factory=dict)
    source: str = ""


STUDIES: dict[str, StudyRow] = {
    "editing": StudyRow(
        editing.run,
        editing.TABLES,
        editing.SETTINGS,
        "Wang et al. 2024, arXiv:2406.09265; Meng et al. 2022, arXiv:2202.05262",
    ),
}
"""Name -> the study. The name is that of its file, or of what it is about where a file holds two."""


def study_settings(name: str, given: Mapping[str, Any]) -> dict[str, Any]:
    """All settings of a study: those given, checked, and the defaults of the others.

    Raises:
        ValueError: an unknown study or setting, or a value that cannot be.
    """
    if name not in STUDIES:
        raise ValueError(f"study must be one of {', '.join(STUDIES)}, got {name!r}")
    rows = STUDIES[name].settings
    if unknown := [key for key in given if key not in rows]:
        raise ValueError(f"settings of {name} must be among {', '.join(rows) or 'none'}, got {unknown[0]!r}")
    return {key: row.checked(key, given.get(key, row.default)) for key, row in rows.items()}
