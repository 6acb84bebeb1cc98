import itertools
import json
from dataclasses import replace

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from safetensors.torch import load_file
from transformers import AutoModelForCausalLM, AutoTokenizer

import checkpoints
from mi_multilingual import NeuronSet, ablate, load_model, perplexity, perplexity_matrix
from mi_multilingual.evaluation import perplexity as perplexity_module
from mi_multilingual.models.hooked import fingerprint, is_gated
from mi_multilingual.patching.changes import Intervention
from mi_multilingual.patching.export import export
from mi_multilingual.patching.hooks import steer
from mi_multilingual.patching.weights import bake, baked
from mi_multilingual.tokens import Reading

READING = Reading(window=8)

TOKENS = torch.randint(3, 300, (2, 9), generator=torch.Generator().manual_seed(0))
BACKENDS = list(itertools.product(["opt", "gpt2", "llama-grouped"], ["auto", "bridge"]))


@pytest.fixture(scope="module", params=BACKENDS, ids=str)
def loaded(request, tmp_path_factory):
    """Models of either MLP kind and class; on a bridge of Llama, the MLP has no output bias."""
    kind, backend = request.param
    return load_model(checkpoints.checkpoint(kind, tmp_path_factory.mktemp("m")), backend=backend, device="cpu")


def chosen(model, seed=0, density=0.4):
    shape = (2, model.cfg.n_layers, model.cfg.d_mlp)
    masks = torch.rand(shape, generator=torch.Generator().manual_seed(seed)) < density
    return NeuronSet(masks, ("en", "fr"), "test", model_fingerprint=fingerprint(model))


def values(model, seed=0):
    return torch.randn(model.cfg.n_layers, model.cfg.d_mlp, generator=torch.Generator().manual_seed(seed))


def logits(model):
    with torch.no_grad():
        return model(TOKENS, return_type="logits")


def state(model):
    return {name: tensor.detach().clone() for name, tensor in model.state_dict().items()}


def check_same_state(model, before):
    after = model.state_dict()
    assert set(after) == set(before)
    assert all(torch.equal(bits(after[name]), bits(before[name])) for name in before)


def bits(tensor):
    return tensor.reshape(-1).view(torch.uint8)


def writable(model):
    """One intervention of every kind and site that weights can carry."""
    neurons = chosen(model)
    yield Intervention("zero", neurons, site="gate")
    yield Intervention("zero", neurons, site="post")
    yield Intervention("scale", neurons, values(model), "gate")
    yield Intervention("scale", neurons, -1.5, "post")
    yield Intervention("set", neurons["en"], values(model, 1), "post")
    yield Intervention("add", neurons["fr"], values(model, 2), "post")


@pytest.mark.parametrize("index", range(6))
def test_baked_weights_do_what_hooks_do(loaded, index):
    intervention = list(writable(loaded))[index]
    plain, before = logits(loaded), state(loaded)
    with steer(loaded, intervention):
        hooked = logits(loaded)
    assert (hooked - plain).abs().max() > 0.01
    copied = bake(loaded, intervention)
    torch.testing.assert_close(logits(copied), hooked, atol=1e-5, rtol=1e-5)
    # A bridge of TransformerLens 4 has permanent hooks of its own.
    assert all(hook.is_permanent for hooks in copied.list_hooks().values() for hook in hooks)
    with baked(loaded, intervention) as model:
        assert model is loaded
        torch.testing.assert_close(logits(model), hooked, atol=1e-5, rtol=1e-5)
    check_same_state(loaded, before)
    torch.testing.assert_close(logits(loaded), plain, atol=0, rtol=0)


@settings(max_examples=15)
@given(kinds=st.lists(st.sampled_from(["add", "scale"]), min_size=1, max_size=4), seed=st.integers(0, 99))
def test_several_at_once_follow_one_another_in_the_weights_too(loaded, kinds, seed):
    free = chosen(loaded, seed, density=0.6)["en"]
    fixed = replace(free, masks=~free.masks)
    steps = [Intervention(k, free, values(loaded, seed + i), "post") for i, k in enumerate(kinds)]
    steps.insert(seed % (len(kinds) + 1), Intervention("set", fixed, values(loaded, seed), "post"))
    with steer(loaded, *steps):
        hooked = logits(loaded)
    with baked(loaded, *steps):
        torch.testing.assert_close(logits(loaded), hooked, atol=1e-4, rtol=1e-4)


