"""The headline results in words, made from the tables alone; no sentence says more than the intervals do."""

from collections.abc import Callable

import pandas as pd

from ..evaluation.intervals import mean_interval, wilson_interval
from ..neurons import NeuronSet
from ..studies.leaderboard import RANDOM
from .intervals import apart


def effects(matrix: pd.DataFrame) -> dict[str, float]:
    """Change of the loss in nats a token: means over languages of the own, other and random effects; rows that hit."""
    off = matrix[~matrix.ablated.isin(["none", "random"])]
    own = off[off.ablated == off.evaluated]
    other = off[off.ablated != off.evaluated]
    random = matrix[matrix.ablated == "random"]
    hardest = off.loc[off.groupby("ablated")["change"].idxmax()]
    return {
        "own": own.change.mean(),
        "other": other.change.mean(),
        "random": random.change.mean(),
        "hits": int((hardest.ablated == hardest.evaluated).sum()),
        "certain": int((own.low > 0).sum()),
        "n_languages": len(own),
    }


def ablation(matrix: pd.DataFrame) -> list[str]:
    """Of a `perplexity_matrix`; nothing where no group is a language of the text."""
    own = matrix[matrix.ablated == matrix.evaluated].set_index("ablated")
    if own.empty:
        return []
    e = effects(matrix)
    off = matrix[~matrix.ablated.isin(["none", "random"])]
    rest = off[off.ablated != off.evaluated].groupby("ablated", sort=False)
    others, clear = rest["change"].mean(), int((own.low > rest["high"].max().reindex(own.index)).sum())
    low, high = mean_interval(own.change.to_numpy())
    sentences = [
        f"Switching off a language's own neurons hurts that language most of all in {e['hits']} of {e['n_languages']} "
        f"languages, in {clear} beyond the intervals of all other languages; its own loss rises with 95 % confidence "
        f"in {e['certain']}.",
        f"Mean own effect: {e['own']:+.4f} nats a token (95 % interval over languages {low:+.4f} to {high:+.4f}).",
    ]
    if len(others):
        other = mean_interval(others.to_numpy())
        ratio = f", {e['own'] / e['other']:.0f} times less than the own one" if other[0] > 0 and low > other[1] else ""
        sentences.append(
            f"Mean effect on the other languages: {e['other']:+.4f} ({other[0]:+.4f} to {other[1]:+.4f}){ratio}."
        )
    return sentences + against_random(matrix, own) + extremes(own)


def against_random(matrix: pd.DataFrame, own: pd.DataFrame) -> list[str]:
    """The own effect beside that of as many random neurons, language by language."""
    random = matrix[matrix.ablated == "random"].groupby("evaluated", sort=False)
    if not len(random):
        return []
    highest = random["high"].max().reindex(own.index)
    return [
        f"As many random neurons in the same layers: {random['change'].mean().mean():+.4f} nats a token; the interval "
        f"of the own effect lies above those of all random controls in {int((own.low > highest).sum())} of {len(own)} "
        "languages."
    ]


def extremes(own: pd.DataFrame) -> list[str]:
    """The languages of largest and smallest own effect."""
    if len(own) < 2:
        return []
    most, least = own.change.idxmax(), own.change.idxmin()
    certain = apart(own.low[most], own.high[most], own.low[least], own.high[least])
    return [
        f"The effect is largest for {most} ({own.change[most]:+.4f}, interval {own.low[most]:+.4f} to "
        f"{own.high[most]:+.4f}) and smallest for {least} ({own.change[least]:+.4f}, interval {own.low[least]:+.4f} to "
        f"{own.high[least]:+.4f}){'' if certain else '; the two intervals overlap'}."
    ]


def sizes(neurons: NeuronSet) -> list[str]:
    """How many neurons belong to the groups."""
    n = neurons.sizes()
    shared = int((neurons.masks.sum(0) > 1).sum())
    return [
        f"{int(neurons.union().sum()):,} of {neurons.masks[0].numel():,} neurons belong to a language, {shared:,} of "
        f"them to several; {n.idxmin()} has fewest ({n.min():,}), {n.idxmax()} most ({n.max():,})."
    ]


