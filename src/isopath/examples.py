"""Rows of data: tensors, mappings of tensors, a Dataset or a DataLoader, drawn by index."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch.utils.data import DataLoader, Dataset, IterableDataset, default_collate

Tree = Any  # a tensor, or a tuple, list or mapping of trees


@dataclass(frozen=True, eq=False)
class Examples:
    """N examples with random access, in memory or streamed from a dataset.

    Args:
        count: N.
        draw: maps a 1-D index tensor to `(inputs, targets)`; targets may be `None`.
    """

    count: int
    draw: Callable[[Tensor], tuple[Tree, Any]]

    def __len__(self) -> int:
        return self.count

    def take(self, index: Tensor, device: torch.device | None = None) -> tuple[Tree, Any]:
        """`(inputs, targets)` of the rows `index`, on `device` where one is given."""
        inputs, targets = self.draw(index)
        return (inputs, targets) if device is None else (to(inputs, device), to(targets, device))

    @classmethod
    def of(cls, x: Any, y: Any = None, what: str = "inputs") -> Examples:
        """Wraps tensors, mappings or tuples of tensors, a `Dataset` or a `DataLoader`.

        Items of a dataset that are `(x, y)` pairs give inputs and targets. A `DataLoader`'s dataset, batch collation
        and order are used; its shuffling is not: rows are addressed by index. An iterable dataset has no order to come
        back to, so it is read once and kept.

        Args:
            x: inputs, or a dataset of inputs or of pairs; or examples as they are.
            y: targets with N rows, which stand in for those of pairs; or `None`.
            what: the word that errors use for `x`.

        Raises:
            TypeError: `x` is none of these.
            ValueError: no rows, differing row counts, entries that are not finite, or a loader whose sampler takes some
                rows and not others.
        """
        if isinstance(x, Examples):
            return x if y is None else _with(x, y, what)
        if isinstance(x, DataLoader):
            if isinstance(x.dataset, IterableDataset):
                inputs, targets = _gather(x)
                return cls.of(inputs, targets if y is None else y, what)
            _check_sampler(x, what)
            return _from_dataset(x.dataset, x.collate_fn or default_collate, y, what)
        if isinstance(x, Dataset) and not isinstance(x, IterableDataset):
            return _from_dataset(x, default_collate, y, what)
        leaves = _leaves(x)
        if not leaves:
            raise TypeError(
                f"{what} must be a tensor, a tuple or mapping of tensors, a Dataset or a DataLoader, got {_name(x)}"
            )
        return _from_tensors(x, y, leaves, what)


def _with(examples: Examples, y: Any, what: str) -> Examples:
    """The same inputs with other targets."""
    if len(y) != len(examples):
        raise ValueError(f"{what} has {len(examples)} rows and the targets have {len(y)}; they must be equal")
    targets = torch.as_tensor(y)
    return Examples(len(examples), lambda index: (examples.draw(index)[0], targets[index.to(targets.device)]))


def _check_sampler(loader: DataLoader[Any], what: str) -> None:
    """Refuses a sampler that does not go over every row: rows are addressed by index, not through it."""
    sampler: Any = loader.sampler
    rows = len(loader.dataset)  # type: ignore[arg-type]
    if isinstance(sampler, torch.utils.data.DistributedSampler) or not hasattr(sampler, "__len__"):
        return
    if isinstance(sampler, torch.utils.data.WeightedRandomSampler) or len(sampler) != rows:
        raise ValueError(
            f"{what} is a DataLoader whose {type(sampler).__name__} draws {len(sampler)} of {rows} rows, but rows are "
            "addressed by index; give torch.utils.data.Subset(dataset, indices)"
        )


def _from_tensors(x: Tree, y: Any, leaves: list[tuple[str, Tensor]], what: str) -> Examples:
    sizes = {name: (leaf.shape[0] if leaf.ndim else 0) for name, leaf in leaves}
    if y is not None:
        try:
            y = torch.as_tensor(y)
        except (ValueError, TypeError, RuntimeError) as error:
            said = f"targets must be numbers, got {_name(y)} ({error})"
            raise TypeError(f"{said}; number the classes 0, 1, 2, ...") from error
        sizes["targets"] = y.shape[0] if y.ndim else 0
    if len(set(sizes.values())) > 1:
        found = {name or "inputs": size for name, size in sizes.items()}
        raise ValueError(f"{what} and targets must have the same number of rows, got {found}")
    count = next(iter(sizes.values()))
    if not count:
        raise ValueError(f"{what} has zero rows; give at least one")
    for name, leaf in leaves:
        check_finite(leaf, f"{what}{name}")
    return Examples(count, lambda index: (_index(x, index), None if y is None else y[index.to(y.device)]))


def _from_dataset(dataset: Any, collate: Callable[[list[Any]], Any], y: Any, what: str) -> Examples:
    count = len(dataset)
    if not count:
        raise ValueError(f"{what} is a dataset with zero rows; give at least one")
    if y is not None and len(y) != count:
        raise ValueError(f"{what} has {count} rows and the targets have {len(y)}; they must be equal")

    def draw(index: Tensor) -> tuple[Tree, Any]:
        batch = collate([dataset[i] for i in index.tolist()])
        paired = isinstance(batch, (tuple, list)) and len(batch) == 2
        inputs, targets = batch if paired else (batch, None)
        if isinstance(inputs, Mapping) and "labels" in inputs:
            targets = inputs["labels"] if targets is None else targets
            inputs = {key: value for key, value in inputs.items() if key != "labels"}
        return inputs, targets if y is None else torch.as_tensor(y)[index]

    return Examples(count, draw)


def _gather(loader: DataLoader[Any]) -> tuple[Tree, Any]:
    own = None if loader.generator is None else loader.generator.get_state()
    with torch.random.fork_rng(devices=[]):  # iterating a loader draws from the global generator, or from its own
        batches = list(loader)
    if own is not None:
        loader.generator.set_state(own)
    if not batches:
        raise ValueError("the DataLoader yields no batch; give at least one row")
    paired = isinstance(batches[0], (tuple, list)) and len(batches[0]) == 2
    inputs = _concatenate([b[0] if paired else b for b in batches])
    return inputs, torch.cat([b[1] for b in batches]) if paired else None


def _concatenate(trees: Sequence[Tree]) -> Tree:
    first = trees[0]
    if isinstance(first, Tensor):
        return torch.cat(list(trees))
    if isinstance(first, Mapping):
        return {key: _concatenate([t[key] for t in trees]) for key in first}
    return tuple(_concatenate(column) for column in zip(*trees))


def _index(tree: Tree, index: Tensor) -> Tree:
    return tree_map(lambda leaf: leaf[index.to(leaf.device)], tree)


def tree_map(function: Callable[[Tensor], Tensor], tree: Tree) -> Tree:
    """`function` of every tensor in a tree, in the same structure; what is no tensor is kept."""
    if isinstance(tree, Tensor):
        return function(tree)
    if isinstance(tree, Mapping):
        return {key: tree_map(function, value) for key, value in tree.items()}
    if isinstance(tree, (tuple, list)):
        return tuple(tree_map(function, value) for value in tree)
    return tree


def to(tree: Tree, device: torch.device) -> Tree:
    """The tree on `device`."""
    return tree_map(lambda leaf: leaf.to(device), tree)


def check_finite(values: Tensor, what: str) -> None:
    """Raises `ValueError` that names the first row with an infinity or NaN."""
    if not values.is_floating_point() or bool(torch.isfinite(values).all()):
        return
    bad = ~torch.isfinite(values)
    row = int(bad.reshape(bad.shape[0], -1).any(1).nonzero()[0])
    raise ValueError(f"{what} is not finite: {int(bad.sum())} entries, the first in row {row}; clean the data first")


def _leaves(tree: Tree, prefix: str = "") -> list[tuple[str, Tensor]]:
    if isinstance(tree, Tensor):
        return [(prefix, tree)]
    if isinstance(tree, Mapping):
        return [leaf for key, value in tree.items() for leaf in _leaves(value, f"{prefix}[{key!r}]")]
    if isinstance(tree, (tuple, list)):
        return [leaf for i, value in enumerate(tree) for leaf in _leaves(value, f"{prefix}[{i}]")]
    return []


def _name(x: Any) -> str:
    return f"a {type(x).__name__}"
