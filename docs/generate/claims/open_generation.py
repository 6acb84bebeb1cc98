"""Claims on the language of answers, from the tables of the study `open_generation`."""

from collections.abc import Callable, Mapping

import pandas as pd

from mi_multilingual.evaluation.intervals import mean_interval

from .claim import Claim, Effect

_Tables = Mapping[str, pd.DataFrame]
_PAPER = "Tang et al. 2024, arXiv:2402.16438"
_PROMPT = ["source", "prompt"]


def _hits(tables: _Tables, change: str) -> pd.DataFrame:
    """Answers under a change of the neurons of a language, with whether they are in the language wanted."""
    answers = tables["open_answers"]
    part = answers[(answers.change == change) & (answers.group != "")]
    return part.assign(hit=(part.found == part.target).astype(float))


def _beyond_random(change: str) -> Callable[[_Tables], Effect]:
    """Share in the language whose neurons are changed, less the same with random neurons, by prompt."""

    def measured(tables: _Tables) -> Effect:
        part = _hits(tables, change)
        own = part[part.group == part.target]
        means = own.groupby([*_PROMPT, "condition"]).hit.mean().unstack()
        return _effect((means["chosen"] - means["random"]), "as many random neurons per layer")

    return measured


def _own_against_others(tables: _Tables) -> Effect:
    """Share in the language asked without its own neurons, less that without the neurons of another, by prompt."""
    part = _hits(tables, "off")
    part = part[part.condition == "chosen"]
    means = part.assign(own=part.group == part.source).groupby([*_PROMPT, "own"]).hit.mean().unstack()
    return _effect(means[True] - means[False], "the neurons of the other languages off")


def _effect(differences: pd.Series, control: str) -> Effect:
    values = differences.to_numpy(float)
    return Effect(float(values.mean()), *mean_interval(values), control)


def _claim(text: str, reported: str, measure: Callable[[_Tables], Effect], direction: int) -> Claim:
    return Claim(_PAPER, text, reported, "open_generation", measure, "share of answers", direction, 0.02)


CLAIMS: tuple[Claim, ...] = (
    _claim(
        "Raised to their mean, a language's neurons make the model answer in it more often.",
        "LLaMA-2-7B: zh .87 to .99, fr .73 to .90, es .81 to .93, vi .60 to .97, id .40 to .99, ja .79 to 1.00",
        _beyond_random("raised"),
        1,
    ),
    _claim(
        "Without a language's neurons, questions in it are answered in it less often.",
        "large drops for the language switched off, none for random neurons (table, LLaMA-2 and BLOOM)",
        _beyond_random("off"),
        -1,
    ),
    _claim(
        "A language loses more without its own neurons than without another language's.",
        "the language switched off is hit most (table)",
        _own_against_others,
        -1,
    ),
    _claim(
        "With the neurons of the question's language off and another's raised, the answer is in the other.",
        "answers follow the neurons (cross-lingual generation)",
        _beyond_random("switched"),
        1,
    ),
)
