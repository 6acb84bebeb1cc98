"""The main job on the embedded model and text, step by step, each step a file or two of the run folder."""

import json
import platform
import time
from collections.abc import Callable
from importlib.metadata import version
from pathlib import Path
from typing import Any

import pandas as pd

from ..analysis.attribution import attribution
from ..analysis.examples import logit_effects, top_examples
from ..analysis.significance import half_agreement, lape_membership, lape_of_texts, permutation_test
from ..corpora import Corpus, load_corpus
from ..detectors.lape import lape
from ..evaluation.generation import generate
from ..evaluation.intervals import wilson_interval
from ..evaluation.prompts import equal_openings, first_words
from ..evaluation.readers import load_facts
from ..evaluation.tasks import Item, choice_accuracy
from ..evidence.activations import ActivationStats, record
from ..evidence.sharing import sharing_categories
from ..evidence.texts import record_texts
from ..models.hooked import HookedModel
from ..models.loading import load_model
from ..neurons import NeuronSet
from ..patching.conditions import CHOSEN, INTACT, NOT_RANDOM
from ..report import files
from ..report.page import write_report
from ..storage import save
from ..studies.ablation import perplexity_matrix
from ..studies.deactivation import deactivation_effects, deactivation_study
from ..studies.leaderboard import leaderboard, ranking_stability, rankings
from ..studies.steering import steering_matrix, strength_curve
from ..studies.steering_tables import best_strength, steering_quality, steering_shares
from ..tokens import DOCUMENTS

LAPE = {"rate": 0.05, "filter_rate": 0.985}
"""How LAPE is asked here. 1 % of all neurons, the paper's rate, would be six per language in so small a model; where
only one neuron in 25 is active at a token, the paper's 0.95 lets neurons pass that hardly ever fire."""
READING = DOCUMENTS
"""How text is read here: the corpus is single sentences."""
_PROMPTS_PER_LANGUAGE = 3
CONTINUED = {"max_new_tokens": 30, "min_new_tokens": 15, "repetition_penalty": 1.1}
"""How prompts are continued: greedily, with the penalty of LAPE's open-ended generation, and at some length."""
_PERMUTATIONS, _RESAMPLES = 200, 100
# Numbers per language, such that the demo takes less than two minutes: sentences the matrix is measured on; for the
# comparison of detectors, sentences they see, sentences they are measured on, and neurons they give; sentences among
# which those are found at which a neuron is highest.
_EVALUATED = 32
_RANKED_ON, _COMPARED_ON, _COMPARED_NEURONS = 30, 3, 20
_EXAMPLES_FROM = 80
_STEERING_RATE = 0.1
"""LAPE's rate for steering, which takes more neurons than show in perplexity."""
_FACTS_FROM = 4  # every fourth country is asked about
_TYPES_AMONG = ("en", "de", "es", "fr")
"""Languages between which neurons are shared: of ten languages hardly any neuron is active in all."""
_CROSSED = ("en", "fr", "ru", "zh")
_STEERED = {"max_new_tokens": 10, "min_new_tokens": 8, "repetition_penalty": 1.1}
_STEERED_FROM, _STRENGTHS, _STEERED_PROMPTS = ("en", "ja", "ru"), (1.0, 2.0, 4.0), 2
_HELD_OUT_WORDING = 2
"""The wording of every relation that is not in the training text."""


