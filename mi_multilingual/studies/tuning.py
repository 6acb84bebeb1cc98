"""What a language gains, and what the others lose, when only its neurons are tuned (Zhao et al. 2024; Mondal 2025)."""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from math import inf
from typing import Any

import numpy as np
import pandas as pd
from tqdm.auto import tqdm

from ..corpora import Corpus
from ..evaluation.intervals import resampled
from ..evaluation.perplexity import RowLosses, corpus_losses, corpus_rows
from ..models.hooked import HookedModel
from ..neurons import NeuronSet
from ..patching.conditions import NOT_RANDOM, RANDOM, beside_random, check_groups
from ..tokens import Reading, TokenRows
from ..training import DivergedError, Training
from ..tuning import Tuning, tune, tuned
from .given import Given

FULL = "full"
"""What stands in the column `arm` where all weights are tuned."""
OWN, OTHERS = "own", "others"
"""Of a language that was tuned, its own loss, or the mean loss of the others."""
_FACTORS = (0.1, 1.0, 10.0)
"""Learning rates that every arm chooses among, as multiples of the one given."""
_SET_ASIDE = 5
"""Every such document is kept for that choice."""


@dataclass(frozen=True, eq=False)
class _Arm:
    """One way to tune on a language."""

    labels: Mapping[str, Any]
    neurons: NeuronSet | None
    """None: all weights."""


def tuning_study(
    model: HookedModel,
    corpus: Corpus,
    evaluate: Corpus,
    neurons: NeuronSet,
    *,
    training: Training = Training(),
    seeds: Sequence[int] = (0, 1, 2),
    reading: Reading = Reading(),
    progress: bool = True,
) -> pd.DataFrame:
    """Losses of every language before and after tuning on each language; `tuning_effects` sums them up.

    Each language that has neurons is tuned on by itself: its neurons only, as many random ones per layer, and all
    weights, for equally many steps on the same rows in the same order. Every arm has the learning rate, of
    `training.learning_rate`, a tenth of it and ten times as much, that ends in the lowest loss on every fifth document
    of the language, which is kept out of the training.

    Args:
        corpus: text to tune on.
        evaluate: other text, of all languages that losses are wanted of.
        neurons: a group for every language to tune on.
        seeds: of the random neurons, one draw each.

    Returns:
        one row per row of text under each arm: arm ("chosen", "random" or "full"), group (the language tuned on),
        seed (-1 unless random), n_neurons, n_trained (numbers), learning_rate (chosen), evaluated (language of the
        text), row, before, after (loss, nats, summed over the row's tokens), n_tokens.

    Raises:
        ValueError: neurons of another model, an empty group, a group that is no language of both texts, fewer than five
            documents, seeds that are negative or repeat, parallel training, or text as in `token_rows`.

    Source: Zhao et al. 2024, arXiv:2402.18815; Mondal et al. 2025, arXiv:2503.17456. The arms, and the choice of the
    learning rate, are ours.
    """
    _check(model, corpus, evaluate, neurons, training)
    arms = list(_arms(model, neurons, seeds))
    rows = corpus_rows(model, evaluate, reading, progress=progress)
    before = corpus_losses(model, rows)
    table: list[pd.DataFrame] = []
    for arm in tqdm(arms, desc="tuning study", unit="arm", disable=not progress):
        best = _best(model, arm, corpus.take([arm.labels["group"]]), training, reading)
        with tuned(model, best):
            after = corpus_losses(model, rows)
        how = {"n_trained": best.n_numbers, "learning_rate": best.training.learning_rate}
        table += [_cell({**arm.labels, **how, "evaluated": k}, before[k], after[k]) for k in rows]
    return pd.concat(table, ignore_index=True)


