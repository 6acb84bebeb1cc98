"""The ids that go into the model, for every kind of tokenizer, every rule and every way of asking."""

from contextlib import contextmanager
from dataclasses import dataclass

import pytest
import torch
from tokenizers.processors import TemplateProcessing
from transformers import AutoModelForCausalLM, AutoTokenizer

import checkpoints
from mi_multilingual import (
    Corpus,
    Item,
    NeuronSet,
    Reading,
    attribution,
    choice_accuracy,
    continuation_perplexity,
    generate,
    load_model,
    perplexity,
    record,
    record_impact,
    record_relevance,
    record_texts,
    save,
    sharing_categories,
    token_rows,
    written_accuracy,
)
from mi_multilingual.evaluation.tasks import choice_log_likelihoods
from mi_multilingual.models.hooked import is_bridge
from mi_multilingual.tokens import BOS_RULES

BOS, OTHER, EOS = "<s>", "~", "^"


@dataclass(frozen=True)
class Kind:
    """What a tokenizer has, and what it does with it."""

    has_bos: bool
    template: str
    """What it makes of a text "$A"."""
    start: str
    """What a text without prompt begins with."""

    @property
    def n_behind(self) -> int:
        return self.template.endswith(EOS)


KINDS = {
    "adds BOS": Kind(True, f"{BOS} $A", BOS),
    "has BOS": Kind(True, "$A", EOS),
    "no BOS": Kind(False, "$A", EOS),
    "another in front": Kind(True, f"{OTHER} $A", OTHER),
    "EOS behind": Kind(True, f"$A {EOS}", EOS),
    "in front and behind": Kind(True, f"{BOS} $A {EOS}", BOS),
}


@dataclass(frozen=True)
class Case:
    kind: Kind
    folder: object
    model: object
    tokenizer: object

    def plain(self, text):
        return self.tokenizer(text, add_special_tokens=False)["input_ids"]

    def expected(self, text, bos):
        """What stands behind the text is never part of it."""
        if bos == "tokenizer":
            whole = self.tokenizer(text)["input_ids"]
            return whole[: len(whole) - self.kind.n_behind]
        return self.plain(text) if bos == "none" else [self.tokenizer.bos_token_id, *self.plain(text)]


@pytest.fixture(scope="module", params=KINDS.values(), ids=KINDS.keys())
def case(request, tmp_path_factory):
    folder = checkpoints.checkpoint("llama", tmp_path_factory.mktemp("special"))
    tokenizer = checkpoints.tokenizer(folder, bos=request.param.has_bos)
    tokenizer.eos_token = EOS
    ids = [(token, tokenizer.convert_tokens_to_ids(token)) for token in (BOS, OTHER, EOS)]
    template = TemplateProcessing(single=request.param.template, special_tokens=ids)
    tokenizer.backend_tokenizer.post_processor = template
    tokenizer.save_pretrained(folder)
    tokenizer = AutoTokenizer.from_pretrained(folder)
    wanted = request.param.template.replace("$A", "The dog")
    assert tokenizer.decode(tokenizer("The dog")["input_ids"]).replace(" ", "") == wanted.replace(" ", "")
    return Case(request.param, folder, load_model(folder, device="cpu"), tokenizer)


@contextmanager
def rows_into(embedding):
    """Every row of ids that the embedding gets."""
    seen = []
    handle = embedding.register_forward_pre_hook(lambda module, given: seen.extend(given[0].tolist()))
    try:
        yield seen
    finally:
        handle.remove()


def embedding(model):
    return model.original_model.get_input_embeddings() if is_bridge(model) else model.embed


def is_padded(row, ids):
    """Whether the row is these ids and nothing but their last one again."""
    return row[: len(ids)] == ids and set(row[len(ids) :]) <= {ids[-1]}


def check(seen, wanted):
    """Every row is one that is wanted, and every one that is wanted is there."""
    assert seen
    for row in seen:
        assert any(is_padded(row, ids) for ids in wanted), (row, wanted)
    for ids in wanted:
        assert any(is_padded(row, ids) for row in seen), (seen, ids)


TEXTS = ("The dog sleeps", "Le chien dort sous")
PROMPTS, CHOICES = ("The dog", "Le chien"), (" sleeps", " dort")
TEXT = Corpus({"en": TEXTS[:1], "fr": TEXTS[1:]}, "text")
ANSWERS = Corpus({"en": ("here",), "fr": ("ici",)}, "answers")
ITEMS = [Item(str(i), k, "t", p, CHOICES, i) for i, (k, p) in enumerate(zip(TEXT.languages, PROMPTS, strict=True))]
WRITTEN = [Item(str(i), "en", "t", text, (), "x") for i, text in enumerate(TEXTS)]
QUIET = {"progress": False}


