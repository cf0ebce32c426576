"""Which rows to remember."""

from __future__ import annotations

from typing import Literal

import torch
from torch import Tensor

from isopath.examples import Examples
from isopath.geometry.batch import Batch
from isopath.geometry.divergence import divergence_of
from isopath.geometry.kronecker import Kronecker
from isopath.network import Network, Output

Choice = Literal["random", "balanced", "herding", "leverage"]
POOL = 2000  # rows that leverage is computed of: a backward pass for each


def chosen(
    how: Choice, count: int, network: Network, examples: Examples, labels: Tensor | None, output: Output,
    divergence: str, seed: int,
) -> Tensor:  # fmt: skip
    """Indices of `count` rows, the one to keep longest first.

    Args:
        how: `"random"`; `"balanced"`: as many of each label; `"herding"`: so that the mean of √p (or of the outputs)
            over the first n rows is near that over all, for every n (Welling 2009); `"leverage"`: by
            J(G + μI)⁻¹Jᵀ, how much of the metric hangs on a row, with μ the mean eigenvalue.
        count: at most the rows there are.
        network: at its own weights.
        examples: the rows.
        labels: for `"balanced"`.
        output: picks the output tensor.
        divergence: the metric's.
        seed: of what is drawn.

    Raises:
        ValueError: `"balanced"` without labels, or an unknown choice.
    """
    generator = torch.Generator().manual_seed(seed)
    order = torch.randperm(len(examples), generator=generator)
    if how == "random":
        return order[:count]
    if how == "balanced":
        if labels is None:
            raise ValueError("a balanced choice needs labels; give y, or choose at random")
        return order[_turns(labels[order])][:count]
    if how == "herding":
        return _herded(_features(network, examples, output, divergence), count)
    if how == "leverage":
        pool = order[: max(count, POOL)]
        scores = _leverage(network, examples, pool, output, divergence, generator)
        return pool[scores.argsort(descending=True, stable=True)][:count]
    raise ValueError(f"choose must be 'random', 'balanced', 'herding', 'leverage' or 'drawn', got {how!r}")


def _turns(labels: Tensor) -> Tensor:
    """An order that takes one row of each label in turn."""
    rank = torch.zeros(len(labels), dtype=torch.int64)
    for label in labels.unique():
        rows = labels == label
        rank[rows] = torch.arange(int(rows.sum()))
    return rank.argsort(stable=True)


def _features(network: Network, examples: Examples, output: Output, divergence: str) -> Tensor:
    softmax, found = divergence_of(divergence).softmax, []
    with torch.no_grad():
        for rows in torch.arange(len(examples)).split(512):
            y = network(network.start, examples.take(rows, network.space.device)[0], output)
            y = (0.5 * y.log_softmax(-1)).exp() if softmax else y
            found.append(y.reshape(len(rows), -1).double().cpu())
    return torch.cat(found)


def _herded(features: Tensor, count: int) -> Tensor:
    mean, taken, total = features.mean(0), [], torch.zeros(features.shape[1], dtype=features.dtype)
    free = torch.ones(len(features), dtype=torch.bool)
    for n in range(1, count + 1):
        distance = ((total + features) / n - mean).square().sum(1)
        taken.append(int(torch.where(free, distance, torch.inf).argmin()))
        free[taken[-1]] = False
        total = total + features[taken[-1]]
    return torch.tensor(taken)


def _leverage(
    network: Network, examples: Examples, pool: Tensor, output: Output, divergence: str, generator: torch.Generator
) -> Tensor:
    """gᵀ(G + μI)⁻¹g of each row, with g = JᵀRᵀε for a random sign ε of each column of the outputs' curvature."""
    kind, theta = divergence_of(divergence), network.start
    batches = []
    for rows in pool.split(256):
        inputs, _ = examples.take(rows, network.space.device)
        with torch.no_grad():
            y = network(theta, inputs, output)
        weight = torch.full(y.shape[:-1], 1 / (len(pool) * max(1, y.shape[1:-1].numel()))).to(y)
        batches.append(Batch(inputs, y, weight, kind, output))
    metric = Kronecker.of(network, theta, batches)
    damping = max(metric.trace() / metric.dimension, 1e-12)
    scores = []
    for row in pool.split(1):
        inputs, _ = examples.take(row, network.space.device)
        point = theta.clone().requires_grad_(True)
        y = network(point, inputs, output)
        root = kind.root(y.detach())
        signs = torch.randint(2, root.shape[:-1], generator=generator).to(root) * 2 - 1
        (g,) = torch.autograd.grad(y, point, (root * signs.unsqueeze(-1)).sum(-2))
        scores.append(torch.dot(g, metric.solve(g, damping)))
    return torch.stack(scores).cpu()
