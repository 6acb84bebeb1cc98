"""Sets of neurons, one for each language or type of neuron, and scores to choose them by."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from pickle import UnpicklingError
from typing import Any

import pandas as pd
import torch
from jaxtyping import Bool, Float
from torch import Tensor

from .display import Summarised, size

PARTS = ("mlp", "q", "k", "v")
_PUBLISHED_LANGUAGES = ("en", "zh", "fr", "es", "vi", "id", "ja")


@dataclass(frozen=True, eq=False, repr=False)
class NeuronSet(Summarised):
    """Which neurons of one part of a model belong to which group; groups may overlap, and a neuron may be in none.

    Example:
        >>> import mi_multilingual as mm
        >>> neurons = mm.NeuronSet.of({"fr": [(0, 3), (1, 5)], "ja": [(1, 5)]}, shape=(2, 8))
        >>> "fr" in neurons, list(neurons), neurons["ja"].sizes().to_dict()
        (True, ['fr', 'ja'], {'ja': 1})
    """

    masks: Bool[Tensor, "group layer neuron"]
    groups: tuple[str, ...]
    """One name per mask: a language, or a type such as "all-shared"."""
    method: str
    parameters: Mapping[str, Any] = field(default_factory=dict)
    model: str = ""
    model_fingerprint: str = ""
    """Empty when the model is not known, as for imported sets; else checked wherever the set meets a model."""
    part: str = "mlp"
    """What the neurons are: hidden units of the MLP, or columns of W_Q, W_K or W_V ("q", "k", "v", head by head)."""

    def __post_init__(self) -> None:
        if self.part not in PARTS:
            raise ValueError(f"part must be one of {', '.join(PARTS)}, got {self.part!r}")
        if self.masks.ndim != 3 or len(self.groups) != len(self.masks):
            raise ValueError(
                f"masks must be one (layer, neuron) mask for each of the {len(self.groups)} groups {self.groups}, got "
                f"shape {tuple(self.masks.shape)}"
            )
        if len(set(self.groups)) != len(self.groups):
            raise ValueError(f"groups must have different names, got {self.groups}")

    @classmethod
    def of(
        cls, neurons: Mapping[str, Sequence[tuple[int, int]]], *, shape: tuple[int, int], part: str = "mlp"
    ) -> NeuronSet:
        """A set from lists of (layer, neuron).

        Args:
            shape: layers, and neurons per layer.

        Raises:
            ValueError: a neuron outside that shape.
        """
        masks = torch.zeros(len(neurons), *shape, dtype=torch.bool)
        for mask, (group, places) in zip(masks, neurons.items(), strict=True):
            for layer, neuron in places:
                if not (0 <= layer < shape[0] and 0 <= neuron < shape[1]):
                    raise ValueError(f"neurons of {group!r} must lie within {shape}, got {(layer, neuron)}")
                mask[layer, neuron] = True
        return cls(masks, tuple(neurons), "", part=part)

    def summary(self) -> tuple[str, Mapping[str, Sequence[Any]]]:
        part = "" if self.part == "mlp" else f" of part {self.part}"
        head = f"{self.method or 'unnamed method'}, {self.model or 'unknown model'}, {size(self.masks[0])}{part}"
        return head, {"group": self.groups, "neurons": self.masks.sum(dim=(1, 2)).tolist()}

    def __iter__(self) -> Iterator[str]:
        """The names of the groups."""
        return iter(self.groups)

    def __contains__(self, group: object) -> bool:
        return group in self.groups

    def __len__(self) -> int:
        """Number of groups."""
        return len(self.groups)

    def __getitem__(self, group: str) -> NeuronSet:
        return self.take([group])

    def take(self, groups: Sequence[str]) -> NeuronSet:
        """The same set with these groups only, in this order."""
        missing = [g for g in groups if g not in self.groups]
        if missing:
            raise ValueError(f"no neurons for {missing[0]!r}; this set has {', '.join(self.groups)}")
        rows = [self.groups.index(g) for g in groups]
        return replace(self, masks=self.masks[rows], groups=tuple(groups))

    def in_layers(self, layers: Sequence[int]) -> NeuronSet:
        """The neurons of these layers only: a region, such as the first layers with `range(8)`.

        Raises:
            ValueError: no layer, or one that the set does not have.
        """
        n_layers = self.masks.shape[1]
        outside = [layer for layer in layers if not 0 <= layer < n_layers]
        if outside or not len(layers):
            raise ValueError(f"layers must be some of 0..{n_layers - 1}, got {list(layers)}")
        inside = torch.zeros(n_layers, 1, dtype=torch.bool)
        inside[list(layers)] = True
        return replace(
            self,
            masks=self.masks & inside.to(self.masks.device),
            parameters={**self.parameters, "layers": list(layers)},
        )

    def __or__(self, other: NeuronSet) -> NeuronSet:
        return self._combine(other, "|", self.masks | other.masks if self._fits(other) else None)

    def __and__(self, other: NeuronSet) -> NeuronSet:
        return self._combine(other, "&", self.masks & other.masks if self._fits(other) else None)

    def __sub__(self, other: NeuronSet) -> NeuronSet:
        return self._combine(other, "-", self.masks & ~other.masks if self._fits(other) else None)

    def _fits(self, other: NeuronSet) -> bool:
        return self.groups == other.groups and self.masks.shape == other.masks.shape and self.part == other.part

    def _combine(self, other: NeuronSet, sign: str, masks: Tensor | None) -> NeuronSet:
        if masks is None:
            raise ValueError(
                f"cannot combine sets over {self.groups} {tuple(self.masks.shape)} {self.part} and {other.groups} "
                f"{tuple(other.masks.shape)} {other.part}; take(...) the same groups of the same model first"
            )
        if self.model_fingerprint and other.model_fingerprint and self.model_fingerprint != other.model_fingerprint:
            raise ValueError(f"cannot combine neurons of {self.model!r} and {other.model!r}: they are different models")
        return replace(self, masks=masks, method=f"{self.method} {sign} {other.method}", parameters={})

    def union(self) -> Bool[Tensor, "layer neuron"]:
        """Neurons in at least one group."""
        return self.masks.any(dim=0)

    def sizes(self) -> pd.Series:
        """Number of neurons per group."""
        return pd.Series(
            self.masks.sum(dim=(1, 2)).tolist(), index=pd.Index(self.groups, name="group"), name="n_neurons"
        )

    def counts(self) -> pd.DataFrame:
        """Number of neurons a group and layer: columns group, layer, n_neurons."""
        counts = self.masks.sum(dim=2).tolist()
        rows = [(g, layer, n) for g, row in zip(self.groups, counts, strict=True) for layer, n in enumerate(row)]
        return pd.DataFrame(rows, columns=["group", "layer", "n_neurons"])

    def jaccard(self) -> pd.DataFrame:
        """Overlap of every pair of groups, |A and B| / |A or B|; two empty groups overlap by 0."""
        flat = self.masks.flatten(1).double()
        both = flat @ flat.T
        either = flat.sum(1)[:, None] + flat.sum(1)[None] - both
        table = torch.where(either > 0, both / either.clamp(min=1), 0.0)
        return pd.DataFrame(table.numpy(), index=list(self.groups), columns=list(self.groups))

    def agreement(self, other: NeuronSet) -> pd.Series:
        """Jaccard overlap of each group with the same group of another set; two empty groups agree by 0."""
        both, either = (self & other).sizes(), (self | other).sizes()
        return (both / either.clip(lower=1)).rename("jaccard")

    def to_frame(self) -> pd.DataFrame:
        """One row a neuron and group: columns group, layer, neuron."""
        group, layer, neuron = self.masks.nonzero(as_tuple=True)
        names = [self.groups[i] for i in group.tolist()]
        return pd.DataFrame({"group": names, "layer": layer.numpy(), "neuron": neuron.numpy()})

    def masks_equal(self, other: NeuronSet) -> bool:
        """Same groups with the same neurons, whatever the method and parameters."""
        return self.groups == other.groups and torch.equal(self.masks, other.masks)

    @classmethod
    def from_published(
        cls, path: Path | str, *, d_mlp: int, languages: Sequence[str] = _PUBLISHED_LANGUAGES, model: str = ""
    ) -> NeuronSet:
        """Import `list[language][layer] -> LongTensor` as published with LAPE (Tang et al. 2024).

        Args:
            d_mlp: neurons a layer of the model, which the file does not say (11008 for LLaMA-2-7B, 16384 for BLOOM-7B).
            languages: names in the file's order.

        Raises:
            ValueError: another number of languages, layers that differ in number, or an index outside the model.
        """
        try:
            content = torch.load(path, weights_only=True, map_location="cpu")
        except UnpicklingError as error:
            raise ValueError(f"{path} is not a plain list of tensors and was not opened: it could run code") from error
        if not isinstance(content, list) or not all(isinstance(row, list) for row in content):
            raise ValueError(f"{path} holds no list[language][layer] of indices; export it with to_published()")
        if len(content) != len(languages):
            raise ValueError(
                f"{path} holds {len(content)} languages, languages= names {len(languages)}: {tuple(languages)}"
            )
        if len({len(row) for row in content}) != 1:
            raise ValueError(f"{path} has a different number of layers in different languages; it is damaged")
        masks = torch.zeros(len(content), len(content[0]), d_mlp, dtype=torch.bool)
        for k, row in enumerate(content):
            for layer, index in enumerate(row):
                if len(index) and not 0 <= int(index.min()) <= int(index.max()) < d_mlp:
                    raise ValueError(
                        f"{path}: layer {layer} of {languages[k]!r} has neuron {int(index.max())}, d_mlp is {d_mlp}"
                    )
                masks[k, layer, index.long()] = True
        return cls(masks, tuple(languages), "published", {"d_mlp": d_mlp}, model)

    def to_published(self, path: Path | str) -> None:
        """Write `list[group][layer] -> LongTensor`, readable by the code released with LAPE."""
        torch.save([[layer.nonzero().flatten() for layer in mask] for mask in self.masks], path)


@dataclass(frozen=True, eq=False, repr=False)
class NeuronScores(Summarised):
    """A number for every neuron and language; higher means that the neuron belongs to the language more."""

    values: Float[Tensor, "layer neuron language"]
    """-inf where the method does not give the neuron to the language at all."""
    languages: tuple[str, ...]
    method: str
    parameters: Mapping[str, Any] = field(default_factory=dict)
    model: str = ""
    model_fingerprint: str = ""
    part: str = "mlp"

    def __post_init__(self) -> None:
        if self.values.ndim != 3 or self.values.shape[-1] != len(self.languages):
            raise ValueError(
                f"scores of shape {tuple(self.values.shape)} do not fit the {len(self.languages)} languages "
                f"{self.languages}; give (layer, neuron, language)"
            )
        if self.values.isnan().any():
            layer, neuron, k = self.values.isnan().nonzero()[0].tolist()
            raise ValueError(
                f"the {self.method} score of neuron {layer}.{neuron} for {self.languages[k]!r} is not a number; "
                "check the activations it comes from"
            )

    def summary(self) -> tuple[str, Mapping[str, Sequence[Any]]]:
        finite = self.values.isfinite().sum(dim=(0, 1)).tolist()
        head = f"{self.method}, {self.model or 'unknown model'}, {size(self.values)}"
        return head, {"language": self.languages, "neurons with a score": finite}

    def top_share(self, rate: float) -> NeuronSet:
        """The share `rate` of all neurons of highest score of every language (see `top`)."""
        return self.top(rank(rate, self.values[..., 0].numel(), "rate"))

    def top(self, n: int) -> NeuronSet:
        """The `n` neurons of highest score of every language, fewer where fewer have a finite one.

        Of equal scores the neuron of the lower layer and index comes first.
        """
        if not 0 < n <= self.values[..., 0].numel():
            raise ValueError(f"n must be a number of neurons from 1 to {self.values[..., 0].numel()}, got {n}")
        flat = self.values.flatten(0, 1).T
        order = flat.argsort(dim=1, descending=True, stable=True)[:, :n]
        masks = torch.zeros(flat.shape, dtype=torch.bool).scatter(1, order, True) & (flat > -torch.inf)
        return self.to_set(masks.unflatten(1, self.values.shape[:2]), n=n)

    def to_set(self, masks: Bool[Tensor, "language layer neuron"], **parameters: Any) -> NeuronSet:
        """A set chosen by these scores, with their origin and the parameters of the choice."""
        return NeuronSet(
            masks.contiguous(),
            self.languages,
            self.method,
            {**self.parameters, **parameters},
            self.model,
            self.model_fingerprint,
            self.part,
        )


def rank(rate: float, total: int, name: str) -> int:
    """`round(rate * total)`.

    Raises:
        ValueError: a rate that is no share, or one of less than half a value.
    """
    if not 0 < rate <= 1:
        raise ValueError(f"{name} must be a share above 0 and up to 1, got {rate}")
    if round(rate * total) < 1:
        raise ValueError(f"{name} must be at least 1/{total} to choose one of {total} values, got {rate}")
    return round(rate * total)
