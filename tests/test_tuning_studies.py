"""Studies of tuning: their tables against plain loops, planted truth, figures, findings, claims, mistakes."""

import numpy as np
import pandas as pd
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

import oracles
from claims.claim import HOLDS, verdict
from claims.tuning import CLAIMS
from mi_multilingual import (
    Item,
    Reading,
    Training,
    alignment_effects,
    alignment_study,
    planted_model,
    planted_text,
    plots,
    tuning_effects,
    tuning_study,
    tuning_summary,
)
from mi_multilingual.corpora import Corpus
from mi_multilingual.report.sections.tuning import alignment_findings, tuning_findings

READING = Reading(layout="documents")


def made_up(changes, n_rows=6, seed=0):
    """Rows of a `tuning_study` with these mean changes: (arm, group, evaluated) -> nats per token."""
    random = np.random.default_rng(seed)
    n_tokens = {k: random.integers(5, 20, n_rows) for k in ("en", "fr")}
    before = {k: n_tokens[k] * random.uniform(2, 4, n_rows) for k in n_tokens}
    parts = []
    for (arm, group, evaluated), change in changes.items():
        for draw in (0, 1) if arm == "random" else (-1,):
            labels = {"arm": arm, "group": group, "seed": draw, "n_neurons": 4, "n_trained": 64}
            after = before[evaluated] + n_tokens[evaluated] * random.normal(change, 0.01, n_rows)
            columns = {"before": before[evaluated], "after": after, "n_tokens": n_tokens[evaluated]}
            where = {"learning_rate": 10.0**draw, "evaluated": evaluated, "row": np.arange(n_rows)}
            parts.append(pd.DataFrame({**labels, **where, **columns}))
    return pd.concat(parts, ignore_index=True)


CHANGES = {
    (arm, group, evaluated): own if group == evaluated else other
    for arm, own, other in (("chosen", -0.5, 0.1), ("random", -0.2, 0.2), ("full", -0.4, 0.6))
    for group in ("en", "fr")
    for evaluated in ("en", "fr")
}


@settings(max_examples=10)
@given(st.lists(st.floats(-2, 2), min_size=12, max_size=12), st.integers(0, 100))
def test_tables_are_those_of_plain_loops(values, seed):
    rows = made_up(dict(zip(CHANGES, values, strict=True)), seed=seed)
    effects = tuning_effects(rows)
    expected = oracles.tuning_changes(rows.to_dict("records"))
    for row in effects.itertuples():
        assert row.change == pytest.approx(expected[row.arm, row.group, row.evaluated])
        assert row.after - row.before == pytest.approx(row.change)
        assert row.low <= row.change + 1e-9
        assert row.change <= row.high + 1e-9
        if row.arm != "random":
            random = expected["random", row.group, row.evaluated]
            assert row.beyond == pytest.approx(row.change - random)
    assert effects.beyond.isna().tolist() == (effects.arm == "random").tolist()
    summary = tuning_summary(rows).set_index(["arm", "versus", "measure"]).change
    for measure, same in (("own", True), ("others", False)):
        mean = {
            c: np.mean([x for (arm, g, e), x in expected.items() if arm == c and (g == e) is same])
            for c in ("chosen", "random", "full")
        }
        assert summary["chosen", "", measure] == pytest.approx(mean["chosen"])
        assert summary["full", "random", measure] == pytest.approx(mean["full"] - mean["random"])


def test_neurons_that_fire_in_one_language_only_leave_the_others_alone_when_tuned():
    planted = planted_model(n_languages=3, effect=1.0, neurons_per_layer=64)
    text, other = (planted_text(planted, n, seed=seed) for n, seed in ((300, 1), (100, 2)))
    rows = tuning_study(
        planted.model,
        text,
        other,
        planted.causal.take(["l0", "l1"]),
        training=Training(steps=12, learning_rate=1e-3),
        seeds=[0],
        reading=READING,
        progress=False,
    )
    assert rows.groupby(["arm", "group"]).learning_rate.nunique().eq(1).all()
    assert set(rows.n_trained[rows.arm != "full"]) == {6 * 2 * 64}
    summary = tuning_summary(rows).set_index(["arm", "versus", "measure"])
    assert summary.loc[("chosen", "", "own")].high < -0.1
    assert summary.loc[("chosen", "random", "others")].high < 0
    assert summary.loc[("chosen", "full", "others")].high < 0
    before = rows.groupby("evaluated").agg(total=("before", "sum"), n=("n_tokens", "sum"))
    assert (before.total / before.n).between(1, 6).all()


def questions(n=4):
    """Yes-or-no questions in two languages."""
    asked = {"en": ("Is it {}?", (" yes", " no")), "fr": ("Est-ce {} ?", (" oui", " non"))}
    words = [("rain", "pluie"), ("tea", "thé"), ("river", "rivière"), ("tree", "arbre")][:n]
    return [
        Item(str(i), k, "asked", asked[k][0].format(pair[j]), asked[k][1], i % 2)
        for i, pair in enumerate(words)
        for j, k in enumerate(("en", "fr"))
    ]


