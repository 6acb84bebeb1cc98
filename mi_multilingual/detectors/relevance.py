"""Neurons that matter for a language's likelihood."""

from dataclasses import replace

from ..neurons import NeuronScores, NeuronSet
from .entropy import at_least_two, select_by_entropy


def relevance(
    scores: NeuronScores, *, top_rate: float = 0.01, filter_rate: float = 0.95, activation_bar_ratio: float = 0.95
) -> NeuronSet:
    """Neurons whose relevance is concentrated in few languages, chosen as LAPE chooses.

    Relevance below zero, of neurons that work against the language's text, counts as zero. Parameters and errors are
    those of `lape`.

    Args:
        scores: what `record_relevance` returned.
    """
    parameters = {"top_rate": top_rate, "filter_rate": filter_rate, "activation_bar_ratio": activation_bar_ratio}
    at_least_two(scores.languages)
    return scores.to_set(select_by_entropy(scores.values.clamp(min=0), **parameters), **parameters)


def relevance_scores(scores: NeuronScores) -> NeuronScores:
    """Relevance as a ranking: to the language, less the mean over the other languages, nats a token.

    To first order this is how much more the language loses than the others when the neuron is switched off.
    """
    at_least_two(scores.languages)
    values = scores.values
    others = (values.sum(dim=-1, keepdim=True) - values) / (len(scores.languages) - 1)
    return replace(scores, values=values - others)
