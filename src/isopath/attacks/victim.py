"""The network under attack, as a function of its inputs alone."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from isopath.arguments import check_module
from isopath.ensemble import Ensemble
from isopath.network import FORWARD, Output, copied, pick, plain_kernels


class Victim:
    """x ↦ f(x) of a module in eval mode, its weights constant; the module is not modified.

    An `Ensemble` is one differentiable function, log (1/M) Σ softmax fₘ(x): an attack on it sees every member at once,
    which is stronger than one on each member or on their vote.

    Args:
        model: any module that takes one tensor; its weights are shared, its buffers copied.
        output: picks the output tensor from what it returns (see `Network`); an ensemble has its own.

    Attributes:
        module: the copy that is run.
        networks: how many of an ensemble; 1 for any other module.
        evaluations: gradient evaluations so far, of one network on one row; a forward pass alone counts a third, and
            an ensemble of M networks M times.

    Raises:
        TypeError: the module cannot be copied.
    """

    def __init__(self, model: nn.Module, output: Output = None) -> None:
        check_module(model, "what is attacked", "of networks make an ip.Ensemble, of a path or a generator take .model")
        # Parameters that ask for no gradient: neither the graph nor the caller's .grad knows of the attack.
        shared: dict[int, Any] = {id(p): nn.Parameter(p.detach(), requires_grad=False) for p in model.parameters()}
        self.module = copied(model, shared).eval()
        self.networks = len(model) if isinstance(model, Ensemble) else 1
        self.output = None if isinstance(model, Ensemble) else output  # an ensemble has its own
        self.evaluations = 0.0

    def __call__(self, x: Tensor) -> Tensor:
        """Outputs `(N, C)` on inputs `(N, ...)`, differentiable in the inputs.

        Raises:
            ValueError: the module does not run on the inputs, or its outputs have no derivative in them.
        """
        graded = torch.is_grad_enabled() and x.requires_grad
        self.evaluations += self.networks * len(x) * (1.0 if graded else FORWARD)
        try:
            with plain_kernels():
                returned = self.module(x)
        except torch.OutOfMemoryError:
            raise
        except (RuntimeError, TypeError, IndexError, ValueError) as error:
            raise ValueError(
                f"the model does not run on these inputs: got {tuple(x.shape)} {x.dtype} on {x.device}; convert, "
                f"reshape or move the inputs. The model said: {error}"
            ) from error
        outputs = pick(returned, self.output)
        if graded and not outputs.requires_grad:
            raise ValueError(
                f"the outputs {tuple(outputs.shape)} have no derivative in the inputs {tuple(x.shape)}: something in "
                "the model detaches them; attack a differentiable version of it and judge this one on the result"
            )
        return outputs

    @torch.no_grad()
    def right(self, x: Tensor, y: Tensor) -> Tensor:
        """Which rows are classified right: `(N, ...), (N,) -> (N,)` of booleans. An output of NaN is wrong."""
        outputs = self(x)
        return (outputs.argmax(-1) == y) & ~outputs.isnan().any(-1)


def labels_of(y: Any, x: Tensor, outputs: Tensor) -> Tensor:
    """Labels `(N,)` as int64 on the inputs' device, once they fit the inputs and the outputs of a classifier.

    Args:
        y: labels `(N,)`.
        x: inputs `(N, ...)`.
        outputs: of some rows, `(n, C)`.

    Raises:
        TypeError: the labels are no tensor of integers.
        ValueError: their number or a value does not fit, or the outputs are not those of a classifier.
    """
    if not isinstance(y, Tensor) or y.is_floating_point() or y.dtype == torch.bool:
        got = str(y.dtype) if isinstance(y, Tensor) else type(y).__name__
        raise TypeError(f"labels must be a tensor of integers ({len(x)},), got {got}; convert with .long()")
    if y.shape != (len(x),):
        raise ValueError(f"labels must have the shape ({len(x)},), one for each input, got {tuple(y.shape)}")
    if outputs.ndim != 2 or outputs.shape[1] < 2:
        raise ValueError(
            f"an attack on a classifier needs outputs (N, C) with C >= 2, got {tuple(outputs.shape)} for "
            f"{len(outputs)} rows; pick the logits with output=, or give a loss of your own to isopath.attack"
        )
    if int(y.min()) < 0 or int(y.max()) >= outputs.shape[1]:
        raise ValueError(
            f"labels must be from 0 to {outputs.shape[1] - 1}, the classes of the model, got {int(y.min())} to "
            f"{int(y.max())}; leave out rows without a label"
        )
    return y.to(x.device, torch.int64)
