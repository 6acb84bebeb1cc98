"""A study: everything that a sweep measures, as typed settings read from one YAML file."""

from __future__ import annotations

import re
from typing import Annotated, Any, Literal, get_args

from pydantic import AfterValidator, BaseModel, BeforeValidator, ConfigDict, Field, model_validator

NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9_.-]*")
Site = Literal["gate", "post", "up"]
Layers = Literal["all", "first", "middle", "last"]
"""All layers, or a third of them: in MWork's words understanding, reasoning and generation."""
Part = Literal["mlp", "attention", "all"]
"""Neurons of the MLP, columns of W_Q, W_K and W_V together, or all of them."""
Measure = Literal["language", "facts", "generation", "xcopa", "mgsm", "mpararel"]
TASKS = ("xcopa", "mgsm", "mpararel")
BY_CHOICE = ("facts", "xcopa", "mpararel")
"""Measures of questions with choices."""
Named = Literal["mean", "median", "mean-difference"]
Share = Annotated[float, Field(gt=0, le=1)]
Count = Annotated[int, Field(ge=1)]


class Settings(BaseModel):
    """Unknown keys are mistakes, and nothing changes after reading."""

    model_config = ConfigDict(extra="forbid", frozen=True, allow_inf_nan=False)


def file_name(name: str) -> str:
    """The name, unless it could name anything but a file of its own."""
    if not NAME.fullmatch(name):
        raise ValueError("is no plain name (letters, digits, _ . and -, not beginning with a mark), so no path either")
    return name


def listed(value: Any) -> Any:
    """One value is a list of one: an axis of the grid with a single point."""
    return value if isinstance(value, list | tuple) else [value]


def no_repeats(values: tuple[Any, ...]) -> tuple[Any, ...]:
    if repeated := next((v for i, v in enumerate(values) if v in values[:i]), None):
        raise ValueError(f"has {repeated!r} twice; leave one out")
    return values


def short_form(key: str) -> BeforeValidator:
    """A plain string stands for a mapping with that `key`."""
    return BeforeValidator(lambda value: {key: value} if isinstance(value, str) else value)


Plain = Annotated[str, AfterValidator(file_name)]
Several = (BeforeValidator(listed), Field(min_length=1), AfterValidator(no_repeats))


DEMO = {"identify": "identify", "evaluate": "evaluate", "layout": "documents", "evaluate_documents": 12}
"""Defaults of the demo corpus: its splits, its single sentences, and so many that a cell takes about a second."""


class CorpusSettings(Settings):
    """Text to find neurons on and text to measure on."""

    source: str = "demo"
    """As `load_corpus` takes it: "demo", a folder, or the id of a Hugging Face data set."""
    languages: tuple[Plain, ...] | None = None
    """All of them where none is named."""
    identify: Plain | None = None
    """Split that neurons are found on (`DEMO` has the defaults of the demo)."""
    evaluate: Plain | None = None
    """Split that effects are measured on."""
    identify_documents: Count | None = None
    """The first so many documents a language; all where none is given."""
    evaluate_documents: Count | None = None
    layout: Literal["stream", "documents"] = "stream"
    window: Annotated[int, Field(ge=2)] | None = None
    """Tokens a row; the model's whole context where none is given."""
    config: str | None = None
    column: str = "text"

    @model_validator(mode="before")
    @classmethod
    def of_the_demo(cls, given: Any) -> Any:
        if not isinstance(given, dict) or given.get("source", "demo") != "demo":
            return given
        return DEMO | given


class EntropySettings(Settings):
    """Chosen by least entropy; `rate` is the share of ALL neurons kept, over all languages together."""

    name: Literal["lape", "lave", "relevance"]
    filter_rate: Share = 0.95
    activation_bar_ratio: Share = 0.95


class LapSettings(Settings):
    """Highest activation probability; `rate` is the share of all neurons for every language."""

    name: Literal["lap"]
    threshold: Annotated[float, Field(ge=0, lt=1)] | None = None
    """Instead of a rate: the probability a neuron must exceed, 0.95 in the paper."""


