"""Kronecker eigenbases with the eigenvalues measured in them."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import replace

import torch
from torch import Tensor

from isopath.geometry.batch import Batch
from isopath.geometry.blocks import Block
from isopath.geometry.kronecker import Kronecker
from isopath.geometry.squares import squared
from isopath.geometry.sweep import swept
from isopath.network import Network


def ekfac(
    network: Network, theta: Tensor, batches: Iterable[Batch], coverage: float = 0.99, shrinkage: float = 0.0,
    samples: int | None = None, rank: int | None = None,
) -> Kronecker:  # fmt: skip
    """A Kronecker metric whose eigenvalues are the metric's own along the Kronecker eigenvectors (George et al. 2018,
    arXiv 1806.03884): the best of all metrics with these eigenvectors, in the Frobenius norm.

    A second pass over the rows measures E[(uᵀ M v)²] for the gradients M of single examples. What no block covers, and
    embeddings, are as in `Kronecker.of`; so are the arguments.
    """
    metric = Kronecker.of(network, theta, batches, coverage, shrinkage, samples, rank)
    at = {(_start(b.weight), _start(b.bias)): k for k, b in enumerate(metric.blocks) if isinstance(b, Block)}
    ends = torch.tensor([0, *network.space.sizes]).cumsum(0).tolist()
    starts = dict(zip(network.space.names, ends))
    found: dict[int, Tensor] = {}
    generator = torch.Generator().manual_seed(1)
    for batch in batches:
        seen = swept(network, theta, batch, generator, coverage, samples)
        for grads, _ in () if seen is None else seen.gradients:
            assert seen is not None
            for use, grad in zip(seen.uses, grads):
                if grad is None or use.kind != "kronecker":
                    continue
                places = (None if name is None else starts[name] for name in (use.weight, use.bias))
                k = at[tuple(places)]  # type: ignore[index]
                block = metric.blocks[k]
                assert isinstance(block, Block)
                values = squared(use, grad, seen.count, block.input_vectors, block.output_vectors)
                found[k] = values if k not in found else found[k].add_(values)
    blocks = [
        replace(block, corrected=found[k]) if k in found and isinstance(block, Block) else block
        for k, block in enumerate(metric.blocks)
    ]
    return replace(metric, blocks=tuple(blocks))


def _start(place: slice | None) -> int | None:
    return None if place is None else int(place.start)
