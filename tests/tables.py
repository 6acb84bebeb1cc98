"""Whole tables of studies for languages of any name, without a model."""

from itertools import product

import numpy as np
import pandas as pd
import torch

from mi_multilingual import (
    NeuronSet,
    Representations,
    ablation_comparison,
    ablation_matrix,
    curve_table,
    dominance,
    layer_means,
    middle_and_ends,
    representation_effects,
    u_shape,
)
from mi_multilingual.tokens import DOCUMENTS


def of_representations(languages):
    """Name -> table of the study `representations`: four layers of eight sentences, each language's neurons off."""
    random = np.random.default_rng(0)
    conditions = [("intact", "", -1), *(("chosen", k, -1) for k in languages), *(("random", k, 0) for k in languages)]
    cells = [(*c, *rest) for c, *rest in product(conditions, range(4), languages, range(8))]
    outputs = pd.DataFrame(cells, columns=["condition", "group", "seed", "layer", "language", "sentence"])
    for measure in ("similarity", "floor", "retrieval", "mexa", "cka"):
        outputs[measure] = random.random(len(outputs))
    vectors = torch.randn(4, len(languages), 8, 5, generator=torch.Generator().manual_seed(0))
    found = Representations(vectors, tuple(languages), "mean", "m", "f", "c", DOCUMENTS)
    neurons = NeuronSet.of({k: [(0, i), (2, i)] for i, k in enumerate(languages)}, shape=(3, 9))
    return {
        "representation_layers": layer_means(outputs),
        "representation_shape": middle_and_ends(outputs),
        "representation_effects": representation_effects(outputs.assign(n_neurons=2)),
        "dominance": pd.concat([dominance(found, shifted=s).assign(shifted=s) for s in (False, True)]),
        "neuron_layers": neurons.counts(),
        "u_shape": u_shape(neurons),
    }


def of_methods(languages):
    """Name -> table of the study `lape_tables`: two methods and two sizes on six rows of text."""
    random = np.random.default_rng(0)
    conditions = [("", "intact", "", -1)]
    for k in languages:
        conditions += [("lape", "chosen", k, -1), ("lape", "random", k, 0), ("uniform random", "random", k, 0)]
        conditions += [("lap", "chosen", k, -1), ("lap", "random", k, 0)]
    cells = [(*c, *rest) for c, *rest in product(conditions, languages, range(6))]
    outputs = pd.DataFrame(cells, columns=["method", "condition", "group", "seed", "evaluated", "row"])
    outputs = outputs.assign(n_neurons=3, n_tokens=10, nll=30 + random.random(len(outputs)))
    lape = outputs.method.isin(["", "lape"]) & ((outputs.group == outputs.evaluated) | (outputs.group == ""))
    curve = pd.concat([outputs[lape & ((outputs.method != "") | (n == 4))].assign(n=n) for n in (4, 8)])
    return {
        "ablation_matrix": ablation_matrix(outputs),
        "ablation_comparison": ablation_comparison(outputs),
        "ablation_curve": curve_table(curve),
    }
