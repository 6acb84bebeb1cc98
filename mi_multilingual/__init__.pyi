"""Types of what `__init__.py` imports when it is asked for; `make stub` writes this file from its tables."""

from . import analysis as analysis
from . import demo as demo
from . import detectors as detectors
from . import evaluation as evaluation
from . import evidence as evidence
from . import experiments as experiments
from . import models as models
from . import patching as patching
from . import plots as plots
from . import report as report
from . import studies as studies
from .analysis.attribution import answer_token as answer_token
from .analysis.attribution import attribution as attribution
from .analysis.attribution import attribution_by_input as attribution_by_input
from .analysis.attribution import contribution_scores as contribution_scores
from .analysis.attribution import effective_scores as effective_scores
from .analysis.distance import mantel as mantel
from .analysis.distance import share_against_distance as share_against_distance
from .analysis.examples import logit_effects as logit_effects
from .analysis.examples import top_examples as top_examples
from .analysis.layer_languages import TokenLanguages as TokenLanguages
from .analysis.layer_languages import layer_languages as layer_languages
from .analysis.layer_words import layer_words as layer_words
from .analysis.significance import half_agreement as half_agreement
from .analysis.significance import lape_membership as lape_membership
from .analysis.significance import lape_of_texts as lape_of_texts
from .analysis.significance import permutation_test as permutation_test
from .corpora import Corpus as Corpus
from .corpora import load_corpus as load_corpus
from .demo.job import run_demo as run_demo
from .detectors.activation_percentile import activation_percentile as activation_percentile
from .detectors.activation_percentile import activation_percentile_scores as activation_percentile_scores
from .detectors.average_precision import average_precision as average_precision
from .detectors.average_precision import average_precision_scores as average_precision_scores
from .detectors.average_precision import medians as medians
from .detectors.average_precision import top_and_bottom as top_and_bottom
from .detectors.lap import lap as lap
from .detectors.lap import lap_scores as lap_scores
from .detectors.lape import lape as lape
from .detectors.lape import lape_entropy as lape_entropy
from .detectors.lape import lape_scores as lape_scores
from .detectors.lave import lave as lave
from .detectors.lave import lave_scores as lave_scores
from .detectors.parameter_variation import parameter_variation as parameter_variation
from .detectors.parameter_variation import parameter_variation_scores as parameter_variation_scores
from .detectors.plnd import common_core as common_core
from .detectors.plnd import plnd as plnd
from .detectors.plnd import plnd_scores as plnd_scores
from .detectors.relevance import relevance as relevance
from .detectors.relevance import relevance_scores as relevance_scores
from .detectors.sharing import sharing_scores as sharing_scores
from .detectors.table import DETECTORS as DETECTORS
from .detectors.table import Detector as Detector
from .detectors.table import Setting as Setting
from .detectors.table import identified as identified
from .evaluation.edits import EditRecord as EditRecord
from .evaluation.edits import editing_prompts as editing_prompts
from .evaluation.edits import in_context as in_context
from .evaluation.edits import load_edits as load_edits
from .evaluation.edits import load_fact_edits as load_fact_edits
from .evaluation.edits import load_mzsre as load_mzsre
from .evaluation.generation import generate as generate
from .evaluation.judge import Endpoint as Endpoint
from .evaluation.judge import judge as judge
from .evaluation.language_id import identify_language as identify_language
from .evaluation.numbers import last_number as last_number
from .evaluation.open_language import identify_open as identify_open
from .evaluation.perplexity import perplexity as perplexity
from .evaluation.prompts import equal_openings as equal_openings
from .evaluation.quality import code_switching as code_switching
from .evaluation.quality import continuation_perplexity as continuation_perplexity
from .evaluation.quality import distinct_n as distinct_n
from .evaluation.quality import language_accuracy as language_accuracy
from .evaluation.quality import language_distribution as language_distribution
from .evaluation.questions import INSTRUCTIONS as INSTRUCTIONS
from .evaluation.questions import load_questions as load_questions
from .evaluation.questions import open_prompts as open_prompts
from .evaluation.readers import load_belebele as load_belebele
from .evaluation.readers import load_facts as load_facts
from .evaluation.readers import load_mgsm as load_mgsm
from .evaluation.readers import load_mpararel as load_mpararel
from .evaluation.readers import load_xcopa as load_xcopa
from .evaluation.readers import load_xnli as load_xnli
from .evaluation.tasks import Item as Item
from .evaluation.tasks import accuracy_by_language as accuracy_by_language
from .evaluation.tasks import choice_accuracy as choice_accuracy
from .evaluation.tasks import in_every_language as in_every_language
from .evaluation.tasks import parallel_items as parallel_items
from .evaluation.tasks import written_accuracy as written_accuracy
from .evaluation.token_languages import token_languages as token_languages
from .evidence.activations import ActivationStats as ActivationStats
from .evidence.activations import record as record
from .evidence.distributed import record_distributed as record_distributed
from .evidence.impact import Impact as Impact
from .evidence.impact import record_impact as record_impact
from .evidence.relevance import Relevance as Relevance
from .evidence.relevance import record_relevance as record_relevance
from .evidence.representations import Representations as Representations
from .evidence.representations import record_representations as record_representations
from .evidence.routing import Routing as Routing
from .evidence.routing import expert_frequency as expert_frequency
from .evidence.routing import split_experts as split_experts
from .evidence.sharing import TYPES as TYPES
from .evidence.sharing import Sharing as Sharing
from .evidence.sharing import categories as categories
from .evidence.sharing import sharing_categories as sharing_categories
from .evidence.texts import TextActivations as TextActivations
from .evidence.texts import record_texts as record_texts
from .evidence.weight_change import WeightChange as WeightChange
from .evidence.weight_change import record_tuned_change as record_tuned_change
from .evidence.weight_change import record_weight_change as record_weight_change
from .languages import LANGUAGES as LANGUAGES
from .languages import by_family as by_family
from .languages import family_distance as family_distance
from .languages import script_distance as script_distance
from .models.hooked import site_of as site_of
from .models.loading import load_model as load_model
from .neurons import NeuronScores as NeuronScores
from .neurons import NeuronSet as NeuronSet
from .patching.changes import Intervention as Intervention
from .patching.changes import add_mean as add_mean
from .patching.changes import add_mean_difference as add_mean_difference
from .patching.changes import set_to_active_mean as set_to_active_mean
from .patching.changes import set_to_mean as set_to_mean
from .patching.conditions import Condition as Condition
from .patching.conditions import applied as applied
from .patching.conditions import layer_matched_random as layer_matched_random
from .patching.conditions import uniform_random as uniform_random
from .patching.conditions import with_controls as with_controls
from .patching.export import export as export
from .patching.hooks import ablate as ablate
from .patching.hooks import steer as steer
from .patching.weights import bake as bake
from .patching.weights import baked as baked
from .report import write_report as write_report
from .storage import load as load
from .storage import save as save
from .studies.ablation import layer_sweep as layer_sweep
from .studies.ablation import perplexity_matrix as perplexity_matrix
from .studies.alignment_tuning import alignment_effects as alignment_effects
from .studies.alignment_tuning import alignment_study as alignment_study
from .studies.deactivation import deactivation_effects as deactivation_effects
from .studies.deactivation import deactivation_study as deactivation_study
from .studies.deactivation import written_deactivation_study as written_deactivation_study
from .studies.editing import editing_neurons as editing_neurons
from .studies.editing import editing_study as editing_study
from .studies.editing_tables import editing_effects as editing_effects
from .studies.editing_tables import editing_neuron_effects as editing_neuron_effects
from .studies.editing_tables import editing_transfer as editing_transfer
from .studies.experts import expert_study as expert_study
from .studies.experts import expert_table as expert_table
from .studies.experts import expert_types as expert_types
from .studies.experts import family_table as family_table
from .studies.experts import prune as prune
from .studies.experts import pruning_curve as pruning_curve
from .studies.experts import pruning_study as pruning_study
from .studies.experts import similarity_table as similarity_table
from .studies.experts import tuned_table as tuned_table
from .studies.lape_tables import ablation_comparison as ablation_comparison
from .studies.lape_tables import ablation_curve as ablation_curve
from .studies.lape_tables import ablation_matrix as ablation_matrix
from .studies.lape_tables import ablation_study as ablation_study
from .studies.lape_tables import as_many as as_many
from .studies.lape_tables import curve_table as curve_table
from .studies.lape_tables import tang_methods as tang_methods
from .studies.layer_languages import layer_language_shares as layer_language_shares
from .studies.layer_languages import layer_language_study as layer_language_study
from .studies.layer_languages import layer_word_means as layer_word_means
from .studies.layer_languages import layer_word_study as layer_word_study
from .studies.leaderboard import leaderboard as leaderboard
from .studies.leaderboard import ranking_stability as ranking_stability
from .studies.leaderboard import rankings as rankings
from .studies.open_generation import open_generation_study as open_generation_study
from .studies.open_generation import open_generation_table as open_generation_table
from .studies.planted import planted_model as planted_model
from .studies.planted import planted_text as planted_text
from .studies.rank_one import Keys as Keys
from .studies.rank_one import RankOne as RankOne
from .studies.rank_one import edit as edit
from .studies.rank_one import rank_one as rank_one
from .studies.rank_one import rank_one_edits as rank_one_edits
from .studies.rank_one import record_keys as record_keys
from .studies.regions import region_effects as region_effects
from .studies.regions import region_study as region_study
from .studies.regions import regions as regions
from .studies.representations import cka as cka
from .studies.representations import dominance as dominance
from .studies.representations import layer_means as layer_means
from .studies.representations import mexa as mexa
from .studies.representations import middle_and_ends as middle_and_ends
from .studies.representations import representation_effects as representation_effects
from .studies.representations import representation_study as representation_study
from .studies.representations import retrieval as retrieval
from .studies.representations import sentence_similarity as sentence_similarity
from .studies.sharing import contribution_table as contribution_table
from .studies.sharing import mean_overlap as mean_overlap
from .studies.sharing import means_over_inputs as means_over_inputs
from .studies.sharing import sharing_study as sharing_study
from .studies.sharing import type_shares as type_shares
from .studies.steering import fallback_study as fallback_study
from .studies.steering import language_forcing as language_forcing
from .studies.steering import rate_curve as rate_curve
from .studies.steering import steering_matrix as steering_matrix
from .studies.steering import strength_curve as strength_curve
from .studies.steering_tables import best_strength as best_strength
from .studies.steering_tables import found_shares as found_shares
from .studies.steering_tables import steering_quality as steering_quality
from .studies.steering_tables import steering_shares as steering_shares
from .studies.translation import translation_scores as translation_scores
from .studies.translation import translation_study as translation_study
from .studies.tuning import tuning_effects as tuning_effects
from .studies.tuning import tuning_study as tuning_study
from .studies.tuning import tuning_summary as tuning_summary
from .studies.u_shape import u_shape as u_shape
from .studies.unconditional import unconditional_study as unconditional_study
from .tokens import Reading as Reading
from .tokens import token_counts as token_counts
from .tokens import token_rows as token_rows
from .training import Training as Training
from .tuning import Tuning as Tuning
from .tuning import export_tuned as export_tuned
from .tuning import tune as tune
from .tuning import tuned as tuned
from .tuning import tuned_copy as tuned_copy

__all__ = [
    "ActivationStats",
    "Condition",
    "Corpus",
    "Intervention",
    "NeuronScores",
    "NeuronSet",
    "Reading",
    "ablate",
    "add_mean",
    "add_mean_difference",
    "applied",
    "attribution",
    "average_precision",
    "bake",
    "baked",
    "choice_accuracy",
    "deactivation_study",
    "export",
    "generate",
    "identified",
    "identify_language",
    "lap",
    "lape",
    "lave",
    "leaderboard",
    "load",
    "load_corpus",
    "load_model",
    "perplexity",
    "perplexity_matrix",
    "plnd",
    "rankings",
    "record",
    "record_impact",
    "record_relevance",
    "record_texts",
    "relevance",
    "save",
    "set_to_mean",
    "sharing_categories",
    "steer",
    "steering_matrix",
    "top_examples",
    "with_controls",
    "write_report",
]

MOST_USED: dict[str, list[str]]
FURTHER: dict[str, list[str]]
MODULES: tuple[str, ...]
HOMES: dict[str, str]
