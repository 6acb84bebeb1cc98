"""Other packages' ways to count at how many tokens each neuron is active, each as its documentation has it."""

from __future__ import annotations

import contextlib
import tempfile
import warnings
from collections.abc import Callable, Iterator, Sequence
from importlib import import_module
from importlib.metadata import PackageNotFoundError, version
from typing import Any

import torch
from jaxtyping import Int
from subjects import Subject, shared
from torch import Tensor

Batches = Sequence[Int[Tensor, "row pos"]]
Counts = Int[Tensor, "layer neuron"]
Recorder = Callable[[], Counts | None]


def by_hand(subject: Subject, batches: Batches) -> Recorder:
    """Counts, sums, sums of squares and maxima by torch hooks on the activation functions."""

    def run() -> Counts:
        found: list[list[Tensor]] = [[] for _ in range(subject.n_layers)]

        def keep(own: list[Tensor]) -> Callable[..., None]:
            def hook(module: Any, args: Any, output: Tensor) -> None:
                flat = output.flatten(0, -2).float()
                new = torch.stack([(flat > 0).sum(0), flat.sum(0), flat.square().sum(0), flat.amax(0)]).double()
                own[:] = [torch.cat([own[0][:3] + new[:3], own[0][3:].maximum(new[3:])]) if own else new]

            return hook

        modules = zip(subject.modules("activation"), found, strict=True)
        handles = [module.register_forward_hook(keep(own)) for module, own in modules]
        try:
            for batch in batches:
                subject.hf.base_model(input_ids=batch, use_cache=False)
        finally:
            for handle in handles:
                handle.remove()
        return torch.stack([own[0][0] for own in found]).long()

    return run


def transformer_lens(subject: Subject, batches: Batches) -> Recorder:
    """`run_with_cache` of a HookedTransformer that TransformerLens loaded, whose weights are copies."""
    model = _hooked_transformer(subject)
    last = model.cfg.n_layers
    names = [f"blocks.{layer}.mlp.hook_pre" for layer in range(last)]

    def count(batch: Int[Tensor, "row pos"]) -> Counts:
        _, cache = model.run_with_cache(batch, return_type=None, names_filter=names, stop_at_layer=last)
        return torch.stack([(cache[name] > 0).sum((0, 1)) for name in names])

    return lambda: _total(count, batches)


def _hooked_transformer(subject: Subject) -> Any:
    """From parts of TransformerLens' loading: its from_pretrained takes only names of the hub."""
    from transformer_lens import HookedTransformer, HookedTransformerConfig, loading_from_pretrained

    with tempfile.TemporaryDirectory(prefix="checkpoint-") as folder:
        subject.hf.config.architectures = [type(subject.hf).__name__]
        if subject.hf.config.model_type == "gpt2":
            subject.hf.config.n_ctx = subject.hf.config.n_positions  # transformers 5 no longer has it
        subject.hf.config.save_pretrained(folder)
        described = loading_from_pretrained.convert_hf_model_config(folder)
        described |= {"device": subject.device, "dtype": subject.dtype, "init_weights": False}
        cfg = HookedTransformerConfig.from_dict(described)
        state = loading_from_pretrained.get_pretrained_state_dict(folder, cfg, subject.hf, dtype=subject.dtype)
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message="HookedTransformer is deprecated")
        model = HookedTransformer(cfg, subject.tokenizer)
    # As from_pretrained_no_processing does.
    kept = ("fold_ln", "center_writing_weights", "center_unembed", "fold_value_biases")
    model.load_and_process_state_dict(state, **dict.fromkeys(kept, False))
    return model.eval()


def nnsight(subject: Subject, batches: Batches) -> Recorder:
    """A trace in which counts are made, and which stops after the last of them."""
    module = import_module("nnsight")
    if hasattr(module, "TransformersModel"):
        model = module.TransformersModel(shared(subject.hf), tokenizer=subject.tokenizer, task="text-generation")
    else:
        model = module.LanguageModel(shared(subject.hf), tokenizer=subject.tokenizer)
    return _traced(module, model, [_envoy(model, name) for name in subject.names("gate")], batches)


def nnterp(subject: Subject, batches: Batches) -> Recorder:
    """The same through nnterp's names for layers."""
    module = import_module("nnterp")
    model = module.StandardizedTransformer(shared(subject.hf), tokenizer=subject.tokenizer, device_map=None)
    last = subject.names("gate")[0].split(".")[-1]
    parts = [getattr(layer if last == "fc1" else layer.mlp, last) for layer in model.layers]
    return _traced(import_module("nnsight"), model, parts, batches)


def _envoy(model: Any, name: str) -> Any:
    for part in name.split("."):
        model = model[int(part)] if part.isdecimal() else getattr(model, part)
    return model


def _traced(module: Any, model: Any, parts: Sequence[Any], batches: Batches) -> Recorder:
    def count(batch: Int[Tensor, "row pos"]) -> Counts:
        with model.trace(batch) as tracer:
            counts = module.save([])
            for part in parts:
                counts.append((part.output.flatten(0, -2) > 0).sum(0))
            tracer.stop()
        return torch.stack(list(counts))

    return lambda: _total(count, batches)


def pyvene(subject: Subject, batches: Batches) -> Recorder:
    """CollectIntervention on every projection; no end of the pass before the logits is documented."""
    module = import_module("pyvene")
    names = [_indexed(name) for name in subject.names("gate")]
    collected = [{"component": f"{name}.output", "intervention": module.CollectIntervention()} for name in names]
    model = module.IntervenableModel(module.IntervenableConfig(collected), shared(subject.hf))

    def count(batch: Int[Tensor, "row pos"]) -> Counts:
        (_, activations), _ = model({"input_ids": batch})
        return torch.stack([(part.flatten(0, -2) > 0).sum(0) for part in activations])

    return lambda: _total(count, batches)


def _indexed(name: str) -> str:
    """Numbers in brackets: model.layers.0.mlp -> model.layers[0].mlp."""
    return "".join(f"[{part}]" if part.isdecimal() else f".{part}" for part in name.split(".")).removeprefix(".")


def _total(count: Callable[[Int[Tensor, "row pos"]], Counts], batches: Batches) -> Counts:
    return sum((count(batch) for batch in batches[1:]), count(batches[0]))


PEERS = {"transformer_lens": transformer_lens, "nnsight": nnsight, "pyvene": pyvene, "nnterp": nnterp}


def peers(subject: Subject, batches: Batches) -> Iterator[tuple[str, Recorder | str]]:
    """The installed packages, or why one is left out."""
    for name, make in PEERS.items():
        try:
            title = f"{name.replace('transformer_lens', 'TransformerLens')} {version(name)}"
        except PackageNotFoundError:
            yield name, f"{name} is left out: it is not installed"
            continue
        try:
            with contextlib.redirect_stdout(None):
                recorder = make(subject, batches)
                recorder()
            yield title, recorder
        except Exception as error:
            reason = " ".join(f"{type(error).__name__}: {error}".split())[:160]
            yield title, f"{title} is left out for {subject.name}: {reason}"
