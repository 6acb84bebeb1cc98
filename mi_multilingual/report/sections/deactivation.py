"""Sections on answers without the neurons that languages share for the question."""

import pandas as pd

from ... import plots
from ...studies.deactivation import TOGETHER
from ..files import DEACTIVATION
from ..languages import listed, named
from ..section import Figure, Section
from ..tables import Column, column, interval, language_column


def _asked_in(code: str) -> str:
    return "all languages" if code == TOGETHER else named(code)


COLUMNS = (
    language_column("group", "switched off"),
    column("language", "asked in", words=_asked_in),
    column("measure"),
    column("n_items", "questions", "{:,}"),
    column("n_neurons", "neurons", "{:,.0f}"),
    column("intact", "", "{:.3f}"),
    column("value", "without", "{:.3f}"),
    column("change", "", "{:+.3f}"),
    interval("{:+.3f}"),
    column("random_change", "change, random neurons", "{:+.3f}"),
    Column(("beyond_low", "beyond_high"), "beyond random, 95 % interval", "{:+.3f} to {:+.3f}"),
)
"""What a table of `deactivation_effects` shows."""


def deactivation_findings(table: pd.DataFrame) -> list[str]:
    """Which types of neuron cost the answers more than as many random ones, by `deactivation_effects`."""
    part = table[(table.language == TOGETHER) & (table.measure == "margin")]
    worse = part[part.beyond_high < 0].sort_values("change")
    sentences = [
        f"Without its {named(row.group)} neurons ({row.n_neurons:,.0f} per question) the right answer's lead changes "
        f"by {row.change:+.2f} nats (95 % interval {row.low:+.2f} to {row.high:+.2f}), without as many random ones by "
        f"{row.random_change:+.2f}."
        for row in worse.itertuples()
    ]
    rest = [named(group) for group in part.group[~part.group.isin(worse.group)]]
    if rest:
        sentences.append(f"Whether {listed(rest)} neurons do more harm than random ones is not certain.")
    return sentences


SECTIONS = (
    Section(
        "deactivation",
        "Types of neuron switched off",
        (DEACTIVATION,),
        "Each question without its own all-shared, partial-shared, specific or non-activated neurons, beside as many "
        "random ones per layer. Margin: how far the right answer leads the best wrong one, nats. 95 % intervals by "
        "bootstrap over questions.",
        COLUMNS,
        findings=deactivation_findings,
        figures=(
            Figure(
                "deactivation-bars",
                (DEACTIVATION,),
                plots.deactivation_bars,
                "How far the right answer falls back without the neurons of each type.",
                wide=True,
            ),
        ),
    ),
)
