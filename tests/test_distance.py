import numpy as np
import pandas as pd
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.stats import pearsonr, spearmanr

import oracles
from mi_multilingual import share_against_distance
from mi_multilingual.analysis.distance import distances, mantel, pairs_of, tree_against_families

LANGUAGES = ["en", "de", "fr", "es", "ru", "tr", "az", "ja"]


def symmetric(n, seed, levels=None):
    random = np.random.default_rng(seed)
    values = random.integers(0, levels, (n, n)).astype(float) if levels else random.normal(size=(n, n))
    return np.triu(values, 1) + np.triu(values, 1).T


def table(values):
    return pd.DataFrame(values, index=LANGUAGES[: len(values)], columns=LANGUAGES[: len(values)])


@settings(max_examples=15)
@given(st.integers(0, 10**6), st.booleans())
def test_correlation_and_p_are_those_of_all_permutations(seed, ranks):
    one, other = symmetric(5, seed, levels=3 if seed % 2 else None), symmetric(5, seed + 1)
    if np.ptp(one[np.triu_indices(5, 1)]) == 0:
        return
    correlate = (lambda x, y: spearmanr(x, y)[0]) if ranks else (lambda x, y: pearsonr(x, y)[0])
    every = np.array(oracles.permuted_correlations(one, other, correlate))
    found = mantel(one, other, ranks=ranks, permutations=4000, seed=seed)
    assert found.value == pytest.approx(every[0])
    assert found.p == pytest.approx((np.abs(every) >= abs(every[0]) - 1e-9).mean(), abs=0.04)
    most, least = found.value - found.low, found.value - found.high
    assert (every > most + 1e-9).mean() < 0.06 < (every >= least - 1e-9).mean()
    assert (every < least - 1e-9).mean() < 0.06
    assert found.n_pairs == 10


def test_overlap_made_of_families_is_found_and_noise_is_not():
    far = distances(LANGUAGES)
    noise = symmetric(len(LANGUAGES), 3)
    found = share_against_distance(table(1 - far / 4 + 0.05 * noise)).set_index("distance")
    row = found.loc["family"]
    assert row.rho < -0.8
    assert row.p < 0.01
    assert row.high < 0
    none = share_against_distance(table(noise)).set_index("distance").loc["family"]
    assert none.p > 0.05
    assert none.low < 0 < none.high


def test_order_of_languages_plays_no_part():
    values = table(symmetric(len(LANGUAGES), 4))
    turned = values.loc[LANGUAGES[::-1], LANGUAGES[::-1]]
    a, b = (share_against_distance(t, permutations=99) for t in (values, turned))
    assert a.rho.tolist() == pytest.approx(b.rho.tolist())


def test_unknown_languages_and_distances_without_differences_are_left_out():
    names = ["en", "xx", "de", "tr"]
    square = pd.DataFrame(symmetric(4, 0), index=names, columns=names)
    found = share_against_distance(square, permutations=99)
    assert found.distance.tolist() == ["family"]
    assert found.n_pairs.tolist() == [3]
    assert set(pairs_of(square).language) | set(pairs_of(square).other) == {"en", "de", "tr"}


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: share_against_distance(table(symmetric(2, 0))), "at least 3 languages must be in"),
        (lambda: share_against_distance(table(symmetric(4, 0)).iloc[:3]), "table must be square"),
        (lambda: mantel(symmetric(4, 0), np.ones((4, 4))), "pairs of languages must differ, got 1 for all"),
        (lambda: mantel(symmetric(2, 0), symmetric(2, 1)), "at least 3 languages, got 2"),
    ],
)
def test_mistakes_are_told(call, message):
    with pytest.raises(ValueError, match=message):
        call()


def test_a_tree_of_families_correlates_with_families():
    far = distances(LANGUAGES)
    found = tree_against_families(table(1 - far / 10 - np.abs(symmetric(len(LANGUAGES), 1)) / 100))
    assert found.value > 0.9
    assert found.p < 0.05
