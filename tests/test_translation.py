import math
from contextlib import nullcontext

import pandas as pd
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from sacrebleu.metrics import BLEU, CHRF

import oracles
from claims.translation import CLAIMS
from mi_multilingual import (
    Corpus,
    Intervention,
    NeuronSet,
    generate,
    identify_language,
    layer_matched_random,
    load_corpus,
    plots,
    steer,
    translation_scores,
    translation_study,
)
from mi_multilingual.evaluation import intervals
from mi_multilingual.models.hooked import fingerprint
from mi_multilingual.report.sections.translation import translation_findings
from mi_multilingual.studies.given import Given
from mi_multilingual.studies.table import STUDIES, study_settings
from mi_multilingual.studies.translation import TABLES, pairwise_overlap
from mi_multilingual.tokens import DOCUMENTS

PARALLEL = Corpus(
    {
        "en": ("The dog sleeps.", "We drink tea in the old house."),
        "fr": ("Le chien dort.", "Nous buvons du thé dans la vieille maison."),
        "zh": ("狗在睡觉。", "我们在老房子里喝茶。"),
    },
    "translations",
)
DECODING = {"max_new_tokens": 4}


@pytest.fixture(scope="module")
def neurons(demo_model):
    shape = (3, demo_model.cfg.n_layers, demo_model.cfg.d_mlp)
    masks = torch.rand(shape, generator=torch.Generator().manual_seed(0)) < 0.1
    return NeuronSet(masks, ("en", "fr", "zh"), "test", model_fingerprint=fingerprint(demo_model))


@pytest.fixture(scope="module")
def values(neurons):
    random = torch.Generator().manual_seed(1)
    return {k: 3 * torch.rand(neurons.masks.shape[1:], generator=random) for k in ("zh", "fr")}


def test_every_translation_is_that_of_one_sentence_alone(demo_model, neurons, values):
    table = translation_study(demo_model, PARALLEL, neurons, values, site="post", seeds=[5], progress=False, **DECODING)
    assert len(table) == 3 * 2 * 2
    for row in table.itertuples():
        used = layer_matched_random(neurons, seed=5) if row.condition == "random" else neurons
        held = Intervention("set", used[row.target], values[row.target], "post")
        prompt = (
            f"Translate an English sentence into a target language.\nEnglish: {PARALLEL.documents['en'][row.id]}\n"
            "Target Language:"
        )
        with nullcontext() if row.condition == "intact" else steer(demo_model, held):
            [text] = generate(demo_model, [prompt], progress=False, **DECODING)
        assert row.continuation == text.strip()
        assert (row.reference, row.text) == (PARALLEL.documents[row.target][row.id], PARALLEL.documents["en"][row.id])
        assert row.seed == (5 if row.condition == "random" else -1)
        assert row.n_neurons == (0 if row.condition == "intact" else int(used[row.target].masks.sum()))
    assert list(table.found) == identify_language(list(table.continuation), PARALLEL.languages)


WORDS = st.lists(st.sampled_from(["le", "chien", "dort", "sous", "la", "table", "vieille", "maison"]), max_size=9).map(
    " ".join
)


@given(st.lists(st.tuples(WORDS, WORDS, WORDS, WORDS.filter(bool)), min_size=1, max_size=6))
def test_scores_are_those_of_sacrebleu_in_every_draw(sentences):
    conditions = [("intact", -1), ("chosen", -1), ("random", 0)]
    rows = [
        ("fr", condition, seed, i, texts[n], texts[3], "fr" if texts[n] else "")
        for i, texts in enumerate(sentences)
        for n, (condition, seed) in enumerate(conditions)
    ]
    columns = ["target", "condition", "seed", "id", "continuation", "reference", "found"]
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(intervals, "RESAMPLES", 10)
        table = translation_scores(pd.DataFrame(rows, columns=columns)).set_index(["measure", "condition"])
        expected = oracles.translation_draws([s[:3] for s in sentences], [s[3] for s in sentences], [BLEU(), CHRF()])
    for measure, (chosen, intact, random) in {m: (e[1], e[0], e[2]) for m, e in expected.items()}.items():
        row = table.loc[measure, "chosen"]
        assert row.value == pytest.approx(chosen[0])
        assert (row.low, row.high) == pytest.approx(oracles.middle(chosen[1:]))
        assert row.change == pytest.approx(chosen[0] - intact[0], abs=1e-9)
        beyond = [c - r for c, r in zip(chosen, random, strict=True)]
        assert (row.beyond, row.beyond_low, row.beyond_high) == pytest.approx(
            (beyond[0], *oracles.middle(beyond[1:])), abs=1e-9
        )
    hits = sum(bool(s[1]) for s in sentences)
    share = table.loc["share", "chosen"]
    assert share.value == pytest.approx(hits / len(sentences))
    assert (share.low, share.high) == pytest.approx(oracles.wilson(hits, len(sentences)), abs=1e-9)


