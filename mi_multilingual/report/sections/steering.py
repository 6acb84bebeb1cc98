"""Sections on steering: does the model speak a language when that language's neurons are raised?"""

import pandas as pd

from ... import plots
from ...evaluation.intervals import wilson_interval
from ...patching.conditions import CHOSEN, INTACT, RANDOM
from ...plots.steering import CONDITION_WORDS
from ..files import STEERING, STEERING_CURVE, STEERING_EXAMPLES
from ..section import Figure, Section
from ..tables import Column, column, interval, language_column, said

_WHO = {
    INTACT: "The model as it is",
    CHOSEN: "The steered model",
    RANDOM: "The model with random neurons changed instead",
}

RAISING_WORDS = {
    "": "–",
    "set_to_mean": "set to the mean",
    "set_to_active_mean": "set to the mean where active",
    "add_mean": "mean added",
    "add_mean_difference": "difference of means added",
}
RAISING_COLUMN = column("raising", "neurons", words=said(RAISING_WORDS))
"""How neurons were raised."""


def steering_findings(table: pd.DataFrame) -> list[str]:
    """What `steering_shares` by source, target and condition say of prompts in another language than the target."""
    cross = table[table.source != table.target]
    hits = (
        cross.assign(hits=cross.in_target * cross.n).groupby(["condition", "target"], sort=False)[["hits", "n"]].sum()
    )
    if not {CHOSEN, INTACT} <= set(hits.index.get_level_values("condition")):
        return []
    steered, plain = hits.loc[CHOSEN], hits.loc[INTACT]
    better = int((steered.hits / steered.n > (plain.hits / plain.n).reindex(steered.index)).sum())
    sentences = [
        f"Prompted in another language, the steered model answers in the language wanted more often than the model as "
        f"it is for {better} of {len(steered)} languages."
    ]
    for condition, part in hits.groupby(level="condition", sort=False):
        n, share_found = int(part.n.sum()), float(part.hits.sum() / part.n.sum())
        low, high = wilson_interval(share_found, n)
        sentences.append(
            f"{_WHO[str(condition)]} gives {share_found:.0%} of {n} outputs in the language wanted (95 % interval "
            f"{low:.0%} to {high:.0%})."
        )
    return sentences


SECTIONS = (
    Section(
        "steering",
        "Steering",
        (STEERING,),
        "Prompts of one language, continued with its own neurons off and those of another raised: share of outputs in "
        "the language wanted, with 95 % Wilson intervals, beside the model as it is and as many random neurons.",
        (
            language_column("source", "prompt"),
            language_column("target", "steered to"),
            column("condition", words=said(CONDITION_WORDS)),
            column("n", "outputs", "{:,}"),
            column("in_target", "in the target", "{:.0%}"),
            interval("{:.0%}"),
            column("in_source", "in the prompt's", "{:.0%}"),
            column("elsewhere", "elsewhere", "{:.0%}"),
            RAISING_COLUMN,
        ),
        findings=steering_findings,
        language="target",
        folded=True,
        figures=(
            Figure(
                "steering-matrix",
                (STEERING,),
                plots.steering_matrix,
                "Share of outputs in the language of the column, for prompts in that of the row.",
                wide=True,
            ),
        ),
    ),
    Section(
        "steering-curve",
        "Strength of steering",
        (STEERING_CURVE,),
        "Held-out prompts, steered to the other languages; strength times the mean activation. Perplexity is "
        "that of the outputs under the model as it is, a cost in fluency.",
        (
            column("strength", "", "{:g}"),
            column("condition", words=said(CONDITION_WORDS)),
            column("n", "outputs", "{:,}"),
            column("in_target", "in the target", "{:.0%}"),
            interval("{:.0%}"),
            column("ppl", "perplexity per token", "{:.1f}"),
            Column(("nll_low", "nll_high"), "loss, nats per token: 95 % interval", "{:.2f} to {:.2f}"),
            column("distinct_2", "distinct pairs of words", "{:.0%}"),
            RAISING_COLUMN,
        ),
        figures=(
            Figure(
                "steering-strength",
                (STEERING_CURVE,),
                plots.steering_curve,
                "Above: outputs in the language wanted. Below: what it costs.",
                wide=True,
            ),
        ),
    ),
    Section(
        "steering-examples",
        "Steered text",
        (STEERING_EXAMPLES,),
        "One prompt per target, failures too; in brackets the language that was identified.",
        (
            language_column("source", "prompt in"),
            language_column("target", "steered to"),
            column("prompt"),
            Column((INTACT, f"found_{INTACT}"), "as it is", "{} ({})"),
            Column((CHOSEN, f"found_{CHOSEN}"), "steered", "{} ({})"),
            column("strength", "", "{:g}"),
        ),
        language="target",
    ),
)
