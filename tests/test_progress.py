"""Every progress bar says how much there is to do, and has done it all at the end."""

import ast
import itertools
import sys
from pathlib import Path

import pytest
import torch

import checkpoints
import mi_multilingual
from mi_multilingual import (
    Endpoint,
    Reading,
    Training,
    alignment_study,
    attribution,
    choice_accuracy,
    continuation_perplexity,
    deactivation_study,
    editing_study,
    expert_frequency,
    generate,
    half_agreement,
    judge,
    lape_membership,
    lape_of_texts,
    layer_language_study,
    layer_sweep,
    layer_words,
    load_model,
    open_generation_study,
    permutation_test,
    perplexity,
    perplexity_matrix,
    pruning_study,
    rank_one_edits,
    record,
    record_impact,
    record_keys,
    record_relevance,
    record_texts,
    record_tuned_change,
    sharing_categories,
    split_experts,
    token_counts,
    token_languages,
    top_examples,
    tuning_study,
)
from mi_multilingual.corpora import Corpus
from mi_multilingual.evidence import activations
from mi_multilingual.experiments.config import Study
from mi_multilingual.experiments.sweep import run
from mi_multilingual.tokens import DOCUMENTS
from test_deactivation import groups_of, questions
from test_editing import RECORDS
from test_judge import KEY, Stub, raw

PACKAGE = Path(mi_multilingual.__file__).parent


@pytest.fixture
def bars(monkeypatch):
    """Every bar that the package makes, with the file that makes it."""
    from tqdm.auto import tqdm

    seen, real = [], tqdm.__init__

    def noted(self, *arguments, **options):
        # Shown or not, the bar must know: a hidden one would not count.
        real(self, *arguments, **{**options, "disable": False, "delay": 0, "mininterval": 0})
        made_in = Path(sys._getframe(1).f_code.co_filename)
        if made_in.is_relative_to(PACKAGE):
            seen.append((made_in.relative_to(PACKAGE).as_posix(), self))

    monkeypatch.setattr(tqdm, "__init__", noted)
    return seen


def answers():
    stub = Stub()
    stub.answers += [raw(b'{"choices": [{"message": {"content": "[[7]]"}}]}')] * 2
    judge(Endpoint(stub.url, "m", KEY), ["q", "r"], ["a", "b"])
    stub.server.shutdown()
    stub.server.server_close()


def swept(folder):
    checkpoints.checkpoint("llama-grouped", folder / "model")
    (folder / "texts").mkdir()
    for language, sentences in checkpoints.SENTENCES.items():
        (folder / "texts" / f"{language}.txt").write_text("\n".join(sentences), encoding="utf-8")
    source = {"source": str(folder / "texts"), "layout": "documents", "window": 8}
    run(Study.model_validate({"model": str(folder / "model"), "corpus": source, "seeds": []}), folder / "run")


def whole_studies(model, corpus, neurons, items):
    """The experiments of the papers, each as small as it can be."""
    small = {"seeds": [0], "reading": DOCUMENTS}
    training = {"training": Training(steps=2, batch_rows=2)}
    both = corpus.take(["en", "fr"])
    longer = Corpus({k: documents * 2 for k, documents in corpus.documents.items()}, "twice")
    record_tuned_change(model, both, reading=DOCUMENTS, **training)
    tuning_study(model, longer, corpus, neurons, **training, **small)
    alignment_study(model, both, items, **training, seeds=[0])
    routing = expert_frequency(model, corpus, split_experts(model, 2), rate=0.5, reading=DOCUMENTS)
    pruning_study(model, corpus, routing, rates=[0.5], **small)
    layer_language_study(model, corpus, token_languages(model, corpus), seeds=[0])
    layer_words(model, both, both, ["en"])
    roomy = load_model("demo")  # prompts with a demonstration are long
    keys = record_keys(roomy, corpus, layer=0, n_openings=1, reading=DOCUMENTS)
    edits = rank_one_edits(roomy, RECORDS, keys, edited_in=["en"])
    editing_study(roomy, RECORDS, edits, edited_in=["en"], seeds=[0])
    stats = record(model, both, reading=DOCUMENTS)
    prompts = Corpus({"en": ("The dog",), "fr": ("Le chien",)}, "prompts")
    open_generation_study(model, prompts, neurons, stats, seeds=[0], max_new_tokens=1)


