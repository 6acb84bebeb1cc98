import json

import numpy as np
import pandas as pd
import pytest
import torch

import speaker
import tables
from mi_multilingual import (
    TYPES,
    ActivationStats,
    NeuronScores,
    NeuronSet,
    attribution,
    lape_entropy,
    plots,
    sharing_categories,
)
from mi_multilingual.tokens import DOCUMENTS

LANGUAGES = ("en", "fr", "ja")
RANDOM_NEURONS = "<i>random neurons</i>"


def stats_of(languages):
    random = torch.Generator().manual_seed(0)
    n_tokens = torch.tensor([100, 120, 90])
    active = (torch.rand(2, 30, 3, generator=random) * n_tokens).long()
    active[0, 0] = 0
    values = torch.rand(2, 30, 3, generator=random).double()
    return ActivationStats(
        languages, n_tokens, active, values, values, values, values, "gate", 0.0, "m", "f", "c", DOCUMENTS
    )


def neurons_of(languages):
    return NeuronSet(torch.rand(3, 2, 30, generator=torch.Generator().manual_seed(1)) < 0.2, languages, "lape")


def matrix_of(languages):
    intact = [("intact", "", e, -1, 0.0) for e in languages]
    chosen = [
        ("chosen", group, e, -1, change)
        for group in languages
        for e, change in zip(languages, (0.5, -0.2, 0.1), strict=True)
    ]
    random = [
        ("random", e, e, seed, change)
        for seed in (0, 1)
        for e, change in zip(languages, (0.01 * seed, 0.0, 0.02), strict=True)
    ]
    table = pd.DataFrame([*intact, *chosen, *random], columns=["condition", "group", "evaluated", "seed", "change"])
    low, high, nll = table.change - 0.1, table.change + 0.1, table.change + 3
    return table.assign(n_neurons=5, low=low, high=high, nll=nll)


@pytest.fixture
def stats():
    return stats_of(LANGUAGES)


@pytest.fixture
def neurons():
    return neurons_of(LANGUAGES)


@pytest.fixture
def matrix():
    return matrix_of(LANGUAGES)


def check_titles(figure):
    assert figure.layout.title.text
    assert figure.layout.xaxis.title.text
    assert figure.layout.yaxis.title.text
    assert all(trace.hovertemplate for trace in figure.data)


def test_perplexity_change_shows_the_matrix_centred_at_zero(matrix):
    figure = plots.perplexity_change(matrix)
    check_titles(figure)
    heat = figure.data[0]
    assert heat.y == ("en", "fr", "ja", RANDOM_NEURONS)
    assert heat.x == LANGUAGES
    np.testing.assert_allclose(heat.z[:3], [[0.5, -0.2, 0.1]] * 3)
    np.testing.assert_allclose(heat.z[3], [0.005, 0.0, 0.02])
    assert heat.zmid == 0
    assert -heat.zmin == heat.zmax == 0.5
    alone = plots.perplexity_change(matrix[matrix.condition != "random"]).data[0]
    assert alone.y == LANGUAGES


def layers_of(languages):
    rows = [
        (layer, condition, group, evaluated, seed, 3, layer + 0.1 * (condition == "chosen"), -1.0, 1.0)
        for layer in (0, 2)
        for condition, seed in (("chosen", -1), ("random", 0), ("random", 1))
        for group in languages
        for evaluated in languages
        if condition == "chosen" or group == evaluated
    ]
    names = ["layer", "condition", "group", "evaluated", "seed", "n_neurons", "change", "low", "high"]
    return pd.DataFrame(rows, columns=names)


def test_change_by_layer_shows_every_languages_own_neurons_and_random_ones():
    figure = plots.change_by_layer(layers_of(LANGUAGES))
    check_titles(figure)
    assert [trace.name for trace in figure.data] == [*LANGUAGES, *[RANDOM_NEURONS] * len(LANGUAGES)]
    for trace in figure.data:
        assert list(trace.x) == [0, 2]
        np.testing.assert_allclose(trace.y, [0.1, 2.1] if trace.name in LANGUAGES else [0, 2])
    one = layers_of(LANGUAGES)
    assert len(plots.change_by_layer(one[one.group == "fr"]).data) == len(LANGUAGES) + 1


def test_layer_counts_are_the_counts(neurons):
    figure = plots.layer_counts(neurons)
    check_titles(figure)
    for bar, mask in zip(figure.data, neurons.masks, strict=True):
        assert list(bar.y) == mask.sum(1).tolist()


def test_overlap_shows_jaccard_off_the_diagonal(neurons):
    figure = plots.overlap(neurons)
    check_titles(figure)
    z = np.array(figure.data[0].z, dtype=float)
    assert np.isnan(np.diag(z)).all()
    off = ~np.eye(3, dtype=bool)
    np.testing.assert_allclose(z[off], neurons.jaccard().to_numpy()[off])


