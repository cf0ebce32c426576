"""Many networks of one architecture, run at once."""

from __future__ import annotations

from typing import Any

from torch import Tensor
from torch.func import vmap

from isopath.examples import tree_map
from isopath.network import Network, Output, rows_of

CHUNK = 4  # networks in one pass: on a CPU more of them no longer fit its cache


class Family:
    """n points of one network evaluated by `vmap`, each on rows of its own: a `Network` for an objective's eyes.

    Args:
        network: the architecture; batch norm runs on its running statistics, dropout is off.
        chunk: networks in one pass.
    """

    def __init__(self, network: Network, chunk: int = CHUNK) -> None:
        self.network, self.space, self.chunk = network, network.space, chunk

    def __call__(self, thetas: Tensor, inputs: Any, output: Output = None) -> Tensor:
        """Outputs `(n · b, C)` of points `(n, P)` on inputs of n · b rows, b for each, in their order.

        Raises:
            ValueError: the rows cannot be shared out evenly.
        """
        rows, count = rows_of(inputs), len(thetas)
        if rows % count:
            raise ValueError(f"{rows} rows cannot be shared out among {count} networks; give a multiple")
        shared = tree_map(lambda leaf: leaf.unflatten(0, (count, rows // count)), inputs)
        self.network.count(rows, 1.0)
        return self.outputs(thetas, shared, output, 0).flatten(0, 1)

    def outputs(self, thetas: Tensor, inputs: Any, output: Output = None, axis: int | None = None) -> Tensor:
        """Outputs `(n, N, C)` of points `(n, P)`: on the same rows, or with `axis=0` on each one's own."""

        def run(theta: Tensor, x: Any) -> Tensor:
            return self.network.apply(self.space.unflatten(theta), x, output)

        return vmap(run, in_dims=(0, axis), chunk_size=self.chunk)(thetas, inputs)

