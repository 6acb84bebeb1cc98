"""What a study will cost, before anything of it runs."""

from __future__ import annotations

import resource
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import Any

import pandas as pd
import torch

from ..corpora import Corpus
from ..evaluation.generation import generate
from ..evaluation.perplexity import corpus_losses, corpus_rows
from ..evidence.activations import batch_stats, nothing_recorded
from ..evidence.table import kind_of
from ..models.hooked import HookedModel, as_it_runs, site_of
from ..patching.conditions import NOT_RANDOM
from ..studies.deactivation import checked_questions, margins
from ..tokens import Reading, TokenRows, rows_per_batch
from .cells import Cell, cells_of
from .config import BY_CHOICE, Models, Study
from .context import Context
from .measures import SUM_TOKENS, prompts_of
from .recordings import Recording, needs
from .whole import WholeCell, WholeContext, WholeStudies, run_whole, whole_cells

_PROBED_TOKENS, _PROBED_STEPS, _PROBED_PROMPTS = 1024, 4, 8
_STEP = ["model", "work", "times", "tokens", "seconds"]
_STAND_IN = "demo"
_ENOUGH = 10  # questions or texts per language


@dataclass(frozen=True, eq=False)
class Plan:
    """The cells of a study and what they will take."""

    cells: tuple[Cell | WholeCell, ...]
    steps: pd.DataFrame
    """One row per kind of work: model, work, times (that it is done), tokens (in all; NaN for a whole
    study), seconds (in all)."""
    memory: int
    """Bytes for the largest model: memory that planning took (on a GPU: the weights), logits of one batch, and the
    largest recording."""
    basis: str
    """The measurement that the seconds are worked out from."""
    notes: tuple[str, ...]
    """Things that the study says and may not mean."""

    @property
    def seconds(self) -> float:
        return float(self.steps.seconds.sum())


def plan(study: Models) -> Plan:
    """The study's cells, and an estimate of tokens, seconds and memory from a timed pass of every model.

    Raises:
        ValueError: a model or text cannot be loaded, as `run` would find.
    """
    if isinstance(study, WholeStudies):
        return _whole_plan(study)
    assert isinstance(study, Study), "there are two kinds of study files"
    context = Context(study)
    cells = cells_of(study, context.inputs())
    steps, basis, memory = [], [], 0
    for name in study.models:
        own = [cell for cell in cells if cell.model == name]
        model = context.model(name)
        seconds = _seconds_per_token(model, study, context.corpus("evaluate"), _losses_of)
        basis.append(f"{name}: {1 / seconds:,.0f} tokens per second in a timed pass")
        identify = context.corpus("identify")
        to_record = _seconds_per_token(
            model, study, identify, partial(_statistics_of, corpus=identify, reading=study.corpus.reading)
        )
        steps += [{"model": name, **step} for step in _recording_steps(own, model, identify, to_record)]
        steps += [{"model": name, **step} for step in _measuring_steps(own, model, study, context, seconds)]
        memory = max(memory, _memory_of(model, own, identify))
    table = pd.DataFrame(steps, columns=_STEP)
    return Plan(cells, table, memory, "; ".join(basis), _notes_of(study, cells, context))


def _whole_plan(study: WholeStudies) -> Plan:
    """A plan from the same studies of the embedded model, which are run, and a timed pass of every model."""
    small = study.model_copy(update={"model": (_STAND_IN,), "revision": ()})
    context = WholeContext(small)
    few = whole_cells(small, context.inputs())
    taken = {(cell.study, cell.settings): _seconds(partial(run_whole, cell, context)) for cell in few}
    once = _seconds_per_token(context.model(_STAND_IN), study, context.corpus("evaluate"), _losses_of)
    own = WholeContext(study)
    cells = whole_cells(study, own.inputs())
    basis, steps, memory = [], [], 0
    for name in study.models:
        times = _seconds_per_token(own.model(name), study, own.corpus("evaluate"), _losses_of) / once
        basis.append(f"{name}: {times:,.1f} times as long per token as {_STAND_IN}, on which the studies were run")
        mine = [cell for cell in cells if cell.model == name]
        steps += [(name, c.study, 1, float("nan"), times * taken[c.study, c.settings]) for c in mine]
        memory = max(memory, _weights_and_logits(own.model(name)))
    table = pd.DataFrame(steps, columns=_STEP)
    return Plan(cells, table, memory, "; ".join(basis), ())


