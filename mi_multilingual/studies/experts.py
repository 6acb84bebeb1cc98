"""A dense MLP looked at as a mixture of experts: which languages use which, and what pruning them costs (Liu 2024)."""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace

import numpy as np
import pandas as pd
import torch
from jaxtyping import Float, Int
from torch import Tensor
from tqdm.auto import tqdm

from ..analysis.distance import tree_against_families
from ..corpora import Corpus
from ..detectors.table import Setting
from ..evaluation.intervals import ratio_interval, wilson_interval
from ..evaluation.perplexity import RowLosses, corpus_rows, row_losses
from ..evidence.activations import ActivationStats
from ..evidence.routing import SPLITS, Routing, expert_frequency, split_experts
from ..evidence.sharing import TYPES, categories, shares_by_chance
from ..languages import LANGUAGES
from ..models.hooked import HookedModel
from ..models.loading import load_model
from ..neurons import NeuronSet
from ..patching.changes import check_fits
from ..patching.conditions import (
    CHOSEN,
    RANDOM,
    Condition,
    applied,
    check_seeds,
    condition_of,
    labelled,
)
from ..tokens import Reading
from .deactivation import TOGETHER
from .given import Given

UNIFORM, LAYERWISE = "uniform", "layer-wise"
"""Whether every layer loses as many experts, or those with fewer active neurons more of them."""


def expert_table(routing: Routing) -> pd.DataFrame:
    """Frequencies of a `Routing` as rows: layer, expert, language, frequency (share of tokens), low, high (95 %
    Wilson interval over tokens), n_tokens."""
    frequency = routing.frequency().numpy()
    n = routing.n_tokens.numpy().astype(float)
    low, high = (np.asarray(part) for part in wilson_interval(frequency, n[None, None]))
    index = pd.MultiIndex.from_product([*map(range, frequency.shape[:2]), routing.languages], names=_EXPERT)
    columns = {"frequency": frequency, "low": low, "high": high, "n_tokens": np.broadcast_to(n, frequency.shape)}
    return pd.DataFrame({k: v.ravel() for k, v in columns.items()}, index=index).reset_index()


_EXPERT = ["layer", "expert", "language"]


def expert_types(routing: Routing) -> pd.DataFrame:
    """Experts that are among the most frequent of their layer in all languages, in some, in one, or in none.

    The most frequent are as many per layer as a token uses.

    Returns:
        one row per layer and type, and for all layers together (layer -1): n_experts, share (of the experts), low,
        high (95 % Wilson interval), chance (share where every language has as many, chosen independently).
    """
    frequency = routing.frequency()
    n_experts = frequency.shape[1]
    kind = categories(_is_frequent(routing))
    by_chance = shares_by_chance(torch.full((len(routing.languages),), routing.n_used / n_experts, dtype=torch.float64))
    rows = []
    for layer, kinds in [(-1, kind.flatten()), *enumerate(kind)]:
        for i, name in enumerate(TYPES):
            n = int((kinds == i).sum())
            low, high = wilson_interval(n / len(kinds), len(kinds))
            rows.append((layer, name, n, n / len(kinds), float(low), float(high), by_chance[i].item()))
    return pd.DataFrame(rows, columns=["layer", "type", "n_experts", "share", "low", "high", "chance"])


def _is_frequent(routing: Routing) -> Tensor:
    """Whether an expert is among the `n_used` most frequent of its layer in a language: (language, layer, expert)."""
    order = routing.used.argsort(dim=1, descending=True, stable=True)[:, : routing.n_used]
    return torch.zeros_like(routing.used, dtype=torch.bool).scatter(1, order, True).permute(2, 0, 1)


