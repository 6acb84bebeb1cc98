"""Interventions written into a model's weights: the same numbers as with hooks, at no cost per token."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass

import torch
from jaxtyping import Float
from torch import Tensor
from transformers.pytorch_utils import Conv1D

from ..models.hooked import HookedModel, is_bridge, is_gated, keeps_its_weights
from ..models.native import copied
from .changes import Change, Intervention, changes, check_applicable


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
    check_writable(model, interventions)
    other = copied(model)
    for projection, row in _rewrites(other, interventions):
        write(projection, row)
    return other


@contextmanager
def baked(model: HookedModel, *interventions: Intervention) -> Iterator[HookedModel]:
    """Within the block, the model's own weights do what the interventions do; then they are as before.

    The rows that change are put back bit for bit, also when the body raises; entering and leaving costs a copy of
    them. The model's fingerprint is another within the block, so give all interventions at once.

    Raises:
        ValueError: as `bake`.
    """
    check_applicable(model, interventions)
    check_writable(model, interventions)
    with rewritten(model, interventions):
        yield model


@contextmanager
def rewritten(model: HookedModel, interventions: Sequence[Intervention]) -> Iterator[None]:
    """`baked` without its checks, for many small blocks whose neurons were checked together."""
    saved: list[tuple[Projection, RowsChange, Tensor, Tensor | None]] = []
    try:
        for projection, row in _rewrites(model, interventions):
            bias, rows = projection.bias, projection.rows[row.index]
            saved.append((projection, row, rows, None if bias is None else bias.detach().clone()))
            _write_over(projection, row, rows)
        yield
    finally:
        with torch.no_grad():
            for projection, row, rows, bias in reversed(saved):
                projection.rows[row.index] = rows
                _restore_bias(projection, bias)


def _restore_bias(projection: Projection, bias: Tensor | None) -> None:
    if bias is not None and projection.bias is not None:
        projection.bias.copy_(bias)
    elif projection.module is not None:
        setattr(projection.module, projection.bias_name, None)


def check_writable(model: HookedModel, interventions: Sequence[Intervention]) -> None:
    """Raise where the output weights cannot carry an intervention."""
    if keeps_its_weights(model):
        raise NotWritableError(
            "the weights must be on one device and not quantised to be written to, got a model that is spread over "
            "devices or quantised; use ablate(...) or steer(...), which change what it computes"
        )
    gated = is_gated(model)
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
    """Weights to write to, one row per neuron: output weights of one layer's MLP, or columns of an attention head."""

    rows: Float[Tensor, "neuron d_model"]
    """A view of the parameter: writing here writes there."""
    module: torch.nn.Module | None = None
    """What has the bias that the rows may be added to; None where nothing is added."""
    bias_name: str = ""

    @property
    def bias(self) -> Tensor | None:
        return None if self.module is None else getattr(self.module, self.bias_name)


@dataclass(frozen=True, eq=False)
class RowsChange:
    """New rows `factor * row`, and `offset * row` for the bias, of the neurons of one layer that change."""

    index: Tensor
    factor: Float[Tensor, " changed"]
    offset: Float[Tensor, " changed"]


def _rewrites(model: HookedModel, interventions: Sequence[Intervention]) -> Iterator[tuple[Projection, RowsChange]]:
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


def layer_changes(steps: Sequence[Change], layer: int) -> Iterator[RowsChange]:
    """The layer's part of the steps; none where no neuron of it is chosen."""
    for step in steps:
        index = step.chosen[layer].nonzero().flatten()
        if len(index):
            yield RowsChange(index, step.factor[layer, index], step.offset[layer, index])


def out_projection(model: HookedModel, layer: int) -> Projection:
    """The output weights of a layer's MLP, one row per neuron."""
    mlp = model.blocks[layer].mlp
    if is_bridge(model):
        return hugging_face_projection(mlp.out.original_component)
    return Projection(mlp.W_out.detach(), mlp, "b_out")


def hugging_face_projection(module: torch.nn.Linear | Conv1D) -> Projection:
    # Conv1D, GPT-2's own, stores (in, out), where Linear stores (out, in).
    weight = module.weight.detach()
    return Projection(weight if isinstance(module, Conv1D) else weight.T, module, "bias")


_Columns = tuple[Float[Tensor, "head d_head d_model"], Float[Tensor, "head d_head"] | None]
"""W_Q, W_K or W_V of one layer and its bias, as views of the parameters."""


def columns(model: HookedModel, layer: int, part: str) -> _Columns:
    attention = model.blocks[layer].attn
    if is_bridge(model):
        return linear_columns(getattr(attention, part).original_component, model.cfg.d_head)
    # With grouped queries W_K and W_V are copies, one for every query head, of these.
    grouped = "_" if part != "q" and hasattr(attention, "_W_K") else ""
    weight, bias = (getattr(attention, f"{grouped}{name}_{part.upper()}").detach() for name in ("W", "b"))
    return weight.transpose(1, 2), bias


def linear_columns(linear: torch.nn.Linear, d_head: int) -> _Columns:
    bias = None if linear.bias is None else linear.bias.detach().unflatten(0, (-1, d_head))
    return linear.weight.detach().unflatten(0, (-1, d_head)), bias


def column_rewrites(
    weight: Float[Tensor, "head d_head d_model"], bias: Float[Tensor, "head d_head"] | None, row: RowsChange
) -> Iterator[tuple[Projection, RowsChange]]:
    """The change head by head, of the columns and then of their biases."""
    d_head = weight.shape[1]
    for head in (row.index // d_head).unique().tolist():
        mine = row.index // d_head == head
        in_head = RowsChange(row.index[mine] % d_head, row.factor[mine], row.offset[mine])
        yield Projection(weight[head]), in_head
        if bias is not None and bias.any():
            yield Projection(bias[head, :, None]), in_head


def write(projection: Projection, row: RowsChange) -> None:
    """Write into the weights; a bias that is missing is made where it is needed."""
    _write_over(projection, row, projection.rows[row.index])


@torch.no_grad()
def _write_over(projection: Projection, row: RowsChange, rows: Float[Tensor, "changed d_model"]) -> None:
    """`write`, where the rows are known: reading some columns of a large matrix is the dearest part of it."""
    accurate = rows.to(torch.promote_types(rows.dtype, torch.float32))
    projection.rows[row.index] = (row.factor.to(accurate)[:, None] * accurate).to(rows.dtype)
    if row.offset.any():
        shift = row.offset.to(accurate) @ accurate
        if projection.bias is None:
            bias = torch.nn.Parameter(shift.to(rows.dtype), requires_grad=False)
            setattr(projection.module, projection.bias_name, bias)
        else:
            projection.bias.copy_((projection.bias.to(shift) + shift).to(rows.dtype))
