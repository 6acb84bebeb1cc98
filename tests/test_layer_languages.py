import importlib
from collections import Counter
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from transformers import AutoModelForCausalLM

import checkpoints
import mi_multilingual as mm
import oracles
import speaker
from mi_multilingual import plots, write_report
from mi_multilingual.analysis.layer_languages import NONE, SHARED
from mi_multilingual.analysis.layer_words import _tokens_by_bytes, first_tokens
from mi_multilingual.evidence.reading import read
from mi_multilingual.models.hooked import all_logits, unembedded
from mi_multilingual.report.sections.layer_languages import SECTIONS, layer_findings, region_findings
from mi_multilingual.studies.layer_languages import pivot_of
from mi_multilingual.studies.regions import model_regions


@pytest.fixture(scope="module")
def planted():
    return speaker.model(), speaker.TEXT


def test_the_languages_and_regions_of_a_planted_model_are_found(planted):
    model, corpus = planted
    tokens = mm.token_languages(model, corpus)
    assert [tokens.names[i] for i in tokens.index] == [
        NONE,
        *(f"l{i // speaker.WORDS}" for i in range(3 * speaker.WORDS)),
    ]
    shares = mm.layer_language_shares(mm.layer_languages(model, corpus, tokens, at="every", progress=False))
    for row in shares.itertuples():
        said = row.language if speaker.SPEAKS[row.layer] == "own" else "l0"
        assert row.share == row.low == row.high == float(row.decoded == said), row
    assert pivot_of(shares) == "l0"
    found = model_regions(model, corpus).set_index(["language", "region"])
    assert found.loc["l1", ["first", "end"]].to_numpy().tolist() == [[0, 2], [2, 5], [5, 6]]
    assert set(found.loc["l2"].rule) == {"found"}
    assert set(found.loc["l0"].rule) == {"thirds"}


def test_an_intervention_wraps_the_call_and_generated_tokens_are_read(planted):
    model, corpus = planted
    tokens = mm.token_languages(model, corpus)
    off = mm.NeuronSet.of({"l1": [(2, 0)]}, shape=(len(speaker.SPEAKS), 4))
    raised = mm.Intervention("set", off, 3.0, "post")
    outside = torch.zeros(speaker.WIDTH)
    with torch.no_grad():
        model.blocks[2].mlp.W_out[0] = -10 * model.blocks[2].mlp.b_out / 30
    with mm.steer(model, raised):
        inside = mm.layer_languages(model, corpus.take(["l1"]), tokens, progress=False)
    with torch.no_grad():
        model.blocks[2].mlp.W_out[0] = outside
    said = inside[inside.n == inside.n_top].drop_duplicates(["layer", "decoded"]).set_index("layer").decoded
    assert said[2] == "l1", "what block 2 adds is undone by its neuron"
    continuations = {"l1": [" l2w1 l2w2"] * 12}
    both = mm.layer_languages(model, corpus.take(["l1"]), tokens, continuations=continuations, n_top=4, progress=False)
    sizes = both.groupby(["position", "layer"]).n.sum().unstack(0)
    assert (sizes["prompt"] == 12 * 4).all()
    assert (sizes["generated"] == 2 * 12 * 4).all()
    last = both[(both.layer == 5) & (both.position == "generated")].groupby("decoded").n.sum()
    assert last["l2"] == 2 * 12 * 4


@pytest.mark.parametrize("backend", ["auto", "bridge"])
@pytest.mark.parametrize("kind", ["opt", "llama-grouped"])
def test_counts_are_those_of_a_plain_model_read_by_hand(kind, backend, corpus, tmp_path):
    folder = checkpoints.checkpoint(kind, tmp_path)
    model, plain = mm.load_model(folder, backend=backend, device="cpu"), AutoModelForCausalLM.from_pretrained(folder)
    tokens = mm.token_languages(model, corpus)
    for norm in (True, False):
        found = mm.layer_languages(model, corpus, tokens, at="every", n_top=3, norm=norm, progress=False)
        cells = found.set_index(["language", "document", "layer", "decoded"]).n
        for k in corpus.languages:
            for i, text in enumerate(corpus.documents[k]):
                ids = model.tokenizer(text)["input_ids"]
                for layer in range(model.cfg.n_layers):
                    top = oracles.decoded_tokens(plain, ids, layer, 3, norm=norm)[1:]
                    wanted = Counter(tokens.names[tokens.index[t]] for row in top for t in row)
                    assert {n: cells[k, i, layer, n] for n in tokens.names} == {n: wanted[n] for n in tokens.names}


