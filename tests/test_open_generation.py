import re
from contextlib import nullcontext
from dataclasses import replace
from pathlib import Path

import pandas as pd
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

import oracles
from claims.open_generation import CLAIMS
from mi_multilingual import (
    INSTRUCTIONS,
    Corpus,
    Endpoint,
    Intervention,
    NeuronSet,
    Reading,
    continuation_perplexity,
    distinct_n,
    generate,
    identify_language,
    identify_open,
    layer_matched_random,
    load_corpus,
    load_questions,
    open_generation_study,
    open_generation_table,
    open_prompts,
    plots,
    record,
    set_to_mean,
    steer,
    uniform_random,
)
from mi_multilingual.languages import by_family
from mi_multilingual.models.hooked import fingerprint
from mi_multilingual.report.sections.open_generation import open_findings
from mi_multilingual.studies import open_generation
from mi_multilingual.studies.given import Given
from mi_multilingual.studies.open_generation import TABLES
from mi_multilingual.studies.table import STUDIES, study_settings
from mi_multilingual.tokens import DOCUMENTS
from test_judge import Stub, says

DATA = Path("/work/shared/data/prompts")
LANGUAGES = ("en", "ja")
PROMPTS = Corpus({"en": ("The dog", "We drink tea"), "ja": ("犬が",)}, "prompts")
DECODING = {"max_new_tokens": 5, "bos": "row"}
ASKED = {**DECODING, "repetition_penalty": 1.1, "stop": ("\nQ:", "\nA:"), "progress": False}


@pytest.fixture(scope="module")
def stats(model, corpus):
    return record(model, corpus, reading=Reading(window=8, bos="row"), progress=False)


@pytest.fixture(scope="module")
def neurons(model):
    masks = torch.rand(3, model.cfg.n_layers, model.cfg.d_mlp, generator=torch.Generator().manual_seed(0)) < 0.4
    return NeuronSet(masks, ("en", "fr", "ja"), "test", model_fingerprint=fingerprint(model))


@pytest.fixture(scope="module")
def answers(model, neurons, stats):
    return open_generation_study(model, PROMPTS, neurons, stats, strength=3.0, seeds=[4], progress=False, **DECODING)


def interventions(row, neurons, stats):
    """What is done for one answer, from the definition of the conditions."""
    if row.change == "":
        return ()
    own = neurons.take(LANGUAGES)
    if row.group == "":
        together = replace(own, masks=own.union()[None], groups=("",))
        draw = uniform_random if row.drawn == "uniform" else layer_matched_random
        return (Intervention("zero", draw(together, seed=row.seed)),)
    used = own if row.seed == -1 else layer_matched_random(own, seed=row.seed)
    if row.change == "off":
        return (Intervention("zero", used[row.group]),)
    raised = set_to_mean(used[row.target], stats, row.target, strength=3.0)
    if row.change == "raised":
        return (raised,)
    off = replace(used[row.source], masks=used[row.source].masks & ~used[row.target].masks)
    return (Intervention("zero", off), raised)


def test_every_answer_is_that_of_one_prompt_alone(model, answers, neurons, stats):
    for row in answers.itertuples():
        todo = interventions(row, neurons, stats)
        with steer(model, *todo) if todo else nullcontext():
            assert generate(model, [row.prompt], **ASKED) == [row.continuation]
        assert row.n_neurons == sum(int(i.neurons.union().sum()) for i in todo)
        assert row.strength == (3.0 if row.raising else 0.0)
    sizes = answers.groupby(["change", "group", "drawn", "condition", "seed"]).size()
    # As it is; two uniform and layer-wise draws; each language off, raised and switched, with its random neurons.
    assert sizes["", "", "", "intact", -1] == sizes["off", "", "uniform", "random", 4] == 3
    assert sizes["off", "", "layers", "random", 4] == 3
    for change, numbers in {"off": (3, 3), "raised": (2, 1), "switched": (1, 2)}.items():
        for group, n in zip(LANGUAGES, numbers, strict=True):
            assert sizes[change, group, "", "chosen", -1] == sizes[change, group, "layers", "random", 4] == n
    assert len(sizes) == 3 + 12
    assert set(answers.raising[answers.change.isin(["raised", "switched"])]) == {"set_to_mean"}
    assert set(answers.raising[~answers.change.isin(["raised", "switched"])]) == {""}


