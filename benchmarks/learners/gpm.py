"""Gradient projection memory."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from benchmarks.learners.learner import Learner, Stage, size_of


class GPM(Learner):
    """Gradient projection memory (Saha et al. 2021, arXiv 2103.09762): no step within the span of old inputs.

    For linear layers without biases: after each task the basis of every layer's inputs grows by the leading left
    singular vectors of what it does not cover yet, until a `share` of the inputs' energy is covered.
    """

    def __init__(self, *args: Any) -> None:
        super().__init__(*args)
        self.layers = [m for m in self.model.modules() if isinstance(m, nn.Linear)]
        self.bases: list[Tensor] = [torch.zeros(m.in_features, 0) for m in self.layers]

    def adjust(self, x: Tensor, y: Tensor) -> None:
        for layer, basis in zip(self.layers, self.bases):
            gradient = layer.weight.grad
            assert gradient is not None
            gradient.sub_((gradient @ basis) @ basis.T)

    def end(self, stage: Stage) -> None:
        seen: dict[int, Tensor] = {}
        hooks = [m.register_forward_hook(lambda m, i, o: seen.update({id(m): i[0].detach()})) for m in self.layers]
        rows = torch.randperm(len(stage.x), generator=self.generator)[:300]
        with torch.no_grad():
            self.model(stage.x[rows])
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
        return size_of(*self.bases)
