"""How far a network can be made sparse before it forgets: MNIST, and no label used but by the line that says so.

From one trained network per seed (Adam, rate to zero; the dense accuracy is in each row) a fraction of the weights
goes, with all 60,000 training images as the reference, or 512 of them. Every method may spend the same gradient
evaluations, whatever for; what it spent is in the row. Each chooses its settings on 5,000 held-out training images with
seed 0 at one of the fractions, from the grid of this file, by what it works for: the method with labels by accuracy,
all others by drift, so that no label is read for a choice either. Methods:

one-shot: the smallest weights at once.
gradual, labels: the smallest weights a few at a time with training between (Zhu & Gupta 2017, arXiv 1710.01878; Adam,
rate along half a cosine), on the labels. gradual, distilled: the same on the cross-entropy with the dense network's
outputs, or, by logits, on the squared error of its logits. diagonal Fisher, K-FAC: the same, where what goes is what an
optimal brain surgeon with that matrix takes (for K-FAC it also moves the others), the matrix built anew in 20 stages.
normalised steps: down the distance to the nearest point with so many zeros and the divergence of outputs together, in
steps of a given length, as Raghavan & Thomson 2024 (doi 10.1038/s42256-024-00902-x) sparsify; the zeros at the end.
isopath: `ip.Sparsity` with either score, that by the metric under Kronecker factors ("metric") or their diagonal.

    python -m benchmarks.sparsity --data DATA
"""

from __future__ import annotations

import copy
import math
from collections.abc import Callable
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

import isopath as ip
from benchmarks import surgeons
from benchmarks.harness import GROUND, RAN, RESULTS, arguments, run, settled_on, table
from benchmarks.surgeons import cut, stays, weights
from benchmarks.tasks.mnist import Pair, mnist
from isopath.geometry.divergence import divergence_of
from isopath.trace import NaturalGradient, Recovery

SIZE, ROWS, STAGES = 128, 2048, 20
RATES = (2e-3, 4e-3, 8e-3, 1.6e-2)
SURGERY = [{"rate": rate, "damping": damping} for rate in (2e-3, 4e-3) for damping in (1e-5, 1e-3)]
LENGTHS = [{"rate": rate, "weight": weight} for rate in (0.03, 0.1) for weight in (10.0, 100.0)]
OURS = (*RAN, "objectives/sparsity", "trace/sparsifier", "trace/recovery", "geometry/saliency", "geometry/diagonal")
LOGITS = "gradual, distilled by logits"
SURGEONS = {"diagonal Fisher, distilled": surgeons.Diagonal, "K-FAC, distilled": surgeons.KFAC}
Settings = dict[str, Any]


def network() -> nn.Sequential:
    """784-300-100-10."""
    layers = nn.Linear(784, 300), nn.ReLU(), nn.Linear(300, 100), nn.ReLU(), nn.Linear(100, 10)
    return nn.Sequential(*layers)


def narrow() -> nn.Sequential:
    """784-40-20-10."""
    return nn.Sequential(nn.Linear(784, 40), nn.ReLU(), nn.Linear(40, 20), nn.ReLU(), nn.Linear(20, 10))


def lenet5() -> nn.Sequential:
    """20 and 50 channels, 500 units (Caffe's LeNet-5): 430,500 weights."""
    return nn.Sequential(
        nn.Unflatten(1, (1, 28, 28)), nn.Conv2d(1, 20, 5), nn.ReLU(), nn.MaxPool2d(2), nn.Conv2d(20, 50, 5), nn.ReLU(),
        nn.MaxPool2d(2), nn.Flatten(), nn.Linear(800, 500), nn.ReLU(), nn.Linear(500, 10),
    )  # fmt: skip


@dataclass(frozen=True)
class Study:
    """One network, one reference, several fractions.

    Args:
        build: the network.
        fractions: of the weights that go.
        tuned: the fraction that settings are chosen at.
        passes: gradient evaluations that may be spent, for each image.
        methods: and the grid of each.
        rounds: of ours.
        images: the reference's; all by default.
        epochs: of the dense network.
        divergence: that ours compares outputs by.
        tolerance: of ours, in that divergence.
    """

    build: Callable[[], nn.Sequential]
    fractions: tuple[float, ...]
    tuned: float
    passes: int
    methods: dict[str, list[Settings]] = field(hash=False)
    rounds: int
    images: int | None = None
    epochs: int = 12
    divergence: str = "hellinger"
    tolerance: float = 0.5


def rates(*grid: float) -> list[Settings]:
    """Settings with a rate alone."""
    return [{"rate": rate} for rate in grid]


PLAIN = {"one-shot": rates(0.0), "gradual, distilled": rates(*RATES), "isopath, magnitude": rates(*RATES),
         "isopath, metric": rates(*RATES), "isopath, diagonal": rates(*RATES)}  # fmt: skip
