"""How likely the word for a thing is after every block, in the prompt's language and in another."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from itertools import combinations

import pandas as pd
import torch
from jaxtyping import Float
from torch import Tensor
from tqdm.auto import tqdm
from transformers import PreTrainedTokenizerBase
from transformers.convert_slow_tokenizer import bytes_to_unicode

from ..corpora import Corpus
from ..models.hooked import HookedModel
from .examples import BROKEN, single_text
from .layer_languages import Places, decoded, prompt_rows

_BYTES = {character: byte for byte, character in bytes_to_unicode().items()}
"""What stands for a byte in vocabularies of bytes."""
WORDS = ["language", "document", "layer", "decoded", "probability"]
"""Columns of `layer_words`."""
_Tokens = dict[bytes, list[int]]
"""The bytes of a token's text -> the tokens that have it."""


@torch.no_grad()
def layer_words(
    model: HookedModel,
    prompts: Corpus,
    words: Corpus,
    against: Sequence[str],
    *,
    norm: bool = True,
    progress: bool = True,
) -> pd.DataFrame:
    """How likely the next word is, after every block, in the prompt's own language and in others.

    A word's probability is the sum over all tokens that it can begin with, with a space before it and without one:
    every entry of the vocabulary whose bytes are the word's first ones. Where two languages that are compared have the
    same word, or words that can begin with the same token, as most names in Latin letters can, nothing can be told
    apart: the item is dropped. Read at the prompt's last token, as by `layer_languages`.

    Args:
        words: language -> the word that each prompt asks for, the same things in the same order in every language.
        against: the languages that the prompt's own is compared with.
        norm: without it the final norm is left out.

    Returns:
        one row per prompt, layer and language of the word: language (of the prompt), document (its number), layer,
        decoded (the prompt's language or one of `against`), probability (NaN where the item was dropped).

    Raises:
        ValueError: before anything runs: words that are not parallel to the prompts, a language without words, or a
            prompt without tokens or too long.

    Source: after Wendler et al. 2024, arXiv:2402.10588, who compare words this way.

    Example:
        >>> import mi_multilingual as mm
        >>> prompts = mm.Corpus({"ru": ("Столица Франции —",), "zh": ("法国的首都是",)}, "prompts")
        >>> words = mm.Corpus({"ru": ("Париж",), "zh": ("巴黎",), "en": ("Paris",)}, "words")
        >>> found = mm.layer_words(mm.load_model("demo"), prompts, words, ["en"], progress=False)
        >>> found[found.layer == 3].round(2)
           language  document  layer decoded  probability
        6        ru         0      3      ru         0.95
        7        ru         0      3      en         0.00
        14       zh         0      3      zh         0.92
        15       zh         0      3      en         0.00
    """
    _check_words(prompts, words, against)
    tokens = _tokens_by_bytes(model.tokenizer)
    rows = {k: prompt_rows(model, prompts, k) for k in prompts.languages}
    frames = []
    with tqdm(total=sum(map(len, rows.values())), desc="words by layer", disable=not progress) as bar:
        for language, ids in rows.items():
            compared = (language, *(k for k in against if k != language))
            texts = {k: words.documents[k] for k in compared}
            starts = [_told_apart({k: texts[k][i] for k in compared}, tokens) for i in range(len(ids))]
            found = torch.full((len(ids), model.cfg.n_layers, len(compared)), torch.nan)
            last = torch.tensor([len(row) - 1 for row in ids])
            places = Places(torch.arange(len(ids)), last, torch.zeros(len(ids), dtype=torch.int64))

            def take(layer: int, at: Places, logits: Tensor, found: Tensor = found, starts: Sequence = starts) -> None:
                for document, likelihood in zip(at.row.tolist(), logits.softmax(dim=-1), strict=True):
                    for k, mine in enumerate(starts[document]):
                        found[document, layer, k] = likelihood[mine].sum()

            for n_rows in decoded(model, ids, places, take, norm=norm):
                bar.update(n_rows)
            frames.append(_probabilities(language, compared, found))
    return pd.concat(frames, ignore_index=True)


def _check_words(prompts: Corpus, words: Corpus, against: Sequence[str]) -> None:
    """Raise unless there is a word for every prompt in every language that is compared."""
    n_prompts = {len(documents) for documents in prompts.documents.values()}
    for k in (*prompts.languages, *against):
        n = len(words.documents.get(k, ()))
        if n_prompts != {n}:
            raise ValueError(
                f"words must be one per prompt in {k!r}, in the same order in every language, got {n} for "
                f"{sorted(n_prompts)} prompts; give parallel prompts and words"
            )
        if "" in map(str.strip, words.documents[k]):
            raise ValueError(f"words must have letters, got an empty one in {k!r}; leave its item out")


def _tokens_by_bytes(tokenizer: PreTrainedTokenizerBase) -> _Tokens:
    """The vocabulary by what its entries write, special tokens left out."""
    found: _Tokens = {}
    for token in sorted(set(range(len(tokenizer))) - set(tokenizer.all_special_ids)):
        found.setdefault(_bytes_of(tokenizer, token), []).append(token)
    return found


def _bytes_of(tokenizer: PreTrainedTokenizerBase, token: int) -> bytes:
    """What a token writes after another; b"" where that cannot be told."""
    text = single_text(tokenizer, token)
    if text and BROKEN not in text:
        return text.encode()
    name = str(tokenizer.convert_ids_to_tokens(token))
    if name.startswith("<0x") and len(name) == 6:
        return bytes.fromhex(name[3:5])
    return bytes(_BYTES[character] for character in name) if set(name) <= set(_BYTES) else b""


def first_tokens(word: str, tokens: Mapping[bytes, Sequence[int]]) -> list[int]:
    """The tokens that a word can begin with, with a space before it and without one; a space alone is no beginning."""
    forms = (word.encode(), f" {word}".encode())
    beginnings = {form[:end] for form in forms for end in range(1, len(form) + 1)}
    return sorted(token for start in beginnings - {b" "} for token in tokens.get(start, ()))


def _told_apart(words: Mapping[str, str], tokens: _Tokens) -> list[list[int]]:
    """The tokens each word can begin with; none at all where two words are equal, or meet in a token, or have none."""
    starts = {k: first_tokens(word.strip(), tokens) for k, word in words.items()}
    meet = any(set(starts[a]) & set(starts[b]) or words[a] == words[b] for a, b in combinations(words, 2))
    return [] if meet or not all(starts.values()) else list(starts.values())


def _probabilities(
    language: str, compared: Sequence[str], found: Float[Tensor, "document layer language"]
) -> pd.DataFrame:
    """Rows of `layer_words` for the prompts of one language."""
    axes = {"language": [language], "document": range(len(found)), "layer": range(found.shape[1]), "decoded": compared}
    table = pd.MultiIndex.from_product(axes.values(), names=axes).to_frame(index=False)
    return table.assign(probability=found.flatten().double().numpy())
