"""Points of weight space: one flat vector for the trainable parameters of a module."""

from __future__ import annotations

import fnmatch
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass

import torch
from torch import Tensor, nn

Trainable = Callable[[str], bool] | Iterable[str] | None


@dataclass(frozen=True)
class Space:
    """Names and shapes of the parameters that make up a point `theta` of shape `(P,)`.

    The order is that of `named_parameters`, each tensor row-major, tied parameters once (under their first name).

    >>> space = Space.of(nn.Linear(3, 2))
    >>> space.dimension, space.names
    (8, ('weight', 'bias'))
    """

    names: tuple[str, ...]
    shapes: tuple[torch.Size, ...]
    dtype: torch.dtype
    device: torch.device

    @classmethod
    def of(cls, module: nn.Module, trainable: Trainable = None) -> Space:
        """The space of `module`'s trainable parameters.

        Args:
            module: any module.
            trainable: names or glob patterns (`"head.*"`), or a predicate on names; `None` selects every parameter
                with `requires_grad`.

        Raises:
            ValueError: no parameter is selected, or the selected ones differ in dtype or device.
        """
        named = dict(module.named_parameters())
        chosen = {name: named[name] for name in _select(named, trainable)}
        if not chosen:
            raise ValueError(
                f"{type(module).__name__} has no trainable parameter: {len(named)} parameters, none selected by "
                f"{'requires_grad' if trainable is None else f'trainable={trainable!r}'}; "
                "set requires_grad on some, or name them with trainable=[...]"
            )
        kinds = {(p.dtype, p.device) for p in chosen.values()}
        if len(kinds) > 1:
            raise ValueError(
                f"the trainable parameters must share one dtype and device, got {sorted(map(str, kinds))}; "
                "convert the model with .to(...), or select some with trainable=[...]"
            )
        ((dtype, device),) = kinds
        return cls(tuple(chosen), tuple(p.shape for p in chosen.values()), dtype, device)

    @property
    def sizes(self) -> list[int]:
        """Number of entries of each parameter."""
        return [shape.numel() for shape in self.shapes]

    @property
    def dimension(self) -> int:
        """P, the number of entries of a point."""
        return sum(self.sizes)

    def flatten(self, tensors: Mapping[str, Tensor]) -> Tensor:
        """A new point `(P,)` from named tensors (detached).

        Raises:
            ValueError: a name is missing or a shape differs.
        """
        for name, shape in zip(self.names, self.shapes):
            if name not in tensors:
                raise ValueError(f"no tensor named {name!r}; got {sorted(tensors)[:8]}")
            if tensors[name].shape != shape:
                raise ValueError(f"{name!r} has shape {tuple(tensors[name].shape)}, expected {tuple(shape)}")
        flat = [tensors[name].detach().reshape(-1).to(self.device, self.dtype) for name in self.names]
        return torch.cat(flat)

    def unflatten(self, theta: Tensor) -> dict[str, Tensor]:
        """Named views of a point; differentiable with respect to it.

        Raises:
            ValueError: `theta` is not of shape `(P,)`.
        """
        if theta.shape != (self.dimension,):
            raise ValueError(f"theta has shape {tuple(theta.shape)}, expected ({self.dimension},)")
        # One split, not one slice per tensor: the backward of a slice writes a whole vector of P each time.
        parts = theta.split(self.sizes)
        return {name: part.view(shape) for name, part, shape in zip(self.names, parts, self.shapes)}

    def where(self, predicate: Callable[[str, torch.Size], bool]) -> Tensor:
        """A boolean mask `(P,)` of the entries whose parameter's name and shape satisfy `predicate`."""
        pieces = [
            torch.full((shape.numel(),), predicate(name, shape), device=self.device)
            for name, shape in zip(self.names, self.shapes)
        ]
        return torch.cat(pieces)


def _select(named: Mapping[str, nn.Parameter], trainable: Trainable) -> list[str]:
    if trainable is None:
        return [name for name, p in named.items() if p.requires_grad]
    if callable(trainable):
        return [name for name in named if trainable(name)]
    patterns = [trainable] if isinstance(trainable, str) else list(trainable)
    for pattern in patterns:
        if not any(fnmatch.fnmatchcase(name, pattern) for name in named):
            raise ValueError(f"trainable={pattern!r} matches no parameter; the names are {list(named)[:12]}")
    return [name for name in named if any(fnmatch.fnmatchcase(name, pattern) for pattern in patterns)]