def significance(table: pd.DataFrame) -> list[str]:
    """Of a `permutation_test` beside the `half_agreement`."""
    above = int((table.found > table.chance_high).sum())
    sentences = [
        f"{int(table.significant.sum()):,} of {int(table.found.sum()):,} memberships stay significant after "
        f"correction; shuffled labels give {table.chance_mean.mean():.1f} a language on average, and more were found "
        f"than in 95 % of the shuffles in {above} of {len(table)} languages."
    ]
    if "agreement" in table:
        worst = table.agreement.idxmin()
        sentences.append(
            f"Two halves of the text agree on {table.agreement.mean():.0%} of the neurons on average over languages "
            f"(Jaccard overlap); least for {table.language[worst]} ({table.agreement[worst]:.2f}, interval "
            f"{table.low[worst]:.2f} to {table.high[worst]:.2f})."
        )
    return sentences


def detectors(table: pd.DataFrame) -> list[str]:
    """Of a `leaderboard`."""
    ranked = table[table.detector != RANDOM].sort_values("specificity", ascending=False)
    if ranked.empty:
        return []
    best = ranked.iloc[0]
    sentence = f"{best.detector} is most specific ({number(best, 'specificity')})"
    rivals = [row.detector for row in ranked.iloc[1:].itertuples() if not apart(best.low, best.high, row.low, row.high)]
    if rivals:
        sentence += f", but its interval overlaps with {listed(rivals)}"
    sentences = [sentence + "."]
    floor = table[table.detector == RANDOM]
    if len(floor):
        beaten = int((ranked.low > floor.high.iloc[0]).sum())
        sentences.append(f"The intervals of {beaten} of {len(ranked)} detectors lie above that of random neurons.")
    if "stability" in table and ranked.stability.notna().any():
        steady = ranked.loc[ranked.stability.idxmax()]
        sentences.append(
            f"The sets of {steady.detector} change least between two halves of the corpus (mean Jaccard overlap "
            f"{steady.stability:.2f}; no interval)."
        )
    return sentences


def sharing(table: pd.DataFrame) -> list[str]:
    """Of `Sharing.layer_shares`, at its lowest threshold and first task."""
    part = table[(table.threshold == table.threshold.min()) & (table.task == table.task.iloc[0])]
    sentences = []
    for kind in ("all-shared", "specific"):
        rows = part[part.type == kind]
        if len(rows):
            most, least = rows.loc[rows["mean"].idxmax()], rows.loc[rows["mean"].idxmin()]
            certain = apart(most.low, most.high, least.low, least.high)
            change = "" if certain else "; the two intervals overlap"
            sentences.append(
                f"{kind.capitalize()} neurons are {share(least)} to {share(most)} of a layer's neurons{change}."
            )
    return sentences


def contributions(table: pd.DataFrame) -> list[str]:
    """Of `attribution`: types that are more frequent among the neurons of highest contribution than among all."""
    mean = table.groupby(["language", "type"], sort=False)[["share", "top_share"]].mean()
    sentences = []
    for kind, part in mean.groupby("type", sort=False):
        low, high = mean_interval((part.top_share - part.share).to_numpy())
        if low > 0:
            sentences.append(
                f"{str(kind).capitalize()} neurons are {part.share.mean():.2%} of all, but {part.top_share.mean():.2%} "
                f"of those that contribute most to the answers: {100 * low:.2f} to {100 * high:.2f} points more (95 % "
                "interval over languages)."
            )
    return sentences


def steering(table: pd.DataFrame) -> list[str]:
    """Of `steering_shares` by source, target and condition: prompts in another language than the target."""
    cross = table[table.source != table.target]
    hits = (
        cross.assign(hits=cross.in_target * cross.n).groupby(["condition", "target"], sort=False)[["hits", "n"]].sum()
    )
    if not {"steered", "unsteered"} <= set(hits.index.get_level_values("condition")):
        return []
    steered, plain = hits.loc["steered"], hits.loc["unsteered"]
    better = int((steered.hits / steered.n > (plain.hits / plain.n).reindex(steered.index)).sum())
    sentences = [
        f"Prompted in another language, the model answers in the language it is steered to more often than unsteered "
        f"for {better} of {len(steered)} languages."
    ]
    for condition, part in hits.groupby(level="condition", sort=False):
        n, share_found = int(part.n.sum()), float(part.hits.sum() / part.n.sum())
        low, high = wilson_interval(share_found, n)
        sentences.append(
            f"{str(condition).capitalize()}: {share_found:.0%} of {n} outputs are in the language wanted "
            f"(95 % interval {low:.0%} to {high:.0%})."
        )
    return sentences


