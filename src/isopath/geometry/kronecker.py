"""The Kronecker-factored metric: one product of two small matrices per layer."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

import torch
from torch import Tensor

from isopath.geometry.batch import Batch
from isopath.geometry.factors import Observer, SecondMoment, Use
from isopath.network import Network, rows_of
from isopath.space import Space

BACKWARD = 2 / 3


@dataclass(frozen=True)
class Block:
    """B ⊗ A on one layer's weight `(groups, o, i)`, its bias an extra input, in the eigenbases of both factors.

    A = E[aaᵀ] over the layer's inputs, B = E[ggᵀ] over gradients at its outputs. Only directions with curvature are
    stored, so a wide layer costs the number of reference rows times its width, not its width squared.
    """

    weight: slice | None
    bias: slice | None
    shape: tuple[int, int, int]  # groups, outputs, inputs (bias included)
    input_values: Tensor
    input_vectors: Tensor  # (groups, i, ra)
    output_values: Tensor
    output_vectors: Tensor  # (groups, o, rb)
    shrinkage: tuple[Tensor, Tensor]  # of the inputs' factor and the outputs', (groups, 1, 1) each

    @property
    def eigenvalues(self) -> Tensor:
        """Products of the factors' eigenvalues along stored directions, shrinkage included, flat."""
        low_a, low_b = self.shrinkage
        return ((self.output_values.unsqueeze(-1) + low_b) * (self.input_values.unsqueeze(-2) + low_a)).reshape(-1)

    @property
    def trace(self) -> Tensor:
        """tr(B + bI) tr(A + aI), summed over the groups."""
        (low_a, low_b), (_, outputs, inputs) = self.shrinkage, self.shape
        output = self.output_values.sum(-1) + outputs * low_b.flatten()
        return (output * (self.input_values.sum(-1) + inputs * low_a.flatten())).sum()

    def _corners(self, function: Callable[[Tensor], Tensor]) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        """function((B + bI) ⊗ (A + aI)) on the grid {stored, rest} x {stored, rest}, each less what it rests on.

        Off the stored directions a factor's eigenvalue is its shrinkage alone, so nothing of size o² or i² appears.
        """
        low_a, low_b = self.shrinkage
        a, b = self.input_values.unsqueeze(-2) + low_a, self.output_values.unsqueeze(-1) + low_b
        rest = function(low_a * low_b)
        along_a, along_b = function(a * low_b) - rest, function(b * low_a) - rest
        return rest, along_a, along_b, function(a * b) - rest - along_a - along_b

    def _parts(self, v: Tensor) -> list[tuple[Tensor, Tensor]]:
        """Weight and bias as views `(groups, o, ·)` of `v`, each with its rows of the input eigenvectors."""
        (groups, outputs, _), parts = self.shape, []
        if self.weight is not None:
            width = self.shape[2] - (self.bias is not None)
            parts.append((v[self.weight].view(groups, outputs, width), self.input_vectors[:, :width]))
        if self.bias is not None:
            parts.append((v[self.bias].view(groups, outputs, 1), self.input_vectors[:, -1:]))
        return parts

    def apply(self, v: Tensor, out: Tensor, function: Callable[[Tensor], Tensor]) -> None:
        """Writes function((B + bI) ⊗ (A + aI)) of this layer's part of `v` into `out`, `(P,)`, without a copy of it."""
        rest, along_a, along_b, along_both = self._corners(function)
        parts, vectors = self._parts(v), self.output_vectors
        right = sum(part @ columns for part, columns in parts)
        mixed = vectors @ (along_both * (vectors.mT @ right)) + along_a * right
        for (part, columns), (written, _) in zip(parts, self._parts(out)):
            torch.mul(part, rest, out=written)
            written.baddbmm_(vectors, along_b * (vectors.mT @ part)).baddbmm_(mixed, columns.mT)

    def quadratic(self, v: Tensor) -> Tensor:
        """vᵀ((B + bI) ⊗ (A + aI))v on this layer's part, a scalar."""
        rest, along_a, along_b, along_both = self._corners(lambda values: values)
        parts, vectors = self._parts(v), self.output_vectors
        right = sum(part @ columns for part, columns in parts)
        total = (
            (along_a * right.square()).sum()  # type: ignore[union-attr]
            + (along_both * (vectors.mT @ right).square()).sum()
        )
        for part, _ in parts:
            total = total + (rest.flatten() * torch.linalg.vector_norm(part, dim=(1, 2)).square()).sum()
            total = total + (along_b * (vectors.mT @ part).square()).sum()
        return total


