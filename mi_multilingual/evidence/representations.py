"""One vector per sentence, language and layer: the residual stream, pooled over the sentence's tokens."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch
from jaxtyping import Float, Int
from torch import Tensor

from ..corpora import Corpus
from ..display import Summarised
from ..models.hooked import HookedModel
from ..rows import rows_bar
from ..tokens import DOCUMENTS, Reading, TokenRows, language_rows, rows_per_batch
from .reading import check_alike, check_documents, joint_corpus, origin, read

POOLINGS = ("mean", "weighted", "last")


@dataclass(frozen=True, eq=False, repr=False)
class Representations(Summarised):
    """The same sentences in several languages as vectors of every layer."""

    values: Float[Tensor, "layer language sentence d_model"]
    """Layer 0 is what comes into the first block, layer l the residual stream after block number l, counted from 1."""
    languages: tuple[str, ...]
    pooling: str
    """"mean" over the sentence's own tokens, "weighted" by position with special tokens, or "last" of its tokens."""
    model: str
    model_fingerprint: str
    corpus_fingerprint: str
    reading: Reading
    """How the text became rows of tokens."""

    def __post_init__(self) -> None:
        if self.pooling not in POOLINGS:
            raise ValueError(f"pooling must be one of {', '.join(POOLINGS)}, got {self.pooling!r}")
        if self.values.ndim != 4 or self.values.shape[1] != len(self.languages):
            raise ValueError(
                f"values must be (layer, language, sentence, d_model) of {len(self.languages)} languages, got shape "
                f"{tuple(self.values.shape)}"
            )
        bad = (~self.values.isfinite()).nonzero()
        if len(bad):
            layer, k, sentence, _ = bad[0].tolist()
            raise ValueError(
                f"representations must be finite, got another number in layer {layer} for sentence {sentence} in "
                f"{self.languages[k]!r}; check the weights, or load the model with dtype=torch.float32"
            )

    def __add__(self, other: Representations) -> Representations:
        """The sentences of both, those of `other` after the others."""
        check_alike(self, other, ["pooling"])
        values = torch.cat([self.values, other.values], dim=2)
        return replace(self, values=values, corpus_fingerprint=joint_corpus(self, other))

    def __radd__(self, other: int) -> Representations:
        """0 + representations, so that `sum(shards)` works."""
        return self if other == 0 else NotImplemented

    def summary(self) -> tuple[str, Mapping[str, Sequence[Any]]]:
        n_layers, _, n_sentences, width = self.values.shape
        head = f"{self.model}, {self.pooling} over tokens, {n_layers} layers x {width} numbers"
        return head, {"language": self.languages, "sentences": [n_sentences] * len(self.languages)}


@torch.no_grad()
def record_representations(
    model: HookedModel,
    corpus: Corpus,
    *,
    pooling: str = "mean",
    reading: Reading = DOCUMENTS,
    progress: bool = True,
) -> Representations:
    """The residual stream of parallel sentences at every layer, pooled over tokens, in one pass without logits.

    Memory grows by 4 bytes per sentence, language, layer and number of the residual stream.

    Args:
        corpus: document number i says the same in every language.
        pooling: "mean" over the sentence's own tokens; "weighted", each token by its position from 1, special tokens
            in front included, as MEXA published it; "last", the sentence's last token.
        reading: how text becomes rows, of layout "documents"; a sentence longer than a row goes on in further rows.

    Raises:
        ValueError: an unknown pooling, languages with different numbers of documents, a reading that cuts text, a
            sentence without tokens, or numbers that are not finite.

    Source: Tang et al. 2024, arXiv:2402.16438 (sentence similarity); Kargaran et al. 2024, arXiv:2410.05873 (MEXA).

    Example:
        >>> import mi_multilingual as mm
        >>> model = mm.load_model("demo")
        >>> corpus = mm.load_corpus("demo", languages=["en", "fr"], split="evaluate", max_documents=4)
        >>> mm.record_representations(model, corpus, progress=False)
        Representations(demo, mean over tokens, 5 layers x 192 numbers: en 4, fr 4)
    """
    if pooling not in POOLINGS:
        raise ValueError(f"pooling must be one of {', '.join(POOLINGS)}, got {pooling!r}")
    check_parallel(corpus)
    check_documents(reading)
    if reading.max_tokens is not None or reading.equal_tokens:
        raise ValueError("reading must not cut sentences; leave out max_tokens and equal_tokens")
    reading = reading.for_model(model)
    languages = list(language_rows(model, corpus, reading, progress=progress))
    n_sentences = len(corpus.documents[corpus.languages[0]])
    for rows in languages:
        _check_sentences(rows, n_sentences)
    values = torch.zeros(model.cfg.n_layers + 1, len(languages), n_sentences, model.cfg.d_model)
    with rows_bar(languages, "reading sentences", progress) as bar:
        for k, rows in enumerate(languages):
            for part in rows.n_used().argsort(descending=True).split(rows_per_batch(model, rows.width, "statistics")):
                batch = rows.pick(part)
                _add_batch(model, batch, pooling_weights(rows, part, pooling), values[:, k])
                bar.update(len(batch))
    return Representations(values, corpus.languages, pooling, **origin(model, corpus, reading))