def _seconds(work: Callable[[], Any]) -> float:
    started = time.perf_counter()
    work()
    return time.perf_counter() - started


def _recording_steps(cells: list[Cell], model: HookedModel, corpus: Corpus, seconds: float) -> list[dict[str, Any]]:
    """One row per recording that the cells need."""
    found = dict.fromkeys(recording for cell in cells for recording in needs(cell))
    tokens = {reading: n_tokens(model, corpus, reading) for reading in {r.reading for r in found}}
    return [
        {
            "work": f"record {r.kind} {r.site}".rstrip(),
            "times": 1,
            "tokens": tokens[r.reading],
            "seconds": kind_of(r.kind).passes * tokens[r.reading] * seconds,
        }
        for r in found
    ]


def _measuring_steps(
    cells: list[Cell], model: HookedModel, study: Study, context: Context, seconds: float
) -> list[dict[str, Any]]:
    """One row per measure, for its cells and for the unchanged model."""
    costs: dict[str, Callable[[], tuple[int, float]]] = {
        "language": lambda: _language_cost(model, study, context, seconds),
        "generation": lambda: _generation_cost(model, study, context),
        "mgsm": lambda: _sums_cost(model, context),
        **{name: partial(_choices_cost, model, context, name) for name in BY_CHOICE},
    }
    rows = []
    for measure in study.evaluate:
        own = [cell for cell in cells if cell.evaluation == measure]
        tokens, taken = costs[measure]()
        times = len(own) + len({cell.measurement for cell in own})
        rows.append({"work": f"measure {measure}", "times": times, "tokens": times * tokens, "seconds": times * taken})
    return rows


def _language_cost(model: HookedModel, study: Study, context: Context, seconds: float) -> tuple[int, float]:
    tokens = n_tokens(model, context.corpus("evaluate"), study.corpus.reading)
    return tokens, tokens * seconds


def _choices_cost(model: HookedModel, context: Context, measure: str) -> tuple[int, float]:
    """Tokens and seconds of one cell, by timing its first question in every language."""
    asked = checked_questions(model, context.texts.questions[measure], context.study.corpus.bos)
    tokens = [sum(len(c.ids) for question in same for c in question.choices) for same in asked]
    started = time.perf_counter()
    margins(model, asked[0])
    return sum(tokens), (time.perf_counter() - started) / tokens[0] * sum(tokens)


def _sums_cost(model: HookedModel, context: Context) -> tuple[int, float]:
    """Tokens and seconds of one cell, by a few timed steps of its first questions."""
    prompts = [item.prompt for item in context.texts.questions["mgsm"]]
    few = prompts[:_PROBED_PROMPTS]
    started = time.perf_counter()
    generate(model, few, bos=context.study.corpus.bos, max_new_tokens=_PROBED_STEPS, progress=False)
    taken = (time.perf_counter() - started) / _PROBED_STEPS / len(few)
    return len(prompts) * SUM_TOKENS, taken * SUM_TOKENS * len(prompts)


def _generation_cost(model: HookedModel, study: Study, context: Context) -> tuple[int, float]:
    """Tokens and seconds of one cell, by a few timed steps of its own prompts."""
    how = study.generation
    prompts = [p for _, p in prompts_of(context.corpus("evaluate"), how)]
    steps = min(_PROBED_STEPS, how.max_new_tokens)
    started = time.perf_counter()
    bos, temperature = study.corpus.bos, how.temperature
    generate(model, prompts, bos=bos, max_new_tokens=steps, temperature=temperature, progress=False)
    taken = time.perf_counter() - started
    return len(prompts) * how.max_new_tokens, taken * how.max_new_tokens / steps


