import json
import math
from contextlib import nullcontext
from dataclasses import replace

import numpy as np
import pandas as pd
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

import checkpoints
import oracles
from mi_multilingual import (
    Corpus,
    Intervention,
    NeuronSet,
    Reading,
    best_strength,
    continuation_perplexity,
    distinct_n,
    equal_openings,
    fallback_study,
    found_shares,
    generate,
    identify_language,
    language_forcing,
    lape,
    layer_matched_random,
    load_corpus,
    medians,
    rate_curve,
    record,
    record_texts,
    steer,
    steering_matrix,
    steering_quality,
    steering_shares,
    strength_curve,
    unconditional_study,
)
from mi_multilingual.demo.job import demo_job
from mi_multilingual.demo.steps import Running, write_steering
from mi_multilingual.models.hooked import fingerprint
from mi_multilingual.studies.steering import RAISING
from mi_multilingual.studies.steering_tables import loss_interval
from mi_multilingual.tokens import DOCUMENTS

LANGUAGES = ("en", "fr", "ja")
READING = Reading(window=8, bos="row")
DECODING = {"max_new_tokens": 5, "repetition_penalty": 1.2, "bos": "row"}
PROMPTS = Corpus({"en": ("The dog", "We drink tea"), "ja": ("犬が", "小さな舟が")}, "prompts")
RAISED = {"set_to_mean": "set", "set_to_active_mean": "set", "add_mean": "add", "add_mean_difference": "add"}


@pytest.fixture
def stats(model, corpus):
    return record(model, corpus, reading=READING, progress=False)


@pytest.fixture
def neurons(model):
    masks = torch.rand(3, model.cfg.n_layers, model.cfg.d_mlp, generator=torch.Generator().manual_seed(0)) < 0.4
    return NeuronSet(masks, LANGUAGES, "test", model_fingerprint=fingerprint(model))


def value(stats, target, raising, strength):
    """What neurons are set to, or what is added to them."""
    mean = stats.total / stats.n_tokens
    if raising == "set_to_active_mean":
        mean = torch.where(stats.active > 0, stats.active_total / stats.active, 0.0)
    k = stats.languages.index(target)
    others = [i for i in range(len(stats.languages)) if i != k]
    return strength * (mean[..., k] - (mean[..., others].mean(-1) if raising == "add_mean_difference" else 0))


def alone(model, prompt, interventions=(), **decoding):
    """One prompt continued by itself."""
    with steer(model, *interventions) if interventions else nullcontext():
        return generate(model, [prompt], progress=False, **{**DECODING, **decoding})[0]


def expected_row(model, source, target, prompt, interventions, labels, languages=LANGUAGES):
    continuation = alone(model, prompt, interventions)
    found = identify_language([continuation], languages)[0]
    row = {"source": source, "target": target, "prompt": prompt, "continuation": continuation, "found": found}
    return {**row, **labels}


def by_hand(model, stats, neurons, pairs, raising, strength, source_off, seed, languages=LANGUAGES):
    """Rows of one condition by plain loops, one prompt at a time."""
    used = neurons if seed == -1 else layer_matched_random(neurons, seed=seed)
    labels = {"condition": "chosen" if seed == -1 else "random", "seed": seed, "strength": strength}
    labels["raising"] = raising
    rows = []
    for source, target in pairs:
        raised = used[target]
        todo = [Intervention(RAISED[raising], raised, value(stats, target, raising, strength), stats.site)]
        if source_off and source != target:
            off = used[source].masks & ~raised.masks
            todo.insert(0, Intervention("zero", replace(raised, masks=off)))
        for prompt in PROMPTS.documents[source]:
            rows.append(expected_row(model, source, target, prompt, todo, labels, languages))
    return rows


def intact(model, pairs):
    labels = {"condition": "intact", "seed": -1, "strength": 0.0, "raising": ""}
    return [expected_row(model, s, t, p, (), labels) for s, t in pairs for p in PROMPTS.documents[s]]