def test_weights_come_back_bit_for_bit_also_when_the_body_raises(loaded):
    before = state(loaded)

    def fail(model):
        assert any(not torch.equal(t, before.get(n, t + 1)) for n, t in model.state_dict().items())
        raise RuntimeError("stop")

    with pytest.raises(RuntimeError, match="stop"), baked(loaded, *list(writable(loaded))[-1:]) as model:
        fail(model)
    check_same_state(loaded, before)


def test_bake_leaves_hooks_behind_and_the_original_alone(loaded):
    neurons, before = chosen(loaded), state(loaded)
    scale = Intervention("scale", neurons["fr"], 0.5)
    with ablate(loaded, neurons["en"]):
        copied = bake(loaded, scale)
    with steer(loaded, scale):
        torch.testing.assert_close(logits(copied), logits(loaded), atol=1e-5, rtol=1e-5)
    check_same_state(loaded, before)
    with torch.no_grad():
        copied.blocks[0].mlp.W_out.zero_()
    check_same_state(loaded, before)


def test_what_weights_cannot_carry_is_refused_and_says_why(loaded, tmp_path):
    neurons, before = chosen(loaded), state(loaded)
    refused = [("weights are the same at every position", Intervention("zero", neurons, positions="prompt"))]
    if is_gated(loaded):
        for kind in ("set", "add"):
            refused.append(
                ("multiplied by the other half of the MLP", Intervention(kind, neurons, 1.0, "gate")),
            )
    else:
        with steer(loaded, Intervention("add", neurons, 1.0, "gate")):
            hooked = logits(loaded)
        torch.testing.assert_close(
            logits(bake(loaded, Intervention("add", neurons, 1.0, "gate"))), hooked, atol=1e-5, rtol=1e-5
        )
    refused += [
        ("has no neurons", Intervention("zero", chosen(loaded, density=0.0))),
        ("made for other weights", Intervention("zero", replace(neurons, model_fingerprint="another"))),
    ]
    for match, intervention in refused:
        with pytest.raises(ValueError, match=match):
            bake(loaded, intervention)
        with pytest.raises(ValueError, match=match), baked(loaded, intervention):
            pass
    check_same_state(loaded, before)


KINDS = ["llama", "qwen2", "gpt2", "gpt-neox", "bloom", "opt", "mistral", "gemma"]
BIASLESS = ("qwen2", "mistral", "gemma")


@pytest.mark.filterwarnings("ignore:.*has no HookedTransformer")
@pytest.mark.parametrize("kind", KINDS)
def test_the_exported_checkpoint_needs_transformers_only(kind, tmp_path):
    source = checkpoints.checkpoint(kind, tmp_path / "source")
    stored = load_file(source / "model.safetensors")
    model = load_model(source, device="cpu")
    neurons = chosen(model)
    interventions = [
        Intervention("zero", neurons["en"]),
        Intervention("scale", replace(neurons["fr"], masks=neurons["fr"].masks & ~neurons["en"].masks), 1.7, "gate"),
    ]
    if kind not in BIASLESS:
        rest = replace(neurons["en"], masks=~neurons.union()[None])
        interventions += [Intervention("set", rest, values(model), "post")]
    folder = export(source, *interventions, folder=tmp_path / "edited")
    with steer(model, *interventions):
        hooked = logits(model)
    edited = AutoModelForCausalLM.from_pretrained(folder).eval()
    with torch.no_grad():
        torch.testing.assert_close(edited(TOKENS).logits, hooked, atol=1e-4, rtol=1e-4)
    assert (hooked - logits(model)).abs().max() > 0.01
    assert len({tuple(AutoTokenizer.from_pretrained(f)("Le chien")["input_ids"]) for f in (folder, source)}) == 1
    assert config(folder) == {**config(source), **({"mlp_bias": True} if kind == "llama" else {})}
    check_only_outputs_differ(stored, load_file(folder / "model.safetensors"), kind)
    assert [p.name for p in tmp_path.iterdir() if p.name.startswith(".")] == []


def config(folder):
    """The stored config, but for the name of the dtype entry, which transformers adds."""
    return {k: v for k, v in json.loads((folder / "config.json").read_text()).items() if k != "dtype"}


