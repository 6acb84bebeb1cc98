"""How alike a model's layers represent the same sentences in several languages, with neurons and without."""

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import replace
from itertools import combinations, permutations, product
from typing import Any

import numpy as np
import pandas as pd
import torch
from jaxtyping import Float, Shaped
from torch import Tensor

from ..analysis.similarity import (
    centred_alignment,
    chance_similarity,
    gram,
    mutually_retrieved,
    retrieved,
    translation_similarity,
    unit,
)
from ..corpora import Corpus, at_least_two
from ..evaluation.intervals import mean_intervals, wilson_interval
from ..evidence.representations import Representations, record_representations
from ..models.hooked import HookedModel
from ..neurons import NeuronSet
from ..patching.conditions import CHOSEN, INTACT, NOT_RANDOM, RANDOM, Condition, check_groups, measured, with_controls
from ..tokens import DOCUMENTS, Reading
from .given import Given
from .u_shape import thirds, u_shape

TOGETHER = ""
"""Stands for all languages together in the column `language`, and for all groups in `group`."""
_UNION = "all languages"
_LABELS = ("condition", "group", "seed", "n_neurons")
_RECORDED = ("similarity", "floor", "retrieval", "mexa", "cka")
MEASURES = ("similarity", "floor", "corrected", "retrieval", "mexa", "cka")
"""What is measured of representations: corrected is similarity less floor."""
_PerSentence = Mapping[str, Shaped[Tensor, " sentence"]]
_Cell = dict[str, Any]


def sentence_similarity(representations: Representations) -> pd.DataFrame:
    """How near sentences are to their translations, beside how near they are to other sentences.

    Returns:
        one row per layer (0 is the embedding), pair of languages and measure: layer, language, other, measure
        ("similarity", mean cosine of a sentence and its translation; "floor", of sentences that are no translations;
        "corrected", their difference), n (sentences), value, low, high (95 % bootstrap interval over sentences).

    Raises:
        ValueError: fewer than two languages or two sentences.

    Source: Tang et al. 2024, arXiv:2402.16438 (sentence embedding similarity); the floor is not the paper's.

    Example:
        >>> import mi_multilingual as mm
        >>> model = mm.load_model("demo")
        >>> corpus = mm.load_corpus("demo", languages=["en", "fr"], split="evaluate", max_documents=20)
        >>> found = mm.record_representations(model, corpus, progress=False)
        >>> table = mm.sentence_similarity(found)
        >>> table[table.layer == 2][["measure", "value"]].round(2)
              measure  value
        6  similarity   0.94
        7       floor   0.93
        8   corrected   0.01
    """
    return _pair_table(representations, unit, _similarities, MEASURES[:3])


def retrieval(representations: Representations) -> pd.DataFrame:
    """How often a sentence's translation is the nearest sentence of the other language; ties fail.

    Returns:
        one row per layer, language and other (both directions): the columns of `sentence_similarity`, measure
        "retrieval", with Wilson intervals.

    Raises:
        ValueError: as `sentence_similarity`.
    """

    def hits(one: Tensor, other: Tensor) -> _PerSentence:
        return {"retrieval": retrieved(one, other)}

    return _pair_table(representations, unit, hits, ["retrieval"], pairs=permutations, shares=True)


def mexa(representations: Representations) -> pd.DataFrame:
    """How often a sentence and its translation are nearest to each other in both directions.

    As published, the vectors are of pooling "weighted" or "last", and one language of every pair is English.

    Returns:
        as `retrieval`, one row per layer and pair, measure "mexa".

    Raises:
        ValueError: as `sentence_similarity`.

    Source: Kargaran et al. 2024, arXiv:2410.05873.
    """

    def hits(one: Tensor, other: Tensor) -> _PerSentence:
        return {"mexa": mutually_retrieved(one, other)}

    return _pair_table(representations, unit, hits, ["mexa"], shares=True)


def cka(representations: Representations, *, unbiased: bool = False) -> pd.DataFrame:
    """Linear centred kernel alignment of every two languages: whether sentences lie to each other alike in both.

    Args:
        unbiased: by the estimator that does not grow where there are fewer sentences than dimensions.

    Returns:
        as `sentence_similarity`, measure "cka"; intervals are of the measure to first order in the sentences' weights.

    Raises:
        ValueError: as `sentence_similarity`, or fewer than four sentences.

    Source: Kornblith et al. 2019, arXiv:1905.00414.
    """
    if representations.values.shape[2] < 4:
        raise ValueError(f"there must be at least four sentences for cka, got {representations.values.shape[2]}")

    def alignment(one: Tensor, other: Tensor) -> _PerSentence:
        return {"cka": centred_alignment(one, other, unbiased=unbiased)}

    def grams(vectors: Tensor) -> Tensor:
        return torch.stack([gram(x, unbiased=unbiased) for x in vectors])

    return _pair_table(representations, grams, alignment, ["cka"])


