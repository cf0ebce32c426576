"""What a task leaves behind when its data are gone: examples with their outputs, curvature, or both."""

from __future__ import annotations

import json
import warnings
from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Literal, get_args

import torch
from torch import Tensor, nn

from isopath.arguments import check_numbers
from isopath.examples import Examples, to, tree_map
from isopath.geometry.batch import Batch, Streamed
from isopath.geometry.choice import Choice, chosen
from isopath.geometry.curvature import Curvature
from isopath.geometry.divergence import divergence_of
from isopath.geometry.reference import Reference, References
from isopath.geometry.remembered import Remembered
from isopath.geometry.sketch import BLOCK, Sketch
from isopath.network import Network, Output, pick
from isopath.space import Trainable
from isopath.storage import load_tensors, save_tensors

TRIES = 10  # rows drawn for each that is wanted, where the network does not see the class they were drawn for
CHOICES = (*get_args(Choice), "drawn")
FEATURES = 1.0  # split MNIST with two outputs: mean accuracy 62 % at 0, 78 at 0.1, 88 at 1, 90 at 3


@dataclass(frozen=True, eq=False)
class Memory:
    """What is kept of the tasks so far; `remember` gives a new one, and an empty one keeps nothing.

    Args:
        examples: rows kept in all, shared evenly by the tasks; 0 keeps no data.
        factors: whether each task leaves its curvature at the weights that it was left with: as Kronecker factors
            (`True` or `"kronecker"`), with their eigenvalues measured (`"ekfac"`), or as a `"diagonal"`.
        choose: which rows: `"random"`, `"balanced"` over the labels, `"herding"` or `"leverage"` (see `choice`); or
            `"drawn"`: no row of the data, but rows drawn from a `Sketch` of the task's inputs, those that the network
            gives the label that they were drawn for. One costs its outputs, label and number, so there can be many.
            The drift is then measured on them: an estimate of that on the data.
        sketch: where rows are drawn: Gaussians of each label (of all rows, without labels), directions of each, and
            the leading principal directions of all rows that they live in.
        merge: keep one sum of all tasks' factors instead of one term per task: memory and cost do not grow, and the
            product of sums stands for the sum of products.
        decay: of a task's weight whenever a new one comes, in (0, 1]; 1 forgets nothing.
        rank: the directions kept of each factor; all by default.
        budget: bytes in all; rows give way to it, newest and oldest tasks alike. `None` for no limit.
        divergence: between old and new outputs.
        seed: of the rows that are chosen.
        measured: the most rows of a task that its curvature is measured on (streamed) and its sketch fitted to (held).
        features: how firmly each layer's own outputs are kept beside the network's: added to its outputs' factor, in
            units of that factor's mean eigenvalue. A network with few outputs sees few directions of its hidden units;
            two layers that move apart in the others undo each other's work, which no metric of the outputs at one
            point can tell. Of embeddings and linear maps; not of a `"diagonal"`. The drift does not count it.
        samples: random columns of the outputs' curvature that are measured instead of all: one backward pass each,
            where there are many outputs. `None` for all.
        tasks: what is remembered.

    Raises:
        ValueError: a number is out of range.
    """

    examples: int = 200
    factors: bool | str = False
    choose: Choice | Literal["drawn"] = "random"
    merge: bool = False
    decay: float = 1.0
    rank: int | None = None
    budget: int | None = None
    divergence: str = "hellinger"
    seed: int = 0
    measured: int = 10_000
    features: float = FEATURES
    samples: int | None = None
    sketch: tuple[int, int, int] = (8, 24, 96)
    tasks: tuple[Remembered, ...] = ()

    def __post_init__(self) -> None:
        divergence_of(self.divergence)
        check_numbers(examples=self.examples, features=self.features, decay=self.decay, rank=self.rank,
                      measured=self.measured, samples=self.samples, budget=self.budget)  # fmt: skip
        if min(self.examples, self.features) < 0 or not 0 < self.decay <= 1:
            raise ValueError(
                f"examples and features must be >= 0 and decay in (0, 1], got {self.examples}, {self.features} and "
                f"{self.decay}"
            )
        sizes = self.sketch if isinstance(self.sketch, (tuple, list)) else (self.sketch,)
        if len(sizes) != 3 or not all(isinstance(n, int) and n >= k for n, k in zip(sizes, (1, 0, 1))):
            raise ValueError(f"sketch must be (Gaussians >= 1, directions >= 0, principal directions >= 1), got "
                             f"{self.sketch}")  # fmt: skip
        whole = {"examples": self.examples, "measured": self.measured, "rank": self.rank, "samples": self.samples,
                 "budget": self.budget}  # fmt: skip
        broken = {name: n for name, n in whole.items() if n is not None and (n < 0 or not float(n).is_integer())}
        if broken:
            raise ValueError(f"{', '.join(broken)} must be whole numbers >= 0, got {broken}")
        if self.choose not in CHOICES:
            raise ValueError(f"choose must be one of {', '.join(map(repr, CHOICES))}, got {self.choose!r}")
        if not self.examples and not self.factors:
            raise ValueError("a memory keeps examples, factors or both; examples=0 needs factors=True")
        if self.factors not in (True, False, "kronecker", "ekfac", "diagonal"):
            raise ValueError(f"factors must be True, 'kronecker', 'ekfac', 'diagonal' or False, got {self.factors!r}")
        counts = {"rank": self.rank, "samples": self.samples, "measured": self.measured}
        small = {name: count for name, count in counts.items() if count is not None and count < 1}
        if small:
            raise ValueError(f"{', '.join(small)} must be >= 1, got {small}")

    def __len__(self) -> int:
        return len(self.tasks)

    def __repr__(self) -> str:
        rows = sum(task.rows for task in self.tasks)
        terms = sum(task.curvature is not None for task in self.tasks)
        return f"Memory({len(self)} tasks, {rows} examples, {terms} curvatures, {self.bytes / 2**20:.1f} MiB)"

    @property
    def bytes(self) -> int:
        """What its tensors take."""
        return sum(task.bytes for task in self.tasks)

    def remember(
        self, model: nn.Module, x: Any, y: Any = None, name: str | None = None, output: Output = None,
        trainable: Trainable = None,
    ) -> Memory:  # fmt: skip
        """A new memory with one more task, as `model` does it now.

        Args:
            model: the network that has learned the task; it is not modified.
            x: the task's inputs: a tensor, a tuple or mapping, a `Dataset` or a `DataLoader`.
            y: labels, kept with the rows; a dataset of pairs brings its own.
            name: of the task; its number by default.
            output: picks the task's head in what the model returns (see `Network`).
            trainable: the parameters whose curvature is kept, as for `trace`; those that will be trained later.

        Raises:
            ValueError: a task of that name is remembered already, labels leave the head, the model's outputs are not
                finite, the factors alone do not fit the budget, or a task would be left with nothing.
        """
        name = str(len(self)) if name is None else name
        if name in {task.name for task in self.tasks}:
            raise ValueError(f"the memory has a task {name!r} already; give another name=")
        data, task = Examples.of(x, y, what="the task's inputs"), Remembered(name, head=output)
        whole = Network(model, lambda _: True)
        with torch.autocast(whole.space.device.type, enabled=False):
            if self.examples:
                task = (self._with_drawn if self.choose == "drawn" else self._with_rows)(task, whole, data)
            if self.factors:
                moving = Network(model, trainable)
                frozen = tuple(n for n in whole.space.names if n not in moving.space.names)
                task = replace(self._with_curvature(task, moving, data), frozen=frozen)
        self._check_labels(name, y if isinstance(y, Tensor) else None, task.columns)
        older = [replace(t, weight=self.decay * t.weight) for t in self.tasks]
        return replace(self, tasks=tuple(older))._joined(task)._fitted()

    def _with_rows(self, task: Remembered, network: Network, data: Examples) -> Remembered:
        count, labels = min(self.examples, len(data)), None
        if self.choose == "balanced":
            found = [data.take(part)[1] for part in torch.arange(len(data)).split(256)]
            labels = None if found[0] is None else torch.cat(found).cpu()
            check_flat(labels)
        assert self.choose != "drawn"
        rows = chosen(
            self.choose, count, network, data, labels, task.head, self.divergence, self.seed + len(self) * 7919
        )
        inputs, labels = data.take(rows)  # once: a dataset that augments would give others the next time
        pieces = [_outputs(network, tree_map(lambda t: t[at], inputs), task.head)  # noqa: B023
                  for at in torch.arange(len(rows)).split(256)]  # fmt: skip
        outputs, labels = torch.cat(pieces), None if labels is None else labels.cpu()
        self._check_labels(task.name, labels, outputs.shape[-1])
        inputs = tree_map(lambda tensor: tensor.cpu().clone(), inputs)
        return replace(task, inputs=inputs, outputs=outputs, labels=labels, columns=outputs.shape[-1])

    def _with_drawn(self, task: Remembered, network: Network, data: Examples) -> Remembered:
        seed = self.seed + len(self) * 7919
        order = torch.randperm(len(data), generator=torch.Generator().manual_seed(seed % 2**63))
        inputs, labels = data.take(order[: self.measured])
        while isinstance(inputs, (tuple, list)) and len(inputs) == 1:
            inputs = inputs[0]  # a loader of a dataset of one tensor
        if not isinstance(inputs, Tensor) or not inputs.is_floating_point():
            found = str(inputs.dtype) if isinstance(inputs, Tensor) else type(inputs).__name__
            raise TypeError(f"rows are drawn where inputs are one floating-point tensor, got {found}; for others keep "
                            "rows of the data, as choose='random' does, or factors")  # fmt: skip
        first = _outputs(network, inputs[:BLOCK], task.head)
        self._check_labels(task.name, labels, first.shape[-1])
        if labels is not None and not _classes(labels, first):
            if not labels.is_floating_point():
                warnings.warn(f"the labels of task {task.name!r} do not number its outputs' columns: rows are drawn "
                              "without them", stacklevel=3)  # fmt: skip
            labels = None  # one kind of rows
        sketch = Sketch.of(inputs, labels, *self.sketch, seed)
        kept: list[tuple[Tensor, ...]] = []
        count = -(-self.examples // (len(self) + 1))
        for start in range(0, TRIES * count, BLOCK):
            if sum(len(index) for index, *_ in kept) >= count:
                break
            index = torch.arange(start, start + BLOCK)
            x, y = sketch.draw(index)
            outputs = _outputs(network, x, task.head)
            seen = torch.ones(BLOCK, dtype=torch.bool) if y is None else outputs.argmax(-1) == y
            kept.append(tuple(t[seen] for t in (index, x, outputs, *(() if y is None else (y,)))))
        drawn, x, outputs, *rest = (torch.cat(column)[:count].clone() for column in zip(*kept))
        if len(drawn) < count or (sketch.labels is not None and len(rest[0].unique()) < len(sketch.labels.unique())):
            warnings.warn(f"task {task.name!r}: of {count} rows {len(drawn)} are kept, for labels "
                          f"{rest[0].unique().tolist() if rest else []}; the model does not see the others in what is "
                          "drawn for them", stacklevel=3)  # fmt: skip
        if not len(drawn):
            if self.factors:
                return task
            raise ValueError(f"the model gives none of the rows drawn for task {task.name!r} the label that it was "
                             "drawn for; train it first, or keep rows of the data")  # fmt: skip
        return replace(task, inputs=x, outputs=outputs, labels=rest[0] if rest else None, columns=outputs.shape[-1],
                       sketch=sketch, drawn=drawn)  # fmt: skip

    def _check_labels(self, name: str, labels: Tensor | None, outputs: int) -> None:
        """Refuses labels that the head does not have; -100 is none."""
        if labels is None or labels.is_floating_point() or not divergence_of(self.divergence).softmax:
            return
        counted = labels[labels != -100]
        low, high = (int(counted.min()), int(counted.max())) if counted.numel() else (0, 0)
        if high >= outputs or (low < 0 and self.choose != "drawn"):  # there they number nothing, which is warned of
            raise ValueError(
                f"labels go {f'up to {high}' if low >= 0 else f'from {low} to {high}'}, but the head of task {name!r} "
                f"has {outputs} outputs; pick the right head with output=, or let it grow first"
            )

    def _with_curvature(self, task: Remembered, network: Network, data: Examples) -> Remembered:
        generator = torch.Generator().manual_seed(self.seed + len(self))
        rows = torch.randperm(len(data), generator=generator)[: self.measured]
        columns: list[int] = []

        def batches() -> Iterator[Batch]:  # streamed: no more than one is in memory
            for part in rows.split(256):
                inputs, labels = data.take(part, network.space.device)
                with torch.no_grad():
                    y = network(network.start, inputs, task.head)
                divergence.check(y)
                check_outputs(y)
                self._check_labels(task.name, labels if isinstance(labels, Tensor) else None, y.shape[-1])
                columns.append(y.shape[-1])
                weight = torch.full(y.shape[:-1], 1 / (len(rows) * max(1, y.shape[1:-1].numel()))).to(y)
                yield Batch(inputs, y, weight, divergence, task.head)

        divergence = divergence_of(self.divergence)
        kind = "kronecker" if self.factors is True else str(self.factors)
        found = Curvature.of(network, network.start, Streamed(batches), kind=kind, rank=self.rank, samples=self.samples)
        found = found.floored(self.features)
        centre = {name: t.cpu() for name, t in network.space.unflatten(network.start.clone()).items()}
        return replace(task, curvature=found, centre=centre, columns=columns[0])

    def _joined(self, task: Remembered) -> Memory:
        """With one more task; where factors are merged, the newest task holds those of all."""
        tasks = list(self.tasks)
        if self.merge and task.curvature is not None:
            olds = [t for t in tasks if t.curvature is not None]
            terms = [*(t.curvature for t in olds if t.curvature is not None), task.curvature]
            # the sum so far is one term, its weight the decay: what it holds was weighed when it came
            merged = Curvature.merged(terms, [*(self.decay for _ in olds), 1.0])
            merged = merged if self.rank is None else merged.truncated(self.rank)
            tasks = [replace(t, curvature=None, centre=None) for t in tasks]
            frozen = dict.fromkeys(name for t in (*olds, task) for name in t.frozen)  # of any: their curvature lacks it
            task = replace(task, curvature=merged, frozen=tuple(frozen))
        share, left = divmod(self.examples, len(tasks) + 1)
        kept = tuple(t.first(share + (i < left)) for i, t in enumerate((*tasks, task)))
        empty = [t.name for t in kept if not t.rows and not self.factors]
        if empty:
            raise ValueError(
                f"{self.examples} examples cannot be shared by {len(kept)} tasks: nothing would be kept of "
                f"{', '.join(map(repr, empty))}; give more examples=, or factors=True"
            )
        return replace(self, tasks=kept)

    def _fitted(self) -> Memory:
        """With as many rows as the byte budget allows."""
        if self.budget is None or self.bytes <= self.budget:
            return self
        rows = max(task.rows for task in self.tasks)
        while rows and self.bytes > self.budget:
            rows -= 1
            smaller = tuple(task.first(rows) for task in self.tasks)
            if (rows or self.factors) and sum(task.bytes for task in smaller) <= self.budget:
                return replace(self, tasks=smaller)
        raise ValueError(
            f"{self.bytes:,} bytes do not fit the budget of {self.budget:,}, not with a single row of each task; "
            "give a larger budget, or for factors a rank or merge=True"
        )

    # --- what a trace and an optimiser read --------------------------------------------------------------------------

    def references(self, device: torch.device | None = None) -> References:
        """The kept rows of every task, each a reference with the outputs that it was left with, on a device."""
        parts = []
        for task in self.tasks:
            if task.outputs is not None:
                inputs = task.inputs if device is None else to(task.inputs, device)
                parts.append(Reference(inputs, self.divergence, task.outputs, _Head(task.head, task.columns)))
        return References(tuple(parts))

    # --- files -------------------------------------------------------------------------------------------------------

    def save(self, path: str | Path) -> None:
        """Writes it as one safetensors file, atomically: a file that was there stays whole until the new one is.

        Raises:
            TypeError: a task's head is a function, which no file holds; name it by key or index.
        """
        stored = [task.stored(f"{k}.") for k, task in enumerate(self.tasks)]
        tensors = {name: tensor for own, _ in stored for name, tensor in own.items()}
        fields = {name: getattr(self, name) for name in FIELDS}
        save_tensors(Path(path), tensors, {"memory": json.dumps({"fields": fields, "tasks": [a for _, a in stored]})})

    @classmethod
    def load(cls, path: str | Path) -> Memory:
        """Reads what `save` wrote.

        Raises:
            FileNotFoundError: there is no such file.
            DamagedFile: it is not whole.
            ValueError: it holds no memory.
        """
        tensors, about = load_tensors(Path(path))
        if "memory" not in about:
            raise ValueError(f"{path} holds no memory")
        said = json.loads(about["memory"])
        tasks = (Remembered.read(tensors, f"{k}.", about) for k, about in enumerate(said["tasks"]))
        fields: dict[str, Any] = {k: tuple(v) if isinstance(v, list) else v for k, v in said["fields"].items()}
        return cls(**fields, tasks=tuple(tasks))


FIELDS = (
    "examples", "factors", "choose", "merge", "decay", "rank", "budget", "divergence", "seed", "measured", "features",
    "samples", "sketch",
)  # fmt: skip


def _classes(labels: Tensor, outputs: Tensor) -> bool:
    """Whether labels number the columns of rows of outputs."""
    whole = labels.ndim == 1 and not labels.is_floating_point() and outputs.ndim == 2
    return whole and int(labels.min()) >= 0 and int(labels.max()) < outputs.shape[1]


def _outputs(network: Network, inputs: Any, head: Output) -> Tensor:
    with torch.no_grad():
        found = network(network.start, to(inputs, network.space.device), head).cpu()
    check_outputs(found)
    return found


def check_outputs(y: Tensor) -> None:
    """Raises `ValueError` where a network gives no numbers."""
    if not bool(torch.isfinite(y).all()):
        raise ValueError(f"the model's outputs {tuple(y.shape)} on the task's inputs are not finite: there is nothing "
                         "to keep; go back to weights that are finite")  # fmt: skip


def check_flat(labels: Tensor | None) -> None:
    """Raises `ValueError` unless there is one label a row."""
    if labels is not None and labels.ndim != 1:
        raise ValueError(f"rows are balanced over labels (N,), got {tuple(labels.shape)}; use .squeeze(-1), or of "
                         "one-hot rows .argmax(-1)")  # fmt: skip


@dataclass(frozen=True)
class _Head:
    """The outputs that a task had when it was left: a head may have grown since."""

    head: Output
    columns: int

    def __call__(self, returned: Any) -> Tensor:
        return pick(returned, self.head)[..., : self.columns]