def same_rows(table, rows):
    """The same rows in any order."""
    names = sorted(rows[0])
    assert sorted(table.columns) == names
    expected = pd.DataFrame(rows)[names].sort_values(names, ignore_index=True)
    pd.testing.assert_frame_equal(table[names].sort_values(names, ignore_index=True), expected)


ALL_PAIRS = [(s, t) for s in ("en", "ja") for t in LANGUAGES]


@pytest.mark.parametrize("source_off", [True, False])
@pytest.mark.parametrize("raising", RAISING)
def test_the_matrix_equals_one_prompt_at_a_time(model, stats, neurons, raising, source_off):
    options = {"raising": raising, "strength": 3.0, "source_off": source_off, "seeds": [4], "progress": False}
    table = steering_matrix(model, PROMPTS, neurons, stats, **options, **DECODING)
    rows = intact(model, ALL_PAIRS)
    for seed in (-1, 4):
        rows += by_hand(model, stats, neurons, ALL_PAIRS, raising, 3.0, source_off, seed)
    same_rows(table, rows)
    parts = table.groupby("condition").continuation.agg(list)
    assert parts["chosen"] != parts["intact"]
    assert parts["chosen"] != parts["random"]


def test_forcing_is_the_diagonal_with_a_strength_per_language(model, stats, neurons):
    strength = {"en": 2.0, "ja": 4.0, "fr": math.nan}
    table = language_forcing(model, PROMPTS, neurons, stats, strength=strength, seeds=[], progress=False, **DECODING)
    rows = intact(model, [("en", "en"), ("ja", "ja")])
    for k in ("en", "ja"):
        rows += by_hand(model, stats, neurons, [(k, k)], "set_to_mean", strength[k], False, -1)
    same_rows(table, rows)


def test_the_curves_are_matrices_without_the_diagonal(model, stats, neurons):
    pairs = [(s, t) for s, t in ALL_PAIRS if s != t]
    options = {"progress": False, "seeds": [1], **DECODING}
    table = strength_curve(model, PROMPTS, neurons, stats, [1.0, 3.0], **options)
    rows = intact(model, pairs)
    for seed in (-1, 1):
        for strength in (1.0, 3.0):
            rows += by_hand(model, stats, neurons, pairs, "set_to_mean", strength, False, seed)
    same_rows(table, rows)
    few = replace(neurons, masks=neurons.masks & (torch.arange(neurons.masks.shape[-1]) % 2 == 0))
    table = rate_curve(model, PROMPTS, {0.2: few, 0.4: neurons}, stats, strength=3.0, **options)
    rows = [{**row, "rate": 0.0} for row in intact(model, pairs)]
    for seed in (-1, 1):
        for rate, chosen in ((0.2, few), (0.4, neurons)):
            found = by_hand(model, stats, chosen, pairs, "set_to_mean", 3.0, False, seed)
            rows += [{**row, "rate": rate} for row in found]
    same_rows(table, rows)


def test_fallback_switches_off_one_language_after_another(model, neurons):
    order = ["ja", "en"]
    table = fallback_study(model, PROMPTS, neurons, order, seeds=[2], progress=False, **DECODING)
    together = [neurons.masks[2], neurons.masks[2] | neurons.masks[0]]
    steps = [("intact", -1, 0, "", None)]
    for n, mask in enumerate(together, 1):
        off = replace(neurons, masks=mask[None], groups=("off",))
        steps.append(("chosen", -1, n, order[n - 1], off))
        steps.append(("random", 2, n, order[n - 1], layer_matched_random(off, seed=2)))
    rows = []
    for condition, seed, n, last, off in steps:
        labels = {"condition": condition, "seed": seed, "n_off": n, "off": last}
        todo = () if off is None else (Intervention("zero", off),)
        rows += [expected_row(model, k, k, p, todo, labels) for k in PROMPTS.languages for p in PROMPTS.documents[k]]
    same_rows(table, rows)


