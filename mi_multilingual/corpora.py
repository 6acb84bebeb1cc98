"""Text in several languages."""

import csv
import gzip
import hashlib
import json
import warnings
import zlib
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from importlib.resources import files
from itertools import combinations, islice
from pathlib import Path
from types import MappingProxyType
from typing import Any

import numpy as np

from .display import Summarised
from .documents import blocks_of, kept
from .storage import is_like_a_path

_ENDINGS = (".txt", ".txt.gz", ".jsonl", ".parquet")
_TABLES = (".tsv", ".tsv.gz")

WITHOUT_SPACES = ("ja", "km", "lo", "my", "th", "zh")
"""Languages whose words are not separated by spaces."""

DEMO_LANGUAGES = ("en", "de", "es", "fr", "id", "ja", "ru", "tr", "vi", "zh")


@dataclass(frozen=True, repr=False)
class Corpus(Summarised):
    """Documents of every language, in a fixed order of languages; text is taken as it is, not normalised."""

    documents: Mapping[str, Sequence[str]]
    """Tuples, or, where `load_corpus` found more text than memory should hold, sequences that read it from the disk."""
    source: str

    def __post_init__(self) -> None:
        if not self.documents:
            raise ValueError(f"corpus {self.source} has no language; name at least one")
        for language, texts in self.documents.items():
            if not any(text.strip() for text in texts):
                raise ValueError(
                    f"corpus {self.source} has no text for {language!r}; give some or leave the language out"
                )
        object.__setattr__(self, "documents", MappingProxyType(dict(self.documents)))

    @property
    def languages(self) -> tuple[str, ...]:
        return tuple(self.documents)

    @cached_property
    def fingerprint(self) -> str:
        """16 hex digits of the languages, their order and every document."""
        digest = hashlib.sha256()
        for language, texts in self.documents.items():
            digest.update(f"{language}\0{len(texts)}\0".encode())
            for block in blocks_of(texts):
                digest.update(block)
        return digest.hexdigest()[:16]

    def summary(self) -> tuple[str, Mapping[str, Sequence[Any]]]:
        return self.source, {"language": self.languages, "documents": [len(d) for d in self.documents.values()]}

    def take(self, languages: Sequence[str]) -> "Corpus":
        """The same corpus in these languages only, in this order."""
        missing = [k for k in languages if k not in self.documents]
        if missing:
            raise ValueError(f"corpus {self.source} has no {missing[0]!r}; it has {', '.join(self.documents)}")
        return Corpus({k: self.documents[k] for k in languages}, self.source)

    def first(self, n: int) -> "Corpus":
        """The first documents of every language."""
        return Corpus({k: tuple(islice(texts, n)) for k, texts in self.documents.items()}, f"{self.source}, first {n}")


def load_corpus(
    source: str | Path,
    *,
    languages: Sequence[str] | None = None,
    split: str | None = None,
    config: str | None = None,
    column: str = "text",
    max_documents: int | None = None,
) -> Corpus:
    """Text of several languages.

    What goes beyond 64 million characters is not held in memory, but in a file of the cache folder
    ($MI_MULTILINGUAL_CACHE, by default mi_multilingual in the user's cache) that is gone with the process.

    Args:
        source: "demo" (aligned sentences, splits "identify" and "evaluate"); a folder with one file per language,
            `<language>.txt`, `.txt.gz` (a document a line that is not empty), `.jsonl` or `.parquet`, or, with
            `split`, `<language>.<split>.txt` and so on; a file `.tsv` or `.tsv.gz` of translations, whose first line
            names the columns, one of numbers or names of the lines and then one for each language (its parts
            "identify" and "evaluate" are every other line, from the first and from the second on); or the id of a
            Hugging Face data set.
        languages: which, in this order; by default all of a folder, in alphabetical order, or of a file.
        split: of a data set, "train" by default.
        config: a data set's configuration for a language, with `{language}` for its code, e.g. "20231101.{language}".
        column: of jsonl, parquet and data sets: where the text is.
        max_documents: at most so many per language, the first ones; a data set is streamed no further.

    Raises:
        ValueError: a file that is missing, empty, not UTF-8 or lacks the column, with file and line.

    Warns:
        UserWarning: documents that occur in two languages.
    """
    if source == "demo":
        documents = _demo_documents(languages or DEMO_LANGUAGES, split)
    elif Path(source).name.endswith(_TABLES) and Path(source).is_file():
        documents = _table_documents(Path(source), languages, split)
    elif Path(source).is_dir() and config is None:
        documents = _folder_documents(Path(source), languages, split, column)
    elif config is None and is_like_a_path(source) and not Path(source).exists():
        raise ValueError(
            f"source must be a folder, 'demo' or the id of a data set, got {str(source)!r}, which is not there"
        )
    elif config is not None or not Path(source).exists():
        documents = _hub_documents(str(source), languages, split or "train", config, column, max_documents)
    else:
        raise ValueError(
            f"source must be a folder with <language>.txt files or a file of translations ({', '.join(_TABLES)}), got "
            f"the file {str(source)!r}"
        )
    corpus = Corpus(kept({k: islice(texts, max_documents) for k, texts in documents.items()}), str(source))
    _warn_of_shared_documents(corpus)
    return corpus


