"""What a process loads once for all cells of a study file: models and texts."""

from __future__ import annotations

import warnings
from collections.abc import Callable, Hashable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Generic, TypeVar

import torch

from ..corpora import Corpus, load_corpus
from ..models.hooked import HookedModel
from ..models.loading import load_model
from .config import Models
from .fingerprints import tokenizer_fingerprint, weights_fingerprint

_Key = TypeVar("_Key", bound=Hashable)
_Value = TypeVar("_Value")


@dataclass(eq=False)
class Memory(Generic[_Key, _Value]):
    """What was made, by all that decides it; the oldest goes where there is no room."""

    room: int | None = None
    kept: dict[_Key, _Value] = field(default_factory=dict)

    def once(self, key: _Key, make: Callable[[], _Value]) -> _Value:
        """What `make` returned the first time."""
        if key not in self.kept:
            while self.room is not None and len(self.kept) >= self.room:
                del self.kept[next(iter(self.kept))]
            self.kept[key] = make()
        return self.kept[key]


class Loaded:
    """Models and texts of a study file; every process makes its own from study and folder."""

    def __init__(self, study: Models, folder: Path | None = None) -> None:
        """
        Args:
            folder: of the run.
        """
        self.study = study
        self.folder = folder
        self.corpora: Memory[tuple[str | None, int | None], Corpus] = Memory()
        self.forget_model()

    def forget_model(self) -> None:
        """Let go of the model in memory and of what was read off it."""
        self.models: Memory[str, HookedModel] = Memory()
        self.model_fingerprints: Memory[str, tuple[str, str]] = Memory()

    def model(self, name: str) -> HookedModel:
        """The model, with nothing changed, by its name in `Models.models`; one is in memory at a time."""
        if name not in self.models.kept:
            self.forget_model()
        place, _, revision = name.rpartition("@") if self.study.revision else (name, "", None)
        dtype = getattr(torch, self.study.dtype)
        return self.models.once(name, lambda: load_model(place, dtype=dtype, revision=revision))

    def fingerprints(self, name: str) -> tuple[str, str]:
        """Fingerprints of the model's weights and of its tokenizer."""
        model = self.model(name)
        return self.model_fingerprints.once(
            name, lambda: (weights_fingerprint(model), tokenizer_fingerprint(model.tokenizer))
        )

    def corpus(self, part: str) -> Corpus:
        """The text of "identify" or "evaluate"."""
        c = self.study.corpus
        split, most = getattr(c, part), getattr(c, f"{part}_documents")

        def read() -> Corpus:
            with warnings.catch_warnings():
                warnings.simplefilter("once")
                return load_corpus(
                    c.source, languages=c.languages, split=split, config=c.config, column=c.column, max_documents=most
                )

        return self.corpora.once((split, most), read)

    def both_texts(self) -> tuple[Corpus, Corpus]:
        """The texts that neurons are found on and that effects are measured on.

        Raises:
            ValueError: they are not in the same languages.
        """
        identify, evaluate = self.corpus("identify"), self.corpus("evaluate")
        if apart := set(identify.languages) ^ set(evaluate.languages):
            raise ValueError(f"{min(apart)!r} is in one of the two texts only; set corpus.languages to what both have")
        return identify, evaluate


def check_same(now_and_planned: dict[str, tuple[str, str]]) -> None:
    """Raise where a fingerprint is not the one that a cell was planned for."""
    for name, (now, planned) in now_and_planned.items():
        if now != planned:
            raise ValueError(f"the {name} changed while the sweep was running; start it again")
