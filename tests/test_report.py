import json
import math
import re
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as arrays

import checkpoints
import mi_multilingual.report.sections as report_sections
import speaker
import tables
from mi_multilingual import TYPES, ActivationStats, NeuronScores, NeuronSet, experiments, lape, load, save, write_report
from mi_multilingual.demo.steps import steering_examples
from mi_multilingual.report import files, neuron_pages
from mi_multilingual.report import page as page_of
from mi_multilingual.report.languages import NAMES, listed, named
from mi_multilingual.report.measured import difference, mean_of
from mi_multilingual.report.page import script_json
from mi_multilingual.report.run import Run
from mi_multilingual.report.section import Section
from mi_multilingual.report.sections import SECTIONS, sweeps
from mi_multilingual.report.sections.ablation import ablation_effects, ablation_findings
from mi_multilingual.report.sections.answers import fact_findings
from mi_multilingual.report.sections.deactivation import deactivation_findings
from mi_multilingual.report.sections.detectors import leaderboard_findings, significance_findings
from mi_multilingual.report.sections.sharing import contribution_findings, sharing_findings
from mi_multilingual.report.sections.steering import steering_findings
from mi_multilingual.report.sections.sweeps import sweep_findings
from mi_multilingual.report.sections.translation import overlap_findings, unconditional_findings
from mi_multilingual.report.tables import LONGEST, cells, column, described, language_column, said
from mi_multilingual.studies.deactivation import deactivation_effects
from mi_multilingual.studies.steering_tables import steering_shares
from mi_multilingual.tokens import DOCUMENTS

EVIL = "<script>document.title='owned'</script>"
NASTY = EVIL + "</script>\u2028\"'&<img src=x onerror=alert(1)>"
LANGUAGES = ("en", "fr", "x" + EVIL)


def matrix(own=(0.2, 0.3, 0.4), other=0.01, random=0.001, half=0.05, languages=LANGUAGES):
    rows = [("intact", "", k, -1, 0.0) for k in languages]
    for group, mine in zip(languages, own, strict=True):
        rows += [("chosen", group, k, -1, mine if group == k else other) for k in languages]
    rows += [("random", k, k, seed, random) for seed in (0, 1) for k in languages]
    table = pd.DataFrame(rows, columns=["condition", "group", "evaluated", "seed", "change"])
    table = table.assign(low=table.change - half, high=table.change + half, nll=table.change + 3)
    return table.assign(n_neurons=7, ppl=20.0, bits_per_byte=2.0, n_tokens=100, n_bytes=300, n_rows=9)


def sharing_rows():
    rows = [("all", 0.0, i, t, 0.25 + i / 4, 0.2, 0.3, 0.1, 0.4, 15, 0.8) for i in range(2) for t in TYPES]
    columns = ["task", "threshold", "layer", "type", "mean", "low", "high", "min", "max", "n_neurons", "stability"]
    return pd.DataFrame(rows, columns=columns)


def board(**changes):
    row = {"own": 0.5, "elsewhere": 0.1, "specificity": 0.4, "low": 0.3, "high": 0.5, "hits": 3, "n_neurons": 5.0}
    rows = [{"condition": "chosen", "detector": name, **row, **changes.get(name, {})} for name in ("lape", "lap")]
    floor = {"specificity": 0.0, "low": -0.1, "high": 0.1, **changes.get("floor", {})}
    return pd.DataFrame([*rows, {"condition": "random", "detector": "", **row, **floor}])


def write_studies(folder, languages=LANGUAGES):
    """The tables that a run holds beside its main job."""
    n = len(languages)
    found = {"found": [9] * n, "significant": [7] * n, "chance_mean": [1.5] * n, "chance_high": [3.0] * n}
    halves = {"agreement": [0.4] * n, "low": [0.3] * n, "high": [0.5] * n}
    pd.DataFrame({"language": languages, **found, **halves}).to_parquet(folder / files.SIGNIFICANCE)
    save(NeuronScores(torch.full((2, 60, n), 0.5), languages, "membership"), folder / files.MEMBERSHIP)
    sharing_rows().to_parquet(folder / files.SHARING)
    pd.DataFrame(torch.eye(n).numpy(), languages, languages).to_parquet(folder / files.OVERLAP)
    parts = [(k, i, t, 0.25, 0.25) for k in languages for i in range(2) for t in TYPES]
    pd.DataFrame(parts, columns=["language", "layer", "type", "share", "top_share"]).to_parquet(
        folder / files.ATTRIBUTION
    )
    board().assign(detector=[EVIL, "lap", ""]).to_parquet(folder / files.LEADERBOARD)
    facts = {"relation": NASTY, "wording": 0, "accuracy": 0.9, "low": 0.8, "high": 0.95, "n": 40}
    asked = [{"language": languages[0], **facts}, {"language": languages[1], **facts, "relation": "=1+1"}]
    pd.DataFrame(asked).to_parquet(folder / files.FACTS)
    continued = [{"language": languages[0], "prompt": "The dog", "continuation": f"sleeps {EVIL}"}]
    (folder / files.CONTINUATIONS).write_text(json.dumps(continued))


def steered_outputs(languages=("en", "fr")):
    """Outputs of a steering study: as it is, the model stays in the prompt's language, steered it follows."""
    pairs = [(source, target) for source in languages for target in languages if source != target]
    rows = [
        (source, target, condition, -1, strength, EVIL, f"{EVIL} {condition}", found)
        for source, target in pairs
        for condition, strength, found in (("intact", 0.0, source), ("chosen", 2.0, target))
    ]
    columns = ["source", "target", "condition", "seed", "strength", "prompt", "continuation", "found"]
    return pd.DataFrame(rows, columns=columns)


