"""Do a language's neurons matter to that language, and only to it? Detectors compared by what switching off does."""

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import numpy as np
import pandas as pd

from ..corpora import Corpus
from ..detectors.table import checked_settings, detector_of, recordable_by_passes, recording_settings, scored
from ..evaluation.intervals import RESAMPLES, resampled
from ..evaluation.perplexity import corpus_losses, corpus_rows
from ..evidence.table import record_evidence
from ..models.hooked import HookedModel
from ..neurons import NeuronScores, NeuronSet
from ..patching.changes import check_fits
from ..patching.conditions import RANDOM, Condition, labelled, measured, with_controls
from ..tokens import DOCUMENTS, Reading

_LossChanges = Mapping[tuple[str, str], np.ndarray]
"""Change of every row's summed loss, by (language whose neurons are off, language of the text)."""


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

    Sets should be of equal size, since more neurons hurt more. The floor is random neurons, as many per layer as the
    first detector has, averaged over `seeds`.

    Args:
        detected: name of the detector -> its neurons, a group for every language of the corpus.

    Returns:
        one row per detector and one for random neurons, best first: condition ("chosen" or "random"), detector ("" for
        random neurons), n_neurons (mean per language), own, elsewhere, specificity (nats per token, means over
        languages), low and high (95 % bootstrap interval of the specificity over rows of text), hits (languages whose
        own loss rises most of all).

    Raises:
        ValueError: no detector, one without a group for a language of the corpus, neurons of another model, fewer than
            two languages, or seeds that are negative or repeat.

    Example:
        >>> import mi_multilingual as mm
        >>> model = mm.load_model("demo")
        >>> corpus = mm.load_corpus("demo", languages=["en", "fr"], split="evaluate", max_documents=3)
        >>> one = mm.NeuronSet.of({"en": [(3, 1)], "fr": [(3, 7)]}, shape=(4, 1536))
        >>> other = mm.NeuronSet.of({"en": [(0, 1)], "fr": [(0, 7)]}, shape=(4, 1536))
        >>> reading = mm.Reading(layout="documents")
        >>> table = mm.leaderboard(
        ...     model, corpus, {"late": one, "early": other}, seeds=[0], reading=reading, progress=False
        ... )
        >>> sorted(zip(table.condition, table.detector))
        [('chosen', 'early'), ('chosen', 'late'), ('random', '')]
    """
    if not detected:
        raise ValueError("detected must name at least one detector, got none; give {'lape': lape(stats), ...}")
    if len(corpus.languages) < 2:
        raise ValueError(f"corpus must have at least two languages, got {', '.join(corpus.languages)} only")
    for name, neurons in detected.items():
        if missing := [k for k in corpus.languages if k not in neurons]:
            raise ValueError(
                f"every detector must have neurons for {missing[0]!r}, {name!r} has {', '.join(neurons.groups)}"
            )
        check_fits(model, neurons)
    conditions = _detector_conditions({name: n.take(corpus.languages) for name, n in detected.items()}, seeds)
    rows = corpus_rows(model, corpus, reading, progress=progress)
    intact = corpus_losses(model, rows)

    def changes(condition: Condition) -> Iterator[dict[str, Any]]:
        for k, loss in corpus_losses(model, rows).items():
            yield {"evaluated": k, "change": (loss.nll - intact[k].nll).numpy()}

    found = pd.DataFrame(measured(model, conditions, changes, title="comparing detectors", progress=progress))
    n_tokens = {k: loss.n_tokens.numpy() for k, loss in intact.items()}
    by = ["condition", "detector"]
    table = [
        {**part.iloc[0][by], "n_neurons": part.n_neurons.mean(), **summary(_over_seeds(part), n_tokens)}
        for _, part in found.groupby(by, sort=False)
    ]
    return pd.DataFrame(table).sort_values("specificity", ascending=False, ignore_index=True)


def _detector_conditions(detected: Mapping[str, NeuronSet], seeds: Sequence[int]) -> list[Condition]:
    """Every detector's neurons off, and random ones in place of the first detector's."""
    found = []
    for i, (name, neurons) in enumerate(detected.items()):
        for condition in with_controls(neurons, () if i else seeds):
            is_random = condition.labels["condition"] == RANDOM
            found.append(labelled(condition, detector="" if is_random else name))
    return found


def _over_seeds(part: pd.DataFrame) -> _LossChanges:
    """The changes of one detector, mean over seeds."""
    cells = part.groupby(["group", "evaluated"], sort=False).change
    return {cell: np.mean(list(changes), axis=0) for cell, changes in cells}


def summary(changes: _LossChanges, n_tokens: Mapping[str, np.ndarray], *, seed: int = 0) -> dict[str, float]:
    """own, elsewhere, specificity, its bootstrap interval, and hits."""
    languages = list(n_tokens)
    random = np.random.default_rng(seed)
    matrix = np.array([[changes[i, k].sum() / n_tokens[k].sum() for k in languages] for i in languages])
    drawn = np.empty((len(languages), len(languages), RESAMPLES))
    for column, k in enumerate(languages):
        weights = resampled(len(n_tokens[k]), random)
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

    `scores.top(n)` of each makes sets of equal size, which can be compared. Parameter variation tunes a copy of the
    model on every language, a few steps, so it is among them only where it is named.

    Args:
        detectors: names in `DETECTORS`; by default all that need passes only.
        settings: name of a detector -> what it is asked for, e.g. {"lape": {"filter_rate": 0.985}}.
        reading: how text becomes rows; detectors that look at single documents take one per row in any case.

    Raises:
        ValueError: an unknown detector or setting, or one whose evidence cannot be recorded from text.
    """
    names = recordable_by_passes() if detectors is None else list(detectors)
    if others := [name for name in settings or {} if name not in names]:
        raise ValueError(f"settings must be of the detectors {', '.join(names)}, got some of {others[0]!r}")
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
