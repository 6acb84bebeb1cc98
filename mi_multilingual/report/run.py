"""The files of a run folder, each read once."""

from __future__ import annotations

import json
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pandas as pd

from ..evidence.activations import ActivationStats
from ..neurons import NeuronScores, NeuronSet
from ..patching.conditions import CHOSEN, INTACT, RANDOM
from ..storage import load
from .files import ABOUT, MEMBERSHIP, NEURONS, STATS

_NOUNS = {STATS: ActivationStats, NEURONS: NeuronSet, MEMBERSHIP: NeuronScores}
"""What a file must hold, where only one noun will do."""
_OUTDATED = ({"ablated"}, {"off", "beyond"}, {"where", "neurons"})
"""Columns by which a table of version 0.1 is known, whose controls shared a column with the names of groups."""


@dataclass(frozen=True)
class Run:
    """A run folder."""

    folder: Path
    known: dict[str, Any] = field(default_factory=dict)
    """What was read so far, by file name."""

    def has(self, *names: str) -> bool:
        return all((self.folder / name).exists() for name in names)

    def read(self, name: str) -> Any:
        """What a file holds: a noun, or a table (parquet, or JSON that is a list of records).

        Raises:
            ValueError: a file of version 0.1, or one that holds something else.
        """
        if name not in self.known:
            path = self.folder / name
            is_noun = path.suffix == ".safetensors"
            self.known[name] = load(path, _NOUNS.get(name)) if is_noun else checked(_read_table(path), path)
        return self.known[name]

    @property
    def stats(self) -> ActivationStats:
        return self.read(STATS)

    @property
    def neurons(self) -> NeuronSet:
        return self.read(NEURONS)

    def about(self) -> dict[str, Any]:
        """What is known of how the run was made, in run.json."""
        return json.loads((self.folder / ABOUT).read_text(encoding="utf-8")) if self.has(ABOUT) else {}

    def made(self) -> dict[str, Any]:
        """How the run was made, as far as its files say."""
        made: dict[str, Any] = {}
        if self.has(NEURONS):
            made |= {"method": self.neurons.method, "parameters": dict(self.neurons.parameters)}
        if self.has(STATS):
            made |= self.stats.header()
        return made | self.about()


def _read_table(path: Path) -> pd.DataFrame:
    if path.suffix == ".json":
        return pd.DataFrame(json.loads(path.read_text(encoding="utf-8")))
    return pd.read_parquet(path)


def checked(table: pd.DataFrame, path: Path) -> pd.DataFrame:
    """The table, unless version 0.1 wrote it."""
    conditions = set(table.condition) if "condition" in table else set()
    if conditions - {INTACT, CHOSEN, RANDOM} or any(columns <= set(table) for columns in _OUTDATED):
        raise ValueError(
            f"{path} must have the columns condition and group, got {', '.join(map(str, table.columns))}: it was "
            "written by mi_multilingual 0.1; make it again"
        )
    return table
