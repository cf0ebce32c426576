"""What networks say together, as an objective that needs no labels."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils.data import DataLoader, IterableDataset

from isopath.arguments import check_count
from isopath.ensemble import Ensemble, Mean
from isopath.examples import Examples, check_finite
from isopath.geometry.divergence import Divergence, divergence_of
from isopath.network import Output, check_runs
from isopath.network import _arguments as arguments_of
from isopath.objectives import Task


def consensus(
    models: Sequence[nn.Module], inputs: Any, divergence: str | Divergence | Callable[[Tensor, Tensor], Tensor] = "kl",
    output: Output = None, batch_size: int = 128,
) -> Task:  # fmt: skip
    """The mean divergence from what networks say together: low where a network predicts what they predict on average.

    As the objective of a curve it takes the place of labels. Trained networks are nearly right on their training
    labels, which then say little about the networks between; the mean prediction of the ends says how sure to be, and
    of what else (distillation of an ensemble: Hinton et al. 2015, arXiv 1503.02531).

    Args:
        models: at least one; they are run in eval mode and not modified.
        inputs: rows `(N, ...)`: a tensor, a tuple or mapping of tensors, a `Dataset` or a `DataLoader` (targets are
            ignored). Outputs on them are computed once, a third of a gradient evaluation for each row and network, and
            held: rows must be the same each time they are read, not augmented anew. Of token outputs every token
            counts, padded ones too.
        divergence: as for `Reference`. Where it compares softmax outputs (`"kl"`, `"hellinger"` ...) the networks' mean
            probabilities are the target, else their mean outputs.
        output: picks the output tensor from what a model returns (see `Network`).
        batch_size: rows per step, and per forward pass.

    Raises:
        ValueError: there is no network, zero rows, an unknown divergence or one that does not fit the outputs, outputs
            that differ in shape or are not finite, or a model that does not run on the inputs.
        TypeError: inputs of an unknown kind.

    Example: `ip.connect(a, b, ip.paths.consensus([a, b], x), permutation=ip.align(a, b, x))`.
    """
    check_count(batch_size, "batch_size")
    compared = divergence_of(divergence)
    mean: Mean = "probabilities" if compared.softmax else "logits"
    ensemble, examples = Ensemble(models, mean, output), Examples.of(inputs, what="the inputs")
    rows, device = torch.arange(len(examples)), next((p.device for p in ensemble.parameters()), None)
    if isinstance(inputs.dataset if isinstance(inputs, DataLoader) else inputs, IterableDataset):
        inputs = examples.take(rows)[0]  # in the order that outputs are in: another time it may be another
    few = examples.take(rows[:2], device)[0]
    for model in ensemble.models:
        check_runs(model, few, "the inputs of a consensus")
    said: list[Tensor] = []
    with torch.no_grad():
        args, kwargs = arguments_of(few)
        compared.check(ensemble.members(*args, **kwargs)[0])
        for part in rows.split(batch_size):
            args, kwargs = arguments_of(examples.take(part, device)[0])
            said.append(ensemble(*args, **kwargs))
            check_finite(said[-1], "the networks' output")
            if said[0].shape[1:] != said[-1].shape[1:]:
                raise ValueError(
                    f"outputs must have one shape for all rows, got {tuple(said[0].shape[1:])} and "
                    f"{tuple(said[-1].shape[1:])}; pad every batch to one length"
                )
    return Task(inputs, torch.cat(said), compared.rows, output, batch_size)
