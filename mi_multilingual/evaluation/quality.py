"""Measures of generated text: its language, how mixed it is, how repetitive, and how likely."""

import math
import re
from collections import Counter
from collections.abc import Sequence

import pandas as pd
from tqdm.auto import tqdm

from ..models.hooked import HookedModel
from .checks import check_list, check_same_length
from .intervals import wilson_interval
from .language_id import identify_language
from .likelihood import token_log_likelihoods

_CLOSING = "」』”’）)»\"'"
_SENTENCE_END = re.compile(
    rf"(?<=[.!?…])(?=\s)|(?<=[.!?…][{_CLOSING}])(?=\s)|(?<=[。！？｡؟۔।॥።])(?![。！？｡؟۔।॥።{_CLOSING}])|\n"
)
"""Where a sentence ends: after a Latin stop only before white space (not in 3.5), after the others at once."""
LETTERS_WITHOUT_SPACES = r"぀-ヿ㐀-䶿一-鿿豈-﫿ｦ-ﾟ฀-๿຀-໿ក-៿က-႟"
_UNIT = re.compile(rf"[{LETTERS_WITHOUT_SPACES}]|[^\s{LETTERS_WITHOUT_SPACES}]+")


def language_accuracy(found: Sequence[str], wanted: Sequence[str]) -> pd.DataFrame:
    """How many texts are in the language they should be in.

    Args:
        found: language of each text (`identify_language`); "" counts as wrong.
        wanted: language that each text should be in.

    Returns:
        one row per wanted language, in the order of appearance: language, n, accuracy (share of n), low, high (95 %
        Wilson interval).
    """
    check_same_length(found, wanted, "found", "wanted")
    hits = pd.DataFrame({"language": list(wanted), "hit": [f == w for f, w in zip(found, wanted, strict=True)]})
    table = hits.groupby("language", sort=False)["hit"].agg(n="size", accuracy="mean").reset_index()
    low, high = wilson_interval(table.accuracy.to_numpy(float), table.n.to_numpy(float))
    return table.assign(low=low, high=high)


def language_distribution(found: Sequence[str], wanted: Sequence[str]) -> pd.DataFrame:
    """Which languages the texts came out in: columns wanted, found ("" for none), n, share (of the wanted language).

    Every wanted language has a row for every language found anywhere, also where n is 0: the table is a full matrix.
    """
    check_same_length(found, wanted, "found", "wanted")
    counts = Counter(zip(wanted, found, strict=True))
    totals = Counter(wanted)
    cells = [(w, f, counts[w, f], counts[w, f] / totals[w]) for w in totals for f in sorted(set(found))]
    return pd.DataFrame(cells, columns=["wanted", "found", "n", "share"])


def code_switching(texts: Sequence[str], languages: Sequence[str]) -> pd.DataFrame:
    """Share of each text's sentences that are not in its main language.

    The main language is that of most sentences; of several, the one that comes first in the text. Sentences whose
    language is none of `languages` (no letters, another script) do not count. Short sentences are identified less
    surely: compare with the value for genuine text of the language, which is not zero.

    Returns:
        one row per text: language (the main one, "" without sentences), n_sentences (those that count), switched
        (share, NaN without sentences).
    """
    rows = []
    for text in texts:
        found = [k for k in identify_language(sentences(text), languages) if k]
        main, count = Counter(found).most_common(1)[0] if found else ("", 0)
        rows.append((main, len(found), 1 - count / len(found) if found else math.nan))
    return pd.DataFrame(rows, columns=["language", "n_sentences", "switched"])


def sentences(text: str) -> list[str]:
    """The text cut after sentence punctuation of Latin, Cyrillic, East Asian, Arabic, Indic and Ethiopic scripts, and
    at line breaks; the pieces without white space around them, empty ones left out. Thai has no such punctuation."""
    return [piece for part in _SENTENCE_END.split(text) if (piece := part.strip())]


def distinct_n(texts: Sequence[str], n: int) -> float:
    """Distinct n-grams over all n-grams of the texts together (Li et al. 2016); 1 without repetition, NaN without any.

    Units are words between white space, and single characters in scripts that write without it (Han, kana, Thai, Lao,
    Khmer, Burmese). It falls with the amount of text: compare equal numbers of texts of equal length, in one language.
    """
    if n < 1:
        raise ValueError(f"n must be at least 1 unit, got {n}")
    check_list(texts, "texts")
    grams = [tuple(units[i : i + n]) for units in map(_UNIT.findall, texts) for i in range(len(units) - n + 1)]
    return len(set(grams)) / len(grams) if grams else math.nan


def continuation_perplexity(
    model: HookedModel,
    prompts: Sequence[str],
    continuations: Sequence[str],
    *,
    bos: str = "tokenizer",
    progress: bool = True,
) -> pd.DataFrame:
    """How likely the model finds each continuation after its prompt; call it outside `ablate`, without other hooks.

    Text and not the generated tokens is scored: prompt and continuation are tokenised together, and counted are the
    tokens from the first that the prompt alone does not have. An empty prompt begins a document, as in `generate`.

    Args:
        bos: special tokens before every prompt (see `Reading`).

    Returns:
        one row per continuation: nll (nats per token), ppl (per token), bits_per_byte, n_tokens, n_bytes; NaN for an
        empty continuation.

    Raises:
        ValueError: a prompt that with its continuation is longer than the model's context.
    """
    check_same_length(prompts, continuations, "prompts", "continuations")
    pairs = list(zip(prompts, continuations, strict=True))
    rows = []
    for prompt, continuation in tqdm(pairs, desc="perplexity", unit="text", disable=not progress):
        scores = token_log_likelihoods(model, prompt, continuation, bos=bos)
        total, n_tokens, n_bytes = -scores.sum().item(), len(scores), len(continuation.encode())
        nll = total / n_tokens if n_tokens else math.nan
        bits = total / math.log(2) / n_bytes if n_tokens else math.nan
        rows.append((nll, math.exp(nll), bits, n_tokens, n_bytes))
    return pd.DataFrame(rows, columns=["nll", "ppl", "bits_per_byte", "n_tokens", "n_bytes"])