def test_the_lens_after_the_last_block_is_the_model_itself(tmp_path):
    for kind in ("gemma2", "cohere", "gpt2", "falcon"):
        folder = tmp_path / kind
        try:
            model = mm.load_model(checkpoints.checkpoint(kind, folder), backend="bridge", device="cpu")
        except ValueError:
            assert kind == "cohere", "TransformerLens 3.9 cannot convert it"
            continue
        ids, seen = torch.arange(3, 14)[None], []
        with torch.no_grad():
            read(model, ids, {0: "blocks.1.hook_resid_post"}, lambda key, x, seen=seen: seen.append(x[0]))
            torch.testing.assert_close(unembedded(model, seen[0]), all_logits(model, ids)[0], atol=1e-4, rtol=1e-4)


def test_tokens_belong_to_the_language_that_has_most_of_them(demo_model):
    corpus = mm.load_corpus("demo", split="identify", languages=["en", "fr", "ja", "ru"], max_documents=60)
    tokens = mm.token_languages(demo_model, corpus, bar=0.7)
    ids = {
        k: Counter(i for text in d for i in demo_model.tokenizer(text, add_special_tokens=False)["input_ids"])
        for k, d in corpus.documents.items()
    }
    tokenizer = demo_model.tokenizer
    for token in [*range(2, 400), *range(400, 8192, 23)]:
        counts = [(ids[k][token], ids[k].total()) for k in corpus.languages]
        wanted = oracles.language_of_token(counts, 0.7)
        text = tokenizer.decode([token])
        name = tokens.names[tokens.index[token]]
        if wanted is not None and any(c.isalpha() for c in text):
            assert name == (SHARED if wanted == "shared" else corpus.languages[wanted]), text
    named = {t: tokens.names[tokens.index[i]] for t, i in tokenizer.get_vocab().items()}
    assert named["7"] == named["."] == named[tokenizer.bos_token] == NONE
    cyrillic = {named[t] for t in named if set(tokenizer.convert_tokens_to_string([t]).strip()) & set("бгджиклпт")}
    assert cyrillic == {"ru"}, "whether they were seen or not"
    assert named["igkeit"] in (SHARED, "en", "fr"), "Latin letters are of two of these languages"


def test_words_begin_with_the_tokens_that_write_their_first_bytes(demo_model):
    vocabulary = _tokens_by_bytes(demo_model.tokenizer)
    flat = {token: written for written, mine in vocabulary.items() for token in mine}
    ids = demo_model.tokenizer("Токио东京", add_special_tokens=False)["input_ids"]
    assert b"".join(flat[i] for i in ids).decode() == "Токио东京", "pieces of characters, too"
    for word in ("Paris", "Токио", "东京", "Tokyo", "Đà Nẵng", "a"):
        mine = first_tokens(word, vocabulary)
        assert mine == oracles.word_beginnings(word, flat)
        ids = [demo_model.tokenizer(form, add_special_tokens=False)["input_ids"][0] for form in (word, f" {word}")]
        assert set(ids) - {i for i in ids if flat[i] == b" "} <= set(mine)


def test_probabilities_of_words_are_sums_over_their_first_tokens(demo_model):
    prompts = mm.Corpus({"ru": ("Столица Франции —", "Столица Японии —"), "fr": ("La capitale", "Il est")}, "prompts")
    words = mm.Corpus({"ru": ("Париж", "Токио"), "en": ("Paris", "Tokyo"), "fr": ("Paris", "Berlin")}, "words")
    found = mm.layer_words(demo_model, prompts, words, ["en"], progress=False)
    likely = all_logits(demo_model, torch.tensor([demo_model.tokenizer("Столица Японии —")["input_ids"]]))[
        0, -1
    ].softmax(-1)
    vocabulary = {t: b for b, mine in _tokens_by_bytes(demo_model.tokenizer).items() for t in mine}
    for k, word in (("ru", "Токио"), ("en", "Tokyo")):
        row = found[(found.language == "ru") & (found.document == 1) & (found.layer == 3) & (found.decoded == k)]
        total = sum(likely[t].item() for t in oracles.word_beginnings(word, vocabulary))
        assert row.probability.item() == pytest.approx(total, abs=1e-5)
    means = mm.layer_word_means(found)
    french = means[(means.language == "fr") & (means.layer == 0)]
    assert french[["n", "n_dropped"]].to_numpy().tolist() == [[2, 1]] * 2, "Paris is the same word in both"
    lonely = mm.layer_word_means(
        mm.layer_words(demo_model, prompts, words, ["en"], progress=False).assign(probability=np.nan)
    )
    assert lonely.probability.isna().all()
    assert (lonely.n_dropped == 2).all()


