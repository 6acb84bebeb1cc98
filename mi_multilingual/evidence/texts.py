"""One number per text and neuron: what average precision, bootstraps and permutations over documents need."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from ..corpora import Corpus
from ..display import Summarised, size
from ..models.hooked import HookedModel, Site, as_it_runs, site_of
from ..rows import rows_bar
from ..tokens import DOCUMENTS, Reading, TokenRows, language_rows, rows_per_batch
from .reading import check_alike, check_documents, check_finite, joint_corpus, layers_of, origin, read

_REDUCTIONS = ("mean", "max", "last", "active")


@dataclass(frozen=True, eq=False, repr=False)
class TextActivations(Summarised):
    """One number per text and neuron, reduced over the text's tokens."""

    values: Float[Tensor, "text layer neuron"]
    n_tokens: Int[Tensor, " text"]
    language: Int[Tensor, " text"]
    """Index into `languages`."""
    document: Int[Tensor, " text"]
    """Position of the text among the documents of its language."""
    languages: tuple[str, ...]
    reduction: str
    """"mean", "max" or "last" of the activations over the text's tokens, or "active": tokens above `threshold`."""
    threshold: float
    site: str
    model: str
    model_fingerprint: str
    corpus_fingerprint: str
    reading: Reading
    """How the text became rows of tokens."""

    def __post_init__(self) -> None:
        if self.reduction not in _REDUCTIONS:
            raise ValueError(f"reduction must be one of {', '.join(_REDUCTIONS)}, got {self.reduction!r}")
        if not len(self.values) == len(self.n_tokens) == len(self.language) == len(self.document):
            raise ValueError(f"{len(self.values)} texts, but {len(self.n_tokens)} token counts")
        check_finite(
            self.values,
            lambda text: f"in text {int(self.document[text])} of {self.languages[int(self.language[text])]!r}",
        )

    def __add__(self, other: TextActivations) -> TextActivations:
        """The texts of both, those of `other` after the others."""
        check_alike(self, other, ["reduction"])
        tensors = {name: torch.cat([getattr(self, name), getattr(other, name)]) for name in _TENSORS}
        return replace(self, **tensors, corpus_fingerprint=joint_corpus(self, other))

    def __radd__(self, other: int) -> TextActivations:
        """0 + texts, so that `sum(shards)` works."""
        return self if other == 0 else NotImplemented

    def summary(self) -> tuple[str, Mapping[str, Sequence[Any]]]:
        head = f"{self.model}, {self.reduction} per text, {size(self.values[0])} at {self.site}"
        n_texts = [int(self.of(k).sum()) for k in self.languages]
        return head, {"language": self.languages, "texts": n_texts}

    def of(self, language: str) -> Bool[Tensor, " text"]:
        """Which texts are of this language."""
        if language not in self.languages:
            raise ValueError(f"no text of {language!r}; there are texts of {', '.join(self.languages)}")
        return self.language == self.languages.index(language)

    def pick(self, texts: Int[Tensor, " picked"]) -> TextActivations:
        """Some of the texts, in this order; all languages keep their place."""
        tensors = {name: getattr(self, name)[texts] for name in _TENSORS}
        return replace(self, **tensors)


_TENSORS = ("values", "n_tokens", "language", "document")


