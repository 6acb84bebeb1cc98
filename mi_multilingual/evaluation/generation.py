"""Text continued by the model, greedily or sampled."""

import hashlib
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from itertools import groupby
from typing import Any

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor
from tqdm.auto import tqdm
from transformers import GenerationConfig, PreTrainedModel, PreTrainedTokenizerBase
from transformers.generation import LogitsProcessor, LogitsProcessorList, StoppingCriteria, StoppingCriteriaList

from ..chat import Messages, chat_prompt, own_tokens
from ..models.hooked import HookedModel, end_ids, max_window, next_token_logits
from ..models.native import native_pass, runs_in_parts
from ..patching.positions import own_text
from ..tokens import prompt_ids, rows_per_batch, start_ids
from .checks import check_list


@dataclass(frozen=True)
class Decoding:
    """How the next token is chosen, and where a continuation ends: the options of `generate`."""

    max_new_tokens: int = 30
    """Largest number of new tokens."""
    min_new_tokens: int = 0
    """The end-of-text token cannot come before this many tokens."""
    temperature: float = 0.0
    """0 takes the likeliest token; above, tokens are drawn from softmax(logits / temperature)."""
    top_p: float = 1.0
    """Tokens are drawn among the likeliest that together reach this probability (Holtzman et al. 2020)."""
    repetition_penalty: float = 1.0
    """Divides the positive and multiplies the negative logits of all tokens so far, those of the prompt included,
    before the temperature (Keskar et al. 2019)."""
    stop: Sequence[str] = ()
    """A continuation ends before the first of these strings."""
    seed: int = 0
    """Every prompt draws with its own generator, seeded by this number, its text, and how many equal prompts stand
    before it: neither the other prompts nor their order change what it gets, and equal prompts differ."""
    use_cache: bool = True
    """Keep keys and values between steps; without it, every step runs the whole text again."""

    def __post_init__(self) -> None:
        if self.max_new_tokens < 1:
            raise ValueError(f"max_new_tokens must be at least 1, got {self.max_new_tokens}")
        if not 0 <= self.min_new_tokens <= self.max_new_tokens:
            raise ValueError(
                f"min_new_tokens must be from 0 to max_new_tokens={self.max_new_tokens}, got {self.min_new_tokens}"
            )
        if not 0 <= self.temperature < float("inf"):
            raise ValueError(f"temperature must be 0, for greedy, or a positive number, got {self.temperature}")
        if not 0 < self.top_p <= 1:
            raise ValueError(f"top_p must be a share above 0 and up to 1, got {self.top_p}")
        if not 0 < self.repetition_penalty < float("inf"):
            raise ValueError(f"repetition_penalty must be a positive number, 1 for none, got {self.repetition_penalty}")
        check_list(self.stop, "stop")
        if "" in self.stop:
            raise ValueError("stop must be strings with text, got an empty one, which every text contains")


@dataclass(frozen=True, eq=False)
class Prompt:
    """One prompt in tokens, where it stands among the prompts, and the source of its random numbers."""

    index: int
    ids: list[int]
    random: torch.Generator
    is_own: Bool[Tensor, " pos"] | None = None
    """Of a conversation: which tokens are not the chat template's; None where that is not known."""