def test_entropy_histogram_holds_every_neuron_that_fires_once(stats, neurons):
    figure = plots.entropy_histogram(stats, neurons)
    check_titles(figure)
    shown = sorted(np.concatenate([trace.x for trace in figure.data]).tolist())
    fires = (stats.active > 0).any(-1)
    assert shown == sorted(lape_entropy(stats)[fires].tolist())
    assert len(shown) == 59


def test_neuron_profile_shows_probability_with_its_interval(stats):
    figure = plots.neuron_profile(stats, 1, 3)
    check_titles(figure)
    bar = figure.data[0]
    np.testing.assert_allclose(bar.y, stats.activation_probability()[1, 3].numpy(), rtol=1e-6)
    from scipy.stats import binomtest

    for k in range(3):
        interval = binomtest(int(stats.active[1, 3, k]), int(stats.n_tokens[k])).proportion_ci(method="wilson")
        assert bar.y[k] - bar.error_y.arrayminus[k] == pytest.approx(interval.low, abs=1e-4)
        assert bar.y[k] + bar.error_y.array[k] == pytest.approx(interval.high, abs=1e-4)
    with pytest.raises(ValueError, match=r"one of layers 0..1 and neurons 0..29, got 2.0"):
        plots.neuron_profile(stats, 2, 0)


def board():
    return pd.DataFrame(
        {
            "condition": ["chosen", "random"],
            "detector": ["a_b", ""],
            "n_neurons": [5.0, 5.0],
            "own": [0.5, 0.1],
            "elsewhere": [0.1, 0.1],
            "specificity": [0.4, 0.0],
            "low": [0.3, -0.1],
            "high": [0.6, 0.1],
            "hits": [3, 1],
        }
    )


def test_the_leaderboard_has_a_bar_and_an_interval_for_each_detector():
    table = board()
    figure = plots.leaderboard(table)
    check_titles(figure)
    bar = figure.data[0]
    assert list(bar.y) == ["a b", RANDOM_NEURONS]
    np.testing.assert_allclose(bar.x + bar.error_x.array, table.high)
    np.testing.assert_allclose(bar.x - bar.error_x.arrayminus, table.low)


@pytest.fixture
def sharing(ungated, corpus):
    return sharing_categories(ungated, corpus, progress=False)


def test_sharing_by_layer_draws_a_line_and_a_band_for_each_type(sharing):
    table = sharing.layer_shares()
    figure = plots.sharing_by_layer(table, threshold=0.2)
    assert figure.layout.title.text
    assert figure.layout.yaxis.title.text
    lines = [trace for trace in figure.data if trace.mode != "none"]
    part = table[table.threshold == 0.2]
    assert [line.name for line in lines] == list(TYPES)
    for line in lines:
        np.testing.assert_allclose(line.y, part[part.type == line.name]["mean"])
        assert line.hovertemplate
    bands = [trace for trace in figure.data if trace.mode == "none"]
    for band, line in zip(bands, lines, strict=True):
        np.testing.assert_allclose(band.y[: len(line.y)], part[part.type == line.name]["max"])
    with pytest.raises(ValueError, match=r"one of this table's, 0, .*, got 0\.7"):
        plots.sharing_by_layer(table, threshold=0.7)


def test_activity_overlap_shows_the_table_without_its_diagonal(sharing):
    table = sharing.overlap()
    figure = plots.activity_overlap(table)
    check_titles(figure)
    z = np.array(figure.data[0].z, dtype=float)
    off = ~np.eye(3, dtype=bool)
    np.testing.assert_allclose(z[off], table.to_numpy()[off])
    assert np.isnan(np.diag(z)).all()


def test_type_contributions_add_up_to_one_in_every_column(ungated, corpus):
    table = attribution(ungated, corpus, corpus, progress=False)
    figure = plots.type_contributions(table)
    sums = {}
    for bar in figure.data:
        assert bar.hovertemplate
        for layer, what, y in zip(*bar.x, bar.y, strict=True):
            sums[layer, what] = sums.get((layer, what), 0) + y
    assert len(sums) == 2 * ungated.cfg.n_layers
    assert list(sums.values()) == pytest.approx([1.0] * len(sums))


def chance_of(languages):
    counts = {"found": 9, "significant": 7, "chance_mean": 1.5, "chance_high": 3.0}
    return pd.DataFrame([{"language": k, **counts} for k in languages])


def test_found_and_chance_shows_the_three_counts():
    figure = plots.found_and_chance(chance_of(["en"]))
    check_titles(figure)
    assert [bar.y[0] for bar in figure.data] == [9, 7, 1.5]
    assert (figure.data[2].error_y.array[0], figure.data[2].error_y.arrayminus[0]) == (1.5, 0.0)


