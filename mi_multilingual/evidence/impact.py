"""What a block's output would lose without each neuron, document by document."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from einops import einsum, rearrange
from jaxtyping import Bool, Float, Int
from torch import Tensor
from tqdm.auto import tqdm

from ..corpora import Corpus
from ..detectors.entropy import at_least_two
from ..models.hooked import HookedModel, fingerprint, is_gated, max_window, model_name, site_of
from ..tokens import TokenRows, token_rows

TOKENS_A_BATCH = 2048

SCORES = ("paper", "released")


@dataclass(frozen=True, eq=False)
class Impact:
    """How reliably each neuron is important over the documents of each language, for one part of the model."""

    worst_rank: Int[Tensor, "layer neuron language"]
    """Largest rank a document gave it: 1 + neurons of its layer with more impact; neurons + 1 if it had none."""
    least: Float[Tensor, "layer neuron language"]
    """Smallest impact on a document."""
    languages: tuple[str, ...]
    part: str
    """"mlp", or "q", "k", "v": columns of the attention weights, head by head."""
    score: str
    n_documents: Int[Tensor, " language"]
    model: str
    model_fingerprint: str


@torch.no_grad()
def record_impact(
    model: HookedModel, corpus: Corpus, *, score: str = "paper", window: int | None = None, progress: bool = True
) -> dict[str, Impact]:
    """Impact of every MLP neuron and of every column of W_Q, W_K and W_V on its block's output, document by document.

    MLP: |activation| times the norm of the output row, as a norm over positions; with score="released" the sum over
    positions of |x W_up| (|x W_in + b| without a gate), as the released code has it. Query and key columns: change of
    the attention pattern when q_d k_d is left out of the scores, with queries and keys as they meet, after rotation
    where positions are rotated. Value columns: norm of the column's contribution to the output. A document longer than
    the window counts as several.

    Returns:
        "mlp", "q", "k" and "v".

    Raises:
        ValueError: fewer than two languages, an unknown score, or impacts that are not finite.

    Source: Zhao et al. 2024, arXiv:2402.18815, section 2.
    """
    at_least_two(corpus.languages)
    if score not in SCORES:
        raise ValueError(f"unknown score {score!r}; choose paper or released")
    window = window or max_window(model)
    worst: dict[str, list[Tensor]] = {part: [] for part in ("mlp", "q", "k", "v")}
    least: dict[str, list[Tensor]] = {part: [] for part in worst}
    n_documents = []
    for language in tqdm(corpus.languages, desc="impact", disable=not progress):
        rows = token_rows(corpus, language, model.tokenizer, window=window, layout="documents")
        found: dict[str, list[tuple[Tensor, Tensor]]] = {part: [] for part in worst}
        for batch in rows.batches(max(1, TOKENS_A_BATCH // rows.tokens.shape[1])):
            for part, impact in batch_impact(model, batch, score).items():
                check_finite(impact, part, language)
                found[part].append((ranks(impact).amax(dim=0), impact.amin(dim=0)))
        for part, pairs in found.items():
            worst[part].append(torch.stack([r for r, _ in pairs]).amax(dim=0))
            least[part].append(torch.stack([i for _, i in pairs]).amin(dim=0))
        n_documents.append(len(rows.tokens))
    origin: dict[str, Any] = {"score": score, "model": model_name(model), "model_fingerprint": fingerprint(model)}
    return {
        part: Impact(
            torch.stack(worst[part], dim=-1),
            torch.stack(least[part], dim=-1),
            corpus.languages,
            part,
            n_documents=torch.tensor(n_documents),
            **origin,
        )
        for part in worst
    }


def ranks(impact: Float[Tensor, "document layer neuron"]) -> Int[Tensor, "document layer neuron"]:
    """1 + number of neurons of the layer with more impact; neurons + 1 for a neuron without impact."""
    ordered = impact.sort(dim=-1).values
    above = impact.shape[-1] - torch.searchsorted(ordered, impact.contiguous(), right=True)
    return (above + 1).masked_fill(impact == 0, impact.shape[-1] + 1)


def check_finite(impact: Float[Tensor, "document layer neuron"], part: str, language: str) -> None:
    bad = (~impact.isfinite()).nonzero()
    if len(bad):
        _, layer, neuron = bad[0].tolist()
        raise ValueError(
            f"the impact of {part} neuron {neuron} in layer {layer} is not finite on {language!r}; check the weights, "
            "or load the model with dtype=torch.float32"
        )


def batch_impact(model: HookedModel, batch: TokenRows, score: str) -> dict[str, Float[Tensor, "document layer neuron"]]:
    """Impacts of one batch of documents: parts "mlp", "q", "k", "v"."""
    valid = batch.valid.to(model.cfg.device)
    seen: dict[tuple[str, int], Tensor] = {}

    def keep(name: str, layer: int) -> Callable[[Tensor, object], None]:
        def hook(value: Tensor, hook: object) -> None:
            seen[name, layer] = value.float()

        return hook

    layers = range(model.cfg.n_layers)
    names = hook_names(model, score)
    model.run_with_hooks(
        batch.tokens.to(model.cfg.device),
        return_type=None,
        fwd_hooks=[(f"blocks.{i}.{hook}", keep(name, i)) for i in layers for name, hook in names.items()],
    )
    found: dict[str, list[Tensor]] = {"mlp": [], "q": [], "k": [], "v": []}
    for i in layers:
        block = model.blocks[i]
        size = block.mlp.W_out.detach().float().norm(dim=1) if score == "paper" else None
        found["mlp"].append(mlp_impact(seen["mlp", i], valid, size))
        scale = attention_scale(model)
        pattern = seen.get(("pattern", i))
        if pattern is None:  # a bridge around fused attention has no hook for it
            pattern = causal_pattern(seen["q", i], seen["k", i], scale)
        q, k = query_key_impact(seen["q", i], seen["k", i], pattern, valid, scale)
        found["q"].append(q)
        found["k"].append(k)
        n_kv = seen["v", i].shape[2]
        found["v"].append(value_impact(seen["z", i], block.attn.W_O.detach().float(), valid, n_kv))
    return {part: torch.stack(rows, dim=1).cpu() for part, rows in found.items()}


def hook_names(model: HookedModel, score: str) -> dict[str, str]:
    """Where each number is read, below "blocks.{layer}."."""
    mlp = "mlp.hook_pre_linear" if is_gated(model) else "mlp.hook_pre"
    if score == "paper":
        mlp = site_of(model, "post").hook.removeprefix("blocks.{layer}.")
    rotated = "rot_" if model.cfg.positional_embedding_type == "rotary" else ""
    attention = {"q": f"hook_{rotated}q", "k": f"hook_{rotated}k", "v": "hook_v", "z": "hook_z"}
    return {"mlp": mlp, "pattern": "attn.hook_pattern"} | {n: f"attn.{hook}" for n, hook in attention.items()}


def attention_scale(model: HookedModel) -> float:
    """What the attention scores are divided by; a bridge that does not know says -1."""
    given = model.cfg.attn_scale
    return float(given) if given is not None and given > 0 else float(model.cfg.d_head**0.5)


def causal_pattern(
    q: Float[Tensor, "document pos head d_head"], k: Float[Tensor, "document pos kv_head d_head"], scale: float
) -> Float[Tensor, "document head pos pos"]:
    """Attention of every position to those before it and itself."""
    k = k.repeat_interleave(q.shape[2] // k.shape[2], dim=2)
    scores = einsum(q, k, "doc i head d, doc j head d -> doc head i j") / scale
    later = torch.ones(scores.shape[-2:], dtype=torch.bool, device=scores.device).triu(1)
    return scores.masked_fill(later, -torch.inf).softmax(dim=-1)


def mlp_impact(
    activation: Float[Tensor, "document pos neuron"],
    valid: Bool[Tensor, "document pos"],
    size: Float[Tensor, " neuron"] | None,
) -> Float[Tensor, "document neuron"]:
    """Norm over positions times `size`, or with no size the sum of absolute values."""
    activation = activation.masked_fill(~valid[..., None], 0.0)
    return activation.abs().sum(dim=1) if size is None else activation.norm(dim=1) * size


def query_key_impact(
    q: Float[Tensor, "document pos head d_head"],
    k: Float[Tensor, "document pos kv_head d_head"],
    pattern: Float[Tensor, "document head pos pos"],
    valid: Bool[Tensor, "document pos"],
    scale: float,
) -> tuple[Float[Tensor, "document q_column"], Float[Tensor, "document k_column"]]:
    """Norm of the change of the pattern, over heads that use the column and positions, without each column.

    softmax(s - d) is proportional to softmax(s) exp(-d), so the scores themselves are not needed.
    """
    n_heads, n_kv = q.shape[2], k.shape[2]
    k_of_head = k.repeat_interleave(n_heads // n_kv, dim=2)
    by_head = torch.empty(len(q), n_heads, q.shape[3], device=q.device)
    for d in range(q.shape[3]):
        left_out = einsum(q[..., d], k_of_head[..., d], "doc i head, doc j head -> doc head i j") / scale
        # Only differences matter to a softmax: without the largest exponent nothing overflows.
        left_out = left_out - left_out.masked_fill(pattern == 0, torch.inf).amin(dim=-1, keepdim=True)
        weight = torch.where(pattern > 0, pattern * (-left_out).exp(), 0.0)
        change = weight / weight.sum(dim=-1, keepdim=True) - pattern
        change = change.masked_fill(~valid[:, None, :, None], 0.0)
        by_head[..., d] = change.square().sum(dim=(2, 3))
    by_kv_head = rearrange(by_head, "doc (kv group) d -> doc kv group d", kv=n_kv).sum(dim=2)
    return by_head.sqrt().flatten(1), by_kv_head.sqrt().flatten(1)


def value_impact(
    z: Float[Tensor, "document pos head d_head"],
    w_o: Float[Tensor, "head d_head d_model"],
    valid: Bool[Tensor, "document pos"],
    n_kv: int,
) -> Float[Tensor, "document column"]:
    """Norm over positions of what each column of W_V adds to the block's output, through all heads that read it."""
    z = rearrange(z.masked_fill(~valid[..., None, None], 0.0), "doc pos (kv group) d -> doc kv d group pos", kv=n_kv)
    w_o = rearrange(w_o, "(kv group) d model -> kv d group model", kv=n_kv)
    within = einsum(w_o, w_o, "kv d a model, kv d b model -> kv d a b")
    across = einsum(z, z, "doc kv d a pos, doc kv d b pos -> doc kv d a b")
    return (within * across).sum(dim=(-2, -1)).clamp(min=0).sqrt().flatten(1)
