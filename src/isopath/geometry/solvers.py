"""Linear algebra that needs only products: conjugate gradients and Lanczos."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

Map = Callable[[Tensor], Tensor]


def conjugate_gradients(
    operator: Map, b: Tensor, iterations: int, tolerance: float, preconditioner: Map | None = None
) -> Tensor:
    """x with `operator(x) ≈ b` for a symmetric positive definite operator.

    Args:
        operator: the map, `(P,) -> (P,)`.
        b: the right-hand side, `(P,)`.
        iterations: the most products to spend.
        tolerance: stop at ‖b - Ax‖ <= tolerance ‖b‖.
        preconditioner: an approximate inverse, symmetric positive definite.
    """
    x, r = torch.zeros_like(b), b.clone()
    z = preconditioner(r) if preconditioner else r
    p, rz = z.clone(), torch.dot(r, z)
    target = tolerance * b.norm()
    for _ in range(iterations):
        if r.norm() <= target:
            break
        ap = operator(p)
        curvature = torch.dot(p, ap)
        if curvature <= 0:  # rounding has used up the operator's definiteness: what we have is what there is
            break
        alpha = rz / curvature
        x.add_(p, alpha=float(alpha))
        r.sub_(ap, alpha=float(alpha))
        z = preconditioner(r) if preconditioner else r
        rz, previous = torch.dot(r, z), rz
        p.mul_(rz / previous).add_(z)
    return x


def lanczos(operator: Map, dimension: int, k: int, like: Tensor, seed: int = 0) -> Tensor:
    """The largest `k` eigenvalues of a symmetric operator, descending.

    Block-free Lanczos with full re-orthogonalisation in `k + 16` steps (at most `dimension`), from a seeded start. It
    finds one copy of a multiple eigenvalue.
    """
    k = min(k, dimension)
    steps = min(dimension, k + 16)
    generator = torch.Generator().manual_seed(seed)
    q = torch.randn(dimension, generator=generator, dtype=torch.float64).to(like)
    q /= q.norm()
    basis, diagonal, beside = [q], [], []
    for step in range(steps):
        w = operator(basis[-1])
        diagonal.append(float(torch.dot(w, basis[-1])))
        stacked = torch.stack(basis)
        for _ in range(2):  # once leaves errors of the order of sqrt(eps) behind
            w = w - stacked.mT @ (stacked @ w)
        beta = float(w.norm())
        if step == steps - 1 or beta <= 100 * torch.finfo(like.dtype).eps * max(map(abs, diagonal)):
            break
        beside.append(beta)
        basis.append(w / beta)
    n = len(diagonal)
    tridiagonal = torch.diag(torch.tensor(diagonal, dtype=torch.float64))
    if n > 1:
        off = torch.tensor(beside[: n - 1], dtype=torch.float64)
        tridiagonal += torch.diag(off, 1) + torch.diag(off, -1)
    values = torch.linalg.eigvalsh(tridiagonal).flip(0)[:k]
    return torch.nn.functional.pad(values, (0, k - len(values))).to(like)
