"""A tiny model whose blocks speak known languages."""

from itertools import product

import pandas as pd
import torch
from tokenizers import Tokenizer
from tokenizers.models import WordLevel
from tokenizers.pre_tokenizers import WhitespaceSplit
from transformers import OPTConfig, OPTForCausalLM, PreTrainedTokenizerFast

import mi_multilingual as mm
from mi_multilingual.studies.regions import REGIONS

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


COLUMNS = {
    "layer_language_shares": "condition group language position layer decoded share low high shared none n",
    "layer_word_means": "language layer decoded probability low high n n_dropped",
    "regions": "language pivot region first end rule below back",
    "region_effects": "group structure region rule evaluated measure n n_neurons intact value random change low high "
    "random_change random_low random_high beyond beyond_low beyond_high",
}


def tables(languages):
    """Tables of the studies `layer_languages` and `regions` for languages of any names: the first is the pivot, which
    prompts in the last are decoded into in the middle, and the neurons of the last do harm."""
    pivot, *_, other = languages
    rows = {name: [] for name in COLUMNS}
    for condition, language, layer in product(("intact", "chosen", "random"), languages, range(3)):
        moved = (language, layer) == (other, 1) or (condition, language) == ("chosen", other)
        group = "" if condition == "intact" else language
        for decoded in languages:
            share = 0.8 if decoded == (pivot if moved else language) else 0.2 / (len(languages) - 1)
            cell = (condition, group, language, "prompt", layer, decoded, share, share - 0.05, share + 0.05)
            rows["layer_language_shares"].append((*cell, 0.3, 0.1, 12))
    for decoded, layer in product((other, pivot), range(3)):
        rows["layer_word_means"].append((other, layer, decoded, 0.1 * layer, 0.0, 0.1 + 0.1 * layer, 20, 5))
    for k, (i, region) in product(languages, enumerate(REGIONS)):
        rows["regions"].append((k, pivot, region, i, i + 1, "found", 1, 2))
    for group, structure, region in product(languages, ("mlp", "attention"), ("reasoning", "all")):
        change = 0.5 if group == other else 0.01
        around = (change, change - 0.1, change + 0.1)
        cell = (group, structure, region, "found", group, "loss", 4, 9, 3.0, 3.0 + change, 3.0)
        rows["region_effects"].append((*cell, *around, 0.0, -0.01, 0.01, *around))
    return {name: pd.DataFrame(rows[name], columns=columns.split()) for name, columns in COLUMNS.items()}
