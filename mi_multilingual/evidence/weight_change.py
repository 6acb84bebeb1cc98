"""How much each neuron's weights change when the model is tuned on a language."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor
from tqdm.auto import tqdm

from ..corpora import Corpus, at_least_two
from ..display import Summarised, size
from ..models.hooked import HookedModel, fingerprint, is_gated, model_name, weight_of
from ..tokens import Reading, language_rows
from ..training import Batches, Training, train, whole_copy

SMALLEST = 1e-12  # of a weight vector, below which its relative change is taken to be none


@dataclass(frozen=True, eq=False, repr=False)
class WeightChange(Summarised):
    """Relative change of each neuron's weights when the model is tuned on each language alone."""

    relative: Float[Tensor, "layer neuron language"]
    """|tuned - base| / |base| of the neuron's `weights` as one vector, float64."""
    languages: tuple[str, ...]
    model: str
    model_fingerprint: str
    weights: str = "all"
    """"all": in, gate where there is one, and out; "in": in, and gate where there is one."""
    training: Mapping[str, Any] = field(default_factory=dict)
    """How it was tuned, where that was done here."""

    def summary(self) -> tuple[str, Mapping[str, Sequence[Any]]]:
        head = f"{self.model}, {size(self.relative)}"
        return head, {"tuned on": self.languages, "mean relative change": self.relative.mean(dim=(0, 1)).tolist()}


WEIGHTS = ("all", "in")


def record_weight_change(base: HookedModel, tuned: Mapping[str, HookedModel], *, weights: str = "all") -> WeightChange:
    """Relative change of each neuron's weights by tuning on each language.

    Args:
        tuned: for each language, the base model after tuning on that language alone.
        weights: "all" that a neuron has, or "in", those it reads with (W_in, and W_gate where there is one).

    Raises:
        ValueError: fewer than two languages, models of different shape, or weights that are not finite.

    Source: the baseline PV of Tang et al. 2024, arXiv:2402.16438, section 3.
    """
    at_least_two(tuple(tuned))
    before = _neuron_vectors(base, weights)
    changes = [_relative(before, _neuron_vectors(model, weights), language) for language, model in tuned.items()]
    return WeightChange(torch.stack(changes, dim=-1), tuple(tuned), model_name(base), fingerprint(base), weights)


def record_tuned_change(
    model: HookedModel,
    corpus: Corpus,
    *,
    reading: Reading = Reading(),
    training: Training = Training(),
    weights: str = "all",
    progress: bool = True,
) -> WeightChange:
    """`record_weight_change` of copies that are tuned here, all their weights, one after another on each language.

    One copy is there at a time, with its gradients and the optimizer's moments.

    Raises:
        ValueError: fewer than two languages, text as in `token_rows`, or a loss that is not finite.
    """
    at_least_two(corpus.languages)
    before, changes = _neuron_vectors(model, weights), []
    rows = list(language_rows(model, corpus, reading, progress=progress))
    for one in tqdm(rows, desc="tuning", unit="language", disable=not progress):
        copy, trained = whole_copy(model)
        train(copy, trained, Batches([one], training), progress=False)
        changes.append(_relative(before, _neuron_vectors(copy, weights), one.language))
    made = (model_name(model), fingerprint(model), weights, asdict(training))
    return WeightChange(torch.stack(changes, dim=-1), corpus.languages, *made)


def _relative(
    before: Float[Tensor, "layer neuron weight"], after: Float[Tensor, "layer neuron weight"], language: str
) -> Float[Tensor, "layer neuron"]:
    """Size of the change over size before."""
    if after.shape != before.shape:
        raise ValueError(
            f"the model tuned on {language!r} has neurons of shape {tuple(after.shape)}, the base model "
            f"{tuple(before.shape)}; give checkpoints of one model"
        )
    size, change = before.norm(dim=-1), (after - before).norm(dim=-1)
    if not change.isfinite().all():
        layer, neuron = (~change.isfinite()).nonzero()[0].tolist()
        raise ValueError(f"the weights of neuron {layer}.{neuron} are not finite after tuning on {language!r}")
    return torch.where(size > 0, change / size.clamp(min=SMALLEST), 0.0)


def _neuron_vectors(model: HookedModel, weights: str) -> Float[Tensor, "layer neuron weight"]:
    """Each neuron's weights as one vector, float64."""
    if weights not in WEIGHTS:
        raise ValueError(f"weights must be one of {', '.join(WEIGHTS)}, got {weights!r}")
    read = ("W_gate", "W_in") if is_gated(model) else ("W_in",)
    rows = []
    for layer in range(model.cfg.n_layers):
        parts = [weight_of(model, f"blocks.{layer}.mlp.{name}").T for name in read]
        parts += [weight_of(model, f"blocks.{layer}.mlp.W_out")] if weights == "all" else []
        rows.append(torch.cat(parts, dim=1).double().cpu())
    return torch.stack(rows)