def write_steering(folder, languages=("en", "fr")):
    outputs = steered_outputs(languages)
    steering_shares(outputs, ["source", "target", "condition"]).to_parquet(folder / files.STEERING)
    quality = {"nll": 2.0, "nll_low": 1.5, "nll_high": 2.5, "ppl": 7.4, "distinct_2": 0.9}
    curve = steering_shares(outputs, ["strength", "condition"]).assign(**quality)
    curve.to_parquet(folder / files.STEERING_CURVE)
    (folder / files.STEERING_EXAMPLES).write_text(json.dumps(steering_examples(outputs)))


def effect_rows(groups, languages):
    """Rows of `deactivation_effects`, the mean over languages among them."""
    numbers = {"intact": 1.0, "value": 0.5, "random": 0.9, "change": -0.5, "low": -0.6, "high": -0.4, "n_items": 9}
    numbers |= {"random_change": -0.1, "random_low": -0.2, "random_high": 0.0}
    numbers |= {"beyond": -0.4, "beyond_low": -0.5, "beyond_high": -0.3, "n_neurons": 17.0}
    return pd.DataFrame(
        [
            {"group": group, "language": k, "measure": m, **numbers}
            for group in groups
            for k in (*languages, "")
            for m in ("accuracy", "margin")
        ]
    )


def write_neuron_pages(folder, neurons, languages=("en", "fr")):
    """Two examples of every language neuron in two languages, and what it writes."""
    examples, logits = [], []
    for layer, j in neurons.union().nonzero().tolist():
        for language in languages:
            for rank in (1, 2):
                texts, heights = [f"{language}{rank} ", "", NASTY, "end\ufffd"], [0.5, 0.7, 3.0 / rank, 0.0]
                examples.append((language, layer, j, rank, 3.0 / rank, 0, texts, heights, 2))
        logits += [(layer, j, d, rank, f" {EVIL}{rank}", 1.5) for d in ("promoted", "suppressed") for rank in (1, 2)]
    columns = ["language", "layer", "neuron", "rank", "activation", "document", "tokens", "activations", "peak"]
    pd.DataFrame(examples, columns=columns).to_parquet(folder / files.NEURON_EXAMPLES)
    columns = ["layer", "neuron", "direction", "rank", "token", "effect"]
    pd.DataFrame(logits, columns=columns).to_parquet(folder / files.NEURON_LOGITS)


def write_run(folder, seed=0, **changes):
    random = torch.Generator().manual_seed(seed)
    n_tokens = torch.tensor([1000, 1200, 900])
    active = (torch.rand(2, 60, 3, generator=random) ** 4 * n_tokens).long()
    sums = torch.rand(2, 60, 3, generator=random).double()
    model, languages = changes.get("model", "tiny" + EVIL), changes.get("languages", LANGUAGES)
    stats = ActivationStats(
        languages, n_tokens, active, sums, sums, sums, sums, "gate", 0.0, model, model, "c", DOCUMENTS
    )
    save(stats, folder / files.STATS)
    neurons = lape(stats, rate=0.2, activation_bar_ratio=0.8)
    save(neurons, folder / files.NEURONS)
    changes.get("matrix", matrix(languages=languages)).to_parquet(folder / files.MATRIX)
    (folder / files.ABOUT).write_text(json.dumps({"seconds": EVIL, "evaluated_on": changes.get("text", "t")}))
    return neurons


@pytest.fixture(scope="module")
def run_folder(tmp_path_factory):
    folder = tmp_path_factory.mktemp("run")
    write_neuron_pages(folder, write_run(folder))
    write_studies(folder)
    return folder


@pytest.fixture(scope="module")
def page(run_folder):
    return write_report(run_folder)


def test_effects_are_means_over_languages():
    assert ablation_effects(matrix()) == {
        "own": pytest.approx(0.3),
        "other": pytest.approx(0.01),
        "random": pytest.approx(0.001),
        "hits": 3,
        "certain": 3,
        "n_languages": 3,
    }
    worse = matrix()
    worse.loc[(worse.group == "en") & (worse.evaluated == "fr"), "change"] = 0.9
    assert ablation_effects(worse)["hits"] == 2


def test_findings_on_ablation_are_made_from_the_numbers():
    words = " ".join(ablation_findings(matrix()))
    assert "most of all in 3 of 3 languages, in 3 beyond the intervals of all other languages" in words
    assert "its own loss rises with 95 % confidence in 3" in words
    assert "+0.3000 nats per token" in words
    assert "30 times less" in words
    assert "above those of all random controls in 3 of 3 languages" in words
    assert "smallest for English (en)" in words
    assert "overlap" not in words


def test_no_finding_says_more_than_its_interval():
    words = " ".join(ablation_findings(matrix(own=(0.01, 0.02, 0.03), other=0.015, random=0.02)))
    assert "most of all in 2 of 3 languages, in 0 beyond" in words
    assert "confidence in 0" in words
    assert "times less" not in words
    assert "random controls in 0 of 3" in words
    assert "the two intervals overlap" in words
    nothing = " ".join(ablation_findings(matrix(other=0.0)))
    assert "times less" not in nothing
    types = matrix().replace({"group": {k: f"type {i}" for i, k in enumerate(LANGUAGES)}})
    assert ablation_findings(types[types.condition != "random"]) == []
    alone = matrix()[lambda t: t.group.isin(["", "en"]) & (t.evaluated == "en") & (t.condition != "random")]
    assert len(ablation_findings(alone)) == 2, "nothing on other languages, random neurons or extremes"