class RankedSettings(Settings):
    """Highest mean activation, or highest and lowest average precision; `rate` is the share for every language."""

    name: Literal["activation_percentile", "average_precision"]


class PlndSettings(Settings):
    """Important for all documents of a language; `rate` is the share of a layer that counts as important."""

    name: Literal["plnd"]
    score: Literal["paper", "released"] = "paper"
    epsilon: Annotated[float, Field(ge=0)] | None = None
    """Instead of a rate: the impact a neuron must exceed."""


class SharingSettings(Settings):
    """Neurons of a type: all-shared, partial-shared, specific or non-activated; takes no rate."""

    name: Literal["sharing"]
    threshold: float = 0.0
    scope: Literal["input", "corpus"] | None = None
    """Every question's own neurons of the type, as in the paper; or those that have it most often in the corpus.

    By default the question's own where questions with choices are measured, and the corpus's elsewhere.
    """
    tokens: Literal["last", "any"] = "last"

    def scope_for(self, measure: str) -> str:
        """The scope where this is measured."""
        return self.scope or ("input" if measure in BY_CHOICE else "corpus")


DetectorSettings = Annotated[
    EntropySettings | LapSettings | RankedSettings | PlndSettings | SharingSettings,
    Field(discriminator="name"),
    short_form("name"),
]


def number_or_name(value: Any) -> Any:
    """The value, unless it is a text that says nothing: pydantic would tell what is wrong with it as a number."""
    if isinstance(value, str) and value not in get_args(Named):
        raise ValueError(f"is no number and none of {', '.join(get_args(Named))}")
    return value


class InterventionSettings(Settings):
    """What is done to the chosen neurons (see `Intervention`)."""

    kind: Literal["zero", "set", "add", "scale"] = "zero"
    value: Annotated[float | Literal["mean", "median", "mean-difference"] | None, BeforeValidator(number_or_name)] = (
        None
    )
    """A number, or the neuron's mean or median activation in the language, or that mean less the other languages'."""
    strength: float = 1.0
    """Times the mean or the difference that is added."""

    @model_validator(mode="after")
    def fits(self) -> InterventionSettings:
        allowed = {"zero": (), "set": ("mean", "median"), "add": ("mean", "mean-difference"), "scale": ()}[self.kind]
        if self.kind == "zero" and self.value is not None:
            raise ValueError(f"zero takes no value, and {self.value!r} was given; leave it out")
        if self.kind != "zero" and not isinstance(self.value, float) and self.value not in allowed:
            names = ", ".join(("a number", *allowed))
            raise ValueError(f"{self.kind} needs a value: {names}; it has {self.value!r}")
        if self.strength != 1 and (self.kind != "add" or isinstance(self.value, float)):
            raise ValueError("strength goes with add and mean or mean-difference; put it into the value elsewhere")
        return self


class GenerationSettings(Settings):
    """How text is generated, and from what."""

    prompts: Literal["openings", "none"] = "openings"
    """The first words of evaluated documents, or nothing but BOS (needs a temperature)."""
    n: Count = 4
    """Prompts a language; of "none", texts in all."""
    max_new_tokens: Count = 30
    min_new_tokens: Annotated[int, Field(ge=0)] = 15
    temperature: Annotated[float, Field(ge=0)] = 0.0
    top_p: Share = 1.0
    repetition_penalty: Annotated[float, Field(gt=0)] = 1.1
    seed: int = 0


class TaskSettings(Settings):
    """Questions from files."""

    folder: str
    """With the files as they are published (`mi_multilingual.evaluation.readers`)."""
    languages: tuple[Plain, ...] | None = None
    """Those of the corpus that the folder has, where none is named."""
    n: Count = 20
    """Questions a language, the same in every language."""


class TasksSettings(Settings):
    """Where the files of task sets are."""

    xcopa: Annotated[TaskSettings, short_form("folder")] | None = None
    mgsm: Annotated[TaskSettings, short_form("folder")] | None = None
    mpararel: Annotated[TaskSettings, short_form("folder")] | None = None

    @property
    def given(self) -> dict[str, TaskSettings]:
        """The tasks whose files were named."""
        return {name: task for name in TASKS if (task := getattr(self, name)) is not None}


