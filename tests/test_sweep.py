import json
import os
import resource
import signal
from dataclasses import fields, replace

import numpy as np
import pandas as pd
import pytest
import torch
from pandas.testing import assert_frame_equal
from safetensors.torch import load_file, save_file

import checkpoints
from kills import child, ended, killed_at
from mi_multilingual import (
    DETECTORS,
    Detector,
    Reading,
    Setting,
    generate,
    lap_scores,
    lape,
    layer_matched_random,
    load_model,
    perplexity,
    record,
)
from mi_multilingual.cli import main
from mi_multilingual.evaluation.tasks import Item
from mi_multilingual.evidence.table import kind_of
from mi_multilingual.experiments import execution, sweep
from mi_multilingual.experiments.attempts import ATTEMPTS
from mi_multilingual.experiments.cells import Cell, Inputs, cells_of
from mi_multilingual.experiments.config import GenerationSettings, InterventionSettings, Study
from mi_multilingual.experiments.context import Context
from mi_multilingual.experiments.execution import condition_for, run_cell
from mi_multilingual.experiments.fingerprints import tokenizer_fingerprint, weights_fingerprint
from mi_multilingual.experiments.loading import load_study
from mi_multilingual.experiments.measures import drawn, matched_share_interval
from mi_multilingual.experiments.planning import plan
from mi_multilingual.experiments.recordings import Recording, choices_of, chosen, collect, needs, recording_of
from mi_multilingual.experiments.store import Store
from mi_multilingual.patching.changes import Intervention, add_mean
from mi_multilingual.patching.hooks import ablate, steer
from mi_multilingual.storage import load, save

WINDOW = 12
READING = Reading(layout="documents", window=WINDOW)


@pytest.fixture(scope="module")
def home(tmp_path_factory):
    """A tiny model and a folder of texts."""
    folder = tmp_path_factory.mktemp("home")
    checkpoints.checkpoint("llama-grouped", folder / "gated")
    checkpoints.checkpoint("opt", folder / "ungated")
    write_texts(folder / "texts")
    return folder


def write_texts(folder, **other):
    folder.mkdir(exist_ok=True)
    for language, sentences in checkpoints.SENTENCES.items():
        (folder / f"{language}.txt").write_text(other.get(language, "\n".join(sentences)), encoding="utf-8")


def tiny(home, **settings):
    given = {
        "model": str(home / "gated"),
        "corpus": {"source": str(home / "texts"), "layout": "documents", "window": WINDOW},
        "detector": {"name": "lape", "filter_rate": 0.5, "activation_bar_ratio": 0.5},
        "rate": 0.3,
        "seeds": [0],
        **settings,
    }
    return Study.model_validate(given)


def run(study, folder, **options):
    return sweep.run(study, folder, progress=False, **options)


def test_a_cell_is_what_the_single_steps_give(home, tmp_path):
    study = tiny(home, intervention=["zero", {"kind": "add", "value": "mean", "strength": 2.0}], ablated=["fr"])
    assert run(study, tmp_path).complete
    table = sweep.results(tmp_path)
    model = load_model(home / "gated", device="cpu")
    context = Context(study)
    corpus = context.corpus("evaluate")
    stats = record(model, corpus, reading=READING, progress=False)
    neurons = lape(stats, rate=0.3, filter_rate=0.5, activation_bar_ratio=0.5)

    def losses():
        return perplexity(model, corpus, reading=READING, progress=False).set_index("language").nll

    base = losses()
    for seed, own in ((-1, neurons["fr"]), (0, layer_matched_random(neurons, seed=0)["fr"])):
        with ablate(model, own):
            expected = losses() - base
        found = table[(table.seed == seed) & (table.intervention == "zero")].set_index("evaluated")
        np.testing.assert_allclose(found.change, expected[found.index], atol=1e-5)
        assert set(found.n_neurons) == {int(own.union().sum())}
        with steer(model, add_mean(own, stats, "fr", strength=2.0)):
            expected = losses() - base
        found = table[(table.seed == seed) & (table.intervention == "add 2 x mean")].set_index("evaluated")
        np.testing.assert_allclose(found.change, expected[found.index], atol=1e-5)
    assert (table.value - table.base - table.change).abs().max() < 1e-12
    assert ((table.low <= table.change) & (table.change <= table.high)).all()


