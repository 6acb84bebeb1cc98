"""What makes a neuron fire, and what it writes: top activating tokens in context, and direct effects on the logits."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cache, partial

import pandas as pd
import torch
from einops import rearrange
from jaxtyping import Float, Int
from torch import Tensor
from transformers import PreTrainedTokenizerBase

from ..corpora import Corpus
from ..evidence.reading import read
from ..models.hooked import HookedModel, Site, site_of, weight_of
from ..neurons import NeuronSet
from ..patching.changes import check_fits
from ..rows import rows_bar
from ..tokens import Reading, TokenRows, language_rows, rows_per_batch
from .attribution import norm_weight

BEFORE, AFTER = 10, 5  # tokens of context
_NEURONS_AT_ONCE = 256  # of logit effects, which are vocabulary times as many numbers
_NO_TOKEN = -1
BROKEN = "\N{REPLACEMENT CHARACTER}"


@dataclass(frozen=True, eq=False)
class Highest:
    """The highest tokens of some neurons so far, best first, at most one per row of text.

    A monoid: `(a + b).best(k)` are the best of both, and of equal ones those of `a` come first.
    """

    value: Float[Tensor, "neuron kept"]
    document: Int[Tensor, "neuron kept"]
    tokens: Int[Tensor, "neuron kept context"]
    """Ids of the BEFORE tokens before it, itself, and the AFTER tokens after it; NO_TOKEN where none was counted."""
    activation: Float[Tensor, "neuron kept context"]
    """At each of these tokens."""

    @classmethod
    def zeros(cls, n_neurons: int) -> Highest:
        shape = (n_neurons, 0, BEFORE + 1 + AFTER)
        none = torch.zeros(shape[:2], dtype=torch.int64)
        return cls(none.float(), none, torch.zeros(shape, dtype=torch.int64), torch.zeros(shape))

    def __add__(self, other: Highest) -> Highest:
        names = ("value", "document", "tokens", "activation")
        return Highest(*(torch.cat([getattr(self, name), getattr(other, name)], dim=1) for name in names))

    def best(self, k: int) -> Highest:
        order = self.value.argsort(dim=1, descending=True, stable=True)[:, :k]
        at = torch.arange(len(order))[:, None]
        return Highest(
            self.value[at, order], self.document[at, order], self.tokens[at, order], self.activation[at, order]
        )


def top_examples(
    model: HookedModel,
    corpus: Corpus,
    neurons: NeuronSet,
    *,
    n: int = 5,
    reading: Reading = Reading(),
    site: str = "gate",
    progress: bool = True,
) -> pd.DataFrame:
    """The tokens at which each neuron of a set is highest, in every language, with the text around them.

    One pass without logits; of every row of text a neuron's highest token only, so that the examples differ. Memory
    does not depend on the number of tokens.

    Args:
        neurons: all neurons of any of its groups are looked at, in every language of the corpus.
        n: examples per neuron and language; fewer where it is above zero in fewer rows.
        reading: how text becomes rows.
        site: where neurons are read, as in `record`.

    Returns:
        one row per example, columns language, layer, neuron, rank (from 1), activation, document (its number in the
        corpus), tokens (the text of each token: 10 before, itself, 5 after; "" where a character began in an earlier
        one), activations (of each), peak (index of the token itself in both).

    Raises:
        ValueError: neurons of another model or of attention, n below 1, or activations that are not finite.
    """
    if n < 1:
        raise ValueError(f"n must be at least 1 example per neuron and language, got {n}")
    _check_neurons(model, neurons)
    reading = reading.for_model(model)
    reader, chosen = site_of(model, site), _chosen_columns(neurons)
    frames, texts_of = [], text_reader(model.tokenizer)
    at_once = rows_per_batch(model, reading.window or 1, "statistics")
    languages = list(language_rows(model, corpus, reading, progress=progress))
    with rows_bar(languages, "examples", progress) as bar:
        for rows in languages:
            kept = {layer: Highest.zeros(len(columns)) for layer, columns in chosen.items()}
            for batch in rows.batches(at_once):
                found = _batch_highest(model, reader, batch, chosen, n)
                kept = {layer: (kept[layer] + found[layer]).best(n) for layer in chosen}
                bar.update(len(batch))
            frames += [_example_table(rows.language, layer, chosen[layer], kept[layer], texts_of) for layer in chosen]
    columns = ["language", "layer", "neuron", "rank", "activation", "document", "tokens", "activations", "peak"]
    return pd.DataFrame([row for frame in frames for row in frame], columns=columns)


def _check_neurons(model: HookedModel, neurons: NeuronSet) -> None:
    """Raise unless these are MLP neurons of this model."""
    if neurons.part != "mlp":
        raise ValueError(f"neurons must be of the MLP, got part {neurons.part!r}; examples of columns cannot be shown")
    check_fits(model, neurons)


def _chosen_columns(neurons: NeuronSet) -> dict[int, Int[Tensor, " _"]]:
    """Indices of the neurons of any group, by layer; layers without one are left out."""
    return {layer: mask.nonzero().flatten() for layer, mask in enumerate(neurons.union()) if mask.any()}


@torch.no_grad()
def _batch_highest(
    model: HookedModel, site: Site, batch: TokenRows, chosen: dict[int, Int[Tensor, " _"]], k: int
) -> dict[int, Highest]:
    """The best k of one batch, by layer."""
    found: dict[int, Highest] = {}

    def take(layer: int, carried: Float[Tensor, "row pos neuron"]) -> None:
        activation = site.value(carried[..., chosen[layer].to(carried.device)])
        found[layer] = highest_tokens(activation.float(), batch, k)

    if chosen:
        read(model, batch.tokens, {layer: site.hook_name(layer) for layer in chosen}, take)
    return found


def highest_tokens(activation: Float[Tensor, "row pos neuron"], batch: TokenRows, k: int) -> Highest:
    """The k rows in which each neuron is highest, and the text around that token."""
    device, (_, width, n_neurons) = activation.device, activation.shape
    tokens, valid = batch.tokens.to(device), batch.valid.to(device)
    value, place = activation.masked_fill(~valid[..., None], -torch.inf).max(dim=1)
    row = value.argsort(dim=0, descending=True, stable=True)[:k]
    around = place.gather(0, row)[..., None] + torch.arange(-BEFORE, AFTER + 1, device=device)
    at = (row[..., None], around.clamp(0, width - 1))
    inside = (around >= 0) & (around < width) & valid[at]
    near = activation[(*at, torch.arange(n_neurons, device=device)[None, :, None])]
    parts = (
        value.gather(0, row),
        batch.document.to(device)[row],
        tokens[at].masked_fill(~inside, _NO_TOKEN),
        near.masked_fill(~inside, 0.0),
    )
    return Highest(*(rearrange(part, "kept neuron ... -> neuron kept ...").cpu() for part in parts))


_Example = tuple[str, int, int, int, float, int, list[str], list[float], int]


def _example_table(
    language: str,
    layer: int,
    columns: Int[Tensor, " neuron"],
    kept: Highest,
    texts_of: Callable[[Sequence[int]], list[str]],
) -> list[_Example]:
    """One tuple per example above zero: the columns of `top_examples`.

    Raises:
        ValueError: an activation that is not finite.
    """
    if (bad := kept.value.isnan() | kept.value.isposinf()).any():
        neuron = int(columns[bad.any(dim=1)][0])
        raise ValueError(
            f"activations of neuron {neuron} in layer {layer} are not finite on {language!r}; check the weights, or "
            "load the model with dtype=torch.float32"
        )
    rows: list[_Example] = []
    parts = (kept.value, kept.document, kept.tokens, kept.activation)
    values, documents, tokens, near = (part.tolist() for part in parts)
    for i, j in (kept.value > 0).nonzero().tolist():
        counted = [(token, x) for token, x in zip(tokens[i][j], near[i][j], strict=True) if token != _NO_TOKEN]
        texts, peak = texts_of([token for token, _ in counted]), BEFORE - tokens[i][j][:BEFORE].count(_NO_TOKEN)
        place = (language, layer, int(columns[i]), j + 1)
        rows.append((*place, values[i][j], documents[i][j], texts, [x for _, x in counted], peak))
    return rows


def text_reader(tokenizer: PreTrainedTokenizerBase) -> Callable[[Sequence[int]], list[str]]:
    """A function from ids to the text of every token, white space before it included; together they read as the whole.

    A character that is split over several tokens stands with the first of them, the others are "".
    """
    single = cache(partial(single_text, tokenizer))

    def texts_of(ids: Sequence[int]) -> list[str]:
        texts, start = [single(token) for token in ids], 0
        while start < len(ids):
            end = start + 1
            while BROKEN in texts[start] and end < len(ids) and BROKEN in texts[end]:
                end += 1
                if not tokenizer.decode(ids[start:end]).endswith(BROKEN):
                    break
            if end > start + 1:
                texts[start:end] = [tokenizer.decode(ids[start:end]), *[""] * (end - start - 1)]
            start = end
        return texts

    return texts_of


def single_text(tokenizer: PreTrainedTokenizerBase, token: int) -> str:
    """The text one token adds after another: decoders drop the space before the first token of a text."""
    once = tokenizer.decode([token])
    return tokenizer.decode([token, token]).removeprefix(once)


@torch.no_grad()
def logit_effects(model: HookedModel, neurons: NeuronSet, *, n: int = 10) -> pd.DataFrame:
    """The tokens whose logits each neuron of a set raises and lowers most, by its direct path to the output.

    The neuron's output row times the unembedding, with the weight (and centring) of the final norm folded in and its
    scale, which depends on the text, left at 1; less the mean over the vocabulary, which changes no probability. What
    later layers make of the neuron is not in it.

    Returns:
        one row per token, columns layer, neuron, direction ("promoted" or "suppressed"), rank (from 1, largest first),
        token (its text), effect (logits for an activation of 1).

    Raises:
        ValueError: neurons of another model or of attention, or n outside 1 .. half of the vocabulary.
    """
    _check_neurons(model, neurons)
    unembedding = weight_of(model, "unembed.W_U").float()
    if not 1 <= n <= unembedding.shape[1] // 2:
        raise ValueError(
            f"n must be a number of tokens from 1 to {unembedding.shape[1] // 2}, half of the vocabulary, got {n}"
        )
    weight, centres = norm_weight(model)
    text_of = cache(partial(vocabulary_text, model.tokenizer))
    rows = []
    for layer, columns in _chosen_columns(neurons).items():
        rows_out = weight_of(model, f"blocks.{layer}.mlp.W_out").to(unembedding.device)
        written = rows_out[columns.to(unembedding.device)].float()
        written = (written - written.mean(dim=1, keepdim=True) if centres else written) * weight.to(written.device)
        for part, index in zip(written.split(_NEURONS_AT_ONCE), columns.split(_NEURONS_AT_ONCE), strict=True):
            effect = part @ unembedding
            effect = effect - effect.mean(dim=1, keepdim=True)
            for direction, largest in (("promoted", True), ("suppressed", False)):
                values, ids = (t.cpu().tolist() for t in effect.topk(n, dim=1, largest=largest))
                rows += [
                    (layer, neuron, direction, rank + 1, text_of(ids[i][rank]), values[i][rank])
                    for i, neuron in enumerate(index.tolist())
                    for rank in range(n)
                ]
    return pd.DataFrame(rows, columns=["layer", "neuron", "direction", "rank", "token", "effect"])


def vocabulary_text(tokenizer: PreTrainedTokenizerBase, token: int) -> str:
    """The text of a token; of one that is no whole character its name in the vocabulary."""
    text = single_text(tokenizer, token)
    if text and BROKEN not in text:
        return text
    return str(tokenizer.convert_ids_to_tokens(token) or f"token {token}")