def dominance(representations: Representations, *, shifted: bool = False) -> pd.DataFrame:
    """Which language the others are near to: mean over the other languages of their corrected similarity with it.

    Args:
        shifted: first move the sentences of every other language by the difference of the two mean vectors.

    Returns:
        one row per layer and language: layer, language, n, value, low, high (as in `sentence_similarity`).

    Raises:
        ValueError: as `sentence_similarity`.

    Source: after Tang et al. 2024, arXiv:2402.16438; the floor and the unshifted form are not the paper's.
    """
    _check(representations)
    cells, values = [], []
    for layer, vectors in enumerate(representations.values.double()):
        for k, language in enumerate(representations.languages):
            others = [i for i in range(len(vectors)) if i != k]
            moved = vectors - shifted * (vectors - vectors[k]).mean(dim=1, keepdim=True)
            units = unit(moved)
            values.append(torch.stack([_similarities(units[k], units[i])["corrected"] for i in others]).mean(dim=0))
            cells.append({"layer": layer, "language": language})
    return _with_intervals(cells, torch.stack(values).numpy())


def _similarities(one: Float[Tensor, "sentence d_model"], other: Float[Tensor, "sentence d_model"]) -> _PerSentence:
    """Similarity, floor and their difference, from unit vectors."""
    similarity, floor = translation_similarity(one, other), chance_similarity(one, other)
    return {"similarity": similarity, "floor": floor, "corrected": similarity - floor}


def _pair_table(
    representations: Representations,
    prepared: Callable[[Tensor], Tensor],
    measure: Callable[[Tensor, Tensor], _PerSentence],
    names: Sequence[str],
    *,
    pairs: Callable[..., Iterator[tuple[int, int]]] = combinations,
    shares: bool = False,
) -> pd.DataFrame:
    """Measures of every pair of languages in every layer, with their intervals."""
    _check(representations)
    n_layers, n_languages, n_sentences, _ = representations.values.shape
    compared, languages = list(pairs(range(n_languages), 2)), representations.languages
    # All at once: small tensors that stay between large ones that go would scatter the memory.
    values = torch.empty(n_layers, len(compared), len(names), n_sentences, dtype=torch.float64)
    for layer, vectors in enumerate(representations.values):
        ready = prepared(vectors)
        for i, (a, b) in enumerate(compared):
            found = measure(ready[a], ready[b])
            for j, name in enumerate(names):
                values[layer, i, j] = found[name]
    cells = [
        {"layer": layer, "language": languages[a], "other": languages[b], "measure": name}
        for layer, (a, b), name in product(range(n_layers), compared, names)
    ]
    return _with_intervals(cells, values.flatten(0, 2).numpy(), shares)


def _with_intervals(cells: list[_Cell], values: np.ndarray, shares: bool = False) -> pd.DataFrame:
    """The cells with the means of their numbers (cell, sentence) and 95 % intervals."""
    n, mean = values.shape[1], values.mean(axis=1)
    low, high = wilson_interval(mean, n) if shares else mean_intervals(values.T)
    return pd.DataFrame(cells).assign(n=n, value=mean, low=low, high=high)


def _check(representations: Representations) -> None:
    at_least_two(representations.languages)
    if representations.values.shape[2] < 2:
        raise ValueError(f"there must be at least two sentences to compare, got {representations.values.shape[2]}")


