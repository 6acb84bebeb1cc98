"""A study from its YAML file; a mistake is told with its line, what is allowed, and the closest name."""

import re
from collections.abc import Mapping, Sequence
from importlib.resources import files
from pathlib import Path
from typing import Any, TypeVar, get_args

import yaml
from pydantic import BaseModel, ValidationError

from .config import Models, Study, choice
from .whole import WholeStudies

_Given = TypeVar("_Given", bound=Models)
_KeyPath = tuple[str | int, ...]
"""Keys and list positions that lead to a value."""
_QUOTED = re.compile(r"'([^']*)'")
_UNKNOWN_KEYS = ("extra_forbidden", "unknown_key")
"""Types of error that are told before all others, since they may explain them."""


def preset_names() -> tuple[str, ...]:
    """The published protocols that a study can start from."""
    folder = files("mi_multilingual").joinpath("experiments", "presets")
    return tuple(sorted(f.name.removesuffix(".yaml") for f in folder.iterdir() if f.name.endswith(".yaml")))


def load_study(path: Path | str, overrides: Sequence[str] = ()) -> Study | WholeStudies:
    """The study of a YAML file: defaults, under the preset it names, under its own keys, under the overrides.

    Folders of models, texts and tasks are looked for beside the file, then in the working folder, and stand in the
    study with their whole path. A preset's sizes for the demo count where the text is the demo's.

    Args:
        path: the file; `preset: kojima` in it takes over a published protocol.
        overrides: "key=value" with a dotted key and YAML for the value, e.g. "corpus.languages=[en, fr]".

    Raises:
        ValueError: a file that is no mapping of plain YAML values, an unknown key, or a value that does not fit: with
            file, line, what is allowed and the closest name.
    """
    path = Path(path)
    given, root = _read_yaml(path)
    places: dict[_KeyPath, str] = {}
    for override in overrides:
        _override_value(given, override, places)
    preset = given.pop("preset", None)
    if preset not in (None, *preset_names()):
        where = _place_of(("preset",), root, str(path), places)
        raise ValueError(f"{where}: preset {preset!r} is unknown; {choice(str(preset), preset_names())}")
    base = {} if preset is None else _preset_for(preset, given.get("corpus", "demo"))
    whole = merged(base, given)
    try:
        return placed(_kind_of(whole).model_validate(whole), path.parent)
    except ValidationError as error:
        first = _first(error)
        where = _place_of(steps(first), root, str(path), places)
        raise ValueError(f"{where}: {_in_words(first, _kind_of(whole))}") from error


def checked_study(content: Mapping[str, Any], folder: Path = Path()) -> Study | WholeStudies:
    """The study of a mapping such as a file holds, on a preset where it names one.

    Raises:
        ValueError: a key or value that cannot be.
    """
    given = dict(content)
    preset = given.pop("preset", None)
    whole = merged({} if preset is None else _preset_for(preset, given.get("corpus", "demo")), given)
    try:
        return placed(_kind_of(whole).model_validate(whole), folder)
    except ValidationError as error:
        raise ValueError(_in_words(_first(error), _kind_of(whole))) from error


def _first(error: ValidationError) -> Any:
    """The error to tell: unknown keys explain others."""
    return min(error.errors(), key=lambda e: e["type"] not in _UNKNOWN_KEYS)


def _kind_of(content: Mapping[str, Any]) -> type[Study] | type[WholeStudies]:
    """What a file describes: studies that are run whole where it names one, else a sweep of effects."""
    return WholeStudies if "study" in content else Study


def _preset_for(name: str, corpus: Any) -> dict[str, Any]:
    """The preset's keys, with its sizes for the demo where the study's corpus is that."""
    base, _ = _read_yaml(Path(str(files("mi_multilingual").joinpath("experiments", "presets", f"{name}.yaml"))))
    small = base.pop("demo", {})
    source = corpus.get("source", "demo") if isinstance(corpus, dict) else corpus
    return merged(base, small) if source == "demo" else base


def placed(study: _Given, folder: Path) -> _Given:
    """The study with whole paths for the folders that are in `folder`, or else in the working folder."""

    def place(name: str) -> str:
        here = [p.resolve() for p in (folder / name, Path(name)) if name != "demo" and p.is_dir()]
        return str(here[0]) if here else name

    found: dict[str, Any] = {
        "model": tuple(place(name) for name in study.model),
        "corpus": study.corpus.model_copy(update={"source": place(study.corpus.source)}),
    }
    if isinstance(study, Study):
        given = study.tasks.given.items()
        tasks = {name: task.model_copy(update={"folder": place(task.folder)}) for name, task in given}
        found["tasks"] = study.tasks.model_copy(update=tasks)
    return study.model_copy(update=found)


def _read_yaml(path: Path) -> tuple[dict[str, Any], yaml.Node | None]:
    """The mapping in the file as plain data, and its nodes, which know their lines.

    Raises:
        ValueError: not YAML, not a mapping, a key twice, or a tag that asks for anything but plain data.
    """
    try:
        text = path.read_text(encoding="utf-8")
        root = yaml.compose(text, Loader=yaml.SafeLoader)
        content = yaml.safe_load(text)
    except yaml.MarkedYAMLError as error:
        line = error.problem_mark.line + 1 if error.problem_mark else 1
        raise ValueError(f"{path}, line {line}: {error.problem}; a study is plain YAML, nothing is run") from error
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        raise ValueError(
            f"{path} must be YAML in UTF-8, got something else ({' '.join(str(error).split())})"
        ) from error
    except IsADirectoryError as error:
        raise ValueError(f"{path} is a folder; give the YAML file of a study") from error
    if root is not None:
        _refuse_repeated_keys(root, path)
    if content is None:
        return {}, root
    if not isinstance(content, dict):
        raise ValueError(f"{path}, line 1: a study must be a mapping, one `key: value` per line, got {content!r:.40}")
    return content, root


