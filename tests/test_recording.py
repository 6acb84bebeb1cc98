import itertools
import json
import os
import runpy
import socket
import sys
from pathlib import Path

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

import checkpoints
from mi_multilingual import (
    ActivationStats,
    lape,
    load_corpus,
    load_model,
    record,
    record_distributed,
    site_of,
    token_rows,
)
from mi_multilingual.corpora import Corpus
from mi_multilingual.evidence import activations as recording_module
from mi_multilingual.evidence.activations import TENSORS, counted, counted_pieces, reduced
from mi_multilingual.models.hooked import is_gated
from mi_multilingual.storage import load, save
from mi_multilingual.tokens import Reading

WINDOW = 8
READING = Reading(window=WINDOW)


def brute_force(model, corpus, site_name, bos="tokenizer", layout="stream"):
    """Counts, sums, sums of squares and maxima by a loop over rows and positions of an all-activation cache."""
    where = site_of(model, site_name)
    shape = (model.cfg.n_layers, model.cfg.d_mlp, len(corpus.languages))
    active, total, active_total, squares = (torch.zeros(shape, dtype=torch.float64) for _ in range(4))
    maximum, n_tokens = torch.full(shape, -torch.inf, dtype=torch.float64), torch.zeros(len(corpus.languages))
    for k, language in enumerate(corpus.languages):
        rows = token_rows(corpus, language, model.tokenizer, Reading(window=WINDOW, bos=bos, layout=layout))
        for tokens, valid in zip(rows.tokens, rows.valid, strict=True):
            _, cache = model.run_with_cache(tokens[None])
            for layer, pos in itertools.product(range(model.cfg.n_layers), range(len(tokens))):
                if valid[pos]:
                    value = where.value(cache[where.hook_name(layer)])[0, pos].double()
                    active[layer, :, k] += value > 0
                    total[layer, :, k] += value
                    active_total[layer, :, k] += value.clamp(min=0)
                    squares[layer, :, k] += value**2
                    maximum[layer, :, k] = torch.maximum(maximum[layer, :, k], value)
            n_tokens[k] += int(valid.sum())
    return n_tokens, active, total, active_total, squares, maximum


@pytest.mark.parametrize(
    ("bos", "layout"), [("tokenizer", "stream"), ("count", "stream"), ("none", "documents"), ("row", "documents")]
)
@pytest.mark.parametrize("site_name", ["gate", "post", "up"])
@torch.no_grad()
def test_statistics_equal_a_loop_over_cached_activations(model, corpus, site_name, bos, layout):
    if site_name == "up" and not is_gated(model):
        return
    stats = record(
        model, corpus, site=site_name, reading=Reading(window=WINDOW, bos=bos, layout=layout), progress=False
    )
    n_tokens, active, total, active_total, squares, maximum = brute_force(model, corpus, site_name, bos, layout)
    assert stats.n_tokens.tolist() == n_tokens.tolist()
    assert torch.equal(stats.active, active.long())
    torch.testing.assert_close(stats.total, total, atol=1e-4, rtol=1e-5)
    torch.testing.assert_close(stats.active_total, active_total, atol=1e-4, rtol=1e-5)
    torch.testing.assert_close(stats.active_mean(), active_total / active.clamp(min=1), atol=1e-5, rtol=1e-5)
    torch.testing.assert_close(stats.total_squares, squares, atol=1e-4, rtol=1e-5)
    torch.testing.assert_close(stats.maximum, maximum, atol=1e-5, rtol=1e-5)
    torch.testing.assert_close(stats.mean(), total / n_tokens, atol=1e-5, rtol=1e-5)
    assert 0.05 < (stats.active / stats.n_tokens).mean() < 0.95, "a comparison of neurons that fire sometimes"


def test_the_gate_and_the_product_differ_in_sign(tmp_path, corpus):
    model = load_model(checkpoints.checkpoint("llama", tmp_path), device="cpu")
    gate, post = (record(model, corpus, site=s, reading=READING, progress=False) for s in ("gate", "post"))
    assert not torch.equal(gate.active, post.active)


