"""Every architecture: logits, neurons, interventions, generation and recording against transformers and each other."""

import warnings
from contextlib import contextmanager

import pytest
import torch
import transformers
from transformers import AutoModelForCausalLM, AutoTokenizer

import checkpoints
import families
from mi_multilingual import (
    Intervention,
    NeuronSet,
    ablate,
    bake,
    generate,
    lape,
    load_model,
    record,
    record_relevance,
    relevance_scores,
    steer,
)
from mi_multilingual.models import losses
from mi_multilingual.models.hooked import all_logits, fingerprint, is_bridge, is_gated, site_of
from mi_multilingual.models.loading import HookedTransformer
from mi_multilingual.models.native import native_of
from mi_multilingual.tokens import Reading

pytestmark = pytest.mark.filterwarnings("ignore:.*has no HookedTransformer")
BACKENDS = ["hooked", "bridge"] if HookedTransformer is not None else ["bridge"]
DOCUMENTED = families.table(families.PAGE.read_text(encoding="utf-8"))
WORKING = [
    (kind, backend)
    for kind, name in families.NAMES.items()
    for backend in BACKENDS
    if DOCUMENTED[name][families.CLASSES[backend]].startswith("works")
]
TOKENS = families.TOKENS
MORE_THAN_A_MAP = ("gemma2", "cohere")
"""Kinds that cap or scale what the unembedding gives."""
READING = Reading(layout="documents")


@pytest.fixture(scope="module")
def folders(tmp_path_factory):
    return {k: checkpoints.checkpoint(k, tmp_path_factory.mktemp(k) / "model") for k in checkpoints.CONFIGS}


@pytest.fixture(scope="module", params=WORKING, ids="-".join)
def loaded(request, folders):
    kind, backend = request.param
    return load_model(folders[kind], backend=backend, device="cpu"), folders[kind]


@contextmanager
def kept_out(model):
    """Within the block, a hook that changes nothing keeps transformers out."""
    with model.hooks(fwd_hooks=[("blocks.0.hook_mlp_out", lambda value, hook: None)]):
        assert not native_of(model).stands_in()
        yield


def some(model, density=0.3):
    shape = (1, model.cfg.n_layers, model.cfg.d_mlp)
    masks = torch.rand(shape, generator=torch.Generator().manual_seed(0)) < density
    return NeuronSet(masks, ("en",), "test", model_fingerprint=fingerprint(model))


@torch.no_grad()
def logits(model):
    return all_logits(model, TOKENS)


def test_every_kind_of_checkpoint_is_in_the_table():
    assert set(families.NAMES) == set(checkpoints.CONFIGS)
    assert list(DOCUMENTED) == list(families.NAMES.values())


@pytest.mark.parametrize("kind", checkpoints.CONFIGS)
def test_the_table_says_what_is_measured(kind, folders):
    """Where a class works, logits and neurons are compared with transformers on the way, by native passes."""
    row = DOCUMENTED[families.NAMES[kind]]
    assert {**row, **families.measured(kind, folders[kind])} == row, "run tests/families.py in both environments"


def test_hooked_passes_give_the_logits_and_neurons_of_transformers(loaded):
    model, folder = loaded
    with kept_out(model):
        families.check(model, folder)


def test_losses_are_those_of_the_logits(loaded, monkeypatch):
    """Also where the model does more to its logits, and where the vocabulary goes by in many pieces."""
    model, folder = loaded
    kind = folder.parent.name
    monkeypatch.setattr(losses, "_LEAST", 7)
    monkeypatch.setitem(losses._PIECE, "cpu", 7)
    expected = torch.nn.functional.cross_entropy(
        logits(model)[:, :-1].flatten(0, 1).double(), TOKENS[:, 1:].flatten(), reduction="none"
    )
    found = losses.token_losses(model, TOKENS)
    torch.testing.assert_close(found.flatten().double(), expected, atol=2e-5, rtol=1e-5)
    assert losses.token_losses(model, TOKENS[:, :1]).shape == (len(TOKENS), 0)
    assert native_of(model).plain_unembedding is not any(name in kind for name in MORE_THAN_A_MAP)


def test_an_ungated_gate_is_read_after_the_activation_function(loaded):
    model, _ = loaded
    assert is_gated(model) or site_of(model, "gate").hook == site_of(model, "post").hook


def test_interventions_are_alike_by_hooks_by_transformers_and_in_the_weights(loaded):
    model, _ = loaded
    neurons, plain = some(model), logits(model)
    steps = [Intervention("zero", neurons), Intervention("scale", neurons, 2.0), Intervention("add", neurons, 1.0)]
    steps += [Intervention("set", neurons, 0.7, "post"), Intervention("add", neurons, -0.5, "post")]
    for step in steps:
        with steer(model, step):
            fast = logits(model)
            with kept_out(model):
                torch.testing.assert_close(fast, logits(model), atol=2e-5, rtol=1e-4)
        assert (fast - plain).abs().max() > 1e-2 * plain.std()
        if step.site == "post" or step.value is None or step.kind == "scale":
            torch.testing.assert_close(logits(bake(model, step)), fast, atol=2e-5, rtol=1e-4)
    torch.testing.assert_close(logits(model), plain, atol=0, rtol=0)


