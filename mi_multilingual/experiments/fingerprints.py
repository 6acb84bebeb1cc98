"""What tells one model, tokenizer or piece of content from another."""

import hashlib
import json
from typing import Any

import torch
from pydantic_core import to_jsonable_python
from transformers import PreTrainedTokenizerBase

from ..models.hooked import HookedModel


def hashed(content: Any) -> str:
    """32 hex digits of anything made of dataclasses, mappings, sequences, texts and numbers."""
    text = json.dumps(to_jsonable_python(content), sort_keys=True, ensure_ascii=False)
    return hashlib.sha256(text.encode()).hexdigest()[:32]


def weights_fingerprint(model: HookedModel) -> str:
    """16 hex digits of every number of the model, and of the settings that decide what it does with them.

    `models.fingerprint` samples the MLP, which is enough to tell models apart and not to notice that one was tuned.
    """
    names = ("n_layers", "n_heads", "d_head", "n_ctx", "act_fn", "eps", "normalization_type")
    names += ("positional_embedding_type", "rotary_base", "rotary_dim", "attn_scale", "output_logits_soft_cap")
    digest = hashlib.sha256(repr([getattr(model.cfg, name, None) for name in names]).encode())
    for name, weight in model.named_parameters():
        digest.update(f"{name} {tuple(weight.shape)} {weight.dtype}".encode())
        digest.update(weight.detach().cpu().contiguous().reshape(-1).view(torch.uint8).numpy())
    return digest.hexdigest()[:16]


def tokenizer_fingerprint(tokenizer: PreTrainedTokenizerBase) -> str:
    """16 hex digits of everything that decides how text becomes tokens."""
    special = {name: getattr(tokenizer, f"{name}_token_id", None) for name in ("bos", "eos", "pad", "unk")}
    fast = tokenizer.backend_tokenizer if tokenizer.is_fast else None
    rules = tokenizer.get_vocab() if fast is None else fast.to_str()
    # A slow tokenizer keeps the special tokens it adds outside of its vocabulary.
    return hashed({"special": special, "rules": rules, "whole": tokenizer("a")["input_ids"]})[:16]