@pytest.mark.parametrize("batch_size", [1, 2, 5])
def test_counts_do_not_depend_on_the_batch_size(model, corpus, batch_size):
    one, other = (record(model, corpus, reading=READING, batch_size=b, progress=False) for b in (3, batch_size))
    assert torch.equal(one.active, other.active)
    torch.testing.assert_close(one.total, other.total, atol=1e-4, rtol=1e-4)


def test_recording_shards_and_adding_equals_recording_at_once(model, corpus):
    shards = [Corpus({k: (texts[i],) for k, texts in corpus.documents.items()}, "shard") for i in range(3)]
    whole = record(model, corpus, reading=Reading(window=WINDOW, layout="documents"), progress=False)
    parts = [record(model, s, reading=Reading(window=WINDOW, layout="documents"), progress=False) for s in shards]
    added = parts[0] + parts[1] + parts[2]
    assert torch.equal(added.active, whole.active)
    assert torch.equal(added.n_tokens, whole.n_tokens)
    torch.testing.assert_close(added.total, whole.total, atol=1e-4, rtol=1e-4)
    assert torch.equal(added.maximum, whole.maximum) or torch.allclose(added.maximum, whole.maximum, atol=1e-5)
    assert added.corpus_fingerprint == "several corpora"


def equal(a, b):
    return all(torch.equal(getattr(a, n), getattr(b, n)) for n in TENSORS) and a.header() == b.header()


def test_saved_statistics_load_back_equal(ungated, corpus, tmp_path):
    stats = record(ungated, corpus, reading=READING, progress=False)
    save(stats, tmp_path / "stats.safetensors")
    assert equal(load(tmp_path / "stats.safetensors"), stats)


@pytest.mark.parametrize("stop_at", range(1, 9))
def test_an_interrupted_recording_goes_on_to_the_same_numbers(ungated, corpus, tmp_path, monkeypatch, stop_at):
    options = {"reading": READING, "batch_size": 3, "progress": False}
    undisturbed = record(ungated, corpus, **options)
    real, calls = recording_module.batch_stats, []

    def interrupted(*arguments):
        calls.append(1)
        if len(calls) == stop_at:
            raise KeyboardInterrupt
        return real(*arguments)

    monkeypatch.setattr(recording_module, "batch_stats", interrupted)
    with pytest.raises(KeyboardInterrupt):
        record(ungated, corpus, checkpoint=tmp_path / "c.safetensors", **options)
    assert equal(record(ungated, corpus, checkpoint=tmp_path / "c.safetensors", **options), undisturbed)
    assert len(calls) == 1 + sum(1 for _ in all_batches(ungated, corpus, 3)), (
        "no batch ran twice but the interrupted one"
    )


def all_batches(model, corpus, batch_size):
    for language in corpus.languages:
        yield from token_rows(corpus, language, model.tokenizer, Reading(window=WINDOW)).batches(batch_size)


def test_a_checkpoint_of_another_recording_is_refused(ungated, corpus, tmp_path):
    record(ungated, corpus, reading=READING, progress=False, checkpoint=tmp_path / "c")
    with pytest.raises(ValueError, match="recorded with another reading"):
        record(ungated, corpus, reading=Reading(window=WINDOW + 1), progress=False, checkpoint=tmp_path / "c")
    with pytest.raises(ValueError, match="recorded with another languages"):
        record(
            ungated,
            corpus.take(["fr", "en"]),
            reading=READING,
            progress=False,
            checkpoint=tmp_path / "c",
        )
    with pytest.raises(ValueError, match="site must be the same in all ActivationStats .* got 'gate' and 'post'"):
        record(ungated, corpus, reading=READING, progress=False) + record(
            ungated, corpus, site="post", reading=READING, progress=False
        )


