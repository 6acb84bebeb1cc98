"""The tokens of a text: in memory, or on disk where its documents are too; there they are made once."""

from __future__ import annotations

import hashlib
import math
import zlib
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from itertools import chain, pairwise, repeat
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from jaxtyping import Int, Int32, Integer
from torch import Tensor
from tqdm.auto import tqdm

from .documents import StoredTexts, blocks_of, cache_folder, size_of, unframed
from .storage import load_record, save_record

if TYPE_CHECKING:  # takes a second to import
    from transformers import PreTrainedTokenizerBase

_SCHEMA = "tokens/1"
_ENCODED = 2**16
"""Characters tokenised at once."""


@dataclass(frozen=True, eq=False)
class Piece:
    """Tokens of some documents, one document after another."""

    ids: Int32[Tensor, " token"]
    n_bytes: Integer[Tensor, " token"]
    """UTF-8 bytes of the text that each token stands for, in as few bytes as they need."""
    lengths: Int32[Tensor, " document"]
    """Tokens of each document."""

    @property
    def checksum(self) -> int:
        """Of all numbers, to notice a damaged file."""
        parts = (self.ids, self.n_bytes, self.lengths)
        return zlib.crc32(b"".join(part.contiguous().numpy().tobytes() for part in parts))


@dataclass(frozen=True, eq=False)
class TextTokens:
    """The tokens of all documents of a text one after another, in pieces that are in memory or read when needed."""

    lengths: Int[Tensor, " document"]
    """Tokens of each document, as far as they were wanted."""
    ends: Int[Tensor, " piece"]
    """Tokens up to the end of each piece."""
    piece: Callable[[int], Piece]

    def __len__(self) -> int:
        return int(self.ends[-1]) if len(self.ends) else 0

    def at(self, places: Int[Tensor, " place"]) -> tuple[Int[Tensor, " place"], Int[Tensor, " place"]]:
        """Ids and bytes of the tokens at these places."""
        ids, n_bytes = torch.empty_like(places), torch.empty_like(places)
        number = torch.searchsorted(self.ends, places, right=True)
        for i in number.unique().tolist():
            here, piece = number == i, self.piece(i)
            inside = places[here] - (self.ends[i] - len(piece.ids))
            ids[here], n_bytes[here] = piece.ids[inside].long(), piece.n_bytes[inside].long()
        return ids, n_bytes

    def share(self, token: int, upto: int) -> float:
        """Share of one id among the first tokens; NaN of none."""
        found, starts = 0, [0, *self.ends.tolist()]
        for i, start in enumerate(starts[:-1]):
            if start < upto:
                found += int((self.piece(i).ids[: upto - start] == token).sum())
        return found / upto if upto else math.nan


def text_tokens(
    texts: Sequence[str],
    tokenizer: PreTrainedTokenizerBase,
    *,
    at_least: int | None = None,
    title: str = "tokenising",
    progress: bool = True,
) -> TextTokens:
    """The tokens of the documents, without special tokens.

    Documents on disk leave their tokens there, in the cache folder, under what the text and the tokenizer are: nothing
    is tokenised twice, in this process or another. A file that is damaged is made again.

    Args:
        at_least: no more pieces are looked at when so many tokens are there; None for all.
        progress: show a bar when it takes over two seconds.
    """
    store = _Store(tokenizer) if isinstance(texts, StoredTexts) else None
    lengths, ends, sources, n_tokens = [], [], [], 0
    for block in _shown(blocks_of(texts), texts, at_least, ends, title, progress):
        piece, source = store.piece(block) if store else _in_memory(_encoded(unframed(block), tokenizer))
        n_tokens += len(piece.ids)
        lengths.append(piece.lengths.clone())  # a part of the file would keep all of it in memory
        ends.append(n_tokens)
        sources.append(source)
        if at_least is not None and n_tokens >= at_least:
            break
    return TextTokens(torch.cat(lengths).long(), torch.tensor(ends), lambda i: sources[i]())


def _in_memory(piece: Piece) -> tuple[Piece, Callable[[], Piece]]:
    return piece, lambda: piece


def _shown(
    blocks: Iterable[bytes], texts: Sequence[str], at_least: int | None, ends: list[int], title: str, progress: bool
) -> Iterator[bytes]:
    """The blocks, with a bar over the bytes of text that are needed."""
    size = size_of(texts)
    with tqdm(total=size, desc=title, unit="B", unit_scale=True, delay=2, disable=not progress) as bar:
        done = 0
        for block in blocks:
            yield block
            done += len(block)
            if at_least is not None and ends[-1]:
                bar.total = min(size, math.ceil(at_least / ends[-1] * done))
            bar.update(min(done, bar.total) - bar.n)


class _Store:
    """Pieces of text tokenised by one tokenizer, each in a file of the cache folder named after the text itself."""

    def __init__(self, tokenizer: PreTrainedTokenizerBase):
        self.tokenizer = tokenizer
        self.folder = cache_folder() / "tokens" / tokenizer_key(tokenizer)

    def piece(self, block: bytes) -> tuple[Piece, Callable[[], Piece]]:
        """The tokens of a block of documents, and a way to read them again."""
        name = hashlib.sha256(block).hexdigest()
        path = self.folder / name[:2] / f"{name[2:]}.safetensors"
        piece = _read_piece(path)
        if piece is None:
            piece = _encoded(unframed(block), self.tokenizer)
            parts = {"ids": piece.ids, "n_bytes": piece.n_bytes, "lengths": piece.lengths}
            save_record(path, _SCHEMA, parts, {"checksum": piece.checksum})
        return piece, lambda: Piece(**load_record(path, _SCHEMA)[0])