def test_the_best_detector_is_best_only_where_intervals_say_so():
    (first, floor) = leaderboard_findings(board(lape={"specificity": 0.9, "low": 0.8, "high": 1.0}))
    assert first.startswith(
        "The detector lape is most specific (+0.9000 nats per token, 95 % interval +0.8000 to +1.0000)."
    )
    assert floor == "The intervals of 2 of 2 detectors lie above that of random neurons."
    first, floor = leaderboard_findings(board(lape={"specificity": 0.45}, floor={"high": 0.35}))
    assert "but its interval overlaps with that of lap." in first
    assert "0 of 2" in floor
    steady = leaderboard_findings(board().assign(stability=[0.5, 0.75, math.nan]))[-1]
    assert steady.startswith("The sets of the detector lap change least between two halves")
    assert leaderboard_findings(board().tail(1)) == []


def test_types_that_carry_answers_are_named_where_the_interval_excludes_zero():
    rows = [(k, 0, t, 0.2, top) for k, top in zip("abc", (0.3, 0.4, 0.5), strict=True) for t in ("specific",)]
    rows += [(k, 0, "all-shared", 0.2, top) for k, top in zip("abc", (0.1, 0.2, 0.3), strict=True)]
    (only,) = contribution_findings(pd.DataFrame(rows, columns=["language", "layer", "type", "share", "top_share"]))
    assert only.startswith("Specific neurons are 20.00% of all, but 40.00% of those")


def test_other_findings():
    table = pd.DataFrame({"language": ["en", "fr"], "found": [9, 3], "significant": [7, 0], "chance_mean": [1.0, 2.0]})
    table["chance_high"] = [3.0, 4.0]
    (only,) = significance_findings(table)
    assert only.startswith("7 of 12 memberships")
    assert "in 1 of 2 languages" in only
    table = table.assign(agreement=[0.5, 0.25], low=[0.4, 0.2], high=[0.6, 0.3])
    assert "least for French (fr): 0.25 (interval 0.20 to 0.30)" in significance_findings(table)[1]
    shares = sharing_rows().assign(low=lambda t: t["mean"] - 0.5, high=lambda t: t["mean"] + 0.5)
    assert sharing_findings(shares)[0] == (
        "All-shared neurons are 25.00% (layer 0; 0.00% to 75.00%) to 50.00% (layer 1; 0.00% to 100.00%) of a layer's "
        "neurons; the two intervals overlap."
    )
    facts = pd.DataFrame({"language": ["en", "fr"], "accuracy": [0.5, 1.0]})
    assert (
        "accuracy of 0.75 on average over languages (95 % interval over languages 0.50 to 1.00)"
        in (fact_findings(facts)[0])
    )
    assert fact_findings(facts.head(1)) == []


def test_texts_from_nothing_are_told_where_intervals_are_apart():
    found = {"chosen": {"fr": "fr", "de": "en"}, "random": {"fr": "en", "de": "en"}, "intact": {"fr": "en", "de": "en"}}
    rows = [(k, c, k_found) for c, by in found.items() for k, k_found in by.items() for _ in range(20)]
    texts = pd.DataFrame(rows, columns=["target", "condition", "found"]).assign(source="", seed=0)
    shares, certain = unconditional_findings(texts)
    assert "held, 50% (35% to 65% of 40) of the texts from nothing are in it, with random neurons held 0%" in shares
    assert certain.endswith("more often for French (fr), not certainly more or less often for 1 of 2 languages.")
    assert unconditional_findings(texts[texts.condition != "random"]) == []


@pytest.mark.parametrize(("random", "word"), [(0.01, "more than"), (0.3, "not certainly other than"), (0.9, "fewer")])
def test_an_overlap_is_held_against_random_neurons(random, word):
    pairs = [("en", 0.2), ("fr", 0.3), ("ja", 0.4), ("de", 0.3)]
    (said,) = overlap_findings(pd.DataFrame(pairs, columns=["language", "overlap"]).assign(random=random))
    assert f"That is {word}" in said
    assert "30.0% of a language's neurons" in said


def measured(n):
    values = st.floats(-10, 10)
    return st.tuples(*(arrays.arrays(float, n, elements=values if i == 0 else st.floats(0, 5)) for i in range(3))).map(
        lambda parts: (parts[0], parts[0] - parts[1], parts[0] + parts[2])
    )


def test_steering_counts_targets_and_pools_outputs():
    rows = [
        ("en", "fr", "intact", 4, 0.0),
        ("en", "fr", "chosen", 4, 0.75),
        ("ja", "fr", "chosen", 4, 0.25),
        ("ja", "fr", "intact", 4, 0.0),
        ("en", "ja", "intact", 4, 0.5),
        ("en", "ja", "chosen", 4, 0.5),
        ("en", "en", "chosen", 4, 1.0),
    ]
    table = pd.DataFrame(rows, columns=["source", "target", "condition", "n", "in_target"])
    first, intact, steered = steering_findings(table)
    assert "for 1 of 2 languages" in first
    assert "The model as it is gives 17% of 12 outputs in the language wanted" in intact
    assert "The steered model gives 50% of 12 outputs in the language wanted" in steered
    assert steering_findings(table[table.condition == "chosen"]) == []


def test_deactivation_names_what_is_worse_than_random():
    columns = ["group", "language", "measure", "n_neurons", "change", "low", "high", "random_change", "beyond_high"]
    rows = [
        ("all-shared", "", "margin", 28.0, -3.5, -4.6, -2.6, -0.1, -2.0),
        ("specific", "", "margin", 380.0, 0.0, -0.3, 0.4, -0.4, 0.9),
        ("all-shared", "en", "accuracy", 28.0, -0.2, -0.3, -0.1, -0.1, -0.01),
    ]
    worse, rest = deactivation_findings(pd.DataFrame(rows, columns=columns))
    assert "all-shared neurons (28 per question)" in worse
    assert "-3.50 nats (95 % interval -4.60 to -2.60)" in worse
    assert rest == "Whether specific neurons do more harm than random ones is not certain."


