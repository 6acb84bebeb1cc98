"""Beginnings of documents as prompts."""

from __future__ import annotations

import re
from itertools import islice
from typing import TYPE_CHECKING

from ..corpora import WITHOUT_SPACES, Corpus
from .quality import LETTERS_WITHOUT_SPACES

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

_WORD_END = re.compile(rf"^[\w{LETTERS_WITHOUT_SPACES}]\s|[{LETTERS_WITHOUT_SPACES}]")
"""White space after a letter, or a script without spaces on either side."""


def first_words(document: str, language: str) -> str:
    """A prompt: the first five words, or eight characters where words are not separated by spaces."""
    return document[:8] if language in WITHOUT_SPACES else " ".join(document.split()[:5])


def equal_openings(
    corpus: Corpus, tokenizer: PreTrainedTokenizerBase, *, n_tokens: int = 8, n_prompts: int | None = None
) -> Corpus:
    """Beginnings of documents with `n_tokens` tokens each, ending with a word: prompts that `generate` runs together.

    Documents whose first tokens end within a word or a character, or have nothing after them, are left out.

    Args:
        n_prompts: how many to take per language, the first ones; all by default.

    Raises:
        ValueError: a language with fewer than that.
    """
    found = {}
    for language, documents in corpus.documents.items():
        beginnings = (_beginning(text, tokenizer, n_tokens) for text in documents)
        found[language] = tuple(islice(filter(None, beginnings), n_prompts))
        if len(found[language]) < (n_prompts or 1):
            raise ValueError(
                f"{n_prompts or 1} documents of {language!r} must have a word that ends with token {n_tokens}, got "
                f"{len(found[language])}; give more documents or another n_tokens"
            )
    return Corpus(found, f"{corpus.source}, first {n_tokens} tokens")


def _beginning(text: str, tokenizer: PreTrainedTokenizerBase, n_tokens: int) -> str:
    """The text of the first tokens, or "" where it is not a beginning that ends with a word."""
    ids = tokenizer(text, add_special_tokens=False)["input_ids"]
    start = str(tokenizer.decode(ids[:n_tokens]))
    rest = text.removeprefix(start)
    again = tokenizer(start, add_special_tokens=False)["input_ids"]
    if not text.startswith(start) or not rest or again != ids[:n_tokens]:
        return ""
    return start if _WORD_END.search(start[-1] + rest[0]) else ""
