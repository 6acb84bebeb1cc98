"""LAP, LAVE, activation percentile, parameter variation and the rankings, against their descriptions."""

import copy

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

import oracles
from mi_multilingual import (
    ActivationStats,
    Training,
    activation_percentile,
    activation_percentile_scores,
    lap,
    lap_scores,
    lape,
    lape_scores,
    lave,
    lave_scores,
    parameter_variation,
    parameter_variation_scores,
    record_tuned_change,
    tune,
    tuned_copy,
)
from mi_multilingual.evidence.weight_change import WeightChange, record_weight_change
from mi_multilingual.models.hooked import is_gated
from mi_multilingual.neurons import NeuronScores
from mi_multilingual.storage import load, save
from mi_multilingual.tokens import Reading

LANGUAGES = ("en", "fr", "ja", "ru", "tr")
ORIGIN = {"site": "gate", "threshold": 0.0, "model": "m", "model_fingerprint": "f", "corpus_fingerprint": "c"}
ORIGIN |= {"reading": Reading()}


@st.composite
def statistics(draw):
    """Statistics with ties, silent neurons and means of either sign."""
    k, layers, neurons = draw(st.integers(2, 5)), draw(st.integers(1, 3)), draw(st.integers(1, 12))
    n_tokens = torch.tensor(draw(st.lists(st.integers(1, 40), min_size=k, max_size=k)))
    random = torch.Generator().manual_seed(draw(st.integers(0, 2**20)))
    active = (torch.rand(layers, neurons, k, generator=random) ** 2 * (n_tokens + 1)).long().clamp(max=n_tokens)
    total = torch.randint(-6, 7, (layers, neurons, k), generator=random).double() * n_tokens
    silent = torch.rand(layers, neurons, generator=random) < 0.3
    active[silent], total[silent] = 0, 0.0
    return ActivationStats(LANGUAGES[:k], n_tokens, active, total, total, total**2, total, **ORIGIN)


def cells(found):
    """{(layer, neuron): set of language indices}."""
    n_layers, n_neurons = found.masks.shape[1:]
    return {
        (i, j): set(found.masks[:, i, j].nonzero().flatten().tolist())
        for i in range(n_layers)
        for j in range(n_neurons)
    }


def agrees_up_to_ties(found, weights, **rates):
    certain, close, _, owners = oracles.select_by_entropy(weights, *rates.values())
    for cell, mine in cells(found).items():
        if cell in certain:
            assert mine == owners[cell]
        elif cell in close:
            assert mine in (set(), owners[cell])
        else:
            assert mine == set()


@given(statistics(), st.sampled_from([0.0, 0.3, 0.5, 0.95]))
def test_lap_takes_every_probability_above_the_threshold(stats, threshold):
    table = oracles.probabilities(stats.active.tolist(), stats.n_tokens.tolist())
    bar = torch.tensor(threshold).item()
    for cell, mine in cells(lap(stats, threshold=threshold)).items():
        assert mine == {k for k, p in enumerate(table[cell]) if p > bar}


@pytest.mark.parametrize(("means", "weight"), [("clipped", lambda mean: max(0.0, mean)), ("absolute", abs)])
@given(
    stats=statistics(),
    rate=st.sampled_from([0.5, 1.0]),
    filter_rate=st.sampled_from([0.5, 0.8, 1.0]),
    bar_ratio=st.sampled_from([0.5, 0.9]),
)
def test_lave_is_lape_on_means_that_are_not_negative(stats, rate, filter_rate, bar_ratio, means, weight):
    n = stats.total[..., 0].numel()
    if min(round(rate * n), round(filter_rate * stats.total.numel()), round(bar_ratio * stats.total.numel())) < 1:
        return
    rates = {"rate": rate, "filter_rate": filter_rate, "activation_bar_ratio": bar_ratio}
    mean = stats.total / stats.n_tokens
    weights = {
        (i, j): [weight(x) for x in mean[i, j].tolist()] for i in range(mean.shape[0]) for j in range(mean.shape[1])
    }
    agrees_up_to_ties(lave(stats, **rates, means=means), weights, **rates)


