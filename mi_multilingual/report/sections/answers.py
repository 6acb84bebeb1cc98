"""Sections on what the model knows and writes: facts, and continuations of prompts."""

import pandas as pd

from ... import plots
from ...evaluation.intervals import mean_interval
from ..files import CONTINUATIONS, CROSS_FACTS, FACTS
from ..languages import named
from ..section import Figure, Section
from ..tables import column, interval, language_column
from .deactivation import COLUMNS


def fact_findings(table: pd.DataFrame) -> list[str]:
    """What accuracies by language, relation and wording say."""
    by_language = table.groupby("language", sort=False)["accuracy"].mean()
    if len(by_language) < 2:
        return []
    low, high = mean_interval(by_language.to_numpy())
    return [
        f"Facts are answered with an accuracy of {by_language.mean():.2f} on average over languages (95 % interval "
        f"over languages {low:.2f} to {high:.2f}), from {by_language.min():.2f} in {named(str(by_language.idxmin()))} "
        f"to {by_language.max():.2f} in {named(str(by_language.idxmax()))}."
    ]


SECTIONS = (
    Section(
        "facts",
        "Facts",
        (FACTS,),
        "Accuracy with a 95 % Wilson interval over the countries asked.",
        (
            language_column(),
            column("relation"),
            column("wording"),
            column("n", "questions", "{:,}"),
            column("accuracy", "", "{:.2f}"),
            interval("{:.2f}"),
        ),
        findings=fact_findings,
    ),
    Section(
        "cross-facts",
        "Facts across languages",
        (CROSS_FACTS,),
        "Facts asked in one language with the neurons of another switched off; columns as under “Types of neuron "
        "switched off”.",
        COLUMNS,
        folded=True,
        figures=(
            Figure(
                "cross-facts-matrix",
                (CROSS_FACTS,),
                plots.deactivation_matrix,
                "Red: answers in the language of the column lead by less without the neurons of the row.",
                wide=True,
            ),
        ),
    ),
    Section(
        "examples",
        "Continuations",
        (CONTINUATIONS,),
        columns=(
            language_column(),
            column("prompt"),
            column("continuation", "continued by the model"),
            column("without", "without the language's neurons"),
        ),
    ),
)
