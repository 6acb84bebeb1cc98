"""Detectors side by side on the same text."""

from dataclasses import replace

import numpy as np
import pandas as pd
import pytest

from mi_multilingual import (
    Corpus,
    Reading,
    leaderboard,
    perplexity_matrix,
    planted_model,
    planted_text,
    ranking_stability,
    rankings,
)
from mi_multilingual.neurons import NeuronSet
from mi_multilingual.studies.leaderboard import specificity
from mi_multilingual.tokens import DOCUMENTS

N = 5


def test_specificity_is_the_diagonal_less_the_rest():
    random = np.random.default_rng(0)
    matrix = random.normal(size=(4, 4, 3))
    for r in range(3):
        own = [matrix[i, i, r] for i in range(4)]
        other = [matrix[i, k, r] for i in range(4) for k in range(4) if i != k]
        assert specificity(matrix)[r] == pytest.approx(np.mean(own) - np.mean(other))


@pytest.fixture(scope="module")
def planted():
    return planted_model(n_languages=3, effect=3.0)


def test_causal_neurons_lead_and_random_ones_are_the_floor(planted):
    text = planted_text(planted, 200)
    detected = {"causal": planted.causal, "decoys": planted.correlational - planted.causal}
    table = leaderboard(planted.model, text, detected, reading=DOCUMENTS, progress=False)
    assert table.detector[0] == "causal"
    rows = set(zip(table.condition, table.detector, strict=True))
    assert rows == {("chosen", "causal"), ("chosen", "decoys"), ("random", "")}
    best, floor = table.iloc[0], table[table.condition == "random"].iloc[0]
    assert best.low < best.specificity < best.high
    assert best.low > floor.high
    assert best.hits == 3
    matrix = perplexity_matrix(planted.model, text, planted.causal, seeds=[], reading=DOCUMENTS, progress=False)
    matrix = matrix[matrix.condition == "chosen"]
    own = matrix[matrix.group == matrix.evaluated].change.mean()
    assert best.own == pytest.approx(own, abs=1e-6)
    assert best.elsewhere == pytest.approx(matrix[matrix.group != matrix.evaluated].change.mean(), abs=1e-6)


def test_the_floor_is_the_mean_of_random_neurons_in_place_of_the_first_detectors(planted):
    text, few = planted_text(planted, 40), planted.causal.take(["l0", "l1", "l2"])
    both = {"causal": few, "all": planted.correlational}
    found = leaderboard(planted.model, text, both, seeds=(3, 5), reading=DOCUMENTS, progress=False)
    row = found[found.condition == "random"].iloc[0]
    matrix = perplexity_matrix(planted.model, text, few, seeds=(3, 5), reading=DOCUMENTS, progress=False)
    own = matrix[matrix.condition == "random"].groupby("evaluated").change.mean().mean()
    assert row.own == pytest.approx(own, abs=1e-6)
    assert row.n_neurons == few.sizes().mean()


def test_languages_and_detectors_may_be_called_like_controls(planted):
    text, names = planted_text(planted, 40), ("none", "random", "all")
    detected = {"one": planted.causal, "two": planted.correlational}
    plain = leaderboard(planted.model, text, detected, reading=DOCUMENTS, progress=False)
    renamed = Corpus(dict(zip(names, text.documents.values(), strict=True)), "renamed")
    controls = {"random": replace(planted.causal, groups=names), "intact": replace(planted.correlational, groups=names)}
    found = leaderboard(planted.model, renamed, controls, reading=DOCUMENTS, progress=False)
    assert list(found.detector) == [{"one": "random", "two": "intact", "": ""}[name] for name in plain.detector]
    pd.testing.assert_frame_equal(found.drop(columns="detector"), plain.drop(columns="detector"))


def test_mistakes_are_told(planted):
    text = planted_text(planted, 40)
    with pytest.raises(ValueError, match="detected must name at least one detector, got none"):
        leaderboard(planted.model, text, {}, progress=False)
    few = NeuronSet(planted.causal.masks[:2], ("l0", "l1"), "m")
    with pytest.raises(ValueError, match="every detector must have neurons for 'l2', 'few' has l0, l1"):
        leaderboard(planted.model, text, {"few": few}, progress=False)
    with pytest.raises(ValueError, match="at least two languages, got l0 only"):
        leaderboard(planted.model, text.take(["l0"]), {"few": few}, progress=False)


def test_stability_is_the_overlap_of_the_best_neurons_of_two_halves(model, corpus):
    reading = Reading(layout="documents", bos="row")
    documents = {k: (*texts, f"{texts[0]} {texts[1]}", texts[2][::-1]) for k, texts in corpus.documents.items()}
    found = ranking_stability(model, Corpus(documents, "five each"), n=N, reading=reading, progress=False)
    even, odd = (
        rankings(model, Corpus({k: d[i::2] for k, d in documents.items()}, "half"), reading=reading, progress=False)
        for i in (0, 1)
    )
    assert set(found.index) == set(even)
    for detector, stability in found.items():
        overlaps = []
        for k in documents:
            left, right = (
                {(x.layer, x.neuron) for x in ranked[detector].top(N)[k].to_frame().itertuples()}
                for ranked in (even, odd)
            )
            overlaps.append(len(left & right) / max(1, len(left | right)))
        assert stability == pytest.approx(sum(overlaps) / len(overlaps)), detector


def test_one_document_makes_no_halves(model, corpus):
    short = Corpus({**corpus.documents, "fr": corpus.documents["fr"][:1]}, "short")
    with pytest.raises(ValueError, match="every language must have two documents or more, got one for 'fr'"):
        ranking_stability(model, short, n=N)