@pytest.mark.slow
def test_every_detector_and_measure_runs_on_either_kind_of_mlp(home, tmp_path):
    detectors = [{"name": n} | ({"steps": 1} if n == "parameter_variation" else {}) for n in DETECTORS]
    study = tiny(
        home,
        model=[str(home / "gated"), str(home / "ungated")],
        detector=detectors,
        site="post",
        layers=["all", "first"],
        seeds=[],
    )
    progress = run(study, tmp_path)
    assert progress.complete, progress.failed
    table = sweep.results(tmp_path)
    assert set(table.detector) == set(DETECTORS)
    assert table.groupby(["model", "detector"]).size().nunique() == 2  # sharing has four groups, the others three
    few = table[table.layers == "first"].n_neurons.sum()
    assert 0 < few < table[table.layers == "all"].n_neurons.sum()
    assert table.change.notna().all()
    assert (table[table.n_neurons == 0].change == 0).all()


def test_interventions_of_every_kind_write_what_they_say(home, tmp_path):
    kinds = ["zero", {"kind": "scale", "value": 2}, {"kind": "set", "value": "median"}, {"kind": "set", "value": -1.5}]
    kinds += [{"kind": "set", "value": "mean"}, {"kind": "add", "value": "mean-difference"}]
    study = tiny(home, intervention=kinds, ablated="en", seeds=[], site=["gate", "post"])
    assert run(study, tmp_path).complete
    table = sweep.results(tmp_path)
    assert set(table.intervention) == {
        "zero", "scale 2", "set median", "set -1.5", "set mean", "add mean-difference",
    }  # fmt: skip
    both = table.pivot(index=["intervention", "evaluated"], columns="site", values="n_neurons")
    assert (both > 0).all(axis=None)
    context = Context(study)
    cell = next(c for c in cells_of(study, context.inputs()) if c.intervention.words == "set -1.5" and c.site == "gate")
    model, [held] = context.model(cell.model), condition_for(cell, context).interventions
    corpus = context.corpus("evaluate")
    base = perplexity(model, corpus, reading=READING, progress=False).nll
    with steer(model, Intervention("set", held.neurons, -1.5, "gate")):
        held = perplexity(model, corpus, reading=READING, progress=False).nll
    found = table[(table.intervention == "set -1.5") & (table.site == "gate")].change
    np.testing.assert_allclose(found, held - base, atol=1e-5)


@pytest.mark.parametrize("bos", ["tokenizer", "none"])
def test_generated_text_is_counted_by_its_language(home, tmp_path, bos):
    pytest.importorskip("py3langid")
    settings = {"n": 2, "max_new_tokens": 6, "min_new_tokens": 6}
    corpus = {"source": str(home / "texts"), "layout": "documents", "window": WINDOW, "bos": bos}
    study = tiny(home, corpus=corpus, evaluate="generation", generation=settings, ablated="ja", seeds=[])
    assert run(study, tmp_path / "a").complete
    table = sweep.results(tmp_path / "a").set_index(["evaluated", "measure"])
    assert set(table.index) == {(k, m) for k in ("en", "fr", "ja") for m in ("target share", "own share")}
    assert (table.n == 2).all()
    from mi_multilingual.evaluation.language_id import identify_language

    model = load_model(home / "gated", device="cpu")
    prompts = [" ".join(t.split()[:5]) for t in checkpoints.SENTENCES["fr"][:2]]
    how = {"max_new_tokens": 6, "min_new_tokens": 6, "repetition_penalty": 1.1}
    written = generate(model, prompts, bos=bos, progress=False, **how)
    came = identify_language(written, ("en", "fr", "ja"))
    assert table.base["fr", "own share"] == came.count("fr") / 2
    assert table.base["fr", "target share"] == came.count("ja") / 2
    free = {"prompts": "none", "n": 3, "max_new_tokens": 4, "min_new_tokens": 0, "temperature": 1.0}
    assert run(tiny(home, evaluate="generation", generation=free, seeds=[]), tmp_path / "b").complete
    table = sweep.results(tmp_path / "b")
    assert set(table.evaluated) == {""}
    assert set(table.measure) == {"target share"}


