"""`record`, shared out over the processes of torch.distributed."""

from __future__ import annotations

import hashlib
import json
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist

from ..corpora import Corpus
from ..models.hooked import HookedModel
from ..tokens import Reading
from .activations import TENSORS, ActivationStats, checked_batch_size, record

_FAILED = 0  # the mark of a process that could not record its share


def record_distributed(
    model: HookedModel,
    corpus: Corpus,
    *,
    reading: Reading = Reading(),
    batch_size: int | str = "auto",
    progress: bool = True,
    checkpoint: Path | str | None = None,
    **options: Any,
) -> ActivationStats:
    """`record`, shared out over the processes of torch.distributed, as `torchrun` starts them; each gets the whole.

    Every process calls it with the same arguments after `torch.distributed.init_process_group()`.

    Args:
        progress: shown by rank 0, of its own share.
        checkpoint: each process keeps its share in a file of this name, its rank and their number.
        options: as of `record`, and meaning the same.

    Raises:
        ValueError: no process group, or processes that do not record the same; as `record` in the process concerned.
        RuntimeError: another process failed.
    """
    if not (dist.is_available() and dist.is_initialized()):
        raise ValueError("no process group; start with torchrun and call torch.distributed.init_process_group() first")
    rank, number = dist.get_rank(), dist.get_world_size()
    try:
        reading = reading.for_model(model)
        batch_size = checked_batch_size(model, reading, batch_size)
        own = None if checkpoint is None else Path(f"{checkpoint}.{rank}-of-{number}")
        options |= {"reading": reading, "batch_size": batch_size}
        part = record(model, corpus, shard=(rank, number), progress=progress and rank == 0, checkpoint=own, **options)
    except Exception:
        agree(_FAILED)
        raise
    recorded = json.dumps([part.header(), options | {"reading": asdict(reading)}], sort_keys=True).encode()
    agree(int.from_bytes(hashlib.sha256(recorded).digest()[:7]) + 1)
    return _all_reduced(part)


def agree(mark: int) -> None:
    """Return in every process when all have come here with the same mark; nobody waits for one that failed.

    Raises:
        ValueError: marks differ.
        RuntimeError: a process came with FAILED; not in that process itself.
    """
    marks = [torch.zeros(1, dtype=torch.int64, device=_group_device()) for _ in range(dist.get_world_size())]
    dist.all_gather(marks, torch.tensor([mark], device=_group_device()))
    values = [int(m) for m in marks]
    if mark != _FAILED and _FAILED in values:
        raise RuntimeError(f"process {values.index(_FAILED)} of {len(values)} failed; its own message says why")
    if mark != _FAILED and set(values) != {mark}:
        raise ValueError(
            "the processes record different things; give all the same model, corpus and options, batch_size included"
        )


def _all_reduced(part: ActivationStats) -> ActivationStats:
    """The sum of the statistics of all processes."""
    tensors = {}
    for name in TENSORS:
        tensor = getattr(part, name).to(_group_device(), copy=True).contiguous()
        dist.all_reduce(tensor, op=dist.ReduceOp.MAX if name == "maximum" else dist.ReduceOp.SUM)
        tensors[name] = tensor.cpu()
    return replace(part, **tensors)


def _group_device() -> str:
    """Where tensors must lie to be exchanged."""
    return "cuda" if dist.get_backend() == "nccl" else "cpu"