def test_words_are_read_without_a_languages_neurons_too(demo_model):
    prompts = mm.Corpus({"ru": ("Столица Франции —", "Столица Японии —"), "fr": ("La capitale", "Il est")}, "prompts")
    words = mm.Corpus({"ru": ("Париж", "Токио"), "en": ("Paris", "Tokyo"), "fr": ("Rome", "Berlin")}, "words")
    masks = torch.rand(1, 4, 1536, generator=torch.Generator().manual_seed(0)) < 0.3
    neurons = mm.NeuronSet(masks, ("ru",), "some")
    found = mm.layer_word_study(demo_model, prompts, words, ["en"], neurons, seeds=[0, 1], progress=False)
    intact = mm.layer_words(demo_model, prompts, words, ["en"], progress=False)
    mine = found[found.condition == "intact"]
    pd.testing.assert_frame_equal(mine[intact.columns].reset_index(drop=True), intact)
    for draw, seed in ((neurons, -1), (mm.layer_matched_random(neurons, seed=1), 1)):
        with mm.ablate(demo_model, draw):
            expected = mm.layer_words(demo_model, prompts.take(["ru"]), words, ["en"], progress=False)
        part = found[(found.group == "ru") & (found.seed == seed)]
        np.testing.assert_allclose(part.probability, expected.probability, atol=1e-6)
        assert (part.n_neurons == int(masks.sum())).all()
    means = mm.layer_word_means(found)
    random = found[(found.condition == "random") & (found.layer == 3) & (found.decoded == "ru")]
    row = means[(means.condition == "random") & (means.layer == 3) & (means.decoded == "ru")].iloc[0]
    assert (row.n, row.probability) == (2, pytest.approx(random.probability.mean()))
    with pytest.raises(ValueError, match="'de'"):
        mm.layer_word_study(demo_model, prompts, words, ["en"], mm.NeuronSet(masks, ("de",), "some"), progress=False)


@given(st.integers(3, 9), st.integers(1, 4), st.integers(0, 2**31))
@settings(max_examples=25)
def test_shares_and_regions_are_those_counted_by_hand(n_layers, n_documents, seed):
    names = ("a", "b", SHARED, NONE)
    axes = {"language": ["a", "b"], "document": range(n_documents), "position": ["prompt"], "layer": range(n_layers)}
    index = pd.MultiIndex.from_product([*axes.values(), names], names=[*axes, "decoded"])
    outputs = index.to_frame(index=False)
    outputs["n"] = np.random.default_rng(seed).integers(0, 4, len(outputs)) + (outputs.decoded == NONE)
    shares, curves = mm.layer_language_shares(outputs), {}
    for row in shares.itertuples():
        mine = outputs[(outputs.language == row.language) & (outputs.layer == row.layer)]
        total = mine.groupby("decoded").n.sum()
        given_to = total["a"] + total["b"]
        wanted = total[row.decoded] / given_to if given_to else np.nan
        assert row.share == pytest.approx(wanted, nan_ok=True)
        assert not given_to or 0 <= row.low <= row.high <= 1
        assert (row.none, row.n) == (pytest.approx(total[NONE] / total.sum()), n_documents)
        curves.setdefault((row.language, row.decoded), []).append(wanted)
    middle = range(-(-n_layers // 3), 2 * n_layers // 3 + 1)
    means = {k: np.nanmean([curves[o, k][block - 1] for block in middle]) for k, o in (("a", "b"), ("b", "a"))}
    table = mm.regions(shares)
    [pivot] = set(table["pivot"])
    assert means[pivot] == pytest.approx(max(means.values()))
    for language in ("a", "b"):
        mine = table[table.language == language]
        found = [list(range(first, end)) for first, end in zip(mine["first"], mine.end, strict=True)]
        own, other = (np.nan_to_num(curves[language, k]) for k in (language, pivot))
        wanted = oracles.three_regions(own, other)
        assert [block for part in found for block in part] == list(range(n_layers))
        assert all(found)
        assert (mine.rule == "found").all() == (wanted is not None)
        assert wanted is None or found == list(wanted)


def test_regions_can_be_numbers(planted):
    model, corpus = planted
    outputs = mm.layer_languages(model, corpus, mm.token_languages(model, corpus), progress=False)
    table = mm.regions(mm.layer_language_shares(outputs), understanding=1, generation=3)
    assert table.end.tolist() == [1, 3, 6] * 3
    assert set(table.rule) == {"by number"}


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"n_top": 0}, "n_top must be a number of tokens from 1 to"),
        ({"at": "first"}, "at must be one of last, every"),
        ({"continuations": {"l1": ["x"]}}, "continuations must be one for each of the 12 prompts in 'l0'"),
    ],
)
def test_bad_requests_are_refused(planted, change, message):
    model, corpus = planted
    with pytest.raises(ValueError, match=message):
        mm.layer_languages(model, corpus, mm.token_languages(model, corpus), **change)


