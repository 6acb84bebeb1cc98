"""Mechanistic interpretability of multilingual language models at the level of neurons.

Everything is imported when it is first asked for, so that importing the package costs nothing. Editors and type
checkers read `__init__.pyi`, which `make stub` writes from the tables below.
"""

from importlib import import_module
from typing import Any

MOST_USED = {
    "models.loading": ["load_model"],
    "corpora": ["Corpus", "load_corpus"],
    "tokens": ["Reading"],
    "storage": ["load", "save"],
    "neurons": ["NeuronScores", "NeuronSet"],
    "evidence.activations": ["ActivationStats", "record"],
    "evidence.impact": ["record_impact"],
    "evidence.relevance": ["record_relevance"],
    "evidence.sharing": ["sharing_categories"],
    "evidence.texts": ["record_texts"],
    "detectors.average_precision": ["average_precision"],
    "detectors.lap": ["lap"],
    "detectors.lape": ["lape"],
    "detectors.lave": ["lave"],
    "detectors.plnd": ["plnd"],
    "detectors.relevance": ["relevance"],
    "detectors.table": ["identified"],
    "patching.changes": ["Intervention", "add_mean", "add_mean_difference", "set_to_mean"],
    "patching.conditions": ["Condition", "applied", "with_controls"],
    "patching.export": ["export"],
    "patching.hooks": ["ablate", "steer"],
    "patching.weights": ["bake", "baked"],
    "analysis.attribution": ["attribution"],
    "analysis.examples": ["top_examples"],
    "evaluation.generation": ["generate"],
    "evaluation.language_id": ["identify_language"],
    "evaluation.perplexity": ["perplexity"],
    "evaluation.tasks": ["choice_accuracy"],
    "studies.ablation": ["perplexity_matrix"],
    "studies.deactivation": ["deactivation_study"],
    "studies.leaderboard": ["leaderboard", "rankings"],
    "studies.steering": ["steering_matrix"],
    "report": ["write_report"],
}
"""Module -> the names that most users need; the documentation lists them first."""

