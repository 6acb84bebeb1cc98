"""Tiny random Hugging Face checkpoints of many architectures, with a tokenizer, on disk."""

from collections.abc import Iterator
from pathlib import Path

import torch
import transformers
from tokenizers import ByteLevelBPETokenizer
from tokenizers.processors import TemplateProcessing
from transformers import PreTrainedTokenizerFast

SENTENCES = {
    "en": [
        "The dog sleeps under the old tree.",
        "We drink tea when it rains in the evening.",
        "A small boat crossed the river.",
    ],
    "fr": [
        "Le chien dort sous le vieil arbre.",
        "Nous buvons du thé quand il pleut.",
        "Un petit bateau a traversé la rivière.",
    ],
    "ja": ["犬が古い木の下で眠っている。", "雨の夜にはお茶を飲みます。", "小さな舟が川を渡った。"],
}
N_CTX, D_MLP, N_LAYERS = 32, 24, 2
BASE = {"vocab_size": 400, "hidden_size": 16, "num_hidden_layers": N_LAYERS, "num_attention_heads": 2}
GATED = {**BASE, "intermediate_size": D_MLP, "max_position_embeddings": N_CTX, "head_dim": 8}
ENDS = {"pad_token_id": 0, "bos_token_id": 1, "eos_token_id": 1}
NAMED_ENDS = {**GATED, **ENDS}
LOCAL_AND_GLOBAL = ["sliding_attention", "full_attention"]

CONFIGS = {
    "llama": lambda: transformers.LlamaConfig(**GATED),
    "llama-grouped": lambda: transformers.LlamaConfig(**GATED, num_key_value_heads=1),
    "mistral": lambda: transformers.MistralConfig(**GATED, num_key_value_heads=1, sliding_window=None),
    "qwen2": lambda: transformers.Qwen2Config(**GATED, num_key_value_heads=1),
    "qwen3": lambda: transformers.Qwen3Config(**GATED, num_key_value_heads=1),
    "gemma": lambda: transformers.GemmaConfig(**GATED, num_key_value_heads=1, hidden_activation="gelu_pytorch_tanh"),
    "gpt2": lambda: transformers.GPT2Config(
        vocab_size=400,
        n_embd=16,
        n_layer=N_LAYERS,
        n_head=2,
        n_positions=N_CTX,
        n_inner=D_MLP,
        bos_token_id=1,
        eos_token_id=1,
    ),
    "gpt-neox": lambda: transformers.GPTNeoXConfig(**BASE, intermediate_size=D_MLP, max_position_embeddings=N_CTX),
    "bloom": lambda: transformers.BloomConfig(vocab_size=400, hidden_size=16, n_layer=N_LAYERS, n_head=2),
    "opt": lambda: transformers.OPTConfig(
        **BASE,
        ffn_dim=D_MLP,
        max_position_embeddings=N_CTX,
        word_embed_proj_dim=16,
        pad_token_id=0,
        bos_token_id=1,
        eos_token_id=1,
    ),
    "gemma2": lambda: transformers.Gemma2Config(
        **GATED, num_key_value_heads=1, query_pre_attn_scalar=8, sliding_window=4, layer_types=LOCAL_AND_GLOBAL
    ),
    "gemma3": lambda: transformers.Gemma3TextConfig(
        **GATED, num_key_value_heads=1, query_pre_attn_scalar=8, sliding_window=4, layer_types=LOCAL_AND_GLOBAL
    ),
    "phi3": lambda: transformers.Phi3Config(**NAMED_ENDS, num_key_value_heads=1),
    "mistral-wide-heads": lambda: transformers.MistralConfig(
        **{**GATED, "head_dim": 12}, num_key_value_heads=1, sliding_window=None
    ),
    "cohere": lambda: transformers.CohereConfig(**NAMED_ENDS, num_key_value_heads=1),
    "cohere2": lambda: transformers.Cohere2Config(
        **NAMED_ENDS, num_key_value_heads=1, sliding_window=4, layer_types=LOCAL_AND_GLOBAL
    ),
    "olmo2": lambda: transformers.Olmo2Config(**NAMED_ENDS, num_key_value_heads=1),
    "apertus": lambda: transformers.ApertusConfig(**NAMED_ENDS, num_key_value_heads=1),
    "xglm": lambda: transformers.XGLMConfig(
        vocab_size=400,
        d_model=16,
        num_layers=N_LAYERS,
        attention_heads=2,
        ffn_dim=D_MLP,
        max_position_embeddings=N_CTX,
        **ENDS,
    ),
    "falcon": lambda: transformers.FalconConfig(
        **BASE, ffn_hidden_size=D_MLP, max_position_embeddings=N_CTX, alibi=False, **ENDS
    ),
    "falcon-alibi": lambda: transformers.FalconConfig(
        **BASE,
        ffn_hidden_size=D_MLP,
        max_position_embeddings=N_CTX,
        alibi=True,
        multi_query=False,
        parallel_attn=False,
        bias=True,
        **ENDS,
    ),
    "stablelm": lambda: transformers.StableLmConfig(**NAMED_ENDS, num_key_value_heads=1),
}


