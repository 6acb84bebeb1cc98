"""Detectors on the demo model, where truth is what switching off does: equally many neurons of each.

    python benchmarks/leaderboard.py [--neurons 20]

Prints the table for LOG.md.
"""

import argparse
import copy

import torch

from mi_multilingual import (
    leaderboard,
    load_corpus,
    load_model,
    parameter_variation_scores,
    rankings,
    record_weight_change,
)
from mi_multilingual.demo.job import LAPE, READING
from mi_multilingual.tokens import token_rows

TUNING_STEPS, TUNING_RATE, ROWS = 10, 3e-4, 32
SEEN, MEASURED = 120, 24  # sentences per language


def tuned(model, corpus, language: str):
    """A copy of the model after a few steps of Adam on one language."""
    other = copy.deepcopy(model)
    rows = token_rows(corpus, language, model.tokenizer, READING.for_model(model))
    batches = list(rows.batches(ROWS))
    optimizer = torch.optim.Adam(other.parameters(), lr=TUNING_RATE)
    for step in range(TUNING_STEPS):
        batch = batches[step % len(batches)]
        logits = other(batch.tokens, return_type="logits")[:, :-1]
        nll = torch.nn.functional.cross_entropy(logits.flatten(0, 1), batch.tokens[:, 1:].flatten(), reduction="none")
        optimizer.zero_grad()
        nll[batch.valid[:, 1:].flatten()].mean().backward()
        optimizer.step()
    return other


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--neurons", type=int, default=20)
    n = parser.parse_args().neurons
    model = load_model("demo", device="cpu")
    identify = load_corpus("demo", split="identify", max_documents=SEEN)
    evaluate = load_corpus("demo", split="evaluate", max_documents=MEASURED)
    bar = {"filter_rate": LAPE["filter_rate"]}
    ranked = rankings(model, identify, settings={"lape": bar, "lave": bar})
    change = record_weight_change(model, {k: tuned(model, identify, k) for k in identify.languages})
    ranked["parameter_variation"] = parameter_variation_scores(change, **bar)
    table = leaderboard(model, evaluate, {name: s.top(n) for name, s in ranked.items()}, reading=READING)
    print(f"{n} neurons per language, {len(evaluate.documents['en'])} sentences\n")
    print("| detector | own | elsewhere | specificity | 95 % interval | own language hurt most |")
    print("|---|---|---|---|---|---|")
    for row in table.itertuples():
        print(
            f"| {row.detector or 'random neurons'} | {row.own:+.4f} | {row.elsewhere:+.4f} | {row.specificity:+.4f} "
            f"| {row.low:+.4f} to {row.high:+.4f} | {row.hits} of {len(evaluate.languages)} |"
        )


if __name__ == "__main__":
    main()
