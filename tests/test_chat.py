import itertools

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from transformers import AutoModelForCausalLM, AutoTokenizer

import checkpoints
from mi_multilingual import (
    Corpus,
    Intervention,
    Item,
    NeuronSet,
    ablate,
    add_mean,
    choice_accuracy,
    deactivation_study,
    generate,
    load_model,
    record,
    steer,
    steering_matrix,
    written_accuracy,
)
from mi_multilingual.chat import chat_prompt, own_tokens
from mi_multilingual.evaluation.tasks import choice_log_likelihoods
from mi_multilingual.models.loading import HookedTransformer
from mi_multilingual.models.native import native_of
from mi_multilingual.tokens import Reading, prompt_ids

BACKENDS = ["hooked", "bridge"] if HookedTransformer is not None else ["bridge"]
TALK = [
    {"role": "system", "content": "Tea."},
    {"role": "user", "content": "user"},
    {"role": "assistant", "content": "The dog"},
    {"role": "user", "content": " Le chien "},
]


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return checkpoints.chatting("llama-grouped", tmp_path_factory.mktemp("chat") / "model")


@pytest.fixture(scope="module", params=BACKENDS)
def model(request, folder):
    return load_model(folder, backend=request.param, device="cpu")


@pytest.fixture(scope="module")
def tokenizer(folder):
    return AutoTokenizer.from_pretrained(folder)


@pytest.fixture(scope="module")
def silent(tmp_path_factory):
    """A model whose tokenizer has no chat template."""
    return load_model(checkpoints.checkpoint("opt", tmp_path_factory.mktemp("silent")), device="cpu")


def quietly(model, prompts, **settings):
    return generate(model, prompts, progress=False, **{"max_new_tokens": 5, **settings})


def some(model, density=0.5):
    masks = torch.rand(1, model.cfg.n_layers, model.cfg.d_mlp, generator=torch.Generator().manual_seed(0)) < density
    return NeuronSet(masks, ("en",), "test")


def by_template(tokenizer, messages):
    said = [{"role": "user", "content": messages}] if isinstance(messages, str) else messages
    return tokenizer.apply_chat_template(said, add_generation_prompt=True, return_dict=False)


@pytest.mark.parametrize("messages", ["The dog sleeps", "", TALK], ids=["text", "nothing", "conversation"])
def test_tokens_are_those_of_the_template_with_one_bos(tokenizer, messages):
    [ids] = prompt_ids(tokenizer, [chat_prompt(tokenizer, messages).text], "none")
    assert ids == by_template(tokenizer, messages)
    assert ids.count(tokenizer.bos_token_id) == 1


@given(contents=st.lists(st.text("abuser[]\n é犬", max_size=9) | st.sampled_from(["user", "[user]"]), min_size=1))
def test_what_users_say_is_found_whatever_it_is(tokenizer, contents):
    roles = itertools.cycle(["user", "assistant"])
    said = [{"role": role, "content": content} for role, content in zip(roles, contents, strict=False)]
    prompt = chat_prompt(tokenizer, said)
    assert prompt.own is not None
    assert [prompt.text[a:b] for a, b in prompt.own] == [m["content"].strip() for m in said if m["role"] == "user"]


def test_tokens_of_what_users_say(tokenizer):
    prompt = chat_prompt(tokenizer, TALK)
    ids = torch.tensor(by_template(tokenizer, TALK))
    own = own_tokens(tokenizer, prompt)
    assert tokenizer.decode(ids[own]) in ("userLe chien", "user Le chien")
    rest = tokenizer.decode(ids[~own])
    assert all(word in rest for word in ("[system]", "Tea.", "[user]", "[assistant]", "The dog"))


def test_a_template_that_changes_what_is_said_leaves_it_unknown(tokenizer, monkeypatch):
    monkeypatch.setattr(tokenizer, "chat_template", "{% for m in messages %}{{ m['content'] | upper }}{% endfor %}")
    prompt = chat_prompt(tokenizer, "The dog")
    assert prompt.text == "THE DOG"
    assert prompt.own is None
    assert own_tokens(tokenizer, prompt) is None