def test_what_is_measured_of_answers_is_of_the_model_as_it_is(model, answers):
    scores = continuation_perplexity(model, list(answers.prompt), list(answers.continuation), bos="row", progress=False)
    pd.testing.assert_series_equal(answers.nll, scores.nll, check_exact=False, atol=1e-5)
    assert list(answers.n_tokens) == list(scores.n_tokens)
    assert list(answers.found) == identify_open(list(answers.continuation), ("en", "fr", "ja"))
    expected = pd.Series([distinct_n([text], 2) for text in answers.continuation], name="distinct_2")
    pd.testing.assert_series_equal(answers.distinct_2, expected)
    assert answers.rating.isna().all()


def test_an_interrupted_study_goes_on_where_it_stopped(model, answers, neurons, stats, tmp_path, monkeypatch):
    real, calls = open_generation._answers, []

    def interrupted(*arguments):
        calls.append(1)
        if len(calls) == 4:
            raise KeyboardInterrupt
        return real(*arguments)

    def study(strength=3.0):
        options = {"strength": strength, "seeds": [4], "folder": tmp_path / "kept", "progress": False}
        return open_generation_study(model, PROMPTS, neurons, stats, **options, **DECODING)

    monkeypatch.setattr(open_generation, "_answers", interrupted)
    with pytest.raises(KeyboardInterrupt):
        study()
    pd.testing.assert_frame_equal(study(), answers)
    assert len(calls) == 15 + 1, "the interrupted condition is begun anew, no other"
    with pytest.raises(ValueError, match=r"with another strength \(3.0, now 2.0\); give another folder or delete it"):
        study(strength=2.0)


def test_a_judge_rates_every_answer_from_1_to_5(ungated, corpus):
    stub = Stub()
    stub.answers = [says("[[4]]"), says("no idea"), *[says("[[6]]")] * 20]
    stats = record(ungated, corpus, reading=Reading(window=8), progress=False)
    masks = torch.zeros(1, ungated.cfg.n_layers, ungated.cfg.d_mlp, dtype=torch.bool)
    masks[0, 0, :3] = True
    neurons = NeuronSet(masks, ("en",), "test")
    try:
        table = open_generation_study(
            ungated,
            PROMPTS.take(["en"]),
            neurons,
            stats,
            seeds=[],
            endpoint=Endpoint(stub.url, "judge"),
            progress=False,
            max_new_tokens=3,
        )
    finally:
        stub.server.shutdown()
        stub.server.server_close()
    assert table.rating[0] == 4
    assert table.rating[1:].isna().all(), "no rating, and ratings above the best"
    asked = [request["messages"][0]["content"] for *_, request in stub.requests]
    assert len(asked) == len(table)
    assert "from 1 (worst) to 5 (best)" in asked[0]
    summed = open_generation_table(table)
    assert summed.rating[0] == 4


KEYS = ["change", "group", "drawn", "condition", "source", "target"]
CODES = st.sampled_from(["en", "fr", "unknown", "mixed", "it"])
ROWS = st.lists(
    st.fixed_dictionaries(
        {
            "change": st.sampled_from(["", "off", "raised"]),
            "group": st.sampled_from(["", "en"]),
            "drawn": st.just(""),
            "condition": st.sampled_from(["chosen", "random"]),
            "source": st.sampled_from(["en", "fr"]),
            "target": st.just("en"),
            "found": CODES,
            "switched": st.just(0.25),
            "distinct_2": st.floats(0, 1),
            "nll": st.floats(0.1, 9),
            "n_tokens": st.integers(1, 9),
            "rating": st.just(float("nan")),
            "raising": st.just(""),
            "strength": st.just(0.0),
            "seed": st.sampled_from([0, 1]),
            "prompt": st.sampled_from(["a", "b"]),
        }
    ),
    min_size=1,
    max_size=20,
)


