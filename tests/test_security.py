"""Files from a stranger: nothing in them runs."""

import ast
import json
import os
import pickle
from pathlib import Path

import numpy as np
import pytest
import torch

import checkpoints
import mi_multilingual
from mi_multilingual import ActivationStats, NeuronSet, load, load_corpus, load_model
from mi_multilingual.evidence.activations import record
from mi_multilingual.tokens import DOCUMENTS

SOURCES = sorted(Path(mi_multilingual.__file__).parent.rglob("*.py"))
SCRIPT = "<script>document.title = 'executed'</script>"


class Malicious:
    def __reduce__(self):
        return os.mkdir, ("executed",)


@pytest.fixture
def here(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    yield tmp_path
    assert not (tmp_path / "executed").exists()


def test_the_malicious_pickle_would_run_if_it_were_unpickled(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    pickle.loads(pickle.dumps(Malicious()))
    assert (tmp_path / "executed").is_dir()


@pytest.mark.parametrize("expected", [None, NeuronSet, ActivationStats])
def test_a_pickle_in_place_of_a_record_is_refused(here, expected):
    (here / "record.safetensors").write_bytes(pickle.dumps(Malicious()))
    with pytest.raises(ValueError, match="must be a safetensors file"):
        load(here / "record.safetensors", expected)


def test_a_pickle_in_place_of_published_neurons_is_refused(here):
    torch.save([[Malicious()]], here / "evil.neuron.pth")
    with pytest.raises(ValueError, match="was not opened: it could run code"):
        NeuronSet.from_published(here / "evil.neuron.pth", d_mlp=4, languages=("en",))


def test_a_pickle_in_place_of_a_corpus_is_refused(here):
    folder = here / "texts"
    folder.mkdir()
    np.save(folder / "en.npy", np.array([Malicious()], dtype=object), allow_pickle=True)
    with pytest.raises(ValueError, match="has no <language>"):
        load_corpus(folder)
    (folder / "en.parquet").write_bytes(pickle.dumps(Malicious()))
    with pytest.raises((ValueError, OSError)):
        load_corpus(folder)


def remote(folder: Path) -> Path:
    """A checkpoint whose config asks for Python files of its own."""
    checkpoints.checkpoint("opt", folder)
    config = json.loads((folder / "config.json").read_text())
    config |= {"model_type": "strange", "auto_map": {"AutoConfig": "evil.C", "AutoModelForCausalLM": "evil.M"}}
    (folder / "config.json").write_text(json.dumps(config))
    (folder / "evil.py").write_text("import os\nos.mkdir('executed')\n")
    return folder


def test_code_that_comes_with_a_checkpoint_does_not_run(here):
    with pytest.raises(ValueError, match="cannot load .*trust_remote_code"):
        load_model(remote(here / "model"))


def test_text_is_text_whatever_it_says(here, ungated):
    (here / "texts").mkdir()
    for language, line in (("en", f"{SCRIPT} __import__('os').mkdir('executed')"), ("fr", "{{ 7 * 7 }} ${jndi:x} %s")):
        (here / "texts" / f"{language}.txt").write_text(f"{line}\n" * 3)
    corpus = load_corpus(here / "texts")
    assert corpus.documents["en"][0].startswith(SCRIPT)
    assert record(ungated, corpus, reading=DOCUMENTS, progress=False).n_tokens.min() > 0


@pytest.mark.parametrize("path", SOURCES, ids=lambda p: p.stem)
def test_no_module_unpickles_or_evaluates(path):
    """No eval or exec, no pickle but for the error torch raises, no torch.load that may unpickle, no unsafe YAML."""
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            assert not {a.name for a in node.names} & {"pickle", "dill", "cloudpickle", "shelve", "marshal"}
        if isinstance(node, ast.ImportFrom) and node.module == "pickle":
            assert [a.name for a in node.names] == ["UnpicklingError"]
        if isinstance(node, ast.Call):
            name = ast.unparse(node.func)
            assert name not in ("eval", "exec", "yaml.load", "yaml.unsafe_load", "pickle.load", "os.system")
            if name == "torch.load":
                assert "weights_only=True" in ast.unparse(node)
            if name.endswith("read_pickle") or name == "np.load":
                assert "allow_pickle=True" not in ast.unparse(node)
                assert not name.endswith("read_pickle")
