import pandas as pd
import pytest

import checkpoints
from mi_multilingual import ActivationStats, NeuronSet
from mi_multilingual.cli import main


@pytest.fixture
def texts(tmp_path):
    folder = tmp_path / "texts"
    folder.mkdir()
    for language, sentences in checkpoints.SENTENCES.items():
        (folder / f"{language}.txt").write_text("\n".join(sentences), encoding="utf-8")
    return folder


def test_the_single_steps_run_one_after_another(tmp_path, texts, capsys):
    model, run = str(checkpoints.checkpoint("opt", tmp_path / "model")), tmp_path / "run"
    stats, neurons, matrix = (str(run / n) for n in ("stats.safetensors", "neurons.safetensors", "matrix.parquet"))
    assert main(["record", model, str(texts), "--out", stats, "--window", "8", "--quiet"]) == 0
    assert ActivationStats.load(stats).languages == ("en", "fr", "ja")
    assert not list(run.glob("*.partial"))
    assert main(["identify", stats, "--out", neurons, "--top-rate", "0.3", "--activation-bar-ratio", "0.5"]) == 0
    assert NeuronSet.load(neurons).sizes().sum() > 0
    assert main(["ablate", model, str(texts), neurons, "--out", matrix, "--window", "8", "--quiet"]) == 0
    assert set(pd.read_parquet(matrix).ablated) == {"none", "en", "fr", "ja", "random"}
    assert main(["report", str(run)]) == 0
    assert (run / "report.html").stat().st_size > 1e6
    assert "change of the loss" in capsys.readouterr().out


@pytest.mark.slow
def test_compare_writes_a_row_a_detector(tmp_path, texts, capsys):
    model, table = str(checkpoints.checkpoint("opt", tmp_path / "model")), tmp_path / "board.parquet"
    assert main(["compare", model, str(texts), "--out", str(table), "--neurons", "3", "--quiet"]) == 0
    board = pd.read_parquet(table)
    assert {"lape", "plnd", "relevance", "average precision", "layer-matched random"} < set(board.detector)
    assert board.specificity.is_monotonic_decreasing
    assert "specificity" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("arguments", "code", "message"),
    [
        (["report", "nowhere"], 1, "error: nowhere has no stats.safetensors"),
        (["record", "nowhere/", "demo", "--out", "s"], 1, "error: 'nowhere/' is no checkpoint folder"),
        (["identify", "missing.safetensors", "--out", "n"], 1, "error: "),
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


def test_an_interrupt_is_one_line_and_exit_code_130(capsys, monkeypatch):
    def interrupted(*arguments, **options):
        raise KeyboardInterrupt

    monkeypatch.setattr("mi_multilingual.demo.run_demo", interrupted)
    assert main(["demo"]) == 130
    assert capsys.readouterr().err == "stopped; `record`, `run` and `resume` go on where they were when called again\n"


def test_debug_shows_the_trace(tmp_path):
    with pytest.raises(ValueError, match="has no stats"):
        main(["report", str(tmp_path), "--debug"])


@pytest.mark.parametrize(
    "command", ["", "demo", "record", "identify", "ablate", "compare", "report", "run", "plan", "status", "resume"]
)
def test_help_teaches(command, capsys):
    assert main([*command.split(), "--help"]) == 0
    out = capsys.readouterr().out
    assert "Usage" in out
    if not command:
        assert "mi-multilingual record gpt2 my-texts" in out