@given(ROWS)
def test_the_table_counts_answers(rows):
    table = open_generation_table(pd.DataFrame(rows))
    counts = oracles.open_counts(rows)
    keys = [tuple(key) for key in table[KEYS].to_numpy()]
    assert keys == list(counts)
    for row, (n, hits, unknown, mixed, distinct, nll) in zip(table.itertuples(), counts.values(), strict=True):
        assert (row.n, row.in_target, row.unknown, row.mixed) == pytest.approx((n, hits / n, unknown / n, mixed / n))
        mine = [r for r in rows if all(r[name] == getattr(row, name) for name in KEYS)]
        n_seeds = len({r["seed"] for r in mine})
        assert (row.low, row.high) == pytest.approx(oracles.wilson(hits / n_seeds, n / n_seeds), abs=1e-9)
        assert (row.distinct_2, row.nll, row.switched) == pytest.approx((distinct, nll, 0.25))
        assert row.nll_low <= row.nll + 1e-9
        assert row.nll <= row.nll_high + 1e-9


def test_prompts_are_those_of_the_paper(tmp_path):
    for name, text in {"q.en.txt": "What is tea?\n\nWho?\n", "q.zh.txt": "茶是什么？\n"}.items():
        (tmp_path / name).write_text(text, encoding="utf-8")
    asked = open_prompts(load_questions(tmp_path))
    assert asked.documents["en"] == ("Q: What is tea? Answer in English.\nA:", "Q: Who? Answer in English.\nA:")
    assert asked.documents["zh"] == ("Q: 茶是什么？请用中文回答。\nA:",)
    assert {"de", "ru", "tr", "th", "pt", "ko", "it", "pl"} < set(INSTRUCTIONS)
    found = identify_language([text.strip() for text in INSTRUCTIONS.values()], list(INSTRUCTIONS))
    assert found == list(INSTRUCTIONS), "every instruction is in its own language"
    with pytest.raises(ValueError, match="instructions must hold every language of the questions, got none for 'xx'"):
        open_prompts(Corpus({"xx": ("?",)}, "mine"))
    with pytest.raises(ValueError, match=r"must hold files such as questions\.fr\.txt, got none"):
        load_questions(tmp_path / "nothing")


@pytest.mark.skipif(not DATA.exists(), reason="the released questions are not here; they are read in place only")
def test_the_released_questions_are_read():
    questions = load_questions(DATA)
    assert sorted(questions.languages) == ["en", "es", "fr", "id", "ja", "vi", "zh"]
    assert {len(asked) for asked in questions.documents.values()} == {70}


def test_the_language_of_a_text_can_be_any_several_or_none():
    texts = [
        "Il cane dorme sotto il vecchio tavolo della cucina.",
        "123 456",
        "The dog sleeps under the table. Le chien dort sous la vieille table.",
        "qzx vkj wpt",
        "Kucing itu tidur di bawah meja dapur yang tua.",
    ]
    assert identify_open(texts, ["en", "fr", "id"])[:3] == ["it", "unknown", "mixed"]
    assert identify_open(texts, ["en", "fr", "id"])[3] not in ("en", "fr", "id")
    assert identify_open(texts, ["en", "fr", "id"])[4] == "id"
    own = load_corpus("demo", split="evaluate", max_documents=10)
    wrong = sum(identify_open(list(docs), list(own.languages)) != [k] * len(docs) for k, docs in own.documents.items())
    assert wrong <= 2, "genuine sentences are in their language"
    with pytest.raises(ValueError, match="'tlh' is not known"):
        identify_open(texts, ["tlh"])