@torch.no_grad()
def generate(
    model: HookedModel,
    prompts: Sequence[Messages],
    *,
    chat: bool = False,
    bos: str = "tokenizer",
    progress: bool = True,
    **decoding: Any,
) -> list[str]:
    """The continuation of every prompt, without the prompt, ending before the first end-of-text token.

    End-of-text tokens are the tokenizer's and all of the checkpoint's generation config. Each prompt is continued as it
    is alone, but for tokens whose scores differ by no more than rounding: padding is hidden from the model, and prompts
    of one length run together where that cannot be. Hooks that are installed (`ablate`) act at every step; with the
    cache they see the prompt first and then one new token at a time.

    A prompt without tokens begins a document: it is the special tokens of `bos`, else those the tokenizer itself puts
    in front, else the end-of-text token, after which documents began in training, else BOS.

    Args:
        prompts: texts; with `chat` what users say, or conversations of {"role": ..., "content": ...} messages.
        chat: put prompts into the tokenizer's chat template, and continue where it lets the model answer.
        bos: special tokens before every prompt (see `Reading`); a chat template writes them itself.
        decoding: fields of `Decoding`: max_new_tokens (30), min_new_tokens (0), temperature (0, greedy), top_p (1),
            repetition_penalty (1, none), stop (strings that end a continuation), seed (0), use_cache (True).

    Raises:
        ValueError: a prompt without tokens where the tokenizer has no special ones, or one that with the new tokens is
            longer than the model's context; a setting outside its range; with `chat` a tokenizer without a template.

    Example:
        >>> import mi_multilingual as mm
        >>> model = mm.load_model("demo")
        >>> mm.generate(model, ["The capital of France is"], max_new_tokens=10, stop=["."], progress=False)
        [' Paris']
    """
    check_list(prompts, "prompts")
    how = Decoding(**decoding)
    out = [""] * len(prompts)
    tokenised = _conversations(model, prompts, how) if chat else _tokenised(model, prompts, how, bos)
    ready = sorted(tokenised, key=lambda p: len(p.ids))
    with tqdm(total=len(prompts), desc="generating", unit="prompt", disable=not progress) as bar:
        for batch in batches(model, ready, how.max_new_tokens):
            for prompt, text in zip(batch, continued(model, batch, how), strict=True):
                out[prompt.index] = text
            bar.update(len(batch))
    return out


def _conversations(model: HookedModel, prompts: Sequence[Messages], how: Decoding) -> Iterator[Prompt]:
    """The prompts in the chat template, as token ids."""
    found = [chat_prompt(model.tokenizer, messages) for messages in prompts]
    for prompt in _tokenised(model, [chat.text for chat in found], how, "none"):
        yield replace(prompt, is_own=own_tokens(model.tokenizer, found[prompt.index]))


def _tokenised(model: HookedModel, prompts: Sequence[Messages], how: Decoding, bos: str) -> Iterator[Prompt]:
    """The prompts as token ids, special tokens in front."""
    if other := [p for p in prompts if not isinstance(p, str)]:
        raise ValueError(f"prompts must be texts, got {other[0]!r}; give chat=True for conversations")
    longest = max_window(model) - how.max_new_tokens
    seen: Counter[str] = Counter()
    for i, (text, given) in enumerate(zip(prompts, prompt_ids(model.tokenizer, prompts, bos), strict=True)):
        ids = given or list(start_ids(model.tokenizer))
        if not 0 < len(ids) <= longest:
            raise ValueError(
                f"prompts must have 1 to {longest} tokens to be followed by {how.max_new_tokens} new ones, got "
                f"{len(ids)} for {text[:40]!r}; change it, or ask for other max_new_tokens"
            )
        yield Prompt(i, ids, _generator(how.seed, text, seen[text]))
        seen[text] += 1


def _generator(seed: int, text: str, repeat: int) -> torch.Generator:
    """A random generator that depends on all three, the same on every machine."""
    digest = hashlib.sha256(f"{seed}\0{repeat}\0{text}".encode()).digest()
    return torch.Generator().manual_seed(int.from_bytes(digest[:7], "little"))


def batches(model: HookedModel, prompts: Sequence[Prompt], max_new_tokens: int) -> Iterator[list[Prompt]]:
    """Prompts that run together; they come sorted by length.

    They are of one length where the model cannot hide padding, or where what is done to it depends on positions.
    """
    one_length = not runs_in_parts(model)
    for _, same in groupby(prompts, key=lambda p: len(p.ids) if one_length else 0):
        group = list(same)
        while group:
            size = rows_per_batch(model, len(group[-1].ids) + max_new_tokens, "generation")
            yield group[-size:]
            del group[-size:]