class Study(Settings):
    """What a sweep measures; a list where one value could stand is an axis of the grid."""

    name: Plain = "study"
    model: Annotated[tuple[str, ...], *Several] = ("demo",)
    dtype: Literal["float32", "float16", "bfloat16"] = "float32"
    corpus: Annotated[CorpusSettings, short_form("source")] = Field("demo", validate_default=True)
    detector: Annotated[tuple[DetectorSettings, ...], *Several] = (EntropySettings(name="lape"),)
    rate: Annotated[tuple[Share, ...], *Several] = (0.01,)
    site: Annotated[tuple[Site, ...], *Several] = ("gate",)
    layers: Annotated[tuple[Layers, ...], *Several] = ("all",)
    part: Annotated[tuple[Part, ...], *Several] = ("mlp",)
    """Other than "mlp" with detector plnd only, which alone ranks attention columns."""
    intervention: Annotated[tuple[Annotated[InterventionSettings, short_form("kind")], ...], *Several] = (
        InterventionSettings(),
    )
    ablated: Annotated[tuple[Plain, ...], *Several] = ("each",)
    """Languages (of the detector sharing: types) whose neurons are changed, or "each" of them."""
    evaluate: Annotated[tuple[Measure, ...], *Several] = ("language",)
    """Loss of every language, answers to the demo's facts or to `tasks`, language of generated text."""
    facts: Count = 12
    """Questions a language, spread over the countries and relations."""
    tasks: TasksSettings = TasksSettings()
    generation: GenerationSettings = GenerationSettings()
    seeds: Annotated[tuple[int, ...], AfterValidator(no_repeats)] = (0, 1, 2)
    """Of the random neurons, as many a layer, that every effect is measured against."""

    @model_validator(mode="after")
    def can_be_done(self) -> Study:
        """Combinations of single values that no cell could run."""
        moves = [i for i in self.intervention if i.kind in ("set", "add")]
        if "up" in self.site and moves:
            raise ValueError(f"site 'up' is read only, and intervention {moves[0].kind} would write to it; use post")
        by_language = [i for i in moves if isinstance(i.value, str)]
        if by_language and any(d.name == "sharing" for d in self.detector):
            raise ValueError(
                f"the types of detector sharing are no languages, so they have no {by_language[0].value}; give numbers"
            )
        if self.generation.prompts == "none" and "generation" in self.evaluate and not self.generation.temperature:
            raise ValueError("generation without prompts gives one text again and again; set generation.temperature")
        self.attention_can_be_done()
        self.inputs_can_be_done()
        if unlike := set(TASKS) & set(self.evaluate) ^ set(self.tasks.given):
            raise ValueError(f"{min(unlike)} has to be named by both or neither of evaluate and tasks")
        return self

    def attention_can_be_done(self) -> None:
        """Raise where attention columns are asked for, and no such cell could run."""
        parts = [p for p in self.part if p != "mlp"]
        others = [d.name for d in self.detector if d.name != "plnd"]
        writes = [i.kind for i in self.intervention if i.kind not in ("zero", "scale")]
        if parts and others:
            raise ValueError(f"detector {others[0]} finds neurons of the MLP only, so no part {parts[0]}; use plnd")
        if parts and writes:
            raise ValueError(f"attention columns can be zero or scaled, and intervention has {writes[0]}")

    def inputs_can_be_done(self) -> None:
        """Raise where every question is to lose neurons of its own, and no such cell could run."""
        own = {(d, m) for d in self.detector if d.name == "sharing" for m in self.evaluate if d.scope_for(m) == "input"}
        for detector, measure in own:
            if measure not in BY_CHOICE:
                raise ValueError(f"scope input needs questions with choices, and {measure} has none; use scope corpus")
            if detector.tokens != "last" or self.site != ("post",) or {i.kind for i in self.intervention} != {"zero"}:
                raise ValueError(
                    "a question's own neurons are read at its last token and site post, and switched off: "
                    "set site: post, tokens: last, intervention: zero, or give detector sharing scope: corpus"
                )
