"""What answers lose without some neurons: those that languages share for a question, or those of a language."""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import pandas as pd
import torch
from jaxtyping import Float
from torch import Tensor
from tqdm.auto import tqdm

from ..corpora import Corpus
from ..evaluation.intervals import mean_interval
from ..evaluation.likelihood import Continuation, continuations, log_likelihoods
from ..evaluation.tasks import Item, in_chat, parallel_items, written_accuracy
from ..evidence.reading import check_finite
from ..evidence.sharing import TYPES, categories, input_ids, parallel_activations
from ..models.hooked import HookedModel, site_of
from ..neurons import NeuronSet
from ..patching.conditions import (
    CHOSEN,
    INTACT,
    NOT_RANDOM,
    RANDOM,
    Condition,
    check_groups,
    check_seeds,
    measured,
    with_controls,
)
from ..tokens import DOCUMENTS

_ASKED = ("id", "language", "task")
_LABELS = ("condition", "group", "seed", "n_neurons")
_MEASURES = {"accuracy": "correct", "margin": "margin"}
TOGETHER = ""
"""Stands for all languages together in the column `language` of the effects."""


@dataclass(frozen=True)
class Question:
    """A question with choices, ready to be scored."""

    item: Item
    choices: tuple[Continuation, ...]


def deactivation_study(
    model: HookedModel,
    items: Sequence[Item],
    neurons: NeuronSet | None = None,
    *,
    threshold: float = 0.0,
    seeds: Sequence[int] = (0, 1, 2),
    chat: bool = False,
    bos: str = "tokenizer",
    progress: bool = True,
) -> pd.DataFrame:
    """Answers to parallel questions with neurons switched off; `deactivation_effects` sums them up.

    Without `neurons`, every question loses neurons of its own: one after another those that are all-shared,
    partial-shared, specific or non-activated at the last token of its prompt, over all languages it is asked in
    (`categories`, site "post"). With `neurons`, every question loses each group, such as the neurons that `lape` gives
    a language. Beside each there are as many random neurons per layer, drawn anew for every seed, and in the first
    case for every question. Neurons are off at every token, those of the choices too.

    Args:
        items: every question (id) in the same languages, each with at least two choices.
        threshold: a neuron is active when its activation is strictly greater.
        seeds: of the random neurons, one draw each.
        chat: ask in the tokenizer's chat template (see `choice_accuracy`); the last token of a prompt is then the
            template's.
        bos: special tokens before every prompt, as in `Reading`; a chat template writes them itself.

    Returns:
        one row per answer: id, language, task, condition ("intact", "chosen" or "random"), group (the type or the
        group whose neurons, or as many random ones, are off; "" for the intact model), seed (-1 unless random),
        n_neurons (off), margin (log-likelihood of the right choice less that of the likeliest wrong one, nats),
        correct (bool: the margin is above 0).

    Raises:
        ValueError: before anything runs: no items, items that are not parallel or have no wrong choice, a prompt
            without tokens or too long with a choice, fewer than two languages without `neurons`, a threshold that is
            not finite, seeds that are missing, negative or repeat, neurons of another model, or an empty group.

    Source: Wang et al. 2024, arXiv:2406.09265 (types); for given groups, Tang et al. 2024, arXiv:2402.16438.

    Example:
        >>> import mi_multilingual as mm
        >>> model = mm.load_model("demo")
        >>> items = [i for i in mm.load_facts(wordings=(0,)) if i.language in ("en", "fr")]
        >>> items = [item for item in items if item.id == items[0].id]
        >>> neurons = mm.NeuronSet.of({"fr": [(3, 7), (3, 8)]}, shape=(4, 1536))
        >>> answers = mm.deactivation_study(model, items, neurons, seeds=[0], progress=False)
        >>> answers[["language", "condition", "group", "seed", "n_neurons"]]
          language condition group  seed  n_neurons
        0       en    intact          -1          0
        1       fr    intact          -1          0
        2       en    chosen    fr    -1          2
        3       fr    chosen    fr    -1          2
        4       en    random    fr     0          2
        5       fr    random    fr     0          2
    """
    items, bos = (in_chat(model, items), "none") if chat else (items, bos)
    questions = checked_questions(model, items, bos)
    check_seeds(seeds)
    if not seeds:
        raise ValueError(
            "seeds must hold at least one number, got none; random neurons are what others are held against"
        )
    if neurons is None:
        rows = _without_types(model, questions, threshold, seeds, bos, progress)
    else:
        check_groups(model, neurons)
        asked = [question for same in questions for question in same]
        rows = _answers_under(model, asked, list(with_controls(neurons, seeds)), progress)
    return pd.DataFrame(rows, columns=[*_ASKED, *_LABELS, "margin", "correct"])


