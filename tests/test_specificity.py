import numpy as np
import pytest

from mi_multilingual import leaderboard, perplexity_matrix, planted_model, planted_text
from mi_multilingual.neurons import NeuronSet
from mi_multilingual.studies.leaderboard import RANDOM, specificity


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
    table = leaderboard(planted.model, text, detected, layout="documents", progress=False)
    assert table.detector[0] == "causal"
    assert set(table.detector) == {"causal", "decoys", RANDOM}
    best = table.iloc[0]
    assert best.low < best.specificity < best.high
    assert best.low > table.set_index("detector").high[RANDOM]
    assert best.hits == 3
    matrix = perplexity_matrix(planted.model, text, planted.causal, seeds=[], layout="documents", progress=False)
    matrix = matrix[matrix.ablated != "none"]
    own = matrix[matrix.ablated == matrix.evaluated].change.mean()
    assert best.own == pytest.approx(own, abs=1e-6)
    assert best.elsewhere == pytest.approx(matrix[matrix.ablated != matrix.evaluated].change.mean(), abs=1e-6)


def test_mistakes_are_told(planted):
    text = planted_text(planted, 40)
    with pytest.raises(ValueError, match="no detector to compare"):
        leaderboard(planted.model, text, {}, progress=False)
    few = NeuronSet(planted.causal.masks[:2], ("l0", "l1"), "m")
    with pytest.raises(ValueError, match="few has no neurons for 'l2'"):
        leaderboard(planted.model, text, {"few": few}, progress=False)