def test_unconditional_texts_are_drawn_from_bos(model, corpus, neurons):
    texts = record_texts(model, corpus, reading=Reading(layout="documents", bos="row"), progress=False)["mean"]
    values = dict(zip(texts.languages, medians(texts).unbind(-1), strict=True))
    drawing = {**DECODING, "temperature": 1.3, "seed": 5}
    table = unconditional_study(model, neurons, values, n_texts=3, seeds=[2], progress=False, **drawing)
    assert (table[["source", "prompt"]] == "").all(axis=None)
    assert len(table) == 3 * 3 * 3
    for (condition, target), part in table.groupby(["condition", "target"]):
        used = layer_matched_random(neurons, seed=2) if condition == "random" else neurons
        todo = [Intervention("set", used[target], values[target])]
        with steer(model, *todo) if condition != "intact" else nullcontext():
            expected = generate(model, [""] * 3, progress=False, **drawing)
        assert list(part.continuation) == expected
        assert list(part.found) == identify_language(expected, LANGUAGES)
        assert (part.seed == (2 if condition == "random" else -1)).all()


def test_other_targets_sources_and_languages_of_the_statistics(model, stats, neurons):
    prompts = Corpus({"de": ("Der Hund",)}, "German")
    table = steering_matrix(
        model, prompts, neurons, stats, languages=["fr"], source_off=False, seeds=[], progress=False, **DECODING
    )
    assert set(table.source) == {"de"}
    assert set(table.target) == {"fr"}
    texts = list(table.continuation)
    assert list(table.found) == identify_language(texts, ["en", "fr", "ja", "de"])


def test_a_source_that_shares_all_its_neurons_stays_on(model, stats, neurons):
    shared = replace(neurons, masks=neurons.masks[[0, 0, 2]])
    options = {"languages": ["fr"], "seeds": [], "strength": 2.0, "progress": False, **DECODING}
    prompts = PROMPTS.take(["en"])
    off = steering_matrix(model, prompts, shared, stats, **options)
    on = steering_matrix(model, prompts, shared, stats, source_off=False, **options)
    pd.testing.assert_frame_equal(off, on)


codes = st.sampled_from(["en", "fr", "ja", ""])
some_outputs = st.lists(
    st.fixed_dictionaries(
        {
            "source": codes,
            "target": codes.filter(bool),
            "condition": st.sampled_from(["chosen", "random"]),
            "strength": st.sampled_from([1.0, 2.0, 4.0]),
            "seed": st.sampled_from([0, 1]),
            "found": codes,
        }
    ),
    min_size=1,
    max_size=25,
)


@given(some_outputs, st.sampled_from([["target"], ["target", "condition"], ["strength", "source", "target"]]))
def test_shares_are_counts_with_wilson_intervals(rows, by):
    table = steering_shares(pd.DataFrame(rows), by)
    assert list(table.columns) == [*by, "n", "in_target", "low", "high", "in_source", "elsewhere"]
    counts = oracles.steering_counts(rows, by)
    assert [tuple(key) for key in table[by].itertuples(index=False)] == list(counts)
    for row, (n, target, source, other) in zip(table.itertuples(), counts.values(), strict=True):
        assert row.n == n
        assert (row.in_target, row.in_source) == pytest.approx((target / n, source / n))
        assert row.elsewhere == pytest.approx(other / n, abs=1e-12)
        n_seeds = len({r["seed"] for r in rows if all(r[name] == getattr(row, name) for name in by)})
        assert (row.low, row.high) == pytest.approx(oracles.wilson(target / n_seeds, n / n_seeds), abs=1e-9)


@pytest.mark.parametrize("table_of", [steering_shares, found_shares])
def test_tables_say_how_neurons_were_raised(table_of):
    columns = ["source", "target", "condition", "seed", "raising", "found"]
    rows = [("en", "fr", "intact", -1, "", "en"), ("en", "fr", "chosen", -1, "add_mean", "fr")]
    rows += [("en", "fr", "chosen", -1, "set_to_mean", "en"), ("en", "fr", "random", 0, "add_mean", "en")]
    table = table_of(pd.DataFrame(rows, columns=columns), ["condition"])
    ways = dict(zip(table.condition, table.raising, strict=True))
    assert ways == {"intact": "", "chosen": "add_mean or set_to_mean", "random": "add_mean"}


