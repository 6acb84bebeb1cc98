"""A fact changed in the weights: one update of rank one to the output weights of one MLP (ROME)."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from itertools import islice
from typing import NamedTuple

import torch
from jaxtyping import Float, Int
from torch import Tensor
from tqdm.auto import tqdm

from ..corpora import WITHOUT_SPACES, Corpus
from ..evaluation.edits import EditRecord
from ..evaluation.likelihood import Continuation, continuations
from ..evaluation.prompts import first_words
from ..evidence.reading import read
from ..models.hooked import HookedModel, keeps_its_weights, logits_with_output, model_name, site_of
from ..patching.weights import out_projection
from ..tokens import Reading, language_rows, pad_right, prefix_ids, prompt_ids, rows_per_batch

_RIDGE = 1e-4
"""Share of the mean diagonal that is added to it: neurons of ReLU models may be dead."""
_STEPS, _RATE, _ENOUGH = 20, 0.5, 0.05
_DIVERGENCE, _DECAY, _LONGEST = 0.0625, 0.5, 4.0


@dataclass(frozen=True, eq=False)
class Keys:
    """What an edit needs to know of a layer's keys elsewhere: a key is what the output weights read at a token."""

    layer: int
    factor: Float[Tensor, "neuron neuron"]
    """Lower Cholesky factor of the mean of k k^T over tokens, with a ridge; float64."""
    openings: Mapping[str, tuple[str, ...]]
    """Of each language, beginnings of documents that can stand before a prompt."""

    def solved(self, key: Float[Tensor, " neuron"]) -> Float[Tensor, " neuron"]:
        """The direction in which this key can be told best from keys elsewhere."""
        return torch.cholesky_solve(key[:, None], self.factor)[:, 0]


def record_keys(
    model: HookedModel,
    corpus: Corpus,
    *,
    layer: int,
    n_openings: int = 5,
    reading: Reading = Reading(),
    progress: bool = True,
) -> Keys:
    """The keys of a layer over text: their second moment, uncentred, all tokens of the same weight.

    Args:
        layer: the one whose output weights are to be edited.
        n_openings: beginnings of documents to keep of each language.

    Raises:
        ValueError: a layer that the model does not have, or text shorter than a window.

    Source: Meng et al. 2022, arXiv:2202.05262.
    """
    if not 0 <= layer < model.cfg.n_layers:
        raise ValueError(f"layer must be from 0 to {model.cfg.n_layers - 1}, got {layer}")
    moment, n_tokens = torch.zeros(model.cfg.d_mlp, model.cfg.d_mlp, dtype=torch.float64), 0
    for rows in language_rows(model, corpus, reading, progress=progress):
        for batch in rows.batches(rows_per_batch(model, rows.width, "statistics")):
            keys = _keys_at(model, batch.tokens, layer, batch.valid)
            moment, n_tokens = moment + keys.T @ keys, n_tokens + len(keys)
    moment = moment / n_tokens
    ridge = _RIDGE * moment.trace() / len(moment)
    factor = torch.linalg.cholesky(moment + ridge * torch.eye(len(moment), dtype=torch.float64))
    return Keys(layer, factor, {k: _openings(corpus, k, n_openings) for k in corpus.languages})


def _openings(corpus: Corpus, language: str, n: int) -> tuple[str, ...]:
    end = "。" if language in WITHOUT_SPACES else ". "
    return tuple(first_words(document, language) + end for document in islice(corpus.documents[language], n))


def _keys_at(
    model: HookedModel, tokens: Int[Tensor, "batch pos"], layer: int, where: Tensor
) -> Float[Tensor, "place neuron"]:
    """The keys of one layer at chosen places, float64."""
    seen: list[Tensor] = []

    def take(_: int, carried: Float[Tensor, "batch pos neuron"]) -> None:
        seen.append(carried.detach()[where.to(carried.device)].double().cpu())

    read(model, tokens, {layer: site_of(model, "post").hook_name(layer)}, take)
    return seen[0]


@dataclass(frozen=True, eq=False)
class RankOne:
    """An update of rank one: the token at which the prompt's subject ends gets a new value to write."""

    layer: int
    key: Float[Tensor, " neuron"]
    """What the output weights read at that token of the bare prompt, float64."""
    direction: Float[Tensor, " neuron"]
    """Where the update reads, float64."""
    written: Float[Tensor, " d_model"]
    """What the MLP writes there before, its bias included, float64."""
    value: Float[Tensor, " d_model"]
    """What it is to write, float64."""

    def update(self) -> Float[Tensor, "neuron d_model"]:
        """What is added to the output weights, float64."""
        return torch.outer(self.direction, self.value - self.written) / (self.key @ self.direction)

    def fired(self, key: Float[Tensor, "*axes neuron"]) -> Float[Tensor, "*axes"]:
        """How much of the change another key brings about: 1 for the prompt's own, 0 where nothing changes."""
        return key @ self.direction / (self.key @ self.direction)


