"""Weights taken out without a gradient step afterwards: 784-40-20-10 on MNIST, no label used.

From one trained network per seed (Adam, 10 epochs, rate to zero; the dense accuracy is in each row), 90, 95 and 98 % of
its weights go; those that stay are moved by the surgeon alone. All methods read the same 2,048 training images; labels,
where one needs any, are drawn from the network's own predictions. Methods: magnitude; a diagonal Fisher matrix (optimal
brain damage); K-FAC (optimal brain surgeon with Kronecker factors, as Wang et al. 2019, arXiv 1905.05934, have it as a
baseline); WoodFisher (Singh & Alistarh 2020, arXiv 2004.14340: the inverse of the empirical Fisher matrix in blocks of
1,000 weights); `ip.Sparsity` by the metric with `corrector=None`. Each may do it at once or in 20 stages with all
matrices built anew (ours: every fourth, a gradient of each image at one label for the factors and one for EKFAC's
values), and chooses stages and damping (ours: shrinkage, and factors or EKFAC) on 5,000 held-out training images with
seed 0 at 95 %.

    python -m benchmarks.surgery --data DATA
"""

from __future__ import annotations

import copy
from functools import partial
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.func import functional_call, grad, vmap

import isopath as ip
from benchmarks.harness import GROUND, RESULTS, arguments, run, table
from benchmarks.sparsity import OURS, cut, dense, weights
from benchmarks.tasks.mnist import mnist
from isopath.trace import NaturalGradient

FRACTIONS, ROWS, BLOCK = (0.9, 0.95, 0.98), 2048, 1000
STAGES, DAMPINGS = (1, 20), (1e-5, 1e-4, 1e-3, 1e-2)


def network() -> nn.Sequential:
    """784-40-20-10."""
    return nn.Sequential(nn.Linear(784, 40), nn.ReLU(), nn.Linear(40, 20), nn.ReLU(), nn.Linear(20, 10))


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


SURGEONS: dict[str, type[Magnitude]] = {
    "magnitude": Magnitude, "diagonal Fisher": Diagonal, "K-FAC": KFAC, "WoodFisher": WoodFisher,
}  # fmt: skip


def operated(model: nn.Module, x: Tensor, kind: type[Magnitude], fraction: float, stages: int, damping: float,
             seed: int) -> None:  # fmt: skip
    """In place, the fraction rising as 1 - (1 - t)³."""
    generator = torch.Generator().manual_seed(seed)
    kept = [torch.ones_like(p, dtype=torch.bool) for p in weights(model)]
    for stage in range(1, stages + 1):
        surgeon = kind(model, x, damping, generator)
        costs = torch.cat([torch.where(m, c.double(), -1.0).flatten() for c, m in zip(surgeon.costs(), kept)])
        stays = torch.ones_like(costs, dtype=torch.bool)
        stays[costs.argsort()[: round(fraction * (1 - (1 - stage / stages) ** 3) * len(costs))]] = False
        after = [s.view_as(m) for s, m in zip(stays.split([m.numel() for m in kept]), kept)]
        moves = surgeon.moves([m & ~s for m, s in zip(kept, after)])
        with torch.no_grad():
            for p, move in zip(weights(model), moves):
                p += move
        kept = after
        cut(model, kept)


def pruned(root: Path, method: str, settings: dict[str, Any], fraction: float, seed: int, held: bool,
           starts: dict[tuple[int, bool], nn.Sequential]) -> dict[str, Any]:  # fmt: skip
    """Accuracy before and after."""
    train, (x_test, y_test) = mnist(root, held)
    if (seed, held) not in starts:
        starts[seed, held] = dense(train, seed, 10, network)
    model = copy.deepcopy(starts[seed, held])
    x = train[0][torch.randperm(len(train[0]), generator=torch.Generator().manual_seed(seed))[:ROWS]]
    if method in SURGEONS:
        operated(model, x, SURGEONS[method], fraction, settings["stages"], settings.get("damping", 0.0), seed)
        spent = 0.0 if method == "magnitude" else float(settings["stages"] * len(x))
    else:
        kept, objective = ip.Reference(x, split=0.9), ip.Sparsity(fraction, score="metric")
        options = {"samples": 1, "shrinkage": settings["shrinkage"]}
        *_, last = ip.steps(model, kept, objective, 1e9, settings["stages"], seed, corrector=None,
                            direction=NaturalGradient(settings["metric"], options=options))  # fmt: skip
        model, spent = last.model(), last.evaluations
    zero = sum(int((p == 0).sum()) for p in weights(model)) / sum(p.numel() for p in weights(model))
    with torch.no_grad():
        right = [100 * float((m(x_test).argmax(1) == y_test).float().mean()) for m in (starts[seed, held], model)]
    return {"dense": right[0], "accuracy": right[1], "lost": right[0] - right[1], "zero": zero,
            "evaluations": spent}  # fmt: skip


GRIDS: dict[str, list[dict[str, Any]]] = {
    "magnitude": [{"stages": 1}],  # stages change nothing
    **{name: [{"stages": s, "damping": d} for s in STAGES for d in DAMPINGS]
       for name in ("diagonal Fisher", "K-FAC", "WoodFisher")},
    "isopath": [{"stages": s, "metric": m, "shrinkage": h}
                for s in STAGES for m in ("kronecker", "ekfac") for h in (0.1, 0.3)],
}  # fmt: skip


def _ran(method: str) -> tuple[str, ...]:
    tasks = ("../../benchmarks/tasks/mnist",)
    return (*tasks, *OURS, "geometry/ekfac") if method == "isopath" else (*tasks, *GROUND)


def best(args: Any, method: str, starts: Any) -> dict[str, Any] | None:
    """The settings that are best on held-out images."""
    grid, scores = GRIDS[method], []
    for k, settings in enumerate(grid):
        work = partial(pruned, args.data, method, settings, 0.95, 0, True, starts)
        row = run("surgery/grid", f"{method} {k}", 0, settings, args, work, _ran(method))
        if row is None:
            return None
        scores.append(row["accuracy"])
    return grid[max(range(len(grid)), key=scores.__getitem__)]


def main() -> None:
    """Runs what is missing and prints the tables."""
    args, texts = arguments(__doc__ or ""), []
    starts: dict[tuple[int, bool], nn.Sequential] = {}
    chosen = {method: best(args, method, starts) for method in GRIDS if not args.only or method in args.only}
    for fraction in FRACTIONS:
        rows = []
        for method, settings in chosen.items():
            for seed in args.seeds if settings is not None else ():
                work = partial(pruned, args.data, method, settings, fraction, seed, False, starts)
                rows.append(run(f"surgery/{100 * fraction:g}", method, seed, settings, args, work, _ran(method)))
        if any(rows):
            text = table(rows, ["dense", "accuracy", "lost", "evaluations", "seconds"], "{:.4g}")
            texts.append(f"{100 * fraction:g} % of the weights zero\n\n{text}")
    if not args.only:
        (RESULTS / "surgery.md").write_text("\n\n".join(texts) + "\n")
    print("\n\n".join(texts))


if __name__ == "__main__":
    main()
