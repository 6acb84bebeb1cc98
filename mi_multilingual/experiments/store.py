"""A run folder, which is the whole truth about a sweep: what was asked, what is done, what came out.

=====================  ============================================================================================
study.yaml             the settings as they were given, with defaults and preset filled in
cells.json             the cells of the study, in the order of the table, and the version of this package's results
environment.json       versions, git commit, hardware and seeds of every start
fingerprints.json      of models, tokenizers, corpora and questions
sweep.parquet          all rows of results/, in that order, and sweep_effects.parquet, their means by setting
results/*.parquet      one file per cell, named by the cell's key and the digest of the file's content
failed/*.json          the error of each cell that failed
damaged/               files that were found broken, set aside
cache/*.safetensors    evidence and neuron sets, which can be computed again
lock                   who is writing
=====================  ============================================================================================
"""

import errno
import fcntl
import hashlib
import io
import json
import os
import re
import socket
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq

_RESULT = re.compile(r"(?P<key>[0-9a-f]{16,64})\.(?P<digest>[0-9a-f]{16})\.parquet")
_TRIES = 5
_SECONDS = b"mi_multilingual.seconds"


class Unwritable(OSError):
    """The folder takes no more: full, read-only, or not ours. What is written stays whole."""


class Unreadable(ValueError):
    """A file of the folder is missing or damaged."""


@dataclass(frozen=True)
class Store:
    """The files of one run folder."""

    folder: Path

    def path(self, *names: str) -> Path:
        """A path in the folder.

        Raises:
            ValueError: it would lead out of the folder, by its name or through a link.
        """
        path = self.folder.joinpath(*names)
        if not path.resolve().is_relative_to(self.folder.resolve()) or path.resolve() == self.folder.resolve():
            raise ValueError(f"{'/'.join(names)!r} leads out of the run folder {self.folder}; give a plain name")
        return path

    def write(self, path: Path, content: bytes) -> None:
        """Write all or nothing, and not return before it is on the disk.

        Raises:
            Unwritable: the disk is full or the folder cannot be written; nothing that was there is touched.
        """
        partial = path.with_name(f".{path.name}.{os.getpid()}.partial")
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
            with partial.open("wb") as file:
                put(file, content)
                file.flush()
                os.fsync(file.fileno())
            partial.replace(path)
            sync_folder(path.parent)
        except OSError as error:
            with suppress(OSError):
                partial.unlink(missing_ok=True)
            raise _unwritable(self.folder, error) from error

    def write_json(self, name: str, content: Any) -> None:
        """Write a JSON file at the top of the folder."""
        self.write(self.path(name), (json.dumps(content, indent=1, ensure_ascii=False) + "\n").encode())

    def read_json(self, name: str) -> Any:
        """The content of a JSON file of the folder.

        Raises:
            Unreadable: it is missing or damaged.
        """
        path = self.path(name)
        try:
            return json.loads(path.read_text(encoding="utf-8"))
        except FileNotFoundError as error:
            raise Unreadable(
                f"{self.folder} must hold a sweep, got no {name}; begin one with `mi-multilingual run`"
            ) from error
        except ValueError as error:
            raise damaged(path, str(error)) from error

    def add_result(self, key: str, table: pd.DataFrame, *, seconds: float = 0.0) -> Path:
        """Write the rows of one cell, for good; a failure noted before is forgotten.

        Args:
            seconds: time that the cell took; kept beside the table, since it is no part of the result.
        """
        arrow = pa.Table.from_pandas(table, preserve_index=False)
        arrow = arrow.replace_schema_metadata({**(arrow.schema.metadata or {}), _SECONDS: f"{seconds:.3f}".encode()})
        buffer = io.BytesIO()
        pq.write_table(arrow, buffer)
        content = buffer.getvalue()
        path = self.path("results", f"{key}.{_digest(content)}.parquet")
        self.write(path, content)
        self.path("failed", f"{key}.json").unlink(missing_ok=True)
        return path

    def results(self) -> dict[str, Path]:
        """Key of every cell that has a result file -> the file, whole or not."""
        found = (_RESULT.fullmatch(p.name) for p in sorted(self.listed("results")))
        return {m["key"]: self.folder / "results" / m.string for m in found if m}

    def listed(self, name: str) -> list[Path]:
        folder = self.path(name)
        return list(folder.iterdir()) if folder.is_dir() else []

    def check_results(self, keys: Sequence[str], *, set_aside: bool = False) -> tuple[set[str], list[str]]:
        """The cells that have a whole file, and the names of broken files.

        Args:
            set_aside: move the broken ones to damaged/, so that their cells count as not done.
        """
        whole, broken, wanted = set(), [], set(keys)
        for key, path in self.results().items():
            if key not in wanted:
                continue
            if _is_whole(path):
                whole.add(key)
                continue
            broken.append(path.name)
            if set_aside:
                self.set_aside(path)
        return whole, broken

    def set_aside(self, path: Path) -> None:
        """Move a broken file to damaged/."""
        target = self.path("damaged", path.name)
        try:
            target.parent.mkdir(exist_ok=True)
            path.replace(target)
        except OSError as error:
            raise _unwritable(self.folder, error) from error

    def table(self, keys: Sequence[str]) -> pd.DataFrame:
        """The rows of these cells, in this order; cells that have no whole file have no rows."""
        files = self.results()
        parts = [pq.read_table(files[k]).to_pandas() for k in keys if k in files and _is_whole(files[k])]
        return pd.concat(parts, ignore_index=True) if parts else pd.DataFrame()

    def seconds(self, keys: Sequence[str]) -> list[float]:
        """Seconds that each of these cells took, for those that are done."""
        files = self.results()
        metadata = (pq.read_schema(files[k]).metadata or {} for k in keys if k in files and _is_whole(files[k]))
        return [float(m.get(_SECONDS, b"0")) for m in metadata]

    def add_failure(self, key: str, failure: Mapping[str, Any]) -> None:
        """Note the error of a cell; the next start tries the cell again."""
        self.write_json(f"failed/{key}.json", dict(failure))

    def failures(self) -> dict[str, Any]:
        """The errors of failed cells by key."""
        files = [path for path in sorted(self.listed("failed")) if path.suffix == ".json" and path.name[0] != "."]
        found = {}
        for path in files:
            with suppress(ValueError):  # a damaged note says nothing; its cell is not done and runs again anyway
                found[path.stem] = self.read_json(f"failed/{path.name}")
        return found

    def sweep_up(self) -> None:
        """Remove the half-written files of writers that were killed."""
        for path in self.folder.rglob(".*"):
            if path.is_file() and (path.name.endswith(".partial") or re.search(r"\.safetensors\.\d+$", path.name)):
                path.unlink(missing_ok=True)

    @contextmanager
    def locked(self) -> Iterator[None]:
        """Hold the folder within the block; the system lets go of it when this process ends, however it ends.

        Raises:
            ValueError: another process holds it, with its number, machine and time.
            Unwritable: the folder cannot be written.
        """
        try:
            self.folder.mkdir(parents=True, exist_ok=True)
            file = self.path("lock").open("a+b")
        except OSError as error:
            raise _unwritable(self.folder, error) from error
        with file:
            if not taken(file):
                raise ValueError(
                    f"{self.folder} is in use by {self.holder()}; wait for it, stop it, or give another folder"
                )
            with suppress(OSError):  # who holds it is good to know; that it is held does not need it
                file.truncate(0)
                file.write(json.dumps(_whoami()).encode())
                file.flush()
            yield

    def holder(self) -> str:
        """Who wrote their name into the lock."""
        with suppress(OSError, ValueError, KeyError):
            who = json.loads(self.path("lock").read_bytes())
            return f"process {who['pid']} on {who['host']} since {who['since']}"
        return "another process"

    def is_held(self) -> bool:
        """Whether a process is writing to the folder now."""
        try:
            with self.path("lock").open("rb") as file:
                fcntl.flock(file, fcntl.LOCK_SH | fcntl.LOCK_NB)
        except FileNotFoundError:
            return False
        except BlockingIOError:
            return True
        return False


