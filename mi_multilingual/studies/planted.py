"""A model whose language neurons are known, because its weights are set by hand: what detectors are tested on."""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from jaxtyping import Bool, Float, Int
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

BOS, _PAD = "<s>", "<pad>"
_WIDTH, _WINDOW = 64, 64
CAUSAL, DECOYS, PAIRS, _FREQUENT = 6, 6, 2, 6
_WORDS_PER_DOCUMENT = 20
_BIASES = {"frequent": 1.0, "dead": -20.0}
"""Biases of neurons whose input is not +1 in their languages and -1 elsewhere, on average over words."""
_OTHER_NOISE = 0.6
"""Spread of the input of neurons that read no language."""


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
    neurons_per_layer: int = 256,
    words_per_language: int = 100,
    effect: float = 2.0,
    noise: float = 0.4,
    seed: int = 0,
) -> Planted:
    """A small OPT whose attention writes nothing and whose MLP neurons are of five kinds, at random places.

    Every word's embedding holds the direction of its language and one of its own. For each language six neurons read
    its direction and write to the logits of its words (causal), and six read it and write nothing (decoys). For each
    pair of neighbouring languages two neurons read both directions and write nothing. Six neurons fire at most words of
    any language, a quarter of all is dead, and the rest fires at few words, whatever the language, and writes a little
    in random directions.

    Args:
        effect: what the six causal neurons of a language together add to the logits of its words, before the final
            norm.
        noise: standard deviation, over words, of the input of a neuron whose language is there (mean +1) or not
            (mean -1): at 0 it fires always and never, at 1 it errs at one word in six.

    Raises:
        ValueError: fewer than two languages, or more neurons of a kind than there are.
    """
    n_neurons = n_layers * neurons_per_layer
    kinds = _kinds_of_neurons(n_languages, n_neurons)
    random = np.random.default_rng(seed)
    words = [f"l{k}w{i}" for k in range(n_languages) for i in range(words_per_language)]
    tokenizer = _word_tokenizer(words)
    language_of = torch.arange(len(words)) // words_per_language
    reads, writes = (
        _directions(random, 2 * n_languages)[:n_languages],
        _directions(random, 2 * n_languages)[n_languages:],
    )
    embedding = _embeddings(random, language_of, reads, writes)
    neurons = _planted_neurons(random, kinds, embedding, reads, writes, effect=effect, noise=noise)
    model = load_model(_opt_of(tokenizer, embedding, writes[language_of], neurons, n_layers), tokenizer=tokenizer)
    names = tuple(f"l{k}" for k in range(n_languages))
    parameters = {"effect": effect, "noise": noise, "seed": seed}
    sets = [
        NeuronSet(
            mask.unflatten(1, (n_layers, neurons_per_layer)), names, name, parameters, "planted", fingerprint(model)
        )
        for name, mask in (("planted causal", neurons.causal), ("planted correlational", neurons.correlational))
    ]
    return Planted(model, *sets)


