"""Sections on facts that were edited in one language and asked for in others."""

import pandas as pd

from ... import plots
from ...studies.editing_tables import OTHERS, OWN
from ..files import EDITING_EFFECTS, EDITING_NEURON_EFFECTS, EDITING_TRANSFER
from ..section import Figure, Section
from ..tables import Column, column, interval, language_column, said

_SHARES = (
    column("measure"),
    column("n_records", "facts", "{:,}"),
    column("value", "", "{:.0%}"),
    interval("{:.0%}"),
    column("random", "another fact edited", "{:.0%}"),
    column("beyond", "", "{:+.0%}"),
    Column(("beyond_low", "beyond_high"), "beyond, 95 % interval", "{:+.0%} to {:+.0%}"),
)
_FIRST = (column("editor"), language_column("edited", "edited in"), language_column("asked", "asked in"))
_NEURONS = (
    column("token", "typed at", words=said({"last": "last token of the prompt", "subject": "where the subject ends"})),
    column("type"),
    column("n_records", "facts", "{:,}"),
    column("share", "of the neurons", "{:.1%}"),
    column("carried", "of the update", "{:.1%}"),
    interval("{:.1%}"),
    column("beyond", "", "{:+.1%}"),
    Column(("beyond_low", "beyond_high"), "beyond, 95 % interval", "{:+.1%} to {:+.1%}"),
)


def editing_findings(transfer: pd.DataFrame) -> list[str]:
    """Which edits are followed in the own language and in others, by `editing_transfer`."""
    rows = transfer[transfer.measure == "success"].set_index(["editor", "scope"])
    sentences = []
    for editor in dict.fromkeys(transfer.editor):
        for scope, where in ((OWN, "the language it was made in"), (OTHERS, "other languages")):
            if (editor, scope) in rows.index:
                sentences.append(_followed(editor, where, rows.loc[(editor, scope)]))
    return sentences


def _followed(editor: str, where: str, row: pd.Series) -> str:
    numbers = f"{row.value:.0%} of facts, after the edit of another fact {row.random:.0%}"
    if row.beyond_low > 0:
        return f"An edit {_HOW[editor]} is followed in {where}: {numbers}."
    return f"Whether an edit {_HOW[editor]} is followed in {where} is not certain: {numbers}."


_HOW = {"in context": "in context", "rank one": "of rank one"}

SECTIONS = (
    Section(
        "editing",
        "Facts edited in one language, asked for in others",
        (EDITING_TRANSFER,),
        "Share of the facts known before whose new answer is the likeliest, asked as edited (success) and in other "
        "words (generality), and of other facts whose answer stays (locality), with 95 % intervals over facts; beside "
        "them the same after the edit of another fact.",
        (column("editor"), column("scope", "asked in"), *_SHARES),
        findings=editing_findings,
        figures=(
            Figure(
                "editing-transfer",
                (EDITING_TRANSFER,),
                plots.editing_transfer,
                "Edits in context and of rank one, in the language edited in and in others.",
                wide=True,
            ),
            Figure(
                "editing-matrix",
                (EDITING_EFFECTS,),
                plots.editing_matrix,
                "Edits of rank one by language.",
                wide=True,
            ),
        ),
    ),
    Section(
        "editing-languages",
        "The same for every pair of languages",
        (EDITING_EFFECTS,),
        columns=(*_FIRST, *_SHARES),
        language="asked",
        folded=True,
    ),
    Section(
        "editing-neurons",
        "Which neurons carry an edit",
        (EDITING_NEURON_EFFECTS,),
        "Share of the squared norm of an update of rank one that lies in neurons of each type, beside the share of the "
        "layer's neurons that they are.",
        _NEURONS,
        figures=(
            Figure(
                "editing-neurons-figure",
                (EDITING_NEURON_EFFECTS,),
                plots.editing_neurons,
                "Above zero, neurons of the type carry more of the edit than as many others would.",
            ),
        ),
    ),
)
