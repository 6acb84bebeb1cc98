"""Sections on translation, and on texts from nothing, with the neurons of the target language held at a value."""

import numpy as np
import pandas as pd
import plotly.graph_objects as go

from ... import plots
from ...evaluation.intervals import mean_interval, wilson_interval
from ...patching.conditions import CHOSEN, INTACT, RANDOM
from ...studies.steering_tables import steering_shares
from ..files import MEDIAN_OVERLAP, TRANSLATION, TRANSLATIONS, UNCONDITIONAL
from ..languages import listed, named
from ..measured import difference
from ..section import Figure, Section
from ..tables import SEED, Column, column, interval, language_column, said, seeds_where_random

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


def unconditional_shares(texts: pd.DataFrame) -> pd.DataFrame:
    """Share of texts in the target language, by target and condition, all seeds together."""
    return steering_shares(texts, ["target", "condition"])


def unconditional_findings(texts: pd.DataFrame) -> list[str]:
    """Whether texts from nothing are in the language whose neurons are held, beside random neurons."""
    table = unconditional_shares(texts).set_index(["condition", "target"])
    if not {CHOSEN, RANDOM} <= set(table.index.get_level_values("condition")):
        return []
    held, random = table.loc[CHOSEN], table.loc[RANDOM].reindex(table.loc[CHOSEN].index)
    shares = (_pooled(rows) for rows in (held, random))
    _, low, high = difference(_measured(held), _measured(random))
    words = [f"more often for {_names(held, low > 0)}"] if (low > 0).any() else []
    words += [f"less often for {_names(held, high < 0)}"] if (high < 0).any() else []
    unsure = int(((low <= 0) & (high >= 0)).sum())
    words += [f"not certainly more or less often for {unsure} of {len(held)} languages"] if unsure else []
    return [
        "With a language's neurons held, {} of the texts from nothing are in it, with random neurons held {}.".format(
            *shares
        ),
        f"Beside random neurons, texts are in the language {', '.join(words)}.",
    ]


def _measured(rows: pd.DataFrame) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    return rows.in_target.to_numpy(), rows.low.to_numpy(), rows.high.to_numpy()


def _pooled(rows: pd.DataFrame) -> str:
    """The share in the target language of all texts, with its interval."""
    n = int(rows.n.sum())
    share = float((rows.in_target * rows.n).sum() / n)
    low, high = wilson_interval(share, n)
    return f"{share:.0%} ({low:.0%} to {high:.0%} of {n:,})"


def _names(rows: pd.DataFrame, which: np.ndarray) -> str:
    return listed([named(str(k)) for k in rows.index[which]])


def _unconditional_bars(texts: pd.DataFrame) -> go.Figure:
    shares = unconditional_shares(texts).rename(columns={"in_target": "value"}).assign(measure="share")
    return plots.translation(shares, title="Texts from nothing with a language's neurons held")


def overlap_findings(table: pd.DataFrame) -> list[str]:
    """How many of a language's neurons are another's too, beside random ones; the interval is over languages."""
    by_language = table.groupby("language", sort=False)[["overlap", "random"]].mean().dropna()
    if len(by_language) < 2:
        return []
    mean, beyond = by_language.mean(), by_language.overlap - by_language.random
    low, high = mean_interval(beyond.to_numpy())
    more = "more than" if low > 0 else "fewer than" if high < 0 else "not certainly other than"
    return [
        f"{mean.overlap:.1%} of a language's neurons are another language's too, mean over pairs; of as many random "
        f"ones {mean.random:.1%}. That is {more} by chance (difference {beyond.mean():+.1%}, 95 % interval over "
        f"languages {low:+.1%} to {high:+.1%})."
    ]


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
    Section(
        "unconditional",
        "Texts from nothing",
        (UNCONDITIONAL,),
        "Texts drawn from the beginning-of-text token alone, with a language's neurons held at their median: share in "
        "that language with its 95 % Wilson interval. The model as it is writes the same texts whatever the target.",
        (
            *_LABELS[1:],
            column("n", "texts", "{:,}"),
            column("in_target", "in the target language", "{:.0%}"),
            interval("{:.0%}"),
        ),
        build=unconditional_shares,
        findings=unconditional_findings,
        language="target",
        figures=(
            Figure(
                "unconditional-figure",
                (UNCONDITIONAL,),
                _unconditional_bars,
                "The model as it is, with the language's neurons held, and with random neurons held.",
            ),
        ),
    ),
    Section(
        "unconditional-texts",
        "Every text from nothing",
        (UNCONDITIONAL,),
        "The texts with the language that was identified.",
        (*_LABELS[1:], SEED, column("continuation", "written"), language_column("found", "language found")),
        build=seeds_where_random,
        language="target",
        folded=True,
    ),
    Section(
        "median-overlap",
        "Do the neurons that are held overlap",
        (MEDIAN_OVERLAP,),
        "Of the neurons that detect a language best, the share that is among those of another, beside as many random "
        "neurons per layer.",
        (
            language_column(),
            language_column("other", "other language"),
            column("n_neurons", "neurons", "{:,}"),
            column("overlap", "the other's too", "{:.1%}"),
            column("random", "of random neurons", "{:.1%}"),
        ),
        findings=overlap_findings,
        folded=True,
    ),
)
