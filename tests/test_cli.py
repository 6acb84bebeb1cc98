import re
import subprocess
import sys
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import torch
from rich.console import Console

import checkpoints
from mi_multilingual import DETECTORS, NeuronSet, Reading, Relevance, identified, load, save
from mi_multilingual.cli import COMMANDS, main, tables
from mi_multilingual.cli.steps import changes
from mi_multilingual.corpora import DEMO_LANGUAGES
from mi_multilingual.evidence.table import EVIDENCE


@pytest.fixture(scope="module")
def texts(tmp_path_factory):
    folder = tmp_path_factory.mktemp("texts")
    for language, sentences in checkpoints.SENTENCES.items():
        (folder / f"{language}.txt").write_text("\n".join(sentences), encoding="utf-8")
    return str(folder)


@pytest.fixture(scope="module")
def tiny(tmp_path_factory):
    return str(checkpoints.checkpoint("opt", tmp_path_factory.mktemp("model")))


@pytest.fixture(scope="module")
def evidence(tiny, texts, tmp_path_factory):
    """A file of every kind of evidence that can be recorded from text."""
    folder = tmp_path_factory.mktemp("evidence")
    kinds = list(EVIDENCE)
    for kind in kinds:
        out = str(folder / kind)
        assert main(["record", tiny, texts, "--out", out, "--evidence", kind, "--window", "32", "--quiet"]) == 0
    return {kind: str(folder / kind) for kind in kinds}


def test_the_single_steps_run_one_after_another(tmp_path, tiny, texts, capsys):
    run = tmp_path / "run"
    stats, neurons, matrix = (str(run / n) for n in ("stats.safetensors", "neurons.safetensors", "matrix.parquet"))
    assert main(["record", tiny, texts, "--out", stats, "--window", "8", "--quiet"]) == 0
    assert load(stats).languages == ("en", "fr", "ja")
    assert not list(run.glob("*.partial"))
    settings = ["--rate", "0.3", "--set", "activation_bar_ratio=0.5"]
    assert main(["identify", stats, "--out", neurons, *settings]) == 0
    assert load(neurons, NeuronSet).sizes().sum() > 0
    assert main(["ablate", tiny, texts, neurons, "--out", matrix, "--window", "8", "--quiet"]) == 0
    assert set(pd.read_parquet(matrix).condition) == {"intact", "chosen", "random"}
    assert set(pd.read_parquet(matrix).group) == {"", "en", "fr", "ja"}
    assert main(["report", str(run)]) == 0
    assert (run / "report.html").stat().st_size > 1e6
    assert main(["report", str(run), "--compare", str(run)]) == 0
    assert "Compared with run" in (run / "report.html").read_text()
    assert "change of the loss" in capsys.readouterr().out


def test_quiet_is_quiet_while_the_model_is_loaded_too(tmp_path, tiny, texts):
    script = "import sys; from mi_multilingual.cli import main; sys.exit(main(sys.argv[1:]))"
    command = [sys.executable, "-c", script, "record", tiny, texts, "--out", str(tmp_path / "s"), "--window", "8"]
    quiet, loud = (subprocess.run([*command, *more], capture_output=True, text=True) for more in (["--quiet"], []))
    assert (quiet.returncode, quiet.stderr) == (0, "")
    assert "recording" in loud.stderr


def test_record_reads_text_as_it_is_told_to(tmp_path, tiny, texts):
    out = tmp_path / "stats.safetensors"
    options = "--window 8 --layout documents --bos row --max-tokens 20 --equal-tokens --site post --dtype bfloat16"
    assert main(["record", tiny, texts, "--out", str(out), "--quiet", "--device", "cpu", *options.split()]) == 0
    stats = load(out)
    assert stats.reading == Reading(window=8, layout="documents", bos="row", max_tokens=20, equal_tokens=True)
    assert (stats.site, set(stats.n_tokens.tolist())) == ("post", {20})


def test_text_can_be_in_a_column_of_its_own_and_be_cut(tmp_path, tiny):
    for language, sentences in checkpoints.SENTENCES.items():
        pd.DataFrame({"sentence": sentences}).to_parquet(tmp_path / f"{language}.parquet")
    out = str(tmp_path / "texts.safetensors")
    options = ["--evidence", "texts", "--column", "sentence", "--max-documents", "2", "--languages", "en,ja", "--quiet"]
    assert main(["record", tiny, str(tmp_path), "--out", out, *options]) == 0
    assert load(out).language.tolist() == [0, 0, 1, 1]