def test_bad_tables_and_words_are_refused(planted):
    model, corpus = planted
    with pytest.raises(ValueError, match="at least two languages"):
        mm.token_languages(model, corpus.take(["l0"]))
    with pytest.raises(ValueError, match="bar must be above"):
        mm.token_languages(model, corpus, bar=0.5)
    with pytest.raises(ValueError, match="languages must not be called 'none'"):
        mm.TokenLanguages(("none", "en"), torch.zeros(3, dtype=torch.int64))
    with pytest.raises(ValueError, match="words must be one per prompt in 'l2'"):
        mm.layer_words(model, corpus, corpus.take(["l0", "l1"]), ["l0"])
    outputs = mm.layer_languages(model, corpus, mm.token_languages(model, corpus), progress=False)
    shares = mm.layer_language_shares(outputs)
    with pytest.raises(ValueError, match="prompts must be in at least two languages"):
        mm.regions(shares[shares.language == "l1"])
    with pytest.raises(ValueError, match="at least 3 blocks"):
        mm.regions(shares[shares.layer < 2])
    with pytest.raises(ValueError, match="given together"):
        mm.regions(shares, understanding=1)
    with pytest.raises(ValueError, match="leave blocks for reasoning"):
        mm.regions(shares, understanding=3, generation=3)
    with pytest.raises(ValueError, match="outputs must have rows"):
        mm.layer_language_shares(outputs[:0])


LANGUAGES = ("en", "fr", "ja")


def test_the_page_tells_what_the_tables_say(tmp_path):
    tables = speaker.tables(LANGUAGES)
    for name, table in tables.items():
        table.to_parquet(tmp_path / f"{name}.parquet")
    page = write_report(tmp_path).read_text(encoding="utf-8")
    assert [s.id for s in SECTIONS if f'<table id="table-{s.id}">' not in page] == []
    assert [f.id for s in SECTIONS for f in s.figures if f'id="{f.id}"' not in page] == []
    middle, less = layer_findings(tables["layer_language_shares"])
    assert "decoded into English (en) most" in middle
    assert middle.endswith("after some block for prompts in Japanese (ja).")
    assert "in 1 of 3 languages, among them Japanese (ja) (10%, 80%)" in less
    mlp, attention = region_findings(tables["region_effects"])
    assert mlp.startswith("Part mlp: ")
    assert "reasoning in 1 of 3 languages (mean +0.173)" in attention


def test_areas_add_up_and_hover_tells_the_interval():
    shares = speaker.tables(LANGUAGES)["layer_language_shares"]
    figure = plots.layer_languages(shares, condition="chosen")
    panels = [figure.data[i : i + 3] for i in (0, 3, 6)]
    for language, panel in zip(LANGUAGES, panels, strict=True):
        np.testing.assert_allclose(np.sum([trace.y for trace in panel], axis=0), 1.0)
        mine = shares[(shares.condition == "chosen") & (shares.language == language) & (shares.decoded == "en")]
        np.testing.assert_allclose(panel[0].y, mine.share)
        np.testing.assert_allclose(panel[0].customdata[:, :2], mine[["low", "high"]])
        assert panel[0].stackgroup == "shares"
    with pytest.raises(ValueError, match="must have rows of condition 'intact' at 'generated' tokens"):
        plots.layer_languages(shares, position="generated")
    with pytest.raises(ValueError, match="measure must be one of this table's, loss, got 'margin'"):
        plots.region_effects(speaker.tables(LANGUAGES)["region_effects"], measure="margin")


