"""A study: everything that a sweep measures, as typed settings read from one YAML file."""

from __future__ import annotations

import difflib
import math
import re
from collections.abc import Mapping, Sequence
from typing import Annotated, Any, Literal, get_args

from pydantic import AfterValidator, BaseModel, BeforeValidator, ConfigDict, Field, model_validator
from pydantic_core import PydanticCustomError

from ..detectors.table import DETECTORS, Setting, detector_of
from ..neurons import PARTS
from ..studies.regions import REGIONS
from ..tokens import BOS_RULES, LAYOUTS, Reading

_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9_.-]*")
_Site = Literal["gate", "post", "up"]
_Layers = Literal["all", "first", "middle", "last", "understanding", "reasoning", "generation"]
"""All layers, a third of them, or a region of the model for the group's language (`mi_multilingual.regions`)."""
_Part = Literal["mlp", "attention", "all"]
"""Neurons of the MLP, columns of W_Q, W_K and W_V together, or all of them."""
PARTS_OF = {"mlp": ("mlp",), "attention": ("q", "k", "v"), "all": PARTS}
"""What `NeuronSet.part` is, for every part of a study."""
Measure = Literal["language", "facts", "generation", "xcopa", "mgsm", "mpararel"]
_TASKS = ("xcopa", "mgsm", "mpararel")
BY_CHOICE = ("facts", "xcopa", "mpararel")
"""Measures of questions with choices."""
_Named = Literal["mean", "median", "mean-difference"]
Share = Annotated[float, Field(gt=0, le=1)]
_Count = Annotated[int, Field(ge=1)]


class Settings(BaseModel):
    """Unknown keys are mistakes, and nothing changes after reading."""

    model_config = ConfigDict(extra="forbid", frozen=True, allow_inf_nan=False)


def _file_name(name: str) -> str:
    """The name, unless it could name anything but a file of its own."""
    if not _NAME.fullmatch(name):
        raise ValueError("must be a plain name of letters, digits, _ . and -, with a letter or digit first")
    return name


def listed(value: Any) -> Any:
    """One value is a list of one: an axis of the grid with a single point."""
    return value if isinstance(value, list | tuple) else [value]


def _no_repeats(values: tuple[Any, ...]) -> tuple[Any, ...]:
    if repeated := next((v for i, v in enumerate(values) if v in values[:i]), None):
        raise ValueError(f"has {repeated!r} twice; leave one out")
    return values


def _short_form(key: str) -> BeforeValidator:
    """A plain string stands for a mapping with that `key`."""
    return BeforeValidator(lambda value: {key: value} if isinstance(value, str) else value)


def choice(wrong: Any, allowed: Sequence[str]) -> str:
    """What is allowed, and the closest of it."""
    close = difflib.get_close_matches(str(wrong), allowed, n=1, cutoff=0.5)
    meant = f"did you mean {close[0]!r}? " if close else ""
    return f"{meant}allowed: {', '.join(allowed)}"


def unfit(reason: str, key: str = "") -> PydanticCustomError:
    """The error of a value, or with a `key` of that value in the mapping that is being read."""
    return PydanticCustomError("unfit", "{key} {reason}", {"key": key, "reason": reason})


def check_choice(value: Any, allowed: Sequence[str], key: str = "") -> Any:
    """The value, if it is one of those allowed."""
    if value not in allowed:
        raise unfit(f"cannot be {value!r}; {choice(value, allowed)}", key)
    return value


def _one_of(allowed: Sequence[str]) -> AfterValidator:
    return AfterValidator(lambda value: check_choice(value, allowed))


_Plain = Annotated[str, AfterValidator(_file_name)]
SEVERAL = (BeforeValidator(listed), Field(min_length=1), AfterValidator(_no_repeats))


_DEMO = {"identify": "identify", "evaluate": "evaluate", "layout": "documents", "evaluate_documents": 12}
"""Defaults of the demo corpus: its splits, its single sentences, and so many that a cell takes about a second."""


