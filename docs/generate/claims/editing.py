"""Claims on facts that are edited in one language and asked for in another."""

from collections.abc import Mapping

import pandas as pd

from mi_multilingual.evaluation.intervals import mean_interval
from mi_multilingual.patching.conditions import CHOSEN, RANDOM
from mi_multilingual.studies.editing import IN_CONTEXT, RANK_ONE

from .claim import Claim, Effect

_Tables = Mapping[str, pd.DataFrame]
_ANOTHER = "the edit of another fact"


def _share(
    tables: _Tables, measure: str = "success", *, editor: str = RANK_ONE, own: bool, condition: str = CHOSEN
) -> pd.Series:
    """Mean of a measure by record, over the facts that were known before."""
    rows = tables["editing"]
    kept = rows.known & (rows.editor == editor) & (rows.condition == condition)
    part = rows[kept & ((rows.edited == rows.asked) == own)]
    return part.groupby("id")[measure].mean().astype(float)


def _less(value: pd.Series, control: pd.Series, name: str) -> Effect:
    """Mean difference over records, by a paired bootstrap."""
    difference = (value - control).dropna().to_numpy()
    return Effect(float(difference.mean()), *mean_interval(difference), name)


def _followed(tables: _Tables) -> Effect:
    """How much more often the new answer is given than after another edit."""
    return _less(_share(tables, own=True), _share(tables, own=True, condition=RANDOM), _ANOTHER)


def _likelier(tables: _Tables) -> Effect:
    """How much likelier the new answer is in other languages than after another edit."""
    chosen, random = (_share(tables, "gain", own=False, condition=name) for name in (CHOSEN, RANDOM))
    return _less(chosen, random, _ANOTHER)


def _aimed(tables: _Tables) -> Effect:
    """How much more often the edited fact changes than others do."""
    return _less(_share(tables, own=True), 1 - _share(tables, "locality", own=True), "other facts of the same edit")


def _lost(tables: _Tables) -> Effect:
    """What an edit loses from the own language to others."""
    return _less(_share(tables, own=False), _share(tables, own=True), "the language edited in")


def _in_context(tables: _Tables) -> Effect:
    """How much better words carry an edit into other languages than weights do."""
    return _less(_share(tables, editor=IN_CONTEXT, own=False), _share(tables, own=False), "edits of rank one")


def _shared(tables: _Tables) -> Effect:
    """What all-shared neurons carry of the updates beyond their number."""
    rows = tables["editing_neurons"]
    part = rows[(rows.token == "last") & (rows.type == "all-shared")].groupby("id")[["carried", "share"]].mean()
    return _less(part.carried, part.share, "their share of the layer's neurons")


_MENG, _WANG = "Meng et al. 2022, arXiv:2202.05262", "Wang et al. 2024, arXiv:2406.09265"
_ACROSS, _RETRIEVED = "Wang, Liang et al. 2023, arXiv:2309.08952", "Wang, Haddow and Birch 2023, arXiv:2312.13040"
_UNIT, _DELTA = "share of facts", 0.05

CLAIMS = (
    Claim(
        _MENG,
        "An edit of rank one is followed when it is asked for in the language it was made in.",
        "100 % of counterfactuals, in English (GPT-2 XL)",
        "editing",
        _followed,
        _UNIT,
        1,
        _DELTA,
    ),
    Claim(
        _MENG,
        "An edit of rank one changes its own fact more often than other facts.",
        "100 % of the edited facts; three quarters of the neighbouring ones stay (GPT-2 XL)",
        "editing",
        _aimed,
        _UNIT,
        1,
        _DELTA,
    ),
    Claim(
        _ACROSS,
        "An edit made in one language makes the new answer likelier in other languages.",
        "edits have an effect in the other language, in words",
        "editing",
        _likelier,
        "nats",
        1,
        0.1,
    ),
    Claim(
        _ACROSS,
        "It is followed less often there than in the language it was made in.",
        "lower in the other language, in words",
        "editing",
        _lost,
        _UNIT,
        -1,
        _DELTA,
    ),
    Claim(
        _RETRIEVED,
        "An edit in context is followed in other languages more often than one of rank one.",
        "facts put in context are followed across languages where edited weights are not, in words",
        "editing",
        _in_context,
        _UNIT,
        1,
        _DELTA,
    ),
    Claim(
        _WANG,
        "All-shared neurons of the prompt carry more of an edit than their number lets expect.",
        "all-shared neurons contribute most, in words; updates of weights are not looked at",
        "editing",
        _shared,
        "share of the update",
        1,
        _DELTA,
    ),
)
