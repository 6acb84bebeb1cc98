"""How likely a model finds continuations of a prompt, many questions in one forward pass."""

from collections import defaultdict
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import torch
from jaxtyping import Float
from torch import Tensor
from tqdm.auto import tqdm

from ..models.hooked import HookedModel, logits_at, max_window

TOKENS_A_BATCH = 2048


@dataclass(frozen=True)
class Continuation:
    """BOS where the tokenizer has one, prompt and choice in tokens; those from place `first` on are scored."""

    ids: tuple[int, ...]
    first: int

    @property
    def n_scored(self) -> int:
        return len(self.ids) - self.first


def continuations(model: HookedModel, prompt: str, choices: Sequence[str]) -> list[Continuation]:
    """The choices after the prompt, in tokens.

    Prompt and choice are tokenised together; scored are the tokens from the first that the prompt alone does not
    have, so that a choice may join the prompt's last token.

    Raises:
        ValueError: a prompt that with a choice is longer than the model's context, a choice that adds no token, or one
            with no token before it.
    """
    tokenizer = model.tokenizer
    start = [tokenizer.bos_token_id] if tokenizer.bos_token_id is not None else []
    texts = [prompt, *(prompt + choice for choice in choices)]
    alone, *whole = ((*start, *ids) for ids in tokenizer(texts, add_special_tokens=False)["input_ids"])
    found = [Continuation(ids, common_prefix(alone, ids)) for ids in whole]
    for choice, continuation in zip(choices, found, strict=True):
        if len(continuation.ids) > max_window(model):
            raise ValueError(
                f"prompt {prompt[:40]!r} with choice {choice[:40]!r} has {len(continuation.ids)} tokens, "
                f"the model takes {max_window(model)}; shorten it"
            )
        if continuation.n_scored == 0:
            raise ValueError(
                f"choice {choice!r} adds no token to prompt {prompt[:40]!r}, so it has no likelihood; give some text"
            )
        if continuation.first == 0:
            raise ValueError(
                f"choice {choice[:40]!r} after prompt {prompt[:40]!r} begins with the first token of all, whose "
                "likelihood no model gives; give a longer prompt"
            )
    return found


def log_likelihoods(
    model: HookedModel, found: Sequence[Continuation], *, progress: bool = False
) -> Float[Tensor, " continuation"]:
    """Sum of the log-likelihoods of each continuation's scored tokens, nats, float64.

    Continuations of similar length run together, padded at the right, which attention that only looks back does not
    see. What begins another text, or is the same but for the last token, is read off that text's forward pass.
    """
    rows, row_of = forward_rows([c.ids[:-1] for c in found])
    total = torch.zeros(len(found), dtype=torch.float64)
    on_row: dict[int, list[int]] = defaultdict(list)
    for i, row in enumerate(row_of):
        on_row[row].append(i)
    with tqdm(total=len(found), desc="scoring", unit="choice", disable=not progress) as bar:
        for batch in row_batches(rows):
            index = [i for row in batch for i in on_row[row]]
            places = [at for at, row in enumerate(batch) for _ in on_row[row]]
            total[index] = batch_scores(model, [rows[row] for row in batch], [found[i] for i in index], places)
            bar.update(len(index))
    return total


def forward_rows(inputs: Sequence[tuple[int, ...]]) -> tuple[list[tuple[int, ...]], list[int]]:
    """The inputs that are no beginning of another, each once, and for every input the one that it begins."""
    carriers: list[tuple[int, ...]] = []
    number: dict[tuple[int, ...], int] = {}
    # In alphabetical order a beginning stands right before a text that goes on from it.
    for ids in sorted(set(inputs), reverse=True):
        if not carriers or carriers[-1][: len(ids)] != ids:
            carriers.append(ids)
        number[ids] = len(carriers) - 1
    return carriers, [number[ids] for ids in inputs]


def row_batches(rows: Sequence[tuple[int, ...]]) -> Iterator[list[int]]:
    """Numbers of rows of similar length, the longest first, at most TOKENS_A_BATCH tokens together."""
    order = sorted(range(len(rows)), key=lambda i: -len(rows[i]))
    while order:
        size = max(1, TOKENS_A_BATCH // len(rows[order[0]]))
        yield order[:size]
        order = order[size:]


@torch.no_grad()
def batch_scores(
    model: HookedModel, rows: Sequence[tuple[int, ...]], found: Sequence[Continuation], row_of: Sequence[int]
) -> Float[Tensor, " continuation"]:
    """One forward pass over the rows; `row_of` says on which row each continuation lies."""
    longest = len(rows[0])
    tokens = torch.tensor([[*ids, *[ids[-1]] * (longest - len(ids))] for ids in rows])
    sizes = torch.tensor([c.n_scored for c in found])
    owner = torch.arange(len(found)).repeat_interleave(sizes)
    row = torch.tensor(row_of)[owner]
    pos = torch.cat([torch.arange(c.first - 1, len(c.ids) - 1) for c in found])
    target = torch.tensor([i for c in found for i in c.ids[c.first :]])
    # Continuations share places: each place's logits are made once.
    places, which = torch.unique(row * longest + pos, return_inverse=True)
    logits = logits_at(model, tokens.to(model.cfg.device), places // longest, places % longest)
    scores = logits.float().log_softmax(-1)[which.to(logits.device), target.to(logits.device)]
    return torch.zeros(len(found), dtype=torch.float64).index_add(0, owner, scores.cpu().double())


def common_prefix(left: Sequence[int], right: Sequence[int]) -> int:
    """Number of leading ids that both have."""
    return next((i for i, (a, b) in enumerate(zip(left, right, strict=False)) if a != b), min(len(left), len(right)))
