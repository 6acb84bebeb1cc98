"""The embedded demo: a small multilingual model, ten languages of text, facts, and the main job on them."""

import json
import platform
import time
from collections.abc import Callable
from importlib.metadata import version
from pathlib import Path
from typing import Any

import pandas as pd

from ..analysis.attribution import attribution
from ..analysis.lape import lape
from ..analysis.rankings import rankings
from ..analysis.sharing import sharing_categories
from ..analysis.significance import half_agreement, lape_membership, lape_of_texts, permutation_test
from ..corpora import Corpus, load_corpus
from ..evaluation.generation import generate
from ..evaluation.perplexity import perplexity_matrix
from ..evaluation.quality import wilson_interval
from ..evaluation.specificity import leaderboard
from ..evaluation.tasks import Item, choice_accuracy, load_facts, opening
from ..models import HookedModel, load_model
from ..recording import record
from ..report import report
from ..text_activations import record_texts
from .planted import Planted, planted_model, planted_text

__all__ = ["CONTINUED", "LAPE", "Planted", "load_facts", "planted_model", "planted_text", "run_demo"]

LAPE = {"top_rate": 0.05, "filter_rate": 0.985}
"""How LAPE is asked here. 1 % of all neurons, the paper's rate, would be six a language in so small a model; and where
only one neuron in 25 is active at a token, the paper's 0.95 lets neurons pass that hardly ever fire."""
LAYOUT = "documents"  # the corpus is single sentences
PROMPTS_A_LANGUAGE = 3
CONTINUED = {"max_new_tokens": 30, "min_new_tokens": 15, "repetition_penalty": 1.1}
"""How prompts are continued: greedily, with the penalty of LAPE's open-ended generation, and at some length."""
PERMUTATIONS, RESAMPLES = 200, 100
# A language, so that the demo takes less than two minutes: sentences the matrix is measured on; for the comparison of
# detectors, sentences they see, sentences they are measured on, and neurons they give.
EVALUATED = 36
RANKED_ON, COMPARED_ON, COMPARED_NEURONS = 40, 4, 20
HELD_OUT_WORDING = 2
"""The wording of every relation that is not in the training text."""


def run_demo(out: Path | str, *, progress: bool = True) -> Path:
    """The main job on the embedded model and corpus: language neurons, their ablation, and the page that shows it.

    Beside them: whether the neurons are more than chance, which neurons the languages share, which carry an answer, and
    how the detectors compare. Writes a table or safetensors file for each, run.json and report.html into `out`, and
    returns the path of the page.
    """
    out = Path(out)
    out.mkdir(parents=True, exist_ok=True)
    seconds: dict[str, float] = {}

    def timed(step: str, call: Callable[..., Any], *arguments: Any, **options: Any) -> Any:
        started = time.monotonic()
        result = call(*arguments, **options)
        seconds[step] = round(time.monotonic() - started, 2)
        return result

    model = timed("load", load_model, "demo")
    identify = load_corpus("demo", split="identify")
    evaluate = load_corpus("demo", split="evaluate", max_documents=EVALUATED)
    stats = timed("record", record, model, identify, layout=LAYOUT, progress=progress)
    stats.save(out / "stats.safetensors")
    neurons = timed("lape", lape, stats, **LAPE)
    neurons.save(out / "neurons.safetensors")
    matrix = timed("ablate", perplexity_matrix, model, evaluate, neurons, layout=LAYOUT, progress=progress)
    matrix.to_parquet(out / "matrix.parquet")
    timed("significance", write_significance, out, model, identify, progress)
    timed("sharing", write_sharing, out, model, evaluate, progress)
    timed("compare", write_leaderboard, out, model, identify, evaluate, progress)
    timed("facts", write_facts, out, model, progress)
    timed("generate", write_continuations, out, model, evaluate, progress)
    run = {
        "evaluated_on": evaluate.fingerprint,
        "random_seeds": [int(seed) for seed in sorted(set(matrix.seed) - {-1})],
        "seconds": seconds,
        "versions": {p: version(p) for p in ("mi_multilingual", "transformer-lens", "torch", "transformers")},
        "python": platform.python_version(),
    }
    (out / "run.json").write_text(json.dumps(run, indent=1), encoding="utf-8")
    return report(out)


