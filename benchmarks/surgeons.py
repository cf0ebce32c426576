"""Optimal brain surgeons to stand beside: what a weight's loss costs, and how the others make up for it."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.func import functional_call, grad, vmap

BLOCK = 1000


def weights(model: nn.Module) -> list[nn.Parameter]:
    """Those that count."""
    return [p for p in model.parameters() if p.ndim >= 2]


@torch.no_grad()
def cut(model: nn.Module, kept: list[Tensor]) -> None:
    """In place."""
    for p, m in zip(weights(model), kept):
        p.mul_(m)


def stays(costs: list[Tensor], fraction: float) -> list[Tensor]:
    """Masks without the fraction whose costs are least."""
    flat = torch.cat([cost.reshape(-1) for cost in costs])
    kept = torch.ones_like(flat, dtype=torch.bool)
    kept[flat.argsort()[: round(fraction * len(flat))]] = False
    return [m.view_as(cost) for m, cost in zip(kept.split([cost.numel() for cost in costs]), costs)]


def gradients(model: nn.Module, x: Tensor, generator: torch.Generator) -> list[Tensor]:
    """Of the loss of each row at a label that the network draws, `(N, *shape)` for each weight."""
    named = {name: p.detach() for name, p in model.named_parameters()}
    with torch.no_grad():
        y = torch.multinomial(model(x).softmax(1), 1, generator=generator).squeeze(1)

    def loss(own: dict[str, Tensor], row: Tensor, label: Tensor) -> Tensor:
        return F.cross_entropy(functional_call(model, own, (row[None],)), label[None])

    found = vmap(grad(loss), (None, 0, 0))(named, x, y)
    return [found[name] for name, p in named.items() if p.ndim >= 2]


class Magnitude:
    """The smallest; nothing moves."""

    def __init__(self, model: nn.Module, x: Tensor, damping: float, generator: torch.Generator) -> None:
        self.model, self.damping = model, damping

    def costs(self) -> list[Tensor]:
        """What each weight's loss costs."""
        return [p.detach().square() for p in weights(self.model)]

    def moves(self, gone: list[Tensor]) -> list[Tensor]:
        """What the others' weights are changed by when those at `gone` go."""
        return [torch.zeros_like(p) for p in weights(self.model)]


class Diagonal(Magnitude):
    """θ² F_qq / 2 with the diagonal of the Fisher matrix; nothing moves."""

    def __init__(self, model: nn.Module, x: Tensor, damping: float, generator: torch.Generator) -> None:
        super().__init__(model, x, damping, generator)
        self.fisher = [g.square().mean(0) for g in gradients(model, x, generator)]

    def costs(self) -> list[Tensor]:
        return [p.detach().square() * (f + self.damping) / 2 for p, f in zip(weights(self.model), self.fisher)]


class KFAC(Magnitude):
    """θ² / (2 [A⁻¹]_jj [B⁻¹]_ii); the moves of single weights, summed."""

    def __init__(self, model: nn.Module, x: Tensor, damping: float, generator: torch.Generator) -> None:
        super().__init__(model, x, damping, generator)
        self.inverses, inputs, outputs = [], [], []
        h = x
        for layer in model:  # type: ignore[union-attr]
            if isinstance(layer, nn.Linear):
                inputs.append(h.detach())
                h = layer(h)
                h.retain_grad()
                outputs.append(h)
            else:
                h = layer(h)
        y = torch.multinomial(h.detach().softmax(1), 1, generator=generator).squeeze(1)
        F.cross_entropy(h, y, reduction="sum").backward()
        for a, out in zip(inputs, outputs):
            assert out.grad is not None
            factors = [v.double().T @ v.double() / len(x) for v in (a, out.grad)]
            scale = (factors[0].trace() / len(factors[0]) / (factors[1].trace() / len(factors[1]))).sqrt()
            parts = (damping**0.5 * scale, damping**0.5 / scale)
            self.inverses.append([torch.linalg.inv(f + part * torch.eye(len(f))) for f, part in zip(factors, parts)])
        model.zero_grad()

    def costs(self) -> list[Tensor]:
        return [p.detach().double().square() / (2 * b.diagonal()[:, None] * a.diagonal())
                for p, (a, b) in zip(weights(self.model), self.inverses)]  # fmt: skip

    def moves(self, gone: list[Tensor]) -> list[Tensor]:
        return [(-b @ (p.detach() * m / (b.diagonal()[:, None] * a.diagonal())) @ a).to(p)
                for p, m, (a, b) in zip(weights(self.model), gone, self.inverses)]  # fmt: skip


class WoodFisher(Magnitude):
    """The same with the inverse of (damping I + mean ggᵀ), in blocks of weights that follow one another in a layer."""

    def __init__(self, model: nn.Module, x: Tensor, damping: float, generator: torch.Generator) -> None:
        super().__init__(model, x, damping, generator)
        self.left = [p.detach().flatten().nonzero().squeeze(1) for p in weights(model)]  # what is gone has no gradient
        self.blocks = []
        for left, g in zip(self.left, gradients(model, x, generator)):
            parts = g.flatten(1)[:, left].double().split(BLOCK, 1)
            self.blocks.append([torch.linalg.inv(part.T @ part / len(x) + damping * torch.eye(part.shape[1]).double())
                                for part in parts])  # fmt: skip

    def costs(self) -> list[Tensor]:
        found = []
        for p, left, blocks in zip(weights(self.model), self.left, self.blocks):
            diagonal = torch.cat([block.diagonal() for block in blocks])
            cost = p.detach().double().flatten()
            cost[left] = cost[left].square() / (2 * diagonal)
            found.append(cost.view_as(p))
        return found

    def moves(self, gone: list[Tensor]) -> list[Tensor]:
        found = []
        for p, m, left, blocks in zip(weights(self.model), gone, self.left, self.blocks):
            move, parts = torch.zeros_like(p).flatten(), (p.detach().double() * m).flatten()[left].split(BLOCK)
            move[left] = -torch.cat([b @ (v / b.diagonal()) for v, b in zip(parts, blocks)]).to(p)
            found.append(move.view_as(p))
        return found


def operated(surgeon: Magnitude, kept: list[Tensor], fraction: float) -> list[Tensor]:
    """The masks of what is left when a fraction is gone, which is taken out in place."""
    model = surgeon.model
    after = stays([torch.where(m, cost.double(), -1.0) for m, cost in zip(kept, surgeon.costs())], fraction)
    moves = surgeon.moves([m & ~s for m, s in zip(kept, after)])
    with torch.no_grad():
        for p, move in zip(weights(model), moves):
            p += move
    cut(model, after)
    return after
