"""What each detector needs of model and text, and how it chooses neurons from it."""

import json
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass, fields
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from ..corpora import Corpus
from ..detectors.activation_percentile import activation_percentile
from ..detectors.average_precision import average_precision, top_and_bottom
from ..detectors.entropy import rank
from ..detectors.lap import lap, lap_scores
from ..detectors.lape import lape
from ..detectors.lave import lave
from ..detectors.plnd import plnd
from ..detectors.relevance import relevance
from ..evidence.activations import ActivationStats, record
from ..evidence.impact import Impact, record_impact
from ..evidence.relevance import record_relevance
from ..evidence.sharing import TYPES, Sharing, sharing_categories
from ..evidence.texts import TextActivations, record_texts
from ..models.hooked import HookedModel
from ..neurons import NeuronScores, NeuronSet
from ..storage import load_record, save_record
from .cells import PARTS_OF, Cell, hashed

SCHEMA = "sweep evidence/2"
Recorded = ActivationStats | TextActivations | dict[str, Impact] | NeuronScores | Sharing


@dataclass(frozen=True)
class Evidence:
    """One recording that neurons are chosen from: everything that decides its numbers and nothing else."""

    kind: str
    """"stats", "texts", "impact", "relevance" or "sharing"."""
    model_fingerprint: str
    tokenizer_fingerprint: str
    dtype: str
    identified_on: str
    layout: str
    window: int | None
    site: str
    """Empty where the recording has no choice of it."""
    options: str = "{}"

    @property
    def key(self) -> str:
        """32 hex digits of all fields."""
        return hashed({"schema": SCHEMA, **asdict(self)})


def collect(evidence: Evidence, model: HookedModel, corpus: Corpus) -> Recorded:
    """Record it: the slow part, once for all cells that choose from it."""
    return RECORDERS[evidence.kind](model, corpus, evidence, json.loads(evidence.options))


def stats(model: HookedModel, corpus: Corpus, e: Evidence, options: Mapping[str, Any]) -> ActivationStats:
    return record(model, corpus, site=e.site, window=e.window, layout=e.layout, progress=False)


def texts(model: HookedModel, corpus: Corpus, e: Evidence, options: Mapping[str, Any]) -> TextActivations:
    return record_texts(model, corpus, site=e.site, window=e.window, progress=False)["mean"]


def impact(model: HookedModel, corpus: Corpus, e: Evidence, options: Mapping[str, Any]) -> dict[str, Impact]:
    return record_impact(model, corpus, window=e.window, progress=False, **options)


def gradients(model: HookedModel, corpus: Corpus, e: Evidence, options: Mapping[str, Any]) -> NeuronScores:
    return record_relevance(model, corpus, window=e.window, layout=e.layout, progress=False)


def sharing(model: HookedModel, corpus: Corpus, e: Evidence, options: Mapping[str, Any]) -> Sharing:
    return sharing_categories(
        model, corpus, thresholds=[options["threshold"]], tokens=options["tokens"], site=e.site, progress=False
    )


Recorder = Callable[[HookedModel, Corpus, Evidence, Mapping[str, Any]], Recorded]
RECORDERS: Mapping[str, Recorder] = {
    "stats": stats,
    "texts": texts,
    "impact": impact,
    "relevance": gradients,
    "sharing": sharing,
}
RECORDS: Mapping[str, type] = {
    "stats": ActivationStats,
    "texts": TextActivations,
    "impact": Impact,
    "relevance": NeuronScores,
    "sharing": Sharing,
}


@dataclass(frozen=True)
class Detector:
    """A way to choose neurons, and the kind of evidence it chooses from."""

    evidence: str
    choose: Callable[..., NeuronSet]
    """Of the recording (of the part, where it has several), the rate and the detector's parameters."""
    recorded_with: tuple[str, ...] = ()
    """Parameters that the recording needs already."""


def ranked_lap(recorded: ActivationStats, rate: float | None, *, threshold: float | None) -> NeuronSet:
    if threshold is not None:
        return lap(recorded, threshold=threshold)
    return lap_scores(recorded).top(share(recorded.active[..., 0], rate or 0.0))


def percentile(recorded: ActivationStats, rate: float) -> NeuronSet:
    share(recorded.active[..., 0], rate)
    return activation_percentile(recorded, percentile=1 - rate)


def precise(recorded: TextActivations, rate: float) -> NeuronSet:
    scores = average_precision(recorded)
    return top_and_bottom(scores, n=share(scores.values[..., 0], rate))


def important(recorded: Impact, rate: float | None, *, score: str, epsilon: float | None) -> NeuronSet:
    return plnd(recorded, epsilon=epsilon) if epsilon is not None else plnd(recorded, rate=rate or 0.0)


