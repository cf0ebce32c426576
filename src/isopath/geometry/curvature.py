"""A Kronecker-factored metric by the names of parameters: what is kept of a task where no data are."""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace

import torch
from torch import Tensor

from isopath.geometry.batch import Batch
from isopath.geometry.blocks import Block, Lookup, Window
from isopath.geometry.diagonal import Diagonal
from isopath.geometry.ekfac import ekfac
from isopath.geometry.factors import SecondMoment
from isopath.geometry.kronecker import Kronecker
from isopath.network import Network
from isopath.space import Space

PARTS = ("input_values", "input_vectors", "output_values", "output_vectors", "corrected", "counts")


@dataclass(frozen=True, eq=False)
class Factors:
    """Both factors of one layer in their eigenbases, largest eigenvalue first.

    Attributes:
        weight, bias: names, `None` where there is none.
        groups: of a convolution.
        tensors: `input_values` `(groups, ra)`, `input_vectors` `(groups, i, ra)`, `output_values`, `output_vectors`,
            and `corrected` `(groups, rb, ra)` where eigenvalues are measured; of an embedding `counts` `(V,)`, and the
            outputs' without groups. `output_floor` `(groups,)`, if any, is added to all eigenvalues of the outputs'.
        window: of a factor that is split.
    """

    weight: str | None
    bias: str | None
    groups: int
    tensors: Mapping[str, Tensor]
    window: Window | None = None

    @property
    def lookup(self) -> bool:
        """Whether it is of an embedding."""
        return "counts" in self.tensors

    @property
    def outputs(self) -> int:
        """Outputs per group, or an embedding's rows: what may have grown since."""
        if self.lookup:
            return len(self.tensors["counts"])
        return self.tensors["output_vectors"].shape[1] if self.window is None else self.window[2]

    @property
    def key(self) -> tuple[str | None, str | None, int, int]:
        """What it belongs to."""
        return (self.weight, self.bias, *(self.window or (0, 0))[:2])

    def root(self, side: str) -> Tensor:
        """Rows `(groups, r, d)` whose second moment is the factor."""
        values, vectors = self.tensors[f"{side}_values"], self.tensors[f"{side}_vectors"]
        rows = values.clamp_min(0).sqrt().unsqueeze(-1) * vectors.mT
        return rows.unsqueeze(0) if self.lookup else rows

    def floored(self, share: float) -> Factors:
        """With a share of the mean eigenvalue added to the outputs' factor, B + (share tr B / o) I."""
        values, outputs = self.tensors["output_values"], self.tensors["output_vectors"].shape[-2]
        floor = share * values.sum(-1).reshape(-1) / outputs
        return replace(self, tensors={**self.tensors, "output_floor": floor + self.tensors.get("output_floor", 0)})

    def bare(self) -> Factors:
        """Without what was added."""
        return replace(self, tensors={name: t for name, t in self.tensors.items() if name != "output_floor"})

    def truncated(self, rank: int) -> Factors:
        """With the leading `rank` directions of each factor."""
        whole = ("counts", "output_floor")
        cut = {n: t if n in whole else t[..., :rank].contiguous() for n, t in self.tensors.items()}
        if "corrected" in cut:
            cut["corrected"] = cut["corrected"][:, :rank].contiguous()
        return replace(self, tensors=cut)

    def block(self, slices: Mapping[str, slice], space: Space) -> Block | Lookup:
        """The block in the space of a network, which may have more outputs than it had: those have no curvature."""
        tensors = {name: tensor.to(space.device, space.dtype) for name, tensor in self.tensors.items()}
        tensors |= {name: _normal(tensors[name]) for name in ("input_vectors", "output_vectors") if name in tensors}
        floor = tensors.pop("output_floor", None)
        if floor is not None and self.lookup:
            tensors |= _completed(tensors["output_values"], tensors["output_vectors"], floor)
        names = [name for name in (self.weight, self.bias) if name is not None]
        whole = space.shapes[space.names.index(names[0])]
        grown = whole[0] // self.groups - self.outputs
        if self.lookup:
            tensors["counts"] = torch.nn.functional.pad(tensors["counts"], (0, grown))
            return Lookup(slices[names[0]], (whole[0], whole[1]), **tensors)
        window, low = self.window, None
        if floor is not None and "corrected" not in tensors and tensors["output_vectors"].shape[-1] == self.outputs:
            tensors["output_values"] = tensors["output_values"] + floor.unsqueeze(-1)  # no direction is missing
        elif floor is not None and not grown:  # outputs that were added must stay free
            low = (None, floor[:, None, None])
        if window is not None:
            window = (*window[:2], window[2] + grown, window[3])
        elif grown:
            tensors["output_vectors"] = torch.nn.functional.pad(tensors["output_vectors"], (0, 0, 0, grown))
        shape = self.groups, tensors["output_vectors"].shape[1], tensors["input_vectors"].shape[1]
        weight, bias = (None if name is None else slices[name] for name in (self.weight, self.bias))
        return Block(
            weight, bias, shape, tensors["input_values"], tensors["input_vectors"], tensors["output_values"],
            tensors["output_vectors"], low, tensors.get("corrected"), window,
        )  # fmt: skip


