from dataclasses import replace

import numpy as np
import pandas as pd
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

import checkpoints
import oracles
from mi_multilingual import (
    TYPES,
    Item,
    NeuronSet,
    choice_accuracy,
    deactivation_effects,
    deactivation_study,
    load_model,
)
from mi_multilingual.evaluation.intervals import RESAMPLES
from mi_multilingual.evaluation.tasks import choice_log_likelihoods
from mi_multilingual.models.hooked import fingerprint
from mi_multilingual.tokens import prefix_ids

CHOICES = {"en": (" tree.", " river.", " boat"), "fr": (" arbre.", " chien", " thé."), "ja": ("木", "川を", "犬が")}
LANGUAGES = tuple(CHOICES)


def questions(n=2, languages=LANGUAGES):
    """The sentences of the tests as questions, right answers spread over the choices."""
    return [
        Item(f"q{i}", k, "test", " ".join(checkpoints.SENTENCES[k][i].split()[:3])[:9], CHOICES[k], (i + j) % 3)
        for i in range(n)
        for j, k in enumerate(languages)
    ]


def groups_of(model, density=0.3, groups=("en", "fr")):
    shape = (len(groups), model.cfg.n_layers, model.cfg.d_mlp)
    masks = torch.rand(shape, generator=torch.Generator().manual_seed(1)) < density
    return NeuronSet(masks, groups, "test", model_fingerprint=fingerprint(model))


def last_activations(model, item):
    """`hook_post` at the last token of the prompt, without a batch or padding."""
    tok = model.tokenizer
    tokens = torch.tensor([[tok.bos_token_id, *tok(item.prompt, add_special_tokens=False)["input_ids"]]])
    with torch.no_grad():
        _, cache = model.run_with_cache(tokens)
    return torch.stack([cache[f"blocks.{i}.mlp.hook_post"][0, -1] for i in range(model.cfg.n_layers)])


def margin_without(model, item, mask):
    """The right answer's lead with the output weights of the chosen neurons at zero, put back afterwards."""
    weights = [model.blocks[layer].mlp.W_out for layer in range(model.cfg.n_layers)]
    before = [w.detach().clone() for w in weights]
    with torch.no_grad():
        for w, m in zip(weights, mask, strict=True):
            w[m] = 0.0
    scores = [choice_log_likelihoods(model, item.prompt, [c], bos="row")[0].item() for c in item.choices]
    with torch.no_grad():
        for w, b in zip(weights, before, strict=True):
            w.copy_(b)
    return scores[item.answer] - max(s for i, s in enumerate(scores) if i != item.answer)


def study(model, items, neurons=None, **options):
    return deactivation_study(model, items, neurons, **{"seeds": (0,), "bos": "row", "progress": False, **options})


@pytest.mark.parametrize("threshold", [0.0, 0.2])
def test_every_question_loses_its_own_neurons_of_a_type(model, threshold):
    items = questions()
    found = study(model, items, threshold=threshold).set_index(["id", "language", "group", "condition", "seed"])
    for name in {item.id for item in items}:
        asked = [item for item in items if item.id == name]
        active = torch.stack([last_activations(model, item) for item in asked]) > threshold
        kinds = np.array(
            [[oracles.neuron_type(active[:, i, j].tolist()) for j in range(active.shape[2])] for i in range(2)]
        )
        for kind in TYPES:
            mask = torch.from_numpy(kinds == kind)
            for item in asked:
                row = found.loc[name, item.language, kind, "chosen", -1]
                assert row.n_neurons == mask.sum()
                assert row.margin == pytest.approx(margin_without(model, item, mask), abs=1e-4)
                assert row.correct == (row.margin > 0)
                assert found.loc[name, item.language, kind, "random", 0].n_neurons == mask.sum()
    assert (found.groupby(["id", "language"]).n_neurons.sum() == 2 * model.cfg.n_layers * model.cfg.d_mlp).all()