def by_transformers(hf, tokenizer, messages, **options):
    ids = torch.tensor([by_template(tokenizer, messages)])
    options = {"max_new_tokens": 5, "do_sample": False, "pad_token_id": 0, **options}
    new = hf.generate(ids, attention_mask=torch.ones_like(ids), **options)[0, ids.shape[1] :]
    return tokenizer.decode(new, skip_special_tokens=True)


def test_answers_are_those_of_transformers(model, folder, tokenizer):
    hf = AutoModelForCausalLM.from_pretrained(folder).eval()
    prompts = ["The dog", TALK, "We drink tea"]
    expected = [by_transformers(hf, tokenizer, p, eos_token_id=tokenizer.eos_token_id) for p in prompts]
    assert quietly(model, prompts, chat=True) == expected
    texts = [tokenizer.decode(by_template(tokenizer, p)) for p in prompts]
    assert quietly(model, texts, bos="none") == expected
    assert quietly(model, ["The dog"]) != expected[:1]


@pytest.mark.slow
def test_answers_of_smollm2_are_those_of_transformers(smollm2):
    prompts = [
        "What is the capital of France? Answer with one word.",
        [{"role": "system", "content": "You are a pirate."}, {"role": "user", "content": "Who are you?"}],
    ]
    hf = native_of(smollm2).hf_model
    expected = [by_transformers(hf, smollm2.tokenizer, p, max_new_tokens=12) for p in prompts]
    assert quietly(smollm2, prompts, chat=True, max_new_tokens=12) == expected
    assert "Paris" in expected[0]
    prompt = chat_prompt(smollm2.tokenizer, prompts[1])
    ids = torch.tensor(by_template(smollm2.tokenizer, prompts[1]))
    assert smollm2.tokenizer.decode(ids[own_tokens(smollm2.tokenizer, prompt)]) == "Who are you?"


def places(tokenizer, messages, span, n_new):
    """The numbers of the places that a span stands for."""
    own = own_tokens(tokenizer, chat_prompt(tokenizer, messages)).tolist()
    if span == "generated":
        return tuple(range(len(own), len(own) + n_new))
    return tuple(i for i, mine in enumerate(own) if mine == (span == "prompt"))


@pytest.mark.parametrize("use_cache", [True, False])
@pytest.mark.parametrize("span", ["template", "prompt", "generated"])
def test_interventions_act_at_their_places_in_a_conversation(model, tokenizer, span, use_cache):
    prompts = ["The dog", TALK, "犬が古い"]
    neurons = some(model)
    with steer(model, Intervention("add", neurons, 2.0, positions=span)):
        found = quietly(model, prompts, chat=True, use_cache=use_cache)
    expected = []
    for prompt in prompts:
        numbers = places(tokenizer, prompt, span, 5)
        with steer(model, Intervention("add", neurons, 2.0, positions=numbers)):
            expected += quietly(model, [prompt], chat=True, use_cache=use_cache)
    assert found == expected
    assert found != quietly(model, prompts, chat=True)


def test_spans_of_rows_that_run_together_may_differ(model, tokenizer):
    """Conversations of one length, of which users said other parts."""
    first = [
        {"role": "user", "content": "犬犬"},
        {"role": "assistant", "content": "犬"},
        {"role": "user", "content": "犬"},
    ]
    second = [{**m, "content": c} for m, c in zip(first, ["犬", "犬", "犬犬"], strict=True)]
    assert len(by_template(tokenizer, first)) == len(by_template(tokenizer, second))
    assert places(tokenizer, first, "prompt", 0) != places(tokenizer, second, "prompt", 0)
    with steer(model, Intervention("add", some(model), 2.0, positions="prompt")):
        alone = [quietly(model, [p], chat=True)[0] for p in (first, second)]
        assert quietly(model, [first, second], chat=True) == alone


def test_spans_of_a_conversation_together_are_the_whole_of_it(model):
    neurons = some(model)
    with ablate(model, neurons):
        everywhere = quietly(model, ["The dog", TALK], chat=True)
    spans = [Intervention("zero", neurons, positions=span) for span in ("template", "prompt", "generated")]
    with steer(model, *spans):
        assert quietly(model, ["The dog", TALK], chat=True) == everywhere


