"""Do a language's neurons matter to that language, and only to it? Detectors compared by what switching off does."""

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import pandas as pd
from tqdm.auto import tqdm

from ..corpora import Corpus
from ..detectors.table import checked_settings, detector_of, recordable, recording_settings, scored
from ..evaluation.intervals import RESAMPLES
from ..evaluation.perplexity import RowLosses, corpus_losses, corpus_rows
from ..evidence.table import record_evidence
from ..models.hooked import HookedModel
from ..neurons import NeuronScores, NeuronSet
from ..patching.changes import Intervention, check_fits
from ..patching.conditions import layer_matched_random
from ..patching.weights import rewritten
from ..tokens import DOCUMENTS, Reading, TokenRows

RANDOM = "layer-matched random"


def leaderboard(
    model: HookedModel,
    corpus: Corpus,
    detected: Mapping[str, NeuronSet],
    *,
    seeds: Sequence[int] = (0, 1, 2),
    reading: Reading = Reading(),
    progress: bool = True,
) -> pd.DataFrame:
    """Detectors by specificity: the loss a language gains without its neurons, less what the others gain on average.

    Sets should be of equal size, since more neurons hurt more. The floor is random neurons, as many a layer as the
    first detector has, averaged over `seeds`.

    Args:
        detected: name of the detector -> its neurons, a group a language of the corpus.

    Returns:
        a row a detector, best first: detector, n_neurons (a language, mean), own, elsewhere, specificity (nats a
        token, means over languages), low and high (95 % bootstrap interval of the specificity over rows of text),
        hits (languages whose own loss rises most of all).

    Raises:
        ValueError: no detector, one without a group for a language of the corpus, or neurons of another model.
    """
    if not detected:
        raise ValueError("no detector to compare; give detected={'lape': lape(stats), ...}")
    for name, neurons in detected.items():
        if missing := [k for k in corpus.languages if k not in neurons.groups]:
            raise ValueError(f"{name} has no neurons for {missing[0]!r}; it has {', '.join(neurons.groups)}")
        check_fits(model, neurons)
    rows = corpus_rows(model, corpus, reading)
    first = next(iter(detected.values())).take(corpus.languages)
    sets = [(name, neurons.take(corpus.languages)) for name, neurons in detected.items()]
    sets += [(RANDOM, layer_matched_random(first, seed=seed)) for seed in seeds]
    base = corpus_losses(model, rows)
    cells = tqdm(total=len(sets) * len(rows), desc="comparing detectors", unit="set", disable=not progress)
    changes: dict[str, list[dict[tuple[str, str], np.ndarray]]] = {}
    for name, neurons in sets:
        changes.setdefault(name, []).append(row_changes(model, neurons, rows, base, cells))
    cells.close()
    sizes = {name: neurons.sizes().mean() for name, neurons in sets}
    n_tokens = {k: loss.n_tokens.numpy() for k, loss in base.items()}
    table = [
        {"detector": name, "n_neurons": sizes[name], **summary(mean_change(runs), n_tokens)}
        for name, runs in changes.items()
    ]
    return pd.DataFrame(table).sort_values("specificity", ascending=False, ignore_index=True)


def row_changes(
    model: HookedModel,
    neurons: NeuronSet,
    rows: Mapping[str, TokenRows],
    base: Mapping[str, RowLosses],
    cells: tqdm,
) -> dict[tuple[str, str], np.ndarray]:
    """Change of every row's summed loss, by (language switched off, language of the text)."""
    found = {}
    for off in rows:
        with rewritten(model, [Intervention("zero", neurons[off])]):
            without = corpus_losses(model, rows)
        found |= {(off, k): (loss.nll - base[k].nll).numpy() for k, loss in without.items()}
        cells.update()
    return found


def mean_change(runs: Sequence[dict[tuple[str, str], np.ndarray]]) -> dict[tuple[str, str], np.ndarray]:
    return {cell: np.mean([run[cell] for run in runs], axis=0) for cell in runs[0]}


