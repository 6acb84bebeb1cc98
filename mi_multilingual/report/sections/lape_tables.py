"""Sections on the ways to choose language neurons, side by side."""

import pandas as pd

from ... import plots
from ..files import ABLATION_COMPARISON, ABLATION_CURVE, ABLATION_MATRIX
from ..section import SIGNED, Figure, Section
from ..tables import column, interval


def comparison_findings(table: pd.DataFrame) -> list[str]:
    """What an `ablation_comparison` says of the first method against its controls and the others."""
    first = str(table.method.iloc[0])
    mine = table[table.method == first].set_index("measure")
    sentences = []
    if "dominance beyond random" in mine.index:
        row = mine.loc["dominance beyond random"]
        word = "more" if row.low > 0 else "less" if row.high < 0 else "neither certainly more nor certainly less"
        sentences.append(
            f"Without its own neurons by {first} a language loses {mine.value['own']:+.3f} nats per token, without "
            f"those of another {mine.value['others']:+.3f}. That is {word} of its own than with as many random neurons "
            f"per layer: a difference of {row.value:+.3f} (95 % interval {row.low:+.3f} to {row.high:+.3f})."
        )
    behind = table[table.measure == "less than the first"]
    for row in behind.itertuples():
        if row.low > 0 or row.high < 0:
            word = "less" if row.low > 0 else "more"
            least, most = sorted((abs(row.low), abs(row.high)))
            sentences.append(
                f"The neurons of {row.method} ({row.n_neurons:,.0f} per language) cost a language "
                f"{abs(row.value):.3f} nats per token {word} than those of {first} ({mine.n_neurons.iloc[0]:,.0f}; "
                f"95 % interval {least:.3f} to {most:.3f})."
            )
    return sentences


SECTIONS = (
    Section(
        "methods-compared",
        "Methods side by side",
        (ABLATION_COMPARISON,),
        "Changes of the loss when neurons are switched off, nats per token, means over languages with 95 % intervals "
        "by bootstrap over rows of text. Dominance: own less others. Beyond random: less the same with as many random "
        "neurons per layer.",
        (
            column("method"),
            column("measure"),
            column("n_neurons", "neurons per language", "{:,.1f}"),
            column("value", "nats per token", SIGNED),
            interval(SIGNED),
        ),
        findings=comparison_findings,
        folded=True,
        figures=(
            Figure(
                "methods-bars",
                (ABLATION_COMPARISON,),
                plots.ablation_bars,
                "What a language loses without its own neurons and without those of other languages, by method.",
                wide=True,
            ),
            Figure(
                "methods-panels",
                (ABLATION_MATRIX,),
                plots.ablation_panels,
                "A panel for each method and control, in the same colours: red where text of the column was harder to "
                "predict when the neurons of the row were off.",
                wide=True,
            ),
            Figure(
                "methods-panels-ppl",
                (ABLATION_MATRIX,),
                lambda matrix: plots.ablation_panels(matrix, unit="ppl"),
                "The same in perplexity per token, which cannot be compared across languages.",
                wide=True,
            ),
            Figure(
                "methods-curve",
                (ABLATION_CURVE,),
                plots.loss_against_size,
                "The loss of a language against the number of its neurons that are off, best first, beside as many "
                "random ones per layer.",
                wide=True,
            ),
        ),
    ),
)