def family_table(routings: Mapping[str, Routing], *, permutations: int = 9999, seed: int = 0) -> pd.DataFrame:
    """Whether languages of one family use similar experts (see `tree_against_families`), for each of some models.

    Returns:
        one row per routing: routing, r, low, high (r less the quantiles of the permuted ones), p, n_pairs,
        permutations; none where fewer than three languages are known, or all or none of them are of one family.
    """
    rows = []
    for name, routing in routings.items():
        known = [k for k in routing.languages if k in LANGUAGES]
        families = [LANGUAGES[k].family for k in known]
        if len(known) >= 3 and 1 < len(set(families)) < len(known):
            similarity = routing.similarity().loc[known, known]
            found = tree_against_families(similarity, permutations=permutations, seed=seed)
            rows.append({"routing": name, "r": found.value, **found._asdict()})
    return pd.DataFrame(rows, columns=["routing", "r", "low", "high", "p", "n_pairs", "permutations"])


def similarity_table(routings: Mapping[str, Routing]) -> pd.DataFrame:
    """Cosine of the frequencies of every two languages, for each of some models: routing, language, other, cosine."""
    parts = [
        routing.similarity().rename_axis("language").melt(ignore_index=False, var_name="other", value_name="cosine")
        for routing in routings.values()
    ]
    whole = pd.concat(parts, keys=routings, names=["routing"]).reset_index()
    return whole.loc[:, ["routing", "language", "other", "cosine"]]


def tuned_table(base: Routing, tuned: Routing) -> pd.DataFrame:
    """How the frequencies of a tuned model differ from its base's, with the same experts.

    Returns:
        one row per layer and language: cosine (of the two models' frequencies), moved (half the sum of absolute
        changes: uses that went to other experts, per token).

    Raises:
        ValueError: other experts or languages.
    """
    if base.languages != tuned.languages or not torch.equal(base.experts, tuned.experts):
        raise ValueError("both models must have the same languages and experts; record both with one split and corpus")
    a, b = base.frequency(), tuned.frequency()
    cosine = torch.nn.functional.cosine_similarity(a, b, dim=1)
    moved = (a - b).abs().sum(dim=1) / 2
    index = pd.MultiIndex.from_product([range(len(a)), base.languages], names=["layer", "language"])
    columns = {"cosine": cosine.flatten().numpy(), "moved": moved.flatten().numpy()}
    return pd.DataFrame(columns, index=index).reset_index()


def expert_study(
    model: HookedModel,
    corpus: Corpus,
    *,
    tuned: HookedModel | None = None,
    n_experts: int = 16,
    rate: float = 0.25,
    method: str = "contiguous",
    reading: Reading = Reading(),
    progress: bool = True,
) -> dict[str, Routing]:
    """How often every language uses every expert, in a model and, beside it, one that was tuned from it.

    Args:
        tuned: recorded with the experts of `model`.
        n_experts, method: see `split_experts`.
        rate: share of a layer's experts that a token uses.

    Returns:
        "base", and "tuned" where there is one: `expert_table`, `expert_types`, `family_table`, `similarity_table` and
        `tuned_table` make tables of them.

    Raises:
        ValueError: as `split_experts` and `expert_frequency`, or a tuned model of another size.

    Source: Liu et al. 2024, arXiv:2402.16367.
    """
    experts = split_experts(model, n_experts, method=method)
    models = {"base": model} | ({} if tuned is None else {"tuned": tuned})
    sizes = {(m.cfg.n_layers, m.cfg.d_mlp) for m in models.values()}
    if len(sizes) > 1:
        raise ValueError(f"tuned must have as many layers and neurons as the model, got {sorted(sizes)}")
    options = {"rate": rate, "reading": reading, "progress": progress}
    return {name: expert_frequency(m, corpus, experts, **options) for name, m in models.items()}


