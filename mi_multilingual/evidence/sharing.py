"""Which neurons all languages share for the same input, some share, one has alone, or none uses."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import pandas as pd
import torch
from einops import rearrange
from jaxtyping import Bool, Float, Int
from torch import Tensor
from tqdm.auto import tqdm

from ..corpora import Corpus, at_least_two
from ..display import Summarised
from ..models.hooked import HookedModel, Site, max_window, site_of
from ..tokens import DOCUMENTS, Reading, pad_right, prefix_ids, prompt_ids, rows_per_batch
from .reading import check_alike, check_documents, check_finite, joint_corpus, layers_of, origin, read

TYPES = ("all-shared", "partial-shared", "specific", "non-activated")
TOKENS = ("last", "any", "released")
_THRESHOLDS = (0.0, 0.1, 0.2, 0.3, 0.4, 0.5)


@dataclass(frozen=True, eq=False, repr=False)
class Sharing(Summarised):
    """How often every neuron had each type over parallel inputs, and how the shares varied over inputs."""

    counts: Int[Tensor, "task threshold layer neuron type"]
    """Inputs for which the neuron had the type (order of `TYPES`)."""
    specific_to: Int[Tensor, "task threshold layer neuron language"]
    """Inputs for which the neuron was active in this language alone."""
    lowest: Float[Tensor, "task threshold layer type"]
    """Smallest share of a layer's neurons that had the type, over inputs."""
    highest: Float[Tensor, "task threshold layer type"]
    squares: Float[Tensor, "task threshold layer type"]
    """Sum over inputs of the squared share, float64."""
    overlap_sum: Float[Tensor, "threshold language language"]
    """Sum over inputs of the Jaccard overlap of the neurons active in two languages, float64."""
    n_inputs: Int[Tensor, " task"]
    tasks: tuple[str, ...]
    thresholds: tuple[float, ...]
    languages: tuple[str, ...]
    tokens: str
    """At which tokens an activation counted: one of `TOKENS`."""
    site: str
    model: str
    model_fingerprint: str
    corpus_fingerprint: str
    reading: Reading

    def __add__(self, other: Sharing) -> Sharing:
        """Both, over the inputs of both."""
        check_alike(self, other, ["tasks", "thresholds", "tokens"])
        names = ("counts", "specific_to", "squares", "overlap_sum", "n_inputs")
        sums = {name: getattr(self, name) + getattr(other, name) for name in names}
        return replace(
            self,
            **sums,
            lowest=torch.minimum(self.lowest, other.lowest),
            highest=torch.maximum(self.highest, other.highest),
            corpus_fingerprint=joint_corpus(self, other),
        )

    def __radd__(self, other: int) -> Sharing:
        """0 + sharing, so that `sum(shards)` works."""
        return self if other == 0 else NotImplemented

    def summary(self) -> tuple[str, Mapping[str, Sequence[Any]]]:
        above = ", ".join(f"{h:g}" for h in self.thresholds)
        head = f"{self.model}, {', '.join(self.languages)}, {self.site} at {self.tokens} token above {above}"
        return head, {"task": self.tasks, "inputs": self.n_inputs.tolist()}

    def layer_shares(self) -> pd.DataFrame:
        """Share of a layer's neurons of each type: columns task, threshold, layer, type, mean, low, high, min, max.

        `mean`, `min` and `max` are over inputs; `low` and `high` are the 95 % normal interval of the mean.
        """
        n = self.n_inputs.double()[:, None, None, None]
        mean = self.counts.double().mean(dim=3) / n
        spread = (self.squares / n - mean.square()).clamp(min=0) * n / (n - 1).clamp(min=1)
        half = 1.96 * (spread / n).sqrt()
        columns = {"mean": mean, "low": mean - half, "high": mean + half, "min": self.lowest, "max": self.highest}
        index = pd.MultiIndex.from_product(
            [self.tasks, self.thresholds, range(self.counts.shape[2]), TYPES],
            names=["task", "threshold", "layer", "type"],
        )
        return pd.DataFrame({k: v.double().flatten().numpy() for k, v in columns.items()}, index=index).reset_index()

    def stability(self) -> pd.DataFrame:
        """How much neurons keep their type over inputs: columns task, threshold, layer, type, n_neurons, stability.

        A neuron's type is the one it has most often (of equals the first in `TYPES`); `stability` is the mean, over
        neurons of the type, of the share of inputs for which they have it.
        """
        share = self.counts.double() / self.n_inputs.double()[:, None, None, None, None]
        best = share.max(dim=-1)
        rows = []
        for t, task in enumerate(self.tasks):
            for h, threshold in enumerate(self.thresholds):
                for layer in range(share.shape[2]):
                    kind, value = best.indices[t, h, layer], best.values[t, h, layer]
                    for i, name in enumerate(TYPES):
                        mine = value[kind == i]
                        mean = mine.mean().item() if len(mine) else float("nan")
                        rows.append((task, threshold, layer, name, len(mine), mean))
        return pd.DataFrame(rows, columns=["task", "threshold", "layer", "type", "n_neurons", "stability"])

    def repetition(self) -> pd.DataFrame:
        """Share of a layer's neurons that had the type for ALL inputs: columns task, threshold, layer, type, repeated.

        Source: Wang et al. 2024, arXiv:2406.09265; `stability` says how much neurons keep their usual type.
        """
        share = repeated_share(self.counts, self.n_inputs[:, None, None, None, None])
        index = pd.MultiIndex.from_product(
            [self.tasks, self.thresholds, range(self.counts.shape[2]), TYPES],
            names=["task", "threshold", "layer", "type"],
        )
        return pd.DataFrame({"repeated": share.flatten().numpy()}, index=index).reset_index()

    def overlap(self, threshold: float | None = None) -> pd.DataFrame:
        """Mean Jaccard overlap of the active neurons of every two languages, languages ordered by similarity.

        The order is that of the leaves of an average-linkage clustering of 1 - overlap.
        """
        from scipy.cluster.hierarchy import leaves_list, linkage, optimal_leaf_ordering
        from scipy.spatial.distance import squareform

        h = self.thresholds.index(self.thresholds[0] if threshold is None else threshold)
        table = (self.overlap_sum[h] / self.n_inputs.sum()).numpy()
        distance = squareform(1 - table, checks=False).clip(min=0)
        order = range(len(table))
        if len(table) > 2:
            order = leaves_list(optimal_leaf_ordering(linkage(distance, "average"), distance))
        names = [self.languages[i] for i in order]
        return pd.DataFrame(table[np.ix_(order, order)], index=names, columns=names)


