"""Curves between convolutional networks, aligned and not, at equal training.

CIFAR-10: a TinyTen-size network (nine convolutions with batch norm, 16 to 64 channels) on images averaged over 2 x 2
pixels, eight epochs of SGD without augmentation: what two cores allow. Two pairs; a quadratic Bezier curve is trained
for several budgets, its rate falling to zero over each; also proximal alternating minimisation of curve and
permutation, from the identity and from the alignment; and a curve to the aligned network with its units rescaled, what
that costs included. "Labels": the curve learns the training labels; "consensus": what both ends say on average of the
training images, whose cost is taken off the curve's steps. CIFAR-10 is a JPEG copy: published figures give orientation.

MNIST, robust: a small convolutional network trained on PGD attacks (largest change 0.2, 5 steps), three epochs over
20,000 images. Three pairs; the curve is trained on the attacked loss and scored under PGD with 10 steps on 500 test
images.

25 points in t; running statistics are estimated anew at each; test sets.

    python -m benchmarks.curves --data DATA
"""

from __future__ import annotations

import math
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import nn

import isopath as ip
from benchmarks import methods
from benchmarks.connect import MATCHED, RESCALED, Protocol, loaded, trained
from benchmarks.harness import JOINED, RESULTS, arguments, run, table
from benchmarks.networks import small_cnn, tiny_ten
from isopath.attacks import PGD
from isopath.network import Network
from isopath.paths import alternating

TINY = Protocol(tiny_ten, "cifar16", 8, "sgd", 0.1, 5e-4)
STEPS, SIZE, RATE, ROUNDS = (3200, 800), 128, 3e-3, 8
EPS, ROBUST_STEPS, ROBUST_ROWS, ROBUST_TRAIN = 0.2, 200, 500, 20_000
RAN = {
    "tiny": (*JOINED, "connect/training"),
    "pam": (*JOINED, "connect/training", "connect/proximal"),
    "rescaled": (*JOINED, *RESCALED["rescaled"], "connect/training"),
    "consensus": (*JOINED, "connect/training", "connect/consensus", "ensemble", "geometry/divergence"),
    "robust": (*JOINED, "connect/training", "attacks/pgd", "objectives/robust"),
}


def pair(root: Path, seed: int) -> tuple[nn.Module, nn.Module, methods.Pair, methods.Pair, torch.Tensor]:
    """Networks `2 seed` and `2 seed + 1`, both sets, and the images that alignment reads."""
    train, test = (loaded(root, TINY.data, part) for part in (True, False))
    a, b = (trained("cifar_tiny", TINY, 2 * seed + i, train) for i in (0, 1))
    return a, b, train, test, train[0][torch.randperm(len(train[0]), generator=_drawn(seed))[:MATCHED]]


