"""Weights taken out without a gradient step afterwards: 784-40-20-10 on MNIST, no label used.

From one trained network per seed (Adam, 10 epochs, rate to zero; the dense accuracy is in each row), 90, 95 and 98 % of
its weights go; those that stay are moved by the surgeon alone. All methods read the same 2,048 training images; labels,
where one needs any, are drawn from the network's own predictions. Methods: magnitude; a diagonal Fisher matrix (optimal
brain damage); K-FAC (optimal brain surgeon with Kronecker factors, as Wang et al. 2019, arXiv 1905.05934, have it as a
baseline); WoodFisher (Singh & Alistarh 2020, arXiv 2004.14340: the inverse of the empirical Fisher matrix in blocks of
1,000 weights); `ip.Sparsity` by the metric with `corrector=None` (isopath), or with `Compensation()`, whose model of
the drift is the exact metric's and has its gradient too (isopath, compensated). Each may do it at once or in 20 stages
with all matrices built anew (our factors: every fourth, a gradient of each image at one label for them and one for
EKFAC's values), and chooses stages and damping (of our factors: shrinkage, and factors or EKFAC) on 5,000 held-out
training images with seed 0 at 95 %.

    python -m benchmarks.surgery --data DATA
"""

from __future__ import annotations

import copy
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

import isopath as ip
from benchmarks.harness import GROUND, RESULTS, arguments, chosen, run, table
from benchmarks.sparsity import OURS, ROWS, STAGES, dense, narrow
from benchmarks.surgeons import KFAC, Diagonal, Magnitude, WoodFisher, operated, weights
from benchmarks.tasks.mnist import mnist
from isopath.trace import Compensation, NaturalGradient

COMPENSATED = "isopath, compensated"
FRACTIONS, DAMPINGS = (0.9, 0.95, 0.98), (1e-5, 1e-4, 1e-3, 1e-2)
SURGEONS: dict[str, type[Magnitude]] = {
    "magnitude": Magnitude, "diagonal Fisher": Diagonal, "K-FAC": KFAC, "WoodFisher": WoodFisher,
}  # fmt: skip


def staged(model: nn.Module, x: Tensor, kind: type[Magnitude], fraction: float, stages: int, damping: float,
           seed: int) -> None:  # fmt: skip
    """In place, the fraction rising as 1 - (1 - t)³."""
    generator = torch.Generator().manual_seed(seed)
    kept = [torch.ones_like(p, dtype=torch.bool) for p in weights(model)]
    for stage in range(1, stages + 1):
        surgeon = kind(model, x, damping, generator)
        kept = operated(surgeon, kept, fraction * (1 - (1 - stage / stages) ** 3))


def pruned(root: Path, method: str, settings: dict[str, Any], fraction: float, seed: int, held: bool,
           starts: dict[tuple[int, bool], nn.Sequential]) -> dict[str, Any]:  # fmt: skip
    """Accuracy before and after."""
    train, (x_test, y_test) = mnist(root, held)
    if (seed, held) not in starts:
        starts[seed, held] = dense(train, seed, 10, narrow)
    model = copy.deepcopy(starts[seed, held])
    x = train[0][torch.randperm(len(train[0]), generator=torch.Generator().manual_seed(seed))[:ROWS]]
    if method in SURGEONS:
        staged(model, x, SURGEONS[method], fraction, settings["stages"], settings.get("damping", 0.0), seed)
        spent = 0.0 if method == "magnitude" else float(settings["stages"] * len(x))
    else:
        kept, objective = ip.Reference(x, split=0.9), ip.Sparsity(fraction, score="metric")
        options = {"samples": 1, "shrinkage": settings["shrinkage"]}
        corrector = Compensation(damping=settings["damping"]) if method == COMPENSATED else None
        *_, last = ip.steps(model, kept, objective, 1e9, settings["stages"], seed, corrector=corrector,
                            direction=NaturalGradient(settings["metric"], options=options))  # fmt: skip
        model, spent = last.model(), last.evaluations
    zero = sum(int((p == 0).sum()) for p in weights(model)) / sum(p.numel() for p in weights(model))
    with torch.no_grad():
        right = [100 * float((m(x_test).argmax(1) == y_test).float().mean()) for m in (starts[seed, held], model)]
    return {"dense": right[0], "accuracy": right[1], "lost": right[0] - right[1], "zero": zero,
            "evaluations": spent}  # fmt: skip


GRIDS: dict[str, list[dict[str, Any]]] = {
    "magnitude": [{"stages": 1}],  # stages change nothing
    **{name: [{"stages": s, "damping": d} for s in (1, STAGES) for d in DAMPINGS]
       for name in ("diagonal Fisher", "K-FAC", "WoodFisher")},
    "isopath": [{"stages": s, "metric": m, "shrinkage": h}
                for s in (1, STAGES) for m in ("kronecker", "ekfac") for h in (0.1, 0.3)],
    COMPENSATED: [{"stages": s, "metric": "kronecker", "shrinkage": 0.3, "damping": d}
                  for s in (1, STAGES) for d in (0.01, 0.1, 1.0)],
}  # fmt: skip


def _ran(method: str) -> tuple[str, ...]:
    tasks = ("../../benchmarks/tasks/mnist",)
    if not method.startswith("isopath"):
        return *tasks, *GROUND
    return *tasks, *OURS, "trace/compensation", *(() if method == COMPENSATED else ("geometry/ekfac",))


def best(args: Any, method: str, starts: Any) -> dict[str, Any] | None:
    """The settings that are best on held-out images."""

    def tried(k: int, settings: dict[str, Any]) -> dict[str, Any] | None:
        work = partial(pruned, args.data, method, settings, 0.95, 0, True, starts)
        return run("surgery/grid", f"{method} {k}", 0, settings, args, work, _ran(method))

    return chosen(GRIDS[method], tried, "accuracy")


def main() -> None:
    """Runs what is missing and prints the tables."""
    args, texts = arguments(__doc__ or ""), []
    starts: dict[tuple[int, bool], nn.Sequential] = {}
    settled = {method: best(args, method, starts) for method in GRIDS if not args.only or method in args.only}
    for fraction in FRACTIONS:
        rows = []
        for method, settings in settled.items():
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