@torch.no_grad()
def record_texts(
    model: HookedModel,
    corpus: Corpus,
    *,
    reductions: Sequence[str] = ("mean",),
    reading: Reading = DOCUMENTS,
    site: str = "gate",
    threshold: float = 0.0,
    progress: bool = True,
) -> dict[str, TextActivations]:
    """One number per document and neuron for every reduction asked for, in one pass without logits.

    A document longer than the window goes on in further rows; documents behind `reading.max_tokens` are left out.
    Memory grows by 4 bytes per document, neuron and reduction.

    Args:
        reductions: any of "mean", "max", "last" (the document's last token) and "active" (tokens above `threshold`).
        reading: how text becomes rows, of layout "documents".
        site: where a neuron is read: "gate", "post" or "up" (see `site_of`).

    Raises:
        ValueError: an unknown reduction or site, a document without tokens, or activations that are not finite.
    """
    if unknown := [r for r in reductions if r not in _REDUCTIONS]:
        raise ValueError(f"reductions must be some of {', '.join(_REDUCTIONS)}, got {unknown[0]!r}")
    check_documents(reading)
    reading, reader = reading.for_model(model), as_it_runs(model, site_of(model, site))
    n_texts = sum(map(len, corpus.documents.values()))
    shape = (n_texts, model.cfg.n_layers, model.cfg.d_mlp)
    sums = {r: torch.full(shape, -torch.inf) if r == "max" else torch.zeros(shape) for r in reductions}
    n_tokens, first = torch.zeros(n_texts, dtype=torch.int64), 0
    languages = list(language_rows(model, corpus, reading, progress=progress))
    with rows_bar(languages, "reading texts", progress) as bar:
        for rows in languages:
            for batch in rows.batches(rows_per_batch(model, reading.window or 1, "statistics")):
                _add_batch(model, reader, batch, first, threshold, sums, n_tokens)
                bar.update(len(batch))
            first += len(corpus.documents[rows.language])
    language = torch.repeat_interleave(torch.tensor([len(d) for d in corpus.documents.values()]))
    document = torch.cat([torch.arange(len(d)) for d in corpus.documents.values()])
    cut = reading.max_tokens is not None or reading.equal_tokens
    if (n_tokens == 0).any() and not cut:
        i = int((n_tokens == 0).nonzero()[0])
        raise ValueError(
            f"every document must have tokens, got none in document {int(document[i])} of "
            f"{corpus.languages[int(language[i])]!r}; remove it"
        )
    if "mean" in sums:
        sums["mean"] /= n_tokens.clamp(min=1)[:, None, None]
    read_texts = n_tokens > 0
    protocol: dict[str, Any] = {"threshold": threshold, "site": site, **origin(model, corpus, reading)}
    columns = (n_tokens[read_texts], language[read_texts], document[read_texts])
    return {
        r: TextActivations(values[read_texts], *columns, corpus.languages, r, **protocol) for r, values in sums.items()
    }


def _add_batch(
    model: HookedModel,
    reader: Site,
    batch: TokenRows,
    first: int,
    threshold: float,
    sums: dict[str, Float[Tensor, "text layer neuron"]],
    n_tokens: Int[Tensor, " text"],
) -> None:
    """Add the rows of one batch to the numbers of their documents; `first` is the place of the language's first."""
    text = batch.document + first
    n_tokens.index_add_(0, text, batch.valid.sum(dim=1))
    valid = batch.valid.to(model.cfg.device)[..., None]
    # A document's last row is its shortest, and batches run from long rows to short: what is written last stays.
    final = torch.tensor(list({t: i for i, t in enumerate(text.tolist())}.values()))
    last = batch.n_used()[final] - 1

    def reduce(layer: int, carried: Float[Tensor, "batch pos neuron"]) -> None:
        values = reader.value(carried).float()
        for reduction, into in sums.items():
            if reduction == "mean":
                into[:, layer].index_add_(0, text, values.masked_fill(~valid, 0.0).sum(dim=1).cpu())
            elif reduction == "active":
                into[:, layer].index_add_(0, text, ((values > threshold) & valid).sum(dim=1).float().cpu())
            elif reduction == "max":
                highest = values.masked_fill(~valid, -torch.inf).amax(dim=1).cpu()
                into[:, layer].scatter_reduce_(0, text[:, None].expand_as(highest), highest, "amax")
            else:
                into[text[final], layer] = values[final.to(values.device), last.to(values.device)].cpu()

    read(model, batch.tokens, layers_of(model, reader), reduce)
