"""Units as things to take away: which entries go with each, and which of a module's can go at all."""

from __future__ import annotations

import copy
from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor, nn

from isopath.symmetry.cells import cells
from isopath.symmetry.group import Place, Symmetries
from isopath.symmetry.trial import Trial, alike

Stays = Mapping[int, Tensor]  # of each group, which units stay: booleans, (n,)

# what a layer knows of its tensors' sizes beside the tensors: attribute, name of the tensor, axis of it
SIZES: tuple[tuple[type[nn.Module], tuple[tuple[str, str, int], ...]], ...] = (
    (nn.Linear, (("in_features", "weight", 1), ("out_features", "weight", 0))),
    (nn.Embedding, (("num_embeddings", "weight", 0), ("embedding_dim", "weight", 1))),
    (nn.PReLU, (("num_parameters", "weight", 0),)),
    (nn.GroupNorm, (("num_channels", "weight", 0),)),
    (nn.modules.batchnorm._NormBase, (("num_features", "weight", 0), ("num_features", "running_mean", 0))),
)


@dataclass(frozen=True)
class Units:
    """Groups of units that can be taken out of a module.

    A unit is an index of a group of permutable axes: a neuron, or a channel with everything that is added to it,
    normalises it or reads it. All the entries that carry its index go with it.

    Attributes:
        symmetries: the groups, without those whose units cannot go; each has one axis and no parents.
        frozen: of the other groups, what they are and why they stay.
    """

    symmetries: Symmetries
    frozen: tuple[str, ...] = ()

    @classmethod
    def of(cls, model: nn.Module, example: Any, found: Symmetries) -> Units:
        """The units that can go: with half of each group zero, the smaller module has the same outputs in float64.

        A unit that takes part in more than sums, as in a layer norm over it, cannot: the others would see that it is
        gone. Nor can one whose number is written into the code of `forward`.

        Args:
            model: any module; it is not modified.
            example: its inputs.
            found: its symmetries.
        """
        trial = Trial(model, example)
        single = [*apart(found).groups]
        frozen = [_named(found, key, "its units lie within others") for key in found.groups if key not in single]
        half = {key: torch.arange(found.groups[key].size) % 2 == 0 for key in single}

        def holds(keys: list[int]) -> bool:
            rest = found.without([key for key in found.groups if key not in keys])
            return same(trial, rest, {key: half[key] for key in keys})

        if not holds(single):
            alone = [key for key in single if holds([key])]
            frozen += [_named(found, key, "without some of its units the outputs differ, or the module does not run")
                       for key in single if key not in alone]  # fmt: skip
            single = alone
            if single and not holds(single):  # each by itself, and not together: as many as go one after the other
                single = []
                for key in alone:
                    single += [key] if holds([*single, key]) else []
                frozen += [_named(found, key, "not together with the others") for key in alone if key not in single]
        rest = found.without([key for key in found.groups if key not in single])
        return cls(replace(rest, scalings=()), tuple(frozen))

    @property
    def sizes(self) -> dict[int, int]:
        """How many units each group has."""
        return {key: group.size for key, group in self.symmetries.groups.items()}

    def entries(self, kept: Stays) -> dict[str, Tensor]:
        """Which entries stay, booleans of the shape of every tensor that some of these groups' units sit in."""
        found, groups = {}, self.symmetries.groups
        for name in dict.fromkeys(name for key in kept for name, _ in groups[key].members):
            places = self.symmetries.places[name]
            mask = torch.ones(self.symmetries.shapes[name], dtype=torch.bool)
            for axis, place in enumerate(places):
                shape = [1] * len(places)
                shape[axis] = -1
                mask &= axis_of(place, kept).view(shape)
            found[name] = mask
        return found

    def totals(self, values: Mapping[str, Tensor], origin: int | None = None) -> dict[int, Tensor]:
        """The sum of values over each unit's entries, `(n,)` for each group; names without values count nothing.

        Args:
            values: by the tensors' names.
            origin: only entries that carry the unit's index on this axis of their tensor.
        """
        totals = {key: torch.zeros(size, dtype=torch.float64) for key, size in self.sizes.items()}
        for name, places in self.symmetries.places.items():
            if name not in values:
                continue
            for cell in cells(values[name].detach().double().cpu(), places):
                for axis, key in enumerate(cell.keys):
                    if key in totals and origin in (None, cell.origin[axis]):
                        others = [k for k in range(cell.view.ndim) if k != axis]
                        totals[key] += cell.view.sum(others) if others else cell.view
        return totals

    def __str__(self) -> str:
        count = sum(self.sizes.values())
        lines = [f"{count} units in {len(self.sizes)} groups can go"]
        lines += [f"  {size}: {', '.join(f'{n} axis {a}' for n, a in self.symmetries.groups[key].members)}"
                  for key, size in self.sizes.items()]  # fmt: skip
        return "\n".join([*lines, *(["these stay:", *(f"  {why}" for why in self.frozen)] if self.frozen else [])])


