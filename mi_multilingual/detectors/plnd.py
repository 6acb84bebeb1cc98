"""Parallel language-specific neuron detection (Zhao et al. 2024)."""

import torch
from jaxtyping import Bool
from torch import Tensor

from ..evidence.impact import Impact
from ..neurons import NeuronScores, NeuronSet
from .entropy import rank


def plnd(impact: Impact, *, rate: float = 0.1, epsilon: float | None = None, part: str = "mlp") -> NeuronSet:
    """Neurons important for ALL documents of a language, less those important for all documents of every language.

    Args:
        rate: a neuron is important for a document when it is among this share of its layer's neurons with most impact;
            neurons that tie at the border are all in, one without any impact never is.
        epsilon: instead of a rate, the impact a neuron must exceed, as in the paper's text.
        part: "mlp", or columns of the attention weights: "q", "k", "v".

    Source: Zhao et al. 2024, arXiv:2402.18815, section 2.2.
    """
    always = _always_important(impact, rate, epsilon, part)
    specific = always & ~always.all(dim=-1, keepdim=True)
    parameters = {"score": impact.score, **({"rate": rate} if epsilon is None else {"epsilon": epsilon})}
    masks = specific.permute(2, 0, 1).contiguous()
    return NeuronSet(masks, impact.languages, "plnd", parameters, impact.model, impact.model_fingerprint, part)


def common_core(
    impact: Impact, *, rate: float = 0.1, epsilon: float | None = None, part: str = "mlp"
) -> Bool[Tensor, "layer neuron"]:
    """Neurons important for all documents of every language: what `plnd` takes away."""
    return _always_important(impact, rate, epsilon, part).all(dim=-1)


def _always_important(
    impact: Impact, rate: float, epsilon: float | None, part: str
) -> Bool[Tensor, "layer neuron language"]:
    """Neurons important for every document of a language."""
    _check_part(impact, part)
    if epsilon is None:
        return impact.worst_rank[part] <= rank(rate, impact.worst_rank[part].shape[1], "rate")
    if not epsilon >= 0:
        raise ValueError(f"epsilon must be an impact of at least 0, got {epsilon}")
    return impact.least[part] > epsilon


def plnd_scores(impact: Impact, *, part: str = "mlp") -> NeuronScores:
    """PLND as a ranking, for sets of a given size.

    log(largest worst rank over all languages / worst rank in this one): over how wide a span of rates `plnd` counts the
    neuron as specific to the language; -inf for one that no rate finds specific.
    """
    _check_part(impact, part)
    ranks = impact.worst_rank[part].double()
    values = (ranks.amax(dim=-1, keepdim=True) / ranks).log()
    values = values.masked_fill(values == 0, -torch.inf)
    origin = (impact.model, impact.model_fingerprint, part)
    return NeuronScores(values, impact.languages, "plnd", {"score": impact.score}, *origin)


def _check_part(impact: Impact, part: str) -> None:
    if part not in impact.least:
        raise ValueError(f"part must be one of {', '.join(impact.least)}, got {part!r}")
