"""Sections on translation with the neurons of the target language held at a value."""

import pandas as pd

from ... import plots
from ...patching.conditions import CHOSEN, INTACT, RANDOM
from ..files import TRANSLATION, TRANSLATIONS
from ..languages import listed, named
from ..section import Figure, Section
from ..tables import Column, column, interval, language_column, said

_CONDITIONS = {INTACT: "as it is", CHOSEN: "held", RANDOM: "random neurons"}
_MEASURES = {"share": "in the target language", "bleu": "BLEU", "chrf": "chrF"}
_WAYS = {"median": "median of detectors", "mean": "mean of LAPE's neurons"}


def translation_findings(table: pd.DataFrame) -> list[str]:
    """For which languages the share in the target and BLEU change more than with random neurons."""
    found = []
    chosen = table[table.condition == CHOSEN]
    for way, measure in chosen[["way", "measure"]].drop_duplicates().itertuples(index=False):
        part = chosen[(chosen.way == way) & (chosen.measure == measure)]
        up, down = part[part.beyond_low > 0].target, part[part.beyond_high < 0].target
        words = [f"higher for {listed([named(k) for k in up])}"] if len(up) else []
        words += [f"lower for {listed([named(k) for k in down])}"] if len(down) else []
        rest = len(part) - len(up) - len(down)
        words += [f"not certainly different for {rest} of {len(part)} languages"] if rest else []
        name = {"share": "the share in the target language", "bleu": "BLEU", "chrf": "chrF"}[measure]
        found.append(f"Beside random neurons, held at the {_WAYS.get(way, way)}, {name} is {', '.join(words)}.")
    return found


_LABELS = (
    column("way", "held at", words=said(_WAYS)),
    language_column("target"),
    column("condition", words=said(_CONDITIONS)),
)

SECTIONS = (
    Section(
        "translation",
        "Translation",
        (TRANSLATION,),
        "English sentences; the prompt does not say into which language. BLEU and chrF by sacrebleu, up to 100. 95 % "
        "intervals by bootstrap over sentences, of shares Wilson's. Beyond random: change less that of as many random "
        "neurons per layer.",
        (
            *_LABELS,
            column("measure", words=said(_MEASURES)),
            column("n", "sentences", "{:,}"),
            column("value", "", "{:.3g}"),
            interval("{:.3g}"),
            column("change", "", "{:+.3g}"),
            Column(("change_low", "change_high"), "change, 95 % interval", "{:+.3g} to {:+.3g}"),
            column("beyond", "beyond random", "{:+.3g}"),
            Column(("beyond_low", "beyond_high"), "beyond random, 95 % interval", "{:+.3g} to {:+.3g}"),
        ),
        findings=translation_findings,
        language="target",
        folded=True,
        figures=(
            Figure(
                "translation-scores",
                (TRANSLATION,),
                plots.translation,
                "The model as it is, with the target language's neurons held, and with random neurons held.",
                wide=True,
            ),
        ),
    ),
    Section(
        "translations",
        "Translated sentences",
        (TRANSLATIONS,),
        "Every translation with the language that was identified.",
        (
            *_LABELS,
            column("text", "English"),
            column("continuation", "written"),
            language_column("found", "language found"),
            column("reference"),
        ),
        language="target",
        folded=True,
    ),
)
