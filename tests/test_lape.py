import math

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

import oracles
from mi_multilingual import ActivationStats, lape, lape_entropy
from mi_multilingual.tokens import Reading

LANGUAGES = ("en", "fr", "ja", "ru", "tr", "vi", "zh")
ORIGIN = {"site": "gate", "threshold": 0.0, "model": "m", "model_fingerprint": "f", "corpus_fingerprint": "c"}
ORIGIN |= {"reading": Reading()}


def stats_of(active: torch.Tensor, n_tokens: torch.Tensor) -> ActivationStats:
    zeros = torch.zeros(active.shape, dtype=torch.float64)
    return ActivationStats(LANGUAGES[: len(n_tokens)], n_tokens, active, zeros, zeros, zeros, zeros, **ORIGIN)


@st.composite
def counts(draw):
    """Counts with silent neurons, ties (few distinct values) and languages of different size."""
    k, layers, neurons = draw(st.integers(2, 7)), draw(st.integers(1, 3)), draw(st.integers(1, 12))
    n_tokens = torch.tensor(draw(st.lists(st.integers(1, 60), min_size=k, max_size=k)))
    random = torch.Generator().manual_seed(draw(st.integers(0, 2**20)))
    scale = torch.rand(layers, neurons, k, generator=random) ** draw(st.sampled_from([0.3, 1, 6]))
    active = (scale * n_tokens).long()
    active[torch.rand(layers, neurons, generator=random) < draw(st.sampled_from([0, 0.3, 0.9]))] = 0
    if draw(st.booleans()):
        active[..., draw(st.integers(0, k - 1))] = 0  # a language in which nothing fires gets no neuron
    return active, n_tokens


rates = st.sampled_from([0.2, 0.5, 0.8, 0.95, 1.0])


@given(counts(), rates, rates, rates)
def test_lape_is_the_released_algorithm_bit_for_bit(data, rate, filter_rate, bar_ratio):
    active, n_tokens = data
    if (
        min(
            round(rate * active[..., 0].numel()),
            round(filter_rate * active.numel()),
            round(bar_ratio * active.numel()),
        )
        < 1
    ):
        return
    ours = lape(stats_of(active, n_tokens), rate=rate, filter_rate=filter_rate, activation_bar_ratio=bar_ratio)
    assert torch.equal(ours.masks, oracles.released_lape(active, n_tokens, rate, filter_rate, bar_ratio))


@given(counts(), rates, rates, rates)
def test_lape_selects_what_the_description_says_up_to_ties(data, rate, filter_rate, bar_ratio):
    active, n_tokens = data
    if (
        min(
            round(rate * active[..., 0].numel()),
            round(filter_rate * active.numel()),
            round(bar_ratio * active.numel()),
        )
        < 1
    ):
        return
    ours = lape(stats_of(active, n_tokens), rate=rate, filter_rate=filter_rate, activation_bar_ratio=bar_ratio)
    weights = oracles.probabilities(active.tolist(), n_tokens.tolist())
    certain, close, _, owners = oracles.select_by_entropy(weights, rate, filter_rate, bar_ratio)
    for cell, expected in owners.items():
        mine = set(ours.masks[:, cell[0], cell[1]].nonzero().flatten().tolist())
        if cell in certain:
            assert mine == expected
        elif cell in close:
            assert mine in (set(), expected)
        else:
            assert mine == set()


@given(counts())
def test_entropy_is_the_formula_for_every_neuron(data):
    active, n_tokens = data
    ours = lape_entropy(stats_of(active, n_tokens))
    for (layer, neuron), row in oracles.probabilities(active.tolist(), n_tokens.tolist()).items():
        assert ours[layer, neuron].item() == pytest.approx(oracles.entropy(row), abs=2e-6)


def test_a_neuron_of_two_languages_belongs_to_both_and_a_language_without_neurons_has_an_empty_set():
    active = torch.full((2, 50, 3), 1)
    active[0, 3] = torch.tensor([90, 95, 0])  # of the first two languages
    active[1, 7] = torch.tensor([0, 80, 0])
    found = lape(stats_of(active, torch.tensor([100, 100, 100])), rate=0.02)
    assert found.to_frame().values.tolist() == [["en", 0, 3], ["fr", 0, 3], ["fr", 1, 7]]
    assert found.sizes()["ja"] == 0


def test_the_rate_is_of_all_neurons_over_all_languages_together():
    random = torch.Generator().manual_seed(0)
    active = torch.randint(0, 100, (4, 250, 5), generator=random)
    found = lape(stats_of(active, torch.full((5,), 100)), rate=0.05, activation_bar_ratio=0.01)
    assert int(found.union().sum()) == 50


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda s: lape(s.take(["en"])), "at least two languages"),
        (lambda s: lape(s, rate=0.0), "rate must be a share above 0 and up to 1, got 0.0"),
        (lambda s: lape(s, rate=0.1, filter_rate=1.5), "filter_rate must be a share above 0 and up to 1, got 1.5"),
        (lambda s: lape(s, rate=math.nan), "rate must be a share above 0 and up to 1, got nan"),
        (lambda s: lape(stats_of(s.active, torch.tensor([5, 0, 5]))), "no token was counted for fr"),
    ],
)
def test_bad_input_is_refused_in_words(change, message):
    with pytest.raises(ValueError, match=message):
        change(stats_of(torch.ones(2, 10, 3, dtype=torch.int64), torch.tensor([5, 5, 5])))
