"""The steps of a main job on any model and text, each a file or two of the run folder."""

import json
import platform
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from importlib.metadata import version
from pathlib import Path
from typing import Any

import pandas as pd

from ..analysis.examples import logit_effects, top_examples
from ..corpora import Corpus
from ..detectors.lape import lape
from ..evaluation.generation import generate
from ..evaluation.prompts import equal_openings, first_words
from ..evidence.activations import ActivationStats, record
from ..experiments.loading import checked_study
from ..experiments.whole import WholeStudies
from ..models.hooked import HookedModel
from ..neurons import NeuronSet
from ..patching.conditions import CHOSEN, INTACT
from ..patching.hooks import ablate
from ..report import files
from ..report.page import write_report
from ..storage import save
from ..studies.ablation import perplexity_matrix
from ..studies.given import Given
from ..studies.leaderboard import leaderboard, ranking_stability, rankings
from ..studies.steering import steering_matrix, strength_curve
from ..studies.steering_tables import best_strength, steering_quality, steering_shares
from ..studies.table import STUDIES
from ..tokens import Reading

_SEEDS = (0, 1, 2)
"""Of the random neurons beside the language neurons."""


@dataclass(frozen=True)
class Text:
    """Text and how it is read."""

    corpus: Corpus
    reading: Reading


@dataclass(frozen=True)
class Compared:
    """How detectors are compared."""

    seen: Text
    """What they find neurons in."""
    measured: Text
    """What their neurons are switched off on; its languages are those that the detectors are judged by."""
    detectors: Sequence[str] | None = None
    """All that need only text by default."""
    n: int = 20
    """Neurons per language that every detector gives."""
    halves: bool = True
    """Whether two halves of the text are compared as well."""


@dataclass(frozen=True)
class Steered:
    """How steering is tried."""

    sources: Sequence[str]
    """Languages of the prompts."""
    chosen_by: Sequence[str]
    """Those of them by which strengths are chosen."""
    rate: float
    """LAPE's rate, for steering takes more neurons than show in perplexity."""
    strengths: Sequence[float]
    asked: Mapping[str, Any]
    """How neurons are raised and text is continued, for `steering_matrix`."""
    n_prompts: int = 2


@dataclass(frozen=True)
class Job:
    """A model, text, and what is asked of them."""

    model: HookedModel
    identify: Text
    """Where neurons are found."""
    evaluate: Text
    """Where they are switched off."""
    examples: Text
    """Where the tokens are found at which a neuron is highest."""
    lape: Mapping[str, float]
    compared: Compared
    steered: Steered
    continued: Mapping[str, Any]
    """How prompts are continued."""
    n_continued: int = 3
    """Prompts per language."""
    notes: Sequence[str] = ()
    """Sentences on the run that its page begins with."""


@dataclass(frozen=True)
class Running:
    """A job with what it has found so far."""

    job: Job
    out: Path
    stats: ActivationStats
    neurons: NeuronSet
    progress: bool


Step = Callable[[Running], None]


def run_job(job: Job, out: Path, further: Mapping[str, Step] = {}, *, progress: bool = True) -> Path:
    """Language neurons, their ablation, and the page that shows it; returns the path of the page.

    Args:
        further: name -> a step that this job has beside those of every job.
    """
    out.mkdir(parents=True, exist_ok=True)
    clock = Clock()
    stats = clock.timed(
        "record", record, job.model, job.identify.corpus, reading=job.identify.reading, progress=progress
    )
    save(stats, out / files.STATS)
    neurons = clock.timed("lape", lape, stats, **job.lape)
    save(neurons, out / files.NEURONS)
    running = Running(job, out, stats, neurons, progress)
    for name, step in {**_STEPS, **further}.items():
        clock.timed(name, step, running)
    about = {
        "notes": list(job.notes),
        "evaluated_on": job.evaluate.corpus.fingerprint,
        "random_seeds": list(_SEEDS),
        "seconds": clock.seconds,
        "versions": {p: version(p) for p in ("mi_multilingual", "transformer-lens", "torch", "transformers")},
        "python": platform.python_version(),
    }
    _write_json(about, out / files.ABOUT)
    return write_report(out)


@dataclass(frozen=True)
class Clock:
    """Seconds by step."""

    seconds: dict[str, float] = field(default_factory=dict)

    def timed(self, step: str, call: Callable[..., Any], *arguments: Any, **options: Any) -> Any:
        started = time.monotonic()
        result = call(*arguments, **options)
        self.seconds[step] = round(time.monotonic() - started, 2)
        return result


def write_matrix(running: Running) -> None:
    """The loss of every language without the neurons of each."""
    text = running.job.evaluate
    matrix = perplexity_matrix(
        running.job.model,
        text.corpus,
        running.neurons,
        seeds=_SEEDS,
        reading=text.reading,
        progress=running.progress,
    )
    matrix.to_parquet(running.out / files.MATRIX)


