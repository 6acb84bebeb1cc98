"""Hugging Face checkpoints with interventions in their weights."""

from __future__ import annotations

import copy
import os
import shutil
from collections.abc import Iterator, Sequence
from pathlib import Path

import torch
from transformers import AutoModelForCausalLM, PreTrainedModel, PreTrainedTokenizerBase
from transformers.pytorch_utils import Conv1D

from ..models.checkpoints import architecture, hugging_face
from ..models.hooked import HookedModel, is_gated
from ..models.loading import load_model
from ..models.placed import is_placed
from .changes import Change, Intervention, changes, check_applicable
from .weights import (
    NotWritableError,
    Projection,
    RowsChange,
    check_writable,
    column_rewrites,
    hugging_face_projection,
    layer_changes,
    linear_columns,
    write,
)

_OUT_PROJECTIONS = (".mlp.down_proj", ".mlp.dense_4h_to_h", ".mlp.c_proj", ".mlp.fc2", ".fc2")


def export(model_name: str | Path, *interventions: Intervention, folder: str | Path) -> Path:
    """Write the Hugging Face checkpoint with the interventions in its weights: safetensors, config, tokenizer.

    The stored weights are edited in their own precision, nothing is converted, so everything that loads the
    checkpoint loads the edited one. Where the MLP has no output bias, set and add turn on the config's own option
    (`mlp_bias`, with zeros in every other new bias). Columns of W_Q, W_K and W_V need weights of their own for queries,
    keys and values.

    Args:
        model_name: as `load_model` takes it.
        folder: a new or empty one.

    Returns:
        the folder.

    Raises:
        ValueError: as `bake`, a folder that holds something, set and add where the architecture has neither an
            output bias nor an option for one, or columns of W_Q, W_K or W_V where one matrix holds all three.
    """
    folder = check_new_folder(folder)
    hf_model, tokenizer, _ = hugging_face(model_name, None, "auto")
    edit_checkpoint(hf_model, tokenizer, interventions)
    save_whole(hf_model, tokenizer, folder)
    return folder


def check_new_folder(folder: str | Path) -> Path:
    """The folder, unless it holds something."""
    folder = Path(folder)
    if folder.exists() and (not folder.is_dir() or any(folder.iterdir())):
        raise ValueError(f"{str(folder)!r} is there already and not empty; give a new folder")
    return folder


def edit_checkpoint(
    hf_model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, interventions: Sequence[Intervention]
) -> None:
    """Write the interventions into the weights of a Hugging Face model, in place; raises as `export`."""
    gated = _check_checkpoint(hf_model, tokenizer, interventions)
    steps = changes(interventions, gated=gated)
    mlp_steps = [step for step in steps if step.part == "mlp"]
    projections = _checkpoint_projections(hf_model, mlp_steps) if mlp_steps else []
    edits = [(p, row) for layer, p in enumerate(projections) for row in layer_changes(mlp_steps, layer)]
    edits += [edit for step in steps if step.part != "mlp" for edit in _checkpoint_columns(hf_model, step)]
    for projection, row in edits:
        write(projection, row)


def _check_checkpoint(
    hf_model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, interventions: Sequence[Intervention]
) -> bool:
    """Raise unless the interventions can be written into this checkpoint; whether its MLPs are gated."""
    model = bridged(hf_model, tokenizer)
    check_applicable(model, interventions)
    check_writable(model, interventions)
    return is_gated(model)


def bridged(hf_model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase) -> HookedModel:
    """The checkpoint as a TransformerBridge, through copies of its modules that share the weights.

    So nothing is stored twice, and the model stays a plain one.
    """
    shared = {id(t): t for t in (*hf_model.parameters(), *hf_model.buffers())}
    return load_model(
        copy.deepcopy(hf_model, shared),
        tokenizer=copy.deepcopy(tokenizer),
        backend="bridge",
        device=None if is_placed(hf_model) else str(hf_model.device),
        dtype=hf_model.dtype,
    )


def _checkpoint_columns(hf_model: PreTrainedModel, step: Change) -> Iterator[tuple[Projection, RowsChange]]:
    """What a step writes into the query, key or value weights."""
    name = f".self_attn.{step.part}_proj"
    named = [module for path, module in hf_model.named_modules() if path.endswith(name)]
    found = [module for module in named if isinstance(module, torch.nn.Linear)]
    shape = tuple(step.chosen.shape)
    if len(found) != shape[0] or any(module.weight.shape[0] != shape[1] for module in found):
        raise ValueError(
            f"{architecture(hf_model)} has no matrix of its own for W_{step.part.upper()} in every layer "
            f"({len(found)} called {name[1:]} for {shape[0]} layers of {shape[1]} columns); use bake(...) or steer(...)"
        )
    d_head = getattr(hf_model.config, "head_dim", None)
    d_head = d_head or hf_model.config.hidden_size // hf_model.config.num_attention_heads
    for layer, module in enumerate(found):
        for row in layer_changes([step], layer):
            yield from column_rewrites(*linear_columns(module, d_head), row)


def _checkpoint_projections(hf_model: PreTrainedModel, steps: Sequence[Change]) -> list[Projection]:
    """The output weights of every layer, with biases where the steps need them and the config can have them."""
    named = {name: m for name, m in hf_model.named_modules() if name.endswith(_OUT_PROJECTIONS)}
    found = {name: m for name, m in named.items() if isinstance(m, torch.nn.Linear | Conv1D)}
    projections = [hugging_face_projection(module) for module in found.values()]
    shape = tuple(steps[0].chosen.shape)
    if len(projections) != shape[0] or any(len(p.rows) != shape[1] for p in projections):
        raise NotWritableError(
            f"the MLP output weights of {architecture(hf_model)} were not found ({len(projections)} matrices called "
            f"{', '.join(_OUT_PROJECTIONS)}, for {shape[0]} layers of {shape[1]} neurons); use bake(...) or steer(...)"
        )
    if any(bool(s.offset.any()) for s in steps) and any(p.bias is None for p in projections):
        _turn_biases_on(hf_model, [name.rpartition(".")[0] for name in found])
    return projections


def _turn_biases_on(hf_model: PreTrainedModel, mlps: Sequence[str]) -> None:
    """Zero biases in every linear map of the MLPs, and the config's option that makes them load."""
    if not hasattr(hf_model.config, "mlp_bias"):
        raise NotWritableError(
            f"{architecture(hf_model)} has no bias after its MLP and no option for one in its config, so set and add "
            "cannot be written into its checkpoint; use zero or scale, or bake(...) or steer(...) in this package"
        )
    hf_model.config.mlp_bias = True
    for name in mlps:
        for linear in hf_model.get_submodule(name).children():
            if isinstance(linear, torch.nn.Linear) and linear.bias is None:
                linear.bias = torch.nn.Parameter(linear.weight.new_zeros(linear.out_features), requires_grad=False)
    with torch.device("meta"):
        expected = AutoModelForCausalLM.from_config(hf_model.config).state_dict().keys()
    if set(expected) != set(hf_model.state_dict()):
        raise NotWritableError(
            f"the config of {architecture(hf_model)} has mlp_bias, but its biases are others than expected; "
            "use zero or scale, or bake(...) or steer(...) in this package"
        )


def save_whole(hf_model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, folder: Path) -> None:
    """Write the checkpoint all or nothing: a reader never sees half a folder."""
    partial = folder.with_name(f".{folder.name}.{os.getpid()}")
    try:
        hf_model.save_pretrained(partial)
        tokenizer.save_pretrained(partial)
        partial.replace(folder)
    finally:
        shutil.rmtree(partial, ignore_errors=True)
