import copy
import itertools
from dataclasses import replace

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from transformers import AutoModelForCausalLM
from transformers.activations import ACT2FN

import checkpoints
import oracles
from mi_multilingual import NeuronSet, ablate, generate, load_model, record
from mi_multilingual.models.hooked import fingerprint, site_of
from mi_multilingual.patching.changes import Intervention, add_mean, add_mean_difference, set_to_mean
from mi_multilingual.patching.hooks import steer
from mi_multilingual.tokens import Reading

READING = Reading(window=8)

TOKENS = torch.randint(3, 300, (2, 9), generator=torch.Generator().manual_seed(0))


def chosen(model, density=0.4, seed=0, groups=("en", "fr")):
    shape = (len(groups), model.cfg.n_layers, model.cfg.d_mlp)
    masks = torch.rand(shape, generator=torch.Generator().manual_seed(seed)) < density
    return NeuronSet(masks, groups, "test", model_fingerprint=fingerprint(model))


def logits(model):
    with torch.no_grad():
        return model(TOKENS, return_type="logits")


def with_rows_removed(model, mask):
    """Logits of the model with the output weights of the chosen neurons at zero, put back afterwards."""
    weights = [model.blocks[layer].mlp.W_out for layer in range(model.cfg.n_layers)]
    before = [w.detach().clone() for w in weights]
    with torch.no_grad():
        for w, m in zip(weights, mask, strict=True):
            w[m] = 0.0
    result = logits(model)
    with torch.no_grad():
        for w, b in zip(weights, before, strict=True):
            w.copy_(b)
    return result


def test_zero_ablation_equals_output_weights_at_zero(model):
    neurons, plain = chosen(model), logits(model)
    with ablate(model, neurons["en"]):
        during = logits(model)
    torch.testing.assert_close(during, with_rows_removed(model, neurons.masks[0]), atol=1e-5, rtol=1e-5)
    assert (during - plain).abs().max() > 0.01
    torch.testing.assert_close(logits(model), plain, atol=0, rtol=0)


def test_several_groups_are_ablated_together_and_blocks_nest(model):
    neurons = chosen(model)
    with ablate(model, neurons):
        together = logits(model)
    with ablate(model, neurons["en"]), ablate(model, neurons["fr"]):
        nested = logits(model)
    torch.testing.assert_close(together, nested)
    with ablate(model, neurons["en"]):
        with ablate(model, neurons["fr"]):
            pass
        outer = logits(model)
    with ablate(model, neurons["en"]):
        torch.testing.assert_close(outer, logits(model), atol=0, rtol=0)


def test_hooks_come_off_when_the_body_raises(model):
    plain = logits(model)
    with pytest.raises(RuntimeError, match="stop"), ablate(model, chosen(model)):
        raise RuntimeError("stop")
    torch.testing.assert_close(logits(model), plain, atol=0, rtol=0)


def test_an_empty_set_changes_nothing(model):
    plain = logits(model)
    with ablate(model, chosen(model, density=0.0)):
        torch.testing.assert_close(logits(model), plain, atol=0, rtol=0)


def test_neurons_can_be_held_at_their_mean_in_a_language(model, corpus):
    neurons = chosen(model)["en"]
    stats = record(model, corpus, site="post", reading=READING, progress=False)
    seen = {}
    hooks = [
        (site_of(model, "post").hook_name(layer), lambda x, hook, layer=layer: seen.__setitem__(layer, x))
        for layer in range(model.cfg.n_layers)
    ]
    with torch.no_grad(), steer(model, set_to_mean(neurons, stats, "fr")):
        model.run_with_hooks(TOKENS, fwd_hooks=hooks)
    for layer, mask in enumerate(neurons.masks[0]):
        expected = stats.mean()[layer, mask, stats.languages.index("fr")].float()
        assert torch.equal(seen[layer][..., mask], expected.expand(*TOKENS.shape, -1))


def test_ablation_acts_at_every_step_of_generation(model):
    neurons = chosen(model, density=0.8)
    prompts = ["The dog", "We drink tea"]
    with ablate(model, neurons):
        cached = generate(model, prompts, max_new_tokens=8, progress=False)
        by_hand = [greedy(model, p, 8) for p in prompts]
    assert cached == by_hand
    assert cached != generate(model, prompts, max_new_tokens=8, progress=False)