def scores_of(languages):
    return NeuronScores(torch.rand(2, 30, 3, generator=torch.Generator().manual_seed(0)), languages, "lape membership")


def test_membership_holds_a_number_for_every_membership(neurons):
    scores = scores_of(LANGUAGES)
    figure = plots.membership(scores, neurons)
    check_titles(figure)
    for k, bar in enumerate(figure.data):
        assert sorted(bar.x) == sorted(scores.values[..., k][neurons.masks[k]].tolist())


def curves():
    rows = [("a", 1, 0.5), ("a", 2, 0.9), ("b", 1, 0.1), ("b", 2, 0.2)]
    table = pd.DataFrame(rows, columns=["detector", "effect", "f1"])
    return table.assign(low=table.f1 - 0.1, high=table.f1 + 0.1)


def test_recovery_draws_a_curve_for_each_detector():
    figure = plots.recovery(curves(), "effect", title="t")
    check_titles(figure)
    assert [(line.name, list(line.y)) for line in figure.data] == [("a", [0.5, 0.9]), ("b", [0.1, 0.2])]


def test_neuron_map_has_a_point_for_each_neuron_and_group(stats, neurons):
    figure = plots.neuron_map(stats, neurons)
    for trace, mask in zip(figure.data, neurons.masks, strict=True):
        assert list(trace.text) == [f"{layer}.{j}" for layer, j in mask.nonzero().tolist()]
        layers = mask.nonzero()[:, 0].tolist()
        assert list(trace.y) == pytest.approx(lape_entropy(stats)[mask].tolist())
        assert [round(x) for x in trace.x] == layers
    assert [trace.name for trace in figure.data] == list(LANGUAGES)


def effects_of(languages):
    random = np.random.default_rng(0)
    rows = [
        {"group": group, "language": k, "measure": m, "n_items": 9, "n_neurons": size}
        for group, size in zip(languages[:2], (17.0, 20.0), strict=True)
        for k in (*languages, "")
        for m in ("accuracy", "margin")
    ]
    table = pd.DataFrame(rows)
    numbers = {name: random.normal(size=len(rows)) for name in ("intact", "value", "random", "change", "beyond")}
    table = table.assign(**numbers, random_change=random.normal(size=len(rows)))
    for prefix in ("", "random_"):
        table[f"{prefix}low"], table[f"{prefix}high"] = table[f"{prefix}change"] - 0.3, table[f"{prefix}change"] + 0.2
    return table


@pytest.fixture
def effects():
    return effects_of(LANGUAGES)


@pytest.mark.parametrize("measure", ["accuracy", "margin"])
@pytest.mark.parametrize("language", ["", "ja"])
def test_deactivation_bars_show_changes_beside_random(effects, measure, language):
    figure = plots.deactivation_bars(effects, measure=measure, language=language)
    check_titles(figure)
    part = effects[(effects.measure == measure) & (effects.language == language)]
    own, random = figure.data
    np.testing.assert_allclose(own.y, part.change)
    np.testing.assert_allclose(random.y, part.random_change)
    for bar in figure.data:
        np.testing.assert_allclose(bar.error_y.array, 0.2)
        np.testing.assert_allclose(bar.error_y.arrayminus, 0.3)
    assert own.x == ("en<br>17 neurons", "fr<br>20 neurons")
    with pytest.raises(ValueError, match="measure must be one of accuracy, margin, got 'loss'"):
        plots.deactivation_bars(effects, measure="loss")
    with pytest.raises(ValueError, match="one of this table's, en, fr, ja, got 'de'"):
        plots.deactivation_bars(effects, language="de")


def test_deactivation_matrix_shows_off_by_asked_and_random(effects):
    figure = plots.deactivation_matrix(effects)
    check_titles(figure)
    heat = figure.data[0]
    part = effects[(effects.measure == "margin") & (effects.language != "")]
    assert (heat.y, heat.x) == (("en", "fr", RANDOM_NEURONS), LANGUAGES)
    np.testing.assert_allclose(heat.z[:2], part.change.to_numpy().reshape(2, 3))
    np.testing.assert_allclose(heat.z[2], part.random_change.to_numpy().reshape(2, 3).mean(axis=0))
    assert -heat.zmin == heat.zmax == np.abs(heat.z).max()


def shares_of(languages):
    en, fr, ja = languages
    rows = [
        (s, t, c, 4, y, y - 0.1, y + 0.1, 0.0, 1 - y)
        for (c, y) in (("intact", 0.1), ("chosen", 0.75), ("random", 0.2))
        for s, t in ((en, fr), (en, ja), (ja, fr))
    ]
    names = ["source", "target", "condition", "n", "in_target", "low", "high", "in_source", "elsewhere"]
    return pd.DataFrame(rows, columns=names)


