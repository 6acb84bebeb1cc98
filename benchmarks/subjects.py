"""The models that are measured, and the same weights in the hands of others."""

from __future__ import annotations

import copy
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import torch
import transformers
from torch.nn import Module
from transformers import AutoTokenizer, PreTrainedModel, PreTrainedTokenizerBase

from mi_multilingual import load_corpus, load_model
from mi_multilingual.corpora import Corpus
from mi_multilingual.models.checkpoints import checkpoint_place, hugging_face
from mi_multilingual.models.hooked import HookedModel
from mi_multilingual.models.loading import HookedTransformer

_CHECKPOINTS = ("demo", "smollm2")
MODELS = (*_CHECKPOINTS, "gpt2", "llama", "deep")
DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16}
BACKENDS = ("bridge",) if HookedTransformer is None else ("hooked", "bridge")
DEFAULT = BACKENDS[0]

_LLAMA = {
    "vocab_size": 128256,
    "hidden_size": 1024,
    "num_hidden_layers": 8,
    "num_attention_heads": 16,
    "num_key_value_heads": 4,
    "intermediate_size": 2816,
    "max_position_embeddings": 2048,
}
_DEEP = _LLAMA | {"vocab_size": 8192, "hidden_size": 512, "num_hidden_layers": 30, "intermediate_size": 1408}
"""Most of the work is in the blocks, as in models of seven billion parameters, and not in the unembedding."""

_OPERATIONS = {"cpu": 1e11, "cuda": 1e14}
"""Of one measured call: about a second of work."""


@dataclass(frozen=True)
class _Names:
    """Where an architecture has the parts of its MLPs, below the whole model."""

    gate: str
    """The projection whose activation is read."""
    activation: str
    down: str


_NAMES = {
    "opt": _Names(*(f"model.decoder.layers.{{}}.{part}" for part in ("fc1", "activation_fn", "fc2"))),
    "llama": _Names("model.layers.{}.mlp.gate_proj", "model.layers.{}.mlp.act_fn", "model.layers.{}.mlp.down_proj"),
    "gpt2": _Names("transformer.h.{}.mlp.c_fc", "transformer.h.{}.mlp.act", "transformer.h.{}.mlp.c_proj"),
}


@dataclass(frozen=True)
class Subject:
    """A model as transformers has it, and as this package does."""

    name: str
    hf: PreTrainedModel
    tokenizer: PreTrainedTokenizerBase

    @property
    def device(self) -> str:
        return self.hf.device.type

    @property
    def dtype(self) -> torch.dtype:
        return self.hf.dtype

    @cached_property
    def ours(self) -> dict[str, HookedModel]:
        """Backend -> the model."""
        return {backend: self._loaded(backend) for backend in BACKENDS}

    def _loaded(self, backend: str) -> HookedModel:
        options: dict[str, Any] = {"backend": backend, "dtype": self.dtype, "device": self.device}
        if self.name in _CHECKPOINTS:
            # Not the loaded model: cast to bfloat16 once more, it would have its rotary frequencies in bfloat16 too.
            return load_model(self.name, **options)
        return load_model(shared(self.hf), tokenizer=copy.deepcopy(self.tokenizer), **options)

    @property
    def n_layers(self) -> int:
        return int(self.hf.config.num_hidden_layers)

    def names(self, part: str) -> list[str]:
        """The modules of a part of the MLP ("gate", "activation", "down"), layer by layer."""
        pattern = getattr(_NAMES[self.hf.config.model_type], part)
        return [pattern.format(layer) for layer in range(self.n_layers)]

    def modules(self, part: str) -> list[Module]:
        return [self.hf.get_submodule(name) for name in self.names(part)]

    @property
    def trunk_flops(self) -> int:
        """Operations per token without the logits and without attention's own."""
        tables = {id(p) for m in self.hf.modules() if isinstance(m, torch.nn.Embedding) for p in m.parameters()}
        head = {id(p) for p in self.hf.get_output_embeddings().parameters()}
        return 2 * sum(p.numel() for p in self.hf.parameters() if id(p) not in tables | head)

    @property
    def flops(self) -> int:
        """The same with the logits."""
        return self.trunk_flops + 2 * self.hf.get_output_embeddings().weight.numel()

    def n_rows(self, window: int, share: float = 1.0) -> int:
        """Rows of text that make a call of this share of the usual work."""
        return max(2, int(share * _OPERATIONS[self.device] / self.flops / window))

    def text(self, language: str, n_tokens: int, split: str | None = None) -> Corpus:
        """At least so many tokens of the demo's text, repeated where it is too short."""
        documents = load_corpus("demo", languages=[language], split=split).documents[language]
        length = sum(map(len, self.tokenizer(list(documents), add_special_tokens=False)["input_ids"]))
        return Corpus({language: tuple(documents) * -(-n_tokens // length)}, "demo, repeated")


def shared(model: PreTrainedModel) -> PreTrainedModel:
    """Modules of their own around the same weights, so that nobody's hooks concern another."""
    return copy.deepcopy(model, {id(p): p for p in model.parameters()})


def subject_of(name: str, dtype: str, device: str) -> Subject | str:
    """The model in a number format, or why it is left out."""
    if dtype == "bfloat16" and device == "cpu" and "amx_bf16" not in _processor_flags():
        return "bfloat16 is left out: amx_bf16 is not among the processor's flags"
    try:
        hf, tokenizer = _loaded(name, DTYPES[dtype])
    except ValueError as error:
        return f"{name} is left out: {error}"
    return Subject(name, hf.to(device).eval().requires_grad_(False), tokenizer)


def _loaded(name: str, dtype: torch.dtype) -> tuple[PreTrainedModel, PreTrainedTokenizerBase]:
    if name in _CHECKPOINTS:
        hf, tokenizer, _ = hugging_face(name, None, dtype)
    else:
        tokenizer = AutoTokenizer.from_pretrained(checkpoint_place("demo"))
        torch.manual_seed(0)
        kind = {
            "gpt2": lambda: transformers.GPT2LMHeadModel(transformers.GPT2Config()),
            "llama": lambda: transformers.LlamaForCausalLM(transformers.LlamaConfig(**_LLAMA)),
            "deep": lambda: transformers.LlamaForCausalLM(transformers.LlamaConfig(**_DEEP)),
        }
        hf = kind[name]().to(dtype)
    hf.set_attn_implementation("sdpa")
    if tokenizer.pad_token is None:
        tokenizer.pad_token = tokenizer.eos_token
    return hf, tokenizer


def _processor_flags() -> set[str]:
    lines = Path("/proc/cpuinfo").read_text().splitlines() if Path("/proc/cpuinfo").exists() else []
    return set(next((line for line in lines if line.startswith("flags")), "").split())


def random_llama(folder: Path) -> HookedModel:
    """A random Llama of 8 layers, width 512 and 1376 neurons per layer, with the demo's tokenizer."""
    config = transformers.LlamaConfig(
        vocab_size=32000,
        hidden_size=512,
        num_hidden_layers=8,
        num_attention_heads=8,
        intermediate_size=1376,
        max_position_embeddings=256,
    )
    transformers.LlamaForCausalLM(config).save_pretrained(folder)
    AutoTokenizer.from_pretrained(checkpoint_place("demo")).save_pretrained(folder)
    return load_model(folder, device="cpu")
