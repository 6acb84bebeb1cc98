"""Outputs of the steering studies made into tables with intervals.

Where neurons were raised, a last column `raising` says how.
"""

import math
from collections.abc import Iterator, Sequence
from typing import Any

import pandas as pd

from ..evaluation.intervals import ratio_interval, wilson_interval
from ..evaluation.quality import continuation_perplexity, distinct_n
from ..models.hooked import HookedModel
from ..patching.conditions import CHOSEN


def steering_shares(outputs: pd.DataFrame, by: Sequence[str] = ("target", "condition")) -> pd.DataFrame:
    """How many outputs are in the target language, in the prompt's language, and in others, one row per group.

    Args:
        outputs: those of a steering study.
        by: columns whose values make a group; random neurons are averaged over seeds unless seed is one of them.

    Returns:
        the columns of `by`, n, in_target (language accuracy, share of n), low, high (its 95 % Wilson interval over
        prompts: of as many as the group has outputs per seed, since several seeds go on from the same ones),
        in_source, elsewhere (another language or none); the three add up to 1, and where source and target are one
        in_source is 0.

    Raises:
        ValueError: `by` names no column, or one that the outputs do not have.
    """
    _check_columns(outputs, by)
    hit = outputs.found == outputs.target
    stayed = ~hit & (outputs.found == outputs.source)
    flags = outputs[list(by)].assign(in_target=hit, in_source=stayed, elsewhere=~hit & ~stayed)
    table = flags.groupby(list(by), sort=False).agg(
        n=("in_target", "size"),
        in_target=("in_target", "mean"),
        in_source=("in_source", "mean"),
        elsewhere=("elsewhere", "mean"),
    )
    table = table.reset_index()
    n_seeds = outputs.groupby(list(by), sort=False).agg(n=("seed", "nunique")).n.to_numpy(float)
    low, high = wilson_interval(table.in_target.to_numpy(float), table.n.to_numpy(float) / n_seeds)
    columns = [*by, "n", "in_target", "low", "high", "in_source", "elsewhere"]
    return _with_ways(table.assign(low=low, high=high).reindex(columns=columns), outputs, by)


def found_shares(outputs: pd.DataFrame, by: Sequence[str] = ("n_off", "off", "condition")) -> pd.DataFrame:
    """Which languages the outputs came out in: the columns of `by`, found, n (of the group), share, low, high.

    Low and high are the 95 % Wilson interval, as of `steering_shares`. Every group has a row for every language found
    anywhere ("" for none), so the table is a full matrix.

    Raises:
        ValueError: as `steering_shares`.
    """
    _check_columns(outputs, by)
    languages = sorted(outputs.found.unique())
    rows = []
    for key, group in _named_groups(outputs, by):
        counts, n = group.found.value_counts(), len(group)
        for k in languages:
            share = counts.get(k, 0) / n
            low, high = wilson_interval(share, n / group.seed.nunique())
            rows.append((*key, k, n, share, low, high))
    table = pd.DataFrame(rows, columns=[*by, "found", "n", "share", "low", "high"])
    return _with_ways(table, outputs, by)


def steering_quality(
    model: HookedModel,
    outputs: pd.DataFrame,
    by: Sequence[str] = ("strength", "condition"),
    *,
    bos: str = "tokenizer",
    progress: bool = True,
) -> pd.DataFrame:
    """How likely the model as it is finds the outputs after their prompts, and how much they repeat themselves.

    Perplexity counts the change of language too: an output in another language than its prompt's is unlikely however
    well it is written, so compare strengths at which as many outputs are in the target language.

    Args:
        outputs, by: as of `steering_shares`.
        bos: special tokens before every prompt, as in `generate`.

    Returns:
        the columns of `by`, n, nll (nats per token, over all tokens of the group), nll_low, nll_high (95 % bootstrap
        interval over prompts), ppl (per token), distinct_2 (`distinct_n`, mean over targets).

    Raises:
        ValueError: as `steering_shares`, or an output that with its prompt is longer than the model's context.
    """
    _check_columns(outputs, by)
    texts = outputs[["prompt", "continuation"]].drop_duplicates(ignore_index=True)
    prompts, continuations = texts.prompt.tolist(), texts.continuation.tolist()
    scores = continuation_perplexity(model, prompts, continuations, bos=bos, progress=progress)
    scored = outputs.merge(pd.concat([texts, scores], axis=1), on=["prompt", "continuation"], validate="many_to_one")
    rows = []
    for key, group in _named_groups(scored, by):
        nll, low, high = loss_interval(group)
        distinct = pd.Series([distinct_n(list(p), 2) for _, p in group.groupby(["target", "seed"]).continuation])
        rows.append((*key, len(group), nll, low, high, math.exp(nll), distinct.mean()))
    table = pd.DataFrame(rows, columns=[*by, "n", "nll", "nll_low", "nll_high", "ppl", "distinct_2"])
    return _with_ways(table, outputs, by)