def test_steering_matrix_shows_the_steered_share_beside_the_others():
    table = shares_of(LANGUAGES)
    figure = plots.steering_matrix(table)
    check_titles(figure)
    heat = figure.data[0]
    assert (heat.y, heat.x) == (("en", "ja"), ("fr", "ja"))
    np.testing.assert_allclose(np.array(heat.z, dtype=float), [[0.75, 0.75], [0.75, np.nan]])
    np.testing.assert_allclose(heat.customdata[0, 0], [0.65, 0.85, 0.0, 0.25, 4, 0.1, 0.2])
    alone = plots.steering_matrix(table[table.condition == "chosen"]).data[0]
    assert np.isnan(np.array(alone.customdata, dtype=float)[..., -2:]).all()


def curve():
    rows = [
        (0.0, "intact", 9, 0.1, 2.0),
        (4.0, "chosen", 9, 0.9, 4.0),
        (1.0, "chosen", 9, 0.5, 3.0),
        (1.0, "random", 9, 0.1, 2.1),
    ]
    table = pd.DataFrame(rows, columns=["strength", "condition", "n", "in_target", "nll"])
    table = table.assign(low=table.in_target - 0.1, high=table.in_target + 0.05, in_source=0.0, elsewhere=0.1)
    return table.assign(nll_low=table.nll - 0.2, nll_high=table.nll + 0.2, ppl=np.exp(table.nll), distinct_2=0.9)


def test_steering_curve_has_a_line_for_each_condition_in_both_panels():
    figure = plots.steering_curve(curve())
    assert figure.layout.title.text
    assert figure.layout.xaxis2.title.text == "strength"
    assert figure.layout.yaxis.title.text
    assert figure.layout.yaxis2.title.text
    assert all(trace.hovertemplate for trace in figure.data)
    assert [trace.name for trace in figure.data] == ["steered"] * 2 + ["random neurons"] * 2 + ["as it is"] * 2
    above, below = figure.data[:2]
    assert list(above.x) == [0.0, 1.0, 4.0]
    assert list(above.y) == [0.1, 0.5, 0.9]
    np.testing.assert_allclose(np.log(below.y), [2.0, 3.0, 4.0])
    np.testing.assert_allclose(above.error_y.arrayminus, [0.1] * 3)
    np.testing.assert_allclose(np.log(below.y + below.error_y.array), [2.2, 3.2, 4.2])


def fallback_of(languages):
    en, fr, _ = languages
    rows = [
        (n, off, c, found, 6, share, share, share)
        for n, off, c in ((0, "", "intact"), (2, fr, "chosen"), (1, en, "chosen"), (1, en, "random"))
        for found, share in (("", 0.1 * n), (en, 1 - 0.1 * n))
    ]
    names = ["n_off", "off", "condition", "found", "n", "share", "low", "high"]
    return pd.DataFrame(rows, columns=names)


def test_fallback_shows_every_step():
    table = fallback_of(LANGUAGES)
    figure = plots.fallback(table)
    check_titles(figure)
    heat = figure.data[0]
    assert heat.y == ("none", "+ en", "+ fr")
    assert heat.x == ("none found", "en")
    np.testing.assert_allclose(np.array(heat.z, dtype=float), [[0, 1], [0.1, 0.9], [0.2, 0.8]])
    assert plots.fallback(table, condition="random").data[0].y == ("none", "+ en")
    with pytest.raises(ValueError, match="condition must be one of this table's, chosen, random, got 'off'"):
        plots.fallback(table, condition="off")


def sweep_rows():
    rows = [
        (setting, evaluation, measure, where, condition, 3, 2.0, 2.0 + y, y, y - 0.1, y + 0.2)
        for evaluation, measure in (("language", "loss"), ("facts", "accuracy"))
        for i, setting in enumerate(("rate 0.1", "rate 0.2"))
        for where, condition, y in (("own", "chosen", 0.5 + i), ("own", "random", 0.1), ("others", "chosen", 0.2))
    ]
    names = ["setting", "evaluation", "measure", "where", "condition", "n", "base", "value", "change", "low", "high"]
    return pd.DataFrame(rows, columns=names)


