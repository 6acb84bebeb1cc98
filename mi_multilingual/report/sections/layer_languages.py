"""Sections on what the model says after every block, and on its regions."""

import pandas as pd

from ... import plots
from ...patching.conditions import CHOSEN, INTACT, RANDOM
from ...studies.layer_languages import pivot_of
from ...studies.regions import EVERYWHERE
from ..files import LAYER_LANGUAGES, LAYER_WORDS, REGION_EFFECTS, REGIONS
from ..languages import listed, named
from ..section import Figure, Section
from ..tables import Column, column, interval, language_column

_REACH = 3
"""Languages that a sentence names."""


def _last_shares(shares: pd.DataFrame) -> pd.DataFrame:
    """Each prompt language's own share after the last block, by condition."""
    own = (shares.position == "prompt") & (shares.decoded == shares.language)
    return shares.loc[own & (shares.layer == shares.layer.max())]


def layer_findings(shares: pd.DataFrame) -> list[str]:
    """The language of the middle layers, where the prompt's own comes back, and what neurons change of it."""
    pivot = pivot_of(shares)
    intact = shares[(shares.condition == INTACT) & (shares.position == "prompt")]
    own = intact[(intact.decoded == intact.language) & (intact.language != pivot)]
    pairs = own.merge(intact[intact.decoded == pivot], on=["language", "layer"], suffixes=("", "_pivot"))
    foreign = list(pairs[pairs.low_pivot > pairs.high].language.unique())
    sentences = [
        f"In the middle layers prompts in other languages are decoded into {named(pivot)} most. "
        + (
            f"It is ahead of the prompt's own language with certainty (intervals apart) after some block for prompts "
            f"in {listed([named(k) for k in foreign])}."
            if foreign
            else "Nowhere is it ahead of the prompt's own language with certainty."
        )
    ]
    last = _last_shares(shares)
    pairs = last[last.condition == CHOSEN].merge(
        last[last.condition == RANDOM], on="language", suffixes=("", "_random")
    )
    less = pairs[pairs.high < pairs.low_random]
    if len(less):
        words = [f"{named(r.language)} ({r.share:.0%}, {r.share_random:.0%})" for r in less.head(_REACH).itertuples()]
        sentences.append(
            f"Without its neurons a language has a smaller share of the tokens after the last block than without as "
            f"many random ones (intervals apart) in {len(less)} of {len(pairs)} languages, among them {listed(words)}."
        )
    return sentences


def region_findings(effects: pd.DataFrame) -> list[str]:
    """Where a language's neurons cost its own text more than as many random ones, by structure and region."""
    own = effects[(effects.measure == "loss") & (effects.evaluated == effects.group) & (effects.region != EVERYWHERE)]
    sentences = []
    for structure, part in own.groupby("structure", sort=False):
        counts = part.groupby("region", sort=False)
        worse = [
            f"{region} in {int((rows.beyond_low > 0).sum())} of {len(rows)} languages (mean {rows.beyond.mean():+.3f})"
            for region, rows in counts
        ]
        sentences.append(
            f"Part {structure}: the loss of a language rises beyond random neurons', with certainty, without its "
            f"neurons of {listed(worse)}."
        )
    return sentences


SECTIONS = (
    Section(
        "layer-languages",
        "Languages decoded after each block",
        (LAYER_LANGUAGES,),
        "The residual stream after a block, read by the final norm and the unembedding: share of each language among "
        "the likeliest tokens that belong to one. Shared and none: share of all these tokens that belong to several "
        "languages, and to none. 95 % intervals by bootstrap over prompts.",
        (
            column("condition"),
            language_column("language", "prompts in"),
            column("position", "tokens of"),
            column("layer"),
            language_column("decoded"),
            column("share", "", "{:.1%}"),
            interval("{:.1%}"),
            column("shared", "", "{:.1%}"),
            column("none", "", "{:.1%}"),
        ),
        findings=layer_findings,
        figures=(
            Figure(
                "layer-languages-areas",
                (LAYER_LANGUAGES,),
                plots.layer_languages,
                "Which language the model would speak if it stopped after a block.",
                wide=True,
            ),
            Figure(
                "layer-words",
                (LAYER_WORDS,),
                plots.layer_words,
                "How likely the answer to a question is as a word of the prompt's language, and of another.",
                wide=True,
            ),
        ),
        folded=True,
    ),
    Section(
        "regions",
        "Regions of the model",
        (REGIONS,),
        "Understanding: the blocks before the pivot language overtakes the prompt's own; generation: those after which "
        "the own language stays ahead; reasoning: between. Thirds where one of them would be empty.",
        (
            language_column("language"),
            language_column("pivot"),
            column("region"),
            column("first", "from layer"),
            column("end", "to before"),
            column("rule"),
        ),
        folded=True,
    ),
    Section(
        "region-effects",
        "A language's neurons off by region",
        (REGION_EFFECTS,),
        "Change of the loss per token, or of the right answer's lead (margin), nats, with a language's neurons of one "
        "region and structure at zero, beside as many random ones per layer. 95 % intervals by bootstrap over rows of "
        "text or questions.",
        (
            language_column("group", "neurons of"),
            column("structure"),
            column("region"),
            language_column("evaluated", "measured in"),
            column("measure"),
            column("n_neurons", "neurons", "{:,}"),
            column("intact", "", "{:.3f}"),
            column("change", "", "{:+.3f}"),
            interval("{:+.3f}"),
            column("random_change", "change, random neurons", "{:+.3f}"),
            Column(("beyond_low", "beyond_high"), "beyond random, 95 % interval", "{:+.3f} to {:+.3f}"),
        ),
        findings=region_findings,
        figures=(
            Figure(
                "region-effects-map",
                (REGION_EFFECTS,),
                plots.region_effects,
                "What a language's own text loses without its neurons, by structure and region.",
                wide=True,
            ),
        ),
        language="group",
        folded=True,
    ),
)
