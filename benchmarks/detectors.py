"""How fast detectors are against the plain way: average precision neuron by neuron, sharing categories by Python sets.

    python benchmarks/detectors.py

Ratios of one run; the table goes to standard output, to be put into LOG.md.
"""

import time
from collections.abc import Callable

import numpy as np
import torch
from sklearn.metrics import average_precision_score

from mi_multilingual import TYPES, categories
from mi_multilingual.detectors.average_precision import average_precisions

NEURONS, TEXTS, LANGUAGES = 5000, 600, 6
LAYERS, WIDTH, INPUTS = 32, 4096, 4


def seconds(call: Callable[[], object], rounds: int = 3) -> float:
    """Least of a few runs."""
    times = []
    for _ in range(rounds):
        started = time.perf_counter()
        call()
        times.append(time.perf_counter() - started)
    return min(times)


def by_scikit_learn(responses: np.ndarray, labels: np.ndarray) -> np.ndarray:
    return np.array([[average_precision_score(label, row) for label in labels] for row in responses])


def compare_average_precision() -> str:
    random = np.random.default_rng(0)
    responses = random.normal(size=(NEURONS, TEXTS)).astype(np.float32)
    responses[: NEURONS // 2] = responses[: NEURONS // 2].clip(min=0)  # half of the neurons with ties, as ReLU has them
    labels = np.arange(TEXTS) % LANGUAGES == np.arange(LANGUAGES)[:, None]
    ours, theirs = [], []
    fast = seconds(lambda: ours.append(average_precisions(torch.from_numpy(responses), torch.from_numpy(labels))))
    slow = seconds(lambda: theirs.append(by_scikit_learn(responses, labels)), rounds=1)
    error = np.abs(ours[0].numpy() - theirs[0]).max()
    what = f"average precision, {NEURONS:,} neurons x {TEXTS} texts x {LANGUAGES} languages"
    return f"| {what} | {slow:.2f} | {fast:.3f} | {slow / fast:.0f} | {error:.1e} |"


def by_sets(active: np.ndarray) -> list[dict[str, set[tuple[int, int]]]]:
    """Types of every neuron, for one input after another, by sets of (layer, neuron)."""
    n_languages, n_inputs, n_layers, width = active.shape
    everything = {(layer, j) for layer in range(n_layers) for j in range(width)}
    tables = []
    for i in range(n_inputs):
        sets = [{(layer, j) for layer, j in np.argwhere(active[k, i]).tolist()} for k in range(n_languages)]
        shared, used = set.intersection(*sets), set.union(*sets)
        alone: set[tuple[int, int]] = set()
        for k, mine in enumerate(sets):
            alone |= mine.difference(*(other for m, other in enumerate(sets) if m != k))
        parts = (shared, used - shared - alone, alone, everything - used)
        tables.append(dict(zip(TYPES, parts, strict=True)))
    return tables


def compare_sharing() -> str:
    random = torch.Generator().manual_seed(0)
    active = torch.rand(LANGUAGES, INPUTS, LAYERS, WIDTH, generator=random) < 0.4
    ours, theirs = [], []
    fast = seconds(lambda: ours.append(categories(active)))
    slow = seconds(lambda: theirs.append(by_sets(active.numpy())), rounds=1)
    wrong = 0
    for i, table in enumerate(theirs[0]):
        for t, name in enumerate(TYPES):
            cells = {(layer, j) for layer, j in (ours[0][i] == t).nonzero().tolist()}
            wrong += len(cells ^ table[name])
    what = f"sharing categories, {LAYERS} x {WIDTH:,} neurons, {LANGUAGES} languages, {INPUTS} inputs"
    return f"| {what} | {slow:.2f} | {fast:.3f} | {slow / fast:.0f} | {wrong} neurons |"


if __name__ == "__main__":
    print("| what | plain, s | ours, s | times faster | largest difference |\n|---|---|---|---|---|")
    print(compare_average_precision(), flush=True)
    print(compare_sharing(), flush=True)
