"""How often every expert is used in each language, where a dense MLP is looked at as a mixture of experts."""

from __future__ import annotations

import warnings
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import pandas as pd
import torch
from jaxtyping import Bool, Float, Int
from scipy.cluster.vq import kmeans2
from scipy.optimize import linear_sum_assignment
from scipy.spatial.distance import cdist
from torch import Tensor

from ..corpora import Corpus
from ..display import Summarised
from ..models.hooked import HookedModel, is_gated, site_of, weight_of
from ..neurons import rank
from ..rows import TokenRows, rows_bar
from ..tokens import Reading, language_rows, rows_per_batch
from .reading import check_alike, joint_corpus, layers_of, origin, read

SPLITS = ("contiguous", "clustered")
_ROUNDS = 10


@dataclass(frozen=True, eq=False, repr=False)
class Routing(Summarised):
    """How many tokens used every expert, for each language."""

    used: Int[Tensor, "layer expert language"]
    n_tokens: Int[Tensor, " language"]
    experts: Int[Tensor, "layer neuron"]
    """The expert that every neuron belongs to."""
    n_used: int
    """Experts that a token uses in each layer."""
    languages: tuple[str, ...]
    site: str
    model: str
    model_fingerprint: str
    corpus_fingerprint: str
    reading: Reading

    def __add__(self, other: Routing) -> Routing:
        """Both, over the tokens of both."""
        check_alike(self, other, ["n_used"])
        if not torch.equal(self.experts, other.experts):
            raise ValueError("experts must be the same in all Routing that are added; record both with one split")
        sums = {name: getattr(self, name) + getattr(other, name) for name in ("used", "n_tokens")}
        return replace(self, **sums, corpus_fingerprint=joint_corpus(self, other))

    def __radd__(self, other: int) -> Routing:
        """0 + routing, so that `sum(shards)` works."""
        return self if other == 0 else NotImplemented

    def summary(self) -> tuple[str, Mapping[str, Sequence[Any]]]:
        n_layers, n_experts, _ = self.used.shape
        head = f"{self.model}, {n_layers} layers x {n_experts} experts, {self.n_used} used by a token"
        return head, {"language": self.languages, "tokens": self.n_tokens.tolist()}

    def frequency(self) -> Float[Tensor, "layer expert language"]:
        """Share of tokens that use the expert; sums to `n_used` over the experts of a layer."""
        return self.used.double() / self.n_tokens

    def similarity(self) -> pd.DataFrame:
        """Cosine of the frequencies of every two languages, over all experts of all layers."""
        vectors = self.frequency().flatten(0, 1)
        unit = vectors / vectors.norm(dim=0)
        return pd.DataFrame((unit.T @ unit).numpy(), index=list(self.languages), columns=list(self.languages))


