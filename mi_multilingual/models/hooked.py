"""What this package uses of a hooked model: sites, forward passes, fingerprints.

With `loading` the only module that knows that TransformerLens has two kinds of model: HookedTransformer (3.x) and
TransformerBridge (3.x and 4.x).
"""

import hashlib
from collections.abc import Callable, Sequence
from contextlib import nullcontext, suppress
from dataclasses import dataclass, replace
from typing import Any, Protocol, runtime_checkable

import torch
from jaxtyping import Float, Int
from torch import Tensor

from .native import activated_in_place, native_of, native_pass, runs_in_parts
from .placed import at_hand, is_placed
from .places import ACTIVATED, HookFunction
from .stamps import sampled_sum

_SAMPLED_NUMBERS = 2**16

_KNOWN = "_known_fingerprint"
"""Where a model keeps its fingerprint, beside what tells whether it still holds."""

_WORTH_A_CACHE = 0.2
"""Share of the tokens that a cache must save before it is faster than a single pass."""

_Places = tuple[Int[Tensor, " place"], Int[Tensor, " place"]]
"""Rows and positions."""


@runtime_checkable
class HookedModel(Protocol):
    """What this package uses of a model; HookedTransformer and TransformerBridge both fit."""

    cfg: Any
    tokenizer: Any
    blocks: Any

    def run_with_hooks(self, *args: Any, **kwargs: Any) -> Any: ...
    def hooks(self, *args: Any, **kwargs: Any) -> Any: ...
    def reset_hooks(self, *args: Any, **kwargs: Any) -> Any: ...
    def get_submodule(self, target: str) -> Any: ...
    def __call__(self, *args: Any, **kwargs: Any) -> Any: ...


@dataclass(frozen=True)
class Site:
    """Where in the MLP a neuron's number is read: a hook, and the function to apply to what the hook carries."""

    name: str
    hook: str
    activation: Callable[[Tensor], Tensor] | None = None
    """None: the hook carries the number itself."""

    def hook_name(self, layer: int) -> str:
        return self.hook.format(layer=layer)

    def value(self, carried: Tensor) -> Tensor:
        """The site's value, same shape as `carried`."""
        return carried if self.activation is None else self.activation(carried)


def site_of(model: HookedModel, name: str) -> Site:
    """The hook and activation function of a site for this model.

    =======  ===========================  ==============================
    site     ungated MLP                  gated MLP
    =======  ===========================  ==============================
    gate     hook_post                    activation of hook_pre
    post     hook_post                    hook_post, the product
    up       not there                    hook_pre_linear
    =======  ===========================  ==============================

    Raises:
        ValueError: an unknown name, or "up" where the MLP has no gate.
    """
    if name not in ("gate", "post", "up"):
        raise ValueError(f"site must be gate, post or up, got {name!r}")
    if name == "up" and not is_gated(model):
        raise ValueError(f"site 'up' needs a gated MLP, {model_name(model)!r} has none; use gate or post")
    if name == "up":
        return Site("up", "blocks.{layer}.mlp.hook_pre_linear")
    if name == "gate" and is_gated(model):
        return Site("gate", "blocks.{layer}.mlp.hook_pre", _activation_function(model))
    return Site(name, "blocks.{layer}.mlp.hook_post")


def as_it_runs(model: HookedModel, site: Site) -> Site:
    """The site where the pass makes its value anyway, so that no activation function is applied twice.

    For passes that are run before anything is done to the model.
    """
    there, native = f"blocks.{{layer}}.{ACTIVATED}", native_of(model)
    names = (there.format(layer=layer) for layer in range(model.cfg.n_layers))
    if site.activation is None or native is None or not native.knows(names) or not native.stands_in():
        return site
    return replace(site, hook=there, activation=None)


def is_gated(model: HookedModel) -> bool:
    """Whether a neuron is a product act(gate) * up, as in Llama, rather than act(in), as in GPT-2."""
    return bool(model.cfg.gated_mlp)


def _activation_function(model: HookedModel) -> Callable[[Tensor], Tensor]:
    """The MLP's activation function, from transformers' table by the configured name."""
    from transformers.activations import ACT2FN

    name = {"gelu_pytorch_tanh": "gelu_pytorch_tanh", "gelu_new": "gelu_new"}.get(model.cfg.act_fn, model.cfg.act_fn)
    if name not in ACT2FN:
        raise ValueError(
            f"activation function {name!r} of {model_name(model)!r} is not known to transformers; use site 'post'"
        )
    return ACT2FN[name]


