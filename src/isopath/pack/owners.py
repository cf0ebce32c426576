"""Which task owns which weight: one owner each, so that sub-networks are disjoint by construction."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from isopath.space import Space, Trainable, check_plain

FREE = 0  # in the table; the kth task is k
Masks = Mapping[str, Tensor]


@dataclass(frozen=True, eq=False)
class Owners:
    """A table of owners for the weights of a module: its trainable parameters of two or more dimensions.

    Biases and the parameters of normalisation layers are none, whatever their shape.

    Args:
        table: by parameter name, of the parameter's shape, int16: 0 where free, k where the kth task's.
    """

    table: Mapping[str, Tensor]

    @classmethod
    def none(cls, module: nn.Module, trainable: Trainable = None) -> Owners:
        """All weights of a module free.

        Raises:
            ValueError: it has none.
        """
        named = dict(module.named_parameters())
        space = Space.of(module, trainable) if named else Space((), (), torch.float32, torch.device("cpu"))
        check_plain(space)
        wide = [name for name in space.names if name in space.weights]
        if not wide:
            raise ValueError(
                f"{type(module).__name__} has no trainable parameter of two or more dimensions to share among tasks; "
                "give a module with linear or convolution layers"
            )
        return cls({name: torch.zeros_like(named[name], dtype=torch.int16) for name in wide})

    @property
    def size(self) -> int:
        """How many weights there are."""
        return sum(owners.numel() for owners in self.table.values())

    @property
    def free(self) -> float:
        """The fraction of all weights that nobody owns."""
        return sum(int((owners == FREE).sum()) for owners in self.table.values()) / self.size

    def of(self, *tasks: int) -> dict[str, Tensor]:
        """Where any of these tasks is the owner, by name."""
        chosen = torch.tensor(tasks, dtype=torch.int16)
        return {name: torch.isin(owners, chosen.to(owners.device)) for name, owners in self.table.items()}

    def counts(self, task: int) -> dict[str, int]:
        """How many weights of each layer a task owns."""
        return {name: int((owners == task).sum()) for name, owners in self.table.items()}

    def claimed(self, masks: Masks, task: int) -> Owners:
        """The table with the weights at `masks` given to a task.

        Raises:
            ValueError: one of them has an owner, or the task's number is none.
        """
        if not FREE < task <= torch.iinfo(torch.int16).max:
            raise ValueError(f"tasks are numbered 1 to {torch.iinfo(torch.int16).max}, got {task}")
        table = dict(self.table)
        for name, mask in masks.items():
            taken = int((mask & (table[name] != FREE)).sum())
            if taken:
                raise ValueError(f"{taken} of the weights of {name!r} that task {task} claims have an owner")
            table[name] = torch.where(mask, torch.tensor(task, dtype=torch.int16, device=mask.device), table[name])
        return Owners(table)

