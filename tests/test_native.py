"""A native pass may never give a number that the hooked one would not."""

import copy
from contextlib import contextmanager
from functools import cache

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

import checkpoints
from mi_multilingual import Intervention, NeuronSet, ablate, bake, baked, generate, lape, load_model, record, steer
from mi_multilingual.models.hooked import (
    _digest,
    all_logits,
    as_it_runs,
    fingerprint,
    is_bridge,
    is_gated,
    logits_at,
    run_trunk,
    site_of,
)
from mi_multilingual.models.loading import HookedTransformer
from mi_multilingual.models.losses import token_losses
from mi_multilingual.models.native import native_of
from mi_multilingual.models.stamps import _SUMMED, sampled_sum
from mi_multilingual.tokens import Reading

TOKENS = torch.randint(3, 300, (2, 9), generator=torch.Generator().manual_seed(0))
KINDS = ["llama-grouped", "gpt2", "gpt-neox", "phi3"]
BACKENDS = ["hooked", "bridge"] if HookedTransformer is not None else ["bridge"]


@pytest.fixture(scope="module")
def folders(tmp_path_factory):
    return {k: checkpoints.checkpoint(k, tmp_path_factory.mktemp(k)) for k in KINDS}


@pytest.fixture(params=[(k, b) for k in KINDS for b in BACKENDS], ids=str)
def model(request, folders):
    """A model of its own for every test, which may break it."""
    kind, backend = request.param
    return load_model(folders[kind], backend=backend, device="cpu")


@contextmanager
def kept_out(model):
    """Within the block, a hook that changes nothing keeps transformers out."""
    with model.hooks(fwd_hooks=[("blocks.0.hook_mlp_out", lambda value, hook: None)]):
        assert not native_of(model).stands_in()
        yield


@torch.no_grad()
def numbers(model):
    """Logits, chosen logits, losses and activations, as the package gets them."""
    posts = []
    hooks = [(f"blocks.{n}.mlp.hook_post", lambda value, hook: posts.append(value)) for n in range(model.cfg.n_layers)]
    run_trunk(model, TOKENS, hooks=hooks)
    rows, positions = torch.tensor([0, 1, 1]), torch.tensor([8, 2, 5])
    logits = all_logits(model, TOKENS), logits_at(model, TOKENS, rows, positions)
    return [*logits, token_losses(model, TOKENS), *posts]


def check_alike(model):
    """Raise unless passes give what hooked passes give; return the logits."""
    ours = numbers(model)
    with kept_out(model):
        hooked = numbers(model)
    for mine, its in zip(ours, hooked, strict=True):
        torch.testing.assert_close(mine.float(), its.float(), atol=2e-5, rtol=1e-4)
    return ours[0].float()


def some(model, part="mlp", density=0.4):
    width = model.cfg.d_mlp if part == "mlp" else model.cfg.n_heads * model.cfg.d_head
    if part in ("k", "v"):
        width = (getattr(model.cfg, "n_key_value_heads", None) or model.cfg.n_heads) * model.cfg.d_head
    masks = torch.rand(1, model.cfg.n_layers, width, generator=torch.Generator().manual_seed(0)) < density
    return NeuronSet(masks, ("en",), "test", part=part, model_fingerprint=fingerprint(model))


def test_transformers_is_asked_where_nothing_was_done(model):
    assert native_of(model).stands_in()
    check_alike(model)
    assert native_of(model).stands_in()


def in_place(model):
    model.blocks[0].mlp.W_out[3] *= 3.0


def in_place_by_data(model):
    model.blocks[0].mlp.W_out.data[3] *= 3.0


def query(model):
    """W_Q: in some architectures a part of a matrix that makes keys and values too."""
    if is_bridge(model):
        model.blocks[0].attn.q.original_component.weight.mul_(1.5)
    else:
        model.blocks[0].attn.W_Q.mul_(1.5)


def query_by_data(model):
    if is_bridge(model):
        model.blocks[0].attn.q.original_component.weight.data.mul_(1.5)
    else:
        model.blocks[0].attn.W_Q.data.mul_(1.5)


def bias(model):
    """Hooked models have biases where transformers has none."""
    target = model.blocks[0].mlp.out.original_component.weight if is_bridge(model) else model.blocks[0].attn.b_O
    target.view(-1)[::7].add_(0.5)


def bias_by_data(model):
    target = model.blocks[0].mlp.out.original_component.weight if is_bridge(model) else model.blocks[0].attn.b_O
    target.data.view(-1)[::7].add_(0.5)


def unembedding_bias(model):
    target = model.unembed.original_component.weight if is_bridge(model) else model.unembed.b_U
    target.data[5] += 3.0


def another_parameter(model):
    if is_bridge(model):
        out = model.blocks[1].mlp.out.original_component
        out.weight = torch.nn.Parameter(out.weight * 2)
    else:
        model.blocks[1].mlp.W_out = torch.nn.Parameter(model.blocks[1].mlp.W_out * 2)


