"""The embedded demo: a small multilingual model, ten languages of text, facts, and the main job on them."""

import json
import platform
import time
from collections.abc import Callable
from importlib.metadata import version
from importlib.resources import files
from pathlib import Path
from typing import Any

import pandas as pd

from ..analysis.lape import lape
from ..corpora import load_corpus
from ..evaluation.generation import generate
from ..evaluation.perplexity import perplexity_matrix
from ..evaluation.quality import wilson_interval
from ..evaluation.tasks import Item, choice_accuracy
from ..models import load_model
from ..recording import record
from ..report import report

LAPE = {"top_rate": 0.05, "filter_rate": 0.985}
"""How LAPE is asked here. 1 % of all neurons, the paper's rate, would be six a language in so small a model; and where
only one neuron in 25 is active at a token, the paper's 0.95 lets neurons pass that hardly ever fire."""
LAYOUT = "documents"  # the corpus is single sentences
PROMPTS_A_LANGUAGE = 3
WITHOUT_SPACES = ("ja", "zh")
HELD_OUT_WORDING = 2
"""The wording of every relation that is not in the training text."""


def load_facts(*, wordings: tuple[int, ...] = (0, 1)) -> list[Item]:
    """Capital, main language and continent of 40 countries as questions in ten languages.

    The choices are all answers that occur for the relation in the language. Wordings 0 and 1 are part of the model's
    training text, wording 2 is not.
    """
    lines = files("mi_multilingual.demo").joinpath("facts.jsonl").read_text(encoding="utf-8").splitlines()
    facts = pd.DataFrame([json.loads(line) for line in lines])
    answers = facts.groupby(["relation", "lang"])["answer"].unique().map(sorted)
    items = []
    for fact in facts[facts.wording.isin(wordings)].itertuples():
        gap = "" if fact.lang in WITHOUT_SPACES else " "
        choices = answers[fact.relation, fact.lang]
        items.append(
            Item(
                id=f"{fact.country}/{fact.relation}/{fact.wording}",
                language=fact.lang,
                task=fact.relation,
                prompt=fact.prompt,
                choices=tuple(f"{gap}{choice}{fact.tail}" for choice in choices),
                answer=choices.index(fact.answer),
            )
        )
    return items


def run_demo(out: Path | str, *, progress: bool = True) -> Path:
    """The main job on the embedded model and corpus: language neurons, their ablation, and the page that shows it.

    Writes stats.safetensors, neurons.safetensors, matrix.parquet, facts.parquet, continuations.json, run.json and
    report.html into `out`, and returns the path of the page.
    """
    out = Path(out)
    out.mkdir(parents=True, exist_ok=True)
    seconds: dict[str, float] = {}

    def timed(step: str, call: Callable[[], Any]) -> Any:
        started = time.monotonic()
        result = call()
        seconds[step] = round(time.monotonic() - started, 2)
        return result

    model = timed("load", lambda: load_model("demo"))
    identify, evaluate = (load_corpus("demo", split=split) for split in ("identify", "evaluate"))
    stats = timed("record", lambda: record(model, identify, layout=LAYOUT, progress=progress))
    stats.save(out / "stats.safetensors")
    neurons = timed("lape", lambda: lape(stats, **LAPE))
    neurons.save(out / "neurons.safetensors")
    matrix = timed("ablate", lambda: perplexity_matrix(model, evaluate, neurons, layout=LAYOUT, progress=progress))
    matrix.to_parquet(out / "matrix.parquet")
    facts = load_facts(wordings=(0,))
    asked = sorted({fact_country(item) for item in facts})[::4]  # ten countries, so that the demo takes a minute
    questions = [item for item in facts if fact_country(item) in asked]
    answers = timed("facts", lambda: choice_accuracy(model, questions, progress=progress))
    fact_table(answers).to_parquet(out / "facts.parquet")
    prompts = [(k, opening(d, k)) for k, docs in evaluate.documents.items() for d in docs[:PROMPTS_A_LANGUAGE]]
    continued = timed("generate", lambda: generate(model, [p for _, p in prompts], progress=progress))
    examples = [{"language": k, "prompt": p, "continuation": c} for (k, p), c in zip(prompts, continued, strict=True)]
    (out / "continuations.json").write_text(json.dumps(examples, ensure_ascii=False, indent=1), encoding="utf-8")
    run = {
        "evaluated_on": evaluate.fingerprint,
        "random_seeds": [int(seed) for seed in sorted(set(matrix.seed) - {-1})],
        "seconds": seconds,
        "versions": {p: version(p) for p in ("mi_multilingual", "transformer-lens", "torch", "transformers")},
        "python": platform.python_version(),
    }
    (out / "run.json").write_text(json.dumps(run, indent=1), encoding="utf-8")
    return report(out)


def fact_country(item: Item) -> str:
    return item.id.split("/")[0]


def opening(document: str, language: str) -> str:
    """The first few words of a sentence: four words, or eight characters where words are not separated by spaces."""
    return document[:8] if language in WITHOUT_SPACES else " ".join(document.split()[:4])


def fact_table(answers: pd.DataFrame) -> pd.DataFrame:
    """Accuracy by language, relation and wording with a 95 % Wilson interval over the countries asked."""
    wording = answers.id.str.rsplit("/", n=1).str[1].astype(int)
    table = answers.assign(wording=wording, relation=answers.task)
    table = (
        table.groupby(["language", "relation", "wording"], sort=False)["correct"]
        .agg(accuracy="mean", n="size")
        .reset_index()
    )
    low, high = wilson_interval(table.accuracy.to_numpy(float), table.n.to_numpy(float))
    return table.assign(low=low, high=high)
