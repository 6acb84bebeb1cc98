from itertools import groupby

import pytest
from hypothesis import given
from hypothesis import strategies as st

from mi_multilingual import by_family, family_distance, script_distance
from mi_multilingual.languages import _TABLE, LANGUAGES
from mi_multilingual.report.languages import NAMES

CODES = st.lists(st.sampled_from([*LANGUAGES, "code", "xx", "<i>random neurons</i>"]), unique=True, max_size=12)


def test_every_language_stands_in_the_table_once_and_has_a_name():
    rows = [line.split() for line in _TABLE.strip().splitlines()]
    assert sum(len(codes) for *_, codes in ((row[:3], row[3:]) for row in rows)) == len(LANGUAGES)
    assert set(LANGUAGES) <= set(NAMES)
    assert all(len(script) == 4 for language in LANGUAGES.values() for script in language.scripts)


@given(CODES)
def test_families_and_branches_stand_together_in_order_of_first_appearance(codes):
    ordered = by_family(codes)
    assert sorted(ordered) == sorted(codes)
    families = [LANGUAGES[code].family if code in LANGUAGES else code for code in ordered]
    branches = [LANGUAGES[code][:2] if code in LANGUAGES else code for code in ordered]
    for places in (families, branches):
        runs = [key for key, _ in groupby(places)]
        assert len(runs) == len(set(runs))
    firsts = list(dict.fromkeys(LANGUAGES[code].family if code in LANGUAGES else code for code in codes))
    assert list(dict.fromkeys(families)) == firsts
    for branch in set(branches):
        own = [code for code in codes if (LANGUAGES[code][:2] if code in LANGUAGES else code) == branch]
        assert [code for code in ordered if code in own] == own


@pytest.mark.parametrize(
    ("one", "other", "family", "script"),
    [
        ("en", "en", 0, 0.0),
        ("en", "de", 1, 0.0),
        ("en", "ru", 2, 1.0),
        ("en", "tr", 3, 0.0),
        ("ja", "zh", 3, 2 / 3),
        ("sr", "hr", 1, 0.5),
    ],
)
def test_distances(one, other, family, script):
    assert family_distance(one, other) == family_distance(other, one) == family
    assert script_distance(one, other) == pytest.approx(script)


def test_an_unknown_language_is_told():
    with pytest.raises(ValueError, match="language must be one of ha, .* got 'xx'; leave it out"):
        family_distance("en", "xx")
