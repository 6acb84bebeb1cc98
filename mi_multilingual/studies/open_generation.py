"""Open questions answered as the model is, without the neurons of a language, and with them raised: LAPE's two tables.

The study returns its single answers; `open_generation_table` sums them up.
"""

from __future__ import annotations

import hashlib
import json
import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import pandas as pd
from tqdm.auto import tqdm

from ..corpora import Corpus
from ..detectors.table import Setting
from ..evaluation.intervals import mean_interval
from ..evaluation.judge import Endpoint, judge
from ..evaluation.open_language import MIXED, UNKNOWN, identify_open
from ..evaluation.prompts import first_words
from ..evaluation.quality import code_switching, continuation_perplexity, distinct_n
from ..evaluation.questions import STOPS, load_questions, open_prompts
from ..evidence.activations import ActivationStats
from ..models.hooked import HookedModel, fingerprint
from ..neurons import NeuronSet
from ..patching.conditions import (
    RANDOM,
    Condition,
    check_seeds,
    condition_of,
    labelled,
    layer_matched_random,
    measured,
    uniform_random,
    with_controls,
)
from .given import Given
from .steering import RAISING, Pairs, Steering, check_steering, continued, intact, steered_pairs
from .steering_tables import loss_interval, prompt_numbers, steering_shares

OFF, RAISED, SWITCHED = "off", "raised", "switched"
"""What is done: neurons of a language off; those of the prompt's language raised; these off and another's raised."""
LAYERS, UNIFORM = "layers", "uniform"
"""How random neurons are drawn: as many per layer, or as many from the whole model."""
_BY = ("change", "group", "drawn", "condition", "source", "target")
_BEST = 5
"""The best rating; the worst is 1."""


@dataclass(frozen=True, eq=False)
class _Task:
    """What is asked of the model under every condition, and what is measured of its answers."""

    prompts: Corpus
    languages: Sequence[str]
    """Those among which sentences are told apart."""
    decoding: Mapping[str, Any]
    endpoint: Endpoint | None


def open_generation_study(
    model: HookedModel,
    prompts: Corpus,
    neurons: NeuronSet,
    stats: ActivationStats,
    *,
    raising: str = "set_to_mean",
    strength: float | Mapping[str, float] = 1.0,
    seeds: Sequence[int] = (0, 1, 2),
    folder: Path | str | None = None,
    endpoint: Endpoint | None = None,
    progress: bool = True,
    **decoding: Any,
) -> pd.DataFrame:
    """Answers to open questions under all conditions of the generation tables of Tang et al. 2024.

    The model answers as it is; with the neurons of each language off; with as many random neurons off as all languages
    have together, drawn from the whole model (the paper's control, 1 % of all) and by layer; with the neurons of the
    prompt's own language raised; and with those off and another language's raised. Beside all but the first stand as
    many random neurons per layer.

    Args:
        prompts: language -> prompts, such as those of `open_prompts`.
        neurons: a group for every language of the prompts.
        stats, raising, strength: as of `steering_matrix`.
        folder: where the answers of every condition are kept as they come: the same call goes on after an interruption.
        endpoint: a judge that rates every answer from 1 to 5; nothing is asked without.
        decoding: options of `generate`; 128 new tokens, a repetition penalty of 1.1 and an end before the next
            question where they are not given.

    Returns:
        one row per answer: source (language of the prompt), target (language wanted), change ("" as it is, "off",
        "raised", "switched"), group (whose neurons are off or raised; "" for none, and for all together), drawn (how
        random neurons were: "layers", "uniform", or ""), condition, seed, n_neurons (off and raised together), raising,
        strength (times the mean, 0 where nothing is raised), prompt, continuation, found (`identify_open`),
        switched (share of sentences not in the main language), distinct_2, nll (nats per token under the model as it
        is), n_tokens, rating (NaN without a judge).

    Raises:
        ValueError: before anything runs: as `steering_matrix`, or a folder that holds answers of another study.

    Source: Tang et al. 2024 (arXiv 2402.16438), sections 4.3 and 4.5.
    """
    how = Steering(stats, raising, strength, source_off=True)
    languages = list(prompts.languages)
    pairs = [(source, target) for source in languages for target in languages]
    check_steering(model, how, neurons.take(languages), pairs)
    check_seeds(seeds)
    asked = {"max_new_tokens": 128, "repetition_penalty": 1.1, "stop": STOPS, **decoding}
    task = _Task(prompts, tuple(dict.fromkeys([*stats.languages, *languages])), asked, endpoint)
    conditions = open_conditions(how, neurons.take(languages), seeds)
    kept = None if folder is None else _checked_folder(Path(folder), _protocol(model, task, how, neurons, seeds))
    parts = []
    for number, (condition, own) in enumerate(tqdm(conditions.items(), "answers", disable=not progress)):
        path = None if kept is None else kept / f"{number:04}.parquet"
        if path is not None and path.exists():
            parts.append(pd.read_parquet(path))
            continue
        parts.append(_answers(model, condition, own, task))
        if path is not None:
            _write(parts[-1], path)
    return pd.concat(parts, ignore_index=True)


