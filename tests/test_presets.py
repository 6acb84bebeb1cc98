"""What the published protocols need of a sweep: attention columns, regions, each question's own neurons, task files."""

import json
import os

import numpy as np
import pytest
import torch

import checkpoints
from mi_multilingual import Reading, layer_matched_random, load_model, perplexity, plnd
from mi_multilingual.evaluation.numbers import last_number
from mi_multilingual.evaluation.readers import load_mgsm, load_mpararel, load_xcopa
from mi_multilingual.evaluation.tasks import choice_accuracy, in_every_language, written_accuracy
from mi_multilingual.evidence.impact import record_impact
from mi_multilingual.experiments import measures, sweep
from mi_multilingual.experiments.cells import cells_of, region
from mi_multilingual.experiments.config import Study
from mi_multilingual.experiments.context import Context
from mi_multilingual.experiments.execution import condition_for
from mi_multilingual.experiments.loading import load_study, preset_names
from mi_multilingual.experiments.measures import drawn
from mi_multilingual.experiments.planning import plan
from mi_multilingual.experiments.recordings import needs
from mi_multilingual.patching.changes import Intervention
from mi_multilingual.patching.hooks import steer
from mi_multilingual.studies.deactivation import deactivation_effects, deactivation_study

WINDOW = 12
READING = Reading(layout="documents", window=WINDOW)
PLND = {"detector": "plnd", "rate": 0.6, "ablated": "it"}
OWN = {"detector": "sharing", "site": "post", "evaluate": "xcopa", "layers": ["all", "first"], "seeds": [0, 2]}
ROUNDING = 5e-6
"""Nats. Sums of some 20 in float32, of questions that run together in other batches."""
QUESTIONS = {
    "en": ("The dog.", "Now.", "It rains."),
    "id": ("Anjing.", "Kini.", "Hujan."),
    "it": ("Il cane.", "Ora.", "Piove."),
}
TEXTS = {
    "en": ("The dog sleeps under the old tree.", "We drink tea when it rains."),
    "id": ("Anjing tidur di bawah pohon tua.", "Kami minum teh saat hujan."),
    "it": ("Il cane dorme sotto il vecchio albero.", "Beviamo il tè quando piove."),
}


@pytest.fixture(scope="module")
def home(tmp_path_factory):
    """A study's folder: a tiny model, texts and tasks."""
    folder = tmp_path_factory.mktemp("home")
    checkpoints.checkpoint("llama-grouped", folder / "model")
    for name in ("texts", "xcopa", "mgsm"):
        (folder / name).mkdir()
    for language, sentences in TEXTS.items():
        (folder / "texts" / f"{language}.txt").write_text("\n".join(sentences), encoding="utf-8")
        premise, *choices = QUESTIONS[language]
        rows = [
            {"premise": premise[i:], "choice1": choices[0], "choice2": choices[1], "label": i % 2, "idx": i}
            | {"question": ("cause", "effect")[i % 2]}
            for i in range(3)
        ]
        write_rows(folder / "xcopa" / f"{language}.test.jsonl", rows)
        (folder / "mgsm" / f"{language}.tsv").write_text("1 + 1?\t2\n2 + 5?\t7\n", encoding="utf-8")
        (folder / "mpararel" / language).mkdir(parents=True)
        facts = [{"sub_uri": f"Q{i}", "obj_uri": f"U{i}", "sub_label": f"a{i}", "obj_label": f"b{i}"} for i in (1, 2)]
        write_rows(folder / "mpararel" / language / "P36.tuples.jsonl", facts)
        write_rows(folder / "mpararel" / language / "P36.patterns.jsonl", [{"pattern": "[X]: [Y]"}])
    return folder


def write_rows(path, rows):
    path.write_text("".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows), encoding="utf-8")


def tiny(home, bos="tokenizer", **settings):
    given = {
        "model": str(home / "model"),
        "corpus": {"source": str(home / "texts"), "layout": "documents", "window": WINDOW, "bos": bos},
        "seeds": [0],
        **settings,
    }
    tasks = [name for name in ("xcopa", "mgsm", "mpararel") if name in given.get("evaluate", ())]
    given["tasks"] = {name: {"folder": str(home / name), "n": 2} for name in tasks}
    return Study.model_validate(given)


def results(study, folder):
    progress = sweep.run(study, folder, progress=False)
    assert progress.complete, progress.failed
    return sweep.results(folder)