def other_data(model):
    target = model.blocks[1].mlp.out.original_component.weight if is_bridge(model) else model.blocks[1].mlp.W_out
    target.data = target.data * 2


def transformers_own(model):
    """The transformers model is changed behind the hooked one's back."""
    for p in native_of(model).hf_model.parameters():
        if p.ndim == 2:
            p.mul_(1.2)


def state_dict(model):
    model.load_state_dict(
        {name: 1.1 * tensor for name, tensor in model.state_dict().items() if tensor.is_floating_point()}, strict=False
    )


class Doubled(torch.nn.Module):
    def __init__(self, inner):
        super().__init__()
        self.inner = inner

    def forward(self, *args, **kwargs):
        out = self.inner(*args, **kwargs)
        return (2 * out[0], *out[1:]) if isinstance(out, tuple) else 2 * out


def another_module(model):
    """As a sparse autoencoder is put in."""
    if is_bridge(model):
        native_of(model).hf_model.get_output_embeddings().weight.mul_(1.3)
    else:
        model.blocks[1].hook_mlp_out = Doubled(model.blocks[1].hook_mlp_out)


EDITS = [in_place, in_place_by_data, query, query_by_data, bias, bias_by_data, unembedding_bias, another_parameter]
EDITS += [other_data, transformers_own, state_dict, another_module]


@pytest.mark.parametrize("edit", EDITS, ids=lambda edit: edit.__name__)
@torch.no_grad()
def test_edited_weights_count_in_every_pass(model, edit):
    before = check_alike(model)
    edit(model)
    assert (check_alike(model) - before).abs().max() > 1e-3


@given(
    shape=st.tuples(st.integers(500, 900), st.sampled_from([512, 576, 768, 1000])),
    at=st.floats(0, 1, exclude_max=True),
    is_row=st.booleans(),
)
@settings(max_examples=25)
def test_a_sample_of_a_large_matrix_has_every_row_and_column(shape, at, is_row):
    matrix = torch.zeros(shape)
    if matrix.numel() > _SUMMED:
        assert sampled_sum(torch.ones(shape)) < matrix.numel(), "a sample"
    if is_row:
        matrix[int(at * shape[0])] = 1.0
    else:
        matrix[:, int(at * shape[1])] = 1.0
    assert sampled_sum(matrix) > 0


@pytest.mark.parametrize("part", ["mlp", "q", "k", "v"])
@pytest.mark.parametrize("kind", ["zero", "scale"])
def test_written_weights_do_what_hooks_do(model, part, kind):
    intervention = Intervention(kind, some(model, part), None if kind == "zero" else -1.5)
    with steer(model, intervention):
        steered = check_alike(model)
    copied = bake(model, intervention)
    torch.testing.assert_close(check_alike(copied), steered, atol=2e-5, rtol=1e-4)
    with baked(model, intervention):
        torch.testing.assert_close(check_alike(model), steered, atol=2e-5, rtol=1e-4)
    assert (check_alike(model) - steered).abs().max() > 1e-3


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float64])
def test_another_dtype_is_one_of_all_passes(model, dtype):
    model.to(dtype)
    ours = numbers(model)
    assert [number.dtype for number in ours] == [dtype, dtype, torch.float32, *[dtype] * model.cfg.n_layers]
    with kept_out(model):
        for mine, its in zip(ours, numbers(model), strict=True):
            tolerance = 0.1 if dtype == torch.bfloat16 else 1e-5
            torch.testing.assert_close(mine, its, atol=tolerance, rtol=tolerance)


@torch.no_grad()
def test_a_deep_copy_is_a_model_of_its_own(model):
    before = check_alike(model)
    other = copy.deepcopy(model)
    in_place(other)
    query(other)
    assert (check_alike(other) - before).abs().max() > 1e-3
    torch.testing.assert_close(check_alike(model), before, atol=0, rtol=0)
    in_place_by_data(model)
    changed = check_alike(model)
    in_place(model)
    assert (check_alike(model) - changed).abs().max() > 1e-3


def test_steering_nests_and_comes_off(model):
    first, second = some(model), some(model, density=0.1)
    plain = check_alike(model)
    with steer(model, Intervention("scale", first, 0.5)):
        outer = check_alike(model)
        with ablate(model, second):
            inner = check_alike(model)
        torch.testing.assert_close(check_alike(model), outer, atol=0, rtol=0)
    torch.testing.assert_close(check_alike(model), plain, atol=0, rtol=0)
    assert (inner - outer).abs().max() > 1e-3
    assert (outer - plain).abs().max() > 1e-3


def test_hooks_taken_off_within_a_block_are_off_in_every_pass(model):
    plain = check_alike(model)
    with steer(model, Intervention("scale", some(model), 0.5)):
        assert (check_alike(model) - plain).abs().max() > 1e-3
        model.reset_hooks()
        torch.testing.assert_close(check_alike(model), plain, atol=2e-5, rtol=1e-4)
    torch.testing.assert_close(check_alike(model), plain, atol=2e-5, rtol=1e-4)


