"""Questions in several languages, asked of a model: which of the given answers is likeliest, or what it writes."""

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, Protocol, TypeVar, runtime_checkable

import pandas as pd
import torch
from jaxtyping import Float
from torch import Tensor

from ..chat import chat_texts
from ..models.hooked import HookedModel
from .generation import generate
from .intervals import wilson_interval
from .likelihood import Continuation, continuations, log_likelihoods


@dataclass(frozen=True)
class Item:
    """One question in one language; the same question in another language has the same id and task."""

    id: str
    language: str
    task: str
    prompt: str
    choices: tuple[str, ...]
    """Full continuations of the prompt, white space before them included; none where the answer is to be written."""
    answer: int | str
    """The right choice's index, or without choices the answer's text."""

    def __post_init__(self) -> None:
        n, of_item = len(self.choices), f"of item {self.id!r} ({self.language})"
        if "" in self.choices:
            raise ValueError(f"every choice {of_item} must have some text, got an empty one")
        if isinstance(self.answer, str):
            if n or not self.answer.strip():
                raise ValueError(
                    f"answer {of_item} must be the index of the right choice, or a text where there are no choices, "
                    f"got {self.answer!r} and {n} choices"
                )
        elif not 0 <= self.answer < n:
            must = f"must be from 0 to {n - 1}" if n else "must be a text where there are no choices"
            raise ValueError(f"answer {of_item} {must}, got {self.answer}")

    @property
    def answer_text(self) -> str:
        """The right answer, without white space around it."""
        return (self.answer if isinstance(self.answer, str) else self.choices[self.answer]).strip()


@runtime_checkable
class Asked(Protocol):
    """Something that is there in several languages under one id."""

    @property
    def id(self) -> str: ...
    @property
    def language(self) -> str: ...


_Asked = TypeVar("_Asked", bound=Asked)


def parallel_items(items: Iterable[_Asked]) -> dict[str, dict[str, _Asked]]:
    """The items, or records of edits, of every id by language, languages in the order of the first id.

    Raises:
        ValueError: two items of one id and language, or an id that is not there in every language; `in_every_language`
            leaves such ids out.
    """
    by_id: dict[str, dict[str, _Asked]] = {}
    for item in items:
        same = by_id.setdefault(item.id, {})
        if item.language in same:
            raise ValueError(f"item {item.id!r} is there twice in {item.language!r}; give every item an id of its own")
        same[item.language] = item
    languages = list(dict.fromkeys(k for same in by_id.values() for k in same))
    for name, same in by_id.items():
        if missing := [k for k in languages if k not in same]:
            raise ValueError(
                f"the items are not parallel: {name!r} is not there in {', '.join(missing)}; "
                "in_every_language(items) leaves such items out"
            )
    return {name: {k: same[k] for k in languages} for name, same in by_id.items()}


def in_every_language(items: Iterable[_Asked]) -> list[_Asked]:
    """The items, or records of edits, whose id is there in all languages of the items.

    Raises:
        ValueError: no such id.
    """
    items = list(items)
    languages = {item.language for item in items}
    found: dict[str, set[str]] = {}
    for item in items:
        found.setdefault(item.id, set()).add(item.language)
    kept = [item for item in items if found[item.id] == languages]
    if not kept:
        raise ValueError(f"no item is there in all of {', '.join(sorted(languages))}; take fewer languages")
    return kept


_NORMALISE: Mapping[str, Callable[[Item, Sequence[Continuation]], Sequence[int]]] = {
    "none": lambda item, scored: [1] * len(scored),
    "tokens": lambda item, scored: [c.n_scored for c in scored],
    "bytes": lambda item, scored: [len(choice.encode()) for choice in item.choices],
}


