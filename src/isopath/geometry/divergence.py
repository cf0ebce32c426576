"""Distances between outputs, with the curvature they have where they vanish."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable
from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor


class Divergence(ABC):
    """A divergence d(y, y0) >= 0 between output rows, zero where they are equal.

    Outputs have shape `(..., C)`; `H(y)`, the Hessian of `d` in its first argument at `y0 = y`, is the curvature that
    is pulled back to weight space: G = mean of JᵀHJ.
    """

    name: ClassVar[str]
    softmax: ClassVar[bool] = False  # reads rows of C >= 2 logits

    @abstractmethod
    def rows(self, y: Tensor, y0: Tensor) -> Tensor:
        """d of each row: `(..., C), (..., C) -> (...)`."""

    @abstractmethod
    def root(self, y: Tensor) -> Tensor:
        """R with H = RᵀR at each row: `(..., C) -> (..., K, C)`."""

    def product(self, y: Tensor, u: Tensor) -> Tensor:
        """H(y) u at each row: `(..., C)`."""
        root = self.root(y)
        return torch.einsum("...kc,...k->...c", root, torch.einsum("...kc,...c->...k", root, u))

    def check(self, y: Tensor) -> None:
        """Raises `ValueError` if outputs of this shape cannot be compared."""
        if y.ndim < 2:
            raise ValueError(f"outputs must have shape (N, C) or (N, T, C), got {tuple(y.shape)}; reshape with output=")
        if self.softmax and y.shape[-1] == 1:
            raise ValueError(
                f'divergence="{self.name}" compares softmax probabilities and needs C >= 2 outputs, got C = 1; '
                'use divergence="bernoulli" for a logit, or "squared_error" for regression'
            )


class _Softmax(Divergence):
    softmax = True
    scale: ClassVar[float]  # H = scale * (diag p - p pᵀ)

    def root(self, y: Tensor) -> Tensor:
        """R with RᵀR = H at y."""
        p = y.softmax(-1)
        eye = torch.eye(y.shape[-1], dtype=y.dtype, device=y.device)
        return (self.scale * p).sqrt().unsqueeze(-1) * (eye - p.unsqueeze(-2))

    def product(self, y: Tensor, u: Tensor) -> Tensor:
        """H u at y."""
        p = y.softmax(-1)
        pu = p * u
        return self.scale * (pu - p * pu.sum(-1, keepdim=True))


class Hellinger(_Softmax):
    """Squared Hellinger distance of softmax outputs, 1 - Σ√(p p₀), in [0, 1]; H = (diag p - ppᵀ)/4.

    Computed as ½‖√p - √p₀‖², which loses no digits where p is near p₀.
    """

    name = "hellinger"
    scale = 0.25

    def rows(self, y: Tensor, y0: Tensor) -> Tensor:
        """d(y, y₀), one value per row."""
        # exp(½ log p), not sqrt(p): the derivative of sqrt is infinite where a probability underflows to zero
        root, root0 = (0.5 * y.log_softmax(-1)).exp(), (0.5 * y0.log_softmax(-1)).exp()
        return 0.5 * (root - root0).square().sum(-1)


class KL(_Softmax):
    """KL(p₀ ‖ p) of softmax outputs, in nats; H = diag p - ppᵀ."""

    name = "kl"
    scale = 1.0

    def rows(self, y: Tensor, y0: Tensor) -> Tensor:
        """d(y, y₀), one value per row."""
        log_p, log_p0 = y.log_softmax(-1), y0.log_softmax(-1)
        never = log_p0.isneginf()  # a class that is ruled out: of its term, p - p₀ - p₀z, only p is left
        z, p0 = log_p.masked_fill(never, 0) - log_p0.masked_fill(never, 0), log_p0.exp()
        # Σp = Σp₀, so each term may be written p - p₀ - p₀z >= 0; near zero with expm1, which keeps its digits
        small = z.clamp(-0.5, 0.5)
        known = torch.where(z.abs() < 0.5, p0 * (torch.expm1(small) - small), log_p.exp() - p0 - p0 * z)
        return torch.where(never, log_p.exp(), known).sum(-1)


class Bhattacharyya(_Softmax):
    """-log Σ√(p p₀) of softmax outputs, the penalty of the FIP authors' code; H = (diag p - ppᵀ)/4."""

    name = "bhattacharyya"
    scale = 0.25

    def rows(self, y: Tensor, y0: Tensor) -> Tensor:
        """d(y, y₀), one value per row."""
        # -log(1 - h) of the Hellinger distance h while that is small: it keeps its digits
        h = Hellinger().rows(y, y0)
        plain = -torch.logsumexp(0.5 * (y.log_softmax(-1) + y0.log_softmax(-1)), -1)
        return torch.where(h < 0.5, -torch.log1p(-h.clamp_max(0.5)), plain)