@contextmanager
def edit(model: HookedModel, change: RankOne) -> Iterator[HookedModel]:
    """Within the block, the model's output weights have the update; then they are as before, bit for bit.

    That is so also when the body raises, and in the transformers model that shares the weights.

    Raises:
        ValueError: an update for a model of another shape, or weights that cannot be written to.

    Example:
        >>> import mi_multilingual as mm
        >>> model, records = mm.load_model("demo"), mm.load_fact_edits(languages=["en"])
        >>> corpus = mm.load_corpus("demo", split="identify", languages=["en"], max_documents=20)
        >>> keys = mm.record_keys(model, corpus, layer=0, reading=mm.Reading(layout="documents"), progress=False)
        >>> with mm.edit(model, mm.rank_one(model, records[0], keys)):
        ...     print(mm.generate(model, [records[0].prompt], max_new_tokens=5, progress=False)[0])
         Mogadishu
    """
    check_writable(model)
    weights = out_projection(model, change.layer).rows if change.layer < model.cfg.n_layers else torch.empty(0, 0)
    shape = (len(change.key), len(change.value))
    if tuple(weights.shape) != shape:
        raise ValueError(
            f"the edit must be of the model's own layers, got one of layer {change.layer} with {shape[0]} neurons and "
            f"width {shape[1]} for {model_name(model)!r}; make it with this model"
        )
    before = weights.clone()
    try:
        weights.copy_((weights.double() + change.update().to(weights.device)).to(weights.dtype))
        yield model
    finally:
        weights.copy_(before)


def check_writable(model: HookedModel) -> None:
    if keeps_its_weights(model):
        raise ValueError(
            f"the weights must be on one device and not quantised to be edited, got {model_name(model)!r}, which is "
            "spread over devices or quantised; leave the updates out and edit in context alone"
        )


def rank_one(model: HookedModel, record: EditRecord, keys: Keys, *, bos: str = "tokenizer") -> RankOne:
    """The update by which the prompt's subject is followed by the target.

    u = C^-1 k with k the mean key at the subject's last token, of the bare prompt and behind other openings; the value
    minimises the loss of the target, with a penalty on what changes after "{subject} is a" and on its distance.

    Args:
        keys: of the layer to edit (`record_keys`), whose openings of the record's language stand before the prompt.
        bos: special tokens before every prompt (see `Reading`).

    Raises:
        ValueError: a subject that is not in the prompt, a prompt that is too long, a tokenizer that does not say where
            its tokens stand, or weights that cannot be written to.

    Source: Meng et al. 2022, arXiv:2202.05262, with the settings released for GPT-2 XL.
    """
    check_writable(model)
    bare = subject_in(record)
    places = [Named(o + bare.text, len(o) + bare.end) for o in ("", *keys.openings.get(record.language, ()))]
    found = [continuations(model, place.text, [record.target], bos=bos)[0] for place in places]
    own = subject_keys(model, places, keys.layer, bos=bos)
    weights = out_projection(model, keys.layer)
    bias = 0.0 if weights.bias is None else weights.bias.detach().double().cpu()
    written = own[0] @ weights.rows.double().cpu() + bias
    if not own[0].any():
        raise ValueError(
            f"some neuron must be active where {record.subject!r} ends, got none in layer {keys.layer} for record "
            f"{record.id!r} ({record.language}); edit another layer"
        )
    aim = _aim(model, places, record.target, found, Named(f"{record.subject} is a", len(record.subject)), bos)
    value = written + _shift(model, aim, keys.layer, written)
    return RankOne(keys.layer, own[0], keys.solved(own.mean(dim=0)), written, value)


class Named(NamedTuple):
    """A text that names a subject."""

    text: str
    end: int
    """Characters up to the end of the name."""


def subject_in(record: EditRecord) -> Named:
    """The record's prompt with the place of its subject, the last one where it is named twice.

    Raises:
        ValueError: the prompt does not name it.
    """
    start = record.prompt.rfind(record.subject)
    if start < 0:
        raise ValueError(
            f"the subject must stand in the prompt, got {record.subject!r} and {record.prompt!r} in record "
            f"{record.id!r} ({record.language}); mend the record, or edit it in context alone"
        )
    return Named(record.prompt, start + len(record.subject))


def subject_keys(
    model: HookedModel, places: Sequence[Named], layer: int, *, bos: str = "tokenizer"
) -> Float[Tensor, "place neuron"]:
    """What the output weights of a layer read at the last token of the subject in each text, float64."""
    tokens, _ = pad_right(prompt_ids(model.tokenizer, [place.text for place in places], bos))
    where = torch.zeros(tokens.shape, dtype=torch.bool)
    where[torch.arange(len(places)), torch.tensor([_token_at(model, place, bos) for place in places])] = True
    return _keys_at(model, tokens, layer, where)


