"""Ways to choose language neurons, by what switching them off does to every language (Tang et al. 2024, whole)."""

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import numpy as np
import pandas as pd
import torch

from ..corpora import Corpus
from ..detectors.lap import lap, lap_scores
from ..detectors.lape import lape, lape_scores
from ..detectors.lave import lave
from ..detectors.parameter_variation import parameter_variation
from ..evaluation.intervals import resampled
from ..evaluation.perplexity import RowLosses, corpus_losses, corpus_rows
from ..evidence.activations import ActivationStats
from ..evidence.weight_change import WeightChange, record_tuned_change
from ..models.hooked import HookedModel
from ..neurons import NeuronScores, NeuronSet
from ..patching.changes import check_fits
from ..patching.conditions import (
    CHOSEN,
    INTACT,
    RANDOM,
    Condition,
    check_seeds,
    condition_of,
    labelled,
    measured,
    uniform_random,
    with_controls,
)
from ..tokens import Reading, TokenRows
from ..training import Training
from .given import Given

UNIFORM, MATCHED = "uniform random", "layer-matched random"
TOGETHER = ""
"""Stands for all groups together in the column `group` of a curve."""
_CELL = ["method", "condition", "group", "seed", "n_neurons"]
_LOSSES = ["row", "nll", "n_tokens"]


def tang_methods(
    stats: ActivationStats,
    *,
    tuned: WeightChange | None = None,
    rate: float = 0.01,
    filter_rate: float = 0.95,
    activation_bar_ratio: float = 0.95,
    threshold: float = 0.95,
) -> dict[str, NeuronSet]:
    """The neurons of LAPE and of the methods that the paper compares it with.

    Args:
        tuned: the change of weights by tuning on each language, for parameter variation; left out where there is none.
        rate, filter_rate, activation_bar_ratio: of LAPE, and of what chooses as it does.
        threshold: the activation probability that LAP asks for.

    Returns:
        "lape"; "lap"; "lap, as many": the neurons most often active, as many per language as LAPE gives it; "lave", on
        means clipped at 0; "lave, absolute", on sizes of means; "parameter_variation" where `tuned` is given.

    Raises:
        ValueError: as `lape` and `lap`.

    Source: Tang et al. 2024, arXiv:2402.16438, section 3.
    """
    how = {"rate": rate, "filter_rate": filter_rate, "activation_bar_ratio": activation_bar_ratio}
    chosen = lape(stats, **how)
    found = {
        "lape": chosen,
        "lap": lap(stats, threshold=threshold),
        "lap, as many": as_many(lap_scores(stats), chosen),
        "lave": lave(stats, **how),
        "lave, absolute": lave(stats, **how, means="absolute"),
    }
    return found if tuned is None else {**found, "parameter_variation": parameter_variation(tuned, **how)}


def as_many(scores: NeuronScores, neurons: NeuronSet) -> NeuronSet:
    """Of every group, as many neurons of highest score as another set gives it.

    Raises:
        ValueError: groups that are not the languages of the scores, in their order.
    """
    if scores.languages != neurons.groups:
        raise ValueError(f"neurons must have the groups {scores.languages}, got {neurons.groups}; take(...) them")
    masks = torch.zeros_like(neurons.masks)
    for k, n in enumerate(neurons.sizes()):
        if n:
            masks[k] = scores.top(int(n)).masks[k]
    return scores.to_set(masks, sizes=neurons.method)


def ablation_study(
    model: HookedModel,
    corpus: Corpus,
    methods: Mapping[str, NeuronSet],
    *,
    seeds: Sequence[int] = (0, 1, 2),
    reading: Reading = Reading(),
    progress: bool = True,
) -> pd.DataFrame:
    """Losses of every language under the neurons of several methods, switched off group by group.

    Beside the first method stand as many random neurons per group, drawn from the whole model (the paper's control)
    and per layer, both measured in all languages; beside the others as many per layer, in the group's language only.

    Args:
        methods: name -> its neurons, all with the same groups; an empty group changes nothing.

    Returns:
        one row per row of text under each: method ("" for the intact model; "uniform random" where neurons are drawn
        from the whole model), condition ("intact", "chosen" or "random": as many random ones as the method has),
        group, seed, n_neurons (off), evaluated (language of the text), row (its number), nll (summed over the row's
        tokens, nats), n_tokens.

    Raises:
        ValueError: before anything runs: no methods, one that is called as the controls are, neurons of another model
            or with other groups, seeds that are missing, negative or repeat; text as in `token_rows`.

    Source: Tang et al. 2024, arXiv:2402.16438, section 4.
    """
    _check_methods(model, methods)
    _check_some(seeds)
    rows = corpus_rows(model, corpus, reading, progress=progress)
    return _losses(model, rows, list(_conditions(methods, seeds, list(rows))), progress)