def apart(found: Symmetries) -> Symmetries:
    """Without the groups whose units lie within those of others, as in heads."""
    return found.without([key for key, group in found.groups.items() if group.shape != (group.size,)])


def _named(found: Symmetries, key: int, why: str) -> str:
    group = found.groups[key]
    return f"{group.size} units of {', '.join(f'{name} axis {axis}' for name, axis in group.members[:3])}: {why}"


def axis_of(place: Place, kept: Stays) -> Tensor:
    """Which positions of an axis stay, booleans."""
    if place.kind == "group" and place.group in kept:
        return kept[place.group]
    if place.kind == "sum":
        return torch.cat([axis_of(part, kept) for part in place.parts])
    found = torch.ones(1 if place.kind == "product" else place.size, dtype=torch.bool)
    for part in place.parts if place.kind == "product" else ():
        found = (found.unsqueeze(1) & axis_of(part, kept)).flatten()
    return found


def same(trial: Trial, found: Symmetries, kept: Stays, zeros: Mapping[str, Tensor] | None = None) -> bool:
    """Whether a module whose units' parameters are zero has the outputs of one without those units, in float64.

    Args:
        trial: the module, at weights drawn at random.
        found: the symmetries, whose groups are those of `kept`.
        kept: which units stay.
        zeros: where each parameter is zero, instead of at all of a unit's entries.
    """
    state = trial.point(1, fresh=True)
    masks = Units(found).entries(kept) if zeros is None else {name: ~mask for name, mask in zeros.items()}
    names = {name for name, _ in trial.module.named_parameters()}  # statistics stay as they are
    state = {n: t * masks[n].to(t.device) if n in names and n in masks else t for n, t in state.items()}
    small = copy.deepcopy(trial.module)
    small.load_state_dict(state, strict=False)
    with torch.no_grad():
        before = trial(state)
        try:
            removed(small, found, kept)
            after = trial.of(small)
        except (RuntimeError, ValueError, IndexError, TypeError, AssertionError):
            return False  # it does not run at other sizes
    return alike(after, before)


def removed(module: nn.Module, found: Symmetries, kept: Stays) -> None:
    """Cuts a module's parameters and statistics in place, and sets what its layers know of their sizes."""
    tensors = [*module.named_parameters(), *module.named_buffers()]  # held, so that no address is used again
    places = {id(tensor): found.places[name] for name, tensor in tensors if name in found.places}
    cut = {id(tensor): _cut(tensor, places[id(tensor)], kept) for _, tensor in tensors if id(tensor) in places}
    for owner in module.modules():
        # of the weight's first axis, by which grouped layers are divided
        leading = places.get(id(getattr(owner, "weight", None)), ())[:1]
        for table in (owner._parameters, owner._buffers):
            for key, tensor in table.items():
                if id(tensor) in cut:
                    table[key] = cut[id(tensor)]  # type: ignore[assignment]  # what was shared stays shared
        for attribute in ("groups", "num_groups"):
            count = getattr(owner, attribute, None)
            if leading and isinstance(count, int) and count > 1:
                setattr(owner, attribute, _divided(leading[0], count, kept))
        for kind, attributes in SIZES:
            if isinstance(owner, kind):
                for attribute, name, axis in attributes:
                    if getattr(owner, name, None) is not None:
                        setattr(owner, attribute, getattr(owner, name).shape[axis])
        if isinstance(owner, nn.modules.conv._ConvNd):
            first, second = owner.weight.shape[0], owner.weight.shape[1] * owner.groups
            owner.in_channels, owner.out_channels = (first, second) if owner.transposed else (second, first)


def _divided(place: Place, count: int, kept: Stays) -> int:
    """How many of a grouped layer's groups stay."""
    part = place.parts[0] if place.kind == "product" else place
    return int(axis_of(part, kept).sum()) if part.size == count else count


def _cut(tensor: Tensor, places: tuple[Place, ...], kept: Stays) -> Tensor:
    value = tensor.detach()
    for axis, place in enumerate(places):
        stays = axis_of(place, kept)
        if not bool(stays.all()):
            value = value.index_select(axis, stays.nonzero().squeeze(1).to(value.device))
    if not isinstance(tensor, nn.Parameter):
        return value.clone()
    return nn.Parameter(value.clone(), requires_grad=tensor.requires_grad)
