"""Sections on open questions: which language they are answered in without the neurons of one, and with them raised."""

import pandas as pd

from ... import plots
from ...evaluation.intervals import wilson_interval
from ...patching.conditions import CHOSEN, INTACT, RANDOM
from ...studies.open_generation import LAYERS, OFF, RAISED, SWITCHED, UNIFORM
from ..files import OPEN_ANSWERS, OPEN_GENERATION
from ..section import Figure, Section
from ..tables import Column, column, interval, language_column, said
from .steering import RAISING_COLUMN

_CHANGES = {"": "as it is", OFF: "off", RAISED: "own raised", SWITCHED: "own off, target raised"}
_CONDITIONS = {INTACT: "as it is", CHOSEN: "language neurons", RANDOM: "random neurons"}
_DRAWN = {"": "–", LAYERS: "by layer", UNIFORM: "from the whole model"}
_SENTENCES = {
    OFF: "Without a language's neurons, {} of the answers to questions in it are in it",
    RAISED: "With a language's own neurons raised, {} of the answers to questions in it are in it",
    SWITCHED: "With those of the question's language off and another's raised, {} of the answers are in the other",
}


def open_findings(table: pd.DataFrame) -> list[str]:
    """What `open_generation_table` says of all languages together, each beside its random control."""
    found = []
    for change, sentence in _SENTENCES.items():
        part = table[(table.change == change) & (table.group != "")]
        part = part[part.group == part.target]
        if set(part.condition) < {CHOSEN, RANDOM}:
            continue
        n = int(part[part.condition == CHOSEN].n.sum())  # several seeds go on from the same questions
        chosen, random = (_share(part[part.condition == condition], n) for condition in (CHOSEN, RANDOM))
        found.append(f"{sentence.format(chosen)}, with as many random ones per layer changed {random}.")
    plain = table[table.change == ""]
    share = _share(plain, int(plain.n.sum()))
    return [f"The model as it is answers in the language asked in {share} of the cases.", *found] if found else []


def _share(rows: pd.DataFrame, n: int) -> str:
    """The share in the target language of all answers, with its interval over `n` questions."""
    share = float((rows.in_target * rows.n).sum() / rows.n.sum())
    low, high = wilson_interval(share, n)
    return f"{share:.0%} ({low:.0%} to {high:.0%} of {n:,})"


def _steered(table: pd.DataFrame) -> pd.DataFrame:
    """The rows that `plots.steering_matrix` shows: questions in the language that is raised, and in others."""
    return table.query("change in (@RAISED, @SWITCHED)")


_LABELS = (
    column("change", words=said(_CHANGES)),
    language_column("group", "neurons of"),
    column("condition", "neurons", words=said(_CONDITIONS)),
    column("drawn", "random neurons drawn", words=said(_DRAWN)),
    language_column("source", "question in"),
    language_column("target", "language wanted"),
)

SECTIONS = (
    Section(
        "open-generation",
        "Open questions",
        (OPEN_GENERATION,),
        "Answers to open questions, or continuations of first words: share in the language wanted with its 95 % Wilson "
        "interval. The language is any that the identifier knows, “unknown”, or “mixed” (more than a third of the "
        "sentences in another). Loss is that of the answers under the model as it is.",
        (
            *_LABELS,
            column("n", "answers", "{:,}"),
            column("in_target", "in the language wanted", "{:.0%}"),
            interval("{:.0%}"),
            column("unknown", "", "{:.0%}"),
            column("mixed", "", "{:.0%}"),
            column("switched", "sentences in another language", "{:.0%}"),
            column("distinct_2", "distinct pairs of words", "{:.0%}"),
            column("nll", "loss, nats per token", "{:.2f}"),
            Column(("nll_low", "nll_high"), "its 95 % interval", "{:.2f} to {:.2f}"),
            column("rating", "rating, 1 to 5", "{:.2f}"),
            RAISING_COLUMN,
            column("strength", "times the mean", "{:g}"),
        ),
        findings=open_findings,
        language="target",
        folded=True,
        figures=(
            Figure(
                "open-off",
                (OPEN_GENERATION,),
                plots.language_off,
                "Share of answers in the language asked. Rows: whose neurons are off.",
                wide=True,
            ),
            Figure(
                "open-raised",
                (OPEN_GENERATION,),
                plots.language_raised,
                "Share of answers in the language asked, with its own neurons raised, and beside it random ones.",
            ),
            Figure(
                "open-switched",
                (OPEN_GENERATION,),
                lambda table: plots.steering_matrix(_steered(table), title="Language answered in with neurons raised"),
                "Questions in the language of the row, its neurons off, those of the column raised.",
            ),
        ),
    ),
    Section(
        "open-answers",
        "Answers to open questions",
        (OPEN_ANSWERS,),
        "Every answer; the language switch of the page shows those in which one language was wanted.",
        (
            *_LABELS,
            column("prompt"),
            column("continuation", "answer"),
            language_column("found", "language found"),
            column("rating", "rating, 1 to 5", "{:.0f}"),
        ),
        language="target",
        folded=True,
    ),
)