def check_only_outputs_differ(stored, edited, kind):
    """Nothing but output weights and biases is touched; new biases elsewhere are zero."""
    outputs = ("down_proj", "dense_4h_to_h", "mlp.c_proj", "fc2")
    for name, tensor in edited.items():
        if not any(o in name for o in outputs):
            assert torch.equal(tensor, stored[name]) if name in stored else not tensor.any(), name
    new = {name for name in edited if name not in stored}
    assert all(".bias" in name for name in new)
    assert bool(new) == (kind == "llama")


@pytest.mark.filterwarnings("ignore:.*has no HookedTransformer")
@pytest.mark.parametrize("architecture", BIASLESS)
def test_without_an_output_bias_or_an_option_for_one_set_and_add_are_refused(architecture, tmp_path):
    source = checkpoints.checkpoint(architecture, tmp_path / "source")
    model = load_model(source, device="cpu")
    for intervention in (
        Intervention("set", chosen(model), 1.0, "post"),
        Intervention("add", chosen(model), 1, "post"),
    ):
        with pytest.raises(ValueError, match="no bias after its MLP and no option for one"):
            export(source, intervention, folder=tmp_path / "edited")
        assert not (tmp_path / "edited").exists()
    with steer(model, intervention):
        torch.testing.assert_close(logits(bake(model, intervention)), logits(model), atol=1e-5, rtol=1e-5)


def test_export_keeps_the_stored_precision_and_refuses_what_it_cannot_do(tmp_path):
    source = checkpoints.checkpoint("llama", tmp_path / "source")
    half = AutoModelForCausalLM.from_pretrained(source).to(torch.bfloat16)
    half.save_pretrained(source)
    model = load_model(source, device="cpu")
    intervention = Intervention("zero", chosen(model))
    folder = export(source, intervention, folder=tmp_path / "edited")
    edited = load_file(folder / "model.safetensors")
    assert {t.dtype for t in edited.values()} == {torch.bfloat16}
    assert set(edited) == set(load_file(source / "model.safetensors"))
    for match, make in {
        "not empty; give a new folder": lambda: export(source, intervention, folder=folder),
        "made for other weights": lambda: export(
            source, replace(intervention, neurons=replace(chosen(model), model_fingerprint="x")), folder=tmp_path / "no"
        ),
        "which no output weight can": lambda: export(
            source, Intervention("add", chosen(model), 1.0, "gate"), folder=tmp_path / "no"
        ),
        "no intervention was given": lambda: export(source, folder=tmp_path / "no"),
    }.items():
        with pytest.raises(ValueError, match=match):
            make()
    assert not (tmp_path / "no").exists()


def test_the_demo_model_can_be_exported(demo_model, tmp_path):
    shape = (1, demo_model.cfg.n_layers, demo_model.cfg.d_mlp)
    masks = torch.rand(shape, generator=torch.Generator().manual_seed(0)) < 0.2
    intervention = Intervention("set", NeuronSet(masks, ("x",), "test"), 0.3)
    edited = export("demo", intervention, folder=tmp_path / "demo")
    edited = AutoModelForCausalLM.from_pretrained(edited, dtype=torch.float32).eval()
    with torch.no_grad(), steer(demo_model, intervention):
        # The demo model is stored in float16, and so are its new biases.
        torch.testing.assert_close(edited(TOKENS).logits, demo_model(TOKENS), atol=5e-3, rtol=0)


def test_the_matrix_leaves_the_weights_as_they_were(loaded, corpus, monkeypatch):
    neurons, before = chosen(loaded), state(loaded)
    perplexity_matrix(loaded, corpus.take(["en", "fr"]), neurons, seeds=(0,), reading=READING, progress=False)
    check_same_state(loaded, before)
    calls = []

    def fail_later(model, rows):
        calls.append(rows)
        if len(calls) == 4:
            assert any(not torch.equal(t, before[n]) for n, t in model.state_dict().items())
            raise RuntimeError("stop")
        return original(model, rows)

    original = perplexity_module.row_losses
    monkeypatch.setattr(perplexity_module, "row_losses", fail_later)
    with pytest.raises(RuntimeError, match="stop"):
        perplexity_matrix(loaded, corpus.take(["en", "fr"]), neurons, seeds=(0,), reading=READING, progress=False)
    check_same_state(loaded, before)
    with pytest.raises(ValueError, match="made for other weights"):
        perplexity_matrix(loaded, corpus, replace(neurons, model_fingerprint="x"), reading=READING, progress=False)
    assert len(calls) == 4


