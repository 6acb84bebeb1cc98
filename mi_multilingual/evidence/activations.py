"""One pass of the model over a corpus, reduced on the fly to small statistics per layer, neuron and language."""

from __future__ import annotations

import itertools
import json
import time
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor
from tqdm.auto import tqdm

from ..corpora import Corpus
from ..display import Summarised, size
from ..models.hooked import HookedModel, Site, as_it_runs, max_window, on_cpu, site_of
from ..storage import load_record, save_record
from ..tokens import Reading, TokenRows, rows_per_batch, tokenizer_rows
from .reading import check_alike, joint_corpus, layers_of, origin, read

_CHECKPOINT_SCHEMA = "ActivationStats checkpoint/3"

# Reduced in shares of about so many activations, so that one stays in a thread's cache between the reductions.
_CPU_SHARE = 2**17

_SHORTEST_SLICE = 48  # tokens on average, below which many short slices cost more than one copy

_ACCELERATOR_PIECE = 32768

_SECONDS_BETWEEN_CHECKPOINTS = 60.0

STATISTICS = ("all", "counts")

_MEND = "check the weights, or load the model with dtype=torch.float32"


@dataclass(frozen=True, eq=False, repr=False)
class ActivationStats(Summarised):
    """Sufficient statistics of neuron activations over the counted tokens of each language.

    A monoid: `a + b` are the statistics of both recordings together, counts bit for bit.
    """

    languages: tuple[str, ...]
    n_tokens: Int[Tensor, " language"]
    """Tokens counted; padding and special tokens in front are not."""
    active: Int[Tensor, "layer neuron language"]
    """Tokens at which the activation exceeded `threshold`."""
    total: Float[Tensor, "layer neuron language"]
    """Sum of activations."""
    active_total: Float[Tensor, "layer neuron language"]
    """Sum of the activations that exceeded `threshold`."""
    total_squares: Float[Tensor, "layer neuron language"]
    """Sum of squared activations."""
    maximum: Float[Tensor, "layer neuron language"]
    """Largest activation; -inf before the first token."""
    site: str
    threshold: float
    model: str
    model_fingerprint: str
    corpus_fingerprint: str
    reading: Reading
    """How the text became rows of tokens."""
    statistics: str = "all"
    """"all", or "counts": sums, squares and maxima were not recorded and are NaN."""

    def __post_init__(self) -> None:
        if self.statistics not in STATISTICS:
            raise ValueError(f"statistics must be one of {', '.join(STATISTICS)}, got {self.statistics!r}")
        shapes = {tuple(t.shape) for t in (getattr(self, name) for name in TENSORS[1:])}
        if (
            len(shapes) != 1
            or self.active.shape[-1] != len(self.languages)
            or len(self.n_tokens) != len(self.languages)
        ):
            raise ValueError(f"statistics must have one column per language of {self.languages}, got {sorted(shapes)}")

    @classmethod
    def zeros(cls, languages: Sequence[str], n_layers: int, n_neurons: int, **origin: Any) -> ActivationStats:
        """Statistics of nothing; `origin` are site, threshold, reading, the fingerprints, and which statistics."""
        shape = (n_layers, n_neurons, len(languages))
        counts_alone = origin.get("statistics") == "counts"
        unknown = torch.full(shape, torch.nan, dtype=torch.float64)
        nothing = unknown if counts_alone else torch.zeros(shape, dtype=torch.float64)
        return cls(
            tuple(languages),
            torch.zeros(len(languages), dtype=torch.int64),
            torch.zeros(shape, dtype=torch.int64),
            nothing,
            nothing.clone(),
            nothing.clone(),
            unknown if counts_alone else torch.full(shape, -torch.inf, dtype=torch.float64),
            **origin,
        )

    def __add__(self, other: ActivationStats) -> ActivationStats:
        check_alike(self, other, ["statistics"])
        return replace(
            self,
            n_tokens=self.n_tokens + other.n_tokens,
            active=self.active + other.active,
            total=self.total + other.total,
            active_total=self.active_total + other.active_total,
            total_squares=self.total_squares + other.total_squares,
            maximum=torch.maximum(self.maximum, other.maximum),
            corpus_fingerprint=joint_corpus(self, other),
        )

    def __radd__(self, other: int) -> ActivationStats:
        """0 + stats, so that `sum(shards)` works."""
        return self if other == 0 else NotImplemented

    def summary(self) -> tuple[str, Mapping[str, Sequence[Any]]]:
        head = f"{self.model}, {size(self.active)} at {self.site}"
        return head, {"language": self.languages, "tokens": self.n_tokens.tolist()}

    def take(self, languages: Sequence[str]) -> ActivationStats:
        """The same statistics for these languages only, in this order."""
        missing = [k for k in languages if k not in self.languages]
        if missing:
            raise ValueError(
                f"nothing was recorded for {missing[0]!r}; these statistics cover {', '.join(self.languages)}"
            )
        index = [self.languages.index(k) for k in languages]
        tensors = {name: getattr(self, name)[..., index] for name in TENSORS}
        return replace(self, languages=tuple(languages), **tensors)

    def activation_probability(self) -> Float[Tensor, "layer neuron language"]:
        """Share of tokens at which the neuron was active, in float32 as the code released with LAPE computes it."""
        self._check_counted()
        return self.active / self.n_tokens

    def mean(self) -> Float[Tensor, "layer neuron language"]:
        """Mean activation, float64."""
        self._check_summed()
        return self.total / self.n_tokens

    def active_mean(self) -> Float[Tensor, "layer neuron language"]:
        """Mean activation over the tokens at which the neuron was active, float64; 0 where it never was."""
        self._check_summed()
        return self.active_total / self.active.clamp(min=1)

    def std(self) -> Float[Tensor, "layer neuron language"]:
        """Standard deviation of the activation over tokens (population), float64."""
        return (self.total_squares / self.n_tokens - self.mean() ** 2).clamp(min=0).sqrt()

    def _check_counted(self) -> None:
        empty = [k for k, n in zip(self.languages, self.n_tokens.tolist(), strict=True) if n == 0]
        if empty:
            raise ValueError(
                f"no token was counted for {', '.join(empty)}; record them or take(...) the other languages"
            )

    def _check_summed(self) -> None:
        self._check_counted()
        if self.statistics == "counts":
            raise ValueError("statistics must be 'all' for means, got 'counts'; record again without that option")

    def header(self) -> dict[str, Any]:
        """Everything but the tensors, as JSON takes it."""
        return {name: getattr(self, name) for name in _HEADER} | {"reading": asdict(self.reading)}