def summary(
    changes: Mapping[tuple[str, str], np.ndarray], n_tokens: Mapping[str, np.ndarray], *, seed: int = 0
) -> dict[str, float]:
    """own, elsewhere, specificity, its bootstrap interval, and hits."""
    languages = list(n_tokens)
    random = np.random.default_rng(seed)
    matrix = np.array([[changes[i, k].sum() / n_tokens[k].sum() for k in languages] for i in languages])
    drawn = np.empty((len(languages), len(languages), RESAMPLES))
    for column, k in enumerate(languages):
        n = len(n_tokens[k])
        weights = random.multinomial(n, np.full(n, 1 / n), size=RESAMPLES)
        for row, i in enumerate(languages):
            drawn[row, column] = (weights @ changes[i, k]) / (weights @ n_tokens[k])
    low, high = np.quantile(specificity(drawn), [0.025, 0.975])
    own = np.diagonal(matrix).mean()
    return {
        "own": own,
        "elsewhere": own - specificity(matrix[..., None]).item(),
        "specificity": specificity(matrix[..., None]).item(),
        "low": float(low),
        "high": float(high),
        "hits": int((matrix.argmax(axis=1) == np.arange(len(languages))).sum()),
    }


def specificity(matrix: np.ndarray) -> np.ndarray:
    """Mean of the diagonal less mean of the rest of a (language, language, draw) array of changes, for each draw."""
    n = len(matrix)
    own = np.einsum("ii...->...", matrix)
    return own / n - (matrix.sum(axis=(0, 1)) - own) / (n * (n - 1))


def rankings(
    model: HookedModel,
    corpus: Corpus,
    *,
    detectors: Sequence[str] | None = None,
    settings: Mapping[str, Mapping[str, Any]] | None = None,
    reading: Reading = DOCUMENTS,
    progress: bool = True,
) -> dict[str, NeuronScores]:
    """MLP neurons of every language by every detector that needs nothing but the model and text.

    `scores.top(n)` of each makes sets of equal size, which can be compared. Parameter variation is not among them: it
    needs tuned checkpoints.

    Args:
        detectors: names in `DETECTORS`; all that can be had by default.
        settings: name of a detector -> what it is asked for, e.g. {"lape": {"filter_rate": 0.985}}.
        reading: how text becomes rows; detectors that look at single documents take one per row in any case.

    Raises:
        ValueError: an unknown detector or setting, or one whose evidence cannot be recorded from text.
    """
    names = recordable() if detectors is None else list(detectors)
    asked = {name: checked_settings(name, (settings or {}).get(name, {})) for name in names}
    evidence: dict[str, Any] = {}
    found = {}
    for name in names:
        kind, options = detector_of(name).evidence, recording_settings(name, asked[name])
        key = f"{kind} {sorted(options.items())}"
        if key not in evidence:
            evidence[key] = record_evidence(kind, model, corpus, reading=reading, progress=progress, **options)
        found[name] = scored(name, evidence[key], **asked[name])
    return found


def ranking_stability(
    model: HookedModel,
    corpus: Corpus,
    *,
    n: int,
    detectors: Sequence[str] | None = None,
    settings: Mapping[str, Mapping[str, Any]] | None = None,
    reading: Reading = DOCUMENTS,
    progress: bool = True,
) -> pd.Series:
    """Overlap of each detector's `n` best neurons per language on one half of the documents with those on the other.

    Args:
        detectors, settings, reading: as of `rankings`.

    Returns:
        by detector, |A and B| / |A or B|, mean over languages; every second document is in one half.

    Raises:
        ValueError: a language with fewer than two documents; as `rankings`.
    """
    if short := [k for k, docs in corpus.documents.items() if len(docs) < 2]:
        raise ValueError(f"every language must have two documents or more, got one for {short[0]!r}; give more text")
    halves = [
        Corpus({k: docs[start::2] for k, docs in corpus.documents.items()}, f"{corpus.source}, half {start + 1}")
        for start in (0, 1)
    ]
    asked: dict[str, Any] = {"detectors": detectors, "settings": settings, "reading": reading, "progress": progress}
    one, other = (rankings(model, half, **asked) for half in halves)
    agreement = {name: scores.top(n).agreement(other[name].top(n)).mean() for name, scores in one.items()}
    return pd.Series(agreement, name="stability")
