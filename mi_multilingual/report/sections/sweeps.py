"""Sections on sweeps."""

import pandas as pd

from ... import plots
from ...display import spoken
from ...patching.conditions import CHOSEN, INTACT, RANDOM
from ...plots.style import CHANGE_UNITS
from ...plots.sweeps import CONDITION_WORDS
from ..files import SWEEP, SWEEP_EFFECTS
from ..measured import apart
from ..section import SIGNED, Figure, Section
from ..tables import SEED, column, interval, language_column, said, seeds_where_random

_PLACES = {"own": "text in the neurons' own language", "no prompt": "text without a prompt"}


def sweep_findings(table: pd.DataFrame) -> list[str]:
    """What the `effects` of a sweep say, measure by measure: the largest change, and how many differ from random
    neurons'."""
    sentences = []
    for evaluation, measure in table[["evaluation", "measure"]].drop_duplicates().itertuples(index=False, name=None):
        part = table[(table.evaluation == evaluation) & (table.measure == measure)]
        here = part[part["where"] != "others"]
        chosen, random = here[here.condition == CHOSEN], here[here.condition == RANDOM]
        both = chosen.merge(random, how="left", on=["setting", "where"], suffixes=("", "_random"))
        if both.empty:
            continue
        others = part[(part["where"] == "others") & (part.condition == CHOSEN)].set_index("setting")["change"]
        name = f"{measure.capitalize()} ({evaluation})"
        best = both.loc[both.change.abs().idxmax()]
        which = f"the largest of {len(both)} changes is" if len(both) > 1 else "the change is"
        sentences.append(f"{name}: {which} {_change_in_words(best, others)}.")
        compared = both[both.change_random.notna()]
        clear = sum(apart(r.low, r.high, r.low_random, r.high_random) for r in compared.itertuples())
        if len(compared):
            sentences.append(
                f"{name}: {clear} of {len(compared)} changes have an interval apart from that of random neurons."
            )
    return sentences


def _change_in_words(best: pd.Series, others: pd.Series) -> str:
    """One change of a sweep beside those of other languages and of random neurons."""
    place = _PLACES.get(best["where"], f"questions without their {best['where']} neurons")
    unit = f" {CHANGE_UNITS[best.measure]}" if best.measure in CHANGE_UNITS else ""
    sentence = f"{best.change:+.4f}{unit} for {place} ({best.setting}"
    sentence += f"; 95 % interval over {best.n} languages {best.low:+.4f} to {best.high:+.4f})" if best.n > 1 else ")"
    if best.setting in others.index:
        sentence += f", {others[best.setting]:+.4f} for other languages"
    if not pd.isna(best.change_random):
        sentence += f", {best.change_random:+.4f} with as many random neurons"
    return sentence


SECTIONS = (
    Section(
        "sweep-effects",
        "Sweep",
        (SWEEP_EFFECTS,),
        "What a setting changes, mean over languages with a 95 % bootstrap interval over them: in text of the language "
        "whose neurons are changed (own), of the others, or without every question's neurons of a type. Random "
        "neurons: as many, drawn in the same layers.",
        (
            column("setting"),
            column("evaluation"),
            column("measure"),
            column("where"),
            column("condition", "changed", words=said(CONDITION_WORDS)),
            column("n", "languages"),
            column("base", "unchanged", "{:.4f}"),
            column("change", "", SIGNED),
            interval(SIGNED),
        ),
        findings=sweep_findings,
        figures=(
            Figure(
                "sweep",
                (SWEEP_EFFECTS,),
                plots.sweep_effects,
                "Where dots of one colour stand apart from its crosses, the neurons that were chosen do what random "
                "ones do not.",
                wide=True,
            ),
        ),
    ),
    Section(
        "sweep-cells",
        "Every cell of the sweep",
        (SWEEP,),
        "One row for each cell, language evaluated and measure; 95 % intervals by bootstrap over rows of text or "
        "questions, of shares by matched pairs. Seed: that of the random neurons.",
        (
            column("model"),
            column("detector", words=spoken),
            column("rate", "", "{:g}"),
            column("site"),
            column("layers"),
            column("part"),
            column("intervention"),
            language_column("group", "neurons of"),
            column("condition", "changed", words=said({**CONDITION_WORDS, INTACT: "nothing"})),
            SEED,
            column("n_neurons", "neurons", "{:,}"),
            column("evaluation"),
            language_column("evaluated", "measured on"),
            column("measure"),
            column("n"),
            column("base", "unchanged", "{:.4f}"),
            column("change", "", SIGNED),
            interval(SIGNED),
        ),
        build=seeds_where_random,
        language="evaluated",
        folded=True,
    ),
)
