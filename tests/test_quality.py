import math

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

import checkpoints
import oracles
from mi_multilingual import (
    code_switching,
    continuation_perplexity,
    distinct_n,
    generate,
    language_accuracy,
    language_distribution,
)
from mi_multilingual.evaluation.intervals import wilson_interval
from mi_multilingual.evaluation.quality import sentences

codes = st.sampled_from(["en", "fr", "ja", ""])
pairs = st.lists(st.tuples(codes, codes.filter(bool)), max_size=20)


@given(pairs)
def test_accuracy_is_counted_by_wanted_language(pairs):
    found, wanted = [f for f, _ in pairs], [w for _, w in pairs]
    table = language_accuracy(found, wanted)
    assert list(table.columns) == ["language", "n", "accuracy", "low", "high"]
    assert list(table.language) == list(dict.fromkeys(wanted))
    for row in table.itertuples():
        n = wanted.count(row.language)
        hits = pairs.count((row.language, row.language))
        assert (row.n, row.accuracy) == (n, hits / n)
        low, high = oracles.wilson(hits, n)
        assert (row.low, row.high) == pytest.approx((low, high), abs=1e-9)
        assert 0 <= row.low <= row.accuracy <= row.high <= 1 or math.isclose(row.low, row.accuracy, abs_tol=1e-12)


def test_wilson_takes_arrays_and_narrows_with_n():
    low, high = wilson_interval(np.array([0.5, 0.5]), np.array([10.0, 1000.0]))
    assert high[0] - low[0] > 5 * (high[1] - low[1])
    assert wilson_interval(0.0, 20) == pytest.approx((0.0, 0.1611), abs=1e-4)


@given(pairs)
def test_the_distribution_is_a_full_matrix_of_shares(pairs):
    found, wanted = [f for f, _ in pairs], [w for _, w in pairs]
    table = language_distribution(found, wanted)
    assert list(table.columns) == ["wanted", "found", "n", "share"]
    assert len(table) == len(set(found)) * len(set(wanted))
    for row in table.itertuples():
        assert row.n == pairs.count((row.found, row.wanted))
        assert row.share == row.n / wanted.count(row.wanted)
    assert np.allclose(table.groupby("wanted").share.sum(), 1)


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("One. Two! Three? Four… Five", ["One.", "Two!", "Three?", "Four…", "Five"]),
        ("Pi is 3.14 or so. Yes.", ["Pi is 3.14 or so.", "Yes."]),
        ("He said “No.” Then he left.", ["He said “No.”", "Then he left."]),
        ("犬が眠る。本当？！はい", ["犬が眠る。", "本当？！", "はい"]),
        ("「はい。」と言った。雨だ", ["「はい。」と言った。", "雨だ"]),
        ("हाँ। नहीं॥ शायद", ["हाँ।", "नहीं॥", "शायद"]),
        ("هل هذا؟ نعم۔ لا", ["هل هذا؟", "نعم۔", "لا"]),
        ("አዎ።አይ።", ["አዎ።", "አይ።"]),
        ("a\n\n b\n", ["a", "b"]),
        ("Wait... what?", ["Wait...", "what?"]),
        ("", []),
        (" \n ", []),
    ],
)
def test_sentences_of_several_scripts(text, expected):
    assert sentences(text) == expected


@given(st.text(st.sampled_from("a犬.!?。！؟।” \n")))
def test_sentences_keep_every_character_but_white_space(text):
    assert "".join("".join(sentences(text)).split()) == "".join(text.split())


EN, FR, JA = (checkpoints.SENTENCES[k] for k in ("en", "fr", "ja"))


def test_code_switching_counts_sentences_outside_the_main_language():
    texts = [" ".join(EN), f"{EN[0]} {FR[0]} {EN[1]} {JA[0]}", f"{FR[0]} {EN[0]}", JA[0] + JA[1] + EN[0], "...", ""]
    table = code_switching(texts, ["en", "fr", "ja"])
    assert list(table.columns) == ["language", "n_sentences", "switched"]
    assert list(table.language) == ["en", "en", "fr", "ja", "", ""]
    assert list(table.n_sentences) == [3, 4, 2, 3, 0, 0]
    assert list(table.switched[:4]) == pytest.approx([0, 0.5, 0.5, 1 / 3])
    assert table.switched[4:].isna().all()