def test_the_questions_of_all_languages_are_the_same():
    items = [Item(f"{i}", k, "t", "p", ("a", "b"), 0) for k in ("en", "fr") for i in range(30)]
    few = drawn(items, 7)
    assert [i.id for i in few if i.language == "en"] == [i.id for i in few if i.language == "fr"]
    assert len({i.id for i in few}) == 7
    assert len(drawn(items, 99)) == 60


@pytest.mark.parametrize("n", [5, 40])
@pytest.mark.parametrize("more", [0.0, 0.3, 0.8])
def test_the_interval_of_a_share_holds_the_truth_as_often_as_it_should(n, more):
    random, inside = np.random.default_rng(0), 0
    for _ in range(600):
        difference = random.choice([-1.0, 0.0, 1.0], p=[0.1, 0.9 - more, more], size=n)
        low, high = matched_share_interval(difference, np.ones(n))
        inside += low <= more - 0.1 <= high
    assert inside / 600 > 0.9


def log_of_cells(monkeypatch, log):
    real = execution.run_cell

    def logged(cell, context):
        with log.open("a") as file:
            file.write(cell.key + "\n")
        return real(cell, context)

    monkeypatch.setattr(execution, "run_cell", logged)


def computed(log):
    found = log.read_text().split() if log.exists() else []
    log.unlink(missing_ok=True)
    return found


def test_what_is_done_is_never_done_again_and_what_changed_is(home, tmp_path, monkeypatch):
    log, folder = tmp_path / "log", tmp_path / "run"
    log_of_cells(monkeypatch, log)
    write_texts(tmp_path / "texts")
    checkpoints.checkpoint("llama-grouped", tmp_path / "model")
    study = tiny(home, model=str(tmp_path / "model"), corpus={"source": str(tmp_path / "texts"), "layout": "documents"})
    run(study, folder)
    first = sweep.results(folder)
    assert len(computed(log)) == 6
    assert sweep.resume(folder, progress=False).complete
    assert computed(log) == []
    assert_frame_equal(sweep.results(folder), first)
    run(study.model_copy(update={"seeds": (0, 1)}), folder)
    assert len(computed(log)) == 3
    run(study.model_copy(update={"rate": (0.2,)}), folder)
    assert len(computed(log)) == 6
    write_texts(tmp_path / "texts", fr="Un autre texte, tout à fait nouveau.\nEncore un chat dort ici.")
    assert run(study, folder).outdated == 15
    assert len(computed(log)) == 6
    assert not sweep.results(folder).change.equals(first.change)
    write_texts(tmp_path / "texts")
    run(study, folder)
    assert computed(log) == []
    assert_frame_equal(sweep.results(folder), first)
    weights = load_file(tmp_path / "model" / "model.safetensors")
    name = next(n for n in weights if "q_proj" in n)
    weights[name] = weights[name] + torch.eye(*weights[name].shape)
    save_file(weights, tmp_path / "model" / "model.safetensors", {"format": "pt"})
    assert run(study, folder).done == 6
    assert len(computed(log)) == 6
    assert not sweep.results(folder).change.equals(first.change)


def test_a_failing_cell_is_listed_and_the_others_go_on(home, tmp_path, monkeypatch, capsys):
    real = execution.run_cell

    def fails(cell, context):
        if cell.group == "fr":
            raise ValueError("a number\nis wrong [sic]")
        return real(cell, context)

    monkeypatch.setattr(execution, "run_cell", fails)
    study = tiny(home)
    (tmp_path / "study.yaml").write_text(json.dumps(study.model_dump(mode="json")))
    assert main(["run", str(tmp_path / "study.yaml"), "--out", str(tmp_path / "run"), "--quiet"]) == 1
    out = " ".join(capsys.readouterr().out.split())
    assert "4 of 6 cells done" in out
    assert "ValueError: a number is wrong [sic]" in out
    progress = sweep.status(tmp_path / "run")
    assert len(progress.failed) == 2
    assert "fr" in progress.failed.what[0]
    assert main(["status", str(tmp_path / "run")]) == 1
    monkeypatch.setattr(execution, "run_cell", real)
    assert main(["resume", str(tmp_path / "run"), "--quiet"]) == 0
    assert sweep.status(tmp_path / "run").complete


def run_in_one_thread(study, folder):
    """A fork does not have the threads of its parent, and would wait for them."""
    torch.set_num_threads(1)
    run(study, folder)