BESIDE = {"gradual, labels": rates(*RATES), LOGITS: rates(*RATES), **dict.fromkeys(SURGEONS, SURGERY),
          "normalised steps": LENGTHS}  # fmt: skip
LONGER = {name: grid if len(grid) == 1 else rates(4e-3, 8e-3) for name, grid in PLAIN.items()}
STUDIES = {
    "all": Study(network, (0.95, 0.98, 0.99), 0.98, 8, {**PLAIN, **BESIDE}, 70),
    "longer": Study(network, (0.98, 0.99), 0.98, 24, LONGER, 210),
    "512": Study(network, (0.9, 0.95), 0.95, 400, {**PLAIN, LOGITS: rates(*RATES)}, 35, 512, 12, "squared_error", 1e9),
    "narrow": Study(narrow, (0.95, 0.98), 0.98, 24, {
        "one-shot": rates(0.0), "gradual, distilled": rates(2e-3, 4e-3),
        "diagonal Fisher, distilled": [{"rate": rate, "damping": 1e-3} for rate in (2e-3, 4e-3)],
        "isopath, magnitude": rates(4e-3, 8e-3), "isopath, metric": rates(8e-3, 1.6e-2),
        "isopath, diagonal": rates(8e-3, 1.6e-2),
    }, 210, epochs=40),
    # at the rate that both chose for the other networks: a run takes minutes
    "lenet-5": Study(lenet5, (0.99, 0.9936), 0.9936, 12,
                     {"gradual, distilled": rates(4e-3), "isopath, metric": rates(4e-3)}, 105),
}


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


@torch.no_grad()
def outputs(model: nn.Module, x: Tensor) -> Tensor:
    """Logits, `(N, C)`."""
    return torch.cat([model(part) for part in x.split(2000)])


def masks(model: nn.Module, fraction: float) -> list[Tensor]:
    """The largest weights of the whole network."""
    return stays([p.detach().abs() for p in weights(model)], fraction)


def gradual(model: nn.Module, x: Tensor, y: Tensor | None, fraction: float, rate: float, evaluations: float, seed: int,
            logits: bool = False, surgeon: type[surgeons.Magnitude] | None = None,
            damping: float = 0.0) -> float:  # fmt: skip
    """Weights out a few at a time and training between, in place; the gradient evaluations spent.

    Labels `y` or, where there are none, the model's own outputs at the start are the targets. Batch norm takes the
    statistics of its batches in the steps, and leaves what it gathered.
    """
    target = outputs(model.eval(), x) if y is None else y
    target = target if logits or y is not None else target.softmax(1)
    generator, size = torch.Generator().manual_seed(seed), min(SIZE, len(x))
    spent = len(x) / 3 if y is None else 0.0
    spent += STAGES * ROWS if surgeon else 0
    total, per = int((evaluations - spent) / size), len(x) // size
    optimizer, kept = torch.optim.Adam(model.parameters(), rate), masks(model, 0.0)
    every = 50 if surgeon is None else max(1, round(0.45 * total / STAGES))
    for k in range(total):
        if k % per == 0:
            order = torch.randperm(len(x), generator=generator)
        if k % every == 0 and k / total <= (0.5 if surgeon is None else 0.45):
            goal = fraction * (1 - (1 - min(1.0, (k / total + every / total) / 0.45)) ** 3)
            if surgeon is None:
                kept = masks(model, goal)
                cut(model, kept)
            else:
                some = x[torch.randperm(len(x), generator=generator)[:ROWS]]
                kept = surgeons.operated(surgeon(model.eval(), some, damping, generator), kept, goal)
        model.train()
        optimizer.param_groups[0]["lr"] = rate * 0.5 * (1 + math.cos(math.pi * k / total)) * min(1.0, (k + 1) / 50)
        rows = order[k % per * size :][:size]
        optimizer.zero_grad()
        (F.mse_loss if logits else F.cross_entropy)(model(x[rows]), target[rows]).backward()
        optimizer.step()
        cut(model, kept)
    model.eval()
    return total * size + spent


def stepped(model: nn.Module, x: Tensor, fraction: float, rate: float, weight: float, evaluations: float,
            seed: int) -> float:  # fmt: skip
    """Steps of a given length down ½‖θ - Πθ‖² + weight · divergence, in place; the gradient evaluations spent.

    The length falls to zero, and the zeros are made exact at the end.
    """
    target, divergence = outputs(model, x), divergence_of("bhattacharyya")
    generator, total, per = torch.Generator().manual_seed(seed), int((evaluations - len(x) / 3) / SIZE), len(x) // SIZE
    for k in range(total):
        if k % per == 0:
            order = torch.randperm(len(x), generator=generator)
        rows = order[k % per * SIZE :][:SIZE]
        far = sum((p * ~m).square().sum() for p, m in zip(weights(model), masks(model, fraction)))
        loss = far / 2 + weight * divergence.rows(model(x[rows]), target[rows]).mean()
        found = torch.autograd.grad(loss, list(model.parameters()))
        length = rate * (1 - k / total) / torch.cat([g.flatten() for g in found]).norm()
        with torch.no_grad():
            for p, g in zip(model.parameters(), found):
                p -= length * g
    cut(model, masks(model, fraction))
    return total * SIZE + len(x) / 3


