"""Gradient projection memory."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from benchmarks.learners.learner import Learner, Stage, size_of


class GPM(Learner):
    """Gradient projection memory (Saha et al. 2021, arXiv 2103.09762): no step within the span of old inputs.

    Of linear layers: after each task the basis of every layer's inputs grows by the leading left singular vectors of
    what it does not cover yet, until a `share` of the inputs' energy (one for all layers, or one each) is covered. A
    bias is a weight whose input is 1.
    """

    def __init__(self, *args: Any) -> None:
        super().__init__(*args)
        self.layers = [m for m in self.model.modules() if isinstance(m, nn.Linear)]
        self.bases = [torch.zeros(m.in_features + (m.bias is not None), 0) for m in self.layers]

    def adjust(self, x: Tensor, y: Tensor) -> None:
        for layer, basis in zip(self.layers, self.bases):
            assert layer.weight.grad is not None
            gradient = layer.weight.grad
            if layer.bias is not None:
                assert layer.bias.grad is not None
                gradient = torch.cat([gradient, layer.bias.grad.unsqueeze(1)], 1)
            gradient = gradient - (gradient @ basis) @ basis.T
            layer.weight.grad.copy_(gradient[:, : layer.in_features])
            if layer.bias is not None:
                layer.bias.grad.copy_(gradient[:, -1])

    def end(self, stage: Stage) -> None:
        seen: dict[int, Tensor] = {}
        hooks = [m.register_forward_hook(lambda m, i, o: seen.update({id(m): i[0].detach()})) for m in self.layers]
        chosen = torch.randperm(len(stage.x), generator=self.generator)[:300]
        self.spent += len(chosen) / 3
        with torch.no_grad():
            self.model(stage.x[chosen])
        for hook in hooks:
            hook.remove()
        given = self.settings["share"]
        shares = given if isinstance(given, list) else [given] * len(self.layers)
        for k, layer in enumerate(self.layers):
            rows, basis, share = seen[id(layer)], self.bases[k], shares[k]
            inputs = (rows if layer.bias is None else torch.cat([rows, rows.new_ones(len(rows), 1)], 1)).T
            rest = inputs - basis @ (basis.T @ inputs)
            left, values, _ = torch.linalg.svd(rest, full_matrices=False)
            energy, covered = float(inputs.square().sum()), float((basis.T @ inputs).square().sum())
            count = int((covered + values.square().cumsum(0) < share * energy).sum()) + 1
            if covered < share * energy:
                self.bases[k] = torch.cat([basis, left[:, :count]], 1)[:, : len(inputs)]

    @property
    def bytes(self) -> int:
        return size_of(*self.bases)
