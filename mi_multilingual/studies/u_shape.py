"""Whether neurons gather at both ends of a model (Tang et al. 2024)."""

from itertools import combinations
from math import comb
from typing import Any

import numpy as np
import pandas as pd

from ..evaluation.intervals import wilson_interval
from ..neurons import NeuronSet

_ENUMERATED = 20_000
"""So many ways to choose the outer layers are all tried; of more, a sample is."""
_DRAWS = 9_999


def u_shape(neurons: NeuronSet, *, seed: int = 0) -> pd.DataFrame:
    """How far neurons gather in the outer thirds of the layers, and how often that would happen by chance.

    Chance: the layers' numbers of neurons, dealt out anew to the layers. All ways are tried where there are few, else
    9,999. A layer is outer when its middle lies in the first or last third of the model's depth. With few layers the
    p-value cannot be small, whatever the neurons: `smallest_p` says how small.

    Returns:
        one row per group and one for all neurons that are in any (group ""): group, n_neurons, first, last (shares of
        the neurons in the first and last third), share (their sum), low, high (its 95 % Wilson interval), even (the
        share if every layer had as many), chance_low, chance_high (the middle 95 % of the shares by chance), p,
        smallest_p.

    Raises:
        ValueError: fewer than three layers, or a group without neurons.

    Example:
        >>> import mi_multilingual as mm
        >>> neurons = mm.NeuronSet.of({"fr": [(0, 3), (0, 5), (3, 1), (1, 2)]}, shape=(4, 8))
        >>> mm.u_shape(neurons)[["group", "share", "even", "smallest_p"]].round(3)
          group  share  even  smallest_p
        0    fr   0.75   0.5       0.167
        1         0.75   0.5       0.167
    """
    n_layers = neurons.masks.shape[1]
    if n_layers < 3:
        raise ValueError(f"neurons must be of a model with at least three layers to have ends, got {n_layers}")
    counts = {g: mask.sum(dim=1).numpy() for g, mask in zip(neurons.groups, neurons.masks, strict=True)}
    counts[""] = neurons.union().sum(dim=1).numpy()
    if empty := [g for g, n in counts.items() if not n.sum()]:
        raise ValueError(f"every group must have neurons, got none for {empty[0]!r}; leave it out with take(...)")
    return pd.DataFrame([{"group": g, **_at_ends(n, seed)} for g, n in counts.items()])


def thirds(n_layers: int) -> np.ndarray:
    """The third of the depth that the middle of each layer lies in: 0, 1 or 2."""
    return (6 * np.arange(n_layers) + 3) // (2 * n_layers)


def _at_ends(counts: np.ndarray, seed: int) -> dict[str, Any]:
    """The row of one group, from its number of neurons in every layer."""
    third, total = thirds(len(counts)), int(counts.sum())
    first, last = (counts[third == i].sum() / total for i in (0, 2))
    outer = int((third != 1).sum())
    low, high = wilson_interval(first + last, total)
    by_chance = _chosen_layers(len(counts), outer, seed) @ counts
    as_many = int((by_chance >= counts[third != 1].sum()).sum())
    complete = comb(len(counts), outer) <= _ENUMERATED
    tried = len(by_chance) + (not complete)
    return {
        "n_neurons": total,
        "first": first,
        "last": last,
        "share": first + last,
        "low": float(low),
        "high": float(high),
        "even": outer / len(counts),
        # Never narrower than the few ways of a small model allow.
        "chance_low": np.quantile(by_chance / total, 0.025, method="lower"),
        "chance_high": np.quantile(by_chance / total, 0.975, method="higher"),
        "p": (as_many + (not complete)) / tried,
        "smallest_p": 1 / tried,
    }


def _chosen_layers(n_layers: int, n_chosen: int, seed: int) -> np.ndarray:
    """Ways to choose some of the layers, as rows of 0 and 1."""
    if comb(n_layers, n_chosen) <= _ENUMERATED:
        chosen = np.array(list(combinations(range(n_layers), n_chosen)))
    else:
        random = np.random.default_rng(seed)
        chosen = random.random((_DRAWS, n_layers)).argsort(axis=1)[:, :n_chosen]
    rows = np.zeros((len(chosen), n_layers), dtype=np.int64)
    np.put_along_axis(rows, chosen, 1, axis=1)
    return rows
