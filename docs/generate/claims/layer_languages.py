"""Claims on what the layers speak, and on the regions of a model."""

from collections.abc import Callable, Iterable, Mapping, Sequence

import numpy as np
import pandas as pd

from mi_multilingual.evaluation.intervals import resampled
from mi_multilingual.patching.conditions import CHOSEN, INTACT, RANDOM
from mi_multilingual.studies.layer_languages import middle_layers

from .claim import Claim, Effect

ENGLISH = "en"
ZHAO, WENDLER = "Zhao et al. 2024, arXiv:2402.18815", "Wendler et al. 2024, arXiv:2402.10588"
Tables = Mapping[str, pd.DataFrame]
Ratio = tuple[np.ndarray, np.ndarray]
"""Of every prompt or row of one language: what is summed, and what it is divided by."""


def mean_of_languages(ratios: Iterable[Ratio], control: str) -> Effect:
    """The mean over languages of sum / sum; its interval by a bootstrap over the rows of each language.

    Raises:
        ValueError: no language has what is measured.
    """
    random, values, draws = np.random.default_rng(0), [], []
    for total, weight in ratios:
        if not weight.sum():
            continue
        times = resampled(len(total), random)
        drawn = times @ weight
        values.append(total.sum() / weight.sum())
        draws.append(np.divide(times @ total, drawn, out=np.full(len(drawn), np.nan), where=drawn > 0))
    if not values:
        raise ValueError("there must be a language with what is measured, got none")
    low, high = np.nanquantile(np.nanmean(draws, axis=0), [0.025, 0.975])
    return Effect(float(np.mean(values)), float(low), float(high), control)


def _prompt_counts(tables: Tables) -> pd.DataFrame:
    """Top tokens by prompt (in other languages than English), layer and language, of the model as it is."""
    outputs = tables["layer_languages"]
    mine = outputs[(outputs.condition == INTACT) & (outputs.position == "prompt") & (outputs.language != ENGLISH)]
    if ENGLISH not in set(mine.decoded):
        raise ValueError("there must be English among the languages, got none")
    named = mine[~mine.decoded.isin(("shared", "none"))]
    return named.pivot_table(index=["language", "document"], columns=["layer", "decoded"], values="n")


def _own(wide: pd.DataFrame, language: str) -> pd.DataFrame:
    return wide.xs(language, level="language")


def _in_layers(own: pd.DataFrame, layers: Sequence[int], language: str | None = None) -> np.ndarray:
    """Tokens of a language, or of any, per prompt over some layers."""
    part = own.loc[:, own.columns.get_level_values("layer").isin(layers)]
    if language is not None:
        part = part.xs(language, axis=1, level="decoded")
    return part.sum(axis=1).to_numpy()


def english_in(where: str) -> Callable[[Tables], Effect]:
    """English less the prompt's own language, among the tokens of a language in some layers."""

    def measure(tables: Tables) -> Effect:
        wide = _prompt_counts(tables)
        n_layers = int(wide.columns.get_level_values("layer").max()) + 1
        layers = {"middle": middle_layers(n_layers), "last": [n_layers - 1]}[where]
        ratios = []
        for language in wide.index.get_level_values("language").unique():
            own = _own(wide, language)
            more = _in_layers(own, layers, ENGLISH) - _in_layers(own, layers, language)
            ratios.append((more, _in_layers(own, layers)))
        return mean_of_languages(ratios, "the prompt's own language")

    return measure


def middle_against_ends(tables: Tables) -> Effect:
    """Share of English in the middle layers less that after the first and the last block, paired by prompt."""
    wide = _prompt_counts(tables)
    n_layers = int(wide.columns.get_level_values("layer").max()) + 1
    places = (middle_layers(n_layers), [0, n_layers - 1])
    ratios = []
    for language in wide.index.get_level_values("language").unique():
        own = _own(wide, language)
        shares = []
        for layers in places:
            weight = _in_layers(own, layers)
            shares.append(np.divide(_in_layers(own, layers, ENGLISH), weight, where=weight > 0, out=weight * np.nan))
        difference = shares[0] - shares[1]
        ratios.append((np.nan_to_num(difference), np.isfinite(difference).astype(float)))
    return mean_of_languages(ratios, "first and last block")


