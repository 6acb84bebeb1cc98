"""Mechanistic interpretability of multilingual language models at the level of neurons."""

from . import demo, experiments, plots
from .analysis.attribution import answer_token, attribution, contribution_scores, effective_scores
from .analysis.examples import logit_effects, top_examples
from .analysis.significance import half_agreement, lape_membership, lape_of_texts, permutation_test
from .corpora import Corpus, load_corpus
from .demo.job import run_demo
from .detectors.activation_percentile import activation_percentile, activation_percentile_scores
from .detectors.average_precision import average_precision, medians, top_and_bottom
from .detectors.lap import lap, lap_scores
from .detectors.lape import lape, lape_entropy, lape_scores
from .detectors.lave import lave, lave_scores
from .detectors.parameter_variation import parameter_variation, parameter_variation_scores
from .detectors.plnd import common_core, plnd, plnd_scores
from .detectors.relevance import relevance, relevance_scores
from .evaluation.generation import generate
from .evaluation.judge import Endpoint, judge
from .evaluation.language_id import identify_language
from .evaluation.numbers import last_number
from .evaluation.perplexity import perplexity
from .evaluation.quality import (
    code_switching,
    continuation_perplexity,
    distinct_n,
    language_accuracy,
    language_distribution,
)
from .evaluation.readers import load_belebele, load_facts, load_mgsm, load_mpararel, load_xcopa, load_xnli
from .evaluation.tasks import (
    Item,
    accuracy_by_language,
    choice_accuracy,
    in_every_language,
    parallel_items,
    written_accuracy,
)
from .evidence.activations import ActivationStats, record
from .evidence.distributed import record_distributed
from .evidence.impact import Impact, record_impact
from .evidence.relevance import record_relevance
from .evidence.sharing import TYPES, Sharing, categories, sharing_categories
from .evidence.texts import TextActivations, record_texts
from .models.hooked import site_of
from .models.loading import load_model
from .neurons import NeuronScores, NeuronSet
from .patching.changes import Intervention, add_mean, add_mean_difference, set_to_mean
from .patching.conditions import layer_matched_random, uniform_random
from .patching.export import export
from .patching.hooks import ablate, steer
from .patching.weights import bake, baked
from .report import report
from .studies.ablation import perplexity_matrix
from .studies.deactivation import deactivation_effects, deactivation_study
from .studies.leaderboard import leaderboard, ranking_stability, rankings
from .studies.planted import planted_model, planted_text
from .studies.steering import (
    equal_openings,
    fallback_study,
    language_forcing,
    rate_curve,
    steering_matrix,
    strength_curve,
    unconditional_study,
)
from .studies.steering_tables import best_strength, found_shares, steering_quality, steering_shares
from .tokens import token_counts, token_rows

__all__ = [
    "TYPES",
    "ActivationStats",
    "Corpus",
    "Endpoint",
    "Impact",
    "Intervention",
    "Item",
    "NeuronScores",
    "NeuronSet",
    "Sharing",
    "TextActivations",
    "ablate",
    "accuracy_by_language",
    "activation_percentile",
    "activation_percentile_scores",
    "add_mean",
    "add_mean_difference",
    "answer_token",
    "attribution",
    "average_precision",
    "bake",
    "baked",
    "best_strength",
    "categories",
    "choice_accuracy",
    "code_switching",
    "common_core",
    "continuation_perplexity",
    "contribution_scores",
    "deactivation_effects",
    "deactivation_study",
    "demo",
    "distinct_n",
    "effective_scores",
    "equal_openings",
    "experiments",
    "export",
    "fallback_study",
    "found_shares",
    "generate",
    "half_agreement",
    "identify_language",
    "in_every_language",
    "judge",
    "language_accuracy",
    "language_distribution",
    "language_forcing",
    "lap",
    "lap_scores",
    "lape",
    "lape_entropy",
    "lape_membership",
    "lape_of_texts",
    "lape_scores",
    "last_number",
    "lave",
    "lave_scores",
    "layer_matched_random",
    "leaderboard",
    "load_belebele",
    "load_corpus",
    "load_facts",
    "load_mgsm",
    "load_model",
    "load_mpararel",
    "load_xcopa",
    "load_xnli",
    "logit_effects",
    "medians",
    "parallel_items",
    "parameter_variation",
    "parameter_variation_scores",
    "permutation_test",
    "perplexity",
    "perplexity_matrix",
    "planted_model",
    "planted_text",
    "plnd",
    "plnd_scores",
    "plots",
    "ranking_stability",
    "rankings",
    "rate_curve",
    "record",
    "record_distributed",
    "record_impact",
    "record_relevance",
    "record_texts",
    "relevance",
    "relevance_scores",
    "report",
    "run_demo",
    "set_to_mean",
    "sharing_categories",
    "site_of",
    "steer",
    "steering_matrix",
    "steering_quality",
    "steering_shares",
    "strength_curve",
    "token_counts",
    "token_rows",
    "top_and_bottom",
    "top_examples",
    "unconditional_study",
    "uniform_random",
    "written_accuracy",
]
