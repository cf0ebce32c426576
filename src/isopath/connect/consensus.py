"""What networks say together, as an objective that needs no labels."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils.data import DataLoader, IterableDataset

from isopath.ensemble import Ensemble, Mean
from isopath.examples import Examples
from isopath.geometry.divergence import divergence_of
from isopath.network import Output
from isopath.network import _arguments as arguments_of
from isopath.objectives import Task


def consensus(
    models: Sequence[nn.Module], inputs: Any, divergence: str = "kl", output: Output = None, batch_size: int = 128
) -> Task:
    """The mean divergence from what networks say together: low where a network predicts what they predict on average.

    As the objective of a curve it takes the place of labels. Trained networks are nearly right on their training
    labels, which then say little about the networks between; the mean prediction of the ends says how sure to be, and
    of what else (distillation of an ensemble: Hinton et al. 2015, arXiv 1503.02531).

    Args:
        models: at least one; they are run in eval mode and not modified.
        inputs: rows `(N, ...)`: a tensor, a tuple or mapping of tensors, a `Dataset` or a `DataLoader` (targets are
            ignored). Outputs on them are computed once, a third of a gradient evaluation for each row and network, and
            held.
        divergence: as for `Reference`. Of `"kl"` and `"hellinger"` the networks' mean probabilities are the target, of
            the others their mean outputs.
        output: picks the output tensor from what a model returns (see `Network`).
        batch_size: rows per step, and per forward pass.

    Raises:
        ValueError: there is no network, zero rows, an unknown divergence, or networks whose outputs differ in shape.
        TypeError: inputs of an unknown kind.

    Example: `ip.connect(a, b, ip.paths.consensus([a, b], x), permutation=ip.align(a, b, x))`.
    """
    compared = divergence_of(divergence)
    mean: Mean = "probabilities" if divergence in ("kl", "hellinger") else "logits"
    ensemble, examples = Ensemble(models, mean, output), Examples.of(inputs, what="the inputs")
    rows, device = torch.arange(len(examples)), next(ensemble.parameters()).device
    if isinstance(inputs.dataset if isinstance(inputs, DataLoader) else inputs, IterableDataset):
        inputs = examples.take(rows)[0]  # in the order that outputs are in: another time it may be another
    said = []
    with torch.no_grad():
        for part in rows.split(batch_size):
            args, kwargs = arguments_of(examples.take(part, device)[0])
            said.append(ensemble(*args, **kwargs))
            compared.check(said[-1])

    def apart(y: Tensor, target: Tensor) -> Tensor:
        return compared.rows(y, target)

    return Task(inputs, torch.cat(said), apart, output, batch_size)