def write_neuron_pages(running: Running) -> None:
    """What the language neurons fire at and what they write."""
    model, text = running.job.model, running.job.examples
    examples = top_examples(model, text.corpus, running.neurons, reading=text.reading, progress=running.progress)
    examples.to_parquet(running.out / files.NEURON_EXAMPLES)
    logit_effects(model, running.neurons).to_parquet(running.out / files.NEURON_LOGITS)


def write_leaderboard(running: Running) -> None:
    """Every detector's best neurons, as many per language, switched off; and how far two halves agree on them."""
    model, how = running.job.model, running.job.compared
    bar = {"filter_rate": running.job.lape["filter_rate"]} if "filter_rate" in running.job.lape else {}
    entropies = [name for name in ("lape", "lave") if how.detectors is None or name in how.detectors]
    asked: dict[str, Any] = {
        "detectors": how.detectors,
        "settings": dict.fromkeys(entropies, bar),
        "reading": how.seen.reading,
        "progress": running.progress,
    }
    ranked = rankings(model, how.seen.corpus, **asked)
    detected = {name: scores.top(how.n) for name, scores in ranked.items()}
    text = how.measured
    table = leaderboard(model, text.corpus, detected, seeds=(0,), reading=text.reading, progress=running.progress)
    if how.halves:
        stability = ranking_stability(model, how.seen.corpus, n=how.n, **asked)
        table["stability"] = table.detector.map(stability)
    table.to_parquet(running.out / files.LEADERBOARD)


def write_continuations(running: Running) -> None:
    """A few documents of each language, continued from their first words, and again without the language's neurons."""
    job, found = running.job, []
    for language, documents in job.evaluate.corpus.documents.items():
        prompts = [first_words(text, language) for text in documents[: job.n_continued]]
        intact = generate(job.model, prompts, **job.continued, progress=False)
        with ablate(job.model, running.neurons[language]):
            without = generate(job.model, prompts, **job.continued, progress=False)
        rows = zip(prompts, intact, without, strict=True)
        found += [{"language": language, "prompt": p, "continuation": c, "without": w} for p, c, w in rows]
    _write_json(found, running.out / files.CONTINUATIONS)


def write_steering(running: Running) -> None:
    """Prompts continued in all languages: strengths by prompts of one text, outputs by the other's."""
    job, how, out = running.job, running.job.steered, running.out
    neurons = lape(running.stats, **{**job.lape, "rate": how.rate})
    held_out, prompts = (
        equal_openings(text.corpus.take(how.sources), job.model.tokenizer, n_tokens=n, n_prompts=how.n_prompts)
        for text, n in ((job.identify, 8), (job.evaluate, 10))
    )
    model, progress, options = job.model, running.progress, {"progress": running.progress, **how.asked}
    held_out = held_out.take(how.chosen_by)
    options["languages"] = [k for k in neurons.groups if set(how.chosen_by) - {k}]
    tried = strength_curve(model, held_out, neurons, running.stats, how.strengths, seeds=(), **options)
    by = ["strength", "condition"]
    quality = steering_quality(model, tried, by, progress=progress).drop(columns=["n", "raising"])
    steering_shares(tried, by).merge(quality, on=by).to_parquet(out / files.STEERING_CURVE)
    options["strength"] = best_strength(tried)
    outputs = steering_matrix(model, prompts, neurons, running.stats, seeds=(0,), **options)
    steering_shares(outputs, ["source", "target", "condition"]).to_parquet(out / files.STEERING)
    _write_json(steering_examples(outputs), out / files.STEERING_EXAMPLES)


def study_step(name: str, languages: Sequence[str] | None = None) -> Step:
    """The step that runs a study whole, with its preset's sizes for the demo, and writes its tables.

    Args:
        languages: those that the study is about; all of the job's by default.
    """

    def write(running: Running) -> None:
        job, asked = running.job, checked_study({"preset": name})
        assert isinstance(asked, WholeStudies), "the preset is of a whole study"
        sizes = (asked.corpus.identify_documents, asked.corpus.evaluate_documents)
        chosen = languages or job.identify.corpus.languages
        texts = [text.corpus.take(chosen) for text in (job.identify, job.evaluate)]
        identify, evaluate = (text if n is None else text.first(n) for text, n in zip(texts, sizes, strict=True))
        given = Given(
            model=job.model,
            identify=identify,
            evaluate=evaluate,
            reading=job.evaluate.reading,
            settings=asked.settings_of(name)[0],
            seeds=asked.seeds,
            lape=job.lape,
            recorded=lambda: running.stats,
            progress=running.progress,
        )
        for table, content in STUDIES[name].run(given).items():
            content.to_parquet(running.out / f"{table}.parquet")

    return write


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


def _write_json(content: Any, path: Path) -> None:
    path.write_text(json.dumps(content, ensure_ascii=False, indent=1), encoding="utf-8")


_STEPS: dict[str, Step] = {
    "ablate": write_matrix,
    "examples": write_neuron_pages,
    "compare": write_leaderboard,
    "generate": write_continuations,
    "steering": write_steering,
}
"""Those of every job."""
