"""Counting where neurons are active: `record` beside what others do."""

from __future__ import annotations

from collections.abc import Iterator

import torch
from peers import Batches, Counts, by_hand, peers
from subjects import DEFAULT, Subject
from timing import Case

from mi_multilingual import Reading, record
from mi_multilingual.corpora import Corpus
from mi_multilingual.models.hooked import HookedModel
from mi_multilingual.tokens import TokenRows, token_rows

_WINDOW = {"cpu": 128, "cuda": 512}
_BATCH_TOKENS = {"cpu": 1024, "cuda": 32768}
_DECISIONS = {torch.float32: 1e-4, torch.bfloat16: 1e-3}
"""Share of the (token, neuron) decisions that may differ: rounding moves a few across zero."""
_SHARE = 6.0
"""Of the usual work: what a recording does once, long texts do not notice."""
_MOST_TOKENS = {"cpu": 2**14, "cuda": 2**20}
"""Small models reach fewer operations in a second."""
_TOKENS_ALONE = "text to tokens alone"


def cases(subject: Subject) -> Iterator[Case | str]:
    """One case, and sentences about packages that are left out."""
    window = _WINDOW[subject.device]
    n_tokens = min(subject.n_rows(window, _SHARE) * window, _MOST_TOKENS[subject.device])
    text = subject.text("en", n_tokens)
    reading = Reading(window=window, bos="none", max_tokens=n_tokens)
    size = _BATCH_TOKENS[subject.device] // window
    batches = [batch.tokens.to(subject.device) for batch in _rows(subject, text, reading).batches(size)]
    expected = by_hand(subject, batches)()
    ways = {
        "transformers, trunk": lambda: _forward(subject.hf.base_model, batches),
        "transformers, logits too": lambda: _forward(subject.hf, batches),
        _TOKENS_ALONE: lambda: _rows(subject, text, reading).n_tokens and None,
        "torch hooks by hand": by_hand(subject, batches),
    }
    for name, peer in peers(subject, batches):
        if isinstance(peer, str):
            yield peer
        else:
            ways[name] = peer
    for backend, model in subject.ours.items():
        ways[f"record, {backend}"] = lambda model=model: _recorded(model, text, reading, size, "all")
        # What the others do: counts, and nothing else.
        ways[f"record counts, {backend}"] = lambda model=model: _recorded(model, text, reading, size, "counts")
    yield Case(
        "counts of active tokens, in units of the bare trunk",
        ways,
        n_tokens,
        goals={f"record, {DEFAULT}": 1.05, f"record counts, {DEFAULT}": 1.05},
        expected=expected,
        difference=lambda expected, got: (got.cpu() - expected.cpu()).abs().sum() / (expected.numel() * n_tokens),
        limit=_DECISIONS[subject.dtype],
        flops={way: subject.trunk_flops for way in ways if way != _TOKENS_ALONE},
    )


def _rows(subject: Subject, text: Corpus, reading: Reading) -> TokenRows:
    return token_rows(text, "en", subject.tokenizer, reading, progress=False)


@torch.no_grad()
def _forward(model: torch.nn.Module, batches: Batches) -> None:
    for batch in batches:
        model(input_ids=batch, use_cache=False)


def _recorded(model: HookedModel, text: Corpus, reading: Reading, batch_size: int, statistics: str) -> Counts:
    """By the public call, from the text on."""
    options = {"batch_size": batch_size, "statistics": statistics}
    return record(model, text, reading=reading, progress=False, **options).active[..., 0]
