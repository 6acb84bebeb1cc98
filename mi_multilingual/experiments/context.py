"""What cells share and a process makes once: models, texts, recordings, neuron sets, numbers of the whole model."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from functools import cached_property
from pathlib import Path
from typing import Any, TypeVar
from uuid import uuid4

import pandas as pd

from ..evaluation.language_id import check_known
from ..evaluation.readers import load_facts, load_mgsm, load_mpararel, load_xcopa
from ..evaluation.tasks import Item, in_every_language
from ..evidence.activations import ActivationStats
from ..evidence.table import kind_of
from ..models.hooked import site_of
from ..neurons import NeuronSet
from ..storage import load, save
from ..studies.deactivation import checked_questions
from ..studies.regions import REGIONS, model_regions
from .cells import SCHEMA, Cell, Inputs, Measurement, region
from .config import BY_CHOICE, Study, TaskSettings
from .fingerprints import hashed
from .loaded import Loaded, Memory, check_same
from .measures import Observations, Texts, drawn, observe
from .recordings import Choice, Recording, chosen, collect

_RECORDINGS_KEPT = 4  # in memory at once
_READERS: dict[str, Callable[[TaskSettings], list[Item]]] = {
    "xcopa": lambda task: load_xcopa(task.folder, languages=task.languages),
    "mgsm": lambda task: load_mgsm(task.folder, languages=task.languages),
    "mpararel": lambda task: load_mpararel(task.folder, languages=task.languages)[0],
}
_Value = TypeVar("_Value")


class Context(Loaded):
    """Everything a cell needs beside itself; every process of a sweep makes its own from study and folder."""

    def __init__(self, study: Study, folder: Path | None = None) -> None:
        """
        Args:
            folder: of the run; recordings and neuron sets are kept there for other processes. Without one, in memory.
        """
        self.choices: Memory[Choice, NeuronSet] = Memory()
        super().__init__(study, folder)
        self.study: Study = study

    def forget_model(self) -> None:
        """Let go of the model in memory and of what was read off it."""
        super().forget_model()
        self.recordings: Memory[Recording, Any] = Memory(_RECORDINGS_KEPT)
        self.beginnings: Memory[Recording, ActivationStats] = Memory()
        self.bases: Memory[Measurement, list[Observations]] = Memory()
        self.regions: Memory[str, pd.DataFrame] = Memory()

    @cached_property
    def texts(self) -> Texts:
        """What effects are measured on: the corpus, and the questions."""
        asked = [name for name in self.study.evaluate if name in ("facts", *self.study.tasks.given)]
        return Texts(self.corpus("evaluate"), {name: self.questions(name) for name in asked})

    def questions(self, name: str) -> tuple[Item, ...]:
        """The facts, or the questions of a task set: the same in every language.

        Raises:
            ValueError: there are none, or files that cannot be read.
        """
        languages = self.corpus("evaluate").languages
        task = self.study.tasks.given.get(name)
        items = load_facts(wordings=(0,)) if task is None else _READERS[name](task)
        if task is None or task.languages is None:
            items = [item for item in items if item.language in languages]
        if not items:
            raise ValueError(f"there are no {name} in {', '.join(languages)}; take {name} out of evaluate")
        return drawn(in_every_language(items), self.study.facts if task is None else task.n)

    @cached_property
    def texts_read(self) -> Inputs:
        """Fingerprints of the texts and of the questions, as this process read them, of no model."""
        identify, evaluate = self.corpus("identify"), self.corpus("evaluate")
        questions = {name: hashed([repr(item) for item in items]) for name, items in self.texts.questions.items()}
        return Inputs({}, identify.fingerprint, evaluate.fingerprint, questions, identify.languages)

    def inputs(self) -> Inputs:
        """Fingerprints of all that goes in, read from what is there now.

        Raises:
            ValueError: a model or text cannot be loaded, or a site or measure is not there for it.
        """
        _, evaluate = self.both_texts()
        if "generation" in self.study.evaluate:
            check_known(evaluate.languages)
        models = {}
        for name in self.study.models:
            models[name] = self.fingerprints(name)
            self.check_model(name)
        return replace(self.texts_read, models=models)

    def check_model(self, name: str) -> None:
        """Raise where a site, a region or a question cannot be had with the model."""
        model, questions, bos = self.model(name), self.texts.questions, self.study.corpus.bos
        for site in self.study.site:
            site_of(model, site)
        for layers in self.study.layers:
            if len(REGIONS) > model.cfg.n_layers if layers in REGIONS else not region(layers, model.cfg.n_layers):
                raise ValueError(f"{name!r} has {model.cfg.n_layers} layers, none of them {layers}; take other layers")
        for measure in set(BY_CHOICE) & set(questions):
            languages = {question.item.language for question in checked_questions(model, questions[measure], bos)[0]}
            by_input = any(detector.scope_for(measure) == "input" for detector in self.study.detector)
            if by_input and len(languages) < 2:
                raise ValueError(f"the {measure} are in {min(languages)!r} alone; ask in at least two languages")

    def check(self, cell: Cell) -> None:
        """Raise where model or text are no longer those that the cell was planned for."""
        weights, tokenizer = self.fingerprints(cell.model)
        evaluated = self.texts_read.questions.get(cell.evaluation, self.texts_read.evaluate)
        check_same(
            {
                "weights of the model": (weights, cell.model_fingerprint),
                "tokenizer": (tokenizer, cell.tokenizer_fingerprint),
                "text that neurons are found on": (
                    evaluated if cell.by_input else self.texts_read.identify,
                    cell.identified_on,
                ),
                "text that is evaluated": (evaluated, cell.evaluated_on),
            }
        )

    def recorded(self, recording: Recording, model: str) -> Any:
        """The evidence, from memory, from the folder, or recorded now."""
        loaded = self.model(model)

        def make() -> Any:
            return collect(recording, loaded, self.corpus("identify"))

        path = self.cached(recording)
        return self.recordings.once(recording, lambda: kept(path, kind_of(recording.kind).noun, make))

    def neurons(self, choice: Choice, model: str) -> NeuronSet:
        """The neurons chosen, for all groups, from memory, from the folder, or chosen now."""

        def make() -> NeuronSet:
            return chosen(choice, self.recorded(choice.recording, model))

        return self.choices.once(choice, lambda: kept(self.cached(choice), NeuronSet, make))

    def layers(self, cell: Cell) -> range:
        """The layers in which the cell's neurons are changed."""
        if cell.layers not in REGIONS:
            return region(cell.layers, self.model(cell.model).cfg.n_layers)
        table = self.regions.once(cell.model, lambda: self.found_regions(cell))
        [row] = table[(table.language == cell.group) & (table.region == cell.layers)].itertuples()
        return range(row.first, row.end)

    def found_regions(self, cell: Cell) -> pd.DataFrame:
        """The regions of the cell's model, from the folder, or found now by the text that neurons are found on."""
        key = hashed([SCHEMA, "regions", cell.model_fingerprint, cell.tokenizer_fingerprint, cell.dtype])
        path = self.folder and self.folder / "cache" / f"regions-{key}-{cell.identified_on}.parquet"
        if path and path.exists():
            return pd.read_parquet(path)
        found = model_regions(self.model(cell.model), self.corpus("identify"))
        if path:
            path.parent.mkdir(parents=True, exist_ok=True)
            unfinished = path.with_name(f"{path.name}.{uuid4().hex}")
            found.to_parquet(unfinished)
            unfinished.replace(path)
        return found

    def base(self, cell: Cell) -> list[Observations]:
        """The cell's measure of the model as it is."""
        return self.bases.once(cell.measurement, lambda: observe(self.model(cell.model), cell.measurement, self.texts))

    def cached(self, what: Recording | Choice) -> Path | None:
        """The file of a recording or a neuron set in the run folder; None without one."""
        if self.folder is None:
            return None
        name = what.kind if isinstance(what, Recording) else "neurons"
        return self.folder / "cache" / f"{name}-{what.key}.safetensors"


def kept(path: Path | None, noun: type[_Value], make: Callable[[], _Value]) -> _Value:
    """What is in the file, or else is made now and kept there; without a path it is made."""
    if path is not None and path.exists():
        try:
            return load(path, noun)
        except ValueError:
            path.unlink(missing_ok=True)  # damaged; it can be made again
    made = make()
    if path is not None:
        save(made, path)
    return made
