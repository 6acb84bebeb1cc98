"""Tables in a terminal."""

from collections.abc import Iterable, Iterator, Sequence
from typing import TYPE_CHECKING

from rich.console import Console
from rich.table import Table

if TYPE_CHECKING:
    import pandas as pd

    from ..display import Summarised

console = Console()

_NUMBER = 6  # characters of a number, see `signed`


def _table_of(columns: Sequence[str], rows: Iterable[Sequence[str]], gap: int = 2) -> Table:
    """A table without lines, so that as much as can be fits into a narrow terminal."""
    table = Table(*columns, box=None, padding=(0, gap, 0, 0), show_header=any(columns))
    for row in rows:
        table.add_row(*row)
    return table


def print_rows(title: str, columns: Sequence[str], rows: Iterable[Sequence[str]]) -> None:
    """A table of words and numbers already written out."""
    console.print(title)
    console.print()
    console.print(_table_of(columns, rows))


def print_noun(noun: "Summarised") -> None:
    """What a noun says of itself."""
    from ..display import cell

    head, columns = noun.summary()
    print_rows(head, list(columns), ([cell(value) for value in row] for row in zip(*columns.values(), strict=True)))


def print_settings(heading: str, rows: Iterable[Sequence[str]]) -> None:
    """What something can be asked for: name, default, what it is."""
    console.print(heading, style="bold")
    console.print(_table_of(["", "", ""], ((f"  {name:20}", f"{default:5}", about) for name, default, about in rows)))


def print_matrix(title: str, corner: str, frame: "pd.DataFrame") -> None:
    """A table of signed numbers; where the terminal is too narrow for all columns they go on in further tables."""
    console.print(title)
    names = list(map(str, frame.index))
    for columns in _in_width(list(frame.columns), console.width - max(map(len, [corner, *names])) - 1):
        rows = [[name, *map(signed, row)] for name, row in zip(names, frame[columns].to_numpy(), strict=True)]
        console.print()
        console.print(_table_of([corner, *columns], rows, gap=1))


def _in_width(names: Sequence[str], width: int) -> Iterator[list[str]]:
    """The names in runs whose columns of numbers, each with a space behind it, fit into so many characters."""
    run: list[str] = []
    used = 0
    for name in names:
        needed = 1 + max(_NUMBER, len(name))
        if run and used + needed > width:
            yield run
            run, used = [], 0
        run.append(name)
        used += needed
    yield run


def signed(value: float) -> str:
    """With its sign and at most three decimals, fewer where it would be longer than six characters."""
    if value != value:
        return ""
    return next(text for digits in (3, 2, 1, 0) if len(text := f"{value:+.{digits}f}") <= _NUMBER or digits == 0)