@given(st.integers(0, 2**20), st.integers(1, 40), st.integers(1, 9), st.sampled_from([0.0, 0.5]), st.integers(1, 4))
def test_reducing_in_pieces_equals_reducing_at_once(seed, n_tokens, piece, threshold, n_shares):
    random = torch.Generator().manual_seed(seed)
    values = torch.randn(n_tokens, 5, generator=random)
    valid = torch.rand(n_tokens, generator=random) < 0.7
    pieces = [values[p] for p in counted_pieces(valid[None], piece)]
    how = (threshold, 5, torch.device("cpu"), n_shares)
    active, total, active_total, squares, maximum = reduced(pieces, *how)
    kept = values[valid].double()
    assert torch.equal(active, (kept > threshold).sum(0))
    assert torch.equal(active, counted(pieces, *how, finite=True)[0])
    torch.testing.assert_close(total, kept.sum(0), atol=1e-5, rtol=1e-5)
    torch.testing.assert_close(active_total, (kept * (kept > threshold)).sum(0), atol=1e-5, rtol=1e-5)
    torch.testing.assert_close(squares, kept.square().sum(0), atol=1e-5, rtol=1e-5)
    assert maximum.double().tolist() == (kept.amax(0) if len(kept) else torch.full((5,), -torch.inf)).tolist()


@given(st.integers(0, 2**20), st.integers(1, 5), st.integers(1, 300), st.integers(1, 150))
def test_pieces_hold_every_counted_token_once_in_order(seed, n_rows, width, size):
    random = torch.Generator().manual_seed(seed)
    lengths = torch.randint(0, width + 1, (n_rows, 1), generator=random)
    valid = (torch.arange(width) < lengths) & (torch.arange(width) > 0)
    pieces = [torch.arange(n_rows * width)[p] for p in counted_pieces(valid, size)]
    assert all(0 < len(p) <= size for p in pieces)
    expected = valid.flatten().nonzero().flatten()
    assert torch.equal(torch.cat([*pieces, expected[:0]]), expected)


@pytest.mark.parametrize("site_name", ["gate", "post"])
def test_recording_leaves_no_hook_behind(model, corpus, site_name):
    tokens = torch.tensor([[1, 5, 9, 30]])
    with torch.no_grad():
        before = model(tokens, return_type="logits")
        record(model, corpus, site=site_name, reading=READING, progress=False)
        assert torch.equal(model(tokens, return_type="logits"), before)


def test_half_precision_sums_do_not_overflow():
    values = torch.full((1000, 2), 60000.0, dtype=torch.float16)
    _, total, active_total, squares, _ = reduced(values.split(128), 0.0, 2, torch.device("cpu"))
    assert total.tolist() == active_total.tolist() == [6e7, 6e7]
    torch.testing.assert_close(squares, torch.full((2,), 3.6e12, dtype=torch.float64), rtol=1e-5, atol=0)


def test_activations_that_are_not_finite_are_named(tmp_path, corpus):
    model = load_model(checkpoints.checkpoint("opt", tmp_path), device="cpu")
    with torch.no_grad():
        model.blocks[1].mlp.b_in[7] = torch.nan
    with pytest.raises(ValueError, match="neuron 7 in layer 1 are not finite on 'en'"):
        record(model, corpus, reading=READING, progress=False)


def test_counts_alone_are_those_of_all_statistics_and_no_mean_is_told(model, corpus, tmp_path):
    whole = record(model, corpus, reading=READING, progress=False)
    counts = record(model, corpus, reading=READING, progress=False, statistics="counts", checkpoint=tmp_path / "c")
    assert torch.equal(counts.active, whole.active)
    assert torch.equal(counts.n_tokens, whole.n_tokens)
    assert torch.equal(lape(counts, rate=0.1).masks, lape(whole, rate=0.1).masks)
    save(counts, tmp_path / "counts.safetensors")
    stored = load(tmp_path / "counts.safetensors", ActivationStats)
    assert stored.header() == counts.header()
    assert torch.equal((stored + counts).active, 2 * counts.active)
    for unknown in (stored, stored + counts, counts.take(["fr"])):
        for mean in (unknown.mean, unknown.active_mean, unknown.std):
            with pytest.raises(ValueError, match="statistics must be 'all' for means, got 'counts'"):
                mean()
        assert all(getattr(unknown, name).isnan().all() for name in TENSORS[2:])
    with pytest.raises(ValueError, match="statistics must be the same in all ActivationStats"):
        whole + counts
    with pytest.raises(ValueError, match="recorded with another statistics"):
        record(model, corpus, reading=READING, progress=False, checkpoint=tmp_path / "c")
    with pytest.raises(ValueError, match="statistics must be one of all, counts, got 'some'"):
        record(model, corpus, reading=READING, progress=False, statistics="some")


