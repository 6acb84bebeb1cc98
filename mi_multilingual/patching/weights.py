"""Interventions written into the weights: the same numbers as with hooks, at no cost a token."""

from __future__ import annotations

import copy
import os
import shutil
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import torch
from jaxtyping import Float
from torch import Tensor
from transformers import AutoModelForCausalLM, PreTrainedModel, PreTrainedTokenizerBase
from transformers.pytorch_utils import Conv1D

from ..models import HookedModel, architecture, hugging_face, is_bridge, is_gated, load_model
from .interventions import Change, Intervention, changes, check_applicable

OUT_PROJECTIONS = (".mlp.down_proj", ".mlp.dense_4h_to_h", ".mlp.c_proj", ".mlp.fc2", ".fc2")


class NotWritableError(ValueError):
    """An intervention that output weights cannot carry; `steer` can."""


def bake(model: HookedModel, *interventions: Intervention) -> HookedModel:
    """A copy of the model, without hooks, whose weights do what the interventions do; the original stays as it is.

    Output weights W_out and bias b_out carry it: for zero the neuron's row becomes zero, scale multiplies it, and set
    and add at `post` put value * row into the bias. For columns of W_Q, W_K and W_V, zero and scale are written into
    the column and its bias.

    Raises:
        ValueError: as `steer`, or an intervention that no output weight can carry: set or add at the gate of a gated
            MLP, or positions other than "all".
    """
    check_applicable(model, interventions)
    check_writable(interventions, gated=is_gated(model))
    copied = copy.deepcopy(model)
    copied.reset_hooks()
    for projection, row in rewrites(copied, interventions):
        write(projection, row)
    return copied


@contextmanager
def baked(model: HookedModel, *interventions: Intervention) -> Iterator[HookedModel]:
    """Within the block, the model's own weights do what the interventions do; then they are as before.

    The rows that change are put back bit for bit, also when the body raises; entering and leaving costs a copy of
    them. The model's fingerprint is another within the block, so give all interventions at once.

    Raises:
        ValueError: as `bake`.
    """
    check_applicable(model, interventions)
    check_writable(interventions, gated=is_gated(model))
    with rewritten(model, interventions):
        yield model


@contextmanager
def rewritten(model: HookedModel, interventions: Sequence[Intervention]) -> Iterator[None]:
    """`baked` without its checks, for many small blocks whose neurons were checked together."""
    saved: list[tuple[Projection, LayerChange, Tensor, Tensor | None]] = []
    try:
        for projection, row in rewrites(model, interventions):
            bias = projection.bias
            saved.append((projection, row, projection.rows[row.index], None if bias is None else bias.detach().clone()))
            write(projection, row)
        yield
    finally:
        with torch.no_grad():
            for projection, row, rows, bias in reversed(saved):
                projection.rows[row.index] = rows
                restore_bias(projection, bias)


def restore_bias(projection: Projection, bias: Tensor | None) -> None:
    if bias is not None and projection.bias is not None:
        projection.bias.copy_(bias)
    elif projection.module is not None:
        setattr(projection.module, projection.bias_name, None)


def export(model_name: str | Path, interventions: Sequence[Intervention], folder: str | Path) -> Path:
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
    folder = Path(folder)
    if folder.exists() and (not folder.is_dir() or any(folder.iterdir())):
        raise ValueError(f"{str(folder)!r} is there already and not empty; give a new folder")
    hf_model, tokenizer, _ = hugging_face(model_name, None, "auto")
    edit_checkpoint(hf_model, tokenizer, interventions)
    save_whole(hf_model, tokenizer, folder)
    return folder


