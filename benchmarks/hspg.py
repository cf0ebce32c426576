"""Half-space stochastic projected gradient (Chen et al. 2020, arXiv 2004.03639; beside it arXiv 2011.04868)."""

from __future__ import annotations

import math

import torch
import torch.nn.functional as F
from torch import Tensor, nn

import isopath as ip
from isopath.symmetry import Units

SIZE = 128


class Groups:
    """What makes each unit: its row of a layer, its bias, its scale and shift."""

    def __init__(self, model: nn.Module, x: Tensor) -> None:
        named = dict(model.named_parameters())
        groups = Units.of(model, x, ip.symmetries(model, x, rescalings=False)).symmetries.groups.values()
        self.parts = [[named[name] for name, axis in group.members if axis == 0 and name in named] for group in groups]

    def sums(self, k: int, values: dict[nn.Parameter, Tensor]) -> Tensor:
        """Of a group's units, `(n,)`."""
        return torch.stack([values[p].flatten(1).sum(1) if p.ndim > 1 else values[p] for p in self.parts[k]]).sum(0)

    def scaled(self, k: int, by: Tensor) -> None:
        """Each unit of a group times a number, in place."""
        for p in self.parts[k]:
            p.mul_(by.view(-1, *[1] * (p.ndim - 1)))


def hspg(model: nn.Module, x: Tensor, y: Tensor, rate: float, weight: float, evaluations: float, seed: int) -> float:
    """Cross-entropy + weight · Σ_g ‖x_g‖ over the groups g that make a unit, in place; the gradient evaluations spent.

    Proximal steps over the first half; then half-space steps: a group that a step turns away from where it stood (by
    more than a right angle) is zero from then on. SGD with momentum 0.9, rate along half a cosine.
    """
    groups, generator = Groups(model.eval(), x[:2]), torch.Generator().manual_seed(seed)
    parameters = [p for part in groups.parts for p in part]
    optimizer = torch.optim.SGD(model.parameters(), rate, momentum=0.9)
    total, per = int(evaluations / SIZE), len(x) // SIZE
    for step in range(total):
        if step % per == 0:
            order = torch.randperm(len(x), generator=generator)
        now = optimizer.param_groups[0]["lr"] = rate * 0.5 * (1 + math.cos(math.pi * step / total))
        rows = order[step % per * SIZE :][:SIZE]
        before = {p: p.detach().clone() for p in parameters}
        optimizer.zero_grad()
        F.cross_entropy(model.train()(x[rows]), y[rows]).backward()
        optimizer.step()
        with torch.no_grad():
            for k in range(len(groups.parts)):
                _shrunk(groups, k, before, now * weight, step >= total / 2)
    model.eval()
    return total * SIZE


def _shrunk(groups: Groups, k: int, before: dict[nn.Parameter, Tensor], by: float, half_space: bool) -> None:
    if not half_space:
        norm = groups.sums(k, {p: p.square() for p in groups.parts[k]}).sqrt()
        groups.scaled(k, (1 - by / norm.clamp_min(1e-12)).clamp_min(0))
        return
    length = groups.sums(k, {p: before[p].square() for p in groups.parts[k]}).sqrt()
    for p in groups.parts[k]:
        p -= by * before[p] / length.clamp_min(1e-12).view(-1, *[1] * (p.ndim - 1))
    ahead = groups.sums(k, {p: p * before[p] for p in groups.parts[k]})
    groups.scaled(k, (ahead > 0).to(ahead))
