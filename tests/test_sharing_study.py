"""The study of what languages share, whole: single outputs by hand, planted truth, tables, claims."""

import numpy as np
import pandas as pd
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

import oracles
from claims import sharing as claims
from claims.claim import HOLDS, OPEN, verdict
from mi_multilingual import (
    TYPES,
    Item,
    attribution_by_input,
    contribution_table,
    deactivation_effects,
    deactivation_study,
    generate,
    load_corpus,
    mean_overlap,
    means_over_inputs,
    planted_model,
    sharing_study,
    type_shares,
    written_deactivation_study,
)
from mi_multilingual.corpora import Corpus
from mi_multilingual.report.page import write_report
from mi_multilingual.studies import sharing as study
from mi_multilingual.studies.given import Given
from mi_multilingual.studies.planted import CAUSAL, DECOYS, PAIRS
from mi_multilingual.studies.table import STUDIES, study_settings
from mi_multilingual.tokens import DOCUMENTS
from test_deactivation import last_activations, questions

QUIET = {"bos": "row", "progress": False}


def active_in(model, items, threshold):
    """Which neurons are active at the last token of each item: (item, layer, neuron)."""
    return torch.stack([last_activations(model, item) for item in items]) > threshold


def type_of(active, layer, neuron):
    return oracles.neuron_type(active[:, layer, neuron].tolist())


def test_types_and_active_shares_are_those_of_every_question_alone(model):
    tasks = {"first": questions(2), "second": [i for i in questions(3) if i.id == "q2"]}
    outputs = sharing_study(model, tasks, thresholds=(0.0, 0.05), **QUIET)
    types = outputs["types"].set_index(["task", "id", "threshold", "layer", "type"])
    shares = outputs["active"].set_index(["task", "id", "threshold", "language", "layer"]).share
    overlap = outputs["overlaps"].set_index(["task", "id", "language", "other"]).overlap
    n = model.cfg.d_mlp
    for task, items in tasks.items():
        for name in {item.id for item in items}:
            asked = [item for item in items if item.id == name]
            for threshold in (0.0, 0.05):
                active = active_in(model, asked, threshold)
                for layer in range(model.cfg.n_layers):
                    kinds = [type_of(active, layer, j) for j in range(n)]
                    p = [active[k, layer].double().mean().item() for k in range(len(asked))]
                    for kind in TYPES:
                        row = types.loc[task, name, threshold, layer, kind]
                        assert row.share == pytest.approx(kinds.count(kind) / n)
                        assert row.chance == pytest.approx(oracles.shares_by_chance(p)[kind])
                    for k, item in enumerate(asked):
                        assert shares[task, name, threshold, item.language, layer] == pytest.approx(p[k])
            sets = [{tuple(c) for c in a.nonzero().tolist()} for a in active_in(model, asked, 0.0)]
            assert overlap[task, name, "en", "ja"] == pytest.approx(oracles.jaccard(sets[0], sets[2]))


def test_repeated_are_those_of_all_questions_of_a_task(model):
    items = questions(3)
    repeated = sharing_study(model, {"all": items}, thresholds=[0.0], **QUIET)["repeated"]
    repeated = repeated.set_index(["layer", "type"]).repeated
    active = [active_in(model, [i for i in items if i.id == f"q{q}"], 0.0) for q in range(3)]
    for layer in range(model.cfg.n_layers):
        kinds = [{type_of(a, layer, j) for a in active} for j in range(model.cfg.d_mlp)]
        for kind in TYPES:
            assert repeated[layer, kind] == pytest.approx(kinds.count({kind}) / model.cfg.d_mlp)


@pytest.mark.parametrize("top", [5, 0.25])
def test_contributions_are_those_of_every_neuron(model, top):
    items = questions(2)
    table = sharing_study(model, {"all": items}, thresholds=[0.0], top=top, **QUIET)["contributions"]
    table = table.set_index(["id", "language", "layer", "type"])
    n, n_top = model.cfg.d_mlp, 5 if top == 5 else round(top * model.cfg.d_mlp)
    for item in items:
        active = active_in(model, [i for i in items if i.id == item.id], 0.0)
        values = last_activations(model, item)
        for layer in range(model.cfg.n_layers):
            norms = model.blocks[layer].mlp.W_out.norm(dim=1)
            scores = [abs(values[layer, j].item()) * norms[j].item() for j in range(n)]
            best = sorted(range(n), key=lambda j: -scores[j])[:n_top]
            for kind in TYPES:
                mine = [j for j in range(n) if type_of(active, layer, j) == kind]
                row = table.loc[item.id, item.language, layer, kind]
                assert row.n_neurons == len(mine)
                assert row.top_share == pytest.approx(len(set(mine) & set(best)) / n_top)
                assert row.contribution_sum == pytest.approx(sum(scores[j] for j in mine), abs=1e-5)
                if mine:
                    assert row.contribution_mean == pytest.approx(np.mean([scores[j] for j in mine]), abs=1e-5)
                else:
                    assert np.isnan(row.contribution_mean)


