"""Every detector's ranking of the same model on the same text."""

import pandas as pd

from ..corpora import Corpus
from ..models import HookedModel
from ..neurons import NeuronScores
from ..recording import record
from ..text_activations import record_texts
from .activation_percentile import activation_percentile_scores
from .average_precision import average_precision
from .lap import lap_scores
from .lape import lape_scores
from .lave import lave_scores
from .plnd import plnd_scores, record_impact
from .relevance import record_relevance, relevance_scores


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
