"""What may be permuted: groups of units, and where each sits in every tensor."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Literal

import torch
from torch import Tensor, nn


@dataclass(frozen=True)
class Place:
    """An axis of one tensor as products and sums of groups and fixed indices."""

    kind: Literal["fixed", "group", "product", "sum"]
    size: int
    group: int = -1
    parts: tuple[Place, ...] = ()

    def groups(self) -> Iterator[int]:
        """The groups in it."""
        if self.kind == "group":
            yield self.group
        for part in self.parts:
            yield from part.groups()

    def terms(self) -> Iterator[Place]:
        """What it is a sum of."""
        if self.kind == "sum":
            for part in self.parts:
                yield from part.terms()
        else:
            yield self

    def coordinates(self, index: Tensor) -> dict[int, Tensor]:
        """The coordinate of every group, and of every fixed parent, that has one at all positions `index`."""
        if self.kind in ("group", "fixed"):
            return {self.group: index} if self.group >= 0 else {}
        if self.kind == "sum":
            return {}
        return {key: at for part, inner in self._walk(index) for key, at in part.coordinates(inner).items()}

    def source(
        self,
        index: Tensor,
        moved: Mapping[int, Tensor],
        beside: Mapping[int, Tensor],
        parents: Mapping[int, Sequence[int]],
    ) -> Tensor:
        """The positions from which a permuted axis takes its entries.

        Args:
            index: the new positions.
            moved: each group's permutation, `(*parents, n)`.
            beside: coordinates of groups on other axes at `index`.
            parents: of each group.
        """
        if self.kind == "fixed":
            return index
        if self.kind == "group":
            return moved[self.group][(*(beside[p] for p in parents[self.group]), index)]
        if self.kind == "product":
            beside, result = {**beside, **self.coordinates(index)}, torch.zeros_like(index)
            for part, inner in self._walk(index):
                result = result * part.size + part.source(inner, moved, beside, parents)
            return result
        result, start = torch.zeros_like(index), 0
        for part, inner in self._walk(index):
            here = (inner >= 0) & (inner < part.size)
            source = part.source(inner.clamp(0, part.size - 1), moved, beside, parents)
            result, start = torch.where(here, source + start, result), start + part.size
        return result

    def _walk(self, index: Tensor) -> Iterator[tuple[Place, Tensor]]:
        if self.kind == "product":
            width = self.size
            for part in self.parts:
                width //= part.size
                yield part, index // width % part.size
        elif self.kind == "sum":
            start = 0
            for part in self.parts:
                yield part, index - start
                start += part.size


@dataclass(frozen=True)
class Group:
    """Units that are permuted among themselves.

    Attributes:
        size: how many.
        parents: groups (or fixed axes) on whose index the permutation may depend: units within each head.
        shape: of its permutation, `(*parents' sizes, size)`.
        members: names of tensors and the axis of each that it sits in.
    """

    size: int
    parents: tuple[int, ...]
    shape: tuple[int, ...]
    members: tuple[tuple[str, int], ...]

    @property
    def units(self) -> int:
        """How many units it moves in all."""
        return math.prod(self.shape)


@dataclass(frozen=True)
class Site:
    """Where activations enter a contraction, or leave one.

    Attributes:
        call: number of the contraction in a forward pass.
        argument: by which they enter, or `"out"`.
        places: of their axes.
    """

    call: int
    argument: str
    places: tuple[Place, ...]


@dataclass(frozen=True)
class Scaling:
    """Each unit of a group may be multiplied by a positive number of its own, where that is undone elsewhere.

    Attributes:
        group: whose units.
        exponents: of the unit's number at each of the group's occurrences: name of the tensor, number of the cell that
            it is taken apart into, axis of the cell. What is not there stays as it is.
    """

    group: int
    exponents: Mapping[tuple[str, int, int], float]


@dataclass(frozen=True)
class Symmetries:
    """The permutations of a module's parameters and statistics that leave its function as it is, and the rescalings.

    Attributes:
        groups: what may be permuted, parents before their children.
        places: of every axis of every tensor that has one.
        shapes: of all parameters.
        frozen: axes of parameters that are not permuted (or not in all their parts), with the reason.
        sites: activations in which groups appear.
        scalings: of units by positive numbers.
    """

    groups: Mapping[int, Group]
    places: Mapping[str, tuple[Place, ...]]
    shapes: Mapping[str, tuple[int, ...]]
    frozen: Mapping[tuple[str, int], str] = field(default_factory=dict)
    sites: tuple[Site, ...] = ()
    scalings: tuple[Scaling, ...] = ()

    @classmethod
    def of_table(cls, model: nn.Module, table: Mapping[str, Sequence[str | None]]) -> Symmetries:
        """A table written by hand: for each tensor, the group that each of its axes belongs to.

        It is taken as it is; `isopath.check.check_symmetry` tries it. It knows no activations: match by the weights.

        Args:
            model: the module.
            table: names of parameters and buffers with a group's name, or `None`, for each axis.

        Raises:
            ValueError: a name is missing, or the sizes of a group's axes differ.
        """
        named = dict([*model.named_parameters(), *model.named_buffers()])
        sizes: dict[str, int] = {}
        members: dict[str, list[tuple[str, int]]] = {}
        for name, axes in table.items():
            if name not in named or named[name].ndim != len(axes):
                got = f"of shape {tuple(named[name].shape)}" if name in named else "unknown"
                raise ValueError(f"the table gives {name!r} {len(axes)} axes, but in the model it is {got}")
            for k, group in enumerate(axes):
                if group is not None and sizes.setdefault(group, named[name].shape[k]) != named[name].shape[k]:
                    raise ValueError(
                        f"group {group!r} has {sizes[group]} units, but axis {k} of {name!r} {named[name].shape[k]}"
                    )
                if group is not None:
                    members.setdefault(group, []).append((name, k))
        keys = {group: key for key, group in enumerate(sizes)}
        groups = {keys[g]: Group(size, (), (size,), tuple(members[g])) for g, size in sizes.items()}
        places = {
            name: tuple(
                Place("fixed", size) if group is None else Place("group", size, keys[group])
                for group, size in zip(axes, named[name].shape)
            )
            for name, axes in table.items()
        }
        return cls(groups, places, {name: tuple(t.shape) for name, t in named.items()})

    @property
    def units(self) -> int:
        """How many units can be permuted."""
        return sum(group.units for group in self.groups.values())

    def __str__(self) -> str:
        lines = [f"{len(self.groups)} groups of units, {self.units} units in all"]
        for key, group in self.groups.items():
            within = f" within each index of {', '.join(map(str, group.parents))}" if group.parents else ""
            lines.append(f"  {key}: {group.size} units{within}")
            lines += [f"       {name} axis {axis}" for name, axis in group.members]
            for scaling in (scaling for scaling in self.scalings if scaling.group == key):
                powers = Counter((name, power) for (name, _, _), power in scaling.exponents.items())
                lines.append("    rescaled: " + ", ".join(f"{name} {_power(power)}" for name, power in powers))
        if self.frozen:
            lines.append("fixed:")
            lines += [f"  {name} axis {axis}: {why}" for (name, axis), why in self.frozen.items()]
        return "\n".join(lines)

    def applied(self, tensors: Mapping[str, Tensor], moved: Mapping[int, Tensor]) -> dict[str, Tensor]:
        """Tensors with their axes permuted; those without a place as they are."""
        return {name: self._gathered(name, t, moved) if name in self.places else t for name, t in tensors.items()}

    def _gathered(self, name: str, tensor: Tensor, moved: Mapping[int, Tensor]) -> Tensor:
        places = self.places[name]
        if tensor.shape != self.shapes[name]:
            raise ValueError(
                f"{name!r} has shape {tuple(tensor.shape)}, expected {self.shapes[name]}: another model's?"
            )
        grids = []
        for k, size in enumerate(tensor.shape):
            shape = [1] * tensor.ndim
            shape[k] = size
            grids.append(torch.arange(size).reshape(shape))
        own = [place.coordinates(grid) for place, grid in zip(places, grids)]
        parents = {key: group.parents for key, group in self.groups.items()}
        sources = []
        for k, place in enumerate(places):
            beside = {key: at for j, found in enumerate(own) if j != k for key, at in found.items()}
            sources.append(place.source(grids[k], moved, beside, parents))
        for k, source in enumerate(sources):
            if source.numel() == tensor.shape[k] and source.shape[k] == tensor.shape[k]:
                if not torch.equal(source, grids[k]):
                    at, last = source.to(tensor.device), k == tensor.ndim - 1
                    # index_select copies one number at a time along the last axis, and blocks along the others
                    tensor = tensor.gather(k, at.expand_as(tensor)) if last else tensor.index_select(k, at.flatten())
                sources[k] = grids[k]
        if all(source is grid for source, grid in zip(sources, grids)):
            return tensor
        return tensor[tuple(source.to(tensor.device) for source in sources)]

    def random(self, generator: torch.Generator) -> dict[int, Tensor]:
        """A random element: a permutation for each group."""
        return {key: _random(group.shape, generator) for key, group in self.groups.items()}

    def identity(self) -> dict[int, Tensor]:
        """The element that moves nothing."""
        return {key: torch.arange(group.size).expand(group.shape).clone() for key, group in self.groups.items()}

    def without(self, keys: Sequence[int]) -> Symmetries:
        """With some groups fixed; what depends on their index still may."""
        gone = set(keys)
        rest = {key: group for key, group in self.groups.items() if key not in gone}
        places = {name: tuple(_without(p, gone) for p in ps) for name, ps in self.places.items()}
        places = {name: ps for name, ps in places.items() if any(set(p.groups()) for p in ps)}
        sites = [Site(s.call, s.argument, tuple(_without(p, gone) for p in s.places)) for s in self.sites]
        scalings = tuple(scaling for scaling in self.scalings if scaling.group not in gone)
        return Symmetries(rest, places, self.shapes, self.frozen, tuple(sites), scalings)


def _power(power: float) -> str:
    sign, size = ("×" if power > 0 else "/"), abs(power)
    return f"{sign} s" if size == 1 else f"{sign} s^{size:g}"


def _random(shape: tuple[int, ...], generator: torch.Generator) -> Tensor:
    return torch.rand(shape, generator=generator).argsort(-1)


def _without(place: Place, gone: set[int]) -> Place:
    if place.kind == "group" and place.group in gone:
        return Place("fixed", place.size, place.group)
    return Place(place.kind, place.size, place.group, tuple(_without(p, gone) for p in place.parts))
