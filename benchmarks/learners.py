"""Methods of continual learning, one class each: what is added to a step, and what a finished task leaves behind."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

import isopath as ip

Settings = Mapping[str, Any]


class Learner:
    """Plain fine-tuning by SGD with momentum 0.9, the rate going down to zero over each task.

    Args:
        model: trained in place.
        settings: `rate`, and what a method adds.
    """

    def __init__(self, model: nn.Module, settings: Settings) -> None:
        self.model, self.settings = model, settings
        self.optimizer: torch.optim.Optimizer = self._sgd()

    def _sgd(self) -> torch.optim.SGD:
        return torch.optim.SGD(self.model.parameters(), self.settings["rate"], momentum=0.9)

    def begin(self) -> None:
        """Before a task."""
        self.optimizer = self._sgd()

    def step(self, x: Tensor, y: Tensor) -> None:
        """On one batch."""
        self.optimizer.zero_grad()
        self.loss(x, y).backward()
        self.adjust()
        self.optimizer.step()

    def loss(self, x: Tensor, y: Tensor) -> Tensor:
        """What is lowered."""
        return F.cross_entropy(self.model(x), y)

    def adjust(self) -> None:
        """Changes the gradients."""

    def end(self, x: Tensor, y: Tensor) -> None:
        """After a task, with its training data for the last time."""

    @property
    def bytes(self) -> int:
        """What is kept of old tasks."""
        return 0


class EWC(Learner):
    """Online elastic weight consolidation (Schwarz et al. 2018): one running diagonal Fisher matrix, labels sampled."""

    def __init__(self, model: nn.Module, settings: Settings) -> None:
        super().__init__(model, settings)
        self.fisher = [torch.zeros_like(p) for p in model.parameters()]
        self.centre = [p.detach().clone() for p in model.parameters()]

    def adjust(self) -> None:
        for p, f, c in zip(self.model.parameters(), self.fisher, self.centre):
            p.grad.add_(f * (p.detach() - c), alpha=self.settings["strength"])  # type: ignore[union-attr]

    def end(self, x: Tensor, y: Tensor) -> None:
        generator = torch.Generator().manual_seed(0)
        rows = torch.randperm(len(x), generator=generator)[:2000]
        for row in rows.split(1):
            out = self.model(x[row]).log_softmax(1)
            label = torch.multinomial(out.exp().detach(), 1, generator=generator)
            grads = torch.autograd.grad(out.gather(1, label).sum(), list(self.model.parameters()))
            for f, g in zip(self.fisher, grads):
                f.add_(g.square(), alpha=1 / len(rows))
        self.centre = [p.detach().clone() for p in self.model.parameters()]

    @property
    def bytes(self) -> int:
        return sum(4 * t.numel() for t in (*self.fisher, *self.centre))


class GPM(Learner):
    """Gradient projection memory (Saha et al. 2021, arXiv 2103.09762): no step within the span of old inputs.

    For linear layers without biases: after each task the basis of every layer's inputs grows by the leading left
    singular vectors of what it does not cover yet, until a share of the inputs' energy is covered.
    """

    def __init__(self, model: nn.Module, settings: Settings) -> None:
        super().__init__(model, settings)
        self.layers = [m for m in model.modules() if isinstance(m, nn.Linear)]
        self.bases: list[Tensor] = [torch.zeros(m.in_features, 0) for m in self.layers]

    def adjust(self) -> None:
        for layer, basis in zip(self.layers, self.bases):
            gradient = layer.weight.grad
            assert gradient is not None
            gradient.sub_((gradient @ basis) @ basis.T)

    def end(self, x: Tensor, y: Tensor) -> None:
        seen: dict[int, Tensor] = {}
        hooks = [m.register_forward_hook(lambda m, i, o: seen.update({id(m): i[0].detach()})) for m in self.layers]
        rows = torch.randperm(len(x), generator=torch.Generator().manual_seed(0))[:300]
        with torch.no_grad():
            self.model(x[rows])
        for hook in hooks:
            hook.remove()
        share = self.settings["share"]
        for k, layer in enumerate(self.layers):
            inputs, basis = seen[id(layer)].T, self.bases[k]
            rest = inputs - basis @ (basis.T @ inputs)
            left, values, _ = torch.linalg.svd(rest, full_matrices=False)
            energy, covered = float(inputs.square().sum()), float((basis.T @ inputs).square().sum())
            count = int((covered + values.square().cumsum(0) < share * energy).sum()) + 1
            if covered < share * energy:
                self.bases[k] = torch.cat([basis, left[:, :count]], 1)[:, : layer.in_features]

    @property
    def bytes(self) -> int:
        return sum(4 * basis.numel() for basis in self.bases)


class Kept(Learner):
    """isopath's optimiser over a memory of factors alone: no data are kept.

    `merge` makes one pair of factors per layer for all tasks, a Kronecker posterior with natural-gradient steps (as
    natural continual learning, Kao et al. 2021, arXiv 2106.08085); otherwise each task keeps its own factors and the
    weights that it was left with.
    """

    def __init__(self, model: nn.Module, settings: Settings) -> None:
        super().__init__(model, settings)
        self.memory = ip.Memory(
            examples=0, factors=True, merge=settings["merge"], rank=settings["rank"], divergence="kl"
        )

    def begin(self) -> None:
        self.optimizer = ip.optim.Invariant(
            self._sgd(), self.model, self.memory, tolerance=None, strength=self.settings["strength"],
            damping=self.settings["damping"],
        )  # fmt: skip

    def end(self, x: Tensor, y: Tensor) -> None:
        self.memory = self.memory.remember(self.model, x)

    @property
    def bytes(self) -> int:
        return self.memory.bytes
