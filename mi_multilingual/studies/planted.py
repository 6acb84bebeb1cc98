"""A model whose language neurons are known, because its weights are set by hand: what detectors are tested on."""

from dataclasses import dataclass

import numpy as np
import torch
from jaxtyping import Float
from tokenizers import Tokenizer
from tokenizers.models import WordLevel
from tokenizers.pre_tokenizers import WhitespaceSplit
from tokenizers.processors import TemplateProcessing
from torch import Tensor
from transformers import OPTConfig, OPTForCausalLM, PreTrainedTokenizerFast

from ..corpora import Corpus
from ..models.hooked import HookedModel, fingerprint
from ..models.loading import load_model
from ..neurons import NeuronSet

BOS, PAD = "<s>", "<pad>"
WIDTH, WINDOW = 64, 64
CAUSAL, DECOYS, PAIRS, FREQUENT = 6, 6, 2, 6
WORDS_A_DOCUMENT = 20


@dataclass(frozen=True, eq=False)
class Planted:
    """A model and which of its neurons do what."""

    model: HookedModel
    causal: NeuronSet
    """Neurons that fire in one language and raise the logits of its words."""
    correlational: NeuronSet
    """Neurons that fire in one language or in two: the causal ones, decoys that write nothing, and those of pairs."""


def planted_model(
    *,
    n_languages: int = 5,
    n_layers: int = 2,
    neurons_a_layer: int = 256,
    words_a_language: int = 100,
    effect: float = 2.0,
    noise: float = 0.4,
    seed: int = 0,
) -> Planted:
    """A small OPT whose attention writes nothing and whose MLP neurons are of five kinds, at random places.

    Every word's embedding holds the direction of its language and one of its own. For each language six neurons read
    its direction and write to the logits of its words (causal), six read it and write nothing (decoys), two a pair of
    neighbouring languages read both and write nothing. Six neurons fire at most words of any language, a quarter of
    all is dead, and the rest fires at few words, whatever the language, and writes a little in random directions.

    Args:
        effect: what the six causal neurons of a language together add to the logits of its words, before the final
            norm.
        noise: standard deviation, over words, of the input of a neuron whose language is there (mean +1) or not
            (mean -1): 0 fires always and never, 1 errs at one word in six.

    Raises:
        ValueError: fewer than two languages, or more neurons of a kind than there are.
    """
    n_neurons = n_layers * neurons_a_layer
    n_special = n_languages * (CAUSAL + DECOYS) + (n_languages // 2) * PAIRS + FREQUENT
    if n_languages < 2 or n_special + n_neurons // 4 > n_neurons:
        raise ValueError(
            f"{n_languages} languages need at least 2, and {n_special} of {n_neurons} neurons beside dead and "
            "background ones; give more languages or neurons"
        )
    random = np.random.default_rng(seed)
    words = [f"l{k}w{i}" for k in range(n_languages) for i in range(words_a_language)]
    tokenizer = word_tokenizer(words)
    language_of = torch.arange(len(words)) // words_a_language
    reads, writes = directions(random, 2 * n_languages)[:n_languages], directions(random, 2 * n_languages)[n_languages:]
    own = torch.from_numpy(random.normal(size=(1 + len(words), WIDTH))).float()
    own = unit(without(own - own.mean(dim=1, keepdim=True), torch.cat([reads, writes])))
    # BOS has no language, but a vector of full length: the final norm would blow up what is written on top of none.
    embedding = WIDTH**0.5 * torch.cat([own[:1], unit(reads[language_of] + own[1:])])

    kinds = ["causal"] * (n_languages * CAUSAL) + ["decoy"] * (n_languages * DECOYS)
    kinds += ["pair"] * (n_languages // 2 * PAIRS) + ["frequent"] * FREQUENT + ["dead"] * (n_neurons // 4)
    kinds += ["background"] * (n_neurons - len(kinds))
    place = torch.from_numpy(random.permutation(n_neurons))
    w_in, b_in, w_out = (torch.zeros(n_neurons, WIDTH), torch.zeros(n_neurons), torch.zeros(n_neurons, WIDTH))
    causal, correlational = (torch.zeros(n_languages, n_neurons, dtype=torch.bool) for _ in range(2))
    # What a direction of unit length reads off an embedding of its language.
    at_language = float((embedding[1] @ reads[0]).item())
    for i, (kind, j) in enumerate(zip(kinds, place.tolist(), strict=True)):
        scatter = torch.from_numpy(random.normal(size=WIDTH)).float()
        scatter = unit(without((scatter - scatter.mean())[None], torch.cat([reads, writes])))[0]
        spread = float((embedding[1:] @ scatter).std())
        # A neuron's input is +1 in its languages and -1 elsewhere, on average over words.
        b_in[j] = {"frequent": 1.0, "dead": -20.0}.get(kind, -1.0)
        w_in[j] = scatter * (noise if kind in ("causal", "decoy", "pair") else 0.6) / spread
        mine: list[int] = []
        if kind in ("causal", "decoy"):
            mine = [i % n_languages]
        elif kind == "pair":
            first = 2 * (i % (n_languages // 2))
            mine = [first, first + 1]
        w_in[j] += reads[mine].sum(dim=0) * 2 / at_language
        correlational[mine, j] = True
        if kind == "causal":
            causal[mine, j] = True
            w_out[j] = writes[mine[0]] * effect / CAUSAL
        elif kind in ("frequent", "background"):
            w_out[j] = writes.T @ torch.from_numpy(random.normal(size=n_languages)).float() * 0.02
    hf_model = opt_of(tokenizer, embedding, writes[language_of], w_in, b_in, w_out, n_layers)
    model = load_model(hf_model, tokenizer=tokenizer)
    names = tuple(f"l{k}" for k in range(n_languages))
    parameters = {"effect": effect, "noise": noise, "seed": seed}
    sets = [
        NeuronSet(
            mask.unflatten(1, (n_layers, neurons_a_layer)), names, name, parameters, "planted", fingerprint(model)
        )
        for name, mask in (("planted causal", causal), ("planted correlational", correlational))
    ]
    return Planted(model, *sets)


def planted_text(planted: Planted, n_tokens: int, *, seed: int = 0) -> Corpus:
    """Documents of twenty words drawn at random from each language's own, about `n_tokens` words a language."""
    random = np.random.default_rng([seed, 1])
    vocabulary = planted.model.tokenizer.get_vocab()
    documents = {}
    for name in planted.causal.groups:
        words = np.array(sorted(word for word in vocabulary if word.startswith(f"{name}w")))
        n_documents = max(2, n_tokens // WORDS_A_DOCUMENT)
        documents[name] = tuple(" ".join(random.choice(words, WORDS_A_DOCUMENT)) for _ in range(n_documents))
    return Corpus(documents, f"planted text, seed {seed}")


def directions(random: np.random.Generator, n: int) -> Float[Tensor, "n d_model"]:
    """`n` orthonormal directions of mean zero, which a layer norm leaves as they are."""
    columns = np.column_stack([np.ones(WIDTH), random.normal(size=(WIDTH, n))])
    return torch.from_numpy(np.linalg.qr(columns)[0].T[1:].copy()).float()


def without(vectors: Float[Tensor, "m d_model"], taken: Float[Tensor, "n d_model"]) -> Float[Tensor, "m d_model"]:
    """`vectors` less what lies in the span of orthonormal `taken`."""
    basis = torch.linalg.qr(taken.T).Q
    return vectors - vectors @ basis @ basis.T


def unit(vectors: Float[Tensor, "m d_model"]) -> Float[Tensor, "m d_model"]:
    return vectors / vectors.norm(dim=1, keepdim=True)


def word_tokenizer(words: list[str]) -> PreTrainedTokenizerFast:
    tokenizer = Tokenizer(WordLevel({word: i for i, word in enumerate([PAD, BOS, *words])}, unk_token=PAD))
    tokenizer.pre_tokenizer = WhitespaceSplit()
    tokenizer.post_processor = TemplateProcessing(single=f"{BOS} $A", special_tokens=[(BOS, 1)])
    return PreTrainedTokenizerFast(tokenizer_object=tokenizer, bos_token=BOS, eos_token=BOS, pad_token=PAD)


@torch.no_grad()
def opt_of(
    tokenizer: PreTrainedTokenizerFast,
    embedding: Float[Tensor, "bos_and_word d_model"],
    unembedding: Float[Tensor, "word d_model"],
    w_in: Float[Tensor, "neuron d_model"],
    b_in: Float[Tensor, " neuron"],
    w_out: Float[Tensor, "neuron d_model"],
    n_layers: int,
) -> OPTForCausalLM:
    """An OPT of these weights, all others zero; the neurons are shared out over the layers in order."""
    config = OPTConfig(
        vocab_size=len(tokenizer),
        hidden_size=WIDTH,
        word_embed_proj_dim=WIDTH,
        num_hidden_layers=n_layers,
        num_attention_heads=2,
        ffn_dim=len(w_in) // n_layers,
        max_position_embeddings=WINDOW,
        activation_function="relu",
        pad_token_id=0,
        bos_token_id=1,
        eos_token_id=1,
        tie_word_embeddings=False,
    )
    model = OPTForCausalLM(config).float().eval()
    for name, p in model.named_parameters():
        p.fill_(1.0 if "layer_norm.weight" in name else 0.0)
    model.get_input_embeddings().weight[1:] = embedding
    model.lm_head.weight[2:] = unembedding
    for layer, *parts in zip(
        model.model.decoder.layers, w_in.chunk(n_layers), b_in.chunk(n_layers), w_out.chunk(n_layers), strict=True
    ):
        layer.fc1.weight.copy_(parts[0])
        layer.fc1.bias.copy_(parts[1])
        layer.fc2.weight.copy_(parts[2].T)
    return model