def greedy(model, prompt, n_new):
    """Greedy continuation by whole forward passes, without a cache."""
    tok = model.tokenizer
    ids = [tok.bos_token_id, *tok(prompt, add_special_tokens=False)["input_ids"]]
    new = []
    for _ in range(n_new):
        with torch.no_grad():
            new.append(int(model(torch.tensor([ids + new]), return_type="logits")[0, -1].argmax()))
    end = new.index(tok.eos_token_id) if tok.eos_token_id in new else len(new)
    return tok.decode(new[:end])


def test_generating_together_equals_generating_alone(model):
    prompts = ["The dog", "We drink tea when it rains", "犬が", "A small boat crossed", "Le chien"]
    together = generate(model, prompts, max_new_tokens=6, progress=False)
    assert together == [generate(model, [p], max_new_tokens=6, progress=False)[0] for p in prompts]
    assert together == [greedy(model, p, 6) for p in prompts]


def test_mistakes_are_told(model, corpus):
    shape = (1, model.cfg.n_layers, model.cfg.d_mlp + 1)
    with (
        pytest.raises(ValueError, match="load the model the set was made for"),
        ablate(model, NeuronSet(torch.zeros(shape) > 0, ("en",), "m")),
    ):
        pass
    other = NeuronSet(chosen(model).masks, ("en", "fr"), "m", model_fingerprint="another")
    with pytest.raises(ValueError, match="made for other weights"), ablate(model, other):
        pass
    with pytest.raises(ValueError, match="followed by 30 new ones"):
        generate(model, ["The dog sleeps under"], max_new_tokens=30, progress=False)


def hf_of(folder):
    """The plain Hugging Face model, with the activation function of its gate where it has one."""
    hf = AutoModelForCausalLM.from_pretrained(folder).eval()
    hf.act = ACT2FN[getattr(hf.config, "hidden_act", "relu")]
    return hf


@pytest.fixture(scope="module", params=list(itertools.product(["opt", "llama-grouped"], ["auto", "bridge"])), ids=str)
def pair(request, tmp_path_factory):
    """(hooked model, the same in plain transformers), of both MLP kinds and both kinds of hooked model."""
    kind, backend = request.param
    folder = checkpoints.checkpoint(kind, tmp_path_factory.mktemp("pair"))
    return load_model(folder, backend=backend, device="cpu"), hf_of(folder)


def meant(positions, place, n_prompt):
    if isinstance(positions, tuple):
        return place in positions
    return positions == "all" or (place < n_prompt) == (positions == "prompt")


def by_hand(interventions, n_prompt):
    """The neurons of one layer after the interventions, those at the gate first, one position and step at a time."""
    step = {
        "zero": lambda x, v: torch.zeros_like(x),
        "set": lambda x, v: torch.zeros_like(x) + v,
        "add": lambda x, v: x + v,
        "scale": lambda x, v: v * x,
    }

    def apply(x, layer, where):
        rows = list(x.unbind(1))
        for i in interventions:
            if i.site == where:
                chosen = i.neurons.masks.any(0)[layer]
                value = i.value[layer] if isinstance(i.value, torch.Tensor) else i.value
                for place in range(len(rows)):
                    if meant(i.positions, place, n_prompt):
                        rows[place] = torch.where(chosen, step[i.kind](rows[place], value), rows[place])
        return torch.stack(rows, dim=1)

    def change(layer, gate, up):
        gate = apply(gate, layer, "gate")
        return apply(gate if up is None else gate * up, layer, "post")

    return change


def value_table(seed):
    return torch.randn(checkpoints.N_LAYERS, checkpoints.D_MLP, generator=torch.Generator().manual_seed(seed))


