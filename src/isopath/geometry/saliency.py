"""How much the outputs would move if one weight went."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

from isopath.geometry.blocks import Block, Lookup
from isopath.geometry.diagonal import Diagonal
from isopath.geometry.identity import Identity
from isopath.geometry.kronecker import Kronecker
from isopath.geometry.metric import Metric


def saliency(metric: Metric, theta: Tensor, damping: float) -> Tensor:
    """½ θ_q² / [(G + μI)⁻¹]_qq, `(P,)`: the least that ½vᵀ(G + μI)v can be when weight q goes and the others make up.

    The saliency of optimal brain surgeon (Hassibi & Stork 1993), with the metric pulled back from the outputs in place
    of a Hessian of the loss. Where the damping rules it is half of μθ²: magnitude.

    Args:
        metric: Kronecker-factored, diagonal or the identity.
        theta: the point, `(P,)`.
        damping: μ > 0.

    Raises:
        TypeError: the metric's inverse has no diagonal that can be had without solving P systems.
    """
    return 0.5 * theta.square() / inverse_diagonal(metric, damping)


def inverse_diagonal(metric: Metric, damping: float) -> Tensor:
    """The diagonal of (G + damping I)⁻¹, `(P,)`; from eigenvectors, at the cost of a product or two."""

    def inverse(values: Tensor) -> Tensor:
        return 1 / (values + damping)

    if isinstance(metric, Diagonal):
        return inverse(metric.values)
    if isinstance(metric, Identity):
        return inverse(torch.full((metric.dimension,), metric.scale, dtype=metric.dtype))
    if not isinstance(metric, Kronecker):
        raise TypeError(
            f"saliency needs a Kronecker-factored or a diagonal metric, got {type(metric).__name__}; choose a "
            "direction with metric='kronecker', 'ekfac' or 'diagonal'"
        )
    out = torch.empty(metric.dimension, dtype=metric.space.dtype, device=metric.space.device)
    for place, values in metric.diagonal:
        out[place] = inverse(values)
    for block in metric.blocks:
        (_lookup if isinstance(block, Lookup) else _block)(block, out, inverse)  # type: ignore[arg-type]
    return out


def _block(block: Block, out: Tensor, function: Callable[[Tensor], Tensor]) -> None:
    """Writes a layer's diagonal of function(B ⊗ A): squared eigenvectors mix the values."""
    squares = block.output_vectors.square()
    if block.shrinkage is None:
        rest = function(torch.zeros((), dtype=out.dtype, device=out.device))
        along_a = along_b = None
        along_both = function(block._grid()) - rest
    else:
        rest, along_a, along_b, along_both = block._corners(function)
    for written, columns in block._parts(out):
        inputs = columns.square().mT
        found = rest + squares @ along_both @ inputs
        if along_a is not None:
            found = found + along_a @ inputs
        if along_b is not None:
            found = found + squares @ along_b
        written.copy_(found)


def _lookup(block: Lookup, out: Tensor, function: Callable[[Tensor], Tensor]) -> None:
    """The same for an embedding, whose first factor is diagonal."""
    written = out[block.weight].view(block.shape)
    rest = function(torch.zeros((), dtype=out.dtype, device=out.device))
    along = function(torch.outer(block.counts, block.output_values)) - rest
    written.copy_(rest + along @ block.output_vectors.square().mT)
