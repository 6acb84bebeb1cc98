"""What languages share at the same input, over several tasks: the study of Wang et al. 2024, whole."""

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import pandas as pd
import torch
from jaxtyping import Float
from torch import Tensor

from ..analysis.attribution import attribution_by_input, number_of
from ..analysis.distance import pairs_of, share_against_distance
from ..corpora import Corpus, at_least_two
from ..detectors.table import Setting
from ..evaluation.edits import editing_prompts, load_fact_edits, load_mzsre
from ..evaluation.intervals import mean_intervals
from ..evaluation.readers import XNLI_LANGUAGES, load_facts, load_mpararel, load_xnli
from ..evaluation.tasks import Item, in_every_language, parallel_items
from ..evidence.sharing import (
    TOKENS,
    TYPES,
    activation_chunks,
    categories,
    check_arguments,
    input_ids,
    jaccard_overlaps,
    repeated_share,
    shares_by_chance,
    sharing_categories,
)
from ..languages import LANGUAGES
from ..models.hooked import HookedModel, site_of
from ..tokens import Reading
from .deactivation import deactivation_effects, deactivation_study, written_deactivation_study
from .given import Given

_EMPTY = ("left out", "zero")
"""What a type without neurons counts as in a mean over inputs: nothing, or 0 as in the published figures."""
_THRESHOLDS = (0.0, 0.1, 0.2, 0.3, 0.4, 0.5)


def sharing_study(
    model: HookedModel,
    tasks: Mapping[str, Sequence[Item]],
    *,
    thresholds: Sequence[float] = _THRESHOLDS,
    tokens: str = "last",
    site: str = "post",
    top: int | float = 0.1,
    bos: str = "tokenizer",
    progress: bool = True,
) -> dict[str, pd.DataFrame]:
    """Types of neuron and what they add to the answer, for every question of several tasks.

    Args:
        tasks: name -> questions, every one (id) in the same languages. What follows a prompt, such as choices, plays no
            part; the effective score is of the answer's first token.
        thresholds: a neuron is active above each; contributions and overlaps are by the first of them.
        tokens: at which tokens an activation counts (see `sharing_categories`); contributions are at the last one.
        site: where activity is read, "post" or "gate".
        top: neurons of highest contribution per layer that the types are counted among (see `attribution_by_input`).
        bos: special tokens before every prompt (see `Reading`).

    Returns:
        single outputs by what they are of. "types": task, id, threshold, layer, type, share (of the layer's neurons),
        chance (the share where languages were active independently). "active": task, id, threshold, language, layer,
        share (active in the language). "repeated": task, threshold, layer, type, repeated (share of neurons of the type
        for ALL inputs). "overlaps": task, id, language, other, overlap (Jaccard, of the active neurons).
        "contributions": task, id, and the columns of `attribution_by_input`.

    Raises:
        ValueError: before anything runs: no task, one without questions, questions that are not parallel, fewer than
            two languages, thresholds that are not finite, an unknown word, a `top` above the layer's neurons, or a
            prompt that is empty or too long.

    Source: Wang et al. 2024, arXiv:2406.09265.

    Example:
        >>> import mi_multilingual as mm
        >>> model = mm.load_model("demo")
        >>> facts = [i for i in mm.load_facts(wordings=(0,)) if i.language in ("en", "fr") and i.id.startswith("fr/")]
        >>> tasks = {name: [i for i in facts if i.task == name] for name in ("capital", "language")}
        >>> outputs = mm.sharing_study(model, tasks, thresholds=[0.0], progress=False)
        >>> outputs["types"].groupby(["task", "layer"]).share.sum().round(6).unique().tolist()
        [1.0]
    """
    if not tasks:
        raise ValueError("tasks must hold at least one task, got none")
    number_of(top, model.cfg.d_mlp)
    asked = {task: _prompts_and_answers(task, items) for task, items in tasks.items()}
    reading = Reading(layout="documents", bos=bos)
    for _, prompts, _ in asked.values():
        check_arguments(prompts, thresholds, tokens, None)
        for language in prompts.languages:
            input_ids(model, prompts, language, reading.for_model(model))
    site_of(model, site)
    parts = []
    for ids, prompts, answers in asked.values():
        found = _typed(model, prompts, ids, thresholds, tokens=tokens, site=site, reading=reading, progress=progress)
        options = {"top": top, "threshold": thresholds[0], "site": site, "bos": bos, "progress": progress}
        table = attribution_by_input(model, prompts, answers, **options)
        table.insert(0, "id", [ids[i] for i in table.pop("input")])
        parts.append({**found, "contributions": table})
    return {name: _joined(asked, [part[name] for part in parts]) for name in parts[0]}


