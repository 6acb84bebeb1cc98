"""A detector of one's own is one function and one row; everything that compares detectors then has it."""

import pandas as pd
import pytest
import yaml

import checkpoints
from mi_multilingual import (
    DETECTORS,
    Detector,
    NeuronScores,
    Reading,
    Setting,
    identified,
    leaderboard,
    load,
    load_corpus,
    load_model,
    rankings,
    record,
)
from mi_multilingual.cli import main
from mi_multilingual.experiments import load_study, plan, results


def toy_scores(stats, *, weight=1.0):
    """Mean activation in a language less `weight` times the highest mean in any other."""
    mean = (stats.total / stats.n_tokens).float()
    best = mean.topk(2, dim=-1).values
    others = best[..., :1].where(mean < best[..., :1], best[..., 1:])
    return NeuronScores(
        mean - weight * others, stats.languages, "toy", {"weight": weight}, stats.model, stats.model_fingerprint
    )


TOY = Detector(
    "activations",
    toy_scores,
    rate=0.2,
    settings={"weight": Setting(1.0, "how much other languages count", 0.0)},
    score_settings=("weight",),
    source="this test",
)


@pytest.fixture(autouse=True)
def toy(monkeypatch):
    monkeypatch.setitem(DETECTORS, "toy", TOY)


@pytest.fixture(scope="module")
def home(tmp_path_factory):
    """A tiny model and a folder of texts."""
    folder = tmp_path_factory.mktemp("home")
    checkpoints.checkpoint("llama-grouped", folder / "model")
    (folder / "texts").mkdir()
    for language, sentences in checkpoints.SENTENCES.items():
        (folder / "texts" / f"{language}.txt").write_text("\n".join(sentences), encoding="utf-8")
    return folder


@pytest.fixture(scope="module")
def loaded(home):
    return load_model(home / "model", device="cpu"), load_corpus(home / "texts")


DOCUMENTS = Reading(layout="documents")


def test_it_chooses_from_evidence_by_its_own_rate_and_settings(loaded):
    stats = record(*loaded, reading=DOCUMENTS, progress=False)
    neurons = identified("toy", stats, weight=2.0)
    assert neurons.method == "toy"
    assert (neurons.masks == toy_scores(stats, weight=2.0).top_share(0.2).masks).all()
    assert (neurons.masks != identified("toy", stats, weight=0.0).masks).any()
    with pytest.raises(ValueError, match="weight must be at least 0, got -1"):
        identified("toy", stats, weight=-1.0)


def test_it_is_ranked_and_compared_with_the_others(loaded):
    scores = rankings(*loaded, progress=False)
    assert {"toy", "lape", "plnd"} < set(scores)
    asked = rankings(*loaded, detectors=["toy"], settings={"toy": {"weight": 0.5}}, progress=False)
    expected = toy_scores(record(*loaded, reading=DOCUMENTS, progress=False), weight=0.5)
    assert (asked["toy"].values == expected.values).all()
    found = {name: scores[name].top(3) for name in ("toy", "lap")}
    board = leaderboard(*loaded, found, seeds=[0], reading=DOCUMENTS, progress=False)
    assert set(board.detector[board.condition == "chosen"]) == {"toy", "lap"}


def test_a_study_file_can_name_it(home, loaded, tmp_path):
    file = tmp_path / "study.yaml"
    settings = {
        "model": str(home / "model"),
        "corpus": {"source": str(home / "texts"), "layout": "documents"},
        "detector": ["toy", {"name": "toy", "weight": 0.0}],
        "rate": 0.2,
        "seeds": [0],
    }
    file.write_text(yaml.safe_dump(settings), encoding="utf-8")
    assert len(plan(load_study(file)).cells)
    assert main(["run", str(file), "--out", str(tmp_path / "run"), "--quiet"]) == 0
    table = results(tmp_path / "run")
    assert set(table.detector) == {"toy"}
    stats = record(*loaded, reading=DOCUMENTS, progress=False)
    chosen = table[table.condition == "chosen"].groupby("group").n_neurons.agg(set)
    for weight in (1.0, 0.0):
        for language, n in identified("toy", stats, weight=weight).sizes().items():
            assert n in chosen[language]


def test_the_command_line_has_it(home, tmp_path, capsys):
    model, texts = str(home / "model"), str(home / "texts")
    assert main(["detectors"]) == 0
    assert "toy: from activations; this test" in capsys.readouterr().out
    stats, neurons, board = (str(tmp_path / name) for name in ("stats", "neurons", "board.parquet"))
    assert main(["record", model, texts, "--out", stats, "--layout", "documents", "--quiet"]) == 0
    assert main(["identify", stats, "--out", neurons, "--detector", "toy", "--set", "weight=2"]) == 0
    assert (load(neurons).masks == identified("toy", load(stats), weight=2.0).masks).all()
    options = ["--detector", "toy", "--set", "toy.weight=2", "--n", "3", "--quiet"]
    assert main(["compare", model, texts, "--out", board, *options]) == 0
    assert "toy" in set(pd.read_parquet(board).detector)
