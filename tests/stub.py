"""Writes `mi_multilingual/__init__.pyi`: what the package imports lazily, as plain imports for type checkers."""

from pathlib import Path

import mi_multilingual

HEAD = '"""Types of what `__init__.py` imports when it is asked for; `make stub` writes this file from its tables."""'
TABLES = """\
MOST_USED: dict[str, list[str]]
FURTHER: dict[str, list[str]]
MODULES: tuple[str, ...]
HOMES: dict[str, str]
"""


def stub() -> str:
    """The whole file."""
    modules = [f"from . import {name} as {name}" for name in mi_multilingual.MODULES]
    homes = mi_multilingual.HOMES
    # Constants before classes and functions of a module, as ruff has it.
    order = sorted(homes, key=lambda name: (homes[name], not name.isupper(), name))
    names = [f"from .{homes[name]} import {name} as {name}" for name in order]
    public = [f'    "{name}",' for name in mi_multilingual.__all__]
    return "\n".join([HEAD, "", *modules, *names, "", "__all__ = [", *public, "]", "", TABLES])


if __name__ == "__main__":
    Path(mi_multilingual.__file__).with_name("__init__.pyi").write_text(stub(), encoding="utf-8")
