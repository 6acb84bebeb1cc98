"""Tuning of chosen neurons: which numbers move, by how much, at which cost in memory, and what is left behind."""

from dataclasses import replace
from itertools import islice

import pytest
import torch
from transformers import AutoModelForCausalLM

import checkpoints
import oracles
from mi_multilingual import (
    NeuronSet,
    Reading,
    Training,
    export_tuned,
    load,
    load_model,
    perplexity,
    save,
    tune,
    tuned,
    tuned_copy,
)
from mi_multilingual import training as steps_of
from mi_multilingual.corpora import Corpus
from mi_multilingual.models.hooked import is_bridge, is_gated, neurons_shape
from mi_multilingual.models.native import native_of
from mi_multilingual.tokens import language_rows
from mi_multilingual.training import Batches
from mi_multilingual.tuning import added

READING = Reading(layout="documents", window=checkpoints.N_CTX)
SHORT = Training(steps=3, learning_rate=0.05, batch_rows=2)
HOOKED = ["opt", "llama-grouped", "gpt2", "qwen3", "gpt-neox", "bloom"]
FAMILIES = [(kind, "auto") for kind in HOOKED] + [(kind, "bridge") for kind in (*HOOKED, "gemma2", "phi3", "olmo2")]


def some(model, part="mlp", n=3, seed=0):
    """A few neurons of every layer."""
    n_layers, width = neurons_shape(model, part)
    random = torch.Generator().manual_seed(seed)
    places = [(i, j) for i in range(n_layers) for j in torch.randperm(width, generator=random)[:n].tolist()]
    return NeuronSet.of({"fr": places}, shape=(n_layers, width), part=part)


def every_part(model):
    return [some(model, part) for part in ("mlp", "q", "k", "v")]


def logits(model):
    tokens = torch.arange(40).view(2, 20) + 5
    with torch.no_grad():
        return model(tokens.to(model.cfg.device), return_type="logits")


@pytest.fixture(params=["auto", "bridge"])
def either(request, tmp_path):
    """A gated model with grouped queries, by either backend."""
    return load_model(checkpoints.checkpoint("llama-grouped", tmp_path), backend=request.param, device="cpu")


def noisy(tuning, size=0.1):
    random = torch.Generator().manual_seed(1)
    change = {name: size * torch.randn(c.shape, generator=random) for name, c in tuning.change.items()}
    return replace(tuning, change=change)


@pytest.mark.parametrize(("kind", "backend"), FAMILIES)
def test_a_change_beside_the_weights_does_what_it_does_in_them(kind, backend, tmp_path, corpus):
    model = load_model(checkpoints.checkpoint(kind, tmp_path), backend=backend, device="cpu")
    short = replace(SHORT, steps=1)
    tuning = noisy(tune(model, corpus, *every_part(model), training=short, gate=True, reading=READING, progress=False))
    before = logits(model)
    with torch.no_grad(), added(model, tuning.change, tuning.index):
        beside = logits(model)
    with tuned(model, tuning):
        within = logits(model)
    assert (within - before).abs().max() > 0.05
    torch.testing.assert_close(beside, within, atol=2e-4, rtol=1e-4)
    assert torch.equal(logits(model), before)
    assert len(tuning.change) == model.cfg.n_layers * (6 if is_gated(model) else 5)


def _chosen(model, neurons):
    """Masks of whole weights, by name, for the oracle."""
    found = {}
    for part in neurons:
        for layer, mask in enumerate(part.union()):
            if part.part == "mlp":
                found[f"blocks.{layer}.mlp.W_in"] = lambda p, m=mask: m[None].expand(p.shape)
                found[f"blocks.{layer}.mlp.W_out"] = lambda p, m=mask: m[:, None].expand(p.shape)
            else:
                heads = mask.unflatten(0, (-1, model.cfg.d_head))
                grouped = "_" if part.part != "q" and hasattr(model.blocks[layer].attn, "_W_K") else ""
                name = f"blocks.{layer}.attn.{grouped}W_{part.part.upper()}"
                found[name] = lambda p, m=heads: m[:, None].expand(p.shape)
    return found


def test_neurons_move_as_by_adam_on_whole_weights_with_masked_gradients(model, corpus):
    if is_bridge(model):
        pytest.skip("a bridge's weights are properties, which the oracle cannot train")
    neurons = every_part(model)
    tuning = tune(model, corpus, *neurons, training=SHORT, reading=READING, progress=False)
    rows = list(language_rows(model, corpus, READING, progress=False))
    expected = oracles.masked_tuning(
        tuned_copy(model, noisy(tuning, 0.0)),
        Batches(rows, SHORT),
        _chosen(model, neurons),
        steps=SHORT.steps,
        learning_rate=SHORT.learning_rate,
    )
    copy = tuned_copy(model, tuning)
    mine, base = dict(copy.named_parameters()), dict(model.named_parameters())
    for name, change in expected.items():
        torch.testing.assert_close(mine[name] - base[name], change, atol=2e-4, rtol=1e-3)
        assert change.abs().max() > 0.01
    untouched = set(base) - set(expected)
    assert all(torch.equal(mine[name], base[name]) for name in untouched)