def written_deactivation_study(
    model: HookedModel,
    items: Sequence[Item],
    *,
    threshold: float = 0.0,
    seeds: Sequence[int] = (0, 1, 2),
    extract: Callable[[str], str] = str.strip,
    bos: str = "tokenizer",
    progress: bool = True,
    **decoding: Any,
) -> pd.DataFrame:
    """`deactivation_study` with answers that the model writes, each question without its own neurons of each type.

    Args:
        items: every question (id) in the same languages; choices are not looked at.
        threshold, seeds, bos: as `deactivation_study`.
        extract, decoding: what is compared with the right answer, and how it is written (see `written_accuracy`).

    Returns:
        the columns of `deactivation_study`, with written (the text) in the place of margin.

    Raises:
        ValueError: no items, items that are not parallel, or as `written_accuracy`.

    Source: Wang et al. 2024, arXiv:2406.09265.
    """
    if not items:
        raise ValueError("items must hold at least one question, got none")
    check_seeds(seeds)
    questions = [[Question(item, ()) for item in same.values()] for same in parallel_items(items).values()]
    rows = []
    typed = question_types(model, questions, threshold, bos)
    bar = tqdm(typed, desc="writing without", total=len(questions), unit="question", disable=not progress)
    for number, (same, types) in enumerate(bar):
        asked = [question.item for question in same]

        def answered(_: Condition, asked: list[Item] = asked) -> list[dict[str, Any]]:
            table = written_accuracy(model, asked, extract=extract, bos=bos, progress=False, **decoding)
            return table[[*_ASKED, "written", "correct"]].to_dict("records")

        conditions = [Condition(), *with_controls(types, seeds, number=number, n_sets=len(questions))]
        rows += measured(model, conditions, answered, progress=False)
    return pd.DataFrame(rows, columns=[*_ASKED, *_LABELS, "written", "correct"])


def checked_questions(model: HookedModel, items: Sequence[Item], bos: str = "tokenizer") -> list[list[Question]]:
    """Every question in all its languages."""
    if not items:
        raise ValueError("items must hold at least one question, got none")
    for item in items:
        if len(item.choices) < 2:
            raise ValueError(
                f"every item must have at least two choices, got {len(item.choices)} for {item.id!r} ({item.language})"
            )
    parallel = [list(same.values()) for same in parallel_items(items).values()]
    return [[Question(i, tuple(continuations(model, i.prompt, i.choices, bos=bos))) for i in same] for same in parallel]


def _without_types(
    model: HookedModel,
    questions: Sequence[list[Question]],
    threshold: float,
    seeds: Sequence[int],
    bos: str,
    progress: bool,
) -> list[dict[str, Any]]:
    """Rows of `deactivation_study` where every question loses its own neurons of each type."""
    rows = []
    typed = question_types(model, questions, threshold, bos)
    bar = tqdm(typed, desc="switching off", total=len(questions), unit="question", disable=not progress)
    for number, (same, types) in enumerate(bar):
        conditions = list(with_controls(types, seeds, number=number, n_sets=len(questions)))
        rows += _answers_under(model, same, conditions, progress=False)
    return rows


def question_types(
    model: HookedModel, questions: Sequence[list[Question]], threshold: float, bos: str = "tokenizer"
) -> Iterator[tuple[list[Question], NeuronSet]]:
    """Every question in all its languages with its neurons of each type, after checks of all of them."""
    languages = [question.item.language for question in questions[0]]
    if len(languages) < 2:
        raise ValueError(f"items must be in at least two languages to share neurons, got {languages[0]!r} only")
    if not np.isfinite(threshold):
        raise ValueError(f"threshold must be a finite number, got {threshold}")
    prompts = {k: tuple(same[i].item.prompt for same in questions) for i, k in enumerate(languages)}
    corpus, reading = Corpus(prompts, "prompts"), replace(DOCUMENTS, bos=bos).for_model(model)
    ids = [input_ids(model, corpus, k, reading) for k in languages]
    reader = site_of(model, "post")
    for number, same in enumerate(questions):
        values = parallel_activations(model, reader, [[rows[number]] for rows in ids], "last")
        check_finite(values, lambda at, number=number: f"for question {number} in {languages[at[0]]!r}")
        kind = categories(values[:, 0] > threshold)
        yield same, NeuronSet(torch.stack([kind == i for i in range(len(TYPES))]), TYPES, "sharing")


def _answers_under(
    model: HookedModel, questions: Sequence[Question], conditions: Sequence[Condition], progress: bool
) -> list[dict[str, Any]]:
    """Rows of `deactivation_study` for some questions, of the intact model and under each condition."""
    intact = margins(model, questions)

    def answered(condition: Condition) -> Iterator[dict[str, Any]]:
        found = margins(model, questions) if condition.interventions else intact
        for question, value in zip(questions, found, strict=True):
            asked = {name: getattr(question.item, name) for name in _ASKED}
            yield {**asked, "margin": value, "correct": value > 0}

    return measured(model, [Condition(), *conditions], answered, title="switching off", progress=progress)


