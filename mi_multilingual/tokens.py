"""How text becomes rows of tokens."""

from __future__ import annotations

import warnings
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

import torch
from jaxtyping import Int
from torch import Tensor

from .corpora import Corpus
from .documents import size_of
from .models.hooked import HookedModel, max_window, on_cpu
from .rows import Places, TextRows, TokenRows
from .token_store import TextTokens, text_tokens

if TYPE_CHECKING:  # these two take a second to import
    import pandas as pd
    from transformers import PreTrainedTokenizerBase

_UNKNOWN_SHARE = 0.05


LAYOUTS = ("stream", "documents")
BOS_RULES = ("tokenizer", "none", "row", "count")


@dataclass(frozen=True)
class Reading:
    """How text becomes rows of tokens: part of every protocol, and so of all evidence and of every study.

    Example:
        >>> import mi_multilingual as mm
        >>> mm.Reading(layout="documents", window=64)
        Reading(window=64, layout='documents', bos='tokenizer', max_tokens=None, equal_tokens=False)
    """

    window: int | None = None
    """Tokens per row, special tokens included; None stands for the model's whole context."""
    layout: str = "stream"
    """"stream": the ids of all documents one after another, cut into full windows, the tail dropped (the protocol of
    LAPE). "documents": one document per row, padded at the right; a long one goes on in more rows."""
    bos: str = "tokenizer"
    """Special tokens before every row. "tokenizer": those the tokenizer itself puts there, not counted. "none": none.
    "row": BOS, not counted. "count": BOS, counted."""
    max_tokens: int | None = None
    """At most this many tokens of text per language; None for all."""
    equal_tokens: bool = False
    """Cut every language to as many tokens as the shortest has."""

    def __post_init__(self) -> None:
        for name in ("window", "max_tokens"):
            size = getattr(self, name)
            if size is not None and not (isinstance(size, int) and size >= 1):
                raise ValueError(f"{name} must be a number of tokens from 1, or None, got {size!r}")
        if self.layout not in LAYOUTS:
            raise ValueError(f"layout must be one of {', '.join(LAYOUTS)}, got {self.layout!r}")
        check_bos(self.bos)

    def for_model(self, model: HookedModel) -> Reading:
        """The same reading with its window in numbers.

        Raises:
            ValueError: a window longer than the model's context.
        """
        longest = max_window(model)
        if self.window is not None and self.window > longest:
            raise ValueError(f"window must be at most {longest}, the model's context, got {self.window}")
        return replace(self, window=self.window or longest)


def check_bos(bos: str) -> None:
    if bos not in BOS_RULES:
        raise ValueError(f"bos must be one of {', '.join(BOS_RULES)}, got {bos!r}")


DOCUMENTS = Reading(layout="documents")


def token_rows(
    corpus: Corpus, language: str, tokenizer: PreTrainedTokenizerBase, reading: Reading, *, progress: bool = True
) -> TokenRows:
    """The text of one language as rows of tokens.

    Args:
        reading: with a window (`Reading.for_model`); `equal_tokens` is not looked at here, but in `language_rows`.
        progress: show a bar where the text takes over two seconds to tokenise.

    Raises:
        ValueError: less text than one window, a window without room for text, or a BOS the tokenizer does not have.

    Warns:
        UserWarning: more than 5 % of the tokens are unknown to the tokenizer.
    """
    prefix, room = _front(tokenizer, reading)
    text = _tokens_of(corpus, language, tokenizer, reading.max_tokens, progress)
    n = min(len(text), reading.max_tokens or len(text))
    _warn_of_unknown(text, n, tokenizer, language)
    places = _streamed(text, n, room) if reading.layout == "stream" else _by_document(text, n, room)
    if not len(places[0]):
        raise ValueError(
            f"corpus has no text for {language!r} after dropping the last partial window: {n} tokens, one window needs "
            f"{room}; give more text or a smaller window"
        )
    return TextRows(language, text, places, prefix, reading.bos == "count", tokenizer.pad_token_id or 0)


