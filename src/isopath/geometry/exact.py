"""The exact metric, by products: Jv and Jᵀu from recorded graphs, or from a fresh forward-mode pass."""

from __future__ import annotations

import contextlib
import re
import warnings
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor
from torch.autograd import forward_ad

from isopath.geometry.batch import Batch
from isopath.geometry.solvers import conjugate_gradients, lanczos
from isopath.network import Network, rows_of

# Cost of one product in gradient evaluations of the same rows, of which a forward pass is a third: Jv and Jᵀu take two
# passes each; forward mode computes the outputs once more, and a batch that is not recorded does so twice.
PRODUCT, AGAIN = 4 / 3, 1 / 3


class Exact:
    """G = Σ w JᵀHJ over reference rows at one point, never formed.

    A single batch keeps the graph of its outputs for Jᵀu, and the graph of u -> Jᵀu, which is linear, for Jv: the
    derivative of uᵀJv in u. Convolutions, whose second derivatives are slow, get Jv in forward mode instead. Several
    batches run one at a time, in forward mode, and are recorded anew, so that memory stays that of one batch.

    Args:
        network: the network.
        theta: the point, `(P,)`.
        batches: weighted reference rows.
        iterations: the most conjugate-gradient steps of `solve`.
        tolerance: relative residual at which `solve` stops.

    Raises:
        NotImplementedError: an operator has neither a forward-mode derivative nor a double backward; it is named.
    """

    def __init__(
        self, network: Network, theta: Tensor, batches: Sequence[Batch], iterations: int = 100, tolerance: float = 1e-6
    ) -> None:
        self.network, self.theta, self.batches = network, theta.detach(), batches
        self.iterations, self.tolerance = iterations, tolerance
        self.forward_mode = True  # until an operator refuses
        self._recorded: tuple[Tensor, Tensor] | None = None
        self._transposed: tuple[Tensor, Tensor] | None = None  # u and Jᵀu with its graph

    @property
    def dimension(self) -> int:
        """P."""
        return self.network.space.dimension

    def mv(self, v: Tensor) -> Tensor:
        """G v, `(P,)`; costs 1.3 to 2 gradient evaluations of the reference."""
        total = torch.zeros_like(self.theta)
        for batch in self.batches:
            point, y = self._record(batch)
            tangent = self._pushforward(batch, v, y, point)
            cotangent = batch.weight.unsqueeze(-1) * batch.divergence.product(y.detach(), tangent)
            total += _pullback(y, point, cotangent, keep=self._recorded is not None)
            again = (self._transposed is None) + (self._recorded is None)
            self.network.count(rows_of(batch.inputs), PRODUCT + AGAIN * again)
        return total

    def push(self, v: Tensor) -> list[Tensor]:
        """Jv of each batch, shaped like its outputs."""
        results = []
        for batch in self.batches:
            point, y = self._record(batch)
            results.append(self._pushforward(batch, v, y, point))
        return results

    def pull(self, cotangents: Sequence[Tensor]) -> Tensor:
        """Σ Jᵀu over the batches, `(P,)`."""
        total = torch.zeros_like(self.theta)
        for batch, u in zip(self.batches, cotangents):
            point, y = self._record(batch)
            total += _pullback(y, point, u, keep=self._recorded is not None)
        return total

    def outputs(self) -> list[Tensor]:
        """f(theta, x) of each batch, detached."""
        return [self._record(batch)[1].detach() for batch in self.batches]

    def solve(self, b: Tensor, damping: float) -> Tensor:
        """(G + damping I)⁻¹ b by conjugate gradients."""
        if not damping > 0:
            raise ValueError(f"the exact metric needs damping > 0 (G is singular), got {damping}; or use kind='gram'")
        return conjugate_gradients(lambda v: self.mv(v) + damping * v, b, self.iterations, self.tolerance)

    def norm(self, v: Tensor) -> Tensor:
        """√(vᵀGv)."""
        return torch.dot(v, self.mv(v)).clamp_min(0).sqrt()

    def spectrum(self, k: int) -> Tensor:
        """The largest `k` eigenvalues, by Lanczos."""
        return lanczos(self.mv, self.dimension, k, self.theta)

    def trace(self) -> float:
        """Hutchinson's estimate of the trace, from 8 seeded sign vectors."""
        generator = torch.Generator().manual_seed(0)
        signs = [torch.randint(2, (self.dimension,), generator=generator).to(self.theta) * 2 - 1 for _ in range(8)]
        return float(sum(torch.dot(s, self.mv(s)) for s in signs) / len(signs))

    def _record(self, batch: Batch) -> tuple[Tensor, Tensor]:
        """The point and the outputs with their graph."""
        if self._recorded is not None:
            return self._recorded
        point = self.theta.clone().requires_grad_(True)
        with torch.enable_grad():
            y = self.network.apply(self.network.space.unflatten(point), batch.inputs, batch.output)
        if len(self.batches) == 1:
            self._recorded = (point, y)
            if y.requires_grad and not any("Convolution" in node.name() for node in _graph(y)):
                with contextlib.suppress(NotImplementedError):  # then forward mode, which may do better
                    self._transposed = _transpose(y, point)
        return point, y

    def _pushforward(self, batch: Batch, v: Tensor, y: Tensor, point: Tensor) -> Tensor:
        if v.shape != self.theta.shape:
            raise ValueError(f"a tangent has shape {tuple(v.shape)}, expected {tuple(self.theta.shape)}")
        if not y.requires_grad:
            return torch.zeros_like(y)
        if self._transposed is not None:
            return _pushed(*self._transposed, v)
        if self.forward_mode:
            try:
                return self._forward_mode(batch, v, y)
            except (NotImplementedError, RuntimeError) as error:
                if "forward" not in str(error).lower():
                    raise
                self.forward_mode = False
        transposed = _transpose(y, point)
        if self._recorded is not None:
            self._transposed = transposed
        return _pushed(*transposed, v)

    def _forward_mode(self, batch: Batch, v: Tensor, y: Tensor) -> Tensor:
        with torch.no_grad(), forward_ad.dual_level():
            dual = forward_ad.make_dual(self.theta, v.to(self.theta))
            out = self.network.apply(self.network.space.unflatten(dual), batch.inputs, batch.output)
            tangent = forward_ad.unpack_dual(out).tangent
        return torch.zeros_like(y) if tangent is None else tangent


