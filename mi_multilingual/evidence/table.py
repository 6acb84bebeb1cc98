"""One row for each kind of evidence: how it is recorded, and what that costs."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from typing import Any

from ..corpora import Corpus
from ..models.hooked import HookedModel
from ..tokens import Reading
from ..training import Training
from .activations import ActivationStats, record
from .impact import Impact, record_impact
from .relevance import Relevance, record_relevance
from .representations import Representations, record_representations
from .sharing import Sharing, sharing_categories
from .texts import TextActivations, record_texts
from .weight_change import WeightChange, record_tuned_change


@dataclass(frozen=True)
class Kind:
    """A kind of evidence."""

    noun: type
    record: Callable[..., Any]
    """From model and corpus, with reading, progress and what else it takes."""
    site: str = ""
    """Where it is read unless another site is asked for; "" for a kind that leaves no choice."""
    by_document: bool = False
    """Whether every row must be a document, whatever the layout asked for."""
    in_one_row: bool = False
    """Whether no document is ever cut, so that the window is the model's context whatever was asked for."""
    passes: float | int = 1
    """Cost per token, in recordings of activations; a backward pass counts two and needs the logits."""
    numbers: int = 1
    """64-bit numbers kept for every neuron and language (for every neuron and text, half of one: `per_text`)."""
    per_text: bool = False
    copies: int = 0
    """Further numbers of the size of all weights while it is recorded."""
    options: Mapping[str, Any] = field(default_factory=dict)
    """What else `record` takes, as it is where nothing is said: part of the protocol, so of the key of what is kept."""


def _record_mean_texts(model: HookedModel, corpus: Corpus, **options: Any) -> TextActivations:
    """Mean activation of every neuron in every text."""
    return record_texts(model, corpus, reductions=["mean"], **options)["mean"]


def _record_sharing(model: HookedModel, corpus: Corpus, *, threshold: float, **options: Any) -> Sharing:
    """Sharing categories at one threshold."""
    return sharing_categories(model, corpus, thresholds=[threshold], **options)


def _record_weight_change(
    model: HookedModel,
    corpus: Corpus,
    *,
    steps: int,
    learning_rate: float,
    optimizer: str,
    weights: str,
    **options: Any,
) -> WeightChange:
    """Change by tuning a copy on each language."""
    training = Training(steps=int(steps), learning_rate=float(learning_rate), optimizer=optimizer)
    return record_tuned_change(model, corpus, training=training, weights=weights, **options)


EVIDENCE: dict[str, Kind] = {
    "activations": Kind(ActivationStats, record, site="gate", numbers=4, options={"threshold": 0.0}),
    "texts": Kind(
        TextActivations, _record_mean_texts, site="gate", by_document=True, per_text=True, options={"threshold": 0.0}
    ),
    "impact": Kind(Impact, record_impact, by_document=True, passes=2.0, numbers=2, options={"score": "paper"}),
    "relevance": Kind(Relevance, record_relevance, passes=4.0),
    "sharing": Kind(
        Sharing,
        _record_sharing,
        site="post",
        by_document=True,
        in_one_row=True,
        numbers=5,
        options={"threshold": 0.0, "tokens": "last"},
    ),
    "representations": Kind(
        Representations,
        record_representations,
        by_document=True,
        in_one_row=True,
        per_text=True,
        options={"pooling": "mean"},
    ),
    "weight change": Kind(
        WeightChange,
        _record_weight_change,
        passes=4.0,  # as if every row were seen once, whatever the number of steps
        copies=4,  # the tuned copy, its gradient, and two moments
        options={"steps": 20, "learning_rate": 1e-3, "optimizer": "adam", "weights": "all"},
    ),
}
"""Every kind of evidence. A new one is a file beside this one and a row here."""


def record_evidence(
    kind: str,
    model: HookedModel,
    corpus: Corpus,
    *,
    reading: Reading = Reading(),
    site: str | None = None,
    progress: bool = True,
    **options: Any,
) -> Any:
    """Record one kind of evidence.

    Args:
        reading: how text becomes rows, as far as the kind leaves a choice (see `reading_for`).
        site: where neurons are read, for the kinds that leave a choice; the kind's own place by default.
        options: of that kind, such as `threshold` of sharing.

    Raises:
        ValueError: an unknown kind, or as its own function.
    """
    row = kind_of(kind)
    where: Mapping[str, Any] = {"site": site or row.site} if row.site else {}
    options = {**row.options, **options}
    return row.record(model, corpus, reading=reading_for(kind, reading), progress=progress, **where, **options)


def reading_for(kind: str, reading: Reading) -> Reading:
    """The reading that this kind of evidence takes where `reading` is asked for."""
    row = kind_of(kind)
    layout = "documents" if row.by_document else reading.layout
    return replace(reading, layout=layout, window=None if row.in_one_row else reading.window)


def kind_of(kind: str) -> Kind:
    """The row of a kind.

    Raises:
        ValueError: there is none.
    """
    if kind not in EVIDENCE:
        raise ValueError(f"evidence must be one of {', '.join(EVIDENCE)}, got {kind!r}")
    return EVIDENCE[kind]


def kind_in(evidence: Any) -> str:
    """The kind that a piece of evidence is of.

    Raises:
        ValueError: it is none.
    """
    for name, row in EVIDENCE.items():
        if isinstance(evidence, row.noun):
            return name
    nouns = ", ".join(row.noun.__name__ for row in EVIDENCE.values())
    raise ValueError(f"evidence must be one of {nouns}, got {type(evidence).__name__}")