def prune(routing: Routing, *, rate: float, stats: ActivationStats | None = None) -> NeuronSet:
    """The neurons of every language's least frequent experts, one group per language; of equals those of lower number.

    Give them to `ablate`, `bake` or `export` to prune them.

    Args:
        rate: share of all experts.
        stats: recorded at the gate above 0. Given, layers lose experts in proportion to the share of their neurons that
            are not active in the language, each keeps one, and all together lose as many as without.

    Raises:
        ValueError: a rate that leaves no expert or takes none, or statistics of another model or of other languages.

    Source: Liu et al. 2024, arXiv:2402.16367; how layer rates are rounded is ours.

    Example:
        >>> import mi_multilingual as mm
        >>> model = mm.load_model("demo")
        >>> corpus = mm.load_corpus("demo", languages=["en", "fr"], split="identify", max_documents=20)
        >>> reading = mm.Reading(layout="documents")
        >>> routing = mm.expert_frequency(model, corpus, mm.split_experts(model, 16), reading=reading, progress=False)
        >>> mm.prune(routing, rate=0.25).sizes().to_dict()
        {'en': 1536, 'fr': 1536}
    """
    n_pruned = pruned_experts(routing, rate, stats)
    order = routing.used.argsort(dim=1, stable=True).permute(2, 0, 1)
    place = order.argsort(dim=2)
    chosen = place < n_pruned[..., None]
    masks = torch.stack([_neurons_of(routing, mask) for mask in chosen])
    parameters = {"rate": rate, "layers": UNIFORM if stats is None else LAYERWISE}
    return NeuronSet(masks, routing.languages, "prune", parameters, routing.model, routing.model_fingerprint)


def _neurons_of(routing: Routing, chosen: Tensor) -> Tensor:
    """The neurons of chosen experts, (layer, expert) -> (layer, neuron)."""
    return chosen.gather(1, routing.experts)


def pruned_experts(
    routing: Routing, rate: float, stats: ActivationStats | None = None
) -> Int[Tensor, "language layer"]:
    """How many experts `prune` takes from each layer for each language."""
    n_layers, n_experts, n_languages = routing.used.shape
    each = round(rate * n_experts)
    if not 1 <= each < n_experts:
        raise ValueError(
            f"rate must take at least one of the {n_experts} experts of a layer and leave one, got {rate}, which takes "
            f"{each}"
        )
    if stats is None:
        return torch.full((n_languages, n_layers), each)
    if stats.languages != routing.languages or stats.active.shape[:2] != routing.experts.shape:
        raise ValueError(
            f"stats must be of the same model and languages, {routing.languages}, got {stats.languages} and "
            f"{tuple(stats.active.shape[:2])} neurons; record them on the same corpus"
        )
    if (stats.model_fingerprint, stats.site, stats.threshold) != (routing.model_fingerprint, "gate", 0.0):
        raise ValueError(
            f"stats must be of the routing's model {routing.model!r}, at the gate above 0, got {stats.model!r} at "
            f"{stats.site} above {stats.threshold:g}; record them so"
        )
    silent = 1 - stats.active.double().mean(dim=1) / stats.n_tokens
    return torch.stack([torch.from_numpy(shared_out(each * n_layers, w.numpy(), n_experts - 1)) for w in silent.T])


def shared_out(total: int, weights: Float[np.ndarray, " layer"], most: int) -> Int[np.ndarray, " layer"]:
    """`total` in whole parts proportional to the weights, none above `most`; what is above goes to the others.

    Whole parts by largest remainder, of equals the first; equal weights where all are 0.
    """
    weights = np.where(weights.sum() > 0, weights, np.ones_like(weights))
    share, free = np.zeros(len(weights)), np.ones(len(weights), dtype=bool)
    while free.any():
        rest = total - most * (~free).sum()
        scale = weights[free].sum()
        share[free] = rest * (weights[free] / scale if scale else 1 / free.sum())
        above = free & (share > most)
        if not above.any():
            break
        share[above], free[above] = most, False
    whole = np.floor(share + 1e-9).astype(int)
    remainder = np.where(whole < most, share - whole, -1.0)
    whole[np.argsort(-remainder, kind="stable")[: total - whole.sum()]] += 1
    return whole