def split_experts(
    model: HookedModel, n_experts: int, *, method: str = "contiguous", seed: int = 0
) -> Int[Tensor, "layer neuron"]:
    """The neurons of every layer in experts of equal size: the number of each neuron's expert.

    Args:
        method: "contiguous": neighbours together; "clustered": neurons that read alike together (balanced k-means of
            their columns of W_in, of W_gate where the MLP is gated).
        seed: of the clusters' first centres.

    Raises:
        ValueError: a number of experts from 2 on that does not divide the neurons of a layer, or an unknown method.

    Source: Liu et al. 2024, arXiv:2402.16367.
    """
    n_layers, n_neurons = model.cfg.n_layers, model.cfg.d_mlp
    if method not in SPLITS:
        raise ValueError(f"method must be one of {', '.join(SPLITS)}, got {method!r}")
    if n_experts < 2 or n_neurons % n_experts:
        raise ValueError(f"n_experts must be at least 2 and divide the {n_neurons} neurons of a layer, got {n_experts}")
    if method == "contiguous":
        return (torch.arange(n_neurons) // (n_neurons // n_experts)).repeat(n_layers, 1)
    name = "W_gate" if is_gated(model) else "W_in"
    weights = [weight_of(model, f"blocks.{layer}.mlp.{name}").float().cpu().T.numpy() for layer in range(n_layers)]
    return torch.stack([torch.from_numpy(balanced_clusters(w, n_experts, seed=seed)) for w in weights])


def balanced_clusters(
    rows: Float[np.ndarray, "row column"], n_clusters: int, *, seed: int = 0
) -> Int[np.ndarray, " row"]:
    """k-means with as many rows in every cluster: rows and places in clusters are matched at the least cost.

    Rounds of matching and of new centres begin with the centres of ordinary k-means, and end when no row moves.
    """
    with warnings.catch_warnings():  # An empty cluster keeps its centre, and is filled by the matching.
        warnings.simplefilter("ignore", UserWarning)
        centres, _ = kmeans2(rows, n_clusters, minit="++", rng=np.random.default_rng(seed))
    place = np.repeat(np.arange(n_clusters), len(rows) // n_clusters)
    found = np.full(len(rows), -1)
    for _ in range(_ROUNDS):
        cost = cdist(rows, centres, "sqeuclidean")
        before, found = found, place[linear_sum_assignment(cost[:, place])[1]]
        if (before == found).all():
            break
        centres = np.stack([rows[found == i].mean(axis=0) for i in range(n_clusters)])
    return found


@torch.no_grad()
def expert_frequency(
    model: HookedModel,
    corpus: Corpus,
    experts: Int[Tensor, "layer neuron"],
    *,
    rate: float = 0.25,
    reading: Reading = Reading(),
    progress: bool = True,
) -> Routing:
    """How often the tokens of each language use every expert of every layer.

    A token uses the experts with the largest sum of |activation| over their neurons (site "post"), of equals those of
    lower number.

    Args:
        experts: as `split_experts` gives it.
        rate: share of a layer's experts that a token uses.
        reading: how text becomes rows.

    Raises:
        ValueError: experts of another model or of different size, a rate of less than half an expert, text as in
            `token_rows`, or activations that are not finite.

    Source: Liu et al. 2024, arXiv:2402.16367.

    Example:
        >>> import mi_multilingual as mm
        >>> model = mm.load_model("demo")
        >>> corpus = mm.load_corpus("demo", languages=["en", "fr"], split="identify", max_documents=20)
        >>> reading = mm.Reading(layout="documents")
        >>> mm.expert_frequency(model, corpus, mm.split_experts(model, 16), reading=reading, progress=False)
        Routing(...4 layers x 16 experts, 4 used by a token: en ..., fr ...)
    """
    n_experts = _check_experts(model, experts)
    n_used = rank(rate, n_experts, "rate")
    order = experts.argsort(dim=1, stable=True)
    rows = list(language_rows(model, corpus, reading, progress=progress))
    at_once = rows_per_batch(model, reading.for_model(model).window or 1, "statistics")
    used = torch.zeros(len(order), n_experts, len(rows), dtype=torch.int64)
    with rows_bar(rows, "experts", progress) as bar:
        for k, own in enumerate(rows):
            for batch in own.batches(at_once):
                used[:, :, k] += _experts_used(model, batch, order, n_experts, n_used)
                bar.update(len(batch))
    n_tokens = torch.stack([own.n_counted().sum() for own in rows])
    return Routing(used, n_tokens, experts, n_used, corpus.languages, "post", **origin(model, corpus, reading))


def _check_experts(model: HookedModel, experts: Int[Tensor, "layer neuron"]) -> int:
    """The number of experts of a layer.

    Raises:
        ValueError: they are not of equal size, or not of this model.
    """
    shape = (model.cfg.n_layers, model.cfg.d_mlp)
    n_experts = int(experts.max()) + 1
    sizes = torch.stack([(experts == i).sum(dim=1) for i in range(n_experts)])
    if tuple(experts.shape) != shape or sizes.min() != sizes.max():
        raise ValueError(
            f"experts must give each of {shape[0]} x {shape[1]} neurons the number of its expert, all of one size, got "
            f"shape {tuple(experts.shape)} and sizes {int(sizes.min())} to {int(sizes.max())}; use split_experts(...)"
        )
    return n_experts


def _experts_used(
    model: HookedModel, batch: TokenRows, order: Int[Tensor, "layer neuron"], n_experts: int, n_used: int
) -> Int[Tensor, "layer expert"]:
    """Tokens of the batch that use each expert.

    Args:
        order: the neurons of every layer, those of one expert side by side.
    """
    site, found = site_of(model, "post"), {}

    def take(layer: int, carried: Float[Tensor, "row pos neuron"]) -> None:
        values = site.value(carried)[batch.valid.to(carried.device)].float().abs()
        sums = values[:, order[layer].to(values.device)].unflatten(1, (n_experts, -1)).sum(dim=2)
        if not sums.isfinite().all():
            raise ValueError(
                f"activations must be finite, got others in layer {layer} on {batch.language!r}; check the weights, or "
                "load the model with dtype=torch.float32"
            )
        found[layer] = most_active(sums, n_used).sum(dim=0).cpu()

    read(model, batch.tokens, layers_of(model, site), take)
    return torch.stack([found[layer] for layer in range(len(order))])


def most_active(sums: Float[Tensor, "token expert"], n_used: int) -> Bool[Tensor, "token expert"]:
    """The experts of largest sum, of equals those of lower number."""
    chosen = sums.argsort(dim=1, descending=True, stable=True)[:, :n_used]
    return torch.zeros_like(sums, dtype=torch.bool).scatter(1, chosen, True)
