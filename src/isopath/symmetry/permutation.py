"""A permutation of units, applied to modules and to their tensors."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TypeVar, overload

import torch
from torch import Tensor, nn

from isopath.network import copied
from isopath.storage import load_tensors, save_tensors
from isopath.symmetry.group import Symmetries

Module = TypeVar("Module", bound=nn.Module)


@dataclass(frozen=True, eq=False)
class Permutation:
    """An element P of a module's symmetries: f(Pθ) = f(θ).

    The unit at a new index i comes from index `moved[g][i]`; where the permutation of a group depends on its parents'
    new index h, from `moved[g][h, i]` within the parent's old one.

    Args:
        symmetries: the groups that are permuted.
        moved: an index tensor `(*parents, n)` for each group.
    """

    symmetries: Symmetries
    moved: Mapping[int, Tensor]

    def __post_init__(self) -> None:
        for key, group in self.symmetries.groups.items():
            index = self.moved.get(key)
            if index is None or tuple(index.shape) != group.shape:
                got = None if index is None else tuple(index.shape)
                raise ValueError(f"group {key} needs an index of shape {group.shape}, got {got}: for another model?")
            if not torch.equal(index.sort(-1).values, torch.arange(group.size).expand(group.shape)):
                raise ValueError(f"the index of group {key} is no permutation of {group.size} units")

    @classmethod
    def identity(cls, symmetries: Symmetries) -> Permutation:
        """The one that moves nothing."""
        return cls(symmetries, symmetries.identity())

    @classmethod
    def random(cls, symmetries: Symmetries, generator: torch.Generator) -> Permutation:
        """One drawn evenly."""
        return cls(symmetries, symmetries.random(generator))

    @overload
    def __call__(self, target: Module) -> Module: ...
    @overload
    def __call__(self, target: Mapping[str, Tensor]) -> dict[str, Tensor]: ...
    def __call__(self, target):  # type: ignore[no-untyped-def]
        """A permuted copy of a module, or of a mapping of its parameters and buffers.

        Raises:
            ValueError: a tensor is missing, or has another shape.
        """
        if not isinstance(target, nn.Module):
            return self.symmetries.applied(target, self.moved)
        module = copied(target)
        named = {**dict(module.named_parameters()), **dict(module.named_buffers())}
        missing = [name for name in self.symmetries.places if name not in named]
        if missing:
            raise ValueError(f"{type(target).__name__} has no {missing[0]!r}: the permutation is of another model")
        with torch.no_grad():
            tensors = {name: named[name].detach() for name in self.symmetries.places}
            for name, value in self.symmetries.applied(tensors, self.moved).items():
                named[name].copy_(value)
        return module

    def apply(self, model: Module) -> Module:
        """A permuted copy of a module, the same function: `P.apply(model)` is `P(model)`."""
        return self(model)

    def __matmul__(self, other: Permutation) -> Permutation:
        """`(P @ Q)(x) = P(Q(x))`."""
        if self.symmetries.groups.keys() != other.symmetries.groups.keys():
            raise ValueError("the permutations are of different models: their groups differ")
        return Permutation(
            self.symmetries,
            {key: self._rows(other.moved[key], key).gather(-1, index) for key, index in self.moved.items()},
        )

    def inverse(self) -> Permutation:
        """P⁻¹."""
        inverses = {key: index.argsort(-1) for key, index in self.moved.items()}
        back = Permutation(self.symmetries, inverses)
        return Permutation(self.symmetries, {key: back._rows(index, key) for key, index in inverses.items()})

    def _rows(self, index: Tensor, key: int) -> Tensor:
        """`index[h]` at the old parents' indices that come to each new h."""
        parents = self.symmetries.groups[key].parents
        shape = index.shape[:-1]
        if not parents:
            return index
        grid = list(torch.meshgrid(*[torch.arange(size) for size in shape], indexing="ij"))
        sources = []
        for parent, at in zip(parents, grid):
            moved = self.moved.get(parent)
            if moved is None:  # a fixed axis
                sources.append(at)
                continue
            above = [grid[parents.index(p)] for p in self.symmetries.groups[parent].parents]
            sources.append(moved[(*above, at)])
        return index[tuple(sources)]

    @property
    def displaced(self) -> dict[int, int]:
        """How many units of each group change place."""
        return {key: int((index != torch.arange(index.shape[-1])).sum()) for key, index in self.moved.items()}

    def __eq__(self, other: object) -> bool:
        if not isinstance(other, Permutation) or self.moved.keys() != other.moved.keys():
            return NotImplemented
        return all(torch.equal(index, other.moved[key]) for key, index in self.moved.items())

    __hash__ = None  # type: ignore[assignment]

    def __str__(self) -> str:
        lines = []
        for key, count in self.displaced.items():
            group = self.symmetries.groups[key]
            name = group.members[0][0] if group.members else "?"
            lines.append(
                f"  {key}: {count} of {group.units} units change place ({name} axis {group.members[0][1]}, ...)"
            )
        return "\n".join([f"{sum(self.displaced.values())} of {self.symmetries.units} units change place", *lines])

    def save(self, path: str | Path) -> None:
        """Writes it as safetensors."""
        save_tensors(Path(path), {str(key): index for key, index in self.moved.items()})

    @classmethod
    def load(cls, path: str | Path, symmetries: Symmetries) -> Permutation:
        """Reads what `save` wrote.

        Raises:
            ValueError: the file is for another model.
        """
        tensors, _ = load_tensors(Path(path))
        return cls(symmetries, {int(key): index for key, index in tensors.items()})


def is_identity(index: Tensor) -> bool:
    """Whether nothing changes place."""
    return torch.equal(index, torch.arange(index.shape[-1]).expand_as(index))
