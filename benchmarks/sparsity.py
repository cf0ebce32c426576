"""How far a network can be made sparse before it forgets: LeNet-300-100 on MNIST, no label used.

From one trained network per seed (Adam, 12 epochs, rate to zero; the dense accuracy is in each row), 95, 98 and 99 % of
its weights go, with all 60,000 training images as the reference, or 90 and 95 % with 512 of them. Methods: the smallest
weights at once (one-shot); the smallest weights a few at a time with distillation between (gradual: Zhu & Gupta 2017,
arXiv 1710.01878, Adam, rate along half a cosine), on the cross-entropy with the dense network's outputs, or, with 512
images, on the squared error of its logits too; `ip.Sparsity` with either score, by the Hellinger distance, and with 512
images by the squared error. Every method may spend 8 gradient evaluations for each of 60,000 images (512: 400 for
each), whatever for; what it spent is in the row. Each chooses its rate on 5,000 held-out training images with seed 0 at
98 % (512: 95 %), from the same grid.

    python -m benchmarks.sparsity --data DATA
"""

from __future__ import annotations

import copy
import math
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from torch import nn

import isopath as ip
from benchmarks.harness import GROUND, RAN, RESULTS, arguments, run, table
from benchmarks.tasks.mnist import Pair, mnist
from isopath.trace import NaturalGradient, Recovery

RATES, SIZE = (2e-3, 4e-3, 8e-3, 1.6e-2), 128
SETS = {"all": (60_000, 8), "512": (512, 400)}  # reference images, passes over them
FRACTIONS = {"all": (0.95, 0.98, 0.99), "512": (0.9, 0.95)}
DRIFTS = {"all": ("hellinger", 0.5, 70), "512": ("squared_error", 1e9, 35)}  # how outputs are compared, τ, rounds
TUNED = {"all": 0.98, "512": 0.95}
OURS = (*RAN, "objectives/sparsity", "trace/sparsifier", "trace/recovery", "geometry/saliency", "geometry/diagonal")
LOGITS = "gradual, distilled by logits"
METHODS = {
    "all": ("one-shot", "gradual, distilled", "isopath, magnitude", "isopath, metric"),
    "512": ("one-shot", "gradual, distilled", LOGITS, "isopath, magnitude", "isopath, metric"),
}


def network() -> nn.Sequential:
    """784-300-100-10."""
    layers = nn.Linear(784, 300), nn.ReLU(), nn.Linear(300, 100), nn.ReLU(), nn.Linear(100, 10)
    return nn.Sequential(*layers)


