"""What breaks in each language when neurons are switched off (Tang et al. 2024)."""

from collections.abc import Sequence
from contextlib import nullcontext

import pandas as pd
from tqdm.auto import tqdm

from ..corpora import Corpus
from ..evaluation.perplexity import RowLosses, change_interval, corpus_losses, corpus_rows
from ..models.hooked import HookedModel
from ..neurons import NeuronSet
from ..patching.changes import Intervention, check_fits
from ..patching.conditions import layer_matched_random
from ..patching.weights import rewritten
from ..tokens import Reading


def perplexity_matrix(
    model: HookedModel,
    corpus: Corpus,
    neurons: NeuronSet,
    *,
    seeds: Sequence[int] = (0, 1, 2),
    reading: Reading = Reading(),
    progress: bool = True,
) -> pd.DataFrame:
    """Loss of every language with every group's neurons at zero, a row a cell.

    Rows `ablated` are "none", every group of the set, and for each seed "random": each language's loss with random
    neurons off, as many a layer as that language's own set has, the floor for the cell of a language on itself.
    For each cell the neurons' output weights are zero for a while, which costs no more than a plain forward pass.

    Returns:
        columns ablated, evaluated, seed (-1 where none), n_neurons, change (nats a token against none), low, high
        (95 % bootstrap interval of the change over rows), and those of `perplexity`.

    Raises:
        ValueError: neurons of another model.
    """
    check_fits(model, neurons)
    rows = corpus_rows(model, corpus, reading)
    controls = {seed: layer_matched_random(neurons, seed=seed) for seed in seeds}
    runs: list[tuple[str, int, NeuronSet | None, list[str]]] = [("none", -1, None, list(rows))]
    runs += [(group, -1, neurons[group], list(rows)) for group in neurons.groups]
    runs += [("random", seed, c[k], [k]) for seed, c in controls.items() for k in rows if k in neurons.groups]
    base: dict[str, RowLosses] = {}
    table = []
    cells = tqdm(total=sum(len(r[-1]) for r in runs), desc="perplexity matrix", unit="cell", disable=not progress)
    for ablated, seed, off, languages in runs:
        with rewritten(model, [Intervention("zero", off)]) if off is not None else nullcontext():
            losses = corpus_losses(model, {k: rows[k] for k in languages})
        base = base or losses
        n_neurons = int(off.union().sum()) if off is not None else 0
        for k, loss in losses.items():
            change, low, high = change_interval(loss, base[k])
            cell = {"ablated": ablated, "evaluated": k, "seed": seed, "n_neurons": n_neurons}
            table.append({**cell, "change": change, "low": low, "high": high, **loss.summary()})
        cells.update(len(languages))
    cells.close()
    return pd.DataFrame(table)
