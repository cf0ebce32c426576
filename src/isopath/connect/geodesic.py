"""The shortest path in function space between the ends of a curve."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import torch

from isopath.connect.curve import Curve
from isopath.connect.statistics import BatchNetwork, normalisations
from isopath.connect.training import combined
from isopath.geometry.reference import Reference
from isopath.network import Network
from isopath.path import Bezier, PolyChain


def geodesic(
    curve: Curve,
    keep: Reference,
    steps: int = 500,
    rate: float = 1e-3,
    pieces: int = 16,
    batch_size: int = 128,
    raise_to: int | None = None,
    seed: int = 0,
) -> Curve:
    """A curve with the same ends, bent towards the least length in function space.

    Under the metric G pulled back from the outputs, ‖v‖² = vᵀGv, twice the divergence between neighbouring networks is
    the squared length between them, and a geodesic minimises

        E(γ) = K Σ_k 2 mean_x d(f(γ(k/K), x), f(γ((k+1)/K), x)) >= length²

    (the geometry of Raghavan & Thomson, arXiv 2205.00334). No labels are read: outputs go from those of one end to
    those of the other as straight as the network lets them. Adam on one piece and one batch per step, the rate going
    down in a straight line; 2⅓ gradient evaluations per row. Masks and weights of the reference count.

    Args:
        curve: trained, or the straight line.
        keep: inputs, and the divergence.
        steps: of training.
        rate: of Adam at first.
        pieces: K.
        batch_size: rows per step.
        raise_to: the number of inner points, where a Bezier curve needs more of them (its degree is raised, which does
            not change the curve); a straight line becomes a Bezier curve.
        seed: of pieces and batches.

    Returns:
        A new curve; its history has step, t, energy and gradient evaluations.

    Raises:
        ValueError: a number is out of range, or the inner points would become fewer.
    """
    if steps < 0 or pieces < 1 or batch_size < 1:
        raise ValueError(f"steps must be >= 0, pieces and batch_size >= 1, got {steps}, {pieces} and {batch_size}")
    assert isinstance(curve.path, (Bezier, PolyChain))
    path = _raised(curve.path, raise_to)
    model = curve.model(0)
    network = BatchNetwork(model, curve.trainable) if normalisations(model) else Network(model, curve.trainable)
    keep, generator = replace(keep, batch_size=batch_size), torch.Generator().manual_seed(seed)
    inner = list(path.points[1:-1])
    optimiser, history = torch.optim.Adam(inner, rate), []
    for step in range(steps):
        optimiser.param_groups[0]["lr"] = rate * (1 - step / steps)
        k = int(torch.randint(pieces, (), generator=generator))
        rows = torch.randint(len(keep), (min(batch_size, len(keep)),), generator=generator)
        weights = [path.weights(at / pieces) for at in (k, k + 1)]
        ends = [combined(path.points, w).requires_grad_(True) for w in weights]
        (batch,) = keep._part(network, ends[0], rows).batches
        outputs = [network(theta, batch.inputs, keep.output) for theta in ends]
        energy = 2 * pieces**2 * (batch.weight * batch.divergence.rows(outputs[1], outputs[0])).sum()
        gradients = torch.autograd.grad(energy, ends)
        for i, point in enumerate(inner, start=1):
            point.grad = sum((w[i] * g for w, g in zip(weights, gradients)), torch.zeros_like(point))
        optimiser.step()
        row = {"step": step, "t": (k + 0.5) / pieces, "objective": float(energy.detach())}
        history.append({**row, "evaluations": network.evaluations})
    for point in inner:
        point.grad = None
    return replace(curve, path=path, history=history)


def _raised(path: Bezier | PolyChain, count: int | None) -> Bezier | PolyChain:
    """A copy with `count` inner points: the same curve, of a higher degree."""
    points = [point.clone() for point in path.points]
    count = max(1, len(points) - 2) if count is None else count
    if count < len(points) - 2:
        raise ValueError(f"raise_to must be at least the {len(points) - 2} inner points there are, got {count}")
    if isinstance(path, PolyChain) and len(points) > 2:
        if count > len(points) - 2:
            raise ValueError("raise_to is for Bezier curves and straight lines; a chain keeps its points")
        return PolyChain(points)
    while len(points) < count + 2:
        n = len(points)
        between = [torch.lerp(points[i], points[i - 1], i / n) for i in range(1, n)]
        points = [points[0], *between, points[-1]]
    return Bezier(points)


def functional_length(curve: Curve, keep: Reference, points: int = 33, data: Any = None) -> float:
    """Σ √(2 mean_x d(f_k, f_k+1)) over an even grid: the curve's length under the metric of its outputs.

    Args:
        curve: between two networks.
        keep: inputs, all rows of which are read, their masks and weights, and the divergence.
        points: of the grid; the sum converges from below where d is the square of a distance, as Hellinger's.
        data: inputs on which running statistics are estimated anew at every point between the ends.
    """
    if points < 2:
        raise ValueError(f"a length needs both ends and so at least 2 points, got {points}")
    total, before = 0.0, None
    for i in range(points):
        network = Network(curve.model(i / (points - 1), data), lambda _: True)
        batches = keep.whole(network, network.start).batches  # their outputs are those of this point
        if before is not None:
            pairs = zip(before, batches)
            mean = sum(float((b.weight.double() * b.divergence.rows(b.kept.double(), a.kept.double())).sum())
                       for a, b in pairs)  # fmt: skip
            total += (2 * mean) ** 0.5
        before = batches
    return total


