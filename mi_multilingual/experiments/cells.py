"""The cells of a study: one measurement each, named by everything that decides its result."""

import hashlib
import itertools
import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, fields, replace
from typing import Any

import torch
from transformers import PreTrainedTokenizerBase

from ..evidence.sharing import TYPES
from ..models.hooked import HookedModel
from ..neurons import PARTS
from .config import DetectorSettings, InterventionSettings, SharingSettings, Study

SCHEMA = "sweep result/2"
"""Another one makes all cells anew: raise it when the same cell would give other numbers or columns."""
NOT_RANDOM = -1
THIRDS = {"all": (0, 3), "first": (0, 1), "middle": (1, 2), "last": (2, 3)}
PARTS_OF = {"mlp": ("mlp",), "attention": ("q", "k", "v"), "all": PARTS}
"""What `NeuronSet.part` is, for every part of a study."""


@dataclass(frozen=True)
class Cell:
    """One measurement: everything that decides its result and nothing else."""

    model: str
    model_fingerprint: str
    tokenizer_fingerprint: str
    dtype: str
    identified_on: str
    """Fingerprint of the corpus, or of the questions, that neurons are found on."""
    layout: str
    window: int | None
    detector: str
    parameters: str
    """Of the detector, JSON."""
    rate: float | None
    """None where the detector takes no rate."""
    site: str
    layers: str
    part: str
    kind: str
    """Of the intervention, as are value and strength."""
    value: float | str | None
    strength: float
    ablated: str
    """The group whose neurons are changed."""
    seed: int
    """Of random neurons in the place of the group's own, as many a layer; -1: its own."""
    evaluation: str
    evaluated_on: str
    """Fingerprint of the texts or questions that the effect is measured on."""
    options: str
    """Of the evaluation, JSON."""

    @property
    def key(self) -> str:
        """32 hex digits of all fields and of the version of the results."""
        return hashed({"schema": SCHEMA, **asdict(self)})

    @property
    def by_input(self) -> bool:
        """Whether every question loses neurons of its own."""
        return json.loads(self.parameters).get("scope") == "input"

    @property
    def intervention(self) -> str:
        """Kind, strength and value in words, e.g. "add 2 x mean"."""
        times = f"{self.strength:g} x " if self.strength != 1 else ""
        value = f"{self.value:g}" if isinstance(self.value, float) else self.value
        return self.kind if value is None else f"{self.kind} {times}{value}"

    @classmethod
    def of(cls, content: Mapping[str, Any]) -> "Cell":
        """From `asdict`, also by way of JSON."""
        return cls(**{f.name: content[f.name] for f in fields(cls)})


@dataclass(frozen=True)
class Inputs:
    """Fingerprints of what goes into a study, and what its languages are."""

    models: Mapping[str, tuple[str, str]]
    """Name -> fingerprints of weights and tokenizer."""
    identify: str
    evaluate: str
    questions: Mapping[str, str]
    """Of every measure that asks questions."""
    languages: tuple[str, ...]


def cells_of(study: Study, inputs: Inputs) -> tuple[Cell, ...]:
    """All cells, always in the same order; the random controls of a cell come right after it."""
    axes = itertools.product(
        study.model, study.detector, study.rate, study.site, study.layers, study.part, study.intervention
    )
    found = []
    for model, detector, rate, site, layers, part, intervention in axes:
        place = {"site": site, "layers": layers, "part": part, **changed(intervention)}
        groups = groups_of(study, detector.name, inputs.languages)
        for evaluation, group, seed in itertools.product(study.evaluate, groups, (NOT_RANDOM, *study.seeds)):
            cell = Cell(
                **origin(study, inputs, model),
                **found_by(detector, rate, evaluation),
                **place,
                ablated=group,
                seed=seed,
                **evaluated(study, inputs, evaluation),
            )
            # Where every question has neurons of its own, the corpus makes no difference.
            found.append(replace(cell, identified_on=cell.evaluated_on) if cell.by_input else cell)
    return tuple(dict.fromkeys(found))