@given(some_outputs, st.sampled_from([["target"], ["strength", "condition"]]))
def test_found_shares_are_a_full_matrix(rows, by):
    table = found_shares(pd.DataFrame(rows), by)
    groups = {tuple(r[name] for name in by) for r in rows}
    assert len(table) == len(groups) * len({r["found"] for r in rows})
    for row in table.itertuples():
        group = [r for r in rows if all(r[name] == getattr(row, name) for name in by)]
        hits = sum(r["found"] == row.found for r in group)
        assert (row.n, row.share) == (len(group), hits / len(group))
        n_seeds = len({r["seed"] for r in group})
        expected = oracles.wilson(hits / n_seeds, len(group) / n_seeds)
        assert (row.low, row.high) == pytest.approx(expected, abs=1e-9)
    np.testing.assert_allclose(table.groupby(by).share.sum(), 1)


@given(some_outputs)
def test_the_best_strength_is_the_lowest_of_the_most_accurate(rows):
    outputs = pd.DataFrame(rows)
    steered = [r for r in rows if r["condition"] == "chosen"]
    if not steered:
        with pytest.raises(ValueError, match="some of condition 'chosen', got none"):
            best_strength(outputs)
        return
    expected = {}
    for target in {r["target"] for r in steered}:
        accuracy = {}
        for strength in {r["strength"] for r in steered if r["target"] == target}:
            hits = [r["found"] == target for r in steered if (r["target"], r["strength"]) == (target, strength)]
            accuracy[strength] = sum(hits) / len(hits)
        expected[target] = min(s for s in accuracy if accuracy[s] == max(accuracy.values()))
    assert best_strength(outputs) == expected


def test_quality_is_of_the_model_as_it_is(model):
    rows = [
        ("en", "fr", "chosen", -1, "The dog", " sleeps under the"),
        ("en", "ja", "chosen", -1, "The dog", "犬が眠る"),
        ("en", "fr", "chosen", -1, "We drink", " tea tea tea"),
        ("en", "fr", "intact", -1, "The dog", ""),
        ("en", "fr", "random", 0, "The dog", " sleeps under the"),
        ("en", "fr", "random", 0, "The dog", ""),
    ]
    outputs = pd.DataFrame(rows, columns=["source", "target", "condition", "seed", "prompt", "continuation"])
    table = steering_quality(model, outputs, ["condition"], bos="row", progress=False).set_index("condition")
    steered = outputs[outputs.condition == "chosen"]
    scores = continuation_perplexity(model, list(steered.prompt), list(steered.continuation), bos="row", progress=False)
    nll = (scores.nll * scores.n_tokens).sum() / scores.n_tokens.sum()
    assert table.nll["chosen"] == pytest.approx(nll)
    assert table.ppl["chosen"] == pytest.approx(math.exp(nll))
    assert table.nll_low["chosen"] < nll < table.nll_high["chosen"]
    french = distinct_n([" sleeps under the", " tea tea tea"], 2)
    assert table.distinct_2["chosen"] == pytest.approx((french + distinct_n(["犬が眠る"], 2)) / 2)
    assert table.loc["intact", ["nll", "nll_low", "nll_high", "ppl", "distinct_2"]].isna().all()
    assert table.nll["random"] == pytest.approx(scores.nll[0])
    assert list(table.n) == [3, 1, 2]


def test_the_interval_of_a_mean_covers_it():
    random, covered = np.random.default_rng(0), 0
    for _ in range(60):
        n_tokens = random.integers(5, 15, 40)
        total = n_tokens * random.normal(3, 1, 40)
        texts = pd.DataFrame({"prompt": range(40), "nll": total / n_tokens, "n_tokens": n_tokens})
        texts = texts.assign(source="en", target="fr", seed=0)
        mean, low, high = loss_interval(texts)
        # The same outputs for two seeds are no more texts than for one; the same prompt given 40 times is 40.
        assert loss_interval(pd.concat([texts, texts.assign(seed=1)])) == pytest.approx((mean, low, high))
        assert loss_interval(texts.assign(prompt="")) == (mean, low, high)
        assert mean == pytest.approx(total.sum() / n_tokens.sum())
        covered += low < 3 < high
    assert 50 <= covered <= 60


