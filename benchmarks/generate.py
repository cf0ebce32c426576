"""A generator of networks against networks trained one by one: MNIST, Fashion-MNIST and CIFAR-10, small CNNs.

The paper's target has 20,018 weights (two 5 x 5 convolutions with 32 and 16 channels and pooling, two linear layers of
8 and 10 units; Deutsch, Nijkamp & Yang 2019, arXiv 1905.02898), that of CIFAR-10, averaged over 2 x 2 pixels, 31,082
(three 3 x 3 convolutions, two linear layers). One pool of independently trained networks, 20 on MNIST and ten on the
others (Adam, rate along half a cosine, 5 epochs, on CIFAR-10 8), stands for all seeds. The rate of one network, by its
accuracy, and the generator's diversity, by that of 32 samples together, are chosen on 5,000 held-out training images
with seed 0 from the grids of this file. A generator sees 256 images a step, 32 for each of 8 networks; "longer" takes
four times as many steps at the settings chosen, with seed 0 on MNIST.

accuracy, best: of single networks; together: of their mean probabilities (the pool, 100 samples), first_ten: of ten.
distance: mean over pairs after rescaling, shift and permutation are taken out, of 24 networks, in units of a network's
norm; disagreement: share of images on which two predict differently; dimension: of 100 samples, by their two nearest
neighbours; kept: share of the gain of 32 samples together over one that a network keeps to which they are distilled,
from a sample's weights, on the training images without labels.

    python -m benchmarks.generate --data DATA
"""

from __future__ import annotations

import itertools
import math
import time
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

import isopath as ip
from benchmarks.connect import CACHE, loaded
from benchmarks.harness import GROUND, RESULTS, arguments, run, settled_on, table
from benchmarks.methods import cached, fitted
from isopath.generate import intrinsic_dimension, participation
from isopath.generate.layout import Layout
from isopath.robustness.comparison import agreeing
from isopath.symmetry.gauge import Gauge

HELD, SAMPLES, NEAR, TAUGHT_BY = 5000, 100, 24, 32
METHODS = ["independent", "generator", "distilled", "generator, longer"]
Pair = tuple[Tensor, Tensor]
Settings = dict[str, Any]
GATHERED = tuple(f"symmetry/{name}" for name in (
    "arithmetic", "axes", "cells", "finder", "gauge", "group", "labels", "matching", "permutation", "rescaling",
    "similarity", "trial", "views"))  # fmt: skip
OURS = (*GROUND, "randomness", *GATHERED, *(f"generate/{name}" for name in (
    "entropy", "family", "generation", "generator", "hypernetwork", "layout", "settings", "training")))  # fmt: skip
TAUGHT = (*OURS, "ensemble", "generate/distillation")
ALONE: list[Settings] = [{"rate": rate} for rate in (1e-3, 2e-3, 4e-3)]
STEPS, LONGER = 3000, {"mnist": 12_000}
GENERATED: list[Settings] = [{"diversity": d, "rate": 2e-3, "steps": STEPS} for d in (0.1, 0.3)]


def network(factor: int = 1) -> nn.Sequential:
    """The paper's target, 20,018 weights; or with so many times the channels and units."""
    a, b, c = 32 * factor, 16 * factor, 8 * factor
    return nn.Sequential(
        nn.Conv2d(1, a, 5, padding=2), nn.ReLU(), nn.MaxPool2d(2), nn.Conv2d(a, b, 5, padding=2), nn.ReLU(),
        nn.MaxPool2d(2), nn.Flatten(), nn.Linear(49 * b, c), nn.ReLU(), nn.Linear(c, 10),
    )  # fmt: skip


def coloured(factor: int = 1) -> nn.Sequential:
    """For 16 x 16 pixels in three colours, 31,082 weights; or with so many times the channels and units."""
    a, b = 16 * factor, 32 * factor
    return nn.Sequential(
        nn.Conv2d(3, a, 3, padding=1), nn.ReLU(), nn.MaxPool2d(2), nn.Conv2d(a, b, 3, padding=1), nn.ReLU(),
        nn.MaxPool2d(2), nn.Conv2d(b, b, 3, padding=1), nn.ReLU(), nn.Flatten(), nn.Linear(16 * b, b), nn.ReLU(),
        nn.Linear(b, 10),
    )  # fmt: skip


@dataclass(frozen=True)
class Study:
    """One data set: the target, how long one network is trained, and how many are."""

    build: Callable[..., nn.Sequential]
    epochs: int
    pool: int


