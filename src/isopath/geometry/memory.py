"""What a task leaves behind when its data are gone: examples with their outputs, curvature, or both."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from isopath.arguments import check_numbers
from isopath.examples import Examples, to
from isopath.geometry.batch import Batch, Streamed
from isopath.geometry.choice import Choice, chosen
from isopath.geometry.curvature import Curvature
from isopath.geometry.divergence import divergence_of
from isopath.geometry.reference import Reference, References
from isopath.network import Network, Output, pick
from isopath.space import Trainable
from isopath.storage import load_tensors, save_tensors

FEATURES = 1.0  # split MNIST with two outputs: mean accuracy 62 % at 0, 78 at 0.1, 88 at 1, 90 at 3


@dataclass(frozen=True, eq=False)
class Remembered:
    """One task's part of a memory.

    Attributes:
        name: of the task.
        inputs, outputs, labels: the kept rows, the one to keep longest first; `None` where no data are kept.
        columns: how many outputs the network had.
        curvature: of the outputs over the task's inputs, at `centre`; `None` where it is not kept.
        centre: the weights that the task was left with, by name.
        weight: of the task among the others.
        head: which output of the model belongs to it.
    """

    name: str
    inputs: Any = None
    outputs: Tensor | None = None
    labels: Tensor | None = None
    columns: int = 0
    curvature: Curvature | None = None
    centre: Mapping[str, Tensor] | None = None
    weight: float = 1.0
    head: Output = None

    @property
    def rows(self) -> int:
        """How many rows are kept."""
        return 0 if self.outputs is None else len(self.outputs)

    def first(self, count: int) -> Remembered:
        """With `count` rows at most."""
        if self.rows <= count:
            return self
        if not count:
            return replace(self, inputs=None, outputs=None, labels=None)
        outputs, labels = (None if tensor is None else tensor[:count] for tensor in (self.outputs, self.labels))
        return replace(self, inputs=_each(self.inputs, lambda tensor: tensor[:count]), outputs=outputs, labels=labels)

    @property
    def bytes(self) -> int:
        """What its tensors take."""
        kept = [*_leaves(self.inputs), *(t for t in (self.outputs, self.labels) if t is not None)]
        kept += list((self.centre or {}).values())
        return sum(t.numel() * t.element_size() for t in kept) + (self.curvature.bytes if self.curvature else 0)


@dataclass(frozen=True, eq=False)
class Memory:
    """What is kept of the tasks so far; `remember` gives a new one, and an empty one keeps nothing.

    Args:
        examples: rows kept in all, shared evenly by the tasks; 0 keeps no data.
        factors: whether each task leaves its curvature at the weights that it was left with: as Kronecker factors
            (`True` or `"kronecker"`), with their eigenvalues measured (`"ekfac"`), or as a `"diagonal"`.
        choose: which rows: `"random"`, `"balanced"` over the labels, `"herding"` or `"leverage"` (see `choice`).
        merge: keep one sum of all tasks' factors instead of one term per task: memory and cost do not grow, and the
            product of sums stands for the sum of products.
        decay: of a task's weight whenever a new one comes, in (0, 1]; 1 forgets nothing.
        rank: the directions kept of each factor; all by default.
        budget: bytes in all; rows give way to it, newest and oldest tasks alike. `None` for no limit.
        divergence: between old and new outputs.
        seed: of the rows that are chosen.
        measured: the most rows of a task that its curvature is measured on.
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
    choose: Choice = "random"
    merge: bool = False
    decay: float = 1.0
    rank: int | None = None
    budget: int | None = None
    divergence: str = "hellinger"
    seed: int = 0
    measured: int = 10_000
    features: float = FEATURES
    samples: int | None = None
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
            ValueError: a task of that name is remembered already, labels leave the head, the factors alone do not fit
                the budget, or a task would be left with nothing.
        """
        name = str(len(self)) if name is None else name
        if name in {task.name for task in self.tasks}:
            raise ValueError(f"the memory has a task {name!r} already; give another name=")
        data, task = Examples.of(x, y, what="the task's inputs"), Remembered(name, head=output)
        if self.examples:
            task = self._with_rows(task, Network(model, lambda _: True), data)
        if self.factors:
            task = self._with_curvature(task, Network(model, trainable), data)
        older = [replace(t, weight=self.decay * t.weight) for t in self.tasks]
        return replace(self, tasks=tuple(older))._joined(task)._fitted()

    def _with_rows(self, task: Remembered, network: Network, data: Examples) -> Remembered:
        count, labels = min(self.examples, len(data)), None
        if self.choose == "balanced":
            found = [data.take(part)[1] for part in torch.arange(len(data)).split(256)]
            labels = None if found[0] is None else torch.cat(found).cpu()
        rows = chosen(
            self.choose, count, network, data, labels, task.head, self.divergence, self.seed + len(self) * 7919
        )
        inputs, labels = data.take(rows)  # once: a dataset that augments would give others the next time
        with torch.no_grad():
            pieces = [network(network.start, to(_each(inputs, lambda t: t[at]), network.space.device), task.head)  # noqa: B023
                      for at in torch.arange(len(rows)).split(256)]  # fmt: skip
        outputs, labels = torch.cat(pieces).cpu(), None if labels is None else labels.cpu()
        classes = divergence_of(self.divergence).softmax and labels is not None and not labels.is_floating_point()
        highest = int(labels.max()) if classes and labels is not None else -1
        if highest >= outputs.shape[-1]:
            raise ValueError(
                f"labels go up to {highest}, but the head of task {task.name!r} has {outputs.shape[-1]} "
                "outputs; pick the right head with output=, or let it grow first"
            )
        inputs = _each(inputs, lambda tensor: tensor.cpu().clone())
        return replace(task, inputs=inputs, outputs=outputs, labels=labels, columns=outputs.shape[-1])

    def _with_curvature(self, task: Remembered, network: Network, data: Examples) -> Remembered:
        generator = torch.Generator().manual_seed(self.seed + len(self))
        rows = torch.randperm(len(data), generator=generator)[: self.measured]
        columns: list[int] = []

        def batches() -> Iterator[Batch]:  # streamed: no more than one is in memory
            for part in rows.split(256):
                inputs, _ = data.take(part, network.space.device)
                with torch.no_grad():
                    y = network(network.start, inputs, task.head)
                divergence.check(y)
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
            task = replace(task, curvature=merged)
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
        tensors: dict[str, Tensor] = {}
        tasks: list[dict[str, Any]] = []
        for k, task in enumerate(self.tasks):
            if callable(task.head):
                raise TypeError(f"the head of task {task.name!r} is a function, which no file holds; name it by a key")
            for place, leaf in _named(task.inputs):
                tensors[f"{k}.inputs{place}"] = leaf
            for key in ("outputs", "labels"):
                if getattr(task, key) is not None:
                    tensors[f"{k}.{key}"] = getattr(task, key)
            about = ""
            if task.curvature is not None:
                own, about = task.curvature.tensors()
                tensors |= {f"{k}.curvature.{name}": tensor for name, tensor in own.items()}
                tensors |= {f"{k}.centre.{name}": tensor for name, tensor in (task.centre or {}).items()}
            tasks.append({"name": task.name, "columns": task.columns, "weight": task.weight, "head": task.head,
                          "kind": _kind(task.inputs), "curvature": about})  # fmt: skip
        fields = {name: getattr(self, name) for name in FIELDS}
        save_tensors(Path(path), tensors, {"memory": json.dumps({"fields": fields, "tasks": tasks})})

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
        tasks = []
        for k, entry in enumerate(said["tasks"]):
            own = {name.removeprefix(f"{k}."): t for name, t in tensors.items() if name.startswith(f"{k}.")}
            curvature = None
            if entry["curvature"]:
                curvature = Curvature.read(_under(own, "curvature."), entry["curvature"])
            tasks.append(Remembered(
                entry["name"], _unnamed(_under(own, "inputs"), entry["kind"]), own.get("outputs"), own.get("labels"),
                entry["columns"], curvature, _under(own, "centre.") or None, entry["weight"], entry["head"],
            ))  # fmt: skip
        return cls(**said["fields"], tasks=tuple(tasks))


FIELDS = (
    "examples", "factors", "choose", "merge", "decay", "rank", "budget", "divergence", "seed", "measured", "features",
    "samples",
)  # fmt: skip


@dataclass(frozen=True)
class _Head:
    """The outputs that a task had when it was left: a head may have grown since."""

    head: Output
    columns: int

    def __call__(self, returned: Any) -> Tensor:
        return pick(returned, self.head)[..., : self.columns]


def _under(tensors: Mapping[str, Tensor], prefix: str) -> dict[str, Tensor]:
    return {name.removeprefix(prefix): t for name, t in tensors.items() if name.startswith(prefix)}


def _kind(inputs: Any) -> str:
    if isinstance(inputs, Mapping):
        return "mapping"
    return "none" if inputs is None else "tensor" if isinstance(inputs, Tensor) else "tuple"


def _named(inputs: Any) -> list[tuple[str, Tensor]]:
    if inputs is None:
        return []
    if isinstance(inputs, Tensor):
        return [("", inputs)]
    items = inputs.items() if isinstance(inputs, Mapping) else enumerate(inputs)
    return [(f".{key}", value) for key, value in items if isinstance(value, Tensor)]


def _unnamed(tensors: Mapping[str, Tensor], kind: str) -> Any:
    if kind == "none":
        return None
    if kind == "tensor":
        return tensors[""]
    named = {name.removeprefix("."): t for name, t in tensors.items()}
    return named if kind == "mapping" else tuple(named[str(i)] for i in range(len(named)))


def _leaves(inputs: Any) -> list[Tensor]:
    return [leaf for _, leaf in _named(inputs)]


def _each(inputs: Any, function: Any) -> Any:
    if isinstance(inputs, Mapping):
        return {key: _each(value, function) for key, value in inputs.items()}
    if isinstance(inputs, (tuple, list)):
        return tuple(_each(value, function) for value in inputs)
    return function(inputs) if isinstance(inputs, Tensor) else inputs