class CorpusSettings(Settings):
    """Text to find neurons on and text to measure on, and how it is read (`Reading`)."""

    source: str = "demo"
    """As `load_corpus` takes it: "demo", a folder, or the id of a Hugging Face data set."""
    languages: tuple[_Plain, ...] | None = None
    """All of them where none is named."""
    identify: _Plain | None = None
    """Split that neurons are found on (`_DEMO` has the defaults of the demo)."""
    evaluate: _Plain | None = None
    """Split that effects are measured on."""
    identify_documents: _Count | None = None
    """At most so many documents per language, the first ones; all where no number is given."""
    evaluate_documents: _Count | None = None
    layout: Annotated[str, _one_of(LAYOUTS)] = Reading.layout
    window: Annotated[int, Field(ge=2)] | None = Reading.window
    """Tokens per row; the model's whole context where none is given."""
    bos: Annotated[str, _one_of(BOS_RULES)] = Reading.bos
    """Special tokens before every row, prompt and question."""
    max_tokens: _Count | None = Reading.max_tokens
    equal_tokens: bool = Reading.equal_tokens
    config: str | None = None
    column: str = "text"

    @model_validator(mode="before")
    @classmethod
    def of_the_demo(cls, given: Any) -> Any:
        if not isinstance(given, dict) or given.get("source", "demo") != "demo":
            return given
        return _DEMO | given

    @property
    def reading(self) -> Reading:
        """How both texts become rows."""
        return Reading(self.window, self.layout, self.bos, self.max_tokens, self.equal_tokens)


_SHARING = "sharing"
"""The detector whose types every question can give to its own neurons, as in the paper."""
_SCOPE = Setting(None, "every question's own neurons of a type, or the corpus's", choices=("input", "corpus"))
"""The text that gives sharing's neurons their type: every question by itself, or the whole corpus.

It is a matter of the study rather than of the detector. By default questions with choices lose neurons of their own,
and all else is measured without the corpus's.
"""


class DetectorSettings(BaseModel):
    """A detector by its name; its further keys are the settings in its row of `DETECTORS`, each with a value."""

    model_config = ConfigDict(extra="allow", frozen=True)
    name: str

    @model_validator(mode="before")
    @classmethod
    def of_the_table(cls, given: Any) -> Any:
        """All settings of the row: those given, checked, and the defaults of the others."""
        if not isinstance(given, Mapping) or "name" not in given:
            return given
        rows = _study_settings(check_choice(given["name"], tuple(DETECTORS), "name"))
        for key in given:
            if key not in ("name", *rows):
                raise PydanticCustomError(
                    "unknown_key",
                    "key {key} is unknown; {choice}",
                    {"key": key, "choice": choice(key, ("name", *rows))},
                )
        values = {key: _checked_value(key, given.get(key, row.default), row) for key, row in rows.items()}
        return {"name": given["name"], **values}

    @property
    def settings(self) -> dict[str, Any]:
        """The detector's own settings."""
        return {key: value for key, value in (self.model_extra or {}).items() if key != "scope"}

    def scope_for(self, measure: str) -> str | None:
        """The scope of a cell that measures this; None for detectors that have none."""
        given = self.model_extra or {}
        if "scope" not in given:
            return None
        return given["scope"] or ("input" if measure in BY_CHOICE else "corpus")


def _study_settings(name: str) -> dict[str, Setting]:
    """What a detector's mapping can hold: its settings, but for the part, which is an axis of the study."""
    rows = {key: row for key, row in detector_of(name).settings.items() if key != "part"}
    return rows | ({"scope": _SCOPE} if name == _SHARING else {})


def _checked_value(key: str, value: Any, row: Setting) -> Any:
    """The value of a detector's setting, if it can be; a whole number is a number."""
    if value is None and row.default is None:
        return None
    if row.choices:
        return check_choice(value, row.choices, key)
    try:
        row.checked(key, value)
    except ValueError as error:
        raise unfit(str(error).removeprefix(f"{key} "), key) from error
    if not math.isfinite(value):
        raise unfit(f"must be a finite number, got {value}", key)
    return value if isinstance(row.default, int) else float(value)