def deactivation(table: pd.DataFrame) -> list[str]:
    """Of `deactivation_effects` over types of neuron: which cost the answers more than as many random ones."""
    part = table[(table.language == "all") & (table.measure == "margin")]
    worse = part[part.beyond_high < 0].sort_values("change")
    sentences = [
        f"Without its {row.off} neurons ({row.n_neurons:,.0f} a question) the right answer's lead changes by "
        f"{row.change:+.2f} nats (95 % interval {row.low:+.2f} to {row.high:+.2f}), without as many random ones by "
        f"{row.random_change:+.2f}."
        for row in worse.itertuples()
    ]
    rest = part.off[~part.off.isin(worse.off)].tolist()
    if rest:
        sentences.append(f"Not told from random neurons, or less harmful: {listed(rest)}.")
    return sentences


def sweep(table: pd.DataFrame) -> list[str]:
    """Of the `effects` of a sweep, measure by measure: the largest change, and how many differ from random neurons'."""
    sentences = []
    for evaluation, measure in table[["evaluation", "measure"]].drop_duplicates().itertuples(index=False, name=None):
        part = table[(table.evaluation == evaluation) & (table.measure == measure)]
        here = part[part["where"] != "others"]
        found, random = here[here.neurons == "detected"], here[here.neurons == "random"]
        both = found.merge(random, how="left", on=["setting", "where"], suffixes=("", "_random"))
        if both.empty:
            continue
        others = part[(part["where"] == "others") & (part.neurons == "detected")].set_index("setting")["change"]
        best = both.loc[both.change.abs().idxmax()]
        name = f"{measure.capitalize()} ({evaluation})"
        among = f", largest change of {len(both)}" if len(both) > 1 else ""
        sentences.append(f"{name}{among}: {largest(best, others, CHANGE_UNITS.get(measure, ''))}.")
        compared = both[both.change_random.notna()]
        clear = sum(apart(r.low, r.high, r.low_random, r.high_random) for r in compared.itertuples())
        if len(compared):
            sentences.append(
                f"{name}: {clear} of {len(compared)} changes have an interval apart from that of random neurons."
            )
    return sentences


CHANGE_UNITS = {"loss": " nats a token", "margin": " nats"}
PLACES = {"own": "text in the neurons' own language", "no prompt": "text without a prompt"}


def largest(best: pd.Series, others: pd.Series, unit: str) -> str:
    """One change of a sweep beside those of other languages and of random neurons."""
    place = PLACES.get(best["where"], f"questions without their {best['where']} neurons")
    said = f"{best.change:+.4f}{unit} for {place} ({best.setting}"
    said += f"; 95 % interval over {best.n} languages {best.low:+.4f} to {best.high:+.4f})" if best.n > 1 else ")"
    if best.setting in others.index:
        said += f", {others[best.setting]:+.4f} for other languages"
    if not pd.isna(best.change_random):
        said += f", {best.change_random:+.4f} with as many random neurons"
    return said


def facts(table: pd.DataFrame) -> list[str]:
    """Of a table of accuracies by language, relation and wording."""
    by_language = table.groupby("language", sort=False)["accuracy"].mean()
    if len(by_language) < 2:
        return []
    low, high = mean_interval(by_language.to_numpy())
    return [
        f"Facts are answered with an accuracy of {by_language.mean():.2f} on average over languages (95 % interval "
        f"over languages {low:.2f} to {high:.2f}), from {by_language.min():.2f} ({by_language.idxmin()}) to "
        f"{by_language.max():.2f} ({by_language.idxmax()})."
    ]


def share(row: pd.Series) -> str:
    """The mean of a layer and its interval; rounding of an interval about zero must not show a negative share."""
    low, high = (max(0.0, x) for x in (row.low, row.high))
    return f"{row['mean']:.2%} (layer {row.layer}; {low:.2%} to {high:.2%})"


def number(row: pd.Series, name: str) -> str:
    return f"{row[name]:+.4f} nats a token, 95 % interval {row.low:+.4f} to {row.high:+.4f}"


def listed(names: list[str]) -> str:
    return names[0] if len(names) == 1 else f"{', '.join(names[:-1])} and {names[-1]}"


Finding = Callable[..., list[str]]