@pytest.mark.parametrize("layer", [0, 1])
def test_counts_of_activations_that_are_not_finite_are_refused(tmp_path, corpus, layer):
    model = load_model(checkpoints.checkpoint("opt", tmp_path), device="cpu")
    with torch.no_grad():
        model.blocks[layer].mlp.b_in[7] = torch.nan
    with pytest.raises(ValueError, match="activations must be finite"):
        record(model, corpus, reading=READING, progress=False, statistics="counts")


def test_statistics_of_nothing_are_refused_and_the_identity_of_addition(ungated, corpus):
    stats = record(ungated, corpus, reading=READING, progress=False)
    zero = ActivationStats.zeros(
        stats.languages, *stats.active.shape[:2], **{k: getattr(stats, k) for k in stats.header() if k != "languages"}
    )
    assert equal(stats + zero, stats)
    with pytest.raises(ValueError, match="no token was counted for en, fr, ja"):
        zero.mean()
    with pytest.raises(ValueError, match="nothing was recorded for 'de'"):
        stats.take(["de"])
    assert torch.equal(stats.take(["ja", "en"]).active, stats.active[..., [2, 0]])


def close_to(parts, whole):
    """Counts and maxima bit for bit; sums but for the order of additions, against the sum of absolute values."""
    assert torch.equal(parts.n_tokens, whole.n_tokens)
    assert torch.equal(parts.active, whole.active)
    assert torch.equal(parts.maximum, whole.maximum)
    assert parts.header() == whole.header()
    scale = (whole.n_tokens * whole.total_squares).sqrt()
    assert ((parts.total - whole.total).abs() <= 1e-12 * scale).all()
    assert ((parts.total_squares - whole.total_squares).abs() <= 1e-12 * whole.total_squares).all()
    return True


@settings(max_examples=25)
@given(
    number=st.integers(1, 9),
    layout=st.sampled_from(["stream", "documents"]),
    bos=st.sampled_from(["row", "none"]),
    batch_size=st.integers(1, 4),
    languages=st.permutations(["en", "fr", "ja"]),
    n_languages=st.integers(1, 3),
)
def test_the_shards_of_a_recording_add_up_to_it(
    ungated, corpus, number, layout, bos, batch_size, languages, n_languages
):
    reading = Reading(window=WINDOW, layout=layout, bos=bos)
    options = {"reading": reading, "batch_size": batch_size, "progress": False}
    some = corpus.take(languages[:n_languages])
    parts = [record(ungated, some, shard=(i, number), **options) for i in range(number)]
    assert close_to(sum(parts), record(ungated, some, **options))


def test_every_batch_is_in_one_shard_and_shards_are_alike_in_size(ungated, corpus):
    sizes = [
        int(record(ungated, corpus, reading=READING, batch_size=1, shard=(i, 3), progress=False).n_tokens.sum())
        for i in range(3)
    ]
    assert max(sizes) - min(sizes) <= WINDOW, "every third row of all languages"


@pytest.mark.parametrize("shard", [(1, 1), (-1, 2), (0, 0)])
def test_a_shard_that_is_none_is_refused(ungated, corpus, shard):
    with pytest.raises(ValueError, match="shard must be"):
        record(ungated, corpus, reading=READING, shard=shard, progress=False)


