"""Neurons that matter for a language's likelihood."""

from ..corpora import at_least_two
from ..evidence.relevance import Relevance
from ..neurons import NeuronScores, NeuronSet
from .entropy import select_by_entropy


def relevance(
    recorded: Relevance, *, rate: float = 0.01, filter_rate: float = 0.95, activation_bar_ratio: float = 0.95
) -> NeuronSet:
    """Neurons whose relevance is concentrated in few languages, chosen as LAPE chooses.

    Relevance below zero, of neurons that work against the language's text, counts as zero. Parameters and errors are
    those of `lape`.

    Args:
        recorded: what `record_relevance` returned.

    Source: the idea of CRANE (2026), arXiv:2601.04664.
    """
    parameters = {"rate": rate, "filter_rate": filter_rate, "activation_bar_ratio": activation_bar_ratio}
    at_least_two(recorded.languages)
    masks = select_by_entropy(recorded.mean().clamp(min=0), **parameters)
    origin = (recorded.model, recorded.model_fingerprint)
    return NeuronSet(masks, recorded.languages, "relevance", parameters, *origin)


def relevance_scores(recorded: Relevance) -> NeuronScores:
    """Relevance as a ranking: to the language, less the mean over the other languages, nats per token.

    To first order this is how much more the language loses than the others when the neuron is switched off.
    """
    at_least_two(recorded.languages)
    values = recorded.mean()
    others = (values.sum(dim=-1, keepdim=True) - values) / (len(recorded.languages) - 1)
    origin = (recorded.model, recorded.model_fingerprint)
    return NeuronScores(values - others, recorded.languages, "relevance", {}, *origin)
