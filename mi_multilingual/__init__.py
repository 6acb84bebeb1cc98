"""Mechanistic interpretability of multilingual language models at the level of neurons."""

from . import demo, plots
from .analysis.lape import lape, lape_entropy
from .analysis.random_control import layer_matched_random, uniform_random
from .corpora import Corpus, load_corpus, token_counts, token_rows
from .demo import load_facts, run_demo
from .evaluation.generation import generate
from .evaluation.judge import Endpoint, judge
from .evaluation.language_id import identify_language
from .evaluation.perplexity import perplexity, perplexity_matrix
from .evaluation.quality import (
    code_switching,
    continuation_perplexity,
    distinct_n,
    language_accuracy,
    language_distribution,
)
from .evaluation.tasks import Item, choice_accuracy
from .models import load_model, site
from .neurons import NeuronSet
from .patching.interventions import ablate
from .recording import ActivationStats, record
from .report import report

__all__ = [
    "ActivationStats",
    "Corpus",
    "Endpoint",
    "Item",
    "NeuronSet",
    "ablate",
    "choice_accuracy",
    "code_switching",
    "continuation_perplexity",
    "demo",
    "distinct_n",
    "generate",
    "identify_language",
    "judge",
    "language_accuracy",
    "language_distribution",
    "lape",
    "lape_entropy",
    "layer_matched_random",
    "load_corpus",
    "load_facts",
    "load_model",
    "perplexity",
    "perplexity_matrix",
    "plots",
    "record",
    "report",
    "run_demo",
    "site",
    "token_counts",
    "token_rows",
    "uniform_random",
]