def _refuse_repeated_keys(node: yaml.Node, path: Path) -> None:
    """Raise where a mapping has a key twice: YAML silently takes the last."""
    if isinstance(node, yaml.SequenceNode):
        for item in node.value:
            _refuse_repeated_keys(item, path)
    if isinstance(node, yaml.MappingNode):
        seen: dict[str, int] = {}
        for key, value in node.value:
            line = key.start_mark.line + 1
            if seen.setdefault(str(key.value), line) != line:
                raise ValueError(f"{path}, line {line}: key {key.value!r} stands in line {seen[key.value]} already")
            _refuse_repeated_keys(value, path)


def _override_value(given: dict[str, Any], override: str, places: dict[_KeyPath, str]) -> None:
    """Put the value of "key=value" into `given`, and remember where it came from."""
    key, sign, text = override.partition("=")
    keys = tuple(key.strip().split("."))
    if not sign or not all(keys):
        raise ValueError(f"--set {override}: give key=value, such as --set rate=0.05 or --set corpus.window=256")
    try:
        value = yaml.safe_load(text)
    except yaml.YAMLError as error:
        raise ValueError(f"--set {override}: {text!r} is no plain YAML value") from error
    inner = given
    for name in keys[:-1]:
        if not isinstance(inner.get(name), dict):
            inner[name] = {}
        inner = inner[name]
    inner[keys[-1]] = value
    places[keys] = f"--set {override}"


def merged(base: Mapping[str, Any], over: Mapping[str, Any]) -> dict[str, Any]:
    """`base` with the keys of `over`; mappings are merged key by key, all else is replaced."""
    both = dict(base)
    for key, value in over.items():
        inner = both.get(key)
        both[key] = merged(inner, value) if isinstance(inner, dict) and isinstance(value, dict) else value
    return both


def _place_of(place: _KeyPath, root: yaml.Node | None, path: str, places: Mapping[_KeyPath, str]) -> str:
    """The line, or the override, of the value that `place` leads to, or of the last part of it that is there."""
    for n in range(len(place), 0, -1):
        if place[:n] in places:
            return places[place[:n]]
    node, line = root, 1
    for step in place:
        found = [(k, v) for k, v in getattr(node, "value", ()) if k.value == step] if _is_mapping(node) else []
        if found:
            line, node = found[0][0].start_mark.line + 1, found[0][1]
        elif isinstance(node, yaml.SequenceNode) and isinstance(step, int):
            node = node.value[step]
            line = node.start_mark.line + 1
    return f"{path}, line {line}"


def _is_mapping(node: yaml.Node | None) -> bool:
    return isinstance(node, yaml.MappingNode)


def steps(error: Any) -> _KeyPath:
    """What leads to the value that is wrong, which may be that of a key of the mapping where the error arose."""
    key = error.get("ctx", {}).get("key")
    return (*error["loc"], key) if key else error["loc"]


def _in_words(error: Any, kind: type[BaseModel] = Study) -> str:
    """One sentence: what is wrong and what is allowed."""
    name = ".".join(step for step in steps(error) if isinstance(step, str))
    given, told = error.get("input"), error.get("ctx", {})
    if error["type"] == "extra_forbidden":
        return f"key {name!r} is unknown; {choice(error['loc'][-1], _allowed_keys(error['loc'], kind))}"
    if error["type"] == "unknown_key":
        return f"key {name!r} is unknown; {told['choice']}"
    if error["type"] == "unfit":
        return f"{name.removesuffix('.name')} {told['reason']}"
    if error["type"] == "literal_error":
        return f"{name} cannot be {given!r}; {choice(given, re.findall(_QUOTED, told['expected']))}"
    if error["type"] == "string_type" and isinstance(given, bool):
        return f"{name} is {given} to YAML, no text; put the word in quotes, as in 'no' for Norwegian"
    if error["type"] == "value_error":
        return sentence(name, str(told["error"]), given)
    reason = error["msg"].removeprefix("Input ")
    return f"{name} {reason}, not {given!r}" if name else f"the study {reason}"


def sentence(name: str, reason: str, given: Any) -> str:
    """What a check of ours says of the value of a key, or of several keys together."""
    if reason.startswith("must be "):
        return f"{name} {reason}, got {given!r}"
    return f"{name} {reason}" if reason.startswith("has ") else f"{name}: {reason}".removeprefix(": ")


def _allowed_keys(place: _KeyPath, kind: type[BaseModel]) -> tuple[str, ...]:
    """The keys that may stand where the last step of `place` stands."""
    model: type[BaseModel] = kind
    for step in place[:-1]:
        annotation = model.model_fields[step].annotation if step in model.model_fields else None
        model = next((m for m in _settings_in(annotation)), model)
    return (("preset",) if model is kind else ()) + tuple(model.model_fields)


def _settings_in(annotation: Any) -> list[type[BaseModel]]:
    """The settings classes that occur in a type."""
    if isinstance(annotation, type) and issubclass(annotation, BaseModel):
        return [annotation]
    return [m for part in get_args(annotation) for m in _settings_in(part)]
