"""Does a model speak a language when that language's neurons are raised, and which one when they are switched off?

Every study returns its single outputs, one per row: source (language of the prompt), target (the language wanted),
condition ("intact", "chosen" for the languages' own neurons, or "random" for as many random ones per layer), seed (-1
unless random), what the study varies, raising (how neurons were raised, a name in `RAISING`; "" for the intact model),
prompt, continuation, and found (language of the continuation, "" where it is none of the study's). Tables with
intervals are made of them by `steering_shares`, `found_shares` and `steering_quality`.
"""

import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import pandas as pd

from ..corpora import Corpus
from ..evaluation.generation import generate
from ..evaluation.language_id import check_known, identify_language
from ..evidence.activations import ActivationStats
from ..models.hooked import HookedModel, fingerprint
from ..neurons import NeuronSet
from ..patching.changes import RAISING, Intervention
from ..patching.conditions import (
    Condition,
    beside_random,
    check_groups,
    labelled,
    labels_of,
    measured,
    with_controls,
)

Pairs = Sequence[tuple[str, str]]
"""Pairs of source and target."""
_SteeredPairs = Mapping[Condition, Pairs]
"""Condition -> the pairs whose prompts are continued under it; a source's prompts are continued once, whatever the
number of its targets."""


@dataclass(frozen=True, eq=False)
class Steering:
    """How a target language is brought about."""

    stats: ActivationStats
    raising: str
    """A name in `RAISING`."""
    strength: float | Mapping[str, float]
    """One number, or one for each target."""
    source_off: bool
    """Whether the source's neurons go off, but for those that are the target's too."""

    def strength_of(self, target: str) -> float:
        """NaN where none is given."""
        return self.strength.get(target, math.nan) if isinstance(self.strength, Mapping) else self.strength

    def raised(self, neurons: NeuronSet, target: str) -> Intervention:
        return RAISING[self.raising](neurons[target], self.stats, target, strength=self.strength_of(target))


def language_forcing(
    model: HookedModel,
    prompts: Corpus,
    neurons: NeuronSet,
    stats: ActivationStats,
    *,
    raising: str = "set_to_mean",
    strength: float | Mapping[str, float] = 1.0,
    seeds: Sequence[int] = (0, 1, 2),
    progress: bool = True,
    **decoding: Any,
) -> pd.DataFrame:
    """Prompts of each language, with that language's neurons raised and without (Tang et al. 2024, section 4.5).

    Arguments, errors and columns are those of `steering_matrix`, of which this is the diagonal.
    """
    pairs = [(k, k) for k in prompts.languages]
    how = Steering(stats, raising, strength, source_off=False)
    check_steering(model, how, neurons, pairs)
    steered = {**intact(pairs, strength=0.0, raising=""), **steered_pairs(how, neurons, pairs, seeds)}
    return outputs(model, prompts.documents, steered, stats.languages, progress, decoding)


def steering_matrix(
    model: HookedModel,
    prompts: Corpus,
    neurons: NeuronSet,
    stats: ActivationStats,
    *,
    languages: Sequence[str] | None = None,
    raising: str = "set_to_mean",
    strength: float | Mapping[str, float] = 1.0,
    source_off: bool = True,
    seeds: Sequence[int] = (0, 1, 2),
    progress: bool = True,
    **decoding: Any,
) -> pd.DataFrame:
    """Prompts of every language, steered to every language: the source's neurons off, the target's raised.

    Neurons that source and target share are raised. The control does the same with as many random neurons in each
    layer. Where the source's neurons stay on, prompts of all languages run together, which is faster; prompts of one
    length in tokens do so too (`equal_openings`).

    Args:
        prompts: language -> prompts; its languages are the sources.
        neurons: a group for every language.
        stats: recorded at the site to write to, "gate" or "post".
        languages: the targets; all groups of `neurons` by default.
        raising: a name in `RAISING`: set to the mean activation in the target language (Tang et al. 2024), or to the
            mean over the tokens at which the neuron is active (ours); or add the mean, or its difference from that of
            the other languages (Gurgurov et al. 2025).
        strength: times the mean (difference); one number, or one for each target (`best_strength`).
        source_off: switch the source's neurons off.
        seeds: of the random neurons; none for no control.
        decoding: options of `generate`, such as `max_new_tokens`, `bos`, and `chat` (prompts are what users say).

    Returns:
        columns source, target, condition, seed, strength, raising, prompt, continuation, found; outputs of the intact
            model
        (strength 0) stand beside every target.

    Raises:
        ValueError: before anything runs: a language without neurons or statistics or that cannot be identified,
            neurons or statistics of another model, an unknown way of raising, a strength that is not finite, seeds
            that are negative or repeat.

    Source: Tang et al. 2024 (arXiv 2402.16438), section 4.5; Gurgurov et al. 2025 (arXiv 2507.22608).

    Example:
        >>> import mi_multilingual as mm
        >>> model = mm.load_model("demo")
        >>> reading = mm.Reading(layout="documents", window=32)
        >>> corpus = mm.load_corpus("demo", languages=["en", "fr"], split="identify", max_documents=4)
        >>> stats = mm.record(model, corpus, reading=reading, progress=False)
        >>> neurons = mm.lape(stats, rate=0.01)
        >>> prompts = mm.Corpus({"en": ("The dog",)}, "prompts")
        >>> outputs = mm.steering_matrix(
        ...     model, prompts, neurons, stats, strength=2.0, seeds=[0], max_new_tokens=3, progress=False
        ... )
        >>> outputs[["source", "target", "condition", "seed", "strength"]]
          source target condition  seed  strength
        0     en     en    intact    -1       0.0
        1     en     fr    intact    -1       0.0
        2     en     en    chosen    -1       2.0
        3     en     fr    chosen    -1       2.0
        4     en     en    random     0       2.0
        5     en     fr    random     0       2.0
    """
    pairs = _all_pairs(prompts, neurons, languages)
    how = Steering(stats, raising, strength, source_off)
    check_steering(model, how, neurons, pairs)
    steered = {**intact(pairs, strength=0.0, raising=""), **steered_pairs(how, neurons, pairs, seeds)}
    return outputs(model, prompts.documents, steered, stats.languages, progress, decoding)


