"""How text becomes rows of tokens."""

from __future__ import annotations

import warnings
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

import torch
from jaxtyping import Bool, Int
from torch import Tensor
from torch.nn.functional import pad

from .corpora import Corpus
from .models.hooked import HookedModel, max_window, on_cpu

if TYPE_CHECKING:  # these two take a second to import
    import pandas as pd
    from transformers import PreTrainedTokenizerBase

_CHUNK = 1000  # documents tokenised at once

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


@dataclass(frozen=True, eq=False)
class TokenRows:
    """Rows of tokens of one language."""

    language: str
    tokens: Int[Tensor, "row pos"]
    valid: Bool[Tensor, "row pos"]
    """False at padding, and at special tokens in front that are not counted."""
    n_bytes: Int[Tensor, "row pos"]
    """UTF-8 bytes of the text that each token stands for; 0 where not valid."""
    document: Int[Tensor, " row"]
    """Number of the document a row (begins) in."""

    @property
    def n_tokens(self) -> int:
        return int(self.valid.sum())

    def batches(self, batch_size: int) -> Iterator[TokenRows]:
        """Rows in batches of similar length, longest first, each cut to its longest row."""
        lengths = self.n_used()
        order = lengths.argsort(descending=True, stable=True)
        for index in order.split(batch_size):
            width = int(lengths[index].max())
            yield TokenRows(
                self.language,
                self.tokens[index, :width],
                self.valid[index, :width],
                self.n_bytes[index, :width],
                self.document[index],
            )

    def n_used(self) -> Int[Tensor, " row"]:
        """Positions of each row up to its last valid token."""
        positions = torch.arange(1, self.valid.shape[1] + 1)
        return (self.valid * positions).amax(dim=1)


def token_rows(corpus: Corpus, language: str, tokenizer: PreTrainedTokenizerBase, reading: Reading) -> TokenRows:
    """The text of one language as rows of tokens.

    Args:
        reading: with a window (`Reading.for_model`); `equal_tokens` is not looked at here, but in `language_rows`.

    Raises:
        ValueError: less text than one window, a window without room for text, or a BOS the tokenizer does not have.

    Warns:
        UserWarning: more than 5 % of the tokens are unknown to the tokenizer.
    """
    if reading.window is None:
        raise ValueError("reading.window must be a number here, got None; use reading.for_model(model)")
    prefix = prefix_ids(tokenizer, reading.bos)
    room = reading.window - len(prefix)
    if room < 1:
        raise ValueError(
            f"window must leave room for text after {len(prefix)} special token(s), got {reading.window}; "
            f"give at least {1 + len(prefix)}"
        )
    ids, sizes, document = (part[: reading.max_tokens] for part in _encoded(corpus, language, tokenizer))
    _warn_of_unknown(ids, tokenizer, language)
    if reading.layout == "stream":
        rows = _streamed(ids, sizes, document, room)
        if not len(rows[0]):
            raise ValueError(
                f"corpus has no text for {language!r} after dropping the last partial window: {len(ids)} tokens, one "
                f"window needs {room}; give more text or a smaller window"
            )
    else:
        rows = padded(ids, sizes, document, room, tokenizer.pad_token_id or 0)
    tokens, valid, n_bytes, first = rows
    if prefix:
        before = torch.tensor(prefix).expand(len(tokens), -1)
        tokens = torch.cat([before, tokens], dim=1)
        valid = pad(valid, (len(prefix), 0), value=reading.bos == "count")
        n_bytes = pad(n_bytes, (len(prefix), 0))
    return TokenRows(language, tokens, valid, n_bytes, first)


def language_rows(model: HookedModel, corpus: Corpus, reading: Reading) -> Iterator[TokenRows]:
    """The rows of every language of the corpus, one language after another.

    Raises:
        ValueError: as `token_rows`.
    """
    return tokenizer_rows(model.tokenizer, corpus, reading.for_model(model))


def tokenizer_rows(tokenizer: PreTrainedTokenizerBase, corpus: Corpus, reading: Reading) -> Iterator[TokenRows]:
    """`language_rows` where the model itself is elsewhere; the reading has a window (`Reading.for_model`)."""
    if reading.equal_tokens:
        shortest = min(len(_encoded(corpus, k, tokenizer)[0][: reading.max_tokens]) for k in corpus.languages)
        reading = replace(reading, max_tokens=shortest)
    for language in corpus.languages:
        yield token_rows(corpus, language, tokenizer, reading)


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


