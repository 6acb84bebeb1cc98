"""Detectors side by side on the same text."""

import pytest

from mi_multilingual import Corpus, ranking_stability, rankings

N = 5


def test_stability_is_the_overlap_of_the_best_neurons_of_two_halves(model, corpus):
    documents = {k: (*texts, f"{texts[0]} {texts[1]}", texts[2][::-1]) for k, texts in corpus.documents.items()}
    found = ranking_stability(model, Corpus(documents, "five each"), N, progress=False)
    even, odd = (
        rankings(model, Corpus({k: d[i::2] for k, d in documents.items()}, "half"), progress=False) for i in (0, 1)
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
    with pytest.raises(ValueError, match="'fr' has fewer than two documents"):
        ranking_stability(model, short, N)