def open_conditions(how: Steering, neurons: NeuronSet, seeds: Sequence[int]) -> dict[Condition, Pairs]:
    """Every condition with the pairs of source and target language that are tried under it."""
    languages = neurons.groups
    own = [(k, k) for k in languages]
    others = [(source, target) for source in languages for target in languages if source != target]
    found = dict(intact(own, change="", drawn="", raising=""))
    together = replace(neurons, masks=neurons.union()[None], groups=("",))
    for seed in seeds:
        for drawn, draw in ((UNIFORM, uniform_random), (LAYERS, layer_matched_random)):
            condition = condition_of(RANDOM, draw(together, seed=seed), seed=seed)
            found[labelled(condition, change=OFF, drawn=drawn, raising="")] = own
    for condition in with_controls(neurons, seeds):
        found[labelled(condition, change=OFF, drawn=_drawn(condition), raising="")] = own
    for change, pairs, way in ((RAISED, own, replace(how, source_off=False)), (SWITCHED, others, how)):
        for condition, part in steered_pairs(way, neurons, pairs, seeds).items():
            found[labelled(condition, change=change, drawn=_drawn(condition))] = part
    return found


def _drawn(condition: Condition) -> str:
    return LAYERS if condition.labels["condition"] == RANDOM else ""


def _answers(model: HookedModel, condition: Condition, pairs: Pairs, task: _Task) -> pd.DataFrame:
    """The answers under one condition with all that is measured of them."""

    def written(_: Condition) -> Iterator[dict[str, str]]:
        return continued(model, task.prompts.documents, pairs, task.decoding)

    table = pd.DataFrame(measured(model, [condition], written, progress=False))
    table["strength"] = table.get("strength", 0.0)
    texts, prompts = table.continuation.tolist(), table.prompt.tolist()
    bos = task.decoding.get("bos", "tokenizer")
    scores = continuation_perplexity(model, prompts, texts, bos=bos, progress=False)
    rating: Sequence[float] | pd.Series = [math.nan] * len(table)
    if task.endpoint is not None:
        rating = judge(task.endpoint, prompts, texts, best=_BEST, progress=False).score
    first = ["source", "target", "change", "group", "drawn", "condition", "seed", "n_neurons", "raising", "strength"]
    return table[[*first, "prompt", "continuation"]].assign(
        found=identify_open(texts, task.languages),
        switched=code_switching(texts, task.languages).switched,
        distinct_2=[distinct_n([text], 2) for text in texts],
        nll=scores.nll,
        n_tokens=scores.n_tokens,
        rating=rating,
    )


def _protocol(
    model: HookedModel, task: _Task, how: Steering, neurons: NeuronSet, seeds: Sequence[int]
) -> dict[str, Any]:
    """Everything that the answers depend on, as JSON takes it."""
    digest = hashlib.sha256()
    for tensor in (neurons.masks, how.stats.total, how.stats.active_total, how.stats.active, how.stats.n_tokens):
        digest.update(tensor.contiguous().numpy().tobytes())
    found = {
        "model": fingerprint(model),
        "prompts": task.prompts.fingerprint,
        "neurons and statistics": digest.hexdigest()[:16],
        "groups": neurons.groups,
        "raising": how.raising,
        "strength": how.strength if not isinstance(how.strength, Mapping) else dict(how.strength),
        "seeds": list(seeds),
        "decoding": dict(task.decoding),
        "judge": "" if task.endpoint is None else task.endpoint.model,
    }
    return json.loads(json.dumps(found))