@dataclass(frozen=True, eq=False)
class Curvature:
    """G over a task's inputs as Kronecker factors by name: it fits every network that has these parameters.

    Attributes:
        layers: the factors.
        diagonal: of the parameters that no factors cover.
        shapes: of all parameters.
        count: tasks that were merged in it, decayed.
    """

    layers: tuple[Factors, ...]
    diagonal: Mapping[str, Tensor] = field(default_factory=dict)
    shapes: Mapping[str, tuple[int, ...]] = field(default_factory=dict)
    count: float = 1.0

    @classmethod
    def of(
        cls, network: Network, theta: Tensor, batches: Iterable[Batch], coverage: float = 1.0, kind: str = "kronecker",
        rank: int | None = None, samples: int | None = None,
    ) -> Curvature:  # fmt: skip
        """Built in one pass over the rows, in two for `"ekfac"`; see `Kronecker.of`.

        Args:
            network: the network.
            theta: the point, `(P,)`.
            batches: weighted rows; for `"ekfac"` they are gone over twice.
            coverage: of the outputs' curvature.
            kind: `"kronecker"`, `"ekfac"` or `"diagonal"`.
            rank: the directions kept of each factor.
            samples: random columns of the outputs' curvature instead of exact ones.

        Raises:
            ValueError: the kind is unknown.
        """
        if kind == "diagonal":
            return cls.named(Diagonal.of(network, theta, batches, coverage, samples))
        if kind not in ("kronecker", "ekfac"):
            raise ValueError(f"curvature is kept as 'kronecker', 'ekfac' or 'diagonal', got {kind!r}")
        build = ekfac if kind == "ekfac" else Kronecker.of
        return cls.named(build(network, theta, batches, coverage, samples=samples, rank=rank))

    @classmethod
    def named(cls, metric: Kronecker | Diagonal) -> Curvature:
        """A metric with its slices turned into names.

        Raises:
            ValueError: its factors are shrunk, which no name stands for.
        """
        check_not_shrunk(metric)
        space = metric.space
        ends = torch.tensor([0, *space.sizes]).cumsum(0).tolist()
        names = dict(zip(ends, space.names))
        shapes = {n: tuple(s) for n, s in zip(space.names, space.shapes)}
        if isinstance(metric, Diagonal):
            values = zip(space.names, metric.values.cpu().split(list(space.sizes)))
            return cls((), dict(values), shapes)
        layers = []
        for block in metric.blocks:
            tensors = {part: getattr(block, part, None) for part in PARTS}
            known = {part: tensor.cpu() for part, tensor in tensors.items() if tensor is not None}
            if isinstance(block, Lookup):
                layers.append(Factors(names[block.weight.start], None, 1, known))
                continue
            weight, bias = (None if place is None else names[place.start] for place in (block.weight, block.bias))
            layers.append(Factors(weight, bias, block.shape[0], known, block.window))
        diagonal = {names[place.start]: values.cpu() for place, values in metric.diagonal}
        return cls(tuple(layers), diagonal, shapes)

    def metric(self, space: Space) -> Kronecker:
        """The metric in the space of a network.

        Parameters that are not known have no curvature: a new head. A layer that has more outputs than it had has none
        on the new ones.

        Raises:
            ValueError: a known parameter is missing, or its shape differs in more than added outputs.
        """
        self.check(space)
        ends = torch.tensor([0, *space.sizes]).cumsum(0).tolist()
        slices = {name: slice(a, b) for name, a, b in zip(space.names, ends, ends[1:])}
        blocks = [layer.block(slices, space) for layer in self.layers]
        covered = {name for layer in self.layers for name in (layer.weight, layer.bias)}
        loose = []
        for name, size in zip(space.names, space.sizes):
            if name not in covered:
                values = self.diagonal.get(name, torch.zeros(0)).to(space.device, space.dtype)
                loose.append((slices[name], torch.nn.functional.pad(values, (0, size - len(values)))))
        return Kronecker(space, tuple(blocks), tuple(loose))

    def check(self, space: Space) -> None:
        """Raises `ValueError` unless it fits a network: the first parameters that do not.

        Rows of outputs may have been added to a head; where another shape differs, those that grew count as well.
        """
        known, fits, wrong = dict(zip(space.names, space.shapes)), True, []
        for name, shape in self.shapes.items():
            got = known.get(name)
            grown = got is not None and len(got) == len(shape) and got[0] >= shape[0] and tuple(got[1:]) == shape[1:]
            fits = fits and grown
            if got is None or tuple(got) != shape:
                there = "missing or frozen" if got is None else tuple(got)
                wrong.append(f"{name!r}: {shape} in the memory, {there} in the model")
        if not fits:
            said = "; ".join(wrong[:3])
            raise ValueError(
                f"the memory is of another network, {len(wrong)} parameters do not fit: {said}; give the model that "
                "was remembered, or remember it with trainable= those that stay trained"
            )

    def floored(self, share: float) -> Curvature:
        """With every layer's own outputs kept as well, a share as firmly as the network's (see `Memory`)."""
        return replace(self, layers=tuple(layer.floored(share) for layer in self.layers)) if share else self

    def bare(self) -> Curvature:
        """Of the network's outputs alone."""
        return replace(self, layers=tuple(layer.bare() for layer in self.layers))

    def truncated(self, rank: int) -> Curvature:
        """With the leading `rank` directions of every factor: memory r (i + o) instead of i² + o²."""
        return replace(self, layers=tuple(layer.truncated(rank) for layer in self.layers))

    @classmethod
    def merged(cls, terms: Sequence[Curvature], weights: Sequence[float]) -> Curvature:
        """One pair of factors per layer for a weighted sum of metrics.

        A is the mean of the tasks' A_t and B the sum of their B_t, weighted: the cost does not grow with their number,
        and the product of sums is not the sum of products, but for terms that share one of the factors.
        """
        layers: dict[tuple[str | None, str | None, int, int], list[tuple[float, float, Factors]]] = {}
        for weight, term in zip(weights, terms):
            for layer in term.layers:
                layers.setdefault(layer.key, []).append((weight * term.count, weight, layer))
        diagonal: dict[str, Tensor] = {}
        shapes: dict[str, tuple[int, ...]] = {}
        for weight, term in zip(weights, terms):
            for name, values in term.diagonal.items():
                before = diagonal.get(name, torch.zeros_like(values))
                size = max(len(before), len(values))
                diagonal[name] = _padded(before, size) + weight * _padded(values, size)
            shapes |= term.shapes
        count = sum(weight * term.count for weight, term in zip(weights, terms))
        return cls(tuple(_merged(found) for found in layers.values()), diagonal, shapes, count)

    @property
    def bytes(self) -> int:
        """What its tensors take."""
        tensors = [tensor for layer in self.layers for tensor in layer.tensors.values()] + list(self.diagonal.values())
        return sum(tensor.numel() * tensor.element_size() for tensor in tensors)

    def tensors(self) -> tuple[dict[str, Tensor], str]:
        """Tensors by name and a description, for a file."""
        found = {f"diagonal.{name}": values for name, values in self.diagonal.items()}
        for k, layer in enumerate(self.layers):
            found |= {f"layer.{k}.{part}": tensor for part, tensor in layer.tensors.items()}
        about = [[layer.weight, layer.bias, layer.groups, layer.window] for layer in self.layers]
        return found, json.dumps({"layers": about, "shapes": self.shapes, "count": self.count})

    @classmethod
    def read(cls, tensors: Mapping[str, Tensor], about: str) -> Curvature:
        """What `tensors` gave."""
        said = json.loads(about)
        layers = []
        for k, (weight, bias, groups, window) in enumerate(said["layers"]):
            own = {name.split(".")[-1]: t for name, t in tensors.items() if name.startswith(f"layer.{k}.")}
            layers.append(Factors(weight, bias, groups, own, None if window is None else tuple(window)))
        diagonal = {n.removeprefix("diagonal."): t for n, t in tensors.items() if n.startswith("diagonal.")}
        shapes = {name: tuple(shape) for name, shape in said["shapes"].items()}
        return cls(tuple(layers), diagonal, shapes, said["count"])


