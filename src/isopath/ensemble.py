"""Several networks as one: their mean."""

from __future__ import annotations

import copy
from collections.abc import Iterable, Mapping, Sequence
from typing import Any, Literal

import torch
from torch import Tensor, nn
from torch.func import functional_call, vmap

from isopath.network import Network, Output, pick, plain_kernels
from isopath.space import Trainable

Mean = Literal["probabilities", "logits"]


class Ensemble(nn.Module):
    """The mean of networks' predictions, one differentiable module.

    Args:
        models: at least one; they are copied, and run in eval mode.
        mean: of `"probabilities"`: the output is log (1/M) Σ softmax f_m(x), which the cross-entropy and an attack take
            as they take logits; or of the `"logits"`.
        output: picks the output tensor from what a model returns (see `Network`).
        batched: all networks in one pass by `vmap`; they must be of one architecture. On a CPU a loop is often as fast.

    Raises:
        ValueError: there is no network, or an unknown mean.
    """

    def __init__(
        self, models: Sequence[nn.Module], mean: Mean = "probabilities", output: Output = None, batched: bool = False
    ) -> None:
        super().__init__()
        if isinstance(models, Tensor):
            raise TypeError("points of weight space need their architecture: use Ensemble.at(model, thetas)")
        if isinstance(models, nn.Module) and not isinstance(models, nn.ModuleList):
            raise TypeError(f"an ensemble takes a list of networks, got one {type(models).__name__}; put it in a list")
        models = list(models)
        if not models:
            raise ValueError("an ensemble needs at least one network, got none")
        if mean not in ("probabilities", "logits"):
            raise ValueError(f"mean must be 'probabilities' or 'logits', got {mean!r}")
        self.models = nn.ModuleList(copy.deepcopy(model) for model in models)
        self.mean, self.output, self.batched = mean, output, batched
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
                outputs = [pick(model(*args, **kwargs), self.output) for model in self.models]
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

            return vmap(run, randomness="different")(parameters, buffers)

    def forward(self, *args: Any, **kwargs: Any) -> Tensor:
        """The mean, `(N, C)`: the inputs are those of one network."""
        outputs = self.members(*args, **kwargs)
        if self.mean == "logits":
            return outputs.mean(0)
        if outputs.shape[-1] == 1:
            raise ValueError('the mean of probabilities needs C >= 2 outputs, got C = 1; use mean="logits"')
        return outputs.log_softmax(-1).logsumexp(0) - torch.tensor(float(len(self))).log().to(outputs)


def _check_alike(every: Sequence[Mapping[str, Tensor]], needed: str) -> None:
    """Checks that all networks' tensors have the names and shapes of the first's."""
    shapes = [{name: tuple(tensor.shape) for name, tensor in own.items()} for own in every]
    for m, own in enumerate(shapes):
        for name in {**shapes[0], **own}:
            if shapes[0].get(name) != own.get(name):
                raise ValueError(
                    f"{needed}: {name} has shape {shapes[0].get(name)} in network 0 and {own.get(name)} in network {m}"
                )
