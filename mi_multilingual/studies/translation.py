"""Does a model translate into a language when that language's neurons are held at their values in it?

The study returns its single translations; `translation_scores` makes BLEU, chrF and the share of the target language of
them.
"""

import itertools
import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from typing import Any

import numpy as np
import pandas as pd
from jaxtyping import Float
from torch import Tensor

from ..corpora import Corpus
from ..detectors.average_precision import average_precision, medians
from ..detectors.table import Setting
from ..evaluation.generation import generate
from ..evaluation.intervals import resampled, wilson_interval
from ..evaluation.language_id import check_known, identify_language
from ..evaluation.open_language import identify_open
from ..evidence.texts import TextActivations, record_texts
from ..models.hooked import HookedModel
from ..neurons import NeuronSet
from ..patching.changes import Intervention
from ..patching.conditions import (
    CHOSEN,
    INTACT,
    RANDOM,
    Condition,
    check_groups,
    labelled,
    layer_matched_random,
    measured,
    with_controls,
)
from .given import Given
from .unconditional import unconditional_study

_PROMPT = "Translate an English sentence into a target language.\nEnglish: {text}\nTarget Language:"
_SOURCE = "en"
_TOKENIZED = {"zh": "zh", "ja": "char", "th": "char"}
"""How sacrebleu cuts words for BLEU; "13a" for all other languages."""
METRICS = ("bleu", "chrf")


def translation_study(
    model: HookedModel,
    parallel: Corpus,
    neurons: NeuronSet,
    values: Mapping[str, Float[Tensor, "layer neuron"]],
    *,
    site: str = "gate",
    seeds: Sequence[int] = (0, 1, 2),
    progress: bool = True,
    **decoding: Any,
) -> pd.DataFrame:
    """English sentences translated with each target language's neurons held at a value (Kojima et al. 2024).

    The prompt does not name the target language: only the neurons do.

    Args:
        parallel: document number i says the same in English and in every target language.
        values: target language -> what its neurons are held at, such as
            dict(zip(texts.languages, medians(texts).unbind(-1))) or the same of stats.mean(), read at `site`.
        decoding: options of `generate`; 128 new tokens, greedily, where they are not given.

    Returns:
        one row per translation: id (number of the sentence), target, condition, seed, n_neurons, text (English),
        reference, continuation (the translation), found (language among those of `parallel`).

    Raises:
        ValueError: before anything runs: no English, a target that is English or has no sentences, texts that are not
            parallel, a language without neurons, values that do not fit or are not finite, neurons of another model.
    """
    targets = list(values)
    _check_parallel(parallel, targets)
    check_groups(model, neurons.take(targets))
    check_known(parallel.languages)
    asked = {"max_new_tokens": 128, **decoding}
    texts = list(parallel.documents[_SOURCE])

    def held(one: NeuronSet) -> tuple[Intervention, ...]:
        return (Intervention("set", one, values[one.groups[0]], site),)

    def translated(condition: Condition) -> Iterator[dict[str, Any]]:
        prompts = [_PROMPT.format(text=text) for text in texts]
        written = [text.strip() for text in generate(model, prompts, progress=False, **asked)]
        for target in condition.labels["targets"]:
            for number, (text, translation) in enumerate(zip(texts, written, strict=True)):
                reference = parallel.documents[target][number]
                row = {"id": number, "target": target, "text": text, "reference": reference}
                yield {**row, "continuation": translation}

    conditions = [labelled(Condition(), targets=targets)]
    for condition in with_controls(neurons, seeds, change=held, groups=targets):
        conditions.append(labelled(condition, targets=[condition.labels["group"]]))
    table = pd.DataFrame(measured(model, conditions, translated, title="translating", progress=progress))
    columns = ["id", "target", "condition", "seed", "n_neurons", "text", "reference", "continuation"]
    return table[columns].assign(found=identify_language(table.continuation.tolist(), parallel.languages))


def _check_parallel(parallel: Corpus, targets: Sequence[str]) -> None:
    """Raise unless there are English sentences and as many in every target language."""
    if not targets or _SOURCE in targets:
        raise ValueError(f"values must hold languages to translate into, other than English, got {list(targets)}")
    sizes = {k: len(documents) for k, documents in parallel.take([_SOURCE, *targets]).documents.items()}
    if len(set(sizes.values())) > 1:
        raise ValueError(f"parallel must have as many sentences in every language, got {sizes}; give translations only")


