"""Neurons that detect a language: average precision of a neuron's response as a score for it."""

import torch
from jaxtyping import Bool, Float
from torch import Tensor

from ..corpora import at_least_two
from ..evidence.texts import TextActivations
from ..neurons import NeuronScores, NeuronSet
from .entropy import rank

_NEURONS_AT_ONCE = 8192


def average_precision(texts: TextActivations, *, rate: float = 0.01) -> NeuronSet:
    """Neurons that detect a language or its absence: those of highest and of lowest average precision.

    Args:
        texts: responses, the mean over a text's tokens in the paper, the maximum in older code.
        rate: share of all neurons that every language gets from either end (the paper takes 1,000 of 98,304 or more).

    Raises:
        ValueError: as `average_precision_scores`, or a rate that selects nothing.

    Source: Kojima et al. 2024, arXiv:2404.02431, section 3, after Suau et al. 2022.
    """
    scores = average_precision_scores(texts)
    return top_and_bottom(scores, n=rank(rate, scores.values[..., 0].numel(), "rate"))


def average_precision_scores(texts: TextActivations) -> NeuronScores:
    """Average precision of each neuron's response to a text as a score for "the text is in this language".

    Equal to scikit-learn's `average_precision_score` for every neuron and language; equal responses share a threshold.
    1 is a perfect detector, the share of the language's texts what chance gives.

    Args:
        texts: responses, the mean over a text's tokens in the paper, the maximum in older code.

    Raises:
        ValueError: fewer than two languages, or a language without texts.

    Source: Kojima et al. 2024, arXiv:2404.02431, section 3, after Suau et al. 2022.
    """
    at_least_two(texts.languages)
    labels = torch.stack([texts.of(k) for k in texts.languages])
    if not labels.any(dim=1).all():
        raise ValueError(f"no text of {texts.languages[int((~labels.any(dim=1)).nonzero()[0])]!r}; record some")
    responses = texts.values.flatten(1)
    parts = [average_precisions(part.T, labels) for part in responses.split(_NEURONS_AT_ONCE, dim=1)]
    values = torch.cat(parts).unflatten(0, texts.values.shape[1:])
    parameters = {"reduction": texts.reduction, "n_texts": len(responses)}
    return NeuronScores(values, texts.languages, "average_precision", parameters, texts.model, texts.model_fingerprint)


def average_precisions(
    responses: Float[Tensor, "neuron text"], labels: Bool[Tensor, "language text"]
) -> Float[Tensor, "neuron language"]:
    """Average precision of every row of responses for every row of labels, float64.

    With `rank` the number of texts that respond at least as much as a given one, average precision is the mean over
    the positive texts of (positives of at most that rank) / rank: one sort serves all languages.
    """
    n_texts = responses.shape[1]
    ordered, order = responses.sort(dim=1, descending=True)
    # Texts of equal response share the rank of the last of them.
    is_last = torch.ones(ordered.shape, dtype=torch.bool, device=ordered.device)
    is_last[:, :-1] = ordered[:, :-1] != ordered[:, 1:]
    places = torch.arange(1, n_texts + 1, dtype=torch.int32, device=ordered.device).expand(ordered.shape)
    ranks = places.masked_fill(~is_last, n_texts).flip(1).cummin(dim=1).values.flip(1)
    by_text = torch.empty_like(ranks).scatter_(1, order, ranks)
    columns = []
    for positive in labels:
        mine = by_text[:, positive].sort(dim=1).values.contiguous()
        found = torch.searchsorted(mine, mine, right=True)
        columns.append((found.double() / mine.double()).mean(dim=1))
    return torch.stack(columns, dim=1)


def top_and_bottom(scores: NeuronScores, *, n: int = 1000) -> NeuronSet:
    """The `n` neurons of highest and the `n` of lowest average precision of every language, together.

    The lowest are detectors of "not this language", which the intervention of the paper sets as well.

    Source: Kojima et al. 2024, section 3 (n = 1000).
    """
    lowest = NeuronScores(-scores.values, scores.languages, scores.method, scores.parameters)
    masks = scores.top(n).masks | lowest.top(n).masks
    return scores.to_set(masks, n_top=n, n_bottom=n)


def medians(texts: TextActivations) -> Float[Tensor, "layer neuron language"]:
    """Median of each neuron's responses over the texts of each language: the value the intervention holds it at.

    The mean of the two middle responses where their number is even.

    Source: Kojima et al. 2024, section 3.3.
    """
    return torch.stack([texts.values[texts.of(k)].quantile(0.5, dim=0) for k in texts.languages], dim=-1)
