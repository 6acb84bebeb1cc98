"""What a section of the page is, and how it is filled from the files of a run."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import pandas as pd
import plotly.graph_objects as go

from .run import Run
from .tables import LONGEST, Column, cells, described, style

SIGNED = "{:+.4f}"
"""How a change of the loss is written."""


@dataclass(frozen=True)
class Figure:
    """A figure made from files of the run."""

    id: str
    files: tuple[str, ...]
    draw: Callable[..., go.Figure]
    """From what the files hold, one argument for each file."""
    caption: str
    wide: bool = False


@dataclass(frozen=True)
class Section:
    """A part of the page: findings, figures and a table; what has no file in the run is left out."""

    id: str
    title: str
    files: tuple[str, ...] = ()
    """What the table and the findings are made from."""
    caption: str = ""
    """How to read the table."""
    columns: tuple[Column, ...] = ()
    """Those the table shows, where it has them; none: all columns under their own names."""
    build: Callable[..., pd.DataFrame] = lambda table, *rest: table
    """The table, from what the files hold, one argument for each file."""
    findings: Callable[..., list[str]] = lambda *files: []
    """Sentences, from what the files hold, one argument for each file."""
    figures: tuple[Figure, ...] = ()
    language: str = "language"
    """Column by which the language switch filters the rows, where the table has it."""
    folded: bool = False
    """Whether the table is shown on demand only."""


@dataclass(frozen=True)
class Shown:
    """A section as the template needs it."""

    section: Section
    figures: list[dict[str, Any]] = field(default_factory=list)
    findings: list[str] = field(default_factory=list)
    columns: list[dict[str, Any]] = field(default_factory=list)
    rows: list[dict[str, Any]] = field(default_factory=list)
    n_left_out: int = 0


def shown(section: Section, run: Run) -> Shown | None:
    """The section of this run; None where the run has nothing for it."""
    drawn = [
        drawing(figure, figure.draw(*map(run.read, figure.files)))
        for figure in section.figures
        if run.has(*figure.files) and not any(_is_empty(run.read(name)) for name in figure.files)
    ]
    table = pd.DataFrame()
    if section.files and run.has(*section.files):
        table = section.build(*map(run.read, section.files))
    if table.empty:
        return Shown(section, drawn) if drawn else None
    return filled(section, table, drawn, section.findings(*map(run.read, section.files)))


def _is_empty(content: Any) -> bool:
    return isinstance(content, pd.DataFrame) and content.empty


def drawing(figure: Figure, drawn: go.Figure) -> dict[str, Any]:
    """A figure as the template needs it; its title stands above it as text, which can wrap."""
    title = str(drawn.layout.title.text or "")
    return {
        "id": figure.id,
        "title": title,
        "caption": figure.caption,
        "wide": figure.wide,
        "json": str(drawn.to_json()),
    }


def filled(section: Section, table: pd.DataFrame, drawn: list[dict[str, Any]], findings: list[str]) -> Shown:
    """The section with this table in it."""
    columns, part = described(table, section.columns), table.head(LONGEST)
    languages = part[section.language].astype(str).tolist() if section.language in part else [""] * len(part)
    return Shown(
        section,
        drawn,
        findings,
        [{"title": c.title, "names": list(c.names), "style": style(part, c)} for c in columns],
        [{"language": k, "cells": row} for k, row in zip(languages, cells(part, columns), strict=True)],
        len(table) - len(part),
    )