def margins(model: HookedModel, questions: Sequence[Question]) -> list[float]:
    """The margin of every question, all of them scored together."""
    scores = log_likelihoods(model, [c for question in questions for c in question.choices])
    sizes = [len(question.choices) for question in questions]
    return [margin(s, int(q.item.answer)) for s, q in zip(scores.split(sizes), questions, strict=True)]


def margin(likelihoods: Float[Tensor, " choice"], answer: int) -> float:
    """Log-likelihood of the right choice less that of the likeliest wrong one."""
    wrong = likelihoods.clone()
    wrong[answer] = -torch.inf
    return (likelihoods[answer] - wrong.max()).item()


def deactivation_effects(answers: pd.DataFrame) -> pd.DataFrame:
    """What each group of neurons is worth to each language: means of `deactivation_study`, with 95 % intervals.

    The answers of `written_deactivation_study` have no margin, and no row of that measure.

    Intervals are of differences between answers to the same questions, by a bootstrap over questions (drawn with
    replacement, 1000 times). Random neurons are averaged over seeds.

    Returns:
        one row per group of neurons, language and measure: group, language ("" for all together: each question's mean
        over languages), measure ("accuracy", a share; "margin", nats), n_items (questions), n_neurons (mean over
        them), intact and value (means with all neurons and with these off), change (value less intact), low, high (its
        interval), random (mean with random neurons off), random_change, random_low, random_high (against intact),
        beyond (change less random_change: what these neurons do that as many random ones do not), beyond_low,
        beyond_high.

    Raises:
        ValueError: no row, a question that lacks an answer or has one twice, a language without a name, or a margin
            that is not finite.
    """
    _check_answers(answers)
    under = ["condition", "group", "seed"]
    numbers = [column for column in ("correct", "margin", "n_neurons") if column in answers]
    together = answers.groupby(["id", *under], sort=False)[numbers].mean()
    parts = {**dict(iter(answers.groupby("language", sort=False))), TOGETHER: together.reset_index()}
    groups = answers[answers.condition != INTACT].group.unique()
    rows = []
    measures = {measure: column for measure, column in _MEASURES.items() if column in answers}
    for language, part in parts.items():
        sizes = part[part.condition == CHOSEN].groupby("group")["n_neurons"].mean()
        for measure, column in measures.items():
            wide = part.pivot(index="id", columns=under, values=column).astype(float)
            for group in groups:
                cell = {"group": group, "language": language, "measure": measure, "n_items": len(wide)}
                rows.append({**cell, "n_neurons": sizes[group], **effect(wide, group)})
    return pd.DataFrame(rows)


def _check_answers(answers: pd.DataFrame) -> None:
    """Raise unless every question is answered once in each language under every condition."""
    if missing := {INTACT, CHOSEN, RANDOM} - set(answers.condition):
        raise ValueError(f"answers must be of every condition, got none that is {min(missing)!r}; give whole studies")
    if (answers.language == TOGETHER).any():
        raise ValueError(f"every language must have a name, got {TOGETHER!r}, which stands for all together")
    if "margin" in answers and not np.isfinite(answers.margin).all():
        item = answers[~np.isfinite(answers.margin)].iloc[0]
        raise ValueError(
            f"every margin must be finite, got {item.margin} for {item.id!r} in {item.language!r} ({item.condition}, "
            f"{item.group!r}); check the model's weights, or load it with dtype=torch.float32"
        )
    under = ["condition", "group", "seed"]
    counts = answers.groupby(["id", "language", *under]).size().unstack(under)
    whole = len(counts) == answers.id.nunique() * answers.language.nunique()
    if not (whole and (counts == 1).all(axis=None)):
        raise ValueError("every question must have one answer in each language for each set of neurons and seed")


def effect(wide: pd.DataFrame, group: str) -> dict[str, float]:
    """Means and intervals of one measure with one group of neurons off.

    Args:
        wide: one row per question, one column per condition, group and seed.
    """
    intact, value = (wide[column].to_numpy() for column in ((INTACT, "", NOT_RANDOM), (CHOSEN, group, NOT_RANDOM)))
    random = wide.xs((RANDOM, group), axis=1, level=("condition", "group")).mean(axis=1).to_numpy()
    found = {"intact": intact.mean(), "value": value.mean(), "random": random.mean()}
    differences = {"": value - intact, "random_": random - intact, "beyond_": value - random}
    for name, difference in differences.items():
        low, high = mean_interval(difference)
        found |= {name.rstrip("_") if name == "beyond_" else f"{name}change": difference.mean()}
        found |= {f"{name}low": low, f"{name}high": high}
    return found