def write_significance(out: Path, model: HookedModel, identify: Corpus, progress: bool) -> None:
    """Chance, corrected p-values, agreement of halves and frequency of membership of the LAPE neurons."""
    texts = record_texts(model, identify, reductions=["active"], progress=progress)["active"]
    table, _ = permutation_test(texts, permutations=PERMUTATIONS, **LAPE)
    halves = half_agreement(texts, lambda half: lape_of_texts(half, **LAPE))
    table.merge(halves, on="language").to_parquet(out / "significance.parquet")
    lape_membership(texts, resamples=RESAMPLES, **LAPE).save(out / "membership.safetensors")


def write_sharing(out: Path, model: HookedModel, evaluate: Corpus, progress: bool) -> None:
    """Sharing categories on parallel sentences, and what each type adds to the answers of the fact questions."""
    sharing = sharing_categories(model, evaluate, progress=progress)
    shares = sharing.layer_shares().merge(sharing.stability(), on=["task", "threshold", "layer", "type"])
    shares.to_parquet(out / "sharing.parquet")
    sharing.overlap().to_parquet(out / "overlap.parquet")
    prompts, answers = fact_prompts()
    attribution(model, prompts, answers, progress=progress).to_parquet(out / "attribution.parquet")


def write_leaderboard(out: Path, model: HookedModel, identify: Corpus, evaluate: Corpus, progress: bool) -> None:
    """Every detector's best neurons, as many a language, switched off."""
    seen, few = first_documents(identify, RANKED_ON), first_documents(evaluate, COMPARED_ON)
    ranked = rankings(model, seen, filter_rate=LAPE["filter_rate"], progress=progress)
    detected = {name: scores.top(COMPARED_NEURONS) for name, scores in ranked.items()}
    table = leaderboard(model, few, detected, seeds=[0], layout=LAYOUT, progress=progress)
    table.to_parquet(out / "leaderboard.parquet")


def first_documents(corpus: Corpus, n: int) -> Corpus:
    return Corpus({k: docs[:n] for k, docs in corpus.documents.items()}, f"{corpus.source}, first {n}")


def write_facts(out: Path, model: HookedModel, progress: bool) -> None:
    """Accuracy of ten countries' facts."""
    facts = load_facts(wordings=(0,))
    asked = sorted({fact_country(item) for item in facts})[::4]
    questions = [item for item in facts if fact_country(item) in asked]
    fact_table(choice_accuracy(model, questions, progress=progress)).to_parquet(out / "facts.parquet")


def write_continuations(out: Path, model: HookedModel, evaluate: Corpus, progress: bool) -> None:
    """A few sentences of each language, continued from their first words."""
    prompts = [(k, opening(d, k)) for k, docs in evaluate.documents.items() for d in docs[:PROMPTS_A_LANGUAGE]]
    continued = generate(model, [p for _, p in prompts], **CONTINUED, progress=progress)
    examples = [{"language": k, "prompt": p, "continuation": c} for (k, p), c in zip(prompts, continued, strict=True)]
    (out / "continuations.json").write_text(json.dumps(examples, ensure_ascii=False, indent=1), encoding="utf-8")


def fact_prompts() -> tuple[Corpus, Corpus]:
    """The questions of the first wording about every fourth country and their answers, as parallel corpora."""
    facts = load_facts(wordings=(0,))
    asked = sorted({fact_country(item) for item in facts})[::4]
    by_language: dict[str, dict[str, Item]] = {}
    for item in facts:
        if fact_country(item) in asked:
            by_language.setdefault(item.language, {})[item.id] = item
    ids = sorted(next(iter(by_language.values())))
    prompts = {k: tuple(items[i].prompt for i in ids) for k, items in by_language.items()}
    answers = {k: tuple(items[i].choices[items[i].answer].strip() for i in ids) for k, items in by_language.items()}
    return Corpus(prompts, "fact prompts"), Corpus(answers, "fact answers")


def fact_country(item: Item) -> str:
    return item.id.split("/")[0]


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