def _check_methods(model: HookedModel, methods: Mapping[str, NeuronSet]) -> None:
    if not methods:
        raise ValueError("methods must name at least one set of neurons, got none; give tang_methods(stats)")
    groups = next(iter(methods.values())).groups
    for name, neurons in methods.items():
        if name in (UNIFORM, MATCHED, ""):
            raise ValueError(f"a method must not be called as a control is, got {name!r}; choose another name")
        if neurons.groups != groups:
            raise ValueError(f"all methods must have the groups {groups}, {name!r} has {neurons.groups}")
        check_fits(model, neurons)


def _check_some(seeds: Sequence[int]) -> None:
    check_seeds(seeds)
    if not seeds:
        raise ValueError("seeds must hold at least one number, got none; random neurons are the control")


def _conditions(
    methods: Mapping[str, NeuronSet], seeds: Sequence[int], languages: Sequence[str]
) -> Iterator[Condition]:
    """The intact model, every method's groups off, and their controls, each with the languages it is measured in."""
    yield labelled(Condition(), method="", measured=languages)
    for i, (name, neurons) in enumerate(methods.items()):
        for condition in with_controls(neurons, seeds):
            own = i > 0 and condition.labels["condition"] == RANDOM
            where = [k for k in languages if k == condition.labels["group"]] if own else languages
            yield labelled(condition, method=name, measured=where)
    first = next(iter(methods.values()))
    for seed in seeds:
        drawn = uniform_random(first, seed=seed)
        for group in drawn:
            yield labelled(condition_of(RANDOM, drawn[group], seed=seed), method=UNIFORM, measured=languages)


def _losses(
    model: HookedModel, rows: Mapping[str, TokenRows], conditions: Sequence[Condition], progress: bool
) -> pd.DataFrame:
    """The loss of every row of text under each condition, in the languages that its label `measured` names."""
    intact = corpus_losses(model, rows)

    def found(condition: Condition) -> Iterator[dict[str, Any]]:
        where = condition.labels["measured"]
        changed = bool(condition.interventions and where)
        losses = corpus_losses(model, {k: rows[k] for k in where}) if changed else intact
        for k in where:
            yield {"evaluated": k, **_columns(losses[k])}

    table = pd.DataFrame(measured(model, conditions, found, title="switching off", progress=progress))
    exploded = table.drop(columns="measured").explode(_LOSSES, ignore_index=True)
    return exploded.astype({"row": int, "nll": float, "n_tokens": int})


def _columns(loss: RowLosses) -> dict[str, np.ndarray]:
    return {"row": np.arange(len(loss.nll)), "nll": loss.nll.numpy(), "n_tokens": loss.n_tokens.numpy()}


def ablation_curve(
    model: HookedModel,
    corpus: Corpus,
    scores: NeuronScores,
    sizes: Sequence[int],
    *,
    seeds: Sequence[int] = (0, 1, 2),
    reading: Reading = Reading(),
    progress: bool = True,
) -> pd.DataFrame:
    """Losses of every language with more and more of its own neurons off, best first; `curve_table` sums them up.

    Args:
        scores: how neurons are ranked, such as `lape_scores`; languages that the corpus does not have are left out.
        sizes: numbers of neurons per language. A language with fewer neurons that have a score loses all of them.

    Returns:
        as `ablation_study`, with the size in the column n, the name of the scores in `method`, and random neurons per
        layer beside every size.

    Raises:
        ValueError: before anything runs: no sizes or such that the model does not have, no language in common, or
            seeds as in `ablation_study`.
    """
    _check_some(seeds)
    if not sizes:
        raise ValueError("sizes must hold at least one number of neurons, got none")
    sets = {n: scores.top(n) for n in sizes}
    check_fits(model, sets[sizes[0]])
    own = [k for k in corpus.languages if k in scores.languages]
    if not own:
        raise ValueError(f"corpus must have a language of the scores, {', '.join(scores.languages)}, got none")
    conditions = [labelled(Condition(), method="", n=0, measured=own)]
    for n, neurons in sets.items():
        for condition in with_controls(neurons, seeds, groups=own):
            group = condition.labels["group"]
            conditions.append(labelled(condition, method=scores.method, n=n, measured=[group]))
    rows = corpus_rows(model, corpus.take(own), reading, progress=progress)
    return _losses(model, rows, conditions, progress)