@st.composite
def consistent_interventions(draw):
    """Up to four, those at the gate first; those that fix neurons have neurons of their own."""
    n = draw(st.integers(1, 4))
    sites = sorted(draw(st.lists(st.sampled_from(["gate", "post"]), min_size=n, max_size=n)))
    owner = torch.randint(0, n, (1, checkpoints.N_LAYERS, checkpoints.D_MLP), generator=seeded(draw))
    fixed_by_others = [torch.zeros_like(owner) > 0 for _ in range(n)]
    kinds = draw(st.lists(st.sampled_from(["zero", "set", "add", "scale"]), min_size=n, max_size=n))
    for i, kind in enumerate(kinds):
        for j in range(n):
            if j != i and kind in ("zero", "set"):
                fixed_by_others[j] |= owner == i
    made = []
    for i, kind in enumerate(kinds):
        mask = owner == i if kind in ("zero", "set") else ~fixed_by_others[i]
        value = draw(st.one_of(st.floats(-3, 3), st.integers(0, 99).map(value_table)))
        places = st.lists(st.integers(0, 8), min_size=1, max_size=4).map(tuple)
        positions = draw(st.one_of(st.sampled_from(["all", "prompt", "generated"]), places))
        made.append(
            Intervention(kind, NeuronSet(mask, ("x",), "test"), None if kind == "zero" else value, sites[i], positions)
        )
    return made


def seeded(draw):
    return torch.Generator().manual_seed(draw(st.integers(0, 999)))


@settings(max_examples=25)
@given(interventions=consistent_interventions())
def test_steering_equals_a_plain_reimplementation(pair, interventions):
    interventions = [i for i in interventions if i.neurons.masks.any()]
    if not interventions:
        return
    model, hf = pair
    with steer(model, *interventions):
        during = logits(model)
    expected = oracles.intervened_logits(hf, TOKENS, by_hand(interventions, TOKENS.shape[1]))
    torch.testing.assert_close(during, expected, atol=2e-4, rtol=1e-4)


@pytest.mark.parametrize("kind", ["zero", "set", "add", "scale"])
@pytest.mark.parametrize("where", ["gate", "post"])
def test_every_kind_changes_the_output_and_leaves_no_trace(pair, kind, where):
    model, hf = pair
    plain = logits(model)
    intervention = Intervention(kind, chosen(model)["en"], None if kind == "zero" else 0.7, where)
    with steer(model, intervention):
        during = logits(model)
    expected = oracles.intervened_logits(hf, TOKENS, by_hand([intervention], TOKENS.shape[1]))
    torch.testing.assert_close(during, expected, atol=1e-4, rtol=1e-4)
    assert (during - plain).abs().max() > 0.01
    torch.testing.assert_close(logits(model), plain, atol=0, rtol=0)


def test_setting_the_gate_is_not_setting_the_product(pair):
    model, hf = pair
    results = []
    for where in ("gate", "post"):
        with steer(model, Intervention("set", chosen(model), 1.0, where)):
            results.append(logits(model))
    assert (results[0] - results[1]).abs().max() > 0.01 or not hasattr(hf.config, "hidden_act")


@pytest.mark.parametrize("positions", ["all", "prompt", "generated", (0, 4, 6)], ids=str)
def test_generation_is_the_same_with_and_without_a_cache(pair, positions):
    model, hf = pair
    prompt = TOKENS[:, :5]
    neurons = chosen(model, density=0.8)
    interventions = [
        Intervention("add", neurons["en"], 1.5, "gate", positions),
        Intervention("scale", neurons["fr"], -2.0, "post", positions),
    ]
    how = {"max_new_tokens": 6, "do_sample": False, "stop_at_eos": False, "verbose": False}
    with steer(model, *interventions):
        # Twice, since the second begins where the first has ended.
        cached = [model.generate(prompt, **how) for _ in range(2)]
        uncached = [model.generate(prompt, use_past_kv_cache=False, **how) for _ in range(2)]
    expected = prompt
    for _ in range(6):
        step = oracles.intervened_logits(hf, expected, by_hand(interventions, 5))
        expected = torch.cat([expected, step[:, -1].argmax(-1, keepdim=True)], dim=1)
    for tokens in (*cached, *uncached):
        assert torch.equal(tokens, expected)
    assert not torch.equal(model.generate(prompt, **how), expected)


def test_the_order_is_the_order_given(model):
    neurons = chosen(model)["en"]
    add, scale = Intervention("add", neurons, 1.0, "post"), Intervention("scale", neurons, 3.0, "post")
    with steer(model, add, scale):
        add_first = logits(model)
    with steer(model, add), steer(model, scale):
        nested = logits(model)
    with steer(model, scale, add):
        scale_first = logits(model)
    torch.testing.assert_close(add_first, nested, atol=1e-5, rtol=1e-5)
    assert (add_first - scale_first).abs().max() > 0.01