def _check(model: HookedModel, corpus: Corpus, evaluate: Corpus, neurons: NeuronSet, training: Training) -> None:
    check_groups(model, neurons)
    if training.parallel:
        raise ValueError("training must not be parallel where every language is tuned on by itself, got parallel=True")
    for k in neurons.groups:
        if k not in corpus.languages or k not in evaluate.languages:
            raise ValueError(f"every group must be a language of both texts, got {k!r}; leave it out with take(...)")
        if len(corpus.documents[k]) < _SET_ASIDE:
            raise ValueError(
                f"corpus must have at least {_SET_ASIDE} documents of {k!r}, got {len(corpus.documents[k])}; every "
                "fifth is kept to choose the learning rate by"
            )


def _arms(model: HookedModel, neurons: NeuronSet, seeds: Sequence[int]) -> Iterator[_Arm]:
    """Every language's neurons, its random ones, and all weights."""
    sets = beside_random(neurons, seeds)
    n_all = neurons.masks[0].numel()
    for group in neurons.groups:
        for name, seed, drawn in sets:
            n_neurons = int(drawn[group].union().sum())
            yield _Arm({"arm": name, "group": group, "seed": seed, "n_neurons": n_neurons}, drawn[group])
        yield _Arm({"arm": FULL, "group": group, "seed": NOT_RANDOM, "n_neurons": n_all}, None)


def _best(model: HookedModel, arm: _Arm, corpus: Corpus, training: Training, reading: Reading) -> Tuning:
    """The tuning by the learning rate that ends in the lowest loss on the documents set aside."""
    [(language, documents)] = corpus.documents.items()
    aside = Corpus({language: documents[::_SET_ASIDE]}, f"{corpus.source}, set aside")
    seen = Corpus({language: [d for i, d in enumerate(documents) if i % _SET_ASIDE]}, f"{corpus.source}, seen")
    rows = corpus_rows(model, aside, reading, progress=False)
    best, lowest = None, inf
    for factor in _FACTORS:
        how = replace(training, learning_rate=factor * training.learning_rate)
        try:
            found = _tuned_on(model, arm, seen, how, reading)
        except DivergedError:
            continue
        loss = _loss_of(model, found, rows)
        if loss < lowest:
            best, lowest = found, loss
    if best is None:
        raise DivergedError(f"no learning rate left the loss finite; give less than {training.learning_rate:g}")
    return best


def _tuned_on(model: HookedModel, arm: _Arm, corpus: Corpus, training: Training, reading: Reading) -> Tuning:
    sets = () if arm.neurons is None else (arm.neurons,)
    return tune(model, corpus, *sets, training=training, reading=reading, progress=False)


def _loss_of(model: HookedModel, tuning: Tuning, rows: Mapping[str, TokenRows]) -> float:
    with tuned(model, tuning):
        [loss] = corpus_losses(model, rows).values()
    return loss.summary()["nll"]


def _cell(labels: Mapping[str, Any], before: RowLosses, after: RowLosses) -> pd.DataFrame:
    columns = {"before": before.nll.numpy(), "after": after.nll.numpy(), "n_tokens": before.n_tokens.numpy()}
    return pd.DataFrame({**labels, "row": np.arange(len(before.nll)), **columns})


_Drawn = dict[tuple[str, str, str], np.ndarray]
"""(arm, group, evaluated) -> change of the loss in nats per token: measured, then in every bootstrap draw."""


def tuning_effects(rows: pd.DataFrame) -> pd.DataFrame:
    """Change of every language's loss by tuning on each language: means of `tuning_study`, with 95 % intervals.

    Intervals are by a bootstrap over rows of text, the same draws for all arms. Random neurons are averaged over seeds.

    Returns:
        one row per arm, group (language tuned on) and evaluated: n_neurons, n_trained, learning_rate (geometric
        mean over seeds), before, after (nats per token), change, low, high, and beyond, beyond_low, beyond_high: the
        change less that by random neurons (NaN for these).
    """
    drawn, table = _drawn(rows), []
    for cell, part in rows.groupby(["arm", "group", "evaluated"], sort=False):
        arm, group, evaluated = map(str, cell)  # type: ignore[call-overload]
        change = drawn[arm, group, evaluated]
        random = drawn.get((RANDOM, group, evaluated), np.full(1, np.nan))
        beyond = change - random if arm != RANDOM else np.full(1, np.nan)
        total = part[["before", "after"]].sum() / part.n_tokens.sum()
        first = {"arm": arm, "group": group, "evaluated": evaluated}
        sizes = {name: part[name].iloc[0] for name in ("n_neurons", "n_trained")}
        rate = float(np.exp(np.log(part.learning_rate).mean()))
        measured = {
            **interval_of("change", "low", "high", change),
            **interval_of("beyond", "beyond_low", "beyond_high", beyond),
        }
        table.append({**first, **sizes, "learning_rate": rate, **total, **measured})
    return pd.DataFrame(table)


