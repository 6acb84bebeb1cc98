from dataclasses import replace

import numpy as np
import pandas as pd
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

import oracles
from claims import representations as claims
from claims.claim import HOLDS, OPEN, verdict
from mi_multilingual import (
    NeuronSet,
    Reading,
    Representations,
    cka,
    dominance,
    layer_means,
    mexa,
    middle_and_ends,
    record_representations,
    representation_effects,
    representation_study,
    retrieval,
    sentence_similarity,
    u_shape,
)
from mi_multilingual.analysis.similarity import centred_alignment, chance_similarity, gram, unit
from mi_multilingual.corpora import Corpus
from mi_multilingual.models.hooked import run_trunk
from mi_multilingual.report.sections import representations as sections
from mi_multilingual.studies.representations import MEASURES
from mi_multilingual.tokens import DOCUMENTS

NUMBERS = st.sampled_from([-3.0, -1.0, -0.5, 0.0, 0.25, 1.0, 2.0, 1e3])


def of(values, languages=None):
    values = torch.as_tensor(values, dtype=torch.float32)
    return Representations(values, languages or ("en", "fr", "ja")[: values.shape[1]], "mean", "m", "f", "c", DOCUMENTS)


def random_vectors(*shape, seed=0):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


@st.composite
def two_languages(draw, least=4):
    n, width = draw(st.integers(least, 6)), draw(st.integers(1, 3))
    row = st.lists(NUMBERS, min_size=width, max_size=width)
    return [draw(st.lists(row, min_size=n, max_size=n)) for _ in range(2)]


def by_hand(model, text, pooling, window, bos="tokenizer"):
    """One sentence's vector of every layer, read alone window by window."""
    ids = model.tokenizer(text, add_special_tokens=False)["input_ids"]
    front = [model.tokenizer.bos_token_id]
    parts = []
    for start in range(0, len(ids), window - 1):
        seen = {}
        names = ["blocks.0.hook_resid_pre", *(f"blocks.{i}.hook_resid_post" for i in range(model.cfg.n_layers))]
        hooks = [(n, lambda x, hook, i=i, seen=seen: seen.__setitem__(i, x[0].double())) for i, n in enumerate(names)]
        with torch.no_grad():
            run_trunk(model, torch.tensor([front + ids[start : start + window - 1]]), hooks=hooks)
        parts.append(torch.stack([seen[i] for i in range(len(names))]))
    if pooling == "weighted":
        whole = torch.cat(parts, dim=1)
        weights = torch.arange(1, whole.shape[1] + 1).double()
        return (whole * weights[:, None]).sum(dim=1) / weights.sum()
    own = torch.cat([part[:, 1:] for part in parts], dim=1)
    return own.mean(dim=1) if pooling == "mean" else own[:, -1]


@pytest.mark.parametrize("pooling", ["mean", "weighted", "last"])
@pytest.mark.parametrize("window", [7, 32])
def test_vectors_are_those_of_each_sentence_read_alone(model, corpus, pooling, window):
    reading = Reading(layout="documents", window=window)
    found = record_representations(model, corpus, pooling=pooling, reading=reading, progress=False)
    assert found.values.shape == (model.cfg.n_layers + 1, 3, 3, model.cfg.d_model)
    for k, texts in enumerate(corpus.documents.values()):
        for i, text in enumerate(texts):
            expected = by_hand(model, text, pooling, window).float()
            torch.testing.assert_close(found.values[:, k, i], expected, atol=1e-5, rtol=1e-4)


def test_shards_of_sentences_add_up(ungated, corpus):
    whole = record_representations(ungated, corpus, progress=False)
    parts = [Corpus({k: d[i : i + 1] for k, d in corpus.documents.items()}, "s") for i in range(3)]
    joined = sum(record_representations(ungated, part, progress=False) for part in parts)
    torch.testing.assert_close(joined.values, whole.values, atol=1e-5, rtol=1e-4)
    with pytest.raises(ValueError, match="pooling must be the same in all Representations"):
        whole + replace(whole, pooling="last")


@given(two_languages())
def test_similarity_retrieval_and_mexa_are_those_of_every_pair_of_sentences(vectors):
    one, other = vectors
    found = of([vectors])
    table = sentence_similarity(found).set_index("measure").value
    similarity, floor = oracles.similarity_and_floor(one, other)
    assert table["similarity"] == pytest.approx(similarity, abs=1e-6)
    assert table["floor"] == pytest.approx(floor, abs=1e-6)
    assert table["corrected"] == pytest.approx(similarity - floor, abs=1e-6)
    there, back = oracles.retrieved(one, other), oracles.retrieved(other, one)
    assert retrieval(found).value.tolist() == pytest.approx([np.mean(there), np.mean(back)])
    both = [a and b for a, b in zip(there, back, strict=True)]
    assert mexa(found).value.tolist() == pytest.approx([np.mean(both)])