def test_intact_answers_are_those_of_the_task(model):
    items = questions(3)
    found = study(model, items)
    intact = found[found.condition == "intact"]
    alone = choice_accuracy(model, items, bos="row", progress=False)
    assert intact.correct.tolist() == alone.correct.tolist()
    assert set(intact.group) == {""}
    assert intact[["id", "language", "task"]].values.tolist() == [[i.id, i.language, i.task] for i in items]
    assert set(intact.seed) == {-1}
    assert set(intact.n_neurons) == {0}
    again = study(model, items)
    pd.testing.assert_frame_equal(found, again)


def test_random_neurons_are_as_many_per_layer_and_others_for_every_question_and_seed(model, monkeypatch):
    from mi_multilingual.patching import conditions

    drawn = []
    original = conditions.layer_matched_random

    def watch(neurons, *, seed):
        drawn.append((neurons, original(neurons, seed=seed), seed))
        return drawn[-1][1]

    monkeypatch.setattr(conditions, "layer_matched_random", watch)
    study(model, questions(), seeds=(0, 1, 5))
    assert len(drawn) == 6
    assert len({seed for *_, seed in drawn}) == 6
    for own, random, _ in drawn:
        assert torch.equal(own.masks.sum(dim=2), random.masks.sum(dim=2))
    assert len({tuple(random.masks.flatten().tolist()) for _, random, _ in drawn}) == 6


def test_groups_are_off_for_every_question(model):
    items, neurons = questions(), groups_of(model)
    found = study(model, items, neurons, seeds=(0, 3)).set_index(["id", "language", "group", "condition", "seed"])
    assert len(found) == len(items) * (1 + 2 * 3)
    for item in items:
        for group in neurons.groups:
            row, *random = (found.loc[item.id, item.language, group, *which] for which in under([0, 3]))
            mask = neurons[group].union()
            assert row.n_neurons == mask.sum() == random[1].n_neurons
            assert row.margin == pytest.approx(margin_without(model, item, mask), abs=1e-4)
            assert random[0].margin != row.margin


def test_languages_and_groups_may_be_called_like_controls(model):
    items, neurons = questions(), groups_of(model, groups=LANGUAGES)
    names = dict(zip(LANGUAGES, ("none", "random", "all"), strict=True))
    renamed = [replace(item, language=names[item.language]) for item in items]
    for own in (None, neurons):
        plain = study(model, items, own)
        found = study(model, renamed, own and replace(own, groups=tuple(names.values())))
        expected = plain.assign(group=plain.group.replace(names), language=plain.language.replace(names))
        pd.testing.assert_frame_equal(found, expected)
        effects = deactivation_effects(plain)
        expected = effects.assign(group=effects.group.replace(names), language=effects.language.replace(names))
        pd.testing.assert_frame_equal(deactivation_effects(found), expected)


def test_special_tokens_stand_in_front_as_asked(model):
    items, own = questions(), "row" if prefix_ids(model.tokenizer) else "none"
    for neurons in (None, groups_of(model)):
        found = {bos: study(model, items, neurons, bos=bos).margin.tolist() for bos in ("tokenizer", "none", "row")}
        assert found["tokenizer"] == found[own]
        assert found["none"] != found["row"]


def test_columns_of_attention_can_be_off(model):
    n_heads = getattr(model.cfg, "n_key_value_heads", None) or model.cfg.n_heads
    masks = torch.ones(1, model.cfg.n_layers, n_heads * model.cfg.d_head) > 0
    found = study(model, questions(), NeuronSet(masks, ("everything",), "test", part="v"))
    values = found.groupby("condition").margin.apply(list)
    assert values["chosen"] != values["intact"]
    # Of everything there is only one draw.
    assert values["random"] == values["chosen"]


