"""Sections on switching off neurons: what happens to the loss of every language."""

import pandas as pd

from ... import plots
from ...evaluation.intervals import mean_interval
from ...evidence.activations import ActivationStats
from ...neurons import NeuronSet
from ...patching.conditions import CHOSEN, INTACT, RANDOM
from ..files import MATRIX, NEURONS, STATS
from ..languages import named
from ..measured import apart
from ..section import SIGNED, Figure, Section
from ..tables import SEED, column, interval, language_column, said, seeds_where_random

_CONDITION_WORDS = {INTACT: "nothing", CHOSEN: "chosen neurons", RANDOM: "random neurons"}


def _language_table(matrix: pd.DataFrame, stats: ActivationStats, neurons: NeuronSet) -> pd.DataFrame:
    """One row for each language: its neurons, tokens and loss, and the change of its loss without its own neurons,
    those of others, and random ones."""
    tokens = dict(zip(stats.languages, stats.n_tokens.tolist(), strict=True))
    sizes = neurons.sizes()
    rows = []
    for code, part in matrix.groupby("evaluated", sort=False):
        chosen = part[part.condition == CHOSEN]
        if not (chosen.group == code).any():
            continue
        base, own = part[part.condition == INTACT].iloc[0], chosen[chosen.group == code].iloc[0]
        rows.append(
            {
                "language": code,
                "n_neurons": sizes[code],
                "n_tokens": tokens.get(str(code), 0),
                "ppl": base.ppl,
                "bits_per_byte": base.bits_per_byte,
                "own": own.change,
                "low": own.low,
                "high": own.high,
                "others": chosen[chosen.group != code].change.mean(),
                "random": part[part.condition == RANDOM].change.mean(),
            }
        )
    return pd.DataFrame(rows)


def ablation_effects(matrix: pd.DataFrame) -> dict[str, float]:
    """Change of the loss, nats per token: means over languages of the own, other and random effects; rows that hit."""
    off = matrix[matrix.condition == CHOSEN]
    own = off[off.group == off.evaluated]
    other = off[off.group != off.evaluated]
    hardest = off.loc[off.groupby("group")["change"].idxmax()]
    return {
        "own": own.change.mean(),
        "other": other.change.mean(),
        "random": matrix[matrix.condition == RANDOM].change.mean(),
        "hits": int((hardest.group == hardest.evaluated).sum()),
        "certain": int((own.low > 0).sum()),
        "n_languages": len(own),
    }


def ablation_findings(matrix: pd.DataFrame) -> list[str]:
    """What a `perplexity_matrix` says; nothing where no group is a language of the text."""
    off = matrix[matrix.condition == CHOSEN]
    own = off[off.group == off.evaluated].set_index("group")
    if own.empty:
        return []
    e = ablation_effects(matrix)
    rest = off[off.group != off.evaluated].groupby("group", sort=False)
    others, clear = rest["change"].mean(), int((own.low > rest["high"].max().reindex(own.index)).sum())
    low, high = mean_interval(own.change.to_numpy())
    sentences = [
        f"Switching off a language's own neurons hurts that language most of all in {e['hits']} of {e['n_languages']} "
        f"languages, in {clear} beyond the intervals of all other languages; its own loss rises with 95 % confidence "
        f"in {e['certain']}.",
        f"The mean own effect is {e['own']:+.4f} nats per token (95 % interval over languages {low:+.4f} to "
        f"{high:+.4f}).",
    ]
    if len(others):
        other = mean_interval(others.to_numpy())
        ratio = f", {e['own'] / e['other']:.0f} times less than the own one" if other[0] > 0 and low > other[1] else ""
        sentences.append(
            f"The mean effect on the other languages is {e['other']:+.4f} ({other[0]:+.4f} to {other[1]:+.4f}){ratio}."
        )
    return sentences + _against_random(matrix, own) + _extremes(own)


def _against_random(matrix: pd.DataFrame, own: pd.DataFrame) -> list[str]:
    """The own effect beside that of as many random neurons, language by language."""
    random = matrix[matrix.condition == RANDOM].groupby("evaluated", sort=False)
    if not len(random):
        return []
    highest = random["high"].max().reindex(own.index)
    return [
        f"As many random neurons in the same layers change the loss by {random['change'].mean().mean():+.4f} nats per "
        f"token; the interval of the own effect lies above those of all random controls in "
        f"{int((own.low > highest).sum())} of {len(own)} languages."
    ]


def _extremes(own: pd.DataFrame) -> list[str]:
    """The languages of largest and smallest own effect."""
    if len(own) < 2:
        return []
    most, least = own.loc[own.change.idxmax()], own.loc[own.change.idxmin()]
    certain = apart(most.low, most.high, least.low, least.high)
    return [
        f"The effect is largest for {named(str(most.name))}, {most.change:+.4f} (interval {most.low:+.4f} to "
        f"{most.high:+.4f}), and smallest for {named(str(least.name))}, {least.change:+.4f} (interval {least.low:+.4f} "
        f"to {least.high:+.4f}){'' if certain else '; the two intervals overlap'}."
    ]


SECTIONS = (
    Section(
        "effects",
        "Effects",
        (MATRIX,),
        "Change of the loss when the neurons of one language are switched off, nats per token, with 95 % intervals by "
        "bootstrap over rows of text. Random neurons: as many, drawn in the same layers.",
        (
            column("condition", "switched off", words=said(_CONDITION_WORDS)),
            language_column("group", "neurons of"),
            language_column("evaluated", "text"),
            SEED,
            column("n_neurons", "neurons", "{:,}"),
            column("change", "change, nats per token", SIGNED),
            interval(SIGNED),
            column("nll", "loss, nats per token", "{:.4f}"),
            column("n_tokens", "tokens", "{:,}"),
        ),
        build=seeds_where_random,
        findings=ablation_findings,
        language="evaluated",
        folded=True,
        figures=(
            Figure(
                "change",
                (MATRIX,),
                plots.perplexity_change,
                "Red: text of the column was harder to predict when the neurons of the row were zero. Language "
                "neurons show as a red diagonal; the last row: as many random neurons in the same layers.",
                wide=True,
            ),
        ),
    ),
    Section(
        "languages",
        "Languages",
        (MATRIX, STATS, NEURONS),
        "Where neurons are switched off: change of the loss, nats per token. Perplexity per token cannot be compared "
        "across languages; the changes and bits per byte can.",
        (
            language_column(),
            column("n_neurons", "neurons", "{:,}"),
            column("n_tokens", "tokens recorded", "{:,}"),
            column("ppl", "perplexity per token", "{:.1f}"),
            column("bits_per_byte", "bits per byte", "{:.3f}"),
            column("own", "own neurons off", SIGNED),
            interval(SIGNED),
            column("others", "other languages' neurons off", SIGNED),
            column("random", "random neurons off", SIGNED),
        ),
        build=_language_table,
    ),
)
