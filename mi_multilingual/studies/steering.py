"""Does a model speak a language when that language's neurons are raised, and which one when they are switched off?

Every study returns its single outputs, a row each: source (language of the prompt), target (the language wanted),
condition ("unsteered", "steered", or "random" for the control), seed (of the control's neurons, else -1), prompt,
continuation, found (language of the continuation, "" for none of the study's) and what the study varies. Tables with
intervals are made of them by `steering_shares`, `found_shares` and `steering_quality`.
"""

import math
import re
from collections.abc import Callable, Mapping, Sequence
from contextlib import nullcontext
from dataclasses import dataclass, replace
from itertools import islice
from typing import Any

import pandas as pd
from jaxtyping import Float
from torch import Tensor
from tqdm.auto import tqdm
from transformers import PreTrainedTokenizerBase

from ..corpora import Corpus
from ..evaluation.generation import generate
from ..evaluation.language_id import check_known, identify_language
from ..evaluation.quality import WITHOUT_SPACES
from ..evidence.activations import ActivationStats
from ..models.hooked import HookedModel, fingerprint
from ..neurons import NeuronSet
from ..patching.changes import Intervention, add_mean, add_mean_difference, check_fits, of_recording, set_to_mean
from ..patching.conditions import layer_matched_random
from ..patching.hooks import steer

RAISING: dict[str, Callable[..., Intervention]] = {
    "set_to_mean": set_to_mean,
    "add_mean": add_mean,
    "add_mean_difference": add_mean_difference,
}
"""How neurons are raised: functions of neurons, statistics, language and strength."""
WORD_END = re.compile(rf"^[\w{WITHOUT_SPACES}]\s|[{WITHOUT_SPACES}]")
"""White space after a letter, or a script without spaces on either side."""
UNSTEERED = {"condition": "unsteered", "seed": -1}
Pairs = Sequence[tuple[str, str]]


@dataclass(frozen=True, eq=False)
class Run:
    """Prompts that are continued under the same interventions, none of them for the model as it is."""

    pairs: Pairs
    """Source and target; a source's prompts are continued once, whatever the number of its targets."""
    interventions: tuple[Intervention, ...]
    labels: Mapping[str, Any]
    """Further columns of the outputs."""


@dataclass(frozen=True, eq=False)
class Plan:
    """How a target language is brought about."""

    neurons: NeuronSet
    stats: ActivationStats
    raising: str
    strength: Mapping[str, float]
    source_off: bool

    def interventions(self, source: str, target: str) -> tuple[Intervention, ...]:
        """The source's neurons off, but for those that are the target's too, then the target's raised."""
        raised = RAISING[self.raising](self.neurons[target], self.stats, target, strength=self.strength[target])
        own = self.neurons[target].masks
        off = replace(self.neurons[source], masks=self.neurons[source].masks & ~own) if self.source_off else None
        if off is None or not off.masks.any():
            return (raised,)
        return Intervention("zero", off), raised

    def runs(self, pairs: Pairs, **labels: Any) -> list[Run]:
        """A run a target, or where the source matters a run a pair."""
        together: dict[tuple[str, str], list[tuple[str, str]]] = {}
        for source, target in pairs:
            together.setdefault((source if self.source_off else "", target), []).append((source, target))
        return [
            Run(same, self.interventions(*same[0]), {**labels, "strength": self.strength[same[0][1]]})
            for same in together.values()
        ]

    def runs_beside_control(self, pairs: Pairs, seeds: Sequence[int], **labels: Any) -> list[Run]:
        """Those of the language's neurons, and those of as many random ones a layer for every seed."""
        runs = self.runs(pairs, condition="steered", seed=-1, **labels)
        for seed in seeds:
            control = replace(self, neurons=layer_matched_random(self.neurons, seed=seed))
            runs += control.runs(pairs, condition="random", seed=seed, **labels)
        return runs


def language_forcing(
    model: HookedModel,
    prompts: Corpus,
    neurons: NeuronSet,
    stats: ActivationStats,
    *,
    raising: str = "add_mean",
    strength: float | Mapping[str, float] = 1.0,
    seeds: Sequence[int] = (0,),
    progress: bool = True,
    **decoding: Any,
) -> pd.DataFrame:
    """Prompts of each language, with that language's neurons raised and without (Tang et al. 2024, section 4.5).

    Arguments, errors and columns are those of `steering_matrix`, of which this is the diagonal.
    """
    pairs = [(k, k) for k in prompts.languages]
    plan = checked_plan(model, pairs, neurons, stats, raising, strength, source_off=False)
    runs = [Run(pairs, (), {**UNSTEERED, "strength": 0.0}), *plan.runs_beside_control(pairs, seeds)]
    return outputs(model, prompts.documents, runs, stats.languages, progress, decoding)