def test_the_loss_falls_and_the_model_is_left_as_it_was(either, corpus):
    before, stand_in = logits(either), native_of(either).stands_in()
    trains = [p.requires_grad for p in either.parameters()]
    tuning = tune(
        either, corpus, some(either, n=12), training=replace(SHORT, steps=10), reading=READING, progress=False
    )
    assert torch.equal(logits(either), before)
    assert [p.requires_grad for p in either.parameters()] == trains

    def nll():
        return perplexity(either, corpus, reading=READING, progress=False).nll.mean()

    intact = nll()
    with tuned(either, tuning):
        assert nll() < intact - 0.1
    assert nll() == intact
    assert native_of(either).stands_in() == stand_in


def test_gradients_and_moments_are_as_large_as_the_set_and_nothing_has_the_shape_of_a_weight(
    either, corpus, monkeypatch
):
    """Measured in the midst of training: leaves, gradients, Adam's moments, and all that the graph keeps."""
    neurons, seen, kept = every_part(either), [], []
    large = {p.untyped_storage().data_ptr() for p in either.parameters()}
    shapes = {tuple(p.shape) for p in either.parameters() if p.ndim > 1}
    shapes |= {shape[::-1] for shape in shapes}
    plain = steps_of._step

    def watched(model, batch, optimizer):
        def keep(tensor):
            kept.append((tuple(tensor.shape), tensor.requires_grad, tensor.untyped_storage().data_ptr() in large))
            return tensor

        with torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor):
            loss = plain(model, batch, optimizer)
        leaves = [p for group in optimizer.param_groups for p in group["params"]]
        moments = [m for state in optimizer.state.values() for m in state.values() if m.ndim]
        seen.append([sum(t.numel() for t in ts) for ts in (leaves, [p.grad for p in leaves], moments)])
        assert not any(p.requires_grad or p.grad is not None for p in model.parameters())
        return loss

    monkeypatch.setattr(steps_of, "_step", watched)
    tuning = tune(either, corpus, *neurons, training=SHORT, reading=READING, progress=False)
    n_layers, d_model = either.cfg.n_layers, either.cfg.d_model
    n = n_layers * 3 * d_model * (2 + 3)  # three neurons of each part a layer; W_in and W_out, W_Q, W_K, W_V
    assert tuning.n_numbers == n
    assert seen == [[n, n, 2 * n]] * SHORT.steps
    weights = [(shape, trained, frozen) for shape, trained, frozen in kept if shape in shapes]
    # The frozen weights themselves are in the graph, as they are; nothing else is as large.
    assert weights
    assert all(frozen and not trained for _, trained, frozen in weights)


@pytest.mark.parametrize("optimizer", ["adam", "sgd"])
def test_interrupted_training_ends_in_the_same_numbers(model, corpus, tmp_path, monkeypatch, optimizer):
    how = Training(steps=7, learning_rate=0.02, batch_rows=2, optimizer=optimizer)
    asked = {"training": how, "reading": READING, "progress": False}
    neurons, plain, done = some(model), steps_of._step, []
    whole = tune(model, corpus, neurons, **asked)
    monkeypatch.setattr(steps_of, "_SAVED_EVERY", 3)

    def stopping(*given):
        done.append(None)
        if len(done) == 5:
            raise KeyboardInterrupt
        return plain(*given)

    monkeypatch.setattr(steps_of, "_step", stopping)
    with pytest.raises(KeyboardInterrupt):
        tune(model, corpus, neurons, checkpoint=tmp_path / "half.safetensors", **asked)
    resumed = tune(model, corpus, neurons, checkpoint=tmp_path / "half.safetensors", **asked)
    assert len(done) == 4 + 1 + 4  # three of the four steps done were kept
    assert resumed.losses.tolist() == whole.losses.tolist()
    assert all(torch.equal(resumed.change[name], change) for name, change in whole.change.items())
    with pytest.raises(ValueError, match="same training, got learning_rate 0.02 in it and 0.01"):
        tune(
            model,
            corpus,
            neurons,
            checkpoint=tmp_path / "half.safetensors",
            **asked | {"training": replace(how, learning_rate=0.01)},
        )
    with pytest.raises(ValueError, match="same training, got neurons"):
        tune(model, corpus, some(model, seed=3), checkpoint=tmp_path / "half.safetensors", **asked)