def pruning_study(
    model: HookedModel,
    corpus: Corpus,
    routing: Routing,
    *,
    rates: Sequence[float] = (0.125, 0.25, 0.5),
    stats: ActivationStats | None = None,
    seeds: Sequence[int] = (0, 1, 2),
    reading: Reading = Reading(),
    progress: bool = True,
) -> pd.DataFrame:
    """Loss of every language without its least frequent experts, and without as many random experts per layer.

    Args:
        corpus: text that the experts were not counted on, in the languages of `routing`.
        rates: shares of all experts.
        stats: for layer-wise rates beside uniform ones (see `prune`).

    Returns:
        one row per row of text and condition: layers ("uniform" or "layer-wise"), rate, condition ("chosen" or
        "random"), group (the language), seed (-1 unless random), n_neurons, row (its number), nll, intact (loss without
        and with all experts, nats, summed over the row), n_tokens. `pruning_curve` sums it up.

    Raises:
        ValueError: before anything runs: neurons of another model, seeds that are missing, negative or repeat, no
            rates, or as `prune`; text as in `token_rows`.

    Source: Liu et al. 2024, arXiv:2402.16367.
    """
    check_seeds(seeds)
    if not len(seeds) or not len(rates):
        raise ValueError(f"seeds and rates must hold at least one number each, got {tuple(seeds)} and {tuple(rates)}")
    plans = [None] if stats is None else [None, stats]
    conditions = [c for rate in rates for plan in plans for c in _pruned(routing, rate, plan, seeds)]
    check_fits(model, prune(routing, rate=rates[0]))
    rows = corpus_rows(model, corpus.take(routing.languages), reading, progress=progress)
    intact = {language: row_losses(model, own) for language, own in rows.items()}
    parts = []
    for condition in tqdm(conditions, desc="pruning", unit="condition", disable=not progress):
        language = condition.labels["group"]
        with applied(model, condition):
            loss = row_losses(model, rows[language])
        parts.append(_row_table(condition, loss, intact[language]))
    return pd.concat(parts, ignore_index=True)


def _row_table(condition: Condition, loss: RowLosses, intact: RowLosses) -> pd.DataFrame:
    columns = {"nll": loss.nll.numpy(), "intact": intact.nll.numpy(), "n_tokens": loss.n_tokens.numpy()}
    return pd.DataFrame({**condition.labels, "row": np.arange(len(loss.nll)), **columns})


def _pruned(routing: Routing, rate: float, stats: ActivationStats | None, seeds: Sequence[int]) -> Iterator[Condition]:
    """Every language's experts pruned at one rate, beside random experts of the same layers."""
    neurons, n_pruned = prune(routing, rate=rate, stats=stats), pruned_experts(routing, rate, stats)
    labels = {"layers": UNIFORM if stats is None else LAYERWISE, "rate": rate}
    for i, language in enumerate(routing.languages):
        yield labelled(condition_of(CHOSEN, neurons[language]), **labels)
        for seed in seeds:
            drawn = _random_experts(routing, n_pruned[i], seed=seed * len(routing.languages) + i)
            own = replace(neurons[language], masks=drawn[None], method="random experts", parameters={"seed": seed})
            yield labelled(condition_of(RANDOM, own, seed=seed), **labels)


def _random_experts(routing: Routing, n_pruned: Int[Tensor, " layer"], *, seed: int) -> Tensor:
    """The neurons of so many experts of every layer, drawn without replacement."""
    random = torch.Generator().manual_seed(seed)
    n_experts = routing.used.shape[1]
    place = torch.stack([torch.randperm(n_experts, generator=random) for _ in n_pruned])
    return _neurons_of(routing, place < n_pruned[:, None])


