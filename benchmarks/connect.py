"""Two independently trained networks, joined: barriers of the straight line before and after alignment.

MNIST and CIFAR-10 multilayer perceptrons (three hidden layers of 512), deep narrow ones (10 and 5 hidden layers of 128,
with and without batch norm), a ResNet-20 on CIFAR-10 (10 epochs of SGD, no augmentation; two pairs) and a small vision
transformer on Fashion-MNIST. Three pairs each; 25 points in t; test sets. CIFAR-10 images are averaged over 2 x 2
pixels, what two cores allow, and a JPEG copy: published figures give orientation. Running statistics are estimated anew
at every point; where variances are repaired, they are at every point.

    python -m benchmarks.connect --data DATA
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import cache, partial
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from safetensors.torch import load_file, save_file
from torch import nn

import isopath as ip
from benchmarks import methods
from benchmarks.harness import JOINED, RESULTS, arguments, run, settled_on, table
from benchmarks.networks import ViT, mlp, resnet20
from isopath.paths import repaired, rescaled
from isopath.run import data as files
from isopath.symmetry import balanced, nearest

CACHE = Path("runs") / "benchmarks"
HELD = 5000  # training images that the factors' settings are chosen on
MEAN, DEVIATION = (torch.tensor(c)[:, None, None] for c in ([0.4914, 0.4822, 0.4465], [0.247, 0.2435, 0.2616]))
MATCHED = 5000  # training images that alignment reads
ESTIMATED = 2000  # of them, those that running statistics are estimated on
LINES = ("unaligned", "activations")
RESCALED = {"nearest": ("symmetry/rescaling", "symmetry/trial")}
RESCALED["rescaled"] = (*RESCALED["nearest"], "connect/rescaled")
FACTORS = ((3e-3, 600), (3e-3, 1500), (1e-2, 300), (1e-2, 1500))
ALL = ("unaligned", "activations", "weights", "mixed")


@dataclass(frozen=True)
class Protocol:
    """What is trained, on what, and how it is joined.

    Attributes:
        build: the network.
        data: `"mnist"`, `"fashion"`, or `"cifar16"` (CIFAR-10 averaged over 2 x 2 pixels).
        epochs, rate, decay, size: of training, by AdamW or SGD with Nesterov's momentum 0.9; the rate rises over a
            tenth of the steps and falls to zero in a straight line.
        methods: of alignment; `"nearest"` aligns the balanced forms by activations and weights, and then rescales the
            second network's units to be nearest to the first's, `"rescaled"` goes on to factors that lower the
            loss along the line on the training images (`ip.paths.rescaled`).
        factors: rates and steps to learn them with, of which one is chosen on 5,000 training images by the barrier
            between two networks that were trained without these.
        repair: activation variances are repaired between the ends.
        pairs: the most pairs.
        networks: the protocol whose networks are joined, where it is another one.
    """

    build: Callable[[], nn.Module]
    data: str
    epochs: int
    optimiser: str = "adamw"
    rate: float = 1e-3
    decay: float = 0.0
    size: int = 128
    methods: tuple[str, ...] = ALL
    factors: tuple[tuple[float, int], ...] = ((3e-3, 600),)
    repair: bool = False
    pairs: int = 3
    networks: str = ""


PROTOCOLS = {
    "mnist_mlp": Protocol(lambda: mlp(784, 512, 3), "mnist", 5),
    "cifar_mlp": Protocol(lambda: mlp(768, 512, 3), "cifar16", 5, decay=0.5, methods=(*ALL, "nearest", "rescaled"),
                          factors=FACTORS),
    "cifar_mlp_repair": Protocol(
        lambda: mlp(768, 512, 3), "cifar16", 5, decay=0.5, methods=("unaligned", "mixed", "nearest", "rescaled"),
        repair=True, networks="cifar_mlp",
    ),
    "mnist_deep_norm": Protocol(lambda: mlp(784, 128, 10, True), "mnist", 5, "sgd", 0.1, 5e-4),
    "mnist_deep_repair": Protocol(lambda: mlp(784, 128, 5), "mnist", 5, "sgd", 0.1, 5e-4, repair=True),
    "cifar_resnet20": Protocol(resnet20, "cifar16", 10, "sgd", 0.1, 5e-4, methods=(*LINES, "rescaled"), pairs=2),
    "fashion_vit": Protocol(ViT, "fashion", 4, decay=0.05, methods=("unaligned", "activations", "nearest", "rescaled"),
                            factors=FACTORS),
}


@cache
def loaded(root: Path, name: str, train: bool) -> methods.Pair:
    """Images and labels, standardised for CIFAR-10."""
    if name in ("mnist", "fashion"):
        found = files.mnist(root, "MNIST" if name == "mnist" else "FashionMNIST", train)
        assert found.labels is not None
        return found.inputs, found.labels
    stored = CACHE / f"cifar-{'train' if train else 'test'}.safetensors"
    if not stored.exists():
        found = files.parquet(root / f"cifar10/plain_text/{'train' if train else 'test'}-*.parquet", inputs="img")
        assert found.labels is not None
        stored.parent.mkdir(parents=True, exist_ok=True)
        save_file({"x": (found.inputs * 255).round().byte(), "y": found.labels}, stored)
    tensors = load_file(stored)
    x = tensors["x"].float() / 255
    x = (x - MEAN) / DEVIATION
    return (F.avg_pool2d(x, 2) if name == "cifar16" else x), tensors["y"]


def trained(name: str, p: Protocol, seed: int, train: methods.Pair) -> nn.Module:
    """A network of its own seed, cached."""
    torch.manual_seed(seed)
    steps = p.epochs * len(train[0]) // p.size

    def fit(model: nn.Module) -> None:
        optimiser: torch.optim.Optimizer = (
            torch.optim.SGD(model.parameters(), p.rate, momentum=0.9, weight_decay=p.decay, nesterov=True)
            if p.optimiser == "sgd"
            else torch.optim.AdamW(model.parameters(), p.rate, weight_decay=p.decay)
        )
        rising = lambda part: min(1, 10 * (part + 1 / steps)) * (1 - part)  # noqa: E731
        methods.fitted(model, optimiser, train, p.size, steps, seed, rising)

    return methods.cached(f"{name}-{seed}", p.build(), fit)


def joined(
    name: str, p: Protocol, root: Path, method: str, seed: int, factors: dict[str, Any], held: bool = False
) -> dict[str, Any]:
    """The straight line between networks `2 seed` and `2 seed + 1`, the second aligned."""
    train, test = (loaded(root, p.data, part) for part in (True, False))
    if held:
        order = torch.randperm(len(train[0]), generator=torch.Generator().manual_seed(77))
        train, test = ((train[0][rows], train[1][rows]) for rows in (order[HELD:], order[:HELD]))
    a, b = (trained(f"{p.networks or name}{'-held' * held}", p, 2 * seed + i, train) for i in (0, 1))
    x = train[0][torch.randperm(len(train[0]), generator=torch.Generator().manual_seed(seed))[:MATCHED]]
    spent = 0.0
    if method in ("nearest", "rescaled"):
        found = ip.symmetries(a, x[:2])
        a, b = balanced(a, found), balanced(b, found)
        permutation = ip.align(a, b, x, method="mixed", symmetries=found, seed=seed)
        b = nearest(a, permutation(b), found)
        if method == "rescaled":
            line = rescaled(a, b, ip.Task(*train), found, **factors, seed=seed)
            b, spent = line.model(1), line.history[-1]["evaluations"]
    elif method != "unaligned":
        b = ip.align(a, b, x, method=method, seed=seed)(b)
    curve, task = ip.connect(a, b, curve="segment"), ip.Task(*test, batch_size=1000)
    if p.repair:
        profile = _repaired(curve, (a, b), task, x)
    else:
        way = ip.along(curve, task, data=x[:ESTIMATED])
        profile = [(loss, float(accuracy or 0)) for loss, accuracy in zip(way.loss, way.accuracy)]
    losses, scores = ([row[k] for row in profile] for k in (0, 1))
    return {
        "ends": 50 * (scores[0] + scores[-1]),
        "middle": 100 * scores[len(scores) // 2],
        "barrier": _above(losses, 1),
        "accuracy_barrier": 100 * _above(scores, -1),
        "loss": losses,
        "accuracy": scores,
        "evaluations": spent,
        "low": -_above(losses, 1),
    }


def _above(values: list[float], sign: int) -> float:
    """The largest rise (or fall) above the line between the ends'."""
    last = len(values) - 1
    line = [values[0] + (values[-1] - values[0]) * i / last for i in range(last + 1)]
    return max(sign * (value - on) for value, on in zip(values, line))


