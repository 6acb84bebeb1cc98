import math

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from transformers import AutoModelForCausalLM, AutoTokenizer, PreTrainedTokenizerBase
from transformers.generation.logits_process import RepetitionPenaltyLogitsProcessor, TopPLogitsWarper

import checkpoints
import oracles
from mi_multilingual import NeuronSet, ablate, generate, load_model
from mi_multilingual.evaluation.generation import Decoding, continuation_text, drawn, ended, penalised
from mi_multilingual.evaluation.prompts import first_words
from mi_multilingual.models.hooked import next_token_logits
from mi_multilingual.models.loading import HookedTransformer
from mi_multilingual.models.native import native_of
from mi_multilingual.tokens import TOKENS_PER_BATCH

KINDS = ["llama", "llama-grouped", "qwen3", "gemma", "gpt2", "gpt-neox", "bloom", "opt"]
PROMPTS = ["The dog", "We drink tea when it rains", "犬が", "The tea", ""]
SETTINGS = {
    "greedy": {},
    "penalty": {"repetition_penalty": 1.3},
    "sampled": {"temperature": 1.5, "seed": 3},
    "nucleus": {"temperature": 0.8, "top_p": 0.7, "repetition_penalty": 1.1, "stop": ["e", "。"]},
}
each_setting = pytest.mark.parametrize("settings", SETTINGS.values(), ids=SETTINGS.keys())


@pytest.fixture(scope="module")
def folders(tmp_path_factory):
    return {k: checkpoints.checkpoint(k, tmp_path_factory.mktemp(k)) for k in KINDS}


@pytest.fixture(scope="module", params=["hooked", "bridge"])
def either(request, folders):
    """A gated model of each of TransformerLens' two classes."""
    if request.param == "hooked" and HookedTransformer is None:
        pytest.skip("TransformerLens 4 has no HookedTransformer")
    return load_model(folders["llama-grouped"], backend=request.param, device="cpu")


def some_neurons(model, density):
    shape = (1, model.cfg.n_layers, model.cfg.d_mlp)
    return NeuronSet(torch.rand(shape, generator=torch.Generator().manual_seed(0)) < density, ("en",), "test")


def quietly(model, prompts, **settings):
    return generate(model, prompts, progress=False, **{"bos": "row", "max_new_tokens": 6, **settings})


@each_setting
@pytest.mark.parametrize("density", [0.0, 0.8], ids=["plain", "ablated"])
def test_together_equals_alone(either, settings, density):
    with ablate(either, some_neurons(either, density)):
        alone = [quietly(either, [p], **settings)[0] for p in PROMPTS]
        assert quietly(either, PROMPTS, **settings) == alone
        assert quietly(either, PROMPTS[::-1], **settings) == alone[::-1]
        assert quietly(either, PROMPTS, use_cache=False, **settings) == alone
    if density:
        assert quietly(either, PROMPTS, **settings) != alone


@pytest.mark.filterwarnings("ignore:.*has no HookedTransformer")
@pytest.mark.slow
@pytest.mark.parametrize("backend", ["auto", "bridge"])
@pytest.mark.parametrize("kind", KINDS)
def test_the_tokens_are_those_of_transformers(kind, backend, folders):
    hf, tokenizer = AutoModelForCausalLM.from_pretrained(folders[kind]), AutoTokenizer.from_pretrained(folders[kind])
    model = load_model(folders[kind], backend=backend, device="cpu")
    expected = []
    for prompt in PROMPTS[:2]:
        ids = torch.tensor([[tokenizer.bos_token_id, *tokenizer(prompt, add_special_tokens=False)["input_ids"]]])
        new = hf.generate(
            ids,
            attention_mask=torch.ones_like(ids),
            max_new_tokens=5,
            do_sample=False,
            repetition_penalty=1.2,
            eos_token_id=tokenizer.eos_token_id,
            pad_token_id=tokenizer.pad_token_id,
        )[0, ids.shape[1] :].tolist()
        end = new.index(tokenizer.eos_token_id) if tokenizer.eos_token_id in new else len(new)
        expected.append(tokenizer.decode(new[:end]))
    for use_cache in (True, False):
        assert quietly(model, PROMPTS[:2], max_new_tokens=5, repetition_penalty=1.2, use_cache=use_cache) == expected


def test_a_padding_token_in_the_text_is_read_like_any_other(either, folders):
    hf = AutoModelForCausalLM.from_pretrained(folders["llama-grouped"])
    pad = either.tokenizer.pad_token_id
    tokens = torch.tensor([[1, pad, 50, 60, pad, pad], [1, 50, 60, 70, 80, 90]])
    with torch.no_grad():
        expected = hf(tokens).logits[:, 3:]
        seen = [next_token_logits(either, tokens[:, :n], use_cache=False)[0] for n in (4, 5, 6)]
        torch.testing.assert_close(torch.stack(seen, dim=1), expected, atol=1e-5, rtol=0)
        first, cache = next_token_logits(either, tokens[:, :4])
        second, cache = next_token_logits(either, tokens[:, 4:5], cache)
        third, _ = next_token_logits(either, tokens[:, 5:], cache)
    torch.testing.assert_close(torch.stack([first, second, third], dim=1), expected, atol=1e-5, rtol=0)


