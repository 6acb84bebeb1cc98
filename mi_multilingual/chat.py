"""Prompts of chat models: messages in the words and special tokens of the tokenizer's template."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import accumulate
from typing import TYPE_CHECKING

import torch
from jaxtyping import Bool
from torch import Tensor

if TYPE_CHECKING:  # takes a second to import
    from transformers import PreTrainedTokenizerBase

Messages = str | Sequence[Mapping[str, str]]
"""What a user says, or a conversation of {"role": ..., "content": ...} messages."""

_STAND_INS = "\ue000{}\ue001"
_STAND_IN = re.compile("\ue000\\d+\ue001")
"""Characters for private use, so no template and no text has them."""


@dataclass(frozen=True)
class ChatPrompt:
    """A conversation as the model reads it, up to where it is to answer."""

    text: str
    """With all special tokens: none are to be put in front."""
    own: tuple[tuple[int, int], ...] | None
    """Where in it what users say begins and ends, in characters; None where the template changes that."""


def chat_prompt(tokenizer: PreTrainedTokenizerBase, messages: Messages) -> ChatPrompt:
    """Messages by the tokenizer's chat template, with what it writes before an answer.

    Raises:
        ValueError: a tokenizer without a chat template, no messages, messages of another form, or a conversation that
            the template refuses.
    """
    said = checked_messages(messages)
    text = _rendered(tokenizer, said)
    blank = _rendered(tokenizer, [{**message, "content": _STAND_INS.format(i)} for i, message in enumerate(said)])
    frame = _STAND_IN.split(blank)
    contents = _contents(text, frame, said)
    if contents is None or len(frame) != len(said) + 1:
        return ChatPrompt(text, None)
    pieces = [frame[0], *(piece for pair in zip(contents, frame[1:], strict=True) for piece in pair)]
    ends = list(accumulate(map(len, pieces)))
    spans = [(ends[2 * i], ends[2 * i + 1]) for i, message in enumerate(said) if message["role"] == "user"]
    return ChatPrompt(text, tuple(spans))


def checked_messages(messages: Messages) -> list[dict[str, str]]:
    """The messages of a conversation; one string is what a user says.

    Raises:
        ValueError: none, or one without role and content.
    """
    said = [{"role": "user", "content": messages}] if isinstance(messages, str) else [dict(m) for m in messages]
    wrong = [m for m in said if not all(isinstance(m.get(key), str) for key in ("role", "content"))]
    if wrong or not said:
        raise ValueError(
            f"a conversation must be a text or a list of {{'role': ..., 'content': ...}}, got {(wrong or [said])[0]!r}"
        )
    return said


def check_template(tokenizer: PreTrainedTokenizerBase) -> None:
    """Raise for a tokenizer without a chat template."""
    if not getattr(tokenizer, "chat_template", None):
        raise ValueError(
            f"chat must be False for a tokenizer without a chat template, got True with {tokenizer.name_or_path!r}; "
            "take the checkpoint that was trained on conversations, or set tokenizer.chat_template"
        )


def _rendered(tokenizer: PreTrainedTokenizerBase, said: Sequence[Mapping[str, str]]) -> str:
    check_template(tokenizer)
    from jinja2.exceptions import TemplateError

    try:
        return str(tokenizer.apply_chat_template([*said], tokenize=False, add_generation_prompt=True))
    except TemplateError as error:
        roles = ", ".join(m["role"] for m in said)
        raise ValueError(
            f"a conversation must be one that the chat template takes, got the roles {roles} ({error}); change them"
        ) from error


def _contents(text: str, frame: Sequence[str], said: Sequence[Mapping[str, str]]) -> list[str] | None:
    """The messages' contents as the template writes them, as they are or trimmed; None where it does otherwise."""
    for written in ([m["content"] for m in said], [m["content"].strip() for m in said]):
        if len(frame) == len(written) + 1:
            whole = "".join(f + c for f, c in zip(frame, [*written, ""], strict=True))
            if whole == text:
                return written
    return None


def own_tokens(tokenizer: PreTrainedTokenizerBase, prompt: ChatPrompt) -> Bool[Tensor, " pos"] | None:
    """Which tokens of the prompt's text hold what users say; None where that cannot be told."""
    if prompt.own is None or not tokenizer.is_fast:
        return None
    encoded = tokenizer(prompt.text, add_special_tokens=False, return_offsets_mapping=True, verbose=False)
    return torch.tensor(
        [any(a < end and start < b for start, end in prompt.own) for a, b in encoded["offset_mapping"]],
        dtype=torch.bool,
    )


def chat_texts(tokenizer: PreTrainedTokenizerBase, prompts: Sequence[Messages]) -> Iterator[str]:
    """The texts of `chat_prompt`."""
    return (chat_prompt(tokenizer, messages).text for messages in prompts)
