import json
import shutil

import pandas as pd
import pytest
import torch

from mi_multilingual import TYPES, ActivationStats, NeuronScores, NeuronSet, lape, report
from mi_multilingual.report import effects, findings

EVIL = "<script>document.title='owned'</script>"
LANGUAGES = ("en", "fr", "x" + EVIL)


def matrix():
    rows = []
    for ablated, seed in [("none", -1), *((k, -1) for k in LANGUAGES), ("random", 0)]:
        for i, evaluated in enumerate(LANGUAGES):
            change = {"none": 0.0, "random": 0.001}.get(ablated, 0.2 + 0.1 * i if ablated == evaluated else 0.01)
            row = {"ablated": ablated, "evaluated": evaluated, "seed": seed, "n_neurons": 7, "change": change}
            row |= {"low": change - 0.05, "high": change + 0.05, "nll": 3 + change, "ppl": 20.0, "bits_per_byte": 2.0}
            rows.append({**row, "n_tokens": 100, "n_bytes": 300, "n_rows": 9})
    return pd.DataFrame(rows)


def write_studies(folder):
    """The tables that a run holds beside its main job."""
    n = len(LANGUAGES)
    found = {"found": [9] * n, "significant": [7] * n, "chance_mean": [1.5] * n, "chance_high": [3.0] * n}
    halves = {"agreement": [0.4] * n, "low": [0.3] * n, "high": [0.5] * n}
    pd.DataFrame({"language": LANGUAGES, **found, **halves}).to_parquet(folder / "significance.parquet")
    NeuronScores(torch.full((2, 60, n), 0.5), LANGUAGES, "membership").save(folder / "membership.safetensors")
    rows = [("all", 0.0, i, t, 0.25, 0.2, 0.3, 0.1, 0.4, 15, 0.8) for i in range(2) for t in TYPES]
    columns = ["task", "threshold", "layer", "type", "mean", "low", "high", "min", "max", "n_neurons", "stability"]
    pd.DataFrame(rows, columns=columns).to_parquet(folder / "sharing.parquet")
    pd.DataFrame(torch.eye(n).numpy(), LANGUAGES, LANGUAGES).to_parquet(folder / "overlap.parquet")
    parts = [(k, i, t, 0.25, 0.25) for k in LANGUAGES for i in range(2) for t in TYPES]
    pd.DataFrame(parts, columns=["language", "layer", "type", "share", "top_share"]).to_parquet(
        folder / "attribution.parquet"
    )
    row = {"own": 0.5, "elsewhere": 0.1, "specificity": 0.4, "low": 0.3, "high": 0.5, "hits": 3, "n_neurons": 5.0}
    pd.DataFrame([{"detector": EVIL, **row}]).to_parquet(folder / "leaderboard.parquet")


@pytest.fixture
def run_folder(tmp_path):
    random = torch.Generator().manual_seed(0)
    n_tokens = torch.tensor([1000, 1200, 900])
    active = (torch.rand(2, 60, 3, generator=random) ** 4 * n_tokens).long()
    sums = torch.rand(2, 60, 3, generator=random).double()
    stats = ActivationStats(LANGUAGES, n_tokens, active, sums, sums, sums, "gate", 0.0, "tiny" + EVIL, "f", "c")
    stats.save(tmp_path / "stats.safetensors")
    lape(stats, top_rate=0.2, activation_bar_ratio=0.8).save(tmp_path / "neurons.safetensors")
    matrix().to_parquet(tmp_path / "matrix.parquet")
    facts = [{"language": "en", "relation": EVIL, "wording": 0, "accuracy": 0.9, "low": 0.8, "high": 0.95, "n": 40}]
    pd.DataFrame(facts).to_parquet(tmp_path / "facts.parquet")
    write_studies(tmp_path)
    examples = [{"language": "en", "prompt": "The dog", "continuation": f"sleeps {EVIL}"}]
    (tmp_path / "continuations.json").write_text(json.dumps(examples))
    (tmp_path / "run.json").write_text(json.dumps({"seconds": EVIL}))
    return tmp_path


def test_findings_are_made_from_the_numbers(run_folder):
    e = effects(matrix())
    assert e == {
        "own": pytest.approx(0.3),
        "other": pytest.approx(0.01),
        "random": pytest.approx(0.001),
        "hits": 3,
        "certain": 3,
        "n_languages": 3,
    }
    words = " ".join(findings(matrix(), NeuronSet.load(run_folder / "neurons.safetensors")))
    assert "most of all in 3 of 3 languages" in words
    assert "+0.3000 nats a token" in words
    assert "30 times the mean effect" in words
    worse = matrix()
    worse.loc[(worse.ablated == "en") & (worse.evaluated == "fr"), "change"] = 0.9
    assert effects(worse)["hits"] == 2


def test_a_folder_that_is_no_run_is_refused(tmp_path):
    with pytest.raises(ValueError, match=r"has no stats.safetensors; run `mi-multilingual demo"):
        report(tmp_path)


def test_the_page_needs_no_network_and_texts_are_escaped(run_folder):
    page = report(run_folder).read_text(encoding="utf-8")
    assert EVIL not in page
    assert "&lt;script&gt;document.title" in page
    head, _, body = page.partition("</head>")
    assert 'src="http' not in page.replace(head, "")
    assert "<link" not in body
    assert "sleeps" in body


@pytest.fixture(scope="module")
def browser(tmp_path_factory):
    from selenium import webdriver

    if not shutil.which("chromium") or not shutil.which("chromedriver"):
        pytest.fail("install Debian's chromium and chromium-driver for the browser tests")
    options = webdriver.ChromeOptions()
    options.binary_location = shutil.which("chromium")
    for flag in (
        "headless=new",
        "no-sandbox",
        "disable-gpu",
        "disable-quic",
        "no-first-run",
        "disable-background-networking",
    ):
        options.add_argument(f"--{flag}")
    options.add_argument("--disable-component-update")
    options.add_argument("--disable-sync")
    options.add_argument(f"--user-data-dir={tmp_path_factory.mktemp('chromium')}")
    options.set_capability("goog:loggingPrefs", {"browser": "ALL"})
    driver = webdriver.Chrome(options=options, service=webdriver.ChromeService(shutil.which("chromedriver")))
    yield driver
    driver.quit()


@pytest.mark.browser
@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_the_page_draws_every_figure_without_an_error(browser, run_folder, scheme):
    page = report(run_folder)
    browser.execute_cdp_cmd(
        "Emulation.setEmulatedMedia", {"features": [{"name": "prefers-color-scheme", "value": scheme}]}
    )
    browser.get(page.as_uri())
    assert [e for e in browser.get_log("browser") if e["level"] == "SEVERE"] == []
    drawn = browser.execute_script(
        "return [...document.querySelectorAll('.plot')].map(p => p.querySelectorAll('svg.main-svg').length)"
    )
    assert len(drawn) >= 11
    assert all(drawn)
    assert browser.title.startswith("Language neurons of tiny<script>")
    texts = [cell.text for cell in browser.find_elements("css selector", "td")]
    assert f"sleeps {EVIL}" in texts
    assert texts.count(EVIL) == 2
    for section in ("significance", "leaderboard", "sharing"):
        assert browser.find_element("id", section).text
    ground = browser.execute_script("return getComputedStyle(document.body).backgroundColor")
    assert ground == {"light": "rgb(251, 251, 249)", "dark": "rgb(20, 23, 26)"}[scheme]
    wide = browser.execute_script("return [document.documentElement.scrollWidth, document.documentElement.clientWidth]")
    assert wide[0] <= wide[1]