def test_means_of_a_language_come_from_the_recording_at_its_site(model, corpus):
    neurons = chosen(model)["en"]
    for where in ("gate", "post"):
        stats = record(model, corpus, site=where, reading=READING, progress=False)
        en, fr, ja = stats.mean().unbind(-1)
        held = set_to_mean(neurons, stats, "fr")
        assert (held.kind, held.site, held.positions) == ("set", where, "all")
        assert torch.equal(held.value, fr)
        raised = add_mean(neurons, stats, "fr", strength=2.5, positions="generated")
        assert (raised.kind, raised.site, raised.positions) == ("add", where, "generated")
        assert torch.equal(raised.value, 2.5 * fr)
        apart = add_mean_difference(neurons, stats, "fr", strength=2.0)
        torch.testing.assert_close(apart.value, 2 * (fr - (en + ja) / 2))
        with steer(model, held):
            torch.testing.assert_close(logits(model), steered_by_hand(model, neurons, where, fr), atol=1e-5, rtol=1e-5)


def steered_by_hand(model, neurons, where, value):
    with steer(model, Intervention("set", neurons, value.float(), where)):
        return logits(model)


@pytest.mark.parametrize(
    ("first", "second", "contradict"),
    [
        (("zero", None), ("set", 1.0), True),
        (("zero", None), ("add", 1.0), True),
        (("set", 1.0), ("scale", 2.0), True),
        (("set", 1.0), ("set", 2.0), True),
        (("set", 1.0), ("set", 1.0), False),
        (("zero", None), ("zero", None), False),
        (("zero", None), ("set", 0.0), False),
        (("add", 1.0), ("add", 2.0), False),
        (("add", 1.0), ("scale", 2.0), False),
    ],
)
def test_a_neuron_that_is_fixed_may_not_be_written_otherwise(model, first, second, contradict):
    neurons = chosen(model)
    one, other = (
        Intervention(k, n, v, "post") for (k, v), n in zip((first, second), (neurons["en"], neurons["fr"]), strict=True)
    )
    for pair in ((one, other), (other, one)):
        if not contradict:
            with steer(model, *pair):
                logits(model)
            continue
        shared = int((neurons.masks[0] & neurons.masks[1]).sum())
        with (
            pytest.raises(ValueError, match=rf"contradict each other at layer 0, neuron \d+ \({shared} such neurons"),
            steer(model, *pair),
        ):
            pass
    without = replace(neurons["en"], masks=neurons["en"].masks & ~neurons["fr"].union())
    with (
        steer(model, replace(one, neurons=without), other),
        steer(model, replace(one, positions="prompt"), *([replace(other, positions="generated")])),
    ):
        logits(model)


def test_mistakes_in_steering_are_told_before_anything_runs(model, corpus):
    neurons = chosen(model)
    shape = (model.cfg.n_layers, model.cfg.d_mlp)
    empty = chosen(model, density=0.0)
    nan = torch.zeros(shape)
    nan[neurons.union()] = float("nan")
    for match, wrong in {
        "kind must be one of zero, set, add, scale, got 'raise'": lambda: Intervention("raise", neurons),
        "site must be one of gate, post, got 'up'": lambda: Intervention("zero", neurons, site="up"),
        "positions must be .* got 'last'": lambda: Intervention("zero", neurons, positions="last"),
        "positions must be numbers from 0": lambda: Intervention("zero", neurons, positions=(-1,)),
        "zero takes no value": lambda: Intervention("zero", neurons, 1.0),
        "set, add and scale need one": lambda: Intervention("set", neurons),
        "do not fit neurons of shape": lambda: Intervention("set", neurons, torch.zeros(shape[1], shape[0])),
        "neuron \\d+ is nan": lambda: Intervention("add", neurons, nan),
        "neuron \\d+ is inf": lambda: Intervention("scale", neurons, float("inf")),
        "no neurons for 'de'": lambda: Intervention("zero", neurons["de"]),
    }.items():
        with pytest.raises(ValueError, match=match):
            wrong()
    Intervention("add", replace(neurons, masks=~neurons.masks & ~neurons.union()), nan)
    for match, wrong in {
        "no intervention was given": [],
        "has no neurons": [Intervention("zero", empty)],
        "load the model the set was made for": [
            Intervention("zero", NeuronSet(torch.ones(1, shape[0] + 1, shape[1]) > 0, ("en",), "m"))
        ],
        "made for other weights": [Intervention("zero", replace(neurons, model_fingerprint="another"))],
    }.items():
        with pytest.raises(ValueError, match=match), steer(model, *wrong):
            pass
    stats = record(model, corpus, site="post", reading=READING, progress=False)
    with pytest.raises(ValueError, match="nothing was recorded for 'de'"):
        add_mean(neurons, stats, "de")
    with pytest.raises(ValueError, match="record other languages"):
        add_mean_difference(neurons, stats.take(["fr"]), "fr")
    with pytest.raises(ValueError, match="the statistics of .* other weights"):
        set_to_mean(replace(neurons, model_fingerprint="another"), stats, "fr")
    with pytest.raises(ValueError, match="record gate or post"):
        set_to_mean(neurons, replace(stats, site="up"), "fr")
    imported = replace(neurons, model_fingerprint="")
    with (
        pytest.raises(ValueError, match="made for other weights"),
        steer(model, set_to_mean(imported, replace(stats, model_fingerprint="another"), "fr")),
    ):
        pass


