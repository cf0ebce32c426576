"""What must stay: inputs, and the outputs to keep on them."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any, Literal, Protocol

import torch
from torch import Tensor, nn
from torch.utils.data import DataLoader, Dataset

from isopath.examples import Examples, check_finite, to
from isopath.geometry.batch import Batch, Streamed
from isopath.geometry.divergence import Divergence, divergence_of
from isopath.geometry.kinds import STREAMING, metric_of
from isopath.geometry.metric import Metric
from isopath.network import Network, Output

DriftKind = Literal["measured", "sampled", "estimated", "none"]


@dataclass(frozen=True, eq=False)
class Part:
    """Rows over which one mean is taken: every sum over reference examples goes through here."""

    network: Network
    batches: Sequence[Batch]
    rows: int

    def drift(self, theta: Tensor) -> float:
        """D(theta), the mean divergence from the kept outputs."""
        with torch.no_grad():
            return float(sum(batch.drift(batch.outputs(self.network, theta)).double() for batch in self.batches))

    def gradient(self, theta: Tensor) -> Tensor:
        """∇D at theta, `(P,)`."""
        total = None
        for batch in self.batches:
            point = theta.detach().requires_grad_(True)
            share = batch.drift(batch.outputs(self.network, point))
            found = torch.autograd.grad(share, point, allow_unused=True)[0] if share.requires_grad else None
            total = found if total is None else total if found is None else total.add_(found)
        return torch.zeros_like(theta) if total is None else total


@dataclass(frozen=True, eq=False)
class Reference:
    """Inputs, and the outputs to keep on them.

    Args:
        inputs: a tensor `(N, ...)`, a tuple or mapping of tensors, a `Dataset` or a `DataLoader` (targets are ignored).
        divergence: `"hellinger"` (default), `"kl"`, `"bernoulli"` (multi-label), `"squared_error"` (regression),
            `"cosine"`, or a function of `(y, y0)` that returns one value per row.
        outputs: the outputs to keep, `(N, C)` or `(N, T, C)`; `None` for those of the model that is traced.
        output: picks the output tensor from what the model returns (see `Network`).
        mask: for token outputs, which rows count: a `(N, T)` tensor or the name of an entry of the inputs.
        weights: the weight of each example in the mean, `(N,)`.
        batch_size: rows per forward pass; bounds the memory of activations.
        sample: a larger reference is controlled on this many rows, drawn once, and evaluated whole at kept waypoints.
        split: fraction of the controlled rows that the metric and the corrector read. The others only judge.

    Raises:
        ValueError: zero rows, rows that are not finite, or an argument out of range.
        TypeError: inputs of an unknown kind.

    References add: `Reference(a) + Reference(b)` keeps both, each within the tolerance.
    """

    inputs: Any
    divergence: str | Divergence | Callable[[Tensor, Tensor], Tensor] = "hellinger"
    outputs: Tensor | None = None
    output: Output = None
    mask: str | Tensor | None = None
    weights: Tensor | None = None
    batch_size: int = 256
    sample: int = 2048
    split: float = 0.75

    def __post_init__(self) -> None:
        divergence_of(self.divergence)
        if not 0 < self.split < 1:
            raise ValueError(f"split must lie between 0 and 1, got {self.split}; 0.5 gives half to each part")
        if self.batch_size < 1 or self.sample < 1:
            raise ValueError(f"batch_size and sample must be >= 1, got {self.batch_size} and {self.sample}")
        if isinstance(self.mask, str) and not isinstance(self.inputs, (Mapping, Dataset, DataLoader)):
            raise ValueError(
                f"mask={self.mask!r} names an entry of the inputs, which have none; give the mask as a tensor"
            )
        count = len(self.examples)
        for name, given in (("outputs", self.outputs), ("weights", self.weights), ("mask", self.mask)):
            if isinstance(given, Tensor) and given.shape[0] != count:
                raise ValueError(f"{name} has {given.shape[0]} rows, expected {count}, one per input")
        if self.weights is not None and (bool((self.weights < 0).any()) or not float(self.weights.sum()) > 0):
            raise ValueError("weights must be >= 0 with a positive sum")

    def __add__(self, other: Reference | References) -> References:
        return References((self,)) + other

    def __len__(self) -> int:
        return len(self.examples)

    @cached_property
    def examples(self) -> Examples:
        """The inputs, addressed by row."""
        return Examples.of(self.inputs, what="a reference's inputs")

    def bind(self, network: Network, theta: Tensor, seed: int = 0) -> Kept:
        """The reference with the outputs of `network` at `theta` as those to keep, split in two parts."""
        return Kept.of(self, network, theta, seed)

    def whole(self, network: Network, theta: Tensor) -> Part:
        """Every row in one part, with the outputs of `network` at `theta` as those to keep."""
        return self._part(network, theta, torch.arange(len(self)))

    def metric(self, model: nn.Module, kind: str = "exact", **options: Any) -> Metric:
        """G at the model's own weights, over every row.

        Args:
            model: any module; it is not modified.
            kind: `"exact"`, `"gram"`, `"kronecker"`, `"ekfac"`, `"low_rank"`, `"diagonal"`, `"preconditioned"` or
                `"identity"`.
            options: the constructor's arguments of that kind, and `trainable`.

        The rows of a `DataLoader` or `Dataset` are streamed where the kind needs one or two passes (Kronecker, EKFAC,
        diagonal); products with an exact metric go over them again and again, so they are held.
        """
        network = Network(model, options.pop("trainable", None))
        if kind in STREAMING:
            return metric_of(kind, network, network.start, self.streamed(network, network.start), **options)
        part = self.whole(network, network.start)
        return metric_of(kind, network, network.start, part.batches, **options)

    def streamed(self, network: Network, theta: Tensor) -> Streamed:
        """Every row, a batch at a time, with the outputs of `network` at `theta` as those to keep."""

        def batches() -> Iterator[Batch]:
            total = None
            for b in self._raw(network, theta, torch.arange(len(self))):
                total = self._total(b) if total is None else total
                yield Batch(b.inputs, b.kept, (b.weight / total).to(b.kept.dtype), b.divergence, b.output)

        return Streamed(batches)

    def _total(self, first: Batch) -> Tensor:
        """The weight of all rows, without their outputs; every batch has the positions of the first."""
        weights = torch.ones(len(self)) if self.weights is None else self.weights
        if self.mask is None:
            return weights.double().sum() * max(1, first.kept.shape[1:-1].numel())
        total = torch.zeros((), dtype=torch.float64)
        for rows in torch.arange(len(self)).split(self.batch_size):
            mask = self.examples.take(rows)[0][self.mask] if isinstance(self.mask, str) else self.mask[rows]
            total += (mask.cpu().double() * weights[rows].cpu().double().reshape(-1, *[1] * (mask.ndim - 1))).sum()
        if not total > 0:
            raise ValueError("the rows of the reference have no weight: every one is masked or weighs zero")
        return total

    def _part(self, network: Network, theta: Tensor, index: Tensor, known: bool = False) -> Part:
        """Some rows; where outputs are `known` to fit the network, it is not run for them."""
        batches = list(self._raw(network, theta, index, known))
        total = sum(batch.weight.sum().double() for batch in batches)
        if not total > 0:
            raise ValueError("the rows drawn from the reference have no weight: every one is masked or weighs zero")
        scaled = [
            Batch(b.inputs, b.kept, (b.weight / total).to(b.kept.dtype), b.divergence, b.output) for b in batches
        ]
        return Part(network, scaled, len(index))

    def _raw(self, network: Network, theta: Tensor, index: Tensor, known: bool = False) -> Iterator[Batch]:
        """Batches of the rows `index`, their weights not yet normalised."""
        divergence, device = divergence_of(self.divergence), network.space.device
        for rows in index.split(self.batch_size):
            inputs = self._placed(rows, device)
            given = self.outputs if known else None
            kept = self._kept(network, theta, inputs, rows) if given is None else given[rows].to(theta)
            divergence.check(kept)
            weight = torch.ones(kept.shape[:-1], dtype=kept.dtype, device=device)
            if self.weights is not None:
                given = self.weights[rows].to(weight)
                weight = weight * given.reshape(-1, *[1] * (weight.ndim - 1))
            if self.mask is not None:
                mask = inputs[self.mask] if isinstance(self.mask, str) else self.mask[rows].to(device)
                if mask.shape != weight.shape:
                    raise ValueError(
                        f"the mask has shape {tuple(mask.shape)}, expected {tuple(weight.shape)}, a row each"
                    )
                weight = weight * mask.to(weight)
            yield Batch(inputs, kept, weight, divergence, self.output)

    def _kept(self, network: Network, theta: Tensor, inputs: Any, rows: Tensor) -> Tensor:
        with torch.no_grad():
            now = network(theta, inputs, self.output)
        check_finite(now, "the model's output on the reference")
        if self.outputs is None:
            return now
        given = self.outputs[rows].to(now)
        if given.shape != now.shape:
            raise ValueError(
                f"outputs has rows of shape {tuple(given.shape[1:])}, the model's are {tuple(now.shape[1:])}: another "
                "head, or another model than was remembered; pick the head with output="
            )
        check_finite(given, "outputs")
        return given

    def _placed(self, rows: Tensor, device: torch.device) -> Any:
        inputs, _ = self.examples.take(rows)
        if not isinstance(self.inputs, (Tensor, tuple, list, Mapping)):
            return to(inputs, device)  # a loader yields on the CPU whatever the model is on
        same_device(inputs, device, "the reference's inputs")
        return inputs


@dataclass(frozen=True, eq=False)
class References:
    """Several references, each to be kept within the tolerance; G is the sum of theirs."""

    parts: tuple[Reference, ...]

    def __add__(self, other: Reference | References) -> References:
        if not isinstance(other, (Reference, References)):
            return NotImplemented
        return References(self.parts + (other.parts if isinstance(other, References) else (other,)))

    def __len__(self) -> int:
        return sum(len(part) for part in self.parts)

    def bind(self, network: Network, theta: Tensor, seed: int = 0) -> KeptAll:
        """Every reference bound to `network` at `theta`."""
        return KeptAll(tuple(part.bind(network, theta, seed + i) for i, part in enumerate(self.parts)))


@dataclass(frozen=True)
class Drift:
    """The judged drift, and what it was judged from."""

    metric: float  # on the rows that the metric and the corrector read
    check: float  # on the rows that they do not

    @property
    def judged(self) -> float:
        """The larger of the two, so that the whole mean lies below it."""
        return max(self.metric, self.check)


SMALLEST_SPLIT = 100  # below, two halves are too few rows to say anything of each other


@dataclass(frozen=True, eq=False)
class Kept:
    """A reference bound to a network: the outputs at the start, rows for the metric, rows for the judge."""

    metric_part: Part
    check_part: Part
    reference: Reference
    start: Tensor
    kind: DriftKind

    @classmethod
    def of(cls, reference: Reference, network: Network, theta: Tensor, seed: int) -> Kept:
        """Draws the two parts with a generator of its own."""
        count = len(reference)
        order = torch.randperm(count, generator=torch.Generator().manual_seed(seed))[: reference.sample]
        kind: DriftKind = "measured" if count <= reference.sample else "sampled"
        if len(order) < SMALLEST_SPLIT:
            part = reference._part(network, theta, order)
            return cls(part, part, reference, theta, kind)
        cut = max(1, round(reference.split * len(order)))
        parts = (reference._part(network, theta, rows) for rows in (order[:cut], order[cut:]))
        return cls(*parts, reference, theta, kind)  # type: ignore[call-arg, arg-type]

    @property
    def split(self) -> bool:
        """Whether the judge's rows differ from the metric's."""
        return self.metric_part is not self.check_part

    @property
    def batches(self) -> Sequence[Batch]:
        """The metric's rows."""
        return self.metric_part.batches

    @property
    def curvatures(self) -> Sequence[tuple[float, Any]]:
        """None: the metric is built from the rows."""
        return ()

    def drift(self, theta: Tensor) -> Drift:
        """D on both parts."""
        metric = self.metric_part.drift(theta)
        return Drift(metric, self.check_part.drift(theta) if self.split else metric)

    def gradient(self, theta: Tensor) -> Tensor:
        """∇D on the metric's rows, `(P,)`."""
        return self.metric_part.gradient(theta)

    def whole_drift(self, theta: Tensor) -> float:
        """D over every row of the reference, streamed."""
        network, total, share = self.metric_part.network, 0.0, 0.0
        for batch in self.reference._raw(network, self.start, torch.arange(len(self.reference))):
            with torch.no_grad():
                total += float(batch.drift(batch.outputs(network, theta)).double())
            share += float(batch.weight.sum())
        return total / share


