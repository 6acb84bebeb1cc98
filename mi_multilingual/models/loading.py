"""Language models with TransformerLens hooks, from a Hugging Face id, a folder, or a loaded model."""

import tempfile
import warnings
from contextlib import contextmanager
from importlib.resources import files
from pathlib import Path
from typing import Any

import torch
from transformers import AutoModelForCausalLM, AutoTokenizer, PreTrainedModel, PreTrainedTokenizerBase

from ..storage import is_like_a_path
from .hooked import HookedModel, is_bridge, run_trunk

try:
    from transformer_lens import HookedTransformer, HookedTransformerConfig, loading_from_pretrained
except ImportError:  # TransformerLens 4
    HookedTransformer = None


_EXPERT_COUNTS = ("num_local_experts", "num_experts", "n_routed_experts", "moe_num_experts")
"""What configs of mixtures of experts call the number of experts."""


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
        raise ValueError(f"backend must be auto, hooked or bridge, got {backend!r}")
    if backend == "hooked" and HookedTransformer is None:
        raise ValueError(
            "this TransformerLens has no HookedTransformer; use backend='bridge', or install transformer-lens<4"
        )
    device = _checked_device(device)
    hf_model, tokenizer, name = hugging_face(name_or_path, tokenizer, dtype, trust_remote_code)
    _refuse_experts(hf_model, name)
    with _neutral_folder(hf_model, tokenizer) as folder:
        model = converted(hf_model, folder, name, backend, device, dtype)
        _give_tokenizer(model, AutoTokenizer.from_pretrained(folder))
        return model


def converted(
    hf_model: PreTrainedModel, folder: str, name: str, backend: str, device: str, dtype: torch.dtype
) -> HookedModel:
    """The model by the backend asked for, or by the first that can."""
    if backend != "bridge" and HookedTransformer is not None:
        try:
            return _to_hooked(hf_model, folder, name, device, dtype)
        except Exception as error:
            if backend == "hooked":
                raise ValueError(
                    f"{name!r} ({architecture(hf_model)}) has no HookedTransformer ({error}); use backend='bridge'"
                ) from error
            warnings.warn(
                f"{architecture(hf_model)} has no HookedTransformer ({error}); using a TransformerBridge", stacklevel=3
            )
    return _to_bridge(hf_model, folder, name, device, dtype)


def _checked_device(device: str | None) -> str:
    """The device asked for, or a GPU if there is one.

    Raises:
        ValueError: torch cannot put a tensor there.
    """
    device = device or ("cuda" if torch.cuda.is_available() else "cpu")
    try:
        torch.empty(0, device=device)
    except (RuntimeError, AssertionError) as error:
        reason = " ".join(str(error).split())
        raise ValueError(f"device must be one that torch can use here, got {device!r} ({reason})") from error
    return device


def _refuse_experts(hf_model: PreTrainedModel, name: str) -> None:
    """Raise for mixtures of experts: their hooks carry the block's input and output, which are no neurons."""
    for key in _EXPERT_COUNTS:
        if (getattr(hf_model.config, key, None) or 0) > 1:
            raise ValueError(
                f"the model must have dense MLPs, got {name!r} ({architecture(hf_model)}), a mixture of "
                f"{getattr(hf_model.config, key)} experts per layer, which is not supported"
            )


def _give_tokenizer(model: HookedModel, tokenizer: PreTrainedTokenizerBase) -> None:
    """Put the model's own tokenizer in the place of TransformerLens' copy, which adds BOS where the own does not."""
    # A bridge's own setter would make the copy again.
    setattr(model, "_tokenizer" if is_bridge(model) else "tokenizer", tokenizer)
    model.cfg.tokenizer_prepends_bos = len(tokenizer("")["input_ids"]) > 0


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
    if (
        source != "demo"
        and (Path(place).exists() or is_like_a_path(place))
        and not (Path(place) / "config.json").exists()
    ):
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


def architecture(hf_model: PreTrainedModel) -> str:
    return type(hf_model).__name__


@contextmanager
def _neutral_folder(hf_model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase):
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


def _to_hooked(hf_model: PreTrainedModel, folder: str, name: str, device: str, dtype: torch.dtype) -> HookedModel:
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


def _to_bridge(hf_model: PreTrainedModel, folder: str, name: str, device: str, dtype: torch.dtype) -> HookedModel:
    """A TransformerBridge around the Hugging Face model."""
    from transformer_lens.model_bridge import TransformerBridge

    try:
        model: Any = TransformerBridge.boot_transformers(
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
    model.cfg.d_mlp = _neurons_a_layer(model.eval())
    if hf_model.config.model_type == "bloom":
        model.cfg.act_fn = "gelu_fast"  # BLOOM's config does not name it, and a bridge then takes relu
    return model


def _neurons_a_layer(model: HookedModel) -> int:
    """The width of hook_post in a forward pass: a bridge guesses d_mlp where a config has its own word for it."""
    widths: list[int] = []
    tokens = torch.zeros(1, 1, dtype=torch.int64, device=model.cfg.device)
    with torch.no_grad():
        run_trunk(model, tokens, hooks=[("blocks.0.mlp.hook_post", lambda value, hook: widths.append(value.shape[-1]))])
    return widths[0]