@pytest.mark.slow
def test_a_real_sweep_that_is_killed_again_and_again_ends_with_the_same_table(home, tmp_path):
    study = tiny(home, detector=["lape", "average_precision"], seeds=[0, 1])
    run(study, tmp_path / "undisturbed")
    # Each start gets further than the one before: into the plan, the recordings, and the cells, one after another.
    for step in range(2, 50, 6):
        with child(killed_at, step, 4096, run_in_one_thread, study, tmp_path / "killed") as pid:
            assert ended(pid) == -signal.SIGKILL, "the sweep was done before the last kill"
    assert 0 < sweep.status(tmp_path / "killed").done < 18
    assert run(study, tmp_path / "killed").complete
    assert_frame_equal(sweep.results(tmp_path / "killed"), sweep.results(tmp_path / "undisturbed"))


def test_damaged_recordings_are_made_again(home, tmp_path):
    study = tiny(home)
    run(study, tmp_path)
    first = sweep.results(tmp_path)
    for path in (tmp_path / "cache").iterdir():
        path.write_bytes(path.read_bytes()[:50])
    for path in (tmp_path / "results").iterdir():
        path.unlink()
    assert sweep.resume(tmp_path, progress=False).complete
    assert_frame_equal(sweep.results(tmp_path), first)


def test_the_folder_says_how_it_was_made(home, tmp_path):
    study = tiny(home)
    run(study, tmp_path)
    assert sweep.read_study(tmp_path) == study
    made = json.loads((tmp_path / "environment.json").read_text())[0]
    assert {"torch", "mi_multilingual"} <= set(made["versions"])
    assert made["seeds"]["random neurons"] == [0]
    assert {"commit", "processors", "gpus", "started"} <= set(made)
    fingerprints = json.loads((tmp_path / "fingerprints.json").read_text())
    assert set(fingerprints) == {"models", "identify", "evaluate", "questions", "languages"}
    (tmp_path / "environment.json").write_text("[")
    (tmp_path / "cells.json").write_text("[")
    assert run(study, tmp_path).complete


def test_cells_are_unique_and_in_order_and_survive_json(home):
    study = tiny(home, detector=["lape", {"name": "lap", "threshold": 0.9}], rate=[0.1, 0.2])
    cells = cells_of(study, Context(study).inputs())
    assert len(cells) == len({c.key for c in cells}) == (2 + 1) * 3 * 2
    assert [c.seed for c in cells[:4]] == [-1, 0, -1, 0]
    again = [Cell.of(json.loads(json.dumps(c.plain()))) for c in cells]
    assert again == list(cells)
    assert [c.key for c in again] == [c.key for c in cells]


OTHER = {
    "reading": Reading(layout="documents", window=WINDOW, bos="none"),
    "settings": (("filter_rate", 0.6),),
    "rate": 0.31,
    "seed": 7,
    "questions": 3,
    "generation": GenerationSettings(),
    "intervention": InterventionSettings(kind="scale", value=2.0),
}


@pytest.mark.parametrize("name", [field.name for field in fields(Cell)])
def test_the_key_changes_with_everything_that_decides_the_result(home, name):
    study = tiny(home)
    cell = cells_of(study, Context(study).inputs())[0]
    assert replace(cell, **{name: OTHER.get(name, "other")}).key != cell.key


@pytest.mark.parametrize("name", [field.name for field in fields(Recording)])
def test_the_key_of_a_recording_changes_with_everything_that_decides_its_numbers(home, name):
    study = tiny(home)
    recording = recording_of(cells_of(study, Context(study).inputs())[0])
    assert dict(recording.options) == {"threshold": 0.0}, "above which a neuron is active"
    other = {"reading": OTHER["reading"], "options": (("threshold", 0.1),)}
    assert replace(recording, **{name: other.get(name, "other")}).key != recording.key


def test_fingerprints_see_every_weight_and_every_rule(home, tmp_path):
    model, same = (load_model(home / "ungated", device="cpu") for _ in range(2))
    assert weights_fingerprint(model) == weights_fingerprint(same)
    with torch.no_grad():
        same.blocks[1].attn.W_Q[0, 0, 0] += 1e-3
    assert weights_fingerprint(model) != weights_fingerprint(same)
    other = checkpoints.tokenizer(tmp_path, bos=False)
    assert tokenizer_fingerprint(other) != tokenizer_fingerprint(model.tokenizer)
    assert tokenizer_fingerprint(other) == tokenizer_fingerprint(other)


