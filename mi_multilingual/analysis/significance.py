"""How far a set of language neurons can be trusted: bootstrap, permutation, halves, and many comparisons at once."""

from collections.abc import Callable, Mapping
from typing import Any

import numpy as np
import pandas as pd
import torch
from jaxtyping import Float, Int
from torch import Tensor
from tqdm.auto import tqdm

from ..corpora import at_least_two
from ..detectors.entropy import dismiss_rare, entropy_over_languages, select_by_entropy
from ..detectors.table import checked_settings, detector_of
from ..evidence.texts import TextActivations
from ..neurons import NeuronScores, NeuronSet

_Choice = Callable[[TextActivations], NeuronSet]


def lape_of_texts(texts: TextActivations, **parameters: float) -> NeuronSet:
    """`lape` on counts per document (reduction "active"): the same set as on the statistics of the same tokens."""
    masks = select_by_entropy(probabilities(texts), **_lape_parameters(parameters))
    return NeuronSet(masks, texts.languages, "lape", parameters, texts.model, texts.model_fingerprint)


def lape_membership(
    texts: TextActivations, *, resamples: int = 200, seed: int = 0, progress: bool = True, **parameters: float
) -> NeuronScores:
    """How often LAPE gives each neuron to each language when documents are drawn anew, with replacement.

    Documents are drawn within languages; a language keeps its number of documents.

    Args:
        texts: counts per document, from `record_texts(..., reductions=["active"])`.
        parameters: those of `lape`.

    Returns:
        frequencies from 0 to 1 as scores.
    """
    counts, n_tokens = _checked_counts(texts)
    random = np.random.default_rng(seed)
    chosen = torch.zeros(*texts.values.shape[1:], len(texts.languages))
    for _ in tqdm(range(resamples), desc="bootstrap", unit="draw", delay=2, disable=not progress):
        weights = resampled_weights(texts, random)
        masks = select_by_entropy(
            _weighted_probabilities(counts, n_tokens, weights, texts), **_lape_parameters(parameters)
        )
        chosen += masks.permute(1, 2, 0)
    return NeuronScores(
        chosen / resamples,
        texts.languages,
        "lape membership",
        {**parameters, "resamples": resamples, "seed": seed},
        texts.model,
        texts.model_fingerprint,
    )


def permutation_test(
    texts: TextActivations,
    *,
    permutations: int = 500,
    level: float = 0.05,
    seed: int = 0,
    progress: bool = True,
    **parameters: float,
) -> tuple[pd.DataFrame, Float[Tensor, "layer neuron"]]:
    """How many language neurons chance would find, and each neuron's corrected p-value.

    Language labels are shuffled over documents. LAPE always keeps the same share of neurons, so chance is asked how
    many neurons have an entropy at most that of the last neuron kept in the real data and pass the same bars.

    Args:
        texts: counts per document, from `record_texts(..., reductions=["active"])`.
        level: share of false discoveries allowed (Benjamini and Hochberg 1995).
        parameters: those of `lape`.

    Returns:
        one row per language: found, chance_mean, chance_high (95 % quantile), significant (found neurons whose
        corrected p-value is at most `level`); and the corrected p-value of every neuron (1 where LAPE dismisses it),
        whose smallest possible value before correction is 1 / (permutations + 1).
    """
    from scipy.stats import false_discovery_control

    counts, n_tokens = _checked_counts(texts)
    given = _lape_parameters(parameters)
    real = probabilities(texts)
    masks = select_by_entropy(real, **given)
    entropy = dismiss_rare(entropy_over_languages(real), real, given["filter_rate"])
    kept = masks.any(dim=0)
    if not kept.any():
        raise ValueError("LAPE finds no language neuron with these parameters; there is nothing to test")
    worst = entropy[kept].max()
    random = np.random.default_rng(seed)
    as_low, by_chance = torch.zeros(entropy.shape), []
    for _ in tqdm(range(permutations), desc="permutations", unit="draw", delay=2, disable=not progress):
        labels = torch.from_numpy(random.permutation(texts.language.numpy()))
        p = _weighted_probabilities(counts, n_tokens, torch.ones(len(labels)), texts, labels)
        shuffled = dismiss_rare(entropy_over_languages(p), p, given["filter_rate"])
        as_low += (shuffled <= entropy) & shuffled.isfinite()
        low = select_by_entropy(p, **{**given, "rate": 1.0}) & (shuffled <= worst)
        by_chance.append(low.sum(dim=(1, 2)))
    chance = torch.stack(by_chance).double()
    raw = ((as_low + 1) / (permutations + 1)).masked_fill(~entropy.isfinite(), 1.0)
    corrected = torch.from_numpy(false_discovery_control(raw.flatten().double().numpy())).view(raw.shape)
    table = pd.DataFrame(
        {
            "language": texts.languages,
            "found": masks.sum(dim=(1, 2)).tolist(),
            "chance_mean": chance.mean(dim=0).tolist(),
            "chance_high": chance.quantile(0.95, dim=0).tolist(),
            "significant": (masks & (corrected <= level)).sum(dim=(1, 2)).tolist(),
        }
    )
    return table, corrected.float()


