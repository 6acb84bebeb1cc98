"""Records on disk: tensors and a JSON header in one safetensors file, written all or nothing."""

import json
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor


def save_record(path: Path | str, schema: str, tensors: Mapping[str, Tensor], header: Mapping[str, Any]) -> None:
    """Write `tensors` and the JSON-able `header`; a reader never sees half a file.

    Args:
        schema: name and version of the record, checked by `load_record`, e.g. "NeuronSet/1".
    """
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    partial = path.with_name(f".{path.name}.{os.getpid()}")
    metadata = {"schema": schema, "header": json.dumps(header, ensure_ascii=False)}
    try:
        # safetensors refuses views and non-contiguous tensors.
        save_file({name: t.detach().cpu().contiguous().clone() for name, t in tensors.items()}, partial, metadata)
        with partial.open("rb") as file:
            os.fsync(file.fileno())
        partial.replace(path)
    finally:
        partial.unlink(missing_ok=True)


def load_record(path: Path | str, schema: str) -> tuple[dict[str, Tensor], dict[str, Any]]:
    """Read what `save_record` wrote.

    Raises:
        ValueError: the file is no safetensors file or holds another kind of record.
    """
    try:
        with safe_open(path, framework="pt") as file:
            metadata = file.metadata() or {}
            tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118 (no mapping)
    except SafetensorError as error:
        raise ValueError(
            f"{path} cannot be read as a safetensors file ({error}); it is damaged or another format"
        ) from error
    if metadata.get("schema") != schema:
        raise ValueError(f"{path} holds {metadata.get('schema', 'no record of this package')}, expected {schema}")
    return tensors, json.loads(metadata["header"])
