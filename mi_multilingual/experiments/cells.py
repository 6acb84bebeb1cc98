"""The cells of a study: one measurement each, named by everything that decides its result."""

from __future__ import annotations

import itertools
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

from pydantic import TypeAdapter
from pydantic_core import to_jsonable_python

from ..detectors.table import detector_of, takes_rate
from ..patching.conditions import CHOSEN, NOT_RANDOM, RANDOM
from ..tokens import Reading
from .config import PARTS_OF, DetectorSettings, GenerationSettings, InterventionSettings, Study
from .fingerprints import hashed

SCHEMA = "sweep/3"
"""Raise it when the same cell would give other numbers or columns: folders of another one are refused."""
_THIRDS = {"all": (0, 3), "first": (0, 1), "middle": (1, 2), "last": (2, 3)}

Pairs = tuple[tuple[str, float | int | str | None], ...]
"""A frozen mapping of settings, by name."""


def pairs(content: Mapping[str, Any]) -> Pairs:
    return tuple(sorted(content.items()))


@dataclass(frozen=True)
class Measurement:
    """What is measured of a model, whatever is done to it: the same for all cells that are compared with one base."""

    model: str
    evaluation: str
    evaluated_on: str
    reading: Reading
    questions: int | None
    generation: GenerationSettings | None
    target: str
    """The language whose share of generated text is looked for; empty where there is none."""


@dataclass(frozen=True)
class Cell:
    """One measurement: everything that decides its result and nothing else."""

    model: str
    model_fingerprint: str
    tokenizer_fingerprint: str
    dtype: str
    identified_on: str
    """Fingerprint of the corpus, or of the questions, that neurons are found on."""
    reading: Reading
    """How the texts become rows of tokens, both those that neurons are found on and those measured."""
    detector: str
    settings: Pairs
    """The detector's own settings."""
    scope: str | None
    """"input" where every question loses neurons of its own, "corpus" where all lose the same, None where the detector
    leaves no choice."""
    rate: float | None
    """None where the detector takes no rate."""
    site: str
    layers: str
    part: str
    intervention: InterventionSettings
    group: str
    """The language or type whose neurons are changed."""
    seed: int
    """The draw of as many random neurons per layer in the place of the group's own; -1 for its own."""
    evaluation: str
    evaluated_on: str
    """Fingerprint of the texts or questions that the effect is measured on."""
    questions: int | None
    """Questions per language; None where nothing is asked."""
    generation: GenerationSettings | None
    """How text is generated; None where none is."""

    @property
    def key(self) -> str:
        """32 hex digits of all fields and of the version of the results."""
        return hashed([SCHEMA, self])

    @property
    def by_input(self) -> bool:
        """Whether every question loses neurons of its own."""
        return self.scope == "input"

    @property
    def condition(self) -> str:
        return CHOSEN if self.seed == NOT_RANDOM else RANDOM

    @property
    def parameters(self) -> str:
        """Settings and scope of the detector as JSON, as they stand in tables."""
        scope = {} if self.scope is None else {"scope": self.scope}
        return json.dumps({**dict(self.settings), **scope}, sort_keys=True)

    @property
    def parts(self) -> tuple[str, ...]:
        """What the cell's neurons are (`NeuronSet.part`)."""
        return PARTS_OF[self.part]

    @property
    def measurement(self) -> Measurement:
        wanted = self.evaluation == "generation" and detector_of(self.detector).by_language
        how = (self.evaluation, self.evaluated_on, self.reading, self.questions, self.generation)
        return Measurement(self.model, *how, self.group if wanted else "")

    @property
    def words(self) -> str:
        """The cell in a few words, for a list of failures."""
        who = self.group if self.seed == NOT_RANDOM else f"{self.group} (random {self.seed})"
        rate = "" if self.rate is None else f" {self.rate:g}"
        what = f"{self.detector}{rate} at {self.site}, {self.intervention.words}"
        return f"{self.model}, {what}, {who}, {self.evaluation}"

    def plain(self) -> dict[str, Any]:
        """The cell as JSON takes it."""
        return to_jsonable_python(self)

    @classmethod
    def of(cls, content: Mapping[str, Any]) -> Cell:
        """The cell that `plain` gave, also by way of a JSON file.

        Raises:
            ValueError: a field that is missing or cannot be.
        """
        return _CELL.validate_python(content)