def finds(detector: str, part: str) -> bool:
    """Whether the detector finds neurons of this part of a study."""
    setting = detector_of(detector).settings.get("part")
    return set(PARTS_OF[part]) <= set(setting.choices if setting else ("mlp",))


def _number_or_name(value: Any) -> Any:
    """The value, unless it is a text that says nothing: pydantic would tell what is wrong with it as a number."""
    if isinstance(value, str) and value not in get_args(_Named):
        raise ValueError(f"must be a number or one of {', '.join(get_args(_Named))}")
    return value


class InterventionSettings(Settings):
    """What is done to the chosen neurons (see `Intervention`)."""

    kind: Literal["zero", "set", "add", "scale"] = "zero"
    value: Annotated[float | Literal["mean", "median", "mean-difference"] | None, BeforeValidator(_number_or_name)] = (
        None
    )
    """A number, or the neuron's mean or median activation in the language, or that mean less the other languages'."""
    strength: float = 1.0
    """A factor of the mean or the difference that is added."""

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

    @property
    def words(self) -> str:
        """Kind, strength and value, e.g. "add 2 x mean"."""
        times = f"{self.strength:g} x " if self.strength != 1 else ""
        value = f"{self.value:g}" if isinstance(self.value, float) else self.value
        return self.kind if value is None else f"{self.kind} {times}{value}"


class GenerationSettings(Settings):
    """How text is generated, and from what."""

    prompts: Literal["openings", "none"] = "openings"
    """The first words of evaluated documents, or nothing but BOS (needs a temperature)."""
    n: _Count = 4
    """Prompts per language; with prompts "none", texts in all."""
    max_new_tokens: _Count = 30
    min_new_tokens: Annotated[int, Field(ge=0)] = 15
    temperature: Annotated[float, Field(ge=0)] = 0.0
    top_p: Share = 1.0
    repetition_penalty: Annotated[float, Field(gt=0)] = 1.1
    seed: int = 0


class TaskSettings(Settings):
    """Questions from files."""

    folder: str
    """With the files as they are published (`mi_multilingual.evaluation.readers`)."""
    languages: tuple[_Plain, ...] | None = None
    """Those of the corpus that the folder has, where none is named."""
    n: _Count = 20
    """Questions per language, the same in every language."""


class TasksSettings(Settings):
    """Where the files of task sets are."""

    xcopa: Annotated[TaskSettings, _short_form("folder")] | None = None
    mgsm: Annotated[TaskSettings, _short_form("folder")] | None = None
    mpararel: Annotated[TaskSettings, _short_form("folder")] | None = None

    @property
    def given(self) -> dict[str, TaskSettings]:
        """The tasks whose files were named."""
        return {name: task for name in _TASKS if (task := getattr(self, name)) is not None}


class Models(Settings):
    """What every study file says: its models, its text, and the seeds of all that is random."""

    name: _Plain = "study"
    model: Annotated[tuple[str, ...], *SEVERAL] = ("demo",)
    revision: Annotated[tuple[str, ...], BeforeValidator(listed), AfterValidator(_no_repeats)] = ()
    """Branches, tags or commits of every model on the hub, such as steps of its training; none for the usual one."""
    dtype: Literal["float32", "float16", "bfloat16"] = "float32"
    corpus: Annotated[CorpusSettings, _short_form("source")] = Field("demo", validate_default=True)
    seeds: Annotated[tuple[int, ...], AfterValidator(_no_repeats)] = (0, 1, 2)
    """One draw each of the random neurons, as many per layer, that every effect is compared with."""

    @property
    def models(self) -> tuple[str, ...]:
        """The models as tables name them: "name", or "name@revision" where revisions are given."""
        return tuple(f"{name}@{r}" for name in self.model for r in self.revision) or self.model