def test_texts_scored_one_after_another_are_prompts(model):
    with steer(model, Intervention("add", chosen(model), 1.0, positions="prompt")):
        first, second = (model(t, return_type="logits") for t in (TOKENS[:, :4], TOKENS[:, 2:9]))
    for together, tokens in ((first, TOKENS[:, :4]), (second, TOKENS[:, 2:9])):
        with steer(model, Intervention("add", chosen(model), 1.0)):
            torch.testing.assert_close(together, model(tokens, return_type="logits"))
    assert not any(block._forward_pre_hooks for block in model.blocks)


ATTENTIONS = ["opt", "gpt2", "gpt-neox", "bloom", "llama-grouped", "qwen3"]


@pytest.fixture(scope="module", params=list(itertools.product(ATTENTIONS, ["auto", "bridge"])), ids=str)
def attending(request, tmp_path_factory):
    """(hooked model, the same in plain transformers): biases or none, one matrix or three, fewer keys, normed keys."""
    kind, backend = request.param
    folder = checkpoints.checkpoint(kind, tmp_path_factory.mktemp("attending"))
    return load_model(folder, backend=backend, device="cpu"), hf_of(folder)


def columns(model, part, seed=0, density=0.4):
    width = 2 * 8 if part == "q" or model.cfg.n_key_value_heads is None else 8 * model.cfg.n_key_value_heads
    masks = torch.rand((1, model.cfg.n_layers, width), generator=torch.Generator().manual_seed(seed)) < density
    return NeuronSet(masks, ("en",), "test", model_fingerprint=fingerprint(model), part=part)


PARTS = ("q", "k", "v")


@pytest.mark.filterwarnings("ignore:.*has no HookedTransformer")
@pytest.mark.parametrize("part", PARTS)
def test_columns_off_are_columns_at_zero(attending, part):
    model, hf = attending
    neurons, plain = columns(model, part), logits(model)
    with ablate(model, neurons):
        during = logits(model)
    expected = oracles.logits_without_columns(hf, TOKENS, {part: neurons.masks[0]})
    torch.testing.assert_close(during, expected, atol=1e-4, rtol=1e-4)
    assert (during - plain).abs().max() > 0.01
    torch.testing.assert_close(logits(model), plain, atol=0, rtol=0)
    with ablate(model, columns(model, part, density=2.0)):
        torch.testing.assert_close(
            logits(model),
            oracles.logits_without_columns(hf, TOKENS, {part: ~torch.zeros_like(neurons.masks[0])}),
            atol=1e-4,
            rtol=1e-4,
        )


