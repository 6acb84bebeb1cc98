"""A tiny model whose blocks speak known languages."""

import torch
from tokenizers import Tokenizer
from tokenizers.models import WordLevel
from tokenizers.pre_tokenizers import WhitespaceSplit
from transformers import OPTConfig, OPTForCausalLM, PreTrainedTokenizerFast

import mi_multilingual as mm

WIDTH, WORDS = 32, 20
LANGUAGES = ("l0", "l1", "l2")
SPEAKS = {0: "own", 1: "own", 2: "pivot", 3: "pivot", 4: "pivot", 5: "own"}
"""What the planted model says after each block."""


@torch.no_grad()
def plain():
    """A model without attention that says words of the prompt's language after its first two blocks and its last, and
    words of l0 in between: block 2 adds the direction of l0 and block 5 takes it away again."""
    words = [f"l{k}w{i}" for k in range(3) for i in range(WORDS)]
    words_of = Tokenizer(WordLevel({w: i for i, w in enumerate(["<pad>", *words])}, unk_token="<pad>"))
    words_of.pre_tokenizer = WhitespaceSplit()
    tokenizer = PreTrainedTokenizerFast(tokenizer_object=words_of, eos_token="<pad>", pad_token="<pad>")
    config = OPTConfig(
        vocab_size=len(tokenizer),
        hidden_size=WIDTH,
        word_embed_proj_dim=WIDTH,
        num_hidden_layers=len(SPEAKS),
        num_attention_heads=2,
        ffn_dim=4,
        max_position_embeddings=16,
        pad_token_id=0,
        eos_token_id=0,
        tie_word_embeddings=False,
    )
    model = OPTForCausalLM(config).eval()
    for name, parameter in model.named_parameters():
        parameter.fill_(1.0 if "layer_norm.weight" in name else 0.0)
    random = torch.Generator().manual_seed(0)
    directions = torch.linalg.qr(torch.randn(WIDTH, WIDTH, generator=random))[0]
    directions = directions - directions.mean(dim=1, keepdim=True)
    own = directions[:3].repeat_interleave(WORDS, dim=0)
    scattered = 0.1 * torch.randn(len(words), WIDTH, generator=random)
    model.get_input_embeddings().weight[1:] = 5 * own
    model.lm_head.weight[1:] = own + scattered
    for block, factor in ((2, 10.0), (5, -10.0)):
        model.model.decoder.layers[block].fc2.bias.copy_(factor * directions[0])
    return model, tokenizer


def model():
    """The same with hooks."""
    found, tokenizer = plain()
    return mm.load_model(found, tokenizer=tokenizer, device="cpu")


DOCUMENTS = {k: tuple(" ".join(f"{k}w{(3 * i + j) % WORDS}" for j in range(5)) for i in range(12)) for k in LANGUAGES}
TEXT = mm.Corpus(DOCUMENTS, "planted")