@given(measured(3), measured(3))
def test_intervals_of_differences_and_means(mine, theirs):
    change, low, high = difference(mine, theirs)
    mean, mean_low, mean_high = mean_of(*mine)
    for i in range(3):
        assert change[i] == pytest.approx(mine[0][i] - theirs[0][i])
        down, up = mine[0][i] - mine[1][i], theirs[2][i] - theirs[0][i]
        assert change[i] - low[i] == pytest.approx(math.sqrt(down**2 + up**2), abs=1e-9)
        down, up = theirs[0][i] - theirs[1][i], mine[2][i] - mine[0][i]
        assert high[i] - change[i] == pytest.approx(math.sqrt(down**2 + up**2), abs=1e-9)
    assert mean == pytest.approx(sum(mine[0]) / 3)
    assert mean - mean_low == pytest.approx(math.sqrt(sum((mine[0] - mine[1]) ** 2)) / 3, abs=1e-9)
    assert mean_high - mean == pytest.approx(math.sqrt(sum((mine[2] - mine[0]) ** 2)) / 3, abs=1e-9)


def test_intervals_of_independent_normals_cover_the_difference():
    random = np.random.default_rng(0)
    mine, theirs = random.normal(1, 0.1, 20000), random.normal(0.5, 0.2, 20000)
    _, low, high = difference((mine, mine - 0.196, mine + 0.196), (theirs, theirs - 0.392, theirs + 0.392))
    assert ((low < 0.5) & (high > 0.5)).mean() == pytest.approx(0.95, abs=0.01)


def test_a_table_nobody_described_is_shown_under_its_own_names():
    table = pd.DataFrame({"layer": [1], "neuron": [7], "my_share": [0.12345], "n": [1234], "low": [0.5], "high": [1.0]})
    table = table.assign(good=True, names=[["a", "b"]], none=[None])
    columns = described(table, ())
    assert [c.title for c in columns] == ["neuron", "my share", "n", "95 % interval", "good", "names", "none"]
    (row,) = cells(table, columns)
    assert [cell.text for cell in row] == ["1.7", "0.1235", "1,234", "0.5 to 1", "yes", "a b", "–"]
    assert row[0].link == "#neuron-1.7"
    assert row[3].values == [0.5, 1.0]


def test_described_columns_that_a_table_lacks_are_left_out():
    table = pd.DataFrame({"a": [1.0, math.nan]})
    columns = described(table, (column("a", "A", "{:.1f}"), column("b"), column("a b", "both", "{} {}")))
    assert [c.title for c in columns] == ["A"]
    assert [row[0].text for row in cells(table, columns)] == ["1.0", "–"]
    assert [c.title for c in described(table, (column("b"),))] == ["a"]


def test_json_cannot_end_its_script_element():
    text = script_json({"x": NASTY})
    assert not set(text) & set("<>&\u2028\u2029")
    assert json.loads(text) == {"x": NASTY}
    assert json.loads(script_json(f'["{chr(0x2028)}犬"]')) == ["\u2028犬"]


def test_languages_have_names_where_they_are_known():
    assert (named("ja"), named("zz"), named("all-shared")) == ("Japanese (ja)", "zz", "all-shared")
    assert len(set(NAMES.values())) == len(NAMES)
    assert (listed(["a"]), listed(["a", "b", "c"])) == ("a", "a, b and c")


def test_text_in_a_table_is_said_in_words_and_kept_in_code():
    table = pd.DataFrame({"language": ["fr"], "condition": ["chosen"]})
    (row,) = cells(table, (language_column(), column("condition", words=said({"chosen": "steered"}))))
    assert [(cell.text, cell.values) for cell in row] == [("French (fr)", ["fr"]), ("steered", ["chosen"])]


def test_every_file_of_a_run_is_shown():
    """A renamed file would drop its section, and a file without a section would never be seen."""
    named = {value for name, value in vars(files).items() if name.isupper()}
    shown = {name for s in SECTIONS for name in (*s.files, *(name for f in s.figures for name in f.files))}
    parts_of_the_page = {files.NEURON_EXAMPLES, files.NEURON_LOGITS, files.ABOUT, files.PAGE}
    assert shown | parts_of_the_page == named
    assert not shown & parts_of_the_page


def test_file_names_stand_in_one_place():
    """No other file of the report or the demo names a file of a run."""
    names = "|".join(re.escape(value) for name, value in vars(files).items() if name.isupper())
    folder = Path(files.__file__).parents[1]
    sources = [p for part in ("report", "demo", "plots") for p in (folder / part).rglob("*.py")]
    found = [p.name for p in sources if re.search(f"[\"'](?:{names})[\"']", p.read_text(encoding="utf-8"))]
    assert found == ["files.py"]


def test_sections_are_a_module_of_their_own():
    assert report_sections.SECTIONS is SECTIONS
    assert all(section in SECTIONS for subject in report_sections.SUBJECTS for section in subject.SECTIONS)


def test_sections_and_figures_have_ids_of_their_own():
    ids = [s.id for s in SECTIONS] + [f.id for s in SECTIONS for f in s.figures]
    assert len(set(ids)) == len(ids)


def test_a_folder_that_is_no_run_is_refused(tmp_path):
    with pytest.raises(ValueError, match=r"without stats.safetensors .*; run `mi-multilingual demo"):
        write_report(tmp_path)


def test_the_page_needs_no_network_and_texts_are_escaped(page):
    text = page.read_text(encoding="utf-8")
    assert EVIL not in text
    assert "&lt;script&gt;document.title" in text
    assert "sleeps" in text
    assert "default-src 'none'" in text
    outside = re.sub(r"<script[^>]*>.*?</script>", "", text, flags=re.DOTALL)
    assert outside.count("<script") == outside.count("</script") == 0
    assert not re.search(r"(src|href|url|action|import)\s*[=(]\s*[\"']?\s*(https?:)?//", outside)
    assert not re.search(r"<(link|img|iframe|object|embed|base)\b", outside)
    assert text.count("<script") == 3


