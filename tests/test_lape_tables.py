from dataclasses import replace

import numpy as np
import pandas as pd
import pytest
import torch

from claims import lape_tables as lape_claims
from claims.claim import HOLDS, verdict
from mi_multilingual import (
    NeuronScores,
    NeuronSet,
    Reading,
    ablation_comparison,
    ablation_curve,
    ablation_matrix,
    ablation_study,
    as_many,
    curve_table,
    lap_scores,
    lape,
    lave,
    perplexity_matrix,
    planted_model,
    planted_text,
    record,
    tang_methods,
)
from mi_multilingual.evidence.weight_change import WeightChange
from mi_multilingual.patching.conditions import uniform_random
from mi_multilingual.report.sections.lape_tables import comparison_findings
from mi_multilingual.studies.given import Given
from mi_multilingual.studies.table import STUDIES, study_settings

READING = Reading(layout="documents")
GROUPS = ("en", "fr", "ja")


@pytest.fixture(scope="module")
def methods():
    one = {"en": [(0, 1)], "fr": [(0, j) for j in range(2, 9)], "ja": [(1, 3)]}
    other = {"en": [(1, 5)], "fr": [], "ja": [(1, j) for j in range(9)]}
    return {"one": NeuronSet.of(one, shape=(2, 24)), "other": NeuronSet.of(other, shape=(2, 24))}


@pytest.fixture(scope="module")
def outputs(ungated, corpus, methods):
    return ablation_study(ungated, corpus, methods, seeds=(0, 3), reading=READING, progress=False)


@pytest.fixture(scope="module")
def stats(ungated, corpus):
    return record(ungated, corpus, reading=READING, progress=False)


def test_cells_are_those_of_the_perplexity_matrix(outputs, ungated, corpus, methods):
    matrix = ablation_matrix(outputs)
    for name, neurons in methods.items():
        expected = perplexity_matrix(ungated, corpus, neurons, seeds=(0, 3), reading=READING, progress=False)
        expected = expected[expected.condition != "intact"]
        found = matrix[matrix.method == name].merge(expected, on=["condition", "group", "seed", "evaluated"])
        assert len(found) == len(expected)
        assert (found.n_neurons_x == found.n_neurons_y).all()
        assert found.change_x.to_numpy() == pytest.approx(found.change_y.to_numpy(), abs=1e-6)
        assert found.ppl_x.to_numpy() == pytest.approx(found.ppl_y.to_numpy(), rel=1e-5)
        intact = found.ppl_y * np.exp(-found.change_y)
        assert found.ppl_change.to_numpy() == pytest.approx((found.ppl_y - intact).to_numpy(), rel=1e-3, abs=1e-3)
    assert (matrix.low <= matrix.change + 1e-12).all()
    assert (matrix.ppl_change <= matrix.ppl_high + 1e-12).all()


def test_controls_of_the_first_method_are_measured_in_all_languages_the_others_in_their_own(outputs, methods):
    cells = outputs.drop_duplicates(["method", "condition", "group", "seed", "evaluated"])
    random = cells[cells.condition == "random"]
    assert random.groupby("method").size().to_dict() == {"one": 2 * 9, "other": 2 * 3, "uniform random": 2 * 9}
    own = random[random.method == "other"]
    assert (own.group == own.evaluated).all()
    for name in ("one", "uniform random"):
        sizes = random[random.method == name].groupby("group").n_neurons.unique()
        assert {k: n.tolist() for k, n in sizes.items()} == {"en": [1], "fr": [7], "ja": [1]}
    assert set(outputs[outputs.condition == "intact"].method) == {""}
    drawn = uniform_random(methods["one"], seed=3)
    assert drawn.masks.sum(dim=2)[1, 1] > 0, "the whole model is drawn from, not the layers of the set"


def table_of(cells, n_rows=400, seed=0):
    """Outputs with a loss of every cell that is known but for a little noise."""
    random = np.random.default_rng(seed)
    rows = []
    for (method, condition, group, s, evaluated), change in cells.items():
        for row in range(n_rows):
            noise = random.normal(0, 0.1)
            label = {"method": method, "condition": condition, "group": group, "seed": s, "n_neurons": 5}
            rows.append({**label, "evaluated": evaluated, "row": row, "nll": 10 * (3 + change + noise), "n_tokens": 10})
    return pd.DataFrame(rows)


