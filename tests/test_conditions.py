"""One way the model is run, beside its random controls."""

from dataclasses import replace

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from mi_multilingual import Condition, Intervention, NeuronSet, applied, layer_matched_random, steer, with_controls
from mi_multilingual.models.hooked import fingerprint
from mi_multilingual.patching import conditions as conditions_module
from mi_multilingual.patching.conditions import beside_random, check_groups, labelled, measured

TOKENS = torch.randint(3, 300, (2, 9), generator=torch.Generator().manual_seed(0))


def chosen(model, groups=("en", "fr"), density=0.4):
    shape = (len(groups), model.cfg.n_layers, model.cfg.d_mlp)
    masks = torch.rand(shape, generator=torch.Generator().manual_seed(0)) < density
    return NeuronSet(masks, groups, "test", model_fingerprint=fingerprint(model))


def logits(model):
    with torch.no_grad():
        return model(TOKENS, return_type="logits")


@given(
    st.lists(st.sampled_from(["none", "random", "intact", "all", "chosen", "fr"]), min_size=1, max_size=4, unique=True),
    st.lists(st.integers(0, 9), max_size=3, unique=True),
    st.integers(0, 2**20),
)
def test_every_group_stands_beside_as_many_random_neurons_per_layer_for_every_seed(groups, seeds, seed):
    masks = torch.rand(len(groups), 3, 20, generator=torch.Generator().manual_seed(seed)) < 0.3
    neurons = NeuronSet(masks, tuple(groups), "test")
    found = [(c.labels["condition"], c.labels["group"], c.labels["seed"]) for c in with_controls(neurons, seeds)]
    assert found == [(*row[:1], g, row[1]) for g in groups for row in [("chosen", -1), *(("random", s) for s in seeds)]]
    for condition in with_controls(neurons, seeds):
        own = masks[groups.index(condition.labels["group"])]
        changed = torch.zeros_like(own)
        for intervention in condition.interventions:
            assert intervention.kind == "zero"
            changed |= intervention.neurons.union()
        assert torch.equal(changed.sum(1), own.sum(1))
        assert condition.labels["n_neurons"] == own.sum()
        if condition.labels["seed"] == -1:
            assert torch.equal(changed, own)
        else:
            drawn = layer_matched_random(neurons, seed=condition.labels["seed"])
            assert torch.equal(changed, drawn[condition.labels["group"]].union())


def test_some_groups_keep_their_draw_and_every_set_has_one_of_its_own():
    masks = torch.rand(3, 2, 30, generator=torch.Generator().manual_seed(1)) < 0.3
    neurons = NeuronSet(masks, ("a", "b", "c"), "test")

    def drawn(**options):
        return {
            (c.labels["group"], c.labels["seed"]): c.interventions[0].neurons.masks.flatten().tolist()
            for c in with_controls(neurons, (0, 1), **options)
        }

    whole = drawn()
    assert drawn(groups=["c", "a"]) == {key: whole[key] for key in whole if key[0] != "b"}
    several = [drawn(number=i, n_sets=4) for i in range(4)]
    random = [tuple(found[key]) for found in several for key in found if key[1] != -1]
    assert len(set(random)) == len(random)
    assert all(found[g, -1] == whole[g, -1] for found in several for g in "abc")
    assert several[0]["a", 0] == whole["a", 0]
    with pytest.raises(ValueError, match="no neurons for 'd'"):
        with_controls(neurons, groups=["d"])


def test_a_change_of_ones_own_and_none_for_an_empty_group():
    neurons = NeuronSet.of({"a": [(0, 1)], "none": []}, shape=(2, 4))
    calls = []

    def doubled(one):
        calls.append(one.groups)
        return (Intervention("scale", one, 2.0),)

    found = list(with_controls(neurons, (3,), change=doubled))
    assert [[i.kind for i in c.interventions] for c in found] == [["scale"], ["scale"], [], []]
    assert calls == [("a",), ("a",)]
    assert [c.labels["n_neurons"] for c in found] == [1, 1, 0, 0]
    assert [(name, seed) for name, seed, _ in beside_random(neurons, (3,))] == [("chosen", -1), ("random", 3)]