TENSORS = ("n_tokens", "active", "total", "active_total", "total_squares", "maximum")

_HEADER = ("languages", "site", "threshold", "model", "model_fingerprint", "corpus_fingerprint", "statistics")


def record(
    model: HookedModel,
    corpus: Corpus,
    *,
    site: str = "gate",
    threshold: float = 0.0,
    statistics: str = "all",
    reading: Reading = Reading(),
    batch_size: int | str = "auto",
    shard: tuple[int, int] = (0, 1),
    progress: bool = True,
    checkpoint: Path | str | None = None,
) -> ActivationStats:
    """Statistics of every neuron's activations over every language of the corpus, in one pass without logits.

    Memory does not depend on the number of tokens. With `checkpoint` (a file), an interrupted recording keeps what it
    has, and the same call goes on from there to the same numbers. Several processes share the work by `shard`: each
    runs every n-th of the very same batches, so that the shards add up to the whole: counts and maxima bit for bit,
    sums but for the order of additions in float64.

    Args:
        site: where a neuron is read: "gate", "post" or "up" (see `mi_multilingual.models.site`).
        threshold: a neuron is active at a token when its activation is strictly greater.
        statistics: "all", or "counts": without sums, squares and maxima, which LAPE and LAP do not need; that saves a
            tenth of the time in the demo model, a twentieth in SmolLM2-135M.
        reading: how text becomes rows.
        batch_size: rows per forward pass.
        shard: (index, number): batches index, index + number and so on, of all languages together.

    Raises:
        ValueError: text shorter than a window, a site the model does not have, activations that are not finite, a
            shard that is none, or a checkpoint of another recording.

    Example:
        >>> import mi_multilingual as mm
        >>> model, corpus = mm.load_model("demo"), mm.load_corpus("demo", languages=["en", "fr"], max_documents=50)
        >>> mm.record(model, corpus, reading=mm.Reading(layout="documents"), progress=False)
        ActivationStats(demo, 4 layers x 1536 neurons at gate: en 1,296, fr 1,543)
    """
    _check_shard(shard)
    reading = reading.for_model(model)
    batch_size = checked_batch_size(model, reading, batch_size)
    protocol = {"batch_size": batch_size, "shard": shard}
    empty = nothing_recorded(model, corpus, reading, site=site, threshold=threshold, statistics=statistics)
    start, done = (empty, 0) if checkpoint is None else _resumed(Path(checkpoint), empty, protocol)
    # An interrupt may come between any two steps: statistics and their number of batches change in one assignment.
    state = ({language: start.take([language]) for language in corpus.languages}, done)

    def keep() -> None:
        if checkpoint is not None:
            stats, n_batches = joined(state[0]), torch.tensor(state[1])
            tensors = {name: getattr(stats, name) for name in TENSORS} | {"n_batches": n_batches}
            save_record(checkpoint, _CHECKPOINT_SCHEMA, tensors, {**stats.header(), "protocol": protocol})

    rows = list(tokenizer_rows(model.tokenizer, corpus, reading, progress=progress))
    reader, saved = as_it_runs(model, site_of(model, site)), time.monotonic()
    with _tokens_bar(rows, batch_size, shard, done, progress) as bar:
        try:
            for batch in corpus_batches(rows, batch_size, shard, done):
                parts, n_batches = state
                whole = parts[batch.language] + batch_stats(model, reader, batch, parts[batch.language])
                state = (parts | {batch.language: whole}, n_batches + 1)
                bar.set_postfix_str(batch.language, refresh=False)
                bar.update(batch.n_tokens)
                if time.monotonic() - saved > _SECONDS_BETWEEN_CHECKPOINTS:
                    keep()
                    saved = time.monotonic()
        finally:
            keep()
    return checked_finite(joined(state[0]))