@pytest.mark.parametrize(("part", "parts"), [("attention", "qkv"), ("all", ("mlp", "q", "k", "v"))])
def test_parts_of_a_region_are_off_together_as_by_the_single_steps(home, tmp_path, part, parts):
    table = results(tiny(home, part=part, layers="last", seeds=[], **PLND), tmp_path).set_index("evaluated")
    model = load_model(home / "model", device="cpu")
    corpus = Context(tiny(home)).corpus("evaluate")
    impact = record_impact(model, corpus, reading=READING, progress=False)
    sets = [plnd(impact, rate=0.6, part=p)["it"].in_layers(region("last", model.cfg.n_layers)) for p in parts]
    assert all(one.union().any() for one in sets)
    base = perplexity(model, corpus, reading=READING, progress=False).set_index("language").nll
    with steer(model, *(Intervention("zero", one) for one in sets)):
        off = perplexity(model, corpus, reading=READING, progress=False).set_index("language").nll
    np.testing.assert_allclose(table.change, (off - base)[table.index], atol=1e-5)
    assert table.change.abs().min() > 1e-6
    assert set(table.n_neurons) == {sum(int(one.union().sum()) for one in sets)}
    assert set(table.part) == {part}


def test_random_columns_are_as_many_a_layer_of_each_part_and_drawn_apart(home):
    study = tiny(home, part="all", **PLND)
    context = Context(study)
    conditions = [condition_for(cell, context) for cell in cells_of(study, context.inputs())]
    assert [(c.labels["condition"], c.labels["group"], c.labels["seed"]) for c in conditions] == [
        ("chosen", "it", -1),
        ("random", "it", 0),
    ]
    own, random = ([intervention.neurons for intervention in c.interventions] for c in conditions)
    assert [one.part for one in own] == [one.part for one in random] == ["mlp", "q", "k", "v"]
    for one, other in zip(own, random, strict=True):
        assert torch.equal(one.union().sum(dim=1), other.union().sum(dim=1))
        assert not torch.equal(one.masks, other.masks)
    k, v = random[2].masks, random[3].masks
    same = layer_matched_random(own[3], seed=0).masks
    assert k.shape == v.shape
    assert not torch.equal(v, same)


def test_all_parts_come_from_one_recording(home):
    study = tiny(home, part=["all", "attention", "mlp"], layers=["first", "last"], **PLND)
    cells = cells_of(study, Context(study).inputs())
    assert len(cells) == 3 * 2 * 2
    assert len({e for cell in cells for e in needs(cell)}) == 1
    assert plan(study).steps.times[plan(study).steps.work == "record impact"].sum() == 1


@pytest.mark.parametrize("bos", ["tokenizer", "none"])
def test_every_question_loses_its_own_neurons_as_in_the_deactivation_study(home, tmp_path, bos):
    table = results(tiny(home, bos, **OWN), tmp_path)
    assert not (tmp_path / "cache").exists()
    model = load_model(home / "model", device="cpu")
    items = drawn(load_xcopa(home / "xcopa"), 2)
    answers = deactivation_study(model, items, seeds=(0, 2), bos=bos, progress=False)
    means = answers.groupby(["group", "seed", "language"])[["correct", "margin"]].mean()
    whole = table[table.layers == "all"]
    assert len(whole) == 4 * 3 * 3 * 2
    for row in whole.itertuples():
        column = {"accuracy": "correct", "margin": "margin"}[row.measure]
        assert row.value == pytest.approx(means[column][row.group, row.seed, row.evaluated], abs=ROUNDING)
        assert row.base == pytest.approx(means[column]["", -1, row.evaluated], abs=ROUNDING)
    effects = deactivation_effects(answers).query("language == 'en' and measure == 'margin'").set_index("group")
    mine = whole[(whole.evaluated == "en") & (whole.measure == "margin") & (whole.seed == -1)].set_index("group")
    for name in ("change", "low", "high"):
        np.testing.assert_allclose(mine[name], effects[name][mine.index], atol=ROUNDING)
    np.testing.assert_array_equal(mine.n_neurons, effects.n_neurons[mine.index].round())
    first = table[(table.layers == "first") & (table.seed == -1)].groupby("group").n_neurons.first()
    assert (first <= mine.n_neurons[first.index]).all()
    assert abs(first.sum() - model.cfg.d_mlp) <= 2  # of means, rounded


