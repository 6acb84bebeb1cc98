"""Ways to one result, measured in turns."""

from __future__ import annotations

import gc
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from statistics import median
from typing import Any

import torch


@dataclass(frozen=True)
class Case:
    """Ways to one result; their times are given in units of the first."""

    title: str
    ways: Mapping[str, Callable[[], Any]]
    """A way that returns None has no result to compare."""
    n_tokens: int
    """Tokens that one call reads or writes."""
    goals: Mapping[str, float] = field(default_factory=dict)
    """Way -> largest ratio of times, or with `speed` the smallest of speeds."""
    expected: Any = None
    difference: Callable[[Any, Any], float] = lambda expected, got: 0.0
    limit: float = 0.0
    """Largest difference from what is expected."""
    speed: bool = False
    """Speeds are compared, more is better."""
    flops: Mapping[str, float] = field(default_factory=dict)
    """Way -> operations per token, where the share of the largest possible rate is of interest."""


@dataclass(frozen=True)
class Row:
    """What was measured of one way."""

    part: str
    model: str
    dtype: str
    case: str
    way: str
    seconds: float
    ratio: float
    least: float
    most: float
    goal: float | None
    difference: float | None
    tokens_per_second: float
    share_of_peak: float | None
    speed: bool = False
    """Whether ratios are of speeds, more is better."""


def timed(calls: Mapping[str, Callable[[], Any]], rounds: int = 7, warm_up: int = 1) -> dict[str, list[float]]:
    """Seconds of each call in each round; the calls take turns, so that a slow moment hits all of them.

    Args:
        warm_up: rounds before, which do not count.
    """
    times: dict[str, list[float]] = {name: [] for name in calls}
    for i in range(warm_up + rounds):
        for name, call in calls.items():
            gc.collect()
            _wait()
            started = time.perf_counter()
            call()
            _wait()
            if i >= warm_up:
                times[name].append(time.perf_counter() - started)
    return times


def alternating(calls: Mapping[str, Callable[[], Any]], rounds: int = 7) -> dict[str, float]:
    """Median seconds of each call."""
    return {name: median(values) for name, values in timed(calls, rounds).items()}


def _wait() -> None:
    if torch.cuda.is_available():
        torch.cuda.synchronize()


def checked(case: Case) -> tuple[dict[str, float], list[str]]:
    """How far each way is from what is expected, and sentences about those too far away, whose times say nothing."""
    near, sentences = {}, []
    for way, call in case.ways.items():
        got = call()
        difference = None if got is None else float(case.difference(case.expected, got))
        if difference is not None and not difference <= case.limit:
            sentences.append(f"{case.title}, {way}: left out, {difference:.2g} from what is expected ({case.limit:g})")
        else:
            near[way] = difference
    return near, sentences


def measured(part: str, model: str, dtype: str, case: Case, rounds: int, peak: float) -> tuple[list[Row], list[str]]:
    """The rows of a case, its ways checked before they are measured; sentences about those that are wrong.

    Args:
        peak: operations per second of a large matrix product.
    """
    differences, sentences = checked(case)  # which also warms them up
    times = timed({way: case.ways[way] for way in differences}, rounds, warm_up=0)
    unit = times[next(iter(case.ways))]
    rows = []
    for way, seconds in times.items():
        turns = [(u / s if case.speed else s / u) for s, u in zip(seconds, unit, strict=True)]
        own, its = median(seconds), median(unit)
        rate = case.n_tokens / own
        share = rate * case.flops[way] / peak if way in case.flops else None
        numbers = (own, its / own if case.speed else own / its, min(turns), max(turns))
        about = (part, model, dtype, case.title, way)
        rows.append(Row(*about, *numbers, case.goals.get(way), differences[way], rate, share, case.speed))
    return rows, sentences


def matrix_rate(device: str, dtype: torch.dtype, size: int = 2048) -> float:
    """Operations per second of a product of square matrices."""
    size = size if device == "cpu" else 4 * size
    left, right = (torch.randn(size, size, device=device, dtype=dtype) for _ in range(2))
    return 2 * size**3 / alternating({"product": lambda: left @ right})["product"]