def planted_cells():
    """Own 1 and others 0.25 for the first method, 0.5 and 0.5 for the second, 0.125 for random neurons."""
    cells = {("", "intact", "", -1, k): 0.0 for k in ("en", "fr")}
    for group in ("en", "fr"):
        for k in ("en", "fr"):
            cells["first", "chosen", group, -1, k] = 1.0 if group == k else 0.25
            cells["second", "chosen", group, -1, k] = 0.5
            for method in ("first", "uniform random"):
                cells[method, "random", group, 0, k] = 0.25 if group == k else 0.0
                cells[method, "random", group, 1, k] = 0.0
        cells["second", "random", group, 0, group] = 0.0
        cells["second", "random", group, 1, group] = 0.0
    return cells


def test_the_comparison_finds_effects_that_are_known():
    table = ablation_comparison(table_of(planted_cells())).set_index(["method", "measure"])
    expected = {
        ("first", "own"): 1.0,
        ("first", "others"): 0.25,
        ("first", "dominance"): 0.75,
        ("first", "beyond random"): 0.875,
        ("first", "dominance beyond random"): 0.625,
        ("second", "own"): 0.5,
        ("second", "dominance"): 0.0,
        ("second", "beyond random"): 0.5,
        ("second", "less than the first"): 0.5,
        ("second", "dominance less than the first"): 0.75,
        ("layer-matched random", "own"): 0.125,
        ("uniform random", "others"): 0.0,
        ("uniform random", "less than the first"): 0.875,
    }
    for key, value in expected.items():
        row = table.loc[key]
        assert row.value == pytest.approx(value, abs=0.02)
        assert row.low < row.value < row.high
        assert row.high - row.low < 0.1
    assert ("second", "dominance beyond random") not in table.index
    assert ("second", "less than the first") in table.index


def test_differences_of_cells_that_move_together_are_certain():
    """Rows of text differ by far more than the effect, which is the same in all of them."""
    table = table_of(planted_cells())
    hard = table.row % 7
    table["nll"] = 10.0 * (hard + table.nll.mean() * 0)
    table.loc[(table.method == "first") & (table.condition == "chosen"), "nll"] += 0.1
    row = ablation_comparison(table).set_index(["method", "measure"]).loc[("first", "own")]
    assert (row.low, row.value, row.high) == pytest.approx((0.01,) * 3)


def test_incomplete_outputs_are_refused(outputs):
    with pytest.raises(ValueError, match="every row of text in 'ja' must be there"):
        ablation_matrix(outputs.iloc[:-1])
    with pytest.raises(ValueError, match="neurons must be of languages of the text"):
        ablation_comparison(outputs.assign(group=outputs.group + "?"))


def test_the_methods_are_those_of_the_paper(stats):
    how = {"rate": 0.5, "filter_rate": 0.5, "activation_bar_ratio": 0.5}
    change = WeightChange(torch.rand(2, 24, 3).double(), GROUPS, "m", "")
    found = tang_methods(stats, tuned=change, threshold=0.6, **how)
    assert list(found) == ["lape", "lap", "lap, as many", "lave", "lave, absolute", "parameter_variation"]
    assert found["lape"].masks_equal(lape(stats, **how))
    assert found["lave, absolute"].masks_equal(lave(stats, **how, means="absolute"))
    assert (found["lap"].masks.permute(1, 2, 0) == (stats.activation_probability() > 0.6)).all()
    sizes, scores = found["lape"].sizes(), lap_scores(stats).values
    assert found["lap, as many"].sizes().tolist() == sizes.tolist()
    for k, mask in enumerate(found["lap, as many"].masks):
        assert scores[..., k][mask].min() >= scores[..., k][~mask].max()
    assert "parameter_variation" not in tang_methods(stats, **how)


def test_more_neurons_more_loss_where_the_truth_is_planted():
    planted = planted_model(n_languages=2, neurons_per_layer=64, words_per_language=20)
    text, neurons = planted_text(planted, 240), planted.causal
    scores = NeuronScores(neurons.masks.permute(1, 2, 0).double(), neurons.groups, "known")
    n = int(neurons.sizes().min())
    table = curve_table(
        ablation_curve(planted.model, text, scores, [1, n], seeds=(0,), reading=READING, progress=False)
    )
    at = table[table.group == ""].set_index(["condition", "n"])
    assert at.low["chosen", n] > at.high["chosen", 1] > 0
    assert at.low["chosen", n] > at.high["random", n]


