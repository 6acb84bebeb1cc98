"""What a block's output would lose without each neuron, document by document."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch
from einops import einsum, rearrange
from jaxtyping import Bool, Float, Int
from torch import Tensor

from ..corpora import Corpus, at_least_two
from ..display import Summarised
from ..models.hooked import HookedModel, is_gated, model_name, site_of, weight_of
from ..rows import rows_bar
from ..tokens import DOCUMENTS, Reading, TokenRows, language_rows, rows_per_batch
from .reading import check_alike, check_documents, check_finite, joint_corpus, origin, read

IMPACT_PARTS = ("mlp", "q", "k", "v")
SCORES = ("paper", "released")


@dataclass(frozen=True, eq=False, repr=False)
class Impact(Summarised):
    """How reliably each neuron is important over the documents of each language.

    A monoid: `a + b` is the impact over the documents of both.
    """

    worst_rank: Mapping[str, Int[Tensor, "layer neuron language"]]
    """Part of the model ("mlp", or "q", "k", "v": columns of the attention weights, head by head) -> the largest rank
    a document gave each neuron: 1 + neurons of its layer with more impact; neurons + 1 if it had none."""
    least: Mapping[str, Float[Tensor, "layer neuron language"]]
    """Part -> the smallest impact on a document."""
    languages: tuple[str, ...]
    score: str
    n_documents: Int[Tensor, " language"]
    """Documents, a part of one in each row where they are longer than the window."""
    model: str
    model_fingerprint: str
    corpus_fingerprint: str
    reading: Reading

    def __add__(self, other: Impact) -> Impact:
        check_alike(self, other, ["score"])
        return replace(
            self,
            worst_rank={p: torch.maximum(x, other.worst_rank[p]) for p, x in self.worst_rank.items()},
            least={p: torch.minimum(x, other.least[p]) for p, x in self.least.items()},
            n_documents=self.n_documents + other.n_documents,
            corpus_fingerprint=joint_corpus(self, other),
        )

    def __radd__(self, other: int) -> Impact:
        """0 + impact, so that `sum(shards)` works."""
        return self if other == 0 else NotImplemented

    def summary(self) -> tuple[str, Mapping[str, Sequence[Any]]]:
        head = f"{self.model}, parts {', '.join(self.least)}, score {self.score!r}"
        return head, {"language": self.languages, "documents": self.n_documents.tolist()}


@torch.no_grad()
def record_impact(
    model: HookedModel,
    corpus: Corpus,
    *,
    reading: Reading = DOCUMENTS,
    score: str = "paper",
    progress: bool = True,
) -> Impact:
    """Impact of every MLP neuron and of every column of W_Q, W_K and W_V on its block's output, document by document.

    MLP: |activation| times the norm of the output row, as a norm over positions; with score="released" the sum over
    positions of |x W_up| (|x W_in + b| without a gate), as the released code has it. Query and key columns: change of
    the attention pattern when q_d k_d is left out of the scores, with queries and keys as they meet, after rotation
    where positions are rotated. Value columns: norm of the column's contribution to the output. A document longer than
    the window counts as several.

    Args:
        reading: how text becomes rows, of layout "documents".

    Raises:
        ValueError: fewer than two languages, an unknown score, a TransformerBridge that does not give rotated queries
            and keys, or impacts that are not finite.

    Source: Zhao et al. 2024, arXiv:2402.18815, section 2.
    """
    at_least_two(corpus.languages)
    check_documents(reading)
    if score not in SCORES:
        raise ValueError(f"score must be one of {', '.join(SCORES)}, got {score!r}")
    worst: dict[str, list[Tensor]] = {part: [] for part in IMPACT_PARTS}
    least: dict[str, list[Tensor]] = {part: [] for part in IMPACT_PARTS}
    n_documents = []
    languages = list(language_rows(model, corpus, reading, progress=progress))
    with rows_bar(languages, "impact", progress) as bar:
        for rows in languages:
            for part, (rank, lowest) in _language_impact(model, rows, score, bar.update).items():
                worst[part].append(rank)
                least[part].append(lowest)
            n_documents.append(len(rows))
    return Impact(
        {part: torch.stack(columns, dim=-1) for part, columns in worst.items()},
        {part: torch.stack(columns, dim=-1) for part, columns in least.items()},
        corpus.languages,
        score,
        torch.tensor(n_documents),
        **origin(model, corpus, reading),
    )


def _language_impact(
    model: HookedModel, rows: TokenRows, score: str, done: Callable[[int], object]
) -> dict[str, tuple[Int[Tensor, "layer neuron"], Float[Tensor, "layer neuron"]]]:
    """The worst rank and the least impact over the documents of one language; `done` is told the rows of each batch."""
    found: dict[str, tuple[Tensor, Tensor]] = {}
    for batch in rows.batches(rows_per_batch(model, rows.width, "patterns")):
        for part, impact in _batch_impact(model, batch, score).items():
            check_finite(impact, lambda _, part=part: f"({part}, impact) on {rows.language!r}")
            rank, lowest = ranks(impact).amax(dim=0), impact.amin(dim=0)
            if part in found:
                rank, lowest = torch.maximum(rank, found[part][0]), torch.minimum(lowest, found[part][1])
            found[part] = (rank, lowest)
        done(len(batch))
    return found


def ranks(impact: Float[Tensor, "document layer neuron"]) -> Int[Tensor, "document layer neuron"]:
    """1 + number of neurons of the layer with more impact; neurons + 1 for a neuron without impact."""
    ordered = impact.sort(dim=-1).values
    above = impact.shape[-1] - torch.searchsorted(ordered, impact.contiguous(), right=True)
    return (above + 1).masked_fill(impact == 0, impact.shape[-1] + 1)


def _batch_impact(
    model: HookedModel, batch: TokenRows, score: str
) -> dict[str, Float[Tensor, "document layer neuron"]]:
    """Impacts of one batch of documents: parts "mlp", "q", "k", "v"."""
    valid = batch.valid.to(model.cfg.device)
    seen: dict[tuple[str, int], Tensor] = {}
    layers = range(model.cfg.n_layers)
    names = _hook_names(model, score)
    places = {(name, i): f"blocks.{i}.{hook}" for i in layers for name, hook in names.items()}
    read(model, batch.tokens, places, lambda place, value: seen.__setitem__(place, value.float()))
    if ("q", 0) not in seen:
        raise ValueError(
            "queries and keys must be there after rotation, got none from the TransformerBridge of "
            f"{model_name(model)!r}, which makes them with one matrix; load the model with backend='hooked'"
        )
    found: dict[str, list[Tensor]] = {"mlp": [], "q": [], "k": [], "v": []}
    for i in layers:
        size = weight_of(model, f"blocks.{i}.mlp.W_out").float().norm(dim=1) if score == "paper" else None
        found["mlp"].append(_mlp_impact(seen["mlp", i], valid, size))
        scale = _attention_scale(model)
        pattern = seen.get(("pattern", i))
        if pattern is None:  # a bridge around fused attention has no hook for it
            pattern = _causal_pattern(seen["q", i], seen["k", i], scale)
        q, k = _query_key_impact(seen["q", i], seen["k", i], pattern, valid, scale)
        found["q"].append(q)
        found["k"].append(k)
        n_kv = seen["v", i].shape[2]
        found["v"].append(_value_impact(seen["z", i], weight_of(model, f"blocks.{i}.attn.W_O").float(), valid, n_kv))
    return {part: torch.stack(rows, dim=1).cpu() for part, rows in found.items()}


def _hook_names(model: HookedModel, score: str) -> dict[str, str]:
    """Where each number is read, below "blocks.{layer}."."""
    mlp = "mlp.hook_pre_linear" if is_gated(model) else "mlp.hook_pre"
    if score == "paper":
        mlp = site_of(model, "post").hook.removeprefix("blocks.{layer}.")
    rotated = "rot_" if model.cfg.positional_embedding_type == "rotary" else ""
    attention = {"q": f"hook_{rotated}q", "k": f"hook_{rotated}k", "v": "hook_v", "z": "hook_z"}
    return {"mlp": mlp, "pattern": "attn.hook_pattern"} | {n: f"attn.{hook}" for n, hook in attention.items()}


def _attention_scale(model: HookedModel) -> float:
    """What the attention scores are divided by; a bridge that does not know says -1."""
    given = model.cfg.attn_scale
    return float(given) if given is not None and given > 0 else float(model.cfg.d_head**0.5)


def _causal_pattern(
    q: Float[Tensor, "document pos head d_head"], k: Float[Tensor, "document pos kv_head d_head"], scale: float
) -> Float[Tensor, "document head pos pos"]:
    """Attention of every position to those before it and itself."""
    k = k.repeat_interleave(q.shape[2] // k.shape[2], dim=2)
    scores = einsum(q, k, "doc i head d, doc j head d -> doc head i j") / scale
    later = torch.ones(scores.shape[-2:], dtype=torch.bool, device=scores.device).triu(1)
    return scores.masked_fill(later, -torch.inf).softmax(dim=-1)


def _mlp_impact(
    activation: Float[Tensor, "document pos neuron"],
    valid: Bool[Tensor, "document pos"],
    size: Float[Tensor, " neuron"] | None,
) -> Float[Tensor, "document neuron"]:
    """Norm over positions times `size`, or with no size the sum of absolute values."""
    activation = activation.masked_fill(~valid[..., None], 0.0)
    return activation.abs().sum(dim=1) if size is None else activation.norm(dim=1) * size


def _query_key_impact(
    q: Float[Tensor, "document pos head d_head"],
    k: Float[Tensor, "document pos kv_head d_head"],
    pattern: Float[Tensor, "document head pos pos"],
    valid: Bool[Tensor, "document pos"],
    scale: float,
) -> tuple[Float[Tensor, "document q_column"], Float[Tensor, "document k_column"]]:
    """Norm of the change of the pattern, over heads that use the column and positions, without each column.

    A softmax of the pattern's logarithm is the pattern, so the scores themselves are not needed.
    """
    n_heads, n_kv = q.shape[2], k.shape[2]
    q = rearrange(q / -scale, "doc i head d -> d doc head i 1")
    k = rearrange(k.repeat_interleave(n_heads // n_kv, dim=2), "doc j head d -> d doc head 1 j")
    scores, counted = pattern.log(), valid[:, None].to(pattern)
    changed, change = torch.empty_like(scores), torch.empty_like(scores)
    by_column = []
    for q_d, k_d in zip(q, k, strict=True):
        torch.addcmul(scores, q_d, k_d, out=changed)
        torch.softmax(changed, dim=-1, out=change).sub_(pattern)
        by_column.append((change.square_().sum(dim=-1) * counted).sum(dim=-1))
    by_head = torch.stack(by_column, dim=-1)
    by_kv_head = rearrange(by_head, "doc (kv group) d -> doc kv group d", kv=n_kv).sum(dim=2)
    return by_head.sqrt().flatten(1), by_kv_head.sqrt().flatten(1)


def _value_impact(
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
