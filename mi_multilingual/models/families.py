"""Architectures: whether a conversion computes what transformers does, and what a bridge does not know of some."""

import torch
from jaxtyping import Float, Int
from torch import Tensor
from transformers import PreTrainedModel

from .hooked import HookedModel

_N_PROBED = 64
"""Tokens that are compared, where the context is as long: enough for positions and attention to matter."""
_TOLERANCE, _COARSE_TOLERANCE = 1e-3, 0.2
"""Largest spread of the differences of logits, as a share of the logits' own, in float32 and in fewer bits. Conversions
that are right stay below 1e-5 and, with 30 layers in bfloat16, 0.05."""


class DisagreementError(ValueError):
    """A converted model that computes something else than the one it was made from."""


@torch.no_grad()
def probe_logits(hf_model: PreTrainedModel, device: str) -> Float[Tensor, "1 pos vocab"]:
    """Logits of the transformers model on a few tokens; call it before a bridge is put around the model.

    Args:
        device: where tokens go in.
    """
    config = hf_model.config.get_text_config()
    n_tokens = min(_N_PROBED, getattr(config, "max_position_embeddings", _N_PROBED))
    return hf_model(input_ids=_probe(n_tokens, config.vocab_size).to(device), use_cache=False).logits


@torch.no_grad()
def check_agreement(model: HookedModel, expected: Float[Tensor, "1 pos vocab"]) -> None:
    """Raise unless a converted model gives the logits of `probe_logits`, where these are numbers.

    Raises:
        DisagreementError: the logits are others.
    """
    if not expected.isfinite().all():
        return  # recording says which neuron is to blame
    tokens = _probe(*expected.shape[1:]).to(model.cfg.device)
    logits = model(tokens, return_type="logits").to(expected.device)
    difference = (logits.float() - expected.float()).std() / expected.float().std()
    # Written so that NaN is a disagreement too.
    if not difference <= (_TOLERANCE if expected.dtype == torch.float32 else _COARSE_TOLERANCE):
        raise DisagreementError(
            f"its logits must be those of transformers, got some that differ by {difference:.0%} of their spread"
        )


def _probe(n_tokens: int, vocab_size: int) -> Int[Tensor, "1 pos"]:
    """Tokens from all over the vocabulary but its ends, where special ones are."""
    return (torch.arange(1, n_tokens + 1) * 7919 % (vocab_size // 2) + vocab_size // 4)[None]


def activation_name(hf_model: PreTrainedModel) -> str | None:
    """The activation function where a bridge takes another for it; None where it knows."""
    if hf_model.config.model_type == "bloom":
        return "gelu_fast"  # not in the config at all
    return getattr(hf_model.config, "activation", None) if hf_model.config.model_type == "falcon" else None


def let_copies_be_copies(hf_model: PreTrainedModel) -> None:
    """Undo what a bridge of Falcon does to linear maps: functions that know the module, and a copy's still know it."""
    for module in hf_model.modules():
        if type(module).__name__ == "FalconLinear":
            vars(module).pop("forward", None)
