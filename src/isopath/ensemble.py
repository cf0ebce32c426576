"""Several networks as one: their mean."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from typing import Any, Literal

import torch
from torch import Tensor, nn
from torch.func import functional_call, vmap

from isopath.arguments import check_module
from isopath.module_state import ModuleState
from isopath.network import Network, Output, copied, pick, plain_kernels
from isopath.space import Trainable

Mean = Literal["probabilities", "logits"]


class Ensemble(nn.Module):
    """The mean of networks' predictions, one differentiable module.

    Args:
        models: at least one; they are copied, and run in eval mode.
        mean: of `"probabilities"`: the output is log (1/M) Σ softmax f_m(x), which the cross-entropy and an attack take
            as they take logits; or of the `"logits"`.
        output: picks the output tensor from what a model returns (see `Network`); a slice cuts the outputs' last axis.
        batched: all networks in one pass by `vmap`; they must be of one architecture. On a CPU a loop is often as fast.
        dim: the axis of the classes in the outputs of one network, 1 for a segmentation `(N, C, H, W)`; by default the
            last, of outputs with up to three axes.

    Raises:
        ValueError: there is no network, or an unknown mean.
        TypeError: the networks are no list of modules, or one cannot be copied.
    """

    def __init__(
        self, models: Sequence[nn.Module], mean: Mean = "probabilities", output: Output = None, batched: bool = False,
        dim: int | None = None,
    ) -> None:  # fmt: skip
        super().__init__()
        if mean not in ("probabilities", "logits"):
            raise ValueError(f"mean must be 'probabilities' or 'logits', got {mean!r}")
        self.models = nn.ModuleList(copied(model) for model in networks_in(models, "an ensemble"))
        self.mean, self.output, self.batched, self.dim = mean, output, batched, dim
        self.eval()

    @classmethod
    def at(cls, model: nn.Module, thetas: Iterable[Tensor], trainable: Trainable = None, **options: Any) -> Ensemble:
        """The networks at points of weight space, of a path or a generator say.

        Args:
            model: the architecture; it is not modified.
            thetas: points `(P,)`, or `(M, P)` of them.
            trainable: the parameters that the points are made of; see `Space`.
            options: of `Ensemble`.

        Raises:
            ValueError: there is no point, or one does not fit the model.
        """
        network = Network(model, trainable)
        return cls([network.model(theta) for theta in thetas], **options)

    def __len__(self) -> int:
        return len(self.models)

    def train(self, mode: bool = True) -> Ensemble:
        """The networks stay in eval mode: an ensemble of networks in training is not the one that was built."""
        super().train(False)
        return self

    def members(self, *args: Any, **kwargs: Any) -> Tensor:
        """Every network's outputs, `(M, N, C)`.

        Raises:
            ValueError: the networks' outputs differ in shape or, where they are `batched`, their weights do.
        """
        with plain_kernels():
            if not self.batched:
                outputs = [self._member(model, args, kwargs) for model in self.models]
                _check_alike([{"output": y} for y in outputs], "an ensemble needs networks with the same classes")
                return torch.stack(outputs)
            # not torch.func's stack_module_state: that cuts the graph to the members' parameters
            every = [dict(m.named_parameters()) for m in self.models], [dict(m.named_buffers()) for m in self.models]
            for named in every:
                _check_alike(named, "batched=True needs networks of one architecture; use batched=False")
            parameters, buffers = ({n: torch.stack([own[n] for own in named]) for n in named[0]} for named in every)
            template = self.models[0]

            def run(parameters: Any, buffers: Any) -> Tensor:
                return pick(functional_call(template, (parameters, buffers), args, kwargs), self.output)

            try:
                with ModuleState(template, buffers=False).held():
                    return vmap(run, randomness="different")(parameters, buffers)
            except torch.OutOfMemoryError:
                raise
            except RuntimeError as error:
                raise ValueError(
                    "the networks do not run in one pass of vmap on these inputs; where one alone does, use "
                    f"batched=False. They said: {error}"
                ) from error

    def _member(self, model: nn.Module, args: Any, kwargs: Any) -> Tensor:
        if torch.compiler.is_compiling():
            return pick(model(*args, **kwargs), self.output)
        # a module that keeps an activation would keep the graph with it, and could not be copied after
        with ModuleState(model, buffers=False).held():
            return pick(model(*args, **kwargs), self.output)

    def forward(self, *args: Any, **kwargs: Any) -> Tensor:
        """The mean, `(N, C)`: the inputs are those of one network."""
        outputs = self.members(*args, **kwargs)
        if self.mean == "logits":
            return outputs.mean(0)
        dim = class_axis(outputs.shape[1:], self.dim) - outputs.ndim + 1
        if outputs.shape[dim] == 1:
            raise ValueError('the mean of probabilities needs C >= 2 outputs, got C = 1; use mean="logits"')
        logs = outputs.log_softmax(dim)
        never = logs.isneginf().all(0)  # a class that all rule out: where all are -inf, logsumexp has no gradient
        mean = logs.masked_fill(never, 0).logsumexp(0).masked_fill(never, -math.inf)
        return mean - torch.tensor(float(len(self))).log().to(outputs)


def class_axis(shape: Sequence[int], dim: int | None) -> int:
    """The axis of the classes in outputs of a shape, >= 0.

    Raises:
        ValueError: there is no such axis, or with more than three it is not said which.
    """
    if dim is None and len(shape) > 3:
        raise ValueError(
            f"outputs {tuple(shape)} have their classes on one of {len(shape)} axes; say on which with dim=, 1 for a "
            "segmentation (N, C, H, W)"
        )
    dim = -1 if dim is None else dim
    if len(shape) < 2 or not -len(shape) <= dim < len(shape):
        raise ValueError(
            f"outputs need a shape (N, C) with an axis dim={dim} of classes, got {tuple(shape)}; of a regression take "
            'mean="logits" or divergence="squared_error", and (N, 1) from .unsqueeze(-1)'
        )
    return dim % len(shape)


def networks_in(given: Any, what: str) -> list[nn.Module]:
    """The networks in what a user hands over as several of them.

    Raises:
        TypeError: it is no list of modules.
        ValueError: it is empty.
    """
    if isinstance(given, Tensor):
        raise TypeError("points of weight space need their architecture: use Ensemble.at(model, thetas)")
    if isinstance(given, nn.Module) and not isinstance(given, nn.ModuleList):
        raise TypeError(f"{what} takes a list of networks, got one {type(given).__name__}; put it in a list")
    if isinstance(given, Mapping) or not isinstance(given, Iterable):
        remedy = (
            "take its .values()" if isinstance(given, Mapping) else "of a generator take .models(n), of a path .model()"
        )
        raise TypeError(f"{what} takes a list of networks, got {type(given).__name__}; {remedy}")
    found = list(given)
    if not found:
        raise ValueError(f"{what} needs at least one network, got none")
    for model in found:
        check_module(model, f"each network of {what}")
    return found


def _check_alike(every: Sequence[Mapping[str, Tensor]], needed: str) -> None:
    """Checks that all networks' tensors have the names and shapes of the first's."""
    shapes = [{name: tuple(tensor.shape) for name, tensor in own.items()} for own in every]
    for m, own in enumerate(shapes):
        for name in {**shapes[0], **own}:
            if shapes[0].get(name) != own.get(name):
                raise ValueError(
                    f"{needed}: {name} has shape {shapes[0].get(name)} in network 0 and {own.get(name)} in network {m}"
                )