def documents(bos):
    return Reading(layout="documents", bos=bos)


WHOLE = {
    "record": lambda model, bos: record(model, TEXT, reading=documents(bos), **QUIET),
    "texts": lambda model, bos: record_texts(model, TEXT, reading=documents(bos), **QUIET),
    "impact": lambda model, bos: record_impact(model, TEXT, reading=documents(bos), **QUIET),
    "relevance": lambda model, bos: record_relevance(model, TEXT, reading=documents(bos), **QUIET),
    "sharing": lambda model, bos: sharing_categories(model, TEXT, reading=documents(bos), **QUIET),
    "sharing, any token": lambda model, bos: sharing_categories(
        model, TEXT, reading=documents(bos), tokens="any", **QUIET
    ),
    "attribution": lambda model, bos: attribution(model, TEXT, ANSWERS, bos=bos, **QUIET),
    "losses": lambda model, bos: perplexity(model, TEXT, reading=documents(bos), **QUIET),
    "generation": lambda model, bos: generate(model, TEXTS, bos=bos, max_new_tokens=1, **QUIET),
    "written answers": lambda model, bos: written_accuracy(model, WRITTEN, bos=bos, max_new_tokens=1, **QUIET),
    "continuations": lambda model, bos: continuation_perplexity(
        model, PROMPTS, [t.removeprefix(p) for t, p in zip(TEXTS, PROMPTS, strict=True)], bos=bos, **QUIET
    ),
}
"""Ways of asking that run whole texts."""
CHOOSING = {
    "choices": lambda model, bos: choice_accuracy(model, ITEMS, bos=bos, **QUIET),
    "likelihoods": lambda model, bos: [choice_log_likelihoods(model, p, CHOICES, bos=bos) for p in PROMPTS],
}
"""Ways of asking that run prompts with choices, of which the last token is only scored."""


@pytest.mark.parametrize("bos", BOS_RULES)
@pytest.mark.parametrize("name", [*WHOLE, *CHOOSING])
def test_the_model_sees_the_tokenizer_s_ids_without_what_stands_behind(case, name, bos):
    ask = {**WHOLE, **CHOOSING}[name]
    if bos in ("row", "count") and not case.kind.has_bos:
        with pytest.raises(ValueError, match="bos must be 'tokenizer' or 'none' for a tokenizer without a BOS token"):
            ask(case.model, bos)
        return
    with rows_into(embedding(case.model)) as seen:
        ask(case.model, bos)
    if name in WHOLE:
        check(seen, [case.expected(text, bos) for text in TEXTS])
    else:
        check(seen, [case.expected(prompt + choice, bos)[:-1] for prompt in PROMPTS for choice in CHOICES])


def test_special_tokens_count_when_asked_for(case):
    n = [len(case.plain(text)) for text in TEXTS]
    for bos in BOS_RULES if case.kind.has_bos else ("tokenizer", "none"):
        more = bos == "count"
        assert record(case.model, TEXT, reading=documents(bos), **QUIET).n_tokens.tolist() == [i + more for i in n]
        # Without a token before it, the first one has no loss.
        n_front = len(case.expected(TEXTS[0], bos)) - n[0]
        table = perplexity(case.model, TEXT, reading=documents(bos), **QUIET)
        assert table.n_tokens.tolist() == [i - (n_front == 0) for i in n]