def test_stability_of_detectors_is_shown_where_it_is_known(tmp_path):
    write_run(tmp_path)
    board().to_parquet(tmp_path / files.LEADERBOARD)
    assert ">stability<" not in write_report(tmp_path).read_text()
    board().assign(stability=[0.5, 0.625, math.nan]).to_parquet(tmp_path / files.LEADERBOARD)
    assert {">stability<", ">0.62<"} <= set(re.findall(r">stability<|>0.62<", write_report(tmp_path).read_text()))


def test_tables_of_any_columns_make_sections(tmp_path, monkeypatch):
    """What needs no statistics needs none: a file alone makes a page."""
    monkeypatch.setattr(page_of, "SECTIONS", (Section("new", "New", ("new.parquet",)),))
    pd.DataFrame({"language": ["en"], "strength": [1.5], "text": [EVIL]}).to_parquet(tmp_path / "new.parquet")
    text = write_report(tmp_path).read_text()
    assert '<table id="table-new">' in text
    assert EVIL not in text
    assert 'id="search"' not in text
    assert f"<h1>Run {tmp_path.name}</h1>" in text


def test_steering_has_its_sections(tmp_path):
    write_steering(tmp_path)
    text = write_report(tmp_path).read_text()
    for section in ("steering", "steering-curve", "steering-examples"):
        assert f'<table id="table-{section}">' in text
    assert EVIL not in text
    assert "for 2 of 2 languages" in text
    assert {">as it is<", ">steered<"} <= set(re.findall(">[a-z ]+<", text))


def test_deactivation_has_its_sections(tmp_path):
    items = [
        ("a", k, "t", condition, group, seed, 3, right - 0.5, right)
        for k in ("en", "fr")
        for condition, group, seed, right in ANSWERS
    ]
    columns = ["id", "language", "task", "condition", "group", "seed", "n_neurons", "margin", "correct"]
    for name in (files.DEACTIVATION, files.CROSS_FACTS):
        deactivation_effects(pd.DataFrame(items, columns=columns)).to_parquet(tmp_path / name)
    text = write_report(tmp_path).read_text()
    assert '<table id="table-deactivation">' in text
    assert '<table id="table-cross-facts">' in text
    assert ">all languages<" in text


ANSWERS = [("intact", "", -1, True), ("chosen", "all-shared", -1, False), ("random", "all-shared", 0, True)]


def sweep_table(own=0.5, random=0.1, others=0.01, half=0.05):
    names = ["setting", "evaluation", "measure", "where", "condition", "n", "base", "change", "low", "high"]
    rows = [
        (f"rate {rate}", "language", "loss", where, condition, 3, 2.0, rate * y, rate * y - half, rate * y + half)
        for rate in (1, 2)
        for where, condition, y in (("own", "chosen", own), ("own", "random", random), ("others", "chosen", others))
    ]
    table = pd.DataFrame(rows, columns=names)
    return table.assign(value=table.base + table.change)


def test_a_sweep_is_told_by_its_largest_change_and_against_random_neurons():
    said = sweep_findings(sweep_table())
    assert said == [
        "Loss (language): the largest of 2 changes is +1.0000 nats per token for text in the neurons' own language "
        "(rate 2; 95 % interval over 3 languages +0.9500 to +1.0500), +0.0200 for other languages, +0.2000 with as "
        "many random neurons.",
        "Loss (language): 2 of 2 changes have an interval apart from that of random neurons.",
    ]
    assert sweep_findings(sweep_table(own=0.12))[1].startswith("Loss (language): 0 of 2 changes")
    one = sweep_table().query("setting == 'rate 1' and condition == 'chosen' and where == 'own'")
    types = one.assign(where="all-shared", measure="accuracy", n=1, low=float("nan"), high=float("nan"))
    assert sweep_findings(types) == [
        "Accuracy (language): the change is +0.5000 for questions without their all-shared neurons (rate 1)."
    ]
    assert sweep_findings(one.assign(where="others")) == []


def test_a_sweep_has_its_sections(tmp_path):
    sweep_table().to_parquet(tmp_path / files.SWEEP_EFFECTS)
    cells = {"model": "demo", "detector": "lape", "rate": [0.1, float("nan")], "group": "en", "evaluated": "fr"}
    cells |= {
        "condition": ["chosen", "random"],
        "measure": "loss",
        "change": 0.5,
        "low": 0.4,
        "high": 0.6,
        "n_neurons": 5,
        "parameters": "{}",
    }
    pd.DataFrame(cells).to_parquet(tmp_path / files.SWEEP)
    text = write_report(tmp_path).read_text(encoding="utf-8")
    assert 'id="section-sweep-effects"' in text
    assert 'id="section-sweep-cells"' in text
    assert "the largest of 2 changes is" in text
    assert {">chosen neurons<", ">random neurons<"} <= set(re.findall(">[a-z ]+<", text))
    assert "What the settings of the sweep change" in text


def test_a_sweep_that_was_run_is_shown(tmp_path):
    """The files and columns that a sweep writes are those that the page reads."""
    (tmp_path / "texts").mkdir()
    for language, sentences in checkpoints.SENTENCES.items():
        (tmp_path / "texts" / f"{language}.txt").write_text("\n".join(sentences), encoding="utf-8")
    given = {
        "model": str(checkpoints.checkpoint("opt", tmp_path / "model")),
        "corpus": {"source": str(tmp_path / "texts"), "layout": "documents", "window": 12},
        "detector": ["lap", "activation_percentile"],
        "rate": 0.3,
        "seeds": [0],
    }
    assert experiments.run(experiments.Study.model_validate(given), tmp_path / "sweep", progress=False).complete
    text = write_report(tmp_path / "sweep").read_text(encoding="utf-8")
    missing = [s.id for s in sweeps.SECTIONS if f'<table id="table-{s.id}">' not in text]
    assert missing == []
    words = {">chosen neurons<", ">random neurons<", ">French (fr)<", ">activation percentile<"}
    assert words <= set(re.findall(r">[A-Za-z ()]+<", text))


