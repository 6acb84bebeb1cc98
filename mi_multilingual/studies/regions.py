"""Where a model understands, reasons and generates, and what breaks when a language's neurons are off there."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from itertools import pairwise
from typing import Any

import numpy as np
import pandas as pd

from ..analysis.layer_languages import layer_languages
from ..corpora import Corpus
from ..detectors.plnd import plnd
from ..detectors.table import Setting
from ..evaluation.intervals import ratio_interval
from ..evaluation.perplexity import corpus_losses, corpus_rows
from ..evaluation.readers import load_facts
from ..evaluation.tasks import Item, parallel_items
from ..evaluation.token_languages import token_languages
from ..evidence.impact import record_impact
from ..evidence.table import reading_for
from ..models.hooked import HookedModel
from ..neurons import PARTS, NeuronSet
from ..patching.changes import check_fits
from ..patching.conditions import (
    CHOSEN,
    INTACT,
    RANDOM,
    Condition,
    beside_random,
    check_seeds,
    condition_of,
    labelled,
    measured,
)
from ..tokens import DOCUMENTS, Reading
from .deactivation import checked_questions, margins
from .given import Given
from .layer_languages import SETTINGS as LENS
from .layer_languages import layer_language_shares, looked_for, openings, pivot_of

REGIONS = ("understanding", "reasoning", "generation")
EVERYWHERE = "all"
"""All regions together."""
FOUND, THIRDS, BY_NUMBER = "found", "thirds", "by number"
"""Where regions come from: the shares, thirds of the layers where one would be empty, numbers of blocks."""
_LABELS = ("condition", "group", "seed", "n_neurons", "structure", "region", "rule")
_BY = ("group", "structure", "region", "rule", "evaluated", "measure")


def regions(shares: pd.DataFrame, *, understanding: int | None = None, generation: int | None = None) -> pd.DataFrame:
    """The blocks in which a model understands, reasons in its pivot language, and generates, for every language.

    The pivot is the language that other languages' prompts are decoded into most in the middle layers. Understanding
    are the blocks before the first after which the prompt's own language has a smaller share than the pivot.
    Generation are the blocks of the longest run up to the last block after each of which the own share is at least the
    pivot's. Reasoning is between. Where one of the three is empty, and for prompts in the pivot, regions are thirds.

    Args:
        shares: of `layer_language_shares`; only the intact model's prompts are looked at.
        understanding, generation: numbers of blocks to take instead (the paper sets 8 and 4 of 32 by hand).

    Returns:
        three rows per language: language, pivot, region, first, end (blocks from `first` to before `end`), rule
        ("found", "thirds" or "by number"), below (the first block after which own < pivot; -1 where there is none),
        back (the first of the final run with own >= pivot; the number of blocks where there is none).

    Raises:
        ValueError: prompts in one language, fewer than three blocks, or numbers that leave a region empty.

    Source: Zhao et al. 2024, arXiv:2402.18815, who set regions by hand; the rule is ours.
    """
    pivot = pivot_of(shares)
    rows = []
    for language in shares.language.unique():
        own, other = (_curve(shares, language, decoded) for decoded in (language, pivot))
        if (n_layers := len(own)) < len(REGIONS):
            raise ValueError(f"a model must have at least {len(REGIONS)} blocks to have regions, got {n_layers}")
        below, back = _crossings(own, other)
        ends, rule = _boundaries(n_layers, below, back, understanding, generation)
        for region, (first, end) in zip(REGIONS, pairwise(ends), strict=True):
            rows.append((language, pivot, region, first, end, rule, below, back))
    return pd.DataFrame(rows, columns=["language", "pivot", "region", "first", "end", "rule", "below", "back"])


def _curve(shares: pd.DataFrame, language: str, decoded: str) -> np.ndarray:
    """The share of a language after each block, at the intact model's prompts in another; 0 where none was decoded."""
    intact = shares.condition == INTACT if "condition" in shares else True
    mine = (shares.language == language) & (shares.decoded == decoded) & (shares.position == "prompt") & intact
    return shares[mine].sort_values("layer").share.fillna(0.0).to_numpy()


