"""Training that touches only chosen neurons: their changes are small tensors of their own beside frozen weights."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch
from jaxtyping import Float, Int
from torch import Tensor
from torch.nn import Module

from .corpora import Corpus
from .display import Summarised
from .evidence.reading import origin
from .models.checkpoints import architecture, hugging_face
from .models.hooked import HookedModel, fingerprint, is_bridge, is_gated
from .models.native import copied
from .neurons import NeuronSet
from .patching.changes import check_fits
from .patching.export import bridged, check_new_folder, save_whole
from .patching.weights import NotWritableError, check_writable, columns, hugging_face_projection, out_projection
from .tokens import Reading, language_rows
from .training import Batches, Training, frozen, train, whole_copy

_BRIDGED = {"W_in": "in", "W_gate": "gate", "W_out": "out", "W_Q": "q", "W_K": "k", "W_V": "v"}
"""What a bridge calls the linear map of a weight."""
_INPUTS = {"W_Q": "query_input", "W_K": "key_input", "W_V": "value_input"}
"""The argument of a HookedTransformer's attention that goes through a weight."""


@dataclass(frozen=True, eq=False, repr=False)
class Tuning(Summarised):
    """What training changed: by how much, and how it was done."""

    change: Mapping[str, Tensor]
    """Name of a weight, such as "blocks.0.mlp.W_in" -> (neuron, d_model): what is added to the weights of each neuron
    of `index`; after full tuning, to the whole weight."""
    index: Mapping[str, Int[Tensor, " neuron"]]
    """Name of a weight -> the neurons of that layer; empty after full tuning."""
    losses: Float[Tensor, " step"]
    """Loss of every step's batch before the step, nats per token, float64."""
    training: Training
    groups: tuple[str, ...]
    """Of the neurons."""
    languages: tuple[str, ...]
    """Of the text."""
    model: str
    model_fingerprint: str
    corpus_fingerprint: str
    reading: Reading

    @property
    def n_numbers(self) -> int:
        """Numbers that were trained."""
        return sum(change.numel() for change in self.change.values())

    def summary(self) -> tuple[str, Mapping[str, Sequence[Any]]]:
        whose = f"neurons of {', '.join(self.groups)}" if self.index else "all weights"
        head = f"{self.model}, {whose} on {', '.join(self.languages)}, {self.training.steps} steps"
        return head, {"numbers": [self.n_numbers], "loss": [f"{self.losses[0]:.3f} to {self.losses[-1]:.3f}"]}


def tune(
    model: HookedModel,
    corpus: Corpus,
    *neurons: NeuronSet,
    training: Training = Training(),
    gate: bool = False,
    reading: Reading = Reading(),
    checkpoint: Path | str | None = None,
    progress: bool = True,
) -> Tuning:
    """Train only what belongs to the neurons: their rows of W_in and W_out, their columns of W_Q, W_K and W_V.

    The model stays as it is: `tuned` puts the changes in force. Gradients take as much memory as the changes, and
    Adam's moments twice as much, whatever the size of the model. Columns of W_K and W_V belong to all query heads that
    share them. Changes are float32, and start at zero.

    Args:
        corpus: the text, of one language or several.
        neurons: all groups of each set, one set for each part; none for full tuning of a copy.
        gate: train W_gate of gated MLPs too, which the released code leaves frozen.
        checkpoint: a file to save to every 20 steps; where it is there, training goes on from it, and ends in the same
            numbers to the bit as if it had never stopped.

    Raises:
        ValueError: neurons of another model, none in any set, two sets of one part, a model that is spread over
            devices or quantised, text as in `token_rows`, documents that are not parallel where training is, a
            checkpoint of other training, or a loss that is not finite.

    Source: neuron-specific tuning of Zhao et al. 2024, arXiv:2402.18815; also Mondal et al. 2025, arXiv:2503.17456.

    Example:
        >>> import mi_multilingual as mm
        >>> model = mm.load_model("demo")
        >>> corpus = mm.load_corpus("demo", languages=["fr"], split="identify", max_documents=16)
        >>> neurons = mm.NeuronSet.of({"fr": [(3, 7), (3, 8)]}, shape=(4, 1536))
        >>> reading = mm.Reading(layout="documents")
        >>> how = mm.Training(steps=2)
        >>> tuning = mm.tune(model, corpus, neurons, training=how, reading=reading, progress=False)
        >>> tuning.n_numbers, tuple(tuning.change["blocks.3.mlp.W_out"].shape)
        (768, (2, 192))
        >>> with mm.tuned(model, tuning):
        ...     table = mm.perplexity(model, corpus, reading=reading, progress=False)
    """
    _check_neurons(model, neurons)
    check_writable(model, ())
    rows = list(language_rows(model, corpus, reading, progress=progress))
    made = origin(model, corpus, reading)
    protocol = {**made, "reading": asdict(made["reading"]), "neurons": _hash_of(neurons), "gate": gate}
    how: dict[str, Any] = {"checkpoint": checkpoint, "protocol": protocol, "progress": progress}
    index = _indices(model, neurons, gate=gate)
    step = _tune_neurons if neurons else _tune_whole
    change, losses = step(model, index, Batches(rows, training), how)
    groups = tuple(dict.fromkeys(group for part in neurons for group in part.groups))
    return Tuning(change, index, losses, training, groups, corpus.languages, **made)


