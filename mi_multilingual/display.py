"""How the nouns of this package look in a terminal and in a notebook."""

from collections.abc import Mapping, Sequence
from html import escape
from typing import Any

_LISTED = 12  # entries of a one-line summary; a notebook shows all


class Summarised:
    """Gives a noun a short `repr` and, in Jupyter, a small table; the noun says what is in them."""

    def summary(self) -> tuple[str, Mapping[str, Sequence[Any]]]:
        """What it is, in words, and a table: name of the column -> cells."""
        raise NotImplementedError

    def __repr__(self) -> str:
        head, table = self.summary()
        rows = [" ".join(map(cell, row)) for row in zip(*table.values(), strict=True)]
        more = f", ... ({len(rows)} in all)" if len(rows) > _LISTED else ""
        listed = f": {', '.join(rows[:_LISTED])}{more}" if rows else ""
        return f"{type(self).__name__}({head}{listed})"

    def _repr_html_(self) -> str:
        head, table = self.summary()
        titles = "".join(f"<th>{escape(title)}</th>" for title in table)
        rows = "".join(
            "<tr>" + "".join(f"<td>{escape(cell(value))}</td>" for value in row) + "</tr>"
            for row in zip(*table.values(), strict=True)
        )
        caption = f"<caption>{escape(type(self).__name__)}: {escape(head)}</caption>"
        return f"<table>{caption}<thead><tr>{titles}</tr></thead><tbody>{rows}</tbody></table>"


def cell(value: Any) -> str:
    """One cell: thousands apart, fractions short."""
    if isinstance(value, int) and not isinstance(value, bool):
        return f"{value:,}"
    return f"{value:.3g}" if isinstance(value, float) else str(value)


def size(masks_or_values: Any) -> str:
    """Layers and neurons of a tensor whose first two axes they are."""
    n_layers, n_neurons = masks_or_values.shape[:2]
    return f"{n_layers} layers x {n_neurons} neurons"


def spoken(name: str) -> str:
    """A name of the code as people say it, such as "activation percentile"."""
    return name.replace("_", " ")
