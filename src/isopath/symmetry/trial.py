"""A module in float64 with nothing left as it was initialised: what symmetries are tried on."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, nn
from torch.func import functional_call
from torch.utils._pytree import tree_leaves, tree_map

from isopath.network import _arguments as arguments_of
from isopath.network import copied, plain_kernels

EXACT = 1e-9  # largest relative difference of outputs in float64 for an element to count as a symmetry


class Trial:
    """The function of parameters and buffers by name, on given inputs, in float64 and eval mode.

    Args:
        model: any module; it is not modified.
        example: its inputs.
    """

    def __init__(self, model: nn.Module, example: Any) -> None:
        self.module = copied(model).eval().double()
        self.arguments = tree_map(
            lambda t: t.double() if isinstance(t, Tensor) and t.is_floating_point() else t, arguments_of(example)
        )

    def point(self, seed: int, fresh: bool = False) -> dict[str, Tensor]:
        """Parameters and buffers, with biases, scales and statistics drawn at random.

        Args:
            seed: of what is drawn.
            fresh: draws the parameters of two or more dimensions too, so that activations are of order one: between
                those of any size, effects would get lost in rounding.
        """
        generator, state = torch.Generator().manual_seed(seed), {}
        for name, tensor in [*self.module.named_parameters(), *self.module.named_buffers()]:
            value, own = tensor.detach(), isinstance(tensor, nn.Parameter)
            if value.is_floating_point() and value.ndim <= 1 and (own or "running" in name):
                noise = torch.rand(value.shape, generator=generator, dtype=value.dtype).to(value.device)
                value = value + noise + (0.5 if "var" in name else -0.5)
            elif fresh and own and value.is_floating_point():
                noise = torch.rand(value.shape, generator=generator, dtype=value.dtype)  # a fifth of the time of randn
                value = noise.sub_(0.5).mul_((12 / max(1, value[0].numel())) ** 0.5).to(value.device)
            state[name] = value
        return state

    def __call__(self, tensors: Mapping[str, Tensor]) -> list[Tensor]:
        """The outputs."""
        return self.of(self.module, tensors)

    def of(self, module: nn.Module, tensors: Mapping[str, Tensor] | None = None) -> list[Tensor]:
        """The outputs of another module on the same inputs, with some of its tensors replaced."""
        args, kwargs = self.arguments
        with plain_kernels(recurrent=True):
            return [t.double() for t in tensors_in(functional_call(module, dict(tensors or {}), args, kwargs))]

    def gradient(self, seed: int) -> tuple[dict[str, Tensor], dict[str, Tensor]]:
        """A random point, and there the gradient of a random combination of outputs, parameters alone."""
        state = self.point(seed, fresh=True)
        names = {name for name, _ in self.module.named_parameters()}  # running statistics have no derivative
        moving = {n: t.requires_grad_(True) for n, t in state.items() if n in names and t.is_floating_point()}
        generator = torch.Generator().manual_seed(seed)
        with torch.enable_grad():
            total = torch.zeros((), dtype=torch.float64)
            for out in self({**state, **moving}):
                if out.requires_grad:
                    weights = torch.randn(out.shape, generator=generator, dtype=out.dtype).to(out.device)
                    total = total.to(out.device) + (out.nan_to_num() * weights).sum()
            if not total.requires_grad:
                return {}, {}
            found = torch.autograd.grad(total, list(moving.values()), allow_unused=True)
        return {n: t.detach() for n, t in moving.items()}, {n: g for n, g in zip(moving, found) if g is not None}

    def same(self, a: Mapping[str, Tensor], b: Mapping[str, Tensor]) -> bool:
        """Whether two points have the same outputs."""
        with torch.no_grad():
            return alike(self(a), self(b))


def alike(some: list[Tensor], others: list[Tensor]) -> bool:
    """Whether outputs are the same but for rounding; what is not finite must be so in both."""
    return bool(some) and len(some) == len(others) and all(_close(a, b) for a, b in zip(some, others))


def _close(a: Tensor, b: Tensor) -> bool:
    finite = b.isfinite()
    if a.shape != b.shape or not torch.equal(finite, a.isfinite()):
        return False
    if not torch.equal(a[~finite].nan_to_num(nan=0.5), b[~finite].nan_to_num(nan=0.5)):
        return False
    scale = float(b[finite].abs().max().clamp_min(1e-300)) if bool(finite.any()) else 1.0
    return torch.allclose(a[finite], b[finite], rtol=EXACT, atol=EXACT * scale)


def tensors_in(value: Any) -> list[Tensor]:
    """The tensors of what a module returned."""
    if isinstance(value, Tensor):
        return [value]
    if isinstance(value, Mapping):
        value = list(value.values())
    if isinstance(value, (tuple, list)):
        return [t for v in value for t in tensors_in(v)]
    if hasattr(value, "__dict__"):
        return [t for v in vars(value).values() for t in tensors_in(v)]
    return [t for t in tree_leaves(value) if isinstance(t, Tensor)]