def ablation_matrix(outputs: pd.DataFrame) -> pd.DataFrame:
    """Every cell of `ablation_study`: what a method's neurons of one language are worth to another.

    Returns:
        one row per method, condition, group, seed and language of the text: method, condition, group, seed, n_neurons,
        evaluated, nll (nats per token), ppl, change (of nll against the intact model), low, high, ppl_change, ppl_low,
        ppl_high (95 % bootstrap intervals over rows of text).
    """
    loss, change, ppl = _drawn(outputs, _CELL)
    table = loss.index.to_frame(index=False)
    table = table.assign(nll=loss.to_numpy()[:, 0], ppl=np.exp(loss.to_numpy()[:, 0]))
    for name, part in (("", change), ("ppl_", ppl)):
        low, high = np.quantile(part[:, 1:], [0.025, 0.975], axis=1)
        table = table.assign(**{f"{name}change": part[:, 0], f"{name}low": low, f"{name}high": high})
    return table


def _drawn(outputs: pd.DataFrame, by: list[str]) -> tuple[pd.DataFrame, np.ndarray, np.ndarray]:
    """Loss per token of every cell, and its changes in nats and in perplexity; first as it is, then in 1000 draws.

    All cells of one language draw the same rows of text, so that differences of draws are paired.
    """
    parts, changes, ppls = [], [], []
    for seed, (language, part) in enumerate(outputs.groupby("evaluated", sort=False)):
        wide = part.pivot(index="row", columns=by, values="nll")
        n_tokens = part[part.condition == INTACT].set_index("row").n_tokens.to_numpy(dtype=float)
        if len(n_tokens) != len(wide) or wide.isna().any(axis=None):
            raise ValueError(
                f"every row of text in {language!r} must be there under all conditions; give whole studies"
            )
        times = np.vstack([np.ones(len(wide)), resampled(len(wide), np.random.default_rng(seed))])
        times[times @ n_tokens == 0] = 1
        loss = (times @ wide.to_numpy() / (times @ n_tokens)[:, None]).T
        intact = loss[(wide.columns.get_level_values("condition") == INTACT).argmax()]
        parts.append(
            pd.DataFrame(loss, index=wide.columns).assign(evaluated=language).set_index("evaluated", append=True)
        )
        changes.append(loss - intact)
        ppls.append(np.exp(loss) - np.exp(intact))
    return pd.concat(parts), np.concatenate(changes), np.concatenate(ppls)


def ablation_comparison(outputs: pd.DataFrame) -> pd.DataFrame:
    """The methods side by side: means of `ablation_study` over languages, in nats per token.

    Random neurons are averaged over seeds.

    Returns:
        one row per method (also "layer-matched random": the first method's control, and "uniform random") and measure:
        method, measure, n_neurons (mean per group), value, low, high (95 % bootstrap interval over rows of text).
        Measures are "own" (change of a language's loss without its own neurons), "others" (without the neurons of
        another), "dominance" (own less others), "beyond random" (own less that of as many random neurons per layer),
        "dominance beyond random" (of the first method), "less than the first" (the first method's own less this one's),
        "dominance less than the first" (the same of dominance).

    Raises:
        ValueError: no group that is a language of the text, or rows that are missing.
    """
    loss, change, _ = _drawn(outputs, _CELL)
    cells = loss.index.to_frame(index=False)
    if not (cells.group == cells.evaluated).any():
        raise ValueError("neurons must be of languages of the text, got none that are; use ablation_matrix")
    first = cells.method[cells.condition == CHOSEN].iloc[0]
    effects = {name: _own_and_others(cells, change, *key) for name, key in _keys(cells, first).items()}
    rows = []
    for name, found in effects.items():
        control = None if name in (UNIFORM, MATCHED) else _own_and_others(cells, change, name, RANDOM)
        for measure, draws in _compared(found, control, None if name == first else effects[first]).items():
            low, high = np.quantile(draws[1:], [0.025, 0.975])
            interval = {"value": draws[0], "low": low, "high": high}
            rows.append({"method": name, "measure": measure, "n_neurons": found["n_neurons"], **interval})
    return pd.DataFrame(rows)