def _front(tokenizer: PreTrainedTokenizerBase, reading: Reading) -> tuple[tuple[int, ...], int]:
    """The special tokens in front of every row, and how many tokens of text a row has room for."""
    if reading.window is None:
        raise ValueError("reading.window must be a number here, got None; use reading.for_model(model)")
    prefix = prefix_ids(tokenizer, reading.bos)
    room = reading.window - len(prefix)
    if room < 1:
        raise ValueError(
            f"window must leave room for text after {len(prefix)} special token(s), got {reading.window}; "
            f"give at least {1 + len(prefix)}"
        )
    return prefix, room


def _tokens_of(
    corpus: Corpus, language: str, tokenizer: PreTrainedTokenizerBase, at_least: int | None, progress: bool
) -> TextTokens:
    texts = corpus.take([language]).documents[language]
    return text_tokens(texts, tokenizer, at_least=at_least, title=f"tokenising {language}", progress=progress)


def language_rows(
    model: HookedModel, corpus: Corpus, reading: Reading, *, progress: bool = True
) -> Iterator[TokenRows]:
    """The rows of every language of the corpus, one language after another.

    Raises:
        ValueError: as `token_rows`.
    """
    return tokenizer_rows(model.tokenizer, corpus, reading.for_model(model), progress=progress)


def tokenizer_rows(
    tokenizer: PreTrainedTokenizerBase, corpus: Corpus, reading: Reading, *, progress: bool = True
) -> Iterator[TokenRows]:
    """`language_rows` where the model itself is elsewhere; the reading has a window (`Reading.for_model`)."""
    if reading.equal_tokens:
        # From the shortest text on, so that no more of a long one is tokenised than the others have.
        for language in sorted(corpus.languages, key=lambda k: size_of(corpus.documents[k])):
            n = len(_tokens_of(corpus, language, tokenizer, reading.max_tokens, progress))
            reading = replace(reading, max_tokens=min(n, reading.max_tokens or n))
    for language in corpus.languages:
        yield token_rows(corpus, language, tokenizer, reading, progress=progress)


def prefix_ids(tokenizer: PreTrainedTokenizerBase, bos: str = "tokenizer") -> tuple[int, ...]:
    """The special tokens before every text, by the rule `bos` of `Reading`.

    Having a BOS token is not the same as adding one: Llama's tokenizer adds its BOS, those of GPT-2, BLOOM and Pythia
    have one and add nothing, XGLM's puts its end-of-text token in front. What a tokenizer puts behind a text is never
    part of it.

    Raises:
        ValueError: an unknown rule, or "row" or "count" where the tokenizer has no BOS.
    """
    check_bos(bos)
    if bos == "none":
        return ()
    if bos == "tokenizer":
        return _own_prefix(tokenizer)
    if tokenizer.bos_token_id is None:
        raise ValueError(f"bos must be 'tokenizer' or 'none' for a tokenizer without a BOS token, got {bos!r}")
    return (int(tokenizer.bos_token_id),)


def _own_prefix(tokenizer: PreTrainedTokenizerBase) -> tuple[int, ...]:
    """What the tokenizer puts in front of a text when it is called plainly."""
    for probe in ("a", "1", "."):
        plain = tokenizer(probe, add_special_tokens=False)["input_ids"]
        whole = tokenizer(probe)["input_ids"]
        for start in range(len(whole) - len(plain) + 1 if plain else 0):
            if whole[start : start + len(plain)] == plain:
                return tuple(int(i) for i in whole[:start])
    raise ValueError(
        "the tokenizer's special tokens cannot be told from its text: tokenizer(text) does not hold the ids of "
        "tokenizer(text, add_special_tokens=False); give bos='none' or bos='row'"
    )


def prompt_ids(tokenizer: PreTrainedTokenizerBase, texts: Sequence[str], bos: str = "tokenizer") -> list[list[int]]:
    """The ids of every text, special tokens in front by the rule `bos` (see `Reading`), none behind."""
    prefix = list(prefix_ids(tokenizer, bos))
    rows = tokenizer(list(texts), add_special_tokens=False, verbose=False)["input_ids"] if len(texts) else []
    return [prefix + list(row) for row in rows]