@dataclass(frozen=True)
class Kronecker:
    """G as a block-diagonal of Kronecker products, with a diagonal for what no block covers.

    Linear maps and convolutions get one block each (K-FAC, Martens & Grosse 2015, arXiv 1503.05671; KFC for
    convolutions, Grosse & Martens 2016, arXiv 1602.01407) of the generalised Gauss-Newton matrix. The curvature of the
    outputs is sampled exactly, by one backward pass for each column of its root, largest first, until `coverage` of its
    trace is seen. Scales and shifts of normalisation layers, and parameters read by other operators, have a diagonal.
    Batches of several references are merged into one pair of factors per layer: the cost does not grow with their
    number, and the merged product is not the sum of the products.
    """

    space: Space
    blocks: tuple[Block, ...]
    diagonal: tuple[tuple[slice, Tensor], ...]  # of the parameters that no block covers

    @classmethod
    def of(
        cls, network: Network, theta: Tensor, batches: Sequence[Batch], coverage: float = 0.99, shrinkage: float = 0.0
    ) -> Kronecker:
        """Builds the factors in one pass over the rows.

        Args:
            network: the network.
            theta: the point, `(P,)`.
            batches: weighted reference rows.
            coverage: share of the outputs' curvature (trace of H) to sample; 1 for all columns.
        """
        moments = _Moments(network)
        for batch in batches:
            moments.add(theta, batch, coverage)
        return cls(network.space, tuple(moments.blocks(shrinkage)), moments.loose())

    @property
    def dimension(self) -> int:
        """P."""
        return self.space.dimension

    def mv(self, v: Tensor) -> Tensor:
        """G v."""
        return self._apply(v, lambda values: values)

    def solve(self, b: Tensor, damping: float) -> Tensor:
        """(G + damping I)⁻¹ b, exactly."""
        if not damping > 0:
            raise ValueError(f"the Kronecker metric needs damping > 0 (G is singular), got {damping}")
        return self._apply(b, lambda values: 1 / (values + damping))

    def _apply(self, v: Tensor, function: Callable[[Tensor], Tensor]) -> Tensor:
        """function(G) v."""
        if v.shape != (self.dimension,):
            raise ValueError(f"a tangent has shape {tuple(v.shape)}, expected ({self.dimension},)")
        v, out = v.contiguous(), torch.empty_like(v, memory_format=torch.contiguous_format)
        for place, values in self.diagonal:
            torch.mul(v[place], function(values), out=out[place])
        for block in self.blocks:
            block.apply(v, out, function)
        return out

    def norm(self, v: Tensor) -> Tensor:
        """√(vᵀGv), without a vector of P."""
        v, total = v.contiguous(), torch.zeros((), dtype=v.dtype, device=v.device)
        for place, values in self.diagonal:
            total = total + (values * v[place].square()).sum()
        for block in self.blocks:
            total = total + block.quadratic(v)
        return total.clamp_min(0).sqrt()

    def spectrum(self, k: int) -> Tensor:
        """The largest eigenvalues of the approximation, descending."""
        values = [block.eigenvalues for block in self.blocks]
        every = torch.cat([*values, *(found[found > 0] for _, found in self.diagonal)])
        found = every.topk(min(k, len(every))).values
        return torch.nn.functional.pad(found, (0, min(k, self.dimension) - len(found)))

    def trace(self) -> float:
        """The sum of the eigenvalues."""
        return float(sum(block.trace for block in self.blocks) + sum(values.sum() for _, values in self.diagonal))


@dataclass
class _Layer:
    """Running second moments of one layer."""

    weight: str | None
    bias: str | None
    groups: int
    inputs: SecondMoment = field(default_factory=SecondMoment)
    outputs: SecondMoment = field(default_factory=SecondMoment)


