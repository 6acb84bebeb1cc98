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
    scores = [choice_log_likelihoods(model, item.prompt, [c])[0].item() for c in item.choices]
    with torch.no_grad():
        for w, b in zip(weights, before, strict=True):
            w.copy_(b)
    return scores[item.answer] - max(s for i, s in enumerate(scores) if i != item.answer)


def study(model, items, neurons=None, **options):
    return deactivation_study(model, items, neurons, **{"seeds": (0,), "progress": False, **options})


@pytest.mark.parametrize("threshold", [0.0, 0.2])
def test_every_question_loses_its_own_neurons_of_a_type(model, threshold):
    items = questions()
    found = study(model, items, threshold=threshold).set_index(["id", "language", "off", "seed"])
    for name in {item.id for item in items}:
        asked = [item for item in items if item.id == name]
        active = torch.stack([last_activations(model, item) for item in asked]) > threshold
        kinds = np.array(
            [[oracles.neuron_type(active[:, i, j].tolist()) for j in range(active.shape[2])] for i in range(2)]
        )
        for kind in TYPES:
            mask = torch.from_numpy(kinds == kind)
            for item in asked:
                row = found.loc[name, item.language, kind, -1]
                assert row.n_neurons == mask.sum()
                assert row.margin == pytest.approx(margin_without(model, item, mask), abs=1e-4)
                assert row.correct == (row.margin > 0)
                assert found.loc[name, item.language, kind, 0].n_neurons == mask.sum()
    assert (found.groupby(["id", "language"]).n_neurons.sum() == 2 * model.cfg.n_layers * model.cfg.d_mlp).all()


def test_intact_answers_are_those_of_the_task(model):
    items = questions(3)
    found = study(model, items)
    intact = found[found.off == "none"]
    assert intact.correct.tolist() == choice_accuracy(model, items, progress=False).correct.tolist()
    assert intact[["id", "language", "task"]].values.tolist() == [[i.id, i.language, i.task] for i in items]
    assert set(intact.seed) == {-1}
    assert set(intact.n_neurons) == {0}
    again = study(model, items)
    pd.testing.assert_frame_equal(found, again)


def test_random_neurons_are_as_many_a_layer_and_others_for_every_question_and_seed(model, monkeypatch):
    from mi_multilingual.studies import deactivation

    drawn = []
    original = deactivation.layer_matched_random

    def watch(neurons, *, seed):
        drawn.append((neurons, original(neurons, seed=seed), seed))
        return drawn[-1][1]

    monkeypatch.setattr(deactivation, "layer_matched_random", watch)
    study(model, questions(), seeds=(0, 1, 5))
    assert len(drawn) == 6
    assert len({seed for *_, seed in drawn}) == 6
    for own, random, _ in drawn:
        assert torch.equal(own.masks.sum(dim=2), random.masks.sum(dim=2))
    assert len({tuple(random.masks.flatten().tolist()) for _, random, _ in drawn}) == 6


def test_groups_are_off_for_every_question(model):
    items, neurons = questions(), groups_of(model)
    found = study(model, items, neurons, seeds=(0, 3)).set_index(["id", "language", "off", "seed"])
    assert len(found) == len(items) * (1 + 2 * 3)
    for item in items:
        for group in neurons.groups:
            row = found.loc[item.id, item.language, group, -1]
            mask = neurons[group].union()
            assert row.n_neurons == mask.sum() == found.loc[item.id, item.language, group, 3].n_neurons
            assert row.margin == pytest.approx(margin_without(model, item, mask), abs=1e-4)
            assert found.loc[item.id, item.language, group, 0].margin != row.margin


def test_columns_of_attention_can_be_off(model):
    n_heads = getattr(model.cfg, "n_key_value_heads", None) or model.cfg.n_heads
    masks = torch.ones(1, model.cfg.n_layers, n_heads * model.cfg.d_head) > 0
    found = study(model, questions(), NeuronSet(masks, ("everything",), "test", part="v"))
    values = found.groupby(["off", "seed"]).margin.apply(list)
    assert values["everything", -1] != values["none", -1]
    # Of everything there is only one draw.
    assert values["everything", 0] == values["everything", -1]


def test_with_two_languages_nothing_is_partly_shared_and_nothing_changes(model):
    found = study(model, questions(languages=("en", "ja")))
    partial, intact = found[found.off == "partial-shared"], found[found.off == "none"]
    assert (partial.n_neurons == 0).all()
    assert partial[partial.seed == 0].margin.tolist() == intact.margin.tolist()
    effects = deactivation_effects(found).query("off == 'partial-shared'")
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