def check_parallel(corpus: Corpus) -> None:
    """Raise unless every language has as many documents."""
    n_documents = {k: len(texts) for k, texts in corpus.documents.items()}
    if len(set(n_documents.values())) > 1:
        listed = ", ".join(f"{n} in {k!r}" for k, n in n_documents.items())
        raise ValueError(f"corpus must have the same documents in every language, got {listed}; give translations")


def _check_sentences(rows: TokenRows, n_sentences: int) -> None:
    """Raise unless every sentence has tokens."""
    n_rows = rows.document.bincount(minlength=n_sentences)
    if (n_rows == 0).any():
        i = int((n_rows == 0).nonzero()[0])
        raise ValueError(
            f"every sentence must have tokens, got none in sentence {i} of {rows.language!r}; leave it out everywhere"
        )


def _add_batch(
    model: HookedModel,
    batch: TokenRows,
    weights: Float[Tensor, "row pos"],
    values: Float[Tensor, "layer sentence d_model"],
) -> None:
    """Add the weighted tokens of one batch to the vectors of their sentences."""
    weights = weights.to(model.cfg.device)

    def pool(layer: int, carried: Float[Tensor, "row pos d_model"]) -> None:
        pooled = torch.einsum("rp,rpd->rd", weights, carried.float())
        values[layer].index_add_(0, batch.document, pooled.cpu())

    read(model, batch.tokens, _residual_places(model), pool)


def _residual_places(model: HookedModel) -> dict[int, str]:
    """What comes into the first block, and what leaves every block."""
    after = {layer + 1: f"blocks.{layer}.hook_resid_post" for layer in range(model.cfg.n_layers)}
    return {0: "blocks.0.hook_resid_pre", **after}


def pooling_weights(rows: TokenRows, picked: Int[Tensor, " row"], pooling: str) -> Float[Tensor, "row pos"]:
    """The weight of every token of these rows in its sentence's vector; those of a sentence add up to 1."""
    document, n_used = rows.document, rows.n_used()
    length, n_counted = (
        n.new_zeros(int(document.max()) + 1).index_add_(0, document, n) for n in (n_used, rows.n_counted())
    )
    # Positions of the sentence before the row: all before it, less those before its sentence.
    before = n_used.cumsum(0) - n_used - (length.cumsum(0) - length)[document]
    here, of = torch.arange(1, int(n_used[picked].max()) + 1), document[picked]
    positions, inside = before[picked, None] + here, here <= n_used[picked, None]
    if pooling == "mean":
        n_special = n_used - rows.n_counted()
        return (inside & (here > n_special[picked, None])) / n_counted[of, None]
    if pooling == "last":
        return (inside & (positions == length[of, None])).float()
    return inside * positions / (length * (length + 1) / 2)[of, None]
