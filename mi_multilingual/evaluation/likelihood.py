"""How likely a model finds continuations of a prompt, many questions in one forward pass."""

from collections import defaultdict
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from typing import NamedTuple

import torch
from jaxtyping import Float, Int
from torch import Tensor
from tqdm.auto import tqdm

from ..models.hooked import HookedModel, logits_at, max_window
from ..tokens import common_prefix, pad_right, prefix_ids, prompt_ids, rows_per_batch, start_ids


@dataclass(frozen=True)
class Continuation:
    """Special tokens, prompt and continuation as ids; those from place `first` on are scored."""

    ids: tuple[int, ...]
    first: int

    @property
    def n_scored(self) -> int:
        return len(self.ids) - self.first


def continuations(
    model: HookedModel, prompt: str, choices: Sequence[str], *, bos: str = "tokenizer"
) -> list[Continuation]:
    """The choices after the prompt, in tokens.

    Prompt and choice are tokenised together. Scored are the tokens from the first that the prompt alone does not
    have, so that a choice may join the prompt's last token.

    Args:
        bos: special tokens before the prompt (see `Reading`).

    Raises:
        ValueError: a prompt that with a choice is longer than the model's context, a choice that adds no token, or one
            with no token before it.
    """
    found = _joined(model, prompt, choices, prefix_ids(model.tokenizer, bos))
    for choice, continuation in zip(choices, found, strict=True):
        if continuation.n_scored == 0:
            raise ValueError(
                f"choice {choice!r} adds no token to prompt {prompt[:40]!r}, so it has no likelihood; give some text"
            )
        if continuation.first == 0:
            raise ValueError(
                f"choice {choice[:40]!r} after prompt {prompt[:40]!r} begins with the first token of all, whose "
                "likelihood no model gives; give a longer prompt, or bos='row'"
            )
    return found


def _joined(model: HookedModel, prompt: str, texts: Sequence[str], prefix: Sequence[int]) -> list[Continuation]:
    """Each text after the prompt, both tokenised together, with the prefix in front."""
    both = [prompt, *(prompt + text for text in texts)]
    alone, *whole = ((*prefix, *ids) for ids in prompt_ids(model.tokenizer, both, "none"))
    for text, ids in zip(texts, whole, strict=True):
        if len(ids) > max_window(model):
            raise ValueError(
                f"a prompt with its continuation must fit the model: {prompt[:40]!r} with {text[:40]!r} has {len(ids)} "
                f"tokens, the model takes {max_window(model)}; shorten it"
            )
    return [Continuation(ids, common_prefix(alone, ids)) for ids in whole]


def log_likelihoods(
    model: HookedModel, found: Sequence[Continuation], *, progress: bool = False
) -> Float[Tensor, " continuation"]:
    """Sum of the log-likelihoods of each continuation's scored tokens, nats, float64.

    Continuations of similar length run together, padded at the right, which attention that only looks back does not
    see. A continuation that begins another one, but for its last token, is read off the other's forward pass.
    """
    rows, row_of = forward_rows([c.ids[:-1] for c in found])
    total = torch.zeros(len(found), dtype=torch.float64)
    on_row: dict[int, list[int]] = defaultdict(list)
    for i, row in enumerate(row_of):
        on_row[row].append(i)
    with tqdm(total=len(found), desc="scoring", unit="choice", disable=not progress) as bar:
        starts = [min(found[i].first for i in on_row[row]) for row in range(len(rows))]
        for batch in _row_batches(model, rows, starts):
            index = [i for row in batch for i in on_row[row]]
            places = [at for at, row in enumerate(batch) for _ in on_row[row]]
            scored = [found[i] for i in index]
            scores = _token_scores(model, [rows[row] for row in batch], scored, places)
            owner = torch.tensor(index).repeat_interleave(torch.tensor([c.n_scored for c in scored]))
            total.index_add_(0, owner, scores)
            bar.update(len(index))
    return total


