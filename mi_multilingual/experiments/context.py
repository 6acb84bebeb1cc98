"""What cells share and a process makes once: models, texts, recordings, neuron sets, numbers of the whole model."""

import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch

from ..corpora import Corpus, load_corpus
from ..evaluation.language_id import check_known
from ..evaluation.readers import load_facts, load_mgsm, load_mpararel, load_xcopa
from ..evaluation.tasks import Item, in_every_language
from ..models.hooked import HookedModel, site_of
from ..models.loading import load_model
from ..neurons import NeuronSet
from ..studies.deactivation import checked_questions
from .cells import Cell, Inputs, hashed, region, tokenizer_fingerprint, weights_fingerprint
from .config import BY_CHOICE, Study, TaskSettings
from .detectors import Evidence, Recorded, chosen, collect, evidence_of, load, neurons_key, parts_of, save
from .measures import Observations, Texts, drawn, observe

KEPT = 4  # recordings in memory at once
READERS: dict[str, Callable[[TaskSettings], list[Item]]] = {
    "xcopa": lambda task: load_xcopa(task.folder, languages=task.languages),
    "mgsm": lambda task: load_mgsm(task.folder, languages=task.languages),
    "mpararel": lambda task: load_mpararel(task.folder, languages=task.languages)[0],
}


