"""Many networks of one architecture, run at once."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from torch.func import vmap
from torch.utils._pytree import tree_flatten, tree_unflatten

from isopath.examples import tree_map
from isopath.network import FORWARD, Network, Output, rows_of

CHUNK = 4  # networks in one pass: on a CPU more of them no longer fit its cache


class Family:
    """n points of one network evaluated by `vmap`, or by a loop where an operator knows none: to a task, a network.

    Args:
        network: the architecture; batch norm runs on its running statistics, dropout is off.
        chunk: networks in one pass.
        apart: whether each has rows of its own, or all have the same.
    """

    def __init__(self, network: Network, chunk: int = CHUNK, apart: bool = False) -> None:
        self.network, self.space, self.chunk, self.apart = network, network.space, chunk, apart
        self._looped = False

    def __call__(self, thetas: Tensor, inputs: Any, output: Output = None) -> Tensor:
        """Outputs of points `(n, P)`: on the same N rows `(n, N, C)`, or, apart, on b of n · b rows each `(n · b, C)`.

        Raises:
            ValueError: the rows cannot be shared out evenly.
        """
        rows, count = rows_of(inputs), len(thetas)
        if self.apart and rows % count:
            raise ValueError(f"{rows} rows cannot be shared out among {count} networks; give a multiple")
        if self.apart:
            inputs = tree_map(lambda leaf: leaf.unflatten(0, (count, rows // count)), inputs)

        y = self._run(thetas, inputs, output)
        self.network.count(rows * (1 if self.apart else count), 1.0 if y.requires_grad else FORWARD)
        return y.flatten(0, 1) if self.apart else y

    def _run(self, thetas: Tensor, inputs: Any, output: Output) -> Tensor:
        if not self._looped:
            try:
                return self._mapped(thetas, inputs, output)
            except (ValueError, RuntimeError):  # recurrent layers have no batching rule, nor has control flow on values
                found = self._each(thetas, inputs, output)
                self._looped = True  # what a loop can do either, its own error says
                return found
        return self._each(thetas, inputs, output)

    def _mapped(self, thetas: Tensor, inputs: Any, output: Output) -> Tensor:
        leaves, structure = tree_flatten(inputs)
        tensors = [leaf for leaf in leaves if isinstance(leaf, Tensor)]

        def run(theta: Tensor, own: list[Tensor]) -> Tensor:
            left = iter(own)
            filled = [next(left) if isinstance(leaf, Tensor) else leaf for leaf in leaves]
            return self.network.apply(self.space.unflatten(theta), tree_unflatten(filled, structure), output)

        return vmap(run, in_dims=(0, 0 if self.apart else None), chunk_size=self.chunk)(thetas, tensors)

    def _each(self, thetas: Tensor, inputs: Any, output: Output) -> Tensor:
        def own(k: int) -> Any:
            return tree_map(lambda leaf: leaf[k], inputs) if self.apart else inputs

        each = [self.network.apply(self.space.unflatten(t), own(k), output) for k, t in enumerate(thetas)]
        return torch.stack(each)
