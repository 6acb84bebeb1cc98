"""Which language every token of a vocabulary belongs to."""

import unicodedata
from collections.abc import Sequence

import torch
from jaxtyping import Int
from torch import Tensor

from ..analysis.examples import BROKEN, single_text
from ..analysis.layer_languages import NONE, SHARED, TokenLanguages
from ..corpora import Corpus, at_least_two
from ..models.hooked import HookedModel
from ..tokens import DOCUMENTS, TokenRows, language_rows
from .language_id import possible

_ROWS_AT_ONCE = 1024


def token_languages(model: HookedModel, corpus: Corpus, *, bar: float = 0.6) -> TokenLanguages:
    """Give every token of the model's vocabulary to the language whose text it is in most.

    A token's count in the text of a language, over all tokens of that language, is divided by the sum of these over
    languages. It belongs to the language that has at least `bar` of it, else it is "shared". Tokens that are nowhere
    in the text belong to the only language of the corpus that is written in their script; they are "shared" where
    there are several, as for Latin letters. Tokens without a letter (digits, punctuation, special tokens) are "none".
    So are those that were never seen and are in the script of no language of the corpus, or no whole character.

    Args:
        bar: above a half, so that no token belongs to two.

    Raises:
        ValueError: fewer than two languages, or a bar that cannot be.

    Example:
        >>> import mi_multilingual as mm
        >>> model = mm.load_model("demo")
        >>> tokens = mm.token_languages(model, mm.load_corpus("demo", split="identify"))
        >>> ids = model.tokenizer(" the der 7 дом", add_special_tokens=False)["input_ids"]
        >>> [tokens.names[tokens.index[i]] for i in ids]
        ['en', 'de', 'none', 'none', 'ru', 'ru']
    """
    at_least_two(corpus.languages)
    if not 0.5 < bar <= 1:
        raise ValueError(f"bar must be above 0.5 and at most 1, got {bar}")
    counts = torch.stack([_counts(rows, model.cfg.d_vocab) for rows in language_rows(model, corpus, DOCUMENTS)])
    rates = counts.double() / counts.sum(dim=1, keepdim=True)
    shares = rates / rates.sum(dim=0)
    names = (*corpus.languages, SHARED, NONE)
    # NaN, of tokens never seen, is above nothing.
    largest, owner = shares.nan_to_num().max(dim=0)
    owner = torch.where(largest >= bar, owner, names.index(SHARED))
    seen = (counts.sum(dim=0) > 0).tolist()
    special = set(model.tokenizer.all_special_ids)
    for token in range(len(owner)):
        text = single_text(model.tokenizer, token) if token < len(model.tokenizer) and token not in special else ""
        if not _has_letters(text) and not (seen[token] and BROKEN in text):
            owner[token] = names.index(NONE)
        elif not seen[token]:
            owner[token] = names.index(_by_script(text, corpus.languages))
    return TokenLanguages(corpus.languages, owner)


def _counts(rows: TokenRows, vocabulary: int) -> Int[Tensor, " vocab"]:
    """How often each token is in the text."""
    counts = torch.zeros(vocabulary, dtype=torch.int64)
    for batch in rows.batches(_ROWS_AT_ONCE):
        counts += torch.bincount(batch.tokens[batch.valid], minlength=vocabulary)
    return counts


def _has_letters(text: str) -> bool:
    """Whether there is a letter, or a sign that is part of one."""
    return any(unicodedata.category(character)[0] in "LM" for character in text)


def _by_script(text: str, languages: Sequence[str]) -> str:
    """The only language that is written in the text's script, or that there are several or none."""
    found = possible(text, languages)
    return found[0] if len(found) == 1 else SHARED if found else NONE