def _joined(tasks: Mapping[str, Any], parts: Sequence[pd.DataFrame]) -> pd.DataFrame:
    return pd.concat(parts, keys=tasks, names=["task"]).reset_index("task").reset_index(drop=True)


def _prompts_and_answers(task: str, items: Sequence[Item]) -> tuple[list[str], Corpus, Corpus]:
    """The ids of a task's questions, and its prompts and answers as parallel text."""
    if not items:
        raise ValueError(f"every task must have at least one question, got none for {task!r}; leave it out")
    by_id = parallel_items(items)
    languages = list(next(iter(by_id.values())))
    at_least_two(languages)
    prompts = {k: tuple(same[k].prompt for same in by_id.values()) for k in languages}
    answers = {k: tuple(same[k].answer_text for same in by_id.values()) for k in languages}
    return list(by_id), Corpus(prompts, f"prompts of {task}"), Corpus(answers, f"answers of {task}")


def _typed(
    model: HookedModel,
    prompts: Corpus,
    ids: Sequence[str],
    thresholds: Sequence[float],
    **options: Any,
) -> dict[str, pd.DataFrame]:
    """All tables of `sharing_study` but the contributions, for one task."""
    n_layers, languages = model.cfg.n_layers, prompts.languages
    counts = torch.zeros(len(thresholds), n_layers, model.cfg.d_mlp, len(TYPES), dtype=torch.int32)
    share, chance, active_share, overlap = [], [], [], []
    for _, values in activation_chunks(model, prompts, **options):
        active = torch.stack([values > threshold for threshold in thresholds], dim=2)
        is_type = torch.stack([categories(active) == i for i in range(len(TYPES))], dim=-1)
        counts += is_type.sum(dim=0, dtype=torch.int32)
        share.append(is_type.double().mean(dim=3))
        active_share.append(active.double().mean(dim=4))
        chance.append(shares_by_chance(active_share[-1]))
        overlap.append(jaccard_overlaps(active[:, :, 0]))
    of_input = [("id", ids), ("threshold", [float(h) for h in thresholds])]
    by_type = [("layer", range(n_layers)), ("type", TYPES)]
    in_language = torch.cat(active_share, dim=1).permute(1, 2, 0, 3)
    columns = {"share": torch.cat(share), "chance": torch.cat(chance)}
    return {
        "types": _table([*of_input, *by_type], columns),
        "active": _table([*of_input, ("language", languages), ("layer", range(n_layers))], {"share": in_language}),
        "repeated": _table([of_input[1], *by_type], {"repeated": repeated_share(counts, len(ids))}),
        "overlaps": _pairs(ids, languages, torch.cat(overlap)),
    }


def _table(axes: Sequence[tuple[str, Sequence[Any]]], columns: Mapping[str, Tensor]) -> pd.DataFrame:
    """Numbers as rows, one for each of all their places."""
    index = pd.MultiIndex.from_product([values for _, values in axes], names=[name for name, _ in axes])
    flat = {name: values.double().flatten().numpy() for name, values in columns.items()}
    return pd.DataFrame(flat, index=index).reset_index()


def _pairs(
    ids: Sequence[str], languages: Sequence[str], overlap: Float[Tensor, "input language language"]
) -> pd.DataFrame:
    table = _table([("id", ids), ("language", languages), ("other", languages)], {"overlap": overlap})
    place = {language: i for i, language in enumerate(languages)}
    return table.loc[table.language.map(place) < table.other.map(place)].reset_index(drop=True)


def means_over_inputs(
    outputs: pd.DataFrame, by: Sequence[str], measure: str, *, empty: str = "left out"
) -> pd.DataFrame:
    """Mean of a measure over the questions of each task, with its 95 % bootstrap interval over questions.

    Args:
        outputs: one of the tables of `sharing_study`.
        by: columns beside the task that tell the means apart.
        empty: "left out": questions without neurons of the type do not count; "zero": they count as 0, as published.

    Returns:
        one row per task and combination: task, the columns of `by`, mean, low, high, min, max, n_inputs (that count).

    Raises:
        ValueError: an unknown `empty`.
    """
    if empty not in _EMPTY:
        raise ValueError(f"empty must be one of {', '.join(_EMPTY)}, got {empty!r}")
    parts = []
    for task, part in outputs.groupby("task", sort=False):
        order = part.drop_duplicates([*by])[[*by]]
        place = part.groupby([*by], sort=False).ngroup()
        values = part.assign(place=place).pivot(index="id", columns="place", values=measure).to_numpy(float)
        values = np.nan_to_num(values) if empty == "zero" else values
        there = np.isfinite(values)
        n = there.sum(axis=0)
        total = np.where(there, values, 0.0).sum(axis=0)
        low, high = mean_intervals(values)
        extremes = {
            name: np.where(n, function(np.where(there, values, bad), axis=0), np.nan)
            for name, function, bad in (("min", np.min, np.inf), ("max", np.max, -np.inf))
        }
        mean = np.divide(total, n, out=np.full(len(n), np.nan), where=n > 0)
        parts.append(order.assign(task=task, mean=mean, low=low, high=high, **extremes, n_inputs=n))
    table = pd.concat(parts, ignore_index=True)
    return table.loc[:, ["task", *by, "mean", "low", "high", "min", "max", "n_inputs"]]


