"""Steps of gradient descent on some numbers of a model: on which rows, in which order, and how they go on later."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from math import isfinite
from pathlib import Path
from typing import Any

import torch
from jaxtyping import Float, Int
from torch import Tensor
from torch.nn.functional import cross_entropy
from tqdm.auto import tqdm

from .models.hooked import HookedModel
from .models.native import copied, native_of
from .rows import TokenRows, joined
from .storage import load_record, save_record

OPTIMIZERS = ("adam", "sgd")
_SCHEMA = "Training/1"
_SAVED_EVERY = 20
"""Steps from one checkpoint to the next."""
_MOMENTS = ("exp_avg", "exp_avg_sq")
"""What Adam keeps for every number, by its names."""


class DivergedError(ValueError):
    """A loss that is not finite: the steps were too large."""


@dataclass(frozen=True)
class Training:
    """How many steps of which size, on which rows: part of the protocol of everything that is tuned.

    Example:
        >>> import mi_multilingual as mm
        >>> mm.Training(steps=20, learning_rate=1e-3)
        Training(steps=20, learning_rate=0.001, batch_rows=8, parallel=False, optimizer='adam', seed=0)
    """

    steps: int = 100
    learning_rate: float = 1e-3
    batch_rows: int = 8
    """Rows of text per step, of all languages together."""
    parallel: bool = False
    """Whether every step sees the same documents in all languages; else rows of any language, in an order by chance."""
    optimizer: str = "adam"
    """"adam" (no weight decay) or "sgd", plain gradient descent."""
    seed: int = 0
    """Of the order of the rows."""

    def __post_init__(self) -> None:
        for name in ("steps", "batch_rows"):
            if not isinstance(getattr(self, name), int) or getattr(self, name) < 1:
                raise ValueError(f"{name} must be a whole number from 1, got {getattr(self, name)!r}")
        if not (isfinite(self.learning_rate) and self.learning_rate > 0):
            raise ValueError(f"learning_rate must be a number above 0, got {self.learning_rate!r}")
        if self.optimizer not in OPTIMIZERS:
            raise ValueError(f"optimizer must be one of {', '.join(OPTIMIZERS)}, got {self.optimizer!r}")
        if self.seed < 0:
            raise ValueError(f"seed must be a whole number from 0, got {self.seed!r}")


@dataclass(frozen=True, eq=False)
class Batches:
    """The rows of every step of a training, made when they are wanted."""

    rows: Sequence[TokenRows]
    """Of each language."""
    training: Training

    def __post_init__(self) -> None:
        if self.training.parallel:
            _check_parallel(self.rows)

    def __iter__(self) -> Iterator[TokenRows]:
        yield from self.starting_at(0)

    def starting_at(self, step: int) -> Iterator[TokenRows]:
        """The batches of this step and of all later ones."""
        order = self._order()
        for numbers in order[step:]:
            if self.training.parallel:
                yield joined([rows.pick(numbers) for rows in self.rows])
            else:
                yield joined([rows.pick(mine) for rows, mine in self._by_language(numbers)])

    def _order(self) -> Int[Tensor, "step row"]:
        """Numbers of rows, or with `parallel` of documents: once through all of them, then again in another order."""
        n, size = sum(map(len, self.rows)), self.training.batch_rows
        if self.training.parallel:
            n, size = len(self.rows[0]), max(1, size // len(self.rows))
        size = min(size, n)
        random = torch.Generator().manual_seed(self.training.seed)
        rounds = -(-self.training.steps * size // n)
        whole = torch.cat([torch.randperm(n, generator=random) for _ in range(rounds)])
        return whole[: self.training.steps * size].view(self.training.steps, size)

    def _by_language(self, numbers: Int[Tensor, " row"]) -> Iterator[tuple[TokenRows, Int[Tensor, " picked"]]]:
        """The rows of each language among numbers that count through all languages."""
        first = 0
        for rows in self.rows:
            mine = numbers[(numbers >= first) & (numbers < first + len(rows))] - first
            if len(mine):
                yield rows, mine
            first += len(rows)


def _check_parallel(rows: Sequence[TokenRows]) -> None:
    for one in rows:
        if not torch.equal(one.document, torch.arange(len(rows[0]))):
            raise ValueError(
                f"every document must be one row, and be there in every language, got {len(one)} rows of "
                f"{one.language!r} and {len(rows[0])} of {rows[0].language!r}; read parallel documents by layout "
                "'documents', in a window that holds the longest"
            )


def batch_loss(model: HookedModel, batch: TokenRows) -> Float[Tensor, ""]:
    """Mean loss of the tokens that `perplexity` scores, nats, as part of the graph."""
    tokens, scored = batch.tokens.to(model.cfg.device), batch.valid[:, 1:].to(model.cfg.device)
    logits = model(tokens, return_type="logits")[:, :-1].float()
    nll = cross_entropy(logits.flatten(0, 1), tokens[:, 1:].flatten(), reduction="none")
    return nll[scored.flatten()].mean()


@contextmanager
def frozen(model: HookedModel) -> Iterator[None]:
    """Within the block, no parameter of the model gets a gradient."""
    trained: list[Tensor] = [p for p in model.parameters() if p.requires_grad]  # type: ignore[attr-defined]
    for p in trained:
        p.requires_grad_(False)
    try:
        yield
    finally:
        for p in trained:
            p.requires_grad_(True)


def train(
    model: HookedModel,
    trained: Mapping[str, Tensor],
    batches: Batches,
    *,
    checkpoint: Path | str | None = None,
    protocol: Mapping[str, Any] | None = None,
    progress: bool = True,
) -> Float[Tensor, " step"]:
    """Train the numbers of `trained`, in place, on the batches; the loss before every step, nats per token.

    Args:
        trained: leaves of the graph by their names, with `requires_grad`.
        checkpoint: a file that is written every 20 steps and at the end; where it is there, training goes on from it,
            and ends in the same numbers to the bit.
        protocol: what else decides the result, such as which text; a checkpoint of another one is refused.

    Raises:
        ValueError: a checkpoint of another training, or (`DivergedError`) a loss that is not finite.
    """
    training = batches.training
    kept = {**asdict(training), **(protocol or {})}
    optimizer = _optimizer(list(trained.values()), training)
    losses = _go_on(checkpoint, trained, optimizer, kept)
    left = batches.starting_at(len(losses))
    bar = tqdm(left, "tuning", training.steps, initial=len(losses), unit="step", disable=not progress, leave=False)
    for batch in bar:
        losses.append(_step(model, batch, optimizer))
        if not isfinite(losses[-1]):
            raise DivergedError(
                f"the loss must stay finite, got {losses[-1]} at step {len(losses)}; give a smaller learning_rate than "
                f"{training.learning_rate:g}"
            )
        if checkpoint is not None and (len(losses) % _SAVED_EVERY == 0 or len(losses) == training.steps):
            _keep(checkpoint, trained, optimizer, losses, kept)
    _forget_graph(model)
    return torch.tensor(losses, dtype=torch.float64)


def _optimizer(parameters: list[Tensor], training: Training) -> torch.optim.Optimizer:
    kind = {"adam": torch.optim.Adam, "sgd": torch.optim.SGD}[training.optimizer]
    return kind(parameters, lr=training.learning_rate)


def _step(model: HookedModel, batch: TokenRows, optimizer: torch.optim.Optimizer) -> float:
    """One step; the loss before it."""
    with torch.enable_grad():
        loss = batch_loss(model, batch)
        # Zeros rather than none: parameters that share numbers share the gradient too.
        optimizer.zero_grad(set_to_none=False)
        loss.backward()
    optimizer.step()
    return loss.item()


@torch.no_grad()
def _forget_graph(model: HookedModel) -> None:
    """A bridge keeps the attention pattern of its last pass, with the graph behind it, which cannot be copied."""
    model(torch.zeros(1, 1, dtype=torch.int64, device=model.cfg.device), return_type="logits")


def _keep(
    path: Path | str,
    trained: Mapping[str, Tensor],
    optimizer: torch.optim.Optimizer,
    losses: Sequence[float],
    protocol: Mapping[str, Any],
) -> None:
    """Write all that later steps depend on."""
    tensors = {f"weights/{name}": p for name, p in trained.items()}
    for name, p in trained.items():
        tensors |= {f"{moment}/{name}": optimizer.state[p][moment] for moment in _MOMENTS if optimizer.state[p]}
    save_record(path, _SCHEMA, tensors, {"losses": list(losses), "protocol": dict(protocol)})


@torch.no_grad()
def _go_on(
    path: Path | str | None,
    trained: Mapping[str, Tensor],
    optimizer: torch.optim.Optimizer,
    protocol: Mapping[str, Any],
) -> list[float]:
    """Put back what a checkpoint holds; the losses of the steps that are done."""
    if path is None or not Path(path).exists():
        return []
    tensors, header = load_record(path, _SCHEMA)
    other = [key for key in {**protocol, **header["protocol"]} if protocol.get(key) != header["protocol"].get(key)]
    if other:
        raise ValueError(
            f"checkpoint {str(path)!r} must be of the same training, got {other[0]} "
            f"{header['protocol'].get(other[0])!r} in it and {protocol.get(other[0])!r} here; give another file"
        )
    for name, p in trained.items():
        p.copy_(tensors[f"weights/{name}"])
        moments = {m: tensors[f"{m}/{name}"].to(p.device) for m in _MOMENTS if f"{m}/{name}" in tensors}
        if moments:
            optimizer.state[p] = {"step": torch.tensor(float(len(header["losses"]))), **moments}
    return list(header["losses"])


def whole_copy(model: HookedModel) -> tuple[HookedModel, dict[str, Tensor]]:
    """A copy of the model, and all its weights by their names, ready to be trained."""
    copy = copied(model)
    for p in copy.parameters():
        p.requires_grad_(False)
    return copy, _weights_once(copy)


def _weights_once(model: HookedModel) -> dict[str, Tensor]:
    """The weights of the checkpoint; of those that are the same numbers, such as tied embeddings, the first.

    The others' gradients are added to the first one's, whose place in memory they share.
    """
    its = _checkpoint_storage(model)
    first: dict[tuple[int, int], tuple[str, Tensor]] = {}
    for name, p in model.named_parameters():  # type: ignore[attr-defined]
        # Biases that TransformerLens adds to a checkpoint without them are zeros of their own.
        if p.untyped_storage().data_ptr() not in its and not p.detach().any():
            continue
        _, same = first.setdefault((p.data_ptr(), p.numel()), (name, p))
        if same is not p:
            same.grad = torch.zeros_like(same) if same.grad is None else same.grad
            p.grad = same.grad.as_strided(p.shape, p.stride())
        p.requires_grad_(True)
    return dict(first.values())


def _checkpoint_storage(model: HookedModel) -> set[int]:
    """Where the parameters of the checkpoint are in memory, without the bias that a bridge gives its unembedding."""
    native = native_of(model)
    if native is None:
        return set()
    bias = getattr(native.hf_model.get_output_embeddings(), "bias", None)
    return {p.untyped_storage().data_ptr() for p in native.hf_model.parameters() if p is not bias}