def test_a_checkpoint_of_another_shard_is_refused(ungated, corpus, tmp_path):
    options = {"reading": READING, "checkpoint": tmp_path / "c", "progress": False}
    record(ungated, corpus, shard=(0, 2), **options)
    with pytest.raises(ValueError, match="recorded with another protocol"):
        record(ungated, corpus, shard=(1, 2), **options)


def test_recording_in_a_group_needs_one(ungated, corpus):
    with pytest.raises(ValueError, match="start with torchrun"):
        record_distributed(ungated, corpus, reading=READING)


def one_of_two(rank, folder, port):
    """A process of the test below: the script of the documentation, a recording that works, two that do not."""
    torch.set_num_threads(1)
    os.environ |= {"RANK": str(rank), "LOCAL_RANK": str(rank), "WORLD_SIZE": "2", "MASTER_ADDR": "127.0.0.1"}
    os.environ |= {"MASTER_PORT": str(port), "CUDA_VISIBLE_DEVICES": ""}
    sys.argv = ["record.py", *(str(folder / name) for name in ("model", "texts", "documented.safetensors"))]
    runpy.run_path(str(folder / "record.py"), run_name="__main__")
    torch.distributed.init_process_group("gloo", init_method=f"file://{folder}/meeting", rank=rank, world_size=2)
    model = load_model(folder / "model", device="cpu")
    corpus = Corpus({k: tuple(texts) for k, texts in checkpoints.SENTENCES.items()}, "sentences of the tests")
    options = {"reading": READING, "batch_size": 2, "progress": False}
    stats = record_distributed(model, corpus, checkpoint=folder / "partial", **options)
    save(stats, folder / f"{rank}.safetensors")
    errors = []
    for other in ({"site": "up" if rank else "gate"}, {"batch_size": 1 + rank}):
        try:
            record_distributed(model, corpus, **{**options, **other})
        except (ValueError, RuntimeError) as error:
            errors.append(f"{type(error).__name__}: {error}")
    again = record_distributed(model, corpus, **options)
    (folder / f"{rank}.json").write_text(json.dumps([errors, equal(again, stats)]))
    torch.distributed.destroy_process_group()


@pytest.mark.slow
def test_two_processes_record_what_one_records(tmp_path, corpus, monkeypatch):
    checkpoints.checkpoint("opt", tmp_path / "model")
    (tmp_path / "texts").mkdir()
    for language, sentences in checkpoints.SENTENCES.items():
        (tmp_path / "texts" / f"{language}.txt").write_text("\n".join(sentences * 4), encoding="utf-8")
    documentation = (Path(__file__).parents[1] / "docs" / "scaling.md").read_text(encoding="utf-8")
    (tmp_path / "record.py").write_text(documentation.split("```python\n")[1].split("```")[0])
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    monkeypatch.setattr(torch, "get_num_threads", lambda: 1)  # sums in float32 follow the number of threads
    # Waits for both, however long they take, and ends the other where one fails.
    torch.multiprocessing.spawn(one_of_two, (tmp_path, port), nprocs=2)
    answers = [json.loads((tmp_path / f"{rank}.json").read_text()) for rank in range(2)]
    model = load_model(tmp_path / "model", device="cpu")
    documented = load(tmp_path / "documented.safetensors")
    assert close_to(documented, record(model, load_corpus(tmp_path / "texts"), progress=False))
    serial = record(model, corpus, reading=READING, batch_size=2, progress=False)
    both = [load(tmp_path / f"{rank}.safetensors") for rank in range(2)]
    assert close_to(both[0], serial)
    assert equal(*both)
    assert sorted(p.name for p in tmp_path.glob("partial*")) == ["partial.0-of-2", "partial.1-of-2"]
    differ = "ValueError: the processes record different things"
    for rank, alone in enumerate(("RuntimeError: process 1 of 2 failed", "ValueError: site 'up' needs a gated MLP")):
        (failed, differing), as_before = answers[rank]
        assert failed.startswith(alone)
        assert differing.startswith(differ)
        assert as_before, "the group works on after errors"
