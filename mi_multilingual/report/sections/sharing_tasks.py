"""Sections on what languages share, task by task."""

import pandas as pd

from ... import plots
from ...studies.deactivation import TOGETHER
from ..files import (
    SHARING_ACTIVE,
    SHARING_CONTRIBUTIONS,
    SHARING_DEACTIVATION,
    SHARING_DISTANCE,
    SHARING_PAIRS,
    SHARING_TYPES,
    SHARING_WRITTEN,
)
from ..languages import listed
from ..section import Figure, Section
from ..tables import column, interval
from . import deactivation

_OF_TASK = column("task")


def task_findings(table: pd.DataFrame) -> list[str]:
    """In which layers and tasks most neurons are all-shared, by `type_shares` at its lowest threshold."""
    part = table[(table.threshold == table.threshold.min()) & (table.type == "all-shared")]
    most, least = (part.loc[getattr(part["mean"], name)()] for name in ("idxmax", "idxmin"))
    sentences = [
        f"At most {most['mean']:.2%} of a layer's neurons are all-shared ({most.task}, layer {most.layer}; 95 % "
        f"interval {most.low:.2%} to {most.high:.2%}), {most.chance:.2%} would be if languages were independent."
    ]
    if least.high < most.low:
        sentences.append(f"The fewest are {least['mean']:.2%} ({least.task}, layer {least.layer}).")
    return sentences


def answer_findings(table: pd.DataFrame) -> list[str]:
    """Which types cost answers more than as many random neurons, task by task."""
    part = table[(table.language == TOGETHER) & (table.measure == table.measure.iloc[-1])]
    worse = part[part.beyond_high < 0]
    sentences = [
        f"{task}: answers lose more without {listed(list(rows.group))} neurons than without as many random ones."
        for task, rows in worse.groupby("task", sort=False)
    ]
    rest = [task for task in part.task.unique() if task not in set(worse.task)]
    return sentences + ([f"{listed(rest)}: no type does more harm than random neurons for certain."] if rest else [])


def _together(table: pd.DataFrame) -> pd.DataFrame:
    """The rows of all languages together."""
    return table.loc[table.language == TOGETHER]


def distance_findings(table: pd.DataFrame) -> list[str]:
    """Whether overlap falls with distance, by `share_against_distance`."""
    return [
        f"Overlap of active neurons {'falls' if row.rho < 0 else 'rises'} with the distance of {row.distance}: rank "
        f"correlation {row.rho:+.2f} (p = {row.p:.4f} of {row.permutations:,} permutations of the languages)."
        if row.p < 0.05
        else f"Whether overlap depends on {row.distance} is not certain: rank correlation {row.rho:+.2f} "
        f"(p = {row.p:.2f})."
        for row in table.itertuples()
    ]


SECTIONS = (
    Section(
        "sharing-tasks",
        "What languages share, by task",
        (SHARING_TYPES,),
        "At the last token (unless the settings say otherwise) of the same question in several languages. Chance: the "
        "share if languages chose their active neurons independently. For all: neurons that have the type for every "
        "question of the task.",
        (
            _OF_TASK,
            column("threshold", "active above", "{:g}"),
            column("layer"),
            column("type"),
            column("mean", "share of neurons", "{:.2%}"),
            interval("{:.2%}"),
            column("chance", "", "{:.2%}"),
            column("repeated", "for all questions", "{:.2%}"),
            column("n_inputs", "questions"),
        ),
        findings=task_findings,
        folded=True,
        figures=(
            Figure("sharing-tasks-figure", (SHARING_TYPES,), plots.sharing_by_task, "Bands: all questions.", wide=True),
            Figure(
                "sharing-repeated",
                (SHARING_TYPES,),
                plots.repeated_types,
                "Mean over tasks; solid: neurons that have the type for every question.",
                wide=True,
            ),
            Figure(
                "sharing-thresholds",
                (SHARING_TYPES,),
                plots.threshold_grid,
                "The fewer neurons count as active, the fewer are shared.",
                wide=True,
            ),
            Figure("sharing-active", (SHARING_ACTIVE,), plots.active_by_language, "Share of all neurons."),
            Figure(
                "sharing-contributions",
                (SHARING_CONTRIBUTIONS,),
                plots.contributions,
                "Contribution: the size of what a neuron writes. 95 % intervals by bootstrap over questions.",
                wide=True,
            ),
        ),
    ),
    Section(
        "sharing-deactivation",
        "Tasks without each type of neuron",
        (SHARING_DEACTIVATION,),
        "Every question without its own neurons of each type, beside as many random ones per layer; all languages "
        "together. Answers are chosen.",
        (_OF_TASK, *deactivation.COLUMNS),
        build=_together,
        findings=answer_findings,
    ),
    Section(
        "sharing-written",
        "The same with written answers",
        (SHARING_WRITTEN,),
        "The answer is what the model writes up to its first full stop.",
        (_OF_TASK, *deactivation.COLUMNS),
        build=_together,
        findings=answer_findings,
    ),
    Section(
        "sharing-distance",
        "Do related languages share more",
        (SHARING_DISTANCE,),
        "Spearman's rank correlation of overlap and distance over pairs of languages; p by permuting the languages "
        "(two-sided). Interval: the correlation less those of the permutations.",
        (
            column("distance", "distance of"),
            column("rho", "rank correlation", "{:+.3f}"),
            interval("{:+.3f}"),
            column("p", "", "{:.4f}"),
            column("n_pairs", "pairs"),
        ),
        findings=distance_findings,
        figures=(
            Figure(
                "sharing-pairs",
                (SHARING_PAIRS,),
                plots.overlap_against_distance,
                "Each point is two languages at the same sentences.",
            ),
        ),
    ),
)