@pytest.mark.parametrize("unbiased", [False, True])
@settings(max_examples=25)
@given(vectors=two_languages(least=5))
def test_cka_is_that_of_every_entry(vectors, unbiased):
    one, other = ([[x + 0.01 * (i + j) ** 2 for j, x in enumerate(row)] for i, row in enumerate(v)] for v in vectors)
    alike = [oracles.linear_cka(v, v, False) for v in (one, other)]
    assert alike == pytest.approx([1.0, 1.0])
    grams = [gram(torch.tensor(v, dtype=torch.float64), unbiased=unbiased) for v in (one, other)]
    found = centred_alignment(*grams, unbiased=unbiased).mean().item()
    try:
        expected = oracles.linear_cka(one, other, unbiased)
    except (ValueError, ZeroDivisionError):  # an unbiased spread below zero has no root
        return
    assert found == pytest.approx(expected, abs=1e-5, rel=1e-5)


@pytest.mark.parametrize("unbiased", [False, True])
def test_cka_does_not_see_turns_and_scale_and_is_low_for_what_has_nothing_in_common(unbiased):
    one = random_vectors(200, 8)
    turn, _ = torch.linalg.qr(random_vectors(8, 8, seed=1))
    table = cka(of(torch.stack([one, 3 * one @ turn + 5, random_vectors(200, 8, seed=2)])[None]), unbiased=unbiased)
    same, *apart = table.value
    assert same == pytest.approx(1, abs=1e-5)
    assert max(apart) < 0.12
    assert not unbiased or (table.low[1:] < 0.0).all()


def test_a_sentence_counts_as_much_as_leaving_it_out_changes_the_measure():
    one, other = random_vectors(60, 5), random_vectors(60, 5, seed=1)
    other = one + other
    floor = chance_similarity(unit(one), unit(other))
    aligned = centred_alignment(gram(one), gram(other))
    for i in (0, 7, 30):
        rest = [j for j in range(60) if j != i]
        less = chance_similarity(unit(one[rest]), unit(other[rest])).mean()
        assert (floor.mean() - less).item() == pytest.approx((floor[i] - floor.mean()).item() / 59, abs=2e-4)
        less = centred_alignment(gram(one[rest]), gram(other[rest])).mean()
        assert (aligned.mean() - less).item() == pytest.approx((aligned[i] - aligned.mean()).item() / 59, abs=2e-3)


def test_sentences_without_any_difference_have_no_alignment():
    assert cka(of(torch.ones(1, 2, 5, 3))).value.tolist() == [0]


def test_intervals_cover_a_floor_that_is_known():
    """Sentences share a common part: the floor of the whole population is that part's share of the length."""
    covered = 0
    for seed in range(40):
        noise = random_vectors(1, 2, 40, 400, seed=seed)
        table = sentence_similarity(of(noise + 1)).set_index("measure")
        covered += table.low["floor"] <= 0.5 <= table.high["floor"]
    assert covered >= 33


def test_the_language_that_others_are_made_from_dominates():
    centre = random_vectors(1, 30, 16)
    others = centre + 0.8 * random_vectors(3, 30, 16, seed=1)
    far = random_vectors(3, 1, 16, seed=2) * 20
    found = of(torch.cat([centre, others + far])[None], ("en", "de", "fr", "ja"))
    plain, shifted = (dominance(found, shifted=s).set_index("language") for s in (False, True))
    assert shifted.value.idxmax() == "en"
    assert shifted.low["en"] > shifted.high.drop("en").max()
    assert plain.value.max() < shifted.value["en"], "what sets languages apart hides what they share"


def test_shifted_dominance_is_that_of_vectors_moved_by_hand():
    values = random_vectors(1, 3, 6, 4)
    found = dominance(of(values), shifted=True).set_index("language").value
    mean = values[0].mean(dim=1)
    for k, language in enumerate(("en", "fr", "ja")):
        gaps = []
        for other in {0, 1, 2} - {k}:
            moved = values[0, other] - mean[other] + mean[k]
            similarity, floor = oracles.similarity_and_floor(values[0, k].tolist(), moved.tolist())
            gaps.append(similarity - floor)
        assert found[language] == pytest.approx(np.mean(gaps), abs=1e-6)


@given(st.lists(st.integers(0, 6), min_size=3, max_size=6).filter(any))
def test_u_shape_tries_all_ways_to_deal_the_counts_out(counts):
    neurons = NeuronSet.of({"fr": [(i, j) for i, n in enumerate(counts) for j in range(n)]}, shape=(len(counts), 6))
    row = u_shape(neurons).iloc[0]
    share, p = oracles.share_at_ends(counts)
    assert (row.share, row["first"] + row["last"]) == (pytest.approx(share), pytest.approx(share))
    assert row.p == pytest.approx(p)
    assert row.p >= row.smallest_p - 1e-12
    assert row.low - 1e-12 <= row.share <= row.high + 1e-12
    assert (row.chance_low, row.chance_high) == pytest.approx(oracles.chance_at_ends(counts))