def _check_neurons(model: HookedModel, neurons: Sequence[NeuronSet]) -> None:
    parts = [part.part for part in neurons]
    if len(set(parts)) < len(parts):
        raise ValueError(f"every set must be of another part, got {', '.join(parts)}; join sets of one part with |")
    for part in neurons:
        check_fits(model, part)
    if neurons and not any(part.union().any() for part in neurons):
        raise ValueError("neurons must have some to train, got empty sets; leave them out to tune all weights")


def _hash_of(neurons: Sequence[NeuronSet]) -> str:
    """16 hex digits that tell one choice of neurons from another."""
    digest = hashlib.sha256()
    for part in neurons:
        digest.update(part.part.encode() + part.union().cpu().numpy().tobytes())
    return digest.hexdigest()[:16]


def _indices(model: HookedModel, neurons: Sequence[NeuronSet], *, gate: bool) -> dict[str, Int[Tensor, " neuron"]]:
    """The neurons of every weight that has some to train."""
    gates = ("W_gate",) if gate and is_gated(model) else ()
    found = {}
    for part in neurons:
        names = ("mlp.W_in", *(f"mlp.{name}" for name in gates), "mlp.W_out")
        names = names if part.part == "mlp" else (f"attn.W_{part.part.upper()}",)
        for layer, mask in enumerate(part.union()):
            index = mask.nonzero().flatten().cpu()
            found |= {f"blocks.{layer}.{name}": index for name in names if len(index)}
    return found


_Trained = tuple[dict[str, Tensor], Float[Tensor, " step"]]
"""The changes by the names of weights, and the losses."""


def _tune_neurons(model: HookedModel, index: Mapping[str, Tensor], batches: Batches, how: dict[str, Any]) -> _Trained:
    d_model, device = model.cfg.d_model, model.cfg.device
    change = {name: torch.zeros(len(i), d_model, device=device, requires_grad=True) for name, i in index.items()}
    with frozen(model), added(model, change, index):
        losses = train(model, change, batches, **how)
    return {name: delta.detach().cpu() for name, delta in change.items()}, losses


def _tune_whole(model: HookedModel, index: Mapping[str, Tensor], batches: Batches, how: dict[str, Any]) -> _Trained:
    copy, weights = whole_copy(model)
    losses = train(copy, weights, batches, **how)
    base = dict(model.named_parameters())  # type: ignore[attr-defined]
    return {name: (p.detach() - base[name].detach()).float().cpu() for name, p in weights.items()}, losses


@contextmanager
def added(model: HookedModel, change: Mapping[str, Tensor], index: Mapping[str, Tensor]) -> Iterator[None]:
    """Within the block, hooked passes run as if the changes were added to the weights, and gradients reach them."""
    with ExitStack() as stack:
        for name, delta in change.items():
            place = index[name].to(delta.device)
            for handle in _install(_map_of(model, name), delta, place, writes=name.endswith("W_out")):
                stack.callback(handle.remove)
        yield


@dataclass(frozen=True, eq=False)
class _Map:
    """A multiplication by a weight: the module that is given what comes in, and the one that returns what goes out."""

    source: Module
    target: Module
    argument: str = ""
    """The name by which the source is given it; else it is the first."""


def _map_of(model: HookedModel, name: str) -> _Map:
    _, layer, part, weight = name.split(".")
    block = model.blocks[int(layer)]
    module = getattr(block, part)
    if is_bridge(model):
        linear = getattr(module, _BRIDGED[weight]).original_component
        return _Map(linear, linear)
    if part == "attn":
        return _Map(module, getattr(module, f"hook_{_BRIDGED[weight]}"), _INPUTS[weight])
    if weight == "W_out":
        return _Map(module.hook_post, module)
    return _Map(module, module.hook_pre_linear if weight == "W_in" and is_gated(model) else module.hook_pre)


