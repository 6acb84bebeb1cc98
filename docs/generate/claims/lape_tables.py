"""Claims on the neurons of LAPE beside those of other methods, from the tables of the study `lape_tables`."""

from collections.abc import Callable, Mapping

import pandas as pd

from mi_multilingual import ablation_comparison

from .claim import Claim, Effect

_Tables = Mapping[str, pd.DataFrame]
_PAPER = "Tang et al. 2024, arXiv:2402.16438"


def _compared(method: str, measure: str, control: str) -> Callable[[_Tables], Effect]:
    """One row of the comparison of all rows of text, which already is an effect less its control."""

    def measured(tables: _Tables) -> Effect:
        table = ablation_comparison(tables["ablation_outputs"])
        row = table[(table.method == method) & (table.measure == measure)].iloc[0]
        return Effect(row.value, row.low, row.high, control)

    return measured


def _smallest_set_against_random(tables: _Tables) -> Effect:
    """The beginning of the curve, chosen less random; the two intervals joined as if they were independent."""
    table = tables["ablation_curve"]
    ends = table[(table.group == "") & (table.n == table.n.min())].set_index("condition")
    mine, control = ends.loc["chosen"], ends.loc["random"]
    value = mine.change - control.change
    low = value - ((mine.change - mine.low) ** 2 + (control.high - control.change) ** 2) ** 0.5
    high = value + ((mine.high - mine.change) ** 2 + (control.change - control.low) ** 2) ** 0.5
    return Effect(value, low, high, "as many random neurons per layer")


def _claim(text: str, reported: str, measure: Callable[[_Tables], Effect]) -> Claim:
    return Claim(_PAPER, text, reported, "lape_tables", measure, "nats per token", 1, 0.01)


CLAIMS: tuple[Claim, ...] = (
    _claim(
        "Without its own neurons by LAPE a language loses more than the others do.",
        "the diagonal stands out in the matrix of perplexity changes (LLaMA-2-7B and others, figure)",
        _compared("lape", "dominance beyond random", "the same with as many random neurons per layer"),
    ),
    _claim(
        "LAPE's neurons do more harm to their language than as many random ones.",
        "random neurons of the whole model change next to nothing (figure)",
        _compared("uniform random", "less than the first", "as many random neurons of the whole model"),
    ),
    _claim(
        "LAPE's neurons do more harm to their language than those of LAP.",
        "LAP shows no diagonal (figure); there at a probability of 0.95, here as many neurons as LAPE",
        _compared("lap, as many", "less than the first", "as many neurons that are most often active (LAP)"),
    ),
    _claim(
        "The harm of LAPE's neurons is more to their own language than that of LAP's.",
        "LAP shows no diagonal (figure); there at a probability of 0.95, here as many neurons as LAPE",
        _compared("lap, as many", "dominance less than the first", "own less others of as many neurons of LAP"),
    ),
    _claim(
        "LAPE's neurons do more harm to their language than those of LAVE.",
        "LAVE shows a weaker diagonal than LAPE (figure)",
        _compared("lave", "less than the first", "the neurons of LAVE at the same rate"),
    ),
    _claim(
        "A small share of all neurons is enough: the loss rises far beyond that of random neurons.",
        "about 1 % of all neurons over all languages together (figure); here 0.5 % of them for each language",
        _smallest_set_against_random,
    ),
)
