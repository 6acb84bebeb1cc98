"""What breaks in each language when neurons are switched off (Tang et al. 2024)."""

from collections.abc import Iterator, Sequence
from typing import Any

import pandas as pd
from tqdm.auto import tqdm

from ..corpora import Corpus
from ..evaluation.perplexity import (
    RowLosses,
    batch_losses,
    change_interval,
    corpus_losses,
    corpus_rows,
    joined_losses,
    logit_batches,
)
from ..models.hooked import HookedModel
from ..models.losses import token_losses
from ..models.partial import block_inputs, losses_from
from ..neurons import NeuronSet
from ..patching.changes import check_fits
from ..patching.conditions import RANDOM, Condition, applied, labelled, measured, with_controls
from ..tokens import Reading, TokenRows

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
    rows = corpus_rows(model, corpus, reading, progress=progress)
    intact = corpus_losses(model, rows)

    def cells(condition: Condition) -> Iterator[dict[str, Any]]:
        languages = [condition.labels["group"]] if condition.labels["condition"] == RANDOM else list(rows)
        losses = corpus_losses(model, {k: rows[k] for k in languages}) if condition.interventions else intact
        for k in languages:
            yield {"evaluated": k, **_change(losses[k], intact[k])}

    conditions = [Condition(), *with_controls(neurons, seeds)]
    conditions = [c for c in conditions if c.labels["condition"] != RANDOM or c.labels["group"] in rows]
    table = measured(model, conditions, cells, title="perplexity matrix", progress=progress)
    return pd.DataFrame(table, columns=[*_LABELS, *_LOSSES])


def layer_sweep(
    model: HookedModel,
    corpus: Corpus,
    neurons: NeuronSet,
    *,
    seeds: Sequence[int] = (0, 1, 2),
    reading: Reading = Reading(),
    progress: bool = True,
) -> pd.DataFrame:
    """Loss of every language with a group's neurons of one layer at zero, layer by layer.

    What comes before the layer is the intact model's, so its residual stream is taken from there: about half the work
    of as many whole passes.

    Returns:
        columns layer, then as `perplexity_matrix`, without rows of the intact model; layers in which a group has no
        neurons are left out.

    Raises:
        ValueError: as `perplexity_matrix`, or a set without neurons.
    """
    check_fits(model, neurons)
    conditions = [c for layer in range(model.cfg.n_layers) for c in _layer_conditions(neurons, layer, seeds)]
    if not conditions:
        raise ValueError("neurons must have some to switch off, got an empty set; give another")
    rows = corpus_rows(model, corpus, reading, progress=progress)
    table = []
    for language in tqdm(rows, desc="layer sweep", unit="language", disable=not progress):
        mine = [c for c in conditions if c.labels["condition"] != RANDOM or c.labels["group"] == language]
        intact, losses = _layer_losses(model, rows[language], mine)
        for condition, loss in zip(mine, losses, strict=True):
            table.append({**condition.labels, "evaluated": language, **_change(loss, intact)})
    return pd.DataFrame(table, columns=["layer", *_LABELS, *_LOSSES]).sort_values(
        "layer", kind="stable", ignore_index=True
    )


def _layer_conditions(neurons: NeuronSet, layer: int, seeds: Sequence[int]) -> list[Condition]:
    """The groups that have neurons in this layer, with these off, and their controls."""
    there = [group for group, mask in zip(neurons.groups, neurons.masks, strict=True) if mask[layer].any()]
    if not there:
        return []
    conditions = with_controls(
        neurons.in_layers([layer]), seeds, groups=there, number=layer, n_sets=neurons.masks.shape[1]
    )
    return [labelled(condition, layer=layer) for condition in conditions]


def _layer_losses(
    model: HookedModel, rows: TokenRows, conditions: Sequence[Condition]
) -> tuple[RowLosses, list[RowLosses]]:
    """Losses of the rows by the intact model and under every condition, each of which changes one layer."""
    parts: list[list[RowLosses]] = [[] for _ in range(len(conditions) + 1)]
    for batch in logit_batches(model, rows):
        tokens = batch.tokens.to(model.cfg.device)
        started = block_inputs(model, tokens)
        parts[0].append(batch_losses(batch, started[1] if started else token_losses(model, tokens)))
        for part, condition in zip(parts[1:], conditions, strict=True):
            with applied(model, condition):
                losses = losses_from(model, started[0], condition.labels["layer"]) if started else None
                part.append(batch_losses(batch, token_losses(model, tokens) if losses is None else losses))
    intact, *changed = map(joined_losses, parts)
    return intact, changed


def _change(loss: RowLosses, intact: RowLosses) -> dict[str, float]:
    """The measured columns of a row."""
    change, low, high = change_interval(loss, intact)
    return {"change": change, "low": low, "high": high, **loss.summary()}
