"""One of the many equal networks: trivial symmetries taken out, differentiably."""

from __future__ import annotations

import copy
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from isopath.network import Network
from isopath.space import Space
from isopath.symmetry.cells import cells
from isopath.symmetry.finder import symmetries as find
from isopath.symmetry.group import Scaling, Symmetries
from isopath.symmetry.matching import Descent
from isopath.symmetry.permutation import Permutation
from isopath.symmetry.rescaling import rescaled
from isopath.symmetry.similarity import Weights

SWEEPS = 20  # of coordinate descent over the groups
EQUAL = 1e-9  # of outputs, relative, in float64


@dataclass(frozen=True)
class Gauge:
    """What is taken out of a point of weight space before two points are compared.

    Three kinds of change leave what a classifier says as it is, and none makes a different network: units of a ReLU
    rescaled, the same number added to all outputs before a softmax (Deutsch, Nijkamp & Yang 2019, arXiv 1905.02898,
    section 3.2), and units permuted.

    Attributes:
        space: names and shapes of points.
        found: permutations and rescalings.
        shifts: parameters whose first axis is the classes' and may be shifted as a whole: they are centred.
    """

    space: Space
    found: Symmetries
    shifts: tuple[str, ...] = ()

    @classmethod
    def of(
        cls, model: nn.Module, example: Any, space: Space | None = None, softmax: bool = True,
        found: Symmetries | None = None,
    ) -> Gauge:  # fmt: skip
        """The gauge of a module.

        Args:
            model: any module; it is not modified.
            example: its inputs.
            space: of the points; all trainable parameters by default.
            softmax: whether outputs are read through a softmax over their last axis, which a common shift leaves alone.
            found: the symmetries; found by default.
        """
        space = Space.of(model) if space is None else space
        found = find(model, example) if found is None else found
        return cls(space, found, _shifts(model, example, space) if softmax else ())

    def fixed(self, thetas: Tensor) -> Tensor:
        """Equal networks `(n, P)` that depend on nothing but the networks, permutations left aside; differentiable.

        Group by group, from the inputs on, each unit is multiplied such that what it has where its power is the largest
        (its incoming weights and its bias) has norm one; what may be shifted has mean zero over the classes.
        """
        return torch.stack([self._flat(self._fixed(self.space.unflatten(theta))) for theta in thetas])

    def aligned(self, thetas: Tensor, anchor: Tensor) -> Tensor:
        """Points `(n, P)` with their units permuted to lie next to those of one, `(P,)`; differentiable.

        By coordinate descent on the inner product of weights (Ainsworth et al. 2022, arXiv 2209.04836) from where they
        stand: none is farther from the anchor afterwards.
        """
        return torch.stack([self._aligned(theta, anchor) for theta in thetas])

    def distances(self, thetas: Tensor) -> Tensor:
        """Euclidean distances `(n, n)` of points `(n, P)` in this gauge, each pair aligned."""
        points = self.fixed(thetas.detach())
        total = torch.zeros(len(points), len(points), dtype=torch.float64)
        for i, anchor in enumerate(points):
            near = self.aligned(points[:i], anchor) if i else points[:0]
            total[i, :i] = total[:i, i] = (near - anchor).double().norm(dim=1).cpu()
        return total

    def _fixed(self, tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
        tensors = dict(tensors)
        for k, scaling in enumerate(self.found.scalings):
            if all(name in tensors for name, _, _ in scaling.exponents):
                tensors = rescaled(tensors, self.found, {k: self._factor(scaling, tensors)})
        for name in self.shifts:
            tensors[name] = tensors[name] - tensors[name].mean(0, keepdim=True)
        return tensors

    def _factor(self, scaling: Scaling, tensors: Mapping[str, Tensor]) -> Tensor:
        """What makes the norm of each unit one, where its power is the largest."""
        largest = max(scaling.exponents.values())
        squares: Tensor | None = None
        for (name, number, at), power in scaling.exponents.items():
            if power == largest:
                cell = list(cells(tensors[name], self.found.places[name]))[number]
                own = cell.rows([*cell.beside(at, self.found.groups[scaling.group].parents), at]).square().sum(-1)
                squares = own if squares is None else squares + own
        assert squares is not None
        smallest = torch.finfo(squares.dtype).tiny ** 0.5  # a unit without weights stays without
        return squares.clamp_min(smallest) ** (-0.5 / largest)

    def _aligned(self, theta: Tensor, anchor: Tensor) -> Tensor:
        own, other = self.space.unflatten(theta), self.space.unflatten(anchor.detach())
        detached = {name: tensor.detach() for name, tensor in own.items()}
        moved: Permutation = Descent(self.found, [(1.0, Weights(other, detached, self.found))], 0).run(SWEEPS, False)
        placed = {name: own[name] for name in self.found.places if name in own}
        return self._flat({**own, **moved(placed)})

    def _flat(self, tensors: Mapping[str, Tensor]) -> Tensor:
        return torch.cat([tensors[name].reshape(-1) for name in self.space.names])  # Space.flatten detaches


def _shifts(model: nn.Module, example: Any, space: Space) -> tuple[str, ...]:
    """Parameters that, shifted along their first axis, shift all outputs of a row alike: tried in float64."""
    network = Network(copy.deepcopy(model).double(), lambda name: name in space.names)
    example = _double(example)
    generator = torch.Generator().manual_seed(0)
    theta = network.start + 0.1 * torch.randn(network.start.shape, generator=generator, dtype=torch.float64).to(
        network.start
    )
    with torch.no_grad():
        before = network(theta, example)
        found = []
        for name, shape in zip(network.space.names, network.space.shapes):
            if not shape or shape[0] != before.shape[-1] or shape[0] < 2:
                continue
            tensors = dict(network.space.unflatten(theta))
            shift = torch.randn(1, *shape[1:], generator=generator, dtype=torch.float64).to(theta)
            moved = network.apply({**tensors, name: tensors[name] + shift}, example) - before
            common = moved.mean(-1, keepdim=True)
            if bool((moved - common).abs().max() <= EQUAL * common.abs().max().clamp_min(1e-30)):
                found.append(name)
    return tuple(found)


def _double(tree: Any) -> Any:
    if isinstance(tree, Tensor):
        return tree.double() if tree.is_floating_point() else tree
    if isinstance(tree, Mapping):
        return {key: _double(value) for key, value in tree.items()}
    return tuple(map(_double, tree)) if isinstance(tree, (tuple, list)) else tree