def test_sweep_effects_has_a_panel_for_each_measure_and_crosses_for_random_neurons():
    figure = plots.sweep_effects(sweep_rows())
    assert figure.layout.title.text
    assert [a.text for a in figure.layout.annotations] == ["loss (language)", "accuracy (facts)"]
    assert figure.layout.xaxis.title.text == "change, nats per token"
    assert figure.layout.xaxis2.title.text == "change, share"
    assert len(figure.data) == 6
    own, random, others = figure.data[:3]
    assert list(own.y) == ["rate 0.1", "rate 0.2"]
    assert list(own.x) == [0.5, 1.5]
    np.testing.assert_allclose(own.error_x.arrayminus, [0.1, 0.1])
    np.testing.assert_allclose(own.error_x.array, [0.2, 0.2])
    assert own.marker.color == random.marker.color != others.marker.color
    assert own.marker.symbol == others.marker.symbol != random.marker.symbol
    assert [trace.showlegend for trace in figure.data] == [True] * 3 + [False] * 3
    assert all(trace.hovertemplate for trace in figure.data)
    one = plots.sweep_effects(sweep_rows().head(1))
    assert len(one.data) == 1


def sharing_rows():
    rows = [("all", 0.0, i, t, 0.25, 0.2, 0.3, 0.1, 0.4) for i in range(2) for t in TYPES]
    return pd.DataFrame(rows, columns=["task", "threshold", "layer", "type", "mean", "low", "high", "min", "max"])


def parts_of(languages):
    rows = [(k, i, t, 0.25, 0.25) for k in languages for i in range(2) for t in TYPES]
    return pd.DataFrame(rows, columns=["language", "layer", "type", "share", "top_share"])


def methods_of(languages):
    """Two methods, the first one's random neurons and those of the whole model in all languages."""
    random = [("first", "random", 0), ("first", "random", 1), ("second", "random", 0), ("uniform random", "random", 0)]
    rows = [
        (method, condition, group, seed, evaluated, 0.5 if group == evaluated else 0.1 * (seed + 1))
        for method, condition, seed in [("first", "chosen", -1), ("second", "chosen", -1), *random]
        for group in languages
        for evaluated in languages
        if condition == "chosen" or method != "second" or group == evaluated
    ]
    table = pd.DataFrame(rows, columns=["method", "condition", "group", "seed", "evaluated", "change"])
    ends = {"low": table.change - 0.1, "high": table.change + 0.2, "ppl_change": table.change * 9}
    return table.assign(n_neurons=5, ppl=20.0, ppl_low=0.0, ppl_high=9.0, **ends)


def comparison():
    rows = [(m, measure, 4.5, 0.3, 0.2, 0.5) for m in ("lape", "uniform random") for measure in ("own", "others")]
    return pd.DataFrame(rows, columns=["method", "measure", "n_neurons", "value", "low", "high"])


def size_curve_of(languages):
    rows = [
        ("lape", n, condition, group, n - 0.5, 0.1 * n, 0.1 * n - 0.1, 0.1 * n + 0.2)
        for n in (4, 8)
        for condition in ("chosen", "random")
        for group in ("", *languages)
    ]
    return pd.DataFrame(rows, columns=["method", "n", "condition", "group", "n_neurons", "change", "low", "high"])


def layer_rows():
    rows = [
        (m, i, 7, 0.1 * i, 0.1 * i - 0.1, 0.1 * i + 0.2) for m in ("similarity", "floor", "corrected") for i in range(3)
    ]
    return pd.DataFrame(rows, columns=["measure", "layer", "n", "value", "low", "high"])


def dominance_of(languages):
    rows = [(i, k, 7, i + s, i - 1, i + 2, s) for s in (False, True) for i in range(3) for k in languages]
    return pd.DataFrame(rows, columns=["layer", "language", "n", "value", "low", "high", "shifted"])


def representation_effects_of(languages, groups):
    rows = [(g, "similarity", i, k, 0.5, 0.1 * i) for g in groups for i in range(3) for k in ("", *languages)]
    table = pd.DataFrame(rows, columns=["group", "measure", "layer", "language", "intact", "change"])
    ends = {
        f"{name}{end}": table.change + shift for name in ("", "random_") for end, shift in (("low", -1), ("high", 2))
    }
    return table.assign(n_neurons=5, random_change=0.0, beyond=table.change, **ends)


def test_methods_have_a_panel_each_and_controls_where_all_languages_were_measured():
    figure = plots.ablation_panels(methods_of(LANGUAGES))
    titles = ["first", "second", "layer-matched random, as first", "uniform random"]
    assert [a.text for a in figure.layout.annotations][:4] == titles
    assert len(figure.data) == 4
    assert {(heat.zmin, heat.zmax) for heat in figure.data} == {(-0.5, 0.5)}
    assert figure.data[2].z[0][1] == pytest.approx(0.15), "the mean over seeds"
    assert figure.data[2].z[0][0] == pytest.approx(0.5)
    in_perplexity = plots.ablation_panels(methods_of(LANGUAGES), unit="ppl")
    assert in_perplexity.data[0].z[0][0] == pytest.approx(4.5)
    with pytest.raises(ValueError, match="unit must be one of nats, ppl, got 'bits'"):
        plots.ablation_panels(methods_of(LANGUAGES), unit="bits")


