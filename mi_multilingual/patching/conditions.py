"""One way the model is run, with its random controls."""

from dataclasses import replace

import torch

from ..neurons import NeuronSet


def uniform_random(neurons: NeuronSet, *, seed: int) -> NeuronSet:
    """As many neurons a group, drawn without replacement from the whole model (the baseline of Tang et al. 2024)."""
    random = torch.Generator().manual_seed(seed)
    masks = torch.zeros(neurons.masks.shape, dtype=torch.bool)
    for mask, original in zip(masks, neurons.masks, strict=True):
        mask.view(-1)[torch.randperm(mask.numel(), generator=random)[: int(original.sum())]] = True
    return replace(neurons, masks=masks, method="uniform random", parameters={"seed": seed, "matches": neurons.method})


def layer_matched_random(neurons: NeuronSet, *, seed: int) -> NeuronSet:
    """As many neurons a group AND a layer, drawn without replacement: the sharper control, layers differ in effect."""
    random = torch.Generator().manual_seed(seed)
    masks = torch.zeros(neurons.masks.shape, dtype=torch.bool)
    for mask, original in zip(masks.flatten(0, 1), neurons.masks.flatten(0, 1), strict=True):
        mask[torch.randperm(mask.numel(), generator=random)[: int(original.sum())]] = True
    return replace(
        neurons, masks=masks, method="layer-matched random", parameters={"seed": seed, "matches": neurons.method}
    )