@pytest.mark.parametrize("name", DETECTORS)
def test_recordings_choose_the_same_neurons_after_a_round_trip(home, tmp_path, name):
    study = tiny(home, detector=[{"name": name}], seeds=[])
    context = Context(study)
    cell = cells_of(study, context.inputs())[0]
    evidence = collect(recording_of(cell), context.model(cell.model), context.corpus("identify"))
    save(evidence, tmp_path / "record.safetensors")
    again = load(tmp_path / "record.safetensors", kind_of(recording_of(cell).kind).noun)
    [choice] = choices_of(cell)
    assert chosen(choice, again).masks_equal(chosen(choice, evidence))


def test_cells_share_recordings(home):
    kinds = ["zero", {"kind": "set", "value": "median"}, {"kind": "set", "value": "mean"}]
    study = tiny(home, detector=["lape", "lave", "lap", "average_precision"], intervention=kinds)
    cells = cells_of(study, Context(study).inputs())
    assert {e.kind for cell in cells for e in needs(cell)} == {"activations", "texts"}
    assert len({e for cell in cells for e in needs(cell)}) == 2


def test_recordings_are_read_as_the_study_says_as_far_as_their_kind_leaves_a_choice(home):
    corpus = {"source": str(home / "texts"), "layout": "stream", "window": WINDOW, "bos": "row", "max_tokens": 50}
    study = tiny(home, corpus=corpus, detector=["lape", "average_precision", "sharing"], seeds=[])
    cells = cells_of(study, Context(study).inputs())
    asked = Reading(WINDOW, "stream", "row", 50)
    assert {recording.kind: recording.reading for cell in cells for recording in needs(cell)} == {
        "activations": asked,
        "texts": replace(asked, layout="documents"),
        "sharing": replace(asked, layout="documents", window=None),  # never cut
    }
    assert {cell.measurement.reading for cell in cells} == {asked}


def test_a_text_that_changes_under_the_sweep_stops_its_cells(home, tmp_path):
    study = tiny(home)
    cell = cells_of(study, Context(study).inputs())[0]
    with pytest.raises(ValueError, match="the text that is evaluated changed while the sweep was running"):
        run_cell(replace(cell, evaluated_on="other"), Context(study))


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"ablated": ["en", "xx"]}, "ablated must be among en, fr, ja, for which lape finds neurons, got 'xx'"),
        ({"model": "nowhere/"}, "no checkpoint: it has no config"),
        ({"evaluate": "facts", "corpus": {"source": "TEXTS", "languages": ["xx"]}}, "no file for 'xx'"),
    ],
)
def test_inputs_that_are_not_there_are_told_before_anything_runs(home, tmp_path, settings, message):
    if "corpus" in settings:
        settings["corpus"]["source"] = settings["corpus"]["source"].replace("TEXTS", str(home / "texts"))
    with pytest.raises(ValueError, match=message):
        run(tiny(home, **settings), tmp_path / "run")
    assert not (tmp_path / "run" / "results").exists()


def test_site_up_without_a_gate_is_told_before_anything_runs(home, tmp_path):
    with pytest.raises(ValueError, match="'up' needs a gated MLP"):
        run(tiny(home, model=str(home / "ungated"), site="up"), tmp_path)


def test_the_plan_counts_what_will_run(home):
    text = {"source": str(home / "texts"), "layout": "documents", "window": WINDOW, "bos": "row"}
    study = tiny(home, rate=[0.2, 0.3], detector=["lape", "relevance"], corpus=text)
    made = plan(study)
    assert len(made.cells) == 2 * 2 * 3 * 2
    steps = made.steps.set_index("work")
    assert steps.times["measure language"] == 2 * 2 * 3 * 2 + 1
    context = Context(study)
    model = context.model(study.model[0])
    n = perplexity(model, context.corpus("evaluate"), reading=study.corpus.reading, progress=False).n_tokens.sum()
    assert steps.tokens["measure language"] == n * steps.times["measure language"]
    assert steps.tokens["record activations gate"] == steps.tokens["record relevance"] == n
    assert made.seconds > 0
    held = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
    assert 0.5 * held < made.memory < held + 2**30
    assert "found and measured on the same text" in made.notes[0]
    assert "tokens per second in a timed pass" in made.basis