@dataclass
class _Texts:
    """The continuations of prompts that run together, as they come to their ends."""

    model: HookedModel
    batch: Sequence[Prompt]
    how: Decoding
    ends: tuple[int, ...]
    texts: list[str | None]

    def choose(
        self, logits: Float[Tensor, "batch vocab"], tokens: Int[Tensor, "batch pos"], step: int
    ) -> Int[Tensor, " batch"]:
        """The next token of every prompt, in step 1, 2 and so on."""
        logits = penalised(logits, tokens, self.how.repetition_penalty)
        if step <= self.how.min_new_tokens:
            logits[:, list(self.ends)] = -torch.inf
        return choose(logits, self.batch, self.how)

    def take(self, new: Int[Tensor, "batch step"]) -> list[bool]:
        """Which continuations have ended with the tokens so far."""
        for i, ids in enumerate(new.tolist()):
            if self.texts[i] is None:
                self.texts[i] = ended(self.model.tokenizer, self.batch[i].ids, ids, self.how, self.ends)
        return [text is not None for text in self.texts]


def continued(model: HookedModel, batch: Sequence[Prompt], how: Decoding) -> list[str]:
    """The continuations of prompts, a step at a time until all have ended."""
    texts = _Texts(model, batch, how, end_ids(model), [None] * len(batch))
    with own_text(_own_text(batch)), native_pass(model) as native:
        if native is not None:
            _by_transformers(native, texts)
        else:
            _step_by_step(texts)
    return [text or "" for text in texts.texts]


def _own_text(batch: Sequence[Prompt]) -> Bool[Tensor, "batch pos"] | None:
    """Which tokens of conversations are the users' own; None where padding would move them, which nobody asks for."""
    known = [p.is_own for p in batch if p.is_own is not None]
    alike = len(known) == len(batch) and len({len(row) for row in known}) == 1
    return torch.stack(known) if alike else None


def _step_by_step(texts: _Texts) -> None:
    """Continue prompts of one length by passes of the hooked model."""
    model, how = texts.model, texts.how
    tokens = torch.tensor([p.ids for p in texts.batch], device=model.cfg.device)
    cache = None
    fresh = tokens
    for step in range(1, how.max_new_tokens + 1):
        logits, cache = next_token_logits(model, fresh if how.use_cache else tokens, cache, use_cache=how.use_cache)
        fresh = texts.choose(logits, tokens, step)[:, None]
        tokens = torch.cat([tokens, fresh], dim=1)
        if all(texts.take(tokens[:, -step:])):
            break


def _by_transformers(native: PreTrainedModel, texts: _Texts) -> None:
    """Continue prompts by `generate` of transformers, padded at the left, with the choices and ends of this package."""
    how, own = texts.how, native.generation_config
    width = max(len(p.ids) for p in texts.batch)
    # Padding is hidden by the mask. Its id is the row's first token, which a penalty for repetition knows already.
    tokens = torch.tensor([[p.ids[0]] * (width - len(p.ids)) + p.ids for p in texts.batch])
    mask = torch.tensor([[0] * (width - len(p.ids)) + [1] * len(p.ids) for p in texts.batch])
    asked = GenerationConfig(
        max_new_tokens=how.max_new_tokens, do_sample=False, use_cache=how.use_cache, pad_token_id=0
    )
    try:
        # A checkpoint's own settings would fill in what is not asked for.
        native.generation_config = GenerationConfig()
        out = native.generate(
            input_ids=tokens.to(texts.model.cfg.device),
            attention_mask=mask.to(texts.model.cfg.device),
            generation_config=asked,
            logits_processor=LogitsProcessorList([] if _is_greedy(how) else [_Chosen(texts, width)]),
            stopping_criteria=StoppingCriteriaList([_Ended(texts, width)]),
        )
    finally:
        native.generation_config = own
    texts.take(out[:, width:])


def _is_greedy(how: Decoding) -> bool:
    """Whether the likeliest token is taken, whatever came before."""
    return how.temperature == 0 and how.repetition_penalty == 1 and how.min_new_tokens == 0