def tokenizer(folder: Path, *, bos: bool = True, adds: bool = True, pad: bool = True) -> PreTrainedTokenizerFast:
    """A byte-level BPE trained on the sentences above, saved to the folder and loaded back.

    Args:
        bos: whether it has a BOS token.
        adds: whether it puts that before every text, as Llama's does and GPT-2's does not.
    """
    bpe = ByteLevelBPETokenizer()
    texts = [s for sentences in SENTENCES.values() for s in sentences]
    bpe.train_from_iterator(texts, vocab_size=400, special_tokens=["<pad>", "<s>"], show_progress=False)
    if bos and adds:
        bpe._tokenizer.post_processor = TemplateProcessing(single="<s> $A", special_tokens=[("<s>", 1)])
    special = ({"bos_token": "<s>"} if bos else {}) | ({"pad_token": "<pad>"} if pad else {})
    PreTrainedTokenizerFast(tokenizer_object=bpe._tokenizer, eos_token="<s>", **special).save_pretrained(folder)
    return PreTrainedTokenizerFast.from_pretrained(folder)


def checkpoint(kind: str, folder: Path, *, seed: int = 0) -> Path:
    """Random weights, larger than the usual initialisation so that activations are not all near zero."""
    torch.manual_seed(seed)
    model = transformers.AutoModelForCausalLM.from_config(CONFIGS[kind]()).float().eval()
    with torch.no_grad():
        for p in model.parameters():
            if p.ndim == 2:
                p.normal_(std=0.2)
            elif p.ndim == 1:
                p.add_(0.1 * torch.randn_like(p))
    model.save_pretrained(folder)
    tokenizer(folder)
    return folder


def mlps(hf_model) -> Iterator[torch.nn.Module]:
    """The MLP of every layer, or for OPT the layer itself, which holds fc1 and fc2."""
    base = hf_model.base_model
    layers = getattr(base, "layers", None) or getattr(base, "h", None) or base.decoder.layers
    for layer in layers:
        yield layer if hasattr(layer, "fc2") else layer.mlp


def out_projection(mlp: torch.nn.Module) -> torch.nn.Module:
    """The linear map whose input is the neurons' final values."""
    return next(getattr(mlp, n) for n in ("down_proj", "fc2", "dense_4h_to_h", "c_proj") if hasattr(mlp, n))


TEMPLATE = """\
{{ bos_token }}{% for message in messages %}\
{% if message['role'] not in ['user', 'assistant', 'system'] %}{{ raise_exception('unknown role') }}{% endif %}\
[{{ message['role'] }}] {{ message['content'] | trim }}
{% endfor %}{% if add_generation_prompt %}[assistant] {% endif %}"""


def chatting(kind: str, folder: Path) -> Path:
    """A checkpoint with a chat template of its own, which writes BOS, and room for it: its positions are rotary."""
    checkpoint(kind, folder)
    config = transformers.AutoConfig.from_pretrained(folder)
    config.max_position_embeddings = 4 * N_CTX
    config.save_pretrained(folder)
    tokens = PreTrainedTokenizerFast.from_pretrained(folder)
    tokens.chat_template = TEMPLATE
    tokens.save_pretrained(folder)
    return folder