def representation_study(
    model: HookedModel,
    corpus: Corpus,
    neurons: NeuronSet,
    *,
    seeds: Sequence[int] = (0, 1, 2),
    pooling: str = "mean",
    reading: Reading = DOCUMENTS,
    progress: bool = True,
) -> pd.DataFrame:
    """How alike languages are represented with neurons switched off; `representation_effects` sums it up.

    Args:
        corpus: at least four documents; number i says the same in every language.
        neurons: every group is switched off in turn, beside as many random neurons per layer.
        pooling: as in `record_representations`.

    Returns:
        one row per condition, layer, language and sentence: condition ("intact", "chosen" or "random"), group, seed,
        n_neurons, layer (0 is the embedding), language, sentence, and means over all other languages of what
        `sentence_similarity`, `retrieval` (from this language), `mexa` and `cka` are means of: similarity, floor,
        retrieval, mexa, cka.

    Raises:
        ValueError: before anything runs: neurons of another model, an empty group, no seeds or such that are negative
            or repeat, fewer than two languages or four documents, or as `record_representations`.
    """
    check_groups(model, neurons)
    at_least_two(corpus.languages)
    if not seeds:
        raise ValueError("seeds must hold at least one number, got none; random neurons are the control")
    if min(map(len, corpus.documents.values())) < 4:
        raise ValueError(f"corpus must have at least four documents in every language, got fewer in {corpus.source}")

    def found(condition: Condition) -> Iterator[_Cell]:
        recorded = record_representations(model, corpus, pooling=pooling, reading=reading, progress=False)
        for layer, vectors in enumerate(recorded.values):
            values = _language_values(vectors)
            for k, language in enumerate(recorded.languages):
                columns = {name: part[k].numpy() for name, part in values.items()}
                yield {"layer": layer, "language": language, "sentence": np.arange(vectors.shape[1]), **columns}

    conditions = [Condition(), *with_controls(neurons, seeds)]
    rows = measured(model, conditions, found, title="representations", progress=progress)
    columns = ["sentence", *_RECORDED]
    table = pd.DataFrame(rows, columns=[*_LABELS, "layer", "language", *columns])
    return table.explode(columns, ignore_index=True).astype({"sentence": int, **dict.fromkeys(_RECORDED, float)})


def _language_values(
    vectors: Float[Tensor, "language sentence d_model"],
) -> dict[str, Float[Tensor, "language sentence"]]:
    """Of every language, the means over the others of all that is recorded of pairs."""
    units, grams = unit(vectors), [gram(x) for x in vectors]
    sums = {name: torch.zeros(vectors.shape[:2], dtype=torch.float64) for name in _RECORDED}
    for a, b in combinations(range(len(vectors)), 2):
        one, other = units[a], units[b]
        there, back = retrieved(one, other), retrieved(other, one)
        alike = {**_similarities(one, other), "mexa": there & back, "cka": centred_alignment(grams[a], grams[b])}
        for name in _RECORDED:
            for k, value in ((a, there), (b, back)):
                sums[name][k] += value if name == "retrieval" else alike[name]
    return {name: total / (len(vectors) - 1) for name, total in sums.items()}


def representation_effects(outputs: pd.DataFrame) -> pd.DataFrame:
    """What each group of neurons is worth to the likeness of languages: means of `representation_study`.

    Intervals are of differences between the same sentences, by a bootstrap over sentences. Random neurons are averaged
    over seeds.

    Returns:
        one row per group of neurons, layer, language ("" for the mean over all) and measure (see `MEASURES`): group,
        measure, layer, language, n_sentences, n_neurons, intact and value (means with all neurons and with these off),
        change (value less intact), low, high (its 95 % interval), random_change (with random neurons off, less intact),
        random_low, random_high, beyond (change less random_change), beyond_low, beyond_high.
    """
    wide, off = _by_sentence(outputs), outputs[outputs.condition == CHOSEN]
    sizes = off.groupby("group", sort=False).n_neurons.first()
    tables = [_group_effects(wide, str(group)).assign(group=group, n_neurons=n) for group, n in sizes.items()]
    joined = pd.concat(tables, ignore_index=True).assign(n_sentences=len(wide))
    first = ["group", "measure", "layer", "language", "n_sentences", "n_neurons"]
    return joined.reindex(columns=[*first, *(name for name in joined if name not in first)])


def _group_effects(wide: pd.DataFrame, group: str) -> pd.DataFrame:
    """Changes without one group's neurons, one row per measure, layer and language."""
    labels = ["condition", "group", "seed"]
    intact = wide.xs((INTACT, "", NOT_RANDOM), axis=1, level=labels)
    chosen = wide.xs((CHOSEN, group, NOT_RANDOM), axis=1, level=labels)[intact.columns]
    draws = wide.xs((RANDOM, group), axis=1, level=labels[:2]).T
    random = draws.groupby(level=list(intact.columns.names)).mean().T[intact.columns]
    table = pd.DataFrame({"intact": intact.mean(), "value": chosen.mean()})
    differences = {"change": chosen - intact, "random_change": random - intact, "beyond": chosen - random}
    for name, difference in differences.items():
        low, high = mean_intervals(difference.to_numpy())
        prefix = {"change": "", "random_change": "random_", "beyond": "beyond_"}[name]
        table = table.assign(**{name: difference.mean(), f"{prefix}low": low, f"{prefix}high": high})
    return table.reset_index()