_CELL = TypeAdapter(Cell)


@dataclass(frozen=True)
class Inputs:
    """Fingerprints of what goes into a study, and what its languages are."""

    models: Mapping[str, tuple[str, str]]
    """Name -> fingerprints of weights and tokenizer."""
    identify: str
    evaluate: str
    questions: Mapping[str, str]
    """Name of every measure that asks questions -> fingerprint of the questions."""
    languages: tuple[str, ...]


def cells_of(study: Study, inputs: Inputs) -> tuple[Cell, ...]:
    """All cells, always in the same order; the random controls of a cell come right after it.

    Raises:
        ValueError: the study names a group that there is not.
    """
    axes = itertools.product(
        study.models, study.detector, study.rate, study.site, study.layers, study.part, study.intervention
    )
    found = []
    for model, detector, rate, site, layers, part, intervention in axes:
        groups = _groups_of(study, detector.name, inputs.languages)
        place = {"site": site, "layers": layers, "part": part, "intervention": intervention}
        for evaluation, group, seed in itertools.product(study.evaluate, groups, (NOT_RANDOM, *study.seeds)):
            cell = Cell(
                **_origin(study, inputs, model),
                **_found_by(detector, rate, evaluation),
                **place,
                group=group,
                seed=seed,
                **evaluated(study, inputs, evaluation),
            )
            # Where every question has neurons of its own, the corpus makes no difference.
            found.append(replace(cell, identified_on=cell.evaluated_on) if cell.by_input else cell)
    return tuple(dict.fromkeys(found))


def _origin(study: Study, inputs: Inputs, model: str) -> dict[str, Any]:
    """Model and corpus of a cell."""
    weights, tokenizer = inputs.models[model]
    return {
        "model": model,
        "model_fingerprint": weights,
        "tokenizer_fingerprint": tokenizer,
        "dtype": study.dtype,
        "identified_on": inputs.identify,
        "reading": study.corpus.reading,
    }


def _found_by(detector: DetectorSettings, rate: float, evaluation: str) -> dict[str, Any]:
    """Detector, settings and rate of a cell that measures this."""
    return {
        "detector": detector.name,
        "settings": pairs(detector.settings),
        "scope": detector.scope_for(evaluation),
        "rate": rate if takes_rate(detector.name, detector.settings) else None,
    }


def evaluated(study: Study, inputs: Inputs, evaluation: str) -> dict[str, Any]:
    """What a cell measures, with the options that bear on it."""
    asked = {"facts": study.facts, **{name: task.n for name, task in study.tasks.given.items()}}
    return {
        "evaluation": evaluation,
        "evaluated_on": inputs.questions.get(evaluation, inputs.evaluate),
        "questions": asked.get(evaluation),
        "generation": study.generation if evaluation == "generation" else None,
    }


def _groups_of(study: Study, detector: str, languages: Sequence[str]) -> tuple[str, ...]:
    """The groups of neurons that are changed one after another.

    Raises:
        ValueError: the study names one that there is not.
    """
    known = detector_of(detector).groups or tuple(languages)
    if study.ablated == ("each",):
        return known
    if missing := [g for g in study.ablated if g not in known]:
        raise ValueError(
            f"ablated must be among {', '.join(known)}, for which {detector} finds neurons, got {missing[0]!r}"
        )
    return study.ablated


def region(layers: str, n_layers: int) -> range:
    """The layers that a study calls "first" and so on."""
    first, end = (round(n_layers * third / 3) for third in _THIRDS[layers])
    return range(first, end)
