"""The table of claims: the rule of its verdicts, and that no claim stands there without a protocol."""

import importlib
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from mi_multilingual.experiments import load_study
from mi_multilingual.studies.table import STUDIES

DOCS = Path(__file__).parents[1] / "docs"


@pytest.fixture(scope="module")
def made():
    """The module that writes the table."""
    with pytest.MonkeyPatch.context() as patch:
        patch.syspath_prepend(str(DOCS / "generate"))
        yield importlib.import_module("reproduction")


def claim(made, direction=1, delta=0.1):
    return made.Claim("Nobody 2000", "A", "much", "toy", lambda tables: tables["effect"], "nats", direction, delta)


ENDS = st.tuples(*[st.floats(-3, 3).map(lambda x: round(x, 6))] * 2).map(sorted)


@given(ENDS, st.sampled_from([1, -1]), st.floats(0, 1))
def test_a_verdict_follows_the_interval(made, ends, direction, delta):
    low, high = ends
    said = made.verdict(claim(made, direction, delta), made.Effect((low + high) / 2, low, high, ""))
    excludes_zero = low > 0 or high < 0
    right = (low > 0) == (direction > 0)
    if low == high:
        expected = "cannot be told"
    elif excludes_zero and right:
        expected = "holds"
    elif excludes_zero or (abs(low) <= delta and abs(high) <= delta):
        expected = "does not"
    else:
        expected = "cannot be told"
    assert said == expected


def test_what_rounding_left_of_nothing_is_no_side(made):
    assert made.verdict(claim(made, -1), made.Effect(-0.7, -1.3, -1.1e-16, "")) == "cannot be told"


def test_a_value_without_an_interval_is_told_as_one(made):
    same = made.Effect(0.0, 0.0, 0.0, "")
    assert made.in_words(claim(made), same) == "**cannot be told**: 0 nats in every case, so without an interval"


def test_every_claim_has_a_protocol_that_can_be_read_and_a_row_in_the_page(made):
    claims = made.all_claims()
    assert len({c.text for c in claims}) == len(claims) >= 25
    page = (DOCS / "reproduction.md").read_text(encoding="utf-8")
    for c in claims:
        assert c.direction in (1, -1)
        assert c.delta >= 0
        assert " ".join(c.text.replace("|", "/").split()) in page, c.text
    for name in {c.study for c in claims}:
        study = load_study(DOCS / "reproduction" / f"{name}.yaml")
        assert study.model == ("demo",)
        assert set(study.study) <= set(STUDIES)


def test_what_was_not_measured_is_told(made, tmp_path):
    asked = claim(made)
    assert made.measured(asked, tmp_path) == "not measured"
    (tmp_path / asked.study).mkdir()
    said = made.measured(asked, tmp_path)
    assert said.startswith("not measured: ")
    assert said in made.table({(claim(made), "demo"): said}, ["demo"])