def pruned(root: Path, study: Study, method: str, settings: Settings, fraction: float, seed: int, held: bool,
           starts: dict[Any, nn.Sequential]) -> dict[str, Any]:  # fmt: skip
    """Accuracy before and after, drift on the test images, and what it cost."""
    train, (x_test, y_test) = mnist(root, held)
    key = study.build, study.epochs, seed, held
    if key not in starts:
        starts[key] = dense(train, seed, study.epochs, study.build)
    model = starts[key]
    order = torch.randperm(len(train[0]), generator=torch.Generator().manual_seed(seed))
    x = train[0] if study.images is None else train[0][order[: study.images]]
    budget, sparse, spent, rate = study.passes * len(x), copy.deepcopy(model), 0.0, settings["rate"]
    if method == "one-shot":
        cut(sparse, masks(sparse, fraction))
    elif method == "normalised steps":
        spent = stepped(sparse, x, fraction, rate, settings["weight"], budget, seed)
    elif not method.startswith("isopath"):
        y = train[1] if method == "gradual, labels" else None
        spent = gradual(sparse, x, y, fraction, rate, budget, seed, method == LOGITS, SURGEONS.get(method),
                        settings.get("damping", 0.0))  # fmt: skip
    else:
        objective = ip.Sparsity(fraction, score="magnitude" if method.endswith("magnitude") else "metric")
        direction = NaturalGradient("diagonal" if method.endswith("diagonal") else "kronecker", {"samples": 1})
        kept = ip.Reference(x, split=0.9, divergence=study.divergence)
        steps = ip.steps(model, kept, objective, study.tolerance, study.rounds, seed, max_evaluations=budget,
                         corrector=Recovery(rate=rate), direction=direction)  # fmt: skip
        *_, last = steps
        sparse, spent = last.model(), last.evaluations  # type: ignore[assignment]
    zero = sum(int((p == 0).sum()) for p in weights(sparse)) / sum(p.numel() for p in weights(sparse))
    before, after = outputs(model, x_test), outputs(sparse, x_test)
    right = [100 * float((out.argmax(1) == y_test).float().mean()) for out in (before, after)]
    drift = 0.5 * (before.softmax(1).sqrt() - after.softmax(1).sqrt()).square().sum(1).mean()
    return {"dense": right[0], "accuracy": right[1], "lost": right[0] - right[1], "zero": zero,
            "drift": float(drift), "evaluations": spent}  # fmt: skip


def best(args: Any, name: str, method: str, starts: Any) -> Settings | None:
    """The settings that are best on held-out images: by least drift where no label is used."""
    study = STUDIES[name]

    def held(settings: Settings) -> dict[str, Any]:
        return pruned(args.data, study, method, settings, study.tuned, 0, True, starts)

    labels = method == "gradual, labels"
    return settled_on(f"sparsity/{name}", method, study.methods[method], args, held,
                      "accuracy" if labels else "drift", _ran(method), least=not labels)  # fmt: skip


def _ran(method: str) -> tuple[str, ...]:
    tasks = ("../../benchmarks/tasks/mnist",)
    return (*tasks, *OURS) if method.startswith("isopath") else (*tasks, *GROUND)


def main() -> None:
    """Runs what is missing and prints the tables."""
    args, texts = arguments(__doc__ or "", methods=""), []
    starts: dict[Any, nn.Sequential] = {}
    for name, study in STUDIES.items():
        if args.only and name not in args.only:
            continue
        methods = [m for m in study.methods if not args.methods or m in args.methods.split(";")]
        settled = {method: best(args, name, method, starts) for method in methods}
        for fraction in study.fractions:
            rows = []
            for method, settings in settled.items():
                for seed in args.seeds if settings is not None else ():
                    work = partial(pruned, args.data, study, method, settings, fraction, seed, False, starts)
                    place = f"sparsity/{name}/{100 * fraction:g}"
                    rows.append(run(place, method, seed, settings, args, work, _ran(method)))
            if any(rows):
                text = table(rows, ["dense", "accuracy", "lost", "drift", "evaluations"], "{:.4g}")
                texts.append(f"{name}, {100 * fraction:g} % of the weights zero\n\n{text}")
    if not args.only and not args.methods:
        (RESULTS / "sparsity.md").write_text("\n\n".join(texts) + "\n")
    print("\n\n".join(texts))


if __name__ == "__main__":
    main()