def test_a_type_is_of_the_question_where_questions_are_asked_and_of_the_corpus_elsewhere(home):
    study = tiny(home, detector="sharing", site="post", evaluate=["xcopa", "mgsm", "language"], seeds=[])
    cells = cells_of(study, Context(study).inputs())
    assert {c.evaluation: c.by_input for c in cells} == {"xcopa": True, "mgsm": False, "language": False}
    assert all(needs(c) == () for c in cells if c.by_input)
    corpus = tiny(home, detector={"name": "sharing", "scope": "corpus"}, evaluate="xcopa", seeds=[])
    assert not any(c.by_input for c in cells_of(corpus, Context(corpus).inputs()))


@pytest.mark.parametrize("bos", ["tokenizer", "none"])
def test_tasks_are_measured_as_by_the_single_steps(home, tmp_path, monkeypatch, bos):
    monkeypatch.setattr(measures, "SUM_TOKENS", 4)
    tasks = ["xcopa", "mgsm", "mpararel"]
    table = results(tiny(home, bos, evaluate=tasks, detector=PLND["detector"], rate=0.6, ablated="it"), tmp_path)
    assert {(e, m) for e, m in zip(table.evaluation, table.measure, strict=True)} == {
        *((t, m) for t in ("xcopa", "mpararel") for m in ("accuracy", "margin")),
        ("mgsm", "accuracy"),
    }
    model = load_model(home / "model", device="cpu")
    for name, items in (("xcopa", load_xcopa(home / "xcopa")), ("mpararel", load_mpararel(home / "mpararel")[0])):
        right = choice_accuracy(model, drawn(in_every_language(items), 2), bos=bos, progress=False)
        rows = table[(table.evaluation == name) & (table.measure == "accuracy")]
        assert (rows.n == 2).all()
        expected = right.groupby("language").correct.mean()
        np.testing.assert_array_equal(rows.base, expected[rows.evaluated])
    how = {"bos": bos, "max_new_tokens": 4, "progress": False}
    right = written_accuracy(model, load_mgsm(home / "mgsm"), extract=last_number, **how)
    rows = table[table.evaluation == "mgsm"]
    np.testing.assert_array_equal(rows.base, right.groupby("language").correct.mean()[rows.evaluated])


def test_changed_questions_are_asked_anew_and_others_are_not(home, tmp_path):
    xcopa = tmp_path / "xcopa"
    xcopa.mkdir()
    for path in (home / "xcopa").iterdir():
        (xcopa / path.name).write_bytes(path.read_bytes())
    study = tiny(home, evaluate=["xcopa", "language"], ablated="it", seeds=[], detector="lap", rate=0.3)
    study = Study.model_validate(study.model_dump() | {"tasks": {"xcopa": {"folder": str(xcopa), "n": 2}}})
    results(study, tmp_path / "run")
    text = (xcopa / "it.test.jsonl").read_text(encoding="utf-8")
    (xcopa / "it.test.jsonl").write_text(text.replace("Piove", "Nevica"), encoding="utf-8")
    progress = sweep.resume(tmp_path / "run", progress=False)
    assert progress.complete
    assert (progress.n_cells, progress.outdated) == (2, 1)


def test_the_plan_knows_what_questions_cost(home):
    made = plan(tiny(home, evaluate=["xcopa", "mgsm", "mpararel"], detector="lap", seeds=[]))
    steps = made.steps.set_index("work")
    assert (steps.seconds > 0).all()
    assert steps.times["measure xcopa"] == 3 + 1
    assert steps.tokens["measure mgsm"] == 4 * 6 * 30
    assert any("2 questions" in note for note in made.notes)