def test_with_two_languages_nothing_is_partly_shared_and_nothing_changes(model):
    found = study(model, questions(languages=("en", "ja")))
    partial, intact = found[found.group == "partial-shared"], found[found.condition == "intact"]
    assert (partial.n_neurons == 0).all()
    assert partial[partial.seed == 0].margin.tolist() == intact.margin.tolist()
    effects = deactivation_effects(found).query("group == 'partial-shared'")
    assert (effects[["change", "low", "high", "beyond", "beyond_low", "beyond_high"]] == 0).all(axis=None)


def test_the_model_is_left_as_it_was(model):
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    n_hooks = sum(len(point.fwd_hooks) for point in model.hook_dict.values())  # a bridge has some of its own
    study(model, questions(1), groups_of(model))
    assert all(torch.equal(tensor, before[name]) for name, tensor in model.state_dict().items())
    assert sum(len(point.fwd_hooks) for point in model.hook_dict.values()) == n_hooks


@pytest.mark.filterwarnings("ignore:.*has no HookedTransformer")
def test_both_kinds_of_model_answer_alike(tmp_path):
    folder = checkpoints.checkpoint("llama-grouped", tmp_path)
    both = [study(load_model(folder, backend=b, device="cpu"), questions()) for b in ("auto", "bridge")]
    pd.testing.assert_frame_equal(*both, atol=1e-4)


GROUPS = ("none", "b")
COLUMNS = ["id", "language", "task", "condition", "group", "seed", "n_neurons", "correct", "margin"]


def under(seeds):
    """Conditions and seeds of a group's neurons and of random ones."""
    return [("chosen", -1), *(("random", seed) for seed in seeds)]


@st.composite
def answer_tables(draw):
    """Answers to parallel questions in two or three languages, with ties, no spread and huge margins."""
    n_items, n_seeds = draw(st.integers(1, 5)), draw(st.integers(1, 3))
    languages = LANGUAGES[: draw(st.integers(1, 3))]
    margins = st.one_of(st.floats(-3, 3), st.sampled_from([0.0, 1e6, -1e6, 0.5]))
    conditions = [("intact", "", -1)] + [(c, g, s) for g in GROUPS for c, s in under(range(n_seeds))]
    rows = []
    for i in range(n_items):
        for k in languages:
            for condition, group, seed in conditions:
                m = draw(margins)
                size = 0 if condition == "intact" else draw(st.integers(0, 9))
                rows.append((f"q{i}", k, "test", condition, group, seed, size, m > 0, m))
    order = draw(st.permutations(range(len(rows))))
    return pd.DataFrame([rows[i] for i in order], columns=COLUMNS)


@settings(max_examples=20)
@given(answers=answer_tables())
def test_effects_are_means_and_paired_intervals(answers):
    found = deactivation_effects(answers)
    languages = [*answers.language.unique(), ""]
    cells = {(group, k, m) for group in GROUPS for k in languages for m in ("accuracy", "margin")}
    assert {(r.group, r.language, r.measure) for r in found.itertuples()} == cells
    assert len(found) == len(cells)
    n = answers.id.nunique()
    draws = np.random.default_rng(0).multinomial(n, np.full(n, 1 / n), size=RESAMPLES).tolist()
    records = answers.to_dict("records")
    for row in found.to_dict("records"):
        expected = oracles.deactivation_effect(records, row["group"], row["language"], row["measure"], draws)
        for name, value in expected.items():
            assert row[name] == pytest.approx(value, rel=1e-9, abs=1e-6), name


def test_what_random_neurons_do_too_is_not_beyond_them():
    rows = [
        (f"q{i}", k, "t", condition, "" if condition == "intact" else "x", seed, 5, m > 0, m)
        for i in range(4)
        for k in ("en", "fr")
        for condition, seed, m in [("intact", -1, 2.0), ("chosen", -1, -1.0), ("random", 0, 1.5), ("random", 1, 0.5)]
    ]
    found = deactivation_effects(pd.DataFrame(rows, columns=COLUMNS)).set_index(["language", "measure"])
    row = found.loc["en", "margin"]
    assert (row.intact, row.value, row.random) == (2.0, -1.0, 1.0)
    assert (row.change, row.random_change, row.beyond) == (-3.0, -1.0, -2.0)
    assert (row.low, row.high, row.n_items, row.n_neurons) == (-3.0, -3.0, 4, 5)
    assert found.loc["", "accuracy"].beyond == -1.0