def tuning_summary(rows: pd.DataFrame) -> pd.DataFrame:
    """What tuning does to the language tuned on and to the others, and how that differs from other arms.

    Returns:
        one row per arm, versus ("" for the change itself, else the arm whose change is taken off) and measure
        ("own", or "others": mean over the other languages), means over languages tuned on: change (nats per token),
        low, high (95 % bootstrap interval over rows of text).
    """
    drawn, arms, table = _drawn(rows), list(rows.arm.unique()), []
    for measure in (OWN, OTHERS):
        means = _means(drawn, measure)
        for arm in arms if means else ():
            for versus in ("", *(c for c in arms if c != arm)):
                change = means[arm] - (means[versus] if versus else 0.0)
                first = {"arm": arm, "versus": versus, "measure": measure}
                table.append({**first, **interval_of("change", "low", "high", change)})
    return pd.DataFrame(table, columns=["arm", "versus", "measure", "change", "low", "high"])


def _means(drawn: _Drawn, measure: str) -> dict[str, np.ndarray]:
    """Condition -> mean over the languages tuned on; none where there is no other language."""
    cells: dict[str, list[np.ndarray]] = {}
    for (arm, group, evaluated), change in drawn.items():
        if (group == evaluated) == (measure == OWN):
            cells.setdefault(arm, []).append(change)
    return {arm: np.mean(changes, axis=0) for arm, changes in cells.items()}


def _drawn(rows: pd.DataFrame) -> _Drawn:
    found = {}
    for evaluated, part in rows.groupby("evaluated", sort=False):
        n_rows = part.row.nunique()
        times = np.vstack([np.ones(n_rows), resampled(n_rows, np.random.default_rng(0))])
        for arm, group in part[["arm", "group"]].drop_duplicates().to_numpy().tolist():
            cell = part[(part.arm == arm) & (part.group == group)]
            by_row = cell.assign(change=cell.after - cell.before).groupby("row")[["change", "n_tokens"]].mean()
            found[arm, group, str(evaluated)] = (times @ by_row.change) / (times @ by_row.n_tokens)
    return found


def interval_of(value: str, low: str, high: str, drawn: np.ndarray) -> dict[str, float]:
    """A measured number and its 95 % interval, from it and its bootstrap draws."""
    ends = np.quantile(drawn[1:], [0.025, 0.975]) if len(drawn) > 1 else (np.nan, np.nan)
    return {value: float(drawn[0]), low: float(ends[0]), high: float(ends[1])}


def run(given: Given) -> dict[str, pd.DataFrame]:
    """The study by its name: the language neurons by LAPE of the first languages."""
    asked = given.settings
    training = Training(int(asked["steps"]), float(asked["learning_rate"]), int(asked["batch_rows"]))
    sizes = given.neurons.sizes()
    chosen = [str(k) for k in sizes.index[sizes > 0][: int(asked["languages"])]]
    rows = tuning_study(
        given.model,
        given.identify,
        given.evaluate,
        given.neurons.take(chosen),
        training=training,
        seeds=given.seeds,
        reading=given.reading,
        progress=given.progress,
    )
    return {"tuning_rows": rows, "tuning": tuning_effects(rows), "tuning_summary": tuning_summary(rows)}
