import math

import numpy as np
import pandas as pd
import pytest
from hypothesis import given
from hypothesis import strategies as st

import oracles
from mi_multilingual.experiments.summary import effects

LANGUAGES = ("en", "none", "specific")  # whatever else these words mean elsewhere


@st.composite
def sweeps(draw):
    """Results of a few settings, some of them with holes, one language or no random neurons."""
    languages = LANGUAGES[: draw(st.integers(1, 3))]
    seeds = draw(st.sampled_from([(-1,), (-1, 0), (-1, 0, 1)]))
    rows = []
    for detector, rate in (("lape", 0.1), ("lape", 0.2), ("sharing", math.nan), ("plnd", math.nan)):
        groups = ("all-shared", "specific") if detector == "sharing" else languages
        prompts = ("",) if detector == "plnd" else languages
        rows += [
            row_of(detector, rate, group, e, seed, draw(st.floats(-3, 3)))
            for group in groups
            for e in prompts
            for seed in seeds
            if draw(st.booleans()) or len(rows) == 0
        ]
    return rows


def row_of(detector, rate, group, evaluated, seed, change, **other):
    row = {"model": "demo", "detector": detector, "parameters": "{}", "rate": rate, "site": "gate", "layers": "all"}
    row |= {"part": "mlp", "intervention": "zero", "group": group, "seed": seed, "evaluation": "language"}
    row |= {"condition": "chosen" if seed == -1 else "random"}
    return (
        row | {"evaluated": evaluated, "measure": "loss", "base": 2.0, "value": 2.0 + change, "change": change} | other
    )


@given(sweeps())
def test_effects_are_means_over_languages_as_by_hand(rows):
    table = effects(pd.DataFrame(rows))
    expected = oracles.sweep_means(rows)
    assert len(table) == len(expected)
    for row in table.itertuples():
        rate = None if math.isnan(row.rate) else row.rate
        n, change = expected[row.detector, rate, row.condition, row.where]
        assert row.n == n
        assert row.change == pytest.approx(change, abs=1e-9)
        assert row.value - row.base == pytest.approx(change, abs=1e-9)
        assert math.isnan(row.low) == (n == 1)
        assert n == 1 or row.low - 1e-9 <= row.change <= row.high + 1e-9


def test_the_interval_is_over_languages_not_over_cells():
    random = np.random.default_rng(0)
    languages, covered = [f"l{i}" for i in range(8)], 0
    for _ in range(80):
        shift = random.normal(1.0, 0.5, len(languages))
        rows = [
            row_of("lape", 0.1, k, other, -1, shift[i] + random.normal(0, 0.01))
            for i, k in enumerate(languages)
            for other in languages
            if other != k
        ]
        [found] = effects(pd.DataFrame(rows)).itertuples()
        covered += found.low <= 1.0 <= found.high
    assert covered / 80 > 0.8


def test_settings_are_called_by_what_tells_them_apart():
    rows = [
        row_of("sharing", math.nan, "specific", "en", -1, 0.0, parameters=f'{{"threshold": {t}, "tokens": "last"}}')
        for t in (0.0, 0.5)
    ]
    rows += [
        row_of("plnd", 0.1, "en", "en", -1, 0.0, part=part, layers=layers, parameters='{"epsilon": null}', model=model)
        for part, layers, model in (("mlp", "all", "a/tiny"), ("all", "first", "b/small"))
    ]
    assert list(effects(pd.DataFrame(rows)).setting) == [
        "demo, sharing, threshold 0.0, all layers, MLP",
        "demo, sharing, threshold 0.5, all layers, MLP",
        "tiny, plnd, rate 0.1, all layers, MLP",
        "small, plnd, rate 0.1, first layers, MLP and attention",
    ]
    assert list(effects(pd.DataFrame(rows[:1])).setting) == ["the only setting"]
    alike = [row_of("lape", 0.1, "en", "en", -1, 0.0, model=m) for m in ("a/tiny", "b/tiny")]
    assert list(effects(pd.DataFrame(alike)).setting) == ["a/tiny", "b/tiny"]


def test_measures_of_the_same_name_stay_apart():
    changes = {"facts": 0.1, "xcopa": 0.3}
    rows = [row_of("lape", 0.1, "en", "en", -1, c, evaluation=e, measure="accuracy") for e, c in changes.items()]
    assert list(effects(pd.DataFrame(rows)).change) == [0.1, 0.3]
