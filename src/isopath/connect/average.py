"""One network from several: the mean of their weights, after alignment."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import nn

from isopath.connect.rescaled import rescaled
from isopath.connect.statistics import reestimated
from isopath.network import copied
from isopath.objectives import Objective
from isopath.symmetry import Permutation
from isopath.symmetry import align as aligned


def average(
    models: Sequence[nn.Module], data: Any = None, align: bool = True, objective: Objective | Any = None,
    **options: Any,
) -> nn.Module:  # fmt: skip
    """The mean of several networks' weights (a model soup), each aligned to the first.

    Args:
        models: two or more of the same architecture; they are not modified.
        data: inputs to align on and to estimate running statistics anew.
        align: whether to align them first; needs `data`.
        objective: where there is one, the units of every aligned network are rescaled so that it is low along the
            straight line from the first (`rescaled`).
        options: of `align`.

    Raises:
        ValueError: fewer than two networks, no data to align on, or an objective without alignment.
    """
    if len(models) < 2:
        raise ValueError(f"an average needs at least 2 models, got {len(models)}")
    if align and data is None:
        raise ValueError("aligning the models needs data; give data=, or align=False if they are aligned already")
    if objective is not None and not align:
        raise ValueError("objective= rescales the units of aligned networks; give align=True and data=")
    first, others = models[0], list(models[1:])
    if align:
        found = [aligned(first, model, data, **options) for model in others]
        others = [
            permutation(model) if objective is None else _rescaled(first, model, objective, permutation)
            for permutation, model in zip(found, others)
        ]
    mean = copied(first)
    states = [model.state_dict() for model in (first, *others)]
    with torch.no_grad():
        for name, tensor in mean.state_dict().items():
            if tensor.is_floating_point():
                tensor.copy_(torch.stack([state[name] for state in states]).mean(0))
    return mean if data is None else reestimated(mean, data)


def _rescaled(first: nn.Module, model: nn.Module, objective: Objective | Any, permutation: Permutation) -> nn.Module:
    """A soup mixes every parameter, those that do not train too."""
    return rescaled(first, model, objective, permutation, trainable=lambda _: True).model(1)