def _compared(
    found: Mapping[str, Any], control: Mapping[str, Any] | None, first: Mapping[str, Any] | None
) -> dict[str, np.ndarray]:
    """The measures of one method in every draw, as far as there is what they are held against.

    Args:
        control: the effects of as many random neurons per layer.
        first: the effects of the first method, for the others.
    """
    measures = {"own": found["own"]}
    if found["others"] is not None:
        measures |= {"others": found["others"], "dominance": found["own"] - found["others"]}
    if control is not None:
        measures["beyond random"] = found["own"] - control["own"]
        if control["others"] is not None:
            measures["dominance beyond random"] = measures["dominance"] - control["own"] + control["others"]
    if first is not None:
        measures["less than the first"] = first["own"] - found["own"]
        if "dominance" in measures and first["others"] is not None:
            measures["dominance less than the first"] = first["own"] - first["others"] - measures["dominance"]
    return measures


def _keys(cells: pd.DataFrame, first: str) -> dict[str, tuple[str, str]]:
    """What a comparison calls methods and controls -> their method and condition in the outputs."""
    chosen = {name: (name, CHOSEN) for name in cells.method[cells.condition == CHOSEN].unique()}
    return {**chosen, MATCHED: (first, RANDOM), UNIFORM: (UNIFORM, RANDOM)}


def _own_and_others(cells: pd.DataFrame, change: np.ndarray, method: str, condition: str) -> dict[str, Any]:
    """Mean changes on the diagonal and beside it, in every draw; None beside it where nothing was measured there."""
    mine = (cells.method == method) & (cells.condition == condition)
    own, others = mine & (cells.group == cells.evaluated), mine & (cells.group != cells.evaluated)
    return {
        "own": change[own].mean(axis=0),
        "others": change[others].mean(axis=0) if others.any() else None,
        "n_neurons": cells.n_neurons[own].mean(),
    }


def curve_table(outputs: pd.DataFrame) -> pd.DataFrame:
    """The curve of `ablation_curve`: change of a language's loss against the number of its neurons that are off.

    Returns:
        one row per size, condition ("chosen" or "random", averaged over seeds) and group ("" for the mean over all):
        method, n, condition, group, n_neurons (mean), change (nats per token), low, high (95 % bootstrap interval
        over rows of text).
    """
    loss, change, _ = _drawn(outputs, ["method", "n", *_CELL[1:]])
    cells = loss.index.to_frame(index=False)
    rows = []
    for key, part in cells[cells.condition != INTACT].groupby(["method", "n", "condition"], sort=False):
        for group in [TOGETHER, *part.group.unique()]:
            mine = part if group == TOGETHER else part[part.group == group]
            draws = change[mine.index].mean(axis=0)
            low, high = np.quantile(draws[1:], [0.025, 0.975])
            named = dict(zip(("method", "n", "condition"), key, strict=True))
            rows.append({**named, "group": group, "n_neurons": mine.n_neurons.mean(), "change": draws[0]})
            rows[-1] |= {"low": low, "high": high}
    return pd.DataFrame(rows)


def run(given: Given) -> dict[str, pd.DataFrame]:
    """All tables of the row `lape_tables` of `STUDIES`."""
    settings, stats = given.settings, given.stats
    languages = given.evaluate.languages[: settings["languages"]]
    documents = {k: given.evaluate.documents[k][: settings["documents"]] for k in languages}
    corpus, asked = Corpus(documents, given.evaluate.source), {"reading": given.reading, "seeds": given.seeds}
    tuned = None
    if settings["tuned_steps"]:
        how = {"reading": given.reading, "training": Training(steps=int(settings["tuned_steps"]))}
        tuned = record_tuned_change(given.model, given.identify, **how, progress=given.progress)
    methods = tang_methods(stats, tuned=tuned, **{"threshold": settings["threshold"], **given.lape})
    methods = {name: neurons.take(languages) for name, neurons in methods.items()}
    outputs = ablation_study(given.model, corpus, methods, **asked, progress=given.progress)
    bars = {name: value for name, value in given.lape.items() if name != "rate"}
    largest = settings["largest"] * stats.active[..., 0].numel()
    sizes = sorted({max(1, round(largest / 2**i)) for i in range(settings["points"])})
    scores = lape_scores(stats, **bars)
    curve = ablation_curve(given.model, corpus, scores, sizes, **asked, progress=given.progress)
    return {
        "ablation_outputs": outputs,
        "ablation_matrix": ablation_matrix(outputs),
        "ablation_comparison": ablation_comparison(outputs),
        "ablation_curve": curve_table(curve),
    }
