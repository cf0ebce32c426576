"""What stays makes up for what goes: one step to where a quadratic model of the drift is least."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from isopath.arguments import check_count
from isopath.geometry.combined import Combined
from isopath.geometry.curvature import Curvature
from isopath.geometry.exact import Exact
from isopath.geometry.metric import Metric
from isopath.geometry.reference import KeptAll
from isopath.geometry.solvers import conjugate_gradients
from isopath.network import Network
from isopath.trace.direction import Frame

LENGTHS = (1.0, 0.75, 0.5, 0.25)  # of the step; none if each leaves more drift than it found
RESIDUAL = 1e-6


@dataclass(frozen=True)
class Compensation:
    """The least of D(θ) + gᵀv + ½vᵀ(G + μI)v over moves v that take the weights S out and leave the rest R free.

    That is v_S = -θ_S and (G_RR + μI) v_R = G_RS θ_S - g_R, with g = ∇D(θ) and G the exact metric of the reference's
    rows at θ: optimal brain surgeon (Hassibi & Stork 1993) with many weights at once and, since what went before has
    moved the outputs, with the gradient, which there is zero. Conjugate gradients solve it in products, preconditioned
    by the direction's metric; nothing of size P by P or N by P is formed. The length along v_R is the one of 1, ¾, ½, ¼
    and 0 whose drift on the metric's rows is least.

    A step costs up to `iterations` products of 1.3 to 2 gradient evaluations of the reference each: dear for many rows,
    and the choice where there are few and a training loop is not wanted. Of a task whose rows are not kept the metric
    is its curvature's.

    Args:
        iterations: the most conjugate-gradient steps.
        damping: μ as a share of the direction's own, which is in units of its mean eigenvalue.

    Raises:
        ValueError: a number is out of range.
    """

    iterations: int = 50
    damping: float = 0.1

    def __post_init__(self) -> None:
        check_count(self.iterations, "iterations")
        if not self.damping > 0:
            raise ValueError(f"damping must be > 0 (the exact metric is singular), got {self.damping}; 0.1 is usual")

    def __call__(self, network: Network, kept: KeptAll, frame: Frame, theta: Tensor, support: Tensor) -> Tensor:
        """The point without the weights off the support, made up for, `(P,)`: exactly zero there.

        Args:
            network: that moves.
            kept: what is kept.
            frame: a metric near `theta`, and its damping.
            theta: the point with the weights that go, `(P,)`; it is not modified.
            support: the coordinates that stay, `(P,)` booleans.
        """
        metric, damping = _metric(network, kept, theta), self.damping * frame.damping
        pruned = theta * support
        move = conjugate_gradients(
            lambda v: metric.mv(v).mul_(support).add_(v, alpha=damping),
            metric.mv(theta - pruned).sub_(kept.gradient(theta)).mul_(support),
            self.iterations,
            RESIDUAL,
            lambda r: frame.metric.solve(r, damping).mul_(support),
        )
        best, least = pruned, kept.drift(pruned).metric
        for length in LENGTHS:
            point = torch.add(pruned, move, alpha=length)
            drift = kept.drift(point).metric
            if drift < least:
                best, least = point, drift
        return best


def _metric(network: Network, kept: KeptAll, theta: Tensor) -> Metric:
    """Exact on the rows there are, and the curvature of tasks whose rows are not kept."""
    terms: list[Metric] = [Exact(network, theta, kept.batches)] if kept.batches else []
    if kept.curvatures:
        weights, curvatures = zip(*kept.curvatures)
        terms.append(Curvature.merged(curvatures, weights).metric(network.space))
    return terms[0] if len(terms) == 1 else Combined(terms)
