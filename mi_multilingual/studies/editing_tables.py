"""How many edits are followed in the own language and in others, and which neurons carry them: tables."""

from typing import Any

import numpy as np
import pandas as pd

from ..evaluation.intervals import mean_interval, wilson_interval
from ..patching.conditions import CHOSEN, INTACT, RANDOM

MEASURES = ("success", "generality", "locality")
OWN, OTHERS = "own language", "other languages"


def editing_effects(answers: pd.DataFrame) -> pd.DataFrame:
    """How often an edit in one language is followed in another, from `editing_study`, with 95 % intervals.

    Only facts that were answered right before in the language edited in count.

    Returns:
        one row per editor, edited, asked and measure ("success", "generality", "locality"): n_records, value (a share),
        low, high (Wilson's interval with one answer per record), random (the same with the edit of another record, mean
        over seeds), beyond (value less random), beyond_low, beyond_high (bootstrap over records).

    Raises:
        ValueError: no row of an edit, or of its control.
    """
    return _effects(_counted(answers), ["editor", "edited", "asked"])


def editing_transfer(answers: pd.DataFrame) -> pd.DataFrame:
    """`editing_effects` of the language edited in, and of all others together.

    A record's answers in several languages are averaged first, so intervals are over records.

    Returns:
        one row per editor, scope ("own language" or "other languages") and measure, with the columns of
        `editing_effects` from n_records on.

    Raises:
        ValueError: as `editing_effects`.
    """
    part = _counted(answers)
    part = part.assign(scope=np.where(part.edited == part.asked, OWN, OTHERS))
    return _effects(part, ["editor", "scope"])


def _effects(part: pd.DataFrame, by: list[str]) -> pd.DataFrame:
    """The effect on every measure of each group of rows."""
    cells = [cell for _, cell in part.groupby(by, sort=False)]
    rows = [{**cell.iloc[0][by], "measure": name, **_effect(cell, name)} for cell in cells for name in MEASURES]
    return pd.DataFrame(rows)


def _counted(answers: pd.DataFrame) -> pd.DataFrame:
    """The rows of edits of facts that were known."""
    part = answers.loc[answers.known & (answers.condition != INTACT)]
    if missing := {CHOSEN, RANDOM} - set(part.condition):
        raise ValueError(
            f"answers must hold edits of known facts and their controls, got none that is {min(missing)!r}; give whole "
            "studies, of facts that the model knows"
        )
    return part


def _effect(cell: pd.DataFrame, measure: str) -> dict[str, Any]:
    """Mean over records of one measure, and what it is beyond the control."""
    wide = cell.pivot_table(index="id", columns="condition", values=measure, aggfunc="mean").astype(float)
    value, random = wide[CHOSEN].to_numpy(), wide[RANDOM].to_numpy()
    low, high = wilson_interval(value.mean(), len(wide))
    beyond_low, beyond_high = mean_interval(value - random)
    return {
        "n_records": len(wide),
        "value": float(value.mean()),
        "low": float(low),
        "high": float(high),
        "random": float(random.mean()),
        "beyond": float((value - random).mean()),
        "beyond_low": beyond_low,
        "beyond_high": beyond_high,
    }


def editing_neuron_effects(neurons: pd.DataFrame) -> pd.DataFrame:
    """Means of `editing_neurons` over records and languages edited in, with 95 % intervals over records.

    Returns:
        one row per token and type: n_records, share, carried, low, high (of carried), beyond, beyond_low, beyond_high.
    """
    rows = []
    for _, cell in neurons.groupby(["token", "type"], sort=False):
        means = cell.groupby("id")[["share", "carried", "beyond"]].mean()
        (low, high), (beyond_low, beyond_high) = (mean_interval(means[c].to_numpy()) for c in ("carried", "beyond"))
        row = {**cell.iloc[0][["token", "type"]], "n_records": len(means), **means.mean().to_dict(), "low": low}
        rows.append({**row, "high": high, "beyond_low": beyond_low, "beyond_high": beyond_high})
    return pd.DataFrame(rows)
