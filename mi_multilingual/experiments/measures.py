"""What a cell measures: loss, answers or generated text, whole and with neurons changed."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import pandas as pd

from ..corpora import Corpus
from ..evaluation.generation import generate
from ..evaluation.intervals import ratio_interval
from ..evaluation.language_id import identify_language
from ..evaluation.numbers import last_number
from ..evaluation.perplexity import corpus_losses, corpus_rows
from ..evaluation.prompts import first_words
from ..evaluation.tasks import Item, written_accuracy
from ..models.hooked import HookedModel
from ..studies.deactivation import Question, checked_questions, margins
from .cells import Measurement
from .config import GenerationSettings

NO_PROMPT = ""
"""Stands in the place of a language for text that was generated without a prompt."""
SUM_TOKENS = 30
"""Longest answer to a sum."""


@dataclass(frozen=True, eq=False)
class Observations:
    """One number per row of text, question or generated text, for one language."""

    evaluated: str
    """The language; empty for text generated without a prompt."""
    measure: str
    """"loss" (nats per token), "accuracy", "margin" (nats), "target share" or "own share" (of generated texts)."""
    total: np.ndarray
    """Summed loss, margins, or 0 and 1."""
    weight: np.ndarray
    """Tokens, or ones: the measure is sum of `total` over sum of `weight`."""


@dataclass(frozen=True)
class Texts:
    """What effects are measured on."""

    corpus: Corpus
    questions: Mapping[str, tuple[Item, ...]]
    """Measure -> its questions, every one in the same languages."""


def observe(model: HookedModel, what: Measurement, texts: Texts) -> list[Observations]:
    """Measure the model as it is now, in every language."""
    return _MEASURES[what.evaluation](model, what, texts)


def _language_losses(model: HookedModel, what: Measurement, texts: Texts) -> list[Observations]:
    """Loss of every row of every language's text."""
    losses = corpus_losses(model, corpus_rows(model, texts.corpus, what.reading, progress=False))
    return [Observations(k, "loss", loss.nll.numpy(), loss.n_tokens.numpy()) for k, loss in losses.items()]


def answers(model: HookedModel, what: Measurement, texts: Texts) -> list[Observations]:
    """Which questions of every language are answered right, and by how much."""
    questions = checked_questions(model, texts.questions[what.evaluation], what.reading.bos)
    asked = [question for same in questions for question in same]
    return by_language(asked, margins(model, asked))


def by_language(asked: Sequence[Question], scores: Sequence[float]) -> list[Observations]:
    """Share of right answers, and how far they lead, in every language."""
    found = []
    for language in dict.fromkeys(question.item.language for question in asked):
        own = np.array([s for question, s in zip(asked, scores, strict=True) if question.item.language == language])
        found.append(Observations(language, "accuracy", (own > 0).astype(float), np.ones(len(own))))
        found.append(Observations(language, "margin", own, np.ones(len(own))))
    return found


def sums(model: HookedModel, what: Measurement, texts: Texts) -> list[Observations]:
    """Which sums of every language are answered with the right number."""
    items = texts.questions[what.evaluation]
    bos = what.reading.bos
    table = written_accuracy(model, items, extract=last_number, bos=bos, max_new_tokens=SUM_TOKENS, progress=False)
    return [
        Observations(str(k), "accuracy", own.correct.to_numpy(float), np.ones(len(own)))
        for k, own in table.groupby("language", sort=False)
    ]


def drawn(items: Sequence[Item], n: int) -> tuple[Item, ...]:
    """At most `n` questions, the same in every language; `items` are parallel."""
    names = list(dict.fromkeys(item.id for item in items))
    kept = {names[i] for i in np.random.default_rng(0).permutation(len(names))[:n]}
    return tuple(item for item in items if item.id in kept)


def generated(model: HookedModel, what: Measurement, texts: Texts) -> list[Observations]:
    """Whether generated texts are in the language whose neurons are changed, and in that of their prompt."""
    assert what.generation is not None, "a cell that generates text says how"
    prompts = prompts_of(texts.corpus, what.generation)
    how = what.generation.model_dump(exclude={"prompts", "n"})
    written = generate(model, [p for _, p in prompts], bos=what.reading.bos, progress=False, **how)
    languages = identify_language(written, texts.corpus.languages)
    found = []
    for own in dict.fromkeys(k for k, _ in prompts):
        came = [language for (k, _), language in zip(prompts, languages, strict=True) if k == own]
        shares = {"target share": what.target} if what.target else {}
        shares |= {"own share": own} if own != NO_PROMPT else {}
        for measure, wanted in shares.items():
            hits = np.array([language == wanted for language in came], float)
            found.append(Observations(own, measure, hits, np.ones(len(hits))))
    return found


def prompts_of(corpus: Corpus, how: GenerationSettings) -> list[tuple[str, str]]:
    """Pairs of language and prompt: the openings of the first documents, or n times nothing."""
    if how.prompts == "none":
        return [(NO_PROMPT, "")] * how.n
    return [(k, first_words(d, k)) for k, documents in corpus.documents.items() for d in documents[: how.n]]


_MEASURES: Mapping[str, Callable[[HookedModel, Measurement, Texts], list[Observations]]] = {
    "language": _language_losses,
    "facts": answers,
    "xcopa": answers,
    "mpararel": answers,
    "mgsm": sums,
    "generation": generated,
}


def compared(changed: Sequence[Observations], base: Sequence[Observations]) -> pd.DataFrame:
    """What changed: columns evaluated, measure, n, base, value, change, low, high (95 % interval of the change).

    Every row of text, question or prompt is compared with itself.
    """
    table = []
    for now, before in zip(changed, base, strict=True):
        assert (now.evaluated, now.measure) == (before.evaluated, before.measure)
        weight = before.weight.sum()
        value, whole = now.total.sum() / weight, before.total.sum() / weight
        between = ratio_interval if now.measure in ("loss", "margin") else matched_share_interval
        low, high = between(now.total - before.total, before.weight)
        table.append((now.evaluated, now.measure, len(now.total), whole, value, value - whole, low, high))
    return pd.DataFrame(table, columns=["evaluated", "measure", "n", "base", "value", "change", "low", "high"])


def matched_share_interval(difference: np.ndarray, weight: np.ndarray) -> tuple[float, float]:
    """95 % interval of the change of a share, from -1, 0 and 1 of matched pairs (Agresti and Min 2005).

    Half a pair is added to each of the four outcomes, so few pairs without a change leave room for one, which a
    bootstrap would not.
    """
    more, less, n = (difference > 0).sum(), (difference < 0).sum(), len(difference) + 2
    half = 1.96 * np.sqrt(more + less + 1 - (more - less) ** 2 / n) / n
    centre = (more - less) / n
    return max(-1.0, float(centre - half)), min(1.0, float(centre + half))