def run_demo(out: Path | str, *, progress: bool = True) -> Path:
    """The main job on the embedded model and corpus: language neurons, their ablation, and the page that shows it.

    Beside them: whether the neurons are more than chance, which neurons the languages share, which carry an answer, and
    how the detectors compare. Writes the files that `mi_multilingual.report.files` names into `out`, and returns the
    path of the page.
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
    evaluate = load_corpus("demo", split="evaluate", max_documents=_EVALUATED)
    stats = timed("record", record, model, identify, reading=READING, progress=progress)
    save(stats, out / files.STATS)
    neurons = timed("lape", lape, stats, **LAPE)
    save(neurons, out / files.NEURONS)
    matrix = timed("ablate", perplexity_matrix, model, evaluate, neurons, reading=READING, progress=progress)
    matrix.to_parquet(out / files.MATRIX)
    timed("significance", _write_significance, out, model, identify, progress)
    timed("sharing", _write_sharing, out, model, evaluate, progress)
    timed("examples", _write_neuron_pages, out, model, identify, neurons, progress)
    timed("compare", _write_leaderboard, out, model, identify, evaluate, progress)
    timed("facts", _write_facts, out, model, progress)
    timed("deactivation", _write_deactivation, out, model, neurons, progress)
    timed("generate", _write_continuations, out, model, evaluate, progress)
    timed("steering", write_steering, out, model, stats, identify, evaluate, progress)
    run = {
        "evaluated_on": evaluate.fingerprint,
        "random_seeds": [int(seed) for seed in sorted(set(matrix.seed) - {NOT_RANDOM})],
        "seconds": seconds,
        "versions": {p: version(p) for p in ("mi_multilingual", "transformer-lens", "torch", "transformers")},
        "python": platform.python_version(),
    }
    _write_json(run, out / files.ABOUT)
    return write_report(out)


def _write_significance(out: Path, model: HookedModel, identify: Corpus, progress: bool) -> None:
    """Chance, corrected p-values, agreement of halves and frequency of membership of the LAPE neurons."""
    texts = record_texts(model, identify, reductions=["active"], reading=READING, progress=progress)["active"]
    table, _ = permutation_test(texts, permutations=_PERMUTATIONS, progress=progress, **LAPE)
    halves = half_agreement(texts, lambda half: lape_of_texts(half, **LAPE), progress=progress)
    table.merge(halves, on="language").to_parquet(out / files.SIGNIFICANCE)
    save(lape_membership(texts, resamples=_RESAMPLES, progress=progress, **LAPE), out / files.MEMBERSHIP)


def _write_sharing(out: Path, model: HookedModel, evaluate: Corpus, progress: bool) -> None:
    """Sharing categories on parallel sentences, and what each type adds to the answers of the fact questions."""
    sharing = sharing_categories(model, evaluate, reading=READING, progress=progress)
    shares = sharing.layer_shares().merge(sharing.stability(), on=["task", "threshold", "layer", "type"])
    shares.to_parquet(out / files.SHARING)
    sharing.overlap().to_parquet(out / files.OVERLAP)
    prompts, answers = fact_prompts()
    attribution(model, prompts, answers, progress=progress).to_parquet(out / files.ATTRIBUTION)


def _write_leaderboard(out: Path, model: HookedModel, identify: Corpus, evaluate: Corpus, progress: bool) -> None:
    """Every detector's best neurons, as many per language, switched off; and how far two halves agree on them."""
    seen, few = _first_documents(identify, _RANKED_ON), _first_documents(evaluate, _COMPARED_ON)
    bar = {"filter_rate": LAPE["filter_rate"]}
    asked: dict[str, Any] = {"settings": {"lape": bar, "lave": bar}, "reading": READING, "progress": progress}
    ranked = rankings(model, seen, **asked)
    detected = {name: scores.top(_COMPARED_NEURONS) for name, scores in ranked.items()}
    table = leaderboard(model, few, detected, seeds=(0,), reading=READING, progress=progress)
    stability = ranking_stability(model, seen, n=_COMPARED_NEURONS, **asked)
    table.assign(stability=table.detector.map(stability)).to_parquet(out / files.LEADERBOARD)


def _write_neuron_pages(out: Path, model: HookedModel, identify: Corpus, neurons: NeuronSet, progress: bool) -> None:
    """What the language neurons fire at and what they write."""
    texts = _first_documents(identify, _EXAMPLES_FROM)
    examples = top_examples(model, texts, neurons, reading=READING, progress=progress)
    examples.to_parquet(out / files.NEURON_EXAMPLES)
    logit_effects(model, neurons).to_parquet(out / files.NEURON_LOGITS)


def _first_documents(corpus: Corpus, n: int) -> Corpus:
    return Corpus({k: docs[:n] for k, docs in corpus.documents.items()}, f"{corpus.source}, first {n}")


def _write_facts(out: Path, model: HookedModel, progress: bool) -> None:
    """Accuracy of ten countries' facts."""
    fact_table(choice_accuracy(model, _asked_facts(), progress=progress)).to_parquet(out / files.FACTS)


def _write_deactivation(out: Path, model: HookedModel, neurons: NeuronSet, progress: bool) -> None:
    """Answers without the neurons that languages share for the question, and without another language's neurons."""
    facts = [item for item in _asked_facts() if item.task == "continent"]
    near, far = ([item for item in facts if item.language in chosen] for chosen in (_TYPES_AMONG, _CROSSED))
    by_type = deactivation_study(model, near, seeds=(0,), progress=progress)
    deactivation_effects(by_type).to_parquet(out / files.DEACTIVATION)
    crossed = deactivation_study(model, far, neurons.take(_CROSSED), seeds=(0,), progress=progress)
    deactivation_effects(crossed).to_parquet(out / files.CROSS_FACTS)


