"""Second moments of single examples' gradients, in any orthonormal basis of a layer's inputs and outputs."""

from __future__ import annotations

import torch
from torch import Tensor

from isopath.geometry.factors import Use

NUMBERS = 2**24  # held at once


def squared(use: Use, grad: Tensor, count: int, left: Tensor | None = None, right: Tensor | None = None) -> Tensor:
    """Σ_n (Rᵀ M_n L)², elementwise, for the gradients M_n = Σ_t g_nt a_ntᵀ of single examples.

    Where a layer has more or other things than examples on its first axis (windows, or time first, as PyTorch's
    attention), every position counts as an example of its own.

    Args:
        use: a linear map or a convolution.
        grad: the gradient at what left it.
        count: of the examples.
        left: orthonormal columns `(groups, i, ra)` for the inputs, the bias the last; `None` for the axes themselves.
        right: the same `(groups, o, rb)` for the outputs.

    Returns:
        `(groups, rb, ra)`.
    """
    inputs, outputs = use.inputs(), use.output_rows(grad)
    groups, n, positions, _ = inputs.shape
    if n != count:
        n, positions = n * positions, 1
        inputs = inputs.reshape(groups, n, 1, -1)
    outputs = outputs.reshape(groups, n, positions, -1)
    a = inputs if left is None else inputs @ left.unsqueeze(1)
    g = outputs if right is None else outputs @ right.unsqueeze(1)
    if positions == 1:  # the square of a product is the product of squares
        return g[:, :, 0].square().mT @ a[:, :, 0].square()
    total = g.new_zeros(groups, g.shape[-1], a.shape[-1])
    size = max(1, NUMBERS // max(1, groups * g.shape[-1] * a.shape[-1]))
    for rows in torch.arange(n).split(size):
        total += (g[:, rows].mT @ a[:, rows]).square().sum(1)
    return total
