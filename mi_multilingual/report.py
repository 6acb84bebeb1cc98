"""A run folder becomes one self-contained HTML page."""

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import jinja2
import numpy as np
import pandas as pd
import plotly.graph_objects as go
from plotly.offline import get_plotlyjs

from . import plots
from .analysis.lape import lape_entropy
from .neurons import NeuronScores, NeuronSet
from .recording import ActivationStats

MOST_SPECIFIC = 5  # neurons listed a language
Shown = tuple[str, go.Figure, str]  # id, figure, how to read it


def report(folder: Path | str) -> Path:
    """Write `report.html` from the files of a run: stats.safetensors, neurons.safetensors, matrix.parquet.

    What else a run may hold is shown where it exists: significance.parquet, membership.safetensors, sharing.parquet,
    overlap.parquet, attribution.parquet, leaderboard.parquet, facts.parquet, continuations.json and run.json (how the
    run was made). The page needs no network.

    Raises:
        ValueError: a file of the run is missing.
    """
    folder = Path(folder)
    for name in ("stats.safetensors", "neurons.safetensors", "matrix.parquet"):
        if not (folder / name).exists():
            raise ValueError(
                f"{folder} has no {name}; run `mi-multilingual demo --out {folder}` or the single steps first"
            )
    stats = ActivationStats.load(folder / "stats.safetensors")
    neurons = NeuronSet.load(folder / "neurons.safetensors")
    matrix = pd.read_parquet(folder / "matrix.parquet")
    made = {
        "method": neurons.method,
        "parameters": dict(neurons.parameters),
        **stats.header(),
        **read_json(folder / "run.json", {}),
    }
    page = (
        environment()
        .get_template("report.html.j2")
        .render(
            model=stats.model,
            site=stats.site,
            method=neurons.method.upper() if neurons.method == "lape" else neurons.method,
            n_tokens=int(stats.n_tokens.sum()),
            made=made,
            findings=findings(matrix, neurons),
            figures=figures(stats, neurons, matrix) + further_figures(folder, neurons),
            languages=language_table(stats, neurons, matrix).to_dict("records"),
            specific=most_specific(stats, neurons).to_dict("records"),
            facts=read_table(folder / "facts.parquet"),
            examples=read_json(folder / "continuations.json", []),
            significance=read_table(folder / "significance.parquet"),
            leaderboard=read_table(folder / "leaderboard.parquet"),
            sharing=sharing_table(folder / "sharing.parquet"),
            plotlyjs=get_plotlyjs(),
        )
    )
    target = folder / "report.html"
    target.write_text(page, encoding="utf-8")
    return target


def read_json(path: Path, default: Any) -> Any:
    return json.loads(path.read_text(encoding="utf-8")) if path.exists() else default


def read_table(path: Path) -> list[dict[str, Any]]:
    return pd.read_parquet(path).to_dict("records") if path.exists() else []


def sharing_table(path: Path) -> list[dict[str, Any]]:
    """Share and stability of each type over all layers, a row a threshold and type."""
    if not path.exists():
        return []
    table = pd.read_parquet(path)
    weighted = table.assign(kept=table.stability.fillna(0.0) * table.n_neurons)
    total = weighted.groupby(["threshold", "type"], sort=False).agg(
        mean=("mean", "mean"), kept=("kept", "sum"), n_neurons=("n_neurons", "sum")
    )
    return total.assign(stability=total.kept / total.n_neurons.clip(lower=1)).reset_index().to_dict("records")


def environment() -> jinja2.Environment:
    """Templates with every value escaped unless it was made safe on purpose."""
    env = jinja2.Environment(
        loader=jinja2.PackageLoader("mi_multilingual"),
        autoescape=True,
        undefined=jinja2.StrictUndefined,
        trim_blocks=True,
    )
    env.filters["script_json"] = script_json
    return env


def script_json(value: Any) -> str:
    """JSON that may stand inside a script element: no character that could end it."""
    text = value if isinstance(value, str) else json.dumps(value)
    return text.replace("<", "\\u003c").replace(">", "\\u003e").replace("&", "\\u0026")


