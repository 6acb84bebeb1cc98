import numpy as np
import pytest
import torch
from scipy.stats import false_discovery_control

import oracles
from mi_multilingual import (
    TextActivations,
    half_agreement,
    lape,
    lape_membership,
    lape_of_texts,
    permutation_test,
    record,
    record_texts,
)
from mi_multilingual.analysis.significance import probabilities, resampled_weights
from mi_multilingual.tokens import DOCUMENTS, Reading

LANGUAGES = ("en", "fr", "ja")

ORIGIN = ("gate", "m", "f", "c", DOCUMENTS)


def counted(values, n_tokens, language, languages=LANGUAGES, reduction="active"):
    place = torch.arange(len(values))
    return TextActivations(values, n_tokens, language, place, languages, reduction, 0.0, *ORIGIN)


def documents(seed=0, n=30, signal=True, n_neurons=60):
    """Counts of documents of three languages; with `signal`, neurons 0..2 fire in one language each."""
    random = np.random.default_rng(seed)
    language = torch.arange(n) % 3
    n_tokens = torch.from_numpy(random.integers(20, 40, n))
    rate = np.full((n, 1, n_neurons), 0.05)
    if signal:
        for k in range(3):
            rate[language == k, 0, k] = 0.9
    values = torch.from_numpy(random.binomial(n_tokens.numpy()[:, None, None], rate)).float()
    return counted(values, n_tokens, language)


def test_sets_of_counts_a_document_are_the_sets_of_recorded_statistics(model, corpus):
    texts = record_texts(model, corpus, reductions=["active"], progress=False)["active"]
    stats = record(model, corpus, reading=Reading(layout="documents"), progress=False)
    assert torch.equal(probabilities(texts), stats.activation_probability())
    assert lape_of_texts(texts, rate=0.3).masks_equal(lape(stats, rate=0.3))


def test_membership_is_the_share_of_resamples_that_select():
    texts = documents(n=9, n_neurons=20)
    rates = {"rate": 0.2, "filter_rate": 0.8, "activation_bar_ratio": 0.8}
    ours = lape_membership(texts, resamples=20, seed=3, **rates)
    random = np.random.default_rng(3)
    expected = torch.zeros(1, 20, 3)
    for _ in range(20):
        weights = resampled_weights(texts, random)
        # every document as often as it was drawn, then plain LAPE
        index = torch.repeat_interleave(torch.arange(9), weights.long())
        expected += lape_of_texts(texts.pick(index), **rates).masks.permute(1, 2, 0)
    torch.testing.assert_close(ours.values, expected / 20)
    assert ours.values[0, :3].diagonal().min() > 0.9


def test_documents_are_drawn_within_languages():
    texts = documents(n=30)
    weights = resampled_weights(texts, np.random.default_rng(0))
    for k in LANGUAGES:
        assert weights[texts.of(k)].sum() == 10
    assert not torch.equal(weights, torch.ones(30))


def test_neurons_of_a_language_are_significant_and_chance_finds_none():
    table, p = permutation_test(documents(), permutations=1000, rate=0.05)
    assert table.found.tolist() == [1, 1, 1]
    assert table.significant.tolist() == [1, 1, 1]
    assert table.chance_mean.max() < 0.2
    assert p[0, :3].max() < 0.05


def test_without_any_signal_chance_finds_as_many():
    found, chance, significant = [], [], []
    for seed in range(10):
        table, _ = permutation_test(documents(seed, signal=False), permutations=50, seed=seed, rate=0.1)
        found.append(table.found.sum())
        chance.append(table.chance_mean.sum())
        significant.append(table.significant.sum())
    assert np.mean(chance) == pytest.approx(np.mean(found), rel=0.5)
    assert np.mean(significant) < 0.5


def test_p_values_are_counted_and_corrected_as_benjamini_and_hochberg_say():
    texts = documents(n=12, n_neurons=15)
    rates = {"rate": 0.4, "filter_rate": 0.5, "activation_bar_ratio": 0.5}
    _, ours = permutation_test(texts, permutations=30, seed=1, **rates)
    random = np.random.default_rng(1)

    def entropies(labels):
        """Entropy of every neuron that is not dismissed, from documents with these labels."""
        table = {}
        for j in range(15):
            p = []
            for k in range(3):
                mine = labels == k
                n = torch.tensor(float(texts.n_tokens[mine].sum()))
                p.append((texts.values[mine, 0, j].sum() / n).item())
            table[j] = p
        bar = oracles.value_of_rank([x for row in table.values() for x in row], rates["filter_rate"])
        return {j: oracles.entropy(row) if any(x > bar for x in row) else np.inf for j, row in table.items()}

    real = entropies(texts.language)
    counts = dict.fromkeys(real, 0)
    for _ in range(30):
        shuffled = entropies(torch.from_numpy(random.permutation(texts.language.numpy())))
        for j, e in shuffled.items():
            counts[j] += np.isfinite(e) and e <= real[j]
    raw = [(counts[j] + 1) / 31 if np.isfinite(real[j]) else 1.0 for j in real]
    assert ours[0].tolist() == pytest.approx(oracles.benjamini_hochberg(raw), abs=1e-6)
    assert false_discovery_control(raw).tolist() == pytest.approx(oracles.benjamini_hochberg(raw))


def test_halves_agree_where_there_is_a_signal_and_not_where_there_is_none():
    def first(texts):
        return lape_of_texts(texts, rate=0.05)

    strong = half_agreement(documents(), first, splits=5)
    assert strong.agreement.tolist() == [1.0, 1.0, 1.0]
    none = half_agreement(documents(signal=False, n_neurons=200), first, splits=5)
    assert none.agreement.mean() < 0.5
    assert (none.low <= none.agreement).all()
    assert (none.agreement <= none.high).all()


def test_mistakes_are_told():
    texts = documents(n=6)
    with pytest.raises(ValueError, match="these are 'mean' activations"):
        lape_membership(counted(texts.values, texts.n_tokens, texts.language, reduction="mean"))
    with pytest.raises(ValueError, match="must be among filter_rate, activation_bar_ratio, got 'share'"):
        lape_membership(texts, share=0.1)
    with pytest.raises(ValueError, match="1 document of 'en' has no two halves"):
        half_agreement(documents(n=3), lape_of_texts)
    with pytest.raises(ValueError, match="at least two languages"):
        lape_membership(counted(texts.values, texts.n_tokens, texts.language * 0, ("en",)))
    silent = counted(torch.zeros(6, 1, 4), texts.n_tokens, texts.language)
    with pytest.raises(ValueError, match="finds no language neuron"):
        permutation_test(silent, rate=0.5)