def check_not_shrunk(metric: Kronecker | Diagonal) -> None:
    """Raises `ValueError` where shrinkage would be lost."""
    blocks = () if isinstance(metric, Diagonal) else metric.blocks
    if any(isinstance(block, Block) and block.shrinkage is not None for block in blocks):
        raise ValueError("the metric's factors are shrunk, and what is added to them is not stored or merged; build it "
                         "without shrinkage= and features")  # fmt: skip


def _normal(vectors: Tensor) -> Tensor:
    """Unit vectors without entries whose products leave the normal range: a few dozen, as inputs that are nearly always
    zero leave them, make a product on a CPU three times as slow.
    """
    return vectors.masked_fill(vectors.abs() < torch.finfo(vectors.dtype).tiny ** 0.5, 0)


def _completed(values: Tensor, vectors: Tensor, floor: Tensor) -> dict[str, Tensor]:
    """All eigenpairs of V diag(values) Vᵀ + floor I, from the leading ones `(d, r)`."""
    width, rank = vectors.shape
    basis = torch.linalg.qr(torch.cat([vectors, torch.eye(width).to(vectors)], 1))[0]
    every = torch.cat([vectors, basis[:, rank:]], 1)
    return {"output_values": torch.nn.functional.pad(values, (0, width - rank)) + floor, "output_vectors": every}