def test_with_many_layers_a_sample_of_ways_is_tried():
    ends = NeuronSet.of({"fr": [(i, j) for i in (0, 1, 2, 27, 28, 29) for j in range(9)]}, shape=(30, 9))
    even = NeuronSet.of({"fr": [(i, 0) for i in range(30)]}, shape=(30, 9))
    assert u_shape(ends).smallest_p[0] == pytest.approx(1e-4)
    assert u_shape(ends).p[0] < 0.1 < u_shape(even).p[0]


@pytest.fixture(scope="module")
def four(corpus):
    extra = {"en": "It rains.", "fr": "Il pleut.", "ja": "雨だ。"}
    return Corpus({k: (*d, extra[k]) for k, d in corpus.documents.items()}, "four sentences")


@pytest.fixture(scope="module")
def outputs(ungated, four):
    neurons = NeuronSet.of({"fr": [(0, j) for j in range(12)], "ja": [(1, 3)]}, shape=(2, 24))
    return representation_study(ungated, four, neurons, seeds=(0, 2), progress=False)


def test_the_study_measures_what_the_tables_of_pairs_measure(outputs, ungated, four):
    found = record_representations(ungated, four, progress=False)
    pairs = pd.concat([f(found) for f in (sentence_similarity, mexa, cka)])
    mine = (
        outputs[outputs.condition == "intact"]
        .groupby(["layer", "language"])[["similarity", "floor", "mexa", "cka"]]
        .mean()
    )
    for (layer, language), row in mine.iterrows():
        part = pairs[(pairs.layer == layer) & ((pairs.language == language) | (pairs.other == language))]
        for measure, value in row.items():
            assert value == pytest.approx(part[part.measure == measure].value.mean(), abs=1e-6)
    there = retrieval(found).groupby(["layer", "language"]).value.mean()
    intact = outputs[outputs.condition == "intact"].groupby(["layer", "language"]).retrieval.mean()
    pd.testing.assert_series_equal(intact, there, check_names=False, check_dtype=False)


def test_effects_are_differences_of_the_same_sentences(outputs):
    assert outputs.groupby(["condition", "group", "seed"]).size().nunique() == 1
    effects = representation_effects(outputs)
    assert len(effects) == 2 * len(MEASURES) * 3 * 4
    mean = lambda *under: outputs[  # noqa: E731
        (outputs.condition == under[0])
        & (outputs.group == under[1])
        & (outputs.layer == 2)
        & (outputs.language == "en")
    ].cka.mean()
    row = effects.query("group == 'fr' and layer == 2 and language == 'en' and measure == 'cka'").iloc[0]
    assert row.change == pytest.approx(mean("chosen", "fr") - mean("intact", ""))
    assert row.random_change == pytest.approx(mean("random", "fr") - mean("intact", ""))
    assert row.beyond == pytest.approx(row.change - row.random_change)
    assert (effects.beyond_low <= effects.beyond + 1e-12).all()
    assert (effects[effects.layer == 0].change == 0).all(), "the embedding has no neurons before it"
    assert effects.query("group == 'ja' and layer == 1").change.abs().max() == 0
    assert effects.query("group == 'fr' and layer == 1 and measure == 'similarity'").change.abs().min() > 0
    together = effects.query("layer == 2 and measure == 'mexa' and group == 'fr'").set_index("language").value
    assert together[""] == pytest.approx(together.drop("").mean())
    with pytest.raises(ValueError, match="give whole studies"):
        representation_effects(outputs.iloc[1:])


def test_the_curve_over_layers(outputs):
    curve, shape = layer_means(outputs), middle_and_ends(outputs).set_index("measure")
    at = curve[curve.measure == "cka"].set_index("layer").value
    assert shape.change["cka"] == pytest.approx(at[1] - (at[0] + at[2]) / 2)
    assert (shape.low <= shape.change).all()
    assert shape.change["corrected"] == pytest.approx(shape.change["similarity"] - shape.change["floor"])


