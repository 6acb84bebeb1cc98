"""Which language a text is in: by script first, then by py3langid among the study's languages.

py3langid rather than lingua by measured accuracy, see benchmarks/LOG.md.
"""

import unicodedata
from collections import Counter
from collections.abc import Sequence
from copy import copy
from functools import cache, lru_cache
from typing import Any

from .checks import check_list

SCRIPTS = {
    "ARABIC": "ar ary arz fa ps sdh ug ur uzs",
    "ARMENIAN": "hy",
    "BENGALI": "as bn",
    "CYRILLIC": "ba be bg kk ky mk mn ru sr tg tt uk uz",
    "DEVANAGARI": "gom hi mr ne sa",
    "ETHIOPIC": "am",
    "GEORGIAN": "ka",
    "GREEK": "el grc",
    "GUJARATI": "gu",
    "GURMUKHI": "pa",
    "HAN": "ja wuu yue zh",
    "HANGUL": "ko",
    "HEBREW": "hbo he",
    "KANA": "ja",
    "KANNADA": "kn",
    "KHMER": "km",
    "LAO": "lo",
    "MALAYALAM": "ml",
    "MYANMAR": "my",
    "ORIYA": "or",
    "SINHALA": "si",
    "TAMIL": "ta",
    "TELUGU": "te",
    "THAI": "th",
    "TIBETAN": "dz",
}
"""Script -> the languages written in it that py3langid knows; the others are written in Latin."""
_ALSO_LATIN = ("gom", "kk", "sr", "uz")
_UNICODE_NAMES = {"CJK": "HAN", "HIRAGANA": "KANA", "KATAKANA": "KANA", "KATAKANA-HIRAGANA": "KANA"}
_KANA_SHARE = 0.1
"""Text is Japanese from this share of kana on, among its Han and kana: Chinese borrows a の at times."""


def identify_language(texts: Sequence[str], languages: Sequence[str]) -> list[str]:
    """The language of every text, one of `languages`, or "" where it can be none of them.

    The script of most of a text's letters decides which languages are possible: kana are Japanese, Han without
    kana Chinese (or Japanese), Cyrillic among the study's languages perhaps only Russian. One left is the answer,
    several are told apart by py3langid's model. A text without letters, or in a script of none of the languages, is
    "". News cut to 20 characters comes out wrong in 2.5 % of cases, cut to 50 characters in 0.1 %
    (benchmarks/LOG.md).

    Args:
        languages: codes of py3langid, ISO 639-1 where there is one.

    Raises:
        ValueError: a language that is not known, or none at all.

    Example:
        >>> import mi_multilingual as mm
        >>> mm.identify_language(["Le chien dort.", "El perro duerme.", "犬が眠る。", "123"], ["es", "fr", "ja"])
        ['fr', 'es', 'ja', '']
    """
    check_list(texts, "texts")
    check_list(languages, "languages")
    check_known(languages)
    return [_most_likely(text, possible(text, languages)) for text in texts]


def check_known(languages: Sequence[str]) -> None:
    """Raise unless there are languages and the identifier knows all of them."""
    known = sorted(set(identifier().nb_classes) - {"zxx"})
    if not languages:
        raise ValueError("languages must be one or more, got none; name at least one")
    if unknown := [k for k in languages if k not in known]:
        raise ValueError(f"language {unknown[0]!r} is not known to the identifier; it knows {', '.join(known)}")


def possible(text: str, languages: Sequence[str]) -> tuple[str, ...]:
    """The languages that are written in the text's main script; none for a text without letters."""
    script = main_script(text)
    return tuple(k for k in dict.fromkeys(languages) if script in scripts_of(k))


@lru_cache
def scripts_of(language: str) -> frozenset[str]:
    """The scripts a language is written in."""
    own = {script for script, codes in SCRIPTS.items() if language in codes.split()}
    return frozenset(own | {"LATIN"} if not own or language in _ALSO_LATIN else own)


def main_script(text: str) -> str:
    """The script of most of the text's letters, "" without any; "KANA" where it is Han and kana with enough kana.

    Letters are weighed by their bytes in UTF-8, since a Han character says as much as several Latin letters: a Chinese
    sentence with two foreign names stays Chinese.
    """
    weights: Counter[str] = Counter()
    for letter in unicodedata.normalize("NFKC", text):
        if letter.isalpha():
            weights[_script_of(letter)] += len(letter.encode())
    japanese = weights.pop("KANA", 0)
    weights["HAN"] += japanese
    script, weight = weights.most_common(1)[0]
    if weight == 0:
        return ""
    return "KANA" if script == "HAN" and japanese >= _KANA_SHARE * weight else script


@cache
def _script_of(letter: str) -> str:
    """The script of a letter by its Unicode name."""
    first = unicodedata.name(letter, "").split(" ")[0]
    return _UNICODE_NAMES.get(first, first)


def _most_likely(text: str, languages: tuple[str, ...]) -> str:
    """The language the identifier finds likeliest; "" where there is none to choose from."""
    if len(languages) < 2:
        return "".join(languages)
    return identifier(languages).classify(text)[0]


@lru_cache
def identifier(languages: tuple[str, ...] | None = None) -> Any:
    """py3langid's model for these languages only, or for all; its own module-wide instance stays as it is."""
    if languages is not None:
        restricted = copy(identifier())
        restricted.set_languages(languages)
        return restricted
    from py3langid.langid import MODEL_FILE, LanguageIdentifier

    return LanguageIdentifier.from_model_file(MODEL_FILE)
