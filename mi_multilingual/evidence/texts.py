"""One number a text and neuron: what average precision, bootstraps and permutations over documents need."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor
from tqdm.auto import tqdm

from ..corpora import Corpus
from ..models.hooked import HookedModel, Site, fingerprint, max_window, model_name, run_trunk, site_of
from ..storage import load_record, save_record
from ..tokens import TokenRows, token_rows

SCHEMA = "TextActivations/1"
TOKENS_A_BATCH = 4096
REDUCTIONS = ("mean", "max", "last", "active")


@dataclass(frozen=True, eq=False)
class TextActivations:
    """One number a text and neuron, reduced over the text's tokens."""

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

    def __post_init__(self) -> None:
        if self.reduction not in REDUCTIONS:
            raise ValueError(f"unknown reduction {self.reduction!r}; choose one of {', '.join(REDUCTIONS)}")
        if not len(self.values) == len(self.n_tokens) == len(self.language) == len(self.document):
            raise ValueError(f"{len(self.values)} texts, but {len(self.n_tokens)} token counts")
        bad = (~self.values.isfinite()).nonzero()
        if len(bad):
            text, layer, neuron = bad[0].tolist()
            raise ValueError(
                f"the activation of neuron {neuron} in layer {layer} is {self.values[text, layer, neuron].item()} in "
                f"text {int(self.document[text])} of {self.languages[int(self.language[text])]!r}; check the weights, "
                "or load the model with dtype=torch.float32"
            )

    def of(self, language: str) -> Bool[Tensor, " text"]:
        """Which texts are of this language."""
        if language not in self.languages:
            raise ValueError(f"no text of {language!r}; there are texts of {', '.join(self.languages)}")
        return self.language == self.languages.index(language)

    def pick(self, texts: Int[Tensor, " picked"]) -> TextActivations:
        """Some of the texts, in this order; all languages keep their place."""
        tensors = {name: getattr(self, name)[texts] for name in TENSORS}
        return replace(self, **tensors)

    def save(self, path: Path | str) -> None:
        """Write one safetensors file with a JSON header."""
        save_record(path, SCHEMA, {n: getattr(self, n) for n in TENSORS}, {n: getattr(self, n) for n in HEADER})

    @classmethod
    def load(cls, path: Path | str) -> TextActivations:
        """Read what `save` wrote."""
        tensors, header = load_record(path, SCHEMA)
        return cls(**tensors, **{**header, "languages": tuple(header["languages"])})


TENSORS = ("values", "n_tokens", "language", "document")
HEADER = ("languages", "reduction", "threshold", "site", "model", "model_fingerprint", "corpus_fingerprint")


@torch.no_grad()
def record_texts(
    model: HookedModel,
    corpus: Corpus,
    *,
    reductions: Sequence[str] = ("mean",),
    site: str = "gate",
    threshold: float = 0.0,
    window: int | None = None,
    progress: bool = True,
) -> dict[str, TextActivations]:
    """One number a document and neuron for every reduction asked for, in one pass without logits.

    A document longer than the window goes on in further rows. An added BOS does not count. Memory grows by 4 bytes a
    document, neuron and reduction.

    Args:
        reductions: any of "mean", "max", "last" (the document's last token) and "active" (tokens above `threshold`).
        site: where a neuron is read (see `mi_multilingual.models.site`).

    Raises:
        ValueError: an unknown reduction or site, a document without tokens, or activations that are not finite.
    """
    if unknown := [r for r in reductions if r not in REDUCTIONS]:
        raise ValueError(f"unknown reduction {unknown[0]!r}; choose any of {', '.join(REDUCTIONS)}")
    window, reader = window or max_window(model), site_of(model, site)
    n_texts = sum(map(len, corpus.documents.values()))
    shape = (n_texts, model.cfg.n_layers, model.cfg.d_mlp)
    sums = {r: torch.full(shape, -torch.inf) if r == "max" else torch.zeros(shape) for r in reductions}
    n_tokens, first = torch.zeros(n_texts, dtype=torch.int64), 0
    with tqdm(total=n_texts, desc="reading texts", unit="text", disable=not progress) as bar:
        for language, documents in corpus.documents.items():
            rows = token_rows(corpus, language, model.tokenizer, window=window, layout="documents")
            for batch in rows.batches(max(1, TOKENS_A_BATCH // window)):
                add_batch(model, reader, batch, first, threshold, sums, n_tokens)
            first += len(documents)
            bar.update(len(documents))
    language = torch.repeat_interleave(torch.tensor([len(d) for d in corpus.documents.values()]))
    document = torch.cat([torch.arange(len(d)) for d in corpus.documents.values()])
    if (n_tokens == 0).any():
        i = int((n_tokens == 0).nonzero()[0])
        raise ValueError(
            f"document {int(document[i])} of {corpus.languages[int(language[i])]!r} has no tokens; remove it"
        )
    if "mean" in sums:
        sums["mean"] /= n_tokens[:, None, None]
    origin: dict[str, Any] = {
        "threshold": threshold,
        "site": site,
        "model": model_name(model),
        "model_fingerprint": fingerprint(model),
        "corpus_fingerprint": corpus.fingerprint,
    }
    return {
        r: TextActivations(values, n_tokens, language, document, corpus.languages, r, **origin)
        for r, values in sums.items()
    }


def add_batch(
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

    def reduce(layer: int) -> Callable[[Tensor, object], None]:
        def hook(carried: Float[Tensor, "batch pos neuron"], hook: object) -> None:
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

        return hook

    run_trunk(
        model,
        batch.tokens.to(model.cfg.device),
        hooks=[(reader.hook_name(layer), reduce(layer)) for layer in range(model.cfg.n_layers)],
    )