def test_loss_against_size_is_of_a_language_or_of_all():
    figure = plots.loss_against_size(size_curve_of(LANGUAGES), group="fr")
    chosen, random = figure.data
    assert list(chosen.x) == [3.5, 7.5]
    np.testing.assert_allclose(chosen.error_y.array, [0.2, 0.2])
    assert random.name == RANDOM_NEURONS
    with pytest.raises(ValueError, match="group must be one of en, fr, ja, got 'xx'"):
        plots.loss_against_size(size_curve_of(LANGUAGES), group="xx")


def test_similarity_stands_beside_the_neurons_of_the_block_before(neurons):
    figure = plots.similarity_by_layer(layer_rows(), neurons.counts())
    bars, *lines = figure.data
    assert list(bars.x) == [1, 2]
    assert list(bars.y) == [int(neurons.masks[:, i].sum()) for i in range(2)]
    bands, means = lines[::2], lines[1::2]
    assert [list(line.x) for line in means] == [[0, 1, 2]] * 3
    np.testing.assert_allclose(bands[0].y, [0.2, 0.3, 0.4, 0.1, 0.0, -0.1])


def test_representations_change_beside_random_neurons_or_in_every_own_language():
    together = plots.representation_change(representation_effects_of(LANGUAGES, ["all languages"]))
    assert [bar.name for bar in together.data] == ["language neurons off", "as many random neurons off"]
    assert [list(bar.y) for bar in together.data] == [[0.0, 0.1, 0.2], [0.0] * 3]
    own = plots.representation_change(representation_effects_of(LANGUAGES, LANGUAGES))
    assert [bar.name for bar in own.data] == ["en off", "fr off", "ja off"]
    with pytest.raises(ValueError, match="measure must be one of similarity, got 'loss'"):
        plots.representation_change(representation_effects_of(LANGUAGES, LANGUAGES), measure="loss")


def type_table():
    rows = [
        (task, threshold, layer, kind, share, share - 0.01, share + 0.01, 0.0, 0.9, 4, 0.05, share / 2)
        for task in ("a", "b")
        for threshold in (0.0, 0.5)
        for layer in range(3)
        for kind, share in zip(TYPES, (0.1, 0.2, 0.3, 0.4), strict=True)
    ]
    names = [
        "task",
        "threshold",
        "layer",
        "type",
        "mean",
        "low",
        "high",
        "min",
        "max",
        "n_inputs",
        "chance",
        "repeated",
    ]
    return pd.DataFrame(rows, columns=names)


def active_of(languages):
    rows = [("t", 0.0, k, layer, 0.1 * layer, 0.0, 1.0) for k in languages for layer in (0, 1)]
    return pd.DataFrame(rows, columns=["task", "threshold", "language", "layer", "mean", "low", "high"])


def contributions_of(languages):
    rows = [
        ("t", k, layer, kind, "contribution_mean", 4 * i + layer, 4.0 * i, 4.0 * i + 2, 3)
        for i, k in enumerate(languages)
        for layer in (0, 1)
        for kind in TYPES
    ]
    names = ["task", "language", "layer", "type", "measure", "mean", "low", "high", "n_inputs"]
    return pd.DataFrame(rows, columns=names)


def pairs_of(languages):
    a, b, c = languages
    rows = [(a, b, 0.5, 1, 0.0), (a, c, 0.1, 3, 1.0)]
    return pd.DataFrame(rows, columns=["language", "other", "overlap", "family", "script"])


def experts_of(languages):
    rows = [(layer, e, k, 0.1 * e, 0.0, 1.0) for k in languages for layer in (0, 1) for e in range(4)]
    return pd.DataFrame(rows, columns=["layer", "expert", "language", "frequency", "low", "high"])


def cosines_of(languages):
    a, b, c = languages
    cosines = {(a, b): 0.9, (a, c): 0.5, (b, c): 0.6}
    cosines |= {(y, x): value for (x, y), value in cosines.items()}
    rows = [("base", x, y, cosines.get((x, y), 1.0)) for x in languages for y in languages]
    return pd.DataFrame(rows, columns=["routing", "language", "other", "cosine"])


def pruning_of(languages):
    rows = [
        (layers, rate, language, 24, 3.0, *[rate] * 3, *[2 * rate] * 3)
        for layers in ("uniform", "layer-wise")
        for rate in (0.5, 0.25)
        for language in (*languages, "")
    ]
    names = ["layers", "rate", "language", "n_neurons", "intact", "change", "low", "high"]
    return pd.DataFrame(rows, columns=[*names, "random_change", "random_low", "random_high"])


