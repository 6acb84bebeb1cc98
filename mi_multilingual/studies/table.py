"""One row for each study that can be run whole, by its name: its tables, its settings, its source.

Study files, the command `study`, the demo and the documentation's table of claims read this table. A new study is one
file beside this one and one row here.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

import pandas as pd

from ..detectors.table import Setting
from ..evidence.representations import POOLINGS
from . import (
    alignment_tuning,
    editing,
    experts,
    lape_tables,
    layer_languages,
    open_generation,
    regions,
    representations,
    sharing,
    translation,
    tuning,
)
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


_STEPS = Setting(20, "steps of every tuning", 1)
_ROWS = Setting(8, "rows of text per step", 1)
STUDIES: dict[str, StudyRow] = {
    "layer_languages": StudyRow(
        layer_languages.run,
        ("layer_languages", "layer_language_shares", "layer_words", "layer_word_means"),
        layer_languages.SETTINGS,
        "Zhao et al. 2024, arXiv:2402.18815",
    ),
    "regions": StudyRow(
        regions.run,
        ("regions", "region_outputs", "region_effects"),
        regions.REGION_SETTINGS,
        "Zhao et al. 2024, arXiv:2402.18815",
    ),
    "tuning": StudyRow(
        tuning.run,
        ("tuning_rows", "tuning", "tuning_summary"),
        {
            "languages": Setting(3, "languages that are tuned on, the first that have neurons", 1),
            "steps": _STEPS,
            "learning_rate": Setting(1e-3, "tried beside a tenth of it and ten times as much", 0.0, above=True),
            "batch_rows": _ROWS,
        },
        "Zhao et al. 2024, arXiv:2402.18815; Mondal et al. 2025, arXiv:2503.17456",
    ),
    "alignment_tuning": StudyRow(
        alignment_tuning.run,
        ("alignment_rows", "alignment_tuning"),
        {
            "languages": Setting(4, "languages that are aligned and asked in, the first ones", 2),
            "questions": Setting(30, "questions about facts, about", 2),
            "steps": _STEPS,
            "learning_rate": Setting(1e-4, "size of a step", 0.0, above=True),
            "batch_rows": _ROWS,
        },
        "Wang et al. 2024, arXiv:2406.09265, version 1",
    ),
    "editing": StudyRow(
        editing.run,
        editing.TABLES,
        editing.SETTINGS,
        "Wang et al. 2024, arXiv:2406.09265; Meng et al. 2022, arXiv:2202.05262",
    ),
    "lape_tables": StudyRow(
        lape_tables.run,
        ("ablation_outputs", "ablation_matrix", "ablation_comparison", "ablation_curve"),
        {
            "threshold": Setting(0.95, "the activation probability that LAP asks for", 0.0, 1.0, below=True),
            "documents": Setting(80, "documents of every language that losses are measured on, the first ones", 1),
            "languages": Setting(10, "languages that losses are measured in, the first ones", 2),
            "largest": Setting(
                0.02, "largest share of all neurons, per language, that the curve goes to", 0.0, 1.0, above=True
            ),
            "points": Setting(5, "sizes on the curve, each half of the next", 1, 12),
            "tuned_steps": Setting(0, "steps of tuning on each language for parameter variation; none without", 0),
        },
        "Tang et al. 2024, arXiv:2402.16438",
    ),
    "representations": StudyRow(
        representations.run,
        (
            "representations",
            "representation_outputs",
            "representation_layers",
            "representation_shape",
            "representation_effects",
            "dominance",
            "neuron_layers",
            "u_shape",
        ),
        {
            "pooling": Setting("mean", "how a sentence's tokens become one vector", choices=POOLINGS),
            "sentences": Setting(80, "parallel sentences, the first ones", 4),
            "silenced": Setting(
                "together", "neurons of all languages off at once, or each language's", choices=("together", "each")
            ),
        },
        "Tang et al. 2024, arXiv:2402.16438; Kargaran et al. 2024, arXiv:2410.05873",
    ),
    "experts": StudyRow(experts.run, experts.TABLES, experts.SETTINGS, "Liu et al. 2024, arXiv:2402.16367"),
    "sharing": StudyRow(sharing.run, sharing.TABLES, sharing.SETTINGS, "Wang et al. 2024, arXiv:2406.09265"),
    "open_generation": StudyRow(
        open_generation.run_open_generation,
        open_generation.TABLES,
        open_generation.SETTINGS,
        "Tang et al. 2024, arXiv:2402.16438",
    ),
    "translation": StudyRow(
        translation.run_translation, translation.TABLES, translation.SETTINGS, "Kojima et al. 2024, arXiv:2404.02431"
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
