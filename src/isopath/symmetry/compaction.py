"""A smaller module with the same outputs, without the units whose weights are zero."""

from __future__ import annotations

import warnings
from typing import Any, Literal

import torch
from torch import Tensor, nn

from isopath.arguments import check_module
from isopath.network import check_runs, copied
from isopath.symmetry.finder import symmetries
from isopath.symmetry.group import Symmetries
from isopath.symmetry.trial import Trial
from isopath.symmetry.units import Units, apart, removed, same

Enough = Literal["made or read", "made", "whole"]


def compact(model: nn.Module, example: Any, found: Symmetries | None = None) -> nn.Module:
    """The same function with fewer units: those whose weights are all zero are taken out, through sums and batch norm.

    A unit goes if every weight of two or more dimensions that makes it or reads it is zero, or everything that makes it
    (its rows, its bias, its scale and shift), or every weight that reads it. What can go is tried: at random weights
    with the same zeros, in float64, the smaller module must have the outputs of the larger one, else the units stay. At
    least one stays in each group.

    Args:
        model: any module; it is not modified.
        example: its inputs: a tensor, a tuple of positional or a mapping of keyword arguments. What they do not run, a
            head that an argument chooses say, is not made smaller with the rest, which a warning says.
        found: its symmetries, if known.

    Returns:
        A copy whose layers are smaller, with the model's own class, names, modes and hooks: a plain module to train,
        save and export. Where nothing can go, an equal copy.
    """
    check_module(model, "what is made compact", "of a path take .model()")
    check_runs(model, example, "the example")
    found = apart(symmetries(model, example, rescalings=False) if found is None else found)
    zeros = {name: (tensor == 0).detach().cpu() for name, tensor in model.named_parameters()}
    trial = Trial(model, example)
    for enough in ("made or read", "made", "whole"):  # the last where a unit that nothing makes leaves act(0) behind
        kept = _kept(Units(found), zeros, enough)
        if same(trial, found, kept, zeros):
            break
    else:  # group by group
        sure: dict[int, Tensor] = {}
        for key, stays in kept.items():
            sure = {**sure, key: stays} if same(trial, found, {**sure, key: stays}, zeros) else sure
        kept = sure
    small = copied(model)
    removed(small, found, kept)
    _warn_unread(model, trial, {len(stays) for stays in kept.values()})
    return small


def _warn_unread(model: nn.Module, trial: Trial, sizes: set[int]) -> None:
    """Warns of parameters that do nothing on the example and have as many units as a group that is smaller now."""
    _, read = trial.gradient(0) if sizes else ({}, {})
    alike = [name for name, p in model.named_parameters() if sizes & set(p.shape) and name not in read]
    if alike:
        warnings.warn(
            f"{alike[0]!r} ({len(alike)} such parameters) has no effect on this example and keeps its shape, though it "
            "has as many units as what is made smaller; where it reads them, give an example that runs it too",
            stacklevel=3,
        )


def _kept(units: Units, zeros: dict[str, Tensor], enough: Enough) -> dict[int, Tensor]:
    """The units that stay of the groups of which some go.

    Args:
        units: all of them.
        zeros: where each parameter is zero.
        enough: what must be zero of a unit that goes: what makes it or the weights that read it, what makes it, or the
            weights that make it and those that read it.
    """
    rest = {name: ~mask for name, mask in zeros.items()}
    wide = {name: mask for name, mask in rest.items() if mask.ndim >= 2}
    whole, among = units.totals(rest), units.totals(wide)
    kept = {key: (among if any(name in wide for name, _ in group.members) else whole)[key] > 0
            for key, group in units.symmetries.groups.items()}  # fmt: skip
    if enough != "whole":
        made = units.totals(rest, origin=0)
        kept = {key: stays & (made[key] > 0) for key, stays in kept.items()}
    if enough == "made or read":
        rows, groups = units.totals(wide, origin=0), units.symmetries.groups
        read = {key for key in kept if any(axis and name in wide for name, axis in groups[key].members)}
        kept = {key: stays & (among[key] > rows[key]) if key in read else stays for key, stays in kept.items()}
    for key, stays in kept.items():
        if not bool(stays.any()):
            kept[key] = torch.arange(len(stays)) == 0
    return {key: stays for key, stays in kept.items() if not bool(stays.all())}
