"""Interactive figures: a table or a noun in, a plotly Figure out; nothing is shown or written."""

from .ablation import change_by_layer, perplexity_change
from .deactivation import deactivation_bars, deactivation_matrix
from .detectors import found_and_chance, leaderboard, membership, recovery
from .editing import editing_matrix, editing_neurons, editing_transfer
from .experts import expert_heatmap, language_tree, pruning_curves
from .lape_tables import ablation_bars, ablation_panels, loss_against_size
from .layer_languages import layer_languages, layer_words, region_effects
from .neurons import entropy_histogram, layer_counts, neuron_map, neuron_profile, overlap
from .open_generation import language_off, language_raised
from .representations import dominance_by_layer, representation_change, similarity_by_layer
from .sharing import (
    active_by_language,
    activity_overlap,
    contributions,
    overlap_against_distance,
    repeated_types,
    sharing_by_layer,
    sharing_by_task,
    threshold_grid,
    type_contributions,
)
from .steering import fallback, steering_curve, steering_matrix
from .sweeps import sweep_effects
from .translation import translation
from .tuning import alignment_bars, tuning_bars, tuning_matrix

__all__ = [
    "ablation_bars",
    "ablation_panels",
    "active_by_language",
    "activity_overlap",
    "alignment_bars",
    "change_by_layer",
    "contributions",
    "deactivation_bars",
    "deactivation_matrix",
    "dominance_by_layer",
    "editing_matrix",
    "editing_neurons",
    "editing_transfer",
    "entropy_histogram",
    "expert_heatmap",
    "fallback",
    "found_and_chance",
    "language_off",
    "language_raised",
    "language_tree",
    "layer_counts",
    "layer_languages",
    "layer_words",
    "leaderboard",
    "loss_against_size",
    "membership",
    "neuron_map",
    "neuron_profile",
    "overlap",
    "overlap_against_distance",
    "perplexity_change",
    "pruning_curves",
    "recovery",
    "region_effects",
    "repeated_types",
    "representation_change",
    "sharing_by_layer",
    "sharing_by_task",
    "similarity_by_layer",
    "steering_curve",
    "steering_matrix",
    "sweep_effects",
    "threshold_grid",
    "translation",
    "tuning_bars",
    "tuning_matrix",
    "type_contributions",
]