@given(st.lists(st.sampled_from([*EN, *FR, *JA, "1, 2, 3.", "Привет."]), max_size=6))
def test_code_switching_of_any_mixture(parts):
    language = {s: k for k in ("en", "fr", "ja") for s in checkpoints.SENTENCES[k]}
    main, n, share = oracles.switched([language.get(p, "") for p in parts])
    row = code_switching(["\n".join(parts)], ["en", "fr", "ja"]).iloc[0]
    assert (row.language, row.n_sentences) == (main, n)
    assert row.switched == pytest.approx(share, nan_ok=True)


def test_distinct_n_by_hand():
    assert distinct_n(["a b a b"], 1) == 0.5
    assert distinct_n(["a b a b"], 2) == 2 / 3
    assert distinct_n(["a b", "a b"], 2) == 0.5
    assert distinct_n(["犬犬が"], 1) == 2 / 3
    assert distinct_n(["iPhoneの犬"], 2) == 1.0
    assert math.isnan(distinct_n(["a b"], 3))
    assert math.isnan(distinct_n([], 1))


@given(st.lists(st.text(st.sampled_from("ab 犬がก\n")), max_size=5), st.integers(1, 4))
def test_distinct_n_equals_counting(texts, n):
    assert distinct_n(texts, n) == pytest.approx(oracles.distinct_share(texts, n, "犬がก"), nan_ok=True)


def test_perplexity_is_the_mean_loss_of_the_continuation(model):
    prompts = ["The dog", "Le chien dort", "犬が", "We drink"]
    continuations = generate(model, prompts, max_new_tokens=6, temperature=1.0, progress=False)
    continuations[3] = " tea in the evening"
    table = continuation_perplexity(model, prompts, continuations, bos="row", progress=False)
    tok = model.tokenizer
    for prompt, continuation, row in zip(prompts, continuations, table.itertuples(), strict=True):
        alone, ids = (
            [tok.bos_token_id, *tok(t, add_special_tokens=False)["input_ids"]] for t in (prompt, prompt + continuation)
        )
        first = next((i for i, (a, b) in enumerate(zip(alone, ids, strict=False)) if a != b), len(alone))
        with torch.no_grad():
            losses = oracles.token_losses(model(torch.tensor([ids]), return_type="logits")[0], ids)[first - 1 :]
        assert row.n_tokens == len(losses)
        assert row.n_bytes == len(continuation.encode())
        assert row.nll == pytest.approx(sum(losses) / len(losses), abs=1e-5)
        assert row.ppl == pytest.approx(math.exp(row.nll))
        assert row.bits_per_byte == pytest.approx(sum(losses) / math.log(2) / row.n_bytes, rel=1e-5)


def test_what_the_model_would_say_is_likelier_than_nonsense(demo_model):
    prompt = "The capital of France"
    own = generate(demo_model, [prompt], max_new_tokens=8, progress=False)[0]
    table = continuation_perplexity(demo_model, [prompt] * 3, [own, " ж犬 qx vv 9 ж", ""], progress=False)
    assert table.ppl[0] < table.ppl[1] / 10
    assert table.n_tokens[2] == 0
    assert table.loc[2, ["nll", "ppl", "bits_per_byte"]].isna().all()


def test_mistakes_are_told(model):
    with pytest.raises(ValueError, match="got 1 found but 2 wanted"):
        language_accuracy(["en"], ["en", "fr"])
    with pytest.raises(ValueError, match="got 1 found but 0 wanted"):
        language_distribution(["en"], [])
    with pytest.raises(ValueError, match="n must be at least 1 unit, got 0"):
        distinct_n(["a"], 0)
    with pytest.raises(ValueError, match="texts must be a list of strings, got 'a b'"):
        distinct_n("a b", 1)
    with pytest.raises(ValueError, match="the model takes 32"):
        continuation_perplexity(model, ["The"], [" dog" * 40], progress=False)