def choice_accuracy(
    model: HookedModel,
    items: Sequence[Item],
    *,
    normalise: str = "none",
    chat: bool = False,
    bos: str = "tokenizer",
    progress: bool = True,
) -> pd.DataFrame:
    """Which answer the model finds most likely.

    Args:
        normalise: "none": log-likelihood of the whole continuation, right where the answers are of one form. "bytes":
            per UTF-8 byte, where answers are sentences of different length, of which the sum prefers the short; it does
            not depend on the tokenizer. "tokens": per token, as much of the literature does.
        chat: ask in the tokenizer's chat template: a prompt is what a user says, and its choices are answers, without
            the white space before them.
        bos: special tokens before every prompt (see `Reading`); a chat template writes them itself.

    Returns:
        one row per item: id, language, task, chosen (index), correct (bool), n_choices.

    Raises:
        ValueError: before anything runs: an item without choices, one longer than the model's context, an unknown
            `normalise`, or with `chat` a tokenizer without a template.

    Example:
        >>> import mi_multilingual as mm
        >>> items = [item for item in mm.load_facts(wordings=(0,)) if item.id.startswith("fr/")]
        >>> answers = mm.choice_accuracy(mm.load_model("demo"), items, progress=False)
        >>> answers.groupby("task").correct.mean().to_dict()
        {'capital': 1.0, 'continent': 1.0, 'language': 1.0}
    """
    if normalise not in _NORMALISE:
        raise ValueError(f"normalise must be one of {', '.join(_NORMALISE)}, got {normalise!r}")
    if without := [item for item in items if not item.choices]:
        raise ValueError(
            f"every item must have choices to compare, got none for {without[0].id!r}; use written_accuracy"
        )
    items, bos = (in_chat(model, items), "none") if chat else (items, bos)
    scored = [continuations(model, item.prompt, item.choices, bos=bos) for item in items]
    flat = log_likelihoods(model, [c for one in scored for c in one], progress=progress)
    rows = []
    for item, one, likelihood in zip(items, scored, flat.split([len(one) for one in scored]), strict=True):
        chosen = int((likelihood / torch.tensor(_NORMALISE[normalise](item, one))).argmax())
        correct = item.choices[chosen].strip() == item.answer_text
        rows.append((item.id, item.language, item.task, chosen, correct, len(item.choices)))
    return pd.DataFrame(rows, columns=["id", "language", "task", "chosen", "correct", "n_choices"])


def in_chat(model: HookedModel, items: Sequence[Item]) -> list[Item]:
    """The items with their prompts in the chat template, up to where the model answers; special tokens are in it.

    Raises:
        ValueError: as `chat_prompt`, or a choice of nothing but white space.
    """
    texts = chat_texts(model.tokenizer, [item.prompt for item in items])
    return [
        replace(item, prompt=text, choices=tuple(choice.lstrip() for choice in item.choices))
        for item, text in zip(items, texts, strict=True)
    ]


def choice_log_likelihoods(
    model: HookedModel, prompt: str, choices: Sequence[str], *, bos: str = "tokenizer"
) -> Float[Tensor, " choice"]:
    """Log-likelihood of each continuation after the prompt, nats.

    Args:
        bos: special tokens before the prompt (see `Reading`).

    Raises:
        ValueError: as `continuations`.
    """
    return log_likelihoods(model, continuations(model, prompt, choices, bos=bos))


def written_accuracy(
    model: HookedModel,
    items: Sequence[Item],
    *,
    extract: Callable[[str], str] = str.strip,
    bos: str = "tokenizer",
    progress: bool = True,
    **decoding: Any,
) -> pd.DataFrame:
    """Whether what the model writes after the prompt is the right answer.

    Args:
        extract: the part that is compared, taken from the model's text and from the right answer: all of it by default
            (exact match), `last_number` for sums.
        bos: special tokens before every prompt (see `Reading`).
        decoding: options of `generate`, `chat` among them; unless they say otherwise, the answer ends with its line
            (stop=["\\n"]).

    Returns:
        one row per item: id, language, task, written, found (what `extract` makes of it), correct.

    Raises:
        ValueError: before anything runs: an answer of which `extract` leaves nothing; as `generate`.
    """
    wanted = [extract(item.answer_text) for item in items]
    if "" in wanted:
        item = items[wanted.index("")]
        raise ValueError(
            f"extract must leave something of every answer, got nothing of {item.answer_text!r} of item {item.id!r}; "
            "use another extract"
        )
    prompts = [item.prompt for item in items]
    written = generate(model, prompts, bos=bos, progress=progress, **{"stop": ("\n",), **decoding})
    found = [extract(text) for text in written]
    rows = [
        (item.id, item.language, item.task, text, f, f == w)
        for item, text, f, w in zip(items, written, found, wanted, strict=True)
    ]
    return pd.DataFrame(rows, columns=["id", "language", "task", "written", "found", "correct"])


def accuracy_by_language(answers: pd.DataFrame) -> pd.DataFrame:
    """Share of right answers of every language and task, from `choice_accuracy` or `written_accuracy`.

    Returns:
        columns language, task, n, accuracy, low, high (95 % Wilson interval), chance (accuracy of a guess among the
        choices; NaN where the answer is written).
    """
    chance = 1 / answers.n_choices if "n_choices" in answers else float("nan")
    groups = answers.assign(chance=chance).groupby(["language", "task"], sort=False)
    table = groups.agg(n=("correct", "size"), accuracy=("correct", "mean"), chance=("chance", "mean")).reset_index()
    low, high = wilson_interval(table.accuracy.to_numpy(float), table.n.to_numpy(float))
    table.insert(4, "low", low)
    table.insert(5, "high", high)
    return table