def translation_scores(translations: pd.DataFrame) -> pd.DataFrame:
    """BLEU, chrF (sacrebleu) and the share of the target language, with 95 % intervals, one row per measure.

    Intervals of BLEU and chrF are by bootstrap over sentences (1000 draws), that of the share is Wilson's. The change
    is against the model as it is on the same sentences, `beyond` against the random neurons, whose seeds are averaged.
    BLEU takes words as sacrebleu's "13a" cuts them, Chinese as its "zh", Japanese and Thai by character.

    Returns:
        columns target, condition, measure ("bleu", "chrf", both up to 100; "share", of 1), n (sentences), value, low,
        high; for the chosen neurons also change, change_low, change_high, beyond, beyond_low, beyond_high (NaN
        without random neurons).
    """
    rows: list[dict[str, Any]] = []
    for target, own in translations.groupby("target", sort=False):
        for measure in (*METRICS, "share"):
            drawn = {
                key: score_draws(part, str(target), measure)
                for key, part in own.groupby(["condition", "seed"], sort=False)
            }
            rows += _rows(str(target), measure, drawn, own.id.nunique())
    return pd.DataFrame(rows)


def _rows(
    target: str, measure: str, drawn: Mapping[Any, Float[np.ndarray, " draw"]], n: int
) -> Iterator[dict[str, Any]]:
    """The rows of one target and measure; the first draw is the text as it is."""
    by_condition = {
        name: np.mean([values for (condition, _), values in drawn.items() if condition == name], axis=0)
        for name in (INTACT, CHOSEN, RANDOM)
        if any(condition == name for condition, _ in drawn)
    }
    for condition, values in by_condition.items():
        row = {"target": target, "condition": condition, "measure": measure, "n": n, **_with_interval("value", values)}
        row["low"], row["high"] = row.pop("value_low"), row.pop("value_high")
        if measure == "share":
            row["low"], row["high"] = wilson_interval(values[0], n * sum(key[0] == condition for key in drawn))
        if condition == CHOSEN:
            row |= _with_interval("change", values - by_condition[INTACT])
            row |= _with_interval("beyond", values - by_condition.get(RANDOM, np.full_like(values, np.nan)))
        yield row


def _with_interval(name: str, values: Float[np.ndarray, " draw"]) -> dict[str, float]:
    """What was measured, and its 95 % bootstrap interval."""
    low, high = np.quantile(values[1:], [0.025, 0.975])
    return {name: float(values[0]), f"{name}_low": float(low), f"{name}_high": float(high)}


def score_draws(part: pd.DataFrame, target: str, measure: str) -> Float[np.ndarray, " draw"]:
    """The measure of all sentences, and of every draw of the bootstrap, which is the same for every part.

    Args:
        part: one translation of every sentence.
    """
    part = part.sort_values("id")
    n = len(part)
    times = np.concatenate([np.ones((1, n), int), resampled(n, np.random.default_rng(0))])
    if measure == "share":
        return times @ (part.found == target).to_numpy(float) / n
    metric = _metric(measure, target)
    # As sacrebleu's own significance tests: what sentences give is summed up, and the score is of the sums.
    counts = np.array(metric._extract_corpus_statistics(part.continuation.tolist(), [part.reference.tolist()]))
    return np.array([metric._compute_score_from_stats(row.tolist()).score for row in times @ counts])


def _metric(measure: str, target: str) -> Any:
    """sacrebleu's measure for translations into a language."""
    from sacrebleu.metrics import BLEU, CHRF  # here, for its import takes half a second

    return BLEU(tokenize=_TOKENIZED.get(target, "13a")) if measure == "bleu" else CHRF()