PLAIN = ("qqa", "qqb", "qqc")


def whole_run(folder, languages):
    """A run with everything that a page can show."""
    folder.mkdir()
    write_neuron_pages(folder, write_run(folder, languages=languages), languages[:2])
    write_studies(folder, languages)
    write_steering(folder, languages)
    effect_rows(TYPES, languages).to_parquet(folder / files.DEACTIVATION)
    effect_rows(languages, languages).to_parquet(folder / files.CROSS_FACTS)
    for name, table in {**tables.of_every_study(languages), **speaker.tables(languages)}.items():
        table.to_parquet(folder / f"{name}.parquet")
    sweep_table().to_parquet(folder / files.SWEEP_EFFECTS)
    cells = {"group": languages[0], "evaluated": languages, "condition": ["chosen", "random", "chosen"]}
    pd.DataFrame({"model": "demo", **cells, "change": 0.5}).to_parquet(folder / files.SWEEP)
    return folder


@pytest.mark.parametrize("names", [("none", "random", "all"), ("intact", "chosen", "random neurons")])
def test_languages_may_have_any_name(tmp_path, names):
    """The page is that of languages with plain names, but for the names themselves."""
    plain, strange = (whole_run(tmp_path / str(i), languages) for i, languages in enumerate((PLAIN, names)))
    missing = {files.PAGE} - {p.name for p in strange.iterdir()}
    assert {p.name for p in strange.iterdir()} | missing == {v for n, v in vars(files).items() if n.isupper()}
    expected = write_report(plain).read_text(encoding="utf-8")
    for name, other in zip(PLAIN, names, strict=True):
        expected = expected.replace(name, other)
    found = write_report(strange).read_text(encoding="utf-8")
    differing = [(a, b) for a, b in zip(expected.split("\n"), found.split("\n"), strict=True) if a != b]
    assert [(a[:200], b[:200]) for a, b in differing] == []


@pytest.mark.parametrize(
    ("name", "table"),
    [
        (files.MATRIX, {"ablated": ["none"], "evaluated": ["en"]}),
        (files.DEACTIVATION, {"off": ["en"], "language": ["all"], "beyond": [0.1]}),
        (files.STEERING, {"source": ["en"], "condition": ["unsteered"]}),
        (files.SWEEP_EFFECTS, {"setting": ["rate 0.1"], "where": ["own"], "neurons": ["detected"]}),
    ],
)
def test_tables_of_an_earlier_version_are_refused(tmp_path, name, table):
    pd.DataFrame(table).to_parquet(tmp_path / name)
    with pytest.raises(ValueError, match=r"written by mi_multilingual 0\.1; make it again"):
        write_report(tmp_path)


def test_a_file_that_holds_something_else_is_refused(tmp_path):
    neurons = write_run(tmp_path)
    save(neurons, tmp_path / files.STATS)
    with pytest.raises(ValueError, match="must hold ActivationStats, got NeuronSet"):
        write_report(tmp_path)


def test_long_tables_are_cut_and_empty_ones_left_out(tmp_path, monkeypatch):
    sections = tuple(Section(name, name, (f"{name}.parquet",)) for name in ("long", "empty"))
    monkeypatch.setattr(page_of, "SECTIONS", sections)
    pd.DataFrame({"a": range(LONGEST + 7)}).to_parquet(tmp_path / "long.parquet")
    pd.DataFrame({"a": []}).to_parquet(tmp_path / "empty.parquet")
    text = write_report(tmp_path).read_text()
    assert "The first 2,000 rows; 7 more are in long.parquet." in text
    assert "table-empty" not in text


def test_neuron_data_holds_every_neuron_or_those_of_languages(run_folder, monkeypatch):
    run = Run(run_folder)
    whole = neuron_pages.neuron_data(run)
    assert whole["index"] is None
    at = (1 * 60 + 7) * 3 + 2
    assert whole["active"][at] == int(run.stats.active[1, 7, 2])
    assert whole["mean"][at] == pytest.approx(float(run.stats.mean()[1, 7, 2]), rel=5e-3)
    monkeypatch.setattr(neuron_pages, "MOST_NUMBERS", 10)
    part = neuron_pages.neuron_data(run)
    assert part["index"] == list(part["members"]) == list(whole["members"])
    assert len(part["active"]) == 3 * len(part["index"])
    layer, j = map(int, part["index"][1].split("."))
    assert part["active"][3:6] == run.stats.active[layer, j].tolist()
    assert set(part["examples"]) == set(part["logits"]) == set(part["index"])


def test_tokens_that_share_a_character_are_one_piece():
    pieces = neuron_pages.whole_characters(["\ufffda", "犬", "", "", "z"], [0.0, 1.0, 3.0, 2.0, 0.5], 3)
    assert pieces == (["a", "犬", "z"], [0.0, 3.0, 0.5], 1)
    assert neuron_pages.whole_characters(["", "b"], [1.0, 2.0], 0) == (["", "b"], [1.0, 2.0], 0)


@pytest.fixture
def two_runs(tmp_path):
    folders = tmp_path / "here", tmp_path / "there"
    for folder in folders:
        folder.mkdir()
    return folders


def comparison_text(folders, **changes):
    write_run(folders[0])
    write_run(folders[1], **changes)
    text = write_report(folders[0], compare=folders[1]).read_text()
    part = text[text.index('<section id="section-comparison">') :]
    return part[: part.index("</section>")], text