TOKENS_PER_BATCH = {
    "statistics": 4096,  # reduced layer by layer
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


_Encoded = tuple[Int[Tensor, " token"], Int[Tensor, " token"], Int[Tensor, " token"]]

_Rows = tuple[Int[Tensor, "row pos"], Bool[Tensor, "row pos"], Int[Tensor, "row pos"], Int[Tensor, " row"]]


def _encoded(corpus: Corpus, language: str, tokenizer: PreTrainedTokenizerBase) -> _Encoded:
    """Ids of all documents one after another, the bytes each id stands for, and its document's number."""
    documents = corpus.take([language]).documents[language]
    ids, sizes, numbers = [], [], []
    for start in range(0, len(documents), _CHUNK):
        texts = list(documents[start : start + _CHUNK])
        options: dict[str, Any] = {"add_special_tokens": False, "return_attention_mask": False, "verbose": False}
        result = tokenizer(texts, return_offsets_mapping=tokenizer.is_fast, **options)
        for i, (text, row) in enumerate(zip(texts, result["input_ids"], strict=True)):
            ids.append(torch.tensor(row, dtype=torch.int64))
            sizes.append(_byte_sizes(text, row, result["offset_mapping"][i] if tokenizer.is_fast else None, tokenizer))
            numbers.append(torch.full((len(row),), start + i))
    return torch.cat(ids), torch.cat(sizes), torch.cat(numbers)


def _byte_sizes(
    text: str, ids: Sequence[int], offsets: Sequence[tuple[int, int]] | None, tokenizer: PreTrainedTokenizerBase
) -> Int[Tensor, " token"]:
    """UTF-8 bytes of the text between the end of one token and the end of the next; they add up to the whole text.

    A character that is split over several tokens counts with the first of them. Without offsets (slow tokenizers)
    the text's bytes are shared out in proportion to the length of each token's own text.
    """
    if not ids:
        return torch.zeros(0, dtype=torch.int64)
    if offsets is None:
        lengths = torch.tensor([len(tokenizer.decode([i]).encode()) or 1 for i in ids], dtype=torch.float64)
        ends = (lengths.cumsum(0) / lengths.sum() * len(text.encode())).round().long()
    else:
        upto = torch.tensor([0, *(len(c.encode()) for c in text)]).cumsum(0)
        ends = upto[torch.tensor([end for _, end in offsets])].cummax(0).values
        ends[-1] = upto[-1]
    return ends.diff(prepend=torch.zeros(1, dtype=torch.int64))


def _streamed(ids: Tensor, sizes: Tensor, document: Tensor, room: int) -> _Rows:
    """Full windows, the tail dropped."""
    n_rows = len(ids) // room
    tokens, n_bytes, number = (t[: n_rows * room].view(n_rows, room) for t in (ids, sizes, document))
    return tokens, torch.ones_like(tokens, dtype=torch.bool), n_bytes, number[:, 0]


def padded(ids: Tensor, sizes: Tensor, document: Tensor, room: int, pad: int) -> _Rows:
    """One document a row, going on in further rows where it is longer than a row."""
    lengths = document.unique_consecutive(return_counts=True)[1].tolist()
    cuts = [min(room, n - start) for n in lengths for start in range(0, n, room)]
    number = document[torch.tensor([0, *cuts[:-1]]).cumsum(0)]
    valid = torch.arange(min(room, max(lengths)))[None] < torch.tensor(cuts)[:, None]
    tokens = torch.full(valid.shape, pad)
    n_bytes = torch.zeros(valid.shape, dtype=torch.int64)
    tokens[valid], n_bytes[valid] = ids, sizes
    return tokens, valid, n_bytes, number


def _warn_of_unknown(ids: Tensor, tokenizer: PreTrainedTokenizerBase, language: str) -> None:
    if tokenizer.unk_token_id is None or not len(ids):
        return
    share = (ids == tokenizer.unk_token_id).double().mean().item()
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
        n_tokens = len(_encoded(corpus, language, tokenizer)[0])
        n_bytes = sum(len(t.encode()) for t in texts)
        row = {
            "language": language,
            "n_documents": len(texts),
            "n_characters": sum(map(len, texts)),
            "n_bytes": n_bytes,
        }
        rows.append({**row, "n_tokens": n_tokens, "bytes_per_token": n_bytes / max(1, n_tokens)})
    return pd.DataFrame(rows)