def _by_sentence(outputs: pd.DataFrame) -> pd.DataFrame:
    """One row per sentence; a column per measure, condition, group, seed, layer and language, with all together."""
    keys = ["condition", "group", "seed", "layer", "language"]
    table = outputs.assign(corrected=outputs.similarity - outputs.floor)
    together = table.groupby([*keys[:-1], "sentence"], as_index=False)[list(MEASURES)].mean()
    table = pd.concat([table, together.assign(language=TOGETHER)], ignore_index=True)
    wide = table.pivot(index="sentence", columns=keys, values=list(MEASURES))
    if wide.isna().any(axis=None):
        raise ValueError("every sentence must be there under all conditions in every layer; give whole studies")
    wide.columns.names = ["measure", *keys]
    return wide


def layer_means(outputs: pd.DataFrame) -> pd.DataFrame:
    """The curve over layers of the intact model: means of `representation_study` over all languages.

    Returns:
        one row per measure and layer: measure, layer, n (sentences), value, low, high (95 % bootstrap interval).
    """
    wide = _intact(outputs)
    low, high = mean_intervals(wide.to_numpy())
    means = wide.mean().rename("value").reset_index()
    columns = ["measure", "layer", "n", "value", "low", "high"]
    return means.assign(n=len(wide), low=low, high=high).reindex(columns=columns)


def middle_and_ends(outputs: pd.DataFrame) -> pd.DataFrame:
    """Whether the curve over layers of the intact model rises and falls: its middle third less the outer two.

    Returns:
        one row per measure: measure, n (sentences), middle, ends (means over layers), change (their difference), low,
        high (its 95 % bootstrap interval over sentences).
    """
    wide, rows = _intact(outputs), []
    for measure in MEASURES:
        part = wide[measure]
        inner = thirds(part.shape[1]) == 1
        middle, ends = part.loc[:, inner].mean(axis=1), part.loc[:, ~inner].mean(axis=1)
        low, high = mean_intervals((middle - ends).to_numpy()[:, None])
        means = {"middle": middle.mean(), "ends": ends.mean(), "change": (middle - ends).mean()}
        rows.append({"measure": measure, "n": len(wide), **means, "low": low[0], "high": high[0]})
    return pd.DataFrame(rows)


def _intact(outputs: pd.DataFrame) -> pd.DataFrame:
    """One row per sentence, a column per measure and layer: the intact model, mean over languages."""
    wide = _by_sentence(outputs[outputs.condition == INTACT])
    together = wide.loc[:, wide.columns.get_level_values("language") == TOGETHER]
    return together.droplevel(["condition", "group", "seed", "language"], axis=1).sort_index(axis=1)


def run(given: Given) -> dict[str, pd.DataFrame]:
    """All tables of the row `representations` of `STUDIES`."""
    settings = given.settings
    corpus = Corpus({k: texts[: settings["sentences"]] for k, texts in given.evaluate.documents.items()}, "evaluate")
    reading = replace(given.reading, layout="documents", max_tokens=None, equal_tokens=False)
    asked = {"pooling": settings["pooling"], "reading": reading, "progress": given.progress}
    neurons = given.neurons.take([g for g, n in given.neurons.sizes().items() if n])
    off = neurons if settings["silenced"] == "each" else replace(neurons, masks=neurons.union()[None], groups=(_UNION,))
    recorded = record_representations(given.model, corpus, **asked)
    outputs = representation_study(given.model, corpus, off, seeds=given.seeds, **asked)
    pairs = [f(recorded) for f in (sentence_similarity, retrieval, mexa, cka)]
    return {
        "representations": pd.concat(pairs, ignore_index=True),
        "representation_outputs": outputs,
        "representation_layers": layer_means(outputs),
        "representation_shape": middle_and_ends(outputs),
        "representation_effects": representation_effects(outputs),
        "dominance": pd.concat([dominance(recorded, shifted=s).assign(shifted=s) for s in (False, True)]),
        "neuron_layers": neurons.counts(),
        "u_shape": u_shape(neurons),
    }
