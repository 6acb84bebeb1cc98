"""Studies that are run whole by their names: files, cells, tables, what is told when something is wrong."""

import re

import pandas as pd
import pytest

from mi_multilingual.cli import main
from mi_multilingual.detectors.table import Setting
from mi_multilingual.experiments import load_study, plan, results, resume, run, status, study_tables
from mi_multilingual.experiments.loading import checked_study
from mi_multilingual.studies.table import STUDIES, StudyRow

TEXT = {"source": "demo", "languages": ["en", "fr"], "identify_documents": 2, "evaluate_documents": 3}
CALLS = []


def counted(given):
    """A study that says what it was given."""
    CALLS.append(given.settings["n"])
    if given.settings["n"] == 13:
        raise ValueError("n must not be 13, got 13")
    sizes = given.neurons.sizes()
    table = pd.DataFrame({"language": list(sizes.index), "n_neurons": sizes.to_numpy()})
    other = pd.DataFrame({"times": [given.settings["n"]] * given.settings["n"], "word": given.settings["word"]})
    return {"sizes": table, "other": other}


@pytest.fixture(autouse=True)
def toy(monkeypatch):
    """The only study there is."""
    settings = {"n": Setting(2, "rows", 0, 20), "word": Setting("a", "what to say", choices=("a", "b"))}
    monkeypatch.setitem(STUDIES, "toy", StudyRow(counted, ("sizes", "other"), settings, "nobody"))
    CALLS.clear()


def file_with(folder, text):
    path = folder / "study.yaml"
    path.write_text(text, encoding="utf-8")
    return path


def test_every_setting_is_an_axis_and_nothing_runs_twice(tmp_path):
    given = {"study": "toy", "corpus": TEXT, "settings": {"n": [1, 3], "word": "b"}, "lape": {"rate": 0.05}}
    made = run(checked_study(given), tmp_path / "out", progress=False)
    assert (made.done, made.n_cells, CALLS) == (2, 2, [1, 3])
    assert resume(tmp_path / "out", progress=False).complete
    assert CALLS == [1, 3]
    tables = study_tables(tmp_path / "out")
    assert tables["other"].times.tolist() == [1, 3, 3, 3]
    assert set(tables["other"].word) == {"b"}
    assert tables["sizes"].columns.tolist() == ["model", "settings", "language", "n_neurons"]
    assert tables["sizes"].n_neurons.gt(0).all()
    folders = sorted((tmp_path / "out" / "studies").iterdir())
    assert [len(pd.read_parquet(folder / "other.parquet")) for folder in folders] in ([1, 3], [3, 1])
    assert results(tmp_path / "out").table.tolist() == ["sizes", "other"] * 2


def test_a_study_that_fails_does_not_end_the_others(tmp_path):
    given = {"study": "toy", "corpus": TEXT, "settings": {"n": [13, 1]}}
    made = run(checked_study(given), tmp_path, progress=False)
    assert (made.done, len(made.failed)) == (1, 1)
    assert made.failed.what.tolist() == ["toy of demo"]
    assert "must not be 13" in made.failed.error.iloc[0]
    assert status(tmp_path).failed.equals(made.failed)


def test_the_command_writes_the_tables_and_they_are_those_of_the_function(tmp_path, capsys):
    options = ["--out", str(tmp_path), "--languages", "en,fr", "--max-documents", "3", "--set", "n=4", "--quiet"]
    assert main(["study", "toy", "demo", *options]) == 1  # the report knows no table of this study
    assert "1 of 1 cells done" in capsys.readouterr().out
    assert pd.read_parquet(tmp_path / "other.parquet").times.tolist() == [4] * 4
    assert main(["studies"]) == 0
    assert "sizes, other" in capsys.readouterr().out


def test_a_plan_times_the_embedded_model(tmp_path):
    made = plan(checked_study({"study": "toy", "corpus": TEXT}))
    assert made.steps.work.tolist() == ["toy"]
    assert 0 < made.seconds < 1000
    assert "times as long per token as demo" in made.basis
    path = file_with(tmp_path, "study: toy\ncorpus: {source: demo, languages: [en, fr], identify_documents: 2}\n")
    assert main(["plan", str(path)]) == 0


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("study: toy\nsettings: {m: 1}", "line 2: settings cannot have 'm'; "),
        ("study: toy\nsettings: {n: 21}", "line 2: settings n must be at least 0 and at most 20, got 21"),
        ("study: toy\nsettings:\n  word: c", "line 2: settings word must be one of a, b, got 'c'"),
        ("study: toy\nsettings: {n: []}", "line 2: settings n must be one value or a list of different ones, got []"),
        ("study: toy\nsettings: {n: [1, 1]}", "line 2: settings n must be one value or a list of different ones"),
        ("study: toy\nlape: {rate: 5}", "line 2: lape rate must be above 0 and at most 1, got 5"),
        ("study: toys", "line 1: study cannot be 'toys'; did you mean 'toy'"),
        ("study: toy\nrate: 0.1", "line 2: key 'rate' is unknown; "),
        ("study: toy\nlape: {filter_rate: 2}", "line 2: lape filter_rate must be above 0 and at most 1, got 2"),
        ("study: toy\nlape: {bar: 2}", "line 2: lape settings of lape must be among filter_rate"),
    ],
)
def test_mistakes_are_told_with_their_line(tmp_path, text, message):
    with pytest.raises(ValueError, match=re.escape(message)):
        load_study(file_with(tmp_path, text))
    assert not CALLS
