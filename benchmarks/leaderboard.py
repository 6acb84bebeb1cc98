"""Detectors on the demo model, where truth is what switching off does: equally many neurons of each.

    python benchmarks/leaderboard.py [--neurons 20]

Prints the table for LOG.md.
"""

import argparse

from mi_multilingual import (
    leaderboard,
    load_corpus,
    load_model,
    rankings,
)
from mi_multilingual.demo.job import LAPE, READING

PV = "parameter_variation"
TUNED = {"smallest": {"learning_rate": 3e-4}, "largest": {"optimizer": "sgd", "learning_rate": 0.01}}
SEEN, MEASURED = 120, 24  # sentences per language


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--neurons", type=int, default=20)
    n = parser.parse_args().neurons
    model = load_model("demo", device="cpu")
    identify = load_corpus("demo", split="identify", max_documents=SEEN)
    evaluate = load_corpus("demo", split="evaluate", max_documents=MEASURED)
    bar = {"filter_rate": LAPE["filter_rate"]}
    ranked = rankings(model, identify, settings={"lape": bar, "lave": bar})
    for mark, how in TUNED.items():
        found = rankings(model, identify, detectors=[PV], settings={PV: {**bar, "mark": mark, **how}}, reading=READING)
        ranked[f"{PV}, {mark}"] = found[PV]
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
