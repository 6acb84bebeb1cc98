"""Rows of tokens, and batches of them."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property

import torch
from jaxtyping import Bool, Int
from torch import Tensor
from torch.nn.functional import pad
from tqdm.auto import tqdm

from .token_store import TextTokens

Places = tuple[Int[Tensor, " row"], Int[Tensor, " row"], Int[Tensor, " row"]]
"""Of every row, where it begins in the text, its tokens of text, and the document it begins in."""


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

    @property
    def width(self) -> int:
        """Positions of a row."""
        return self.tokens.shape[1]

    def __len__(self) -> int:
        return len(self.document)

    def batches(self, batch_size: int, start: int = 0, step: int = 1) -> Iterator[TokenRows]:
        """Rows in batches of similar length, longest first, each cut to its longest row.

        Args:
            start: number of the first batch that is wanted.
            step: the others are every so many batches behind it; what is left out is not made.
        """
        order = self._order()
        for first in range(start * batch_size, len(order), step * batch_size):
            yield self.pick(order[first : first + batch_size])

    def batch_tokens(self, batch_size: int) -> Int[Tensor, " batch"]:
        """`n_tokens` of every batch."""
        upto = self.n_counted()[self._order()].cumsum(0)
        ends = torch.arange(batch_size, len(self) + batch_size, batch_size).clamp(max=len(self))
        return upto[ends - 1].diff(prepend=torch.zeros(1, dtype=torch.int64))

    def _order(self) -> Int[Tensor, " row"]:
        return self.n_used().argsort(descending=True, stable=True)

    def pick(self, index: Int[Tensor, " picked"]) -> TokenRows:
        """Some of the rows, cut to the longest of them."""
        width = int(self.n_used()[index].max())
        parts = (self.tokens[index, :width], self.valid[index, :width], self.n_bytes[index, :width])
        return TokenRows(self.language, *parts, self.document[index])

    def n_used(self) -> Int[Tensor, " row"]:
        """Positions of each row up to its last valid token."""
        positions = torch.arange(1, self.valid.shape[1] + 1)
        return (self.valid * positions).amax(dim=1)

    def n_counted(self) -> Int[Tensor, " row"]:
        """Valid tokens of each row."""
        return self.valid.sum(dim=1)


def joined(parts: Sequence[TokenRows]) -> TokenRows:
    """Rows of several languages one after another, padded to the widest."""
    width = max(part.width for part in parts)

    def together(name: str) -> Tensor:
        return torch.cat([pad(getattr(part, name), (0, width - part.width)) for part in parts])

    document = torch.cat([part.document for part in parts])
    return TokenRows("", together("tokens"), together("valid"), together("n_bytes"), document)


def rows_bar(rows: Sequence[TokenRows], title: str, progress: bool) -> tqdm:
    """A progress bar over the rows of all languages."""
    return tqdm(total=sum(map(len, rows)), desc=title, unit="row", disable=not progress)


class TextRows(TokenRows):
    """Rows that are made when they are picked, from the tokens of a text that need not be in memory.

    The tensors of all rows at once are there too, for text that fits.
    """

    text: TextTokens
    start: Int[Tensor, " row"]
    length: Int[Tensor, " row"]
    prefix: tuple[int, ...]
    counted: bool
    padding: int

    def __init__(
        self,
        language: str,
        text: TextTokens,
        places: Places,
        prefix: tuple[int, ...],
        counted: bool,
        padding: int,
    ):
        """
        Args:
            prefix: ids in front of every row, valid where they are `counted`.
            padding: the id behind rows that are shorter than others.
        """
        start, length, document = places
        vars(self).update(language=language, text=text, start=start, length=length, document=document)
        vars(self).update(prefix=prefix, counted=counted, padding=padding)

    @cached_property
    def _whole(self) -> TokenRows:
        return self.pick(torch.arange(len(self)))

    @property
    def tokens(self) -> Int[Tensor, "row pos"]:
        return self._whole.tokens

    @property
    def valid(self) -> Bool[Tensor, "row pos"]:
        return self._whole.valid

    @property
    def n_bytes(self) -> Int[Tensor, "row pos"]:
        return self._whole.n_bytes

    @property
    def n_tokens(self) -> int:
        return int(self.n_counted().sum())

    @property
    def width(self) -> int:
        return len(self.prefix) + int(self.length.max())

    def n_used(self) -> Int[Tensor, " row"]:
        return self.length + len(self.prefix)

    def n_counted(self) -> Int[Tensor, " row"]:
        return self.length + len(self.prefix) * self.counted

    def pick(self, index: Int[Tensor, " picked"]) -> TokenRows:
        start, length, n_front = self.start[index], self.length[index], len(self.prefix)
        positions = torch.arange(int(length.max()))
        inside = positions < length[:, None]
        shape = (len(index), n_front + len(positions))
        tokens, n_bytes = torch.full(shape, self.padding), torch.zeros(shape, dtype=torch.int64)
        valid = torch.full(shape, self.counted)
        tokens[:, :n_front] = torch.tensor(self.prefix)
        valid[:, n_front:] = inside
        tokens[:, n_front:][inside], n_bytes[:, n_front:][inside] = self.text.at((start[:, None] + positions)[inside])
        return TokenRows(self.language, tokens, valid, n_bytes, self.document[index])