STUDIES = {"mnist": Study(network, 5, 20), "fashion": Study(network, 5, 10), "cifar16": Study(coloured, 8, 10)}


def images(root: Path, name: str, held: bool) -> tuple[Pair, Pair]:
    """Training and test images, or the held-out training images in place of the test set."""
    (x, y), test = (_last(loaded(root, name, train)) for train in (True, False))
    return ((x[:-HELD], y[:-HELD]), (x[-HELD:], y[-HELD:])) if held else ((x, y), test)


def _last(pair: Pair) -> Pair:
    x = pair[0] if pair[0].ndim == 4 else pair[0].reshape(-1, 1, 28, 28)
    return x.contiguous(memory_format=torch.channels_last), pair[1]  # a third faster on a CPU


def alone(name: str, tag: str, train: Pair, rate: float, seed: int, size: int = 64) -> nn.Module:
    """One network, trained with labels, or from the cache."""
    torch.manual_seed(seed)
    study = STUDIES[name]
    model, total = study.build(), study.epochs * len(train[0]) // size

    def share(t: float) -> float:
        return min(1.0, (round(t * total) + 1) / 100) * 0.5 * (1 + math.cos(math.pi * t))

    def fit(module: nn.Module) -> None:
        fitted(module, torch.optim.Adam(module.parameters(), rate), train, size, total, seed, share)

    return cached(f"alone-{name}{tag}-{rate:g}-{seed}", model, fit)


@torch.no_grad()
def outputs(model: nn.Module, x: Tensor) -> Tensor:
    """Probabilities, `(N, C)`."""
    return torch.cat([model(part).softmax(1) for part in x.split(200)])


def scores(models: list[nn.Module], test: Pair) -> dict[str, Any]:
    """Accuracies alone and together, and how often two differ, in percent."""
    (x, y), classes = test, []
    sums: list[Tensor] = []
    for model in models:
        found = outputs(model, x)
        classes.append(found.argmax(1))
        sums.append(found + sums[-1] if sums else found)
    right = [100 * float((c == y).float().mean()) for c in classes]
    count = len(models)
    same = agreeing(F.one_hot(torch.stack(classes), 10)).mean() / (count * (count - 1) / 2)
    together = {k: 100 * float((sums[k - 1].argmax(1) == y).float().mean()) for k in (10, 32, count) if k <= count}
    return {"accuracy": sum(right) / count, "best": max(right), "worst": min(right), "together": together[count],
            "first_ten": together[10], "disagreement": 100 * float(1 - same), "curve": together}  # fmt: skip


def spread(models: list[nn.Module], x: Tensor) -> dict[str, Any]:
    """Distances in the gauge, and over how many dimensions."""
    gauge = Gauge.of(models[0], x[:2])
    layout = Layout.of(gauge.space)
    thetas = torch.stack([gauge.space.flatten(dict(m.named_parameters())) for m in models])
    points = layout.evened(gauge.fixed(thetas)) / layout.units**0.5
    distances = gauge.distances(points)
    near = distances[:NEAR, :NEAR]
    mean = float(near.sum() / (len(near) * (len(near) - 1)))
    axes = participation(gauge.aligned(points, points[0]))
    return {"distance": mean, "dimension": intrinsic_dimension(distances), "axes": axes}


def pool(args: Any, name: str, rate: float, held: bool, count: int) -> list[nn.Module]:
    """Independently trained networks, shared by all tables."""
    train, _ = images(args.data, name, held)
    return [alone(name, "-held" if held else "", train, rate, k) for k in range(count)]


def independent(args: Any, name: str, settings: Settings, held: bool) -> dict[str, Any]:
    """The pool: accuracies, distances."""
    train, test = images(args.data, name, held)
    models = pool(args, name, settings["rate"], held, 2 if held else STUDIES[name].pool)
    if held:
        return {"accuracy": sum(100 * _right(m, test) for m in models) / len(models)}
    evaluations = STUDIES[name].epochs * len(train[0])
    return {**scores(models, test), **spread(models, train[0]), "evaluations": evaluations * len(models)}


def _right(model: nn.Module, test: Pair) -> float:
    return float((outputs(model, test[0]).argmax(1) == test[1]).float().mean())