def test_special_tokens_begin_every_row_of_a_stream(case):
    text = Corpus({"en": TEXTS}, "stream")
    ids = [i for one in TEXTS for i in case.plain(one)]
    for bos in BOS_RULES if case.kind.has_bos else ("tokenizer", "none"):
        front = case.expected("x", bos)[: -len(case.plain("x"))]
        rows = token_rows(text, "en", case.tokenizer, Reading(window=len(front) + 4, bos=bos))
        assert rows.tokens.tolist() == [[*front, *ids[i : i + 4]] for i in range(0, len(ids) // 4 * 4, 4)]


def test_text_without_a_prompt_begins_like_a_document(case):
    start = {"tokenizer": case.kind.start, "none": case.kind.start, "row": BOS, "count": BOS}
    for bos in BOS_RULES if case.kind.has_bos else ("tokenizer", "none"):
        first = case.tokenizer.convert_tokens_to_ids(start[bos])
        with rows_into(embedding(case.model)) as seen:
            generate(case.model, [""], bos=bos, max_new_tokens=1, **QUIET)
            table = continuation_perplexity(case.model, [""], TEXTS[:1], bos=bos, **QUIET)
        assert seen == [[first], [first, *case.plain(TEXTS[0])]]
        assert table.n_tokens.tolist() == [len(case.plain(TEXTS[0]))]


@pytest.mark.parametrize("by_hooks", [False, True], ids=["weights", "hooks"])
@pytest.mark.parametrize("bos", BOS_RULES)
def test_the_harness_reads_text_as_everything_else_does(case, bos, by_hooks, tmp_path):
    pytest.importorskip("lm_eval", reason="lm-eval is not installed; pip install mi_multilingual[harness]")
    from lm_eval.api.instance import Instance

    from mi_multilingual.evaluation.harness import IntervenedLM

    options = {"device": "cpu", "batch_size": 1, "bos": bos}
    if by_hooks:
        chosen = NeuronSet(torch.ones(1, checkpoints.N_LAYERS, checkpoints.D_MLP) > 0, ("x",), "test")
        save(chosen, tmp_path / "n.safetensors")
        options |= {"neurons": str(tmp_path / "n.safetensors"), "intervention": "add", "value": 1.0}
    if bos in ("row", "count") and not case.kind.has_bos:
        with pytest.raises(ValueError, match="bos must be 'tokenizer' or 'none'"):
            IntervenedLM(str(case.folder), **options)
        return
    lm = IntervenedLM(str(case.folder), **options)

    def seen_by(kind, *arguments):
        with rows_into(lm.model.get_input_embeddings()) as seen:
            getattr(lm, kind)([Instance(kind, {}, arguments, 0)], disable_tqdm=True)
        return seen

    text, prompt = TEXTS[0], PROMPTS[0]
    wanted = case.expected(text, bos)
    assert seen_by("loglikelihood", prompt, text.removeprefix(prompt)) == [wanted[:-1]]
    written = seen_by("generate_until", text, {"until": ["\n"], "max_gen_toks": 1})
    assert written == [wanted]
    # Before text without context there must be a token; the harness takes BOS where there is none.
    front = wanted[: -len(case.plain(text))] or [lm.tokenizer.bos_token_id or lm.tokenizer.eos_token_id]
    assert seen_by("loglikelihood", "", text) == [[*front, *case.plain(text)[:-1]]]
    assert seen_by("loglikelihood_rolling", text) == [[*front, *case.plain(text)[:-1]]]


def test_prompts_of_the_harness_are_cut_and_padded_at_the_left(case):
    pytest.importorskip("lm_eval", reason="lm-eval is not installed; pip install mi_multilingual[harness]")
    from mi_multilingual.evaluation.harness import IntervenedLM

    lm = IntervenedLM(str(case.folder), device="cpu")
    ids, seen = lm.tok_batch_encode(TEXTS)
    for row, mask, text in zip(ids, seen, TEXTS, strict=True):
        assert row[mask > 0].tolist() == case.expected(text, "tokenizer")
        assert mask.tolist() == sorted(mask.tolist())
    with pytest.warns(UserWarning, match="2 prompts were cut at the left to 3 tokens"):
        ids, seen = lm.tok_batch_encode(TEXTS, left_truncate_len=3)
    assert ids.tolist() == [case.expected(text, "tokenizer")[-3:] for text in TEXTS]
    assert seen.all()


def test_a_text_that_begins_with_the_special_token_gets_no_second_one(case):
    pytest.importorskip("lm_eval", reason="lm-eval is not installed; pip install mi_multilingual[harness]")
    from mi_multilingual.evaluation.harness import IntervenedLM

    lm = IntervenedLM(str(case.folder), device="cpu")
    front = case.expected("x", "tokenizer")[: -len(case.plain("x"))]
    text = case.tokenizer.decode(front) + "The dog"
    assert lm.tok_encode(text) == case.plain(text)
    assert lm.tok_encode("The dog", add_special_tokens=False) == case.plain("The dog")
    unprefixed = IntervenedLM(str(case.folder), device="cpu", bos="none")
    assert unprefixed.tok_encode("The dog") == case.plain("The dog")


def test_a_loaded_model_keeps_the_tokenizer_s_habits(case):
    for text in TEXTS:
        assert case.model.tokenizer(text)["input_ids"] == case.tokenizer(text)["input_ids"]
    hf = AutoModelForCausalLM.from_pretrained(case.folder)
    bridge = load_model(hf, tokenizer=case.tokenizer, backend="bridge", device="cpu")
    with rows_into(embedding(bridge)) as seen:
        generate(bridge, TEXTS, max_new_tokens=1, **QUIET)
        perplexity(bridge, TEXT, reading=documents("tokenizer"), **QUIET)
    check(seen, [case.expected(text, "tokenizer") for text in TEXTS])