def _seconds_per_token(
    model: HookedModel, study: Models, corpus: Corpus, make: Callable[[HookedModel], Callable[[TokenRows], Any]]
) -> float:
    """Seconds of the work per token, by the faster of two goes over the first rows of the text."""
    rows = corpus_rows(model, corpus.take(corpus.languages[:1]), study.corpus.reading)
    whole = next(iter(rows.values()))
    first = len(whole) if whole.n_tokens <= _PROBED_TOKENS else max(1, _PROBED_TOKENS // whole.width)
    few = whole.pick(torch.arange(first))
    work, taken = make(model), []
    for _ in range(2):
        started = time.perf_counter()
        work(few)
        taken.append(time.perf_counter() - started)
    return min(taken) / few.n_tokens


def _losses_of(model: HookedModel) -> Callable[[TokenRows], Any]:
    return lambda rows: corpus_losses(model, {rows.language: rows})


def _statistics_of(model: HookedModel, corpus: Corpus, reading: Reading) -> Callable[[TokenRows], Any]:
    reader, empty = as_it_runs(model, site_of(model, "gate")), nothing_recorded(model, corpus, reading)

    def work(rows: TokenRows) -> None:
        for batch in rows.batches(len(rows)):
            batch_stats(model, reader, batch, empty.take([rows.language]))

    return work


def n_tokens(model: HookedModel, corpus: Corpus, reading: Reading) -> int:
    return sum(rows.n_tokens for rows in corpus_rows(model, corpus, reading).values())


def _memory_of(model: HookedModel, cells: list[Cell], corpus: Corpus) -> int:
    """Bytes of process or weights, of one batch of logits (twice in float32), and of the largest recording."""
    neurons = model.cfg.n_layers * model.cfg.d_mlp
    weights = sum(p.numel() * p.element_size() for p in model.parameters())
    recordings = [recording for cell in cells for recording in needs(cell)]
    kept = [_recording_bytes(r, neurons, corpus) + kind_of(r.kind).copies * weights for r in recordings]
    return _weights_and_logits(model) + max(kept, default=0)


def _weights_and_logits(model: HookedModel) -> int:
    """Bytes of process or weights, and of one batch of logits (twice in float32)."""
    weights = sum(p.numel() * p.element_size() for p in model.parameters())
    logits = 2 * 4 * rows_per_batch(model, 1, "logits") * int(model.cfg.d_vocab)
    held = weights if torch.device(model.cfg.device).type == "cuda" else max(weights, _used_so_far())
    return held + logits


def _used_so_far() -> int:
    """Bytes of this process at most, libraries and the loading of models included."""
    unit = 1 if sys.platform == "darwin" else 1024
    return unit * resource.getrusage(resource.RUSAGE_SELF).ru_maxrss


def _recording_bytes(recording: Recording, neurons: int, corpus: Corpus) -> int:
    row = kind_of(recording.kind)
    if row.per_text:
        return 4 * row.numbers * neurons * sum(map(len, corpus.documents.values()))
    return 8 * row.numbers * neurons * len(corpus.languages)


def _notes_of(study: Study, cells: tuple[Cell, ...], context: Context) -> tuple[str, ...]:
    """Doubts: the same text for finding and measuring, no random control, few questions."""
    notes = []
    if context.corpus("identify").fingerprint == context.corpus("evaluate").fingerprint:
        notes.append("neurons are found and measured on the same text; give corpus.identify and corpus.evaluate")
    if all(cell.seed == NOT_RANDOM for cell in cells):
        notes.append("there are no seeds, so no random neurons to compare an effect with")
    asked = [cell.questions if cell.generation is None else cell.generation.n for cell in cells]
    few = min((n for n in asked if n is not None), default=_ENOUGH)
    if few < _ENOUGH:
        notes.append(f"{few} questions or texts per language give intervals of half a share; ask for more")
    return tuple(notes)