def pivot_words(tables: Tables) -> Effect:
    """Probability of the pivot language's word less that of the prompt's language, over the middle layers."""
    words = tables["layer_words"].dropna(subset="probability")
    words = words[words.condition == "intact"]
    [pivot] = set(words.decoded[words.decoded != words.language])
    words = words[words.language != pivot]
    middle = words[words.layer.isin(middle_layers(int(words.layer.max()) + 1))]
    ratios = []
    for language, rows in middle.groupby("language"):
        means = rows.groupby(["document", "decoded"]).probability.mean().unstack()
        difference = (means[pivot] - means[language]).to_numpy()
        ratios.append((difference, np.ones(len(difference))))
    return mean_of_languages(ratios, "the word of the prompt's language")


def loss_beyond_random(structure: str, region: str, *, less_pivot: bool = False) -> Callable[[Tables], Effect]:
    """Loss of a language without its neurons less that without random ones; or of this, less the same in the pivot."""

    def measure(tables: Tables) -> Effect:
        outputs = tables["region_outputs"]
        mine = outputs[(outputs.structure == structure) & (outputs.region == region) & (outputs.measure == "loss")]
        ratios = []
        pivot = tables["regions"]["pivot"].iloc[0]
        for group in [k for k in mine.group.unique() if k != pivot]:
            own, other = (_beyond(mine[(mine.group == group) & (mine.evaluated == k)]) for k in (group, pivot))
            if less_pivot:
                # Row by row, which say the same: per token of either text.
                difference = (own.total / own.weight - other.total / other.weight).dropna().to_numpy()
                ratios.append((difference, np.ones(len(difference))))
            else:
                ratios.append((own.total.to_numpy(), own.weight.to_numpy(float)))
        control = "as many random neurons per layer"
        return mean_of_languages(ratios, f"{control}, and the same in the pivot language" if less_pivot else control)

    return measure


def _beyond(rows: pd.DataFrame) -> pd.DataFrame:
    """What each row of text loses beyond random neurons, and its tokens."""
    if rows.empty:
        raise ValueError("there must be rows of the text, got none")
    wide = rows.pivot_table(index="unit", columns="condition", values="value", sort=False)
    return pd.DataFrame({"total": wide[CHOSEN] - wide[RANDOM], "weight": rows.groupby("unit").weight.first()})


CLAIMS = (
    Claim(
        ZHAO,
        "Prompts in other languages are decoded into English in the middle layers.",
        "most of the decoded tokens of the middle layers are English (Vicuna-7B, BLOOMZ-7B; figure 1)",
        "layer_languages",
        english_in("middle"),
        "share of tokens",
        1,
        0.05,
    ),
    Claim(
        ZHAO,
        "English is decoded more in the middle layers than in the first and the last.",
        "English rises from the first layers on and gives way in the last (figure 1)",
        "layer_languages",
        middle_against_ends,
        "share of tokens",
        1,
        0.05,
    ),
    Claim(
        ZHAO,
        "The last layers speak the language of the prompt.",
        "the share of other languages than English rises again in the last layers (figure 1)",
        "layer_languages",
        english_in("last"),
        "share of tokens",
        -1,
        0.05,
    ),
    Claim(
        WENDLER,
        "In the middle layers the word of the pivot language is likelier than the one asked for.",
        "English ahead of the target language in the middle layers of Llama-2, which catches up in the last",
        "layer_languages",
        pivot_words,
        "probability",
        1,
        0.01,
    ),
    Claim(
        ZHAO,
        "A language loses its text without its neurons, and not without as many random ones.",
        "performance falls strongly without language-specific neurons and hardly without random ones",
        "regions",
        loss_beyond_random("mlp", "all"),
        "nats per token",
        1,
        0.02,
    ),
    Claim(
        ZHAO,
        "Without the neurons of the understanding layers a language does worse.",
        "a fall in other languages than English, which itself is hardly affected",
        "regions",
        loss_beyond_random("mlp", "understanding"),
        "nats per token",
        1,
        0.02,
    ),
    Claim(
        ZHAO,
        "Without the neurons of the generation layers a language does worse, and more so than the pivot.",
        "a fall in other languages than English, which itself is hardly affected",
        "regions",
        loss_beyond_random("mlp", "generation", less_pivot=True),
        "nats per token",
        1,
        0.02,
    ),
)