FURTHER = {
    "tokens": ["token_counts", "token_rows"],
    "languages": ["LANGUAGES", "by_family", "family_distance", "script_distance"],
    "models.hooked": ["site_of"],
    "evidence.distributed": ["record_distributed"],
    "evidence.impact": ["Impact"],
    "evidence.routing": ["Routing", "expert_frequency", "split_experts"],
    "evidence.relevance": ["Relevance"],
    "evidence.representations": ["Representations", "record_representations"],
    "evidence.sharing": ["TYPES", "Sharing", "categories"],
    "evidence.texts": ["TextActivations"],
    "evidence.weight_change": ["WeightChange", "record_tuned_change", "record_weight_change"],
    "detectors.activation_percentile": ["activation_percentile", "activation_percentile_scores"],
    "detectors.average_precision": ["average_precision_scores", "medians", "top_and_bottom"],
    "detectors.lap": ["lap_scores"],
    "detectors.lape": ["lape_entropy", "lape_scores"],
    "detectors.lave": ["lave_scores"],
    "detectors.parameter_variation": ["parameter_variation", "parameter_variation_scores"],
    "detectors.plnd": ["common_core", "plnd_scores"],
    "detectors.relevance": ["relevance_scores"],
    "detectors.sharing": ["sharing_scores"],
    "detectors.table": ["DETECTORS", "Detector", "Setting"],
    "patching.changes": ["set_to_active_mean"],
    "patching.conditions": ["layer_matched_random", "uniform_random"],
    "training": ["Training"],
    "tuning": ["Tuning", "export_tuned", "tune", "tuned", "tuned_copy"],
    "analysis.attribution": ["answer_token", "attribution_by_input", "contribution_scores", "effective_scores"],
    "analysis.distance": ["mantel", "share_against_distance"],
    "analysis.examples": ["logit_effects"],
    "analysis.layer_languages": ["TokenLanguages", "layer_languages"],
    "analysis.layer_words": ["layer_words"],
    "analysis.significance": ["half_agreement", "lape_membership", "lape_of_texts", "permutation_test"],
    "evaluation.edits": ["EditRecord", "editing_prompts", "in_context", "load_edits", "load_fact_edits", "load_mzsre"],
    "evaluation.judge": ["Endpoint", "judge"],
    "evaluation.numbers": ["last_number"],
    "evaluation.open_language": ["identify_open"],
    "evaluation.prompts": ["equal_openings"],
    "evaluation.questions": ["INSTRUCTIONS", "load_questions", "open_prompts"],
    "evaluation.quality": [
        "code_switching",
        "continuation_perplexity",
        "distinct_n",
        "language_accuracy",
        "language_distribution",
    ],
    "evaluation.readers": ["load_belebele", "load_facts", "load_mgsm", "load_mpararel", "load_xcopa", "load_xnli"],
    "evaluation.tasks": ["Item", "accuracy_by_language", "in_every_language", "parallel_items", "written_accuracy"],
    "evaluation.token_languages": ["token_languages"],
    "studies.ablation": ["layer_sweep"],
    "studies.alignment_tuning": ["alignment_effects", "alignment_study"],
    "studies.lape_tables": [
        "ablation_comparison",
        "ablation_curve",
        "ablation_matrix",
        "ablation_study",
        "as_many",
        "curve_table",
        "tang_methods",
    ],
    "studies.editing": ["editing_neurons", "editing_study"],
    "studies.editing_tables": ["editing_effects", "editing_neuron_effects", "editing_transfer"],
    "studies.deactivation": ["deactivation_effects", "written_deactivation_study"],
    "studies.experts": [
        "expert_study",
        "expert_table",
        "expert_types",
        "family_table",
        "prune",
        "pruning_curve",
        "pruning_study",
        "similarity_table",
        "tuned_table",
    ],
    "studies.sharing": ["contribution_table", "mean_overlap", "means_over_inputs", "sharing_study", "type_shares"],
    "studies.leaderboard": ["ranking_stability"],
    "studies.layer_languages": [
        "layer_language_shares",
        "layer_language_study",
        "layer_word_means",
        "layer_word_study",
    ],
    "studies.open_generation": ["open_generation_study", "open_generation_table"],
    "studies.planted": ["planted_model", "planted_text"],
    "studies.representations": [
        "cka",
        "dominance",
        "layer_means",
        "mexa",
        "middle_and_ends",
        "representation_effects",
        "representation_study",
        "retrieval",
        "sentence_similarity",
    ],
    "studies.regions": ["region_effects", "region_study", "regions"],
    "studies.rank_one": ["Keys", "RankOne", "edit", "rank_one", "rank_one_edits", "record_keys"],
    "studies.steering": [
        "fallback_study",
        "language_forcing",
        "rate_curve",
        "strength_curve",
    ],
    "studies.translation": ["translation_scores", "translation_study"],
    "studies.unconditional": ["unconditional_study"],
    "studies.steering_tables": ["best_strength", "found_shares", "steering_quality", "steering_shares"],
    "studies.u_shape": ["u_shape"],
    "studies.tuning": ["tuning_effects", "tuning_study", "tuning_summary"],
    "demo.job": ["run_demo"],
}
"""Module -> further names that can be had here, too."""

MODULES = ("analysis", "demo", "detectors", "evaluation", "evidence", "experiments", "models", "patching", "plots")
MODULES += ("report", "studies")
HOMES = {name: module for table in (MOST_USED, FURTHER) for module, names in table.items() for name in names}

__all__ = sorted(name for names in MOST_USED.values() for name in names)


def __getattr__(name: str) -> Any:
    if name in MODULES:
        return import_module(f"{__name__}.{name}")
    if name not in HOMES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    value = getattr(import_module(f"{__name__}.{HOMES[name]}"), name)
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return sorted([*__all__, *MODULES])
