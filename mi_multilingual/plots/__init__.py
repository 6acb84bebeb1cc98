"""Interactive figures: a table or a noun in, a plotly Figure out; nothing is shown or written."""

from .ablation import change_by_layer, perplexity_change
from .deactivation import deactivation_bars, deactivation_matrix
from .detectors import found_and_chance, leaderboard, membership, recovery
from .editing import editing_matrix, editing_neurons, editing_transfer
from .neurons import entropy_histogram, layer_counts, neuron_map, neuron_profile, overlap
from .open_generation import language_off, language_raised
from .sharing import activity_overlap, sharing_by_layer, type_contributions
from .steering import fallback, steering_curve, steering_matrix
from .sweeps import sweep_effects
from .translation import translation
from .tuning import alignment_bars, tuning_bars, tuning_matrix

__all__ = [
    "activity_overlap",
    "alignment_bars",
    "change_by_layer",
    "deactivation_bars",
    "deactivation_matrix",
    "editing_matrix",
    "editing_neurons",
    "editing_transfer",
    "entropy_histogram",
    "fallback",
    "found_and_chance",
    "language_off",
    "language_raised",
    "layer_counts",
    "leaderboard",
    "membership",
    "neuron_map",
    "neuron_profile",
    "overlap",
    "perplexity_change",
    "recovery",
    "sharing_by_layer",
    "steering_curve",
    "steering_matrix",
    "sweep_effects",
    "translation",
    "tuning_bars",
    "tuning_matrix",
    "type_contributions",
]