def dense(train: Pair, seed: int, epochs: int = 12, build: Callable[[], nn.Sequential] = network) -> nn.Sequential:
    """Trained with labels."""
    torch.manual_seed(seed)
    model, (x, y) = build(), train
    generator, total = torch.Generator().manual_seed(seed), epochs * (len(x) // SIZE)
    optimizer = torch.optim.Adam(model.parameters(), 1e-3)
    for k in range(total):
        if k % (len(x) // SIZE) == 0:
            order = torch.randperm(len(x), generator=generator)
        optimizer.param_groups[0]["lr"] = 1e-3 * (1 - k / total)
        rows = order[k % (len(x) // SIZE) * SIZE :][:SIZE]
        optimizer.zero_grad()
        F.cross_entropy(model(x[rows]), y[rows]).backward()
        optimizer.step()
    return model


def weights(model: nn.Module) -> list[nn.Parameter]:
    """Those that count."""
    return [p for p in model.parameters() if p.ndim >= 2]


def masks(model: nn.Module, fraction: float) -> list[torch.Tensor]:
    """The largest weights of the whole network."""
    flat = torch.cat([p.detach().abs().reshape(-1) for p in weights(model)])
    kept = torch.ones_like(flat, dtype=torch.bool)
    kept[flat.argsort()[: round(fraction * len(flat))]] = False
    return [m.view_as(p) for m, p in zip(kept.split([p.numel() for p in weights(model)]), weights(model))]


@torch.no_grad()
def cut(model: nn.Module, kept: list[torch.Tensor]) -> None:
    """In place."""
    for p, m in zip(weights(model), kept):
        p.mul_(m)


def gradual(model: nn.Module, x: torch.Tensor, fraction: float, rate: float, evaluations: float, seed: int,
            logits: bool) -> float:  # fmt: skip
    """Gradual magnitude and distillation, in place; the gradient evaluations spent."""
    with torch.no_grad():
        target = model(x) if logits else model(x).softmax(1)
    generator, size = torch.Generator().manual_seed(seed), min(SIZE, len(x))
    total, per = int((evaluations - len(x) / 3) / size), len(x) // size
    optimizer, kept = torch.optim.Adam(model.parameters(), rate), masks(model, 0.0)
    for k in range(total):
        if k % per == 0:
            order = torch.randperm(len(x), generator=generator)
        if k % 50 == 0 and k / total <= 0.5:
            kept = masks(model, fraction * (1 - (1 - min(1.0, (k / total + 50 / total) / 0.45)) ** 3))
            cut(model, kept)
        optimizer.param_groups[0]["lr"] = rate * 0.5 * (1 + math.cos(math.pi * k / total)) * min(1.0, (k + 1) / 50)
        rows = order[k % per * size :][:size]
        optimizer.zero_grad()
        (F.mse_loss if logits else F.cross_entropy)(model(x[rows]), target[rows]).backward()
        optimizer.step()
        cut(model, kept)
    return total * size + len(x) / 3


def pruned(root: Path, method: str, reference: str, fraction: float, rate: float, seed: int, held: bool,
           starts: dict[tuple[int, bool], nn.Sequential]) -> dict[str, Any]:  # fmt: skip
    """Accuracy before and after, drift on the test images, and what it cost."""
    train, (x_test, y_test) = mnist(root, held)
    if (seed, held) not in starts:
        starts[seed, held] = dense(train, seed)
    model = starts[seed, held]
    count, passes = SETS[reference]
    order = torch.randperm(len(train[0]), generator=torch.Generator().manual_seed(seed))
    x = train[0] if reference == "all" else train[0][order[:count]]
    budget, sparse, spent = passes * len(x), copy.deepcopy(model), 0.0
    if method == "one-shot":
        cut(sparse, masks(sparse, fraction))
    elif method.startswith("gradual"):
        spent = gradual(sparse, x, fraction, rate, budget, seed, method == LOGITS)
    else:
        objective = ip.Sparsity(fraction, score="metric" if method.endswith("metric") else "magnitude")
        divergence, tolerance, rounds = DRIFTS[reference]
        kept = ip.Reference(x, split=0.9, divergence=divergence)
        steps = ip.steps(model, kept, objective, tolerance, rounds, seed, max_evaluations=budget,
                         corrector=Recovery(rate=rate), direction=NaturalGradient(options={"samples": 1}))  # fmt: skip
        *_, last = steps
        sparse, spent = last.model(), last.evaluations  # type: ignore[assignment]
    zero = sum(int((p == 0).sum()) for p in weights(sparse)) / sum(p.numel() for p in weights(sparse))
    with torch.no_grad():
        before, after = model(x_test), sparse(x_test)
        right = [100 * float((out.argmax(1) == y_test).float().mean()) for out in (before, after)]
        drift = 0.5 * (before.softmax(1).sqrt() - after.softmax(1).sqrt()).square().sum(1).mean()
    return {"dense": right[0], "accuracy": right[1], "lost": right[0] - right[1], "zero": zero,
            "drift": float(drift), "evaluations": spent}  # fmt: skip


def best(args: Any, method: str, reference: str, starts: Any) -> float | None:
    """The rate that is best on held-out images."""
    if method == "one-shot":
        return 0.0
    scores = []
    for rate in RATES:
        work = partial(pruned, args.data, method, reference, TUNED[reference], rate, 0, True, starts)
        row = run(f"sparsity/{reference}/grid", f"{method} {rate:g}", 0, {"rate": rate}, args, work, _ran(method))
        if row is None:
            return None
        scores.append(row["accuracy"])
    return RATES[max(range(len(RATES)), key=scores.__getitem__)]


def _ran(method: str) -> tuple[str, ...]:
    tasks = ("../../benchmarks/tasks/mnist",)
    return (*tasks, *OURS) if method.startswith("isopath") else (*tasks, *GROUND)


def main() -> None:
    """Runs what is missing and prints the tables."""
    args, texts = arguments(__doc__ or ""), []
    starts: dict[tuple[int, bool], nn.Sequential] = {}
    for reference in SETS:
        if args.only and reference not in args.only:
            continue
        rates = {method: best(args, method, reference, starts) for method in METHODS[reference]}
        for fraction in FRACTIONS[reference]:
            rows = []
            for method in METHODS[reference]:
                rate = rates[method]
                for seed in args.seeds if rate is not None else ():
                    work = partial(pruned, args.data, method, reference, fraction, rate, seed, False, starts)
                    place = f"sparsity/{reference}/{100 * fraction:g}"
                    rows.append(run(place, method, seed, {"rate": rate}, args, work, _ran(method)))
            if any(rows):
                text = table(rows, ["dense", "accuracy", "lost", "drift", "evaluations"], "{:.4g}")
                texts.append(f"{reference}, {100 * fraction:g} % of the weights zero\n\n{text}")
    (RESULTS / "sparsity.md").write_text("\n\n".join(texts) + "\n")
    print("\n\n".join(texts))


if __name__ == "__main__":
    main()