def type_shares(outputs: Mapping[str, pd.DataFrame]) -> pd.DataFrame:
    """Share of every layer's neurons of each type, by task and threshold.

    Returns:
        task, threshold, layer, type, mean (over questions), low, high (95 %), min, max, n_inputs, chance (mean share
        where languages were active independently), repeated (share of the type for ALL questions).
    """
    by = ["task", "threshold", "layer", "type"]
    chance = outputs["types"].groupby(by, sort=False).chance.mean().reset_index()
    shares = means_over_inputs(outputs["types"], by[1:], "share")
    return shares.merge(chance, on=by).merge(outputs["repeated"], on=by)


def contribution_table(outputs: Mapping[str, pd.DataFrame], *, empty: str = "left out") -> pd.DataFrame:
    """What the neurons of each type add to the answers, by task, language and layer: means over questions.

    Args:
        empty: as in `means_over_inputs`.

    Returns:
        one row per task, language, layer, type and measure (those of `attribution_by_input`): mean, low, high (95 %),
        min, max, n_inputs.
    """
    table, by = outputs["contributions"], ["language", "layer", "type"]
    measures = [name for name in table.columns if name not in ("task", "id", "n_neurons", *by)]
    parts = [means_over_inputs(table, by, name, empty=empty) for name in measures]
    found = pd.concat(parts, keys=measures, names=["measure"]).reset_index("measure")
    columns = ["task", *by, *[name for name in found.columns if name not in ("task", *by)]]
    return found.loc[:, columns].reset_index(drop=True)


def mean_overlap(outputs: Mapping[str, pd.DataFrame]) -> pd.DataFrame:
    """Languages by languages: mean overlap of their active neurons over the questions of all tasks."""
    table = outputs["overlaps"]
    pairs = table.groupby(["language", "other"], sort=False).overlap.mean()
    names = list(dict.fromkeys([*table.language, *table.other]))
    wide = pairs.unstack().reindex(index=names, columns=names)
    square = wide.fillna(wide.T).to_numpy(copy=True)
    np.fill_diagonal(square, 1.0)
    return pd.DataFrame(square, index=names, columns=names)


SETTINGS = {
    "threshold": Setting(0.0, "a neuron is active above this activation; those up to 0.5 above it are tried, too"),
    "tokens": Setting(
        "last", "at which tokens an activation counts; what is switched off: at the last", choices=TOKENS
    ),
    "site": Setting("post", "where activity is read; what is switched off: at post", choices=("post", "gate")),
    "top": Setting(0.1, "neurons per layer that contribute most: a number, or below 1 a share", 0.0, above=True),
    "empty": Setting("left out", "what a type without neurons counts as in means", choices=_EMPTY),
    "n_languages": Setting(4, "languages that share, the first of the text; overlaps are those of all", 2),
    "n_inputs": Setting(40, "questions per task, and sentences for overlaps", 2),
    "n_choices": Setting(10, "questions that are answered by choice without neurons", 1),
    "n_written": Setting(4, "questions whose answer is written without neurons", 1),
    "xnli": Setting("", "a folder with a local copy of XNLI, as a further task"),
    "mpararel": Setting("", "a folder with mParaRel, as a further task"),
    "mzsre": Setting("", "a file with MzsRE, whose facts prompts change in the place of the demo's"),
}
TABLES = (
    "sharing_types", "sharing_active", "sharing_contributions", "sharing_deactivation", "sharing_written",
    "sharing_pairs", "sharing_distance", "sharing_inputs", "sharing_neurons", "sharing_answers",
)  # fmt: skip


def run(given: Given) -> dict[str, pd.DataFrame]:
    """All tables of the study, by name."""
    how, n = given.settings, int(given.settings["n_inputs"])
    tasks = {name: _first_questions(items, n) for name, items in _tasks(given).items()}
    outputs = sharing_study(
        given.model, tasks, thresholds=[how["threshold"] + h for h in _THRESHOLDS], tokens=how["tokens"],
        site=how["site"], top=how["top"], bos=given.reading.bos, progress=given.progress,
    )  # fmt: skip
    answers, written = _answers(given, tasks)
    tables = (
        type_shares(outputs), means_over_inputs(outputs["active"], ["threshold", "language", "layer"], "share"),
        contribution_table(outputs, empty=how["empty"]), _effects(answers), _effects(written), *_related(given),
        outputs["types"], outputs["contributions"], answers,
    )  # fmt: skip
    return dict(zip(TABLES, tables, strict=True))


