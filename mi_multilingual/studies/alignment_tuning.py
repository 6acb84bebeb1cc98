"""Whether tuning on the same text in several languages makes them share more neurons, and answer better (Wang 2024)."""

from collections.abc import Iterator, Sequence
from dataclasses import replace
from typing import Any

import numpy as np
import pandas as pd
from tqdm.auto import tqdm

from ..corpora import Corpus
from ..evaluation.intervals import mean_interval
from ..evaluation.readers import load_facts
from ..evaluation.tasks import Item
from ..models.hooked import HookedModel
from ..patching.conditions import INTACT, NOT_RANDOM, check_seeds
from ..tokens import DOCUMENTS, Reading
from ..training import Training
from ..tuning import tune, tuned
from .deactivation import Question, checked_questions, margins, question_types
from .given import Given

ALIGNED, MIXED, ALONE = "aligned", "mixed", "alone"
"""What stands in the column `arm`: tuned on the same documents in all languages at every step, on the same text
in any order, or on as many rows of one language alone."""
_MEASURES = ("all_shared", "accuracy", "margin")
_HELD_OUT_WORDING = 2


def alignment_study(
    model: HookedModel,
    corpus: Corpus,
    items: Sequence[Item],
    *,
    training: Training = Training(),
    seeds: Sequence[int] = (0, 1, 2),
    threshold: float = 0.0,
    reading: Reading = DOCUMENTS,
    progress: bool = True,
) -> pd.DataFrame:
    """Answers, and the neurons all languages share for a question, before and after tuning on parallel text.

    All weights are tuned, for equally many steps on equally many rows: on the same documents in all languages at each
    step ("aligned"), and for comparison on the same text in any order ("mixed") and on the text of the first language
    only ("alone").

    Args:
        corpus: document number i says the same in every language.
        items: questions with choices, in at least two languages, whose text is not in `corpus`.
        training: its `parallel` and `seed` are set here; all weights want smaller steps than a few neurons do.
        seeds: of the order of the rows, one tuning each.
        threshold: a neuron is active when its activation at the last token of the prompt is strictly greater.

    Returns:
        one row per question and language: arm ("intact", "aligned", "mixed" or "alone"), seed (-1 for the intact
        model), id, language, task, correct, margin (nats, see `deactivation_study`), all_shared (share of all MLP
        neurons that is active in all languages of the question: the same for each of them).

    Raises:
        ValueError: items as in `deactivation_study`, fewer than two languages, documents that are not parallel or
            longer than a row, seeds that are missing, negative or repeat, or a loss that is not finite.

    Source: version 1 of Wang et al. 2024, arXiv:2406.09265. The two comparisons are ours.
    """
    questions = checked_questions(model, items, reading.bos)
    check_seeds(seeds)
    if not seeds:
        raise ValueError("seeds must hold at least one number, got none; every tuning has an order of its own")
    how_asked = {"threshold": threshold, "bos": reading.bos}
    table = list(_answers(model, questions, how_asked, {"arm": INTACT, "seed": NOT_RANDOM}))
    arms = list(_arms(corpus, training, seeds))
    for arm, text, how in tqdm(arms, desc="alignment", unit="tuning", disable=not progress):
        tuning = tune(model, text, training=how, reading=reading, progress=False)
        with tuned(model, tuning):
            table += _answers(model, questions, how_asked, {"arm": arm, "seed": how.seed})
    return pd.DataFrame(table)


def _arms(corpus: Corpus, training: Training, seeds: Sequence[int]) -> Iterator[tuple[str, Corpus, Training]]:
    """Condition, text and training of every tuning, with equally many rows per step."""
    n = len(corpus.languages)
    how = replace(training, parallel=False, batch_rows=max(1, training.batch_rows // n) * n)
    for seed in seeds:
        yield ALIGNED, corpus, replace(how, seed=seed, parallel=True)
        yield MIXED, corpus, replace(how, seed=seed)
        yield ALONE, corpus.take(corpus.languages[:1]), replace(how, seed=seed)


def _answers(
    model: HookedModel, questions: list[list[Question]], how_asked: dict[str, Any], labels: dict[str, Any]
) -> Iterator[dict[str, Any]]:
    for same, types in question_types(model, questions, **how_asked):
        share = float(types.take(["all-shared"]).masks.double().mean())
        for question, margin in zip(same, margins(model, same), strict=True):
            asked = {name: getattr(question.item, name) for name in ("id", "language", "task")}
            yield {**labels, **asked, "correct": margin > 0, "margin": margin, "all_shared": share}


def alignment_effects(rows: pd.DataFrame) -> pd.DataFrame:
    """What tuning changes: means of `alignment_study` over questions and languages, with 95 % intervals.

    Intervals are by a bootstrap over questions, of differences between the same questions; seeds are averaged.

    Returns:
        one row per arm that was tuned and measure ("all_shared" and "accuracy", shares; "margin", nats): n_items
        (questions), intact, value, change, low, high, and beyond, beyond_low, beyond_high: the change less that by the
        same text in any order (NaN for that itself).
    """
    means = rows.rename(columns={"correct": "accuracy"}).groupby(["arm", "id"], sort=False)[list(_MEASURES)]
    by_id = means.mean().astype(float)
    table = []
    for arm in [c for c in rows.arm.unique() if c != INTACT]:
        for measure in _MEASURES:
            intact, value, mixed = (by_id[measure].loc[c].sort_index() for c in (INTACT, arm, MIXED))
            cell = {"arm": arm, "measure": measure, "n_items": len(intact)}
            cell |= {"intact": intact.mean(), "value": value.mean()}
            cell |= _mean("change", "low", "high", (value - intact).to_numpy())
            beyond = (value - mixed).to_numpy() if arm != MIXED else np.full(0, np.nan)
            table.append(cell | _mean("beyond", "beyond_low", "beyond_high", beyond))
    return pd.DataFrame(table)


def _mean(name: str, low: str, high: str, values: np.ndarray) -> dict[str, float]:
    """Mean and interval; NaN where there is nothing."""
    ends = mean_interval(values) if len(values) else (np.nan, np.nan)
    return {name: float(values.mean()) if len(values) else np.nan, low: ends[0], high: ends[1]}


def run(given: Given) -> dict[str, pd.DataFrame]:
    """The study by its name: tuned on the text effects are measured on elsewhere, asked for facts of the demo."""
    asked = given.settings
    facts = load_facts(wordings=(_HELD_OUT_WORDING,))
    known = {item.language for item in facts}
    languages = [k for k in given.evaluate.languages if k in known][: int(asked["languages"])]
    ids = list(dict.fromkeys(item.id for item in facts))
    ids = ids[:: max(1, len(ids) // int(asked["questions"]))]
    rows = alignment_study(
        given.model,
        given.evaluate.take(languages),
        [item for item in facts if item.language in languages and item.id in set(ids)],
        training=Training(int(asked["steps"]), float(asked["learning_rate"]), int(asked["batch_rows"])),
        seeds=given.seeds,
        reading=replace(given.reading, layout="documents"),
        progress=given.progress,
    )
    return {"alignment_rows": rows, "alignment_tuning": alignment_effects(rows)}
