"""Text continued by the model, greedily or sampled."""

import hashlib
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import groupby

import torch
from jaxtyping import Float, Int
from torch import Tensor
from tqdm.auto import tqdm
from transformers import PreTrainedTokenizerBase

from ..models.hooked import HookedModel, max_window, next_token_logits

TOKENS_A_BATCH = 4096  # prompt and new ones; bounds the logits of a whole forward pass


@dataclass(frozen=True)
class Decoding:
    """How the next token is chosen, and where a continuation ends; see `generate`."""

    max_new_tokens: int = 30
    min_new_tokens: int = 0
    temperature: float = 0.0
    top_p: float = 1.0
    repetition_penalty: float = 1.0
    stop: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        if self.max_new_tokens < 1:
            raise ValueError(f"max_new_tokens is {self.max_new_tokens}; ask for at least 1")
        if not 0 <= self.min_new_tokens <= self.max_new_tokens:
            raise ValueError(
                f"min_new_tokens is {self.min_new_tokens}; give a number from 0 to max_new_tokens={self.max_new_tokens}"
            )
        if not 0 <= self.temperature < float("inf"):
            raise ValueError(f"temperature is {self.temperature}; give 0 for greedy, or a positive number")
        if not 0 < self.top_p <= 1:
            raise ValueError(f"top_p is {self.top_p}; give a share above 0 and up to 1")
        if not 0 < self.repetition_penalty < float("inf"):
            raise ValueError(f"repetition_penalty is {self.repetition_penalty}; give a positive number, 1 for none")
        if "" in self.stop:
            raise ValueError("a stop string is empty, which every text contains; leave it out")


@dataclass(frozen=True, eq=False)
class Prompt:
    """One prompt in tokens, where it stands among the prompts, and the source of its random numbers."""

    index: int
    ids: list[int]
    random: torch.Generator


@torch.no_grad()
def generate(
    model: HookedModel,
    prompts: Sequence[str],
    *,
    max_new_tokens: int = 30,
    min_new_tokens: int = 0,
    temperature: float = 0.0,
    top_p: float = 1.0,
    repetition_penalty: float = 1.0,
    stop: Sequence[str] = (),
    seed: int = 0,
    use_cache: bool = True,
    progress: bool = True,
) -> list[str]:
    """The continuation of every prompt, without the prompt, ending before the first end-of-text token.

    Prompts of one length in tokens run together, so there is no padding that could change the answer: each prompt is
    continued as it is alone, but for tokens whose scores differ by no more than rounding. Hooks that are installed
    (`ablate`) act at every step; with the cache they see the prompt first and then one new token at a time.

    Args:
        min_new_tokens: the end-of-text token cannot come before so many tokens.
        temperature: 0 takes the likeliest token; above, tokens are drawn from softmax(logits / temperature).
        top_p: draw only among the likeliest tokens that together reach this probability (Holtzman et al. 2020).
        repetition_penalty: divides the positive and multiplies the negative logits of all tokens so far, those of the
            prompt included, before the temperature (Keskar et al. 2019).
        stop: a continuation ends before the first of these strings.
        seed: every prompt draws with its own generator, seeded by `seed`, its text, and how many equal prompts stand
            before it: neither the other prompts nor their order change what it gets, and equal prompts differ.
        use_cache: keep keys and values between steps; without it, every step runs the whole text again.

    Raises:
        ValueError: a prompt without tokens, or one that with the new tokens is longer than the model's context; a
            setting outside its range.
    """
    if isinstance(prompts, str) or isinstance(stop, str):
        raise ValueError(f"{prompts if isinstance(prompts, str) else stop!r} is one string; give a list of strings")
    how = Decoding(max_new_tokens, min_new_tokens, temperature, top_p, repetition_penalty, tuple(stop))
    out = [""] * len(prompts)
    ready = sorted(tokenised(model, prompts, how, seed), key=lambda p: len(p.ids))
    with tqdm(total=len(prompts), desc="generating", unit="prompt", disable=not progress) as bar:
        for batch in batches(ready, max_new_tokens):
            for prompt, text in zip(batch, continued(model, batch, how, use_cache), strict=True):
                out[prompt.index] = text
            bar.update(len(batch))
    return out


def tokenised(model: HookedModel, prompts: Sequence[str], how: Decoding, seed: int) -> Iterator[Prompt]:
    """The prompts as token ids, with BOS in front where the tokenizer has one."""
    start = [model.tokenizer.bos_token_id] if model.tokenizer.bos_token_id is not None else []
    seen: Counter[str] = Counter()
    for i, text in enumerate(prompts):
        ids = start + model.tokenizer(text, add_special_tokens=False)["input_ids"]
        if not 0 < len(ids) <= max_window(model) - how.max_new_tokens:
            raise ValueError(
                f"prompt {text[:40]!r} has {len(ids)} tokens; "
                f"with {how.max_new_tokens} new ones the model takes {max_window(model)}"
            )
        yield Prompt(i, ids, generator(seed, text, seen[text]))
        seen[text] += 1


def generator(seed: int, text: str, repeat: int) -> torch.Generator:
    """A random generator that depends on all three, the same on every machine."""
    digest = hashlib.sha256(f"{seed}\0{repeat}\0{text}".encode()).digest()
    return torch.Generator().manual_seed(int.from_bytes(digest[:7], "little"))


def batches(prompts: Sequence[Prompt], max_new_tokens: int) -> Iterator[list[Prompt]]:
    """Prompts of equal length, sorted by length before, at most TOKENS_A_BATCH tokens together."""
    for length, same in groupby(prompts, key=lambda p: len(p.ids)):
        group, size = list(same), max(1, TOKENS_A_BATCH // (length + max_new_tokens))
        yield from (group[i : i + size] for i in range(0, len(group), size))


def continued(model: HookedModel, batch: Sequence[Prompt], how: Decoding, use_cache: bool) -> list[str]:
    """The continuations of prompts of one length, a step at a time until all have ended."""
    tokens = torch.tensor([p.ids for p in batch], device=model.cfg.device)
    texts: list[str | None] = [None] * len(batch)
    cache = None
    fresh = tokens
    for step in range(1, how.max_new_tokens + 1):
        logits, cache = next_token_logits(model, fresh if use_cache else tokens, cache, use_cache=use_cache)
        logits = penalised(logits, tokens, how.repetition_penalty)
        if step <= how.min_new_tokens:
            logits[:, model.tokenizer.eos_token_id] = -torch.inf
        fresh = choose(logits, batch, how)[:, None]
        tokens = torch.cat([tokens, fresh], dim=1)
        for i, prompt in enumerate(batch):
            if texts[i] is None:
                texts[i] = ended(model.tokenizer, prompt.ids, tokens[i, -step:].tolist(), how)
        if None not in texts:
            break
    return [text or "" for text in texts]


def ended(tokenizer: PreTrainedTokenizerBase, prompt: list[int], new: list[int], how: Decoding) -> str | None:
    """The finished continuation, or None where it goes on."""
    at_end = new[-1] == tokenizer.eos_token_id
    if not (at_end or how.stop or len(new) == how.max_new_tokens):
        return None
    text = continuation_text(tokenizer, prompt, new[:-1] if at_end else new)
    places = [text.index(s) for s in how.stop if s in text]
    return text[: min(places)] if places else text if at_end or len(new) == how.max_new_tokens else None


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
    """The next token of every prompt; one random number each where they are drawn."""
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