def repeated_share(
    counts: Int[Tensor, "*axes layer neuron type"], n_inputs: Int[Tensor, ...] | int
) -> Float[Tensor, "*axes layer type"]:
    """Share of a layer's neurons that had the type for all of `n_inputs`."""
    return (counts == n_inputs).double().mean(dim=-2)


def categories(active: Bool[Tensor, "language ..."]) -> Int[Tensor, ...]:
    """Type of each neuron by the number of languages it is active in: an index into `TYPES`.

    All languages: all-shared; none: non-activated; one: specific; else partial-shared.

    Source: Wang et al. 2024, arXiv:2406.09265, section 3.
    """
    n_languages, n_active = len(active), active.sum(dim=0)
    kind = torch.ones_like(n_active)
    kind[n_active == 1] = TYPES.index("specific")
    kind[n_active == 0] = TYPES.index("non-activated")
    kind[n_active == n_languages] = TYPES.index("all-shared")
    return kind


def shares_by_chance(active: Float[Tensor, "language ..."]) -> Float[Tensor, "... type"]:
    """Share of each type where languages choose their neurons independently, from the share active in each language."""
    silent = 1 - active
    alone = [active[k] * torch.cat([silent[:k], silent[k + 1 :]]).prod(dim=0) for k in range(len(active))]
    every, one, none = active.prod(dim=0), torch.stack(alone).sum(dim=0), silent.prod(dim=0)
    return torch.stack([every, 1 - every - one - none, one, none], dim=-1)


