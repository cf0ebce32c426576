"""What a network costs: weights, bytes, operations, time."""

from __future__ import annotations

import statistics
import time
from dataclasses import dataclass
from typing import Any

import torch
from torch import nn
from torch.utils.flop_counter import FlopCounterMode

from isopath.arguments import check_module
from isopath.network import _arguments as arguments_of
from isopath.network import check_runs, copied, plain_kernels, rows_of
from isopath.storage import weights_size


@dataclass(frozen=True)
class Footprint:
    """The cost of a network on an example.

    Attributes:
        parameters: how many numbers its parameters hold.
        nonzero: how many of them are not zero.
        bytes: of its weights as `save_weights` stores them.
        flops: floating-point operations of a forward pass for one row: those of matrix products and convolutions, two
            for a multiplication and addition, as counted by torch; zeros are not left out.
        seconds: of a forward pass over all rows of the example, the median of several.
    """

    parameters: int
    nonzero: int
    bytes: int
    flops: float
    seconds: float

    def __str__(self) -> str:
        return (
            f"{self.parameters:,} parameters ({self.nonzero:,} not zero), {_short(self.bytes)}B on disk, "
            f"{_short(self.flops)}FLOP a row, {_short(self.seconds)}s a pass"
        )


def footprint(model: nn.Module, example: Any, passes: int = 20) -> Footprint:
    """Counts and times a forward pass in eval mode, without gradients; the module is not modified.

    Args:
        model: any module.
        example: its inputs, on its device: a tensor, a tuple of positional or a mapping of keyword arguments. Several
            rows give a steadier time.
        passes: timed forward passes, after a tenth as many that are not.

    Raises:
        TypeError: the model is no module.
        ValueError: fewer than one pass, or the module does not run on the example.
    """
    if passes < 1:
        raise ValueError(f"passes must be >= 1, got {passes}")
    check_module(model, "model")
    check_runs(model, example, "the example")
    model, (args, kwargs) = copied(model).eval(), arguments_of(example)
    parameters = list(model.parameters())
    with torch.no_grad():
        counter = FlopCounterMode(display=False)
        with plain_kernels(recurrent=True), counter:  # a fused kernel's operations are not counted
            model(*args, **kwargs)
        seconds = []
        for k in range(-max(1, passes // 10), passes):
            began = _now(parameters)
            model(*args, **kwargs)
            if k >= 0:
                seconds.append(_now(parameters) - began)
    return Footprint(
        sum(p.numel() for p in parameters),
        sum(int(p.count_nonzero()) for p in parameters),
        weights_size(model),
        counter.get_total_flops() / max(1, rows_of(example)),
        statistics.median(seconds),
    )


def _now(parameters: list[nn.Parameter]) -> float:
    """The time, once an accelerator has done what was asked of it."""
    if parameters and parameters[0].is_cuda:
        torch.cuda.synchronize(parameters[0].device)
    return time.perf_counter()


def _short(value: float) -> str:
    """With a prefix: 12.3 k, 4.5 µ."""
    for scale, prefix in ((1e12, "T"), (1e9, "G"), (1e6, "M"), (1e3, "k"), (1.0, ""), (1e-3, "m"), (1e-6, "µ")):
        if value >= scale:
            return f"{value / scale:.3g} {prefix}"
    return f"{value:.3g} "
