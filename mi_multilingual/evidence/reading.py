"""The one place that installs read hooks and ends the forward pass when nothing more is to be read."""

from __future__ import annotations

from collections.abc import Callable, Hashable, Mapping, Sequence
from typing import Any, TypeVar

from jaxtyping import Float, Int
from torch import Tensor

from ..corpora import Corpus
from ..models.hooked import HookedModel, HookFunction, Site, StopForward, fingerprint, model_name, run_trunk
from ..models.native import native_pass
from ..models.placed import check_whole
from ..tokens import Reading

_Key = TypeVar("_Key", bound=Hashable)


def read(
    model: HookedModel,
    tokens: Int[Tensor, "batch pos"],
    places: Mapping[_Key, str],
    take: Callable[[_Key, Tensor], None],
) -> None:
    """One forward pass without logits that hands over what the hooks carry, and ends after the last of them.

    Args:
        places: what to call a number -> the name of the hook that carries it.
        take: called with each key and what its hook carries, in the order of the pass.
    """
    missing = set(places)

    # The key is bound here: on a bridge a hook does not always know the name it was asked for by.
    def hook_for(key: _Key) -> HookFunction:
        def hook(carried: Tensor, hook: object) -> None:
            take(key, carried)
            missing.discard(key)
            if not missing:
                raise StopForward

        return hook

    hooks = [(name, hook_for(key)) for key, name in places.items()]
    run_trunk(model, tokens.to(model.cfg.device), hooks=hooks)


def layers_of(model: HookedModel, site: Site) -> dict[int, str]:
    """The site's hook in every layer, as `read` takes it."""
    return {layer: site.hook_name(layer) for layer in range(model.cfg.n_layers)}


def read_with_graph(
    model: HookedModel, tokens: Int[Tensor, "batch pos"], places: Mapping[_Key, str]
) -> tuple[Float[Tensor, "batch pos vocab"], dict[_Key, Tensor]]:
    """Logits of a forward pass, and what the hooks carry as parts of the graph that leads to them.

    Call it with gradients enabled.
    """
    kept: dict[_Key, Tensor] = {}

    def hook_for(key: _Key) -> HookFunction:
        def hook(carried: Tensor, hook: object) -> Tensor:
            # A leaf of its own per layer would cut the graph: the gradient must flow on to the layers before.
            # Handed on is a view, since a native pass takes the very same tensor for one that nobody changed.
            kept[key] = carried.view_as(carried) if carried.requires_grad else carried.detach().requires_grad_()
            return kept[key]

        return hook

    check_whole(model)
    tokens, hooks = tokens.to(model.cfg.device), [(name, hook_for(key)) for key, name in places.items()]
    with native_pass(model, hooks) as native:
        if native is not None:
            return native(input_ids=tokens, use_cache=False).logits, kept
    return model.run_with_hooks(tokens, return_type="logits", fwd_hooks=hooks), kept


def check_finite(values: Float[Tensor, "*axes layer neuron"], described: Callable[[list[int]], str]) -> None:
    """Raise where a number is NaN or infinite.

    Args:
        described: from the leading indices of such a number, what it is a number of.
    """
    bad = (~values.isfinite()).nonzero()
    if len(bad):
        *axes, layer, neuron = bad[0].tolist()
        raise ValueError(
            f"activations must be finite, got {values[(*axes, layer, neuron)].item()} for neuron {neuron} in layer "
            f"{layer} {described(axes)}; check the weights, or load the model with dtype=torch.float32"
        )


def check_alike(one: Any, other: Any, names: Sequence[str]) -> None:
    """Raise unless two pieces of evidence were recorded by one protocol, so that they can be added."""
    for name in ("model_fingerprint", "site", "threshold", "reading", "languages", *names):
        mine, theirs = getattr(one, name, None), getattr(other, name, None)
        if mine != theirs:
            hint = "take(...) the same languages in the same order" if name == "languages" else "record both alike"
            kind = type(one).__name__
            raise ValueError(
                f"{name} must be the same in all {kind} that are added, got {mine!r} and {theirs!r}; {hint}"
            )


def joint_corpus(one: Any, other: Any) -> str:
    """The corpus fingerprint of a sum."""
    return one.corpus_fingerprint if one.corpus_fingerprint == other.corpus_fingerprint else "several corpora"


def origin(model: HookedModel, corpus: Corpus, reading: Reading) -> dict[str, Any]:
    """What every piece of evidence says of where it comes from."""
    return {
        "model": model_name(model),
        "model_fingerprint": fingerprint(model),
        "corpus_fingerprint": corpus.fingerprint,
        "reading": reading.for_model(model),
    }


def check_documents(reading: Reading) -> None:
    """Raise unless every row is (part of) one document."""
    if reading.layout != "documents":
        raise ValueError(
            f"reading.layout must be 'documents' for evidence of single documents, got {reading.layout!r}; give "
            "reading=Reading(layout='documents')"
        )
