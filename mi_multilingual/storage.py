"""Nouns on disk: tensors and a JSON header in one safetensors file, written all or nothing."""

import json
import os
from collections.abc import Mapping
from dataclasses import asdict, fields, is_dataclass
from importlib import import_module
from pathlib import Path
from typing import Any
from uuid import uuid4

from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor

_VERSIONS = {"ActivationStats": 3}
"""Version of a noun's file, 2 unless it stands here; 3 of the statistics has the sum where a neuron was active."""
HOMES = {
    "ActivationStats": "evidence.activations",
    "Impact": "evidence.impact",
    "NeuronScores": "neurons",
    "NeuronSet": "neurons",
    "Reading": "tokens",
    "Relevance": "evidence.relevance",
    "Representations": "evidence.representations",
    "Routing": "evidence.routing",
    "Sharing": "evidence.sharing",
    "TextActivations": "evidence.texts",
    "Training": "training",
    "Tuning": "tuning",
    "WeightChange": "evidence.weight_change",
}
"""The module of every noun that can be in a file: a file names a noun, never a module."""


def save(noun: Any, path: Path | str) -> None:
    """Write any noun of this package (statistics, scores, sets of neurons) as one safetensors file.

    A reader never sees half a file.

    Raises:
        ValueError: an object that is no such noun.

    Example:
        >>> import mi_multilingual as mm
        >>> neurons = mm.NeuronSet.of({"fr": [(0, 3), (1, 5)]}, shape=(2, 8))
        >>> mm.save(neurons, folder / "neurons.safetensors")
        >>> mm.load(folder / "neurons.safetensors")
        NeuronSet(unnamed method, unknown model, 2 layers x 8 neurons: fr 2)
    """
    name = type(noun).__name__
    if name not in HOMES:
        raise ValueError(f"noun must be one of {', '.join(HOMES)}, got {name}; save tables with to_parquet")
    tensors: dict[str, Tensor] = {}
    header: dict[str, Any] = {}
    for field in fields(noun):
        value = getattr(noun, field.name)
        if isinstance(value, Tensor):
            tensors[field.name] = value
        elif isinstance(value, Mapping) and value and all(isinstance(v, Tensor) for v in value.values()):
            tensors |= {f"{field.name}/{key}": v for key, v in value.items()}
        elif is_dataclass(value):
            header[field.name] = {"noun": type(value).__name__, **asdict(value)}  # type: ignore[call-overload]
        else:
            header[field.name] = dict(value) if isinstance(value, Mapping) else value
    save_record(path, f"{name}/{_VERSIONS.get(name, 2)}", tensors, header)


def load(path: Path | str, expected: type | None = None) -> Any:
    """Read what `save` wrote: the file says which noun it is.

    Args:
        expected: the noun that it must be, where only one will do.

    Raises:
        ValueError: no file of this package, a damaged one, one of an earlier version, or another noun.
    """
    schema, tensors, header = _read_record(path)
    name, _, version = schema.partition("/")
    if name not in HOMES or (expected is not None and name != expected.__name__):
        wanted = expected.__name__ if expected is not None else f"one of {', '.join(HOMES)}"
        raise ValueError(f"{path} must hold {wanted}, got {schema or 'no record of this package'}")
    if version != str(_VERSIONS.get(name, 2)):
        lacking = "how its text was read" if version == "1" else "the sums where neurons were active"
        raise ValueError(
            f"{path} was written by an earlier mi_multilingual ({schema}), without {lacking}; make it again"
        )
    values: dict[str, Any] = {key: tuple(v) if isinstance(v, list) else v for key, v in header.items()}
    for key, tensor in tensors.items():
        field, slash, inner = key.partition("/")
        if slash:
            values.setdefault(field, {})[inner] = tensor
        else:
            values[field] = tensor
    try:
        return home(name)(**{key: _nested(value) for key, value in values.items()})
    except TypeError as error:
        raise ValueError(f"{path} holds a {name} with other fields ({error}); it is damaged, make it again") from error


def home(name: str) -> type:
    """The class of a noun."""
    return getattr(import_module(f"{__package__}.{HOMES[name]}"), name)


def _nested(value: Any) -> Any:
    """A noun within a noun, such as the `Reading` of evidence."""
    if not isinstance(value, dict) or value.get("noun") not in HOMES:
        return value
    return home(value["noun"])(**{key: v for key, v in value.items() if key != "noun"})


def save_record(path: Path | str, schema: str, tensors: Mapping[str, Tensor], header: Mapping[str, Any]) -> None:
    """Write `tensors` and the JSON-able `header`; a reader never sees half a file.

    Args:
        schema: name and version of the record, e.g. "NeuronSet/2".
    """
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    # No number of a process: several machines may write to one folder.
    partial = path.with_name(f".{path.name}.{uuid4().int}")
    metadata = {"schema": schema, "header": json.dumps(header, ensure_ascii=False)}
    try:
        # safetensors refuses views and non-contiguous tensors.
        save_file({name: t.detach().cpu().contiguous().clone() for name, t in tensors.items()}, partial, metadata)
        with partial.open("rb") as file:
            os.fsync(file.fileno())
        partial.replace(path)
    finally:
        partial.unlink(missing_ok=True)


def _read_record(path: Path | str) -> tuple[str, dict[str, Tensor], dict[str, Any]]:
    """Schema, tensors and header of a file that `save_record` wrote; schema "" where it was written by others.

    Raises:
        ValueError: the file is no safetensors file.
    """
    try:
        with safe_open(path, framework="pt") as file:
            metadata = file.metadata() or {}
            tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118 (no mapping)
    except SafetensorError as error:
        raise ValueError(
            f"{path} must be a safetensors file, got another format or a damaged file ({error}); make it again"
        ) from error
    return metadata.get("schema", ""), tensors, json.loads(metadata.get("header", "{}"))


def load_record(path: Path | str, schema: str) -> tuple[dict[str, Tensor], dict[str, Any]]:
    """Tensors and header of a record of this schema.

    Raises:
        ValueError: the file is no safetensors file or holds another kind of record.
    """
    found, tensors, header = _read_record(path)
    if found != schema:
        raise ValueError(f"{path} must hold {schema}, got {found or 'no record of this package'}")
    return tensors, header


def is_like_a_path(source: Path | str) -> bool:
    """Whether a name can only be meant as a place on this machine, not as the id of a data set or model."""
    name = str(source)
    return isinstance(source, Path) or name.startswith((".", "/", "~")) or name.endswith("/") or name.count("/") > 1