class Bernoulli(Divergence):
    """Σ_c KL(σ(y₀) ‖ σ(y)) of independent logits (multi-label); H = diag p(1 - p)."""

    name = "bernoulli"

    def rows(self, y: Tensor, y0: Tensor) -> Tensor:
        """d(y, y₀), one value per row."""
        p0, d = y0.sigmoid(), y - y0
        softplus = torch.nn.functional.softplus
        # log(1 + p₀(eᵈ - 1)) is the difference of the softplus terms without their cancellation
        near = torch.log1p(p0 * torch.expm1(d.clamp(-0.5, 0.5))) - p0 * d
        return torch.where(d.abs() < 0.5, near, softplus(y) - softplus(y0) - p0 * d).sum(-1)

    def root(self, y: Tensor) -> Tensor:
        """R with RᵀR = H at y."""
        return torch.diag_embed((y.sigmoid() * (-y).sigmoid()).sqrt())

    def product(self, y: Tensor, u: Tensor) -> Tensor:
        """H u at y."""
        return y.sigmoid() * (-y).sigmoid() * u


class SquaredError(Divergence):
    """½‖y - y₀‖², for regression; H = I."""

    name = "squared_error"

    def rows(self, y: Tensor, y0: Tensor) -> Tensor:
        """d(y, y₀), one value per row."""
        return 0.5 * (y - y0).square().sum(-1)

    def root(self, y: Tensor) -> Tensor:
        """R with RᵀR = H at y."""
        return torch.eye(y.shape[-1], dtype=y.dtype, device=y.device).expand(*y.shape, y.shape[-1])

    def product(self, y: Tensor, u: Tensor) -> Tensor:
        """H u at y."""
        return u


class Cosine(Divergence):
    """1 - cos(y, y₀), for embeddings, computed as ½‖ŷ - ŷ₀‖²; H = (I - ŷŷᵀ)/‖y‖²."""

    name = "cosine"

    def rows(self, y: Tensor, y0: Tensor) -> Tensor:
        """d(y, y₀), one value per row."""
        unit, unit0 = torch.nn.functional.normalize(y, dim=-1), torch.nn.functional.normalize(y0, dim=-1)
        return 0.5 * (unit - unit0).square().sum(-1)

    def root(self, y: Tensor) -> Tensor:
        """R with RᵀR = H at y."""
        norm = y.norm(dim=-1, keepdim=True).clamp_min(torch.finfo(y.dtype).tiny)
        unit = y / norm
        eye = torch.eye(y.shape[-1], dtype=y.dtype, device=y.device)
        return (eye - unit.unsqueeze(-1) * unit.unsqueeze(-2)) / norm.unsqueeze(-1)


@dataclass(frozen=True)
class Custom(Divergence):
    """A user's function of `(y, y0)`, `(N, C), (N, C) -> (N,)`; its Hessian is derived row by row."""

    function: Callable[[Tensor, Tensor], Tensor]
    name = "custom"

    def rows(self, y: Tensor, y0: Tensor) -> Tensor:
        """d(y, y₀), one value per row."""
        flat = self.function(y.reshape(-1, y.shape[-1]), y0.reshape(-1, y.shape[-1]))
        if flat.shape != (y.shape[:-1].numel(),):
            raise ValueError(
                f"the divergence returned shape {tuple(flat.shape)}, expected one value per row, "
                f"({y.shape[:-1].numel()},); sum over the outputs, not over the rows"
            )
        return flat.reshape(y.shape[:-1])

    def hessian(self, y: Tensor) -> Tensor:
        """H at each row, symmetric: `(..., C) -> (..., C, C)`."""

        def one(row: Tensor, row0: Tensor) -> Tensor:
            return self.function(row.unsqueeze(0), row0.unsqueeze(0)).squeeze(0)

        flat = y.detach().reshape(-1, y.shape[-1])
        hessian = torch.func.vmap(torch.func.hessian(one))(flat, flat)
        return (0.5 * (hessian + hessian.mT)).reshape(*y.shape, y.shape[-1])

    def root(self, y: Tensor) -> Tensor:
        """R with RᵀR = H at y."""
        values, vectors = torch.linalg.eigh(self.hessian(y).double())
        return (values.clamp_min(0).sqrt().unsqueeze(-1) * vectors.mT).to(y.dtype)


BY_NAME: dict[str, Divergence] = {
    divergence.name: divergence
    for divergence in (Hellinger(), KL(), Bhattacharyya(), Bernoulli(), SquaredError(), Cosine())
}


def divergence_of(given: str | Divergence | Callable[[Tensor, Tensor], Tensor]) -> Divergence:
    """A divergence by name, as it is, or from a function of `(y, y0)`.

    Raises:
        ValueError: the name is unknown; the message lists the known ones.
        TypeError: `given` is none of these.
    """
    if isinstance(given, Divergence):
        return given
    if isinstance(given, str):
        if given not in BY_NAME:
            raise ValueError(f"unknown divergence {given!r}; the names are {', '.join(sorted(BY_NAME))}")
        return BY_NAME[given]
    if callable(given):
        return Custom(given)
    raise TypeError(f"divergence must be a name, a Divergence or a function of (y, y0), got {type(given).__name__}")