def curve(root: Path, method: str, steps: int, seed: int) -> dict[str, Any]:
    """One curve; without steps, the straight line."""
    a, b, train, test, x = pair(root, seed)
    how, _, taught = method.removeprefix("pam-").partition(", ")
    aligned = ip.align(a, b, x, seed=seed) if how == "aligned" else None
    task, more, cost = ip.Task(*train, batch_size=SIZE), {}, 0.0
    if taught == "consensus":
        task, cost = ip.paths.consensus([a, b], train[0], batch_size=SIZE), 2 / 3 * len(train[0])
        steps -= math.ceil(cost / SIZE)
    if method.startswith("pam"):
        start = ip.symmetries(a, x[:2]) if aligned is None else aligned
        result = alternating(a, b, task, start, rounds=ROUNDS, steps=steps // ROUNDS, rate=RATE, seed=seed)
        found, more = result.curve, {"displaced": [row["displaced"] for row in result.rounds]}
    elif method == "rescaled":
        found = ip.paths.rescaled(a, b, task, ip.align(a, b, x, seed=seed), seed=seed)
        spent = found.history[-1]["evaluations"]
        if steps:  # what the factors cost is not spent on the curve
            left = steps - math.ceil(spent / SIZE)
            found = ip.connect(a, found.model(1), task, steps=left, rate=RATE, seed=seed)
            more = {"evaluations": spent + found.history[-1]["evaluations"]}
    else:
        kind = "bezier" if steps else "segment"
        found = ip.connect(a, b, task, kind, steps=steps, rate=RATE, permutation=aligned, seed=seed)
        more = {"evaluations": cost + found.history[-1]["evaluations"]} if cost else {}
    return {**profiled(found, ip.Task(*test, batch_size=1000), x[:2000]), **more}


def profiled(found: ip.paths.Curve, task: ip.Task, data: torch.Tensor | None) -> dict[str, Any]:
    """Accuracies along a curve, in percent."""
    profile = ip.along(found, task, data=data)
    scores = [100 * float(value or 0) for value in profile.accuracy]
    return {
        "ends": (scores[0] + scores[-1]) / 2,
        "minimum": min(scores),
        "below_ends": (scores[0] + scores[-1]) / 2 - min(scores),
        "mean": 100 * profile.mean("accuracy"),
        "barrier": profile.barrier,
        "evaluations": found.history[-1]["evaluations"] if found.history else 0,
        "accuracy": scores,
    }


def adversarial(seed: int, train: methods.Pair, epochs: int = 3) -> nn.Module:
    """A network of its own seed, trained on attacked images by Adam, cached."""
    torch.manual_seed(seed)

    def fit(model: nn.Module) -> None:
        network, steps = Network(model), epochs * len(train[0]) // SIZE
        task = ip.Robust(*train, attack=PGD(EPS, 5), batch_size=SIZE, seed=seed)
        theta = network.start.clone().requires_grad_(True)
        optimiser = torch.optim.Adam([theta], 2e-3)
        for step in range(steps):
            optimiser.param_groups[0]["lr"] = 2e-3 * min(1.0, 10 * (step + 1) / steps) * (1 - step / steps)
            (theta.grad,) = torch.autograd.grad(task.freeze(step, seed)(network, theta), theta)
            optimiser.step()
        network.copy_to(theta.detach(), model)

    return methods.cached(f"mnist_robust-{seed}", small_cnn(), fit)


def robust(root: Path, method: str, steps: int, seed: int) -> dict[str, Any]:
    """The robust accuracy along one curve between adversarially trained networks, and the clean one."""
    train, test = (loaded(root, "mnist", part) for part in (True, False))
    train = train[0][:ROBUST_TRAIN], train[1][:ROBUST_TRAIN]
    a, b = (adversarial(2 * seed + i, train) for i in (0, 1))
    x = train[0][torch.randperm(len(train[0]), generator=_drawn(seed))[:MATCHED]]
    permutation = ip.align(a, b, x, seed=seed) if method == "aligned" else None
    task = ip.Robust(*train, attack=PGD(EPS, 5), batch_size=SIZE, seed=seed)
    kind = "bezier" if steps else "segment"
    found = ip.connect(a, b, task, kind, steps=steps, rate=RATE, permutation=permutation, seed=seed)
    images, labels = (part[:ROBUST_ROWS] for part in test)
    clean = ip.along(found, ip.Task(*(part[: 2 * ROBUST_ROWS] for part in test), batch_size=1000))
    attacked = profiled(found, ip.Robust(images, labels, attack=PGD(EPS, 10), batch_size=ROBUST_ROWS), None)
    return {**attacked, "clean": 100 * min(float(value or 0) for value in clean.accuracy)}


def _drawn(seed: int) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def main() -> None:
    """Runs what is missing and prints the tables."""
    args, texts = arguments(__doc__ or ""), []
    plan = {
        "tiny": [(m, s) for s in (*STEPS, 0) for m in ("aligned", "unaligned")]
        + [(f"{m}, consensus", STEPS[0]) for m in ("aligned", "unaligned")]
        + [("rescaled", s) for s in (STEPS[0], 0)]
        + [(f"pam-{m}", 800) for m in ("unaligned", "aligned")],
        "robust": [(m, s) for s in (0, ROBUST_STEPS) for m in ("unaligned", "aligned")],
    }
    columns = ["ends", "minimum", "below_ends", "mean", "barrier", "evaluations"]
    for name, rows in plan.items():
        if args.only and name not in args.only:
            continue
        found = []
        for method, steps in rows:
            for seed in args.seeds[: 2 if name == "tiny" else 3]:
                fixed = {"epochs": TINY.epochs, "rate": RATE, "size": SIZE, "steps": steps}
                fixed |= {"eps": EPS, "rows": ROBUST_ROWS, "images": ROBUST_TRAIN} if name == "robust" else {}
                work = partial(curve if name == "tiny" else robust, args.data, method, steps, seed)
                ran = RAN[next((key for key in ("pam", "consensus", "rescaled") if key in method), name)]
                found.append(run(f"curves/{name}", f"{method}-{steps}", seed, fixed, args, work, ran))
        texts.append(f"{name}\n\n" + table(found, [*columns, *(["clean"] if name == "robust" else [])], "{:.4g}"))
    text = "\n\n".join(texts)
    if not args.only:
        (RESULTS / "curves.md").write_text(text + "\n")
    print(text)


if __name__ == "__main__":
    main()