@torch.no_grad()
def sharing_categories(
    model: HookedModel,
    inputs: Corpus,
    *,
    reading: Reading = DOCUMENTS,
    thresholds: Sequence[float] = _THRESHOLDS,
    tokens: str = "last",
    site: str = "post",
    tasks: Sequence[str] | None = None,
    progress: bool = True,
) -> Sharing:
    """The type of every neuron for every parallel input.

    Memory does not depend on the number of inputs.

    Args:
        inputs: documents that are translations of each other, aligned by position.
        reading: of layout "documents", with every input in one row; special tokens in front are not looked at.
        thresholds: a neuron is active when its activation is strictly greater; one result per threshold.
        tokens: "last": the activation at the last token decides; "any": the largest over all tokens of the text;
            "released": the largest over all tokens of this text and of all before it, input by input and language by
            language, which is what the notebook published with the paper does.
        tasks: a name for each input, to be told apart in the tables; one task by default.

    Raises:
        ValueError: fewer than two languages, inputs that are not parallel, a text without tokens or too long for the
            model, a threshold that is not finite, or activations that are not finite.

    Source: Wang et al. 2024, arXiv:2406.09265, section 3.
    """
    check_arguments(inputs, thresholds, tokens, tasks)
    check_documents(reading)
    n_inputs = len(next(iter(inputs.documents.values())))
    tasks = ["all"] * n_inputs if tasks is None else list(tasks)
    names = tuple(dict.fromkeys(tasks))
    n_layers, n_neurons, n_languages = model.cfg.n_layers, model.cfg.d_mlp, len(inputs.languages)
    shape = (len(names), len(thresholds), n_layers)
    counts = torch.zeros(*shape, n_neurons, len(TYPES), dtype=torch.int32)
    specific_to = torch.zeros(*shape, n_neurons, n_languages, dtype=torch.int32)
    lowest, highest = torch.ones(*shape, len(TYPES)), torch.zeros(*shape, len(TYPES))
    squares = torch.zeros(*shape, len(TYPES), dtype=torch.float64)
    overlap_sum = torch.zeros(len(thresholds), n_languages, n_languages, dtype=torch.float64)
    for chunk, values in activation_chunks(model, inputs, reading=reading, tokens=tokens, site=site, progress=progress):
        of_task = torch.tensor([names.index(tasks[i]) for i in chunk])
        for h, threshold in enumerate(thresholds):
            active = values > threshold
            kind = categories(active)
            is_type = torch.stack([kind == i for i in range(len(TYPES))], dim=-1)
            alone = rearrange(active & (kind == TYPES.index("specific")), "lang i l n -> i l n lang")
            share = is_type.float().mean(dim=2)
            for t in of_task.unique().tolist():
                mine = of_task == t
                counts[t, h] += is_type[mine].sum(dim=0, dtype=torch.int32)
                specific_to[t, h] += alone[mine].sum(dim=0, dtype=torch.int32)
                lowest[t, h] = torch.minimum(lowest[t, h], share[mine].amin(dim=0))
                highest[t, h] = torch.maximum(highest[t, h], share[mine].amax(dim=0))
                squares[t, h] += share[mine].double().square().sum(dim=0)
            overlap_sum[h] += jaccard_overlaps(active).sum(dim=0)
    return Sharing(
        counts.long(),
        specific_to.long(),
        lowest,
        highest,
        squares,
        overlap_sum,
        torch.tensor([tasks.count(name) for name in names]),
        names,
        tuple(float(h) for h in thresholds),
        inputs.languages,
        tokens,
        site,
        **origin(model, inputs, reading.for_model(model)),
    )


@torch.no_grad()
def activation_chunks(
    model: HookedModel,
    inputs: Corpus,
    *,
    reading: Reading,
    tokens: str = "last",
    site: str = "post",
    progress: bool = True,
) -> Iterator[tuple[range, Float[Tensor, "language input layer neuron"]]]:
    """Each neuron's activation for every parallel input, some inputs at a time; arguments of `sharing_categories`."""
    reading = reading.for_model(model)
    ids = {k: input_ids(model, inputs, k, reading) for k in inputs.languages}
    n_inputs, n_prefix = len(next(iter(ids.values()))), len(prefix_ids(model.tokenizer, reading.bos))
    longest = max(len(row) for rows in ids.values() for row in rows)
    at_once = rows_per_batch(model, longest * len(ids), "prompts")
    reader, before = site_of(model, site), torch.tensor(-torch.inf)
    for start in tqdm(range(0, n_inputs, at_once), desc="sharing", disable=not progress):
        chunk = range(start, min(start + at_once, n_inputs))
        rows = [[ids[k][i] for i in chunk] for k in inputs.languages]
        values = parallel_activations(model, reader, rows, tokens, n_prefix=n_prefix)
        check_finite(values, lambda at, first=start: f"for input {first + at[1]} in {inputs.languages[at[0]]!r}")
        if tokens == "released":
            values = _largest_so_far(values, before)
            before = values[-1, -1]
        yield chunk, values


