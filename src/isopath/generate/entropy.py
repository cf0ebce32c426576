"""How spread out are samples, and over how many dimensions?"""

from __future__ import annotations

import math

import torch
from torch import Tensor

CLOSEST = 1e-6  # distances below count as that: the logarithm has no floor


def squares(points: Tensor) -> Tensor:
    """Squared distances of `(n, d)`, `(n, n)`; differentiable."""
    points = points - points.detach().mean(0)  # what all have in common would only cost digits
    gram = points @ points.mT  # not cdist: its backward makes (n, n, d)
    norms = gram.diagonal()
    return norms[:, None] + norms[None] - 2 * gram


def spacing(near: Tensor) -> Tensor:
    """(1/n) Σ log ρ_i, ρ_i the distance of point i from its nearest neighbour; differentiable.

    What of the Kozachenko-Leonenko entropy depends on the points (see `entropy`), for one dimension.

    Args:
        near: squared distances, `(n, n)`.

    Raises:
        ValueError: there are fewer than two points.
    """
    if len(near) < 2:
        raise ValueError(f"the distance to a nearest neighbour needs at least 2 points, got {len(near)}")
    off = torch.diag(torch.full((len(near),), torch.inf, dtype=near.dtype, device=near.device))
    return 0.5 * (near.clamp_min(CLOSEST**2) + off).amin(1).log().mean()


def entropy(points: Tensor, dimension: float | None = None) -> float:
    """Differential entropy in nats by nearest neighbours (Kozachenko & Leonenko 1987).

    H = (D/n) Σ log ρ_i + log V_D + log(n - 1) + γ, with V_D the volume of the unit ball of D dimensions.

    Args:
        points: n samples, `(n, d)`.
        dimension: D, of the manifold that they lie on; d by default.

    Returns:
        -inf where two points are equal.

    Raises:
        ValueError: there are fewer than two points.
    """
    count, width = points.shape
    d = float(width if dimension is None else dimension)
    ball = 0.5 * d * math.log(math.pi) - math.lgamma(0.5 * d + 1)
    near = torch.cdist(points.double(), points.double(), compute_mode="donot_use_mm_for_euclid_dist")
    near.fill_diagonal_(torch.inf)
    if len(near) < 2:
        raise ValueError(f"the distance to a nearest neighbour needs at least 2 points, got {len(near)}")
    return d * float(near.amin(1).log().mean()) + ball + math.log(count - 1) + 0.5772156649015329


def intrinsic_dimension(distances: Tensor) -> float:
    """Dimension of the manifold that samples lie on, from the ratio of their two smallest distances.

    With r_1 <= r_2 the distances of a point to its two nearest neighbours, r_2 / r_1 has the distribution function
    1 - μ^(-D): D = (n - 1) / Σ log μ_i is the maximum-likelihood estimate n / Σ log μ_i without its bias (Facco et al.
    2017, TwoNN, doi 10.1038/s41598-017-11873-y). It is too small where D is large and samples are few, and 0 where
    samples coincide.

    Args:
        distances: between all pairs, `(n, n)`.

    Raises:
        ValueError: there are fewer than three samples.
    """
    if len(distances) < 3:
        raise ValueError(f"the two nearest neighbours of a sample need at least 3 samples, got {len(distances)}")
    off = distances.double() + torch.diag(torch.full((len(distances),), torch.inf, dtype=torch.float64))
    near = off.topk(2, dim=1, largest=False).values
    if not bool((near[:, 0] > 0).all()):
        return 0.0
    total = float((near[:, 1] / near[:, 0]).log().sum())
    return (len(distances) - 1) / total if total else math.inf


def participation(points: Tensor) -> float:
    """(Σ s_i)² / Σ s_i² of the variances s_i along the principal axes of `(n, d)`: how many of them matter."""
    variances = torch.linalg.svdvals((points - points.mean(0)).double()).square()
    return float(variances.sum() ** 2 / variances.square().sum().clamp_min(1e-300))