_LINES = {None: slice(None), "identify": slice(0, None, 2), "evaluate": slice(1, None, 2)}
"""The lines of each part of a table."""


def _demo_documents(languages: Sequence[str], split: str | None) -> dict[str, tuple[str, ...]]:
    """The embedded sentences, aligned by position over languages."""
    if unknown := [k for k in languages if k not in DEMO_LANGUAGES]:
        raise ValueError(f"the demo corpus has no {unknown[0]!r}; it has {', '.join(DEMO_LANGUAGES)}")
    if split not in (None, "identify", "evaluate"):
        raise ValueError(f"split of the demo corpus must be 'identify' or 'evaluate', got {split!r}")
    lines = files("mi_multilingual").joinpath("demo", "corpus.jsonl").read_text(encoding="utf-8").splitlines()
    rows = [row for row in map(json.loads, lines) if split in (None, row["split"])]
    return {k: tuple(row[k] for row in rows) for k in languages}


def _folder_documents(
    folder: Path, languages: Sequence[str] | None, split: str | None, column: str
) -> dict[str, Iterator[str]]:
    """One reader per language for the files of a folder."""
    endings = [f".{split}{ending}" if split else ending for ending in _ENDINGS]
    found: dict[str, Path] = {}
    for path in sorted(folder.iterdir()):
        for ending in endings:
            language = path.name.removesuffix(ending)
            if language == path.name or "." in language:
                continue
            if language in found:
                raise ValueError(
                    f"{folder} has two files for {language!r}: {found[language].name} and {path.name}; keep one"
                )
            found[language] = path
    if not found:
        raise ValueError(f"{folder} has no <language>{endings[0]} (or {', '.join(endings[1:])}) file")
    for language in languages or ():
        if language not in found:
            raise ValueError(
                f"{folder} has no file for {language!r}, such as {language}{endings[0]}; it has {', '.join(found)}"
            )
    return {k: _file_documents(found[k], column) for k in languages or found}


def _table_documents(path: Path, languages: Sequence[str] | None, split: str | None) -> dict[str, tuple[str, ...]]:
    """The columns of a table of translations; a cell that holds quotes may be quoted, as in CSV."""
    if split not in _LINES:
        raise ValueError(
            f"split of {path} must be 'identify' or 'evaluate', every other line each, or left out, got {split!r}"
        )
    with (gzip.open if path.suffix == ".gz" else open)(path, "rb") as file:
        lines = (_decoded(raw, path, number) for number, raw in enumerate(_lines_of(file, path), start=1))
        reader = csv.reader(lines, delimiter="\t", strict=True)
        # The first column is known by its place: "id" is Indonesian, too.
        _, *known = next(reader, [""])
        if missing := [k for k in languages or () if k not in known]:
            raise ValueError(f"{path} has no column {missing[0]!r}; it has {', '.join(known)}")
        rows = []
        for _, *cells in _read_rows(reader, path):
            if len(cells) != len(known) or not all(map(str.strip, cells)):
                raise ValueError(
                    f"{path}, line {reader.line_num}: must have a text in each of {', '.join(known)}; complete or "
                    "remove the line"
                )
            rows.append(dict(zip(known, cells, strict=True)))
    return {k: tuple(row[k] for row in rows[_LINES[split]]) for k in languages or known}


def _read_rows(reader: Iterator[list[str]], path: Path) -> Iterator[list[str]]:
    """The rows of a table.

    Raises:
        ValueError: a quote that does not end.
    """
    try:
        yield from reader
    except csv.Error as error:
        raise ValueError(f"{path}: not a table of tab-separated columns ({error}); mend the file") from error


def _decoded(raw: bytes, path: Path, number: int) -> str:
    """One line of a file as text."""
    try:
        return raw.decode("utf-8")
    except UnicodeDecodeError as error:
        raise ValueError(f"{path}, line {number}: not UTF-8 ({error.reason}); convert the file") from error


