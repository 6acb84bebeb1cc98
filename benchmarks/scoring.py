"""Likelihoods of answers whose prompt is shared: `log_likelihoods` beside a row for every answer."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence

import torch
from jaxtyping import Float
from subjects import DEFAULT, Subject
from timing import Case
from torch import Tensor

from mi_multilingual import load_facts
from mi_multilingual.evaluation.likelihood import Continuation, continuations, log_likelihoods
from mi_multilingual.tokens import pad_right

_SAME = {torch.float32: 1e-3, torch.bfloat16: 1.0}
"""Nats. A sum of ten log-likelihoods in bfloat16 moves by tenths when rows are padded otherwise."""
_TOKENS = {"cpu": 2048, "cuda": 32768}
_QUESTIONS = {"cpu": 4, "cuda": 64}
_PROMPT, _CHOICE, _CHOICES = 80, 6, 4


def cases(subject: Subject) -> Iterator[Case]:
    items = [item for item in load_facts(wordings=(0,)) if item.language == "en"][: 3 * _QUESTIONS[subject.device]]
    model = subject.ours[DEFAULT]
    facts = [c for item in items for c in continuations(model, item.prompt, item.choices)]
    yield _case(subject, f"{len(items)} facts, {len(facts)} answers, in units of a row for each", facts)
    title = (
        f"{_QUESTIONS[subject.device]} prompts of {_PROMPT} tokens, {_CHOICES} answers each, in units of a row for each"
    )
    yield _case(subject, title, list(_long(subject)))


def _long(subject: Subject) -> Iterator[Continuation]:
    """Prompts and answers that are pieces of a text."""
    n, each = _QUESTIONS[subject.device], _PROMPT + _CHOICES * _CHOICE
    text = " ".join(subject.text("en", 2 * n * each).documents["en"])
    ids = subject.tokenizer(text, add_special_tokens=False)["input_ids"]
    for question in range(n):
        own = ids[question * each : (question + 1) * each]
        for choice in range(_CHOICES):
            start = _PROMPT + choice * _CHOICE
            yield Continuation((*own[:_PROMPT], *own[start : start + _CHOICE]), _PROMPT)


def _case(subject: Subject, title: str, found: Sequence[Continuation]) -> Case:
    def by_row() -> Float[Tensor, " continuation"]:
        return _row_by_row(lambda tokens: subject.hf(input_ids=tokens, use_cache=False).logits, found, subject.device)

    ways: dict[str, Callable[[], Tensor]] = {"a row for each": by_row}
    for backend, model in subject.ours.items():
        ways[f"log_likelihoods, {backend}"] = lambda m=model: log_likelihoods(m, found)
    return Case(
        title,
        ways,
        sum(len(c.ids) - 1 for c in found),
        goals={f"log_likelihoods, {DEFAULT}": 0.6},
        expected=by_row(),
        difference=lambda expected, got: (got - expected).abs().max(),
        limit=_SAME[subject.dtype],
    )


@torch.no_grad()
def _row_by_row(
    logits_of: Callable[[Tensor], Tensor], found: Sequence[Continuation], device: str
) -> Float[Tensor, " continuation"]:
    """Sum of the log-likelihoods of each continuation's scored tokens, from the logits of whole rows."""
    order = sorted(range(len(found)), key=lambda i: len(found[i].ids))
    total = torch.zeros(len(found), dtype=torch.float64)
    size = _TOKENS[device] // max(len(c.ids) for c in found)
    for start in range(0, len(order), size):
        batch = order[start : start + size]
        tokens, _ = pad_right([found[i].ids[:-1] for i in batch])
        scores = logits_of(tokens.to(device)).float().log_softmax(-1)
        for row, i in zip(scores, batch, strict=True):
            own = found[i]
            targets = torch.tensor(own.ids[own.first :], device=device)
            places = torch.arange(own.first - 1, len(own.ids) - 1, device=device)
            total[i] = row[places, targets].double().sum().cpu()
    return total