def test_mistakes_are_told(ungated, corpus, four):
    neurons = NeuronSet.of({"fr": [(0, 3)]}, shape=(2, 24))
    with pytest.raises(ValueError, match="pooling must be one of mean, weighted, last, got 'max'"):
        record_representations(ungated, corpus, pooling="max", progress=False)
    with pytest.raises(ValueError, match="same documents in every language, got 2 in 'en', 1 in 'fr'"):
        record_representations(ungated, Corpus({"en": ("a", "b"), "fr": ("c",)}, "s"), progress=False)
    with pytest.raises(ValueError, match="got none in sentence 1 of 'en'"):
        record_representations(ungated, Corpus({"en": ("a", ""), "fr": ("c", "d")}, "s"), progress=False)
    with pytest.raises(ValueError, match="leave out max_tokens"):
        record_representations(ungated, corpus, reading=replace(DOCUMENTS, max_tokens=9), progress=False)
    with pytest.raises(ValueError, match="must be finite, got another number in layer 0 for sentence 1 in 'fr'"):
        of(torch.tensor([[[[1.0], [1.0]], [[1.0], [torch.nan]]]]))
    with pytest.raises(ValueError, match="at least two sentences"):
        sentence_similarity(of(torch.ones(1, 2, 1, 3)))
    with pytest.raises(ValueError, match="at least four sentences for cka, got 3"):
        cka(of(torch.ones(1, 2, 3, 3)))
    with pytest.raises(ValueError, match="at least four documents"):
        representation_study(ungated, corpus, neurons, progress=False)
    with pytest.raises(ValueError, match="seeds must hold at least one number"):
        representation_study(ungated, four, neurons, seeds=(), progress=False)
    with pytest.raises(ValueError, match="at least three layers to have ends, got 2"):
        u_shape(neurons)
    with pytest.raises(ValueError, match="got none for 'fr'"):
        u_shape(NeuronSet.of({"fr": []}, shape=(3, 3)))


def test_findings_say_what_is_certain():
    shape = {"measure": ["similarity", "floor", "corrected"], "change": [0.3, 0.25, 0.05], "low": [0.2, 0.2, -0.1]}
    lines = sections.shape_findings(pd.DataFrame(), pd.DataFrame({**shape, "high": 0.4}))
    assert "+0.300 more similar" in lines[0]
    assert lines[1].endswith("(-0.100 to +0.400): not certainly apart from 0.")
    near = [(i, k, False, value, value - half, value + half) for i in range(3) for k, value, half in NEARNESS]
    table = pd.DataFrame(near, columns=["layer", "language", "shifted", "value", "low", "high"])
    assert sections.dominance_findings(table) == ["In the middle layer the others are nearest to English (en)."]
    unsure = table.assign(high=table.high + 1)
    assert "no language dominates" in sections.dominance_findings(unsure)[0]
    ends = NeuronSet.of({"fr": [(0, 1), (3, 1), (3, 2), (2, 5)]}, shape=(4, 9))
    (line,) = sections.u_findings(u_shape(ends))
    assert line.startswith("75% of the language neurons lie in the outer thirds")
    assert "25% in the first and 50% in the last" in line
    assert "smallest p that so few layers allow is 0.1667" in line


NEARNESS = [("en", 0.5, 0.1), ("fr", 0.2, 0.1), ("ja", 0.1, 0.1)]


def test_effects_are_told_of_the_last_block(outputs):
    lines = sections.effect_findings(representation_effects(outputs))
    assert [line.split(" the similarity")[0] for line in lines] == [
        "Without the neurons of French (fr) (12)",
        "Without the neurons of Japanese (ja) (1)",
    ]


def test_claims_are_measured_from_the_tables():
    """Ten sentences, five places in the model; English is 0.1 nearer in the middle, neurons are worth 0.3 less."""
    rows = []
    for condition, seed, change in (
        ("intact", -1, 0.0),
        ("chosen", -1, -0.25),
        ("random", 0, 0.05),
        ("random", 1, 0.05),
    ):
        for layer in range(5):
            for language in ("en", "fr", "ja"):
                for sentence in range(10):
                    alike = 0.5 + 0.1 * (language == "en") * (layer == 2) + change * (layer > 0) + 0.01 * sentence
                    rows.append(
                        (condition, "" if seed == condition else "g", seed, layer, language, sentence, alike, 0.2)
                    )
    columns = ["condition", "group", "seed", "layer", "language", "sentence", "similarity", "floor"]
    outputs = pd.DataFrame(rows, columns=columns)
    shape = pd.DataFrame(
        {"measure": ["similarity", "corrected"], "change": [0.3, 0.0], "low": [0.2, -0.1], "high": 0.4}
    )
    ends = NeuronSet.of({"fr": [(0, j) for j in range(40)] + [(3, j) for j in range(20)]}, shape=(4, 40))
    tables = {"representation_outputs": outputs, "representation_shape": shape, "u_shape": u_shape(ends)}
    effects = [claim.measure(tables) for claim in claims.CLAIMS]
    assert [e.value for e in effects] == pytest.approx([0.3, 0.0, 0.5, 0.1, -0.3])
    assert all(e.low <= e.value <= e.high for e in effects)
    verdicts = [verdict(c, e) for c, e in zip(claims.CLAIMS, effects, strict=True)]
    assert verdicts == [HOLDS, OPEN, OPEN, HOLDS, HOLDS]
