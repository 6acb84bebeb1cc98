"""A DataFrame as the cells of an HTML table: how its columns are called and written."""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import pandas as pd

from ..display import spoken
from ..patching.conditions import NOT_RANDOM
from .languages import named

LONGEST = 2000  # rows of a table in the page
_SHORT_TEXT = 30  # characters that stand in one line
_MISSING = "–"


@dataclass(frozen=True)
class Column:
    """A column of a table in the page, made of one or more columns of the DataFrame."""

    names: tuple[str, ...]
    """Columns of the DataFrame; the whole is left out where the DataFrame lacks one."""
    title: str
    form: str = "{}"
    """How the values are written, e.g. "{:+.4f} to {:+.4f}"."""
    link: str = ""
    """Where the cell leads, with the values filled in, e.g. "#neuron-{}.{}"."""
    words: Callable[[str], str] = str
    """How a text among the values is said to people, e.g. a language's name for its code."""


@dataclass(frozen=True)
class TableCell:
    """Text for the reader, and the values behind it for sorting and CSV."""

    text: str
    values: list[Any]
    link: str = ""

    @property
    def json(self) -> str:
        return json.dumps(self.values, ensure_ascii=False)


_INTERVAL = Column(("low", "high"), "95 % interval")
NEURON = Column(("layer", "neuron"), "neuron", "{}.{}", "#neuron-{}.{}")
SEED = Column(("seed",), "seed", "{:.0f}")


def column(names: str, title: str = "", form: str = "{}", words: Callable[[str], str] = str) -> Column:
    """A column by its names separated by spaces, called as it is named unless it has a title."""
    return Column(tuple(names.split()), title or spoken(names), form, words=words)


def language_column(name: str = "language", title: str = "") -> Column:
    """A column of codes of languages, shown with the languages' names."""
    return column(name, title, words=named)


def said(words: Mapping[str, str]) -> Callable[[str], str]:
    """The words for a code, such as that of a condition; a code without words stands for itself."""
    return lambda code: words.get(code, code)


def interval(form: str) -> Column:
    """The columns low and high, each written in this form."""
    return Column(_INTERVAL.names, _INTERVAL.title, f"{form} to {form}")


def seeds_where_random(table: pd.DataFrame) -> pd.DataFrame:
    """The table with seeds where something is random, and none elsewhere."""
    return table.assign(seed=table.seed.where(table.seed != NOT_RANDOM)) if "seed" in table else table


def described(table: pd.DataFrame, columns: Sequence[Column]) -> list[Column]:
    """Those of `columns` that the table has; without any, all of the table under their own names."""
    has = set(table.columns)
    if known := [c for c in columns if has >= set(c.names)]:
        return known
    found: dict[tuple[str, ...], Column] = {}
    for name in table.columns:
        form = _form_of(table[name])
        for pair in (NEURON, interval(form)):
            if name in pair.names and has >= set(pair.names):
                found.setdefault(pair.names, pair)
                break
        else:
            found[name,] = Column((name,), spoken(str(name)), form)
    return list(found.values())


def _form_of(values: pd.Series) -> str:
    """How a column is written that nobody described."""
    if pd.api.types.is_bool_dtype(values) or not pd.api.types.is_numeric_dtype(values):
        return "{}"
    return "{:,}" if pd.api.types.is_integer_dtype(values) else "{:.4g}"


def cells(table: pd.DataFrame, columns: Sequence[Column]) -> list[list[TableCell]]:
    """The cells of every row."""
    series = [[table[name].tolist() for name in c.names] for c in columns]
    return [
        [cell(column, [plain(part[i]) for part in parts]) for column, parts in zip(columns, series, strict=True)]
        for i in range(len(table))
    ]


def plain(value: Any) -> Any:
    """A value that JSON can hold: None where it is missing or not finite, text where it is no number."""
    if isinstance(value, bool | np.bool_):
        return "yes" if value else "no"
    if isinstance(value, int | float | np.number):
        number = value.item() if isinstance(value, np.number) else value
        return number if math.isfinite(number) else None
    if isinstance(value, list | tuple | np.ndarray):
        return " ".join(map(str, value))
    return None if value is None or value is pd.NA else str(value)


def cell(column: Column, values: list[Any]) -> TableCell:
    if any(v is None for v in values):
        return TableCell(_MISSING, values)
    words = [column.words(v) if isinstance(v, str) else v for v in values]
    return TableCell(column.form.format(*words), values, column.link.format(*values) if column.link else "")


def style(table: pd.DataFrame, column: Column) -> str:
    """Classes of a column's cells: text stands at the left, long text may wrap."""
    values = table[column.names[0]]
    if pd.api.types.is_numeric_dtype(values):
        return ""
    return "text long" if values.astype(str).str.len().max() > _SHORT_TEXT else "text"
