"""Do a language's neurons matter to that language, and only to it? Detectors compared by what switching off does."""

from collections.abc import Mapping, Sequence

import numpy as np
import pandas as pd
from tqdm.auto import tqdm

from ..corpora import Corpus
from ..detectors.activation_percentile import activation_percentile_scores
from ..detectors.average_precision import average_precision
from ..detectors.lap import lap_scores
from ..detectors.lape import lape_scores
from ..detectors.lave import lave_scores
from ..detectors.plnd import plnd_scores
from ..detectors.relevance import relevance_scores
from ..evaluation.intervals import RESAMPLES
from ..evaluation.perplexity import RowLosses, corpus_losses, corpus_rows
from ..evidence.activations import record
from ..evidence.impact import record_impact
from ..evidence.relevance import record_relevance
from ..evidence.texts import record_texts
from ..models.hooked import HookedModel
from ..neurons import NeuronScores, NeuronSet
from ..patching.changes import Intervention, check_fits
from ..patching.conditions import layer_matched_random
from ..patching.weights import rewritten
from ..tokens import TokenRows

RANDOM = "layer-matched random"


def leaderboard(
    model: HookedModel,
    corpus: Corpus,
    detected: Mapping[str, NeuronSet],
    *,
    seeds: Sequence[int] = (0, 1, 2),
    window: int | None = None,
    layout: str = "stream",
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
    rows = corpus_rows(model, corpus, window, layout)
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
    filter_rate: float = 0.95,
    activation_bar_ratio: float = 0.95,
    progress: bool = True,
) -> dict[str, NeuronScores]:
    """MLP neurons of every language by every detector that needs nothing but the model and text, a document a row.

    `scores.top(n)` of each makes sets of equal size, which can be compared. Parameter variation is not among them: it
    needs tuned checkpoints.

    Args:
        filter_rate, activation_bar_ratio: of LAPE and LAVE (see `lape`).
    """
    bars = {"filter_rate": filter_rate, "activation_bar_ratio": activation_bar_ratio}
    stats = record(model, corpus, layout="documents", progress=progress)
    texts = record_texts(model, corpus, progress=progress)["mean"]
    gradients = record_relevance(model, corpus, layout="documents", progress=progress)
    return {
        "lape": lape_scores(stats, **bars),
        "lap": lap_scores(stats),
        "lave": lave_scores(stats, **bars),
        "activation percentile": activation_percentile_scores(stats),
        "average precision": average_precision(texts),
        "plnd": plnd_scores(record_impact(model, corpus, progress=progress)["mlp"]),
        "relevance": relevance_scores(gradients),
    }


def ranking_stability(
    model: HookedModel, corpus: Corpus, n: int, *, filter_rate: float = 0.95, progress: bool = True
) -> pd.Series:
    """Overlap of each detector's `n` best neurons a language on one half of the documents with those on the other.

    Returns:
        by detector, |A and B| / |A or B|, mean over languages; every second document is in one half.

    Raises:
        ValueError: a language with fewer than two documents.
    """
    if short := [k for k, docs in corpus.documents.items() if len(docs) < 2]:
        raise ValueError(f"{short[0]!r} has fewer than two documents, which make no two halves; give more text")
    halves = [
        Corpus({k: docs[start::2] for k, docs in corpus.documents.items()}, f"{corpus.source}, half {start + 1}")
        for start in (0, 1)
    ]
    one, other = (rankings(model, half, filter_rate=filter_rate, progress=progress) for half in halves)
    agreement = {name: scores.top(n).agreement(other[name].top(n)).mean() for name, scores in one.items()}
    return pd.Series(agreement, name="stability")
