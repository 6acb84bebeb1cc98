import os
from pathlib import Path

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

import oracles
from mi_multilingual import NeuronSet, layer_matched_random, uniform_random
from mi_multilingual.storage import load, save

PUBLISHED = Path(__file__).parents[2] / "shared" / "data" / "published_neurons"
needs_published = pytest.mark.skipif(
    not PUBLISHED.exists(), reason="the published neuron files are not beside the project"
)


@st.composite
def pairs(draw):
    shape = (draw(st.integers(1, 4)), draw(st.integers(1, 3)), draw(st.integers(1, 9)))
    random = torch.Generator().manual_seed(draw(st.integers(0, 2**20)))
    groups = tuple("abcd"[: shape[0]])
    density = draw(st.sampled_from([0.0, 0.3, 1.0]))
    return tuple(NeuronSet(torch.rand(shape, generator=random) < density, groups, m) for m in ("left", "right"))


def triples(neurons):
    return set(neurons.to_frame().itertuples(index=False, name=None))


@given(pairs())
def test_set_algebra_is_that_of_sets_of_neurons(pair):
    a, b = pair
    assert triples(a | b) == triples(a) | triples(b)
    assert triples(a & b) == triples(a) & triples(b)
    assert triples(a - b) == triples(a) - triples(b)


@given(pairs())
def test_jaccard_equals_python_sets(pair):
    table = pair[0].jaccard()
    members = {g: {t[1:] for t in triples(pair[0][g])} for g in pair[0].groups}
    for g in members:
        for h in members:
            assert table.loc[g, h] == oracles.jaccard(members[g], members[h])


@given(pairs())
def test_counts_and_sizes_add_up(pair):
    neurons = pair[0]
    assert neurons.counts().groupby("group").n_neurons.sum().to_dict() == neurons.sizes().to_dict()
    assert len(neurons.to_frame()) == neurons.sizes().sum()


@given(pairs(), st.integers(0, 99))
def test_random_controls_have_the_same_number(pair, seed):
    neurons = pair[0]
    assert uniform_random(neurons, seed=seed).sizes().equals(neurons.sizes())
    matched = layer_matched_random(neurons, seed=seed)
    assert matched.counts().equals(neurons.counts())
    assert matched.masks_equal(layer_matched_random(neurons, seed=seed))


def test_random_controls_differ_by_seed_and_cover_everything():
    neurons = NeuronSet(torch.arange(40).reshape(1, 2, 20) % 4 == 0, ("a",), "m")
    drawn = [layer_matched_random(neurons, seed=s) for s in range(60)]
    assert torch.stack([d.masks for d in drawn]).any(0).all()
    assert not drawn[0].masks_equal(drawn[1])


def test_save_and_load_give_the_same_set(tmp_path):
    neurons = NeuronSet(torch.rand(2, 3, 5) < 0.5, ("en", "日本"), "lape", {"rate": 0.01}, "m", "f")
    save(neurons, tmp_path / "n.safetensors")
    back = load(tmp_path / "n.safetensors")
    assert back.masks_equal(neurons)
    assert (back.method, back.parameters, back.model, back.model_fingerprint) == ("lape", {"rate": 0.01}, "m", "f")


def test_published_format_round_trips(tmp_path):
    neurons = NeuronSet(torch.rand(3, 4, 6, generator=torch.Generator().manual_seed(1)) < 0.4, ("x", "y", "z"), "lape")
    neurons.to_published(tmp_path / "n.pth")
    assert NeuronSet.from_published(tmp_path / "n.pth", d_mlp=6, languages=("x", "y", "z")).masks_equal(neurons)


@needs_published
@pytest.mark.parametrize(
    ("name", "d_mlp", "expected", "distinct"),
    [
        ("LLaMA-2-7B", 11008, {"en": 95, "zh": 583, "fr": 1022, "es": 838, "vi": 836, "id": 1068, "ja": 582}, 3523),
        ("BLOOM-7B", 16384, {"en": 445, "zh": 653, "fr": 680, "es": 918, "vi": 551, "id": 2823}, 4915),
    ],
)
def test_published_files_have_the_published_counts(name, d_mlp, expected, distinct, tmp_path):
    neurons = NeuronSet.from_published(PUBLISHED / f"{name}.neuron.pth", d_mlp=d_mlp, languages=tuple(expected))
    assert neurons.sizes().to_dict() == expected
    assert int(neurons.union().sum()) == distinct
    neurons.to_published(tmp_path / "again.pth")
    assert NeuronSet.from_published(tmp_path / "again.pth", d_mlp=d_mlp, languages=tuple(expected)).masks_equal(neurons)


class Malicious:
    def __reduce__(self):
        return os.mkdir, ("executed",)


def test_a_malicious_file_runs_nothing(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    torch.save([[Malicious()]], tmp_path / "evil.pth")
    with pytest.raises(ValueError, match="not a plain list of tensors"):
        NeuronSet.from_published(tmp_path / "evil.pth", d_mlp=4, languages=("en",))
    assert not (tmp_path / "executed").exists()


def test_mistakes_are_told(tmp_path):
    masks = torch.zeros(2, 3, 4, dtype=torch.bool)
    neurons = NeuronSet(masks, ("en", "fr"), "m", model_fingerprint="one")
    with pytest.raises(ValueError, match="no neurons for 'de'; this set has en, fr"):
        neurons["de"]
    with pytest.raises(ValueError, match="for each of the 1 groups"):
        NeuronSet(masks, ("en",), "m")
    with pytest.raises(ValueError, match="groups must have different names"):
        NeuronSet(masks, ("en", "en"), "m")
    with pytest.raises(ValueError, match="cannot combine"):
        neurons | NeuronSet(masks, ("en", "de"), "m")
    with pytest.raises(ValueError, match="different models"):
        neurons | NeuronSet(masks, ("en", "fr"), "m", model_fingerprint="two")
    torch.save([[torch.tensor([9])]], tmp_path / "n.pth")
    with pytest.raises(ValueError, match="has neuron 9, d_mlp is 4"):
        NeuronSet.from_published(tmp_path / "n.pth", d_mlp=4, languages=("en",))
    with pytest.raises(ValueError, match="holds 1 languages, languages= names 7"):
        NeuronSet.from_published(tmp_path / "n.pth", d_mlp=10)
    (tmp_path / "broken.safetensors").write_bytes(b"\x00" * 20)
    with pytest.raises(ValueError, match="must be a safetensors file, got another format or a damaged file"):
        load(tmp_path / "broken.safetensors")