def _crossings(own: np.ndarray, pivot: np.ndarray) -> tuple[int, int]:
    """The first block after which own < pivot (-1: none), and the first of the final run with own >= pivot."""
    behind = np.flatnonzero(own < pivot)
    return (int(behind[0]), int(behind[-1]) + 1) if len(behind) else (-1, 0)


def _boundaries(
    n_layers: int, below: int, back: int, understanding: int | None, generation: int | None
) -> tuple[tuple[int, int, int, int], str]:
    """Where the three regions begin and the last ends, and the rule that said so."""
    if (understanding is None) != (generation is None):
        raise ValueError("understanding and generation must be given together or not at all; give both")
    if understanding is not None and generation is not None:
        if min(understanding, generation, n_layers - understanding - generation) < 1:
            raise ValueError(
                f"understanding and generation must leave blocks for reasoning, got {understanding} and {generation} "
                f"of {n_layers} blocks"
            )
        return (0, understanding, n_layers - generation, n_layers), BY_NUMBER
    if 0 < below < back < n_layers:
        return (0, below, back, n_layers), FOUND
    return (0, round(n_layers / 3), round(n_layers * 2 / 3), n_layers), THIRDS


def model_regions(model: HookedModel, corpus: Corpus, *, n_prompts: int = 12) -> pd.DataFrame:
    """`regions` by the first words of a corpus' documents, which also says which tokens are whose."""
    tokens = token_languages(model, corpus)
    outputs = layer_languages(model, openings(corpus, n_prompts), tokens, progress=False)
    return regions(layer_language_shares(outputs))


def region_study(
    model: HookedModel,
    corpus: Corpus,
    neurons: Mapping[str, Sequence[NeuronSet]],
    regions: pd.DataFrame,
    items: Sequence[Item] = (),
    *,
    seeds: Sequence[int] = (0, 1, 2),
    reading: Reading = DOCUMENTS,
    progress: bool = True,
) -> pd.DataFrame:
    """A language's neurons off, one region and one structure after another: its loss and answers, and the pivot's.

    Args:
        corpus: text in every language whose neurons are off, and in the pivot.
        neurons: name of a structure -> its neurons, one set per part, such as {"mlp": [plnd(impact)], "attention":
            [plnd(impact, part=p) for p in "qkv"]}; the groups are languages. Those of `regions` are switched off.
        regions: of the function `regions`.
        items: questions with choices in these languages; none for the loss alone.
        seeds: of as many random neurons per layer and part, one draw each.

    Returns:
        one row per row of text or question (unit) and condition: condition ("intact", "chosen" or "random"), group
        (language whose neurons, or as many random ones, are off), seed, n_neurons, structure, region ("all" for all
        three together; all "" for the intact model), rule (where the region comes from), evaluated (language of the
        text or question), measure ("loss", nats; "margin": log-likelihood of the right choice less that of the
        likeliest wrong one, nats), unit, value (summed over the unit's tokens), weight (tokens; 1 for a question).

    Raises:
        ValueError: before anything runs: no structure, neurons of another model or without the languages, text or
            questions that are not there in a language, seeds that are negative or repeat.

    Source: Zhao et al. 2024, arXiv:2402.18815, section 3.
    """
    languages = _checked_languages(model, neurons, regions, corpus, items, seeds)
    pivot = str(regions["pivot"].iloc[0])
    rows = corpus_rows(model, corpus.take(list(dict.fromkeys([*languages, pivot]))), reading, progress=False)
    asked = {k: [i for i in items if i.language == k] for k in rows} if items else {}
    conditions = [
        condition
        for language in languages
        for structure, sets in neurons.items()
        for condition in _region_conditions(regions[regions.language == language], structure, sets, seeds)
    ]

    def units(condition: Condition) -> Iterator[dict[str, Any]]:
        group = condition.labels["group"]
        wanted = list(dict.fromkeys([group, pivot])) if group else list(rows)
        for language, loss in corpus_losses(model, {k: rows[k] for k in wanted}).items():
            for unit, (value, weight) in enumerate(zip(loss.nll.tolist(), loss.n_tokens.tolist(), strict=True)):
                yield _unit(language, "loss", str(unit), value, weight)
        for language in wanted if asked else ():
            questions = [q for [q] in checked_questions(model, asked[language], reading.bos)]
            for question, value in zip(questions, margins(model, questions), strict=True):
                yield _unit(language, "margin", question.item.id, value, 1)

    intact = labelled(Condition(), structure="", region="", rule="")
    found = measured(model, [intact, *conditions], units, title="regions", progress=progress)
    return pd.DataFrame(found, columns=[*_LABELS, "evaluated", "measure", "unit", "value", "weight"])