def found_by(detector: DetectorSettings, rate: float, evaluation: str) -> dict[str, Any]:
    """Detector, parameters and rate of a cell that measures this."""
    parameters = detector.model_dump(exclude={"name"})
    if isinstance(detector, SharingSettings):
        parameters["scope"] = detector.scope_for(evaluation)
    return {
        "detector": detector.name,
        "parameters": json.dumps(parameters, sort_keys=True),
        "rate": None if takes_no_rate(detector.name, parameters) else rate,
    }


def origin(study: Study, inputs: Inputs, model: str) -> dict[str, Any]:
    """Model and corpus of a cell."""
    weights, tokenizer = inputs.models[model]
    return {
        "model": model,
        "model_fingerprint": weights,
        "tokenizer_fingerprint": tokenizer,
        "dtype": study.dtype,
        "identified_on": inputs.identify,
        "layout": study.corpus.layout,
        "window": study.corpus.window,
    }


def evaluated(study: Study, inputs: Inputs, evaluation: str) -> dict[str, str]:
    """What a cell measures, with the options that bear on it."""
    asked = {"facts": study.facts, **{name: task.n for name, task in study.tasks.given.items()}}
    options = study.generation.model_dump() if evaluation == "generation" else {}
    options = {"n": asked[evaluation]} if evaluation in asked else options
    return {
        "evaluation": evaluation,
        "evaluated_on": inputs.questions.get(evaluation, inputs.evaluate),
        "options": json.dumps(options, sort_keys=True),
    }


def changed(intervention: InterventionSettings) -> dict[str, Any]:
    return {name: getattr(intervention, name) for name in ("kind", "value", "strength")}


def region(layers: str, n_layers: int) -> range:
    """The layers that a study calls "first" and so on."""
    first, end = (round(n_layers * third / 3) for third in THIRDS[layers])
    return range(first, end)


def takes_no_rate(detector: str, parameters: Mapping[str, Any]) -> bool:
    """Whether the detector chooses by a bar of its own, so that rates make no difference."""
    return detector == "sharing" or any(parameters.get(name) is not None for name in ("threshold", "epsilon"))


def groups_of(study: Study, detector: str, languages: Sequence[str]) -> tuple[str, ...]:
    """The groups of neurons that are changed one after another.

    Raises:
        ValueError: the study names one that there is not.
    """
    known = TYPES if detector == "sharing" else tuple(languages)
    if study.ablated == ("each",):
        return known
    if missing := [g for g in study.ablated if g not in known]:
        raise ValueError(f"ablated names {missing[0]!r}, but {detector} finds neurons for {', '.join(known)}")
    return study.ablated


def hashed(content: Any) -> str:
    """32 hex digits of anything that JSON can say."""
    return hashlib.sha256(json.dumps(content, sort_keys=True, ensure_ascii=False).encode()).hexdigest()[:32]


def weights_fingerprint(model: HookedModel) -> str:
    """16 hex digits of every number of the model, and of the settings that decide what it does with them.

    `models.fingerprint` samples the MLP, which is enough to tell models apart and not to notice that one was tuned.
    """
    names = ("n_layers", "n_heads", "d_head", "n_ctx", "act_fn", "eps", "normalization_type")
    names += ("positional_embedding_type", "rotary_base", "rotary_dim", "attn_scale", "output_logits_soft_cap")
    digest = hashlib.sha256(repr([getattr(model.cfg, name, None) for name in names]).encode())
    for name, weight in model.named_parameters():
        digest.update(f"{name} {tuple(weight.shape)} {weight.dtype}".encode())
        digest.update(weight.detach().cpu().contiguous().reshape(-1).view(torch.uint8).numpy())
    return digest.hexdigest()[:16]


def tokenizer_fingerprint(tokenizer: PreTrainedTokenizerBase) -> str:
    """16 hex digits of everything that decides how text becomes tokens."""
    special = {name: getattr(tokenizer, f"{name}_token_id", None) for name in ("bos", "eos", "pad", "unk")}
    fast = tokenizer.backend_tokenizer if tokenizer.is_fast else None
    rules = tokenizer.get_vocab() if fast is None else fast.to_str()
    return hashed({"special": special, "rules": rules})[:16]