def _install(
    where: _Map, delta: Float[Tensor, "neuron d_model"], index: Int[Tensor, " neuron"], *, writes: bool
) -> Iterator[Any]:
    """Hooks that add what the change does; `writes` where neurons are what comes in rather than what goes out."""
    given: list[Tensor] = []

    def before(module: Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        given[:] = [kwargs[where.argument] if where.argument in kwargs else args[0]]

    def after(module: Module, args: Any, out: Tensor) -> Tensor:
        x, change = given.pop(), delta.to(out.dtype)
        if writes:
            return out + x[..., index] @ change
        # An attention's hook carries (batch, pos, head, d_head).
        flat = out.flatten(2) if out.ndim == 4 else out
        return flat.index_add(-1, index, x @ change.T).view(out.shape)

    yield where.source.register_forward_pre_hook(before, with_kwargs=True)
    yield where.target.register_forward_hook(after)


@contextmanager
def tuned(model: HookedModel, tuning: Tuning) -> Iterator[HookedModel]:
    """Within the block, the changes are in the model's own weights; then these are as before, bit for bit.

    Entering and leaving costs a copy of what changes. In half precision the changed weights are rounded to it.

    Raises:
        ValueError: tuning of another model, or a model that is spread over devices or quantised.
    """
    _check_model(model, tuning)
    saved: list[tuple[_Place, Tensor]] = []
    try:
        for place, change in _places(model, tuning):
            saved.append((place, place.values()))
            place.put(place.values().float() + change.to(model.cfg.device))
        yield model
    finally:
        for place, values in reversed(saved):
            place.put(values)


def tuned_copy(model: HookedModel, tuning: Tuning) -> HookedModel:
    """A copy of the model with the changes in its weights; the original stays as it is.

    Raises:
        ValueError: as `tuned`.
    """
    _check_model(model, tuning)
    other = copied(model)
    _write(other, tuning)
    return other


def export_tuned(model_name: str | Path, tuning: Tuning, *, folder: Path | str) -> Path:
    """Write the Hugging Face checkpoint with the changes in its weights: safetensors, config, tokenizer.

    Args:
        model_name: as `load_model` takes it.
        folder: a new or empty one.

    Raises:
        ValueError: tuning of another model or of all weights, a folder that holds something, or weights that are no
            matrix of their own in the checkpoint.
    """
    folder = check_new_folder(folder)
    hf_model, tokenizer, _ = hugging_face(model_name, None, "auto")
    if not tuning.index:
        raise ValueError(
            "tuning must be of neurons to be exported, got that of all weights; save those of tuned_copy(...) yourself"
        )
    model = bridged(hf_model, tokenizer)
    _check_model(model, tuning)
    its = {p.untyped_storage().data_ptr() for p in hf_model.parameters()}
    for (place, _), name in zip(_places(model, tuning), tuning.change, strict=True):
        if place.weight.untyped_storage().data_ptr() not in its:
            raise NotWritableError(
                f"{architecture(hf_model)} has no matrix of its own for {name}; use tuned(...) or tuned_copy(...)"
            )
    _write(model, tuning)
    save_whole(hf_model, tokenizer, folder)
    return folder


def _check_model(model: HookedModel, tuning: Tuning) -> None:
    check_writable(model, ())
    if fingerprint(model) != tuning.model_fingerprint:
        raise ValueError(f"tuning must be of this model, got that of other weights ({tuning.model!r}); tune this one")


def _write(model: HookedModel, tuning: Tuning) -> None:
    for place, change in _places(model, tuning):
        place.put(place.values().float() + change.to(model.cfg.device))


@dataclass(frozen=True, eq=False)
class _Place:
    """Numbers of a weight that can be read and written."""

    weight: Tensor
    """A view of the parameter."""
    index: Any
    """Which of its first dimensions; `...` for all."""

    def values(self) -> Tensor:
        return self.weight[self.index].clone()

    @torch.no_grad()
    def put(self, values: Tensor) -> None:
        self.weight[self.index] = values.to(self.weight.dtype)


def _places(model: HookedModel, tuning: Tuning) -> Iterator[tuple[_Place, Tensor]]:
    """Where each change belongs."""
    whole = {} if tuning.index else dict(model.named_parameters())  # type: ignore[attr-defined]
    for name, change in tuning.change.items():
        if name in whole:
            yield _Place(whole[name].data, ...), change
        else:
            yield _neuron_place(model, name, tuning.index[name]), change


def _neuron_place(model: HookedModel, name: str, index: Int[Tensor, " neuron"]) -> _Place:
    """The weights of some neurons, one row for each."""
    _, layer, part, weight = name.split(".")
    index = index.to(model.cfg.device)
    if part == "attn":
        heads, _ = columns(model, int(layer), _BRIDGED[weight])
        return _Place(heads, (index // heads.shape[1], index % heads.shape[1]))
    if weight == "W_out":
        return _Place(out_projection(model, int(layer)).rows, index)
    mlp = model.blocks[int(layer)].mlp
    if is_bridge(model):
        return _Place(hugging_face_projection(getattr(mlp, _BRIDGED[weight]).original_component).rows.T, index)
    return _Place(getattr(mlp, weight).detach().T, index)
