"""What pulls back towards what is kept: kept rows, or the curvature that tasks left behind."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor

from isopath.geometry.divergence import divergence_of
from isopath.geometry.estimated import Estimated, check_curvatures
from isopath.geometry.memory import Memory
from isopath.geometry.reference import Reference, References
from isopath.network import Network


@dataclass(frozen=True, eq=False)
class Curved:
    """A task of which the curvature is kept."""

    estimate: Estimated
    weight: float
    measured: bool  # rows are kept too, and its drift is theirs

    def drift(self, theta: Tensor) -> float:
        """½(θ - θ_t)ᵀG(θ - θ_t)."""
        return self.estimate.whole_drift(theta)


class Rows:
    """A task of which rows are kept, with their outputs."""

    def __init__(self, reference: Reference, weight: float, network: Network, seed: int) -> None:
        self.reference, self.weight, self.network, self.seed = reference, weight, network, seed
        kept = reference.outputs
        if kept is None:  # as the model is now: later it will be another, and its statistics too
            kept = torch.cat([batch.kept for batch in reference.whole(network, network.start).batches])
        self.bind(kept)

    def bind(self, outputs: Tensor) -> None:
        """Takes the outputs to keep."""
        self.outputs = outputs
        self.reference = replace(self.reference, outputs=outputs)
        self.kept = self.reference.bind(self.network, self.network.start, self.seed)

    def gradient(self, theta: Tensor, step: int, size: int) -> Tensor:
        """∇D on the batch of a step."""
        generator = torch.Generator().manual_seed(self.seed * 1_000_003 + step)
        reference, size = self.reference, min(size, len(self.reference))
        weights = reference.weights
        if weights is None or bool(weights.max() <= 1.01 * weights.min()):  # shares of tasks differ by a row
            rows = torch.randint(len(reference), (size,), generator=generator)
        else:  # drawn by weight and counted alike: a small batch weighed by its own sum would lean to the light rows
            rows = torch.multinomial(weights.cpu(), size, replacement=True, generator=generator)
            reference = replace(reference, weights=None)
        with torch.enable_grad():
            return reference._part(self.network, self.kept.start, rows, known=True).gradient(theta)

    def drift(self, theta: Tensor) -> float:
        """D on all rows."""
        return self.kept.whole_drift(theta)


def pulls(
    keep: Memory | Reference | References, network: Network, seed: int
) -> tuple[list[Curved], list[Rows], list[Rows]]:
    """What holds the weights, each with the weight that makes its divergence count as nats do; then what each task's
    drift is measured on."""
    if not isinstance(keep, Memory):
        parts = keep.parts if isinstance(keep, References) else (keep,)
        held = [Rows(p, 1 / _scale(p.divergence), network, seed + i) for i, p in enumerate(parts)]
        return [], held, held
    check_curvatures(keep, network)
    scale = _scale(keep.divergence)
    with_rows = [task for task in keep.tasks if task.outputs is not None]
    told = [Rows(part, task.weight / scale, network, seed + i)
            for i, (task, part) in enumerate(zip(with_rows, keep.references(network.space.device).parts))]  # fmt: skip
    drawn = [rows for task, rows in zip(with_rows, told) if task.sketch is not None]
    held = [rows for rows in told if rows not in drawn] + _together(drawn, network, seed)
    curved = []
    for task in keep.tasks:
        if task.curvature is not None:
            weight = (1.0 if keep.merge else task.weight) / scale
            measured = bool(with_rows) if keep.merge else task.outputs is not None
            curved.append(Curved(Estimated.of(task, network), weight, measured))
    return curved, held, told


def _together(parts: Sequence[Rows], network: Network, seed: int) -> list[Rows]:
    """Those of one head as one, each with its weight: a step then passes once over a batch of them all."""
    found, left = [], list(parts)
    while left:
        same = [rows for rows in left if _alike(rows.reference, left[0].reference)]
        left = [rows for rows in left if rows not in same]
        references = [rows.reference for rows in same]
        inputs, outputs = (torch.cat([getattr(r, key) for r in references]) for key in ("inputs", "outputs"))
        weights = torch.cat([torch.full((len(rows.reference),), rows.weight / len(rows.reference)) for rows in same])
        whole = replace(references[0], inputs=inputs, outputs=outputs, weights=weights)
        found.append(Rows(whole, sum(rows.weight for rows in same), network, seed))
    return found


def _alike(a: Reference, b: Reference) -> bool:
    """Whether rows of both fit one batch."""
    shapes = [(r.inputs.shape[1:], r.inputs.dtype, r.outputs.shape[1:]) for r in (a, b) if r.outputs is not None]
    return a.output == b.output and shapes[0] == shapes[-1]


def _scale(divergence: Any) -> float:
    """The curvature of a softmax divergence in units of that of the log-likelihood."""
    return float(getattr(divergence_of(divergence), "scale", 1.0))
