"""One of the many equal networks: trivial symmetries taken out, differentiably."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor, nn
from torch.func import vmap

from isopath.network import Network, Output, copied
from isopath.space import Space
from isopath.symmetry.cells import cells
from isopath.symmetry.finder import symmetries as find
from isopath.symmetry.group import Scaling, Symmetries
from isopath.symmetry.matching import Descent
from isopath.symmetry.permutation import Permutation
from isopath.symmetry.rescaling import octaves, rescaled
from isopath.symmetry.similarity import Weights

SWEEPS = 20  # of coordinate descent over the groups
ROUNDS = 50  # over the groups: one will do where none leads back into an earlier one
SETTLED = 1e-7  # relative change
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
        scaled: indices in `found.scalings` of those that are taken out. Where one group leads back into another, as
            when a layer is used twice, norms of one cannot all be had, and what cannot stays in.
        rounds: over all scalings, until nothing changes: one where no group leads back into an earlier one.
        permuted: the groups that are aligned: those of which the points have every part. Where statistics of a batch
            norm differ from unit to unit, or a layer is frozen, its units are what they are.
    """

    space: Space
    found: Symmetries
    shifts: tuple[str, ...] = ()
    scaled: tuple[int, ...] = ()
    rounds: int = ROUNDS
    permuted: Symmetries | None = None

    @classmethod
    def of(
        cls, model: nn.Module, example: Any, space: Space | None = None, softmax: bool = True,
        found: Symmetries | None = None, output: Output = None,
    ) -> Gauge:  # fmt: skip
        """The gauge of a module.

        Args:
            model: any module; it is not modified.
            example: its inputs.
            space: of the points; all trainable parameters by default.
            softmax: whether outputs are read through a softmax over their last axis, which a common shift leaves alone.
            found: the symmetries; found by default.
            output: picks the output tensor (see `Network`).
        """
        space = Space.of(model) if space is None else space
        found = find(model, example) if found is None else found
        shifts = _shifts(model, example, space, output) if softmax else ()
        network = Network(model, lambda name: name in space.names)
        return cls(space, found, shifts, *_canonical(network, found), _within(found, model, space))

    def fixed(self, thetas: Tensor) -> Tensor:
        """Equal networks `(n, P)` that depend on nothing but the networks, permutations left aside; differentiable.

        Group by group, from the inputs on, each unit is multiplied such that what it has where its power is the largest
        (its incoming weights and its bias) has norm one; what may be shifted has mean zero over the classes.
        """
        return vmap(lambda theta: self._flat(self._fixed(self.space.unflatten(theta))))(thetas)

    def aligned(self, thetas: Tensor, anchor: Tensor) -> Tensor:
        """Points `(n, P)` with their units permuted to lie next to those of one, `(P,)`; differentiable.

        By coordinate descent on the inner product of weights (Ainsworth et al. 2022, arXiv 2209.04836), from a first
        guess that goes from the inputs on and does not depend on the order that the units have: copies of one network
        with their units permuted come to one point, and no point is farther from the anchor afterwards.
        """
        return torch.stack([self._aligned(theta, anchor) for theta in thetas])

    def distances(self, thetas: Tensor) -> Tensor:
        """Euclidean distances `(n, n)` of points `(n, P)`, each pair aligned; give what `fixed` gave."""
        points = thetas.detach()
        total = torch.zeros(len(points), len(points), dtype=torch.float64)
        for i, anchor in enumerate(points):
            near = self.aligned(points[:i], anchor) if i else points[:0]
            total[i, :i] = total[:i, i] = (near - anchor).double().norm(dim=1).cpu()
        return total

    def _fixed(self, tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
        tensors = dict(tensors)
        for name in self.shifts:  # before the factors, which leave means of zero: the other way round they would change
            tensors[name] = tensors[name] - tensors[name].mean(0, keepdim=True)
        for _ in range(self.rounds):
            for k in self.scaled:
                tensors = rescaled(tensors, self.found, {k: self._factor(self.found.scalings[k], tensors)})
        return tensors

    def _settled(self, point: Mapping[str, Tensor]) -> tuple[dict[str, Tensor], int]:
        """The point in the gauge, and the rounds until no factor differed from one."""
        once, before = replace(self, rounds=1), dict(point)
        names = {name for k in self.scaled for name, _, _ in self.found.scalings[k].exponents}
        for count in range(ROUNDS):
            after = once._fixed(before)
            if all(torch.allclose(after[n], before[n], rtol=SETTLED, atol=0) for n in names):
                return after, count
            before = after
        return before, ROUNDS

    def _holds(self, point: Mapping[str, Tensor], factors: Mapping[int, Tensor]) -> bool:
        """Whether a point and a rescaled copy come to one."""
        fixed, rounds = self._settled(point)
        if rounds == ROUNDS:
            return False
        other, _ = self._settled(rescaled(point, self.found, {k: factors[k] for k in self.scaled}))
        names = {name for k in self.scaled for name, _, _ in self.found.scalings[k].exponents}
        return all(torch.allclose(fixed[n], other[n], rtol=1e-5, atol=1e-8) for n in names)

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
        found = self.found if self.permuted is None else self.permuted
        detached = {name: tensor.detach() for name, tensor in own.items()}
        moved: Permutation = Descent(found, [(1.0, Weights(other, detached, found))], 0).run(SWEEPS)
        placed = {name: own[name] for name in found.places if name in own}
        return self._flat({**own, **moved(placed)})

    def _flat(self, tensors: Mapping[str, Tensor]) -> Tensor:
        return torch.cat([tensors[name].reshape(-1) for name in self.space.names])  # Space.flatten detaches


def _within(found: Symmetries, model: nn.Module, space: Space) -> Symmetries:
    """Without the groups of which a part is none of the points': frozen parameters, statistics that differ by unit."""
    named = {**dict(model.named_parameters()), **dict(model.named_buffers())}
    held = [
        key
        for key, group in found.groups.items()
        if any(name not in space.names and not _even(named[name], axis) for name, axis in group.members)
    ]
    return found.without(held) if held else found


def _even(tensor: Tensor, axis: int) -> bool:
    """Whether all units have the same entries."""
    return bool((tensor == tensor.narrow(axis, 0, 1)).all())


def _canonical(network: Network, found: Symmetries) -> tuple[tuple[int, ...], int]:
    """The scalings that can be taken out together and the rounds that it takes: tried on random points."""
    generator, start = torch.Generator().manual_seed(0), network.start.cpu().double()
    noise = torch.randn(start.shape, generator=generator, dtype=torch.float64)
    points = [network.space.unflatten(theta) for theta in (start + 0.1 * start.std() * noise, noise)]
    factors = octaves(found, generator, 2)
    taken: tuple[int, ...] = ()
    for k, scaling in enumerate(found.scalings):
        gauge = Gauge(network.space, found, (), (*taken, k))
        known = all(name in points[0] for name, _, _ in scaling.exponents)
        if known and all(gauge._holds(point, factors) for point in points):
            taken = gauge.scaled
    final = Gauge(network.space, found, (), taken)
    return taken, max(final._settled(point)[1] for point in points)


def _shifts(model: nn.Module, example: Any, space: Space, output: Output) -> tuple[str, ...]:
    """Parameters that, shifted along their first axis, shift all outputs of a row alike: tried in float64."""
    network = Network(copied(model).double(), lambda name: name in space.names)
    example = _double(example)
    generator = torch.Generator().manual_seed(0)
    theta = network.start + 0.1 * torch.randn(network.start.shape, generator=generator, dtype=torch.float64).to(
        network.start
    )
    with torch.no_grad():
        before = network(theta, example, output)
        found = []
        for name, shape in zip(network.space.names, network.space.shapes):
            if not shape or shape[0] != before.shape[-1] or shape[0] < 2:
                continue
            tensors = dict(network.space.unflatten(theta))
            shift = torch.randn(1, *shape[1:], generator=generator, dtype=torch.float64).to(theta)
            moved = network.apply({**tensors, name: tensors[name] + shift}, example, output) - before
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
