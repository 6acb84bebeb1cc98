"""Writes docs/reproduction.md: every claim, what the paper reports, what two models show, and whether it holds.

`make reproduction` runs the protocols of docs/reproduction on both models, each into a run folder in
build/reproduction, and the claims are measured on the tables there. Stopped at any moment, it goes on where it was.
"""

import argparse
import importlib
import json
import pkgutil
import time
from collections.abc import Mapping, Sequence
from importlib.metadata import version
from pathlib import Path
from typing import Any

import pandas as pd
import yaml

import claims
from claims.claim import DIGITS, FAILS, HOLDS, OPEN, Claim, Effect, verdict
from mi_multilingual.experiments import load_study, run, study_tables

HERE = Path(__file__).parents[1]
SIZES: Mapping[str, Mapping[str, Any]] = yaml.safe_load((HERE / "reproduction" / "sizes.yaml").read_text("utf-8"))
"""Model -> protocol -> the keys of the study file that say how much is measured, for an hour at most."""
SAID = {HOLDS: "hold", FAILS: "do not", OPEN: "cannot be told"}
NAMES = {"demo": "the demo model", "smollm2": "SmolLM2-135M-Instruct"}
HEAD = """# What holds

Every claim of the papers that a study of this package can measure, on two small models: the embedded one, which was
trained on ten languages, and SmolLM2-135M-Instruct, which was trained mostly on English. The papers measured models of
seven billion parameters and more, so a claim that fails here may hold there: each protocol is a study file, and one
line of it names the model.

The verdict is computed, from the 95 % interval of the effect less its control: **holds** if the interval is on the
claim's side of zero, **does not** if it is on the other side, or within the margin that the table states; else **cannot
be told**, as where every value measured is the same, so that there is no interval. `make reproduction` runs everything
and writes this page; nothing in it is written by hand.
"""
TAIL = """
## On a model of your own

    mi-multilingual plan docs/reproduction/representations.yaml --set model=meta-llama/Llama-2-7b-hf
    mi-multilingual run docs/reproduction/representations.yaml --set model=meta-llama/Llama-2-7b-hf --out runs/llama

`plan` tells time and memory before anything runs. How much was measured here is in `docs/reproduction/sizes.yaml` and,
since the text was the demo's, in the part `demo` of each preset (`mi_multilingual/experiments/presets`): few sentences,
and often one draw of random neurons (`seeds`). With text of your own (`--set corpus=FOLDER`) the presets take the
papers' sizes.
"""


def all_claims() -> list[Claim]:
    """The claims of all modules beside `claim`, in the order of their files."""
    modules = [importlib.import_module(f"claims.{m.name}") for m in pkgutil.iter_modules(claims.__path__)]
    return [claim for module in modules for claim in getattr(module, "CLAIMS", ())]


def run_protocols(names: Sequence[str], models: Sequence[str], folder: Path) -> dict[tuple[str, str], pd.Series]:
    """Run every protocol on every model; by protocol and model, what became of it: seconds, and error or ""."""
    outcome = {}
    for model in models:
        for name in names:
            study = load_study(HERE / "reproduction" / f"{name}.yaml", [f"model={model}", *sizes(model, name)])
            started = time.monotonic()
            made = run(study, folder / model / name, progress=False)
            error = "; ".join(made.failed.error) if len(made.failed) else ""
            outcome[name, model] = pd.Series({"seconds": made.seconds, "error": error})
            print(f"{model} {name}: {time.monotonic() - started:.0f} s {error}", flush=True)
    return outcome


def sizes(model: str, name: str) -> list[str]:
    """What the protocol's file is given beside the model: `every` protocol's keys, and its own."""
    own = {**SIZES[model].get("every", {}), **SIZES[model].get(name, {})}
    return [f"{key}={json.dumps(value)}" for key, value in own.items()]


def measured(claim: Claim, folder: Path) -> Effect | str:
    """The effect of a claim on one model, or why there is none."""
    if not (folder / claim.study).exists():
        return "not measured"
    try:
        tables = study_tables(folder / claim.study)
        return claim.measure(tables)
    except (ValueError, KeyError, ZeroDivisionError) as error:
        return f"not measured: {' '.join(str(error).split())[:160]}"