@st.composite
def answer_tables(draw):
    """Answers to parallel questions in two or three languages, with ties, no spread and huge margins."""
    n_items, n_seeds = draw(st.integers(1, 5)), draw(st.integers(1, 3))
    languages = LANGUAGES[: draw(st.integers(1, 3))]
    margins = st.one_of(st.floats(-3, 3), st.sampled_from([0.0, 1e6, -1e6, 0.5]))
    conditions = [("none", -1)] + [(off, seed) for off in ("a", "b") for seed in (-1, *range(n_seeds))]
    rows = []
    for i in range(n_items):
        for k in languages:
            for off, seed in conditions:
                m = draw(margins)
                size = 0 if off == "none" else draw(st.integers(0, 9))
                rows.append((f"q{i}", k, "test", off, seed, size, m > 0, m))
    order = draw(st.permutations(range(len(rows))))
    columns = ["id", "language", "task", "off", "seed", "n_neurons", "correct", "margin"]
    return pd.DataFrame([rows[i] for i in order], columns=columns)


@settings(max_examples=20)
@given(answers=answer_tables())
def test_effects_are_means_and_paired_intervals(answers):
    found = deactivation_effects(answers)
    languages = [*answers.language.unique(), "all"]
    cells = {(off, k, m) for off in ("a", "b") for k in languages for m in ("accuracy", "margin")}
    assert {(r.off, r.language, r.measure) for r in found.itertuples()} == cells
    assert len(found) == len(cells)
    n = answers.id.nunique()
    draws = np.random.default_rng(0).multinomial(n, np.full(n, 1 / n), size=RESAMPLES).tolist()
    records = answers.to_dict("records")
    for row in found.to_dict("records"):
        expected = oracles.deactivation_effect(records, row["off"], row["language"], row["measure"], draws)
        for name, value in expected.items():
            assert row[name] == pytest.approx(value, rel=1e-9, abs=1e-6), name


def test_what_random_neurons_do_too_is_not_beyond_them():
    rows = [
        (f"q{i}", k, "t", off, seed, 5, m > 0, m)
        for i in range(4)
        for k in ("en", "fr")
        for off, seed, m in [("none", -1, 2.0), ("x", -1, -1.0), ("x", 0, 1.5), ("x", 1, 0.5)]
    ]
    columns = ["id", "language", "task", "off", "seed", "n_neurons", "correct", "margin"]
    found = deactivation_effects(pd.DataFrame(rows, columns=columns)).set_index(["language", "measure"])
    row = found.loc["en", "margin"]
    assert (row.intact, row.value, row.random) == (2.0, -1.0, 1.0)
    assert (row.change, row.random_change, row.beyond) == (-3.0, -1.0, -2.0)
    assert (row.low, row.high, row.n_items, row.n_neurons) == (-3.0, -3.0, 4, 5)
    assert found.loc["all", "accuracy"].beyond == -1.0


def answers_of(**columns):
    rows = [("q", k, "t", off, seed, 1, True, 1.0) for k in ("en", "fr") for off, seed in (("none", -1), ("x", -1))]
    names = ["id", "language", "task", "off", "seed", "n_neurons", "correct", "margin"]
    return pd.DataFrame(rows, columns=names).assign(**columns)


def test_answers_that_are_not_whole_are_told():
    whole = answers_of()
    for match, wrong in {
        "none with all on": whole[whole.off == "x"],
        "no answer is there with neurons off": whole[whole.off == "none"],
        "a language is called 'all'": answers_of(language=["en", "en", "all", "all"]),
        "the margin of 'q' in 'en' with 'x' off is nan": answers_of(margin=[1.0, np.nan, 1.0, 1.0]),
        "every question needs one answer": whole.iloc[:3],
        "every question needs one answer in each language": pd.concat([whole, whole.iloc[:1]]),
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
        "there are no items": ([], None, {}),
        "not parallel: 'q1' is not there in ja": (items[:-1], None, {}),
        "'q0' is there twice in 'en'": ([*items, items[0]], None, {}),
        "'q0' \\(en\\) has no wrong choice": ([replace(items[0], choices=("a",), answer=0), *items[1:]], None, {}),
        "the items are all in 'en'": (questions(languages=("en",)), None, {}),
        "threshold=nan must be a finite number": (items, None, {"threshold": float("nan")}),
        "threshold=inf must be a finite number": (items, None, {"threshold": float("inf")}),
        "seeds=\\(\\): give at least one": (items, None, {"seeds": ()}),
        "seeds=\\(-1, 0\\)": (items, neurons, {"seeds": (-1, 0)}),
        "seeds=\\(2, 2\\)": (items, neurons, {"seeds": (2, 2)}),
        "has \\d+ tokens, the model takes": (long, None, {}),
        "input 1 has 0 tokens in 'fr'": (nothing, None, {}),
        "no neurons for 'en'; leave": (items, replace(neurons, masks=torch.zeros_like(neurons.masks)), {}),
        "made for other weights": (items, replace(neurons, model_fingerprint="x"), {}),
        "load the model the set was made for": (items, NeuronSet(torch.ones(shape) > 0, ("en",), "m"), {}),
        "a group is called 'none'": (items, replace(neurons, groups=("none", "fr")), {}),
    }.items():
        asked, sets, options = wrong
        with pytest.raises(ValueError, match=match):
            study(model, asked, sets, **options)
    with pytest.raises(ValueError, match="no neurons for 'de'"):
        neurons.take(["de"])
