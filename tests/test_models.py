import os

import pytest
import torch
from transformers import AutoModelForCausalLM, AutoTokenizer

import checkpoints
from mi_multilingual import load_model, site_of
from mi_multilingual.models.hooked import fingerprint, is_bridge, is_gated, max_window, run_trunk
from mi_multilingual.models.loading import HookedTransformer

needs_hooked = pytest.mark.skipif(HookedTransformer is None, reason="TransformerLens 4 has no HookedTransformer")
backends = pytest.mark.parametrize("backend", ["auto", "bridge"])
TOKENS = torch.randint(3, 300, (3, 11), generator=torch.Generator().manual_seed(0))


@pytest.fixture(scope="module")
def folders(tmp_path_factory):
    """kind -> folder, made when first asked for."""
    made = {}

    def folder(kind):
        if kind not in made:
            made[kind] = checkpoints.checkpoint(kind, tmp_path_factory.mktemp("checkpoints") / "some-model")
        return made[kind]

    return folder


@needs_hooked
def test_an_architecture_that_only_the_bridge_has_falls_back_with_one_line(folders):
    with pytest.warns(
        UserWarning, match="GemmaForCausalLM has no HookedTransformer .*; using a TransformerBridge"
    ) as warned:
        model = load_model(folders("gemma"), device="cpu")
    assert is_bridge(model)
    assert sum("TransformerBridge" in str(w.message) for w in warned) == 1
    with pytest.raises(ValueError, match="use backend='bridge'"):
        load_model(folders("gemma"), backend="hooked")


def test_a_path_with_an_architecture_in_its_name_changes_nothing(tmp_path):
    folder = checkpoints.checkpoint("gpt2", tmp_path / "my-llama-gemma-3")
    assert not is_gated(load_model(folder, device="cpu"))


def test_a_loaded_model_is_taken_with_its_tokenizer(folders):
    hf = AutoModelForCausalLM.from_pretrained(folders("opt"))
    model = load_model(hf, tokenizer=AutoTokenizer.from_pretrained(folders("opt")), device="cpu")
    assert fingerprint(model) == fingerprint(load_model(folders("opt"), device="cpu"))
    with pytest.raises(ValueError, match="without its tokenizer"):
        load_model(hf)


def test_fingerprint_tells_weights_apart(tmp_path):
    one, other = (load_model(checkpoints.checkpoint("opt", tmp_path / str(s), seed=s), device="cpu") for s in (1, 2))
    assert fingerprint(one) != fingerprint(other)
    before = fingerprint(one)
    with torch.no_grad():
        one.blocks[1].mlp.W_out[3] += 1.0
    assert fingerprint(one) != before


@backends
def test_right_padding_changes_no_activation_before_it(backend, folders):
    model = load_model(folders("llama"), backend=backend, device="cpu")
    values = {}
    hook = [("blocks.1.mlp.hook_post", lambda x, hook: values.__setitem__(0, x))]
    with torch.no_grad():
        run_trunk(model, torch.cat([TOKENS, torch.zeros(3, 5, dtype=torch.int64)], dim=1), hooks=hook)
        padded = values[0][:, :11]
        run_trunk(model, TOKENS, hooks=hook)
    torch.testing.assert_close(padded, values[0], atol=1e-6, rtol=1e-5)


@backends
def test_hooks_come_off_also_when_they_raise(backend, folders):
    model = load_model(folders("opt"), backend=backend, device="cpu")
    calls = []

    def fail(x, hook):
        calls.append(1)
        raise RuntimeError("stop")

    with pytest.raises(RuntimeError, match="stop"):
        run_trunk(model, TOKENS, hooks=[("blocks.0.mlp.hook_post", fail)])
    model(TOKENS)
    assert len(calls) == 1


def test_mistakes_are_told(folders, tmp_path):
    model = load_model(folders("opt"), device="cpu")
    assert max_window(model) == checkpoints.N_CTX
    with pytest.raises(ValueError, match="site must be gate, post or up, got 'pre'"):
        site_of(model, "pre")
    with pytest.raises(ValueError, match="needs a gated MLP"):
        site_of(model, "up")
    with pytest.raises(ValueError, match="backend must be auto, hooked or bridge, got 'fast'"):
        load_model(folders("opt"), backend="fast")
    with pytest.raises(ValueError, match="has no config.json"):
        load_model(tmp_path)


class Malicious:
    def __reduce__(self):
        return os.mkdir, ("executed",)


def test_a_checkpoint_in_pickle_is_refused_and_runs_nothing(folders, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    folder = checkpoints.checkpoint("opt", tmp_path / "evil")
    (folder / "model.safetensors").unlink()
    torch.save({"weights": Malicious()}, folder / "pytorch_model.bin")
    with pytest.raises(ValueError, match="cannot load"):
        load_model(folder)
    assert not (tmp_path / "executed").exists()


@pytest.mark.filterwarnings("ignore:.*has no HookedTransformer")
def test_an_architecture_that_nothing_converts_names_what_works(tmp_path):
    import transformers

    config = transformers.BertGenerationConfig(
        vocab_size=400,
        hidden_size=16,
        num_hidden_layers=1,
        num_attention_heads=2,
        intermediate_size=24,
        is_decoder=True,
    )
    hf = transformers.BertGenerationDecoder(config)
    tok = checkpoints.tokenizer(tmp_path)
    with pytest.raises(ValueError, match=r"cannot convert BertGenerationDecoder .*Llama, Mistral"):
        load_model(hf, tokenizer=tok, device="cpu")
