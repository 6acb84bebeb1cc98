"""Losses of the next token without its logits: the vocabulary goes by in pieces."""

from __future__ import annotations

from typing import Any

import torch
from jaxtyping import Float, Int
from torch import Tensor
from torch.nn.functional import cross_entropy, linear

from .hooked import HookedModel, unembedded_alone
from .native import Native, native_of, native_pass

_PIECE = {"cpu": 2**19, "cuda": 2**26}
"""Logits held at once. All of them would be new memory, on a processor a quarter of the time."""
_LEAST = 512
"""Fewest words of the vocabulary in a piece."""
_TOKENS = 64
"""Scored at once where all logits are there."""


@torch.no_grad()
def token_losses(model: HookedModel, tokens: Int[Tensor, "batch pos"]) -> Float[Tensor, "batch pos_less_1"]:
    """Loss of every token but a row's first, nats; right padding needs no mask, as in `run_trunk`."""
    shared = native_of(model)
    with native_pass(model) as native:
        if native is not None and shared is not None:
            return native_losses(shared, tokens)
    return _losses_of(model(tokens, return_type="logits"), tokens)


def native_losses(native: Native, tokens: Int[Tensor, "batch pos"]) -> Float[Tensor, "batch pos_less_1"]:
    """The same by transformers, within a native pass."""
    if not native.plain_unembedding:
        return _losses_of(native.hf_model(input_ids=tokens, use_cache=False).logits, tokens)
    before: list[Float[Tensor, "batch pos d_model"]] = []

    def keep(hidden: Float[Tensor, "batch pos d_model"]) -> Float[Tensor, "batch none d_model"]:
        before.append(hidden)
        return hidden[:, :0]

    unembedded_alone(native.hf_model, tokens, keep)
    targets = tokens[:, 1:]
    unembedding: Any = native.hf_model.get_output_embeddings()
    return _in_pieces(before[0][:, :-1].flatten(0, 1), targets.flatten(), unembedding).view(targets.shape)


def _in_pieces(
    hidden: Float[Tensor, "place d_model"], targets: Int[Tensor, " place"], unembedding: torch.nn.Linear
) -> Float[Tensor, " place"]:
    weight, bias, n_places = unembedding.weight, unembedding.bias, len(hidden)
    size = max(_LEAST, _PIECE.get(hidden.device.type, _PIECE["cuda"]) // max(1, n_places))
    sums, chosen = [], hidden.new_zeros(n_places, dtype=torch.float32)
    for start in range(0, len(weight), size):
        logits = linear(hidden, weight[start : start + size], None if bias is None else bias[start : start + size])
        sums.append(logits.float().logsumexp(1))
        own = (targets - start).clamp(0, logits.shape[1] - 1)
        chosen = torch.where(own == targets - start, logits.gather(1, own[:, None])[:, 0].float(), chosen)
    return torch.stack(sums).logsumexp(0) - chosen


def _losses_of(
    logits: Float[Tensor, "batch pos vocab"], tokens: Int[Tensor, "batch pos"]
) -> Float[Tensor, "batch pos_less_1"]:
    """Some tokens at a time: copies of all logits take three times as long, most of it for new memory."""
    places, targets = logits[:, :-1], tokens[:, 1:].to(logits.device)
    pieces = [
        cross_entropy(predicted.float(), target, reduction="none")
        for row, next_tokens in zip(places, targets, strict=True)
        for predicted, target in zip(row.split(_TOKENS), next_tokens.split(_TOKENS), strict=True)
    ]
    return torch.cat(pieces).view(targets.shape)
