import os

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