def even_neurons(stats, *, rate, step):
    """Every so many neurons for every language: what stands for a method of somebody else."""
    masks = torch.zeros(len(stats.languages), *stats.active.shape[:2], dtype=torch.bool)
    masks[:, :, :: int(step)] = True
    return lap_scores(stats).to_set(masks, rate=rate, step=step)


def test_a_detector_that_is_put_into_the_table_runs_from_a_study_file(home, tmp_path, monkeypatch):
    row = Detector("activations", lap_scores, even_neurons, settings={"step": Setting(4.0, "of the neurons", 1.0)})
    monkeypatch.setitem(DETECTORS, "even", row)
    corpus = {"source": str(home / "texts"), "layout": "documents", "window": WINDOW}
    study = {"model": str(home / "gated"), "corpus": corpus, "detector": ["even", {"name": "even", "step": 2}]}
    (tmp_path / "study.yaml").write_text(json.dumps({**study, "rate": 0.2, "seeds": [0]}))
    assert len(plan(load_study(tmp_path / "study.yaml")).cells) == 2 * 3 * 2
    assert main(["run", str(tmp_path / "study.yaml"), "--out", str(tmp_path / "run"), "--quiet"]) == 0
    table = sweep.results(tmp_path / "run")
    assert set(table.detector) == {"even"}
    n_neurons = table.groupby("parameters").n_neurons.unique().map(list).to_dict()
    layers, width = 2, checkpoints.D_MLP
    assert n_neurons == {'{"step": 4.0}': [layers * width // 4], '{"step": 2.0}': [layers * width // 2]}
    (tmp_path / "study.yaml").write_text(json.dumps({**study, "detector": {"name": "even", "step": 0}}))
    with pytest.raises(ValueError, match="line 1: detector.step must be at least 1, got 0"):
        load_study(tmp_path / "study.yaml")


def test_languages_may_be_called_as_other_things_are(home, tmp_path):
    names = ("none", "random", "intact", "all", "specific", "chosen")
    (tmp_path / "texts").mkdir()
    for i, name in enumerate(names):
        sentences = [f"{sentence} {name}" for sentence in list(checkpoints.SENTENCES.values())[i % 3]]
        (tmp_path / "texts" / f"{name}.txt").write_text("\n".join(sentences), encoding="utf-8")
    corpus = {"source": str(tmp_path / "texts"), "layout": "documents", "window": WINDOW}
    assert run(tiny(home, corpus=corpus), tmp_path / "run").complete
    table = sweep.results(tmp_path / "run")
    assert set(table.group) == set(table.evaluated) == set(names)
    assert len(table) == 2 * len(names) ** 2
    assert (table.condition == np.where(table.seed == -1, "chosen", "random")).all()
    effects = pd.read_parquet(tmp_path / "run" / "sweep_effects.parquet")
    assert set(zip(effects.condition, effects["where"], effects.n, strict=True)) == {
        (condition, where, len(names)) for condition in ("chosen", "random") for where in ("own", "others")
    }


@pytest.mark.parametrize("bos", ["none", "row"])
def test_special_tokens_are_those_the_study_asks_for(home, tmp_path, bos):
    corpus = {"source": str(home / "texts"), "layout": "documents", "window": WINDOW, "bos": bos}
    study = tiny(home, corpus=corpus, seeds=[])
    assert run(study, tmp_path).complete
    model, text = load_model(home / "gated", device="cpu"), Context(study).corpus("evaluate")
    losses = perplexity(model, text, reading=replace(READING, bos=bos), progress=False).set_index("language").nll
    table = sweep.results(tmp_path)
    np.testing.assert_allclose(table.base, losses[table.evaluated], atol=1e-6)


def test_a_cell_is_tried_again_unless_its_input_is_wrong(home, tmp_path, monkeypatch):
    tried = []

    def fails(cell, context):
        tried.append(cell.group)
        if cell.group == "en" and tried.count("en") < ATTEMPTS:
            raise OSError("the disk did not answer")
        if cell.group == "fr":
            raise ValueError("the input is wrong")
        if cell.group == "ja":
            raise RuntimeError("out of memory")
        return run_cell(cell, context)

    monkeypatch.setattr(execution, "run_cell", fails)
    progress = run(tiny(home, seeds=[]), tmp_path)
    assert [tried.count(k) for k in ("en", "fr", "ja")] == [ATTEMPTS, 1, ATTEMPTS]
    assert list(progress.failed.error) == ["ValueError: the input is wrong", "RuntimeError: out of memory"]
    assert progress.done == 1


def test_a_run_folder_of_another_version_is_refused_with_what_to_do(home, tmp_path, capsys):
    study = tiny(home, seeds=[])
    run(study, tmp_path)
    first = sorted(path.name for path in tmp_path.rglob("*"))
    cells = json.loads((tmp_path / "cells.json").read_text())["cells"]
    (tmp_path / "cells.json").write_text(json.dumps(cells))  # as 0.1 wrote them
    words = "was written by another version of mi_multilingual, .*; begin anew with `mi-multilingual run .*study.yaml"
    for call in (sweep.status, sweep.results, sweep.resume, lambda folder: run(study, folder)):
        with pytest.raises(ValueError, match=words):
            call(tmp_path)
    assert main(["resume", str(tmp_path)]) == 1
    assert "begin anew with" in capsys.readouterr().err
    assert sorted(path.name for path in tmp_path.rglob("*")) == first
    again = str(tmp_path / "again")
    assert main(["run", str(tmp_path / "study.yaml"), "--out", again, "--quiet"]) == 0


def test_the_plan_command_runs_nothing(home, tmp_path, capsys, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "study.yaml").write_text(json.dumps(tiny(home).model_dump(mode="json")))
    assert main(["plan", "study.yaml", "--set", "seeds=[]"]) == 0
    out = capsys.readouterr().out
    assert "3 cells" in out
    assert "no random neurons to compare" in " ".join(out.split())
    assert os.listdir(tmp_path) == ["study.yaml"]


def test_the_default_folder_is_named_by_the_study(home, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "study.yaml").write_text(json.dumps(tiny(home, name="mine").model_dump(mode="json")))
    assert main(["run", "study.yaml", "--quiet", "--set", "seeds=[]"]) == 0
    assert len(Store(tmp_path / "runs" / "mine").results()) == 3


def test_inputs_hold_what_the_cells_are_made_of():
    inputs = Inputs({"m": ("w", "t")}, "i", "e", {}, ("en", "fr"))
    cells = cells_of(Study(model=("m",), seeds=()), inputs)
    assert [(c.group, c.model_fingerprint, c.identified_on, c.evaluated_on) for c in cells] == [
        ("en", "w", "i", "e"),
        ("fr", "w", "i", "e"),
    ]


@pytest.mark.slow
@pytest.mark.parametrize("preset", ["lape-paper", "sharing-matters", "mwork", "kojima", "language-arithmetics"])
def test_a_preset_runs_on_the_demo_model(preset, tmp_path):
    given = {"corpus": {"languages": ["en", "ja"], "identify_documents": 12, "evaluate_documents": 2}, "seeds": []}
    small = {"facts": 1, "ablated": "each"}
    (tmp_path / "s.yaml").write_text(json.dumps({"preset": preset, **given, **small}))
    study = load_study(tmp_path / "s.yaml")
    study = study.model_copy(
        update={
            "rate": study.rate[:1],
            "detector": study.detector[:1],
            "layers": study.layers[:2],
            "intervention": study.intervention[:1],
            "generation": study.generation.model_copy(update={"n": 1, "max_new_tokens": 4, "min_new_tokens": 0}),
        }
    )
    progress = run(study, tmp_path / "run")
    assert progress.complete, progress.failed
    made = plan(study)
    assert len(made.cells) == progress.n_cells
    assert made.seconds > 0
    assert set(sweep.results(tmp_path / "run").evaluation) == set(study.evaluate)


def test_corpora_of_different_languages_are_told(tmp_path, home):
    folder = tmp_path / "texts"
    folder.mkdir()
    for name in ("en.a", "fr.a", "en.b"):
        (folder / f"{name}.txt").write_text("The dog sleeps under the old tree.\n")
    study = tiny(home, corpus={"source": str(folder), "identify": "a", "evaluate": "b", "window": WINDOW})
    with (
        pytest.raises(ValueError, match="'fr' is in one of the two texts only"),
        pytest.warns(UserWarning, match="are the same in"),
    ):
        run(study, tmp_path / "run")