@pytest.mark.filterwarnings("ignore::UserWarning")
def test_every_bar_has_a_total_and_reaches_it(ungated, corpus, bars, tmp_path):
    model, items = ungated, questions()
    neurons = groups_of(model)
    record(model, corpus, reading=DOCUMENTS)
    record_impact(model, corpus)
    record_relevance(model, corpus, reading=DOCUMENTS)
    texts = record_texts(model, corpus, reductions=["active"])["active"]
    lape_membership(texts, resamples=3, rate=0.3)
    permutation_test(texts, permutations=3, rate=0.3)
    half_agreement(texts, lambda half: lape_of_texts(half, rate=0.3), splits=2)
    sharing_categories(model, corpus)
    attribution(model, corpus, Corpus(dict.fromkeys(corpus.languages, ("a", "b", "c")), "answers"))
    top_examples(model, corpus, neurons, reading=DOCUMENTS)
    perplexity(model, corpus, reading=DOCUMENTS)
    perplexity_matrix(model, corpus, neurons, seeds=[0], reading=DOCUMENTS)
    layer_sweep(model, corpus, neurons, seeds=[0], reading=DOCUMENTS)
    deactivation_study(model, items, seeds=[0])
    choice_accuracy(model, items)
    generate(model, ["The dog", "A"], max_new_tokens=2)
    continuation_perplexity(model, ["The dog"], [" sleeps"])
    token_counts(corpus, model.tokenizer)
    answers()
    swept(tmp_path)
    whole_studies(model, corpus, neurons, items)
    for made_in, bar in bars:
        assert bar.total is not None, f"the bar {bar.desc!r} of {made_in} says nothing of the time left"
        assert bar.n == bar.total, f"the bar {bar.desc!r} of {made_in} ends at {bar.n} of {bar.total}"
    assert {made_in for made_in, _ in bars} == files_with_bars()


def files_with_bars():
    """The files of the package that call tqdm."""
    found = set()
    for path in PACKAGE.rglob("*.py"):
        calls = (node.func for node in ast.walk(ast.parse(path.read_text())) if isinstance(node, ast.Call))
        if any(isinstance(function, ast.Name) and function.id == "tqdm" for function in calls):
            found.add(path.relative_to(PACKAGE).as_posix())
    return found


class Interrupted(Exception):
    pass


def test_a_recording_shows_the_tokens_of_its_shard_and_goes_on_where_it_stood(ungated, corpus, bars, tmp_path):
    options = {"reading": Reading(layout="documents", window=8), "batch_size": 2, "shard": (1, 2)}
    whole = record(ungated, corpus, **options)
    n_all = int(whole.n_tokens.sum())
    assert [(bar.total, bar.n) for made_in, bar in bars if "activations" in made_in] == [(n_all, n_all)]
    bars.clear()
    n_batches, real = itertools.count(1), activations.batch_stats

    def stopping(*arguments):
        if next(n_batches) == 3:
            raise Interrupted
        return real(*arguments)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(activations, "batch_stats", stopping)
        with pytest.raises(Interrupted):
            record(ungated, corpus, **options, checkpoint=tmp_path / "kept")
    again = record(ungated, corpus, **options, checkpoint=tmp_path / "kept")
    first, second = (bar for made_in, bar in bars if "activations" in made_in)
    assert 0 < first.n == second.initial < n_all == first.total == second.total == second.n
    assert torch.equal(again.total, whole.total)


def test_tokenising_shows_the_bytes_that_are_needed(ungated, bars):
    from mi_multilingual import documents, token_rows

    text = tuple(f"{i} dogs bark" for i in range(400))
    corpus = Corpus({"en": text}, "s")
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(documents, "_AT_ONCE", 100)
        token_rows(corpus, "en", ungated.tokenizer, Reading(window=8))
        token_rows(corpus, "en", ungated.tokenizer, Reading(window=8, max_tokens=300))
    (_, whole), (_, part) = bars
    size = sum(8 + len(t.encode()) for t in text)
    assert (whole.total, whole.n) == (size, size)
    assert 200 < part.total < size / 2
    assert part.n <= part.total
