"""Drift without data: the quadratic form of a curvature that is kept."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import cached_property

import torch
from torch import Tensor

from isopath.geometry.batch import Batch
from isopath.geometry.curvature import Curvature
from isopath.geometry.kronecker import Kronecker
from isopath.geometry.memory import Memory
from isopath.geometry.reference import Drift, DriftKind, KeptAll
from isopath.geometry.remembered import Remembered
from isopath.network import Network


@dataclass(frozen=True, eq=False)
class Estimated:
    """A task of which the curvature is kept: D ≈ ½(θ - θ_t)ᵀG_t(θ - θ_t), an estimate that nothing checks.

    The drift is that of the network's outputs alone; the metric holds the layers' own outputs too, where the memory
    does.

    Attributes:
        curvature: of the task.
        centre: the weights that it was left with, `(P,)`.
        network: that is moved.
        weight: of the task among the others.
    """

    curvature: Curvature
    centre: Tensor
    network: Network
    weight: float = 1.0

    kind: DriftKind = "estimated"
    split: bool = True  # no row is read, so none is read twice

    @classmethod
    def of(cls, task: Remembered, network: Network) -> Estimated:
        """Binds what is remembered to a network, whose head may have grown since.

        Raises:
            ValueError: the memory is of another network, or parameters are trained now that were frozen then.
        """
        assert task.curvature is not None
        task.curvature.check(network.space)
        check_frozen(task, network)
        return cls(task.curvature, centre(task, network), network, task.weight)

    @cached_property
    def metric(self) -> Kronecker:
        """G_t."""
        return self.curvature.metric(self.network.space)

    @cached_property
    def _outputs(self) -> Kronecker:
        """That of the network's outputs alone."""
        return self.curvature.bare().metric(self.network.space)

    @property
    def batches(self) -> Sequence[Batch]:
        """No rows."""
        return ()

    @property
    def curvatures(self) -> Sequence[tuple[float, Curvature]]:
        """Its own, with its weight."""
        return ((self.weight, self.curvature),)

    def drift(self, theta: Tensor) -> Drift:
        """The estimate, once for each kind of rows."""
        found = self.whole_drift(theta)
        return Drift(found, found)

    def gradient(self, theta: Tensor) -> Tensor:
        """Of the drift, G_t(θ - θ_t)."""
        return self._outputs.mv(theta - self.centre)

    def pull(self, theta: Tensor, away: Tensor, out: Tensor) -> Tensor:
        """The same with what the metric holds besides, in `out`; `away` is written over."""
        return self.metric.mv(torch.sub(theta, self.centre, out=away), out)

    def whole_drift(self, theta: Tensor) -> float:
        """½(θ - θ_t)ᵀG_t(θ - θ_t)."""
        return 0.5 * float(self._outputs.norm(theta - self.centre)) ** 2


def check_frozen(task: Remembered, network: Network) -> None:
    """Raises `ValueError` where a parameter moves whose curvature was not measured: it would count as free."""
    moved = [name for name in task.frozen if name in network.space.names]
    if moved:
        said = ", ".join(map(repr, moved[:3])) + (", ..." if len(moved) > 3 else "")
        raise ValueError(
            f"task {task.name!r} has no curvature of {said}, which were frozen when it was remembered and are trained "
            "now; freeze them, or remember the task with trainable=lambda name: True"
        )


def check_curvatures(memory: Memory, network: Network) -> None:
    """Raises `ValueError` where a task's curvature is of another network, before its rows are looked at."""
    for task in memory.tasks:
        if task.curvature is not None:
            task.curvature.check(network.space)


def kept_by(memory: Memory, network: Network, seed: int) -> KeptAll:
    """What a memory keeps, bound to a network: rows where there are any, or else curvature.

    Raises:
        ValueError: the memory is of another network.
    """
    check_curvatures(memory, network)
    tasks = [task for task in memory.tasks if task.outputs is not None]
    bound = [part.bind(network, network.start, seed + i)
             for i, part in enumerate(memory.references(network.space.device).parts)]  # fmt: skip
    rows = [part if task.sketch is None else replace(part, kind="estimated") for task, part in zip(tasks, bound)]
    merged_with_rows = memory.merge and bool(rows)  # the one sum of curvatures is of tasks that rows speak for
    bare = [t for t in memory.tasks if t.curvature is not None and t.outputs is None and not merged_with_rows]
    return KeptAll((*rows, *(Estimated.of(task, network) for task in bare)))


def centre(task: Remembered, network: Network) -> Tensor:
    """The weights that a task was left with, in the network's shapes: what was added since is as the network has it."""
    now = network.space.unflatten(network.start.clone())
    for name, value in (task.centre or {}).items():
        if name not in now:
            continue
        if not value.ndim:
            now[name] = value.to(now[name])
            continue
        whole = now[name].clone()
        whole[: value.shape[0]] = value.to(whole)
        now[name] = whole
    return torch.cat([now[name].reshape(-1) for name in network.space.names])
