"""Steps that see batch norm as training does, on a path that leaves running statistics as they are."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm

from isopath.geometry.batch import Batch
from isopath.network import Network

# Values of a channel in a batch below which its own statistics are too noisy: on perceptrons, with a value for each of
# 128 rows, the drift of half the weights is 3 to 4 times what it is with running statistics; on convolutions half.
FEWEST = 1024
FARTHEST = 32.0  # times that a scale may change: a channel constant on the measured rows need not be on others

Hook = Callable[[nn.Module, tuple[Any, ...], dict[str, Any]], None]


class BatchStatistics(Network):
    """A network whose batch norms take the statistics of each batch, and the way there and back.

    With running mean m and deviation s = √(variance + ε) a batch norm does γ(x - m)/s + β, with those of the batch
    γ'(x - m')/s' + β'. On that batch both are the same function where

        γ' = γ s'/s,    β' = β + γ(m' - m)/s,

    so what the statistics become as weights move can go into the scale and the shift: running statistics stay, and a
    point of the path alone says what its network does. Gradients that pass through m' and s' leave out what a change
    of mean or scale would do (Ioffe & Szegedy 2015, arXiv 1502.03167).

    Evaluations are counted by the network that it is made of.

    Args:
        of: the network with running statistics.
        layers: names of the batch norms; of each, scale and shift are trained, and no other layer's, and it is called
            once in a forward pass.
    """

    def __init__(self, of: Network, layers: Sequence[str]) -> None:
        super().__init__(of._skeleton, set(of.space.names).__contains__)
        self.of, self.layers = of, tuple(layers)
        for layer in self._norms(self):
            layer.train()

    def _norms(self, network: Network) -> list[_BatchNorm]:
        layers = [network._skeleton.get_submodule(name) for name in self.layers]
        return [layer for layer in layers if isinstance(layer, _BatchNorm)]

    @classmethod
    def found(cls, network: Network, theta: Tensor, batch: Batch) -> BatchStatistics | None:
        """That of a network whose batches are like this one; `None` where no layer can be normalised so."""
        names = [name for name, layer in network._skeleton.named_modules() if _fits(layer, name, network)]
        if not names:
            return None
        calls = dict.fromkeys(names, 0)
        few: set[str] = set()

        def seen(name: str) -> Hook:
            def hook(layer: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
                calls[name] += 1
                if _units(args, kwargs).shape[1] < FEWEST:
                    few.add(name)

            return hook

        with _hooked(network, {name: seen(name) for name in names}):
            batch.outputs(network, theta)
        layers = [name for name in names if calls[name] == 1 and name not in few]
        return cls(network, layers) if layers else None

    def count(self, rows: int, cost: float) -> None:
        """Adds to the account of the network that it is made of."""
        self.of.count(rows, cost)

    def entered(self, theta: Tensor, batches: Iterable[Batch]) -> Tensor:
        """The point `(P,)` that does on batches, with their statistics, what `theta` does with running ones."""
        return self._moved(theta, self._moments(self.of, theta, batches), True)

    def left(self, theta: Tensor, batches: Iterable[Batch]) -> Tensor:
        """The way back, with the mean statistics of the batches."""
        return self._moved(theta, self._moments(self, theta, batches), False)

    def _moved(self, theta: Tensor, moments: dict[str, tuple[Tensor, Tensor]], enter: bool) -> Tensor:
        named = {name: value.clone() for name, value in self.space.unflatten(theta).items()}
        for name, layer in zip(self.layers, self._norms(self.of)):
            own, running = layer.running_mean, layer.running_var
            assert own is not None and running is not None
            (mean, variance), deviation = moments[name], (running + layer.eps).sqrt()
            scale, shift = named[f"{name}.weight"], named[f"{name}.bias"]
            ratio = ((variance + layer.eps).sqrt() / deviation).clamp(1 / FARTHEST, FARTHEST).to(scale)
            scale.mul_(ratio if enter else 1 / ratio)
            slope = scale / ratio if enter else scale  # what stands before (m' - m)/s
            moved = slope * ((mean - own) / deviation).to(scale)
            shift.add_(moved if enter else -moved)
        return self.space.flatten(named)

    def _moments(self, network: Network, theta: Tensor, batches: Iterable[Batch]) -> dict[str, tuple[Tensor, Tensor]]:
        """Mean and variance of what comes into each layer, `(C,)` each, over all batches."""
        sums: dict[str, list[Any]] = {name: [0.0, 0.0, 0.0] for name in self.layers}

        def add(name: str) -> Hook:
            def hook(layer: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
                units = _units(args, kwargs)
                units = units.to(torch.promote_types(units.dtype, torch.float32))
                variance, mean = (part.double() for part in torch.var_mean(units, 1, correction=0))
                count, (rows, total, squares) = units.shape[1], sums[name]
                square = variance + mean.square()
                sums[name] = [rows + count, total + count * mean, squares + count * square]

            return hook

        with _hooked(network, {name: add(name) for name in self.layers}):
            for batch in batches:
                batch.outputs(network, theta)
        return {n: (m / c, (q / c - (m / c).square()).clamp_min(0)) for n, (c, m, q) in sums.items()}


def _fits(layer: nn.Module, name: str, network: Network) -> bool:
    """Whether a layer is a batch norm with running statistics whose scale and shift are trained and its own."""
    # statistics of several processes at once are not ours to take
    if not isinstance(layer, _BatchNorm) or isinstance(layer, nn.SyncBatchNorm) or layer.running_mean is None:
        return False
    owners = [id(p) for module in network._skeleton.modules() for p in module._parameters.values() if p is not None]
    own = all(owners.count(id(p)) == 1 for p in (layer.weight, layer.bias))
    return own and {f"{name}.weight", f"{name}.bias"} <= set(network.space.names)


def _units(args: tuple[Any, ...], kwargs: dict[str, Any]) -> Tensor:
    """What comes into a layer, `(C, values)`."""
    given: Tensor = args[0] if args else kwargs["input"]
    return given.detach().movedim(1, 0).flatten(1)


@contextmanager
def _hooked(network: Network, hooks: dict[str, Hook]) -> Iterator[None]:
    """Forward passes without gradients, in which layers show what comes into them."""
    layers = {network._skeleton.get_submodule(name): hook for name, hook in hooks.items()}
    handles = [layer.register_forward_pre_hook(hook, with_kwargs=True) for layer, hook in layers.items()]
    try:
        with torch.no_grad():
            yield
    finally:
        for handle in handles:
            handle.remove()