def test_alignment_sees_the_same_rows_in_another_order_and_answers_held_out_questions(ungated, corpus):
    how = {"training": Training(steps=2, batch_rows=2, learning_rate=0.05), "seeds": [3], "progress": False}
    rows = alignment_study(ungated, corpus.take(["en", "fr"]), questions(), **how)
    assert rows.arm.unique().tolist() == ["intact", "aligned", "mixed", "alone"]
    assert rows.groupby("arm").size().eq(8).all()
    assert set(rows.seed[rows.arm != "intact"]) == {3}
    assert rows.groupby(["arm", "id"]).all_shared.nunique().eq(1).all()
    again = alignment_study(ungated, corpus.take(["en", "fr"]), questions(), **how)
    pd.testing.assert_frame_equal(rows, again)
    effects = alignment_effects(rows).set_index(["arm", "measure"])
    for arm in ("aligned", "mixed", "alone"):
        for measure, column in (("accuracy", "correct"), ("all_shared", "all_shared"), ("margin", "margin")):
            means = [rows[rows.arm == c][column].mean() for c in (arm, "intact", "mixed")]
            assert effects.loc[(arm, measure)].change == pytest.approx(means[0] - means[1])
            if arm != "mixed":
                assert effects.loc[(arm, measure)].beyond == pytest.approx(means[0] - means[2])
    for measure in ("all_shared", "accuracy", "margin"):
        assert plots.alignment_bars(effects.reset_index(), measure=measure).data[0].y[1] == pytest.approx(
            effects.loc[("mixed", measure)].change
        )
    assert len(alignment_findings(effects.reset_index())) == 2


def test_figures_and_findings_hold_what_the_tables_do():
    rows = made_up(CHANGES)
    effects, summary = tuning_effects(rows), tuning_summary(rows)
    bars = {trace.name: trace for trace in plots.tuning_bars(summary).data}
    assert bars["all weights"].y[1] == pytest.approx(0.6, abs=0.02)
    assert (np.asarray(bars["its neurons"].error_y.array) > 0).all()
    assert np.diag(plots.tuning_matrix(effects).data[0].z) == pytest.approx([-0.5, -0.5], abs=0.02)
    with pytest.raises(ValueError, match="arm must be one of chosen, random, full, got 'some'"):
        plots.tuning_matrix(effects, arm="some")
    own, others = tuning_findings(effects, summary)
    by = summary.set_index(["arm", "versus", "measure"]).change
    assert f"of the language that is tuned on by {by['chosen', '', 'own']:+.3f} nats" in own
    assert f"against tuning as many random neurons: {by['chosen', 'random', 'own']:+.3f}" in own
    assert f"against tuning all weights: {by['chosen', 'full', 'others']:+.3f}" in others


def test_a_claim_is_about_its_arm_and_measure():
    rows = made_up(CHANGES)
    effect = {
        "arm": "aligned",
        "n_items": 9,
        "intact": 0.1,
        "value": 0.2,
        "change": 0.1,
        "low": 0.05,
        "high": 0.2,
    }
    beyond = {"beyond": 0.03, "beyond_low": 0.01, "beyond_high": 0.05}
    aligned = pd.DataFrame([{**effect, **beyond, "measure": m} for m in ("all_shared", "accuracy")])
    tables = {"tuning_summary": tuning_summary(rows), "alignment_tuning": aligned}
    found = [claim.measure(tables) for claim in CLAIMS]
    assert [round(e.value, 1) for e in found] == [-0.3, -0.5, -0.3, 0.1, 0.0, 0.1]
    assert found[4].value == 0.03
    held = [verdict(claim, e) == HOLDS for claim, e in zip(CLAIMS, found, strict=True)]
    assert held == [True, True, False, True, True, True]


def test_mistakes_are_told_before_anything_runs(ungated, corpus):
    neurons = planted_model(n_languages=2, n_layers=1, neurons_per_layer=64)
    text = planted_text(neurons, 200)
    asked = {"reading": READING, "progress": False}
    few = Corpus({k: docs[:4] for k, docs in text.documents.items()}, "few")
    with pytest.raises(ValueError, match="at least 5 documents of 'l0', got 4"):
        tuning_study(neurons.model, few, text, neurons.causal, **asked)
    with pytest.raises(ValueError, match="every group must be a language of both texts, got 'l1'"):
        tuning_study(neurons.model, text, text.take(["l0"]), neurons.causal, **asked)
    with pytest.raises(ValueError, match="training must not be parallel"):
        tuning_study(neurons.model, text, text, neurons.causal, training=Training(parallel=True), **asked)
    with pytest.raises(ValueError, match="seeds must hold at least one number"):
        alignment_study(ungated, corpus, questions(), seeds=[], progress=False)
    uneven = Corpus({"en": corpus.documents["en"], "fr": corpus.documents["fr"][:2]}, "uneven")
    with pytest.raises(ValueError, match="every document must be one row, and be there in every language"):
        alignment_study(ungated, uneven, questions(), progress=False)
    with pytest.raises(ValueError, match="measure must be one of all_shared, accuracy, margin, got 'loss'"):
        plots.alignment_bars(pd.DataFrame(), measure="loss")
