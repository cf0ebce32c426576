"""Tensors taken apart along the groups that their axes are made of."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from torch import Tensor

from isopath.symmetry.group import Place


@dataclass(frozen=True)
class Cell:
    """A part of a tensor as a view with an axis for each group and fixed index.

    Attributes:
        view: the part.
        keys: the group (or fixed parent) of each axis, -1 for none.
        origin: the tensor's axis that each comes from.
    """

    view: Tensor
    keys: tuple[int, ...]
    origin: tuple[int, ...]

    def occurrences(self, key: int) -> list[int]:
        """The axes of a group."""
        return [k for k, found in enumerate(self.keys) if found == key]

    def beside(self, at: int, parents: Sequence[int]) -> list[int]:
        """The axes on which the parents of the group on axis `at` have their index: its own axis', else another's."""
        found = []
        for parent in parents:
            axes = self.occurrences(parent)
            own = [k for k in axes if self.origin[k] == self.origin[at]]
            found.append((own or axes)[0])
        return found

    def rows(self, at: Sequence[int], averaged: Sequence[int] = ()) -> Tensor:
        """The axes `at` in front, all others in one, `(*sizes, rest)`, after the mean over some."""
        view = self.view.mean(list(averaged), keepdim=True) if averaged else self.view
        if len(at) == view.ndim:
            return view.permute(*at).unsqueeze(-1)
        return view.movedim(list(at), list(range(len(at)))).flatten(len(at))


def cells(tensor: Tensor, places: Sequence[Place]) -> Iterator[Cell]:
    """The parts of a tensor: one for each choice of a term where axes are sums."""
    yield from _apart(tensor, list(places), list(range(tensor.ndim)))


def _apart(view: Tensor, places: list[Place], origin: list[int]) -> Iterator[Cell]:
    for k, place in enumerate(places):
        if place.kind == "product":
            sizes, parts = [part.size for part in place.parts], list(place.parts)
            free = [j for j, part in enumerate(parts) if part.group < 0]
            if free and math.prod(sizes) != view.shape[k]:  # another batch size than the example's
                sizes[free[0]] = -1
            inner, origins = view.unflatten(k, sizes), [origin[k]] * len(sizes)
            yield from _apart(inner, places[:k] + parts + places[k + 1 :], origin[:k] + origins + origin[k + 1 :])
            return
        if place.kind == "sum":
            start = 0
            for part in place.parts:
                yield from _apart(view.narrow(k, start, part.size), [*places[:k], part, *places[k + 1 :]], origin)
                start += part.size
            return
    yield Cell(view, tuple(place.group for place in places), tuple(origin))