class _Moments:
    """Second moments of every layer, and the diagonal of the rest, over a stream of batches."""

    def __init__(self, network: Network) -> None:
        self.network = network
        self.space = network.space
        ends = torch.tensor([0, *self.space.sizes]).cumsum(0).tolist()
        self.slices = {name: slice(a, b) for name, a, b in zip(self.space.names, ends, ends[1:])}
        self.layers: dict[tuple[str | None, str | None], _Layer] = {}
        self.diagonal: dict[str, Tensor] = {}
        self.generator = torch.Generator().manual_seed(0)
        self.share = 0.0  # total weight of the rows seen: one for each reference

    def add(self, theta: Tensor, batch: Batch, coverage: float) -> None:
        """One batch: a forward pass, and a backward pass for each column of the outputs' curvature."""
        point = theta.detach().requires_grad_(True)
        parameters = self.space.unflatten(point)
        with torch.enable_grad(), Observer(parameters) as observer:
            y = self.network.apply(parameters, batch.inputs, batch.output)
        if not y.requires_grad:
            return
        uses, rest = self._sort(observer, parameters)
        cotangents = _columns(batch, y.detach(), coverage)
        self.network.count(rows_of(batch.inputs), 1 + BACKWARD * (len(cotangents) - 1))
        example = batch.weight.reshape(len(batch.weight), -1).sum(1)
        self.share += float(example.sum())
        for use in uses:
            if use.kind == "kronecker":
                self._inputs(use, example)
        targets = [use.out for use in uses] + [parameters[name] for name in rest]
        for i, cotangent in enumerate(cotangents):
            # One sign per example makes the square of a summed gradient an unbiased estimate of the sum of squares,
            # which is all that the parameters without a layer get; a layer's own moments do not see the signs.
            signs = torch.randint(2, (y.shape[0],), generator=self.generator).to(y) * 2 - 1
            signed = cotangent * signs.reshape(-1, *[1] * (y.ndim - 1))
            last = i == len(cotangents) - 1
            grads = torch.autograd.grad(y, targets, signed, retain_graph=not last, allow_unused=True)
            for use, grad in zip(uses, grads):
                if grad is not None:
                    self._outputs(use, grad, len(y))
            for name, grad in zip(rest, grads[len(uses) :]):
                if grad is not None:
                    self._add(name, grad.reshape(-1).square())

    def _sort(self, observer: Observer, parameters: dict[str, Tensor]) -> tuple[list[Use], list[str]]:
        """The calls that get a block of their own, and the parameters that none of them covers."""
        shared = set(observer.elsewhere)
        partner: dict[str, tuple[str | None, str | None]] = {}
        for use in observer.uses:  # a parameter with two different partners has no single block
            for name in (use.weight, use.bias):
                if name is not None and partner.setdefault(name, (use.weight, use.bias)) != (use.weight, use.bias):
                    shared |= {*partner[name], use.weight, use.bias} - {None}  # type: ignore[arg-type]
        uses = [use for use in observer.uses if not {use.weight, use.bias} & shared]
        covered = {name for use in uses for name in (use.weight, use.bias)}
        return uses, [name for name in parameters if name not in covered]

    def _inputs(self, use: Use, example: Tensor) -> None:
        layer = self.layers.setdefault((use.weight, use.bias), _Layer(use.weight, use.bias, use.groups))
        pieces = [use.rows] if use.weight is not None else []
        if use.bias is not None:
            pieces.append(torch.ones_like(use.rows[..., :1]))
        rows = torch.cat(pieces, -1)
        # Windows, or a time-first layout, put more or other things than examples on the axis: then all count alike
        share = example if rows.shape[1] == len(example) else example.mean().expand(rows.shape[1])
        layer.inputs.add((rows * share.sqrt()[:, None, None]).flatten(1, 2))

    def _outputs(self, use: Use, grad: Tensor, examples: int) -> None:
        if use.kind == "kronecker":
            positions = use.rows.shape[1] * use.rows.shape[2] / examples
            self.layers[use.weight, use.bias].outputs.add(use.output_rows(grad) / positions**0.5)
            return
        for name, moment in ((use.weight, grad * use.rows), (use.bias, grad)):
            if name is not None:
                sums = use.per_example(moment, self.space.shapes[self.space.names.index(name)].numel())
                self._add(name, sums.square().sum(0))

    def _add(self, name: str, squares: Tensor) -> None:
        """Adds to the diagonal of a parameter without a block."""
        self.diagonal[name] = self.diagonal.get(name, 0) + squares

    def loose(self) -> tuple[tuple[slice, Tensor], ...]:
        """The diagonal of every parameter that no block covers: zero where no output reads it."""
        covered = {name for layer in self.layers.values() for name in (layer.weight, layer.bias)}
        device, dtype = self.space.device, self.space.dtype
        return tuple(
            (self.slices[name], self.diagonal.get(name, torch.zeros(size, dtype=dtype, device=device)))
            for name, size in zip(self.space.names, self.space.sizes)
            if name not in covered
        )

    def blocks(self, shrinkage: float) -> list[Block]:
        """The layers' factors in their eigenbases."""
        return [self._block(layer, shrinkage) for layer in self.layers.values()]

    def _block(self, layer: _Layer, shrinkage: float) -> Block:
        dtype = self.space.dtype
        input_values, input_vectors = (t.to(dtype) for t in layer.inputs.eigen())
        input_values = input_values / self.share  # A is a mean over all rows; B carries the sum over the references
        output_values, output_vectors = (t.to(dtype) for t in layer.outputs.eigen())
        weight = self.slices[layer.weight] if layer.weight else None
        bias = self.slices[layer.bias] if layer.bias else None
        shape = (layer.groups, output_vectors.shape[1], input_vectors.shape[1])
        lows = (
            shrinkage * values.sum(-1)[:, None, None] / width
            for values, width in ((input_values, shape[2]), (output_values, shape[1]))
        )
        return Block(
            weight, bias, shape, input_values, input_vectors, output_values, output_vectors,
            tuple(lows),  # type: ignore[arg-type]
        )


def _columns(batch: Batch, y: Tensor, coverage: float) -> list[Tensor]:
    """Cotangents whose outer products sum to w H at each row, the largest of every row first."""
    root = batch.divergence.root(y) * batch.weight.clamp_min(0).sqrt()[..., None, None]
    size = root.square().sum(-1)
    order = size.argsort(-1, descending=True)
    seen = size.gather(-1, order).reshape(-1, size.shape[-1]).double().sum(0).cumsum(0)
    count = int((seen < coverage * seen[-1]).sum()) + 1
    index = order[..., : min(count, root.shape[-2])].unsqueeze(-1).expand(*order.shape[:-1], -1, root.shape[-1])
    return list(root.gather(-2, index).unbind(-2))