class Context:
    """Everything a cell needs beside itself; every process of a sweep makes its own from study and folder."""

    def __init__(self, study: Study, folder: Path | None = None) -> None:
        """
        Args:
            folder: of the run; recordings and neuron sets are kept there for other processes. Without one, in memory.
        """
        self.study = study
        self.folder = folder
        self.made: dict[Any, Any] = {}

    def once(self, key: Any, make: Callable[[], Any]) -> Any:
        """What `make` returned the first time."""
        if key not in self.made:
            self.made[key] = make()
        return self.made[key]

    def model(self, name: str) -> HookedModel:
        """The model, with nothing changed; one is in memory at a time."""
        if ("model", name) not in self.made:
            self.forget_model()
        return self.once(("model", name), lambda: load_model(name, dtype=getattr(torch, self.study.dtype)))

    def forget_model(self) -> None:
        """Let go of the model in memory and of what was read off it."""
        for key in [k for k in self.made if k[0] in ("model", "weights", "base", "recorded")]:
            del self.made[key]

    def fingerprints(self, name: str) -> tuple[str, str]:
        """Of the model's weights and tokenizer."""
        model = self.model(name)
        return self.once(
            ("weights", name), lambda: (weights_fingerprint(model), tokenizer_fingerprint(model.tokenizer))
        )

    def corpus(self, part: str) -> Corpus:
        """The text of "identify" or "evaluate"."""
        c = self.study.corpus
        split, most = getattr(c, part), getattr(c, f"{part}_documents")

        def read() -> Corpus:
            with warnings.catch_warnings():
                warnings.simplefilter("once")
                return load_corpus(
                    c.source, languages=c.languages, split=split, config=c.config, column=c.column, max_documents=most
                )

        return self.once(("corpus", split, most), read)

    def texts(self) -> Texts:
        """What effects are measured on: the corpus, and the questions."""
        asked = [name for name in self.study.evaluate if name in ("facts", *self.study.tasks.given)]
        return self.once(
            ("texts",), lambda: Texts(self.corpus("evaluate"), {name: self.questions(name) for name in asked})
        )

    def questions(self, name: str) -> tuple[Item, ...]:
        """The facts, or the questions of a task set: the same in every language.

        Raises:
            ValueError: there are none, or files that cannot be read.
        """
        languages = self.corpus("evaluate").languages
        task = self.study.tasks.given.get(name)
        items = load_facts(wordings=(0,)) if task is None else READERS[name](task)
        if task is None or task.languages is None:
            items = [item for item in items if item.language in languages]
        if not items:
            raise ValueError(f"there are no {name} in {', '.join(languages)}; take {name} out of evaluate")
        return drawn(in_every_language(items), self.study.facts if task is None else task.n)

    def inputs(self) -> Inputs:
        """Fingerprints of all that goes in, read from what is there now.

        Raises:
            ValueError: a model or text cannot be loaded, or a site or measure is not there for it.
        """
        identify, evaluate = self.corpus("identify"), self.corpus("evaluate")
        if apart := set(identify.languages) ^ set(evaluate.languages):
            raise ValueError(f"{min(apart)!r} is in one of the two texts only; set corpus.languages to what both have")
        texts = self.texts()
        if "generation" in self.study.evaluate:
            check_known(evaluate.languages)
        models = {}
        for name in self.study.model:
            models[name] = self.fingerprints(name)
            self.check_model(name, texts)
        return Inputs(models, **self.texts_read(), languages=identify.languages)

    def check_model(self, name: str, texts: Texts) -> None:
        """Raise where a site, a region or a question cannot be had with the model."""
        model = self.model(name)
        for site in self.study.site:
            site_of(model, site)
        for layers in self.study.layers:
            if not region(layers, model.cfg.n_layers):
                raise ValueError(f"{name!r} has {model.cfg.n_layers} layers, none of them {layers}; take other layers")
        for measure in set(BY_CHOICE) & set(texts.questions):
            languages = {question.item.language for question in checked_questions(model, texts.questions[measure])[0]}
            own = [d for d in self.study.detector if d.name == "sharing" and d.scope_for(measure) == "input"]
            if own and len(languages) < 2:
                raise ValueError(f"the {measure} are in {min(languages)!r} alone; ask in at least two languages")

    def check(self, cell: Cell) -> None:
        """Raise where model or text are no longer those that the cell was planned for."""
        weights, tokenizer = self.fingerprints(cell.model)
        texts = self.texts_read()
        evaluated = texts["questions"].get(cell.evaluation, texts["evaluate"])
        pairs = {
            "weights of the model": (weights, cell.model_fingerprint),
            "tokenizer": (tokenizer, cell.tokenizer_fingerprint),
            "text that neurons are found on": (evaluated if cell.by_input else texts["identify"], cell.identified_on),
            "text that is evaluated": (evaluated, cell.evaluated_on),
        }
        for name, (now, planned) in pairs.items():
            if now != planned:
                raise ValueError(f"the {name} changed while the sweep was running; start it again")

    def texts_read(self) -> dict[str, Any]:
        """Fingerprints of the texts and of the questions, as this process read them."""

        def read() -> dict[str, Any]:
            asked = self.texts().questions
            return {
                "identify": self.corpus("identify").fingerprint,
                "evaluate": self.corpus("evaluate").fingerprint,
                "questions": {name: hashed([repr(item) for item in items]) for name, items in asked.items()},
            }

        return self.once(("texts read",), read)

    def recorded(self, evidence: Evidence, model: str) -> Recorded:
        """The recording, from memory, from the folder, or made now."""
        self.model(model)
        held = [k for k in self.made if k[0] == "recorded" and k[1] != evidence]
        for key in held[: max(0, len(held) - KEPT + 1)]:
            del self.made[key]
        path = self.cached(evidence.kind, evidence.key)

        def make() -> Recorded:
            if path is not None and path.exists():
                try:
                    return load(path, evidence)
                except ValueError:
                    path.unlink(missing_ok=True)  # damaged; it can be made again
            made = collect(evidence, self.model(model), self.corpus("identify"))
            if path is not None:
                save(path, made)
            return made

        return self.once(("recorded", evidence), make)

    def neurons(self, cell: Cell) -> tuple[NeuronSet, ...]:
        """The neurons that the cell's detector finds, for all groups, a set a part."""
        return tuple(self.neurons_of(cell, part) for part in parts_of(cell))

    def neurons_of(self, cell: Cell, part: str) -> NeuronSet:
        """Those of one part."""
        key = neurons_key(cell, part)
        path = self.cached("neurons", key)

        def make() -> NeuronSet:
            if path is not None and path.exists():
                try:
                    return NeuronSet.load(path)
                except ValueError:
                    path.unlink(missing_ok=True)
            made = chosen(cell, self.recorded(evidence_of(cell), cell.model), part)
            if path is not None:
                made.save(path)
            return made

        return self.once(("neurons", key), make)

    def base(self, cell: Cell) -> list[Observations]:
        """The cell's measure of the model as it is."""
        return self.once(base_key(cell), lambda: observe(self.model(cell.model), cell, self.texts()))

    def cached(self, kind: str, key: str) -> Path | None:
        return None if self.folder is None else self.folder / "cache" / f"{kind}-{key}.safetensors"


def base_key(cell: Cell) -> tuple[str | int | None, ...]:
    """The same for cells that measure the same of the unchanged model."""
    target = cell.ablated if cell.evaluation == "generation" else ""
    return ("base", cell.model, cell.evaluation, cell.options, cell.window, cell.layout, target)