def test_the_seed_decides_and_equal_prompts_differ(either):
    draw = {"temperature": 1.0, "max_new_tokens": 12}
    assert quietly(either, PROMPTS, seed=1, **draw) == quietly(either, PROMPTS, seed=1, **draw)
    assert quietly(either, PROMPTS, seed=1, **draw) != quietly(either, PROMPTS, seed=2, **draw)
    repeated = quietly(either, ["The dog"] * 4, seed=1, **draw)
    assert len(set(repeated)) == 4
    mixed = quietly(either, ["The dog", "Le chien", "The dog"], seed=1, **draw)
    assert [mixed[0], mixed[2]] == repeated[:2]


def test_global_random_numbers_are_left_alone(either):
    state = torch.get_rng_state()
    quietly(either, ["The dog"], temperature=1.0)
    assert torch.equal(torch.get_rng_state(), state)


def test_groups_larger_than_a_batch(either, monkeypatch):
    prompts = [f"The dog {n}" for n in range(10, 17)]
    together = quietly(either, prompts, temperature=1.0)
    monkeypatch.setitem(TOKENS_PER_BATCH, "generation", 40)
    assert quietly(either, prompts, temperature=1.0) == together


def test_stop_strings_cut_the_text_before_them(either):
    whole = quietly(either, PROMPTS, max_new_tokens=10)
    stop = [whole[0][3:5], whole[1][2]]
    cut = quietly(either, PROMPTS, max_new_tokens=10, stop=stop)
    for text, shorter in zip(whole, cut, strict=True):
        assert shorter == min((text[: text.index(s)] for s in stop if s in text), key=len, default=text)
    assert cut != whole


@given(new=st.lists(st.integers(0, 5), min_size=1, max_size=8), stop=st.sets(st.text("abc", min_size=1, max_size=2)))
def test_where_a_continuation_ends(new, stop):
    """Token 5 ends the text, 0 to 4 are letters; the oracle looks at the whole text only."""
    how = Decoding(max_new_tokens=len(new), stop=tuple(stop))
    steps = [ended(Letters(), [0], new[:n], how, (5,)) for n in range(1, len(new) + 1)]
    first = next(text for text in steps if text is not None)
    n_read = next(n for n, text in enumerate(steps, 1) if text is not None)
    text = "".join("abcde"[i] for i in new[:n_read] if i != 5)
    assert first == min((text[: text.index(s)] for s in stop if s in text), key=len, default=text)
    assert n_read == len(new) or new[n_read - 1] == 5 or first != text
    assert 5 not in new[: n_read - 1]


class Letters(PreTrainedTokenizerBase):
    eos_token_id = 5

    def __init__(self):
        pass

    def decode(self, ids):
        return "".join("abcde#"[i] for i in ids)


class DropsLeadingSpace(Letters):
    """As tokenizers of the SentencePiece kind do."""

    def decode(self, ids):
        return "".join(" abcd#"[i] for i in ids).removeprefix(" ")


def test_a_leading_space_is_kept():
    assert continuation_text(DropsLeadingSpace(), [1, 2], [0, 3]) == " c"
    assert continuation_text(DropsLeadingSpace(), [], [0, 3]) == "c"


LOGITS = torch.randn(3, 11, generator=torch.Generator().manual_seed(0)) * 2
TOKENS = torch.tensor([[1, 2, 2, 0], [5, 5, 5, 5], [10, 9, 8, 7]])


def test_the_repetition_penalty_is_that_of_transformers():
    expected = RepetitionPenaltyLogitsProcessor(1.7)(TOKENS, LOGITS.clone())
    torch.testing.assert_close(penalised(LOGITS, TOKENS, 1.7), expected)
    assert penalised(LOGITS, TOKENS, 1.0) is LOGITS


@pytest.mark.parametrize("top_p", [0.05, 0.5, 0.9, 1.0])
@pytest.mark.parametrize("temperature", [0.3, 1.0, 4.0])
def test_draws_follow_the_nucleus(top_p, temperature):
    """Draws at regular steps give each token its probability, and none to those outside transformers' nucleus."""
    n = 4000
    draws = (torch.arange(n, dtype=torch.float64) + 0.5) / n
    for row in LOGITS:
        tokens = drawn(row.expand(n, -1), draws, temperature, top_p)
        expected = oracles.nucleus(row.tolist(), temperature, top_p)
        shares = torch.bincount(tokens, minlength=len(row)) / n
        torch.testing.assert_close(shares, torch.tensor(expected), atol=1.5 / n, rtol=0)
        kept = TopPLogitsWarper(top_p)(None, row[None] / temperature)[0].isfinite() if top_p < 1 else torch.ones(11) > 0
        assert {i for i, p in enumerate(expected) if p > 0} == set(kept.nonzero().flatten().tolist())


