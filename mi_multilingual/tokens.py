"""How text becomes rows of tokens."""

import warnings
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import pandas as pd
import torch
from jaxtyping import Bool, Int
from torch import Tensor
from transformers import PreTrainedTokenizerBase

from .corpora import Corpus

CHUNK = 1000  # documents tokenised at once

UNKNOWN_SHARE = 0.05


@dataclass(frozen=True, eq=False)
class TokenRows:
    """Rows of tokens of one language."""

    language: str
    tokens: Int[Tensor, "row pos"]
    valid: Bool[Tensor, "row pos"]
    """False at padding and at an added BOS."""
    n_bytes: Int[Tensor, "row pos"]
    """UTF-8 bytes of the text that each token stands for; 0 where not valid."""
    document: Int[Tensor, " row"]
    """Number of the document a row (begins) in."""

    @property
    def n_tokens(self) -> int:
        return int(self.valid.sum())

    def batches(self, batch_size: int) -> Iterator["TokenRows"]:
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


def token_rows(
    corpus: Corpus,
    language: str,
    tokenizer: PreTrainedTokenizerBase,
    *,
    window: int,
    layout: str = "stream",
    bos: str = "auto",
) -> TokenRows:
    """The text of one language as rows of at most `window` tokens.

    Args:
        layout: "stream": the ids of all documents one after another, cut into full windows, the tail dropped (the
            protocol of LAPE); "documents": one document a row, padded at the right, long ones going on in more rows.
        bos: "row": every row begins with BOS, which is not counted; "count": and is counted; "none": no BOS; "auto":
            "row" if the tokenizer has a BOS, else "none".

    Raises:
        ValueError: less text than one window, an unknown layout or BOS policy, or a BOS the tokenizer does not have.

    Warns:
        UserWarning: more than 5 % of the tokens are unknown to the tokenizer.
    """
    if layout not in ("stream", "documents") or bos not in ("auto", "none", "row", "count"):
        raise ValueError(
            f"unknown layout {layout!r} or bos {bos!r}; choose stream or documents, and auto, none, row or count"
        )
    if bos in ("row", "count") and tokenizer.bos_token_id is None:
        raise ValueError(f"bos={bos!r} but the tokenizer has no BOS token; use bos='none'")
    has_bos = bos in ("row", "count") or (bos == "auto" and tokenizer.bos_token_id is not None)
    room = window - has_bos
    if room < 1:
        raise ValueError(f"window={window} leaves no room for text; give at least {1 + has_bos}")
    ids, sizes, document = encoded(corpus, language, tokenizer)
    warn_of_unknown(ids, tokenizer, language)
    if layout == "stream":
        rows = streamed(ids, sizes, document, room)
        if not len(rows[0]):
            raise ValueError(
                f"corpus has no text for {language!r} after dropping the last partial window: {len(ids)} tokens, one "
                f"window needs {room}; give more text or a smaller window"
            )
    else:
        rows = padded(ids, sizes, document, room, tokenizer.pad_token_id or 0)
    tokens, valid, n_bytes, first = rows
    if has_bos:
        tokens = torch.nn.functional.pad(tokens, (1, 0), value=tokenizer.bos_token_id)
        valid = torch.nn.functional.pad(valid, (1, 0), value=bos == "count")
        n_bytes = torch.nn.functional.pad(n_bytes, (1, 0))
    return TokenRows(language, tokens, valid, n_bytes, first)


Encoded = tuple[Int[Tensor, " token"], Int[Tensor, " token"], Int[Tensor, " token"]]

Rows = tuple[Int[Tensor, "row pos"], Bool[Tensor, "row pos"], Int[Tensor, "row pos"], Int[Tensor, " row"]]


def encoded(corpus: Corpus, language: str, tokenizer: PreTrainedTokenizerBase) -> Encoded:
    """Ids of all documents one after another, the bytes each id stands for, and its document's number."""
    documents = corpus.take([language]).documents[language]
    ids, sizes, numbers = [], [], []
    for start in range(0, len(documents), CHUNK):
        texts = list(documents[start : start + CHUNK])
        options: dict[str, Any] = {"add_special_tokens": False, "return_attention_mask": False, "verbose": False}
        result = tokenizer(texts, return_offsets_mapping=tokenizer.is_fast, **options)
        for i, (text, row) in enumerate(zip(texts, result["input_ids"], strict=True)):
            ids.append(torch.tensor(row, dtype=torch.int64))
            sizes.append(byte_sizes(text, row, result["offset_mapping"][i] if tokenizer.is_fast else None, tokenizer))
            numbers.append(torch.full((len(row),), start + i))
    return torch.cat(ids), torch.cat(sizes), torch.cat(numbers)


def byte_sizes(
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


def streamed(ids: Tensor, sizes: Tensor, document: Tensor, room: int) -> Rows:
    """Full windows, the tail dropped."""
    n_rows = len(ids) // room
    tokens, n_bytes, number = (t[: n_rows * room].view(n_rows, room) for t in (ids, sizes, document))
    return tokens, torch.ones_like(tokens, dtype=torch.bool), n_bytes, number[:, 0]


def padded(ids: Tensor, sizes: Tensor, document: Tensor, room: int, pad: int) -> Rows:
    """One document a row, going on in further rows where it is longer than a row."""
    lengths = document.unique_consecutive(return_counts=True)[1].tolist()
    cuts = [min(room, n - start) for n in lengths for start in range(0, n, room)]
    number = document[torch.tensor([0, *cuts[:-1]]).cumsum(0)]
    valid = torch.arange(min(room, max(lengths)))[None] < torch.tensor(cuts)[:, None]
    tokens = torch.full(valid.shape, pad)
    n_bytes = torch.zeros(valid.shape, dtype=torch.int64)
    tokens[valid], n_bytes[valid] = ids, sizes
    return tokens, valid, n_bytes, number


def warn_of_unknown(ids: Tensor, tokenizer: PreTrainedTokenizerBase, language: str) -> None:
    if tokenizer.unk_token_id is None or not len(ids):
        return
    share = (ids == tokenizer.unk_token_id).double().mean().item()
    if share > UNKNOWN_SHARE:
        warnings.warn(
            f"the tokenizer maps {share:.0%} of the tokens of {language!r} to unknown; "
            "its numbers say little about the language",
            stacklevel=3,
        )


def token_counts(corpus: Corpus, tokenizer: PreTrainedTokenizerBase) -> pd.DataFrame:
    """One row a language: language, n_documents, n_characters, n_bytes, n_tokens, bytes_per_token."""
    rows = []
    for language, texts in corpus.documents.items():
        n_tokens = len(encoded(corpus, language, tokenizer)[0])
        n_bytes = sum(len(t.encode()) for t in texts)
        row = {
            "language": language,
            "n_documents": len(texts),
            "n_characters": sum(map(len, texts)),
            "n_bytes": n_bytes,
        }
        rows.append({**row, "n_tokens": n_tokens, "bytes_per_token": n_bytes / max(1, n_tokens)})
    return pd.DataFrame(rows)