def test_interventions_of_both_classes_are_alike(folders):
    for kind in checkpoints.CONFIGS:
        models = [load_model(folders[kind], backend=b, device="cpu") for k, b in WORKING if k == kind]
        outputs = []
        for model in models:
            with steer(model, Intervention("add", some(model), 1.0)), kept_out(model):
                outputs.append(logits(model))
        for output in outputs[1:]:
            torch.testing.assert_close(output, outputs[0], atol=2e-5, rtol=1e-4)


PROMPTS = ["The dog", "We drink tea when it rains", "犬が", "A small boat crossed the"]


def by_transformers(folder, prompt):
    """The greedy continuation by a transformers model of its own."""
    hf, tokenizer = AutoModelForCausalLM.from_pretrained(folder).eval(), AutoTokenizer.from_pretrained(folder)
    ids = torch.tensor([tokenizer(prompt)["input_ids"]])
    ends = tokenizer.eos_token_id
    options = {"max_new_tokens": 8, "do_sample": False, "eos_token_id": ends, "pad_token_id": 0}
    new = hf.generate(ids, attention_mask=torch.ones_like(ids), **options)[0, ids.shape[1] :].tolist()
    return tokenizer.decode(new[: new.index(ends)] if ends in new else new)


def test_generation_is_that_of_transformers_alone_and_together(loaded):
    model, folder = loaded
    expected = [by_transformers(folder, prompt) for prompt in PROMPTS]
    settings = {"max_new_tokens": 8, "progress": False}
    assert generate(model, PROMPTS, **settings) == expected
    assert [generate(model, [prompt], **settings)[0] for prompt in PROMPTS] == expected
    with kept_out(model):
        assert generate(model, PROMPTS, **settings) == expected
    with ablate(model, some(model)):
        changed = generate(model, PROMPTS, **settings)
        with kept_out(model):
            assert generate(model, PROMPTS, **settings) == changed
    assert changed != expected


def test_recordings_differ_in_no_more_than_rounding(loaded, corpus):
    model, _ = loaded
    for site in families.sites(model):
        fast = record(model, corpus, site=site, reading=READING, progress=False)
        with kept_out(model):
            slow = record(model, corpus, site=site, reading=READING, progress=False)
        n_decisions = fast.n_tokens.sum() * model.cfg.n_layers * model.cfg.d_mlp
        assert (fast.active - slow.active).abs().sum() <= 1e-4 * n_decisions
        torch.testing.assert_close(fast.total, slow.total, atol=1e-4, rtol=1e-4)
        sets = [lape(stats, rate=0.2, filter_rate=0.1, activation_bar_ratio=0.5).union() for stats in (fast, slow)]
        assert (sets[0] & sets[1]).sum() >= 0.999 * (sets[0] | sets[1]).sum()
        assert sets[1].any()


def test_relevance_has_gradients(loaded, corpus):
    model, _ = loaded
    recorded = record_relevance(model, corpus, reading=READING, progress=False)
    assert (relevance_scores(recorded).values.abs() > 0).float().mean() > 0.5


@pytest.mark.skipif(HookedTransformer is None, reason="TransformerLens 4 has one class only")
def test_where_a_class_fails_the_other_is_taken_with_one_line(folders, monkeypatch):
    from mi_multilingual.models import loading

    convert = loading.loading_from_pretrained.get_pretrained_state_dict

    def wrong(*args, **kwargs):
        return {name: 1.1 * t if "W_Q" in name else t for name, t in convert(*args, **kwargs).items()}

    monkeypatch.setattr(loading.loading_from_pretrained, "get_pretrained_state_dict", wrong)
    with warnings.catch_warnings(record=True) as warned:
        warnings.simplefilter("always")
        assert is_bridge(load_model(folders["llama"], device="cpu"))
    lines = [str(w.message) for w in warned if "HookedTransformer (" in str(w.message)]
    assert len(lines) == 1
    assert "its logits must be those of transformers" in lines[0]
    with pytest.raises(ValueError, match="logits must be those of transformers, got some that differ by .*%"):
        load_model(folders["llama"], backend="hooked", device="cpu")


def test_olmo_2_runs_in_bfloat16(folders):
    model = load_model(folders["olmo2"], dtype=torch.bfloat16, device="cpu")
    with kept_out(model):
        assert torch.isfinite(families.neurons(model, "post", TOKENS)[1]).all()


EXPERTS = {"num_experts_per_tok": 1, "moe_intermediate_size": 8}
MIXTURES = {
    "mixtral": lambda: transformers.MixtralConfig(**checkpoints.GATED, num_key_value_heads=1, num_local_experts=2),
    "qwen3-moe": lambda: transformers.Qwen3MoeConfig(
        **checkpoints.GATED, num_key_value_heads=1, num_experts=2, **EXPERTS
    ),
    "olmoe": lambda: transformers.OlmoeConfig(**checkpoints.NAMED_ENDS, num_key_value_heads=1, num_experts=2),
}


@pytest.mark.parametrize("kind", MIXTURES)
def test_mixtures_of_experts_are_refused_by_name(kind, tmp_path):
    model = transformers.AutoModelForCausalLM.from_config(MIXTURES[kind]())
    with pytest.raises(ValueError, match=rf"must have dense MLPs, got .*{type(model).__name__}.* 2 experts per layer"):
        load_model(model, tokenizer=checkpoints.tokenizer(tmp_path), device="cpu")