def _checked_folder(folder: Path, protocol: Mapping[str, Any]) -> Path:
    """The folder, made where it is not there.

    Raises:
        ValueError: it holds the answers of another study.
    """
    about = folder / "protocol.json"
    known = json.loads(about.read_text(encoding="utf-8")) if about.exists() else protocol
    if differing := [name for name in protocol if known.get(name) != protocol[name]]:
        raise ValueError(
            f"{folder} holds answers of a study with another {differing[0]} ({known.get(differing[0])!r}, now "
            f"{protocol[differing[0]]!r}); give another folder or delete it"
        )
    folder.mkdir(parents=True, exist_ok=True)
    about.write_text(json.dumps(protocol, ensure_ascii=False, indent=1), encoding="utf-8")
    return folder


def _write(table: pd.DataFrame, path: Path) -> None:
    """Write all of the table or nothing."""
    partial = path.with_suffix(".partial")
    table.to_parquet(partial)
    partial.replace(path)


def open_generation_table(answers: pd.DataFrame) -> pd.DataFrame:
    """Answers of `open_generation_study` summed up; intervals are over prompts, random neurons averaged over seeds.

    Returns:
        one row per change, group, drawn, condition, source and target: these, n, in_target (share in the language
        wanted), low, high (95 % Wilson interval), in_source, elsewhere, raising, strength, unknown, mixed (shares,
        parts of elsewhere), switched, distinct_2 (means over answers), nll (nats per token), nll_low, nll_high, rating
        (mean), rating_low, rating_high (95 % bootstrap intervals over prompts).
    """
    shares = steering_shares(answers, _BY)
    rows = [
        {**dict(zip(_BY, key, strict=True)), **_measures(part)} for key, part in answers.groupby(list(_BY), sort=False)
    ]
    return shares.merge(pd.DataFrame(rows), on=list(_BY), validate="one_to_one")


def _measures(answers: pd.DataFrame) -> dict[str, float]:
    """What is measured of the answers of one group."""
    nll, low, high = loss_interval(answers)
    rated = answers.rating.groupby(prompt_numbers(answers)).mean().dropna().to_numpy(float)
    rating = (rated.mean(), *mean_interval(rated)) if len(rated) else (math.nan,) * 3
    return {
        "strength": answers.strength.iloc[0],
        "unknown": (answers.found == UNKNOWN).mean(),
        "mixed": (answers.found == MIXED).mean(),
        "switched": answers.switched.mean(),
        "distinct_2": answers.distinct_2.mean(),
        **dict(zip(("nll", "nll_low", "nll_high"), (nll, low, high), strict=True)),
        **dict(zip(("rating", "rating_low", "rating_high"), rating, strict=True)),
    }


SETTINGS = {
    "questions": Setting("", "folder of questions such as questions.fr.txt; beginnings of documents where it is empty"),
    "n_questions": Setting(2, "questions per language, the first ones", 1),
    "n_languages": Setting(4, "languages, the first ones that have neurons and questions", 2),
    "max_new_tokens": Setting(16, "longest answer in tokens", 1),
    "raising": Setting("set_to_mean", "how neurons are raised", choices=tuple(RAISING)),
    "strength": Setting(1.0, "times the mean that neurons are raised to"),
}
TABLES = ("open_answers", "open_generation")


def run_open_generation(given: Given) -> dict[str, pd.DataFrame]:
    """The study on its questions, or on beginnings of the text that effects are measured on."""
    how = given.settings
    prompts = _asked(given, how["questions"], how["n_questions"], how["n_languages"])
    answers = open_generation_study(
        given.model,
        prompts,
        given.neurons,
        given.stats,
        raising=how["raising"],
        strength=how["strength"],
        seeds=given.seeds,
        progress=given.progress,
        max_new_tokens=how["max_new_tokens"],
        min_new_tokens=0 if how["questions"] else how["max_new_tokens"] // 2,
        bos=given.reading.bos,
    )
    return dict(zip(TABLES, (answers, open_generation_table(answers)), strict=True))


def _asked(given: Given, folder: str, n_questions: int, n_languages: int) -> Corpus:
    """The prompts of a run."""
    if folder:
        corpus = open_prompts(load_questions(folder))
    else:
        texts = given.evaluate.documents
        corpus = Corpus(
            {k: [first_words(text, k) for text in own] for k, own in texts.items()}, "beginnings of documents"
        )
    sizes = given.neurons.sizes().to_dict()
    languages = [k for k in corpus.languages if sizes.get(k)][:n_languages]
    first = {k: tuple(corpus.documents[k][:n_questions]) for k in languages}
    return Corpus(first, f"{corpus.source}, first {n_questions}")
