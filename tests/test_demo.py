"""What the embedded model must show, measured on the embedded data."""

import json

import py3langid
import pytest

from mi_multilingual import choice_accuracy, generate, load_corpus, load_facts, run_demo
from mi_multilingual.demo.job import CONTINUED
from mi_multilingual.evaluation.generation import first_words
from mi_multilingual.neurons import NeuronSet
from mi_multilingual.report.findings import effects

pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    folder = tmp_path_factory.mktemp("demo")
    page = run_demo(folder, progress=False)
    assert page == folder / "report.html"
    assert page.stat().st_size < 15e6
    return folder


@pytest.fixture(scope="module")
def matrix(run):
    import pandas as pd

    return pd.read_parquet(run / "matrix.parquet")


def test_every_language_has_at_least_20_neurons(run):
    assert NeuronSet.load(run / "neurons.safetensors").sizes().min() >= 20


def test_a_languages_neurons_matter_most_to_it_in_9_of_10_rows(matrix):
    assert effects(matrix)["hits"] >= 9


def test_the_own_effect_is_ten_times_that_on_others_and_on_random(matrix):
    e = effects(matrix)
    assert e["own"] > 0
    assert e["own"] >= 10 * e["other"]
    assert abs(e["random"]) < 0.1 * e["own"]


def test_the_run_folder_is_complete_and_says_how_it_was_made(run):
    about = json.loads((run / "run.json").read_text())
    assert 0.01 <= NeuronSet.load(run / "neurons.safetensors").parameters["top_rate"] <= 0.05
    assert about["random_seeds"] == [0, 1, 2]
    tables = {"matrix", "facts", "significance", "sharing", "overlap", "attribution", "leaderboard"}
    tables |= {"neuron_examples", "neuron_logits"}
    tables |= {"steering", "steering_curve", "deactivation", "cross_facts"}
    files = {f"{name}.parquet" for name in tables} | {"stats.safetensors", "neurons.safetensors"}
    assert files | {"membership.safetensors", "continuations.json", "steering_examples.json"} <= {
        p.name for p in run.iterdir()
    }


def test_most_language_neurons_are_more_than_chance(run):
    import pandas as pd

    table = pd.read_parquet(run / "significance.parquet")
    assert (table.chance_mean < 0.5 * table.found).all()
    assert table.significant.sum() > 0.5 * table.found.sum()


def test_relevance_beats_random_neurons(run):
    import pandas as pd

    table = pd.read_parquet(run / "leaderboard.parquet").set_index("detector")
    assert {"lape", "relevance", "plnd", "average precision", "layer-matched random"} <= set(table.index)
    assert table.specificity["relevance"] > table.high["layer-matched random"]


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