def _file_documents(path: Path, column: str) -> Iterator[str]:
    """The documents of one file."""
    if path.stat().st_size == 0:
        raise ValueError(f"{path} is empty")
    if path.suffix == ".parquet":
        yield from _parquet_documents(path, column)
        return
    opener = gzip.open if path.suffix == ".gz" else open
    with opener(path, "rb") as file:
        for number, raw in enumerate(_lines_of(file, path), start=1):
            line = _decoded(raw, path, number).rstrip("\r\n")
            if line.strip():
                yield _json_text(line, column, f"{path}, line {number}") if path.suffix == ".jsonl" else line


def _lines_of(file: Iterable[bytes], path: Path) -> Iterator[bytes]:
    """The lines of a file, compressed or not.

    Raises:
        ValueError: it is damaged.
    """
    try:
        yield from file
    except (gzip.BadGzipFile, EOFError, zlib.error) as error:
        raise ValueError(f"{path} must be a whole gzip file, got {error}; compress the text again") from error


def _json_text(line: str, column: str, place: str) -> str:
    """The text of one line of JSON."""
    try:
        row = json.loads(line)
    except json.JSONDecodeError as error:
        raise ValueError(f"{place}: not JSON ({error.msg}); mend or remove the line") from error
    if not isinstance(row, dict) or not isinstance(row.get(column), str):
        raise ValueError(f"{place}: no text in column {column!r}; name the right one with column=")
    return row[column]


def _parquet_documents(path: Path, column: str) -> Iterator[str]:
    import pyarrow.parquet as pq

    table = pq.ParquetFile(path)
    if column not in table.schema_arrow.names:
        raise ValueError(
            f"{path}: no column {column!r}, it has {', '.join(table.schema_arrow.names)}; name one with column="
        )
    row = 0
    for batch in table.iter_batches(columns=[column]):
        for text in batch.column(0).to_pylist():
            row += 1
            if not isinstance(text, str):
                raise ValueError(f"{path}, row {row}: column {column!r} holds {text!r}, no text; remove the row")
            yield text


def _hub_documents(
    source: str, languages: Sequence[str] | None, split: str, config: str | None, column: str, max_documents: int | None
) -> dict[str, Iterator[str]]:
    """One streaming reader per language for a Hugging Face data set."""
    from datasets import load_dataset

    if not languages:
        raise ValueError(
            f"languages must be named for a data set: load_corpus({source!r}, languages=['en', ...]); there is no "
            f"folder {source!r} either"
        )

    def documents(language: str) -> Iterator[str]:
        name = config.format(language=language) if config else language
        try:
            rows = load_dataset(source, name, split=split, streaming=True)
        except (OSError, ValueError) as error:
            raise ValueError(f"cannot load {source!r} ({name!r}, {split!r}): {' '.join(str(error).split())}") from error
        for number, row in enumerate(islice(rows, max_documents), start=1):
            if not isinstance(row.get(column), str):
                raise ValueError(
                    f"{source} ({name}), row {number}: no text in column {column!r}, it has {', '.join(row)}"
                )
            yield row[column]

    return {k: documents(k) for k in languages}


def _warn_of_shared_documents(corpus: Corpus) -> None:
    """Warn where two languages have documents in common: their statistics would share what they should compare."""
    if len(corpus.languages) < 2:
        return
    # Eight bytes a document: the texts themselves may be more than memory holds.
    unique = {k: np.unique(_hashes(texts), return_index=True) for k, texts in corpus.documents.items()}
    for left, right in combinations(unique, 2):
        (hashes, first), (others, _) = unique[left], unique[right]
        places = first[np.isin(hashes, others, assume_unique=True)]
        if len(places):
            share = len(places) / min(len(hashes), len(others))
            example = min((corpus.documents[left][int(i)] for i in sorted(places)), key=len)
            warnings.warn(
                f"{len(places)} documents are the same in {left!r} and {right!r} ({share:.1%} of the smaller), "
                f"e.g. {example[:40]!r}; remove them from one",
                stacklevel=3,
            )


def _hashes(texts: Sequence[str]) -> np.ndarray:
    """64 bits of every document, the same for the same text as long as the process runs."""
    return np.fromiter(map(hash, texts), dtype=np.int64, count=len(texts))


def at_least_two(languages: Sequence[str]) -> None:
    """Raise unless there are languages to compare."""
    if len(languages) < 2:
        raise ValueError(f"there must be at least two languages to compare, got {tuple(languages)}; record more")