@pytest.fixture(scope="module")
def claims():
    """The module of the claims, by the words of each."""
    with pytest.MonkeyPatch.context() as patch:
        patch.syspath_prepend(str(Path(__file__).parents[1] / "docs" / "generate"))
        module = importlib.import_module("claims.layer_languages")
        yield {claim.text.rstrip("."): claim for claim in module.CLAIMS}


def said(middle, ends, n_documents=6):
    """Counts of top tokens of prompts in fr and ja by six blocks: (own, English) in the two middle ones, and at both
    ends; every second prompt has one token more of its own."""
    rows = []
    for language in ("en", "fr", "ja"):
        for document in range(n_documents):
            for layer in range(6):
                own, english = middle if layer in (1, 2, 3) else ends
                counts = dict.fromkeys(("en", "fr", "ja"), 0) | {language: own + document % 2} | {SHARED: 3, NONE: 1}
                counts["en"] += english
                rows += [("intact", language, document, "prompt", layer, k, n) for k, n in counts.items()]
    columns = ["condition", "language", "document", "position", "layer", "decoded", "n"]
    return {"layer_languages": pd.DataFrame(rows, columns=columns)}


def test_claims_on_layers_are_decided_by_the_counts(claims):
    middle = claims["Prompts in other languages are decoded into English in the middle layers"].measure
    ends = claims["English is decoded more in the middle layers than in the first and the last"].measure
    last = claims["The last layers speak the language of the prompt"].measure
    thinks = said(middle=(1, 8), ends=(6, 2))
    found = middle(thinks)
    assert found.value == pytest.approx((8 - 1.5) / 9.5)
    assert 0 < found.low < found.value < found.high
    assert ends(thinks).low > 0.5
    assert last(thinks).high < 0
    speaks = said(middle=(8, 1), ends=(8, 1))
    assert middle(speaks).high < 0
    assert ends(speaks).low <= ends(speaks).value == 0 <= ends(speaks).high
    with pytest.raises(ValueError, match="English"):
        middle({"layer_languages": thinks["layer_languages"].query("decoded != 'en'")})


def test_the_claim_on_words_is_decided_by_their_probabilities(claims):
    measure = claims["In the middle layers the word of the pivot language is likelier than the one asked for"].measure
    rows = [
        (k, document, layer, decoded, 0.1 + 0.2 * (decoded == "en") * (layer < 2) + 0.01 * document)
        for k in ("fr", "ja")
        for document in range(5)
        for layer in range(3)
        for decoded in (k, "en")
    ]
    words = pd.DataFrame(rows, columns=["language", "document", "layer", "decoded", "probability"])
    found = measure({"layer_words": words.assign(condition="intact")})
    assert found.value == pytest.approx(0.2)
    assert found.low == pytest.approx(found.high)


def test_claims_on_regions_are_decided_by_losses_beside_random_neurons(claims):
    rows = []
    for group in ("fr", "ja"):
        for evaluated in (group, "en"):
            for unit in range(6):
                for condition, more in (("chosen", 3.0 if evaluated == group else 1.0), ("random", 0.5)):
                    value = 30.0 + 10 * more + unit
                    rows.append((condition, group, "mlp", "all", evaluated, "loss", str(unit), value, 10))
    columns = ["condition", "group", "structure", "region", "evaluated", "measure", "unit", "value", "weight"]
    outputs = pd.DataFrame(rows, columns=columns)
    tables = {"regions": pd.DataFrame({"pivot": ["en"]}), "region_outputs": outputs}
    whole = claims["A language loses its text without its neurons, and not without as many random ones"]
    assert whole.measure(tables).value == pytest.approx(2.5)
    more = claims["Without the neurons of the generation layers a language does worse, and more so than the pivot"]
    found = more.measure(tables | {"region_outputs": outputs.assign(region="generation")})
    assert (found.low, found.high) == (pytest.approx(2.0), pytest.approx(2.0))
    with pytest.raises(ValueError, match="got none"):
        more.measure(tables)
