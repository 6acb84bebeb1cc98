"""95 % intervals of shares, means and sums per token."""

import numpy as np

RESAMPLES = 1000
"""Draws of every bootstrap interval."""


def wilson_interval(
    share: np.ndarray | float, n: np.ndarray | int | float
) -> tuple[np.ndarray | float, np.ndarray | float]:
    """95 % interval of a share of `n` by E. B. Wilson (1927); within [0, 1] also for shares of 0 and 1."""
    z = 1.96
    centre = (share + z**2 / (2 * n)) / (1 + z**2 / n)
    half = z * np.sqrt(share * (1 - share) / n + z**2 / (4 * n**2)) / (1 + z**2 / n)
    return np.maximum(centre - half, 0.0), np.minimum(centre + half, 1.0)


def resampled(n: int, random: np.random.Generator) -> np.ndarray:
    """How often a bootstrap draws each of `n` values, with replacement, in each of its draws: (draw, value)."""
    return random.multinomial(n, np.full(n, 1 / n), size=RESAMPLES)


def ratio_interval(total: np.ndarray, weight: np.ndarray, *, seed: int = 0) -> tuple[float, float]:
    """95 % bootstrap interval of sum(total) / sum(weight) over rows; draws without weight are left out."""
    times = resampled(len(total), np.random.default_rng(seed))
    drawn = times @ weight
    low, high = np.quantile((times @ total)[drawn > 0] / drawn[drawn > 0], [0.025, 0.975])
    return float(low), float(high)


def mean_interval(values: np.ndarray, *, seed: int = 0) -> tuple[float, float]:
    """95 % bootstrap interval of the mean."""
    return ratio_interval(values, np.ones(len(values)), seed=seed)


def mean_intervals(values: np.ndarray, *, seed: int = 0) -> tuple[np.ndarray, np.ndarray]:
    """95 % bootstrap intervals of the means of all columns, (row, column), rows drawn for all of them together.

    Numbers that are missing (NaN) are left out of the means; a column with none left has NaN as its interval.
    """
    times = resampled(len(values), np.random.default_rng(seed))
    there = np.isfinite(values)
    drawn = times @ there.astype(float)
    means = np.divide(times @ np.where(there, values, 0.0), drawn, out=np.full(drawn.shape, np.nan), where=drawn > 0)
    known = there.any(axis=0)
    low, high = np.full((2, values.shape[1]), np.nan)
    if known.any():
        low[known], high[known] = np.nanquantile(means[:, known], [0.025, 0.975], axis=0)
    return low, high
