"""What a generator makes, looked at: how good, how different, over how many dimensions."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from isopath.arguments import check_classes, check_kind, check_range
from isopath.generate.entropy import intrinsic_dimension, participation
from isopath.generate.family import Family
from isopath.generate.generator import SOFTMAX, Generator, classes_of, gauge_of
from isopath.objectives import Task
from isopath.robustness.comparison import agreeing
from isopath.symmetry import Symmetries

PAIRS, GRID = 4, 9  # latents that are walked between, points on each walk
LARGEST = 24  # samples between which all distances are taken: each pair is aligned


@dataclass(frozen=True)
class Manifold:
    """Figures of sampled networks.

    Attributes:
        accuracy: of each, a fraction.
        ensemble: accuracy of the mean of the first k, by k.
        disagreement: share of rows on which two of them predict differently, mean over pairs.
        distance: mean over pairs, after all symmetries are taken out, in units of a network's norm; orthogonal ones
            have √2.
        dimension: of the samples, from nearest neighbours (`intrinsic_dimension`); too small where it is large.
        weights, functions: shares of the variance along the principal axes, of the weights in the gauge and of the
            predicted probabilities.
        participation: (Σ s)² / Σ s² of both: how many axes matter.
        walks: accuracies along paths between latents, `(paths, points)`.
    """

    accuracy: tuple[float, ...]
    ensemble: dict[int, float]
    disagreement: float
    distance: float
    dimension: float
    weights: tuple[float, ...]
    functions: tuple[float, ...]
    participation: tuple[float, float]
    walks: tuple[tuple[float, ...], ...]

    def __repr__(self) -> str:
        mean, best = sum(self.accuracy) / len(self.accuracy), max(self.accuracy)
        count = max(self.ensemble)
        return (
            f"Manifold(accuracy {mean:.2%} on average, {best:.2%} at best, {self.ensemble[count]:.2%} of {count} "
            f"together; disagreement={self.disagreement:.2%}, distance={self.distance:.2f}, "
            f"dimension={self.dimension:.1f})"
        )


def explore(
    generator: Generator, task: Task, count: int = 32, seed: int = 1, symmetries: Symmetries | None = None
) -> Manifold:
    """Samples a generator and says how good the networks are and how they differ, beyond trivial symmetries.

    Args:
        generator: that is looked at.
        task: labelled rows that it was not trained on.
        count: networks, at least 3; distances are taken between the first 24.
        seed: of the latents.
        symmetries: which units may be permuted and rescaled; found by default.

    Raises:
        ValueError: there are fewer than three networks, or the task has no classes.
    """
    check_kind(generator, Generator, "what is explored", "make one with ip.generate")
    check_kind(task, Task, "the second argument", "give ip.Task(x, y)")
    if count < 3:
        raise ValueError(f"count must be >= 3 networks, got {count}")
    if task.loss not in SOFTMAX:
        raise ValueError(f"the task has no classes to predict: its loss is {task.loss!r}, expected 'cross_entropy'")
    thetas = generator.sample(count, seed)
    family = Family(generator.network)
    y, target = _outputs(family, thetas, task)
    check_classes(y[0], target, "cross_entropy")
    check_range(y, target)
    y, target = y[:, target != -100], target[target != -100]
    points, distances = _spread(generator, thetas, task, symmetries)
    probabilities = y.softmax(-1).flatten(1)
    return Manifold(
        _accuracies(y, target), _together(y, target), 1 - float(agreeing(y).mean()) / (count * (count - 1) / 2),
        float(distances.sum() / (len(distances) * (len(distances) - 1))), intrinsic_dimension(distances),
        _shares(points), _shares(probabilities), (participation(points), participation(probabilities)),
        _walks(generator, family, task, seed),
    )  # fmt: skip


def _outputs(family: Family, thetas: Tensor, task: Task) -> tuple[Tensor, Tensor]:
    """`(n, N, C)` on all rows, or `(n, N, ..., C)`, and their targets `(N,)`, or `(N, ...)`."""
    found, targets = [], []
    with torch.no_grad():
        for rows in torch.arange(len(task)).split(task.batch_size):
            y, target = task.predict(family, thetas, rows)  # type: ignore[arg-type]
            found.append(y.cpu())
            targets.append(target.cpu())
    y = torch.cat(found, 1)
    return (y.movedim(2, -1) if classes_of(task) == 1 else y), torch.cat(targets)


def _accuracies(y: Tensor, target: Tensor) -> tuple[float, ...]:
    return tuple((y.argmax(-1) == target).double().mean(1).tolist())


def _together(y: Tensor, target: Tensor) -> dict[int, float]:
    """Accuracy of the mean probabilities of the first 1, 2, 4, ... and of all."""
    sums = y.softmax(-1).cumsum(0)
    counts = sorted({*(2**k for k in range(len(y).bit_length())), len(y)})
    return {k: _accuracies(sums[k - 1 : k], target)[0] for k in counts if k <= len(y)}


def _spread(
    generator: Generator, thetas: Tensor, task: Task, symmetries: Symmetries | None
) -> tuple[Tensor, Tensor]:
    """Points in the gauge, next to the first, and distances of pairs, per unit."""
    network, layout = generator.network, generator.hypernetwork.layout
    gauge = gauge_of(network.model(thetas[0]), task, network.space, symmetries)
    points = layout.evened(gauge.fixed(thetas)) / layout.units**0.5
    return gauge.aligned(points, points[0]), gauge.distances(points[:LARGEST])


def _shares(points: Tensor) -> tuple[float, ...]:
    variances = torch.linalg.svdvals((points - points.mean(0)).double()).square()
    return tuple((variances / variances.sum().clamp_min(1e-300)).tolist()[: len(points) - 1])


def _walks(generator: Generator, family: Family, task: Task, seed: int) -> tuple[tuple[float, ...], ...]:
    z = generator.latents(2 * PAIRS, seed)
    found = []
    for a, b in zip(z[::2], z[1::2]):
        path = generator.path(a, b)
        y, target = _outputs(family, torch.stack(path.sample(GRID)), task)
        found.append(_accuracies(y[:, target != -100], target[target != -100]))
    return tuple(found)
