"""Language activation probability entropy (Tang et al. 2024, section 2.2)."""

from jaxtyping import Float
from torch import Tensor

from ..corpora import at_least_two
from ..evidence.activations import ActivationStats
from ..neurons import NeuronScores, NeuronSet
from .entropy import entropy_over_languages, scores_by_entropy, select_by_entropy


def lape(
    stats: ActivationStats, *, rate: float = 0.01, filter_rate: float = 0.95, activation_bar_ratio: float = 0.95
) -> NeuronSet:
    """Neurons that fire in few languages, by the released algorithm, bit for bit (computed in float32 as it does).

    A neuron's activation probabilities over the languages are normalised to a distribution; neurons of least entropy
    are kept, and each goes to every language in which its probability exceeds a bar. A kept neuron may belong to
    several languages or to none. Entropies that tie at the border are resolved as torch.topk resolves them.

    Args:
        rate: share of ALL neurons kept, over all languages together.
        filter_rate: neurons none of whose probabilities exceeds this quantile of all probabilities are dismissed.
        activation_bar_ratio: quantile of all probabilities that a neuron's must exceed to belong to a language.

    Raises:
        ValueError: fewer than two languages, a language without tokens, or a rate that selects nothing.

    Source: Tang et al. 2024, arXiv:2402.16438, section 2.2 and the code released with it.

    Example:
        >>> import mi_multilingual as mm
        >>> model = mm.load_model("demo")
        >>> corpus = mm.load_corpus("demo", languages=["en", "fr", "ja"], split="identify")
        >>> stats = mm.record(model, corpus, reading=mm.Reading(layout="documents"), progress=False)
        >>> mm.lape(stats, rate=0.05, filter_rate=0.985)
        NeuronSet(lape, demo, 4 layers x 1536 neurons: en 72, fr 68, ja 163)
    """
    probability = checked_probability(stats)
    parameters = {"rate": rate, "filter_rate": filter_rate, "activation_bar_ratio": activation_bar_ratio}
    masks = select_by_entropy(probability, **parameters)
    return NeuronSet(masks, stats.languages, "lape", parameters, stats.model, stats.model_fingerprint)


def lape_scores(
    stats: ActivationStats, *, filter_rate: float = 0.95, activation_bar_ratio: float = 0.95
) -> NeuronScores:
    """LAPE as a ranking: minus the entropy, in nats, for the languages that `lape` would give the neuron to.

    -inf where the neuron is dismissed or its probability does not exceed the bar of the language.
    """
    probability = checked_probability(stats)
    parameters = {"filter_rate": filter_rate, "activation_bar_ratio": activation_bar_ratio}
    values = scores_by_entropy(probability, **parameters)
    return NeuronScores(values, stats.languages, "lape", parameters, stats.model, stats.model_fingerprint)


def lape_entropy(stats: ActivationStats) -> Float[Tensor, "layer neuron"]:
    """Entropy in nats of each neuron's activation probabilities over languages; 0 for one that never fires."""
    return entropy_over_languages(checked_probability(stats))


def checked_probability(stats: ActivationStats) -> Float[Tensor, "layer neuron language"]:
    """Activation probabilities, refused where they say nothing about languages."""
    at_least_two(stats.languages)
    return stats.activation_probability()
