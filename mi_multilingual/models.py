"""Language models with hooks on every neuron, and where a neuron is read.

The only module that knows that TransformerLens has two kinds of model: HookedTransformer (up to 3.9) and
TransformerBridge (3.x and 4.x).
"""

import hashlib
import tempfile
import warnings
from collections.abc import Callable, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from importlib.resources import files
from pathlib import Path
from typing import Any, Protocol, runtime_checkable

import torch
from jaxtyping import Float, Int
from torch import Tensor
from transformers import AutoModelForCausalLM, AutoTokenizer, PreTrainedModel, PreTrainedTokenizerBase

try:
    from transformer_lens import HookedTransformer, HookedTransformerConfig, loading_from_pretrained
    from transformer_lens.cache.key_value_cache import TransformerLensKeyValueCache
except ImportError:  # TransformerLens 4
    HookedTransformer = None

HookFunction = Callable[[Tensor, Any], Tensor | None]
SAMPLED_NUMBERS = 2**16


@runtime_checkable
class HookedModel(Protocol):
    """What this package uses of a model; HookedTransformer and TransformerBridge both fit."""

    cfg: Any
    tokenizer: Any

    def run_with_hooks(self, *args: Any, **kwargs: Any) -> Any: ...
    def hooks(self, *args: Any, **kwargs: Any) -> Any: ...
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


def site(model: HookedModel, name: str) -> Site:
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
        raise ValueError(f"unknown site {name!r}; choose gate, post or up")
    if name == "up" and not is_gated(model):
        raise ValueError(f"site 'up' needs a gated MLP, {model_name(model)!r} has none; use gate or post")
    if name == "up":
        return Site("up", "blocks.{layer}.mlp.hook_pre_linear")
    if name == "gate" and is_gated(model):
        return Site("gate", "blocks.{layer}.mlp.hook_pre", activation_function(model))
    return Site(name, "blocks.{layer}.mlp.hook_post")


def is_gated(model: HookedModel) -> bool:
    """Whether a neuron is a product act(gate) * up, as in Llama, rather than act(in), as in GPT-2."""
    return bool(model.cfg.gated_mlp)


def activation_function(model: HookedModel) -> Callable[[Tensor], Tensor]:
    """The MLP's activation function, from transformers' table by the configured name."""
    from transformers.activations import ACT2FN

    name = {"gelu_pytorch_tanh": "gelu_pytorch_tanh", "gelu_new": "gelu_new"}.get(model.cfg.act_fn, model.cfg.act_fn)
    if name not in ACT2FN:
        raise ValueError(
            f"activation function {name!r} of {model_name(model)!r} is not known to transformers; use site 'post'"
        )
    return ACT2FN[name]


def neurons_shape(model: HookedModel, part: str) -> tuple[int, int]:
    """(layers, neurons a layer): hidden units of the MLP ("mlp"), or columns of W_Q, W_K or W_V ("q", "k", "v").

    With grouped queries there are fewer keys and values than queries.
    """
    n_heads = model.cfg.n_heads
    if part in ("k", "v"):
        n_heads = getattr(model.cfg, "n_key_value_heads", None) or n_heads
    return model.cfg.n_layers, model.cfg.d_mlp if part == "mlp" else n_heads * model.cfg.d_head


def max_window(model: HookedModel) -> int:
    """Tokens the model takes at once."""
    return int(model.cfg.n_ctx)


def model_name(model: HookedModel) -> str:
    """The name the model was loaded by."""
    return str(model.cfg.model_name)


