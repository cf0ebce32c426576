"""A Kronecker-factored metric by the names of parameters: what is kept of a task where no data are."""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace

import torch
from torch import Tensor

from isopath.geometry.batch import Batch
from isopath.geometry.factors import SecondMoment
from isopath.geometry.kronecker import Block, Kronecker
from isopath.network import Network
from isopath.space import Space


@dataclass(frozen=True, eq=False)
class Factors:
    """Both factors of one layer in their eigenbases, largest eigenvalue first.

    Attributes:
        weight, bias: names, `None` where there is none.
        groups: of a convolution.
        tensors: `input_values` `(groups, ra)`, `input_vectors` `(groups, i, ra)`, `output_values`, `output_vectors`.
    """

    weight: str | None
    bias: str | None
    groups: int
    tensors: Mapping[str, Tensor]

    @property
    def outputs(self) -> int:
        """Outputs per group."""
        return self.tensors["output_vectors"].shape[1]

    def root(self, side: str) -> Tensor:
        """Rows `(groups, r, d)` whose second moment is the factor."""
        values, vectors = self.tensors[f"{side}_values"], self.tensors[f"{side}_vectors"]
        return values.clamp_min(0).sqrt().unsqueeze(-1) * vectors.mT

    def truncated(self, rank: int) -> Factors:
        """With the leading `rank` directions of each factor."""
        cut = {name: tensor[..., :rank].contiguous() for name, tensor in self.tensors.items()}
        return replace(self, tensors=cut)


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
    def of(cls, network: Network, theta: Tensor, batches: Iterable[Batch], coverage: float = 1.0) -> Curvature:
        """Built in one pass over the rows; see `Kronecker.of`."""
        return cls.named(Kronecker.of(network, theta, batches, coverage))  # type: ignore[arg-type]

    @classmethod
    def named(cls, metric: Kronecker) -> Curvature:
        """A metric with its slices turned into names."""
        space = metric.space
        ends = torch.tensor([0, *space.sizes]).cumsum(0).tolist()
        names = dict(zip(ends, space.names))
        layers = []
        for block in metric.blocks:
            tensors = {part: getattr(block, part).cpu() for part in ("input_values", "input_vectors", "output_values",
                                                                     "output_vectors")}  # fmt: skip
            weight, bias = (None if place is None else names[place.start] for place in (block.weight, block.bias))
            layers.append(Factors(weight, bias, block.shape[0], tensors))
        diagonal = {names[place.start]: values.cpu() for place, values in metric.diagonal}
        return cls(tuple(layers), diagonal, {n: tuple(s) for n, s in zip(space.names, space.shapes)})

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
        blocks, covered = [], set()
        for layer in self.layers:
            names = [name for name in (layer.weight, layer.bias) if name is not None]
            covered |= set(names)
            tensors = {name: tensor.to(space.device, space.dtype) for name, tensor in layer.tensors.items()}
            grown = space.shapes[space.names.index(names[0])][0] // layer.groups - layer.outputs
            if grown:
                tensors["output_vectors"] = torch.nn.functional.pad(tensors["output_vectors"], (0, 0, 0, grown))
            none = torch.zeros(layer.groups, 1, 1, dtype=space.dtype, device=space.device)
            shape = layer.groups, layer.outputs + grown, tensors["input_vectors"].shape[1]
            weight, bias = (None if name is None else slices[name] for name in (layer.weight, layer.bias))
            blocks.append(Block(weight, bias, shape, **tensors, shrinkage=(none, none)))
        loose = []
        for name, size in zip(space.names, space.sizes):
            if name not in covered:
                values = self.diagonal.get(name, torch.zeros(0)).to(space.device, space.dtype)
                loose.append((slices[name], torch.nn.functional.pad(values, (0, size - len(values)))))
        return Kronecker(space, tuple(blocks), tuple(loose))

    def check(self, space: Space) -> None:
        """Raises `ValueError` unless it fits a network: the first parameters that do not."""
        known = dict(zip(space.names, space.shapes))
        wrong = []
        for name, shape in self.shapes.items():
            got = known.get(name)
            grown = got is not None and len(got) == len(shape) and got[0] >= shape[0] and tuple(got[1:]) == shape[1:]
            if not grown:
                there = "missing or frozen" if got is None else tuple(got)
                wrong.append(f"{name!r}: {shape} in the memory, {there} in the model")
        if wrong:
            said = "; ".join(wrong[:3])
            raise ValueError(f"the memory is of another network, {len(wrong)} parameters do not fit: {said}")

    def truncated(self, rank: int) -> Curvature:
        """With the leading `rank` directions of every factor: memory r (i + o) instead of i² + o²."""
        return replace(self, layers=tuple(layer.truncated(rank) for layer in self.layers))

    @classmethod
    def merged(cls, terms: Sequence[Curvature], weights: Sequence[float]) -> Curvature:
        """One pair of factors per layer for a weighted sum of metrics.

        A is the mean of the tasks' A_t and B the sum of their B_t, weighted: the cost does not grow with their number,
        and the product of sums is not the sum of products, but for terms that share one of the factors.
        """
        layers: dict[tuple[str | None, str | None], list[tuple[float, float, Factors]]] = {}
        for weight, term in zip(weights, terms):
            for layer in term.layers:
                layers.setdefault((layer.weight, layer.bias), []).append((weight * term.count, weight, layer))
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
        about = [[layer.weight, layer.bias, layer.groups] for layer in self.layers]
        return found, json.dumps({"layers": about, "shapes": self.shapes, "count": self.count})

    @classmethod
    def read(cls, tensors: Mapping[str, Tensor], about: str) -> Curvature:
        """What `tensors` gave."""
        said = json.loads(about)
        layers = []
        for k, (weight, bias, groups) in enumerate(said["layers"]):
            own = {name.split(".")[-1]: t for name, t in tensors.items() if name.startswith(f"layer.{k}.")}
            layers.append(Factors(weight, bias, groups, own))
        diagonal = {n.removeprefix("diagonal."): t for n, t in tensors.items() if n.startswith("diagonal.")}
        shapes = {name: tuple(shape) for name, shape in said["shapes"].items()}
        return cls(tuple(layers), diagonal, shapes, said["count"])


def _padded(values: Tensor, size: int) -> Tensor:
    return torch.nn.functional.pad(values, (0, size - len(values)))


def _merged(terms: Sequence[tuple[float, float, Factors]]) -> Factors:
    """One layer's factors, given each term's weight in the mean of A and in the sum of B."""
    total, (_, _, first) = sum(count for count, _, _ in terms), terms[0]
    outputs = max(layer.outputs for _, _, layer in terms)
    inputs, gradients = SecondMoment(), SecondMoment()
    for count, weight, layer in terms:
        inputs.add(layer.root("input") * (count / total) ** 0.5)
        gradients.add(torch.nn.functional.pad(layer.root("output") * weight**0.5, (0, outputs - layer.outputs)))
    tensors = {}
    for side, moment in (("input", inputs), ("output", gradients)):
        values, vectors = moment.eigen()
        like = first.tensors[f"{side}_values"]
        tensors[f"{side}_values"], tensors[f"{side}_vectors"] = values.to(like), vectors.to(like)
    return Factors(first.weight, first.bias, first.groups, tensors)