ATTENTIONS = ["opt", "gpt2", "gpt-neox", "bloom", "llama-grouped", "qwen3"]


def columns(model, part, seed=0):
    fewer = getattr(model.cfg, "n_key_value_heads", None)
    n_heads = fewer if fewer and part != "q" else model.cfg.n_heads
    shape = (1, model.cfg.n_layers, n_heads * model.cfg.d_head)
    masks = torch.rand(shape, generator=torch.Generator().manual_seed(seed)) < 0.4
    return NeuronSet(masks, ("en",), "test", model_fingerprint=fingerprint(model), part=part)


@pytest.mark.filterwarnings("ignore:.*has no HookedTransformer")
@pytest.mark.parametrize(("kind", "backend"), list(itertools.product(ATTENTIONS, ["auto", "bridge"])))
def test_columns_of_attention_weights_can_be_baked(kind, backend, tmp_path):
    model = load_model(checkpoints.checkpoint(kind, tmp_path), backend=backend, device="cpu")
    plain, before = logits(model), state(model)
    steps = [Intervention("zero", columns(model, part, seed)) for seed, part in enumerate(("q", "k", "v"))]
    steps.append(Intervention("zero", chosen(model)["fr"]))
    scaled = Intervention("scale", columns(model, "v", 7), -1.5)
    for interventions in (steps, [scaled, *steps[:2]], [*steps[:1]]):
        with steer(model, *interventions):
            hooked = logits(model)
        assert (hooked - plain).abs().max() > 0.01
        torch.testing.assert_close(logits(bake(model, *interventions)), hooked, atol=1e-5, rtol=1e-5)
        with baked(model, *interventions):
            torch.testing.assert_close(logits(model), hooked, atol=1e-5, rtol=1e-5)
        check_same_state(model, before)
    with pytest.raises(ValueError, match="weights are the same at every position"):
        bake(model, replace(scaled, positions="prompt"))
    torch.testing.assert_close(logits(model), plain, atol=0, rtol=0)


@pytest.mark.filterwarnings("ignore:.*has no HookedTransformer")
@pytest.mark.parametrize("kind", ["llama-grouped", "qwen2", "qwen3", "mistral", "gemma", "opt"])
def test_columns_of_attention_weights_can_be_exported(kind, tmp_path):
    source = checkpoints.checkpoint(kind, tmp_path / "source")
    model = load_model(source, device="cpu")
    steps = [Intervention("zero", columns(model, part, seed)) for seed, part in enumerate(("q", "k", "v"))]
    steps.append(Intervention("scale", chosen(model)["fr"], 0.5))
    edited = AutoModelForCausalLM.from_pretrained(export(source, *steps, folder=tmp_path / "edited")).eval()
    with torch.no_grad(), steer(model, *steps):
        torch.testing.assert_close(edited(TOKENS).logits, logits(model), atol=1e-4, rtol=1e-4)
    stored, now = (load_file(f / "model.safetensors") for f in (source, tmp_path / "edited"))
    changed = {name for name in stored if not torch.equal(stored[name], now[name])}
    assert {name.split(".")[-2] for name in changed} <= {"q_proj", "k_proj", "v_proj", "down_proj", "fc2"}
    assert set(now) == set(stored)


@pytest.mark.parametrize("kind", ["gpt2", "gpt-neox", "bloom"])
def test_one_matrix_for_queries_keys_and_values_is_not_exported(kind, tmp_path):
    source = checkpoints.checkpoint(kind, tmp_path / "source")
    model = load_model(source, device="cpu")
    with pytest.raises(ValueError, match=r"no matrix of its own for W_K .*use bake\(...\) or steer\(...\)"):
        export(source, Intervention("zero", columns(model, "k")), folder=tmp_path / "edited")
    assert not (tmp_path / "edited").exists()


def test_the_matrix_measures_columns_too(model, corpus):
    neurons = replace(columns(model, "v"), groups=("fr",))
    few = corpus.take(["fr"])
    matrix = perplexity_matrix(model, few, neurons, seeds=(0,), reading=READING, progress=False)
    with ablate(model, neurons):
        by_hooks = perplexity(model, few, reading=READING, progress=False).nll.item()
    found = matrix.set_index("condition").nll
    assert found["chosen"] == pytest.approx(by_hooks, abs=1e-5)
    assert found["chosen"] != found["intact"]
    assert found["random"] != found["intact"]
