"""A small problem: four classes on a square, a network with a ReLU and one with a convolution and batch norm."""

import torch
from torch import Tensor, nn

import isopath as ip


def square(rows: int = 200, seed: int = 0) -> tuple[Tensor, Tensor]:
    x = torch.rand(rows, 2, generator=torch.Generator().manual_seed(seed)) * 2 - 1
    return x, (x[:, 0] > 0).long() * 2 + (x[:, 1] > 0).long()


def small(seed: int = 0) -> nn.Sequential:
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        return nn.Sequential(nn.Linear(2, 8), nn.ReLU(), nn.Linear(8, 4))


def convolved() -> nn.Sequential:
    with torch.random.fork_rng():
        torch.manual_seed(0)
        layers = nn.Conv2d(1, 4, 3), nn.BatchNorm2d(4), nn.ReLU(), nn.Flatten(), nn.Linear(16, 3)
        return nn.Sequential(*layers)


def task(rows: int = 200, seed: int = 0) -> ip.Task:
    return ip.Task(*square(rows, seed), batch_size=32)


SMALL = {"latent": 6, "code": 4, "width": 16, "trunk": 16, "networks": 4}
