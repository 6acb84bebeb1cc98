"""Claims about tuning only a language's neurons, and about tuning on parallel text."""

from collections.abc import Mapping

import pandas as pd

from mi_multilingual.studies.alignment_tuning import ALIGNED, MIXED
from mi_multilingual.studies.tuning import FULL, OTHERS, OWN

from .claim import Claim, Effect

_ARMS = {
    "random": "as many random neurons per layer, tuned for as many steps",
    FULL: "all weights, tuned for as many steps",
}


def _summary(versus: str, measure: str):
    """Change by tuning the chosen neurons less that by another arm."""

    def measured(tables: Mapping[str, pd.DataFrame]) -> Effect:
        by = tables["tuning_summary"].set_index(["arm", "versus", "measure"])
        row = by.loc[("chosen", versus, measure)]
        return Effect(row.change, row.low, row.high, _ARMS[versus])

    return measured


def _aligned(measure: str):
    """Change by tuning on the same documents in all languages less that by the same text in any order."""

    def measured(tables: Mapping[str, pd.DataFrame]) -> Effect:
        by = tables["alignment_tuning"].set_index(["arm", "measure"])
        row = by.loc[(ALIGNED, measure)]
        return Effect(row.beyond, row.beyond_low, row.beyond_high, f"the same text in any order ({MIXED})")

    return measured


def _whole(measure: str):
    """Change by tuning on parallel text, less nothing."""

    def measured(tables: Mapping[str, pd.DataFrame]) -> Effect:
        by = tables["alignment_tuning"].set_index(["arm", "measure"])
        row = by.loc[(ALIGNED, measure)]
        return Effect(row.change, row.low, row.high, "the model before tuning")

    return measured


CLAIMS = (
    Claim(
        "Zhao et al. 2024, arXiv:2402.18815",
        "Tuning only a language's neurons lowers that language's loss more than tuning random neurons does.",
        "Mistral-7B, a few hundred documents: language-specific neurons raise multilingual scores, random ones do not",
        "tuning",
        _summary("random", OWN),
        "nats per token",
        -1,
        0.02,
    ),
    Claim(
        "Zhao et al. 2024, arXiv:2402.18815",
        "Tuning only a language's neurons harms other languages less than tuning all weights does.",
        "scores in the other languages stay about the same",
        "tuning",
        _summary(FULL, OTHERS),
        "nats per token",
        -1,
        0.02,
    ),
    Claim(
        "Mondal et al. 2025, arXiv:2503.17456",
        "Tuning a language's neurons gives that language less than tuning random neurons does.",
        "no more: neuron-only LoRA of Llama 3.1 8B and Mistral Nemo, no reliable gain on XNLI and XQuAD; here the loss",
        "tuning",
        _summary("random", OWN),
        "nats per token",
        1,
        0.0,
    ),
    Claim(
        "Wang et al. 2024, arXiv:2406.09265",
        "Tuning on parallel text raises the share of neurons that all languages share.",
        "in version 1, the share of all-shared neurons is higher after multilingual alignment",
        "alignment_tuning",
        _whole("all_shared"),
        "share of neurons",
        1,
        0.0,
    ),
    Claim(
        "Wang et al. 2024, arXiv:2406.09265",
        "It is being parallel that raises that share, not the text itself.",
        "left open",
        "alignment_tuning",
        _aligned("all_shared"),
        "share of neurons",
        1,
        0.0,
    ),
    Claim(
        "Wang et al. 2024, arXiv:2406.09265",
        "Tuning on parallel text raises accuracy on held-out questions.",
        "in version 1, accuracy rises with the share of all-shared neurons",
        "alignment_tuning",
        _whole("accuracy"),
        "share of questions",
        1,
        0.01,
    ),
)