def pruning_curve(outputs: pd.DataFrame) -> pd.DataFrame:
    """What pruning costs each language, by rate: sums of `pruning_study`, with 95 % bootstrap intervals over rows.

    Returns:
        one row per kind of rates, rate and language ("" for all together): layers, rate, language, n_neurons, n_tokens,
        intact (nats per token), change (nats per token), low, high, random_change (mean over seeds), random_low,
        random_high, beyond (change less random_change; below 0 where the least frequent experts matter less),
        beyond_low, beyond_high.
    """
    rows = []
    for part in (part for _, part in outputs.groupby(["layers", "rate"], sort=False)):
        layers, rate = part.layers.iloc[0], part.rate.iloc[0]
        for language in [*part.group.unique(), TOGETHER]:
            own = part if language == TOGETHER else part[part.group == language]
            rows.append({"layers": layers, "rate": rate, "language": language, **_cost(own)})
    return pd.DataFrame(rows)


def _cost(part: pd.DataFrame) -> dict[str, float]:
    """The measured columns of a row of `pruning_curve`."""
    chosen = part[part.condition == CHOSEN].set_index(["group", "row"])
    random = part[part.condition == RANDOM].groupby(["group", "row"]).nll.mean().reindex(chosen.index)
    n_tokens = chosen.n_tokens.to_numpy(float)
    found = {"n_neurons": chosen.groupby("group").n_neurons.first().mean(), "n_tokens": n_tokens.sum()}
    found["intact"] = chosen.intact.sum() / n_tokens.sum()
    differences = (
        ("", "change", chosen.nll - chosen.intact),
        ("random_", "random_change", random - chosen.intact),
        ("beyond_", "beyond", chosen.nll - random),
    )
    for prefix, name, difference in differences:
        low, high = ratio_interval(difference.to_numpy(), n_tokens)
        found |= {name: difference.sum() / n_tokens.sum(), f"{prefix}low": low, f"{prefix}high": high}
    return found


SETTINGS = {
    "n_experts": Setting(16, "experts of a layer", 2),
    "rate": Setting(0.25, "share of a layer's experts that a token uses", 0.0, 1.0, above=True),
    "experts": Setting("contiguous", "how neurons are put into experts", choices=SPLITS),
    "pruned": Setting(
        0.5, "largest share of the experts that is pruned; half and a quarter of it too", 0.0, 1.0, True, True
    ),
    "n_documents": Setting(80, "documents per language that pruned models are measured on", 2),
    "tuned": Setting("", "a model tuned from this one, a folder or id, to be held beside it"),
}
TABLES = ("experts", "expert_types", "expert_similarity", "expert_families", "expert_tuned", "pruning", "pruning_rows")


def run(given: Given) -> dict[str, pd.DataFrame]:
    """All tables of the study, by name."""
    how = given.settings
    options = {"reading": given.reading, "progress": given.progress}
    tuned = load_model(how["tuned"], device=str(given.model.cfg.device)) if how["tuned"] else None
    found = expert_study(
        given.model, given.identify, tuned=tuned, n_experts=int(how["n_experts"]), rate=how["rate"],
        method=how["experts"], **options,
    )  # fmt: skip
    base = found["base"]
    few = Corpus(
        {k: documents[: int(how["n_documents"])] for k, documents in given.evaluate.documents.items()},
        f"{given.evaluate.source}, first {how['n_documents']}",
    )
    rates = [how["pruned"] / part for part in (4, 2, 1) if round(how["pruned"] / part * how["n_experts"]) >= 1]
    outputs = pruning_study(given.model, few, base, rates=rates, stats=given.stats, seeds=given.seeds, **options)
    moved = tuned_table(base, found["tuned"]) if tuned is not None else _NOTHING_TUNED
    tables = (
        expert_table(base), expert_types(base), similarity_table(found), family_table(found), moved,
        pruning_curve(outputs), outputs,
    )  # fmt: skip
    return dict(zip(TABLES, tables, strict=True))


_NOTHING_TUNED = pd.DataFrame({"layer": [], "language": [], "cosine": [], "moved": []})
