"""What was measured, as one table: a line for each kind of work and model, this package's backends side by side."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from itertools import groupby

from subjects import BACKENDS
from timing import Row

_NAMES = {"hooked": "HookedTransformer", "bridge": "TransformerBridge"}


def table(rows: Sequence[Row]) -> str:
    """A markdown table: ratio, and in brackets the least and the most of single rounds."""
    head = ["work", "model", *(_NAMES[backend] for backend in BACKENDS), "goal", "others"]
    lines = [head, ["---"] * len(head)]
    for (_, case, model), own in groupby(rows, key=lambda row: (row.part, row.case, f"{row.model}, {row.dtype}")):
        lines += _lines(case, model, list(own))
    return "\n".join(f"| {' | '.join(line)} |" for line in lines)


def _lines(case: str, model: str, rows: Sequence[Row]) -> list[list[str]]:
    """A line for each kind of work of a case; the others are named on the first."""
    ours = [row for row in rows if _backend(row)]
    others = "; ".join(f"{row.way} {_ratio([row])}" for row in rows[1:] if not _backend(row))
    lines = []
    for work in dict.fromkeys(_work(row) for row in ours):
        mine = [row for row in ours if _work(row) == work]
        by_backend = [_ratio(row for row in mine if _backend(row) == backend) for backend in BACKENDS]
        lines.append([f"{work}: {case}", model, *by_backend, _goal(mine), others])
        others = ""
    return lines


def _backend(row: Row) -> str:
    """The backend at the end of a way's name; nothing for other packages."""
    last = row.way.rpartition(", ")[2]
    return last if last in BACKENDS else ""


def _work(row: Row) -> str:
    return row.way.rpartition(", ")[0]


def _ratio(rows: Iterable[Row]) -> str:
    return "".join(f"{row.ratio:.3f} ({row.least:.2f}-{row.most:.2f})" for row in rows)


def _goal(rows: Sequence[Row]) -> str:
    """The goal, and whether all backends that are there reach it."""
    with_goal = [row for row in rows if row.goal is not None]
    if not with_goal:
        return ""
    sign = ">=" if with_goal[0].speed else "<="
    met = all(row.ratio >= row.goal if row.speed else row.ratio <= row.goal for row in with_goal if row.goal)
    return f"{sign} {with_goal[0].goal:g}, {'met' if met else 'not met'}"
