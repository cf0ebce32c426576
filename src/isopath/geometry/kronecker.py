"""The Kronecker-factored metric: one product of two small matrices per layer."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass, field

import torch
from torch import Tensor

from isopath.geometry.batch import Batch
from isopath.geometry.blocks import Block, Lookup
from isopath.geometry.factors import SecondMoment, Use
from isopath.geometry.sweep import Seen, swept
from isopath.network import Network
from isopath.space import Space


@dataclass(frozen=True)
class Kronecker:
    """G as a block-diagonal of Kronecker products, with a diagonal for what no block covers.

    Linear maps and convolutions get one block each (K-FAC, Martens & Grosse 2015, arXiv 1503.05671; KFC for
    convolutions, Grosse & Martens 2016, arXiv 1602.01407) of the generalised Gauss-Newton matrix; embeddings one whose
    first factor is diagonal. The curvature of the outputs is sampled exactly, by one backward pass for each column of
    its root, largest first, until `coverage` of its trace is seen, or by a few random columns. Scales and shifts of
    normalisation layers, and parameters read by other operators, have a diagonal.
    Batches of several references are merged into one pair of factors per layer: the cost does not grow with their
    number, and the merged product is not the sum of the products.
    """

    space: Space
    blocks: tuple[Block | Lookup, ...]
    diagonal: tuple[tuple[slice, Tensor], ...]  # of the parameters that no block covers

    @classmethod
    def of(
        cls, network: Network, theta: Tensor, batches: Iterable[Batch], coverage: float = 0.99, shrinkage: float = 0.0,
        samples: int | None = None, rank: int | None = None, split: int | None = None,
    ) -> Kronecker:  # fmt: skip
        """Builds the factors in one pass over the rows, which may be streamed.

        Args:
            network: the network.
            theta: the point, `(P,)`.
            batches: weighted reference rows.
            coverage: share of the outputs' curvature (trace of H) to sample; 1 for all columns.
            shrinkage: added to each factor's eigenvalues, in units of their mean.
            samples: sample this many random columns of the outputs' curvature instead of exact ones.
            rank: truncates factors: the directions kept of each, r (i + o) numbers for a layer. By default all of
                sides up to 1,024, and 1,024 of wider ones; a rank as large as the widest side keeps all.
            split: splits factors: the largest side of one, wider ones become block-diagonal.

        Raises:
            ValueError: a number is out of range.
        """
        for name, value in (("samples", samples), ("rank", rank), ("split", split)):
            if value is not None and value < 1:
                raise ValueError(f"{name} must be >= 1, got {value}")
        moments = Moments(network, split, rank)
        for batch in batches:
            seen = swept(network, theta, batch, moments.generator, coverage, samples)
            if seen is not None:
                moments.add(seen)
        return cls(network.space, tuple(moments.blocks(shrinkage, rank)), moments.loose())

    @property
    def dimension(self) -> int:
        """P."""
        return self.space.dimension

    def mv(self, v: Tensor, out: Tensor | None = None) -> Tensor:
        """G v; written into `out`, another contiguous vector, where one is given."""
        return self._apply(v, lambda values: values, out)

    def solve(self, b: Tensor, damping: float, out: Tensor | None = None) -> Tensor:
        """(G + damping I)⁻¹ b, exactly; written into `out`, another contiguous vector, where one is given."""
        if not damping > 0:
            raise ValueError(f"the Kronecker metric needs damping > 0 (G is singular), got {damping}")
        return self._apply(b, lambda values: 1 / (values + damping), out)

    def _apply(self, v: Tensor, function: Callable[[Tensor], Tensor], out: Tensor | None = None) -> Tensor:
        """function(G) v."""
        if v.shape != (self.dimension,):
            raise ValueError(f"a tangent has shape {tuple(v.shape)}, expected ({self.dimension},)")
        v, out = v.contiguous(), torch.empty_like(v, memory_format=torch.contiguous_format) if out is None else out
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
    """Running second moments of one layer, each side in pieces no wider than a split allows."""

    weight: str | None
    bias: str | None
    groups: int
    inputs: list[SecondMoment] = field(default_factory=list)
    outputs: list[SecondMoment] = field(default_factory=list)
    counts: Tensor | None = None  # of an embedding


class Moments:
    """Second moments of every layer, and the diagonal of the rest, over a stream of batches.

    Args:
        network: the network.
        split: the largest side of a factor; `None` for no limit.
        rank: the directions that will be kept of each.
    """

    def __init__(self, network: Network, split: int | None = None, rank: int | None = None) -> None:
        self.space, self.split, self.rank = network.space, split, rank
        ends = torch.tensor([0, *self.space.sizes]).cumsum(0).tolist()
        self.slices = {name: slice(a, b) for name, a, b in zip(self.space.names, ends, ends[1:])}
        self.layers: dict[tuple[str | None, str | None], _Layer] = {}
        self.diagonal: dict[str, Tensor] = {}
        self.generator = torch.Generator().manual_seed(0)
        self.share = 0.0  # total weight of the rows seen: one for each reference

    def add(self, seen: Seen) -> None:
        """One batch."""
        self.share += float(seen.example.sum())
        for use in seen.uses:
            if use.kind != "diagonal":
                self._inputs(use, seen.example)
        for grads, rest in seen.gradients:
            for use, grad in zip(seen.uses, grads):
                if grad is not None:
                    self.outputs(use, grad, seen.count)
            for name, grad in rest.items():
                self.loosely(name, grad.reshape(-1).square())

    def _inputs(self, use: Use, example: Tensor) -> None:
        layer = self.layers.setdefault((use.weight, use.bias), _Layer(use.weight, use.bias, use.groups))
        if use.kind == "lookup":
            counts = self._reads(use, example)
            layer.counts = counts if layer.counts is None else layer.counts + counts
            return
        # Windows, or a time-first layout, put more or other things than examples on the axis: then all count alike
        share = example if use.rows.shape[1] == len(example) else example.mean().expand(use.rows.shape[1])
        self._pieces(layer.inputs, (use.inputs() * share.sqrt()[:, None, None]).flatten(1, 2))

    def _reads(self, use: Use, example: Tensor) -> Tensor:
        """How often each row of an embedding is read by one example, weighted."""
        assert use.weight is not None
        ids = use.rows
        # an embedding of positions is read once for a whole batch
        share = example if len(ids) == len(example) else example.sum().expand(len(ids)) / len(ids)
        counts = example.new_zeros(self.space.shapes[self.space.names.index(use.weight)][0])
        share = share.repeat_interleave(ids.shape[1]) * (ids >= 0).flatten()
        return counts.index_add_(0, ids.flatten().clamp_min(0), share)

    def _pieces(self, moments: list[SecondMoment], rows: Tensor, whole: bool = False) -> None:
        pieces = rows.split(self.split, -1) if self.split and not whole else (rows,)
        if not moments:
            moments += [SecondMoment(self.rank or 0) for _ in pieces]
        for moment, piece in zip(moments, pieces):
            moment.add(piece)

    def outputs(self, use: Use, grad: Tensor, examples: int) -> None:
        """Adds the gradients at what left a layer."""
        if use.kind == "diagonal":
            for name, moment in ((use.weight, grad * use.rows), (use.bias, grad)):
                if name is not None:
                    sums = use.per_example(moment, self.space.shapes[self.space.names.index(name)].numel())
                    self.loosely(name, sums.square().sum(0))
            return
        look = use.kind == "lookup"
        positions = use.rows.shape[1] if look else use.rows.shape[1] * use.rows.shape[2] / examples
        self._pieces(self.layers[use.weight, use.bias].outputs, use.output_rows(grad) / positions**0.5, look)

    def loosely(self, name: str, squares: Tensor) -> None:
        """Adds to the diagonal of a parameter without a block."""
        self.diagonal[name] = self.diagonal.get(name, 0) + squares

    def loose(self) -> tuple[tuple[slice, Tensor], ...]:
        """The diagonal of every parameter that no block covers: zero where no output reads it."""
        covered = {name for layer in self._seen() for name in (layer.weight, layer.bias)}
        device, dtype = self.space.device, self.space.dtype
        return tuple(
            (self.slices[name], self.diagonal.get(name, torch.zeros(size, dtype=dtype, device=device)))
            for name, size in zip(self.space.names, self.space.sizes)
            if name not in covered
        )

    def blocks(self, shrinkage: float, rank: int | None = None) -> list[Block | Lookup]:
        """The layers' factors in their eigenbases."""
        return [block for layer in self._seen() for block in self._blocks(layer, shrinkage, rank)]

    def _seen(self) -> list[_Layer]:
        """The layers that the outputs see: another task's head is run too, and nothing comes back from it."""
        return [layer for layer in self.layers.values() if layer.outputs]

    def _blocks(self, layer: _Layer, shrinkage: float, rank: int | None) -> list[Block | Lookup]:
        weight = self.slices[layer.weight] if layer.weight else None
        bias = self.slices[layer.bias] if layer.bias else None
        outputs = [self._eigen(moment, rank) for moment in layer.outputs]
        if layer.counts is not None:
            assert weight is not None and layer.weight is not None
            values, vectors = self._eigen(layer.outputs[0], rank)
            shape = self.space.shapes[self.space.names.index(layer.weight)]
            counts = layer.counts / self.share
            return [Lookup(weight, (shape[0], shape[1]), counts, values[0], vectors[0])]
        inputs = [self._eigen(moment, rank) for moment in layer.inputs]
        all_outputs, all_inputs = (sum(vectors.shape[1] for _, vectors in side) for side in (outputs, inputs))
        blocks: list[Block | Lookup] = []
        first = 0
        for b, right in outputs:
            start = 0
            for a, left in inputs:
                shape3 = (layer.groups, right.shape[1], left.shape[1])
                window = (first, start, all_outputs, all_inputs) if len(outputs) * len(inputs) > 1 else None
                a_mean = a / self.share  # A is a mean over all rows; B carries the sum over the references
                lows = (
                    shrinkage * a_mean.sum(-1)[:, None, None] / shape3[2],
                    shrinkage * b.sum(-1)[:, None, None] / shape3[1],
                )
                low = lows if shrinkage else None
                blocks.append(Block(weight, bias, shape3, a_mean, left, b, right, low, window=window))
                start += left.shape[1]
            first += right.shape[1]
        return blocks

    def _eigen(self, moment: SecondMoment, rank: int | None) -> tuple[Tensor, Tensor]:
        values, vectors = (t.to(self.space.dtype) for t in moment.eigen())
        return (values, vectors) if rank is None else (values[:, :rank], vectors[..., :rank].contiguous())