def test_the_curve_stops_where_no_neuron_has_a_score(ungated, corpus):
    values = torch.full((2, 24, 4), -torch.inf)
    values[0, :3, 0] = values[1, :9, 1] = torch.tensor(1.0)
    scores = NeuronScores(values, ("en", "fr", "de", "ja"), "toy")
    outputs = ablation_curve(ungated, corpus, scores, [2, 6], seeds=(0,), reading=READING, progress=False)
    assert set(outputs.evaluated) == {"en", "fr", "ja"}
    chosen = outputs[outputs.condition == "chosen"]
    assert (chosen.group == chosen.evaluated).all()
    sizes = chosen.groupby(["n", "group"]).n_neurons.first().to_dict()
    assert sizes == {(2, "en"): 2, (2, "fr"): 2, (2, "ja"): 0, (6, "en"): 3, (6, "fr"): 6, (6, "ja"): 0}
    table = curve_table(outputs)
    mean = table[(table.n == 6) & (table.condition == "chosen")].set_index("group")
    assert mean.change[""] == pytest.approx(mean.change.drop("").mean())
    assert mean.change["ja"] == 0


def test_mistakes_are_told(ungated, corpus, methods, stats):
    def study(**given):
        return ablation_study(ungated, corpus, **{"methods": methods, "reading": READING, "progress": False, **given})

    with pytest.raises(ValueError, match="at least one set of neurons, got none"):
        study(methods={})
    with pytest.raises(ValueError, match="must not be called as a control is, got 'uniform random'"):
        study(methods={"uniform random": methods["one"]})
    with pytest.raises(ValueError, match="'other' has"):
        study(methods={**methods, "other": methods["other"].take(["en"])})
    with pytest.raises(ValueError, match="seeds must hold at least one number"):
        study(seeds=())
    with pytest.raises(ValueError, match="neurons must have the groups"):
        as_many(lap_scores(stats), methods["one"]["en"])
    with pytest.raises(ValueError, match="sizes must hold at least one"):
        ablation_curve(ungated, corpus, lap_scores(stats), [], reading=READING, progress=False)
    strange = replace(lap_scores(stats), languages=("x", "y", "z"))
    with pytest.raises(ValueError, match="corpus must have a language of the scores, x, y, z"):
        ablation_curve(ungated, corpus, strange, [1], reading=READING, progress=False)


def test_findings_say_what_is_certain():
    lines = comparison_findings(ablation_comparison(table_of(planted_cells())))
    assert "by first a language loses +1.0" in lines[0]
    assert "That is more of its own than with as many random neurons per layer" in lines[0]
    assert [line.split(" (")[0] for line in lines[1:]] == [
        f"The neurons of {name}" for name in ("second", "layer-matched random", "uniform random")
    ]
    same = {cell: change for cell, change in planted_cells().items() if cell[0] != "second"}
    same |= {("second", *cell[1:]): change for cell, change in same.items() if cell[0] == "first"}
    names = " ".join(comparison_findings(ablation_comparison(table_of(same))))
    assert "The neurons of second" not in names, "what does not differ is not compared"


@pytest.mark.parametrize("steps", [0, 2])
def test_the_study_tunes_for_parameter_variation_where_it_is_told_how_long(ungated, corpus, steps):
    wanted = {"documents": 2, "languages": 2, "points": 1, "tuned_steps": steps}
    settings = study_settings("lape_tables", wanted)
    bars = {"rate": 0.1, "filter_rate": 0.5, "activation_bar_ratio": 0.5}
    before = [weights.clone() for weights in ungated.parameters()]
    given = Given(ungated, corpus, corpus, READING, settings, seeds=(0,), lape=bars, progress=False)
    matrix = STUDIES["lape_tables"].run(given)["ablation_matrix"]
    assert ("parameter_variation" in set(matrix.method)) == bool(steps)
    assert all(map(torch.equal, ungated.parameters(), before)), "a copy is tuned"


def test_claims_are_measured_from_the_tables():
    rows = table_of(planted_cells()).replace({"method": {"first": "lape", "second": "lap, as many"}})
    also = rows[rows.method == "lap, as many"].assign(method="lave")
    tables = {"ablation_outputs": pd.concat([rows, also])}
    ends = [("chosen", "", 9, 1.0, 0.6, 1.3), ("random", "", 9, 0.2, 0.1, 0.5), ("chosen", "en", 9, 7.0, 7.0, 7.0)]
    columns = ["condition", "group", "n", "change", "low", "high"]
    tables["ablation_curve"] = pd.DataFrame([*ends, ("chosen", "", 40, 5.0, 5.0, 5.0)], columns=columns)
    effects = [claim.measure(tables) for claim in lape_claims.CLAIMS]
    assert [e.value for e in effects] == pytest.approx([0.625, 0.875, 0.5, 0.75, 0.5, 0.8], abs=0.02)
    assert (effects[-1].low, effects[-1].high) == pytest.approx((0.8 - 0.5, 0.8 + np.hypot(0.3, 0.1)))
    assert {verdict(c, e) for c, e in zip(lape_claims.CLAIMS, effects, strict=True)} == {HOLDS}
    assert {c.study for c in lape_claims.CLAIMS} == {"lape_tables"}