def _largest_so_far(
    values: Float[Tensor, "language input layer neuron"], before: Float[Tensor, ...]
) -> Float[Tensor, "language input layer neuron"]:
    """The largest of each neuron's values up to this one, inputs one after another, and languages within an input."""
    in_order = rearrange(values, "k i l n -> (i k) l n").cummax(dim=0).values
    return rearrange(torch.maximum(in_order, before), "(i k) l n -> k i l n", k=len(values))


def check_arguments(inputs: Corpus, thresholds: Sequence[float], tokens: str, tasks: Sequence[str] | None) -> None:
    at_least_two(inputs.languages)
    lengths = {k: len(texts) for k, texts in inputs.documents.items()}
    if len(set(lengths.values())) != 1:
        raise ValueError(
            f"inputs must be parallel, got {lengths} documents; give every language the same inputs in order"
        )
    if tokens not in TOKENS:
        raise ValueError(f"tokens must be one of {', '.join(TOKENS)}, got {tokens!r}")
    if not len(thresholds) or not all(np.isfinite(thresholds)):
        raise ValueError(f"thresholds={tuple(thresholds)} must be finite numbers, at least one")
    if tasks is not None and len(tasks) != next(iter(lengths.values())):
        raise ValueError(f"{len(tasks)} tasks for {next(iter(lengths.values()))} inputs; name the task of each input")


def input_ids(model: HookedModel, inputs: Corpus, language: str, reading: Reading) -> list[list[int]]:
    """The ids of every document, special tokens in front.

    Raises:
        ValueError: a document without tokens, or with more than one row takes.
    """
    prefix = prefix_ids(model.tokenizer, reading.bos)
    rows = prompt_ids(model.tokenizer, inputs.documents[language], reading.bos)
    longest = (reading.window or max_window(model)) - len(prefix)
    for i, row in enumerate(rows):
        if not len(prefix) < len(row) <= longest + len(prefix):
            raise ValueError(
                f"every input must have 1 to {longest} tokens in every language, got {len(row) - len(prefix)} for "
                f"input {i} in {language!r}; shorten it or leave it out"
            )
    return rows


def parallel_activations(
    model: HookedModel, reader: Site, ids: list[list[list[int]]], tokens: str, *, n_prefix: int = 0
) -> Float[Tensor, "language input layer neuron"]:
    """Each neuron's activation at the last token, or its largest, for every language and input.

    Args:
        n_prefix: leading tokens of every row that are not looked at for the largest.
    """
    rows = [row for language in ids for row in language]
    padded, lengths = pad_right(rows)
    positions = torch.arange(padded.shape[1])
    counted = (positions[None] < lengths[:, None]) & (positions >= n_prefix)
    seen: dict[int, Tensor] = {}

    def take(layer: int, carried: Float[Tensor, "row pos neuron"]) -> None:
        if tokens == "last":
            value = reader.value(carried[torch.arange(len(rows)), (lengths - 1).to(carried.device)])
        else:
            value = reader.value(carried).masked_fill(~counted[..., None].to(carried.device), -torch.inf).amax(1)
        seen[layer] = value.float().cpu()

    places = layers_of(model, reader)
    read(model, padded, places, take)
    return rearrange(torch.stack([seen[layer] for layer in places]), "l (k i) n -> k i l n", k=len(ids))


def jaccard_overlaps(active: Bool[Tensor, "language input layer neuron"]) -> Float[Tensor, "input language language"]:
    """Jaccard overlap of the neurons active in every two languages, for each input; 0 where neither has one."""
    flat = rearrange(active, "k i l n -> i k (l n)").float()
    both = flat @ flat.transpose(1, 2)
    size = flat.sum(dim=2)
    either = size[:, :, None] + size[:, None, :] - both
    return (both / either.clamp(min=1)).double()