def _token_at(model: HookedModel, place: Named, bos: str) -> int:
    """The token with the last character of the name; the last of them where a character has several."""
    tokenizer = model.tokenizer
    if not tokenizer.is_fast:
        raise ValueError(
            f"the tokenizer must say where its tokens stand in a text, got {type(tokenizer).__name__}; load a fast "
            "one, or edit in context alone"
        )
    spans = tokenizer(place.text, add_special_tokens=False, return_offsets_mapping=True)["offset_mapping"]
    at = max(i for i, (start, end) in enumerate(spans) if start < place.end <= end)
    return len(prefix_ids(tokenizer, bos)) + at


@dataclass(frozen=True, eq=False)
class _Aim:
    """The rows that a value is optimised on: prompts with the target, and last the subject in other words."""

    tokens: Int[Tensor, "row pos"]
    at: Int[Tensor, " row"]
    """Where the subject ends."""
    scored: tuple[Int[Tensor, " token"], Int[Tensor, " token"], Int[Tensor, " token"]]
    """Row and position before each token of the targets, and the token."""
    last: int
    """The last position of the last row."""


def _aim(
    model: HookedModel, places: Sequence[Named], target: str, found: Sequence[Continuation], other: Named, bos: str
) -> _Aim:
    # The subject's end is looked for in the whole text: what follows may be one token with it.
    at = [_token_at(model, place, bos) for place in [*(Named(p.text + target, p.end) for p in places), other]]
    [ids] = prompt_ids(model.tokenizer, [other.text], bos)
    tokens, _ = pad_right([*(c.ids for c in found), ids])
    row = torch.arange(len(found)).repeat_interleave(torch.tensor([c.n_scored for c in found]))
    before = torch.cat([torch.arange(c.first - 1, len(c.ids) - 1) for c in found])
    wanted = torch.tensor([i for c in found for i in c.ids[c.first :]])
    return _Aim(tokens, torch.tensor(at), (row, before, wanted), len(ids) - 1)


@torch.enable_grad()
def _shift(model: HookedModel, aim: _Aim, layer: int, written: Float[Tensor, " d_model"]) -> Float[Tensor, " d_model"]:
    """What to add to the value written at the subject's end, float64."""
    size = float(written.norm())
    shift = torch.zeros(len(written), device=model.cfg.device, requires_grad=True)
    optimizer = torch.optim.Adam([shift], lr=_RATE)
    before: Tensor | None = None
    for _ in range(_STEPS):
        missed, after = _missed(model, aim, layer, shift)
        before = after.detach() if before is None else before
        divergence = (after.exp() * (after - before)).sum()
        loss = missed + _DIVERGENCE * divergence + _DECAY * shift.norm() / size**2
        if loss < _ENOUGH:
            break
        [shift.grad] = torch.autograd.grad(loss, [shift])
        optimizer.step()
        with torch.no_grad():
            shift *= _LONGEST * size / shift.norm().clamp(min=_LONGEST * size)
    return shift.detach().double().cpu()


def _missed(
    model: HookedModel, aim: _Aim, layer: int, shift: Float[Tensor, " d_model"]
) -> tuple[Float[Tensor, ""], Float[Tensor, " vocab"]]:
    """With the shift: mean loss of the target's tokens, and log-probabilities after the subject in other words."""
    device = shift.device
    rows, at = torch.arange(len(aim.at), device=device), aim.at.to(device)

    def shifted(out: Float[Tensor, "row pos d_model"]) -> Float[Tensor, "row pos d_model"]:
        return out.index_put((rows, at), shift.to(out).expand(len(rows), -1), accumulate=True)

    logits = logits_with_output(model, aim.tokens.to(device), layer, shifted)
    row, position, wanted = (part.to(device) for part in aim.scored)
    chosen = logits[row, position].float().log_softmax(-1)
    missed = -chosen.gather(-1, wanted[:, None]).mean()
    return missed, logits[-1, aim.last].float().log_softmax(-1)


def rank_one_edits(
    model: HookedModel,
    records: Sequence[EditRecord],
    keys: Keys,
    *,
    edited_in: Sequence[str] | None = None,
    bos: str = "tokenizer",
    progress: bool = True,
) -> dict[tuple[str, str], RankOne]:
    """`rank_one` of every record: id and language -> its update.

    Args:
        edited_in: the languages whose records to take; all by default.

    Raises:
        ValueError: as `rank_one`; a record without its subject before anything runs.
    """
    chosen = [record for record in records if edited_in is None or record.language in edited_in]
    for record in chosen:
        subject_in(record)
    bar = tqdm(chosen, desc="editing", unit="record", disable=not progress)
    return {(record.id, record.language): rank_one(model, record, keys, bos=bos) for record in bar}