def table(found: Mapping[tuple[Claim, str], Effect | str], models: Sequence[str]) -> str:
    """One row per claim."""
    columns = ["paper", "claim", "reported", *(NAMES[m] for m in models), "held against", "margin", "protocol"]
    rows = ["| " + " | ".join(columns) + " |", "|---" * len(columns) + "|"]
    for claim in dict.fromkeys(claim for claim, _ in found):
        effects = [found[claim, m] for m in models]
        control = next((e.control for e in effects if isinstance(e, Effect)), "")
        cells = [claim.paper, claim.text, claim.reported, *(in_words(claim, e) for e in effects)]
        cells += [control, f"{claim.delta:g} {claim.unit}", f"[{claim.study}](reproduction/{claim.study}.yaml)"]
        rows.append("| " + " | ".join(" ".join(str(c).replace("|", "/").split()) for c in cells) + " |")
    return "\n".join(rows)


def in_words(claim: Claim, effect: Effect | str) -> str:
    """Effect, interval and verdict."""
    if isinstance(effect, str):
        return effect
    if effect.value != effect.value:
        return f"**{OPEN}**: too little text for a value"
    sign = "+" if min(effect.low, effect.value) < 0 or claim.direction < 0 else ""
    if effect.low == effect.high:
        return f"**{OPEN}**: {effect.value:{sign}.3g} {claim.unit} in every case, so without an interval"
    numbers = ", ".join(f"{round(x, DIGITS) + 0.0:{sign}.3g}" for x in (effect.low, effect.high))
    return f"**{verdict(claim, effect)}**: {effect.value:{sign}.3g} ({numbers}) {claim.unit}"


def counts(found: Mapping[tuple[Claim, str], Effect | str], models: Sequence[str]) -> str:
    """How many claims hold, per model."""
    lines = []
    for model in models:
        said = [verdict(c, e) for (c, m), e in found.items() if m == model and isinstance(e, Effect)]
        numbers = ", ".join(f"{said.count(word)} {many}" for word, many in SAID.items())
        n_claims = len({c for c, _ in found})
        lines.append(f"Of {n_claims} claims, {len(said)} were measured on {NAMES[model]}: {numbers}.")
    return "\n".join(lines)


def times(outcome: Mapping[tuple[str, str], pd.Series], models: Sequence[str]) -> str:
    """How long every protocol took."""
    rows = ["| protocol | " + " | ".join(f"{NAMES[m]}, s" for m in models) + " |", "|---" * (1 + len(models)) + "|"]
    for name in dict.fromkeys(name for name, _ in outcome):
        taken = [outcome[name, m].error or f"{outcome[name, m].seconds:.0f}" for m in models]
        rows.append(f"| [{name}](reproduction/{name}.yaml) | " + " | ".join(t.replace("|", "/") for t in taken) + " |")
    whole = (f"{sum(found.seconds for (_, m), found in outcome.items() if m == model):.0f}" for model in models)
    rows.append("| all | " + " | ".join(whole) + " |")
    return "\n".join(rows)


def main() -> None:
    """Run, measure, write."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--model", action="append", choices=NAMES, help="one of the models; both by default")
    parser.add_argument("--out", type=Path, default=Path("build/reproduction"), help="run folders")
    options = parser.parse_args()
    models, known = options.model or list(NAMES), all_claims()
    names = list(dict.fromkeys(claim.study for claim in known))
    outcome = run_protocols(names, models, options.out)
    found = {(claim, model): measured(claim, options.out / model) for claim in known for model in models}
    versions = ", ".join(f"{p} {version(p)}" for p in ("mi_multilingual", "transformer-lens", "torch", "transformers"))
    parts = [HEAD, counts(found, models), table(found, models)]
    parts += ["## What it took", f"On this machine, two cores, {versions}.", times(outcome, models)]
    page = "\n\n".join(part.strip() for part in parts) + "\n" + TAIL
    (HERE / "reproduction.md").write_text(page, encoding="utf-8")


if __name__ == "__main__":
    main()
