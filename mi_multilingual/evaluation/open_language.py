"""Which language a text is in, of all that the identifier knows; it may also be several, or none that can be told."""

from collections.abc import Sequence
from functools import cache

import numpy as np

from .checks import check_list
from .language_id import check_known, identifier, possible
from .quality import code_switching

MIXED, UNKNOWN = "mixed", "unknown"
"""A text in several languages, and one whose language cannot be told."""
_SURE = 0.9
"""Probability among all languages from which on the likeliest one is believed."""
_FOREIGN = 1 / 3
"""A text is mixed where more than this share of its sentences is not in its main language."""


def identify_open(texts: Sequence[str], languages: Sequence[str]) -> list[str]:
    """The language of every text: any that py3langid knows, "mixed", or "unknown".

    Where `identify_language` chooses among the study's languages and so takes a Portuguese answer for a Spanish one,
    this chooses among all. A text is "unknown" without letters, or where no language has a probability of 0.9 among
    all; it is "mixed" where more than a third of its sentences are not in its main language, told apart among
    `languages` and the likeliest one. The identifier takes some Indonesian for Malay, some Chinese for Wu or Cantonese:
    these count as Indonesian and Chinese where they are among `languages` and their relatives are not. How often it
    errs: benchmarks/LOG.md.

    Args:
        languages: those of the study, codes of py3langid.

    Raises:
        ValueError: a language that is not known, or none at all.

    Example:
        >>> import mi_multilingual as mm
        >>> mm.identify_open(["Il cane dorme sotto il vecchio tavolo.", "123 456", "犬が眠る。"], ["es", "fr"])
        ['it', 'unknown', 'ja']
    """
    check_list(texts, "texts")
    check_list(languages, "languages")
    check_known(languages)
    return [_identified(text, languages) for text in texts]


def _identified(text: str, languages: Sequence[str]) -> str:
    """The text's language, or what stands for one."""
    likeliest = _likeliest(text)
    larger = _RELATIVES.get(likeliest, likeliest)
    language = larger if larger in languages and likeliest not in languages else likeliest
    return language if language == UNKNOWN or not _is_mixed(text, [*languages, language]) else MIXED


_RELATIVES = {"ms": "id", "wuu": "zh", "yue": "zh"}
"""Languages that the identifier cannot keep apart from a larger one in short texts."""


def _likeliest(text: str) -> str:
    """The likeliest of all languages that are written in the text's script, if it is likely enough."""
    candidates = possible(text, _known())
    if len(candidates) < 2:
        return "".join(candidates) or UNKNOWN
    ranked = identifier(candidates).rank(text)
    logarithms = np.array([value for _, value in ranked], dtype=np.float64)
    probability = 1 / np.exp(logarithms - logarithms.max()).sum()
    return str(ranked[0][0]) if probability >= _SURE else UNKNOWN


def _is_mixed(text: str, languages: Sequence[str]) -> bool:
    """Whether too many of the text's sentences are not in its main language."""
    [row] = code_switching([text], list(dict.fromkeys(languages))).itertuples()
    return bool(row.switched > _FOREIGN)


@cache
def _known() -> tuple[str, ...]:
    """All languages of the identifier."""
    return tuple(sorted(set(identifier().nb_classes) - {"zxx"}))