def test_openings_are_whole_words_of_one_length(model):
    tokenizer = model.tokenizer
    corpus = Corpus({k: tuple(s) for k, s in checkpoints.SENTENCES.items()}, "sentences")
    openings = equal_openings(corpus, tokenizer, n_tokens=6)
    for k, texts in openings.documents.items():
        expected = []
        for document in corpus.documents[k]:
            for end in range(1, len(document)):
                start, rest = document[:end], document[end:]
                ids = tokenizer(start, add_special_tokens=False)["input_ids"]
                beginning = tokenizer(document, add_special_tokens=False)["input_ids"][:6]
                if ids == beginning and (k == "ja" or (start[-1].isalpha() and rest[0] == " ")):
                    expected.append(start)
        assert list(texts) == expected
    assert {len(equal_openings(corpus, tokenizer, n_tokens=6, n_prompts=1).documents[k]) for k in LANGUAGES} == {1}
    with pytest.raises(ValueError, match=r"9 documents of 'en' must have a word that ends with token 6, got"):
        equal_openings(corpus, tokenizer, n_tokens=6, n_prompts=9)


def empty_for(neurons, language):
    masks = neurons.masks.clone()
    masks[neurons.groups.index(language)] = False
    return replace(neurons, masks=masks)


@pytest.fixture
def nothing_runs(monkeypatch):
    def fail(*arguments, **options):
        raise AssertionError("the model ran")

    monkeypatch.setattr("mi_multilingual.studies.steering.generate", fail)


@pytest.fixture
def any_language(monkeypatch):
    """An identifier that knows languages of every name, and finds them in turn."""
    monkeypatch.setattr("mi_multilingual.studies.steering.check_known", lambda languages: None)
    monkeypatch.setattr(
        "mi_multilingual.studies.steering.identify_language",
        lambda texts, languages: [["", *languages][len(text) % (1 + len(languages))] for text in texts],
    )


@pytest.mark.usefixtures("any_language")
def test_languages_may_be_called_like_controls(model, corpus, neurons):
    names = dict(zip(LANGUAGES, ("none", "random", "intact"), strict=True))
    renamed = replace(neurons, groups=tuple(names.values()))

    def of(documents, names):
        return Corpus({names.get(k, k): texts for k, texts in documents.items()}, "renamed")

    def studies(names, neurons):
        stats = record(model, of(corpus.documents, names), reading=READING, progress=False)
        prompts = of({k: texts[:1] for k, texts in PROMPTS.documents.items()}, names)
        options = {"seeds": [0], "progress": False, **DECODING, "max_new_tokens": 2}
        values = dict(zip(stats.languages, stats.mean().unbind(-1), strict=True))
        languages = neurons.groups
        yield steering_matrix(model, prompts, neurons, stats, **options)
        yield language_forcing(model, prompts, neurons, stats, strength=dict.fromkeys(languages, 2.0), **options)
        yield strength_curve(model, prompts, neurons, stats, [1.0, 3.0], **options)
        yield rate_curve(model, prompts, {0.1: neurons}, stats, languages=languages[:1], **options)
        yield fallback_study(model, prompts, neurons, languages, **options)
        yield unconditional_study(model, neurons, values, n_texts=2, **options)

    tables = list(studies(names, renamed))
    for plain, found in zip(studies({}, neurons), tables, strict=True):
        columns = [name for name in ("source", "target", "off", "found") if name in plain]
        expected = plain.assign(**{name: plain[name].replace(names) for name in columns})
        pd.testing.assert_frame_equal(found, expected)
        for by in (["target", "condition"], ["source", "condition"]):
            shares = steering_shares(found, by)
            assert sorted(shares.n) == sorted(steering_shares(plain, by).n)
            assert sorted(shares.in_target) == sorted(steering_shares(plain, by).in_target)
        assert found_shares(found, ["condition"]).share.sum() == pytest.approx(found.condition.nunique())
    assert set(best_strength(tables[2])) == set(names.values())