@pytest.mark.filterwarnings("ignore:.*has no HookedTransformer")
def test_all_parts_can_be_off_together(attending):
    model, hf = attending
    off = {part: columns(model, part, seed, 0.3) for seed, part in enumerate(PARTS)}
    mlp = chosen(model)["fr"]
    scaled = Intervention("scale", columns(model, "v", 9, 0.3), 0.5)
    with steer(model, *(Intervention("zero", n) for n in (off["k"], mlp, off["q"], off["v"]))):
        together = logits(model)
    with ablate(model, mlp), ablate(model, off["q"]), ablate(model, off["k"]), ablate(model, off["v"]):
        torch.testing.assert_close(logits(model), together, atol=1e-6, rtol=1e-6)
    masks = {part: neurons.masks[0] for part, neurons in off.items()}
    hf = copy.deepcopy(hf)
    with torch.no_grad():
        for module, mask in zip(checkpoints.mlps(hf), mlp.masks[0], strict=True):
            weight = checkpoints.out_projection(module).weight
            (weight if weight.shape[0] == len(mask) else weight.T)[mask] = 0.0
    expected = oracles.logits_without_columns(hf, TOKENS, masks)
    torch.testing.assert_close(together, expected, atol=1e-4, rtol=1e-4)
    with (
        pytest.raises(ValueError, match="contradict each other"),
        steer(model, Intervention("zero", off["v"]), replace(scaled, neurons=off["v"])),
    ):
        pass
    if off["q"].masks.shape == off["v"].masks.shape:
        same_numbers = replace(off["q"], part="v")
        with steer(model, Intervention("zero", off["q"]), replace(scaled, neurons=same_numbers)):
            logits(model)


@pytest.mark.filterwarnings("ignore:.*has no HookedTransformer")
@pytest.mark.parametrize("positions", ["all", (0, 4, 6)], ids=str)
def test_columns_are_off_at_every_step_of_generation(attending, positions):
    model, _ = attending
    prompt = TOKENS[:, :5]
    interventions = [Intervention("zero", columns(model, p, 3, 0.7), positions=positions) for p in PARTS]
    interventions.append(Intervention("zero", chosen(model)["en"], positions=positions))
    how = {"max_new_tokens": 6, "do_sample": False, "stop_at_eos": False, "verbose": False}
    with steer(model, *interventions):
        cached = [model.generate(prompt, **how) for _ in range(2)]
        uncached = model.generate(prompt, use_past_kv_cache=False, **how)
        # Token by token without generate(), prompt first.
        expected = prompt
        for _ in range(6):
            with torch.no_grad():
                step = model(expected, return_type="logits")
            expected = torch.cat([expected, step[:, -1].argmax(-1, keepdim=True)], dim=1)
    assert torch.equal(cached[0], cached[1])
    assert torch.equal(cached[0], uncached)
    assert torch.equal(cached[0], expected)
    if positions == "all":
        prompts = ["The dog", "We drink tea"]
        with ablate(model, columns(model, "v", 3, 0.7)):
            cached = generate(model, prompts, max_new_tokens=6, progress=False)
            assert cached == [greedy(model, p, 6) for p in prompts]


def test_columns_at_some_positions_are_those_of_these_tokens(model):
    """A query off at the last token changes nothing before it."""
    plain = logits(model)
    with steer(model, Intervention("zero", columns(model, "q", density=2.0), positions=(8,))):
        during = logits(model)
    torch.testing.assert_close(during[:, :8], plain[:, :8], atol=1e-6, rtol=1e-6)
    assert (during[:, 8] - plain[:, 8]).abs().max() > 1e-4


def test_mistakes_about_columns_are_told(model, corpus):
    neurons = columns(model, "k")
    stats = record(model, corpus, site="post", reading=READING, progress=False)
    for kind in ("set", "add"):
        with pytest.raises(ValueError, match=f"kind '{kind}' is for neurons of the MLP, these are columns of W_K"):
            Intervention(kind, neurons, 1.0)
    with pytest.raises(ValueError, match="these are columns of W_K; use zero or scale"):
        set_to_mean(neurons, stats, "fr")
    wrong = replace(chosen(model)["en"], part="q")
    with (
        pytest.raises(ValueError, match="must be of 2 layers x 16 q neurons"),
        ablate(model, wrong),
    ):
        pass
    with pytest.raises(ValueError, match="made for other weights"):
        steer(model, Intervention("zero", replace(neurons, model_fingerprint="x"))).__enter__()


def test_a_region_of_layers_can_be_off(model):
    neurons = chosen(model)
    first, rest = neurons.in_layers(range(1)), neurons.in_layers([1])
    assert not first.masks[:, 1].any()
    assert (first | rest).masks_equal(neurons)
    assert first.parameters == {"layers": [0]}
    with ablate(model, first), ablate(model, rest):
        apart = logits(model)
    with ablate(model, neurons):
        torch.testing.assert_close(logits(model), apart)
    for wrong in ([], [2], [-1], range(3)):
        with pytest.raises(ValueError, match=r"layers must be some of 0\.\.1"):
            neurons.in_layers(wrong)