def test_mistakes_are_told_before_anything_runs(model, neurons, stats, monkeypatch):
    monkeypatch.setattr(open_generation, "_answers", None)

    def study(prompts=PROMPTS, chosen=neurons, **options):
        return open_generation_study(model, prompts, chosen, stats, progress=False, **options)

    for match, wrong in {
        "raising must be one of set_to_mean, .* got 'push'": lambda: study(raising="push"),
        "no neurons for 'de'": lambda: study(Corpus({"de": ("Der",)}, "x")),
        "seeds must be different numbers": lambda: study(seeds=[1, 1]),
        "strength must be a finite number": lambda: study(strength=float("nan")),
        "made for other weights": lambda: study(chosen=replace(neurons, model_fingerprint="another")),
    }.items():
        with pytest.raises(ValueError, match=match):
            wrong()


@pytest.fixture(scope="module")
def tables(demo_model):
    """The whole study on the demo, steered strongly enough to show."""
    texts = (load_corpus("demo", split=split, languages=["en", "ja", "ru"]) for split in ("identify", "evaluate"))
    asked = {"n_questions": 3, "n_languages": 3, "max_new_tokens": 10, "strength": 4.0}
    settings = study_settings("open_generation", asked)
    how = {"rate": 0.1, "filter_rate": 0.985}
    return STUDIES["open_generation"].run(Given(demo_model, *texts, DOCUMENTS, settings, (0,), how, progress=False))


@pytest.mark.slow
def test_the_whole_study_shows_switching_on_the_demo(tables):
    assert tuple(tables) == TABLES == STUDIES["open_generation"].tables
    [switched] = [claim.measure(tables) for claim in CLAIMS if "another's raised" in claim.text]
    assert switched.low > 0
    sentences = open_findings(tables["open_generation"])
    assert len(sentences) == 4
    assert re.search(r"as it is answers in the language asked in \d+% \(\d+% to \d+% of 9\)", sentences[0])
    off = plots.language_off(tables["open_generation"])
    assert list(off.data[0].y) == [
        "<i>as it is</i>",
        "<i>random, uniform</i>",
        "<i>random, by layer</i>",
        *by_family(["en", "ja", "ru"]),
    ]
    assert list(off.data[0].x) == by_family(["en", "ja", "ru"])
    raised = plots.language_raised(tables["open_generation"])
    assert [bar.name for bar in raised.data] == ["as it is", "raised", "random neurons"]


def made_up(change, hits):
    """Answers to one prompt in each of two languages: (group, condition, seed, source) -> whether they hit."""
    rows = []
    for (group, condition, seed, source), hit in hits.items():
        target = group if change == "switched" else source
        rows.append((change, group, condition, seed, source, target, "p" + source, target if hit else "xx"))
    columns = ["change", "group", "condition", "seed", "source", "target", "prompt", "found"]
    return {"open_answers": pd.DataFrame(rows, columns=columns)}


def test_claims_are_measured_against_their_controls():
    raised, off, own, switched = (claim.measure for claim in CLAIMS)
    hits = {(k, c, s, k): c == "chosen" or (k, s) == ("a", 0) for k in "ab" for c, s in SEEDED}
    assert raised(made_up("raised", hits)).value == pytest.approx((0.5 + 1) / 2)
    hits = {(k, c, s, source): c == "random" or k != source for k in "ab" for source in "ab" for c, s in SEEDED}
    effect = off(made_up("off", hits))
    assert (effect.value, effect.low, effect.high) == (-1, -1, -1)
    assert own(made_up("off", hits)).value == -1
    hits = {(k, c, s, source): c == "chosen" for k, source in ("ab", "ba") for c, s in SEEDED}
    assert switched(made_up("switched", hits)).value == 1


SEEDED = (("chosen", -1), ("random", 0), ("random", 1))
