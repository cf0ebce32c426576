"""Whole units as what goes: which, for a given fraction of the weights."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, nn

from isopath.space import Space
from isopath.symmetry import Units, symmetries

Scores = Mapping[int, Tensor]  # of each group, (n,)


def found(model: nn.Module, example: Any, space: Space, theta: Tensor, fraction: float, multiple: int = 1) -> Units:
    """The channels of a module that can go.

    Args:
        model: any module; it is not modified.
        example: a few of its inputs.
        space: whose coordinates may become zero.
        theta: the point that it is at.
        fraction: of the weights that is to go.
        multiple: of which the number that stays in each group is one.

    Raises:
        ValueError: none can go, or fewer than asked.
    """
    units = within(Units.of(model, example, symmetries(model, example, rescalings=False)), space)
    if not units.sizes:
        raise ValueError(f"the model has no channel that can go: {units}")
    wide = space.where(lambda name, _: name in space.weights)
    least = support(units, space, magnitudes(units, space, theta), 1.0, False, multiple)
    most = float((~least & wide).sum() / wide.sum())
    if fraction > most:
        raise ValueError(
            f"without its channels but {'one' if multiple == 1 else multiple} of each kind {most:.1%} of the weights "
            f"are zero, got a fraction of {fraction:.1%}; ask for less, or for another pattern. {units}"
        )
    return units


def within(units: Units, space: Space) -> Units:
    """Those that have weights, all of them among the coordinates of a space."""
    shapes, groups = units.symmetries.shapes, units.symmetries.groups
    wide = {key: {name for name, _ in group.members if len(shapes[name]) >= 2} for key, group in groups.items()}
    outside = [key for key, names in wide.items() if not names or not names <= set(space.names)]
    frozen = [f"{groups[key].size} units of {groups[key].members[0][0]}: not all their weights are trainable, or they "
              "have none of two or more dimensions" for key in outside]  # fmt: skip
    return Units(units.symmetries.without(outside), (*units.frozen, *frozen))


def magnitudes(units: Units, space: Space, theta: Tensor) -> dict[int, Tensor]:
    """The mean square of each unit's weights, `(n,)` for each group: zero where it is gone."""
    wide = {name: t for name, t in space.unflatten(theta.detach()).items() if t.ndim >= 2}
    squares = units.totals({name: t.square() for name, t in wide.items()})
    counts = units.totals({name: torch.ones_like(t) for name, t in wide.items()})
    return {key: total / counts[key] for key, total in squares.items()}


def emptied(units: Units, space: Space, theta: Tensor, key: int, unit: int) -> Tensor:
    """A new point without one unit."""
    theta = theta.clone()
    parts = space.unflatten(theta)
    for name, mask in units.entries({key: torch.arange(units.sizes[key]) != unit}).items():
        if name in parts:
            parts[name].mul_(mask.to(theta.device))
    return theta


def support(
    units: Units, space: Space, scores: Scores, fraction: float, by_layer: bool, multiple: int = 1
) -> Tensor:
    """Which coordinates stay, `(P,)`, where units of least score go until a fraction of the weights has gone.

    At least one unit stays in each group, or `multiple`, or all of a group that has fewer.

    Args:
        units: that may go.
        space: of the point.
        scores: of each unit.
        fraction: of the entries of weights, see `Space.weights`.
        by_layer: whether each group loses the same share of its units, instead of all competing.
        multiple: units go so many at a time, by their mean score or rank, and first those beyond a multiple.
    """
    ranked = []
    for key, values in scores.items():
        order, gone = values.argsort(stable=True), 0
        for size in _blocks(len(order), multiple):
            block = order[gone : gone + size]
            share = (gone + (size + 1) / 2) / len(order)  # its mean rank: each group goes to the nearest multiple
            ranked.append((share if by_layer else float(values[block].mean()), key, block))
            gone += size
    ranked.sort(key=lambda entry: entry[0])

    def mask(count: int) -> Tensor:
        kept = {key: torch.ones(size, dtype=torch.bool) for key, size in units.sizes.items()}
        for _, key, block in ranked[:count]:
            kept[key][block] = False
        entries = units.entries(kept)
        flat = [entries[n].flatten() if n in entries else torch.ones(s.numel(), dtype=torch.bool)
                for n, s in zip(space.names, space.shapes)]  # fmt: skip
        return torch.cat(flat)

    wide = space.where(lambda name, _: name in space.weights).cpu()
    goal, low, high = round(fraction * int(wide.sum())), 0, len(ranked)
    while low < high:  # what is gone grows with the count
        middle = (low + high) // 2
        if int((~mask(middle) & wide).sum()) < goal:
            low = middle + 1
        else:
            high = middle
    return mask(low).to(space.device)


def _blocks(units: int, multiple: int) -> list[int]:
    """How many of a group's units go at a time, so that what stays is a multiple and not nothing."""
    beyond, times = units % multiple, units // multiple
    return ([beyond] if beyond and times else []) + [multiple] * (times - 1)
