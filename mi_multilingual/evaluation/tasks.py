"""Questions with a closed list of answers, scored by the likelihood of each answer."""

import json
from collections.abc import Sequence
from dataclasses import dataclass
from importlib.resources import files

import pandas as pd
import torch
from jaxtyping import Float
from torch import Tensor
from tqdm.auto import tqdm

from ..models import HookedModel

TOKENS_A_BATCH = 2048
WITHOUT_SPACES = ("ja", "km", "lo", "my", "th", "zh")


@dataclass(frozen=True)
class Item:
    """One question in one language; `choices` are full continuations of `prompt`, `answer` the right one's index."""

    id: str
    language: str
    task: str
    prompt: str
    choices: tuple[str, ...]
    answer: int

    def __post_init__(self) -> None:
        if not 0 <= self.answer < len(self.choices):
            raise ValueError(f"item {self.id!r} has answer {self.answer}, its choices are 0..{len(self.choices) - 1}")


def choice_accuracy(model: HookedModel, items: Sequence[Item], *, progress: bool = True) -> pd.DataFrame:
    """Which answer the model finds most likely (log-likelihood of the whole continuation, not length-normalised).

    Returns:
        a row an item: id, language, task, chosen (index), correct (bool), n_choices.
    """
    rows = []
    for item in tqdm(items, desc="answering", unit="item", disable=not progress):
        chosen = int(choice_log_likelihoods(model, item.prompt, item.choices).argmax())
        rows.append((item.id, item.language, item.task, chosen, chosen == item.answer, len(item.choices)))
    return pd.DataFrame(rows, columns=["id", "language", "task", "chosen", "correct", "n_choices"])


@torch.no_grad()
def choice_log_likelihoods(model: HookedModel, prompt: str, choices: Sequence[str]) -> Float[Tensor, " choice"]:
    """Log-likelihood of each continuation after the prompt, nats, with BOS in front where the tokenizer has one.

    Prompt and continuation are tokenised together; scored are the tokens from the first that the prompt alone does
    not have, so that a continuation may join the prompt's last token.
    """
    tokenizer = model.tokenizer
    start = [tokenizer.bos_token_id] if tokenizer.bos_token_id is not None else []
    alone = start + tokenizer(prompt, add_special_tokens=False)["input_ids"]
    whole = [start + ids for ids in tokenizer([prompt + c for c in choices], add_special_tokens=False)["input_ids"]]
    longest = max(map(len, whole))
    if longest > model.cfg.n_ctx:
        raise ValueError(
            f"prompt {prompt[:40]!r} with its longest choice has {longest} tokens, the model takes {model.cfg.n_ctx}"
        )
    tokens = torch.tensor([ids + [ids[-1]] * (longest - len(ids)) for ids in whole])
    scored = torch.zeros(tokens.shape, dtype=torch.bool)
    for row, ids in zip(scored, whole, strict=True):
        row[common_prefix(alone, ids) : len(ids)] = True
    parts = []
    for rows, mask in zip(
        tokens.split(max(1, TOKENS_A_BATCH // longest)), scored.split(max(1, TOKENS_A_BATCH // longest)), strict=True
    ):
        rows = rows.to(model.cfg.device)
        likelihood = model(rows, return_type="logits")[:, :-1].float().log_softmax(-1)
        chosen = likelihood.gather(-1, rows[:, 1:, None])[..., 0].cpu().double()
        parts.append(chosen.masked_fill(~mask[:, 1:], 0.0).sum(dim=1))
    return torch.cat(parts)


def common_prefix(left: Sequence[int], right: Sequence[int]) -> int:
    """Number of leading ids that both have."""
    return next((i for i, (a, b) in enumerate(zip(left, right, strict=False)) if a != b), min(len(left), len(right)))


def load_facts(*, wordings: tuple[int, ...] = (0, 1)) -> list[Item]:
    """Capital, main language and continent of 40 countries as questions in ten languages.

    The choices are all answers that occur for the relation in the language. Wordings 0 and 1 are part of the model's
    training text, wording 2 is not.
    """
    lines = files("mi_multilingual").joinpath("demo", "facts.jsonl").read_text(encoding="utf-8").splitlines()
    facts = pd.DataFrame([json.loads(line) for line in lines])
    answers = facts.groupby(["relation", "lang"])["answer"].unique().map(sorted)
    items = []
    for fact in facts[facts.wording.isin(wordings)].itertuples():
        gap = "" if fact.lang in WITHOUT_SPACES else " "
        choices = answers[fact.relation, fact.lang]
        items.append(
            Item(
                id=f"{fact.country}/{fact.relation}/{fact.wording}",
                language=fact.lang,
                task=fact.relation,
                prompt=fact.prompt,
                choices=tuple(f"{gap}{choice}{fact.tail}" for choice in choices),
                answer=choices.index(fact.answer),
            )
        )
    return items


def opening(document: str, language: str) -> str:
    """The first few words of a sentence: five words, or eight characters where words are not separated by spaces."""
    return document[:8] if language in WITHOUT_SPACES else " ".join(document.split()[:5])