def _padded(values: Tensor, size: int) -> Tensor:
    return torch.nn.functional.pad(values, (0, size - len(values)))


def _merged(terms: Sequence[tuple[float, float, Factors]]) -> Factors:
    """One layer's factors, given each term's weight in the mean of A and in the sum of B."""
    total, (_, _, first) = sum(count for count, _, _ in terms), terms[0]
    tensors: dict[str, Tensor] = {}
    inputs, gradients = SecondMoment(), SecondMoment()
    outputs = max(layer.tensors["output_vectors"].shape[-2] for _, _, layer in terms)
    for count, weight, layer in terms:
        if layer.lookup:
            counts = count / total * layer.tensors["counts"]
            before = tensors.get("counts", torch.zeros_like(counts))
            size = max(len(before), len(counts))
            tensors["counts"] = _padded(before, size) + _padded(counts, size)
        else:
            inputs.add(layer.root("input") * (count / total) ** 0.5)
        if "output_floor" in layer.tensors:
            floor = weight * layer.tensors["output_floor"]
            tensors["output_floor"] = tensors.get("output_floor", torch.zeros_like(floor)) + floor
        root = layer.root("output") * weight**0.5
        gradients.add(torch.nn.functional.pad(root, (0, outputs - root.shape[-1])))
    for side, moment in (("input", inputs), ("output", gradients)):
        if not moment.empty:
            values, vectors = moment.eigen()
            like = first.tensors["output_values"]
            tensors[f"{side}_values"], tensors[f"{side}_vectors"] = values.to(like), vectors.to(like)
    if first.lookup:
        whole = ("counts", "output_floor")
        tensors = {name: t if name in whole else t[0] for name, t in tensors.items()}
    if any("corrected" in layer.tensors for _, _, layer in terms):
        tensors["corrected"] = sum(weight * _turned(layer, tensors) for _, weight, layer in terms)  # type: ignore[assignment]
    window = max((layer.window for _, _, layer in terms), key=lambda w: 0 if w is None else w[2])
    return Factors(first.weight, first.bias, first.groups, tensors, window)


def _turned(layer: Factors, to: Mapping[str, Tensor]) -> Tensor:
    """The diagonal of a layer's term in another eigenbasis, `(groups, rb, ra)`: squares of cosines mix eigenvalues."""
    own = layer.tensors
    values = own.get("corrected", own["output_values"].unsqueeze(-1) * own["input_values"].unsqueeze(-2))
    rows = own["output_vectors"].shape[-2]
    right = (to["output_vectors"][:, :rows].mT @ own["output_vectors"]).square()
    left = (own["input_vectors"].mT @ to["input_vectors"]).square()
    return right @ values @ left
