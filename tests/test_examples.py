import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

import checkpoints
import oracles
from mi_multilingual import NeuronSet, logit_effects, top_examples
from mi_multilingual.analysis.examples import AFTER, BEFORE, Highest, highest_tokens, text_reader, vocabulary_text
from mi_multilingual.models.hooked import fingerprint, run_trunk, site_of
from mi_multilingual.tokens import TOKENS_PER_BATCH, Reading, TokenRows, token_rows

LANGUAGES = ("en", "fr", "ja")
WINDOW = 9
READING = Reading(window=WINDOW)


def chosen(model, rate=0.3):
    shape = (3, model.cfg.n_layers, model.cfg.d_mlp)
    masks = torch.rand(shape, generator=torch.Generator().manual_seed(3)) < rate
    return NeuronSet(masks, LANGUAGES, "lape", {}, "tiny", fingerprint(model))


def whole_activations(model, rows, name, layer):
    """(row, position, neuron) of all rows at once."""
    reader, seen = site_of(model, name), []
    run_trunk(model, rows.tokens, hooks=[(reader.hook_name(layer), lambda value, hook: seen.append(value.clone()))])
    return reader.value(seen[0])


@torch.no_grad()
@pytest.mark.parametrize(("layout", "name"), [("stream", "gate"), ("documents", "post")])
def test_examples_are_the_highest_tokens_of_all(model, corpus, layout, name, monkeypatch):
    monkeypatch.setitem(TOKENS_PER_BATCH, "statistics", 2 * WINDOW)
    neurons = chosen(model)
    options = {"site": name, "reading": Reading(window=WINDOW, layout=layout), "progress": False}
    table = top_examples(model, corpus, neurons, n=3, **options)
    n_compared = 0
    for language in corpus.languages:
        rows = token_rows(corpus, language, model.tokenizer, Reading(window=WINDOW, layout=layout))
        for layer in range(model.cfg.n_layers):
            activation = whole_activations(model, rows, name, layer)
            for j in neurons.union()[layer].nonzero().flatten().tolist():
                ours = table[(table.language == language) & (table.layer == layer) & (table.neuron == j)]
                expected = oracles.highest_tokens(activation[..., j].tolist(), rows.valid.tolist(), 3)
                assert ours["rank"].tolist() == list(range(1, len(expected) + 1))
                assert ours.activation.tolist() == pytest.approx([value for value, _, _ in expected], abs=1e-5)
                assert ours.document.tolist() == [int(rows.document[row]) for _, row, _ in expected]
                for example, (_, row, pos) in zip(ours.itertuples(), expected, strict=True):
                    around = [
                        i for i in range(pos - BEFORE, pos + AFTER + 1) if 0 <= i < WINDOW and i < rows.tokens.shape[1]
                    ]
                    around = [i for i in around if rows.valid[row, i]]
                    assert example.peak == around.index(pos)
                    assert example.activations == pytest.approx(activation[row, around, j].tolist(), abs=1e-5)
                    assert "".join(example.tokens) == model.tokenizer.decode(rows.tokens[row, around])
                n_compared += len(expected)
    assert n_compared == len(table) > 50


@given(st.data())
def test_streaming_keeps_what_all_at_once_would(data):
    n_rows, width, n_neurons, k = (data.draw(st.integers(1, n)) for n in (7, 20, 3, 4))
    # Few distinct values, so that many tie.
    values = st.lists(st.sampled_from([-1.0, 0.0, 0.5, 2.0]), min_size=n_neurons, max_size=n_neurons)
    activation = torch.tensor([[data.draw(values) for _ in range(width)] for _ in range(n_rows)])
    valid = torch.tensor([[True] + [data.draw(st.booleans()) for _ in range(width - 1)] for _ in range(n_rows)])
    tokens = torch.arange(n_rows * width).view(n_rows, width)
    rows = TokenRows("en", tokens, valid, tokens, torch.arange(n_rows))
    cut = data.draw(st.integers(0, n_rows))
    kept = Highest.zeros(n_neurons)
    for part in (slice(0, cut), slice(cut, n_rows)):
        if len(tokens[part]):
            batch = TokenRows("en", tokens[part], valid[part], tokens[part], rows.document[part])
            kept = (kept + highest_tokens(activation[part], batch, k)).best(k)
    for j in range(n_neurons):
        expected = oracles.highest_tokens(activation[..., j].tolist(), valid.tolist(), k)
        positive = int((kept.value[j] > 0).sum())
        ours = [
            (kept.value[j, i].item(), int(kept.document[j, i]), int(kept.tokens[j, i, BEFORE])) for i in range(positive)
        ]
        assert ours == [(value, row, row * width + pos) for value, row, pos in expected]