def steering_matrix(
    model: HookedModel,
    prompts: Corpus,
    neurons: NeuronSet,
    stats: ActivationStats,
    *,
    languages: Sequence[str] | None = None,
    raising: str = "add_mean",
    strength: float | Mapping[str, float] = 1.0,
    source_off: bool = True,
    seeds: Sequence[int] = (0,),
    progress: bool = True,
    **decoding: Any,
) -> pd.DataFrame:
    """Prompts of every language, steered to every language: the source's neurons off, the target's raised.

    Neurons that source and target share are raised. The control does the same with as many random neurons in each
    layer. Where the source's neurons stay on, prompts of all languages run together, which is faster; prompts of one
    length in tokens do so too (`equal_openings`).

    Args:
        prompts: language -> prompts; its languages are the sources.
        neurons: a group a language.
        stats: recorded at the site to write to, "gate" or "post".
        languages: the targets; all groups of `neurons` by default.
        raising: a name in `RAISING`.
        strength: times the mean (difference); one number, or one a target (`best_strength`).
        source_off: switch the source's neurons off.
        seeds: of the random neurons; none for no control.
        decoding: options of `generate`.

    Returns:
        columns source, target, condition, seed, strength, prompt, continuation, found; unsteered outputs stand
        beside every target.

    Raises:
        ValueError: before anything runs: a language without neurons or statistics or that cannot be identified,
            neurons or statistics of another model, an unknown way of raising, a strength that is not finite.

    Source: Tang et al. 2024 (arXiv 2402.16438), section 4.5; Gurgurov et al. 2025 (arXiv 2507.22608).
    """
    pairs = all_pairs(prompts, neurons, languages)
    plan = checked_plan(model, pairs, neurons, stats, raising, strength, source_off=source_off)
    runs = [Run(pairs, (), {**UNSTEERED, "strength": 0.0}), *plan.runs_beside_control(pairs, seeds)]
    return outputs(model, prompts.documents, runs, stats.languages, progress, decoding)


def strength_curve(
    model: HookedModel,
    prompts: Corpus,
    neurons: NeuronSet,
    stats: ActivationStats,
    strengths: Sequence[float],
    *,
    languages: Sequence[str] | None = None,
    raising: str = "add_mean",
    source_off: bool = False,
    seeds: Sequence[int] = (0,),
    progress: bool = True,
    **decoding: Any,
) -> pd.DataFrame:
    """A `steering_matrix` for every strength, prompts of a language steered to the others; unsteered is strength 0.

    Arguments, errors and columns are those of `steering_matrix`.
    """
    pairs = other_pairs(prompts, neurons, languages)
    if not strengths:
        raise ValueError("no strength to try; give some, such as [1, 2, 4]")
    plans = [checked_plan(model, pairs, neurons, stats, raising, s, source_off=source_off) for s in strengths]
    runs = [Run(pairs, (), {**UNSTEERED, "strength": 0.0})]
    runs += [run for plan in plans for run in plan.runs_beside_control(pairs, seeds)]
    return outputs(model, prompts.documents, runs, stats.languages, progress, decoding)


def rate_curve(
    model: HookedModel,
    prompts: Corpus,
    sets: Mapping[float, NeuronSet],
    stats: ActivationStats,
    *,
    languages: Sequence[str] | None = None,
    raising: str = "add_mean",
    strength: float | Mapping[str, float] = 1.0,
    source_off: bool = False,
    seeds: Sequence[int] = (0,),
    progress: bool = True,
    **decoding: Any,
) -> pd.DataFrame:
    """A `steering_matrix` for every set of neurons, prompts of a language steered to the others.

    Args:
        sets: rate of the neurons -> the set, such as {r: lape(stats, rate=r) for r in (0.01, 0.03)}.

    Returns:
        the columns of `steering_matrix`, with rate; unsteered is rate 0.
    """
    if not sets:
        raise ValueError("no set of neurons to try; give some, such as {0.01: lape(stats, rate=0.01)}")
    pairs = other_pairs(prompts, next(iter(sets.values())), languages)
    runs = [Run(pairs, (), {**UNSTEERED, "strength": 0.0, "rate": 0.0})]
    for rate, neurons in sets.items():
        plan = checked_plan(model, pairs, neurons, stats, raising, strength, source_off=source_off)
        runs += plan.runs_beside_control(pairs, seeds, rate=rate)
    return outputs(model, prompts.documents, runs, stats.languages, progress, decoding)


