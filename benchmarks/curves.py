"""Quadratic Bezier curves between convolutional networks on CIFAR-10, aligned and not, at equal training.

A TinyTen-size network (ten layers, batch norm, 16 to 64 channels) on images averaged over 2 x 2 pixels, four epochs of
SGD: what two cores allow. Two pairs; each curve is trained for a short and a long budget, its rate falling to zero over
each; 25 points in t, running statistics estimated anew at each, test set. CIFAR-10 is a JPEG copy: published figures
give orientation.

    python -m benchmarks.curves --data DATA
"""

from __future__ import annotations

from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import nn

import isopath as ip
from benchmarks.connect import MATCHED, Protocol, loaded, trained
from benchmarks.harness import JOINED, RESULTS, arguments, run, table

STEPS, SIZE, RATE = (150, 600), 128, 3e-3


def tiny_ten() -> nn.Module:
    """Nine convolutions with batch norm, and a linear layer on the mean."""
    layers: list[nn.Module] = []
    before = 3
    for width, stride in ((16, 1), (16, 1), (16, 1), (32, 2), (32, 1), (32, 1), (64, 2), (64, 1), (64, 1)):
        layers += [nn.Conv2d(before, width, 3, stride, 1), nn.BatchNorm2d(width), nn.ReLU()]
        before = width
    return nn.Sequential(*layers, nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(before, 10))


TINY = Protocol(tiny_ten, "cifar16", 4, "sgd", 0.1, 5e-4)


def curve(root: Path, aligned: bool, steps: int, seed: int) -> dict[str, Any]:
    """The curve between networks `2 seed` and `2 seed + 1`."""
    train, test = (loaded(root, TINY.data, part) for part in (True, False))
    a, b = (trained("cifar_tiny", TINY, 2 * seed + i, train) for i in (0, 1))
    x = train[0][torch.randperm(len(train[0]), generator=torch.Generator().manual_seed(seed))[:MATCHED]]
    permutation = ip.align(a, b, x, seed=seed) if aligned else None
    task = ip.Task(*train, batch_size=SIZE)
    found = ip.connect(a, b, task, steps=steps, rate=RATE, permutation=permutation, seed=seed)
    profile = ip.along(found, ip.Task(*test, batch_size=1000), data=x[:2000])
    scores = [100 * float(value or 0) for value in profile.accuracy]
    return {
        "ends": (scores[0] + scores[-1]) / 2,
        "minimum": min(scores),
        "mean": 100 * profile.mean("accuracy"),
        "barrier": profile.barrier,
        "evaluations": found.history[-1]["evaluations"],
        "accuracy": scores,
    }


def main() -> None:
    """Runs what is missing and prints the table."""
    args, rows = arguments(__doc__ or ""), []
    for steps in STEPS:
        for aligned in (False, True):
            for seed in args.seeds[:2]:
                name = f"{'aligned' if aligned else 'unaligned'}-{steps}"
                fixed = {"epochs": TINY.epochs, "rate": RATE, "size": SIZE, "steps": steps}
                work = partial(curve, args.data, aligned, steps, seed)
                rows.append(run("curves", name, seed, fixed, args, work, JOINED))
    text = table(rows, ["ends", "minimum", "mean", "barrier", "evaluations"], "{:.4g}")
    (RESULTS / "curves.md").write_text(text + "\n")
    print(text)


if __name__ == "__main__":
    main()
