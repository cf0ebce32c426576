"""Baselines as functions `(network, theta, data, budget, ...) -> theta`: each spends the same gradient evaluations."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path

import torch
import torch.nn.functional as F
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from isopath.geometry.divergence import divergence_of
from isopath.network import Network

Pair = tuple[Tensor, Tensor]


def batches(data: Pair, size: int, seed: int) -> Iterator[Pair]:
    """Endless batches, drawn without replacement, epoch by epoch."""
    generator = torch.Generator().manual_seed(seed)
    size = min(size, len(data[0]))
    while True:
        order = torch.randperm(len(data[0]), generator=generator)
        for rows in order[: len(order) // size * size].split(size):
            yield data[0][rows], data[1][rows]


def cached(name: str, model: nn.Module, fit: Callable[[nn.Module], None]) -> nn.Module:
    """The module in eval mode, trained by `fit` in place, or with the weights that it was given once before."""
    path = Path("runs") / "benchmarks" / f"{name}.safetensors"
    if path.exists():
        model.load_state_dict(load_file(path))
    else:
        fit(model)
        path.parent.mkdir(parents=True, exist_ok=True)
        save_file(model.state_dict(), path)
    return model.eval()


def fitted(
    model: nn.Module, optimiser: torch.optim.Optimizer, data: Pair, size: int, steps: int, seed: int,
    share: Callable[[float], float],
) -> None:  # fmt: skip
    """Cross-entropy on batches in train mode; `share` gives the rate at a part of the way, as a share of the first."""
    rate, stream = optimiser.param_groups[0]["lr"], batches(data, size, seed)
    for step in range(steps):
        optimiser.param_groups[0]["lr"] = rate * share(step / steps)
        x, y = next(stream)
        optimiser.zero_grad()
        F.cross_entropy(model(x), y).backward()
        optimiser.step()


def adam(network: Network, theta: Tensor, loss: Callable[[Tensor], Tensor], budget: float, rate: float) -> Tensor:
    """Adam with a linear decay to zero over the budget of gradient evaluations."""
    theta = theta.clone().requires_grad_(True)
    optimiser = torch.optim.Adam([theta], rate)
    network.evaluations = 0.0
    while network.evaluations < budget:
        optimiser.param_groups[0]["lr"] = rate * (1 - network.evaluations / budget)
        (theta.grad,) = torch.autograd.grad(loss(theta), theta)
        optimiser.step()
    return theta.detach()


def fine_tuning(network: Network, new: Pair, budget: float, seed: int, rate: float, size: int = 128) -> Tensor:
    """The new task's loss and nothing else."""
    stream = batches(new, size, seed)

    def loss(theta: Tensor) -> Tensor:
        x, y = next(stream)
        return F.cross_entropy(network(theta, x), y)

    return adam(network, network.start, loss, budget, rate)


def penalised(
    network: Network, new: Pair, kept: Tensor, budget: float, seed: int, rate: float, weight: float, size: int = 128
) -> Tensor:
    """The FIP authors' penalty: minus the log Bhattacharyya coefficient to the start's outputs on kept images."""
    stream, divergence = batches(new, size, seed), divergence_of("bhattacharyya")
    with torch.no_grad():
        outputs = network(network.start, kept)
    memory = batches((kept, outputs), size, seed + 1)

    def loss(theta: Tensor) -> Tensor:
        (x, y), (old, before) = next(stream), next(memory)
        return F.cross_entropy(network(theta, x), y) + weight * divergence.rows(network(theta, old), before).mean()

    return adam(network, network.start, loss, budget, rate)


def replay(
    network: Network, new: Pair, old: Pair, budget: float, seed: int, rate: float, weight: float = 1.0, size: int = 128
) -> Tensor:
    """The new task's loss and the old one's on kept, labelled images; with all of them it is joint training."""
    stream, memory = batches(new, size, seed), batches(old, size, seed + 1)

    def loss(theta: Tensor) -> Tensor:
        (x, y), (xo, yo) = next(stream), next(memory)
        return F.cross_entropy(network(theta, x), y) + weight * F.cross_entropy(network(theta, xo), yo)

    return adam(network, network.start, loss, budget, rate)


def sgd(network: Network, new: Pair, budget: float, seed: int, rate: float, size: int = 64) -> Tensor:
    """SGD with momentum 0.9 and a linear decay."""
    stream, theta, velocity = batches(new, size, seed), network.start.clone(), torch.zeros_like(network.start)
    network.evaluations = 0.0
    while network.evaluations < budget:
        x, y = next(stream)
        point = theta.requires_grad_(True)
        (gradient,) = torch.autograd.grad(F.cross_entropy(network(point, x), y), point)
        velocity = 0.9 * velocity + gradient
        theta = theta.detach() - rate * (1 - network.evaluations / budget) * velocity
    return theta.detach()


def accuracy(network: Network, theta: Tensor, data: Pair) -> float:
    """In percent."""
    with torch.no_grad():
        batches = zip(data[0].split(1000), data[1].split(1000))
        hits = sum(int((network(theta, x).argmax(1) == y).sum()) for x, y in batches)
    return 100 * hits / len(data[1])


def independent_drift(network: Network, theta: Tensor, kept: Tensor) -> float:
    """Mean squared Hellinger distance to the start's outputs in float64, 1 - Σ√(p p₀), apart from the library's."""
    model, start = network.model(theta).double().eval(), network.model(network.start).double().eval()
    with torch.no_grad():
        p, p0 = (m(kept.double()).softmax(-1) for m in (model, start))
    return float((1 - (p * p0).sqrt().sum(-1)).mean())