def _unit(evaluated: str, measure: str, unit: str, value: float, weight: int) -> dict[str, Any]:
    return {"evaluated": evaluated, "measure": measure, "unit": unit, "value": value, "weight": weight}


def _checked_languages(
    model: HookedModel,
    neurons: Mapping[str, Sequence[NeuronSet]],
    regions: pd.DataFrame,
    corpus: Corpus,
    items: Sequence[Item],
    seeds: Sequence[int],
) -> list[str]:
    """The languages whose neurons are switched off, after all checks."""
    check_seeds(seeds)
    if not neurons or not all(neurons.values()):
        raise ValueError(f"neurons must have at least one set per structure, got {dict(neurons)}; give some")
    for found in (one for sets in neurons.values() for one in sets):
        check_fits(model, found)
    groups = [set(one.groups) for sets in neurons.values() for one in sets]
    languages = [k for k in regions.language.unique() if all(k in g for g in groups)]
    if not languages:
        raise ValueError("neurons must be of languages that regions has, got none of them in every set")
    needed = {*languages, str(regions["pivot"].iloc[0])}
    for name, there in (("text", set(corpus.languages)), ("questions", {i.language for i in items} or needed)):
        if missing := sorted(needed - there):
            raise ValueError(f"{name} must be there in every language and in the pivot, got none in {missing[0]!r}")
    return languages


def _region_conditions(
    regions: pd.DataFrame, structure: str, sets: Sequence[NeuronSet], seeds: Sequence[int]
) -> Iterator[Condition]:
    """One language's neurons of a structure off in every region and in all, each beside its controls."""
    language = str(regions.language.iloc[0])
    spans = {row.region: (row.first, row.end, row.rule) for row in regions.itertuples()}
    spans[EVERYWHERE] = (int(regions["first"].min()), int(regions.end.max()), "")
    for region, (first, end, rule) in spans.items():
        inside = [one[language].in_layers(range(first, end)) for one in sets]
        # A draw of its own per part: q and k columns drawn alike would undo each other's effect.
        drawn = [beside_random(one, seeds, number=PARTS.index(one.part), n_sets=len(PARTS)) for one in inside]
        for parts in zip(*drawn, strict=True):
            conditions = [condition_of(name, part, seed=seed) for name, seed, part in parts]
            n_neurons = sum(c.labels["n_neurons"] for c in conditions)
            together = Condition(conditions[0].labels, tuple(i for c in conditions for i in c.interventions))
            yield labelled(together, n_neurons=n_neurons, structure=structure, region=region, rule=rule)


def region_effects(outputs: pd.DataFrame) -> pd.DataFrame:
    """What a language's neurons in a region are worth, with 95 % intervals: means of `region_study`.

    Intervals are of differences between the same rows of text, or questions, by a bootstrap over them. Random neurons
    are averaged over seeds.

    Returns:
        one row per group, structure, region, language evaluated and measure: group, structure, region, rule,
        evaluated, measure, n (rows or questions), n_neurons, intact and value (with all neurons, and with these off;
        loss per token or margin per question, nats), change, low, high, random (with random neurons off),
        random_change, random_low, random_high, beyond (change less random_change), beyond_low, beyond_high.

    Raises:
        ValueError: a table without rows of the intact model, or without chosen or random ones.
    """
    if missing := {INTACT, CHOSEN, RANDOM} - set(outputs.condition):
        raise ValueError(f"outputs must be of every condition, got none that is {min(missing)!r}; give whole studies")
    intact = dict(iter(outputs[outputs.condition == INTACT].groupby(["evaluated", "measure"])))
    changed = outputs[outputs.condition != INTACT]
    rows = []
    for key, part in changed.groupby(list(_BY), sort=False):
        whole = intact[key[-2:]].set_index("unit")
        wide = part.pivot_table(index="unit", columns="condition", values="value").loc[whole.index]
        n_neurons = part.n_neurons.iloc[0]
        cell = {**dict(zip(_BY, key, strict=True)), "n": len(whole), "n_neurons": n_neurons}
        rows.append({**cell, **_effect(whole.value, wide, whole.weight.to_numpy())})
    return pd.DataFrame(rows)