@given(statistics(), st.sampled_from([0.5, 0.1, 0.02]))
def test_activation_percentile_compares_within_a_language(stats, rate):
    n_layers, n_neurons, n_languages = stats.total.shape
    n = n_layers * n_neurons
    if round((1 - rate) * n) < 1 or round(rate * n) < 1:
        return
    mean = (stats.total / stats.n_tokens).tolist()
    expected = {(i, j): set() for i in range(n_layers) for j in range(n_neurons)}
    for k in range(n_languages):
        bar = oracles.value_of_rank([mean[i][j][k] for i, j in expected], 1 - rate)
        for i, j in expected:
            if mean[i][j][k] > bar:
                expected[i, j].add(k)
    assert cells(activation_percentile(stats, rate=rate)) == expected


@given(statistics(), st.integers(1, 12))
def test_top_takes_the_highest_scores_of_every_language(stats, n):
    n = min(n, stats.total[..., 0].numel())
    scores = activation_percentile_scores(stats)
    chosen = scores.top(n)
    assert chosen.sizes().tolist() == [n] * len(stats.languages)
    for k, mask in enumerate(chosen.masks):
        values = scores.values[..., k]
        assert values[mask].min() >= (values[~mask].max() if (~mask).any() else -torch.inf)


def test_of_equal_scores_the_first_neurons_come_first_and_impossible_ones_never():
    values = torch.zeros(2, 3, 1)
    values[0, 0] = -torch.inf
    scores = NeuronScores(values, ("en",), "m")
    assert scores.top(2).to_frame().values.tolist() == [["en", 0, 1], ["en", 0, 2]]
    assert scores.top(6).sizes()["en"] == 5
    with pytest.raises(ValueError, match="n must be a number of neurons from 1 to 6, got 7"):
        scores.top(7)
    with pytest.raises(ValueError, match=r"score of neuron 1\.2 for 'en' is not a number"):
        NeuronScores(
            values.masked_fill(torch.tensor([[[False]] * 3, [[False], [False], [True]]]), torch.nan), ("en",), "m"
        )


@given(statistics())
def test_the_rankings_by_entropy_agree_with_the_sets(stats):
    for choose, scores in ((lape, lape_scores(stats)), (lave, lave_scores(stats))):
        everything = choose(stats, rate=1.0)
        entropy_is_finite = torch.isfinite(scores.values).permute(2, 0, 1)
        assert torch.equal(everything.masks & entropy_is_finite, entropy_is_finite)
    assert torch.equal(lap_scores(stats).values, stats.activation_probability())


def test_scores_save_and_load_back_equal(tmp_path):
    scores = NeuronScores(torch.tensor([[[1.0, -torch.inf]]]), ("en", "fr"), "m", {"a": 1}, "model", "f", "q")
    save(scores, tmp_path / "s.safetensors")
    back = load(tmp_path / "s.safetensors", NeuronScores)
    assert torch.equal(back.values, scores.values)
    assert (back.languages, back.method, back.parameters, back.part) == (("en", "fr"), "m", {"a": 1}, "q")


def changed(model, rows, by):
    """A copy whose neurons `rows` (layer, neuron) had their weights moved by `by`."""
    other = copy.deepcopy(model)
    with torch.no_grad():
        for layer, neuron in rows:
            mlp = other.blocks[layer].mlp
            mlp.W_in[:, neuron] += by
            mlp.W_out[neuron] += by
            if is_gated(model):
                mlp.W_gate[:, neuron] += by
    return other


@pytest.fixture
def unbridged(model):
    if not hasattr(model, "load_and_process_state_dict"):
        pytest.skip("a bridge shows its weights as computed properties, which a copy cannot be written through")
    return model


def test_relative_change_is_the_norm_of_the_difference(unbridged):
    other = changed(unbridged, [(0, 1)], 0.5)
    change = record_weight_change(unbridged, {"en": unbridged, "fr": other}).relative
    mlp = unbridged.blocks[0].mlp
    parts = [mlp.W_in[:, 1], mlp.W_out[1]] + ([mlp.W_gate[:, 1]] if is_gated(unbridged) else [])
    n = sum(len(p) for p in parts)
    size = sum(float(x) ** 2 for p in parts for x in p.tolist()) ** 0.5
    assert change[0, 1, 1].item() == pytest.approx((n * 0.25) ** 0.5 / size, rel=1e-5)
    assert change[..., 0].max() == 0
    assert change[..., 1].count_nonzero() == 1


