"""What has to be recorded before a cell can run, and the neurons that its detector finds there."""

from dataclasses import dataclass
from typing import Any

from ..corpora import Corpus
from ..detectors.table import detector_of, identified, recording_settings
from ..evidence.table import kind_of, reading_for, record_evidence
from ..models.hooked import HookedModel
from ..neurons import NeuronSet
from ..tokens import Reading
from .cells import SCHEMA, Cell, Pairs, pairs
from .fingerprints import hashed

VALUES_FROM = {"mean": "activations", "mean-difference": "activations", "median": "texts"}
"""The evidence that gives the value of an intervention."""


@dataclass(frozen=True)
class Recording:
    """One piece of evidence that neurons are chosen from: everything that decides its numbers and nothing else."""

    kind: str
    """A kind of evidence (`mi_multilingual.evidence.table.EVIDENCE`)."""
    model_fingerprint: str
    tokenizer_fingerprint: str
    dtype: str
    identified_on: str
    reading: Reading
    site: str
    """Empty where the kind has no choice of it."""
    options: Pairs
    """What else the kind is recorded with, such as the threshold above which a neuron is active."""

    @property
    def key(self) -> str:
        """32 hex digits of all fields."""
        return hashed([SCHEMA, self])


@dataclass(frozen=True)
class Choice:
    """One choice of neurons: everything that decides which neurons of a part a detector finds."""

    recording: Recording
    detector: str
    settings: Pairs
    rate: float | None
    part: str

    @property
    def key(self) -> str:
        """32 hex digits of all fields."""
        return hashed([SCHEMA, self])


def recording_of(cell: Cell, kind: str = "") -> Recording:
    """The evidence that the cell's detector chooses from; or another kind, of the same model, text and site."""
    own = detector_of(cell.detector).evidence
    row = kind_of(kind or own)
    asked = recording_settings(cell.detector, dict(cell.settings)) if kind in ("", own) else {}
    return Recording(
        kind or own,
        cell.model_fingerprint,
        cell.tokenizer_fingerprint,
        cell.dtype,
        cell.identified_on,
        reading_for(kind or own, cell.reading),
        cell.site if row.site else "",
        pairs({**row.options, **asked}),
    )


def choices_of(cell: Cell) -> tuple[Choice, ...]:
    """The cell's choices of neurons, one per part."""
    return tuple(Choice(recording_of(cell), cell.detector, cell.settings, cell.rate, part) for part in cell.parts)


def needs(cell: Cell) -> tuple[Recording, ...]:
    """Everything that has to be recorded before the cell can run."""
    if cell.by_input:
        return ()
    found = [recording_of(cell)]
    if cell.intervention.value in VALUES_FROM:
        found.append(recording_of(cell, VALUES_FROM[str(cell.intervention.value)]))
    return tuple(dict.fromkeys(found))


def collect(recording: Recording, model: HookedModel, corpus: Corpus) -> Any:
    """Record it: the slow part, once for all cells that choose from it."""
    where = {"site": recording.site} if recording.site else {}
    options = {**where, **dict(recording.options)}
    return record_evidence(recording.kind, model, corpus, reading=recording.reading, progress=False, **options)


def chosen(choice: Choice, evidence: Any) -> NeuronSet:
    """The neurons that the detector finds, in all layers and for all groups."""
    rows = detector_of(choice.detector).settings
    settings = {name: value for name, value in choice.settings if not rows[name].recorded}
    if "part" in rows:
        settings["part"] = choice.part
    return identified(choice.detector, evidence, rate=choice.rate, **settings)
