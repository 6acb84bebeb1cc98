"""One row for each detector: the evidence it needs, its scores, its choice, and its settings.

`rankings`, `leaderboard`, study files, `plan` and the command line read this table. A new detector is one file beside
this one and one row here; or a row put into `DETECTORS` from anywhere.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

from ..evidence.impact import IMPACT_PARTS, SCORES
from ..evidence.sharing import TYPES
from ..evidence.table import kind_in, kind_of
from ..evidence.weight_change import WEIGHTS
from ..neurons import NeuronScores, NeuronSet
from ..training import OPTIMIZERS
from .activation_percentile import activation_percentile, activation_percentile_scores
from .average_precision import average_precision, average_precision_scores
from .lap import lap, lap_scores
from .lape import lape, lape_scores
from .lave import MEANS, lave, lave_scores
from .parameter_variation import MARKS, parameter_variation, parameter_variation_scores
from .plnd import plnd, plnd_scores
from .relevance import relevance, relevance_scores
from .sharing import sharing, sharing_scores


@dataclass(frozen=True)
class Setting:
    """A number or word that a detector, or the recording of its evidence, can be asked for."""

    default: float | int | str | None
    about: str
    """What it is, for people."""
    low: float | int | None = None
    high: float | int | None = None
    """Limits of a number, both allowed unless `above` says otherwise."""
    above: bool = False
    """Whether `low` itself is excluded."""
    below: bool = False
    """Whether `high` itself is excluded."""
    choices: tuple[str, ...] = ()
    """What a word can be; none for a number, or for any text where the default is one."""
    recorded: bool = False
    """Whether it belongs to the recording of the evidence rather than to the choice."""
    replaces_rate: bool = False
    """Whether the detector takes no rate where it is given."""

    def checked(self, name: str, value: Any) -> Any:
        """The value, if it can be.

        Raises:
            ValueError: it cannot.
        """
        if value is None and self.default is None:
            return None
        if self.choices:
            if value not in self.choices:
                raise ValueError(f"{name} must be one of {', '.join(self.choices)}, got {value!r}")
            return value
        if isinstance(self.default, str):
            if not isinstance(value, str):
                raise ValueError(f"{name} must be a text, got {value!r}")
            return value
        if isinstance(value, bool) or not isinstance(value, int | float):
            raise ValueError(f"{name} must be a number, got {value!r}")
        too_low = self.low is not None and (value <= self.low if self.above else not value >= self.low)
        too_high = self.high is not None and (value >= self.high if self.below else not value <= self.high)
        if too_low or too_high or value != value:
            raise ValueError(f"{name} must be {self.limits}, got {value}")
        return value

    @property
    def limits(self) -> str:
        """The range of a number in words; of a text, that it is one."""
        if isinstance(self.default, str):
            return "a text"
        low = "" if self.low is None else f"{'above' if self.above else 'at least'} {self.low:g}"
        high = "" if self.high is None else f"{'below' if self.below else 'at most'} {self.high:g}"
        return " and ".join(part for part in (low, high) if part) or "a number"


def _chosen_by_score(detector: Detector) -> Callable[..., NeuronSet]:
    """The choice of a detector without one of its own: for every language the share `rate` of highest score."""

    def choose(evidence: Any, *, rate: float, **settings: Any) -> NeuronSet:
        return detector.scores(evidence, **settings).top_share(rate)

    return choose


@dataclass(frozen=True)
class Detector:
    """A way to find neurons in evidence."""

    evidence: str
    """What it needs: a kind in `mi_multilingual.evidence.table.EVIDENCE`."""
    scores: Callable[..., NeuronScores]
    """From the evidence, and from those of its settings that it takes, a score for every neuron and language."""
    choose: Callable[..., NeuronSet] | None = None
    """From evidence, `rate` and settings, the neurons of every group; by highest score where there is none."""
    rate: float | None = 0.01
    """The rate where none is given; None for a detector that takes no rate."""
    settings: Mapping[str, Setting] = field(default_factory=dict)
    score_settings: tuple[str, ...] = ()
    """Those of the settings that `scores` takes."""
    groups: tuple[str, ...] = ()
    """The names of its groups; none where they are the languages of the evidence."""
    source: str = ""

    @property
    def by_language(self) -> bool:
        """Whether its groups are languages, so that it can be compared with others."""
        return not self.groups


_ENTROPY = {
    "filter_rate": Setting(0.95, "quantile of all values that a neuron must exceed at all", 0.0, 1.0, above=True),
    "activation_bar_ratio": Setting(0.95, "quantile it must exceed to belong to a language", 0.0, 1.0, above=True),
}
_LAVE = {
    **_ENTROPY,
    "means": Setting("clipped", "how a mean below zero counts: as zero, or by its size", choices=MEANS),
}
_LAP_THRESHOLD = Setting(
    None, "instead of a rate, the probability to exceed (0.95 in the paper)", 0.0, 1.0, below=True, replaces_rate=True
)
_TUNED = {
    "mark": Setting("smallest", "which change of its weights marks a language", choices=MARKS),
    "steps": Setting(20, "steps of tuning on each language", 1, recorded=True),
    "learning_rate": Setting(1e-3, "size of a step", 0.0, above=True, recorded=True),
    "optimizer": Setting("adam", "Adam, or plain gradient descent", choices=OPTIMIZERS, recorded=True),
    "weights": Setting("all", "all weights of a neuron, or those it reads with", choices=WEIGHTS, recorded=True),
}
_TANG = "Tang et al. 2024, arXiv:2402.16438"
DETECTORS: dict[str, Detector] = {
    "lape": Detector("activations", lape_scores, lape, 0.01, _ENTROPY, tuple(_ENTROPY), source=_TANG),
    "lap": Detector("activations", lap_scores, lap, 0.01, {"threshold": _LAP_THRESHOLD}, source=_TANG),
    "lave": Detector("activations", lave_scores, lave, 0.01, _LAVE, tuple(_LAVE), source=_TANG),
    "activation_percentile": Detector(
        "activations",
        activation_percentile_scores,
        activation_percentile,
        0.1,
        source="Mondal et al. 2025, arXiv:2503.17456",
    ),
    "average_precision": Detector(
        "texts", average_precision_scores, average_precision, source="Kojima et al. 2024, arXiv:2404.02431"
    ),
    "plnd": Detector(
        "impact",
        plnd_scores,
        plnd,
        0.1,
        {
            "score": Setting("paper", "how impact is measured", choices=SCORES, recorded=True),
            "epsilon": Setting(None, "instead of a rate, the impact to exceed", 0.0, replaces_rate=True),
            "part": Setting("mlp", "MLP neurons, or columns of W_Q, W_K, W_V", choices=IMPACT_PARTS),
        },
        ("part",),
        source="Zhao et al. 2024, arXiv:2402.18815",
    ),
    "relevance": Detector(
        "relevance", relevance_scores, relevance, 0.01, _ENTROPY, source="after CRANE 2026, arXiv:2601.04664"
    ),
    "parameter_variation": Detector(
        "weight change",
        parameter_variation_scores,
        parameter_variation,
        0.01,
        _ENTROPY | _TUNED,
        (*_ENTROPY, "mark"),
        source=_TANG,
    ),
    "sharing": Detector(
        "sharing",
        sharing_scores,
        sharing,
        None,
        {
            "threshold": Setting(0.0, "a neuron is active above this activation", recorded=True),
            "tokens": Setting("last", "at which tokens an activation counts", choices=("last", "any"), recorded=True),
        },
        groups=TYPES,
        source="Wang et al. 2024, arXiv:2406.09265",
    ),
}
"""Every detector by its name."""


def detector_of(name: str) -> Detector:
    """The row of a detector.

    Raises:
        ValueError: there is none.
    """
    if name not in DETECTORS:
        raise ValueError(f"detector must be one of {', '.join(DETECTORS)}, got {name!r}")
    return DETECTORS[name]


def checked_settings(name: str, settings: Mapping[str, Any]) -> dict[str, Any]:
    """All settings of a detector: those given, checked, and the defaults of the others.

    Raises:
        ValueError: one that it does not have, or a value that cannot be.
    """
    rows = detector_of(name).settings
    if unknown := [key for key in settings if key not in rows]:
        raise ValueError(f"settings of {name} must be among {', '.join(rows) or 'none'}, got {unknown[0]!r}")
    return {key: row.checked(key, settings.get(key, row.default)) for key, row in rows.items()}


def recording_settings(name: str, settings: Mapping[str, Any]) -> dict[str, Any]:
    """Those settings that the recording of the evidence takes."""
    whole = checked_settings(name, settings)
    return {key: whole[key] for key, row in detector_of(name).settings.items() if row.recorded}


def takes_rate(name: str, settings: Mapping[str, Any]) -> bool:
    """Whether the detector chooses by a rate, and not by a bar of its own."""
    row = detector_of(name)
    replaced = any(settings.get(key) is not None for key, setting in row.settings.items() if setting.replaces_rate)
    return row.rate is not None and not replaced


def scored(name: str, evidence: Any, **settings: Any) -> NeuronScores:
    """The detector's score of every neuron.

    Raises:
        ValueError: an unknown detector or setting, or evidence of another kind.
    """
    row = detector_of(name)
    _check_evidence(name, evidence)
    whole = checked_settings(name, settings)
    return row.scores(evidence, **{key: whole[key] for key in row.score_settings})


def identified(name: str, evidence: Any, *, rate: float | None = None, **settings: Any) -> NeuronSet:
    """The neurons that a detector finds in evidence.

    Args:
        rate: the detector's own default where none is given.
        settings: of the detector.

    Raises:
        ValueError: an unknown detector or setting, evidence of another kind, a setting of the recording, or a rate
            where the detector takes none.

    Example:
        >>> import mi_multilingual as mm
        >>> model = mm.load_model("demo")
        >>> corpus = mm.load_corpus("demo", languages=["en", "fr", "ja"], split="identify")
        >>> stats = mm.record(model, corpus, reading=mm.Reading(layout="documents"), progress=False)
        >>> mm.identified("lape", stats, rate=0.05, filter_rate=0.985).sizes().to_dict()
        {'en': 72, 'fr': 68, 'ja': 163}
    """
    row = detector_of(name)
    _check_evidence(name, evidence)
    check_choice(name, rate, settings)
    whole = checked_settings(name, settings)
    given: dict[str, Any] = {key: whole[key] for key, setting in row.settings.items() if not setting.recorded}
    if takes_rate(name, whole):
        given["rate"] = row.rate if rate is None else rate
    return (row.choose or _chosen_by_score(row))(evidence, **given)


def check_choice(name: str, rate: float | None, settings: Mapping[str, Any]) -> None:
    """Raise for what a choice from recorded evidence cannot be asked for."""
    row = detector_of(name)
    if late := [key for key in settings if key in row.settings and row.settings[key].recorded]:
        raise ValueError(
            f"{late[0]} must be given to the recording of {row.evidence}, got {settings[late[0]]!r} for the choice; "
            "leave it out here"
        )
    if rate is not None and not takes_rate(name, settings):
        raise ValueError(f"rate must be left out where {name} chooses without one, got {rate}")


def _check_evidence(name: str, evidence: Any) -> None:
    needed = detector_of(name).evidence
    if kind_in(evidence) != needed:
        raise ValueError(
            f"{name} needs {kind_of(needed).noun.__name__}, got {type(evidence).__name__}; record {needed} first"
        )


def recordable() -> list[str]:
    """Detectors of language neurons, which need nothing but a model and text."""
    return [name for name, row in DETECTORS.items() if row.by_language]


def recordable_by_passes() -> list[str]:
    """Those of them that need no training, only passes over the text."""
    return [name for name in recordable() if not kind_of(DETECTORS[name].evidence).copies]