def test_a_neuron_that_only_one_language_leaves_alone_belongs_to_it(unbridged):
    everything = [(i, j) for i in range(unbridged.cfg.n_layers) for j in range(unbridged.cfg.d_mlp)]
    others = [cell for cell in everything if cell != (1, 3)]
    tuned = {
        "en": changed(unbridged, others, 0.1),
        "fr": changed(unbridged, everything, 0.1),
        "ja": changed(unbridged, everything, 0.12),
    }
    change = record_weight_change(unbridged, tuned)
    found = parameter_variation(change, rate=0.02)
    assert found.to_frame().values.tolist() == [["en", 1, 3]]
    assert parameter_variation_scores(change).top(1)["en"].to_frame().values.tolist() == [["en", 1, 3]]
    with pytest.raises(ValueError, match="at least two languages"):
        record_weight_change(unbridged, {"en": tuned["en"]})


def test_copies_are_tuned_on_each_language_alone_and_the_largest_change_can_mark_it(unbridged, corpus):
    how = Training(steps=2, learning_rate=0.1, batch_rows=2, optimizer="sgd")
    reading = Reading(layout="documents")
    found = record_tuned_change(unbridged, corpus, reading=reading, training=how, progress=False)
    tuned = {
        k: tuned_copy(unbridged, tune(unbridged, corpus.take([k]), training=how, reading=reading, progress=False))
        for k in corpus.languages
    }
    for weights in ("all", "in"):
        found = record_tuned_change(unbridged, corpus, reading=reading, training=how, weights=weights, progress=False)
        expected = record_weight_change(unbridged, tuned, weights=weights)
        torch.testing.assert_close(found.relative, expected.relative, atol=1e-7, rtol=1e-4)
        assert found.relative.min() > 0
    assert found.training["optimizer"] == "sgd"
    bar = {"filter_rate": 0.1, "activation_bar_ratio": 0.1}
    largest = parameter_variation_scores(found, mark="largest", **bar)
    share = found.relative / found.relative.sum(-1, keepdim=True)
    entropy = -(share * share.log()).sum(-1, keepdim=True)
    finite = largest.values.isfinite()
    torch.testing.assert_close(largest.values[finite], -entropy.expand(finite.shape)[finite])
    assert parameter_variation(found, rate=0.1, mark="largest", **bar).parameters["mark"] == "largest"
    for bad, call in (
        ("mark", lambda: parameter_variation(found, mark="least")),
        ("weights", lambda: record_weight_change(unbridged, tuned, weights="out")),
    ):
        with pytest.raises(ValueError, match=f"{bad} must be one of"):
            call()


@pytest.mark.parametrize("method", [lape, lave, lap, activation_percentile])
def test_one_language_is_too_few(method):
    zeros = ActivationStats.zeros(["en"], 1, 3, **ORIGIN)
    with pytest.raises(ValueError, match="at least two languages"):
        method(zeros)


def test_rates_and_thresholds_out_of_range_are_refused():
    stats = ActivationStats(
        ("en", "fr"),
        torch.tensor([3, 3]),
        torch.ones(1, 4, 2, dtype=torch.int64),
        *[torch.ones(1, 4, 2, dtype=torch.float64)] * 4,
        **ORIGIN,
    )
    with pytest.raises(ValueError, match="threshold must be a probability that can be exceeded"):
        lap(stats, threshold=1.0)
    with pytest.raises(ValueError, match=r"rate must be a share above 0 and up to 1, got 0\.0"):
        activation_percentile(stats, rate=0.0)
    with pytest.raises(ValueError, match=r"rate must be a share above 0 and up to 1, got 2\.0"):
        lave(stats, rate=2.0)
    with pytest.raises(ValueError, match="means must be one of clipped, absolute, got 'raw'"):
        lave(stats, means="raw")
    with pytest.raises(ValueError, match="rate must be at least 1/4 to choose one of 4 values, got 0.01"):
        lave(stats, rate=0.01)
    with pytest.raises(ValueError, match="lap takes a rate or a threshold"):
        lap(stats, rate=0.5, threshold=0.5)


def test_weight_change_saves_and_loads(tmp_path):
    change = WeightChange(torch.rand(2, 3, 2).double(), ("en", "fr"), "m", "f")
    save(change, tmp_path / "c.safetensors")
    back = load(tmp_path / "c.safetensors")
    assert isinstance(back, WeightChange)
    assert torch.equal(back.relative, change.relative)
