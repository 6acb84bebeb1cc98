"""Studies run whole, by their names: cells of their own, each of which gives all tables of one study."""

from __future__ import annotations

import io
import itertools
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Annotated, Any

import pandas as pd
from pydantic import AfterValidator, Field, TypeAdapter, field_validator, model_validator
from pydantic_core import to_jsonable_python

from ..detectors.table import Setting, checked_settings
from ..evidence.activations import ActivationStats, record
from ..studies.given import Given
from ..studies.table import STUDIES, study_settings
from ..tokens import Reading
from .cells import Pairs, pairs
from .config import SEVERAL, Models, check_choice, choice, listed, unfit
from .fingerprints import hashed
from .loaded import Loaded, Memory, check_same

SCHEMA = "studies/1"
"""Raise it when the same cell would give other numbers or columns: folders of another one are refused."""


_RATE = Setting(0.01, "share of all neurons", 0.0, 1.0, above=True)


def _told(check: Callable[[], Any], key: str) -> None:
    """Tell what is wrong as a mistake in the value of a key."""
    try:
        check()
    except ValueError as error:
        raise unfit(str(error), key) from error


def _named_study(name: str) -> str:
    return check_choice(name, tuple(STUDIES))


class WholeStudies(Models):
    """Studies that are run whole, by their names in `STUDIES`; a list where one value could stand is an axis."""

    study: Annotated[tuple[Annotated[str, AfterValidator(_named_study)], ...], *SEVERAL]
    settings: Mapping[str, tuple[Any, ...]] = Field(default_factory=dict)
    """Of the studies; every one takes those that it has."""
    lape: Mapping[str, float] = Field(default_factory=dict)
    """How LAPE finds the language neurons: rate, filter_rate, activation_bar_ratio."""

    @field_validator("settings", mode="before")
    @classmethod
    def listed_settings(cls, given: Any) -> Any:
        """Every setting as a list of values."""
        return {key: tuple(listed(value)) for key, value in given.items()} if isinstance(given, Mapping) else given

    @model_validator(mode="after")
    def settings_are_known(self) -> WholeStudies:
        """Raise for a setting that no study has, or for a value that it cannot be."""
        known = list(dict.fromkeys(key for name in self.study for key in STUDIES[name].settings))
        for key, values in self.settings.items():
            if key not in known:
                raise unfit(f"cannot have {key!r}; {choice(key, known)}", "settings")
            if not values or len(set(values)) < len(values):
                raise unfit(f"{key} must be one value or a list of different ones, got {list(values)}", "settings")
        for name in self.study:
            _told(partial(self.settings_of, name), "settings")
        rest = {key: value for key, value in self.lape.items() if key != "rate"}
        _told(partial(checked_settings, "lape", rest), "lape")
        _told(partial(_RATE.checked, "rate", self.lape.get("rate", 1.0)), "lape")
        return self

    def settings_of(self, name: str) -> list[dict[str, Any]]:
        """All settings of the study, once for every point of the grid."""
        own = {key: values for key, values in self.settings.items() if key in STUDIES[name].settings}
        return [study_settings(name, dict(zip(own, point, strict=True))) for point in itertools.product(*own.values())]


@dataclass(frozen=True)
class WholeCell:
    """One study of one model with one set of settings: everything that decides its tables and nothing else."""

    study: str
    settings: Pairs
    model: str
    model_fingerprint: str
    tokenizer_fingerprint: str
    dtype: str
    identified_on: str
    """Fingerprint of the text that neurons are found on."""
    evaluated_on: str
    """Fingerprint of the text that is measured."""
    reading: Reading
    lape: Pairs
    seeds: tuple[int, ...]

    @property
    def key(self) -> str:
        """32 hex digits of all fields and of the version of the results."""
        return hashed([SCHEMA, self])

    @property
    def words(self) -> str:
        """The cell in a few words, for a list of failures."""
        return f"{self.study} of {self.model}"

    def plain(self) -> dict[str, Any]:
        """The cell as JSON takes it."""
        return to_jsonable_python(self)

    @classmethod
    def of(cls, content: Mapping[str, Any]) -> WholeCell:
        """The cell that `plain` gave, also by way of a JSON file.

        Raises:
            ValueError: a field that is missing or cannot be.
        """
        return _CELL.validate_python(content)


