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


_TYPES = ("all-shared", "partial-shared", "specific", "non-activated")
_SPREAD = {"mean": 0.2, "low": 0.1, "high": 0.3, "min": 0.0, "max": 0.4, "n_inputs": 3}


def of_sharing(languages):
    """Name -> table of the study of what languages share, that of languages with these names."""
    layers, a, b = (0, 1), languages[0], languages[1]
    types = [{"task": "t", "threshold": 0.0, "layer": i, "type": kind} for i in layers for kind in _TYPES]
    active = [{"task": "t", "threshold": 0.0, "language": k, "layer": i} for k in languages for i in layers]
    added = [{**row, "language": k, "measure": "contribution_mean"} for row in types for k in languages]
    effects = {"language": "", "measure": "accuracy", "n_items": 3, "n_neurons": 4.0, "intact": 0.9, "value": 0.5}
    effects |= {
        "change": -0.4,
        "low": -0.5,
        "high": -0.3,
        "random_change": 0.0,
        "beyond_low": -0.5,
        "beyond_high": -0.1,
    }
    answers = pd.DataFrame([{"task": "t", "group": kind, **effects} for kind in _TYPES])
    pairs = {"language": [a], "other": [b], "overlap": [0.3], "family": [1], "script": [0.0]}
    distance = {"distance": ["family"], "rho": [-0.5], "low": [-0.9], "high": [-0.1], "p": [0.01]}
    return {
        "sharing_types": pd.DataFrame([{**row, **_SPREAD, "chance": 0.1, "repeated": 0.05} for row in types]),
        "sharing_active": pd.DataFrame([{**row, **_SPREAD} for row in active]),
        "sharing_contributions": pd.DataFrame([{**row, **_SPREAD} for row in added]),
        "sharing_deactivation": answers,
        "sharing_written": answers,
        "sharing_pairs": pd.DataFrame(pairs),
        "sharing_distance": pd.DataFrame({**distance, "n_pairs": [3], "permutations": [99]}),
    }


def of_experts(languages):
    """Name -> table of the study of experts, that of languages with these names."""
    used = [(i, e, k, 0.5, 0.4, 0.6) for i in (0, 1) for e in (0, 1) for k in languages]
    types = [(-1, kind, 1, 0.25, 0.2, 0.3, 0.1) for kind in _TYPES]
    cosines = [("base", x, y, 1.0 if x == y else 0.5) for x in languages for y in languages]
    curve = [
        (kind, 0.5, k, 4.0, 9, 3.0, 0.1, 0.0, 0.2, 0.3, 0.2, 0.4, -0.2, -0.3, -0.1)
        for kind in ("uniform", "layer-wise")
        for k in (*languages, "")
    ]
    names = ["layers", "rate", "language", "n_neurons", "n_tokens", "intact", "change", "low", "high"]
    names += ["random_change", "random_low", "random_high", "beyond", "beyond_low", "beyond_high"]
    family = ["model", "r", "low", "high", "p", "n_pairs", "permutations"]
    return {
        "experts": pd.DataFrame(used, columns=["layer", "expert", "language", "frequency", "low", "high"]),
        "expert_types": pd.DataFrame(types, columns=["layer", "type", "n_experts", "share", "low", "high", "chance"]),
        "expert_similarity": pd.DataFrame(cosines, columns=["model", "language", "other", "cosine"]),
        "expert_families": pd.DataFrame([("base", 0.5, 0.1, 0.9, 0.01, 3, 99)], columns=family),
        "expert_tuned": pd.DataFrame([(0, languages[0], 0.9, 0.1)], columns=["layer", "language", "cosine", "moved"]),
        "pruning": pd.DataFrame(curve, columns=names),
    }
