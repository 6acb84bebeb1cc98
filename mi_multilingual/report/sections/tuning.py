"""Sections on tuning: chosen neurons against random ones and all weights, and alignment on parallel text."""

import pandas as pd

from ... import plots
from ...studies.alignment_tuning import ALIGNED
from ...studies.tuning import FULL, OTHERS, OWN
from ..files import ALIGNMENT_TUNING, TUNING, TUNING_SUMMARY
from ..section import SIGNED, Figure, Section
from ..tables import Column, column, interval, language_column, said

_ARMS = {"chosen": "its neurons", "random": "random neurons", FULL: "all weights"}
_TEXTS = {"aligned": "same documents at every step", "mixed": "same text, any order", "alone": "one language only"}
_SHARED = {"all_shared": "all-shared neurons", "accuracy": "right answers", "margin": "lead of the right answer, nats"}
_WHOSE = {OWN: "the language that is tuned on", OTHERS: "the other languages"}


def _apart(low: float, high: float) -> bool:
    return bool(low > 0 or high < 0)


def tuning_findings(effects: pd.DataFrame, summary: pd.DataFrame) -> list[str]:
    """What tuning a language's neurons does, beside random neurons and all weights."""
    by = summary.set_index(["arm", "versus", "measure"])
    sentences = []
    for measure in [m for m in (OWN, OTHERS) if ("chosen", "", m) in by.index]:
        own = by.loc[("chosen", "", measure)]
        sentence = (
            f"Tuning a language's neurons changes the loss of {_WHOSE[measure]} by {own.change:+.3f} nats per token "
            f"(95 % interval {own.low:+.3f} to {own.high:+.3f})"
        )
        for versus, words in (("random", "as many random neurons"), (FULL, "all weights")):
            if ("chosen", versus, measure) not in by.index:
                continue
            gap = by.loc[("chosen", versus, measure)]
            certain = f"{gap.change:+.3f}" if _apart(gap.low, gap.high) else "no difference that is certain"
            sentence += f"; against tuning {words}: {certain}"
        sentences.append(f"{sentence}.")
    return sentences


def alignment_findings(effects: pd.DataFrame) -> list[str]:
    """What tuning on the same documents in all languages does to sharing and answers."""
    sentences = []
    for row in effects[effects.arm == ALIGNED].itertuples():
        if row.measure == "margin":
            continue
        sure = "" if _apart(row.low, row.high) else ", which is not certain"
        beyond = "more" if row.beyond_low > 0 else "less" if row.beyond_high < 0 else "not certainly more or less"
        sentences.append(
            f"The share of {_SHARED[row.measure]} goes from {row.intact:.2%} to {row.value:.2%} on {row.n_items} "
            f"held-out questions{sure}; that is {beyond} than by the same text in any order."
        )
    return sentences


SECTIONS = (
    Section(
        "tuning",
        "Neurons tuned",
        (TUNING, TUNING_SUMMARY),
        "One language tuned on at a time, for equally many steps: only its neurons, as many random ones per layer, or "
        "all weights, each at the learning rate that is best on text set aside. Change of each language's loss in nats "
        "per token; 95 % intervals by bootstrap over rows of text.",
        (
            language_column("group", "tuned on"),
            column("arm", "what is tuned", words=said(_ARMS)),
            language_column("evaluated", "text"),
            column("n_trained", "numbers trained", "{:,}"),
            column("learning_rate", "", "{:.2g}"),
            column("before", "loss before", "{:.3f}"),
            column("after", "loss after", "{:.3f}"),
            column("change", "", SIGNED),
            interval(SIGNED),
            Column(("beyond_low", "beyond_high"), "beyond random, 95 % interval", f"{SIGNED} to {SIGNED}"),
        ),
        build=lambda effects, summary: effects,
        findings=tuning_findings,
        language="group",
        folded=True,
        figures=(
            Figure(
                "tuning-bars",
                (TUNING_SUMMARY,),
                plots.tuning_bars,
                "Below zero is a gain. Means over languages tuned on.",
                wide=True,
            ),
            Figure(
                "tuning-matrix",
                (TUNING,),
                plots.tuning_matrix,
                "Only the language's neurons are tuned; blue is a gain.",
                wide=True,
            ),
        ),
    ),
    Section(
        "alignment-tuning",
        "Tuned on parallel text",
        (ALIGNMENT_TUNING,),
        "All weights tuned on the same documents in all languages at each step, on the same text in any order, or on "
        "one language; measured on questions that were not in the text. 95 % intervals by bootstrap over questions.",
        (
            column("arm", "tuned on", words=said(_TEXTS)),
            column("measure", words=said(_SHARED)),
            column("n_items", "questions", "{:,}"),
            column("intact", "before", "{:.4f}"),
            column("value", "after", "{:.4f}"),
            column("change", "", SIGNED),
            interval(SIGNED),
            Column(("beyond_low", "beyond_high"), "beyond any order, 95 % interval", f"{SIGNED} to {SIGNED}"),
        ),
        findings=alignment_findings,
        figures=(
            Figure(
                "alignment-shared",
                (ALIGNMENT_TUNING,),
                plots.alignment_bars,
                "Neurons that are active in all languages of a question, at the last token of its prompt.",
            ),
            Figure(
                "alignment-accuracy",
                (ALIGNMENT_TUNING,),
                lambda effects: plots.alignment_bars(effects, measure="accuracy"),
                "Answers to the same questions.",
            ),
        ),
    ),
)