def token_log_likelihoods(
    model: HookedModel, prompt: str, text: str, *, bos: str = "tokenizer"
) -> Float[Tensor, " token"]:
    """Log-likelihood of each token that the text adds to the prompt, nats, float64.

    An empty prompt stands for the beginning of a document, as in `generate`. Without any token before it, the first
    token has no likelihood and is left out.

    Args:
        bos: special tokens before the prompt (see `Reading`).

    Raises:
        ValueError: a prompt that with the text is longer than the model's context.
    """
    prefix = prefix_ids(model.tokenizer, bos) or (() if prompt else start_ids(model.tokenizer))
    [found] = _joined(model, prompt, [text], prefix)
    found = replace(found, first=max(1, found.first))
    if found.n_scored < 1:
        return torch.zeros(0, dtype=torch.float64)
    return _token_scores(model, [found.ids], [found], [0])


class Forced(NamedTuple):
    """What a model says at the places of a continuation, when it reads that continuation."""

    likeliest: tuple[int, ...]
    """The likeliest token at each place."""
    log_likelihood: float
    """Of the continuation, nats."""


@torch.no_grad()
def teacher_forced(model: HookedModel, found: Sequence[Continuation]) -> list[Forced]:
    """The likeliest token wherever a continuation has one, and the continuation's log-likelihood."""
    rows = [c.ids[:-1] for c in found]
    said: dict[int, Forced] = {}
    for batch in _row_batches(model, rows, [c.first for c in found]):
        scored = [found[i] for i in batch]
        places, which, target = _log_probabilities(model, [rows[i] for i in batch], scored, range(len(batch)))
        best, score = places.argmax(-1)[which].cpu(), places[which, target].double().cpu()
        sizes = [c.n_scored for c in scored]
        for i, tokens, values in zip(batch, best.split(sizes), score.split(sizes), strict=True):
            said[i] = Forced(tuple(tokens.tolist()), float(values.sum()))
    return [said[i] for i in range(len(found))]


def forward_rows(inputs: Sequence[tuple[int, ...]]) -> tuple[list[tuple[int, ...]], list[int]]:
    """As few rows as possible such that every input is the beginning of one, and the number of each input's row."""
    carriers: list[tuple[int, ...]] = []
    number: dict[tuple[int, ...], int] = {}
    # In alphabetical order a beginning stands right before a text that goes on from it.
    for ids in sorted(set(inputs), reverse=True):
        if not carriers or carriers[-1][: len(ids)] != ids:
            carriers.append(ids)
        number[ids] = len(carriers) - 1
    return carriers, [number[ids] for ids in inputs]


def _row_batches(model: HookedModel, rows: Sequence[tuple[int, ...]], starts: Sequence[int]) -> Iterator[list[int]]:
    """Numbers of rows that run together: those of one prompt, and prompts of similar length, the longest first.

    Args:
        starts: the length of each row's prompt.
    """
    batch, longest = [], 0
    for i in sorted(range(len(rows)), key=lambda i: (-starts[i], rows[i])):
        longest = max(longest, len(rows[i]))
        if len(batch) >= rows_per_batch(model, longest, "choices"):
            yield batch
            batch, longest = [], len(rows[i])
        batch.append(i)
    if batch:
        yield batch


@torch.no_grad()
def _token_scores(
    model: HookedModel, rows: Sequence[tuple[int, ...]], found: Sequence[Continuation], row_of: Sequence[int]
) -> Float[Tensor, " token"]:
    """Log-likelihood of each scored token, one continuation after another, from one forward pass over the rows.

    Args:
        row_of: the row on which each continuation lies.
    """
    places, which, target = _log_probabilities(model, rows, found, row_of)
    return places[which, target].cpu().double()


def _log_probabilities(
    model: HookedModel, rows: Sequence[tuple[int, ...]], found: Sequence[Continuation], row_of: Sequence[int]
) -> tuple[Float[Tensor, "place vocab"], Int[Tensor, " token"], Int[Tensor, " token"]]:
    """Log-probabilities at all places, and of each scored token its place and its id. Arguments as `_token_scores`."""
    tokens, _ = pad_right(rows)
    longest = tokens.shape[1]
    row = torch.tensor(row_of).repeat_interleave(torch.tensor([c.n_scored for c in found]))
    pos = torch.cat([torch.arange(c.first - 1, len(c.ids) - 1) for c in found])
    target = torch.tensor([i for c in found for i in c.ids[c.first :]])
    # Continuations share places: each place's logits are made once.
    places, which = torch.unique(row * longest + pos, return_inverse=True)
    logits = logits_at(model, tokens.to(model.cfg.device), places // longest, places % longest)
    return logits.float().log_softmax(-1), which.to(logits.device), target.to(logits.device)
