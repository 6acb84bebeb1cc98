"""Families, branches and scripts of languages by their ISO 639 codes.

Families and branches are those of Glottolog, branches by their usual names; scripts are ISO 15924 codes.
"""

from collections.abc import Hashable, Sequence
from typing import NamedTuple, TypeVar

_Name = TypeVar("_Name", bound=Hashable)


class Language(NamedTuple):
    """Where a language stands."""

    family: str
    branch: str
    scripts: tuple[str, ...]


_TABLE = """
Afro-Asiatic    Chadic             Latn ha
Afro-Asiatic    Cushitic           Latn so
Afro-Asiatic    Semitic            Arab ar
Afro-Asiatic    Semitic            Ethi am ti
Afro-Asiatic    Semitic            Hebr he
Afro-Asiatic    Semitic            Latn mt
Atlantic-Congo  Bantu              Latn sw xh zu
Atlantic-Congo  Igboid             Latn ig
Atlantic-Congo  Wolof              Latn wo
Atlantic-Congo  Yoruboid           Latn yo
Austroasiatic   Khmeric            Khmr km
Austroasiatic   Vietic             Latn vi
Austronesian    Malayo-Polynesian  Latn ceb id jv mg ms su tl
Basque          Basque             Latn eu
Dravidian       South              Knda kn
Dravidian       South              Mlym ml
Dravidian       South              Taml ta
Dravidian       South-Central      Telu te
Indo-European   Albanian           Latn sq
Indo-European   Armenian           Armn hy
Indo-European   Baltic             Latn lt lv
Indo-European   Celtic             Latn cy ga
Indo-European   Germanic           Latn af da de en is lb nl no sv
Indo-European   Greek              Grek el
Indo-European   Indo-Aryan         Arab sd ur
Indo-European   Indo-Aryan         Beng as bn
Indo-European   Indo-Aryan         Deva hi mr ne
Indo-European   Indo-Aryan         Gujr gu
Indo-European   Indo-Aryan         Guru pa
Indo-European   Indo-Aryan         Orya or
Indo-European   Indo-Aryan         Sinh si
Indo-European   Iranian            Arab fa ps
Indo-European   Iranian            Cyrl tg
Indo-European   Iranian            Latn ku
Indo-European   Romance            Latn ca es fr gl it la pt ro
Indo-European   Slavic             Cyrl be bg mk ru uk
Indo-European   Slavic             Cyrl+Latn sr
Indo-European   Slavic             Latn bs cs hr pl sk sl
Japonic         Japanese           Hani+Hira+Kana ja
Kartvelian      Georgian           Geor ka
Koreanic        Korean             Hang ko
Mongolic        Mongolian          Cyrl mn
Quechuan        Quechua            Latn qu
Sino-Tibetan    Burmish            Mymr my
Sino-Tibetan    Sinitic            Hani zh
Tai-Kadai       Tai                Laoo lo
Tai-Kadai       Tai                Thai th
Turkic          Karluk             Arab ug
Turkic          Karluk             Latn uz
Turkic          Kipchak            Cyrl kk ky
Turkic          Oghuz              Latn az tr
Uralic          Finnic             Latn et fi
Uralic          Hungarian          Latn hu
"""

LANGUAGES: dict[str, Language] = {
    code: Language(family, branch, tuple(scripts.split("+")))
    for family, branch, scripts, *codes in map(str.split, _TABLE.strip().splitlines())
    for code in codes
}
"""ISO 639 code -> family, branch, scripts."""


def language_of(code: str) -> Language:
    """The row of a language.

    Raises:
        ValueError: a code that the table lacks.
    """
    if code not in LANGUAGES:
        raise ValueError(f"language must be one of {', '.join(LANGUAGES)}, got {code!r}; leave it out")
    return LANGUAGES[code]


def family_distance(one: str, other: str) -> int:
    """Steps up the family tree until two languages meet: 0 the same, 1 in one branch, 2 in one family, 3 nowhere.

    Raises:
        ValueError: a code that the table lacks.

    Example:
        >>> import mi_multilingual as mm
        >>> [mm.family_distance("en", other) for other in ("en", "de", "fr", "ja")]
        [0, 1, 2, 3]
    """
    a, b = language_of(one), language_of(other)
    if one == other:
        return 0
    return 1 if a[:2] == b[:2] else 2 if a.family == b.family else 3


def script_distance(one: str, other: str) -> float:
    """One less the scripts that both languages use over those that either uses: 0 for the same scripts.

    Raises:
        ValueError: a code that the table lacks.
    """
    a, b = set(language_of(one).scripts), set(language_of(other).scripts)
    return 1 - len(a & b) / len(a | b)


def by_family(codes: Sequence[_Name]) -> list[_Name]:
    """The codes with languages of one family side by side, and those of one branch within it.

    Families, branches and languages come in the order in which they first appear; what is not a known code stays where
    it is among them.

    Example:
        >>> import mi_multilingual as mm
        >>> mm.by_family(["en", "ja", "fr", "de"])
        ['en', 'de', 'fr', 'ja']
    """
    places = [(LANGUAGES[code].family, LANGUAGES[code].branch) if code in LANGUAGES else (code, "") for code in codes]
    families = [family for family, _ in places]
    keys = [(families.index(place[0]), places.index(place)) for place in places]
    return [codes[i] for i in sorted(range(len(codes)), key=keys.__getitem__)]
