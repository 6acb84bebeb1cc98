"""What breaks in each language when neurons are switched off (Tang et al. 2024)."""

from collections.abc import Iterator, Sequence
from typing import Any

import pandas as pd

from ..corpora import Corpus
from ..evaluation.perplexity import change_interval, corpus_losses, corpus_rows
from ..models.hooked import HookedModel
from ..neurons import NeuronSet
from ..patching.changes import check_fits
from ..patching.conditions import RANDOM, Condition, measured, with_controls
from ..tokens import Reading

_LABELS = ("condition", "group", "evaluated", "seed", "n_neurons")
_LOSSES = ("change", "low", "high", "nll", "ppl", "bits_per_byte", "n_tokens", "n_bytes", "n_rows")


def perplexity_matrix(
    model: HookedModel,
    corpus: Corpus,
    neurons: NeuronSet,
    *,
    seeds: Sequence[int] = (0, 1, 2),
    reading: Reading = Reading(),
    progress: bool = True,
) -> pd.DataFrame:
    """Loss of every language with every group's neurons at zero, one row per cell.

    As a floor for the cell of a language on itself, its loss is also measured without as many random neurons per
    layer as its own group has.

    Returns:
        columns condition ("intact", "chosen" or "random"), group (whose neurons, or as many random ones, are off; ""
        for the intact model), evaluated (language of the text), seed (-1 unless random), n_neurons (off), change (nats
        per token against the intact model), low, high (95 % bootstrap interval of the change over rows of text), and
        the columns of `perplexity`.

    Raises:
        ValueError: neurons of another model; seeds that are negative or repeat; text as in `token_rows`.

    Example:
        >>> import mi_multilingual as mm
        >>> model = mm.load_model("demo")
        >>> corpus = mm.load_corpus("demo", languages=["en", "fr"], split="evaluate", max_documents=3)
        >>> neurons = mm.NeuronSet.of({"fr": [(3, 7), (3, 8)]}, shape=(4, 1536))
        >>> reading = mm.Reading(layout="documents")
        >>> matrix = mm.perplexity_matrix(model, corpus, neurons, seeds=[0], reading=reading, progress=False)
        >>> matrix[["condition", "group", "evaluated", "seed", "n_neurons"]]
          condition group evaluated  seed  n_neurons
        0    intact              en    -1          0
        1    intact              fr    -1          0
        2    chosen    fr        en    -1          2
        3    chosen    fr        fr    -1          2
        4    random    fr        fr     0          2
    """
    check_fits(model, neurons)
    rows = corpus_rows(model, corpus, reading)
    intact = corpus_losses(model, rows)

    def cells(condition: Condition) -> Iterator[dict[str, Any]]:
        languages = [condition.labels["group"]] if condition.labels["condition"] == RANDOM else list(rows)
        losses = corpus_losses(model, {k: rows[k] for k in languages}) if condition.interventions else intact
        for k in languages:
            change, low, high = change_interval(losses[k], intact[k])
            yield {"evaluated": k, "change": change, "low": low, "high": high, **losses[k].summary()}

    conditions = [Condition(), *with_controls(neurons, seeds)]
    conditions = [c for c in conditions if c.labels["condition"] != RANDOM or c.labels["group"] in rows]
    table = measured(model, conditions, cells, title="perplexity matrix", progress=progress)
    return pd.DataFrame(table, columns=[*_LABELS, *_LOSSES])
