"""Claims on how alike languages are represented, from the tables of the study `representations`."""

from collections.abc import Callable, Mapping

import numpy as np
import pandas as pd

from mi_multilingual.evaluation.intervals import mean_interval
from mi_multilingual.studies.u_shape import thirds

from .claim import Claim, Effect

_Tables = Mapping[str, pd.DataFrame]
_PAPER = "Tang et al. 2024, arXiv:2402.16438"
_STUDY = "representations"


def _inverted_u(measure: str) -> Callable[[_Tables], Effect]:
    """Middle layers less the first and last ones."""

    def measured(tables: _Tables) -> Effect:
        row = tables["representation_shape"].set_index("measure").loc[measure]
        return Effect(row.change, row.low, row.high, "the first and last layers")

    return measured


def _at_both_ends(tables: _Tables) -> Effect:
    """Share of the language neurons in the outer thirds, less that with the layers' numbers dealt out anew."""
    row = tables["u_shape"].set_index("group").loc[""]
    differences = (row.share - row[name] for name in ("even", "chance_high", "chance_low"))
    return Effect(*differences, "the layers' numbers of neurons dealt out anew")


def _english_in_the_middle(tables: _Tables) -> Effect:
    """Similarity above the floor with English in the middle layers, less the mean of the other languages."""
    outputs = tables["representation_outputs"]
    intact = outputs[outputs.condition == "intact"]
    middle = intact[thirds(int(intact.layer.max()) + 1)[intact.layer] == 1]
    nearness = (middle.similarity - middle.floor).groupby([middle.sentence, middle.language]).mean().unstack()
    difference = (nearness["en"] - nearness.drop(columns="en").mean(axis=1)).to_numpy()
    return _effect(difference, "the mean of the other languages")


def _neurons_off(tables: _Tables) -> Effect:
    """Similarity of translations without language neurons, mean over blocks, less that without random ones."""
    outputs = tables["representation_outputs"]
    part = outputs[outputs.layer > 0]
    by_sentence = part.groupby(["sentence", "condition"]).similarity.mean().unstack()
    return _effect((by_sentence["chosen"] - by_sentence["random"]).to_numpy(), "as many random neurons per layer")


def _effect(differences: np.ndarray, control: str) -> Effect:
    return Effect(float(differences.mean()), *mean_interval(differences), control)


CLAIMS: tuple[Claim, ...] = (
    Claim(
        _PAPER,
        "Translations are most similar in the middle layers.",
        "inverted U over layers (LLaMA-2-7B and others, figure); without a floor",
        _STUDY,
        _inverted_u("similarity"),
        "cosine",
        1,
        0.01,
    ),
    Claim(
        _PAPER,
        "The rise in the middle layers is of translations, and not of any two sentences.",
        "the paper reads its inverted U as a shared space of meaning; it gives no floor",
        _STUDY,
        _inverted_u("corrected"),
        "cosine above that of other sentences",
        1,
        0.01,
    ),
    Claim(
        _PAPER,
        "Language neurons gather in the first and last layers.",
        "U over layers, most in the first and last ones (figure)",
        _STUDY,
        _at_both_ends,
        "share of the neurons",
        1,
        0.05,
    ),
    Claim(
        _PAPER,
        "In the middle layers the other languages are nearest to English.",
        "English dominates in the middle layers (figure); there after the languages' means were shifted, here not",
        _STUDY,
        _english_in_the_middle,
        "cosine above that of other sentences",
        1,
        0.001,
    ),
    Claim(
        _PAPER,
        "Without language neurons translations are represented less alike.",
        "not measured in the paper",
        _STUDY,
        _neurons_off,
        "cosine",
        -1,
        0.01,
    ),
)
