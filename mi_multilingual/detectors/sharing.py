"""Neurons by the number of languages that use them for the same input (Wang et al. 2024)."""

import torch

from ..evidence.sharing import TYPES, Sharing
from ..neurons import NeuronScores, NeuronSet


def sharing(recorded: Sharing) -> NeuronSet:
    """One group per type: the neurons that have it for most inputs, of equals the first in `TYPES`.

    Args:
        recorded: what `sharing_categories` returned, at one threshold.

    Source: Wang et al. 2024, arXiv:2406.09265, section 3 (types; the choice of the most frequent one is ours).
    """
    _check_one_threshold(recorded)
    most = recorded.counts.sum(dim=(0, 1)).argmax(dim=-1)
    masks = torch.stack([most == i for i in range(len(TYPES))])
    parameters = {"threshold": recorded.thresholds[0], "tokens": recorded.tokens}
    return NeuronSet(masks, TYPES, "sharing", parameters, recorded.model, recorded.model_fingerprint)


def sharing_scores(recorded: Sharing) -> NeuronScores:
    """Share of the inputs for which a neuron has each type; the types stand where languages would."""
    _check_one_threshold(recorded)
    values = recorded.counts.sum(dim=(0, 1)).double() / recorded.n_inputs.sum()
    parameters = {"threshold": recorded.thresholds[0], "tokens": recorded.tokens}
    return NeuronScores(values, TYPES, "sharing", parameters, recorded.model, recorded.model_fingerprint)


def _check_one_threshold(recorded: Sharing) -> None:
    if len(recorded.thresholds) != 1:
        raise ValueError(
            f"sharing must be recorded at one threshold to choose neurons by it, got {recorded.thresholds}; call "
            "sharing_categories(..., thresholds=[0.0])"
        )
