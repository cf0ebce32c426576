"""Optimal brain surgeons to stand beside: what a weight's loss costs, and how the others make up for it."""

from __future__ import annotations

from typing import Any

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

        def seen(layer: nn.Module, args: tuple[Tensor], out: Tensor) -> None:
            out.retain_grad()
            inputs.append(_read(layer, args[0].detach()))
            outputs.append(out)

        layers = [module for module in model.modules() if isinstance(module, (nn.Linear, nn.Conv2d))]
        handles = [layer.register_forward_hook(seen) for layer in layers]
        h = model(x)
        for handle in handles:
            handle.remove()
        y = torch.multinomial(h.detach().softmax(1), 1, generator=generator).squeeze(1)
        F.cross_entropy(h, y, reduction="sum").backward()
        for a, out in zip(inputs, outputs):
            assert out.grad is not None
            given = out.grad.movedim(1, -1).flatten(0, -2)
            # summed over places: as if what reads and what it gives were independent of the place
            factors = [a.double().T @ a.double() / len(a), given.double().T @ given.double() / len(x)]
            scale = (factors[0].trace() / len(factors[0]) / (factors[1].trace() / len(factors[1]))).sqrt()
            parts = (damping**0.5 * scale, damping**0.5 / scale)
            self.inverses.append([torch.linalg.inv(f + part * torch.eye(len(f))) for f, part in zip(factors, parts)])
        model.zero_grad()

    def costs(self) -> list[Tensor]:
        return [p.detach().double().square() / (2 * b.diagonal()[:, None] * a.diagonal()).view_as(p)
                for p, (a, b) in zip(weights(self.model), self.inverses)]  # fmt: skip

    def moves(self, gone: list[Tensor]) -> list[Tensor]:
        return [(-b @ ((p.detach() * m).flatten(1) / (b.diagonal()[:, None] * a.diagonal())) @ a).to(p).view_as(p)
                for p, m, (a, b) in zip(weights(self.model), gone, self.inverses)]  # fmt: skip


def _read(layer: nn.Module, x: Tensor) -> Tensor:
    """What a row of the layer's weights is multiplied by, at every place, `(N·places, inputs)`."""
    if isinstance(layer, nn.Conv2d):
        sizes: Any = (layer.kernel_size, layer.dilation, layer.padding, layer.stride)
        x = F.unfold(x, *sizes).movedim(1, -1)
    return x.flatten(0, -2)


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
