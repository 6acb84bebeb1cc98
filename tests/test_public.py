import inspect
import json
import subprocess
import sys
from collections import defaultdict
from importlib import import_module
from pathlib import Path

import pytest

import mi_multilingual as mm
import stub

SLOW_TO_IMPORT = {"datasets", "pandas", "torch", "transformer_lens", "transformers"}

FUNCTIONS = sorted(name for name in mm.HOMES if inspect.isfunction(getattr(mm, name)))

SEVERAL_DEFAULTS = {
    "by": "tables of different studies are grouped by different columns",
    "n": "each list has a length of its own",
    "permutations": "of whole recordings, which cost much, or of a few languages, which cost nothing",
    "rate": "each detector has its published one; None stands for that",
    "reading": "single documents where evidence or study looks at documents",
    "site": "where the paper read: Sharing Matters at the product, LAPE at the gate",
    "source": "each data set has its own id",
    "source_off": "a matrix of languages compares switching with raising; a curve varies one thing",
    "split": "each data set has its own part for testing",
    "threshold": "an activation to exceed, or for LAP a probability instead of a rate",
    "wordings": "each set of questions has its own number of them",
}
"""Parameters whose default is not the same everywhere, and why."""

BEHIND_PROGRESS = {"checkpoint"}
"""A file to go on from stands last, as what it is for is an accident."""


def parameters(name):
    return inspect.signature(getattr(mm, name)).parameters


def test_all_names_of_the_tables_are_there_and_where_they_say():
    for name, home in mm.HOMES.items():
        assert getattr(mm, name) is getattr(import_module(f"mi_multilingual.{home}"), name)
    listed = [name for table in (mm.MOST_USED, mm.FURTHER) for names in table.values() for name in names]
    assert len(listed) == len(set(listed))
    assert 35 <= len(mm.__all__) <= 45


def test_a_name_that_is_not_there_is_refused_in_words():
    with pytest.raises(AttributeError, match="has no attribute 'lapse'"):
        mm.lapse  # noqa: B018


def test_dir_lists_the_most_used_names_and_the_modules():
    assert dir(mm) == sorted([*mm.__all__, *mm.MODULES])


@pytest.mark.parametrize("name", mm.MODULES)
def test_modules_are_modules(name):
    assert inspect.ismodule(getattr(mm, name))
    assert getattr(mm, name) is import_module(f"mi_multilingual.{name}")


def test_editors_are_told_what_is_there():
    root = Path(mm.__file__).parent
    assert (root / "__init__.pyi").read_text(encoding="utf-8") == stub.stub(), "the tables changed: run `make stub`"
    assert (root / "py.typed").exists()


@pytest.mark.parametrize("name", sorted(n for n in mm.HOMES if not n.isupper()))
def test_every_public_name_says_what_it_is(name):
    assert (getattr(mm, name).__doc__ or "").strip()


def test_a_parameter_has_the_same_default_everywhere():
    found = defaultdict(lambda: defaultdict(list))
    for name in FUNCTIONS:
        for key, parameter in parameters(name).items():
            if parameter.default is not parameter.empty:
                found[key][repr(parameter.default)].append(name)
    several = {key: dict(defaults) for key, defaults in found.items() if len(defaults) > 1}
    assert {key: defaults for key, defaults in several.items() if key not in SEVERAL_DEFAULTS} == {}
    assert set(SEVERAL_DEFAULTS) <= set(several), "an exception without a case"


CONVENTIONS = {"seeds": (0, 1, 2), "bos": "tokenizer", "progress": True, "seed": 0}


@pytest.mark.parametrize("key", CONVENTIONS)
def test_conventions_hold_where_there_is_a_default(key):
    given = {name: parameters(name)[key].default for name in FUNCTIONS if key in parameters(name)}
    assert {name: d for name, d in given.items() if d not in (CONVENTIONS[key], inspect.Parameter.empty)} == {}


def test_readings_are_streams_or_documents_by_default():
    given = {name: parameters(name)["reading"].default for name in FUNCTIONS if "reading" in parameters(name)}
    usual = (mm.Reading(), mm.Reading(layout="documents"), inspect.Parameter.empty)
    assert {name: d for name, d in given.items() if d not in usual} == {}


@pytest.mark.parametrize("name", FUNCTIONS)
def test_parameters_come_in_one_order_and_go_by_one_name(name):
    keys = [key for key, parameter in parameters(name).items() if parameter.kind is not parameter.VAR_KEYWORD]
    assert keys[: keys.index("model") + 1] == ["model"] if "model" in keys else True
    if {"model", "corpus"} <= set(keys):
        assert keys[:2] == ["model", "corpus"]
    if "progress" in keys:
        assert set(keys[keys.index("progress") + 1 :]) <= BEHIND_PROGRESS
    others = {"k", "top_k", "top_rate", "share", "window", "layout", "add_bos", "prepend_bos", "verbose", "random_seed"}
    assert not others & set(keys)


def loaded_by(code, *arguments):
    """What is imported after running the code in a process of its own."""
    ending = "\nimport json, sys; print(json.dumps(sorted(sys.modules)))"
    command = [sys.executable, "-c", code + ending, *map(str, arguments)]
    lines = subprocess.run(command, capture_output=True, text=True, check=True).stdout.splitlines()
    return set(json.loads(lines[-1]))


@pytest.mark.parametrize(
    "code",
    ["import mi_multilingual", "from mi_multilingual.cli import main; assert main(['--help']) == 0"],
    ids=["import", "help"],
)
def test_starting_imports_nothing_slow(code):
    assert not loaded_by(code) & SLOW_TO_IMPORT


def test_identify_imports_no_model_library(ungated, corpus, tmp_path):
    mm.save(mm.record(ungated, corpus, reading=mm.Reading(window=8), progress=False), tmp_path / "stats")
    code = "import sys; from mi_multilingual.cli import main; assert main(sys.argv[1:]) == 0"
    loaded = loaded_by(code, "identify", tmp_path / "stats", "--out", tmp_path / "neurons", "--rate", 0.3)
    assert (tmp_path / "neurons").exists()
    assert not loaded & (SLOW_TO_IMPORT - {"pandas", "torch"})
