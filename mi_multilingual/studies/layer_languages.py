"""Which languages a model speaks after every block, with and without a language's neurons, and with what certainty."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from itertools import islice
from typing import Any

import numpy as np
import pandas as pd
from jaxtyping import Float
from tqdm.auto import tqdm

from ..analysis.layer_languages import AT, NONE, PROMPT, SHARED, TokenLanguages, layer_languages
from ..analysis.layer_words import WORDS, layer_words
from ..corpora import Corpus
from ..detectors.table import Setting
from ..evaluation.generation import generate
from ..evaluation.intervals import mean_interval, resampled
from ..evaluation.prompts import first_words
from ..evaluation.readers import load_facts
from ..evaluation.tasks import parallel_items
from ..evaluation.token_languages import token_languages
from ..models.hooked import HookedModel
from ..neurons import NeuronSet
from ..patching.conditions import INTACT, Condition, applied, check_groups, with_controls
from .given import Given

_UNDER = ("condition", "group")
_MEANS = ["language", "layer", "decoded", "probability", "low", "high", "n", "n_dropped"]


def layer_language_study(
    model: HookedModel,
    prompts: Corpus,
    tokens: TokenLanguages,
    neurons: NeuronSet | None = None,
    *,
    max_new_tokens: int = 0,
    n_top: int = 10,
    at: str = "last",
    norm: bool = True,
    seeds: Sequence[int] = (0, 1, 2),
    progress: bool = True,
) -> pd.DataFrame:
    """`layer_languages` of the model as it is, and of each language's prompts with its neurons off.

    Args:
        neurons: groups are languages of the prompts; none for the model as it is alone.
        max_new_tokens: with a number above 0, every prompt is continued greedily by so many tokens, under the same
            condition, and these are read too.
        seeds: of as many random neurons per layer, one draw each.

    Returns:
        the rows of `layer_languages`, and beside them condition ("intact", "chosen" or "random"), group (the language
        whose neurons, or as many random ones, are off; "" for the intact model), seed (-1 unless random), n_neurons.

    Raises:
        ValueError: as `layer_languages`; neurons of another model, an empty group or one that is no language of the
            prompts; seeds that are negative or repeat.
    """

    def read(mine: Corpus) -> pd.DataFrame:
        further = _continuations(model, mine, max_new_tokens) if max_new_tokens else None
        return layer_languages(
            model, mine, tokens, continuations=further, n_top=n_top, at=at, norm=norm, progress=False
        )

    return _under_conditions(model, prompts, neurons, seeds, read, "layer languages", progress)


def layer_word_study(
    model: HookedModel,
    prompts: Corpus,
    words: Corpus,
    against: Sequence[str],
    neurons: NeuronSet | None = None,
    *,
    norm: bool = True,
    seeds: Sequence[int] = (0, 1, 2),
    progress: bool = True,
) -> pd.DataFrame:
    """`layer_words` of the model as it is, and of each language's prompts with its neurons off.

    Args:
        neurons, seeds: as of `layer_language_study`.

    Returns:
        the rows of `layer_words`, and beside them condition, group, seed and n_neurons, as of `layer_language_study`.

    Raises:
        ValueError: as `layer_words` and `layer_language_study`.
    """

    def read(mine: Corpus) -> pd.DataFrame:
        return layer_words(model, mine, words, against, norm=norm, progress=False)

    return _under_conditions(model, prompts, neurons, seeds, read, "layer words", progress)


def _under_conditions(
    model: HookedModel,
    prompts: Corpus,
    neurons: NeuronSet | None,
    seeds: Sequence[int],
    read: Callable[[Corpus], pd.DataFrame],
    title: str,
    progress: bool,
) -> pd.DataFrame:
    """What `read` gives of all prompts, and of each group's prompts without its neurons, or as many random ones."""
    if neurons is not None:
        check_groups(model, neurons)
        prompts.take(neurons.groups)
    frames = []
    conditions = [Condition(), *(with_controls(neurons, seeds) if neurons is not None else ())]
    for condition in tqdm(conditions, desc=title, unit="condition", disable=not progress):
        group = str(condition.labels["group"])
        with applied(model, condition):
            found = read(prompts.take([group]) if group else prompts)
        frames.append(found.assign(**condition.labels))
    return pd.concat(frames, ignore_index=True)


def _continuations(model: HookedModel, prompts: Corpus, max_new_tokens: int) -> dict[str, list[str]]:
    """What the model writes after each prompt."""
    length = {"max_new_tokens": max_new_tokens, "min_new_tokens": max_new_tokens}
    return {k: generate(model, texts, **length, progress=False) for k, texts in prompts.documents.items()}


