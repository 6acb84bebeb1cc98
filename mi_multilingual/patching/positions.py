"""Which tokens of a text a forward pass holds: a chat template, the prompt in it, or generated text."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from dataclasses import dataclass
from typing import Any

import torch
from jaxtyping import Bool
from torch import Tensor
from torch.nn.functional import pad

_OwnText = Bool[Tensor, "batch pos"] | None
_OWN_TEXT: ContextVar[_OwnText] = ContextVar("own_text", default=None)


@contextmanager
def own_text(is_own: _OwnText) -> Iterator[None]:
    """Within the block, prompts are read of which these tokens are the users' own text, the others a chat template.

    Args:
        is_own: None for prompts without a template, or with one whose tokens cannot be told.
    """
    token = _OWN_TEXT.set(is_own)
    try:
        yield
    finally:
        _OWN_TEXT.reset(token)


@dataclass
class Place:
    """Where in its text the forward pass stands that is running."""

    start: int = 0
    """Tokens before it, whose keys and values come from a cache."""
    n_prompt: int = 0
    embedded: Tensor | None = None
    """What went into the first block."""
    is_own: Bool[Tensor, "batch pos"] | None = None
    """Of a prompt with a chat template: which tokens are not the template's."""

    def enter(self, module: torch.nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        """Called before the first block, whose arguments hold the cache: no other place tells a step's position."""
        given = (*args, *kwargs.values())
        embedded = next(x for x in given if isinstance(x, Tensor) and x.ndim == 3).detach()
        self.start = _cached_length(given)
        if self.start == 0 and not _one_token_more(self.embedded, embedded):
            self.n_prompt, self.is_own = embedded.shape[1], _OWN_TEXT.get()
        self.embedded = embedded

    def among(self, positions: str | tuple[int, ...], n_tokens: int) -> Bool[Tensor, "#batch pos"]:
        """Which of the tokens of this pass are meant.

        Raises:
            ValueError: "template", and no template is known.
        """
        place = torch.arange(self.start, self.start + n_tokens)[None]
        if isinstance(positions, tuple):
            return torch.isin(place, torch.tensor(positions))
        if positions == "generated":
            return place >= self.n_prompt
        if self.is_own is None:
            if positions == "template":
                raise ValueError(
                    "positions must be all, prompt or generated where no chat template is known, got 'template'; "
                    "generate with chat=True"
                )
            return place < self.n_prompt
        is_own = pad(self.is_own, (0, self.start + n_tokens))[:, self.start : self.start + n_tokens].to(place.device)
        return is_own if positions == "prompt" else ~is_own & (place < self.n_prompt)


def _cached_length(arguments: Iterable[Any]) -> int:
    """Tokens in the cache among the arguments of a block, of transformers or TransformerLens; 0 without one."""
    for x in arguments:
        if hasattr(x, "get_seq_length"):
            return int(x.get_seq_length())
        if hasattr(x, "past_keys"):
            return int(x.past_keys.shape[1])
    return 0


def _one_token_more(before: Tensor | None, now: Tensor) -> bool:
    """Whether `now` (batch, pos, width) is `before` and one more token: a step of generation without a cache."""
    if before is None or now.shape != (before.shape[0], before.shape[1] + 1, before.shape[2]):
        return False
    return torch.allclose(now[:, :-1], before, rtol=1e-4, atol=1e-6)
