"""Differences and means of numbers that have 95 % intervals, and whether two of them are apart."""

import numpy as np

_Measured = tuple[np.ndarray, np.ndarray, np.ndarray]
"""Numbers, and the lower and upper ends of their 95 % intervals."""


def difference(mine: _Measured, theirs: _Measured) -> _Measured:
    """`mine - theirs` and its 95 % interval from the two intervals, as if the two were independent.

    Where they are measured on the same text, the interval is wider than it needs to be.

    Source: Zou and Donner 2008, Statistics in Medicine 27, equation 3 (recovery of variance estimates).
    """
    change = mine[0] - theirs[0]
    low = change - np.hypot(mine[0] - mine[1], theirs[2] - theirs[0])
    return change, low, change + np.hypot(mine[2] - mine[0], theirs[0] - theirs[1])


def mean_of(values: np.ndarray, low: np.ndarray, high: np.ndarray) -> tuple[float, float, float]:
    """Mean of independent numbers and its 95 % interval from theirs, by the same rule; NaN without any."""
    if not len(values):
        return np.nan, np.nan, np.nan
    mean, n = values.mean(), len(values)
    return (
        float(mean),
        float(mean - np.sqrt(((values - low) ** 2).sum()) / n),
        float(mean + np.sqrt(((high - values) ** 2).sum()) / n),
    )


def apart(low: float, high: float, other_low: float, other_high: float) -> bool:
    """Whether two intervals do not overlap; an interval that is not known overlaps everything."""
    return bool(low > other_high or high < other_low)
