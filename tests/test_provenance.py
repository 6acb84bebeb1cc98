"""What models are called, in evidence, neuron sets, reports and the tables of a sweep."""

from types import SimpleNamespace

import pytest
import torch
import yaml
from transformers import AutoModelForCausalLM, AutoTokenizer

import checkpoints
import mi_multilingual as mm
from mi_multilingual.cli import main
from mi_multilingual.experiments.loading import load_study
from mi_multilingual.experiments.planning import plan
from mi_multilingual.experiments.sweep import results, run
from mi_multilingual.models import checkpoints as places

READING = mm.Reading(layout="documents")


@pytest.fixture(scope="module")
def steps(tmp_path_factory):
    """Two steps of one training: revision -> folder."""
    folder = tmp_path_factory.mktemp("steps")
    return {f"step{i}": checkpoints.checkpoint("opt", folder / f"at-{i}", seed=i) for i in (1, 2)}


@pytest.fixture
def hub(steps, monkeypatch):
    """A hub with one model, "some/model", of two revisions."""

    def from_pretrained(cls):
        def load(name, *, revision="step1", use_safetensors=True, trust_remote_code=False, **options):
            assert (name, use_safetensors, trust_remote_code) == ("some/model", True, False)
            if revision not in steps:
                raise OSError(f"{revision} is no branch, tag or commit")
            return cls.from_pretrained(steps[revision], **options)

        return SimpleNamespace(from_pretrained=load)

    for cls in (AutoModelForCausalLM, AutoTokenizer):
        monkeypatch.setattr(places, cls.__name__, from_pretrained(cls))


def lape_of(model, corpus):
    stats = mm.record(model, corpus, reading=READING, progress=False)
    return mm.lape(stats, rate=0.2, filter_rate=0.1, activation_bar_ratio=0.5)


def test_neurons_found_in_bfloat16_are_accepted_in_float32_and_say_so(steps, corpus, tmp_path):
    folder = steps["step1"]
    half = mm.load_model(folder, device="cpu", dtype=torch.bfloat16)
    neurons = lape_of(half, corpus)
    assert neurons.model == f"{folder}, bfloat16"
    mm.save(neurons, tmp_path / "neurons.safetensors")
    whole = mm.load_model(folder, device="cpu")
    again = mm.load(tmp_path / "neurons.safetensors")
    assert again.model == f"{folder}, bfloat16"
    with mm.ablate(whole, again):
        mm.perplexity(whole, corpus, reading=READING, progress=False)
    assert lape_of(whole, corpus).model == str(folder)
    assert lape_of(whole, corpus).model_fingerprint == neurons.model_fingerprint


def test_the_report_says_what_the_weights_were(steps, tmp_path):
    folder, out = str(steps["step1"]), tmp_path / "run"
    text = ["--languages", "en,fr", "--max-documents", "20", "--split", "identify", "--layout", "documents", "--quiet"]
    options = ["--dtype", "bfloat16", "--window", "32", "--max-tokens", "200", *text]
    assert main(["record", folder, "demo", "--out", str(out / "stats.safetensors"), *options]) == 0
    neurons = ["--out", str(out / "neurons.safetensors"), "--rate", "0.3", "--set", "activation_bar_ratio=0.5"]
    assert main(["identify", str(out / "stats.safetensors"), *neurons]) == 0
    assert main(["report", str(out)]) == 0
    assert f"Language neurons of {folder}, bfloat16" in (out / "report.html").read_text(encoding="utf-8")


def test_a_revision_stands_in_the_name(hub, corpus):
    models = [mm.load_model("some/model", revision=r, device="cpu") for r in ("step1", "step2")]
    sets = [lape_of(model, corpus) for model in models]
    assert [s.model for s in sets] == ["some/model@step1", "some/model@step2"]
    assert sets[0].model_fingerprint != sets[1].model_fingerprint
    with pytest.raises(ValueError, match="step3 is no branch"):
        mm.load_model("some/model", revision="step3", device="cpu")


def test_a_checkpoint_on_this_machine_has_no_revisions(steps):
    with pytest.raises(ValueError, match="revision must be left out for .*got 'step1'; give a Hugging Face id"):
        mm.load_model(steps["step1"], revision="step1")
    with pytest.raises(ValueError, match="revision must be left out for 'demo'"):
        mm.load_model("demo", revision="step1")


def test_a_gguf_file_is_called_by_its_name(steps, tmp_path, monkeypatch):
    for name in ("AutoModelForCausalLM", "AutoTokenizer"):
        cls = getattr(places, name)
        stored = SimpleNamespace(
            from_pretrained=lambda place, gguf_file, cls=cls, trust_remote_code=False, **options: cls.from_pretrained(
                steps["step1"], **options
            )
        )
        monkeypatch.setattr(places, name, stored)
    (tmp_path / "tiny.Q4_1.gguf").touch()
    for place in (tmp_path, tmp_path / "tiny.Q4_1.gguf"):
        assert mm.load_model(place, device="cpu").cfg.model_name == "tiny.Q4_1.gguf"


STUDY = {
    "model": "some/model",
    "revision": ["step1", "step2"],
    "corpus": {"source": "demo", "languages": ["en", "fr"], "identify_documents": 20, "window": 32},
    "detector": {"name": "lape", "filter_rate": 0.1, "activation_bar_ratio": 0.5},
    "rate": 0.2,
    "seeds": [0],
}


def test_revisions_are_an_axis_of_a_study(hub, tmp_path):
    (tmp_path / "study.yaml").write_text(yaml.safe_dump(STUDY), encoding="utf-8")
    study = load_study(tmp_path / "study.yaml")
    assert study.models == ("some/model@step1", "some/model@step2")
    planned = plan(study)
    assert set(planned.steps.model) == set(study.models)
    done = run(study, tmp_path / "run", progress=False)
    assert done.done == len(planned.cells) == 8  # revisions, languages, own and random neurons
    table = results(tmp_path / "run")
    assert set(table.model) == set(study.models)
    changes = table[table.condition == "chosen"].groupby("model").change.mean()
    assert changes.iloc[0] != changes.iloc[1], "both revisions are one model"


def test_a_study_without_revisions_names_its_models_as_given(tmp_path):
    (tmp_path / "study.yaml").write_text("model: [demo, some/model]\nrevision: []\n", encoding="utf-8")
    assert load_study(tmp_path / "study.yaml").models == ("demo", "some/model")
    (tmp_path / "study.yaml").write_text("model: some/model\nrevision: [a, a]\n", encoding="utf-8")
    with pytest.raises(ValueError, match="line 2: revision has 'a' twice"):
        load_study(tmp_path / "study.yaml")
