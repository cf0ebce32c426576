"""Many networks of one architecture, run at once."""

from __future__ import annotations

from typing import Any

from torch import Tensor
from torch.func import vmap

from isopath.examples import tree_map
from isopath.network import FORWARD, Network, Output, rows_of

CHUNK = 4  # networks in one pass: on a CPU more of them no longer fit its cache


class Family:
    """n points of one network evaluated by `vmap`: to a task it is a network like any other.

    Args:
        network: the architecture; batch norm runs on its running statistics, dropout is off.
        chunk: networks in one pass.
        apart: whether each has rows of its own, or all have the same.
    """

    def __init__(self, network: Network, chunk: int = CHUNK, apart: bool = False) -> None:
        self.network, self.space, self.chunk, self.apart = network, network.space, chunk, apart

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

        def run(theta: Tensor, x: Any) -> Tensor:
            return self.network.apply(self.space.unflatten(theta), x, output)

        y = vmap(run, in_dims=(0, 0 if self.apart else None), chunk_size=self.chunk)(thetas, inputs)
        self.network.count(rows * (1 if self.apart else count), 1.0 if y.requires_grad else FORWARD)
        return y.flatten(0, 1) if self.apart else y