def start_ids(tokenizer: PreTrainedTokenizerBase) -> tuple[int, ...]:
    """The ids after which a text without a prompt begins.

    They are what the tokenizer itself puts in front. Where it puts nothing there, it is the end-of-text token, after
    which a new document began in training (BLOOM's `</s>`); without one BOS; without that none.
    """
    special = [int(i) for i in (tokenizer.eos_token_id, tokenizer.bos_token_id) if i is not None]
    return _own_prefix(tokenizer) or tuple(special[:1])


def pad_right(rows: Sequence[Sequence[int]]) -> tuple[Int[Tensor, "row pos"], Int[Tensor, " row"]]:
    """Rows of ids in one table, each filled up with its own last id, and their lengths.

    Attention is causal, so what stands at the right changes nothing at a row's own positions.
    """
    lengths = torch.tensor([len(row) for row in rows])
    longest = int(lengths.max())
    return torch.tensor([[*row, *[row[-1]] * (longest - len(row))] for row in rows]), lengths


def common_prefix(left: Sequence[int], right: Sequence[int]) -> int:
    """Number of leading ids that both have."""
    return next((i for i, (a, b) in enumerate(zip(left, right, strict=False)) if a != b), min(len(left), len(right)))


TOKENS_PER_BATCH = {
    "statistics": 2048,  # reduced layer by layer
    "patterns": 2048,  # kept for all layers, with attention patterns
    "gradients": 1024,  # kept for all layers, with logits
    "logits": 1024,  # vocabulary times as many numbers
    "choices": 2048,  # logits of few positions
    "prompts": 8192,  # one position per row and layer is kept
    "generation": 4096,  # prompt and new tokens
}
"""Tokens of one forward pass on a processor, by what is kept of it."""
_ACCELERATOR_FACTOR = 8


def rows_per_batch(model: HookedModel, width: int, work: str) -> int:
    """Rows of `width` tokens that one forward pass should hold; at least one."""
    factor = 1 if on_cpu(model) else _ACCELERATOR_FACTOR
    return max(1, factor * TOKENS_PER_BATCH[work] // width)


def _streamed(text: TextTokens, n: int, room: int) -> Places:
    """Full windows of the first n tokens, the tail dropped."""
    start = torch.arange(n // room) * room
    document = torch.searchsorted(text.lengths.cumsum(0), start, right=True)
    return start, torch.full_like(start, room), document


def _by_document(text: TextTokens, n: int, room: int) -> Places:
    """One document a row, going on in further rows where it is longer than a row."""
    begins = text.lengths.cumsum(0) - text.lengths
    lengths = torch.minimum(text.lengths, (n - begins).clamp(min=0))
    n_rows = (lengths + room - 1) // room
    document = torch.repeat_interleave(n_rows)
    # Of each row, the place among those of its document.
    turn = torch.arange(len(document)) - (n_rows.cumsum(0) - n_rows)[document]
    return begins[document] + turn * room, (lengths[document] - turn * room).clamp(max=room), document


def _warn_of_unknown(text: TextTokens, n: int, tokenizer: PreTrainedTokenizerBase, language: str) -> None:
    if tokenizer.unk_token_id is None:
        return
    share = text.share(tokenizer.unk_token_id, n)
    if share > _UNKNOWN_SHARE:
        warnings.warn(
            f"the tokenizer maps {share:.0%} of the tokens of {language!r} to unknown; "
            "its numbers say little about the language",
            stacklevel=3,
        )


def token_counts(corpus: Corpus, tokenizer: PreTrainedTokenizerBase) -> pd.DataFrame:
    """One row per language: language, n_documents, n_characters, n_bytes, n_tokens, bytes_per_token."""
    import pandas as pd

    rows = []
    for language, texts in corpus.documents.items():
        n_tokens = len(_tokens_of(corpus, language, tokenizer, None, True))
        n_bytes = sum(len(t.encode()) for t in texts)
        row = {
            "language": language,
            "n_documents": len(texts),
            "n_characters": sum(map(len, texts)),
            "n_bytes": n_bytes,
        }
        rows.append({**row, "n_tokens": n_tokens, "bytes_per_token": n_bytes / max(1, n_tokens)})
    return pd.DataFrame(rows)