class Study(Models):
    """What a sweep measures; a list where one value could stand is an axis of the grid."""

    detector: Annotated[tuple[Annotated[DetectorSettings, _short_form("name")], ...], *SEVERAL] = Field(
        ("lape",), validate_default=True
    )
    rate: Annotated[tuple[Share, ...], *SEVERAL] = (0.01,)
    site: Annotated[tuple[_Site, ...], *SEVERAL] = ("gate",)
    layers: Annotated[tuple[_Layers, ...], *SEVERAL] = ("all",)
    part: Annotated[tuple[_Part, ...], *SEVERAL] = ("mlp",)
    """Other than "mlp" only with detectors that find attention columns, which have a setting `part`."""
    intervention: Annotated[tuple[Annotated[InterventionSettings, _short_form("kind")], ...], *SEVERAL] = (
        InterventionSettings(),
    )
    ablated: Annotated[tuple[_Plain, ...], *SEVERAL] = ("each",)
    """Groups (languages, or the types of detector sharing) whose neurons are changed, or "each" of them."""
    evaluate: Annotated[tuple[Measure, ...], *SEVERAL] = ("language",)
    """Loss of every language, answers to the demo's facts or to `tasks`, language of generated text."""
    facts: _Count = 12
    """Questions per language, spread over the countries and relations."""
    tasks: TasksSettings = TasksSettings()
    generation: GenerationSettings = GenerationSettings()

    @model_validator(mode="after")
    def can_be_done(self) -> Study:
        """Combinations of single values that no cell could run."""
        if self.generation.prompts == "none" and "generation" in self.evaluate and not self.generation.temperature:
            raise ValueError("generation without prompts gives one text again and again; set generation.temperature")
        if unlike := set(_TASKS) & set(self.evaluate) ^ set(self.tasks.given):
            raise ValueError(f"{min(unlike)} has to be named by both or neither of evaluate and tasks")
        self.values_can_be_written()
        self.parts_can_be_changed()
        self.regions_are_of_languages()
        self.questions_can_have_their_own()
        return self

    def values_can_be_written(self) -> None:
        """Raise where a site is read only, or a group has no mean or median."""
        moves = [i for i in self.intervention if i.kind in ("set", "add")]
        if "up" in self.site and moves:
            raise ValueError(f"site 'up' is read only, and intervention {moves[0].kind} would write to it; use post")
        named = [i.value for i in moves if isinstance(i.value, str)]
        others = [d.name for d in self.detector if not detector_of(d.name).by_language]
        if named and others:
            raise ValueError(
                f"the types of detector {others[0]} are no languages, so they have no {named[0]}; give numbers"
            )

    def parts_can_be_changed(self) -> None:
        """Raise where attention columns are asked for, and no such cell could run."""
        apart = [(d.name, p) for d in self.detector for p in self.part if not finds(d.name, p)]
        if apart:
            able = ", ".join(name for name in tuple(DETECTORS) if finds(name, apart[0][1]))
            raise ValueError(
                f"detector {apart[0][0]} finds neurons of the MLP only, so no part {apart[0][1]}; use {able}"
            )
        writes = [i.kind for i in self.intervention if i.kind not in ("zero", "scale")]
        if self.part != ("mlp",) and writes:
            raise ValueError(f"attention columns can be zero or scaled, and intervention has {writes[0]}")

    def regions_are_of_languages(self) -> None:
        """Raise where regions are asked for, and a group is no language."""
        others = [d.name for d in self.detector if not detector_of(d.name).by_language]
        if others and (asked := set(REGIONS) & set(self.layers)):
            raise ValueError(
                f"the types of detector {others[0]} are no languages, so they have no layers of {min(asked)}; "
                "use first, middle and last"
            )

    def questions_can_have_their_own(self) -> None:
        """Raise where every question is to lose neurons of its own, and no such cell could run."""
        for detector, measure in ((d, m) for d in self.detector for m in self.evaluate if d.scope_for(m) == "input"):
            if measure not in BY_CHOICE:
                raise ValueError(f"scope input needs questions with choices, and {measure} has none; use scope corpus")
            last = detector.settings["tokens"] == "last"
            if not last or self.site != ("post",) or {i.kind for i in self.intervention} != {"zero"}:
                raise ValueError(
                    "a question's own neurons are read at its last token and site post, and switched off: "
                    "set site: post, tokens: last, intervention: zero, or give detector sharing scope: corpus"
                )