def half_agreement(
    texts: TextActivations, detector: _Choice, *, splits: int = 10, seed: int = 0, progress: bool = True
) -> pd.DataFrame:
    """Jaccard overlap of the sets that a detector finds on two halves of the documents of each language.

    Returns:
        one row per language: agreement (mean over random splits), low and high (smallest and largest).
    """
    random = np.random.default_rng(seed)
    rows = []
    for _ in tqdm(range(splits), desc="halves", unit="split", delay=2, disable=not progress):
        first = torch.zeros(len(texts.values), dtype=torch.bool)
        for k in texts.languages:
            mine = texts.of(k).nonzero().flatten()
            if len(mine) < 2:
                raise ValueError(f"{len(mine)} document of {k!r} has no two halves; give more documents")
            first[mine[torch.from_numpy(random.permutation(len(mine))[: len(mine) // 2])]] = True
        left, right = (detector(texts.pick(half.nonzero().flatten())) for half in (first, ~first))
        rows.append(left.agreement(right))
    table = pd.DataFrame(rows)
    index = pd.Index(table.columns, name="language")
    columns = {"agreement": table.mean(), "low": table.min(), "high": table.max()}
    return pd.DataFrame(columns, index=index).reset_index()


def _lape_parameters(given: Mapping[str, Any]) -> dict[str, Any]:
    """All parameters of `lape`: those given, and the defaults of the others."""
    rate = given.get("rate", detector_of("lape").rate)
    return {"rate": rate, **checked_settings("lape", {name: v for name, v in given.items() if name != "rate"})}


def _checked_counts(texts: TextActivations) -> tuple[Float[Tensor, "text layer_neuron"], Float[Tensor, " text"]]:
    """Counts of active tokens and of tokens per document, refused where they are no counts or say nothing."""
    at_least_two(texts.languages)
    if texts.reduction != "active":
        raise ValueError(
            f"these are {texts.reduction!r} activations; record_texts(..., reductions=['active']) counts active tokens"
        )
    return texts.values.flatten(1), texts.n_tokens.float()


def probabilities(texts: TextActivations) -> Float[Tensor, "layer neuron language"]:
    """Activation probabilities over all documents, as `ActivationStats.activation_probability`."""
    counts, n_tokens = _checked_counts(texts)
    return _weighted_probabilities(counts, n_tokens, torch.ones(len(counts)), texts)


def _weighted_probabilities(
    counts: Float[Tensor, "text layer_neuron"],
    n_tokens: Float[Tensor, " text"],
    weights: Float[Tensor, " text"],
    texts: TextActivations,
    labels: Int[Tensor, " text"] | None = None,
) -> Float[Tensor, "layer neuron language"]:
    """Activation probabilities with every document counted `weights` times, under other language labels if given.

    float32 is exact for counts below 2^24.
    """
    labels = texts.language if labels is None else labels
    member = torch.nn.functional.one_hot(labels, len(texts.languages)).float() * weights[:, None]
    active = (member.T @ counts).T  # in this order counts are read row by row, twenty times faster
    total = member.T @ n_tokens
    if (total == 0).any():
        raise ValueError(f"no token of {texts.languages[int((total == 0).nonzero()[0])]!r}; record some text of it")
    return (active / total).unflatten(0, texts.values.shape[1:])


def resampled_weights(texts: TextActivations, random: np.random.Generator) -> Float[Tensor, " text"]:
    """How often each document is drawn when the documents of every language are drawn with replacement."""
    weights = torch.zeros(len(texts.values))
    for k in range(len(texts.languages)):
        mine = texts.language == k
        n = int(mine.sum())
        weights[mine] = torch.from_numpy(random.multinomial(n, np.full(n, 1 / n))).float()
    return weights
