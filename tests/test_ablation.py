"""Loss of every language without every group's neurons."""

from dataclasses import replace

import pytest
import torch

from mi_multilingual import (
    Corpus,
    NeuronSet,
    Reading,
    ablate,
    layer_matched_random,
    layer_sweep,
    perplexity,
    perplexity_matrix,
)
from mi_multilingual.models.hooked import fingerprint
from mi_multilingual.models.native import in_force

READING = Reading(window=8, bos="row")
CONTROLS = ("none", "random", "all")
"""Names of languages that could be taken for a control."""


def neuron_set(model):
    random = torch.Generator().manual_seed(0)
    masks = torch.rand(3, model.cfg.n_layers, model.cfg.d_mlp, generator=random) < 0.3
    return NeuronSet(masks, ("en", "fr", "ja"), "test", model_fingerprint=fingerprint(model))


def test_every_cell_of_the_matrix_is_the_perplexity_under_that_ablation(model, corpus):
    neurons = neuron_set(model)
    matrix = perplexity_matrix(model, corpus, neurons, seeds=(0, 4), reading=READING, progress=False)
    assert len(matrix) == 3 + 9 + 2 * 3
    plain = perplexity(model, corpus, reading=READING, progress=False).set_index("language").nll
    for cell in matrix.itertuples():
        if cell.condition == "intact":
            assert (cell.group, cell.seed) == ("", -1)
            expected, n = plain[cell.evaluated], 0
        else:
            random = cell.condition == "random"
            assert random or cell.seed == -1
            off = (layer_matched_random(neurons, seed=cell.seed) if random else neurons)[cell.group]
            n = int(off.union().sum())
            with ablate(model, off):
                expected = perplexity(model, corpus.take([cell.evaluated]), reading=READING, progress=False).nll[0]
        assert (cell.nll, cell.n_neurons) == (pytest.approx(expected, abs=1e-6), n)
        assert cell.change == pytest.approx(expected - plain[cell.evaluated], abs=1e-6)
        assert cell.low <= cell.change <= cell.high or cell.n_tokens < 30
    assert (matrix[matrix.condition == "random"].group == matrix[matrix.condition == "random"].evaluated).all()
    assert matrix[matrix.condition == "intact"].change.abs().max() == 0
    assert matrix[(matrix.condition == "chosen") & (matrix.group == "en")].change.abs().max() > 0.01


def test_languages_may_be_called_like_controls(model, corpus):
    neurons = neuron_set(model)
    plain = perplexity_matrix(model, corpus, neurons, seeds=(0,), reading=READING, progress=False)
    renamed = Corpus(dict(zip(CONTROLS, corpus.documents.values(), strict=True)), "renamed")
    named = replace(neurons, groups=CONTROLS)
    found = perplexity_matrix(model, renamed, named, seeds=(0,), reading=READING, progress=False)
    names = dict(zip(corpus.languages, CONTROLS, strict=True))
    expected = plain.assign(group=plain.group.replace(names), evaluated=plain.evaluated.replace(names))
    assert found.to_dict("records") == expected.to_dict("records")


def test_a_group_without_neurons_changes_nothing_and_one_without_text_has_no_control(model, corpus):
    neurons = neuron_set(model)
    masks = neurons.masks.clone()
    masks[0] = False
    few = corpus.take(["en", "fr"])
    found = perplexity_matrix(
        model, few, replace(neurons, masks=masks), seeds=(0,), reading=READING, progress=False
    ).set_index(["condition", "group"])
    assert (found.loc[[("chosen", "en"), ("random", "en")], ["change", "n_neurons"]] == 0).all(axis=None)
    assert list(found.loc["random"].index) == ["en", "fr"]
    assert list(found.loc[("chosen", "ja")].evaluated) == ["en", "fr"]


def test_neurons_of_another_model_and_wrong_seeds_are_told(model, corpus):
    neurons = neuron_set(model)
    with pytest.raises(ValueError, match="made for other weights"):
        perplexity_matrix(model, corpus, replace(neurons, model_fingerprint="x"), reading=READING, progress=False)
    with pytest.raises(ValueError, match=r"seeds must be different numbers from 0, got \(1, 1\)"):
        perplexity_matrix(model, corpus, neurons, seeds=(1, 1), reading=READING, progress=False)


def test_the_layer_sweep_gives_what_whole_passes_do(model, corpus):
    neurons, few = neuron_set(model), corpus.take(["en", "fr"])
    table = layer_sweep(model, few, neurons, seeds=(0, 2), reading=READING, progress=False)
    n_layers = model.cfg.n_layers
    assert len(table) == n_layers * (3 * 2 + 2 * 2)
    for cell in table.itertuples():
        off = neurons.in_layers([cell.layer])
        if cell.condition == "random":
            assert cell.group == cell.evaluated
            off = layer_matched_random(off, seed=cell.seed * n_layers + cell.layer)
        with ablate(model, off[cell.group]):
            expected = perplexity(model, few.take([cell.evaluated]), reading=READING, progress=False).nll[0]
        assert cell.nll == pytest.approx(expected, abs=1e-6)
        assert cell.n_neurons == int(off[cell.group].union().sum())


def test_the_layer_sweep_runs_only_what_follows_the_layer(model, corpus):
    calls = [0] * model.cfg.n_layers

    def counted(layer):
        def hook(value, hook):
            calls[layer] += 1

        return f"blocks.{layer}.mlp.hook_post", hook

    neurons = NeuronSet.of({"en": [(i, 0) for i in range(model.cfg.n_layers)]}, shape=neuron_set(model).masks.shape[1:])
    with in_force(model, [counted(i) for i in range(model.cfg.n_layers)]):
        layer_sweep(model, corpus.take(["en"]), neurons, seeds=(), reading=READING, progress=False)
    n_batches = calls[0] // 2  # the intact pass, and the one with layer 0 changed
    assert calls == [n_batches * (2 + i) for i in range(model.cfg.n_layers)]


def test_a_layer_sweep_of_nothing_is_refused(model, corpus):
    neurons = neuron_set(model)
    nothing = replace(neurons, masks=torch.zeros_like(neurons.masks))
    with pytest.raises(ValueError, match="neurons must have some"):
        layer_sweep(model, corpus, nothing, reading=READING, progress=False)
