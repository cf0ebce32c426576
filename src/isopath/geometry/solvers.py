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
    """The largest `k` eigenvalues of a symmetric operator, descending; see `ritz`."""
    k = min(k, dimension)
    values, _ = _tridiagonal(operator, dimension, k + 16, like, seed)[0]
    values = values.flip(0)[:k]
    return torch.nn.functional.pad(values, (0, k - len(values))).to(like)


def ritz(
    operator: Map, dimension: int, k: int, like: Tensor, seed: int = 0, extra: int = 16
) -> tuple[Tensor, Tensor]:
    """The largest `k` eigenvalues `(k,)` of a symmetric operator, descending, and its eigenvectors `(P, k)`.

    Block-free Lanczos with full re-orthogonalisation in `k + extra` steps (at most `dimension`), from a seeded start.
    It finds one copy of a multiple eigenvalue.
    """
    (values, mixed), basis = _tridiagonal(operator, dimension, min(k, dimension) + extra, like, seed)
    top = values.argsort(descending=True)[: min(k, dimension)]
    return values[top].to(like), torch.stack(basis[: len(mixed)], 1) @ mixed[:, top].to(like)


def _tridiagonal(
    operator: Map, dimension: int, steps: int, like: Tensor, seed: int
) -> tuple[tuple[Tensor, Tensor], list[Tensor]]:
    """Eigenvalues, ascending, and eigenvectors of the operator within a Krylov space, and its basis."""
    steps = min(dimension, steps)
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
    values, vectors = torch.linalg.eigh(tridiagonal)
    return (values, vectors), basis