def fingerprint(model: HookedModel) -> str:
    """16 hex digits that change with the shape, the activation function or the MLP weights.

    Of every MLP matrix a regular sample of numbers is hashed, in float32, so the cost does not grow with the model.
    """
    digest = hashlib.sha256(repr((model.cfg.n_layers, model.cfg.d_model, model.cfg.d_mlp, model.cfg.act_fn)).encode())
    for layer in range(model.cfg.n_layers):
        for weight in (model.blocks[layer].mlp.W_in, model.blocks[layer].mlp.W_out):
            flat = weight.detach().reshape(-1)
            sample = flat[:: max(1, flat.numel() // SAMPLED_NUMBERS)]
            digest.update(sample.float().cpu().contiguous().numpy().tobytes())
    return digest.hexdigest()[:16]


class StopForward(Exception):
    """Raised by a hook that has all it wants: the forward pass ends there."""


def run_trunk(
    model: HookedModel, tokens: Int[Tensor, "batch pos"], *, hooks: Sequence[tuple[str, HookFunction]]
) -> None:
    """One forward pass without logits, with forward hooks that come off again; a hook ends it by `StopForward`.

    Right padding needs no mask: attention is causal, so it changes nothing at the positions before it.
    """
    hooks = list(hooks)
    with suppress(StopForward):
        if is_bridge(model):
            # stop_at_layer saves nothing on a bridge: it runs the whole Hugging Face model.
            with model.hooks(fwd_hooks=hooks):
                model.original_model.base_model(input_ids=tokens, use_cache=False)
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
            cache = TransformerLensKeyValueCache.init_cache(model.cfg, model.cfg.device, len(tokens))
        # Without this mask a HookedTransformer hides tokens that equal the padding token, such as end of text.
        seen = torch.ones_like(tokens)
        logits = model(tokens, return_type="logits", attention_mask=seen, past_kv_cache=cache)
    return logits[:, -1].float(), cache if use_cache else None


def logits_at(
    model: HookedModel, tokens: Int[Tensor, "batch pos"], rows: Int[Tensor, " place"], positions: Int[Tensor, " place"]
) -> Float[Tensor, "place vocab"]:
    """Logits after some of the tokens; right padding needs no mask, as in `run_trunk`.

    A HookedTransformer makes the others' logits not at all, which for short answers are a third of the work.
    """
    if is_bridge(model):
        return model(tokens, return_type="logits")[rows, positions]
    residual = model(tokens, stop_at_layer=model.cfg.n_layers)[rows, positions][None]
    logits = model.unembed(residual if model.cfg.normalization_type is None else model.ln_final(residual))[0]
    cap = model.cfg.output_logits_soft_cap or 0
    return cap * (logits / cap).tanh() if cap > 0 else logits


def is_bridge(model: HookedModel) -> bool:
    return HookedTransformer is None or not isinstance(model, HookedTransformer)


def load_model(
    name_or_path: str | Path | PreTrainedModel,
    *,
    tokenizer: PreTrainedTokenizerBase | None = None,
    backend: str = "auto",
    device: str | None = None,
    dtype: torch.dtype = torch.float32,
    trust_remote_code: bool = False,
) -> HookedModel:
    """A causal language model with TransformerLens hooks, its weights as they are (nothing folded or centred).

    Args:
        name_or_path: a Hugging Face id, a local checkpoint folder, a loaded Hugging Face model (then give its
            `tokenizer`), or "demo" for the embedded model.
        backend: "hooked" for a HookedTransformer, "bridge" for a TransformerBridge; "auto" prefers the first where
            the installed TransformerLens has it and can convert the architecture.
        device: where to put it; a GPU if there is one, by default.
        trust_remote_code: run the Python files that come with the checkpoint; only for those you have read.

    Raises:
        ValueError: no such model, one that needs code of its own, or an architecture that TransformerLens cannot
            convert.
    """
    if backend not in ("auto", "hooked", "bridge"):
        raise ValueError(f"unknown backend {backend!r}; choose auto, hooked or bridge")
    if backend == "hooked" and HookedTransformer is None:
        raise ValueError(
            "this TransformerLens has no HookedTransformer; use backend='bridge', or install transformer-lens<4"
        )
    device = device or ("cuda" if torch.cuda.is_available() else "cpu")
    hf_model, tokenizer, name = hugging_face(name_or_path, tokenizer, dtype, trust_remote_code)
    with neutral_folder(hf_model, tokenizer) as folder:
        if backend == "bridge" or HookedTransformer is None:
            return to_bridge(hf_model, folder, name, device, dtype)
        try:
            return to_hooked(hf_model, folder, name, device, dtype)
        except Exception as error:
            if backend == "hooked":
                raise ValueError(
                    f"{name!r} ({architecture(hf_model)}) has no HookedTransformer ({error}); use backend='bridge'"
                ) from error
            warnings.warn(
                f"{architecture(hf_model)} has no HookedTransformer ({error}); using a TransformerBridge", stacklevel=2
            )
            return to_bridge(hf_model, folder, name, device, dtype)


def hugging_face(
    source: str | Path | PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase | None,
    dtype: torch.dtype | str,
    trust_remote_code: bool = False,
) -> tuple[PreTrainedModel, PreTrainedTokenizerBase, str]:
    """The Hugging Face model, its tokenizer and a name for it; dtype "auto" is the one a checkpoint is stored in."""
    if isinstance(source, PreTrainedModel):
        if tokenizer is None:
            raise ValueError(
                "a loaded Hugging Face model comes without its tokenizer; give load_model(model, tokenizer=...)"
            )
        return (
            source.to(dtype if dtype != "auto" else source.dtype),
            tokenizer,
            source.config.name_or_path or architecture(source),
        )
    place = checkpoint_place(source)
    if source != "demo" and is_like_a_path(place) and not (Path(place) / "config.json").exists():
        raise ValueError(
            f"{place!r} is no checkpoint folder: it has no config.json; give a folder written by save_pretrained"
        )
    try:
        # Only safetensors: other weight files can hold code.
        trust = {"trust_remote_code": trust_remote_code}
        model = AutoModelForCausalLM.from_pretrained(place, dtype=dtype, use_safetensors=True, **trust)
        return model, tokenizer or AutoTokenizer.from_pretrained(place, **trust), str(source)
    except (OSError, ValueError) as error:
        reason = " ".join(str(error).split())
        raise ValueError(f"cannot load {place!r}: {reason}") from error


def checkpoint_place(source: str | Path) -> str:
    """The folder of the embedded model for "demo", else the name itself."""
    return str(files("mi_multilingual").joinpath("demo", "model")) if source == "demo" else str(source)


def is_like_a_path(name: str) -> bool:
    return Path(name).exists() or name.startswith((".", "/", "~")) or name.endswith("/") or name.count("/") > 1


def architecture(hf_model: PreTrainedModel) -> str:
    return type(hf_model).__name__


@contextmanager
def neutral_folder(hf_model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase):
    """Config and tokenizer in a folder whose name says nothing: TransformerLens guesses architectures from paths."""
    with tempfile.TemporaryDirectory(prefix="checkpoint-") as folder:
        config = hf_model.config
        if config.model_type == "gpt2" and not hasattr(config, "n_ctx"):
            config.n_ctx = config.n_positions  # TransformerLens reads it, transformers 5 no longer has it
        config.architectures = [architecture(hf_model)]
        config.save_pretrained(folder)
        if tokenizer.pad_token is None:
            tokenizer.pad_token = tokenizer.eos_token
        tokenizer.save_pretrained(folder)
        yield folder


def to_hooked(hf_model: PreTrainedModel, folder: str, name: str, device: str, dtype: torch.dtype) -> HookedModel:
    """A HookedTransformer by TransformerLens' own conversion of config and weights."""
    described = loading_from_pretrained.convert_hf_model_config(folder)
    described |= {"model_name": name, "init_weights": False, "device": device, "dtype": dtype}
    if getattr(hf_model.config, "n_inner", None):
        described["d_mlp"] = hf_model.config.n_inner  # TransformerLens takes GPT-2's MLP to be four times the width
    cfg = HookedTransformerConfig.from_dict(described)
    state = loading_from_pretrained.get_pretrained_state_dict(folder, cfg, hf_model, dtype=dtype)
    with warnings.catch_warnings():
        # 3.x announces the end of HookedTransformer at every construction; this package supports its successor too.
        warnings.filterwarnings("ignore", message="HookedTransformer is deprecated")
        model = HookedTransformer(cfg, AutoTokenizer.from_pretrained(folder), move_to_device=False)
    model.load_and_process_state_dict(
        state, fold_ln=False, center_writing_weights=False, center_unembed=False, fold_value_biases=False
    )
    return model.to(device, print_details=False).eval()


def to_bridge(hf_model: PreTrainedModel, folder: str, name: str, device: str, dtype: torch.dtype) -> HookedModel:
    """A TransformerBridge around the Hugging Face model."""
    from transformer_lens.model_bridge import TransformerBridge

    try:
        model = TransformerBridge.boot_transformers(
            folder,
            hf_model=hf_model.to(device),
            tokenizer=AutoTokenizer.from_pretrained(folder),
            device=device,
            dtype=dtype,
        )
    except (ValueError, KeyError, NotImplementedError) as error:
        raise ValueError(
            f"TransformerLens cannot convert {architecture(hf_model)} ({error}); architectures such as Llama, Mistral, "
            "Qwen, Gemma, GPT-2, GPT-NeoX, BLOOM and OPT work"
        ) from error
    model.cfg.model_name = name
    model.cfg.d_mlp = neurons_a_layer(model.eval())
    if hf_model.config.model_type == "bloom":
        model.cfg.act_fn = "gelu_fast"  # BLOOM's config does not name it, and a bridge then takes relu
    return model


def neurons_a_layer(model: HookedModel) -> int:
    """The width of hook_post in a forward pass: a bridge guesses d_mlp where a config has its own word for it."""
    widths: list[int] = []
    tokens = torch.zeros(1, 1, dtype=torch.int64, device=model.cfg.device)
    with torch.no_grad():
        run_trunk(model, tokens, hooks=[("blocks.0.mlp.hook_post", lambda value, hook: widths.append(value.shape[-1]))])
    return widths[0]