def edit_checkpoint(
    hf_model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, interventions: Sequence[Intervention]
) -> None:
    """Write the interventions into the weights of a Hugging Face model, in place; raises as `export`."""
    gated = check_checkpoint(hf_model, tokenizer, interventions)
    steps = changes(interventions, gated=gated)
    mlp_steps = [step for step in steps if step.part == "mlp"]
    projections = checkpoint_projections(hf_model, mlp_steps) if mlp_steps else []
    edits = [(p, row) for layer, p in enumerate(projections) for row in layer_changes(mlp_steps, layer)]
    edits += [edit for step in steps if step.part != "mlp" for edit in checkpoint_columns(hf_model, step)]
    for projection, row in edits:
        write(projection, row)


def check_writable(interventions: Sequence[Intervention], *, gated: bool) -> None:
    """Raise where the output weights cannot carry an intervention."""
    for i, intervention in enumerate(interventions, start=1):
        if intervention.positions != "all":
            raise NotWritableError(
                f"intervention {i} acts at positions {intervention.positions!r}, but weights are the same at every "
                "position; use steer(...) for it"
            )
        if gated and intervention.site == "gate" and intervention.kind in ("set", "add"):
            raise NotWritableError(
                f"intervention {i} ({intervention.kind}) acts at the gate of a gated MLP, where what it adds is "
                "multiplied by the other half of the MLP and differs from token to token, which no output weight can "
                "carry; use steer(...), or site 'post'"
            )


@dataclass(frozen=True, eq=False)
class Projection:
    """Weights to write to, a row a neuron: the output weights of one layer's MLP, or columns of one attention head."""

    rows: Float[Tensor, "neuron d_model"]
    """A view of the parameter: writing here writes there."""
    module: torch.nn.Module | None = None
    """What has the bias that the rows may be added to; None where nothing is added."""
    bias_name: str = ""

    @property
    def bias(self) -> Tensor | None:
        return None if self.module is None else getattr(self.module, self.bias_name)


@dataclass(frozen=True, eq=False)
class LayerChange:
    """New rows `factor * row`, and `offset * row` for the bias, of the neurons of one layer that change."""

    index: Tensor
    factor: Float[Tensor, " changed"]
    offset: Float[Tensor, " changed"]


def rewrites(model: HookedModel, interventions: Sequence[Intervention]) -> Iterator[tuple[Projection, LayerChange]]:
    """What is to be written where, in order."""
    steps = changes(interventions, gated=is_gated(model))
    mlp_steps = [step for step in steps if step.part == "mlp"]
    for layer in range(model.cfg.n_layers):
        for row in layer_changes(mlp_steps, layer):
            yield out_projection(model, layer), row
    for step in steps:
        for layer in range(model.cfg.n_layers if step.part != "mlp" else 0):
            for row in layer_changes([step], layer):
                yield from column_rewrites(*columns(model, layer, step.part), row)


def layer_changes(steps: Sequence[Change], layer: int) -> Iterator[LayerChange]:
    """The layer's part of the steps; none where no neuron of it is chosen."""
    for step in steps:
        index = step.chosen[layer].nonzero().flatten()
        if len(index):
            yield LayerChange(index, step.factor[layer, index], step.offset[layer, index])


def out_projection(model: HookedModel, layer: int) -> Projection:
    mlp = model.blocks[layer].mlp
    if is_bridge(model):
        return hugging_face_projection(mlp.out.original_component)
    return Projection(mlp.W_out.detach(), mlp, "b_out")


def hugging_face_projection(module: torch.nn.Module) -> Projection:
    # Conv1D, GPT-2's own, stores (in, out), where Linear stores (out, in).
    weight = module.weight.detach()
    return Projection(weight if isinstance(module, Conv1D) else weight.T, module, "bias")


Columns = tuple[Float[Tensor, "head d_head d_model"], Float[Tensor, "head d_head"] | None]
"""W_Q, W_K or W_V of one layer and its bias, as views of the parameters."""


def columns(model: HookedModel, layer: int, part: str) -> Columns:
    attention = model.blocks[layer].attn
    if is_bridge(model):
        return linear_columns(getattr(attention, part).original_component, model.cfg.d_head)
    # With grouped queries W_K and W_V are copies, one for every query head, of these.
    grouped = "_" if part != "q" and hasattr(attention, "_W_K") else ""
    weight, bias = (getattr(attention, f"{grouped}{name}_{part.upper()}").detach() for name in ("W", "b"))
    return weight.transpose(1, 2), bias


