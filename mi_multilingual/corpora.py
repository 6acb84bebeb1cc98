"""Text in several languages, and how it becomes rows of tokens."""

import gzip
import hashlib
import json
import warnings
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from importlib.resources import files
from itertools import islice
from pathlib import Path
from types import MappingProxyType
from typing import Any

import pandas as pd
import torch
from jaxtyping import Bool, Int
from torch import Tensor
from transformers import PreTrainedTokenizerBase

ENDINGS = (".txt", ".txt.gz", ".jsonl", ".parquet")
CHUNK = 1000  # documents tokenised at once
UNKNOWN_SHARE = 0.05
WITHOUT_SPACES = ("ja", "km", "lo", "my", "th", "zh")
"""Languages whose words are not separated by spaces."""
DEMO_LANGUAGES = ("en", "de", "es", "fr", "id", "ja", "ru", "tr", "vi", "zh")


@dataclass(frozen=True)
class Corpus:
    """Documents of every language, in a fixed order of languages; text is taken as it is, not normalised."""

    documents: Mapping[str, tuple[str, ...]]
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

    @property
    def fingerprint(self) -> str:
        """16 hex digits of the languages, their order and every document."""
        digest = hashlib.sha256()
        for language, texts in self.documents.items():
            digest.update(f"{language}\0{len(texts)}\0".encode())
            for text in texts:
                encoded = text.encode()
                digest.update(len(encoded).to_bytes(8, "little") + encoded)
        return digest.hexdigest()[:16]

    def take(self, languages: Sequence[str]) -> "Corpus":
        """The same corpus in these languages only, in this order."""
        missing = [k for k in languages if k not in self.documents]
        if missing:
            raise ValueError(f"corpus {self.source} has no {missing[0]!r}; it has {', '.join(self.documents)}")
        return Corpus({k: self.documents[k] for k in languages}, self.source)


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

    Args:
        source: "demo" (aligned sentences, splits "identify" and "evaluate"); a folder with a file a language,
            `<language>.txt`, `.txt.gz` (a document a line that is not empty), `.jsonl` or `.parquet`, or, with
            `split`, `<language>.<split>.txt` and so on; or the id of a Hugging Face data set.
        languages: which, in this order; all of a folder, in alphabetical order, by default.
        split: of a data set, "train" by default.
        config: a data set's configuration for a language, with `{language}` for its code, e.g. "20231101.{language}".
        column: of jsonl, parquet and data sets: where the text is.
        max_documents: at most so many a language, the first ones; a data set is streamed no further.

    Raises:
        ValueError: a file that is missing, empty, not UTF-8 or lacks the column, with file and line.

    Warns:
        UserWarning: documents that occur in two languages.
    """
    if source == "demo":
        documents = demo_documents(languages or DEMO_LANGUAGES, split)
    elif Path(source).is_dir() and config is None:
        documents = folder_documents(Path(source), languages, split, column)
    elif config is not None or not Path(source).exists():
        documents = hub_documents(str(source), languages, split or "train", config, column, max_documents)
    else:
        raise ValueError(f"{str(source)!r} is a file; give the folder that holds <language>.txt files")
    corpus = Corpus({k: tuple(islice(texts, max_documents)) for k, texts in documents.items()}, str(source))
    warn_of_shared_documents(corpus)
    return corpus


def demo_documents(languages: Sequence[str], split: str | None) -> dict[str, tuple[str, ...]]:
    """The embedded sentences, aligned by position over languages."""
    if unknown := [k for k in languages if k not in DEMO_LANGUAGES]:
        raise ValueError(f"the demo corpus has no {unknown[0]!r}; it has {', '.join(DEMO_LANGUAGES)}")
    if split not in (None, "identify", "evaluate"):
        raise ValueError(f"the demo corpus has no split {split!r}; choose 'identify' or 'evaluate'")
    lines = files("mi_multilingual").joinpath("demo", "corpus.jsonl").read_text(encoding="utf-8").splitlines()
    rows = [row for row in map(json.loads, lines) if split in (None, row["split"])]
    return {k: tuple(row[k] for row in rows) for k in languages}


def folder_documents(
    folder: Path, languages: Sequence[str] | None, split: str | None, column: str
) -> dict[str, Iterator[str]]:
    """A reader a language for the files of a folder."""
    endings = [f".{split}{ending}" if split else ending for ending in ENDINGS]
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
    return {k: file_documents(found[k], column) for k in languages or found}


def file_documents(path: Path, column: str) -> Iterator[str]:
    """The documents of one file."""
    if path.stat().st_size == 0:
        raise ValueError(f"{path} is empty")
    if path.suffix == ".parquet":
        yield from parquet_documents(path, column)
        return
    opener = gzip.open if path.suffix == ".gz" else open
    with opener(path, "rb") as file:
        for number, raw in enumerate(file, start=1):
            try:
                line = raw.decode("utf-8").rstrip("\r\n")
            except UnicodeDecodeError as error:
                raise ValueError(f"{path}, line {number}: not UTF-8 ({error.reason}); convert the file") from error
            if line.strip():
                yield json_text(line, column, f"{path}, line {number}") if path.suffix == ".jsonl" else line


def json_text(line: str, column: str, place: str) -> str:
    """The text of one line of JSON."""
    try:
        row = json.loads(line)
    except json.JSONDecodeError as error:
        raise ValueError(f"{place}: not JSON ({error.msg}); mend or remove the line") from error
    if not isinstance(row, dict) or not isinstance(row.get(column), str):
        raise ValueError(f"{place}: no text in column {column!r}; name the right one with column=")
    return row[column]


def parquet_documents(path: Path, column: str) -> Iterator[str]:
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


def hub_documents(
    source: str, languages: Sequence[str] | None, split: str, config: str | None, column: str, max_documents: int | None
) -> dict[str, Iterator[str]]:
    """A streaming reader a language for a Hugging Face data set."""
    from datasets import load_dataset

    if not languages:
        raise ValueError(
            f"name the languages to take from data set {source!r}: load_corpus(..., languages=['en', ...])"
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


def warn_of_shared_documents(corpus: Corpus) -> None:
    """Warn where two languages have documents in common: their statistics would share what they should compare."""
    unique = {k: set(texts) for k, texts in corpus.documents.items()}
    names = list(unique)
    for i, left in enumerate(names):
        for right in names[i + 1 :]:
            if shared := unique[left] & unique[right]:
                share = len(shared) / min(len(unique[left]), len(unique[right]))
                warnings.warn(
                    f"{len(shared)} documents are the same in {left!r} and {right!r} ({share:.1%} of the smaller), "
                    f"e.g. {min(shared, key=len)[:40]!r}; remove them from one",
                    stacklevel=3,
                )


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
