"""What a network between two others needs anew: running statistics, and the variance of its units."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _NormBase

from isopath.examples import Examples
from isopath.network import Network, copied, plain_kernels
from isopath.network import _arguments as arguments_of
from isopath.space import Trainable


def normalisations(model: nn.Module) -> list[_NormBase]:
    """The layers with running statistics."""
    return [m for m in model.modules() if isinstance(m, _NormBase) and m.track_running_stats]


class BatchNetwork(Network):
    """A network whose normalisation layers use the statistics of the batch, as in training; dropout stays off.

    Args:
        model: any `nn.Module`.
        trainable: as for `Network`.
    """

    def __init__(self, model: nn.Module, trainable: Trainable = None) -> None:
        super().__init__(model, trainable)
        for layer in normalisations(self._skeleton):
            layer.train()


def reestimated(model: nn.Module, data: Any, batch_size: int = 256) -> nn.Module:
    """A copy whose running statistics are those of the data at its own weights.

    Args:
        model: any module; one without running statistics is copied as it is.
        data: inputs: a tensor, a tuple or mapping, a `Dataset` or a `DataLoader`.
        batch_size: rows per forward pass.
    """
    twin = copied(model)
    layers = normalisations(twin)
    if not layers:
        return twin
    modes, momenta = [m.training for m in twin.modules()], [layer.momentum for layer in layers]
    twin.eval()
    for layer in layers:
        layer.reset_running_stats()
        layer.momentum = None  # the mean over all batches
        layer.train()
    with torch.no_grad(), plain_kernels():
        for args, kwargs in _batches(twin, data, batch_size):
            twin(*args, **kwargs)
    for layer, momentum in zip(layers, momenta):
        layer.momentum = momentum
    for module, mode in zip(twin.modules(), modes):
        module.training = mode
    return twin


def repaired(
    model: nn.Module, ends: tuple[nn.Module, nn.Module], t: float, data: Any, batch_size: int = 256
) -> nn.Module:
    """A copy in which every hidden unit has the mean and the deviation that lie between those of two networks.

    REPAIR (Jordan et al. 2022, arXiv 2211.08403): between two networks activations lose variance, layer after layer.
    Each linear or convolution layer but the last has its units rescaled and shifted, in order, so that over the data
    E[z] = (1 - t) E[z_a] + t E[z_b] and likewise for the standard deviation. Layers without a bias are only rescaled.

    Args:
        model: the network in between.
        ends: the two networks, aligned.
        t: the place of `model` between them, in [0, 1].
        data: inputs.
        batch_size: rows per forward pass.
    """
    twin, names = copied(model), _layers(model, data, batch_size)[:-1]
    targets = [_moments(end, names, data, batch_size) for end in ends]
    for name in names:
        mean, deviation = _moments(twin, [name], data, batch_size)[name]
        (mean_a, deviation_a), (mean_b, deviation_b) = (target[name] for target in targets)
        goal, spread = torch.lerp(mean_a, mean_b, t), torch.lerp(deviation_a, deviation_b, t)
        ratio = torch.where(deviation > 1e-12, spread / deviation.clamp_min(1e-12), 1.0)
        weight, bias = (getattr(twin.get_submodule(name), part) for part in ("weight", "bias"))
        with torch.no_grad():
            weight.mul_(ratio.to(weight).reshape(-1, *[1] * (weight.ndim - 1)))
            if bias is not None:
                bias.copy_((bias - mean.to(bias)) * ratio.to(bias) + goal.to(bias))
    return twin


def _layers(model: nn.Module, data: Any, batch_size: int) -> list[str]:
    """Names of linear and convolution layers in the order of their first call."""
    kinds = (nn.Linear, nn.Conv1d, nn.Conv2d, nn.Conv3d)
    found: list[str] = []

    def seen(name: str) -> Callable[..., None]:
        return lambda *_: found.append(name) if name not in found else None

    with _hooked(model, {n: seen(n) for n, m in model.named_modules() if isinstance(m, kinds)}):
        for args, kwargs in _batches(model, data, batch_size):
            model(*args, **kwargs)
            break
    return found


def _moments(model: nn.Module, names: list[str], data: Any, batch_size: int) -> dict[str, tuple[Tensor, Tensor]]:
    """Mean and standard deviation of each unit that leaves some layers."""
    sums: dict[str, list[Any]] = {name: [0, 0.0, 0.0] for name in names}

    def add(name: str) -> Callable[..., None]:
        axis = -1 if isinstance(model.get_submodule(name), nn.Linear) else 1

        def hook(module: nn.Module, inputs: Any, out: Tensor) -> None:
            units = out.detach().movedim(axis, 0).flatten(1).double()
            count, total, squares = sums[name]
            sums[name] = [count + units.shape[1], total + units.sum(1), squares + units.square().sum(1)]

        return hook

    with _hooked(model, {name: add(name) for name in names}):
        for args, kwargs in _batches(model, data, batch_size):
            model(*args, **kwargs)
    return {n: (s / c, (q / c - (s / c).square()).clamp_min(0).sqrt()) for n, (c, s, q) in sums.items()}


@contextmanager
def _hooked(model: nn.Module, hooks: dict[str, Callable[..., None]]) -> Iterator[None]:
    """Runs a module in eval mode with hooks on some of its modules, and leaves it as it was."""
    modes = [m.training for m in model.modules()]
    handles = [model.get_submodule(name).register_forward_hook(hook) for name, hook in hooks.items()]
    model.eval()
    try:
        with torch.no_grad():
            yield
    finally:
        for handle in handles:
            handle.remove()
        for module, mode in zip(model.modules(), modes):
            module.training = mode


def _batches(model: nn.Module, data: Any, batch_size: int) -> Iterator[tuple[tuple[Any, ...], dict[str, Any]]]:
    examples, device = Examples.of(data, what="the data"), next(model.parameters()).device
    for rows in torch.arange(len(examples)).split(batch_size):
        yield arguments_of(examples.take(rows, device)[0])