def drawn(figure, name):
    """The figure of a study's table, for languages of any name."""
    return lambda languages: figure(tables.of_every_study(tuple(languages))[name])


EVERY_FIGURE = {
    "alignment_bars": drawn(plots.alignment_bars, "alignment_tuning"),
    "editing_matrix": drawn(plots.editing_matrix, "editing_effects"),
    "editing_neurons": drawn(plots.editing_neurons, "editing_neuron_effects"),
    "editing_transfer": drawn(plots.editing_transfer, "editing_transfer"),
    "language_off": drawn(plots.language_off, "open_generation"),
    "language_raised": drawn(plots.language_raised, "open_generation"),
    "translation": drawn(plots.translation, "translation"),
    "tuning_bars": drawn(plots.tuning_bars, "tuning_summary"),
    "tuning_matrix": drawn(plots.tuning_matrix, "tuning"),
    "ablation_bars": lambda k: plots.ablation_bars(comparison()),
    "ablation_panels": lambda k: plots.ablation_panels(methods_of(k)),
    "dominance_by_layer": lambda k: plots.dominance_by_layer(dominance_of(k), shifted=True),
    "loss_against_size": lambda k: plots.loss_against_size(size_curve_of(k), group=k[1]),
    "representation_change": lambda k: plots.representation_change(representation_effects_of(k, k)),
    "similarity_by_layer": lambda k: plots.similarity_by_layer(layer_rows(), neurons_of(k).counts()),
    "active_by_language": lambda k: plots.active_by_language(active_of(k)),
    "activity_overlap": lambda k: plots.activity_overlap(pd.DataFrame(np.eye(3), index=list(k), columns=list(k))),
    "change_by_layer": lambda k: plots.change_by_layer(layers_of(k)),
    "contributions": lambda k: plots.contributions(contributions_of(k)),
    "deactivation_bars": lambda k: plots.deactivation_bars(effects_of(k)),
    "deactivation_matrix": lambda k: plots.deactivation_matrix(effects_of(k)),
    "entropy_histogram": lambda k: plots.entropy_histogram(stats_of(k), neurons_of(k)),
    "expert_heatmap": lambda k: plots.expert_heatmap(experts_of(k)),
    "fallback": lambda k: plots.fallback(fallback_of(k)),
    "found_and_chance": lambda k: plots.found_and_chance(chance_of(k)),
    "language_tree": lambda k: plots.language_tree(cosines_of(k)),
    "layer_counts": lambda k: plots.layer_counts(neurons_of(k)),
    "layer_languages": lambda k: plots.layer_languages(speaker.tables(k)["layer_language_shares"]),
    "layer_words": lambda k: plots.layer_words(speaker.tables(k)["layer_word_means"]),
    "leaderboard": lambda k: plots.leaderboard(board()),
    "membership": lambda k: plots.membership(scores_of(k), neurons_of(k)),
    "neuron_map": lambda k: plots.neuron_map(stats_of(k), neurons_of(k)),
    "neuron_profile": lambda k: plots.neuron_profile(stats_of(k), 1, 3),
    "overlap": lambda k: plots.overlap(neurons_of(k)),
    "overlap_against_distance": lambda k: plots.overlap_against_distance(pairs_of(k)),
    "perplexity_change": lambda k: plots.perplexity_change(matrix_of(k)),
    "region_effects": lambda k: plots.region_effects(speaker.tables(k)["region_effects"]),
    "pruning_curves": lambda k: plots.pruning_curves(pruning_of(k), language=k[0]),
    "recovery": lambda k: plots.recovery(curves(), "effect", title="t"),
    "repeated_types": lambda k: plots.repeated_types(type_table()),
    "sharing_by_layer": lambda k: plots.sharing_by_layer(sharing_rows()),
    "sharing_by_task": lambda k: plots.sharing_by_task(type_table()),
    "steering_curve": lambda k: plots.steering_curve(curve()),
    "steering_matrix": lambda k: plots.steering_matrix(shares_of(k)),
    "sweep_effects": lambda k: plots.sweep_effects(sweep_rows()),
    "threshold_grid": lambda k: plots.threshold_grid(type_table()),
    "type_contributions": lambda k: plots.type_contributions(parts_of(k)),
}
PLAIN = ("qqa", "qqb", "qqc")


def test_every_figure_is_tried_with_strange_names():
    assert sorted(EVERY_FIGURE) == sorted(plots.__all__)