def made(args: Any, name: str, settings: Settings, seed: int, held: bool) -> ip.Generator:
    """A generator, from the cache where it is there."""
    tag = " ".join(f"{value}" for value in settings.values())
    file = CACHE / f"generator-{name}{'-held' if held else ''}-{tag}-{seed}.safetensors"
    if file.exists():
        return ip.Generator.load(file, STUDIES[name].build())
    train, _ = images(args.data, name, held)
    generator = ip.generate(STUDIES[name].build(), ip.Task(*train), seed=seed, **settings)
    generator.save(file)
    return generator


def generated(args: Any, name: str, settings: Settings, seed: int, held: bool) -> dict[str, Any]:
    """Samples: accuracies, distances, the time that a thousand take."""
    train, test = images(args.data, name, held)
    generator = made(args, name, settings, seed, held)
    models = generator.models(32 if held else SAMPLES)
    if held:
        return scores(models, test)
    sampling = []
    for _ in range(3):
        began = time.perf_counter()
        generator.sample(1000)
        sampling.append(time.perf_counter() - began)
    wide = ip.generate(STUDIES[name].build(10), ip.Task(train[0][:4], train[1][:4], batch_size=2), steps=1, networks=2)
    size, target = generator.size, generator.network.space.dimension
    return {**scores(models, test), **spread(models, train[0]), "evaluations": generator.history[-1]["evaluations"],
            "seconds_1000": min(sampling), "size": size, "times_target": size / target,
            "wide_size": wide.size, "wide_times_target": wide.size / wide.network.space.dimension}  # fmt: skip


def distilled(
    args: Any, name: str, base: Settings, seed: int, settings: Settings, held: bool
) -> dict[str, Any]:
    """One network for many: the share of their gain that it keeps."""
    train, test = images(args.data, name, held)
    generator = made(args, name, base, seed, held)
    models = generator.models(TAUGHT_BY)
    found = scores(models, test)
    ensemble = generator.ensemble(TAUGHT_BY)
    student = ip.distill(ensemble, models[0], train[0], seed=seed, epochs=10, batch_size=64, **settings)
    accuracy = 100 * _right(student, test)
    return {"single": found["accuracy"], "together": found["together"], "accuracy": accuracy,
            "kept": (accuracy - found["accuracy"]) / (found["together"] - found["accuracy"])}  # fmt: skip


def main() -> None:
    """Runs what is missing and prints the tables."""
    args, texts = arguments(__doc__ or "", methods=""), []
    for name in STUDIES:
        if args.only and name not in args.only:
            continue
        rows = measured(args, name)
        columns = ["accuracy", "best", "first_ten", "together", "disagreement", "distance", "dimension", "axes",
                   "evaluations"]  # fmt: skip
        sampled, taught = ([r for r in rows if r and key in r] for key in ("best", "kept"))
        if sampled:
            texts.append(f"{name}\n\n{table(sampled, columns, '{:.4g}')}")
        if taught:
            texts.append(table(taught, ["single", "together", "accuracy", "kept"], "{:.4g}"))
    if not args.only and not args.methods:
        (RESULTS / "generate.md").write_text("\n\n".join(texts) + "\n")
    print("\n\n".join(texts))


def measured(args: Any, name: str) -> list[dict[str, Any] | None]:
    """The rows of one data set."""
    place, rows, methods = f"generate/{name}", [], args.methods.split(";") if args.methods else METHODS

    def grid(method: str, settings: list[Settings], work: Any, key: str, ran: Any) -> Settings | None:
        return settled_on(place, method, settings, args, work, key, ran)

    if "independent" in methods:
        best = grid("independent", ALONE, lambda one: independent(args, name, one, True), "accuracy", GROUND)
        if best:
            rows.append(run(place, "independent", 0, best, args, partial(independent, args, name, best, False), GROUND))
    if not set(METHODS[1:]) & set(methods):
        return rows
    base = grid("generator", GENERATED, lambda one: generated(args, name, one, 0, True), "together", OURS)
    for method, seed in itertools.product(METHODS[1:], args.seeds) if base else ():
        assert base is not None
        longer = method.endswith("longer")
        if method not in methods or (longer and (seed or name not in LONGER)):
            continue
        own = {**base, "steps": LONGER[name]} if longer else base
        if method.startswith("generator"):
            rows.append(run(place, method, seed, own, args, partial(generated, args, name, own, seed, False), OURS))
        else:
            settings = {"temperature": 4.0, "rate": 1e-3}
            work = partial(distilled, args, name, own, seed, settings, False)
            rows.append(run(place, method, seed, {**own, **settings}, args, work, TAUGHT))
    return rows


if __name__ == "__main__":
    main()
