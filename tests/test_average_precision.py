import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from sklearn.metrics import average_precision_score

import oracles
from mi_multilingual import TextActivations, average_precision, average_precision_scores, medians, top_and_bottom
from mi_multilingual.tokens import DOCUMENTS

LANGUAGES = ("en", "fr", "ja")


def texts_of(values: torch.Tensor, language: torch.Tensor, languages=LANGUAGES) -> TextActivations:
    n = torch.ones(len(values), dtype=torch.int64)
    return TextActivations(
        values, n, language, torch.arange(len(values)), languages, "mean", 0.0, "gate", "m", "f", "c", DOCUMENTS
    )


@st.composite
def responses(draw):
    """Responses with many ties (few distinct values, dead neurons), classes of any size."""
    n = draw(st.integers(3, 40))
    language = torch.tensor([0, 1, 2, *draw(st.lists(st.integers(0, 2), min_size=n - 3, max_size=n - 3))])
    random = torch.Generator().manual_seed(draw(st.integers(0, 2**20)))
    values = torch.randn(n, 2, 4, generator=random)
    if draw(st.booleans()):
        values = values.relu()
    if draw(st.booleans()):
        values = (values * draw(st.sampled_from([1, 3]))).round()
    values[:, 0, 0] = 0.0
    return texts_of(values, language)


@given(responses())
def test_equals_scikit_learn_and_the_definition_for_every_neuron(texts):
    ours = average_precision_scores(texts)
    assert ours.values.dtype == torch.float64
    for k, language in enumerate(LANGUAGES):
        labels = texts.of(language).int().tolist()
        for layer in range(2):
            for neuron in range(4):
                scores = texts.values[:, layer, neuron].tolist()
                value = ours.values[layer, neuron, k].item()
                assert value == pytest.approx(average_precision_score(labels, scores), abs=1e-9)
                assert value == pytest.approx(oracles.average_precision(scores, labels), abs=1e-9)


@given(responses())
def test_medians_are_the_middle_responses(texts):
    ours = medians(texts)
    for k, language in enumerate(LANGUAGES):
        for layer in range(2):
            for neuron in range(4):
                values = texts.values[texts.of(language), layer, neuron].tolist()
                assert ours[layer, neuron, k].item() == pytest.approx(oracles.median(values), abs=1e-5)


def test_top_and_bottom_are_the_best_and_the_worst_detectors():
    random = np.random.default_rng(0)
    language = torch.tensor([0] * 10 + [1] * 10 + [2] * 10)
    values = torch.from_numpy(random.normal(size=(30, 1, 6))).float()
    values[:, 0, 2] = (language == 0).float()
    values[:, 0, 4] = -(language == 0).float()
    chosen = top_and_bottom(average_precision_scores(texts_of(values, language)), n=1)
    assert chosen["en"].to_frame().neuron.tolist() == [2, 4]


def test_a_perfect_detector_has_1_and_a_constant_one_the_share_of_texts():
    language = torch.tensor([0, 0, 1, 2])
    values = torch.stack([(language == 0).float(), torch.ones(4)], dim=1)[:, None]
    ours = average_precision_scores(texts_of(values, language)).values
    assert ours[0, 0, 0] == 1.0
    assert ours[0, 1].tolist() == [0.5, 0.25, 0.25]


def test_languages_without_texts_are_refused():
    with pytest.raises(ValueError, match="no text of 'ja'"):
        average_precision_scores(texts_of(torch.zeros(2, 1, 1), torch.tensor([0, 1])))
    with pytest.raises(ValueError, match="at least two languages"):
        average_precision_scores(texts_of(torch.zeros(2, 1, 1), torch.tensor([0, 0]), ("en",)))


def test_the_set_holds_a_share_of_the_neurons_from_either_end():
    texts = texts_of(torch.rand(6, 2, 10, generator=torch.Generator().manual_seed(0)), torch.tensor([0, 0, 1, 1, 2, 2]))
    chosen = average_precision(texts, rate=0.1)
    assert chosen.masks_equal(top_and_bottom(average_precision_scores(texts), n=2))
    assert chosen.sizes().tolist() == [4, 4, 4]
