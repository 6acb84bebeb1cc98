"""Which languages a model speaks after every block: its residual stream read by the final norm and the unembedding."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass

import pandas as pd
import torch
from jaxtyping import Float, Int
from torch import Tensor
from torch.nn.functional import one_hot
from tqdm.auto import tqdm

from ..corpora import Corpus
from ..evidence.reading import read
from ..evidence.sharing import input_ids
from ..models.hooked import HookedModel, unembedded
from ..tokens import Reading, common_prefix, pad_right, prefix_ids, rows_per_batch

SHARED, NONE = "shared", "none"
"""What stands in the place of a language for a token of several languages, and for one of none, such as a digit."""
PROMPT, GENERATED = "prompt", "generated"
"""Whether a token is the prompt's or came after it."""
AT = ("last", "every")
"""Which tokens of a prompt are read."""


@dataclass(frozen=True, eq=False)
class TokenLanguages:
    """The language that every token of a vocabulary belongs to (`token_languages`)."""

    languages: tuple[str, ...]
    index: Int[Tensor, " vocab"]
    """Into `names`."""

    def __post_init__(self) -> None:
        if taken := {SHARED, NONE} & set(self.languages):
            raise ValueError(f"languages must not be called {min(taken)!r}, which stands for no single one; rename it")

    @property
    def names(self) -> tuple[str, ...]:
        """The languages, then "shared" and "none"."""
        return (*self.languages, SHARED, NONE)

    def counts(self, ids: Int[Tensor, "place top"]) -> Int[Tensor, "place name"]:
        """How many of each place's tokens belong to which of `names`; ids outside the vocabulary to none."""
        known = self.index.to(ids.device)
        index = torch.cat([known, known.new_full((1,), self.names.index(NONE))])
        return one_hot(index[ids.clamp(max=len(known))], len(self.names)).sum(dim=1)


@dataclass(frozen=True, eq=False)
class Places:
    """Where the residual stream of some rows is read."""

    row: Int[Tensor, " place"]
    pos: Int[Tensor, " place"]
    generated: Int[Tensor, " place"]
    """1 at tokens that came after the prompt, 0 at the prompt's."""

    def pick(self, rows: Int[Tensor, " picked"]) -> tuple[Places, Int[Tensor, " place"]]:
        """The places of some rows, and the place of each one's row among these."""
        at = torch.full((int(self.row.max()) + 1,), -1)
        at[rows] = torch.arange(len(rows))
        mine = at[self.row] >= 0
        return Places(self.row[mine], self.pos[mine], self.generated[mine]), at[self.row[mine]]

    def split(self, size: int) -> list[Places]:
        parts = (self.row.split(size), self.pos.split(size), self.generated.split(size))
        return [Places(*part) for part in zip(*parts, strict=True)]


Take = Callable[[int, Places, Float[Tensor, "place vocab"]], None]
"""What is done with some places' logits after a block, given its number."""


@torch.no_grad()
def layer_languages(
    model: HookedModel,
    prompts: Corpus,
    tokens: TokenLanguages,
    *,
    continuations: Mapping[str, Sequence[str]] | None = None,
    n_top: int = 10,
    at: str = "last",
    norm: bool = True,
    progress: bool = True,
) -> pd.DataFrame:
    """The languages of the likeliest next tokens, were the model to stop after each block (the logit lens).

    The residual stream after a block goes through the final norm and the unembedding, and the `n_top` tokens of highest
    logit are given to their languages. Layers are decoded one after another during the pass, so that at most a thousand
    places' logits are in memory. Under an intervention, wrap the call: `with mm.ablate(...)`.

    Args:
        tokens: the language of every token (`token_languages`).
        continuations: language -> what came after each of its prompts, such as `generate` returns it. All their tokens
            are read, from the first that the prompt alone does not have.
        n_top: tokens that are looked at after each block.
        at: "last": a prompt's last token, after which an answer begins; "every" token of it but special ones in front.
        norm: without it the final norm is left out, as in the released code.

    Returns:
        one row per prompt, position ("prompt" or "generated"), layer (after that block) and decoded language, "shared"
        and "none" among them: language (of the prompt), document (its number), position, layer, decoded, n (of the
        top tokens), n_top (all of them). Positions without a token are left out.

    Raises:
        ValueError: before anything runs: `n_top` or `at` that cannot be, continuations that do not fit the prompts, or
            text without tokens or too long for the model.

    Source: nostalgebraist 2020 (logit lens); Zhao et al. 2024, arXiv:2402.18815 (shares of languages by layer).

    Example:
        >>> import mi_multilingual as mm
        >>> model = mm.load_model("demo")
        >>> tokens = mm.token_languages(model, mm.load_corpus("demo", split="identify"))
        >>> prompts = mm.Corpus({"ja": ("フランスの首都は",)}, "a prompt")
        >>> found = mm.layer_languages(model, prompts, tokens, progress=False)
        >>> found[found.layer == 3].set_index("decoded").n[["ja", "en", "shared", "none"]].to_dict()
        {'ja': 9, 'en': 0, 'shared': 1, 'none': 0}
    """
    if at not in AT:
        raise ValueError(f"at must be one of {', '.join(AT)}, got {at!r}")
    if not 1 <= n_top <= model.cfg.d_vocab:
        raise ValueError(f"n_top must be a number of tokens from 1 to {model.cfg.d_vocab}, the vocabulary, got {n_top}")
    texts = {k: _rows_and_places(model, prompts, continuations, k, at) for k in prompts.languages}
    frames = []
    with tqdm(total=sum(len(rows) for rows, _ in texts.values()), desc="logit lens", disable=not progress) as bar:
        for language, (rows, places) in texts.items():
            counts = torch.zeros(len(rows), 2, model.cfg.n_layers, len(tokens.names), dtype=torch.int64)

            def take(layer: int, at: Places, logits: Float[Tensor, "place vocab"], counts: Tensor = counts) -> None:
                found = tokens.counts(logits.topk(n_top, dim=-1).indices).cpu()
                counts.index_put_((at.row, at.generated, torch.tensor(layer)), found, accumulate=True)

            for n_rows in decoded(model, rows, places, take, norm=norm):
                bar.update(n_rows)
            frames.append(_counted(language, counts, tokens.names))
    return pd.concat(frames, ignore_index=True)


