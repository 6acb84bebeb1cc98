"""Detectors on a model whose language neurons are known."""

import pytest
import torch

from mi_multilingual import (
    lape,
    lape_scores,
    perplexity_matrix,
    planted_model,
    planted_text,
    rankings,
    record,
    record_relevance,
    relevance_scores,
)
from mi_multilingual.studies.planted import CAUSAL, DECOYS, PAIRS
from mi_multilingual.tokens import DOCUMENTS


@pytest.fixture(scope="module")
def planted():
    return planted_model(effect=3.0, noise=0.3)


@pytest.fixture(scope="module")
def text(planted):
    return planted_text(planted, 1000)


def f1(found, truth):
    both = int((found.masks & truth.masks).sum())
    return 2 * both / int(found.masks.sum() + truth.masks.sum())


def test_the_truth_has_the_stated_sizes(planted):
    assert planted.causal.sizes().tolist() == [CAUSAL] * 5
    # languages 0 to 3 form two pairs, the fifth has none
    assert planted.correlational.sizes().tolist() == [CAUSAL + DECOYS + PAIRS] * 4 + [CAUSAL + DECOYS]
    assert not (planted.causal - planted.correlational).masks.any()


def test_planted_neurons_fire_where_they_should(planted, text):
    p = record(planted.model, text, reading=DOCUMENTS, progress=False).activation_probability().permute(2, 0, 1)
    truth = planted.correlational.masks
    assert p[truth].min() > 0.8
    alone = truth & (truth.sum(0) == 1)
    elsewhere = alone.any(0) & ~truth
    assert p[elsewhere].max() < 0.2


def test_only_the_causal_neurons_matter_to_the_loss(planted, text):
    def own(neurons):
        table = perplexity_matrix(planted.model, text, neurons, seeds=[], reading=DOCUMENTS, progress=False)
        return table[table.group == table.evaluated].change

    assert own(planted.causal).min() > 0.2
    assert own(planted.correlational - planted.causal).abs().max() < 1e-6


def test_lape_recovers_the_correlational_truth(planted, text):
    stats = record(planted.model, text, reading=DOCUMENTS, progress=False)
    share = int(planted.correlational.union().sum()) / planted.causal.masks[0].numel()
    assert f1(lape(stats, rate=share), planted.correlational) >= 0.98


def test_relevance_tells_causes_from_decoys_and_lape_cannot(planted, text):
    stats = record(planted.model, text, reading=DOCUMENTS, progress=False)
    by_cause = relevance_scores(record_relevance(planted.model, text, reading=DOCUMENTS, progress=False))
    assert f1(by_cause.top(CAUSAL), planted.causal) >= 0.98
    assert f1(lape_scores(stats).top(CAUSAL), planted.causal) < 0.75


def test_the_largest_change_by_descent_finds_what_fires_and_the_smallest_nothing(planted, text):
    how = {"optimizer": "sgd", "learning_rate": 0.1, "steps": 1}
    marks = {mark: {"parameter_variation": {"mark": mark, **how}} for mark in ("smallest", "largest")}
    found = {
        mark: rankings(planted.model, text, detectors=list(asked), settings=asked, progress=False)
        for mark, asked in marks.items()
    }
    n = CAUSAL + DECOYS + PAIRS
    right = {mark: f1(scores["parameter_variation"].top(n), planted.correlational) for mark, scores in found.items()}
    assert right["largest"] >= 0.95
    assert right["smallest"] == 0


def test_the_same_seed_plants_the_same_neurons_and_another_one_others(planted):
    again, other = planted_model(effect=3.0, noise=0.3), planted_model(effect=3.0, noise=0.3, seed=1)
    assert again.causal.masks_equal(planted.causal)
    assert torch.equal(again.model.blocks[0].mlp.W_in, planted.model.blocks[0].mlp.W_in)
    assert not other.causal.masks_equal(planted.causal)


def test_too_many_languages_are_refused():
    with pytest.raises(ValueError, match="n_languages must be at least 2 and small enough for 64 neurons, got 9"):
        planted_model(n_languages=9, n_layers=1, neurons_per_layer=64)
