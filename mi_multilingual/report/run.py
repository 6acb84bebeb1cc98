"""The files of a run folder, each read once."""

from __future__ import annotations

import json
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any

import pandas as pd

from ..evidence.activations import ActivationStats
from ..neurons import NeuronScores, NeuronSet

STATS, NEURONS, MATRIX = "stats.safetensors", "neurons.safetensors", "matrix.parquet"


@dataclass(frozen=True)
class Run:
    """A run folder."""

    folder: Path
    tables: dict[str, pd.DataFrame] = field(default_factory=dict)
    """Those read so far, by file name."""

    def has(self, *names: str) -> bool:
        return all((self.folder / name).exists() for name in names)

    def table(self, name: str) -> pd.DataFrame:
        """A parquet file, or a JSON file that is a list of records."""
        if name not in self.tables:
            path = self.folder / name
            self.tables[name] = pd.DataFrame(self.json(name)) if path.suffix == ".json" else pd.read_parquet(path)
        return self.tables[name]

    def load(self, name: str) -> Any:
        """A file as what it holds."""
        if name.endswith(".safetensors"):
            return {STATS: ActivationStats, NEURONS: NeuronSet}.get(name, NeuronScores).load(self.folder / name)
        return self.table(name)

    def json(self, name: str) -> Any:
        return json.loads((self.folder / name).read_text(encoding="utf-8"))

    @cached_property
    def stats(self) -> ActivationStats:
        return self.load(STATS)

    @cached_property
    def neurons(self) -> NeuronSet:
        return self.load(NEURONS)

    def made(self) -> dict[str, Any]:
        """How the run was made, as far as its files say."""
        made: dict[str, Any] = {}
        if self.has(NEURONS):
            made |= {"method": self.neurons.method, "parameters": dict(self.neurons.parameters)}
        if self.has(STATS):
            made |= self.stats.header()
        return made | (self.json("run.json") if self.has("run.json") else {})