def _asked_facts() -> list[Item]:
    """The questions of the first wording about every fourth country."""
    facts = load_facts(wordings=(0,))
    asked = sorted({_fact_country(item) for item in facts})[::_FACTS_FROM]
    return [item for item in facts if _fact_country(item) in asked]


def _write_continuations(out: Path, model: HookedModel, evaluate: Corpus, progress: bool) -> None:
    """A few sentences of each language, continued from their first words."""
    prompts = [(k, first_words(d, k)) for k, docs in evaluate.documents.items() for d in docs[:_PROMPTS_PER_LANGUAGE]]
    continued = generate(model, [p for _, p in prompts], **CONTINUED, progress=progress)
    examples = [{"language": k, "prompt": p, "continuation": c} for (k, p), c in zip(prompts, continued, strict=True)]
    _write_json(examples, out / files.CONTINUATIONS)


def write_steering(
    out: Path, model: HookedModel, stats: ActivationStats, identify: Corpus, evaluate: Corpus, progress: bool
) -> None:
    """Three languages' sentences continued in all ten: strengths by sentences of one split, outputs by the other's."""
    neurons = lape(stats, **{**LAPE, "rate": _STEERING_RATE})
    held_out, prompts = (
        equal_openings(corpus.take(_STEERED_FROM), model.tokenizer, n_tokens=n, n_prompts=_STEERED_PROMPTS)
        for corpus, n in ((identify, 8), (evaluate, 10))
    )
    # Two sources are enough to choose a strength by.
    options: dict[str, Any] = {"source_off": True, "progress": progress, **_STEERED}
    tried = strength_curve(model, held_out.take(_STEERED_FROM[:2]), neurons, stats, _STRENGTHS, seeds=(), **options)
    by = ["strength", "condition"]
    quality = steering_quality(model, tried, by, progress=progress).drop(columns="n")
    steering_shares(tried, by).merge(quality, on=by).to_parquet(out / files.STEERING_CURVE)
    outputs = steering_matrix(model, prompts, neurons, stats, strength=best_strength(tried), seeds=(0,), **options)
    steering_shares(outputs, ["source", "target", "condition"]).to_parquet(out / files.STEERING)
    _write_json(steering_examples(outputs), out / files.STEERING_EXAMPLES)


def steering_examples(outputs: pd.DataFrame) -> list[dict[str, Any]]:
    """The first prompt for every target, from each source in turn, with its continuation as it is and steered."""
    keys = ["source", "target", "prompt"]
    intact, steered = (outputs[outputs.condition == c].drop_duplicates(keys) for c in (INTACT, CHOSEN))
    columns = [*keys, "continuation", "found"]
    pairs = steered[[*columns, "strength"]].merge(intact[columns], on=keys, suffixes=(f"_{CHOSEN}", f"_{INTACT}"))
    pairs = pairs[pairs.source != pairs.target]
    shown = []
    for i, target in enumerate(outputs.target.unique()):
        rows = pairs[pairs.target == target]
        sources = rows.source.unique()
        shown.append(rows[rows.source == sources[i % len(sources)]].iloc[0])
    names = {f"continuation_{c}": c for c in (INTACT, CHOSEN)}
    return pd.DataFrame(shown).rename(columns=names).to_dict("records")


def fact_prompts() -> tuple[Corpus, Corpus]:
    """The questions of the first wording about every fourth country and their answers, as parallel corpora."""
    by_language: dict[str, dict[str, Item]] = {}
    for item in _asked_facts():
        by_language.setdefault(item.language, {})[item.id] = item
    ids = sorted(next(iter(by_language.values())))
    prompts = {k: tuple(items[i].prompt for i in ids) for k, items in by_language.items()}
    answers = {k: tuple(items[i].choices[items[i].answer].strip() for i in ids) for k, items in by_language.items()}
    return Corpus(prompts, "fact prompts"), Corpus(answers, "fact answers")


def _write_json(content: Any, path: Path) -> None:
    path.write_text(json.dumps(content, ensure_ascii=False, indent=1), encoding="utf-8")


def _fact_country(item: Item) -> str:
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
