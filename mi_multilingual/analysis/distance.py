"""Whether what languages have in common follows their families and scripts."""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
import pandas as pd
from jaxtyping import Float
from scipy.cluster.hierarchy import cophenet, linkage
from scipy.spatial.distance import squareform
from scipy.stats import rankdata

from ..languages import LANGUAGES, family_distance, script_distance

_DISTANCES = {"family": family_distance, "script": script_distance}
"""How far languages are apart, by what."""


class Correlation(NamedTuple):
    """A correlation of two square tables, beside those with the languages of one of them permuted."""

    value: float
    low: float
    high: float
    """The value less the 97.5 % and 2.5 % quantiles of the permuted ones: 0 lies outside where p is below 0.05."""
    p: float
    """Two-sided; the value itself counts as one of the permutations."""
    n_pairs: int
    permutations: int


def mantel(
    one: Float[np.ndarray, "language language"],
    other: Float[np.ndarray, "language language"],
    *,
    ranks: bool = False,
    permutations: int = 9999,
    seed: int = 0,
) -> Correlation:
    """Correlation of two symmetric tables over all pairs of languages, tested by permuting the languages of one.

    Args:
        ranks: Spearman's correlation, of ranks, in the place of Pearson's.

    Raises:
        ValueError: fewer than three languages, or a table whose pairs are all alike.

    Source: Mantel 1967, Cancer Research 27.
    """
    if len(one) < 3:
        raise ValueError(f"tables must be of at least 3 languages, got {len(one)}; give more")
    above = np.triu_indices(len(one), 1)
    pairs = [np.asarray(table, dtype=float)[above] for table in (one, other)]
    for table in pairs:
        if np.ptp(table) < 1e-12:
            raise ValueError(
                f"pairs of languages must differ, got {table[0]:g} for all; give languages that are related differently"
            )
    x, y = (_standardised(rankdata(table) if ranks else table) for table in pairs)
    square = squareform(y)
    order = np.random.default_rng(seed).permuted(np.tile(np.arange(len(one)), (permutations, 1)), axis=1)
    null = square[order[:, above[0]], order[:, above[1]]] @ x
    value = float(x @ y)
    p = (1 + int((np.abs(null) >= abs(value) - 1e-12).sum())) / (permutations + 1)
    least, most = np.quantile(null, [0.025, 0.975])
    return Correlation(value, float(value - most), float(value - least), p, len(x), permutations)


def _standardised(values: Float[np.ndarray, " pair"]) -> Float[np.ndarray, " pair"]:
    """Mean 0 and sum of squares 1, so that the correlation of two is their product."""
    centred = values - values.mean()
    return centred / np.linalg.norm(centred)


def share_against_distance(overlap: pd.DataFrame, *, permutations: int = 9999, seed: int = 0) -> pd.DataFrame:
    """Whether languages share less the further apart they are: Spearman's rank correlation over pairs of languages.

    Languages that `mi_multilingual.languages` does not know are left out, and so is a distance that is the same for
    all pairs.

    Args:
        overlap: languages by languages, such as `Sharing.overlap` or `NeuronSet.jaccard`.
        permutations: of languages, by which p is found.

    Returns:
        one row per distance ("family": steps up the tree, 0 to 3; "script": 1 less the share of common scripts): rho,
        low, high (rho less the quantiles of the permuted ones), p (two-sided), n_pairs, permutations.

    Raises:
        ValueError: a table that is not square, or fewer than three known languages.

    Example:
        >>> import mi_multilingual as mm
        >>> model = mm.load_model("demo")
        >>> text = mm.load_corpus("demo", split="evaluate", max_documents=10)
        >>> shared = mm.sharing_categories(model, text, thresholds=[0.0], progress=False).overlap()
        >>> bool(mm.share_against_distance(shared).set_index("distance").rho["family"] < 0)
        True
    """
    table = _known_languages(overlap)
    values, rows = table.to_numpy(float), []
    for name in _DISTANCES:
        distance = distances(list(table.index), name)
        if np.ptp(distance[np.triu_indices(len(distance), 1)]) > 0:
            found = mantel(values, distance, ranks=True, permutations=permutations, seed=seed)
            rows.append({"distance": name, "rho": found.value, **found._asdict()})
    return pd.DataFrame(rows, columns=["distance", "rho", "low", "high", "p", "n_pairs", "permutations"])


def _known_languages(square: pd.DataFrame) -> pd.DataFrame:
    """The rows and columns of languages whose family is known.

    Raises:
        ValueError: a table that is not square, or fewer than three such languages.
    """
    if list(square.index) != list(square.columns):
        raise ValueError(f"table must be square, got rows {list(square.index)} and columns {list(square.columns)}")
    known = [code for code in square.index if code in LANGUAGES]
    if len(known) < 3:
        raise ValueError(
            f"at least 3 languages must be in mi_multilingual.languages, got {known}; name them by ISO 639 codes"
        )
    return square.loc[known, known]


def distances(languages: list[str], name: str = "family") -> Float[np.ndarray, "language language"]:
    """Distance of every two languages: of "family" or "script"."""
    return np.array([[_DISTANCES[name](a, b) for b in languages] for a in languages], dtype=float)


def pairs_of(overlap: pd.DataFrame) -> pd.DataFrame:
    """Every two known languages once: language, other, overlap, family and script (their distances)."""
    table = _known_languages(overlap)
    names = list(table.index)
    rows = [
        (a, b, table.loc[a, b], *(distance(a, b) for distance in _DISTANCES.values()))
        for i, a in enumerate(names)
        for b in names[i + 1 :]
    ]
    return pd.DataFrame(rows, columns=["language", "other", "overlap", *_DISTANCES])


def family_tree(similarity: pd.DataFrame) -> Float[np.ndarray, "merge 4"]:
    """Average-linkage clustering of languages at distance 1 - similarity, as scipy's linkage matrix."""
    distance = squareform(1 - similarity.to_numpy(float), checks=False).clip(min=0)
    return linkage(distance, "average", optimal_ordering=True)


def tree_against_families(similarity: pd.DataFrame, *, permutations: int = 9999, seed: int = 0) -> Correlation:
    """Mantel's r of the heights at which languages meet in `family_tree` with whether their families differ (0 or 1).

    Raises:
        ValueError: fewer than three known languages, or languages of which all pairs, or none, are of one family.
    """
    table = _known_languages(similarity)
    differ = (distances(list(table.index)) == 3).astype(float)
    return mantel(squareform(cophenet(family_tree(table))), differ, permutations=permutations, seed=seed)