def _effect(intact: pd.Series, wide: pd.DataFrame, weight: np.ndarray) -> dict[str, float]:
    """Means per token, or per question, and intervals of one cell."""
    levels = {"intact": intact, "value": wide[CHOSEN], "random": wide[RANDOM]}
    found = {name: float(values.sum() / weight.sum()) for name, values in levels.items()}
    differences = {
        "change": (levels["value"] - intact, ""),
        "random_change": (levels["random"] - intact, "random_"),
        "beyond": (levels["value"] - levels["random"], "beyond_"),
    }
    for name, (difference, prefix) in differences.items():
        low, high = ratio_interval(difference.to_numpy(), weight)
        found |= {name: float(difference.sum() / weight.sum()), f"{prefix}low": low, f"{prefix}high": high}
    return found


_NUMBER = "blocks of {}, with the other number given too; by the shares where there is none"
REGION_SETTINGS = {
    **{name: LENS[name] for name in ("prompts", "at", "n_top", "norm", "bar")},
    "understanding": Setting(None, _NUMBER.format("understanding"), 1),
    "generation": Setting(None, _NUMBER.format("generation"), 1),
    "rate": Setting(0.14, "share of a layer's MLP neurons that are important for a document (PLND)", 0.0, 1.0, True),
    "attention_rate": Setting(0.5, "the same, of its columns of W_Q, W_K and W_V", 0.0, 1.0, above=True),
    "documents": Setting(
        12, "documents per language that neurons are found on, and as many that loss is measured on", 1
    ),
    "facts": Setting(12, "questions per language; 0 for the loss alone", 0),
    "languages": Setting(None, "languages whose neurons are off, the first ones; all where no number is given", 1),
}
"""Of the row in `STUDIES`."""


def run(given: Given) -> dict[str, pd.DataFrame]:
    """Tables of the row `regions` in `STUDIES`."""
    asked = given.settings
    prompts, tokens, how = looked_for(given, given.identify)
    shares = layer_language_shares(layer_languages(given.model, prompts, tokens, **how))
    numbers = {k: None if asked[k] is None else int(asked[k]) for k in ("understanding", "generation")}
    found = regions(shares, **numbers)
    evaluated = given.evaluate.first(int(asked["documents"]))
    impact = record_impact(
        given.model,
        given.identify.first(int(asked["documents"])),
        reading=reading_for("impact", given.reading),
        progress=given.progress,
    )
    attention = [plnd(impact, rate=asked["attention_rate"], part=part) for part in ("q", "k", "v")]
    neurons = {"mlp": [plnd(impact, rate=asked["rate"])], "attention": attention}
    chosen = found[found.language.isin(evaluated.languages[: asked["languages"] and int(asked["languages"])])]
    items = _facts(evaluated.languages, int(asked["facts"]))
    outputs = region_study(
        given.model,
        evaluated,
        neurons,
        chosen,
        items,
        seeds=given.seeds,
        reading=given.reading,
        progress=given.progress,
    )
    return {"regions": found, "region_outputs": outputs, "region_effects": region_effects(outputs)}


def _facts(languages: Sequence[str], n: int) -> list[Item]:
    """Questions in all these languages; none where the facts are not there in one."""
    items = [item for item in load_facts(wordings=(0,)) if item.language in languages]
    if not n or {item.language for item in items} != set(languages):
        return []
    by_id = list(parallel_items(items).values())
    some = sorted(np.random.default_rng(0).permutation(len(by_id))[:n])
    return [item for i in some for item in by_id[i].values()]