@pytest.mark.usefixtures("nothing_runs")
def test_mistakes_are_told_before_anything_runs(model, stats, neurons):
    def matrix(prompts=PROMPTS, chosen=neurons, recorded=stats, **options):
        return steering_matrix(model, prompts, chosen, recorded, progress=False, **options)

    other = replace(neurons, model_fingerprint="another")
    imported = replace(neurons, model_fingerprint="")
    german = Corpus({"de": ("Der Hund",)}, "German")
    klingon = replace(neurons, groups=("en", "fr", "tlh"))
    curve = {"progress": False}
    for match, wrong in {
        "no neurons for 'de'": lambda: matrix(languages=["de"]),
        "no neurons for 'de'; this": lambda: matrix(german),
        "nothing was recorded for 'ja'": lambda: matrix(recorded=stats.take(["en", "fr"])),
        "languages must be a list of at least one language to steer to, got 'fr'": lambda: matrix(languages="fr"),
        r"languages must be a list of at least one language to steer to, got \[\]": lambda: matrix(languages=[]),
        "the neuron set was made for other weights": lambda: matrix(chosen=other),
        "stats must be recorded on this model": lambda: matrix(
            chosen=imported, recorded=replace(stats, model_fingerprint="another")
        ),
        "which nothing writes to": lambda: matrix(recorded=replace(stats, site="up")),
        "must have neurons, got none for 'fr'": lambda: matrix(chosen=empty_for(neurons, "fr")),
        "must have neurons, got none for 'en'": lambda: matrix(chosen=empty_for(neurons, "en"), languages=["fr"]),
        "strength must be a finite number for every target, got nan for 'en'": lambda: matrix(strength=math.nan),
        "strength must be a finite number for every target, got inf for 'ja'": lambda: matrix(
            strength={"en": 1.0, "fr": 1.0, "ja": math.inf}
        ),
        "strength must be a finite number for every target, got nan for 'fr'": lambda: matrix(
            strength={"en": 1.0, "ja": 1.0}
        ),
        "raising must be one of set_to_mean, set_to_active_mean, add_mean, .*, got 'push'": lambda: matrix(
            raising="push"
        ),
        "'tlh' is not known to the identifier": lambda: matrix(
            chosen=klingon, recorded=replace(stats, languages=("en", "fr", "tlh")), prompts=PROMPTS.take(["en"])
        ),
        "prompts must be in another language than 'en' to steer to it": lambda: strength_curve(
            model, PROMPTS.take(["en"]), neurons, stats, [1.0], **curve
        ),
        "strengths must hold at least one number, got none": lambda: strength_curve(
            model, PROMPTS, neurons, stats, [], **curve
        ),
        "for every target, got inf for 'fr'": lambda: strength_curve(
            model, PROMPTS, neurons, stats, [1.0, math.inf], **curve
        ),
        "sets must hold at least one set, got none": lambda: rate_curve(model, PROMPTS, {}, stats, **curve),
        "must have neurons, got none for 'ja'": lambda: rate_curve(
            model, PROMPTS, {0.1: neurons, 0.2: empty_for(neurons, "ja")}, stats, **curve
        ),
        "no neurons for 'de'; this set has en, fr, ja": lambda: language_forcing(
            model, german, neurons, stats, progress=False
        ),
    }.items():
        with pytest.raises(ValueError, match=match):
            wrong()