def _related(given: Given) -> tuple[pd.DataFrame, pd.DataFrame]:
    """Overlap and distance of every two languages of the text, and how the two are correlated."""
    how, n = given.settings, int(given.settings["n_inputs"])
    known = {k: texts[:n] for k, texts in given.evaluate.documents.items() if k in LANGUAGES}
    if len(known) < 3:
        return _NO_PAIRS, _NO_CORRELATION
    overlap = sharing_categories(
        given.model, Corpus(known, f"{given.evaluate.source}, first {n}"), thresholds=[how["threshold"]],
        reading=Reading(layout="documents", bos=given.reading.bos), tokens=how["tokens"], site=how["site"],
        progress=given.progress,
    ).overlap()  # fmt: skip
    overlap = overlap.loc[list(known), list(known)]
    return pairs_of(overlap), share_against_distance(overlap)


_NO_PAIRS = pd.DataFrame(columns=["language", "other", "overlap", "family", "script"])
_NO_CORRELATION = pd.DataFrame(columns=["distance", "rho", "low", "high", "p", "n_pairs", "permutations"])


def _tasks(given: Given) -> dict[str, list[Item]]:
    """The demo's facts by relation, facts that prompts change, and the task sets that are there.

    Each is in those of the first languages of the text that it has, and left out where it has fewer than two. Prompts
    change facts from English to all, and from all to it; where the text has no English, from and to its first language.
    """
    languages = given.evaluate.languages[: int(given.settings["n_languages"])]
    facts = [item for item in load_facts(wordings=(0,)) if item.language in languages]
    known = [k for k in languages if k in {item.language for item in facts}]
    tasks: dict[str, list[Item]] = {}
    for item in facts if len(known) > 1 else ():
        tasks.setdefault(f"facts: {item.task}", []).append(item)
    mzsre = given.settings["mzsre"]
    edited = languages if mzsre else known
    if len(edited) > 1:
        records = load_mzsre(mzsre, languages=edited) if mzsre else load_fact_edits(languages=edited)
        for item in editing_prompts(records, pivot="en" if "en" in edited else edited[0]):
            tasks.setdefault(item.task, []).append(item)
    inferred = [k for k in languages if k in XNLI_LANGUAGES]
    if given.settings["xnli"] and len(inferred) > 1:
        tasks["XNLI"] = load_xnli(given.settings["xnli"], languages=inferred, split="test")
    if given.settings["mpararel"]:
        tasks["mParaRel"] = in_every_language(load_mpararel(given.settings["mpararel"], languages=languages)[0])
    return tasks


def _first_questions(items: Sequence[Item], n: int) -> list[Item]:
    """The first `n` questions in all their languages."""
    kept = set(list(dict.fromkeys(item.id for item in items))[:n])
    return [item for item in items if item.id in kept]


def _answers(given: Given, tasks: Mapping[str, Sequence[Item]]) -> tuple[pd.DataFrame, pd.DataFrame]:
    """Answers without neurons of each type, of every task: by choice, and written."""
    options = {"threshold": given.settings["threshold"], "seeds": given.seeds, "bos": given.reading.bos}
    chosen, written = {}, {}
    for name, items in tasks.items():
        few, fewer = (_first_questions(items, int(given.settings[key])) for key in ("n_choices", "n_written"))
        if all(len(item.choices) > 1 for item in few):
            chosen[name] = deactivation_study(given.model, few, progress=given.progress, **options)
        written[name] = written_deactivation_study(
            given.model,
            fewer,
            extract=first_sentence,
            progress=given.progress,
            max_new_tokens=12,
            stop=["\n"],
            **options,
        )
    return _joined_answers(chosen), _joined_answers(written)


def _joined_answers(answers: Mapping[str, pd.DataFrame]) -> pd.DataFrame:
    """Tables of answers under the name of their task."""
    return pd.concat([table.assign(task=name) for name, table in answers.items()], ignore_index=True)


def first_sentence(text: str) -> str:
    """A written answer up to its first full stop."""
    for stop in (".", "。", "\n"):
        text = text.strip().partition(stop)[0]
    return text.strip()


def _effects(answers: pd.DataFrame) -> pd.DataFrame:
    """`deactivation_effects` of every task."""
    parts = [deactivation_effects(part).assign(task=task) for task, part in answers.groupby("task", sort=False)]
    return pd.concat(parts, ignore_index=True)