def test_full_tuning_trains_tied_weights_once_and_no_bias_that_is_not_there(either, corpus, tmp_path):
    how = Training(steps=2, learning_rate=0.01, batch_rows=2, optimizer="sgd")
    before = logits(either)
    tuning = tune(either, corpus, training=how, reading=READING, progress=False)
    assert torch.equal(logits(either), before)
    hf_model = AutoModelForCausalLM.from_pretrained(checkpoints.checkpoint("llama-grouped", tmp_path / "again"))
    assert tuning.n_numbers == sum(p.numel() for p in hf_model.parameters())
    rows = list(language_rows(either, corpus, READING, progress=False))
    optimizer = torch.optim.SGD(hf_model.parameters(), lr=how.learning_rate)
    for batch in Batches(rows, how):
        targets = batch.tokens[:, 1:].masked_fill(~batch.valid[:, 1:], -100)
        found = hf_model(input_ids=batch.tokens).logits[:, :-1]
        optimizer.zero_grad()
        torch.nn.functional.cross_entropy(found.flatten(0, 1), targets.flatten()).backward()
        optimizer.step()
    with tuned(either, tuning):
        mine = logits(either)
    torch.testing.assert_close(mine, hf_model(torch.arange(40).view(2, 20) + 5).logits.detach(), atol=2e-4, rtol=1e-3)
    assert torch.equal(logits(either), before)


@pytest.mark.parametrize("kind", ["opt", "llama-grouped", "gpt2", "phi3"])
def test_an_exported_checkpoint_is_the_tuned_model(kind, corpus, tmp_path):
    """Also where queries, keys and values, or gate and up, are parts of one matrix."""
    folder = checkpoints.checkpoint(kind, tmp_path / "plain")
    model = load_model(folder, backend="bridge", device="cpu")
    tuning = tune(model, corpus, *every_part(model), training=SHORT, gate=True, reading=READING, progress=False)
    save(tuning, tmp_path / "tuning.safetensors")
    read = load(tmp_path / "tuning.safetensors")
    assert (read.training, read.groups, read.reading) == (tuning.training, ("fr",), tuning.reading)
    out = export_tuned(folder, read, folder=tmp_path / "tuned")
    found = AutoModelForCausalLM.from_pretrained(out)(torch.arange(40).view(2, 20) + 5).logits
    torch.testing.assert_close(found.detach(), logits(tuned_copy(model, tuning)), atol=2e-4, rtol=1e-3)
    with pytest.raises(ValueError, match="not empty"):
        export_tuned(folder, read, folder=tmp_path / "tuned")


def test_weights_that_a_checkpoint_holds_otherwise_are_not_exported(tmp_path, corpus):
    folder = checkpoints.checkpoint("bloom", tmp_path / "plain")
    model = load_model(folder, device="cpu")
    tuning = tune(model, corpus, *every_part(model), training=SHORT, reading=READING, progress=False)
    with pytest.raises(ValueError, match=r"no matrix of its own for blocks.0.attn.W_[QK]"):
        export_tuned(folder, tuning, folder=tmp_path / "tuned")
    assert not (tmp_path / "tuned").exists()


def test_every_row_is_seen_once_before_any_is_seen_again_and_parallel_ones_together(model, corpus):
    rows = list(language_rows(model, corpus, READING, progress=False))
    seen = [tuple(t.tolist()) for batch in Batches(rows, Training(steps=3, batch_rows=3)) for t in batch.tokens]
    assert len({tuple(x for x in row if x) for row in seen}) == 9
    for batch in islice(Batches(rows, Training(steps=4, batch_rows=6, parallel=True)), 4):
        assert len(batch) == 6
        assert batch.document[:2].tolist() == batch.document[2:4].tolist() == batch.document[4:].tolist()
    one = [b.document.tolist() for b in Batches(rows, Training(steps=4, seed=1))]
    assert one != [b.document.tolist() for b in Batches(rows, Training(steps=4, seed=2))]


def test_mistakes_are_told_before_anything_runs(model, corpus):
    asked = {"reading": READING, "progress": False}
    with pytest.raises(ValueError, match="steps must be a whole number from 1, got 0"):
        Training(steps=0)
    with pytest.raises(ValueError, match="learning_rate must be a number above 0, got -1.0"):
        Training(learning_rate=-1.0)
    with pytest.raises(ValueError, match="optimizer must be one of adam, sgd, got 'lion'"):
        Training(optimizer="lion")
    with pytest.raises(ValueError, match="neurons must have some to train"):
        tune(model, corpus, some(model, n=0), **asked)
    with pytest.raises(ValueError, match="every set must be of another part, got mlp, mlp"):
        tune(model, corpus, some(model), some(model, seed=1), **asked)
    with pytest.raises(ValueError, match="made for other weights"):
        tune(model, corpus, replace(some(model), model_fingerprint="0" * 16), **asked)
    uneven = Corpus({"en": corpus.documents["en"], "fr": corpus.documents["fr"][:2]}, "uneven")
    with pytest.raises(ValueError, match="every document must be one row, and be there in every language"):
        tune(model, uneven, some(model), training=Training(parallel=True), **asked)
    with pytest.raises(ValueError, match=r"loss must stay finite.*smaller learning_rate than 1e\+30"):
        tune(model, corpus, some(model), training=Training(learning_rate=1e30), **asked)
    tuning = tune(model, corpus, some(model), training=SHORT, **asked)
    with pytest.raises(ValueError, match="tuning must be of this model"), tuned(tuned_copy(model, tuning), tuning):
        pass