def layer_language_shares(outputs: pd.DataFrame) -> pd.DataFrame:
    """The share of every language among the tokens decoded after each block, with 95 % intervals.

    Shares are over the top tokens that belong to a language. Intervals are by a bootstrap over prompts (drawn with
    replacement, 1000 times). Random neurons are averaged over seeds.

    Args:
        outputs: of `layer_languages` or `layer_language_study`.

    Returns:
        one row per language of the prompts, position, layer and decoded language, and where the table has them
        condition and group: share, low, high (NaN where no token belongs to a language), shared and none (the share of
        all top tokens that belong to several languages, and to none), n (prompts).

    Raises:
        ValueError: a table without rows.
    """
    if outputs.empty:
        raise ValueError("outputs must have rows, got none; give what layer_languages returned")
    names = [k for k in outputs.decoded.unique() if k not in (SHARED, NONE)]
    by = [*(c for c in _UNDER if c in outputs), "language", "position"]
    frames = [
        _shares(part, names).assign(**dict(zip(by, key, strict=True))) for key, part in outputs.groupby(by, sort=False)
    ]
    columns = [*by, "layer", "decoded", "share", "low", "high", "shared", "none", "n"]
    return pd.concat(frames, ignore_index=True).loc[:, columns]


def _shares(part: pd.DataFrame, names: list[str]) -> pd.DataFrame:
    """Shares and intervals for the prompts of one language under one condition."""
    layers = sorted(part.layer.unique())
    columns = pd.MultiIndex.from_product([layers, [*names, SHARED, NONE]])
    wide = part.pivot_table(index="document", columns=["layer", "decoded"], values="n").reindex(columns=columns)
    counts = wide.to_numpy().reshape(len(wide), len(layers), -1)
    draws = resampled(len(wide), np.random.default_rng(0))
    drawn = _of_languages(np.tensordot(draws, counts, axes=1))
    # A draw without any token of a language says nothing about their shares.
    low, high = _quantiles(drawn)
    total = counts.sum(axis=0)
    beside = total[:, -2:] / total.sum(axis=1, keepdims=True)
    table = columns[columns.get_level_values(1).isin(names)].to_frame(index=False, name=["layer", "decoded"])
    values = {"share": _of_languages(total[None])[0], "low": low, "high": high}
    table = table.assign(**{name: value.ravel() for name, value in values.items()})
    shared, none = (np.repeat(beside[:, i], len(names)) for i in (0, 1))
    return table.assign(shared=shared, none=none, n=len(wide))


def _of_languages(counts: Float[np.ndarray, "draw layer name"]) -> Float[np.ndarray, "draw layer language"]:
    """Shares of the languages among the tokens that belong to one; NaN where none does."""
    own = counts[..., :-2]
    total = own.sum(axis=-1, keepdims=True)
    return np.divide(own, total, out=np.full(own.shape, np.nan), where=total > 0)


def _quantiles(drawn: Float[np.ndarray, "draw ..."]) -> tuple[np.ndarray, np.ndarray]:
    """The middle 95 % of the draws that are numbers; NaN where none is."""
    silent = np.isnan(drawn).all(axis=0)
    low, high = np.nanquantile(np.where(silent, 0.0, drawn), [0.025, 0.975], axis=0)
    return np.where(silent, np.nan, low), np.where(silent, np.nan, high)


def layer_word_means(outputs: pd.DataFrame) -> pd.DataFrame:
    """How likely the word is on average after each block, with 95 % bootstrap intervals over prompts.

    Random neurons are averaged over seeds.

    Args:
        outputs: of `layer_words` or `layer_word_study`.

    Returns:
        one row per language of the prompts, layer and language of the word, and where the table has them condition and
        group: language, layer, decoded, probability, low, high (NaN where every item was dropped), n (items),
        n_dropped (those of them in which the words cannot be told apart).

    Raises:
        ValueError: a table without rows.
    """
    if outputs.empty:
        raise ValueError("outputs must have rows, got none; give what layer_words returned")
    by = [*(c for c in _UNDER if c in outputs), *_MEANS[:3]]
    by_item = outputs.groupby([*by, "document"], sort=False).probability.mean()
    found = by_item.groupby(by, sort=False).apply(_word_mean)
    columns = [*by, *_MEANS[3:]]
    return found.unstack(sort=False).reset_index().astype({"n": int, "n_dropped": int})[columns]


def _word_mean(probability: pd.Series) -> pd.Series:
    """The columns of `layer_word_means` for one word's language, from all items."""
    kept = probability.dropna().to_numpy()
    low, high = mean_interval(kept) if len(kept) else (np.nan, np.nan)
    mean = kept.mean() if len(kept) else np.nan
    n, n_dropped = len(probability), len(probability) - len(kept)
    return pd.Series({"probability": mean, "low": low, "high": high, "n": n, "n_dropped": n_dropped})