@pytest.mark.usefixtures("nothing_runs")
def test_mistakes_in_the_other_studies_are_told(model, neurons):
    shape = tuple(neurons.masks.shape[1:])

    def fallback(order, chosen=neurons):
        return fallback_study(model, PROMPTS, chosen, order, progress=False)

    def unconditional(values, **options):
        return unconditional_study(model, neurons, values, progress=False, **options)

    for match, wrong in {
        r"order must be a list of different languages to switch off, got \['en', 'en'\]": lambda: fallback(
            ["en", "en"]
        ),
        r"order must be a list of different languages to switch off, got \[\]": lambda: fallback([]),
        "order must be a list of different languages to switch off, got 'en'": lambda: fallback("en"),
        "no neurons for 'de'": lambda: fallback(["de"]),
        "must have neurons, got none for 'fr'": lambda: fallback(["en", "fr"], empty_for(neurons, "fr")),
        "made for other weights": lambda: fallback(["en"], replace(neurons, model_fingerprint="another")),
        "no neurons for 'de'; this": lambda: unconditional({"de": torch.zeros(shape)}),
        "do not fit neurons of shape": lambda: unconditional({"en": torch.zeros(shape[1], shape[0])}),
        "is nan": lambda: unconditional({"en": torch.full(shape, math.nan)}),
        "got 'up'": lambda: unconditional({"en": torch.zeros(shape)}, site="up"),
        "temperature above 0, got 20 and 0.0": lambda: unconditional({"en": torch.zeros(shape)}, temperature=0.0),
        "n_texts must be at least 1 and temperature above 0, got 0 and 1.0": lambda: unconditional(
            {"en": torch.zeros(shape)}, n_texts=0
        ),
        "values must hold at least one language, got none": lambda: unconditional({}),
    }.items():
        with pytest.raises(ValueError, match=match):
            wrong()


def test_tables_say_which_columns_there_are():
    outputs = pd.DataFrame([{"source": "en", "target": "fr", "found": "fr", "condition": "chosen"}])
    with pytest.raises(ValueError, match=r"columns of the outputs \(source, target, found, condition\), got 'rate'"):
        steering_shares(outputs, ["rate"])
    with pytest.raises(
        ValueError, match=r"by must be a list of columns, such as \['target', 'condition'\], got 'target'"
    ):
        found_shares(outputs, "target")
    with pytest.raises(ValueError, match=r"by must be a list of columns, .* got \[\]"):
        steering_shares(outputs, [])


@pytest.fixture(scope="module")
def demo_steering(demo_model, tmp_path_factory):
    """What the demo writes about steering."""
    stats = record(demo_model, load_corpus("demo", split="identify"), reading=DOCUMENTS, progress=False)
    folder = tmp_path_factory.mktemp("steering")
    write_steering(Running(demo_job(demo_model), folder, stats, lape(stats), False))
    return folder


@pytest.mark.slow
def test_steering_beats_the_intact_model_and_random_neurons_in_8_of_10_languages(demo_steering):
    table = pd.read_parquet(demo_steering / "steering.parquet")
    table = table[table.source != table.target].assign(hits=lambda t: t.in_target * t.n)
    sums = table.groupby(["condition", "target"])[["hits", "n"]].sum()
    accuracy = (sums.hits / sums.n).unstack("condition")
    assert len(accuracy) == 10
    assert (accuracy.chosen > accuracy.intact).sum() >= 8
    assert (accuracy.chosen > accuracy.random).sum() >= 8
    assert (accuracy.chosen >= 0.5).sum() >= 8
    assert accuracy.random.mean() < 0.1


@pytest.mark.slow
def test_stronger_steering_reaches_the_target_and_costs_quality(demo_steering):
    table = pd.read_parquet(demo_steering / "steering_curve.parquet").set_index("strength")
    assert table.low[1.0] > table.high[0.0]
    assert table.nll.is_monotonic_increasing
    assert table.low[2.0] > table.in_target[1.0]
    assert set(table.raising[1:]) == {"set_to_mean"}


@pytest.mark.slow
def test_the_demo_shows_an_example_per_target(demo_steering):
    examples = json.loads((demo_steering / "steering_examples.json").read_text())
    names = {"source", "target", "prompt", "strength", "chosen", "intact", "found_chosen", "found_intact"}
    assert all(set(e) == names for e in examples)
    assert [e["target"] for e in examples] == list(load_corpus("demo", split="evaluate").languages)
    assert all(e["source"] != e["target"] for e in examples)
    assert sum(e["found_chosen"] == e["target"] for e in examples) > len(examples) / 2