class Keeping(Protocol):
    """What is kept of one task, bound to a network."""

    @property
    def kind(self) -> DriftKind:
        """How its drift is known."""
        ...

    @property
    def split(self) -> bool:
        """Whether the judge's rows differ from the metric's."""
        ...

    @property
    def batches(self) -> Sequence[Batch]:
        """The metric's rows."""
        ...

    @property
    def curvatures(self) -> Sequence[tuple[float, Any]]:
        """Curvature in place of rows, with its weight in the metric."""
        ...

    def drift(self, theta: Tensor) -> Drift:
        """D on both kinds of rows."""
        ...

    def gradient(self, theta: Tensor) -> Tensor:
        """∇D on the metric's rows."""
        ...

    def whole_drift(self, theta: Tensor) -> float:
        """D over every row."""
        ...


@dataclass(frozen=True, eq=False)
class KeptAll:
    """Several bound references, or what stands for them; drift is the largest of theirs. With none, nothing is kept."""

    parts: tuple[Keeping, ...] = ()

    @property
    def kind(self) -> DriftKind:
        """How the drift of an accepted waypoint is known."""
        if not self.parts:
            return "none"
        kinds = {part.kind for part in self.parts}
        return "estimated" if "estimated" in kinds else "sampled" if "sampled" in kinds else "measured"

    @property
    def split(self) -> bool:
        """Whether every part is judged on rows of its own."""
        return all(part.split for part in self.parts)

    @property
    def batches(self) -> list[Batch]:
        """The metric's rows of every reference."""
        return [batch for part in self.parts for batch in part.batches]

    @property
    def curvatures(self) -> list[tuple[float, Any]]:
        """The curvature of tasks without rows, each with its weight."""
        return [term for part in self.parts for term in part.curvatures]

    def drift(self, theta: Tensor) -> Drift:
        """The largest drift of the references, on each kind of rows."""
        drifts = [part.drift(theta) for part in self.parts]
        return Drift(max((d.metric for d in drifts), default=0.0), max((d.check for d in drifts), default=0.0))

    def gradient(self, theta: Tensor) -> Tensor:
        """The sum of ∇D."""
        total = None
        for part in self.parts:
            found = part.gradient(theta)
            total = found if total is None else total.add_(found)
        return torch.zeros_like(theta) if total is None else total

    def whole_drift(self, theta: Tensor) -> float:
        """The largest drift over every row."""
        return max((part.whole_drift(theta) for part in self.parts), default=0.0)


def same_device(inputs: Any, device: torch.device, what: str) -> None:
    """Raises `ValueError` if a tensor of `inputs` is not on the network's device."""

    leaves = (
        inputs.values() if isinstance(inputs, Mapping) else inputs if isinstance(inputs, (tuple, list)) else [inputs]
    )
    for leaf in leaves:
        if isinstance(leaf, Tensor) and leaf.device != device:
            raise ValueError(f"{what} are on {leaf.device}, the model is on {device}; move one with .to(device)")
