"""What answers lose without some neurons: those that languages share for a question, or a language's own."""

from collections.abc import Iterator, Mapping, Sequence
from contextlib import nullcontext
from dataclasses import dataclass, replace

import numpy as np
import pandas as pd
import torch
from jaxtyping import Float
from torch import Tensor
from tqdm.auto import tqdm

from ..corpora import Corpus
from ..evaluation.intervals import mean_interval
from ..evaluation.likelihood import Continuation, continuations, log_likelihoods
from ..evaluation.tasks import Item, parallel_items
from ..evidence.reading import check_finite
from ..evidence.sharing import TYPES, categories, input_ids, parallel_activations
from ..models.hooked import HookedModel, site_of
from ..neurons import NeuronSet
from ..patching.changes import check_fits
from ..patching.conditions import layer_matched_random
from ..patching.hooks import ablate
from ..tokens import DOCUMENTS

INTACT, ALL = "none", "all"
MEASURES = {"accuracy": "correct", "margin": "margin"}


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
    progress: bool = True,
) -> pd.DataFrame:
    """Answers to parallel questions with neurons switched off, one a row; `deactivation_effects` sums them up.

    Without `neurons`, every question loses neurons of its own: one after another those that are all-shared,
    partial-shared, specific or non-activated at the last token of its prompt, over all languages it is asked in
    (`categories`, site "post"). With `neurons`, every question loses each group, such as the neurons that `lape` gives
    a language. Beside each there are as many random neurons a layer, drawn anew for every seed, and in the first
    case for every question. Neurons are off at every token, those of the choices too.

    Args:
        items: every question (id) in the same languages, each with at least two choices.
        threshold: a neuron is active when its activation is strictly greater.
        seeds: of the random neurons, one draw each.

    Returns:
        a row an answer: id, language, task, off ("none", a type, or a group), seed (of the random neurons that were off
        instead; -1 for the neurons themselves), n_neurons (switched off), margin (log-likelihood of the right choice
        less that of the likeliest wrong one, nats), correct (bool: the margin is above 0).

    Raises:
        ValueError: before anything runs: no items, items that are not parallel or have no wrong choice, a prompt
            without tokens or too long with a choice, fewer than two languages without `neurons`, a threshold that is
            not finite, no seed, negative or repeated ones, neurons of another model, an empty group, or one called
            "none".

    Source: Wang et al. 2024, arXiv:2406.09265 (types); for given groups, Tang et al. 2024, arXiv:2402.16438.
    """
    questions = checked_questions(model, items)
    check_seeds(seeds)
    n_sets = (len(TYPES) if neurons is None else len(neurons.groups)) * (1 + len(seeds))
    rows = []
    with tqdm(total=len(items) * (1 + n_sets), desc="switching off", unit="answer", disable=not progress) as bar:
        if neurons is not None:
            check_groups(model, neurons)
            # Checked once: without its fingerprint a set is not compared with the model again and again.
            neurons = replace(neurons, model_fingerprint="")
            controls = {seed: layer_matched_random(neurons, seed=seed) for seed in seeds}
            everything = [question for same in questions for question in same]
            return pd.DataFrame(answers(model, everything, neurons, controls, bar))
        for number, (same, types) in enumerate(own_neurons(model, questions, threshold)):
            controls = {seed: layer_matched_random(types, seed=seed * len(questions) + number) for seed in seeds}
            rows += answers(model, same, types, controls, bar)
    return pd.DataFrame(rows)


def checked_questions(model: HookedModel, items: Sequence[Item]) -> list[list[Question]]:
    """Every question in all its languages."""
    if not items:
        raise ValueError("there are no items; give some questions")
    for item in items:
        if len(item.choices) < 2:
            raise ValueError(f"item {item.id!r} ({item.language}) has no wrong choice; give at least two choices")
    parallel = [list(same.values()) for same in parallel_items(items).values()]
    return [[Question(i, tuple(continuations(model, i.prompt, i.choices))) for i in same] for same in parallel]


def check_seeds(seeds: Sequence[int]) -> None:
    if not seeds or min(seeds) < 0 or len(set(seeds)) < len(seeds):
        raise ValueError(f"seeds={tuple(seeds)}: give at least one, each once and none negative")


def check_groups(model: HookedModel, neurons: NeuronSet) -> None:
    check_fits(model, neurons)
    sizes = neurons.sizes()
    if INTACT in neurons.groups:
        raise ValueError(f"a group is called {INTACT!r}, which stands for the intact model; give it another name")
    if (sizes == 0).any():
        raise ValueError(f"there are no neurons for {sizes.idxmin()!r}; leave the group out with take(...)")


def own_neurons(
    model: HookedModel, questions: Sequence[list[Question]], threshold: float
) -> Iterator[tuple[list[Question], NeuronSet]]:
    """Every question in all its languages and its neurons of each type, after checks of all of them."""
    languages = [question.item.language for question in questions[0]]
    if len(languages) < 2:
        raise ValueError(f"the items are all in {languages[0]!r}; ask in at least two languages to see what they share")
    if not np.isfinite(threshold):
        raise ValueError(f"threshold={threshold} must be a finite number")
    prompts = {k: tuple(same[i].item.prompt for same in questions) for i, k in enumerate(languages)}
    corpus, reading = Corpus(prompts, "prompts"), DOCUMENTS.for_model(model)
    ids = [input_ids(model, corpus, k, reading) for k in languages]
    reader = site_of(model, "post")
    for number, same in enumerate(questions):
        values = parallel_activations(model, reader, [[rows[number]] for rows in ids], "last")
        check_finite(values, lambda at, number=number: f"for question {number} in {languages[at[0]]!r}")
        kind = categories(values[:, 0] > threshold)
        yield same, NeuronSet(torch.stack([kind == i for i in range(len(TYPES))]), TYPES, "sharing")


