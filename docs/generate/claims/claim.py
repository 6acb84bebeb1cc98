"""A claim of a paper, how it is measured here, and the rule by which it holds."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass

import pandas as pd

HOLDS, FAILS, OPEN = "holds", "does not", "cannot be told"
DIGITS = 12  # what is left of a number behind them is rounding


@dataclass(frozen=True)
class Effect:
    """An effect less its control, with its 95 % interval."""

    value: float
    low: float
    high: float
    control: str
    """What it is held against, in words, such as "as many random neurons per layer"."""


@dataclass(frozen=True)
class Claim:
    """One row of the table."""

    paper: str
    """Author and year."""
    text: str
    """What is claimed, in one sentence."""
    reported: str
    """The figure that the paper gives, with its model."""
    study: str
    """The row of `mi_multilingual.studies.table.STUDIES`, and the name of the file in docs/reproduction."""
    measure: Callable[[Mapping[str, pd.DataFrame]], Effect]
    """From the study's tables, by name, to the effect that the claim is about."""
    unit: str
    direction: int
    """1 where the claim is that the effect is above 0, -1 where it is below."""
    delta: float
    """Effects nearer to 0 than this are none."""


def verdict(claim: Claim, effect: Effect) -> str:
    """Whether the claim holds: the interval is on its side of 0; does not: on the other, or within delta of 0.

    Where every value is the same, resampling them gives an interval without width, which tells nothing.
    """
    if not effect.low < effect.high:
        return OPEN
    low, high = sorted(round(claim.direction * end, DIGITS) for end in (effect.low, effect.high))
    if low > 0:
        return HOLDS
    return FAILS if high < 0 or (-claim.delta <= low and high <= claim.delta) else OPEN
