"""How alike two languages say the same sentences: every measure as one number per sentence whose mean is the measure.

Where the measure itself is no mean over sentences (a floor over pairs of them, CKA), the number is the measure plus
what the sentence changes in it to first order, so that means can be drawn anew and differences be paired alike.
"""

import torch
from jaxtyping import Bool, Float
from torch import Tensor

_ROUNDING = 1e-12
"""Products of equal vectors differ by less."""
_SMALLEST = 1e-300

_Vectors = Float[Tensor, "sentence d_model"]
_PerSentence = Float[Tensor, " sentence"]


def unit(vectors: Float[Tensor, "*axes d_model"]) -> Float[Tensor, "*axes d_model"]:
    """The vectors at length 1, float64; a vector of zeros stays one."""
    return torch.nn.functional.normalize(vectors.double(), dim=-1)


def translation_similarity(one: _Vectors, other: _Vectors) -> _PerSentence:
    """Cosine similarity of every sentence with its translation.

    Args:
        one, other: unit vectors of the same sentences in two languages.
    """
    return (one * other).sum(dim=-1)


def chance_similarity(one: _Vectors, other: _Vectors) -> _PerSentence:
    """Cosine similarity of sentences that are no translations of each other; arguments as `translation_similarity`.

    The mean over all ordered pairs i != j is (S_a . S_b - sum_i a_i . b_i) / (n (n - 1)) with the sums S of the unit
    vectors; a sentence is in two places of a pair, so it counts twice its own mean, less the mean of all.
    """
    n = len(one)
    both = one @ other.sum(dim=0) + other @ one.sum(dim=0) - 2 * translation_similarity(one, other)
    own = both / (2 * (n - 1))
    return 2 * own - own.mean()


def retrieved(one: _Vectors, other: _Vectors) -> Bool[Tensor, " sentence"]:
    """Whether a sentence's translation is nearer than every other sentence of the other language; ties fail.

    Arguments as `translation_similarity`.
    """
    return _is_highest(one @ other.T)


def mutually_retrieved(one: _Vectors, other: _Vectors) -> Bool[Tensor, " sentence"]:
    """Whether a sentence and its translation are nearest to each other in both directions, as MEXA counts them.

    Source: Kargaran et al. 2024, arXiv:2410.05873.
    """
    cosines = one @ other.T
    return _is_highest(cosines) & _is_highest(cosines.T)


def _is_highest(cosines: Float[Tensor, "one other"]) -> Bool[Tensor, " one"]:
    """Whether the number on the diagonal is above all others of its row."""
    others = cosines.clone().fill_diagonal_(-torch.inf).amax(dim=1)
    return cosines.diagonal() > others + _ROUNDING


def gram(vectors: _Vectors, *, unbiased: bool = False) -> Float[Tensor, "sentence sentence"]:
    """Products of the centred vectors, float64; for the unbiased form those of a sentence with itself are left out."""
    centred = vectors.double() - vectors.double().mean(dim=0)
    products = centred @ centred.T
    return products.fill_diagonal_(0) if unbiased else products


def centred_alignment(
    one: Float[Tensor, "sentence sentence"], other: Float[Tensor, "sentence sentence"], *, unbiased: bool = False
) -> _PerSentence:
    """Linear CKA of two languages: 1 where their vectors of the same sentences differ by turns and one scale.

    Args:
        one, other: from `gram`, both of the same form.
        unbiased: by the estimator whose mean does not depend on the number of sentences, which may be below 0.

    Source: Kornblith et al. 2019, arXiv:1905.00414; unbiased: Song et al. 2012, JMLR 13, equation 5.
    """

    def alignment(weights: _PerSentence) -> Float[Tensor, ""]:
        cross, own, others = (
            _dependence(weights, *pair, unbiased) for pair in ((one, other), (one, one), (other, other))
        )
        # Sentences without any difference are like nothing: 0, not 0 / 0.
        return cross / (own * others).clamp(min=_SMALLEST).sqrt()

    slope, value = torch.func.grad_and_value(alignment)(torch.ones(len(one), dtype=torch.float64))
    return value + len(one) * (slope - slope.mean())


def _dependence(
    weights: _PerSentence,
    one: Float[Tensor, "sentence sentence"],
    other: Float[Tensor, "sentence sentence"],
    unbiased: bool,
) -> Float[Tensor, ""]:
    """Hilbert-Schmidt independence criterion, but for a factor, with every sentence counted `weights` times."""
    n = len(one)
    cross, square = (2 / (n - 2), 1 / ((n - 1) * (n - 2))) if unbiased else (2 / n, 1 / n**2)
    rows, others = one @ weights, other @ weights
    both = weights @ (one * other) @ weights
    return both - cross * (weights * rows) @ others + square * (weights @ rows) * (weights @ others)