def test_places_of_a_template_need_one(model):
    with (
        steer(model, Intervention("zero", some(model), positions="template")),
        pytest.raises(ValueError, match="got 'template'; generate with chat=True"),
    ):
        quietly(model, ["The dog"])


ITEMS = [
    Item(str(i), language, "tiny", prompt, (" tea", " The dog", " rain in the"), 1)
    for i, prompts in enumerate([("The dog", "Le chien"), ("We drink", "Nous buvons")])
    for language, prompt in zip(["en", "fr"], prompts, strict=True)
]


def test_choices_come_after_the_template(model, tokenizer):
    found = choice_accuracy(model, ITEMS, chat=True, progress=False)
    for item, chosen in zip(ITEMS, found.chosen, strict=True):
        text = tokenizer.decode(by_template(tokenizer, item.prompt))
        scores = choice_log_likelihoods(model, text, [c.lstrip() for c in item.choices], bos="none")
        assert chosen == scores.argmax()
    assert list(found.correct) == [chosen == 1 for chosen in found.chosen]


def test_deactivation_asks_in_the_template(model, tokenizer):
    settings = {"seeds": [0], "progress": False}
    asked = deactivation_study(model, ITEMS, chat=True, **settings)
    texts = [tokenizer.decode(by_template(tokenizer, item.prompt)) for item in ITEMS]
    written = [
        Item(i.id, i.language, i.task, text, tuple(c.lstrip() for c in i.choices), i.answer)
        for i, text in zip(ITEMS, texts, strict=True)
    ]
    expected = deactivation_study(model, written, bos="none", **settings)
    assert asked.equals(expected)
    assert not asked.equals(deactivation_study(model, ITEMS, **settings))


def test_written_answers_are_asked_for_in_the_template(model):
    written = [Item("a", "en", "tiny", "The dog", (), "tea")]
    found = written_accuracy(model, written, chat=True, max_new_tokens=4, progress=False)
    assert list(found.written) == quietly(model, ["The dog"], chat=True, max_new_tokens=4, stop=["\n"])


@pytest.mark.filterwarnings("ignore:.*py3langid")
def test_steering_studies_talk_too(model, corpus):
    stats = record(model, corpus, reading=Reading(layout="documents", window=16), progress=False)
    masks = torch.zeros(2, model.cfg.n_layers, model.cfg.d_mlp, dtype=torch.bool)
    masks[0, 0, :5], masks[1, 1, 5:9] = True, True
    neurons = NeuronSet(masks, ("en", "fr"), "test")
    prompts = Corpus({"en": ("The dog",)}, "prompts")
    settings = {"chat": True, "max_new_tokens": 4, "progress": False}
    outputs = steering_matrix(
        model, prompts, neurons, stats, languages=["fr"], strength=4.0, source_off=False, seeds=[], **settings
    )
    with steer(model, add_mean(neurons["fr"], stats, "fr", strength=4.0)):
        expected = generate(model, ["The dog"], **settings)
    assert list(outputs[outputs.condition == "chosen"].continuation) == expected


@pytest.mark.parametrize(
    "ask",
    [
        lambda model: quietly(model, ["The dog"], chat=True),
        lambda model: choice_accuracy(model, ITEMS, chat=True, progress=False),
        lambda model: deactivation_study(model, ITEMS, chat=True, progress=False),
    ],
)
def test_a_tokenizer_without_a_template_is_refused(silent, ask):
    with pytest.raises(ValueError, match="chat must be False for a tokenizer without a chat template, got True"):
        ask(silent)


@pytest.mark.parametrize(
    ("prompts", "message"),
    [
        ([[]], "must be a text or a list of .* got \\[\\]"),
        ([[{"role": "user"}]], "must be a text or a list of .* got {'role': 'user'}"),
        ([[{"role": "judge", "content": "x"}]], "got the roles judge \\(unknown role\\)"),
    ],
)
def test_mistakes_are_told(model, prompts, message):
    with pytest.raises(ValueError, match=message):
        quietly(model, prompts, chat=True)


def test_conversations_without_chat_are_told(model):
    with pytest.raises(ValueError, match="prompts must be texts, got .*; give chat=True for conversations"):
        quietly(model, [TALK])