def _rows_and_places(
    model: HookedModel, prompts: Corpus, continuations: Mapping[str, Sequence[str]] | None, language: str, at: str
) -> tuple[list[list[int]], Places]:
    """The tokens of one language's prompts with what came after them, and where they are read."""
    alone = prompt_rows(model, prompts, language)
    rows = alone
    if continuations is not None:
        texts = continued(prompts.documents[language], continuations.get(language, ()), language)
        rows = prompt_rows(model, Corpus({language: texts}, "continued prompts"), language)
    n_prefix, found = len(prefix_ids(model.tokenizer)), []
    for row, (own, ids) in enumerate(zip(alone, rows, strict=True)):
        end = common_prefix(own, ids)
        first = max(end - 1, n_prefix) if at == "last" else n_prefix
        found += [(row, pos, int(pos >= end)) for pos in range(first, len(ids))]
    return rows, Places(*torch.tensor(found).T)


def continued(prompts: Sequence[str], continuations: Sequence[str], language: str) -> tuple[str, ...]:
    """Every prompt with what came after it."""
    if len(prompts) != len(continuations):
        raise ValueError(
            f"continuations must be one for each of the {len(prompts)} prompts in {language!r}, got "
            f"{len(continuations)}; give them in the prompts' order"
        )
    return tuple(prompt + text for prompt, text in zip(prompts, continuations, strict=True))


def prompt_rows(model: HookedModel, prompts: Corpus, language: str) -> list[list[int]]:
    """The ids of every prompt of a language, special tokens in front.

    Raises:
        ValueError: one without tokens, or longer than the model's context.
    """
    return input_ids(model, prompts, language, Reading(layout="documents").for_model(model))


def decoded(
    model: HookedModel, rows: Sequence[Sequence[int]], places: Places, take: Take, *, norm: bool = True
) -> Iterator[int]:
    """Let `take` have the logits of all places after every block; yields the number of rows of every pass.

    Rows of similar length run together. Only the logits of one block and of some places are there at a time.
    """
    order = sorted(range(len(rows)), key=lambda i: -len(rows[i]))
    n_rows = rows_per_batch(model, len(rows[order[0]]), "statistics")
    for start in range(0, len(order), n_rows):
        batch = torch.tensor(order[start : start + n_rows])
        padded, _ = pad_right([rows[i] for i in batch.tolist()])
        mine, row = places.pick(batch)
        read(model, padded, _streams(model), _decoder(model, mine, row, take, norm))
        yield len(batch)


def _streams(model: HookedModel) -> dict[int, str]:
    """The hook of every block's output."""
    return {layer: f"blocks.{layer}.hook_resid_post" for layer in range(model.cfg.n_layers)}


def _decoder(
    model: HookedModel, places: Places, row: Int[Tensor, " place"], take: Take, norm: bool
) -> Callable[[int, Tensor], None]:
    """What reads a block's output as tokens; `row` is each place's row in the pass."""
    size = rows_per_batch(model, 1, "logits")

    def decode(layer: int, carried: Float[Tensor, "row pos d_model"]) -> None:
        residual = carried[row.to(carried.device), places.pos.to(carried.device)]
        for part, some in zip(places.split(size), residual.split(size), strict=True):
            take(layer, part, unembedded(model, some, norm=norm).float())

    return decode


def _counted(language: str, counts: Int[Tensor, "document position layer name"], names: Sequence[str]) -> pd.DataFrame:
    """Rows of `layer_languages` for the prompts of one language."""
    axes = {
        "language": [language],
        "document": range(counts.shape[0]),
        "position": (PROMPT, GENERATED),
        "layer": range(counts.shape[2]),
        "decoded": names,
    }
    table = pd.MultiIndex.from_product(axes.values(), names=axes).to_frame(index=False)
    n_top = counts.sum(dim=-1, keepdim=True).expand_as(counts)
    table["n"], table["n_top"] = counts.flatten().numpy(), n_top.flatten().numpy()
    return table.loc[table.n_top > 0]
