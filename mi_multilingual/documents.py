"""Documents that are too many for the memory: in a file, read again when they are asked for."""

import os
import tempfile
import weakref
from array import array
from collections.abc import Iterable, Iterator, Sequence
from itertools import chain, pairwise
from pathlib import Path
from typing import IO, overload

import numpy as np

_IN_MEMORY = 64 * 2**20
"""Characters of a corpus that are kept in memory; what goes beyond them goes to the disk."""
_AT_ONCE = 2**20  # bytes of text read or tokenised at once
_FRAME = 8  # bytes in front of every document, its length


class _Unnamed:
    """A file that nothing else knows of, and that is gone when nobody reads it any more."""

    def __init__(self, file: IO[bytes]):
        self._number = os.dup(file.fileno())
        weakref.finalize(self, os.close, self._number)

    def read(self, start: int, end: int) -> bytes:
        return os.pread(self._number, end - start, start)


class StoredTexts(Sequence[str]):
    """The documents of one language on disk; a part of them reads the same file."""

    def __init__(self, file: _Unnamed, starts: np.ndarray, ends: np.ndarray):
        self._file, self._starts, self._ends = file, starts, ends

    def __len__(self) -> int:
        return len(self._starts)

    @overload
    def __getitem__(self, index: int) -> str: ...
    @overload
    def __getitem__(self, index: slice) -> Sequence[str]: ...
    def __getitem__(self, index: int | slice) -> str | Sequence[str]:
        if isinstance(index, slice):
            return StoredTexts(self._file, self._starts[index], self._ends[index])
        start, end = int(self._starts[index]), int(self._ends[index])
        return self._file.read(start, end)[_FRAME:].decode()

    def __iter__(self) -> Iterator[str]:
        for block in self.blocks():
            yield from unframed(block)

    @property
    def size(self) -> int:
        """Bytes of all documents and of the lengths in front of them."""
        return int((self._ends - self._starts).sum())

    def blocks(self) -> Iterator[bytes]:
        """Documents one after another, some at a time, as `framed` makes them."""
        upto = (self._ends - self._starts).cumsum()
        size = int(upto[-1]) if len(self) else 0
        # The first document behind every so many bytes: the same cuts wherever the documents lie in the file.
        edges = np.unique(np.searchsorted(upto, np.arange(0, size, _AT_ONCE), side="right"))
        for first, behind in pairwise([*edges, len(self)]):
            starts, ends = self._starts[first:behind], self._ends[first:behind]
            if (starts[1:] == ends[:-1]).all():
                yield self._file.read(int(starts[0]), int(ends[-1]))
            else:
                yield b"".join(self._file.read(int(a), int(b)) for a, b in zip(starts, ends, strict=True))


def framed(text: str) -> bytes:
    """A document behind its length in bytes."""
    encoded = text.encode()
    return len(encoded).to_bytes(_FRAME, "little") + encoded


def unframed(block: bytes) -> list[str]:
    """The documents of a block."""
    texts, place = [], 0
    while place < len(block):
        start = place + _FRAME
        place = start + int.from_bytes(block[place:start], "little")
        texts.append(block[start:place].decode())
    return texts


def blocks_of(texts: Sequence[str]) -> Iterator[bytes]:
    """All documents one after another, some at a time, as `framed` makes them."""
    if isinstance(texts, StoredTexts):
        yield from texts.blocks()
        return
    block = bytearray()
    for text in texts:
        block += framed(text)
        if len(block) >= _AT_ONCE:
            yield bytes(block)
            block.clear()
    if block:
        yield bytes(block)


def size_of(texts: Sequence[str]) -> int:
    """Bytes that `blocks_of` will give."""
    if isinstance(texts, StoredTexts):
        return texts.size
    return sum(_FRAME + len(text.encode()) for text in texts)


def kept(languages: dict[str, Iterator[str]]) -> dict[str, Sequence[str]]:
    """The documents of every language, in memory as long as there is room, then in files."""
    room, found = _IN_MEMORY, {}
    for language, texts in languages.items():
        first: list[str] = []
        for text in texts:
            first.append(text)
            room -= len(text)
            if room < 0:
                break
        found[language] = tuple(first) if room >= 0 else _stored(chain(first, texts))
    return found


def _stored(texts: Iterable[str]) -> StoredTexts:
    """The documents in a file without a name."""
    ends, end = array("q"), 0
    with tempfile.TemporaryFile(dir=cache_folder()) as file:
        for text in texts:
            end += file.write(framed(text))
            ends.append(end)
        file.flush()
        behind = np.frombuffer(ends, dtype=np.int64)
        return StoredTexts(_Unnamed(file), np.concatenate([[0], behind[:-1]]), behind)


def cache_folder() -> Path:
    """Where this package keeps what it can make again: $MI_MULTILINGUAL_CACHE, or a folder in the user's cache.

    Raises:
        ValueError: it cannot be made.
    """
    users = os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache"
    folder = Path(os.environ.get("MI_MULTILINGUAL_CACHE") or Path(users) / "mi_multilingual").expanduser()
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise ValueError(
            f"the cache must be a folder that can be written, got {folder} ({error.strerror}); name another in "
            "MI_MULTILINGUAL_CACHE"
        ) from error
    return folder