def test_folders_are_beside_the_study_and_a_run_goes_on_from_anywhere(home, tmp_path, monkeypatch):
    study = {
        "model": "model",
        "corpus": {"source": "texts", "layout": "documents", "window": WINDOW},
        "detector": "lap",
        "rate": 0.3,
        "ablated": "it",
        "evaluate": "xcopa",
        "tasks": {"xcopa": "xcopa"},
        "seeds": [],
    }
    (home / "study.yaml").write_text(json.dumps(study))
    monkeypatch.chdir(tmp_path)
    made = load_study(home / "study.yaml")
    assert made.model == (str(home / "model"),)
    assert (made.corpus.source, made.tasks.given["xcopa"].folder) == (str(home / "texts"), str(home / "xcopa"))
    assert sweep.run(made, "run", progress=False).complete
    monkeypatch.chdir("/")
    log = os.listdir(tmp_path / "run" / "results")
    assert sweep.resume(tmp_path / "run", progress=False).complete
    assert os.listdir(tmp_path / "run" / "results") == log
    monkeypatch.chdir(home)
    inner = Study(
        model=("model",), corpus=study["corpus"], detector=({"name": "lap"},), rate=(0.3,), ablated=("it",), seeds=()
    )
    sweep.run(inner, tmp_path / "inner", progress=False)
    monkeypatch.chdir("/")
    assert sweep.resume(tmp_path / "inner", progress=False).complete


def test_names_of_models_and_data_sets_stay_as_they_are(tmp_path, monkeypatch):
    (tmp_path / "demo").mkdir()
    (tmp_path / "study.yaml").write_text("model: [demo, other/model]\ncorpus: demo")
    made = load_study(tmp_path / "study.yaml")
    assert (made.model, made.corpus.source) == (("demo", "other/model"), "demo")


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"part": "attention"}, "detector lape finds neurons of the MLP only, so no part attention; use plnd"),
        ({"part": ["mlp", "all"], "detector": ["plnd", "lap"]}, "detector lap finds neurons of the MLP only"),
        (
            {"part": "all", "detector": "plnd", "intervention": {"kind": "set", "value": 1}},
            "zero or scaled, and intervention has set",
        ),
        ({"detector": "sharing", "evaluate": "facts"}, "set site: post"),
        ({**OWN, "evaluate": "facts", "intervention": {"kind": "scale", "value": 2}}, "intervention: zero"),
        ({**OWN, "evaluate": "facts", "detector": {"name": "sharing", "tokens": "any"}}, "tokens: last"),
        (
            {"site": "post", "detector": {"name": "sharing", "scope": "input"}},
            "scope input needs questions with choices, and language has none",
        ),
        ({"evaluate": "xcopa"}, "xcopa has to be named by both or neither of evaluate and tasks"),
        ({"tasks": {"mgsm": "here"}}, "mgsm has to be named by both"),
    ],
)
def test_what_no_cell_could_run_is_told_at_once(settings, message):
    with pytest.raises(ValueError, match=message):
        Study.model_validate(settings)


def test_a_region_without_layers_is_told_before_anything_runs(home, tmp_path):
    assert list(region("first", 7)) + list(region("middle", 7)) + list(region("last", 7)) == list(range(7))
    for layers in ("middle", "reasoning"):
        with pytest.raises(ValueError, match=f"has 2 layers, none of them {layers}"):
            sweep.run(tiny(home, layers=["all", layers]), tmp_path / "run", progress=False)
    assert not (tmp_path / "run" / "results").exists()


@pytest.mark.parametrize(
    ("task", "message"),
    [
        ({"folder": "nowhere"}, "nowhere has no <language>.test.jsonl"),
        ({"languages": ["en", "xx"]}, "'xx'"),
        ({"languages": ["en"]}, "are in 'en' alone; ask in at least two languages"),
    ],
)
def test_task_files_that_cannot_be_asked_are_told_before_anything_runs(home, tmp_path, task, message):
    study = tiny(home, **OWN).model_dump()
    study["tasks"]["xcopa"] |= task
    with pytest.raises(ValueError, match=message):
        sweep.run(Study.model_validate(study), tmp_path / "run", progress=False)
    assert not (tmp_path / "run" / "results").exists()


@pytest.mark.parametrize("preset", preset_names())
def test_a_preset_is_small_on_the_demo_alone(tmp_path, preset):
    path = tmp_path / "study.yaml"
    path.write_text(f"preset: {preset}")
    small = load_study(path)
    path.write_text(f"preset: {preset}\ncorpus: {{source: texts}}")
    whole = load_study(path)
    protocol = ("detector", "rate", "site", "layers", "part", "intervention", "evaluate")
    protocol = protocol if isinstance(whole, Study) else ("study", "lape")
    assert all(getattr(small, name) == getattr(whole, name) for name in protocol)
    assert whole.corpus.evaluate_documents is None
    assert (getattr(whole, "facts", 12), whole.seeds) == (12, (0, 1, 2))