def loss_interval(outputs: pd.DataFrame) -> tuple[float, float, float]:
    """Loss per token, nats, and its 95 % bootstrap interval over prompts; NaN without tokens.

    Args:
        outputs: with nll and n_tokens; those of all seeds after one prompt count as one text.
    """
    totals = outputs.assign(total=(outputs.nll * outputs.n_tokens).fillna(0.0))
    by_prompt = totals.groupby(prompt_numbers(outputs))[["total", "n_tokens"]].sum()
    total, n_tokens = by_prompt.total.to_numpy(), by_prompt.n_tokens.to_numpy()
    if not n_tokens.any():
        return math.nan, math.nan, math.nan
    return float(total.sum() / n_tokens.sum()), *ratio_interval(total, n_tokens)


def prompt_numbers(outputs: pd.DataFrame) -> pd.Series:
    """The number of the prompt that each output goes on from, the same for all seeds of random neurons.

    A prompt that was given several times, such as that of texts from nothing, counts as several.
    """
    prompt = ["source", "target", "prompt"]
    time = outputs.groupby([*prompt, "seed"], sort=False).cumcount()
    return outputs.assign(time=time).groupby([*prompt, "time"], sort=False).ngroup()


def best_strength(outputs: pd.DataFrame) -> dict[str, float]:
    """For every target, the strength that gave most outputs in it; of several, the lowest, which changes least.

    Args:
        outputs: those of a `strength_curve` on prompts that are not measured on later.

    Raises:
        ValueError: no steered outputs.
    """
    steered = outputs[outputs.condition == CHOSEN]
    if steered.empty:
        raise ValueError(f"outputs must hold some of condition {CHOSEN!r}, got none; give those of strength_curve")
    table = steering_shares(steered, ["target", "strength"]).sort_values("strength")
    best = table.loc[table.groupby("target", sort=False).in_target.idxmax()].set_index("target").strength
    return {target: float(best[target]) for target in steered.target.unique()}


def _with_ways(table: pd.DataFrame, outputs: pd.DataFrame, by: Sequence[str]) -> pd.DataFrame:
    """The table with how the neurons of each group were raised, where the outputs say it."""
    if "raising" not in outputs or "raising" in by:
        return table
    ways = outputs.groupby(list(by), sort=False).raising.agg(lambda given: " or ".join(filter(None, given.unique())))
    return table.merge(ways.reset_index(), on=list(by), validate="many_to_one")


def _named_groups(outputs: pd.DataFrame, by: Sequence[str]) -> Iterator[tuple[Any, pd.DataFrame]]:
    """The values of `by` and the rows that have them, in the order of appearance."""
    yield from outputs.groupby(list(by), sort=False)


def _check_columns(outputs: pd.DataFrame, by: Sequence[str]) -> None:
    """Raise unless the outputs have the columns they are to be grouped by, and there are some."""
    if isinstance(by, str) or not by:
        raise ValueError(f"by must be a list of columns, such as ['target', 'condition'], got {by!r}")
    if missing := [name for name in by if name not in outputs.columns]:
        raise ValueError(f"by must name columns of the outputs ({', '.join(outputs.columns)}), got {missing[0]!r}")