def _repaired(
    curve: ip.paths.Curve, ends: tuple[nn.Module, nn.Module], task: ip.Task, x: torch.Tensor
) -> list[tuple[float, float]]:
    """Loss and accuracy on 25 points, activation variances repaired at each but the ends."""
    found = []
    for i in range(25):
        t = i / 24
        model = curve.model(t)
        score = ip.evaluate(model if t in (0, 1) else repaired(model, ends, t, x), task)
        found.append((score.loss, float(score.accuracy or 0)))
    return found


def best(args: Any, name: str, ran: tuple[str, ...]) -> dict[str, Any] | None:
    """How factors are learned, by the barrier on held-out images; `None` while not all is known."""
    p, grid = PROTOCOLS[name], [{"rate": rate, "steps": steps} for rate, steps in PROTOCOLS[name].factors]

    def held(factors: dict[str, Any]) -> dict[str, Any]:
        return joined(name, p, args.data, "rescaled", 0, factors, held=True)

    return settled_on(f"connect/{name}", "rescaled", grid, args, held, "low", ran)


def main() -> None:
    """Runs what is missing and prints the tables."""
    args, texts = arguments(__doc__ or ""), []
    for name, p in PROTOCOLS.items():
        if args.only and name not in args.only:
            continue
        rows = []
        for method in p.methods:
            for seed in args.seeds[: p.pairs]:
                fixed = {
                    "epochs": p.epochs, "optimiser": p.optimiser, "rate": p.rate, "decay": p.decay, "size": p.size,
                    "matched": MATCHED, "estimated": ESTIMATED,
                }  # fmt: skip
                ran = (*JOINED, *RESCALED[method]) if method in RESCALED else JOINED
                factors = best(args, p.networks or name, ran) if method == "rescaled" else {}
                if factors is None:
                    continue
                fixed |= {"factors": factors} if factors else {}
                work = partial(joined, name, p, args.data, method, seed, factors)
                rows.append(run(f"connect/{name}", method, seed, fixed, args, work, ran))
        columns = ["ends", "middle", "barrier", "accuracy_barrier", "seconds"]
        texts.append(f"{name}\n\n" + table(rows, columns, "{:.4g}"))
    text = "\n\n".join(texts)
    if not args.only:
        (RESULTS / "connect.md").write_text(text + "\n")
    print(text)


if __name__ == "__main__":
    main()