@torch.no_grad()
def test_logit_effects_are_the_row_through_norm_and_unembedding(model):
    neurons = chosen(model, rate=0.08)
    table = logit_effects(model, neurons, n=4)
    weight = model.ln_final.weight if hasattr(model.ln_final, "weight") else model.ln_final.w
    for (layer, j), part in table.groupby(["layer", "neuron"]):
        row = model.blocks[layer].mlp.W_out[j].tolist()
        centres = model.cfg.normalization_type == "LN"
        effects = oracles.logit_effect(row, weight.tolist(), centres, model.W_U.T.tolist())
        promoted, suppressed = part[part.direction == "promoted"], part[part.direction == "suppressed"]
        assert promoted.effect.tolist() == pytest.approx(sorted(effects)[::-1][:4], abs=1e-4)
        assert suppressed.effect.tolist() == pytest.approx(sorted(effects)[:4], abs=1e-4)
        best = max(range(len(effects)), key=effects.__getitem__)
        assert promoted.token.iloc[0] == vocabulary_text(model.tokenizer, best)
    assert len(table) == 8 * int(neurons.union().sum())


def test_planted_neurons_promote_words_of_their_language():
    from mi_multilingual import planted_model

    planted = planted_model(n_languages=3)
    for language in planted.causal.groups:
        table = logit_effects(planted.model, planted.causal[language], n=5)
        promoted = table[table.direction == "promoted"].token.str.strip()
        assert promoted.str.startswith(f"{language}w").all()


def test_the_texts_of_tokens_read_as_the_text(tmp_path):
    tokenizer = checkpoints.tokenizer(tmp_path)
    texts_of = text_reader(tokenizer)
    for text in ("Les chiens 犬が dorment  ici, 鬱蒼 ici\n", "déjà 😀😀 vu", ""):
        ids = tokenizer(text, add_special_tokens=False)["input_ids"]
        pieces = texts_of(ids)
        assert "".join(pieces) == text
        assert len(pieces) == len(ids)
    ids = tokenizer("鬱犬", add_special_tokens=False)["input_ids"]
    assert "犬" in "".join(texts_of(ids[1:])), "a text may begin within a character"


def test_a_token_that_is_no_character_goes_by_its_name(tmp_path):
    tokenizer = checkpoints.tokenizer(tmp_path)
    first, *_ = tokenizer("鬱", add_special_tokens=False)["input_ids"]
    assert vocabulary_text(tokenizer, first) == tokenizer.convert_ids_to_tokens(first)
    sleeps, *_ = tokenizer(" dort", add_special_tokens=False)["input_ids"]
    assert vocabulary_text(tokenizer, sleeps) == tokenizer.decode([sleeps]) != ""
    assert vocabulary_text(tokenizer, 9999) == "token 9999"


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"n": 0}, "n must be at least 1 example per neuron and language, got 0"),
        (
            {"masks": torch.ones(3, 2, 5, dtype=torch.bool)},
            "must be of 2 layers x 24 mlp neurons, got 2 x 5",
        ),
        ({"model_fingerprint": "other"}, "made for other weights"),
        ({"part": "q"}, "neurons must be of the MLP, got part 'q'"),
    ],
)
def test_what_does_not_fit_is_refused(ungated, corpus, change, message):
    from dataclasses import replace

    n = change.pop("n", 2)
    with pytest.raises(ValueError, match=message):
        top_examples(ungated, corpus, replace(chosen(ungated), **change), n=n, reading=READING, progress=False)


def test_more_tokens_than_half_of_the_vocabulary_are_refused(ungated):
    with pytest.raises(ValueError, match="n must be a number of tokens from 1 to 200, half of the vocabulary, got 201"):
        logit_effects(ungated, chosen(ungated), n=201)


def test_activations_that_are_not_finite_are_refused(tmp_path, corpus):
    from mi_multilingual import load_model

    broken = load_model(checkpoints.checkpoint("opt", tmp_path), device="cpu")
    broken.blocks[1].mlp.b_in.data[4] = torch.inf
    masks = torch.ones(3, 2, checkpoints.D_MLP, dtype=torch.bool)
    with pytest.raises(ValueError, match="neuron 4 in layer 1 are not finite on 'en'"):
        top_examples(broken, corpus, NeuronSet(masks, LANGUAGES, "all"), reading=READING, progress=False)


def test_an_empty_set_gives_empty_tables(ungated, corpus):
    none = NeuronSet(torch.zeros(3, 2, checkpoints.D_MLP, dtype=torch.bool), LANGUAGES, "none")
    assert top_examples(ungated, corpus, none, reading=READING, progress=False).empty
    assert logit_effects(ungated, none).empty
