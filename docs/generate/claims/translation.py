"""Claims on translation and texts from nothing, from the tables of the study `translation`."""

from collections.abc import Callable, Mapping

import numpy as np
import pandas as pd

from mi_multilingual.evaluation.intervals import mean_interval
from mi_multilingual.studies.translation import score_draws

from .claim import Claim, Effect

_Tables = Mapping[str, pd.DataFrame]
_PAPER = "Kojima et al. 2024, arXiv:2404.02431"
_STUDY = "translation"
_RANDOM = "as many random neurons per layer"


def _translating(measure: str, way: str) -> Callable[[_Tables], Effect]:
    """The measure with neurons held, less that with random neurons held, mean over target languages, by sentence."""

    def measured(tables: _Tables) -> Effect:
        outputs = tables["translations"]
        by_target = []
        for target, own in outputs[outputs.way == way].groupby("target", sort=False):
            drawn = {key: score_draws(part, str(target), measure) for key, part in own.groupby(["condition", "seed"])}
            random = np.mean([values for (condition, _), values in drawn.items() if condition == "random"], axis=0)
            by_target.append(drawn["chosen", -1] - random)
        values = np.mean(by_target, axis=0)
        return Effect(float(values[0]), *map(float, np.quantile(values[1:], [0.025, 0.975])), _RANDOM)

    return measured


def _from_nothing(tables: _Tables) -> Effect:
    """Share of texts from nothing in the language whose neurons are held, less that with random ones, by text."""
    texts = tables["unconditional"]
    hits = texts.assign(hit=(texts.found == texts.target).astype(float))
    hits["number"] = hits.groupby(["target", "condition", "seed"]).cumcount()
    means = hits.groupby(["target", "number", "condition"]).hit.mean().unstack()
    return _effect(means["chosen"] - means["random"], _RANDOM)


def _hardly_overlap(tables: _Tables) -> Effect:
    """Share of a language's neurons that are another's, less the 5 % that the paper gives, by language.

    Pairs of languages are not independent, so the mean of each language with all others is what is drawn anew.
    """
    table = tables["median_overlap"]
    return _effect(table.groupby("language", sort=False).overlap.mean() - 0.05, "5 %")


def _effect(differences: pd.Series, control: str) -> Effect:
    values = differences.to_numpy(float)
    return Effect(float(values.mean()), *mean_interval(values), control)


CLAIMS: tuple[Claim, ...] = (
    Claim(
        _PAPER,
        "Held at their medians, a language's neurons make texts from nothing come out in it more often.",
        "rises from near zero for most of de, es, fr, ja, zh (table, XGLM, BLOOM, Llama 2)",
        _STUDY,
        _from_nothing,
        "share of texts",
        1,
        0.02,
    ),
    Claim(
        _PAPER,
        "Held at their medians, a language's neurons make the model translate into it more often.",
        "the share of the target language rises for most languages and models (table)",
        _STUDY,
        _translating("share", "median"),
        "share of translations",
        1,
        0.02,
    ),
    Claim(
        _PAPER,
        "Held at their medians, a language's neurons raise BLEU when the prompt does not name the language.",
        "BLEU rises in some cases (table)",
        _STUDY,
        _translating("bleu", "median"),
        "BLEU, 0 to 100",
        1,
        0.1,
    ),
    Claim(
        _PAPER,
        "The neurons of two languages overlap by less than 5 %, on average.",
        "below 5 % for all pairs of languages (XGLM, BLOOM, Llama 2)",
        _STUDY,
        _hardly_overlap,
        "share of neurons",
        -1,
        0.005,
    ),
    Claim(
        "Tang et al. 2024, arXiv:2402.16438",
        "Raised to their mean, a language's neurons make the model translate into it more often.",
        "the output language follows the neurons (questions, not translation)",
        _STUDY,
        _translating("share", "mean"),
        "share of translations",
        1,
        0.02,
    ),
)