_CELL = TypeAdapter(WholeCell)


class WholeContext(Loaded):
    """What the cells of whole studies share."""

    study: WholeStudies

    def forget_model(self) -> None:
        """Let go of the model in memory and of what was read off it."""
        super().forget_model()
        self.statistics: Memory[str, ActivationStats] = Memory()

    def stats(self, model: str) -> ActivationStats:
        """Statistics of the text that neurons are found on, recorded once for all studies of a model."""
        reading = self.study.corpus.reading
        return self.statistics.once(
            model, lambda: record(self.model(model), self.corpus("identify"), reading=reading, progress=False)
        )

    def inputs(self) -> dict[str, Any]:
        """Fingerprints of all that goes in, read from what is there now.

        Raises:
            ValueError: a model or text cannot be loaded.
        """
        identify, evaluate = self.both_texts()
        models = {name: self.fingerprints(name) for name in self.study.models}
        return {"models": models, "identify": identify.fingerprint, "evaluate": evaluate.fingerprint}

    def check(self, cell: WholeCell) -> None:
        """Raise where model or text are no longer those that the cell was planned for."""
        weights, tokenizer = self.fingerprints(cell.model)
        check_same(
            {
                "weights of the model": (weights, cell.model_fingerprint),
                "tokenizer": (tokenizer, cell.tokenizer_fingerprint),
                "text that neurons are found on": (self.corpus("identify").fingerprint, cell.identified_on),
                "text that is evaluated": (self.corpus("evaluate").fingerprint, cell.evaluated_on),
            }
        )


def whole_cells(study: WholeStudies, inputs: Mapping[str, Any]) -> tuple[WholeCell, ...]:
    """All cells, always in the same order: by model, so that each is loaded once."""
    return tuple(
        WholeCell(
            name,
            pairs(settings),
            model,
            *inputs["models"][model],
            study.dtype,
            inputs["identify"],
            inputs["evaluate"],
            study.corpus.reading,
            pairs(study.lape),
            study.seeds,
        )
        for model in study.models
        for name in study.study
        for settings in study.settings_of(name)
    )


def run_whole(cell: WholeCell, context: WholeContext, *, progress: bool = False) -> pd.DataFrame:
    """All tables of one study: columns cell, study, model, settings (JSON), table (its name), content (parquet)."""
    context.check(cell)
    tables = STUDIES[cell.study].run(given_to(cell, context, progress=progress))
    labels = {"cell": cell.key, "study": cell.study, "model": cell.model, "settings": _in_json(cell.settings)}
    rows = [{**labels, "table": name, "content": table.to_parquet(index=False)} for name, table in tables.items()]
    return pd.DataFrame(rows)


def given_to(cell: WholeCell, context: WholeContext, *, progress: bool = False) -> Given:
    """What the cell's study works on."""
    return Given(
        model=context.model(cell.model),
        identify=context.corpus("identify"),
        evaluate=context.corpus("evaluate"),
        reading=cell.reading,
        settings=dict(cell.settings),
        seeds=cell.seeds,
        lape=dict(cell.lape),
        recorded=lambda: context.stats(cell.model),
        progress=progress,
    )


def tables_of(rows: pd.DataFrame) -> dict[str, pd.DataFrame]:
    """The tables of one cell, by name."""
    return {row.table: pd.read_parquet(io.BytesIO(row.content)) for row in rows.itertuples()}


def write_tables(rows: pd.DataFrame, folder: Path) -> None:
    """Every cell's tables as files that the report shows: in `folder`, or where there are several in one each."""
    for key, own in rows.groupby("cell", sort=False):
        name = f"{own.study.iloc[0]} {Path(own.model.iloc[0]).name} {str(key)[:8]}"
        place = folder if rows.cell.nunique() == 1 else folder / "studies" / name
        place.mkdir(parents=True, exist_ok=True)
        for table, content in tables_of(own).items():
            content.to_parquet(place / f"{table}.parquet", index=False)


def _in_json(settings: Pairs) -> str:
    return TypeAdapter(dict[str, Any]).dump_json(dict(settings)).decode()
