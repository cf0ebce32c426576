"""Points of weight space: one flat vector for the trainable parameters of a module."""

from __future__ import annotations

import fnmatch
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.nn.utils.weight_norm import WeightNorm

NORMS = (nn.LayerNorm, nn.GroupNorm, nn.RMSNorm, nn.modules.batchnorm._NormBase)
Trainable = Callable[[str], bool] | Iterable[str] | None


@dataclass(frozen=True)
class Space:
    """Names and shapes of the parameters that make up a point `theta` of shape `(P,)`.

    The order is that of `named_parameters`, each tensor row-major, tied parameters once (under their first name).

    Attributes:
        names, shapes: of the parameters.
        dtype, device: of all of them.
        weights: the names of those that sparsity and packing count: of two or more dimensions, and neither a bias nor a
            normalisation's.
        transposed: of these, the weights of transposed convolutions, whose outputs are their second axis.
        made_of: of these, what a parametrization makes a weight of.

    >>> space = Space.of(nn.Linear(3, 2))
    >>> space.dimension, space.names
    (8, ('weight', 'bias'))
    """

    names: tuple[str, ...]
    shapes: tuple[torch.Size, ...]
    dtype: torch.dtype
    device: torch.device
    weights: frozenset[str] = frozenset()
    transposed: frozenset[str] = frozenset()
    made_of: frozenset[str] = frozenset()

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
        norms, turned = _within(module, NORMS), _within(module, (nn.modules.conv._ConvTransposeNd,))
        weights = frozenset(n for n, p in chosen.items() if p.ndim >= 2 and n not in norms and not _is_bias(n))
        shapes = tuple(p.shape for p in chosen.values())
        return cls(tuple(chosen), shapes, dtype, device, weights, weights & turned, weights & _made_of(module))

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


def _within(module: nn.Module, kinds: tuple[type[nn.Module], ...]) -> set[str]:
    """Names of the parameters of layers of some kinds."""
    layers = ((prefix, child) for prefix, child in module.named_modules() if isinstance(child, kinds))
    return {f"{prefix}.{name}" if prefix else name for prefix, child in layers for name, _ in child.named_parameters()}


def _is_bias(name: str) -> bool:
    return "bias" in name.rpartition(".")[2].split("_")  # bias, bias_k, in_proj_bias


def _made_of(module: nn.Module) -> set[str]:
    found = {name for name, _ in module.named_parameters() if "parametrizations" in name.split(".")}
    for prefix, child in module.named_modules():  # torch.nn.utils.weight_norm
        olds = [hook.name for hook in child._forward_pre_hooks.values() if isinstance(hook, WeightNorm)]
        found |= {".".join(filter(None, (prefix, f"{old}_{part}"))) for old in olds for part in "gv"}
    return found


def check_plain(space: Space) -> None:
    """Raises `ValueError` where a weight is made of others: zeros in those are not zeros of the weight."""
    for name in sorted(space.made_of):
        new = "parametrizations" in name.split(".")
        remedy = "parametrize.remove_parametrizations(layer, 'weight')" if new else "remove_weight_norm(layer)"
        raise ValueError(
            f"{name!r} is what a parametrization makes a weight of, and its zeros are not the weight's; take it off "
            f"the layer first, torch.nn.utils.{remedy}: the outputs stay"
        )


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