def neurons_shape(model: HookedModel, part: str) -> tuple[int, int]:
    """(layers, neurons per layer): hidden units of the MLP ("mlp"), or columns of W_Q, W_K or W_V ("q", "k", "v").

    With grouped queries there are fewer keys and values than queries.
    """
    n_heads = model.cfg.n_heads
    if part in ("k", "v"):
        n_heads = getattr(model.cfg, "n_key_value_heads", None) or n_heads
    return model.cfg.n_layers, model.cfg.d_mlp if part == "mlp" else n_heads * model.cfg.d_head


def max_window(model: HookedModel) -> int:
    """Tokens the model takes at once."""
    return int(model.cfg.n_ctx)


def on_cpu(model: HookedModel) -> bool:
    return torch.device(model.cfg.device).type == "cpu"


def model_name(model: HookedModel) -> str:
    """The name the model was loaded by, and what its weights are where they are not float32, as in "gpt2, bfloat16"."""
    method = getattr(getattr(model, "original_model", None), "quantization_method", None)
    kinds = [str(model.cfg.dtype).removeprefix("torch.")] if model.cfg.dtype != torch.float32 else []
    return ", ".join([str(model.cfg.model_name), *kinds, *([getattr(method, "value", str(method))] if method else [])])


def fingerprint(model: HookedModel) -> str:
    """16 hex digits that change with the shape, the activation function or the MLP weights, and not with the dtype.

    A regular sample of every MLP matrix is hashed after rounding to bfloat16, so the cost does not grow with the model,
    and a checkpoint is the same model in float32 and bfloat16 (in float16 too, unless it is stored in float32). It is
    kept as long as the sums of smaller samples, some numbers of every neuron, are the same.
    """
    if keeps_its_weights(model):
        return _digest(model)
    sums = torch.stack([sampled_sum(weight_of(model, path)) for path in _mlp_matrices(model)]).tolist()
    now = (_shape(model), sums)
    known = vars(model).get(_KNOWN)
    if known is None or known[0] != now:
        known = vars(model)[_KNOWN] = (now, _digest(model))
    return known[1]


def _shape(model: HookedModel) -> tuple[Any, ...]:
    return (model.cfg.n_layers, model.cfg.d_model, model.cfg.d_mlp, model.cfg.act_fn)


def _mlp_matrices(model: HookedModel) -> list[str]:
    names = ("W_gate", "W_in", "W_out") if is_gated(model) else ("W_in", "W_out")
    return [f"blocks.{layer}.mlp.{name}" for layer in range(model.cfg.n_layers) for name in names]


