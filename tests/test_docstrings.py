"""The examples in the docstrings of the package run and give what they say."""

import ast
import copy
import doctest
from pathlib import Path

import pytest

import mi_multilingual

ROOT = Path(mi_multilingual.__file__).parent
EXAMPLES_OF_MOST_USED = 15


def docstrings():
    """(name, docstring, file, line) of every module, class and function that shows an example."""
    for path in sorted(ROOT.rglob("*.py")):
        module = ".".join(path.relative_to(ROOT.parent).with_suffix("").parts).removesuffix(".__init__")
        yield from within(ast.parse(path.read_text(encoding="utf-8")), module, path)


def within(node, name, path):
    # Read from the source: in tests functions are wrapped by the type checker, and doctest's own search misses them.
    if isinstance(node, ast.Module | ast.ClassDef | ast.FunctionDef):
        text = ast.get_docstring(node) or ""
        if ">>>" in text:
            yield name, text, path, getattr(node, "lineno", 1)
        for child in node.body:
            yield from within(child, f"{name}.{getattr(child, 'name', '')}", path)


EXAMPLES = list(docstrings())


@pytest.fixture
def once_loaded(demo_model, monkeypatch):
    """`load_model("demo")` is read from disk once, and every example has a copy of its own."""
    load_model = mi_multilingual.load_model

    def cached(name, **options):
        return copy.deepcopy(demo_model) if (name, options) == ("demo", {}) else load_model(name, **options)

    monkeypatch.setattr(mi_multilingual, "load_model", cached)


@pytest.mark.usefixtures("once_loaded")
@pytest.mark.parametrize(("name", "text", "path", "line"), EXAMPLES, ids=[example[0] for example in EXAMPLES])
def test_an_example_gives_what_it_says(name, text, path, line, tmp_path):
    found = doctest.DocTestParser().get_doctest(text, {"folder": tmp_path}, name, str(path), line)
    options = doctest.ELLIPSIS | doctest.NORMALIZE_WHITESPACE
    told = []
    failed, tried = doctest.DocTestRunner(optionflags=options).run(found, out=told.append)
    assert tried
    assert not failed, "".join(told)


def test_the_most_used_names_have_examples():
    shown = {name.rpartition(".")[2] for name, *_ in EXAMPLES}
    assert len(shown & set(mi_multilingual.__all__)) >= EXAMPLES_OF_MOST_USED, sorted(
        set(mi_multilingual.__all__) - shown
    )