def answers_of(**columns):
    conditions = [("intact", "", -1), *((name, "x", seed) for name, seed in under([0]))]
    rows = [("q", k, "t", *condition, 1, True, 1.0) for k in ("en", "fr") for condition in conditions]
    return pd.DataFrame(rows, columns=COLUMNS).assign(**columns)


def test_answers_that_are_not_whole_are_told():
    whole = answers_of()
    for match, wrong in {
        "of every condition, got none that is 'intact'": whole[whole.group == "x"],
        "of every condition, got none that is 'chosen'": whole[whole.condition == "intact"],
        "of every condition, got none that is 'random'": whole[whole.condition != "random"],
        "every language must have a name, got ''": answers_of(language=["en"] * 3 + [""] * 3),
        r"must be finite, got nan for 'q' in 'en' \(chosen, 'x'\)": answers_of(
            margin=[1.0, np.nan, 1.0, 1.0, 1.0, 1.0]
        ),
        "every question must have one answer": whole.iloc[:5],
        "every question must have one answer in each language": pd.concat([whole, whole.iloc[:1]]),
    }.items():
        with pytest.raises(ValueError, match=match):
            deactivation_effects(wrong)


def test_mistakes_are_told_before_anything_runs(model, monkeypatch):
    items, neurons = questions(), groups_of(model)
    monkeypatch.setattr(type(model), "forward", lambda *a, **k: pytest.fail("the model ran"))
    long = [replace(item, prompt="x " * 3000) if item.id == "q1" else item for item in items]
    nothing = [replace(item, prompt="") if (item.id, item.language) == ("q1", "fr") else item for item in items]
    shape = (1, model.cfg.n_layers, model.cfg.d_mlp + 1)
    for match, wrong in {
        "items must hold at least one question, got none": ([], None, {}),
        "not parallel: 'q1' is not there in ja": (items[:-1], None, {}),
        "'q0' is there twice in 'en'": ([*items, items[0]], None, {}),
        r"at least two choices, got 1 for 'q0' \(en\)": (
            [replace(items[0], choices=("a",), answer=0), *items[1:]],
            None,
            {},
        ),
        "at least two languages to share neurons, got 'en' only": (questions(languages=("en",)), None, {}),
        "threshold must be a finite number, got nan": (items, None, {"threshold": float("nan")}),
        "threshold must be a finite number, got inf": (items, None, {"threshold": float("inf")}),
        "seeds must hold at least one number, got none": (items, None, {"seeds": ()}),
        r"seeds must be different numbers from 0, got \(-1, 0\)": (items, neurons, {"seeds": (-1, 0)}),
        r"seeds must be different numbers from 0, got \(2, 2\)": (items, neurons, {"seeds": (2, 2)}),
        "has \\d+ tokens, the model takes": (long, None, {}),
        "got 0 for input 1 in 'fr'": (nothing, None, {}),
        "every group must have neurons, got none for 'en'; leave": (
            items,
            replace(neurons, masks=torch.zeros_like(neurons.masks)),
            {},
        ),
        "made for other weights": (items, replace(neurons, model_fingerprint="x"), {}),
        "load the model the set was made for": (items, NeuronSet(torch.ones(shape) > 0, ("en",), "m"), {}),
    }.items():
        asked, sets, options = wrong
        with pytest.raises(ValueError, match=match):
            study(model, asked, sets, **options)
    with pytest.raises(ValueError, match="no neurons for 'de'"):
        neurons.take(["de"])