SETTINGS = {
    "n_sentences": Setting(4, "sentences that are translated, the first ones", 1),
    "n_languages": Setting(3, "languages that are translated into, the first ones that have neurons", 1),
    "n_texts": Setting(10, "texts that are drawn from nothing for each language and condition", 1),
    "max_new_tokens": Setting(24, "longest translation, and longest text from nothing, in tokens", 1),
    "min_new_tokens": Setting(0, "shortest of both; for models that would write nothing", 0),
    "median_rate": Setting(0.01, "share of neurons that detect a language best, and worst", 0.0, 0.5, above=True),
    "median_texts": Setting(60, "texts of each language that the detectors and their medians are of", 2),
}
TABLES = ("translations", "translation", "unconditional", "median_overlap")
_WAYS = ("median", "mean")


def run_translation(given: Given) -> dict[str, pd.DataFrame]:
    """Translations and texts from nothing under median intervention; translations with LAPE's neurons at their mean."""
    how = given.settings
    texts = _texts(given, how["median_texts"])
    detecting = average_precision(texts, rate=how["median_rate"])
    of_median = dict(zip(texts.languages, medians(texts).unbind(-1), strict=True))
    of_mean = dict(zip(given.stats.languages, given.stats.mean().unbind(-1), strict=True))
    parallel = given.evaluate.first(how["n_sentences"])
    targets = _targets(parallel, given.neurons, how["n_languages"])
    asked = {"seeds": given.seeds, "progress": given.progress}
    asked |= {name: how[name] for name in ("max_new_tokens", "min_new_tokens")}
    translated = []
    for way, neurons, values, site in zip(
        _WAYS, (detecting, given.neurons), (of_median, of_mean), (texts.site, given.stats.site), strict=True
    ):
        held = {k: values[k] for k in targets}
        translated.append(translation_study(given.model, parallel, neurons, held, site=site, **asked).assign(way=way))
    drawn = {"n_texts": how["n_texts"], "temperature": 0.8, "site": texts.site, **asked}
    written = unconditional_study(given.model, detecting, {k: of_median[k] for k in targets}, **drawn)
    written = written.assign(found=identify_open(written.continuation.tolist(), given.stats.languages))
    scores = [translation_scores(table).assign(way=way) for way, table in zip(_WAYS, translated, strict=True)]
    tables = (pd.concat(translated), pd.concat(scores), written, pairwise_overlap(detecting, given.seeds))
    return dict(zip(TABLES, (table.reset_index(drop=True) for table in tables), strict=True))


def _texts(given: Given, n: int) -> TextActivations:
    """Responses to the first documents of every language, at the product, which is what goes on into the model."""
    reading = replace(given.reading, layout="documents", max_tokens=None, equal_tokens=False)
    corpus = given.identify.first(n)
    return record_texts(given.model, corpus, site="post", reading=reading, progress=given.progress)["mean"]


def _targets(parallel: Corpus, neurons: NeuronSet, n: int) -> list[str]:
    """The first languages that can be translated into."""
    sizes = neurons.sizes().to_dict()
    found = [k for k in parallel.languages if k != _SOURCE and sizes.get(k)][:n]
    if not found:
        raise ValueError(
            f"evaluate must have a language besides English with neurons, got {', '.join(parallel.languages)}"
        )
    return found


def pairwise_overlap(neurons: NeuronSet, seeds: Sequence[int] = (0, 1, 2)) -> pd.DataFrame:
    """How many of a language's neurons are another language's too, beside as many random neurons per layer.

    Returns:
        one row per ordered pair: language, other, n_neurons (of the language), overlap (share of these that are the
        other's too), random (the same of random neurons, mean over seeds).
    """
    drawn = [layer_matched_random(neurons, seed=seed) for seed in seeds]
    rows = []
    for language, other in itertools.permutations(neurons.groups, 2):
        shares = [_shared(one, language, other) for one in (neurons, *drawn)]
        row = {"language": language, "other": other, "n_neurons": int(neurons[language].masks.sum())}
        rows.append({**row, "overlap": shares[0], "random": float(np.mean(shares[1:])) if drawn else math.nan})
    return pd.DataFrame(rows)


def _shared(neurons: NeuronSet, language: str, other: str) -> float:
    """Share of a language's neurons that are another's, NaN where it has none."""
    own, both = neurons[language].masks, neurons[language].masks & neurons[other].masks
    return float(both.sum() / own.sum()) if own.any() else math.nan