def modal_types(recorded: Sharing, rate: float | None, **parameters: Any) -> NeuronSet:
    """A group a type: the neurons that have it for most inputs, of equals the first in `TYPES`."""
    most = recorded.counts.sum(dim=(0, 1)).argmax(dim=-1)
    masks = torch.stack([most == i for i in range(len(TYPES))])
    return NeuronSet(masks, TYPES, "sharing", parameters, recorded.model, recorded.model_fingerprint)


def share(neurons: Tensor, rate: float) -> int:
    """A share of all neurons as a number of them."""
    return rank(rate, neurons.numel(), "rate")


def by_entropy(method: Callable[..., NeuronSet]) -> Callable[..., NeuronSet]:
    def choose(recorded: Recorded, rate: float, **parameters: float) -> NeuronSet:
        return method(recorded, top_rate=rate, **parameters)

    return choose


DETECTORS: Mapping[str, Detector] = {
    "lape": Detector("stats", by_entropy(lape)),
    "lave": Detector("stats", by_entropy(lave)),
    "lap": Detector("stats", ranked_lap),
    "activation_percentile": Detector("stats", percentile),
    "average_precision": Detector("texts", precise),
    "plnd": Detector("impact", important, ("score",)),
    "relevance": Detector("relevance", by_entropy(relevance)),
    "sharing": Detector("sharing", modal_types, ("threshold", "tokens")),
}


def evidence_of(cell: Cell, kind: str | None = None) -> Evidence:
    """What the cell's detector chooses from; or other evidence of the same model, text and site."""
    detector = DETECTORS[cell.detector]
    kind = kind or detector.evidence
    parameters = json.loads(cell.parameters)
    options = {n: parameters[n] for n in detector.recorded_with} if kind == detector.evidence else {}
    return Evidence(
        kind,
        cell.model_fingerprint,
        cell.tokenizer_fingerprint,
        cell.dtype,
        cell.identified_on,
        # The others take a document a row in any case.
        cell.layout if kind in ("stats", "relevance") else "documents",
        cell.window,
        cell.site if kind in ("stats", "texts", "sharing") else "",
        json.dumps(options, sort_keys=True),
    )


def needs(cell: Cell) -> tuple[Evidence, ...]:
    """Everything that has to be recorded before the cell can run."""
    if cell.by_input:
        return ()
    found = [evidence_of(cell)]
    if cell.value in ("mean", "mean-difference"):
        found.append(evidence_of(cell, "stats"))
    if cell.value == "median":
        found.append(evidence_of(cell, "texts"))
    return tuple(dict.fromkeys(found))


def parts_of(cell: Cell) -> tuple[str, ...]:
    """What the cell's neurons are (`NeuronSet.part`)."""
    return PARTS_OF[cell.part]


def neurons_key(cell: Cell, part: str) -> str:
    """32 hex digits of everything that decides which neurons of a part the cell's detector finds."""
    return hashed([SCHEMA, evidence_of(cell).key, cell.detector, cell.parameters, cell.rate, part])


def chosen(cell: Cell, recorded: Recorded, part: str = "mlp") -> NeuronSet:
    """The neurons of a part that the cell's detector finds, in all layers and for all groups."""
    found = recorded[part] if isinstance(recorded, dict) else recorded
    return DETECTORS[cell.detector].choose(found, cell.rate, **json.loads(cell.parameters))


def save(path: Path, recorded: Recorded) -> None:
    """Write any recording as one safetensors file."""
    records = recorded if isinstance(recorded, dict) else {"": recorded}
    kind = type(next(iter(records.values()))).__name__
    tensors, rest = {}, {}
    for part, one in records.items():
        values = {f.name: getattr(one, f.name) for f in fields(one)}
        own = {name: value for name, value in values.items() if isinstance(value, Tensor)}
        tensors |= {f"{part}/{name}": value for name, value in own.items()}
        rest[part] = {name: value for name, value in values.items() if name not in own}
    save_record(path, f"{SCHEMA} {kind}", tensors, rest)


def load(path: Path, evidence: Evidence) -> Recorded:
    """Read what `save` wrote."""
    record_type = RECORDS[evidence.kind]
    tensors, rest = load_record(path, f"{SCHEMA} {record_type.__name__}")
    found = {}
    for part, values in rest.items():
        own = {name.partition("/")[2]: value for name, value in tensors.items() if name.partition("/")[0] == part}
        own |= {name: tuple(value) if isinstance(value, list) else value for name, value in values.items()}
        found[part] = record_type(**own)
    return found if len(found) > 1 else found[""]
