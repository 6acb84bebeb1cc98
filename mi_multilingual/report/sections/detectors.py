"""Sections on detectors: how far the neurons can be trusted, and how detectors compare."""

import pandas as pd

from ... import plots
from ...display import spoken
from ...patching.conditions import CHOSEN, RANDOM
from ..files import LEADERBOARD, MEMBERSHIP, NEURONS, SIGNIFICANCE
from ..languages import listed, named
from ..measured import apart
from ..section import SIGNED, Figure, Section
from ..tables import column, interval, language_column


def significance_findings(table: pd.DataFrame) -> list[str]:
    """What a `permutation_test` beside the `half_agreement` says."""
    above = int((table.found > table.chance_high).sum())
    sentences = [
        f"{int(table.significant.sum()):,} of {int(table.found.sum()):,} memberships stay significant after "
        f"correction; shuffled labels give {table.chance_mean.mean():.1f} per language on average, and more were found "
        f"than in 95 % of the shuffles in {above} of {len(table)} languages."
    ]
    if "agreement" in table:
        worst = table.loc[table.agreement.idxmin()]
        sentences.append(
            f"Two halves of the text agree on {table.agreement.mean():.0%} of the neurons on average over languages "
            f"(Jaccard overlap), least for {named(worst.language)}: {worst.agreement:.2f} (interval {worst.low:.2f} to "
            f"{worst.high:.2f})."
        )
    return sentences


def _leaderboard_table(table: pd.DataFrame) -> pd.DataFrame:
    """The `leaderboard` with its detectors as people say them, random neurons among them."""
    return table.assign(detector=table.detector.map(spoken).where(table.condition != RANDOM, "random neurons"))


def leaderboard_findings(table: pd.DataFrame) -> list[str]:
    """What a `leaderboard` says."""
    ranked = table[table.condition == CHOSEN].sort_values("specificity", ascending=False)
    if ranked.empty:
        return []
    best = ranked.iloc[0]
    sentence = (
        f"The detector {spoken(best.detector)} is most specific ({best.specificity:+.4f} nats per token, 95 % interval "
        f"{best.low:+.4f} to {best.high:+.4f})"
    )
    rivals = [row for row in ranked.iloc[1:].itertuples() if not apart(best.low, best.high, row.low, row.high)]
    if rivals:
        sentence += f", but its interval overlaps with that of {listed([spoken(row.detector) for row in rivals])}"
    sentences = [sentence + "."]
    floor = table[table.condition == RANDOM]
    if len(floor):
        beaten = int((ranked.low > floor.high.iloc[0]).sum())
        sentences.append(f"The intervals of {beaten} of {len(ranked)} detectors lie above that of random neurons.")
    if "stability" in table and ranked.stability.notna().any():
        steady = ranked.loc[ranked.stability.idxmax()]
        sentences.append(
            f"The sets of the detector {spoken(steady.detector)} change least between two halves of the corpus (mean "
            f"Jaccard overlap {steady.stability:.2f}; no interval)."
        )
    return sentences


SECTIONS = (
    Section(
        "significance",
        "More than chance?",
        (SIGNIFICANCE,),
        "Chance: language labels shuffled over documents. Significant: 5 % false discoveries allowed (Benjamini and "
        "Hochberg). Agreement: Jaccard overlap of the sets found on random halves of the documents, from the lowest to "
        "the highest.",
        (
            language_column(),
            column("found", "neurons found"),
            column("significant"),
            column("chance_mean", "found by chance, mean", "{:.1f}"),
            column("chance_high", "found by chance in 95 % of shuffles, at most", "{:.0f}"),
            column("agreement", "agreement of two halves", "{:.2f}"),
            column("low high", "lowest to highest", "{:.2f} to {:.2f}"),
        ),
        findings=significance_findings,
        figures=(
            Figure(
                "trust-chance",
                (SIGNIFICANCE,),
                plots.found_and_chance,
                "Neurons found, those that stay significant after correction, and what shuffled labels give.",
            ),
            Figure(
                "trust-membership",
                (MEMBERSHIP, NEURONS),
                plots.membership,
                "Right: neurons that are chosen again whatever sentences the corpus happens to hold.",
            ),
        ),
    ),
    Section(
        "leaderboard",
        "Detectors compared",
        (LEADERBOARD,),
        "Change of the loss when the neurons are switched off, nats per token, means over languages; intervals by "
        "bootstrap over rows of text. Stability: mean Jaccard overlap of the sets on two halves of the corpus. Random "
        "neurons: as many in the same layers.",
        (
            column("detector"),
            column("n_neurons", "neurons per language", "{:.0f}"),
            column("own", "own language", SIGNED),
            column("elsewhere", "other languages", SIGNED),
            column("specificity", "specificity", SIGNED),
            interval(SIGNED),
            column("hits", "languages hurt most by their own"),
            column("stability", "stability", "{:.2f}"),
        ),
        build=_leaderboard_table,
        findings=leaderboard_findings,
        figures=(
            Figure(
                "detectors",
                (LEADERBOARD,),
                plots.leaderboard,
                "Equally many neurons of each detector switched off; right: they matter to their own language alone.",
                wide=True,
            ),
        ),
    ),
)