def test_a_run_agrees_with_itself(two_runs):
    section, text = comparison_text(two_runs)
    assert "The own effect is larger here in 0 and smaller in 0 of 3 languages" in text
    assert "overlap by 1.00 on average" in text
    assert section.count(">+0.0000<") == 6
    assert "different texts" not in section
    assert "here: lape" in section.lower()


def test_differences_of_runs_have_intervals(two_runs):
    section, text = comparison_text(two_runs, seed=1, matrix=matrix(own=(0.2, 0.3, 0.9)), text="u")
    assert "larger here in 0 and smaller in 1 of 3 languages" in text
    reach = math.sqrt(2) * 0.05
    assert f">{-0.5 - reach:+.4f} to {-0.5 + reach:+.4f}<" in section
    assert "different texts" in section
    mine, theirs = (load(folder / files.NEURONS, NeuronSet) for folder in two_runs)
    for overlap in mine.agreement(theirs):
        assert f">{overlap:.2f}<" in section


def test_runs_of_different_models_compare_what_can_be_compared(two_runs):
    section, text = comparison_text(two_runs, model="another")
    assert "The models differ" in section
    assert "on average (Jaccard)" not in text
    assert "bits per byte)" in text
    assert f">{0.2 * 100 / 300 / math.log(2):+.4f}<" in section


def test_what_cannot_be_compared_is_refused(two_runs):
    mine, other = two_runs
    write_run(mine)
    with pytest.raises(ValueError, match=r"got .*there without neurons.safetensors"):
        write_report(mine, compare=other)
    write_run(other, matrix=matrix()[lambda t: t.condition == "intact"])
    with pytest.raises(ValueError, match="must have a language in common"):
        write_report(mine, compare=other)


@pytest.fixture
def opened(browser, page):
    """The page in light colours, freshly loaded; at the end nothing may have been logged."""
    show(browser, page, "light", 1200)
    yield browser
    assert browser.get_log("browser") == []
    assert browser.title.startswith("Language neurons of tiny<script>"), "no text ran as a script"


def show(browser, page, scheme, width):
    media = {"features": [{"name": "prefers-color-scheme", "value": scheme}]}
    browser.execute_cdp_cmd("Emulation.setEmulatedMedia", media)
    size = {"width": width, "height": 900, "deviceScaleFactor": 1, "mobile": False}
    browser.execute_cdp_cmd("Emulation.setDeviceMetricsOverride", size)
    browser.get("about:blank")
    browser.get(page.as_uri())


def column_of(browser, table, index):
    rows = "[...document.querySelectorAll(`#${arguments[0]} tbody tr:not([hidden])`)]"
    script = f"return {rows}.map(row => row.cells[arguments[1]].innerText)"
    return browser.execute_script(script, table, index)


@pytest.mark.browser
@pytest.mark.parametrize(("scheme", "width"), [("light", 1200), ("dark", 400)])
def test_the_page_draws_every_figure_without_an_error(browser, page, scheme, width):
    show(browser, page, scheme, width)
    assert browser.get_log("browser") == []
    drawn = browser.execute_script(
        "return [...document.querySelectorAll('.plot')].map(p => p.querySelectorAll('svg.main-svg').length)"
    )
    assert len(drawn) == 11
    assert all(drawn)
    assert browser.title.startswith("Language neurons of tiny<script>")
    texts = browser.execute_script("return [...document.querySelectorAll('td')].map(cell => cell.textContent)")
    assert f"sleeps {EVIL}" in texts
    assert NASTY in texts
    style = "getComputedStyle(document.body).backgroundColor"
    ground = browser.execute_script(f"return {style}")
    assert ground == {"light": "rgb(251, 251, 249)", "dark": "rgb(20, 23, 26)"}[scheme]
    ink = browser.execute_script("return document.querySelector('#change').layout.font.color")
    assert ink == {"light": "#1c2024", "dark": "#e8eaec"}[scheme]
    wide = browser.execute_script("return [document.documentElement.scrollWidth, document.documentElement.clientWidth]")
    assert wide[0] <= wide[1]
    assert browser.execute_script("return performance.getEntriesByType('resource').map(e => e.name)") == []


@pytest.mark.browser
def test_figures_follow_a_change_of_colours(opened):
    media = {"features": [{"name": "prefers-color-scheme", "value": "dark"}]}
    opened.execute_cdp_cmd("Emulation.setEmulatedMedia", media)
    opened.execute_async_script("requestAnimationFrame(() => setTimeout(arguments[0], 50))")
    assert opened.execute_script("return document.querySelector('#change').layout.font.color") == "#e8eaec"
    opened.execute_script("dispatchEvent(new Event('beforeprint'))")
    assert opened.execute_script("return document.querySelector('#change').layout.font.color") == "#1c2024"
    opened.execute_script("dispatchEvent(new Event('afterprint'))")
    assert opened.execute_script("return document.querySelector('#change').layout.font.color") == "#e8eaec"


@pytest.mark.browser
def test_a_neuron_page_opens_by_search(opened, run_folder):
    neurons, stats = Run(run_folder).neurons, Run(run_folder).stats
    layer, j = neurons.union().nonzero()[0].tolist()
    field = opened.find_element("id", "wanted")
    field.send_keys(f"{layer}.{j}\n")
    shown = opened.find_element("id", "neuron")
    assert shown.find_element("tag name", "h1").text == f"Neuron {layer}.{j}"
    assert not opened.find_element("id", "top").is_displayed()
    assert opened.find_elements("css selector", "#profile svg.main-svg")
    active, n = int(stats.active[layer, j, 1]), int(stats.n_tokens[1])
    assert column_of(opened, "table-neuron", 3)[1] == f"{active / n:.4f}"
    from mi_multilingual.evaluation.intervals import wilson_interval

    low, high = wilson_interval(active / n, n)
    assert column_of(opened, "table-neuron", 4)[1] == f"{low:.4f} to {high:.4f}"
    peaks = opened.execute_script("return [...document.querySelectorAll('mark.peak')].map(m => m.textContent)")
    assert peaks == [NASTY] * 4
    pieces = opened.execute_script("return document.querySelector('.example .text').textContent")
    assert pieces == f"en1 {NASTY}end"
    assert column_of(opened, "table-promoted", 0) == [f"␣{EVIL}1", f"␣{EVIL}2"]
    opened.back()
    assert opened.find_element("id", "top").is_displayed()
    opened.execute_script("location.hash = '%'")
    assert opened.find_element("id", "top").is_displayed()