def _kinds_of_neurons(n_languages: int, n_neurons: int) -> list[str]:
    """The kind of every neuron, before they are put at random places."""
    n_special = n_languages * (CAUSAL + DECOYS) + (n_languages // 2) * PAIRS + _FREQUENT
    if n_languages < 2 or n_special + n_neurons // 4 > n_neurons:
        raise ValueError(
            f"n_languages must be at least 2 and small enough for {n_neurons} neurons, got {n_languages}, which need "
            f"{n_special} neurons beside dead and background ones; give fewer languages or more neurons"
        )
    kinds = ["causal"] * (n_languages * CAUSAL) + ["decoy"] * (n_languages * DECOYS)
    kinds += ["pair"] * (n_languages // 2 * PAIRS) + ["frequent"] * _FREQUENT + ["dead"] * (n_neurons // 4)
    return kinds + ["background"] * (n_neurons - len(kinds))


def _languages_read(kind: str, number: int, n_languages: int) -> list[int]:
    """The languages whose directions the neuron of this number reads."""
    if kind in ("causal", "decoy"):
        return [number % n_languages]
    first = 2 * (number % (n_languages // 2))
    return [first, first + 1] if kind == "pair" else []


def _embeddings(
    random: np.random.Generator,
    language_of: Int[Tensor, " word"],
    reads: Float[Tensor, "language d_model"],
    writes: Float[Tensor, "language d_model"],
) -> Float[Tensor, "bos_and_word d_model"]:
    """The direction of each word's language and one of its own."""
    own = torch.from_numpy(random.normal(size=(1 + len(language_of), _WIDTH))).float()
    own = _unit(without(own - own.mean(dim=1, keepdim=True), torch.cat([reads, writes])))
    # BOS has no language, but a vector of full length: the final norm would blow up what is written on top of none.
    return _WIDTH**0.5 * torch.cat([own[:1], _unit(reads[language_of] + own[1:])])


@dataclass(frozen=True, eq=False)
class PlantedNeurons:
    """Weights of all neurons, whatever their layer, and which of them belong to which language."""

    w_in: Float[Tensor, "neuron d_model"]
    b_in: Float[Tensor, " neuron"]
    w_out: Float[Tensor, "neuron d_model"]
    causal: Bool[Tensor, "language neuron"]
    correlational: Bool[Tensor, "language neuron"]


def _planted_neurons(
    random: np.random.Generator,
    kinds: Sequence[str],
    embedding: Float[Tensor, "bos_and_word d_model"],
    reads: Float[Tensor, "language d_model"],
    writes: Float[Tensor, "language d_model"],
    *,
    effect: float,
    noise: float,
) -> PlantedNeurons:
    """A neuron of every kind in the list, at a random place."""
    n, n_languages = len(kinds), len(reads)
    found = PlantedNeurons(
        torch.zeros(n, _WIDTH),
        torch.zeros(n),
        torch.zeros(n, _WIDTH),
        *torch.zeros(2, n_languages, n, dtype=torch.bool),
    )
    # What a direction of unit length reads off an embedding of its language.
    at_language = float((embedding[1] @ reads[0]).item())
    for i, (kind, j) in enumerate(zip(kinds, random.permutation(n).tolist(), strict=True)):
        mine = _languages_read(kind, i, n_languages)
        scatter = torch.from_numpy(random.normal(size=_WIDTH)).float()
        scatter = _unit(without((scatter - scatter.mean())[None], torch.cat([reads, writes])))[0]
        spread = float((embedding[1:] @ scatter).std())
        own_noise = noise if mine else _OTHER_NOISE
        found.w_in[j] = scatter * own_noise / spread + reads[mine].sum(dim=0) * 2 / at_language
        found.b_in[j] = _BIASES.get(kind, -1.0)
        if kind == "causal":
            found.w_out[j] = writes[mine[0]] * effect / CAUSAL
        elif kind in ("frequent", "background"):
            found.w_out[j] = writes.T @ torch.from_numpy(random.normal(size=n_languages)).float() * 0.02
        found.correlational[mine, j] = True
        found.causal[mine, j] = kind == "causal"
    return found


def planted_text(planted: Planted, n_tokens: int, *, seed: int = 0) -> Corpus:
    """Documents of twenty words drawn at random from each language's own, about `n_tokens` words per language."""
    random = np.random.default_rng([seed, 1])
    vocabulary = planted.model.tokenizer.get_vocab()
    documents = {}
    for name in planted.causal.groups:
        words = np.array(sorted(word for word in vocabulary if word.startswith(f"{name}w")))
        n_documents = max(2, n_tokens // _WORDS_PER_DOCUMENT)
        documents[name] = tuple(" ".join(random.choice(words, _WORDS_PER_DOCUMENT)) for _ in range(n_documents))
    return Corpus(documents, f"planted text, seed {seed}")


def _directions(random: np.random.Generator, n: int) -> Float[Tensor, "n d_model"]:
    """`n` orthonormal directions of mean zero, which a layer norm leaves as they are."""
    columns = np.column_stack([np.ones(_WIDTH), random.normal(size=(_WIDTH, n))])
    return torch.from_numpy(np.linalg.qr(columns)[0].T[1:].copy()).float()


def without(vectors: Float[Tensor, "m d_model"], taken: Float[Tensor, "n d_model"]) -> Float[Tensor, "m d_model"]:
    """`vectors` less what lies in the span of orthonormal `taken`."""
    basis = torch.linalg.qr(taken.T).Q
    return vectors - vectors @ basis @ basis.T


def _unit(vectors: Float[Tensor, "m d_model"]) -> Float[Tensor, "m d_model"]:
    return vectors / vectors.norm(dim=1, keepdim=True)


def _word_tokenizer(words: list[str]) -> PreTrainedTokenizerFast:
    tokenizer = Tokenizer(WordLevel({word: i for i, word in enumerate([_PAD, BOS, *words])}, unk_token=_PAD))
    tokenizer.pre_tokenizer = WhitespaceSplit()
    tokenizer.post_processor = TemplateProcessing(single=f"{BOS} $A", special_tokens=[(BOS, 1)])
    return PreTrainedTokenizerFast(tokenizer_object=tokenizer, bos_token=BOS, eos_token=BOS, pad_token=_PAD)


@torch.no_grad()
def _opt_of(
    tokenizer: PreTrainedTokenizerFast,
    embedding: Float[Tensor, "bos_and_word d_model"],
    unembedding: Float[Tensor, "word d_model"],
    neurons: PlantedNeurons,
    n_layers: int,
) -> OPTForCausalLM:
    """An OPT of these weights, all others zero; the neurons are shared out over the layers in order."""
    config = OPTConfig(
        vocab_size=len(tokenizer),
        hidden_size=_WIDTH,
        word_embed_proj_dim=_WIDTH,
        num_hidden_layers=n_layers,
        num_attention_heads=2,
        ffn_dim=len(neurons.b_in) // n_layers,
        max_position_embeddings=_WINDOW,
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
    weights = (part.chunk(n_layers) for part in (neurons.w_in, neurons.b_in, neurons.w_out))
    for layer, w_in, b_in, w_out in zip(model.model.decoder.layers, *weights, strict=True):
        layer.fc1.weight.copy_(w_in)
        layer.fc1.bias.copy_(b_in)
        layer.fc2.weight.copy_(w_out.T)
    return model
