"""Relevance, impact and sharing over the passes that they need."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import ExitStack
from typing import Any

import torch
from jaxtyping import Float
from subjects import DEFAULT, Subject
from timing import Case
from torch import Tensor

from mi_multilingual import Reading, record_impact, record_relevance, sharing_categories
from mi_multilingual.corpora import Corpus
from mi_multilingual.evaluation.perplexity import corpus_rows
from mi_multilingual.models.hooked import HookedModel
from mi_multilingual.tokens import TokenRows, rows_per_batch

_LANGUAGES = ("en", "fr")
_WINDOW = 64
_SHARE = 0.3
"""Of the usual work, for each language."""
_SAME = {torch.float32: 1e-3, torch.bfloat16: 0.1}
"""Largest difference of a relevance, over the largest relevance."""


def cases(subject: Subject) -> Iterator[Case]:
    n_rows = subject.n_rows(_WINDOW, _SHARE)
    reading = Reading(window=_WINDOW, bos="none", max_tokens=n_rows * _WINDOW)
    texts = {k: subject.text(k, n_rows * _WINDOW).documents[k] for k in _LANGUAGES}
    yield _relevance(subject, Corpus(texts, "demo, repeated"), reading)
    reading = Reading(window=_WINDOW, layout="documents")
    parallel = Corpus({k: v[:n_rows] for k, v in texts.items()}, "part of the demo")
    yield _others(subject, parallel, reading)


def _relevance(subject: Subject, corpus: Corpus, reading: Reading) -> Case:
    rows = corpus_rows(subject.ours[DEFAULT], corpus, reading)
    size = rows_per_batch(subject.ours[DEFAULT], _WINDOW, "gradients")
    ways = {"forward and backward by hand": lambda: _gradients_by_hand(subject, rows, size)}
    for backend, model in subject.ours.items():
        ways[f"record_relevance, {backend}"] = lambda m=model: (
            record_relevance(m, corpus, reading=reading, progress=False).total
        )
    return Case(
        "relevance, in units of forward and backward",
        ways,
        sum(r.tokens.numel() for r in rows.values()),
        expected=_gradients_by_hand(subject, rows, size),
        difference=lambda expected, got: (got - expected).abs().max() / expected.abs().max(),
        limit=_SAME[subject.dtype],
    )


def _gradients_by_hand(
    subject: Subject, rows: dict[str, TokenRows], size: int
) -> Float[Tensor, "layer neuron language"]:
    """Activation times gradient of the log-likelihood, summed over tokens, by hooks on the transformers model."""
    columns = []
    for own in rows.values():
        columns.append(sum(_batch_by_hand(subject, batch.tokens.to(subject.device)) for batch in own.batches(size)))
    return torch.stack(columns, dim=-1)


def _batch_by_hand(subject: Subject, tokens: Tensor) -> Float[Tensor, "layer neuron"]:
    kept: list[Tensor] = []

    def keep(module: Any, args: tuple[Tensor]) -> None:
        kept.append(args[0] if args[0].requires_grad else args[0].requires_grad_())

    with torch.enable_grad(), ExitStack() as stack:
        for module in subject.modules("down"):
            stack.callback(module.register_forward_pre_hook(keep).remove)
        scores = subject.hf(input_ids=tokens, use_cache=False).logits[:, :-1].float().log_softmax(-1)
        gradients = torch.autograd.grad(scores.gather(-1, tokens[:, 1:, None]).sum(), kept)
    products = zip(kept, gradients, strict=True)
    return torch.stack([(a.detach() * g).double().flatten(0, -2).sum(0).cpu() for a, g in products])


def _others(subject: Subject, parallel: Corpus, reading: Reading) -> Case:
    """What needs only a pass without logits."""
    rows = corpus_rows(subject.ours[DEFAULT], parallel, reading)
    ways: dict[str, Callable[[], None]] = {"trunk": lambda: _trunk(subject, rows)}
    for backend, model in subject.ours.items():
        ways |= _our_passes(model, backend, parallel, reading)
    n_tokens = sum(int(r.n_used().sum()) for r in rows.values())
    return Case("impact and sharing, in units of the bare trunk", ways, n_tokens)


def _our_passes(model: HookedModel, backend: str, parallel: Corpus, reading: Reading) -> dict[str, Callable[[], None]]:
    def impact() -> None:
        record_impact(model, parallel, reading=reading, progress=False)

    def sharing() -> None:
        sharing_categories(model, parallel, reading=reading, progress=False)

    return {f"record_impact, {backend}": impact, f"sharing_categories, {backend}": sharing}


@torch.no_grad()
def _trunk(subject: Subject, rows: dict[str, TokenRows]) -> None:
    for own in rows.values():
        for batch in own.batches(rows_per_batch(subject.ours[DEFAULT], _WINDOW, "patterns")):
            subject.hf.base_model(input_ids=batch.tokens.to(subject.device), use_cache=False)