def test_at_the_gate_types_are_by_its_sign_and_contributions_by_the_product(tmp_path):
    import checkpoints
    from mi_multilingual import load_model, site_of

    gated = load_model(checkpoints.checkpoint("llama-grouped", tmp_path), device="cpu")
    items = questions(2)
    prompts = Corpus({k: tuple(i.prompt for i in items if i.language == k) for k in ("en", "fr", "ja")}, "prompts")
    answers = Corpus({k: tuple(i.answer_text for i in items if i.language == k) for k in ("en", "fr", "ja")}, "answers")
    post, gate = (attribution_by_input(gated, prompts, answers, site=s, progress=False) for s in ("post", "gate"))
    by = ["language", "input", "layer"]
    assert post.groupby(by).contribution_sum.sum().to_list() == pytest.approx(
        gate.groupby(by).contribution_sum.sum().to_list(), rel=1e-5
    )
    assert post.n_neurons.to_list() != gate.n_neurons.to_list()
    assert site_of(gated, "gate").hook != site_of(gated, "post").hook


def test_planted_neurons_have_the_types_they_were_given():
    planted = planted_model(noise=0.0)
    languages = planted.causal.groups
    items = [
        Item(str(i), language, "words", f"{language}w{i} {language}w{i + 1}", (), f"{language}w0")
        for i in range(10, 14)
        for language in languages
    ]
    n_neurons = planted.model.cfg.n_layers * planted.model.cfg.d_mlp

    def of_all():
        outputs = sharing_study(planted.model, {"words": items}, thresholds=[0.0], progress=False)
        return outputs["repeated"].groupby("type").repeated.mean() * n_neurons

    before = of_all()
    assert before["specific"] >= len(languages) * (CAUSAL + DECOYS)
    assert before["partial-shared"] >= PAIRS * (len(languages) // 2)
    assert before["non-activated"] >= n_neurons // 4  # the dead ones
    mlp = planted.model.blocks[1].mlp
    dead = (mlp.b_in < -10).nonzero().flatten()[:5]
    with torch.no_grad():
        mlp.W_in[:, dead], mlp.b_in[dead] = 0.0, 1.0
    after = of_all()
    assert after["all-shared"] - before["all-shared"] == len(dead)
    assert before["non-activated"] - after["non-activated"] == len(dead)
    assert after["specific"] == before["specific"]


def outputs_of(rows):
    return pd.DataFrame(rows, columns=["task", "id", "layer", "x"])


@settings(max_examples=25)
@given(st.lists(st.lists(st.one_of(st.none(), st.floats(-5, 5)), min_size=3, max_size=3), min_size=2, max_size=6))
def test_means_leave_out_what_is_missing_or_count_it_as_zero(values):
    rows = [
        ("t", str(i), layer, np.nan if v is None else v) for i, row in enumerate(values) for layer, v in enumerate(row)
    ]
    for empty in ("left out", "zero"):
        found = means_over_inputs(outputs_of(rows), ["layer"], "x", empty=empty).set_index("layer")
        for layer in range(3):
            own = [row[layer] for row in values]
            own = [v or 0.0 for v in own] if empty == "zero" else [v for v in own if v is not None]
            row = found.loc[layer]
            assert row.n_inputs == len(own)
            if own:
                assert row["mean"] == pytest.approx(sum(own) / len(own), abs=1e-9)
                assert (row["min"], row["max"]) == (min(own), max(own))
                assert min(own) - 1e-9 <= row.low <= row["mean"] + 1e-9
                assert row["mean"] - 1e-9 <= row.high <= max(own) + 1e-9
            else:
                assert row[["mean", "low", "high", "min", "max"]].isna().all()


def test_written_answers_lose_the_same_neurons_as_chosen_ones(model):
    items = questions(2)
    written = written_deactivation_study(model, items, seeds=(0,), max_new_tokens=3, **QUIET)
    chosen = deactivation_study(model, items, seeds=(0,), **QUIET)
    by = ["id", "language", "condition", "group", "seed", "n_neurons"]
    pd.testing.assert_frame_equal(
        written[by].sort_values(by, ignore_index=True), chosen[by].sort_values(by, ignore_index=True)
    )
    intact = written[written.condition == "intact"].set_index(["id", "language"]).written
    for item in items:
        assert (
            intact[item.id, item.language]
            == generate(model, [item.prompt], max_new_tokens=3, stop=["\n"], bos="row", progress=False)[0]
        )
    effects = deactivation_effects(written)
    assert set(effects.measure) == {"accuracy"}


@pytest.mark.parametrize(
    ("tasks", "options", "message"),
    [
        ({}, {}, "tasks must hold at least one task"),
        ({"a": []}, {}, "got none for 'a'; leave it out"),
        ({"a": questions(1, ("en",))}, {}, "at least two languages"),
        ({"a": questions(1)[:2] + questions(2)[3:]}, {}, "the items are not parallel"),
        ({"a": questions()}, {"thresholds": []}, "at least one"),
        ({"a": questions()}, {"tokens": "first"}, "tokens must be one of last, any, released"),
        ({"a": questions()}, {"site": "middle"}, "middle"),
        ({"a": questions()}, {"top": 99}, "top must be a share below 1, or a whole number up to 24, got 99"),
        ({"a": questions()}, {"top": 1.5}, "got 1.5"),
    ],
)
def test_mistakes_are_told_before_anything_runs(ungated, monkeypatch, tasks, options, message):
    monkeypatch.setattr(study, "activation_chunks", None)
    with pytest.raises(ValueError, match=message):
        sharing_study(ungated, tasks, progress=False, **options)


@pytest.fixture(scope="module")
def tables(demo_model):
    corpus = load_corpus("demo", languages=["en", "fr", "ru"], split="evaluate", max_documents=8)
    how = study_settings("sharing", {"n_languages": 2, "n_inputs": 6, "n_choices": 1, "n_written": 1})
    given = Given(demo_model, corpus, corpus, DOCUMENTS, how, seeds=(0,), progress=False)
    return STUDIES["sharing"].run(given)


def test_the_whole_study_gives_its_tables(tables, tmp_path):
    assert tuple(tables) == STUDIES["sharing"].tables
    assert not any(table.empty for table in tables.values())
    shares = tables["sharing_types"]
    facts = {"facts: capital", "facts: language", "facts: continent"}
    assert set(shares.task) == facts | {"editing en to all", "editing all to en"}
    assert set(tables["sharing_deactivation"].task) == facts
    assert set(tables["sharing_written"].task) == set(shares.task)
    assert shares.groupby(["task", "threshold", "layer"])["mean"].sum().to_list() == pytest.approx([1.0] * 5 * 6 * 4)
    assert (shares.repeated <= shares["min"] + 1e-9).all()
    assert set(tables["sharing_deactivation"].measure) == {"accuracy", "margin"}
    assert tables["sharing_pairs"][["language", "other"]].values.tolist() == [["en", "fr"], ["en", "ru"], ["fr", "ru"]]
    for name, table in tables.items():
        table.to_parquet(tmp_path / f"{name}.parquet")
    page = write_report(tmp_path).read_text(encoding="utf-8")
    for section in ("sharing-tasks", "sharing-deactivation", "sharing-written", "sharing-distance"):
        assert f'id="section-{section}"' in page


def test_tables_of_outputs_agree_with_the_outputs(demo_model):
    items = [Item(str(i), k, "t", f"{k} {i} abc", (), "x") for i in range(3) for k in ("en", "fr", "de")]
    outputs = sharing_study(demo_model, {"t": items}, thresholds=[0.0, 0.3], progress=False)
    shares = type_shares(outputs).set_index(["threshold", "layer", "type"])
    own = outputs["types"].groupby(["threshold", "layer", "type"]).share
    assert shares["mean"].sort_index().to_list() == pytest.approx(own.mean().sort_index().to_list())
    assert shares["max"].sort_index().to_list() == pytest.approx(own.max().sort_index().to_list())
    overlap = mean_overlap(outputs)
    assert list(overlap.index) == ["en", "fr", "de"]
    assert (overlap.to_numpy() == overlap.to_numpy().T).all()
    pair = outputs["overlaps"].query("language == 'fr' and other == 'de'").overlap.mean()
    assert overlap.loc["de", "fr"] == pytest.approx(pair)
    table = contribution_table(outputs, empty="zero")
    assert table[table.measure == "top_share"].groupby(["language", "layer"])["mean"].sum().to_list() == pytest.approx(
        [1.0] * 12
    )


def answers_of(harm):
    """Answers to six questions whose margin falls by so much without each type, by 0.1 without random neurons."""
    rows = []
    for q in range(6):
        rows.append((f"q{q}", "en", "t", "intact", "", -1, 0, 5.0))
        for kind, loss in harm.items():
            rows.append((f"q{q}", "en", "t", "chosen", kind, -1, 4, 5.0 - loss - 0.01 * q))
            rows += [(f"q{q}", "en", "t", "random", kind, seed, 4, 4.9) for seed in (0, 1)]
    names = ["id", "language", "task", "condition", "group", "seed", "n_neurons", "margin"]
    table = pd.DataFrame(rows, columns=names)
    return table.assign(correct=table.margin > 0)


def inputs_of(shares, threshold=0.0):
    rows = [
        (task, f"{task}{i}", threshold, layer, "all-shared", share + 0.001 * i)
        for task, share in shares.items()
        for i in range(8)
        for layer in range(2)
    ]
    return pd.DataFrame(rows, columns=["task", "id", "threshold", "layer", "type", "share"])


def neurons_of(times):
    rows = []
    for i in range(6):
        mean = times * (1 + (i - 2.5) / 100)
        rows.append(("t", f"q{i}", "en", 0, "all-shared", 2, 2.0 * mean, mean))
        rows.append(("t", f"q{i}", "en", 0, "specific", 8, 8.0, 1.0))
        rows.append(("t", f"q{i}", "en", 1, "all-shared", 0, 0.0, np.nan))
        rows.append(("t", f"q{i}", "en", 1, "specific", 8, 8.0, 1.0))
    names = ["task", "id", "language", "layer", "type", "n_neurons", "contribution_sum", "contribution_mean"]
    return pd.DataFrame(rows, columns=names)


def claim(word):
    [found] = [c for c in claims.CLAIMS if word in c.text]
    return found


def decided(word, tables):
    found = claim(word)
    effect = found.measure(tables)
    assert effect.low <= effect.value <= effect.high or np.isnan(effect.value)
    return effect, verdict(found, effect)


def test_claims_are_decided_by_made_up_tables():
    effect, holds = decided("hurts", {"sharing_answers": answers_of({"all-shared": 2.0, "specific": 0.5})})
    assert (effect.value, holds) == (pytest.approx(-1.5), HOLDS)
    assert decided("hurts", {"sharing_answers": answers_of({"all-shared": 0.5, "specific": 2.0})})[1] != HOLDS
    effect, holds = decided("task", {"sharing_inputs": inputs_of({"a": 0.1, "b": 0.3})})
    assert (effect.value > 0.1, holds) == (True, HOLDS)
    assert decided("task", {"sharing_inputs": inputs_of({"a": 0.1, "b": 0.1})})[1] != HOLDS
    both = pd.concat([inputs_of({"a": 0.3}), inputs_of({"a": 0.1}, 0.5)])
    assert decided("threshold", {"sharing_inputs": both})[0].value == pytest.approx(-0.2)
    effect, holds = decided("contribute", {"sharing_neurons": neurons_of(4.0)})
    assert (effect.value, holds) == (pytest.approx(4 / 1.6 - 1, abs=1e-3), HOLDS)
    columns = ["distance", "rho", "low", "high"]
    distance = pd.DataFrame([("family", -0.6, -0.9, -0.2), ("script", 0.1, -1.0, 1.0)], columns=columns)
    assert decided("related", {"sharing_distance": distance})[1] == HOLDS
    assert decided("related", {"sharing_distance": distance[:0]})[1] == OPEN


def test_every_claim_can_be_measured_on_the_tables_of_a_run(tables):
    for found in claims.CLAIMS:
        effect = found.measure(tables)
        assert effect.control
        assert found.study == "sharing"
