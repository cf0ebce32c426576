"""One network from several: the mean of their weights, after alignment."""

from __future__ import annotations

import copy
from collections.abc import Sequence
from typing import Any

import torch
from torch import nn

from isopath.connect.statistics import reestimated
from isopath.symmetry import align as aligned


def average(models: Sequence[nn.Module], data: Any = None, align: bool = True, **options: Any) -> nn.Module:
    """The mean of several networks' weights (a model soup), each aligned to the first.

    Args:
        models: two or more of the same architecture; they are not modified.
        data: inputs to align on and to estimate running statistics anew.
        align: whether to align them first; needs `data`.
        options: of `align`.

    Raises:
        ValueError: fewer than two networks, or no data to align on.
    """
    if len(models) < 2:
        raise ValueError(f"an average needs at least 2 models, got {len(models)}")
    if align and data is None:
        raise ValueError("aligning the models needs data; give data=, or align=False if they are aligned already")
    first = models[0]
    others = [aligned(first, model, data, **options)(model) if align else model for model in models[1:]]
    mean = copy.deepcopy(first)
    states = [model.state_dict() for model in (first, *others)]
    with torch.no_grad():
        for name, tensor in mean.state_dict().items():
            if tensor.is_floating_point():
                tensor.copy_(torch.stack([state[name] for state in states]).mean(0))
    return mean if data is None else reestimated(mean, data)
