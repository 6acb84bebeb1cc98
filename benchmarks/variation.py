"""Readings of parameter variation on planted models: which of them finds the truth.

    python benchmarks/variation.py [--seeds 5]

Prints the table for LOG.md. Every reading gives as many neurons per language as the truth has on average.
"""

import argparse
from dataclasses import replace
from itertools import product

import pandas as pd
import torch
from planted import READING, score
from tqdm.auto import tqdm

from mi_multilingual import Training, parameter_variation_scores, planted_model, planted_text
from mi_multilingual.evidence.weight_change import WEIGHTS, WeightChange, record_tuned_change

TUNED = {
    "Adam, 1 step": Training(1, 1e-3),
    "Adam, 20 steps": Training(20, 1e-3),
    "descent, 1 step": Training(1, 0.1, optimizer="sgd"),
    "descent, 20 steps": Training(20, 0.1, optimizer="sgd"),
}
MARKS = ("smallest", "smallest of those that move", "largest")


def read(change: WeightChange, mark: str):
    """Scores by one reading; "of those that move" leaves out neurons that no language changes."""
    if mark == MARKS[1]:
        still = change.relative.amax(dim=-1, keepdim=True) < 1e-9
        change = replace(change, relative=change.relative.masked_fill(still, torch.inf))
    return parameter_variation_scores(change, mark=mark.split()[0])


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--seeds", type=int, default=5)
    rows = []
    for seed in tqdm(range(parser.parse_args().seeds), unit="model"):
        planted = planted_model(seed=seed)
        text = planted_text(planted, 1000, seed=seed)
        for (tuning, training), weights in product(TUNED.items(), WEIGHTS):
            how = {"reading": READING, "training": training, "weights": weights, "progress": False}
            change = record_tuned_change(planted.model, text, **how)
            for mark, truth in product(MARKS, ("causal", "correlational")):
                true = getattr(planted, truth)
                found = read(change, mark).top(round(true.sizes().mean()))
                rows.append((tuning, weights, mark, truth, score(found, true)["f1"]))
    table = pd.DataFrame(rows, columns=["tuning", "weights", "mark", "truth", "f1"])
    wide = table.pivot_table("f1", ["tuning", "weights"], ["mark", "truth"], sort=False)
    print(wide.round(3).to_string())


if __name__ == "__main__":
    main()