def answers(
    model: HookedModel, questions: Sequence[Question], neurons: NeuronSet, controls: Mapping[int, NeuronSet], bar: tqdm
) -> list[dict[str, object]]:
    """Rows of `deactivation_study` for some questions: intact, each group off, and each of its controls off."""
    intact = margins(model, questions)
    sets = [(group, -1, neurons[group]) for group in neurons.groups]
    sets += [(group, seed, control[group]) for group in neurons.groups for seed, control in controls.items()]
    found = [(INTACT, -1, 0, intact)]
    for off, seed, chosen in sets:
        bar.update(len(questions))
        n_neurons = int(chosen.union().sum())
        found.append((off, seed, n_neurons, margins(model, questions, chosen) if n_neurons else intact))
    bar.update(len(questions))
    return [
        {
            "id": question.item.id,
            "language": question.item.language,
            "task": question.item.task,
            "off": off,
            "seed": seed,
            "n_neurons": n_neurons,
            "correct": margin > 0,
            "margin": margin,
        }
        for off, seed, n_neurons, scores in found
        for question, margin in zip(questions, scores, strict=True)
    ]


@torch.no_grad()
def margins(model: HookedModel, questions: Sequence[Question], off: NeuronSet | None = None) -> list[float]:
    """The margin of every question, all of them scored together."""
    with nullcontext() if off is None else ablate(model, off):
        scores = log_likelihoods(model, [c for question in questions for c in question.choices])
    sizes = [len(question.choices) for question in questions]
    return [margin(s, int(q.item.answer)) for s, q in zip(scores.split(sizes), questions, strict=True)]


def margin(likelihoods: Float[Tensor, " choice"], answer: int) -> float:
    """Log-likelihood of the right choice less that of the likeliest wrong one."""
    wrong = likelihoods.clone()
    wrong[answer] = -torch.inf
    return (likelihoods[answer] - wrong.max()).item()


def deactivation_effects(answers: pd.DataFrame) -> pd.DataFrame:
    """What each kind of neurons is worth to each language: means of `deactivation_study`, with 95 % intervals.

    Intervals are of differences between answers to the same questions, by a bootstrap over questions (drawn with
    replacement, 1000 times). Random neurons are averaged over seeds.

    Returns:
        a row a kind of neurons, language and measure: off, language (also "all": each question's mean over languages),
        measure ("accuracy", a share; "margin", nats), n_items (questions), n_neurons (mean over them), intact and
        value (means with all neurons and with these off), change (value less intact), low, high (its interval), random
        (mean with random neurons off), random_change, random_low, random_high (against intact), beyond (change less
        random_change: what these neurons do that as many random ones do not), beyond_low, beyond_high.

    Raises:
        ValueError: no row, a question that lacks an answer or has one twice, a language called "all", or a margin that
            is not finite.
    """
    check_answers(answers)
    together = answers.groupby(["id", "off", "seed"], sort=False)[["correct", "margin", "n_neurons"]].mean()
    parts = {**dict(iter(answers.groupby("language", sort=False))), ALL: together.reset_index()}
    rows = []
    for language, part in parts.items():
        for measure, column in MEASURES.items():
            wide = part.pivot(index="id", columns=["off", "seed"], values=column).astype(float)
            sizes = part[part.seed == -1].groupby("off")["n_neurons"].mean()
            for off in [k for k in answers.off.unique() if k != INTACT]:
                cell = {"off": off, "language": language, "measure": measure, "n_items": len(wide)}
                rows.append({**cell, "n_neurons": sizes[off], **effect(wide, off)})
    return pd.DataFrame(rows)


def check_answers(answers: pd.DataFrame) -> None:
    if not (answers.off == INTACT).any() or (answers.off == INTACT).all():
        raise ValueError("no answer is there with neurons off, or none with all on; give those of deactivation_study")
    if (answers.language == ALL).any():
        raise ValueError(f"a language is called {ALL!r}, which stands for all together; give it another name")
    if not np.isfinite(answers.margin).all():
        item = answers[~np.isfinite(answers.margin)].iloc[0]
        raise ValueError(
            f"the margin of {item.id!r} in {item.language!r} with {item.off!r} off is {item.margin}; check the model's "
            "weights, or load it with dtype=torch.float32"
        )
    counts = answers.groupby(["id", "language", "off", "seed"]).size().unstack(["off", "seed"])
    whole = len(counts) == answers.id.nunique() * answers.language.nunique()
    if not (whole and (counts == 1).all(axis=None)):
        raise ValueError("every question needs one answer in each language with each set of neurons off, and seed")


def effect(wide: pd.DataFrame, off: str) -> dict[str, float]:
    """Means and intervals of one measure with one kind of neurons off.

    Args:
        wide: a row a question, a column a pair (off, seed).
    """
    intact, value = wide[INTACT, -1].to_numpy(), wide[off, -1].to_numpy()
    random = wide[off].drop(columns=-1).mean(axis=1).to_numpy()
    found = {"intact": intact.mean(), "value": value.mean(), "random": random.mean()}
    differences = {"": value - intact, "random_": random - intact, "beyond_": value - random}
    for name, difference in differences.items():
        low, high = mean_interval(difference)
        found |= {name.rstrip("_") if name == "beyond_" else f"{name}change": difference.mean()}
        found |= {f"{name}low": low, f"{name}high": high}
    return found
