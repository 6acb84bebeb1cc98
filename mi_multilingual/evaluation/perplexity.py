"""How well the model predicts each language."""

import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace

import pandas as pd
import torch
from jaxtyping import Float, Int
from torch import Tensor
from tqdm.auto import tqdm

from ..corpora import Corpus
from ..models.hooked import HookedModel
from ..models.losses import token_losses
from ..rows import joined
from ..tokens import Reading, TokenRows, language_rows, rows_per_batch
from .intervals import ratio_interval


@dataclass(frozen=True, eq=False)
class RowLosses:
    """Losses of one language, one number per row of text."""

    nll: Float[Tensor, " row"]
    """Sum over the row's scored tokens, nats, float64."""
    n_tokens: Int[Tensor, " row"]
    n_bytes: Int[Tensor, " row"]

    def summary(self) -> dict[str, float]:
        """nll (nats per token), ppl, bits_per_byte, n_tokens, n_bytes, n_rows."""
        total, n_tokens, n_bytes = self.nll.sum().item(), int(self.n_tokens.sum()), int(self.n_bytes.sum())
        nll = total / n_tokens
        return {
            "nll": nll,
            "ppl": math.exp(nll),
            "bits_per_byte": total / math.log(2) / n_bytes,
            "n_tokens": n_tokens,
            "n_bytes": n_bytes,
            "n_rows": len(self.nll),
        }


def perplexity(
    model: HookedModel, corpus: Corpus, *, reading: Reading = Reading(), progress: bool = True
) -> pd.DataFrame:
    """Loss of every language.

    A token's loss is counted where a token of the same row stands before it: a special token in front, if there is one.
    Perplexity per token cannot be compared across languages or tokenizers: compare changes, or bits per byte.

    Args:
        reading: how text becomes rows.

    Returns:
        one row per language: language, nll (nats per token), ppl, bits_per_byte, n_tokens, n_bytes, n_rows.

    Raises:
        ValueError: as `token_rows`.

    Example:
        >>> import mi_multilingual as mm
        >>> model = mm.load_model("demo")
        >>> corpus = mm.load_corpus("demo", languages=["en", "fr"], split="evaluate", max_documents=20)
        >>> table = mm.perplexity(model, corpus, reading=mm.Reading(layout="documents"), progress=False)
        >>> table[["language", "nll", "n_tokens"]].round(1)
          language  nll  n_tokens
        0       en  5.3       562
        1       fr  5.3       647
    """
    rows = corpus_rows(model, corpus, reading, progress=progress)
    losses = {k: row_losses(model, r) for k, r in tqdm(rows.items(), desc="perplexity", disable=not progress)}
    return pd.DataFrame([{"language": k, **loss.summary()} for k, loss in losses.items()])


def corpus_rows(model: HookedModel, corpus: Corpus, reading: Reading, *, progress: bool = True) -> dict[str, TokenRows]:
    """The rows of every language."""
    return {rows.language: rows for rows in language_rows(model, corpus, reading, progress=progress)}


def row_losses(model: HookedModel, rows: TokenRows) -> RowLosses:
    """Loss of each row, summed over its valid tokens that have a token before them."""
    device = model.cfg.device
    parts = [batch_losses(b, token_losses(model, b.tokens.to(device))) for b in logit_batches(model, rows)]
    return joined_losses(parts)


def logit_batches(model: HookedModel, rows: TokenRows) -> Iterator[TokenRows]:
    """Batches of rows of which the logits of all tokens are kept at once."""
    return rows.batches(rows_per_batch(model, rows.width, "logits"))


def batch_losses(batch: TokenRows, losses: Float[Tensor, "row pos_less_1"]) -> RowLosses:
    """Loss of each row of a batch, from the loss of every token."""
    scored = batch.valid[:, 1:]
    nll = losses.cpu().double().masked_fill(~scored, 0.0)
    return RowLosses(nll.sum(dim=1), scored.sum(dim=1), (batch.n_bytes[:, 1:] * scored).sum(dim=1))


def joined_losses(parts: Sequence[RowLosses]) -> RowLosses:
    """Losses of several batches as those of one."""
    return RowLosses(*(torch.cat([getattr(p, name) for p in parts]) for name in ("nll", "n_tokens", "n_bytes")))


def corpus_losses(model: HookedModel, rows: Mapping[str, TokenRows]) -> dict[str, RowLosses]:
    """`row_losses` of every language, rows in their order; batches hold rows of several languages."""
    n_rows = [len(r) for r in rows.values()]
    number = torch.arange(sum(n_rows))
    merged = replace(joined(list(rows.values())), document=number)
    size = rows_per_batch(model, merged.width, "logits")
    order = torch.cat([batch.document for batch in merged.batches(size)])
    loss = row_losses(model, merged)
    back = torch.empty_like(order).scatter_(0, order, number)
    columns = [getattr(loss, name)[back].split(n_rows) for name in ("nll", "n_tokens", "n_bytes")]
    return {k: RowLosses(*parts) for k, *parts in zip(rows, *columns, strict=True)}


def change_interval(loss: RowLosses, base: RowLosses, *, seed: int = 0) -> tuple[float, float, float]:
    """Change of the loss per token, nats, and its 95 % bootstrap interval over rows."""
    difference, n_tokens = (loss.nll - base.nll).numpy(), base.n_tokens.numpy()
    low, high = ratio_interval(difference, n_tokens, seed=seed)
    return float(difference.sum() / n_tokens.sum()), low, high
