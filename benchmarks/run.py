"""This package's work beside the same work by others: same model, same tokens, same result, calls taking turns.

    make bench

Every way is checked before its time counts. Ratios are of medians; least and most are those of single rounds. The
tables go to standard output, to be put into LOG.md, and all numbers into a JSON file where `--out` names one.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path

import evidence
import generating
import losses
import memory
import recording
import scoring
import torch
import transformers
from subjects import BACKENDS, MODELS, Subject, subjects
from timing import Row, matrix_rate, measured

TIMED = {
    "record": recording.cases,
    "generate": generating.cases,
    "matrix": losses.matrix_cases,
    "sweep": losses.sweep_cases,
    "scoring": scoring.cases,
    "evidence": evidence.cases,
}
PARTS = (*TIMED, "memory")


def compared(subject: Subject, part: str, rounds: int, peak: float) -> list[Row]:
    """Measure one part of one model, and print its tables."""
    dtype, rows = str(subject.dtype).removeprefix("torch."), []
    for case in TIMED[part](subject):
        if isinstance(case, str):
            print(f"{case}\n")
            continue
        found, sentences = measured(part, subject.name, dtype, case, rounds, peak)
        print(f"{part}, {subject.name}, {dtype}: {case.title}\n\n{table(found, speed=case.speed)}\n", flush=True)
        for sentence in sentences:
            print(f"{sentence}\n")
        rows += found
    return rows


def table(rows: Sequence[Row], *, speed: bool) -> str:
    """A markdown table."""
    share = any(row.share_of_peak for row in rows)
    head = ["way", "s", "speed" if speed else "ratio", "least", "most", "goal", "difference", "tokens/s"]
    head += ["of the matrix rate"] * share
    lines = [head, ["---"] * len(head)]
    for row in rows:
        goal = "" if row.goal is None else f"{'>=' if speed else '<='} {row.goal:g}"
        difference = "" if row.difference is None else f"{row.difference:.1g}"
        ratios = [f"{x:.3f}" for x in (row.ratio, row.least, row.most)]
        cells = [row.way, f"{row.seconds:.4g}", *ratios, goal, difference, f"{row.tokens_per_second:,.0f}"]
        lines.append([*cells, *(["" if row.share_of_peak is None else f"{row.share_of_peak:.0%}"] * share)])
    return "\n".join(f"| {' | '.join(line)} |" for line in lines)


def environment(device: str) -> str:
    name = torch.cuda.get_device_name() if device == "cuda" else platform.machine()
    load = f"load {os.getloadavg()[0]:.1f}" if hasattr(os, "getloadavg") else ""
    return (
        f"torch {torch.__version__}, transformers {transformers.__version__}, {device} ({name}), "
        f"{torch.get_num_threads()} threads, {os.cpu_count()} cores, {load} at the start; "
        f"backends {', '.join(BACKENDS)}"
    )


def _arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--models", nargs="+", choices=MODELS, default=list(MODELS))
    parser.add_argument("--parts", nargs="+", choices=PARTS, default=list(PARTS))
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--tokens", type=int, nargs="+", default=[10_000, 1_000_000], help="part memory: recorded")
    parser.add_argument("--out", type=Path, help="a JSON file for all numbers")
    return parser.parse_args()


def main() -> None:
    asked = _arguments()
    device = "cuda" if torch.cuda.is_available() else "cpu"
    about = environment(device)
    print(f"{about}\n", flush=True)
    rows: list[Row] = []
    peaks: dict[torch.dtype, float] = {}
    for subject in subjects(asked.models if set(asked.parts) & set(TIMED) else [], device):
        if isinstance(subject, str):
            print(f"{subject}\n", flush=True)
            continue
        peaks.setdefault(subject.dtype, matrix_rate(device, subject.dtype))
        for part in (part for part in TIMED if part in asked.parts):
            rows += compared(subject, part, asked.rounds, peaks[subject.dtype])
    used = memory.tables(asked.tokens) if "memory" in asked.parts else []
    if asked.out:
        found = {"environment": about, "rounds": asked.rounds, "times": [asdict(row) for row in rows], "memory": used}
        asked.out.write_text(json.dumps(found, indent=1) + "\n")


if __name__ == "__main__":
    main()
