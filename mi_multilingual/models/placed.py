"""Models that are spread over devices, the disk among them, or quantised: nothing of them may be moved or written.

Weights that wait elsewhere are on torch's device "meta" until a hook of accelerate brings them, for the time of one
module's own pass.
"""

from __future__ import annotations

import shutil
import tempfile
import weakref
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from typing import TYPE_CHECKING, Any

from torch.nn import Module

if TYPE_CHECKING:  # takes seconds to import
    from transformers import PreTrainedModel


def is_placed(hf_model: PreTrainedModel) -> bool:
    """Whether the model is spread over devices or quantised."""
    devices = set((getattr(hf_model, "hf_device_map", None) or {}).values())
    return len(devices) > 1 or bool(getattr(hf_model, "is_quantized", False)) or waits_elsewhere(hf_model)


def waits_elsewhere(module: Module) -> bool:
    """Whether some of the module's weights are brought by accelerate only when they are needed."""
    return any(parameter.is_meta for parameter in module.parameters())


def first_device(hf_model: PreTrainedModel) -> str:
    """Where the tokens go in: the device on which the embedding is run, wherever its weights wait."""
    embedding: Any = hf_model.get_input_embeddings()
    devices = [hook.execution_device for hook in _hooks_of(embedding) if hook.execution_device is not None]
    first = str(devices[0] if devices else embedding.weight.device)
    return f"cuda:{first}" if first.isdecimal() else first


def _hooks_of(module: Module) -> list[Any]:
    """Accelerate's hooks on this module."""
    hook = module.__dict__.get("_hf_hook")
    return [h for h in (hook, *getattr(hook, "hooks", ())) if hasattr(h, "execution_device")]


@contextmanager
def at_hand(module: Module) -> Iterator[None]:
    """Within the block, weights of the module and of its parts can be read."""
    with ExitStack() as stack:
        for part in module.modules():
            for hook in _hooks_of(part):
                if hook.offload:
                    hook.pre_forward(part)
                    stack.callback(hook.post_forward, part, None)
        yield


def check_brought_singly(hf_model: PreTrainedModel) -> None:
    """Raise where accelerate brings the weights of several modules together, under names that a bridge changes."""
    for name, part in hf_model.named_modules():
        if any(hook.offload and hook.place_submodules for hook in _hooks_of(part)) and list(part.children()):
            raise ValueError(
                f"weights must be brought one module at a time, got {name!r}, whose parts come together; leave out "
                "preload_module_classes where the model is offloaded"
            )


@contextmanager
def as_one_piece(hf_model: PreTrainedModel) -> Iterator[None]:
    """Within the block, TransformerLens can build a bridge around a model whose weights wait elsewhere.

    It refuses the device map of such a model, and gives the unembedding a bias of zeros, which accelerate would
    look for where the weights wait.
    """
    if not waits_elsewhere(hf_model):
        yield
        return
    device_map = hf_model.__dict__.pop("hf_device_map", None)
    unembedding: Any = hf_model.get_output_embeddings()
    bias = unembedding.bias
    try:
        yield
    finally:
        unembedding.bias = bias
        if device_map is not None:
            hf_model.hf_device_map = device_map


def with_offload_folder(load: Callable[[str], PreTrainedModel]) -> PreTrainedModel:
    """What `load` makes of a folder for weights that fit nowhere else, which is gone when the model is."""
    folder = tempfile.mkdtemp(prefix="offloaded-")
    try:
        hf_model = load(folder)
    except BaseException:
        shutil.rmtree(folder)
        raise
    weakref.finalize(hf_model, shutil.rmtree, folder, ignore_errors=True)
    return hf_model


def lacking(model: Any) -> str | None:
    """The first part of a bridge whose own weights were made of some that wait elsewhere; None where it can run a pass.

    It splits matrices that hold queries, keys and values together, and only the transformers model can do without.
    """
    for name, part in model.named_modules():
        if not _hooks_of(part) and any(parameter.is_meta for parameter in part.parameters(recurse=False)):
            return name
    return None


def check_whole(model: Any) -> None:
    """Raise where a bridge cannot run a pass."""
    if (name := lacking(model)) is not None:
        raise ValueError(
            f"a pass with hooks on the attention, with gradients or with hooks of your own must have {name!r} in "
            "memory, and its weights wait elsewhere; load the model without offloading to the processor or the disk"
        )
