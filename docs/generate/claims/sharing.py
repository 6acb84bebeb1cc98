"""Claims on neurons that languages share."""

from collections.abc import Mapping

import numpy as np
import pandas as pd

from mi_multilingual.evaluation.intervals import mean_interval
from mi_multilingual.patching.conditions import CHOSEN, RANDOM

from .claim import Claim, Effect

_WANG = "Wang et al. 2024, arXiv:2406.09265"
_SHUFFLES = 1000
_Tables = Mapping[str, pd.DataFrame]


def _mean(values: pd.Series, control: str) -> Effect:
    low, high = mean_interval(values.to_numpy(float))
    return Effect(float(values.mean()), low, high, control)


def _harm(tables: _Tables) -> Effect:
    """Margin lost beyond random neurons without all-shared neurons, less that of the most harmful other type."""
    answers = tables["sharing_answers"]
    question = ["task", "id"]
    chosen = answers[answers.condition == CHOSEN].groupby([*question, "group"]).margin.mean()
    random = answers[answers.condition == RANDOM].groupby([*question, "group"]).margin.mean()
    beyond = (chosen - random).unstack("group")
    others = beyond.drop(columns="all-shared")
    worst = others.mean().idxmin()
    return _mean(beyond["all-shared"] - others[worst], f"{worst} neurons, each beside as many random ones per layer")


def _by_question(tables: _Tables) -> pd.DataFrame:
    """Share of all neurons that is all-shared: one row per task and question, one column per threshold."""
    table = tables["sharing_inputs"]
    part = table[table.type == "all-shared"]
    return part.groupby(["task", "id", "threshold"]).share.mean().unstack("threshold")


def _task_gap(tables: _Tables) -> Effect:
    """Difference of the tasks with the largest and the smallest share, less that of shuffled questions."""
    share = _by_question(tables).iloc[:, 0]
    tasks, values = share.index.get_level_values("task").to_numpy(), share.to_numpy()

    def gap(labels: np.ndarray) -> float:
        means = [values[labels == task].mean() for task in np.unique(tasks)]
        return max(means) - min(means)

    random = np.random.default_rng(0)
    shuffled = np.array([gap(random.permutation(tasks)) for _ in range(_SHUFFLES)])
    found = gap(tasks)
    low, high = found - np.quantile(shuffled, [0.975, 0.025])
    return Effect(float(found - shuffled.mean()), float(low), float(high), "the same questions shuffled over the tasks")


def _threshold(tables: _Tables) -> Effect:
    """Share above the highest threshold less that above the lowest, for the same questions."""
    share = _by_question(tables)
    return _mean(share.iloc[:, -1] - share.iloc[:, 0], "the same questions at the lowest threshold")


def _contribution(tables: _Tables) -> Effect:
    """Mean contribution of all-shared neurons over that of all neurons of the layer, less 1, mean per question."""
    table, by = tables["sharing_neurons"], ["task", "id", "language", "layer"]
    whole = table.groupby(by)[["contribution_sum", "n_neurons"]].sum()
    shared = table[(table.type == "all-shared") & (table.n_neurons > 0)].set_index(by).contribution_mean
    ratio = shared / (whole.contribution_sum / whole.n_neurons).reindex(shared.index) - 1
    ratio = ratio[np.isfinite(ratio)]
    return _mean(ratio.groupby(["task", "id"]).mean(), "the average neuron of the same layer")


def _distance(tables: _Tables) -> Effect:
    """Rank correlation of overlap and family distance, less those with languages permuted."""
    table = tables["sharing_distance"]
    rows = table[table.distance == "family"]
    control = "the languages permuted"
    if rows.empty:
        return Effect(np.nan, np.nan, np.nan, control)
    row = rows.iloc[0]
    return Effect(float(row.rho), float(row.low), float(row.high), control)


CLAIMS = (
    Claim(
        _WANG,
        "Switching off a question's all-shared neurons hurts answers most of all types.",
        "in words: accuracy falls most without all-shared neurons, in every task and model",
        "sharing",
        _harm,
        "nats of the right answer's lead",
        -1,
        0.1,
    ),
    Claim(
        _WANG,
        "How many neurons are all-shared depends on the task.",
        "in words: the shares differ from task to task",
        "sharing",
        _task_gap,
        "share of neurons",
        1,
        0.0005,
    ),
    Claim(
        _WANG,
        "With a higher threshold of activity fewer neurons are all-shared.",
        "in words, for thresholds from 0 to 0.5; it follows from the definition that there cannot be more",
        "sharing",
        _threshold,
        "share of neurons",
        -1,
        0.0001,
    ),
    Claim(
        _WANG,
        "All-shared neurons contribute more than others.",
        "in words: they stand out among the 800 of each layer that contribute most",
        "sharing",
        _contribution,
        "times the average neuron's contribution, less 1",
        1,
        0.1,
    ),
    Claim(
        _WANG,
        "Closely related languages share more neurons than distant ones.",
        "in words, without a figure",
        "sharing",
        _distance,
        "rank correlation of overlap and family distance",
        -1,
        0.05,
    ),
)
