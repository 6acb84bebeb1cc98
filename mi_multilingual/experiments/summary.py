"""A sweep in few numbers: what every setting does to the language whose neurons it changes, and to the others."""

from __future__ import annotations

import json
import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from ..detectors.table import detector_of
from ..display import spoken
from ..evaluation.intervals import mean_interval
from .measures import NO_PROMPT

_VARIED = ("model", "detector", "parameters", "rate", "site", "layers", "part", "intervention")
_MEASURED = ("evaluation", "measure")
_PARTS_IN_WORDS = {"mlp": "MLP", "attention": "attention", "all": "MLP and attention"}


def effects(results: pd.DataFrame) -> pd.DataFrame:
    """Mean change by every setting, of the chosen neurons and of random ones in their place.

    The mean is over languages: over those whose neurons are changed, or where types of neurons are, over those
    evaluated. Changes of one language, by several seeds or in several texts, are averaged first, since they are not
    independent.

    Args:
        results: of a sweep (`mi_multilingual.experiments.sweep.results`).

    Returns:
        one row per setting, measure, `condition` ("chosen" or "random") and `where`: "own" (text of the language whose
        neurons are changed), "others", "no prompt", or the type that is changed. The setting in its own columns and as
        `setting` in the words that tell it from the others; n (languages), base and value (means), change and its 95 %
        bootstrap interval over languages low, high (NaN of a single language).

    Raises:
        ValueError: a detector that is not in the table of detectors.
    """
    of_languages = results.detector.map({name: detector_of(name).by_language for name in results.detector.unique()})
    table = results.assign(
        where=[place(*row) for row in zip(of_languages, results.group, results.evaluated, strict=True)],
        unit=results.group.where(of_languages, results.evaluated),
    )
    rows, by = [], [*_VARIED, *_MEASURED, "condition", "where"]
    for key, part in table.groupby(by, sort=False, dropna=False):
        assert isinstance(key, tuple)
        units = part.groupby("unit", sort=False)[["base", "value", "change"]].mean()
        low, high = (np.nan, np.nan)
        if len(units) > 1:
            low, high = mean_interval(units.change.to_numpy(float))
        rows.append((*key, len(units), *units.mean(), low, high))
    found = pd.DataFrame(rows, columns=[*by, "n", "base", "value", "change", "low", "high"])
    found.insert(0, "setting", _in_words(found))
    return found


def _in_words(effects: pd.DataFrame) -> list[str]:
    """Each row's setting, by what tells it from the others."""
    counts = effects[[*_VARIED]].nunique(dropna=False)
    varied = list(counts[counts > 1].index)
    names = {model: Path(model).name for model in effects.model}  # of a checkpoint's folder, unless two are alike
    if len(set(names.values())) == len(names):
        effects = effects.assign(model=effects.model.map(names))
    parameters = effects.parameters.map(json.loads)
    # A parameter is worth a word where settings of the same detector differ in it.
    worth = {}
    for detector, own in parameters.groupby(effects.detector):
        seen = [(name, json.dumps(value)) for one in own for name, value in one.items()]
        worth[detector] = [name for name in dict(seen) if len({v for n, v in seen if n == name}) > 1]
    return [
        ", ".join(word for name in varied for word in words(name, row[name], worth[row["detector"]]))
        or "the only setting"
        for row in effects[[*_VARIED]].to_dict("records")
    ]


def words(name: str, value: Any, parameters: Sequence[str]) -> list[str]:
    """One part of a setting; nothing where it has none."""
    if name == "parameters":
        given = json.loads(value)
        return [f"{spoken(p)} {given[p]}" for p in parameters if given.get(p) is not None]
    if name == "detector":
        return [spoken(value)]
    if name == "rate":
        return [] if value is None or math.isnan(value) else [f"rate {value:g}"]
    if name == "part":
        return [_PARTS_IN_WORDS[value]]
    return [f"{value} layers" if name == "layers" else str(value)]


def place(of_languages: bool, group: str, evaluated: str) -> str:
    """What the text measured is to the neurons changed."""
    if not of_languages:
        return group
    if evaluated == NO_PROMPT:
        return "no prompt"
    return "own" if group == evaluated else "others"
