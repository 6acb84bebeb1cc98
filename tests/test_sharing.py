import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

import oracles
from mi_multilingual import TYPES, categories, sharing_categories
from mi_multilingual.corpora import Corpus
from mi_multilingual.evidence.sharing import shares_by_chance
from mi_multilingual.models.hooked import run_trunk, site_of
from mi_multilingual.tokens import TOKENS_PER_BATCH


@given(st.integers(2, 6), st.integers(1, 40), st.integers(0, 2**20), st.sampled_from([0.05, 0.5, 0.95]))
def test_every_neuron_has_exactly_the_type_of_its_number_of_languages(k, n, seed, density):
    active = torch.rand(k, n, generator=torch.Generator().manual_seed(seed)) < density
    expected = [oracles.neuron_type(active[:, j].tolist()) for j in range(n)]
    assert [TYPES[i] for i in categories(active).tolist()] == expected


@torch.no_grad()
def activations_alone(model, text, tokens, name="post"):
    """Activation at the last token, or the largest, of one text without padding."""
    reader, seen = site_of(model, name), {}
    ids = [model.tokenizer.bos_token_id, *model.tokenizer(text, add_special_tokens=False)["input_ids"]]
    hooks = [
        (reader.hook_name(i), lambda x, hook, i=i: seen.__setitem__(i, reader.value(x)[0, 1:]))
        for i in range(model.cfg.n_layers)
    ]
    run_trunk(model, torch.tensor([ids]), hooks=hooks)
    values = torch.stack([seen[i] for i in range(model.cfg.n_layers)], dim=1)
    return values[-1] if tokens == "last" else values.amax(0)


def by_hand(model, corpus, threshold, tokens):
    """One table of types an input, by Python sets of neurons."""
    n_inputs = len(next(iter(corpus.documents.values())))
    tables = []
    for i in range(n_inputs):
        active = [activations_alone(model, docs[i], tokens) > threshold for docs in corpus.documents.values()]
        sets = [{tuple(c) for c in a.nonzero().tolist()} for a in active]
        everything = {(layer, j) for layer in range(active[0].shape[0]) for j in range(active[0].shape[1])}
        shared = set.intersection(*sets)
        alone = {c for k, s in enumerate(sets) for c in s if all(c not in o for m, o in enumerate(sets) if m != k)}
        used = set.union(*sets)
        tables.append(
            {
                "all-shared": shared,
                "partial-shared": used - shared - alone,
                "specific": alone,
                "non-activated": everything - used,
                "sets": sets,
            }
        )
    return tables


@pytest.mark.parametrize("tokens", ["last", "any"])
@pytest.mark.parametrize("side", ["left", "right"])
def test_batches_and_either_padding_give_what_single_texts_give(model, corpus, tokens, side, monkeypatch):
    monkeypatch.setattr(model.tokenizer, "padding_side", side)
    thresholds = (0.0, 0.05)
    found = sharing_categories(model, corpus, thresholds=thresholds, tokens=tokens, progress=False)
    n_neurons = model.cfg.d_mlp
    for h, threshold in enumerate(thresholds):
        tables = by_hand(model, corpus, threshold, tokens)
        counts = torch.zeros(found.counts.shape[2:], dtype=torch.int64)
        for table in tables:
            for t, name in enumerate(TYPES):
                for layer, j in table[name]:
                    counts[layer, j, t] += 1
        assert torch.equal(found.counts[0, h], counts)
        shares = found.layer_shares()
        shares = shares[shares.threshold == threshold].set_index(["layer", "type"])
        for layer in range(model.cfg.n_layers):
            for name in TYPES:
                each = [sum(c[0] == layer for c in table[name]) / n_neurons for table in tables]
                row = shares.loc[(layer, name)]
                assert row["mean"] == pytest.approx(np.mean(each), abs=1e-6)
                assert (row["min"], row["max"]) == (pytest.approx(min(each)), pytest.approx(max(each)))
                half = 1.96 * np.std(each, ddof=1) / len(each) ** 0.5
                assert row["high"] - row["mean"] == pytest.approx(half, abs=1e-6)
        overlap = found.overlap(threshold)
        for a, left in enumerate(corpus.languages):
            for b, right in enumerate(corpus.languages):
                mean = np.mean([oracles.jaccard(t["sets"][a], t["sets"][b]) for t in tables])
                assert overlap.loc[left, right] == pytest.approx(mean, abs=1e-6)


def test_the_types_are_a_partition_of_all_neurons_for_each_input(model, corpus):
    found = sharing_categories(model, corpus, progress=False)
    n_inputs = int(found.n_inputs.sum())
    assert (found.counts.sum(dim=-1) == n_inputs).all()
    specific = found.counts[..., TYPES.index("specific")]
    assert torch.equal(found.specific_to.sum(dim=-1), specific)


def test_results_do_not_depend_on_the_size_of_a_batch(model, corpus, monkeypatch):
    together = sharing_categories(model, corpus, progress=False)
    monkeypatch.setitem(TOKENS_PER_BATCH, "prompts", 1)
    alone = sharing_categories(model, corpus, progress=False)
    assert torch.equal(together.counts, alone.counts)
    torch.testing.assert_close(together.squares, alone.squares)