@pytest.mark.parametrize("seeds", [(-1,), (0, 0)])
def test_wrong_seeds_are_told_at_once(seeds):
    with pytest.raises(ValueError, match="seeds must be different numbers from 0"):
        with_controls(NeuronSet.of({"a": [(0, 1)]}, shape=(2, 4)), seeds)


def interventions(neurons):
    """Some that weights carry, and some that they cannot."""
    table = torch.linspace(-1, 1, neurons.masks[0].numel()).view(neurons.masks.shape[1:])
    return {
        "zero": Intervention("zero", neurons),
        "scale": Intervention("scale", neurons, 2.0),
        "added": Intervention("add", neurons, table, "post"),
        "at the gate": Intervention("set", neurons, 0.5, "gate"),
        "at some positions": Intervention("zero", neurons, positions=(0, 2)),
    }


def test_a_condition_does_what_steer_does_by_weights_where_they_can(model, monkeypatch):
    neurons, before = chosen(model)["en"], {n: t.clone() for n, t in model.state_dict().items()}
    plain = logits(model)
    by_hooks = []
    original = conditions_module.hooked
    monkeypatch.setattr(conditions_module, "hooked", lambda *given: by_hooks.append(given) or original(*given))
    for name, intervention in interventions(neurons).items():
        by_hooks.clear()
        with applied(model, Condition(interventions=(intervention,))) as same:
            assert same is model
            found = logits(model)
        with steer(model, intervention):
            expected = logits(model)
        torch.testing.assert_close(found, expected, atol=1e-5, rtol=1e-5)
        assert (found - plain).abs().max() > 1e-3
        needs_hooks = name == "at some positions" or (name == "at the gate" and model.cfg.gated_mlp)
        assert bool(by_hooks) == needs_hooks
        torch.testing.assert_close(logits(model), plain, atol=0, rtol=0)
    assert all(torch.equal(t, before[n]) for n, t in model.state_dict().items())


def test_a_zero_is_the_same_to_the_last_bit_by_weights_and_by_hooks(model):
    intervention = Intervention("zero", chosen(model)["fr"])
    with applied(model, Condition(interventions=(intervention,))):
        by_weights = logits(model)
    with steer(model, intervention):
        assert torch.equal(logits(model), by_weights)


def test_without_interventions_the_model_is_as_it_is(model):
    plain = logits(model)
    with applied(model, Condition()):
        assert torch.equal(logits(model), plain)


@pytest.mark.parametrize("positions", ["all", (0,)])
def test_the_model_is_put_back_after_an_error(model, positions):
    plain, intervention = logits(model), Intervention("zero", chosen(model), positions=positions)
    with pytest.raises(RuntimeError, match="stop"), applied(model, Condition(interventions=(intervention,))):
        raise RuntimeError("stop")
    assert torch.equal(logits(model), plain)


def test_rows_are_measured_under_their_condition_and_stand_beside_its_labels(model):
    neurons = chosen(model)
    conditions = [Condition(), *with_controls(neurons, (2,))]
    rows = measured(model, conditions, lambda c: [{"logits": logits(model), "of": c}] * 2, progress=False)
    assert len(rows) == 2 * 5
    for i, row in enumerate(rows):
        condition = conditions[i // 2]
        assert row["of"] is condition
        assert {name: row[name] for name in condition.labels} == condition.labels
        with applied(model, condition):
            assert torch.equal(row["logits"], logits(model))


def test_further_labels_leave_the_condition_as_it_was():
    plain = Condition()
    assert labelled(plain, group="x", rate=0.1).labels == {**plain.labels, "group": "x", "rate": 0.1}
    assert plain.labels == {"condition": "intact", "group": "", "seed": -1, "n_neurons": 0}
    assert repr(plain) == "Condition(condition='intact', group='', seed=-1, n_neurons=0)"


def test_neurons_that_do_not_fit_are_told(model):
    neurons = chosen(model)
    other = replace(neurons, model_fingerprint="another")
    with pytest.raises(ValueError, match="made for other weights"), applied(model, next(with_controls(other))):
        pass
    with pytest.raises(ValueError, match="made for other weights"):
        check_groups(model, other)
    empty = replace(neurons, masks=torch.stack([neurons.masks[0], torch.zeros_like(neurons.masks[0])]))
    with pytest.raises(ValueError, match="every group must have neurons, got none for 'fr'"):
        check_groups(model, empty)