@given(
    row=st.lists(st.floats(-50, 50, width=32), min_size=1, max_size=9),
    draw=st.floats(0, 1, exclude_max=True),
    temperature=st.floats(1e-6, 10),
    top_p=st.floats(1e-6, 1),
)
def test_a_draw_is_always_a_likely_token(row, draw, temperature, top_p):
    token = int(drawn(torch.tensor([row]), torch.tensor([draw], dtype=torch.float64), temperature, top_p))
    assert 0 <= token < len(row)
    if top_p < 1 / len(row):
        assert row[token] == max(row) or math.isclose(row[token], max(row), abs_tol=1e-3)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"max_new_tokens": 0}, "max_new_tokens must be at least 1, got 0"),
        ({"temperature": -1.0}, "temperature must be .* got -1.0"),
        ({"temperature": math.nan}, "temperature must be .* got nan"),
        ({"top_p": 0.0}, "top_p must be .* got 0.0"),
        ({"repetition_penalty": 0.0}, "repetition_penalty must be .* got 0.0"),
        ({"stop": ["a", ""]}, "stop must be strings with text, got an empty one"),
        ({"stop": "ab"}, "stop must be a list of strings, got 'ab'"),
        ({"max_new_tokens": 30}, "prompts must have 1 to 2 tokens to be followed by 30 new ones, got 14 for 'The dog"),
    ],
)
def test_mistakes_are_told(either, settings, message):
    with pytest.raises(ValueError, match=message):
        quietly(either, ["The dog sleeps under"], **settings)


def test_one_string_is_no_list_of_prompts(either):
    with pytest.raises(ValueError, match="prompts must be a list of strings, got 'The dog'"):
        quietly(either, "The dog")
    assert quietly(either, []) == []


def test_a_prompt_needs_a_token(folders, tmp_path):
    hf = AutoModelForCausalLM.from_pretrained(folders["llama"])
    tokenizer = checkpoints.tokenizer(tmp_path, bos=False)
    model = load_model(hf, tokenizer=tokenizer, device="cpu")
    # Generation needs a token to begin with; end of text is one.
    assert len(quietly(model, [""], bos="tokenizer")) == 1
    model.tokenizer.eos_token = None
    with pytest.raises(ValueError, match="prompts must have 1 to 26 tokens .* got 0 for ''"):
        quietly(model, [""], bos="tokenizer")


def test_no_text_ends_before_the_least_number_of_tokens(either):
    tokenizer, word = either.tokenizer, 40

    def ends_at_once(module, args, output):
        logits = torch.zeros_like(output.logits)
        logits[..., tokenizer.eos_token_id], logits[..., word] = 2.0, 1.0
        output.logits = logits
        return output

    handle = native_of(either).hf_model.register_forward_hook(ends_at_once)
    try:
        assert quietly(either, ["The dog"]) == [""]
        assert quietly(either, ["The dog"], min_new_tokens=4) == [tokenizer.decode([word] * 4)]
    finally:
        handle.remove()
    with pytest.raises(ValueError, match="min_new_tokens must be from 0 to max_new_tokens=6, got 7"):
        quietly(either, PROMPTS, min_new_tokens=7)


@each_setting
def test_transformers_and_hooks_continue_alike(either, settings):
    """A hook of the user's keeps transformers out; the answers are the same, greedy or drawn, ablated or not."""
    neurons = some_neurons(either, 0.3)
    with ablate(either, neurons):
        fast = quietly(either, PROMPTS, **settings)
        assert native_of(either).stands_in()
        with either.hooks(fwd_hooks=[("blocks.0.hook_mlp_out", lambda value, hook: None)]):
            assert not native_of(either).stands_in()
            assert quietly(either, PROMPTS, **settings) == fast


def test_all_end_tokens_of_the_generation_config_end_a_text(either):
    config = native_of(either).hf_model.generation_config
    tokens = torch.tensor(
        [[either.tokenizer.bos_token_id, *either.tokenizer("The dog", add_special_tokens=False).input_ids]]
    )
    start = tokens.shape[1]
    for _ in range(6):
        logits, _ = next_token_logits(either, tokens, use_cache=False)
        tokens = torch.cat([tokens, logits.argmax(-1, keepdim=True)], dim=1)
    new = tokens[0, start:].tolist()
    given, config.eos_token_id = config.eos_token_id, [either.tokenizer.eos_token_id, new[2]]
    try:
        assert quietly(either, ["The dog"]) == [either.tokenizer.decode(new[: new.index(new[2])])]
    finally:
        config.eos_token_id = given


def test_first_words_are_a_prompt():
    assert first_words("one two three four five six", "en") == "one two three four five"
    assert first_words("犬が古い木の下で眠っている。", "ja") == "犬が古い木の下で"