def test_hooks_of_others_act_beside_interventions(model):
    with ablate(model, some(model)):
        alone = check_alike(model)
        with model.hooks(fwd_hooks=[("blocks.1.hook_mlp_out", lambda value, hook: 2 * value)]):
            both = numbers(model)[0]
    assert (both - alone).abs().max() > 1e-3


def test_positions_are_those_of_the_text_in_every_pass(model):
    steps = [
        Intervention("scale", some(model), 0.0 if p == "prompt" else 2.0, positions=p) for p in ("prompt", "generated")
    ]
    prompts = ["The dog", "We drink tea when it rains"]
    for step in steps:
        with steer(model, step):
            fast = generate(model, prompts, max_new_tokens=5, progress=False)
            with kept_out(model):
                assert generate(model, prompts, max_new_tokens=5, progress=False) == fast


def test_almost_no_decision_differs_and_sets_agree(demo_model, corpus):
    """On weights that were trained: the sign of a number near zero is all that rounding may decide."""
    stats = record(demo_model, corpus, reading=Reading(layout="documents"), progress=False)
    with kept_out(demo_model):
        hooked = record(demo_model, corpus, reading=Reading(layout="documents"), progress=False)
    differing = (stats.active - hooked.active).abs().sum() / (
        stats.n_tokens.sum() * demo_model.cfg.n_layers * demo_model.cfg.d_mlp
    )
    assert differing <= 1e-4
    sets = [lape(s, rate=0.05, filter_rate=0.5).union() for s in (stats, hooked)]
    both, either = (sets[0] & sets[1]).sum(), (sets[0] | sets[1]).sum()
    assert either > 0
    assert both / either >= 0.999


def test_activations_are_read_where_transformers_makes_them(model, folders):
    gate = site_of(model, "gate")
    is_read = is_gated(model) and native_of(model).knows([gate.hook_name(0)])
    assert (as_it_runs(model, gate) != gate) == is_read
    with kept_out(model):
        assert as_it_runs(model, gate) == gate
    given = []
    for site in (gate, as_it_runs(model, gate)):
        hooks = [(site.hook_name(n), lambda value, hook, site=site: given.append(site.value(value))) for n in (0, 1)]
        with torch.no_grad():
            run_trunk(model, TOKENS, hooks=hooks)
    for recomputed, own in zip(given[:2], given[2:], strict=True):
        assert torch.equal(recomputed, own)


@given(st.data())
@settings(max_examples=20)
def test_a_fingerprint_is_kept_and_notices_every_changed_neuron(data):
    """Not by versions, which do not tell of changes through `.data`."""
    model = _large()
    before = fingerprint(model)
    assert before == fingerprint(model) == _digest(model)
    matrix = model.blocks[0].mlp.W_out
    neuron = data.draw(st.integers(0, len(matrix) - 1))
    saved = matrix[neuron].clone()
    matrix.data[neuron] *= 1.5
    assert fingerprint(model) == _digest(model) != before
    matrix.data[neuron] = saved
    assert fingerprint(model) == before


@cache
def _large():
    """The embedded model, of whose matrices only some numbers are summed."""
    model = load_model("demo", device="cpu")
    assert model.cfg.d_model * model.cfg.d_mlp > _SUMMED
    return model


@pytest.mark.parametrize("last", [5, 6, 8], ids=["at the end of the beginning", "one later", "later"])
def test_places_behind_beginnings_that_rows_share(model, last):
    """Beginnings run once; the place where they end is theirs, and rows that ask for no other go no further."""
    tokens = TOKENS[:, :6].repeat_interleave(4, 0)
    tokens = torch.cat([tokens, torch.arange(24).view(8, 3) + 3], 1)
    rows = torch.arange(8).repeat_interleave(last - 4)
    positions = torch.arange(5, last + 1).repeat(8)
    with torch.no_grad():
        whole, found = all_logits(model, tokens), logits_at(model, tokens, rows, positions)
    torch.testing.assert_close(found, whole[rows, positions], atol=2e-5, rtol=1e-4)


@pytest.mark.parametrize("read", ["mlp.hook_pre", "mlp.hook_post"])
def test_relu_writes_over_its_input_where_nobody_keeps_it(demo_model, read):
    functions = [m for m in native_of(demo_model).hf_model.modules() if isinstance(m, torch.nn.ReLU)]
    seen, kept = [], []

    def keep(value, hook):
        seen.append({f.inplace for f in functions})
        kept.append((value, value.clone()))

    hooks = [(f"blocks.{layer}.{read}", keep) for layer in range(demo_model.cfg.n_layers)]
    with torch.no_grad():
        run_trunk(demo_model, TOKENS, hooks=hooks)
    assert seen == [{read == "mlp.hook_post"}] * demo_model.cfg.n_layers
    assert all(torch.equal(value, then) for value, then in kept)
    run_trunk(demo_model, TOKENS, hooks=hooks)
    assert seen[demo_model.cfg.n_layers :] == [{False}] * demo_model.cfg.n_layers, "gradients need it"
    assert not any(f.inplace for f in functions)