@pytest.mark.browser
def test_neurons_without_examples_and_that_do_not_exist_say_so(opened, run_folder):
    free = (~Run(run_folder).neurons.union()).nonzero()[0].tolist()
    field = opened.find_element("id", "wanted")
    field.send_keys(f"{free[0]}.{free[1]}\n")
    assert "No examples are kept for this neuron" in opened.find_element("id", "neuron").text
    assert len(column_of(opened, "table-neuron", 0)) == 3
    for wrong in ("9.1", "1.60", "x<b>", "5%", "1"):
        field.clear()
        field.send_keys(f"{wrong}\n")
        assert f"There is no neuron “{wrong}”" in opened.find_element("id", "neuron").text


@pytest.mark.browser
def test_a_neuron_page_opens_by_link_and_by_a_point(opened):
    link = opened.find_element("css selector", "#table-neurons tbody a")
    name = link.text
    opened.execute_script("arguments[0].click()", link)
    assert opened.find_element("css selector", "#neuron h1").text == f"Neuron {name}"
    following = opened.find_elements("css selector", "#neuron .steps a")[-1]
    expected = following.text.strip("←→ ")
    following.click()
    assert opened.find_element("css selector", "#neuron h1").text == f"Neuron {expected}"
    opened.find_element("css selector", "#neuron .steps a").click()
    assert opened.find_element("id", "top").is_displayed()
    opened.execute_script(
        "const plot = document.querySelector('#map'), data = plot.data[0];"
        "plot.emit('plotly_click', {points: [{data, text: data.text[0]}]})"
    )
    assert opened.find_element("css selector", "#neuron h1").text.startswith("Neuron ")


@pytest.mark.browser
def test_tables_sort_by_mouse_and_keyboard(opened):
    headings = opened.find_elements("css selector", "#table-languages th")
    button = headings[5].find_element("tag name", "button")
    opened.execute_script("arguments[0].click()", button)
    assert headings[5].get_attribute("aria-sort") == "ascending"
    assert column_of(opened, "table-languages", 5) == ["+0.2000", "+0.3000", "+0.4000"]
    button.send_keys("\ue007")
    assert headings[5].get_attribute("aria-sort") == "descending"
    assert column_of(opened, "table-languages", 5) == ["+0.4000", "+0.3000", "+0.2000"]
    headings[0].find_element("tag name", "button").send_keys(" ")
    assert headings[5].get_attribute("aria-sort") == "none"
    assert column_of(opened, "table-languages", 0) == [*map(named, LANGUAGES)]
    neurons = opened.find_elements("css selector", "#table-neurons th button")[1]
    opened.execute_script("arguments[0].click()", neurons)
    names = [tuple(map(int, name.split("."))) for name in column_of(opened, "table-neurons", 1)]
    assert names == sorted(names)


@pytest.mark.browser
def test_the_language_switch_filters_tables_examples_and_figures(opened):
    from selenium.webdriver.support.ui import Select

    select = Select(opened.find_element("id", "language"))
    assert [option.text for option in select.options] == ["all languages", *map(named, LANGUAGES)]
    select.select_by_value("fr")
    assert set(column_of(opened, "table-neurons", 0)) == {"French (fr)"}
    assert column_of(opened, "table-languages", 0) == ["French (fr)"]
    visible = opened.execute_script("return document.querySelector('#map').data.map(t => t.visible)")
    assert visible == ["legendonly", True, "legendonly"]
    link = opened.find_element("css selector", "#table-neurons tbody tr:not([hidden]) a")
    opened.execute_script("arguments[0].click()", link)
    assert opened.execute_script("return [...document.querySelectorAll('#neuron .examples')].length") == 1
    select.select_by_value("en")
    texts = opened.execute_script("return [...document.querySelectorAll('.example .text')].map(e => e.textContent)")
    assert [text[:3] for text in texts] == ["en1", "en2"]
    select.select_by_value(LANGUAGES[2])
    assert "It is above zero nowhere in x" in opened.find_element("id", "neuron").text
    select.select_by_value("")
    assert opened.execute_script("return [...document.querySelectorAll('#neuron .examples')].length") == 2


@pytest.mark.browser
def test_a_table_is_saved_as_csv(opened):
    import csv
    import io

    opened.execute_script(
        "window.saved = []; URL.createObjectURL = blob => { window.saved.push(blob); return 'blob:x'; };"
        "HTMLAnchorElement.prototype.click = function() { window.savedAs = this.download; }"
    )
    button = opened.find_element("css selector", "button.csv[data-table=table-facts]")
    opened.execute_script("arguments[0].dispatchEvent(new MouseEvent('click', {bubbles: true}))", button)
    text = opened.execute_async_script("window.saved[0].text().then(arguments[0])")
    assert opened.execute_script("return window.savedAs") == "facts.csv"
    rows = list(csv.reader(io.StringIO(text, newline="")))
    assert rows[0] == ["language", "relation", "wording", "n", "accuracy", "low", "high"]
    assert rows[1] == ["en", NASTY, "0", "40", "0.9", "0.8", "0.95"]
    assert rows[2][1] == "'=1+1", "a spreadsheet must not run it"