def linear_columns(linear: torch.nn.Linear, d_head: int) -> Columns:
    bias = None if linear.bias is None else linear.bias.detach().unflatten(0, (-1, d_head))
    return linear.weight.detach().unflatten(0, (-1, d_head)), bias


def column_rewrites(
    weight: Float[Tensor, "head d_head d_model"], bias: Float[Tensor, "head d_head"] | None, row: LayerChange
) -> Iterator[tuple[Projection, LayerChange]]:
    """The change head by head, of the columns and then of their biases."""
    d_head = weight.shape[1]
    for head in (row.index // d_head).unique().tolist():
        mine = row.index // d_head == head
        in_head = LayerChange(row.index[mine] % d_head, row.factor[mine], row.offset[mine])
        yield Projection(weight[head]), in_head
        if bias is not None:
            yield Projection(bias[head, :, None]), in_head


@torch.no_grad()
def write(projection: Projection, row: LayerChange) -> None:
    """Write into the weights; a bias that is missing is made where it is needed."""
    rows = projection.rows[row.index]
    accurate = rows.to(torch.promote_types(rows.dtype, torch.float32))
    projection.rows[row.index] = (row.factor.to(accurate)[:, None] * accurate).to(rows.dtype)
    if row.offset.any():
        shift = row.offset.to(accurate) @ accurate
        if projection.bias is None:
            bias = torch.nn.Parameter(shift.to(rows.dtype), requires_grad=False)
            setattr(projection.module, projection.bias_name, bias)
        else:
            projection.bias.copy_((projection.bias.to(shift) + shift).to(rows.dtype))


def check_checkpoint(
    hf_model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, interventions: Sequence[Intervention]
) -> bool:
    """Raise unless the interventions can be written into this checkpoint; whether its MLPs are gated.

    TransformerLens looks at the model through copies of its modules that share the weights, so nothing is stored
    twice and the model stays a plain one.
    """
    shared = {id(t): t for t in (*hf_model.parameters(), *hf_model.buffers())}
    model = load_model(
        copy.deepcopy(hf_model, shared),
        tokenizer=copy.deepcopy(tokenizer),
        backend="bridge",
        device=str(hf_model.device),
        dtype=hf_model.dtype,
    )
    check_applicable(model, interventions)
    check_writable(interventions, gated=is_gated(model))
    return is_gated(model)


def checkpoint_columns(hf_model: PreTrainedModel, step: Change) -> Iterator[tuple[Projection, LayerChange]]:
    """What a step writes into the query, key or value weights."""
    name = f".self_attn.{step.part}_proj"
    found = [module for path, module in hf_model.named_modules() if path.endswith(name)]
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


def checkpoint_projections(hf_model: PreTrainedModel, steps: Sequence[Change]) -> list[Projection]:
    """The output weights of every layer, with biases where the steps need them and the config can have them."""
    found = {name: m for name, m in hf_model.named_modules() if name.endswith(OUT_PROJECTIONS)}
    projections = [hugging_face_projection(module) for module in found.values()]
    shape = tuple(steps[0].chosen.shape)
    if len(projections) != shape[0] or any(len(p.rows) != shape[1] for p in projections):
        raise NotWritableError(
            f"the MLP output weights of {architecture(hf_model)} were not found ({len(projections)} matrices called "
            f"{', '.join(OUT_PROJECTIONS)}, for {shape[0]} layers of {shape[1]} neurons); use bake(...) or steer(...)"
        )
    if any(bool(s.offset.any()) for s in steps) and any(p.bias is None for p in projections):
        turn_biases_on(hf_model, [name.rpartition(".")[0] for name in found])
    return projections


def turn_biases_on(hf_model: PreTrainedModel, mlps: Sequence[str]) -> None:
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
