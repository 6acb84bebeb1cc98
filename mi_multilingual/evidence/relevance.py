"""How much a language's likelihood hangs on each neuron: gradient times activation."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch
from jaxtyping import Float, Int
from torch import Tensor

from ..corpora import Corpus, at_least_two
from ..display import Summarised, size
from ..models.hooked import HookedModel, site_of
from ..rows import rows_bar
from ..tokens import Reading, TokenRows, language_rows, rows_per_batch
from .reading import check_alike, check_finite, joint_corpus, layers_of, origin, read_with_graph


@dataclass(frozen=True, eq=False, repr=False)
class Relevance(Summarised):
    """Activation times gradient of the log-likelihood, summed over the scored tokens of each language.

    A monoid: `a + b` is the relevance over both texts.
    """

    total: Float[Tensor, "layer neuron language"]
    """Sum over tokens, nats, float64."""
    n_tokens: Int[Tensor, " language"]
    """Tokens scored: those with a token of the same row before them."""
    languages: tuple[str, ...]
    model: str
    model_fingerprint: str
    corpus_fingerprint: str
    reading: Reading

    def __post_init__(self) -> None:
        check_finite(self.total.movedim(-1, 0), lambda k: f"(gradient times activation) on {self.languages[k[0]]!r}")

    def __add__(self, other: Relevance) -> Relevance:
        check_alike(self, other, ())
        return replace(
            self,
            total=self.total + other.total,
            n_tokens=self.n_tokens + other.n_tokens,
            corpus_fingerprint=joint_corpus(self, other),
        )

    def __radd__(self, other: int) -> Relevance:
        """0 + relevance, so that `sum(shards)` works."""
        return self if other == 0 else NotImplemented

    def summary(self) -> tuple[str, Mapping[str, Sequence[Any]]]:
        head = f"{self.model}, {size(self.total)}"
        return head, {"language": self.languages, "tokens": self.n_tokens.tolist()}

    def mean(self) -> Float[Tensor, "layer neuron language"]:
        """Relevance in nats per token: what the log-likelihood loses, to first order, without the neuron."""
        return self.total / self.n_tokens.clamp(min=1)


def record_relevance(
    model: HookedModel, corpus: Corpus, *, reading: Reading = Reading(), progress: bool = True
) -> Relevance:
    """Activation times gradient of the log-likelihood, for every neuron and language.

    To first order this is what the language's log-likelihood loses when the neuron is switched off: importance, where
    an activation only shows preference. Activations are those that the output weights read (site "post"), and every
    token counts that `perplexity` scores.

    Args:
        reading: how text becomes rows.

    Raises:
        ValueError: fewer than two languages, text shorter than a window, or gradients that are not finite.

    Source: the idea of CRANE (2026), arXiv:2601.04664; gradient times activation as in Shrikumar et al. 2017.
    """
    at_least_two(corpus.languages)
    columns, counts = [], []
    languages = list(language_rows(model, corpus, reading, progress=progress))
    with rows_bar(languages, "relevance", progress) as bar:
        for rows in languages:
            total = torch.zeros(model.cfg.n_layers, model.cfg.d_mlp, dtype=torch.float64)
            n_tokens = 0
            for batch in rows.batches(rows_per_batch(model, rows.width, "gradients")):
                total += _batch_relevance(model, batch)
                n_tokens += int(batch.valid[:, 1:].sum())
                bar.update(len(batch))
            columns.append(total)
            counts.append(n_tokens)
    return Relevance(
        torch.stack(columns, dim=-1), torch.tensor(counts), corpus.languages, **origin(model, corpus, reading)
    )


def _batch_relevance(model: HookedModel, batch: TokenRows) -> Float[Tensor, "layer neuron"]:
    """Sum over the batch of activation times gradient of the log-likelihood of its tokens, float64."""
    device = model.cfg.device
    tokens, scored = batch.tokens.to(device), batch.valid[:, 1:].to(device)
    with torch.enable_grad():
        logits, kept = read_with_graph(model, tokens, layers_of(model, site_of(model, "post")))
        likelihood = logits[:, :-1].float().log_softmax(-1).gather(-1, tokens[:, 1:, None])[..., 0]
        total = likelihood.masked_fill(~scored, 0.0).sum()
        layers = range(model.cfg.n_layers)
        gradients = torch.autograd.grad(total, [kept[layer] for layer in layers])
    rows = [(kept[i].detach() * g).double().sum(dim=(0, 1)).cpu() for i, g in zip(layers, gradients, strict=True)]
    return torch.stack(rows)
