"""This package's work beside the same work by others: same model, same tokens, same result, calls taking turns.

    make bench

Every way is checked before its time counts. Ratios are of medians; least and most are those of single rounds. Each part
of each model runs in a process of its own, and one that fails or takes too long is named and ends nothing else. One
table goes to standard output, to be put into LOG.md, what is going on to standard error, and all numbers into a JSON
file where `--out` names one.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

import evidence
import generating
import losses
import memory
import recording
import scoring
import torch
import transformers
from subjects import BACKENDS, DTYPES, MODELS, subject_of
from table import table
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
_CHECKPOINTS = ("demo", "smollm2")
PLAN = {
    **{part: [(model, "float32") for model in _CHECKPOINTS] for part in TIMED},
    "record": [(model, dtype) for dtype in DTYPES for model in MODELS if model != "deep"],
    "sweep": [(model, "float32") for model in (*_CHECKPOINTS, "deep")],
    "memory": [("", "")],
}
"""Part -> the models and number formats that are measured."""


def planned(parts: Sequence[str], models: Sequence[str], dtypes: Sequence[str]) -> list[tuple[str, str, str]]:
    """Part, model and number format of each process."""
    found = [(part, *of) for part in PARTS if part in parts for of in PLAN[part]]
    return [(part, model, dtype) for part, model, dtype in found if not model or (model in models and dtype in dtypes)]


def in_a_process(part: str, model: str, dtype: str, limit: float, options: Sequence[str]) -> dict[str, Any]:
    """What one part gives: its rows, and sentences about what is left out."""
    title = ", ".join(filter(None, (part, model, dtype)))
    with tempfile.TemporaryDirectory() as folder:
        out = Path(folder) / "found.json"
        command = [sys.executable, __file__, "--single", part, model, dtype, "--out", str(out), *options]
        ended = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True, process_group=0)
        try:
            _, complaints = ended.communicate(timeout=limit)
        except subprocess.TimeoutExpired:
            return {"rows": [], "sentences": [f"{title}: left out, not finished after {limit:.0f} s"]}
        finally:
            if ended.poll() is None:
                os.killpg(ended.pid, signal.SIGKILL)  # with the processes that it has started
                ended.wait()
        if ended.returncode == 0:
            return json.loads(out.read_text())
        reason = (complaints.strip().splitlines() or [f"exit status {ended.returncode}"])[-1][:200]
        return {"rows": [], "sentences": [f"{title}: left out, {reason}"]}


def single(part: str, model: str, dtype: str, rounds: int, tokens: Sequence[int]) -> dict[str, Any]:
    """Measure one part of one model in this process."""
    if part == "memory":
        return {"rows": [asdict(row) for row in memory.rows(tokens)], "sentences": []}
    device = "cuda" if torch.cuda.is_available() else "cpu"
    subject = subject_of(model, dtype, device)
    if isinstance(subject, str):
        return {"rows": [], "sentences": [subject]}
    peak, rows, sentences = matrix_rate(device, subject.dtype), [], []
    for case in TIMED[part](subject):
        if isinstance(case, str):
            sentences.append(case)
            continue
        found, wrong = measured(part, subject.name, dtype, case, rounds, peak)
        rows += found
        sentences += wrong
    return {"rows": [asdict(row) for row in rows], "sentences": sentences}


def environment() -> str:
    device = "cuda" if torch.cuda.is_available() else "cpu"
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
    parser.add_argument("--dtypes", nargs="+", choices=DTYPES, default=list(DTYPES))
    parser.add_argument("--parts", nargs="+", choices=PARTS, default=list(PARTS))
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--limit", type=float, default=600, help="seconds for each process")
    parser.add_argument("--tokens", type=int, nargs="+", default=[10_000, 500_000], help="part memory: recorded")
    parser.add_argument("--out", type=Path, help="a JSON file for all numbers")
    parser.add_argument("--single", nargs=3, help=argparse.SUPPRESS)
    return parser.parse_args()


def _all_parts(asked: argparse.Namespace) -> Iterator[dict[str, Any]]:
    options = ["--rounds", str(asked.rounds), "--tokens", *map(str, asked.tokens)]
    for part, model, dtype in planned(asked.parts, asked.models, asked.dtypes):
        started = time.monotonic()
        found = in_a_process(part, model, dtype, asked.limit, options)
        print(f"{part} {model} {dtype}: {time.monotonic() - started:.0f} s", *found["sentences"], file=sys.stderr)
        yield found


def main() -> None:
    asked = _arguments()
    if asked.single:
        asked.out.write_text(json.dumps(single(*asked.single, asked.rounds, asked.tokens)))
        return
    about, rows, sentences = environment(), list[Row](), list[str]()
    for part in _all_parts(asked):
        rows += [Row(**row) for row in part["rows"]]
        sentences = list(dict.fromkeys([*sentences, *part["sentences"]]))
        if asked.out:  # after every part, so that a run that is stopped loses nothing
            asked.out.parent.mkdir(parents=True, exist_ok=True)
            numbers = {"environment": about, "rounds": asked.rounds, "times": [asdict(row) for row in rows]}
            asked.out.write_text(json.dumps(numbers | {"left out": sentences}, indent=1) + "\n")
    print(f"{about}\n\n{table(rows)}\n")
    for sentence in sentences:
        print(f"- {sentence}")


if __name__ == "__main__":
    main()