def openings(corpus: Corpus, n: int) -> Corpus:
    """The first words of the first documents of every language, which a model goes on from."""
    texts = {k: tuple(first_words(text, k) for text in islice(d, n)) for k, d in corpus.documents.items()}
    return Corpus(texts, f"{corpus.source}, first words")


def fact_words(languages: Sequence[str], n: int) -> tuple[Corpus, Corpus] | None:
    """Questions for capitals, languages and continents, and the words that they ask for; None without two languages.

    Args:
        languages: those of the demo's facts among them are taken.
        n: questions per language, spread over the countries.
    """
    items = [item for item in load_facts(wordings=(0,)) if item.language in languages]
    by_id = list(parallel_items(items).values()) if items else []
    if not by_id or len(by_id[0]) < 2:
        return None
    some = [by_id[i] for i in sorted(np.random.default_rng(0).permutation(len(by_id))[:n])]
    prompts = {k: tuple(same[k].prompt for same in some) for k in some[0]}
    words = {k: tuple(same[k].answer_text for same in some) for k in some[0]}
    return Corpus(prompts, "facts"), Corpus(words, "answers to facts")


def middle_layers(n_layers: int) -> range:
    """The layers after whose blocks, counted from 1, lies the middle third: ceil(L/3) to floor(2L/3); at least one."""
    first = -(-n_layers // 3)
    return range(first - 1, max(first, 2 * n_layers // 3))


def pivot_of(shares: pd.DataFrame) -> str:
    """The language that prompts in other languages are decoded into most, on average over the middle layers.

    Args:
        shares: of `layer_language_shares`; the intact model's prompts are looked at.

    Raises:
        ValueError: fewer than two languages of prompts.
    """
    part = _intact_prompts(shares)
    if part.language.nunique() < 2:
        raise ValueError(f"prompts must be in at least two languages, got {part.language.unique()}; give others too")
    middle = part.layer.isin(middle_layers(int(part.layer.max()) + 1))
    others = part[middle & (part.decoded != part.language)]
    return str(others.groupby("decoded", sort=False).share.mean().idxmax())


def _intact_prompts(shares: pd.DataFrame) -> pd.DataFrame:
    """The rows of the model as it is, at tokens of prompts."""
    intact = shares.condition == INTACT if "condition" in shares else True
    return shares.loc[(shares.position == PROMPT) & intact]


SETTINGS = {
    "prompts": Setting(12, "prompts per language, first words of documents", 1),
    "at": Setting("last", "which tokens of a prompt are read", choices=AT),
    "n_top": Setting(10, "likeliest tokens looked at after each block", 1),
    "norm": Setting("yes", "whether the final norm is applied", choices=("yes", "no")),
    "bar": Setting(0.6, "share of a token that a language must have for it to be its own", 0.5, 1.0, above=True),
    "new_tokens": Setting(0, "tokens that the model writes after each prompt, which are read too", 0),
    "facts": Setting(40, "questions per language whose answers are looked for as words", 1),
}
"""Of the row in `STUDIES`; `regions` has the first five, too."""


def looked_for(given: Given, text: Corpus) -> tuple[Corpus, TokenLanguages, dict[str, Any]]:
    """Prompts from the text, the languages of tokens, and the options of `layer_languages`, by the settings."""
    asked = given.settings
    tokens = token_languages(given.model, given.identify, bar=asked["bar"])
    how = {"n_top": int(asked["n_top"]), "at": asked["at"], "norm": asked["norm"] == "yes", "progress": given.progress}
    return openings(text, int(asked["prompts"])), tokens, how


def run(given: Given) -> dict[str, pd.DataFrame]:
    """Tables of the row `layer_languages` in `STUDIES`; words of languages that the demo has facts in."""
    prompts, tokens, how = looked_for(given, given.evaluate)
    found = given.neurons.take([k for k in prompts.languages if given.neurons.sizes().get(k)])
    outputs = layer_language_study(
        given.model,
        prompts,
        tokens,
        found if len(found) else None,
        max_new_tokens=int(given.settings["new_tokens"]),
        seeds=given.seeds,
        **how,
    )
    tables = {"layer_languages": outputs, "layer_language_shares": layer_language_shares(outputs)}
    asked = fact_words(prompts.languages, int(given.settings["facts"]))
    if asked is None:
        return tables | {"layer_words": pd.DataFrame(columns=WORDS), "layer_word_means": pd.DataFrame(columns=_MEANS)}
    pivot = pivot_of(tables["layer_language_shares"])
    against = [pivot if pivot in asked[1].languages else asked[1].languages[0]]
    there = found.take([k for k in found.groups if k in asked[0].languages])
    words = layer_word_study(
        given.model,
        *asked,
        against,
        there if len(there) else None,
        norm=how["norm"],
        seeds=given.seeds,
        progress=given.progress,
    )
    return tables | {"layer_words": words, "layer_word_means": layer_word_means(words)}
