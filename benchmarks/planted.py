"""Which detectors find the planted truth: precision, recall and F1 over effect size, noise and number of tokens.

    python benchmarks/planted.py --out build/planted [--seeds 10]

Writes planted.parquet (one row per run), planted.html (curves) and prints the table for LOG.md. Every detector gives as
many neurons per language as the truth has on average.
"""

import argparse
from pathlib import Path

import numpy as np
import pandas as pd
from plotly.subplots import make_subplots
from tqdm.auto import tqdm

from mi_multilingual import (
    NeuronSet,
    Reading,
    lape,
    layer_matched_random,
    planted_model,
    planted_text,
    plots,
    rankings,
    record,
)

EFFECT, NOISE, TOKENS = 2.0, 0.4, 1000
SWEEPS = {
    "effect": [{"effect": e} for e in (0.0, 0.25, 0.5, 1.0, 2.0, 4.0)],
    "tokens": [{"tokens": n} for n in (40, 100, 300, 3000)],
    "noise": [{"noise": s} for s in (0.0, 0.2, 0.6, 0.8, 1.0)],
}
LARGEST = {"mark": "largest", "optimizer": "sgd", "learning_rate": 0.1}
"""The reading of parameter variation that finds something (see variation.py)."""
READING = Reading(layout="documents")


def score(found: NeuronSet, truth: NeuronSet) -> dict[str, float]:
    both, n_found, n_true = (int(m.sum()) for m in (found.masks & truth.masks, found.masks, truth.masks))
    return {
        "precision": both / max(1, n_found),
        "recall": both / n_true,
        "f1": 2 * both / max(1, n_found + n_true),
    }


def run(seed: int, *, effect: float = EFFECT, noise: float = NOISE, tokens: int = TOKENS) -> list[dict]:
    """Every detector on one planted model."""
    planted = planted_model(effect=effect, noise=noise, seed=seed)
    text = planted_text(planted, tokens, seed=seed)
    ranked = rankings(planted.model, text, progress=False)
    name, tuned = "parameter_variation", {"detectors": ["parameter_variation"], "progress": False}
    ranked |= rankings(planted.model, text, **tuned)
    ranked[f"{name}, largest"] = rankings(planted.model, text, settings={name: LARGEST}, **tuned)[name]
    rows = []
    for name, truth in (("causal", planted.causal), ("correlational", planted.correlational)):
        n = round(truth.sizes().mean())
        found = {detector: scores.top(n) for detector, scores in ranked.items()}
        found["random"] = layer_matched_random(truth, seed=seed)
        if name == "correlational":
            share = int(truth.union().sum()) / truth.masks[0].numel()
            stats = record(planted.model, text, reading=READING, progress=False)
            found["lape, its own selection"] = lape(stats, rate=share)
        for detector, neurons in found.items():
            rows.append({"truth": name, "detector": detector, "seed": seed, **score(neurons, truth)})
    return [{**row, "effect": effect, "noise": noise, "tokens": tokens} for row in rows]


def over_seeds(table: pd.DataFrame, by: list[str]) -> pd.DataFrame:
    """Means over seeds with 95 % bootstrap intervals of F1."""
    random = np.random.default_rng(0)

    def summary(part: pd.DataFrame) -> pd.Series:
        f1 = part.f1.to_numpy()
        low, high = np.quantile(random.choice(f1, (1000, len(f1))).mean(axis=1), [0.025, 0.975])
        means = {"precision": part.precision.mean(), "recall": part.recall.mean(), "f1": f1.mean()}
        return pd.Series({**means, "low": low, "high": high})

    return table.groupby(by, sort=False)[["precision", "recall", "f1"]].apply(summary).reset_index()


def figure(table: pd.DataFrame):
    """F1 against both truths (rows) over the three axes (columns)."""
    whole = make_subplots(
        2,
        3,
        subplot_titles=[f"{truth} truth over {axis}" for truth in ("causal", "correlational") for axis in SWEEPS],
        vertical_spacing=0.12,
    )
    for i, truth in enumerate(("causal", "correlational")):
        for k, axis in enumerate(SWEEPS):
            others = {"effect": EFFECT, "noise": NOISE, "tokens": TOKENS}
            others.pop(axis)
            part = table[(table.truth == truth) & np.logical_and.reduce([table[a] == v for a, v in others.items()])]
            curves = over_seeds(part.sort_values(axis, kind="stable"), ["detector", axis])
            for trace in plots.recovery(curves, axis, title="").data:
                trace.legendgroup = trace.name
                trace.showlegend = (i, k) == (1, 0)
                whole.add_trace(trace, row=i + 1, col=k + 1)
            whole.update_xaxes(title_text=axis, type="log" if axis == "tokens" else "linear", row=i + 1, col=k + 1)
            whole.update_yaxes(title_text="F1", range=[0, 1.03], row=i + 1, col=k + 1)
    return whole.update_layout(title="Planted neurons: who finds them", width=1300, height=800, template="plotly_white")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--seeds", type=int, default=10)
    arguments = parser.parse_args()
    arguments.out.mkdir(parents=True, exist_ok=True)
    settings = [{}] + [s for axis in SWEEPS.values() for s in axis if s not in ({"effect": EFFECT},)]
    jobs = [(seed, setting) for setting in settings for seed in range(arguments.seeds)]
    rows = [row for seed, setting in tqdm(jobs, unit="run") for row in run(seed, **setting)]
    table = pd.DataFrame(rows)
    table.to_parquet(arguments.out / "planted.parquet")
    figure(table).write_html(arguments.out / "planted.html")
    strong = table[(table.effect == EFFECT) & (table.noise == NOISE) & (table.tokens == TOKENS)]
    print(f"effect {EFFECT}, noise {NOISE}, {TOKENS} tokens per language, {arguments.seeds} seeds\n")
    print("| truth | detector | precision | recall | F1 | 95 % interval |\n|---|---|---|---|---|---|")
    for row in (
        over_seeds(strong, ["truth", "detector"]).sort_values(["truth", "f1"], ascending=[True, False]).itertuples()
    ):
        print(
            f"| {row.truth} | {row.detector} | {row.precision:.3f} | {row.recall:.3f} | {row.f1:.3f} "
            f"| {row.low:.3f} to {row.high:.3f} |"
        )


if __name__ == "__main__":
    main()