def strength_curve(
    model: HookedModel,
    prompts: Corpus,
    neurons: NeuronSet,
    stats: ActivationStats,
    strengths: Sequence[float],
    *,
    languages: Sequence[str] | None = None,
    raising: str = "set_to_mean",
    source_off: bool = False,
    seeds: Sequence[int] = (0, 1, 2),
    progress: bool = True,
    **decoding: Any,
) -> pd.DataFrame:
    """A `steering_matrix` for every strength, prompts of a language steered to the others; strength 0 is intact.

    Arguments, errors and columns are those of `steering_matrix`.
    """
    pairs = _other_pairs(prompts, neurons, languages)
    if not strengths:
        raise ValueError("strengths must hold at least one number, got none; give some, such as [1, 2, 4]")
    steered = intact(pairs, strength=0.0, raising="")
    for strength in strengths:
        how = Steering(stats, raising, strength, source_off)
        check_steering(model, how, neurons, pairs)
        steered |= steered_pairs(how, neurons, pairs, seeds)
    return outputs(model, prompts.documents, steered, stats.languages, progress, decoding)


def rate_curve(
    model: HookedModel,
    prompts: Corpus,
    sets: Mapping[float, NeuronSet],
    stats: ActivationStats,
    *,
    languages: Sequence[str] | None = None,
    raising: str = "set_to_mean",
    strength: float | Mapping[str, float] = 1.0,
    source_off: bool = False,
    seeds: Sequence[int] = (0, 1, 2),
    progress: bool = True,
    **decoding: Any,
) -> pd.DataFrame:
    """A `steering_matrix` for every set of neurons, prompts of a language steered to the others.

    Args:
        sets: rate of the neurons -> the set, such as {r: lape(stats, rate=r) for r in (0.01, 0.03)}.

    Returns:
        the columns of `steering_matrix`, with rate; rate 0 is the intact model.
    """
    if not sets:
        raise ValueError("sets must hold at least one set, got none; give some, such as {0.01: lape(stats, rate=0.01)}")
    pairs = _other_pairs(prompts, next(iter(sets.values())), languages)
    how = Steering(stats, raising, strength, source_off)
    steered = intact(pairs, strength=0.0, raising="", rate=0.0)
    for rate, neurons in sets.items():
        check_steering(model, how, neurons, pairs)
        steered |= steered_pairs(how, neurons, pairs, seeds, rate=rate)
    return outputs(model, prompts.documents, steered, stats.languages, progress, decoding)


def fallback_study(
    model: HookedModel,
    prompts: Corpus,
    neurons: NeuronSet,
    order: Sequence[str],
    *,
    seeds: Sequence[int] = (0, 1, 2),
    progress: bool = True,
    **decoding: Any,
) -> pd.DataFrame:
    """Languages switched off one after another, each staying off: which language do the outputs come out in?

    Args:
        order: which languages' neurons go off, in this order.
        decoding: options of `generate`.

    Returns:
        columns source, target (the same), condition, seed, n_off, off (the language that went off last, "" before
        the first), prompt, continuation, found. Random neurons are as many per layer as are off together.

    Raises:
        ValueError: before anything runs: a language without neurons, or named twice; neurons of another model.

    Source: Gurgurov et al. 2025 (arXiv 2507.22608).
    """
    if isinstance(order, str) or not order or len(set(order)) < len(order):
        raise ValueError(f"order must be a list of different languages to switch off, got {order!r}")
    check_groups(model, neurons.take(order))
    pairs = [(k, k) for k in prompts.languages]
    steered = intact(pairs, n_off=0, off="")
    for n, last in enumerate(order, start=1):
        together = replace(neurons, masks=neurons.take(order[:n]).union()[None], groups=(last,))
        steered |= {labelled(c, n_off=n, off=last): pairs for c in with_controls(together, seeds)}
    return outputs(model, prompts.documents, steered, neurons.groups, progress, decoding)