def _read_piece(path: Path) -> Piece | None:
    """What is in the file; None where there is none or it is damaged."""
    try:
        parts, header = load_record(path, _SCHEMA)
        piece = Piece(**parts)
    except (OSError, ValueError, TypeError):
        return None
    return piece if header.get("checksum") == piece.checksum else None


def tokenizer_key(tokenizer: PreTrainedTokenizerBase) -> str:
    """32 hex digits of all that the tokenizer could be made of again, and of the code that would make it."""
    import tokenizers
    import transformers

    # Takes back the padding or cutting of an earlier call, which a tokenizer would save with its rules.
    tokenizer("a", add_special_tokens=False)
    kind = type(tokenizer)
    versions = (kind.__module__, kind.__qualname__, transformers.__version__, tokenizers.__version__)
    digest = hashlib.sha256(repr(versions).encode())
    with TemporaryDirectory() as folder:
        tokenizer.save_pretrained(folder)
        for path in sorted(p for p in Path(folder).rglob("*") if p.is_file()):
            content = path.read_bytes()
            digest.update(f"{path.relative_to(folder)}\0{len(content)}\0".encode() + content)
    return digest.hexdigest()[:32]


def _encoded(texts: list[str], tokenizer: PreTrainedTokenizerBase) -> Piece:
    """The documents' tokens, and the bytes each stands for.

    Some documents at a time: what a tokenizer gives takes fifty times as much memory as what is kept of it.
    """
    upto = np.cumsum([len(text) for text in texts])
    edges = np.searchsorted(upto, np.arange(_ENCODED, upto[-1], _ENCODED), side="right")
    parts = [_encoded_at_once(texts[a:b], tokenizer) for a, b in pairwise(np.unique([0, *edges, len(texts)]))]
    ids, sizes, lengths = (np.concatenate(part) for part in zip(*parts, strict=True))
    small = np.uint8 if sizes.max(initial=0) < 256 else np.int32
    return Piece(*(torch.from_numpy(part) for part in (ids, sizes.astype(small), lengths)))


def _encoded_at_once(texts: list[str], tokenizer: PreTrainedTokenizerBase) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Ids, bytes of each token, and tokens of each document."""
    options: dict[str, Any] = {"add_special_tokens": False, "return_attention_mask": False, "verbose": False}
    result = tokenizer(texts, return_offsets_mapping=tokenizer.is_fast, **options)
    rows = result["input_ids"]
    lengths = np.fromiter(map(len, rows), dtype=np.int32, count=len(rows))
    ids = np.fromiter(chain.from_iterable(rows), dtype=np.int32, count=int(lengths.sum()))
    if tokenizer.is_fast:
        ends = (end for row in result["offset_mapping"] for _, end in row)
        sizes = _byte_sizes(texts, lengths, np.fromiter(ends, dtype=np.int64, count=len(ids)))
    else:
        sizes = np.concatenate([np.zeros(0, np.int64), *map(_shared_out, texts, rows, repeat(tokenizer))])
    return ids, sizes, lengths


def _byte_sizes(texts: Sequence[str], lengths: np.ndarray, ends: np.ndarray) -> np.ndarray:
    """UTF-8 bytes of the text between the end of one token and the end of the next; they add up to the whole text.

    A character that is split over several tokens counts with the first of them.

    Args:
        lengths: tokens of each document.
        ends: of each token in its document, in characters.
    """
    codes = np.frombuffer("".join(texts).encode("utf-32-le"), dtype="<u4")
    upto = np.concatenate([[0], (1 + (codes > 0x7F) + (codes > 0x7FF) + (codes > 0xFFFF)).cumsum()])
    borders = np.concatenate([[0], np.cumsum([len(text) for text in texts], dtype=np.int64)])
    last = lengths.cumsum()[lengths > 0] - 1
    first = last + 1 - lengths[lengths > 0]
    behind = np.maximum.accumulate(upto[ends + np.repeat(borders[:-1], lengths)])
    behind[last] = upto[borders[1:][lengths > 0]]
    before = np.concatenate([[0], behind[:-1]])[: len(behind)]
    before[first] = upto[borders[:-1][lengths > 0]]
    return behind - before


def _shared_out(text: str, ids: Sequence[int], tokenizer: PreTrainedTokenizerBase) -> np.ndarray:
    """The text's bytes shared out in proportion to the length of each token's own text, for slow tokenizers."""
    own = torch.tensor([len(tokenizer.decode([i]).encode()) or 1 for i in ids], dtype=torch.float64)
    ends = (own.cumsum(0) / own.sum() * len(text.encode())).round().long()
    return ends.diff(prepend=torch.zeros(1, dtype=torch.int64)).numpy() if ids else np.zeros(0, np.int64)