def test_what_the_recording_is_asked_for_reaches_it(tmp_path, tiny, texts):
    out = str(tmp_path / "file")
    common = [tiny, texts, "--out", out, "--quiet"]
    assert main(["record", *common, "--evidence", "sharing", "--set", "threshold=0.2", "--set", "tokens=any"]) == 0
    assert (load(out).thresholds, load(out).tokens) == ((0.2,), "any")
    assert main(["record", *common, "--evidence", "impact", "--set", "score=released"]) == 0
    assert load(out).score == "released"


@pytest.mark.parametrize("name", list(DETECTORS))
def test_identify_gives_what_the_detector_gives(name, evidence, tmp_path, capsys):
    file, out = evidence[DETECTORS[name].evidence], str(tmp_path / "neurons.safetensors")
    sized = [] if DETECTORS[name].rate is None else ["--rate", "0.3"]
    assert main(["identify", file, "--out", out, "--detector", name, *sized]) == 0
    expected = identified(name, load(file), rate=0.3 if sized else None)
    assert (load(out).masks == expected.masks).all()
    assert load(out).parameters == expected.parameters
    assert expected.groups[0] in capsys.readouterr().out


def test_detectors_are_listed_with_all_that_they_can_be_asked_for(capsys):
    assert main(["detectors"]) == 0
    out = capsys.readouterr().out
    for name, row in DETECTORS.items():
        assert f"{name}: from {row.evidence}" in out
        assert row.source in " ".join(out.split())
        for setting in row.settings:
            assert re.search(rf"^  {setting} ", out, re.MULTILINE)
    assert max(map(len, out.splitlines())) <= 80


@pytest.mark.slow
def test_compare_writes_a_row_for_every_detector(tmp_path, tiny, texts, capsys):
    table = tmp_path / "board.parquet"
    assert main(["compare", tiny, texts, "--out", str(table), "--n", "3", "--quiet"]) == 0
    board = pd.read_parquet(table)
    chosen = board[board.condition == "chosen"]
    assert {"lape", "plnd", "relevance", "average_precision"} < set(chosen.detector)
    assert board.specificity.is_monotonic_decreasing
    assert chosen.stability.between(0, 1).all()
    assert board.detector[board.condition == "random"].tolist() == [""]
    out = capsys.readouterr().out
    assert "specificity" in out
    assert "(random)" in out


def test_compare_takes_some_detectors_with_their_settings(tmp_path, tiny, texts):
    table = tmp_path / "board.parquet"
    command = ["compare", tiny, texts, "--out", str(table), "--n", "3", "--quiet", "--window", "16", "--bos", "row"]
    command += ["--detector", "lape", "--detector", "lave"]
    assert main(command) == 0
    usual = pd.read_parquet(table).set_index("detector")
    assert main([*command, "--set", "lape.filter_rate=1"]) == 0
    asked = pd.read_parquet(table).set_index("detector")
    assert set(asked.index) == {"lape", "lave", ""}
    assert usual.own["lave"] == asked.own["lave"]
    assert usual.n_neurons["lape"] > asked.n_neurons["lape"] == 0  # no value is above the highest of all


@pytest.mark.parametrize("script", ["", "_Latn"])
def test_a_matrix_of_ten_languages_can_be_read_in_80_columns(script, capsys, monkeypatch):
    monkeypatch.setattr(tables, "console", Console(width=80))
    names = [language + script for language in DEMO_LANGUAGES]
    values = np.random.default_rng(0).normal(scale=3, size=(11, 10))
    values[0, :3] = np.nan, 12.3456, -1234.0
    frame = pd.DataFrame(values, index=[*names, "(random)"], columns=names)
    tables.print_matrix("title", "off", frame)
    out = capsys.readouterr().out
    assert max(map(len, out.splitlines())) <= 80
    assert "…" not in out
    shown = {name: [] for name in frame.index}
    for line in out.splitlines():
        head, *numbers = line.split() or [""]
        if head in shown:
            shown[head] += map(float, numbers)
    np.testing.assert_allclose(shown["(random)"], values[-1], atol=5e-4)
    np.testing.assert_allclose(shown[names[0]], values[0, 1:], atol=5e-3)