def intact(pairs: Pairs, **labels: Any) -> dict[Condition, Pairs]:
    """The pairs' prompts continued by the model as it is."""
    return {labelled(Condition(), **labels): pairs}


def steered_pairs(
    how: Steering, neurons: NeuronSet, pairs: Pairs, seeds: Sequence[int], **labels: Any
) -> dict[Condition, Pairs]:
    """The conditions that steer the pairs, by the languages' own neurons and by random ones."""
    found: dict[Condition, Pairs] = {}
    for name, seed, drawn in beside_random(neurons, seeds):
        raised = {target: how.raised(drawn, target) for _, target in pairs}
        for alike in _pairs_alike(pairs, how.source_off):
            source, target = alike[0]
            off = switched_off(drawn, source, target) if how.source_off else ()
            own = {**labels_of(name, drawn[target], seed), **labels}
            own["n_neurons"] += sum(int(i.neurons.union().sum()) for i in off)
            own |= {"strength": how.strength_of(target), "raising": how.raising}
            found[Condition(own, (*off, raised[target]))] = alike
    return found


def _pairs_alike(pairs: Pairs, source_off: bool) -> list[Pairs]:
    """Pairs that can share a condition: those of one target, or where the source's neurons go off single ones."""
    found: dict[tuple[str, str], list[tuple[str, str]]] = {}
    for source, target in pairs:
        found.setdefault((source if source_off else "", target), []).append((source, target))
    return list(found.values())


def switched_off(neurons: NeuronSet, source: str, target: str) -> tuple[Intervention, ...]:
    """The source's neurons off, but for those that are the target's too."""
    off = replace(neurons[source], masks=neurons[source].masks & ~neurons[target].masks)
    return (Intervention("zero", off),) if off.masks.any() else ()


def outputs(
    model: HookedModel,
    documents: Mapping[str, Sequence[str]],
    steered: _SteeredPairs,
    languages: Sequence[str],
    progress: bool,
    decoding: Mapping[str, Any],
) -> pd.DataFrame:
    """The prompts of all pairs continued, with the language found among all that are at play."""
    named = [k for pairs in steered.values() for pair in pairs for k in pair if k]
    known = list(dict.fromkeys([*languages, *named]))
    check_known(known)

    def written(condition: Condition) -> Iterator[dict[str, str]]:
        return continued(model, documents, steered[condition], decoding)

    table = pd.DataFrame(measured(model, steered, written, title="steering", progress=progress))
    others = [name for name in table if name not in ("source", "target", "group", "n_neurons")]
    found = identify_language(list(table.continuation), known)
    return table[["source", "target", *others]].assign(found=found)


def continued(
    model: HookedModel, documents: Mapping[str, Sequence[str]], pairs: Pairs, decoding: Mapping[str, Any]
) -> Iterator[dict[str, str]]:
    """The prompts of all pairs continued, those of a source once, whatever the number of its targets."""
    sources = list(dict.fromkeys(source for source, _ in pairs))
    texts = [text for source in sources for text in documents[source]]
    continuations = iter(generate(model, texts, progress=False, **decoding))
    by_source = {k: [(text, next(continuations)) for text in documents[k]] for k in sources}
    for source, target in pairs:
        for prompt, continuation in by_source[source]:
            yield {"source": source, "target": target, "prompt": prompt, "continuation": continuation}


def _all_pairs(prompts: Corpus, neurons: NeuronSet, languages: Sequence[str] | None) -> list[tuple[str, str]]:
    """Every source with every target."""
    targets = neurons.groups if languages is None else languages
    if isinstance(targets, str) or not targets:
        raise ValueError(f"languages must be a list of at least one language to steer to, got {targets!r}")
    return [(source, target) for source in prompts.languages for target in dict.fromkeys(targets)]


def _other_pairs(prompts: Corpus, neurons: NeuronSet, languages: Sequence[str] | None) -> list[tuple[str, str]]:
    """Every source with every other target."""
    pairs = _all_pairs(prompts, neurons, languages)
    others = [(source, target) for source, target in pairs if source != target]
    without = {target for _, target in pairs} - {target for _, target in others}
    if without:
        raise ValueError(
            f"prompts must be in another language than {min(without)!r} to steer to it, got none; add a second language"
        )
    return others


def check_steering(model: HookedModel, how: Steering, neurons: NeuronSet, pairs: Pairs) -> None:
    """Raise unless all pairs can be steered so."""
    if how.raising not in RAISING:
        raise ValueError(f"raising must be one of {', '.join(RAISING)}, got {how.raising!r}")
    targets = list(dict.fromkeys(target for _, target in pairs))
    sources = [source for source, _ in pairs] if how.source_off else []
    check_groups(model, neurons.take(list(dict.fromkeys([*targets, *sources]))))
    if how.stats.model_fingerprint != fingerprint(model):
        raise ValueError(f"stats must be recorded on this model, got those of {how.stats.model!r}; record this one")
    for k in targets:
        if not math.isfinite(how.strength_of(k)):
            raise ValueError(f"strength must be a finite number for every target, got {how.strength_of(k)} for {k!r}")