def fallback_study(
    model: HookedModel,
    prompts: Corpus,
    neurons: NeuronSet,
    order: Sequence[str],
    *,
    seeds: Sequence[int] = (0,),
    progress: bool = True,
    **decoding: Any,
) -> pd.DataFrame:
    """Languages switched off one after another, each staying off: which language do the outputs come out in?

    Args:
        order: which languages' neurons go off, in this order.

    Returns:
        columns source, target (the same), condition, seed, n_off, off (the language that went off last, "" before
        the first), prompt, continuation, found. Random neurons are as many a layer as are off together.

    Raises:
        ValueError: before anything runs: a language without neurons, or named twice; neurons of another model.

    Source: Gurgurov et al. 2025 (arXiv 2507.22608).
    """
    if isinstance(order, str) or not order or len(set(order)) < len(order):
        raise ValueError(f"the order {order!r} is no list of different languages; name those to switch off")
    check_neurons(model, neurons, order)
    pairs = [(k, k) for k in prompts.languages]
    runs = [Run(pairs, (), {**UNSTEERED, "n_off": 0, "off": ""})]
    for n, last in enumerate(order, start=1):
        off, labels = neurons.take(order[:n]), {"n_off": n, "off": last}
        runs.append(Run(pairs, (Intervention("zero", off),), {"condition": "steered", "seed": -1, **labels}))
        together = replace(off, masks=off.union()[None], groups=("off",))
        for seed in seeds:
            zero = Intervention("zero", layer_matched_random(together, seed=seed))
            runs.append(Run(pairs, (zero,), {"condition": "random", "seed": seed, **labels}))
    return outputs(model, prompts.documents, runs, neurons.groups, progress, decoding)


def unconditional_study(
    model: HookedModel,
    neurons: NeuronSet,
    values: Mapping[str, Float[Tensor, "layer neuron"]],
    *,
    n_texts: int = 20,
    site: str = "gate",
    temperature: float = 1.0,
    seeds: Sequence[int] = (0,),
    progress: bool = True,
    **decoding: Any,
) -> pd.DataFrame:
    """Texts drawn from BOS with each language's neurons held at a value (Kojima et al. 2024, section 4).

    Args:
        values: language -> what its neurons are held at, such as
            dict(zip(texts.languages, medians(texts).unbind(-1))) or the same of stats.mean(), read at `site`.
        n_texts: texts a language and condition.

    Returns:
        columns source (""), target, condition, seed, prompt (""), continuation, found.

    Raises:
        ValueError: before anything runs: a language without neurons, values that do not fit or are not finite,
            neurons of another model, greedy decoding, or no texts.
    """
    if n_texts < 1 or temperature == 0:
        raise ValueError(f"n_texts={n_texts}, temperature={temperature}: draw at least one text, above temperature 0")
    if not values:
        raise ValueError("values hold the neurons of no language; give {language: (layer, neuron) table}")
    check_neurons(model, neurons, list(values))
    pairs = [("", k) for k in values]
    sets = [({"condition": "steered", "seed": -1}, neurons)]
    sets += [({"condition": "random", "seed": s}, layer_matched_random(neurons, seed=s)) for s in seeds]
    runs = [Run(pairs, (), UNSTEERED)]
    for labels, chosen in sets:
        runs += [Run([("", k)], (Intervention("set", chosen[k], v, site),), labels) for k, v in values.items()]
    drawing = {**decoding, "temperature": temperature}
    return outputs(model, {"": ("",) * n_texts}, runs, list(values), progress, drawing)


def outputs(
    model: HookedModel,
    documents: Mapping[str, Sequence[str]],
    runs: Sequence[Run],
    languages: Sequence[str],
    progress: bool,
    decoding: Mapping[str, Any],
) -> pd.DataFrame:
    """Every run's prompts continued, a row a prompt and pair, with the language found among all that are at play."""
    named = [k for run in runs for pair in run.pairs for k in pair if k]
    known = list(dict.fromkeys([*languages, *named]))
    check_known(known)
    rows = []
    for run in tqdm(runs, desc="steering", unit="run", disable=not progress):
        sources = list(dict.fromkeys(source for source, _ in run.pairs))
        texts = [text for source in sources for text in documents[source]]
        with steer(model, *run.interventions) if run.interventions else nullcontext():
            continued = iter(generate(model, texts, progress=False, **decoding))
        by_source = {k: [(text, next(continued)) for text in documents[k]] for k in sources}
        rows += [
            {"source": source, "target": target, **run.labels, "prompt": prompt, "continuation": continuation}
            for source, target in run.pairs
            for prompt, continuation in by_source[source]
        ]
    table = pd.DataFrame(rows)
    return table.assign(found=identify_language(list(table.continuation), known))


