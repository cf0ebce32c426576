"""The weights of a module as units: what one code makes."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from isopath.space import Space


@dataclass(frozen=True)
class Sheet:
    """The units of one layer, of equal width: each row of its parameters, side by side.

    Attributes:
        names: of the parameters, all with as many rows.
        units: how many rows.
        widths: of each parameter's row.
        scale: standard deviation of the weights of a fresh layer, √(2 / inputs) (He et al. 2015, arXiv 1502.01852).
        plain: whether no parameter has inputs (scales and shifts of a normalisation): their own values are the mean.
    """

    names: tuple[str, ...]
    units: int
    widths: tuple[int, ...]
    scale: float
    plain: bool

    @property
    def width(self) -> int:
        """Entries of a unit."""
        return sum(self.widths)


@dataclass(frozen=True)
class Layout:
    """How the points of a space are put together from units.

    A unit is an index of the first axis of a layer's parameters: for linear layers and convolutions what leads to one
    output, a row of the weight with the entry of the bias, a filter; for a table one embedding, or one position where
    the first axis is 1. Parameters of one module with the same first axis belong to the same units.

    Attributes:
        space: of the points.
        sheets: one for each layer.
    """

    space: Space
    sheets: tuple[Sheet, ...]

    @classmethod
    def of(cls, space: Space) -> Layout:
        """The layout of a space."""
        members: dict[tuple[str, int], list[str]] = {}
        shapes = dict(zip(space.names, space.shapes))
        for name, shape in shapes.items():
            members.setdefault((name.rpartition(".")[0], _units(shape)), []).append(name)
        sheets = []
        for (_, units), names in members.items():
            widths = tuple(shapes[name].numel() // max(1, units) for name in names)
            inputs = max((w for w, name in zip(widths, names) if len(shapes[name]) > 1), default=0)
            sheets.append(Sheet(tuple(names), units, widths, math.sqrt(2 / inputs) if inputs else 0.1, not inputs))
        return cls(space, tuple(sheets))

    @property
    def units(self) -> int:
        """How many there are in all."""
        return sum(sheet.units for sheet in self.sheets)

    def joined(self, rows: Sequence[Tensor]) -> Tensor:
        """Points `(n, P)` from the units of each sheet, `(n, units, width)`."""
        parts = {
            name: piece.flatten(1)
            for sheet, block in zip(self.sheets, rows)
            for name, piece in zip(sheet.names, block.split(sheet.widths, -1))
        }
        return torch.cat([parts[name] for name in self.space.names], 1)

    def taken(self, thetas: Tensor) -> list[Tensor]:
        """The units of each sheet, `(n, units, width)`, from points `(n, P)`."""
        pieces = dict(zip(self.space.names, thetas.split(self.space.sizes, 1)))
        return [
            torch.cat([pieces[name].unflatten(1, (sheet.units, -1)) for name in sheet.names], 2)
            for sheet in self.sheets
        ]

    def evened(self, thetas: Tensor) -> Tensor:
        """Points `(n, P)` in which every layer of every network has units of mean square norm one; differentiable.

        Layers count by their units then, not by how large their weights happen to be: what is left of the scale of the
        last layer is how sure a network is, not another way to be right.
        """
        rows = self.taken(thetas)
        norms = [block.square().sum(-1).mean(-1).clamp_min(1e-24).sqrt() for block in rows]
        return self.joined([block / norm[:, None, None] for block, norm in zip(rows, norms)])


def _units(shape: torch.Size) -> int:
    """The first axis, or the second of a table of positions `(1, T, C)`."""
    if len(shape) == 3 and shape[0] == 1:
        return shape[1]
    return shape[0] if shape else 1