def test_seeds_are_averaged_and_chinese_is_cut_by_character():
    right, wrong = "我们在老房子里喝茶。", "他们"
    rows = [("intact", -1, wrong), ("chosen", -1, right), ("random", 0, right), ("random", 1, wrong)]
    outputs = pd.DataFrame(rows, columns=["condition", "seed", "continuation"])
    outputs = outputs.assign(target="zh", id=0, reference=right, found="zh")
    table = translation_scores(outputs).set_index(["measure", "condition"])
    assert table.value["bleu", "chosen"] == pytest.approx(100)
    other = BLEU(tokenize="zh").corpus_score([wrong], [[right]]).score
    assert table.value["bleu", "random"] == pytest.approx((100 + other) / 2)
    assert table.value["share", "random"] == 1
    alone = translation_scores(outputs[outputs.condition != "random"])
    assert alone.beyond.isna().all()


@given(st.integers(0, 2**20))
def test_the_overlap_of_pairs(seed):
    masks = torch.rand(3, 2, 6, generator=torch.Generator().manual_seed(seed)) < 0.4
    masks[:, 0, 0] = True
    neurons = NeuronSet(masks, ("a", "b", "c"), "test")
    table = pairwise_overlap(neurons, seeds=[3])
    random = layer_matched_random(neurons, seed=3)
    for name, given_ in (("overlap", neurons), ("random", random)):
        groups = {k: {tuple(x) for x in given_[k].masks[0].nonzero().tolist()} for k in given_.groups}
        expected = oracles.overlap_of_pairs(groups)
        assert {(r.language, r.other): getattr(r, name) for r in table.itertuples()} == pytest.approx(expected)


def test_mistakes_are_told_before_anything_runs(demo_model, neurons, values, monkeypatch):
    monkeypatch.setattr("mi_multilingual.studies.translation.generate", None)

    def study(parallel=PARALLEL, held=values):
        return translation_study(demo_model, parallel, neurons, held, progress=False)

    short = Corpus({**PARALLEL.documents, "fr": ("Le chien dort.",)}, "x")
    for match, wrong in {
        "values must hold languages to translate into, other than English, got \\[\\]": lambda: study(held={}),
        "other than English, got \\['en'\\]": lambda: study(held={"en": values["fr"]}),
        "has no 'en'": lambda: study(PARALLEL.take(["fr", "zh"])),
        "parallel must have as many sentences in every language": lambda: study(short),
        "do not fit neurons of shape": lambda: study(held={"fr": values["fr"][:1]}),
        "is nan": lambda: study(held={"fr": values["fr"] * math.nan}),
    }.items():
        with pytest.raises(ValueError, match=match):
            wrong()


@pytest.mark.slow
def test_the_whole_study_on_the_demo(demo_model):
    languages = ["en", "fr", "ja"]
    texts = (load_corpus("demo", split=split, languages=languages) for split in ("identify", "evaluate"))
    asked = {"n_sentences": 3, "n_languages": 2, "n_texts": 6, "max_new_tokens": 10, "median_texts": 40}
    how = {"rate": 0.05, "filter_rate": 0.985}
    settings = study_settings("translation", asked)
    tables = STUDIES["translation"].run(Given(demo_model, *texts, DOCUMENTS, settings, (0,), how, progress=False))
    assert tuple(tables) == TABLES == STUDIES["translation"].tables
    assert set(tables["translation"].way) == {"median", "mean"}
    assert set(tables["translation"].target) == {"fr", "ja"}
    assert len(translation_findings(tables["translation"])) == 6
    assert len(plots.translation(tables["translation"]).data) == 2 * 3 * 3
    nothing = CLAIMS[0].measure(tables)
    assert nothing.low <= nothing.value <= nothing.high


def test_claims_are_measured_against_their_controls():
    nothing, share, bleu, overlap, mean = (claim.measure for claim in CLAIMS)
    columns = ["target", "condition", "seed", "found"]
    rows = [("fr", "chosen", -1, "fr"), ("fr", "random", 0, "en"), ("fr", "random", 1, "fr")] * 4
    assert nothing({"unconditional": pd.DataFrame(rows, columns=columns)}).value == 0.5
    rows = [
        (way, target, condition, seed, i, PARALLEL.documents["fr"][i] if condition == "chosen" else "no", "fr")
        for way in ("median", "mean")
        for target in ("fr", "de")
        for condition, seed in (("intact", -1), ("chosen", -1), ("random", 0))
        for i in range(2)
    ]
    columns = ["way", "target", "condition", "seed", "id", "continuation", "found"]
    outputs = pd.DataFrame(rows, columns=columns)
    outputs["reference"] = [PARALLEL.documents["fr"][i] for i in outputs.id]
    tables = {
        "translations": outputs,
        "median_overlap": pd.DataFrame({"language": ["en", "fr", "ja"], "overlap": [0.01, 0.03, 0.02]}),
    }
    assert share(tables).value == mean(tables).value == 0
    assert bleu(tables).low > 90
    effect = overlap(tables)
    assert effect.value == pytest.approx(-0.03)
    assert effect.high < 0