def all_pairs(prompts: Corpus, neurons: NeuronSet, languages: Sequence[str] | None) -> list[tuple[str, str]]:
    """Every source with every target."""
    targets = neurons.groups if languages is None else languages
    if isinstance(targets, str) or not targets:
        raise ValueError(f"languages={targets!r} is no list of languages; name at least one to steer to")
    return [(source, target) for source in prompts.languages for target in dict.fromkeys(targets)]


def other_pairs(prompts: Corpus, neurons: NeuronSet, languages: Sequence[str] | None) -> list[tuple[str, str]]:
    """Every source with every other target."""
    pairs = all_pairs(prompts, neurons, languages)
    others = [(source, target) for source, target in pairs if source != target]
    without = {target for _, target in pairs} - {target for _, target in others}
    if without:
        raise ValueError(f"no prompts to steer to {min(without)!r} from another language; add a second language")
    return others


def checked_plan(
    model: HookedModel,
    pairs: Pairs,
    neurons: NeuronSet,
    stats: ActivationStats,
    raising: str,
    strength: float | Mapping[str, float],
    *,
    source_off: bool,
) -> Plan:
    """The plan, if everything in it fits."""
    if raising not in RAISING:
        raise ValueError(f"unknown way of raising {raising!r}; choose {', '.join(RAISING)}")
    targets = list(dict.fromkeys(target for _, target in pairs))
    sources = [source for source, _ in pairs] if source_off else []
    check_neurons(model, neurons, list(dict.fromkeys([*targets, *sources])))
    neurons = of_recording(neurons, stats.take(targets))
    if stats.model_fingerprint != fingerprint(model):
        raise ValueError(f"the statistics were recorded on another model ({stats.model!r}); record this one")
    each = dict(strength) if isinstance(strength, Mapping) else dict.fromkeys(targets, strength)
    for k in targets:
        if not math.isfinite(each.get(k, math.nan)):
            raise ValueError(f"the strength for {k!r} is {each.get(k, 'missing')}; give a finite number")
    return Plan(neurons, stats, raising, each, source_off)


def check_neurons(model: HookedModel, neurons: NeuronSet, languages: Sequence[str]) -> None:
    """Raise unless every language has neurons, and of this model."""
    sizes = neurons.take(languages).sizes()
    if (sizes == 0).any():
        raise ValueError(f"the set of {sizes.idxmin()!r} is empty; choose more neurons, or leave the language out")
    check_fits(model, neurons)


def equal_openings(
    corpus: Corpus, tokenizer: PreTrainedTokenizerBase, *, n_tokens: int = 8, n_prompts: int | None = None
) -> Corpus:
    """Beginnings of documents with `n_tokens` tokens each, ending with a word: prompts that `generate` runs together.

    Documents whose first tokens end within a word or a character, or have nothing after them, are left out.

    Args:
        n_prompts: so many a language, the first ones; all by default.

    Raises:
        ValueError: a language with fewer than that.
    """
    found = {}
    for language, documents in corpus.documents.items():
        openings = (opening(text, tokenizer, n_tokens) for text in documents)
        found[language] = tuple(islice(filter(None, openings), n_prompts))
        if len(found[language]) < (n_prompts or 1):
            raise ValueError(
                f"{len(found[language])} documents of {language!r} have a word that ends with token {n_tokens}, "
                f"{n_prompts or 1} are asked for; give more documents or another n_tokens"
            )
    return Corpus(found, f"{corpus.source}, first {n_tokens} tokens")


def opening(text: str, tokenizer: PreTrainedTokenizerBase, n_tokens: int) -> str:
    """The text of the first tokens, or "" where it is not a beginning that ends with a word."""
    ids = tokenizer(text, add_special_tokens=False)["input_ids"]
    start = str(tokenizer.decode(ids[:n_tokens]))
    rest = text.removeprefix(start)
    again = tokenizer(start, add_special_tokens=False)["input_ids"]
    if not text.startswith(start) or not rest or again != ids[:n_tokens]:
        return ""
    return start if WORD_END.search(start[-1] + rest[0]) else ""