@pytest.mark.parametrize(
    ("value", "shown"),
    [(0.0, "+0.000"), (-0.1234, "-0.123"), (9.9996, "+10.00"), (-99.996, "-100.0"), (123456.0, "+123456")],
)
def test_numbers_keep_to_six_characters_while_they_can(value, shown):
    assert tables.signed(value) == shown


def test_a_language_called_random_is_shown_beside_random_neurons():
    columns = ["condition", "group", "evaluated", "seed", "change"]
    rows = [
        ("intact", "", "random", -1, 0.0),
        ("chosen", "random", "random", -1, 2.0),
        ("random", "random", "random", 0, 0.5),
    ]
    frame = changes(pd.DataFrame([*rows, ("random", "random", "random", 1, 1.5)], columns=columns))
    assert frame.random.to_dict() == {"random": 2.0, "(random)": 1.0}


def test_evaluate_hands_on_what_it_is_told(tmp_path, capsys, monkeypatch):
    asked = {}

    def scores(model, tasks, **options):
        asked.update(options, model=model, tasks=tasks)
        return pd.DataFrame([("xcopa_id", "acc", "none", 0.5, float("nan"), 4)], columns=HARNESS_COLUMNS)

    monkeypatch.setattr("mi_multilingual.evaluation.harness.harness_scores", scores)
    out = tmp_path / "scores.parquet"
    options = "--groups fr,ja --intervention scale --value 0.5 --site post --bos none --limit 4 --batch-size 2"
    options += " --dtype bfloat16 --device cpu --revision step1000 --evidence stats.safetensors --off en"
    assert main(["evaluate", "demo", "--tasks", "xcopa_id,xcopa_th", "--out", str(out), *options.split()]) == 0
    expected = {
        "groups": ("fr", "ja"),
        "intervention": "scale",
        "value": 0.5,
        "site": "post",
        "evidence": Path("stats.safetensors"),
        "off": ("en",),
        "bos": "none",
        "limit": 4,
        "chat": False,
        "dtype": "bfloat16",
        "device": "cpu",
        "revision": "step1000",
    }
    expected |= {"model": "demo", "tasks": ("xcopa_id", "xcopa_th"), "batch_size": 2}
    assert asked == {"neurons": None, "include_path": None, **expected}
    assert pd.read_parquet(out).value.tolist() == [0.5]
    assert "xcopa_id" in capsys.readouterr().out


@pytest.mark.parametrize("command", ["record", "ablate", "compare"])
def test_a_model_is_loaded_as_asked_for(command, tmp_path, monkeypatch):
    asked = {}

    def load_model(name, **options):
        asked.update(options, name=name)
        raise ValueError("enough")

    monkeypatch.setattr("mi_multilingual.models.loading.load_model", load_model)
    save(NeuronSet.of({"en": [(0, 1)]}, shape=(2, 24)), tmp_path / "n")
    files = [str(tmp_path / "n")] if command == "ablate" else []
    options = "--dtype float16 --revision step7 --device-map auto --config x --bos none --max-tokens 9"
    assert main([command, "some/model", "demo", *files, "--out", str(tmp_path / "o"), *options.split()]) == 1
    assert asked == {
        "name": "some/model",
        "device": None,
        "dtype": torch.float16,
        "revision": "step7",
        "device_map": "auto",
    }


HARNESS_COLUMNS = ["task", "metric", "filter", "value", "stderr", "n"]
RECORD = ["record", "demo", "demo", "--out", "s"]