def damaged(path: Path, reason: str) -> Unreadable:
    return Unreadable(f"{path} is damaged ({reason}); `mi-multilingual run` with the study mends it")


def taken(file: Any) -> bool:
    """Whether the file's lock could be had; `is_held` may have it for a moment, so one try is not enough."""
    for _ in range(_TRIES):
        with suppress(BlockingIOError):
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
            return True
        time.sleep(0.05)
    return False


def put(file: Any, content: bytes) -> None:
    """Write the bytes into the open file."""
    file.write(content)


def _digest(content: bytes) -> str:
    """16 hex digits of the content."""
    return hashlib.sha256(content).hexdigest()[:16]


def _is_whole(path: Path) -> bool:
    """Whether the file holds what was written: its name has the digest."""
    match = _RESULT.fullmatch(path.name)
    try:
        return match is not None and _digest(path.read_bytes()) == match["digest"]
    except FileNotFoundError:
        return False


def _whoami() -> dict[str, Any]:
    return {"pid": os.getpid(), "host": socket.gethostname(), "since": time.strftime("%Y-%m-%d %H:%M:%S")}


def sync_folder(folder: Path) -> None:
    """Make renames in the folder last through a power cut."""
    handle = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


def _unwritable(folder: Path, error: OSError) -> Unwritable:
    """The error in one sentence that says what to do."""
    reason = {
        errno.ENOSPC: "the disk is full; free some space",
        errno.EDQUOT: "your quota of disk space is used up; free some",
        errno.EFBIG: "a file would be larger than allowed; raise the limit (ulimit -f)",
        errno.EROFS: "the file system is read-only; give another folder",
        errno.EACCES: "you may not write there; change its permissions or give another folder",
        errno.EPERM: "you may not write there; change its permissions or give another folder",
    }.get(error.errno or 0, f"{error.strerror or error}; mend this")
    return Unwritable(
        error.errno, f"cannot write to {folder}: {reason}; what is done is safe, and `mi-multilingual resume` goes on"
    )