class _Chosen(LogitsProcessor):
    """Leaves transformers one token to choose."""

    def __init__(self, texts: _Texts, width: int) -> None:
        self.texts, self.width = texts, width

    def __call__(self, input_ids: Tensor, scores: Tensor) -> Tensor:
        step = input_ids.shape[1] - self.width + 1
        chosen = self.texts.choose(scores, input_ids, step)
        return torch.full_like(scores, -torch.inf).scatter(1, chosen[:, None], 0.0)


class _Ended(StoppingCriteria):
    """Tells transformers which texts have ended."""

    def __init__(self, texts: _Texts, width: int) -> None:
        self.texts, self.width = texts, width
        self.ends = torch.tensor(texts.ends)

    def __call__(self, input_ids: Tensor, scores: Any, **options: Any) -> Tensor:
        if self.texts.how.stop:
            return torch.tensor(self.texts.take(input_ids[:, self.width :]), device=input_ids.device)
        # Nothing is decoded until all have come to an end token.
        return torch.isin(input_ids[:, -1], self.ends.to(input_ids.device))


def ended(
    tokenizer: PreTrainedTokenizerBase, prompt: list[int], new: list[int], how: Decoding, ends: Sequence[int]
) -> str | None:
    """The finished continuation, without what comes after its end; None where it goes on.

    Args:
        ends: tokens that end a text.
    """
    place = next((i for i, token in enumerate(new) if token in ends), None)
    is_last = place is not None or len(new) == how.max_new_tokens
    if not (is_last or how.stop):
        return None
    text = continuation_text(tokenizer, prompt, new[:place])
    places = [text.index(s) for s in how.stop if s in text]
    return text[: min(places)] if places else text if is_last else None


def continuation_text(tokenizer: PreTrainedTokenizerBase, prompt: list[int], new: list[int]) -> str:
    """The text of the new tokens, such that prompt + text is the text of all: some tokenizers drop a leading space."""
    before, whole = str(tokenizer.decode(prompt)), str(tokenizer.decode(prompt + new))
    return whole.removeprefix(before) if whole.startswith(before) else str(tokenizer.decode(new))


def penalised(
    logits: Float[Tensor, "batch vocab"], tokens: Int[Tensor, "batch pos"], penalty: float
) -> Float[Tensor, "batch vocab"]:
    """Logits with those of the tokens so far made less likely."""
    if penalty == 1:
        return logits
    own = logits.gather(1, tokens)
    return logits.scatter(1, tokens, torch.where(own > 0, own / penalty, own * penalty))


def choose(logits: Float[Tensor, "batch vocab"], batch: Sequence[Prompt], how: Decoding) -> Int[Tensor, " batch"]:
    """The next token of every prompt; one random number per prompt where tokens are drawn."""
    if how.temperature == 0:
        return logits.argmax(dim=-1)
    draws = torch.cat([torch.rand(1, generator=p.random, dtype=torch.float64) for p in batch])
    return drawn(logits, draws.to(logits.device), how.temperature, how.top_p)


def drawn(
    logits: Float[Tensor, "batch vocab"], draws: Float[Tensor, " batch"], temperature: float, top_p: float
) -> Int[Tensor, " batch"]:
    """The token at which the cumulative probability, likeliest token first, passes the draw from [0, 1)."""
    # The largest first, so that a temperature near zero cannot overflow.
    scaled = (logits - logits.max(dim=-1, keepdim=True).values).double() / temperature
    probability, token = scaled.softmax(dim=-1).sort(dim=-1, descending=True, stable=True)
    total = probability.cumsum(dim=-1)
    n_kept = (total - probability < top_p).sum(dim=-1, keepdim=True)
    kept = total.gather(1, n_kept - 1)
    place = torch.searchsorted(total, draws[:, None] * kept, right=True)
    return token.gather(1, place.minimum(n_kept - 1))[:, 0]