def effects(matrix: pd.DataFrame) -> dict[str, float]:
    """Change of the loss in nats a token: means over languages of the own, other and random effects; rows that hit."""
    off = matrix[~matrix.ablated.isin(["none", "random"])]
    own = off[off.ablated == off.evaluated]
    other = off[off.ablated != off.evaluated]
    random = matrix[matrix.ablated == "random"]
    hardest = off.loc[off.groupby("ablated")["change"].idxmax()]
    return {
        "own": own.change.mean(),
        "other": other.change.mean(),
        "random": random.change.mean(),
        "hits": int((hardest.ablated == hardest.evaluated).sum()),
        "certain": int((own.low > 0).sum()),
        "n_languages": len(own),
    }


def findings(matrix: pd.DataFrame, neurons: NeuronSet) -> list[str]:
    """The headline results in words, made from the numbers alone."""
    e = effects(matrix)
    own = matrix[matrix.ablated == matrix.evaluated].set_index("ablated")
    low, high = mean_interval(own.change.to_numpy())
    sizes = neurons.sizes()
    most, least = own.change.idxmax(), own.change.idxmin()
    others = "while the other languages lose nothing on average"
    if e["other"] > 0:
        others = f"{e['own'] / e['other']:.0f} times the mean effect on the other languages"
    shared = int((neurons.masks.sum(0) > 1).sum())
    return [
        f"Switching off a language's own neurons hurts that language most of all in {e['hits']} of {e['n_languages']} "
        f"languages; the loss rises with 95 % confidence in {e['certain']}.",
        f"Mean own effect: {e['own']:+.4f} nats a token (95 % interval over languages {low:+.4f} to {high:+.4f}), "
        f"{others} ({e['other']:+.4f}).",
        f"As many random neurons in the same layers: {e['random']:+.4f} nats a token.",
        f"The effect is largest for {most} ({own.change[most]:+.4f}, interval {own.low[most]:+.4f} to "
        f"{own.high[most]:+.4f}) and smallest for {least} ({own.change[least]:+.4f}, interval {own.low[least]:+.4f} to "
        f"{own.high[least]:+.4f}).",
        f"{int(neurons.union().sum())} of {neurons.masks[0].numel()} neurons belong to a language, {shared} of them to "
        f"several; {sizes.idxmin()} has fewest ({sizes.min()}), {sizes.idxmax()} most ({sizes.max()}).",
    ]


def mean_interval(values: np.ndarray, *, seed: int = 0, resamples: int = 2000) -> tuple[float, float]:
    """95 % bootstrap interval of the mean."""
    draws = np.random.default_rng(seed).integers(0, len(values), (resamples, len(values)))
    low, high = np.quantile(values[draws].mean(axis=1), [0.025, 0.975])
    return float(low), float(high)


def figures(stats: ActivationStats, neurons: NeuronSet, matrix: pd.DataFrame) -> list[dict[str, str]]:
    """Every figure of the page: id, plotly JSON and how to read it."""
    shown: list[Shown] = [
        (
            "change",
            plots.perplexity_change(matrix),
            "Red: text of the column was harder to predict when the neurons of the row were zero. Language "
            "neurons show as a red diagonal; the last row: as many random neurons in the same layers.",
        ),
        (
            "layers",
            plots.layer_counts(neurons),
            "Neurons of each language by layer, input at the left, output at the right.",
        ),
        (
            "overlap",
            plots.overlap(neurons),
            "Share of neurons that two languages have in common; related ones stand out.",
        ),
        (
            "entropy",
            plots.entropy_histogram(stats, neurons),
            "Left: neurons that fire in one language only. Right: neurons that fire equally often in all.",
        ),
    ]
    top = most_specific(stats, neurons).groupby("language", sort=False).head(1)
    for row in top.itertuples():
        figure = plots.neuron_profile(stats, row.layer, row.neuron)
        shown.append((f"neuron-{row.layer}-{row.neuron}", figure, f"The most specific neuron of {row.language}."))
    return as_json(shown)