def test_tasks_are_told_apart_and_add_up(model, corpus):
    whole = sharing_categories(model, corpus, progress=False)
    parts = sharing_categories(model, corpus, tasks=["a", "b", "a"], progress=False)
    assert parts.tasks == ("a", "b")
    assert parts.n_inputs.tolist() == [2, 1]
    assert torch.equal(parts.counts.sum(dim=0), whole.counts[0])
    second = sharing_categories(
        model, Corpus({k: (d[1],) for k, d in corpus.documents.items()}, "second"), progress=False
    )
    assert torch.equal(parts.counts[1], second.counts[0])


def test_stability_is_the_share_of_inputs_with_the_most_common_type(model, corpus):
    found = sharing_categories(model, corpus, thresholds=[0.0], progress=False)
    table = found.stability().set_index(["layer", "type"])
    for layer in range(model.cfg.n_layers):
        kept = {name: [] for name in TYPES}
        for row in found.counts[0, 0, layer].tolist():
            kept[TYPES[row.index(max(row))]].append(max(row) / sum(row))
        for name, values in kept.items():
            assert table.loc[(layer, name), "n_neurons"] == len(values)
            if values:
                assert table.loc[(layer, name), "stability"] == pytest.approx(np.mean(values))


def test_repeated_are_the_neurons_that_have_their_type_for_every_input(model, corpus):
    found = sharing_categories(model, corpus, thresholds=[0.0], progress=False)
    tables = by_hand(model, corpus, 0.0, "last")
    repeated = found.repetition().set_index(["layer", "type"]).repeated
    for name in TYPES:
        kept = set.intersection(*[table[name] for table in tables])
        for layer in range(model.cfg.n_layers):
            expected = sum(place[0] == layer for place in kept) / model.cfg.d_mlp
            assert repeated[layer, name] == pytest.approx(expected)


def test_as_released_a_neuron_stays_active_over_inputs_and_languages(model, corpus, monkeypatch):
    monkeypatch.setitem(TOKENS_PER_BATCH, "prompts", 1)
    found = sharing_categories(model, corpus, thresholds=[0.0], tokens="released", progress=False)
    counts, seen = torch.zeros_like(found.counts[0, 0]), set()
    for i in range(3):
        sets = []
        for texts in corpus.documents.values():
            active = activations_alone(model, texts[i], "any") > 0
            seen = seen | {tuple(c) for c in active.nonzero().tolist()}
            sets.append(seen)
        for layer in range(counts.shape[0]):
            for j in range(counts.shape[1]):
                kind = oracles.neuron_type([(layer, j) in active for active in sets])
                counts[layer, j, TYPES.index(kind)] += 1
    assert torch.equal(found.counts[0, 0], counts)


@given(st.lists(st.floats(0, 1), min_size=2, max_size=6))
def test_chance_is_that_of_all_patterns(probabilities):
    found = shares_by_chance(torch.tensor(probabilities, dtype=torch.float64))
    expected = oracles.shares_by_chance(probabilities)
    if len(probabilities) == 2:
        expected["partial-shared"] = 0.0
    assert found.tolist() == pytest.approx([expected[name] for name in TYPES], abs=1e-12)


def test_similar_languages_stand_side_by_side_in_the_overlap_table(model, corpus):
    same = {f"{k}{i}": docs for i in (1, 2) for k, docs in corpus.documents.items()}
    order = list(sharing_categories(model, Corpus(same, "twice"), progress=False).overlap().index)
    for k in corpus.languages:
        assert abs(order.index(f"{k}1") - order.index(f"{k}2")) == 1


@pytest.mark.parametrize(
    ("documents", "options", "message"),
    [
        ({"en": ("a",)}, {}, "at least two languages"),
        ({"en": ("a", "b"), "fr": ("a",)}, {}, "inputs must be parallel, got {'en': 2, 'fr': 1}"),
        ({"en": ("a", "b"), "fr": ("c", "")}, {}, "got 0 for input 1 in 'fr'"),
        ({"en": ("dog " * 99,), "fr": ("a",)}, {}, "got .* for input 0 in 'en'"),
        ({"en": ("a",), "fr": ("b",)}, {"thresholds": [float("nan")]}, "must be finite"),
        ({"en": ("a",), "fr": ("b",)}, {"thresholds": []}, "at least one"),
        ({"en": ("a",), "fr": ("b",)}, {"tokens": "first"}, "tokens must be one of last, any, released, got 'first'"),
        ({"en": ("a",), "fr": ("b",)}, {"tasks": ["x", "y"]}, "2 tasks for 1 inputs"),
    ],
)
def test_mistakes_are_told(ungated, documents, options, message):
    with pytest.raises(ValueError, match=message):
        sharing_categories(ungated, Corpus(documents, "wrong"), progress=False, **options)


def test_activations_that_are_not_finite_are_named(ungated, corpus):
    weight = ungated.blocks[1].mlp.W_in
    before = weight.detach().clone()
    with torch.no_grad():
        weight[:, 5] = torch.nan
    try:
        with pytest.raises(ValueError, match="got nan for neuron 5 in layer 1 for input 0 in 'en'"):
            sharing_categories(ungated, corpus, progress=False)
    finally:
        with torch.no_grad():
            weight.copy_(before)
