"""Parallel language-specific neuron detection (Zhao et al. 2024)."""

import torch
from jaxtyping import Bool
from torch import Tensor

from ..evidence.impact import Impact
from ..neurons import NeuronScores, NeuronSet
from .entropy import rank


def plnd(impact: Impact, *, rate: float = 0.1, epsilon: float | None = None) -> NeuronSet:
    """Neurons important for ALL documents of a language, less those important for all documents of every language.

    Args:
        rate: a neuron is important for a document when it is among this share of its layer's neurons with most impact;
            neurons that tie at the border are all in, one without any impact never is.
        epsilon: instead of a rate, the impact a neuron must exceed, as in the paper's text.

    Source: Zhao et al. 2024, arXiv:2402.18815, section 2.2.
    """
    always = always_important(impact, rate, epsilon)
    specific = always & ~always.all(dim=-1, keepdim=True)
    parameters = {"score": impact.score, **({"rate": rate} if epsilon is None else {"epsilon": epsilon})}
    return NeuronSet(
        specific.permute(2, 0, 1).contiguous(),
        impact.languages,
        "plnd",
        parameters,
        impact.model,
        impact.model_fingerprint,
        impact.part,
    )


def common_core(impact: Impact, *, rate: float = 0.1, epsilon: float | None = None) -> Bool[Tensor, "layer neuron"]:
    """Neurons important for all documents of every language: what `plnd` takes away."""
    return always_important(impact, rate, epsilon).all(dim=-1)


def always_important(impact: Impact, rate: float, epsilon: float | None) -> Bool[Tensor, "layer neuron language"]:
    """Neurons important for every document of a language."""
    if epsilon is None:
        return impact.worst_rank <= rank(rate, impact.worst_rank.shape[1], "rate")
    if not epsilon >= 0:
        raise ValueError(f"epsilon={epsilon} is no impact; give a number of at least 0")
    return impact.least > epsilon


def plnd_scores(impact: Impact) -> NeuronScores:
    """PLND as a ranking, for sets of a given size.

    log(largest worst rank over all languages / worst rank in this one): over how wide a span of rates `plnd` counts the
    neuron as specific to the language; 0 for one that no rate finds specific.
    """
    ranks_ = impact.worst_rank.double()
    values = (ranks_.amax(dim=-1, keepdim=True) / ranks_).log()
    values = values.masked_fill(values == 0, -torch.inf)
    origin = (impact.model, impact.model_fingerprint, impact.part)
    return NeuronScores(values, impact.languages, "plnd", {"score": impact.score}, *origin)