def further_figures(folder: Path, neurons: NeuronSet) -> list[dict[str, str]]:
    """Figures of the tables that a run may hold."""
    shown: list[Shown] = []
    if (folder / "significance.parquet").exists():
        caption = "Neurons found, those that stay significant after correction, and what shuffled labels give."
        figure = plots.found_and_chance(pd.read_parquet(folder / "significance.parquet"))
        shown.append(("trust-chance", figure, caption))
    if (folder / "membership.safetensors").exists():
        caption = "Right: neurons that are chosen again whatever sentences the corpus happens to hold."
        scores = NeuronScores.load(folder / "membership.safetensors")
        shown.append(("trust-membership", plots.membership(scores, neurons), caption))
    if (folder / "sharing.parquet").exists():
        caption = "Types of neuron at the last token of parallel sentences; the band spans all sentences."
        figure = plots.sharing_by_layer(pd.read_parquet(folder / "sharing.parquet"))
        shown.append(("sharing-layers", figure, caption))
    if (folder / "overlap.parquet").exists():
        caption = "Languages that use the same neurons for the same sentence; ordered by similarity."
        shown.append(("sharing-overlap", plots.activity_overlap(pd.read_parquet(folder / "overlap.parquet")), caption))
    if (folder / "attribution.parquet").exists():
        caption = "Types among all neurons of a layer and among the tenth that contributes most, at fact questions."
        figure = plots.type_contributions(pd.read_parquet(folder / "attribution.parquet"))
        shown.append(("sharing-attribution", figure, caption))
    if (folder / "leaderboard.parquet").exists():
        caption = "Equally many neurons of each detector switched off; right: they matter to their own language alone."
        figure = plots.leaderboard(pd.read_parquet(folder / "leaderboard.parquet"))
        shown.append(("detectors", figure, caption))
    return as_json(shown)


def as_json(shown: Sequence[Shown]) -> list[dict[str, str]]:
    """Figures by id, each once."""
    unique = {key: (figure, caption) for key, figure, caption in shown}
    return [{"id": key, "json": str(figure.to_json()), "caption": caption} for key, (figure, caption) in unique.items()]


def language_table(stats: ActivationStats, neurons: NeuronSet, matrix: pd.DataFrame) -> pd.DataFrame:
    """One row a language: neurons, tokens, loss, and the effect of its own neurons, of others' and of random ones."""
    tokens = dict(zip(stats.languages, stats.n_tokens.tolist(), strict=True))
    sizes = neurons.sizes()
    rows = []
    for language, part in matrix.groupby("evaluated", sort=False):
        base = part[part.ablated == "none"].iloc[0]
        own = part[part.ablated == language].iloc[0]
        rows.append(
            {
                "language": language,
                "n_neurons": sizes[language],
                "n_tokens": tokens.get(str(language), 0),
                "ppl": base.ppl,
                "bits_per_byte": base.bits_per_byte,
                "own": own.change,
                "low": own.low,
                "high": own.high,
                "others": part[~part.ablated.isin(["none", "random", language])].change.mean(),
                "random": part[part.ablated == "random"].change.mean(),
            }
        )
    return pd.DataFrame(rows)


def most_specific(stats: ActivationStats, neurons: NeuronSet) -> pd.DataFrame:
    """The neurons of least entropy of every language: language, layer, neuron, entropy, probability, elsewhere."""
    probability = stats.activation_probability()
    frame = neurons.to_frame().rename(columns={"group": "language"})
    k = [stats.languages.index(g) for g in frame.language]
    layer, neuron = frame.layer.tolist(), frame.neuron.tolist()
    frame["entropy"] = lape_entropy(stats)[layer, neuron].numpy()
    frame["probability"] = probability[layer, neuron, k].numpy()
    total = probability[layer, neuron].sum(-1).numpy()
    frame["elsewhere"] = (total - frame.probability) / max(1, len(stats.languages) - 1)
    return (
        frame.sort_values("entropy")
        .groupby("language", sort=False)
        .head(MOST_SPECIFIC)
        .sort_values(
            ["language", "entropy"],
            key=lambda c: c.map({g: i for i, g in enumerate(neurons.groups)}) if c.name == "language" else c,
        )
    )
