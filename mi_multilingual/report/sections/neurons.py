"""Sections on the language neurons themselves."""

import pandas as pd

from ... import plots
from ...detectors.lape import lape_entropy
from ...evidence.activations import ActivationStats
from ...neurons import NeuronSet
from ..files import NEURONS, STATS
from ..languages import named
from ..section import Figure, Section
from ..tables import NEURON, column, language_column

_LISTED = 100  # neurons of each language in the table of language neurons


def _neuron_table(neurons: NeuronSet, stats: ActivationStats) -> pd.DataFrame:
    """The neurons of least entropy of every language: language, layer, neuron, entropy, probability, elsewhere."""
    probability = stats.activation_probability()
    frame = neurons.to_frame().rename(columns={"group": "language"})
    known = frame.language.isin(stats.languages).to_numpy()
    frame = frame[known].reset_index(drop=True)
    k = [stats.languages.index(g) for g in frame.language]
    layer, neuron = frame.layer.tolist(), frame.neuron.tolist()
    frame["entropy"] = lape_entropy(stats)[layer, neuron].numpy()
    frame["probability"] = probability[layer, neuron, k].numpy()
    total = probability[layer, neuron].sum(-1).numpy()
    frame["elsewhere"] = (total - frame.probability) / max(1, len(stats.languages) - 1)
    order = {g: i for i, g in enumerate(neurons.groups)}
    best = frame.sort_values("entropy", kind="stable").groupby("language", sort=False).head(_LISTED)
    return best.sort_values("language", key=lambda names: names.map(order), kind="stable")


def _size_findings(neurons: NeuronSet, stats: ActivationStats) -> list[str]:
    """How many neurons belong to the groups."""
    n = neurons.sizes()
    shared = int((neurons.masks.sum(0) > 1).sum())
    return [
        f"{int(neurons.union().sum()):,} of {neurons.masks[0].numel():,} neurons belong to a language, {shared:,} of "
        f"them to several; {named(str(n.idxmin()))} has fewest ({n.min():,}), {named(str(n.idxmax()))} most "
        f"({n.max():,})."
    ]


SECTIONS = (
    Section(
        "neurons",
        "Language neurons",
        (NEURONS, STATS),
        f"At most {_LISTED} per language, those of least entropy first. A neuron leads to its own page.",
        (
            language_column(),
            NEURON,
            column("entropy", "entropy, nats", "{:.3f}"),
            column("probability", "activation probability", "{:.3f}"),
            column("elsewhere", "mean of other languages", "{:.4f}"),
        ),
        build=_neuron_table,
        findings=_size_findings,
        figures=(
            Figure(
                "map",
                (STATS, NEURONS),
                plots.neuron_map,
                "Every point is a language neuron: the lower, the more of its activity is in one language. Click "
                "one for its page.",
            ),
            Figure(
                "layers",
                (NEURONS,),
                plots.layer_counts,
                "Neurons of each language by layer, input at the left, output at the right.",
            ),
            Figure(
                "overlap",
                (NEURONS,),
                plots.overlap,
                "Share of neurons that two languages have in common; related ones stand out.",
            ),
            Figure(
                "entropy",
                (STATS, NEURONS),
                plots.entropy_histogram,
                "Left: neurons that fire in one language only. Right: neurons that fire equally often in all.",
            ),
        ),
    ),
)