def _pullback(y: Tensor, point: Tensor, cotangent: Tensor, keep: bool) -> Tensor:
    if not y.requires_grad:  # no trainable parameter is read: no curvature
        return torch.zeros_like(point)
    (pulled,) = torch.autograd.grad(y, point, cotangent.to(y), retain_graph=keep, allow_unused=True)
    return torch.zeros_like(point) if pulled is None else pulled


def _transpose(y: Tensor, point: Tensor) -> tuple[Tensor, Tensor]:
    """u and Jᵀu, with the graph from the one to the other."""
    u = torch.zeros_like(y, requires_grad=True)
    try:
        with torch.enable_grad(), warnings.catch_warnings():
            warnings.simplefilter("ignore")
            (pulled,) = torch.autograd.grad(y, point, u, create_graph=True, allow_unused=True)
            if pulled is None:
                return u, torch.zeros_like(point)
            dead = [node for node in _graph(pulled) if node.name().endswith("Error")]
            if dead:  # a backward that is differentiable only once cuts the graph without a word
                custom = [
                    n.name()  # type: ignore[attr-defined]
                    for n in _graph(y)
                    if isinstance(n, torch.autograd.function.BackwardCFunction)
                ]
                raise RuntimeError(
                    f"derivative for {custom[0] if custom else 'a custom function'} is differentiable once"
                )
            _pushed(u, pulled, torch.zeros_like(point))  # some operators say so only when asked
    except RuntimeError as error:
        found = re.search(r"derivative for (\S+)|(\w+Backward\w*)", str(error))
        operator = next(g for g in found.groups() if g) if found else "unknown"
        raise NotImplementedError(
            f"the operator {operator} has neither a forward-mode derivative nor a double backward ({error}); "
            'use the metric "kronecker", freeze the parameters before it with trainable=, or replace the operator'
        ) from error
    return u, pulled


def _pushed(u: Tensor, pulled: Tensor, v: Tensor) -> Tensor:
    """Jv as the derivative of uᵀJv in u."""
    if not pulled.requires_grad:
        return torch.zeros_like(u)
    (pushed,) = torch.autograd.grad(pulled, u, v.to(pulled), retain_graph=True, allow_unused=True)
    return torch.zeros_like(u) if pushed is None else pushed.detach()


def _graph(tensor: Tensor) -> list[Any]:
    """Every node of the backward graph."""
    seen: dict[Any, None] = {}
    stack = [tensor.grad_fn]
    while stack:
        node = stack.pop()
        if node is not None and node not in seen:
            seen[node] = None
            stack.extend(following for following, _ in node.next_functions)
    return list(seen)