@pytest.mark.parametrize("names", [("none", "random", "all"), ("intact", "chosen", "random neurons")])
@pytest.mark.parametrize("figure", EVERY_FIGURE)
def test_languages_may_have_any_name(figure, names):
    """The figure is that of languages with plain names, but for the names themselves."""
    text = json.dumps(EVERY_FIGURE[figure](PLAIN).to_plotly_json(), default=np.ndarray.tolist)
    for plain, strange in zip(PLAIN, names, strict=True):
        text = text.replace(plain, strange)
    assert json.loads(text) == json.loads(
        json.dumps(EVERY_FIGURE[figure](names).to_plotly_json(), default=np.ndarray.tolist)
    )


def test_languages_of_one_family_stand_side_by_side(neurons):
    mixed = ("en", "ja", "de")
    figure = plots.overlap(NeuronSet(neurons.masks, mixed, "lape"))
    assert figure.data[0].x == figure.data[0].y == ("en", "de", "ja")
    expected = NeuronSet(neurons.masks, mixed, "lape").jaccard().loc["de", "ja"]
    assert figure.data[0].z[1][2] == pytest.approx(expected)
    heat = plots.perplexity_change(matrix_of(mixed)).data[0]
    assert heat.y == ("en", "de", "ja", RANDOM_NEURONS)
    assert heat.x == ("en", "de", "ja")
    np.testing.assert_allclose(heat.z[0], [0.5, 0.1, -0.2])


def test_types_by_task_have_a_panel_each():
    figure = plots.sharing_by_task(type_table())
    assert [a.text for a in figure.layout.annotations] == ["a", "b"]
    lines = [trace for trace in figure.data if trace.mode == "lines+markers"]
    assert [line.name for line in lines] == [*TYPES, *TYPES]
    assert [line.y[0] for line in lines[:4]] == [0.1, 0.2, 0.3, 0.4]
    with pytest.raises(ValueError, match=r"threshold must be one of this table's, 0, 0.5, got 0.3"):
        plots.sharing_by_task(type_table(), threshold=0.3)


def test_what_is_repeated_stands_below_the_mean():
    figure = plots.repeated_types(type_table())
    check_titles(figure)
    solid, rest = figure.data[:2]
    np.testing.assert_allclose(solid.y, [0.05] * 3)
    np.testing.assert_allclose(np.array(solid.y) + np.array(rest.y), [0.1] * 3)
    grid = plots.threshold_grid(type_table())
    assert {trace.name for trace in grid.data} == {"above 0", "above 0.5"}
    assert len(grid.data) == 8


def test_active_shares_are_a_heatmap_of_languages_by_layers():
    figure = plots.active_by_language(active_of(("en", "ja", "de")))
    check_titles(figure)
    assert figure.data[0].y == ("en", "de", "ja")
    np.testing.assert_allclose(figure.data[0].z[0], [0.0, 0.1])


def test_contributions_are_those_of_the_language_asked_for():
    table = contributions_of(("en", "fr"))
    assert list(plots.contributions(table, language="fr").data[0].y) == [4.0, 5.0]
    with pytest.raises(ValueError, match="language must be one of this table's, en, fr, got 'de'"):
        plots.contributions(table, language="de")
    with pytest.raises(ValueError, match="measure must be one of top_share"):
        plots.contributions(table, measure="best")


def test_pairs_of_languages_are_points_by_their_relation():
    figure = plots.overlap_against_distance(pairs_of(("en", "de", "ja")))
    check_titles(figure)
    far, near, mean = figure.data
    assert (far.text, near.text) == (("en and ja",), ("en and de",))
    assert [round(x) for x in (*near.x, *far.x)] == [1, 3]
    assert list(mean.y) == [0.5, 0.1]


def test_experts_have_a_panel_per_language_and_languages_a_tree():
    figure = plots.expert_heatmap(experts_of(("en", "ja", "de")))
    assert [a.text for a in figure.layout.annotations][:3] == ["en", "de", "ja"]
    np.testing.assert_allclose(figure.data[0].z, [[0.0, 0.1, 0.2, 0.3]] * 2)
    tree = plots.language_tree(cosines_of(("en", "de", "ja")))
    check_titles(tree)
    assert [trace.name for trace in tree.data if trace.mode == "markers"] == ["Indo-European", "Japonic"]
    merges = sorted(max(trace.y) for trace in tree.data if trace.mode == "lines")
    np.testing.assert_allclose(merges, [0.1, 0.45])


def test_pruning_is_drawn_beside_random_experts():
    table = pruning_of(("en",))
    figure = plots.pruning_curves(table)
    check_titles(figure)
    assert [list(trace.x) for trace in figure.data] == [[0.25, 0.5]] * 4
    assert list(figure.data[1].y) == [0.5, 1.0]
    with pytest.raises(ValueError, match="language must be one of this table's, en, got 'fr'"):
        plots.pruning_curves(table, language="fr")