def _check_shard(shard: tuple[int, int]) -> None:
    index, number = shard
    if not 0 <= index < number:
        raise ValueError(f"shard must be (index, number) with 0 <= index < number, got {shard}")


def checked_batch_size(model: HookedModel, reading: Reading, batch_size: int | str) -> int:
    """Rows per batch, chosen for the model where "auto" is given."""
    if batch_size == "auto":
        return rows_per_batch(model, reading.window or max_window(model), "statistics")
    if not isinstance(batch_size, int) or batch_size < 1:
        raise ValueError(f"batch_size must be a number of rows from 1, or 'auto', got {batch_size!r}")
    return batch_size


def nothing_recorded(
    model: HookedModel,
    corpus: Corpus,
    reading: Reading,
    *,
    site: str = "gate",
    threshold: float = 0.0,
    statistics: str = "all",
) -> ActivationStats:
    """What a recording begins with."""
    protocol = {"site": site, "threshold": threshold, "statistics": statistics, **origin(model, corpus, reading)}
    return ActivationStats.zeros(corpus.languages, model.cfg.n_layers, model.cfg.d_mlp, **protocol)


def corpus_batches(
    rows: Iterable[TokenRows], batch_size: int, shard: tuple[int, int] = (0, 1), done: int = 0
) -> Iterator[TokenRows]:
    """The batches of a recording in their order: one language after another, longest rows first.

    Args:
        rows: of every language.
        shard: (index, number), as of `record`.
        done: so many batches of the shard are left out.
    """
    index, number = shard
    first = index + done * number
    for own in rows:
        yield from own.batches(batch_size, first, number)
        n_batches = -(-len(own) // batch_size)
        first = first - n_batches if first >= n_batches else (first - n_batches) % number


def _tokens_bar(rows: Sequence[TokenRows], batch_size: int, shard: tuple[int, int], done: int, progress: bool) -> tqdm:
    """A bar over the tokens of a shard, standing where the recording goes on."""
    mine = torch.cat([own.batch_tokens(batch_size) for own in rows])[shard[0] :: shard[1]]
    total, initial = int(mine.sum()), int(mine[:done].sum())
    return tqdm(total=total, initial=initial, desc="recording", unit=" tokens", unit_scale=True, disable=not progress)


def joined(parts: dict[str, ActivationStats]) -> ActivationStats:
    """Statistics of single languages side by side."""
    first = next(iter(parts.values()))
    tensors = {name: torch.cat([getattr(part, name) for part in parts.values()], dim=-1) for name in TENSORS}
    return replace(first, languages=tuple(parts), **tensors)


def _resumed(checkpoint: Path, empty: ActivationStats, protocol: dict[str, Any]) -> tuple[ActivationStats, int]:
    """What the checkpoint holds and the number of batches it covers; nothing and 0 where there is none.

    Raises:
        ValueError: it belongs to another recording.
    """
    if not checkpoint.exists():
        return empty, 0
    tensors, header = load_record(checkpoint, _CHECKPOINT_SCHEMA)
    expected = json.loads(json.dumps({**empty.header(), "protocol": protocol}))
    differing = [name for name in expected if header.get(name) != expected[name]]
    if differing:
        raise ValueError(
            f"checkpoint {checkpoint} was recorded with another {', '.join(differing)} "
            f"({header.get(differing[0])!r}, now {expected[differing[0]]!r}); use another file or delete it"
        )
    n_batches = int(tensors.pop("n_batches"))
    return replace(empty, **tensors), n_batches


@torch.no_grad()
def batch_stats(model: HookedModel, site: Site, batch: TokenRows, like: ActivationStats) -> ActivationStats:
    """Statistics of one batch of one language, with the origin of `like`."""
    device = model.cfg.device
    n_shares = torch.get_num_threads() if on_cpu(model) else 1
    share = max(1, _CPU_SHARE // model.cfg.d_mlp) if on_cpu(model) else _ACCELERATOR_PIECE
    pieces = counted_pieces(batch.valid, share * n_shares)
    sums: dict[int, tuple[Tensor, ...]] = {}
    layers = range(model.cfg.n_layers)

    def reduce(layer: int, carried: Float[Tensor, "batch pos neuron"]) -> None:
        flat = carried.flatten(0, 1)
        parts = map(site.value, (flat[p if isinstance(p, slice) else p.to(flat.device)] for p in pieces))
        if like.statistics == "counts":
            # A number that is not finite makes those of all later layers so.
            last = layer == layers[-1]
            sums[layer] = counted(parts, like.threshold, flat.shape[1], flat.device, n_shares, finite=last)
        else:
            sums[layer] = reduced(parts, like.threshold, flat.shape[1], flat.device, n_shares)

    read(model, batch.tokens, layers_of(model, site), reduce)
    active, *others = (
        torch.stack([sums[layer][i].to(device) for layer in layers]).cpu()[..., None] for i in range(len(sums[0]))
    )
    if not others:
        return replace(like, n_tokens=torch.tensor([batch.n_tokens]), active=active)
    total, active_total, squares, maximum = others
    return replace(
        like,
        n_tokens=torch.tensor([batch.n_tokens]),
        active=active,
        total=total.double(),
        active_total=active_total.double(),
        total_squares=squares.double(),
        maximum=maximum.double(),
    )


_Piece = slice | Int[Tensor, " piece"]


def counted_pieces(valid: Bool[Tensor, "row pos"], size: int) -> list[_Piece]:
    """Where the counted tokens stand among all, row after row, in pieces of at most `size`.

    Slices, which need no copy, where the rows are long enough for it to matter; else indices.
    """
    index = valid.flatten().nonzero().flatten()
    if not len(index):
        return []
    breaks = (index.diff() != 1).nonzero().flatten() + 1
    if len(index) < (len(breaks) + 1) * _SHORTEST_SLICE:
        return list(index.split(size))
    edges = [0, *breaks.tolist(), len(index)]
    runs = [(int(index[a]), int(index[b - 1]) + 1) for a, b in itertools.pairwise(edges)]
    return [slice(i, min(i + size, end)) for start, end in runs for i in range(start, end, size)]


_PerNeuron = Float[Tensor, " neuron"]
Sums = tuple[Int[Tensor, " neuron"], _PerNeuron, _PerNeuron, _PerNeuron, _PerNeuron]


def reduced(
    pieces: Iterable[Float[Tensor, "_ neuron"]],
    threshold: float,
    n_neurons: int,
    device: torch.device,
    n_shares: int = 1,
) -> Sums:
    """Number above `threshold`, sum, sum of those above it, sum of squares and maximum over the tokens of all pieces.

    Sums run over a share of a piece in float32, over shares and pieces in float64: float16 would overflow.
    """
    accurate = torch.float64 if device.type != "mps" else torch.float32
    active, total, active_total, squares = torch.zeros(4, n_shares, n_neurons, dtype=accurate, device=device)
    maximum = torch.full((n_shares, n_neurons), -torch.inf, device=device)
    for part, room in _in_shares(pieces, n_shares):
        n = len(part)
        # Ones in float32 add up exactly to 2^24 and several times faster than booleans.
        active[:n] += torch.gt(part, threshold, out=room).sum(dim=1)
        active_total[:n] += room.mul_(part).sum(dim=1)
        total[:n] += part.sum(dim=1)
        squares[:n] += torch.mul(part, part, out=room).sum(dim=1)
        torch.maximum(maximum[:n], part.amax(dim=1), out=maximum[:n])
    sums = (total.sum(dim=0), active_total.sum(dim=0), squares.sum(dim=0))
    return active.sum(dim=0).long(), *sums, maximum.amax(dim=0)


def counted(
    pieces: Iterable[Float[Tensor, "_ neuron"]],
    threshold: float,
    n_neurons: int,
    device: torch.device,
    n_shares: int = 1,
    *,
    finite: bool,
) -> tuple[Int[Tensor, " neuron"]]:
    """Number above `threshold` alone, of which `reduced` says more.

    Args:
        finite: whether to look for activations that are not finite.

    Raises:
        ValueError: there is one.
    """
    # Float32 counts exactly to 2^24, far beyond the tokens of a batch.
    active = torch.zeros(n_shares, n_neurons, device=device)
    for part, room in _in_shares(pieces, n_shares):
        active[: len(part)] += torch.gt(part, threshold, out=room).sum(dim=1)
        if finite and not part.sum().isfinite():
            raise ValueError(f"activations must be finite, got NaN or infinity; {_MEND}")
    return (active.sum(dim=0, dtype=torch.float64).long(),)


def _in_shares(
    pieces: Iterable[Float[Tensor, "_ neuron"]], n_shares: int
) -> Iterator[tuple[Float[Tensor, "share token neuron"], Float[Tensor, "share token neuron"]]]:
    """Every piece as that many shares of as many tokens, then what is left of it as one; each with room of its shape.

    Threads divide work by its first axis: so each keeps its share in its own cache from one operation to the next.
    """
    scratch = torch.empty(0)
    for piece in pieces:
        length = len(piece) // n_shares
        shares, rest = piece.split([n_shares * length, len(piece) - n_shares * length])
        for part in (shares.reshape(n_shares, length, piece.shape[1]), rest[None]):
            if part.numel():
                part = part.float()
                if part.numel() > len(scratch):
                    scratch = torch.empty(part.numel(), device=part.device)
                yield part, scratch[: part.numel()].view(part.shape)


def checked_finite(stats: ActivationStats) -> ActivationStats:
    """`stats`, unless an activation was NaN or infinite, which the sum of squares cannot hide."""
    bad = (~stats.total_squares.isfinite()).nonzero()
    if stats.statistics == "all" and len(bad):
        layer, neuron, k = bad[0].tolist()
        raise ValueError(
            f"activations of neuron {neuron} in layer {layer} are not finite on {stats.languages[k]!r} "
            f"({len(bad)} such sums); {_MEND}"
        )
    return stats
