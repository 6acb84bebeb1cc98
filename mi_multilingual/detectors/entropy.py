"""The choice by entropy over languages, which several detectors share."""

import torch
from jaxtyping import Bool, Float
from torch import Tensor

from ..neurons import rank


def select_by_entropy(
    weights: Float[Tensor, "layer neuron language"], *, rate: float, filter_rate: float, activation_bar_ratio: float
) -> Bool[Tensor, "language layer neuron"]:
    """The selection of LAPE on any non-negative weights: which neurons belong to which language."""
    n_keep = rank(rate, weights[..., 0].numel(), "rate")
    entropy = dismiss_rare(entropy_over_languages(weights), weights, filter_rate)
    kept = entropy.flatten().topk(n_keep, largest=False).indices
    is_kept = torch.zeros(entropy.numel(), dtype=torch.bool).index_fill(0, kept, True).view_as(entropy)
    masks = (weights > quantile_bar(weights, activation_bar_ratio, "activation_bar_ratio")) & is_kept[..., None]
    return masks.permute(2, 0, 1).contiguous()


def scores_by_entropy(
    weights: Float[Tensor, "layer neuron language"], *, filter_rate: float, activation_bar_ratio: float
) -> Float[Tensor, "layer neuron language"]:
    """Minus the entropy where `select_by_entropy` could give the neuron to the language, else -inf."""
    entropy = dismiss_rare(entropy_over_languages(weights), weights, filter_rate)
    own = weights > quantile_bar(weights, activation_bar_ratio, "activation_bar_ratio")
    return torch.where(own, -entropy[..., None], -torch.inf)


def entropy_over_languages(weights: Float[Tensor, "layer neuron language"]) -> Float[Tensor, "layer neuron"]:
    """Entropy in nats of non-negative `weights` normalised over languages, with 0/0 := 0 and 0 log 0 := 0."""
    share = weights / weights.sum(dim=-1, keepdim=True)
    share = torch.where(share.isnan(), 0.0, share)
    return -(share * torch.where(share > 0, share.log(), 0.0)).sum(dim=-1)


def dismiss_rare(
    entropy: Float[Tensor, "layer neuron"], weights: Float[Tensor, "layer neuron language"], filter_rate: float
) -> Float[Tensor, "layer neuron"]:
    """`entropy`, infinite where no language's weight exceeds the `filter_rate` quantile of all weights."""
    bar = quantile_bar(weights, filter_rate, "filter_rate")
    return entropy.masked_fill(~(weights > bar).any(dim=-1), torch.inf)


def quantile_bar(weights: Float[Tensor, "*shape"], rate: float, name: str) -> Float[Tensor, ""]:
    """The value of rank `round(rate * n)` of all weights, ascending and counted from 1."""
    return weights.flatten().kthvalue(rank(rate, weights.numel(), name)).values