@pytest.mark.parametrize(
    ("arguments", "code", "message"),
    [
        (["report", "nowhere"], 1, "error: folder must hold a run, got nowhere without stats.safetensors"),
        (["record", "nowhere/", "demo", "--out", "s"], 1, "error: 'nowhere/' is no checkpoint: it has no config.json"),
        ([*RECORD, "--layout", "rows"], 1, "error: layout must be one of stream, documents, got 'rows'"),
        ([*RECORD, "--bos", "yes"], 1, "error: bos must be one of tokenizer, none, row, count, got 'yes'"),
        ([*RECORD, "--window", "0"], 1, "error: window must be a number of tokens from 1, or None, got 0"),
        ([*RECORD, "--dtype", "int8"], 1, "error: --dtype must be one of float32, bfloat16, float16, got 'int8'"),
        ([*RECORD, "--device", "cpu", "--device-map", "auto"], 1, "error: either device or device_map must be given"),
        ([*RECORD, "--revision", "step1"], 1, "error: revision must be left out for 'demo'"),
        (
            ["evaluate", "demo", "--tasks", "t", "--out", "s", "--dtype", "int8"],
            1,
            "error: --dtype must be one of auto, float32, bfloat16, float16, got 'int8'",
        ),
        ([*RECORD, "--evidence", "dreams"], 1, "error: --evidence must be one of activations, texts, "),
        ([*RECORD, "--evidence", "weights"], 1, "error: --evidence must be one of activations, texts, "),
        ([*RECORD, "--evidence", "impact", "--site", "up"], 1, "error: --site must be left out for impact"),
        ([*RECORD, "--evidence", "texts", "--batch-size", "3"], 1, "error: --batch-size must be left out for texts"),
        ([*RECORD, "--set", "score=paper"], 1, "error: settings of activations must be among none, got 'score'"),
        ([*RECORD, "--set", "score"], 1, "error: --set must be KEY=VALUE, each KEY once, got 'score'"),
        (["identify", "missing.safetensors", "--out", "n"], 1, "error: "),
        (["identify", "s", "--out", "n", "--detector", "guess"], 1, "error: detector must be one of lape, lap, "),
        (
            ["identify", "s", "--out", "n", "--set", "filter_rate=2"],
            1,
            "error: filter_rate must be above 0 and at most 1",
        ),
        (["identify", "s", "--out", "n", "--set", "filter_rate=a"], 1, "error: filter_rate must be a number, got 'a'"),
        (["identify", "s", "--out", "n", "--set", "rank=2"], 1, "error: settings of lape must be among filter_rate, "),
        (
            ["identify", "s", "--out", "n", "--detector", "plnd", "--set", "score=paper"],
            1,
            "error: score must be given to the recording of impact, got 'paper' for the choice; leave it ",
        ),
        (
            ["identify", "s", "--out", "n", "--detector", "sharing", "--rate", "0.1"],
            1,
            "error: rate must be left out",
        ),
        (
            ["compare", "demo", "demo", "--out", "b", "--detector", "sharing"],
            1,
            "error: --detector must be one of lape",
        ),
        (
            ["compare", "demo", "demo", "--out", "b", "--detector", "lape", "--set", "lap.threshold=0.5"],
            1,
            "error: --set must be NAME.SETTING=VALUE with NAME one of lape, got lap.threshold=0.5",
        ),
        (["identify"], 2, "Missing argument"),
        (["nonsense"], 2, "No such command"),
    ],
)
def test_mistakes_are_one_line_and_an_exit_code(arguments, code, message, capsys, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert main(arguments) == code
    err = capsys.readouterr().err
    assert message in err
    if code == 1:
        assert len(err.strip().splitlines()) == 1
        assert "Traceback" not in err


def test_identify_refuses_evidence_of_another_kind(evidence, tmp_path, capsys):
    assert isinstance(load(evidence["relevance"]), Relevance)
    assert main(["identify", evidence["relevance"], "--out", str(tmp_path / "n")]) == 1
    assert "lape needs ActivationStats, got Relevance; record activations first" in capsys.readouterr().err
    save(identified("lape", load(evidence["activations"]), rate=0.3), tmp_path / "neurons")
    assert main(["identify", str(tmp_path / "neurons"), "--out", str(tmp_path / "n")]) == 1
    assert "got NeuronSet" in capsys.readouterr().err


def test_an_interrupt_is_one_line_and_exit_code_130(capsys, monkeypatch):
    def interrupted(*arguments, **options):
        raise KeyboardInterrupt

    monkeypatch.setattr("mi_multilingual.demo.job.run_demo", interrupted)
    assert main(["demo"]) == 130
    assert capsys.readouterr().err == "stopped; `record`, `run` and `resume` go on where they were when called again\n"


def test_debug_shows_the_trace(tmp_path):
    with pytest.raises(ValueError, match="must hold a run"):
        main(["report", str(tmp_path), "--debug"])


@pytest.mark.parametrize("command", ["", *(command.__name__ for command in COMMANDS)])
def test_help_teaches(command, capsys):
    assert main([*command.split(), "--help"]) == 0
    out = capsys.readouterr().out
    assert "Usage" in out
    if not command:
        assert "mi-multilingual record gpt2 my-texts" in out
    if command == "record":
        assert all(kind in out for kind in EVIDENCE)