def _digest(model: HookedModel) -> str:
    digest = hashlib.sha256(repr(_shape(model)).encode())
    for path in _mlp_matrices(model):
        flat = weight_of(model, path).reshape(-1)
        sample = flat[:: max(1, flat.numel() // _SAMPLED_NUMBERS)].float().to(torch.bfloat16)
        digest.update(sample.cpu().contiguous().view(torch.int16).numpy().tobytes())
    return digest.hexdigest()[:16]


def weight_of(model: HookedModel, path: str) -> Tensor:
    """A weight by its path, such as "blocks.0.mlp.W_out", on the device where it is used, wherever it waits."""
    parent, _, name = path.rpartition(".")
    module = model.get_submodule(parent)
    with at_hand(module):
        try:
            return getattr(module, name).detach()
        except NotImplementedError:  # packed by a quantisation, so that a bridge cannot read it
            rows = _made_of_unit_vectors(getattr(module, _PACKED[name]).original_component, model)
            return rows.unflatten(0, (model.cfg.n_heads, -1)) if name == "W_O" else rows


_PACKED = {"W_gate": "gate", "W_in": "in", "W_out": "out", "W_O": "o"}
"""What a bridge calls the linear map of a weight."""


@torch.no_grad()
def _made_of_unit_vectors(linear: Any, model: HookedModel) -> Float[Tensor, "given made"]:
    """The weight of a linear map that can be run and not read."""
    units = torch.eye(linear.in_features, dtype=model.cfg.dtype, device=model.cfg.device)
    return linear(units) - linear(torch.zeros_like(units[:1]))


class StopForward(Exception):
    """Raised by a hook that has all it wants: the forward pass ends there."""


def run_trunk(
    model: HookedModel, tokens: Int[Tensor, "batch pos"], *, hooks: Sequence[tuple[str, HookFunction]]
) -> None:
    """One forward pass without logits, with forward hooks that come off again; a hook ends it by `StopForward`.

    Right padding needs no mask: attention is causal, so it changes nothing at the positions before it.
    """
    hooks = list(hooks)
    with suppress(StopForward), native_pass(model, hooks) as native:
        if native is not None:
            reads_inputs = any(name.endswith("mlp.hook_pre") for name, _ in hooks)
            with nullcontext() if reads_inputs else activated_in_place(native):
                native.base_model(input_ids=tokens, use_cache=False)
        elif is_bridge(model):
            # stop_at_layer saves nothing on a bridge: it runs the whole Hugging Face model.
            # Without a cache a bridge of OLMo 2 in bfloat16 multiplies numbers of two dtypes, which torch refuses.
            with model.hooks(fwd_hooks=hooks):
                model.original_model.base_model(input_ids=tokens, use_cache=True)
        else:
            model.run_with_hooks(tokens, return_type=None, stop_at_layer=model.cfg.n_layers, fwd_hooks=hooks)


def next_token_logits(
    model: HookedModel, tokens: Int[Tensor, "batch pos"], cache: Any = None, *, use_cache: bool = True
) -> tuple[Float[Tensor, "batch vocab"], Any]:
    """Logits after the last token, float32, and the cache for the tokens that follow; every token is attended to.

    Args:
        tokens: all of them, or with a `cache` those that it does not hold yet.
    """
    if is_bridge(model):
        logits, cache = model(tokens, return_type="logits_and_cache", use_cache=use_cache, past_key_values=cache)
    else:
        if use_cache and cache is None:
            from transformer_lens.cache.key_value_cache import TransformerLensKeyValueCache

            cache = TransformerLensKeyValueCache.init_cache(model.cfg, model.cfg.device, len(tokens))
        # Without this mask a HookedTransformer hides tokens that equal the padding token, such as end of text.
        seen = torch.ones_like(tokens)
        logits = model(tokens, return_type="logits", attention_mask=seen, past_kv_cache=cache)
    return logits[:, -1].float(), cache if use_cache else None


def logits_at(
    model: HookedModel, tokens: Int[Tensor, "batch pos"], rows: Int[Tensor, " place"], positions: Int[Tensor, " place"]
) -> Float[Tensor, "place vocab"]:
    """Logits after some of the tokens; right padding needs no mask, as in `run_trunk`.

    The others' logits are not made at all, which for short answers are a third of the work.
    """
    in_parts = runs_in_parts(model)  # asked before the native pass, which takes a bridge to pieces
    with native_pass(model) as native:
        if native is not None:
            return _native_logits_at(native, tokens, (rows, positions), in_parts=in_parts)
    if is_bridge(model):
        return model(tokens, return_type="logits")[rows, positions]
    return unembedded(model, model(tokens, stop_at_layer=model.cfg.n_layers)[rows, positions])


def unembedded(
    model: HookedModel, residual: Float[Tensor, "place d_model"], *, norm: bool = True
) -> Float[Tensor, "place vocab"]:
    """Logits of the model if the residual stream were this after its last block.

    Args:
        norm: without it the final norm is left out.
    """
    norms = norm and model.cfg.normalization_type is not None
    with at_hand(model.unembed):
        logits = model.unembed(_final_norm(model, residual) if norms else residual[None])[0]
    config = model.original_model.config.get_text_config() if is_bridge(model) else None
    logits = logits * (getattr(config, "logit_scale", None) or 1) / (getattr(config, "logits_scaling", None) or 1)
    cap = getattr(config, "final_logit_softcapping", None) or getattr(model.cfg, "output_logits_soft_cap", None) or 0
    return cap * (logits / cap).tanh() if cap > 0 else logits


def _final_norm(model: HookedModel, residual: Float[Tensor, "place d_model"]) -> Float[Tensor, "1 place d_model"]:
    with at_hand(model.ln_final):
        return model.ln_final(residual[None])


def _native_logits_at(
    native: Any, tokens: Int[Tensor, "batch pos"], places: _Places, *, in_parts: bool
) -> Float[Tensor, "place vocab"]:
    """`logits_at` by transformers: beginnings that several rows share run once, and then lie in the cache.

    They end with the first place asked for, whose logits are theirs.
    """
    rows, positions = places
    if not in_parts or not len(positions):
        return unembedded_alone(native, tokens, lambda hidden: hidden[rows, positions][None]).logits[0]
    start = int(positions.min()) + 1
    beginnings, owner = tokens[:, :start].unique(dim=0, return_inverse=True)
    saved = 1 - (beginnings.numel() + tokens[:, start:].numel()) / tokens.numel()
    if saved < _WORTH_A_CACHE:
        return unembedded_alone(native, tokens, lambda hidden: hidden[rows, positions][None]).logits[0]
    begun = unembedded_alone(native, beginnings, lambda hidden: hidden[:, -1:], use_cache=True)
    first, later = positions < start, positions >= start
    logits = begun.logits.new_empty(len(positions), begun.logits.shape[-1])
    logits[first] = begun.logits[:, 0][owner[rows[first]]]
    if later.any():
        cache = begun.past_key_values
        cache.batch_select_indices(owner)
        logits[later] = unembedded_alone(
            native,
            tokens[:, start:],
            lambda hidden: hidden[rows[later], positions[later] - start][None],
            use_cache=True,
            past_key_values=cache,
        ).logits[0]
    return logits


def unembedded_alone(
    native: Any,
    tokens: Int[Tensor, "batch pos"],
    choose: Callable[[Float[Tensor, "batch pos d_model"]], Float[Tensor, "some places d_model"]],
    *,
    use_cache: bool = False,
    **cache: Any,
) -> Any:
    """What transformers gives when its unembedding is handed only what is chosen of the residual stream."""
    unembedding: Any = native.get_output_embeddings()
    handle = unembedding.register_forward_pre_hook(lambda module, given: (choose(given[0]),))
    try:
        return native(input_ids=tokens, use_cache=use_cache, **cache)
    finally:
        handle.remove()


def all_logits(model: HookedModel, tokens: Int[Tensor, "batch pos"]) -> Float[Tensor, "batch pos vocab"]:
    """Logits after every token; right padding needs no mask, as in `run_trunk`."""
    with native_pass(model) as native:
        if native is not None:
            return native(input_ids=tokens, use_cache=False).logits
    return model(tokens, return_type="logits")


def logits_with_output(
    model: HookedModel, tokens: Int[Tensor, "batch pos"], layer: int, change: Callable[[Tensor], Tensor]
) -> Float[Tensor, "batch pos vocab"]:
    """Logits of a pass in which what an MLP writes is changed: its bias included, before any norm behind it.

    Gradients flow through `change` where they are enabled.
    """
    name = f"blocks.{layer}.mlp.out.hook_out"
    with native_pass(model, [(name, lambda written, hook: change(written))]) as native:
        if native is not None:
            return native(input_ids=tokens, use_cache=False).logits
    # A HookedTransformer has no hook there, and none of ours is in the way of its modules.
    mlp = model.blocks[layer].mlp
    handle = (mlp.out if is_bridge(model) else mlp).register_forward_hook(
        lambda module, given, written: change(written.view(*tokens.shape, -1)).view_as(written)
    )
    try:
        return model(tokens, return_type="logits")
    finally:
        handle.remove()


def end_ids(model: HookedModel) -> tuple[int, ...]:
    """The tokens that end a text: the tokenizer's, and those of the checkpoint's generation config."""
    native = native_of(model)
    config = getattr(native.hf_model, "generation_config", None) if native else None
    given = getattr(config, "eos_token_id", None)
    listed = given if isinstance(given, list) else [given]
    return tuple(dict.fromkeys(int(i) for i in (model.tokenizer.eos_token_id, *listed) if i is not None))


def is_bridge(model: HookedModel) -> bool:
    """Whether the model is a TransformerBridge around a Hugging Face model rather than a HookedTransformer."""
    return hasattr(model, "original_model")


def keeps_its_weights(model: HookedModel) -> bool:
    """Whether nothing may be written into the model's weights: it is spread over devices or quantised."""
    return is_bridge(model) and is_placed(model.original_model)
