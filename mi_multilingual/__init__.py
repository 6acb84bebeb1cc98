"""Mechanistic interpretability of multilingual language models at the level of neurons."""

from . import demo, experiments, plots
from .analysis.activation_percentile import activation_percentile, activation_percentile_scores
from .analysis.attribution import answer_token, attribution, contribution_scores, effective_scores
from .analysis.average_precision import average_precision, medians, top_and_bottom
from .analysis.examples import logit_effects, top_examples
from .analysis.lap import lap, lap_scores
from .analysis.lape import lape, lape_entropy, lape_scores
from .analysis.lave import lave, lave_scores
from .analysis.parameter_variation import parameter_variation, parameter_variation_scores
from .analysis.plnd import Impact, common_core, plnd, plnd_scores, record_impact
from .analysis.random_control import layer_matched_random, uniform_random
from .analysis.rankings import ranking_stability, rankings
from .analysis.relevance import record_relevance, relevance, relevance_scores
from .analysis.sharing import TYPES, Sharing, categories, sharing_categories
from .analysis.significance import half_agreement, lape_membership, lape_of_texts, permutation_test
from .corpora import Corpus, load_corpus, token_counts, token_rows
from .demo import load_facts, planted_model, planted_text, run_demo
from .evaluation.deactivation import deactivation_effects, deactivation_study
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
from .evaluation.readers import load_belebele, load_mgsm, load_mpararel, load_xcopa, load_xnli
from .evaluation.specificity import leaderboard
from .evaluation.steering import (
    equal_openings,
    fallback_study,
    language_forcing,
    rate_curve,
    steering_matrix,
    strength_curve,
    unconditional_study,
)
from .evaluation.steering_tables import best_strength, found_shares, steering_quality, steering_shares
from .evaluation.tasks import (
    Item,
    accuracy_by_language,
    choice_accuracy,
    in_every_language,
    last_number,
    parallel_items,
    written_accuracy,
)
from .models import load_model, site
from .neurons import NeuronScores, NeuronSet
from .patching.interventions import Intervention, ablate, add_mean, add_mean_difference, set_to_mean, steer
from .patching.weights import bake, baked, export
from .recording import ActivationStats, record, record_distributed
from .report import report
from .text_activations import TextActivations, record_texts

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
    "site",
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
