"""The symmetries of a module, found from one forward pass and checked in float64."""

from __future__ import annotations

import warnings
from collections import Counter
from collections.abc import Iterator, Mapping
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils._pytree import tree_leaves

from isopath.arguments import check_module
from isopath.network import _arguments as arguments_of
from isopath.network import check_runs, copied, plain_kernels
from isopath.symmetry import arithmetic, views  # noqa: F401  their rules
from isopath.symmetry.axes import Axis, factors, fixed, terms, unify
from isopath.symmetry.group import Group, Place, Site, Symmetries
from isopath.symmetry.labels import Label, Labels
from isopath.symmetry.rescaling import octaves, rescaled, scalings
from isopath.symmetry.trial import Trial, alike, tensors_in

TRIES = 2  # random elements that the check draws


def symmetries(model: nn.Module, example: Any, check: bool = True, rescalings: bool = True) -> Symmetries:
    """Which units of a module may be permuted among themselves, or rescaled, without any change of its outputs.

    One forward pass in eval mode is watched at the level of single operators. Axes that an operator moves together are
    linked; whatever is not understood is fixed. Every group is then tried: with its biases, scales and statistics
    randomised and in float64, a random element must leave the outputs as they are.

    Args:
        model: any module; it is not modified.
        example: its inputs: a tensor, a tuple of positional or a mapping of keyword arguments.
        check: whether to try every group; one that fails is dropped with a warning.
        rescalings: whether to look for positive factors of units that cancel, as across a ReLU; a backward pass more.

    Raises:
        TypeError: the model is no module.
        ValueError: the module does not run on the example, or does other operations on a second call.
    """
    check_module(model, "model")
    check_runs(model, example, "the example")
    twin = copied(model).eval()
    see, names = Labels(twin.buffers()), _names(twin)
    tensors = _parameters(model, twin, see)
    _run(twin, example, see)
    again = Labels()
    _run(twin, example, again)
    if see.calls != again.calls:
        raise ValueError(
            f"{type(model).__name__} does other operations on a second call with the same inputs; symmetries are found "
            "from one pass, so make its control flow deterministic in eval mode"
        )
    for parameter in twin.parameters():
        if id(parameter) not in see.read:
            for axis in see.of(parameter):
                axis.fix("never read")
    for name, buffer in twin.named_buffers():
        if id(buffer) in see.seen and any(axis.movable for axis in see.of(buffer)):
            tensors[name] = see.of(buffer)
    _settle(see, tensors)
    found = _resolved(tensors, names, see.sites)
    trial = Trial(model, example)
    found = _checked(trial, found) if check else found
    return _with_scalings(trial, found) if rescalings else found


def _names(model: nn.Module) -> dict[str, tuple[int, ...]]:
    named = [*model.named_parameters(remove_duplicate=False), *model.named_buffers(remove_duplicate=False)]
    return {name: tuple(t.shape) for name, t in named}


def _parameters(model: nn.Module, twin: nn.Module, see: Labels) -> dict[str, Label]:
    """A label for every parameter; those that share memory in the caller's module share it, or are fixed."""
    found: dict[str, Label] = {}
    owners: dict[int, tuple[Tensor, Label]] = {}
    for (name, own), parameter in zip(model.named_parameters(), twin.parameters()):
        label = [Axis(size) for size in own.shape]
        storage = own.untyped_storage().data_ptr()
        if storage in owners and own.numel():
            other, shared = owners[storage]
            if _same_view(own, other):
                label = shared
            else:
                for axis in (*label, *shared):
                    axis.fix("shares memory with another parameter")
        owners.setdefault(storage, (own, label))
        see.put(parameter, label)
        found[name] = label
    return found


def _same_view(a: Tensor, b: Tensor) -> bool:
    return (a.data_ptr(), a.shape, a.stride()) == (b.data_ptr(), b.shape, b.stride())


def _run(model: nn.Module, example: Any, see: Labels) -> None:
    args, kwargs = arguments_of(example)
    for tensor in tree_leaves((args, kwargs)):
        if isinstance(tensor, Tensor):
            see.put(tensor, [fixed(size, "an input") for size in tensor.shape])
            see.data.add(id(tensor))
    with torch.no_grad(), plain_kernels(recurrent=True), see:
        out = model(*args, **kwargs)
    for tensor in tensors_in(out):
        for axis in see.of(tensor):
            axis.fix("an output")


# --- which permutations may depend on which index ------------------------------------------------------------------


def _settle(see: Labels, tensors: Mapping[str, Label]) -> None:
    """Drops parents that an atom has not beside it everywhere; what stood for it in parts is then it again."""
    while True:
        changed = False
        around: dict[Axis, set[Axis]] = {}
        for _, label in see.seen.values():
            for atom, nodes in _beside(label):
                around[atom] = around[atom] & nodes if atom in around else nodes
        forbidden: set[tuple[Axis, Axis]] = set()
        for mixed, beside in see.coupled:
            inside = {node for axis in mixed for node in axis.inside()}
            for leaf in {leaf for axis in beside for leaf in axis.leaves() if leaf.parents}:
                forbidden |= {(leaf, node) for node in inside if node is not leaf}
        for atom, nodes in around.items():
            allowed = {
                p
                for p in (q.find() for q in atom.parents)
                if p in nodes and (atom, p) not in forbidden and p is not atom
            }
            atom.parents = allowed
            lost = [key for key in atom.copies if key[0].find() not in allowed]
            for other in [atom.copies.pop(key) for key in lost]:
                unify(other, atom, "one permutation for all parts")
                changed = True
        if not changed and not _cut_parents(tensors):
            return


def _beside(label: Label) -> Iterator[tuple[Axis, set[Axis]]]:
    """Each atom that may depend on others, and what has one definite index beside it, on its own axis or another."""
    pieces = [list(_pieces(axis)) for axis in label]
    # what lies in one piece of a concatenation has no index beside the others
    apart = [Counter(axis.inside() if len(own) == 1 else [axis.find()]) for axis, own in zip(label, pieces)]
    for k, mine in enumerate(pieces):
        elsewhere = sum((counts for j, counts in enumerate(apart) if j != k), Counter())
        for piece in mine:
            own = Counter(piece.inside())
            for atom in own:
                if atom.kind == "atom" and atom.parents:
                    yield atom, {node for node in {*own, *elsewhere} if (own[node] or elsewhere[node]) == 1}


def _pieces(axis: Axis) -> Iterator[Axis]:
    node = axis.find()
    if node.kind != "sum":
        yield node
    else:
        for part in node.parts:
            yield from _pieces(part)


def _cut_parents(tensors: Mapping[str, Label]) -> bool:
    """Drops parents that were cut where the parts do not lie on the same axis; whether there were any."""
    for label in tensors.values():
        for axis in label:
            for term in terms(axis):
                for leaf in term.leaves():
                    for parent in [p for p in leaf.parents if p.find().kind != "atom"]:
                        leaf.parents.discard(parent)
                        return True
    return False


# --- the result -----------------------------------------------------------------------------------------------------


def _resolved(
    tensors: Mapping[str, Label], shapes: dict[str, tuple[int, ...]], activations: list[tuple[int, str, Label]]
) -> Symmetries:
    number: dict[Axis, int] = {}
    members: dict[Axis, list[tuple[str, int]]] = {}
    needed = {p.find() for label in tensors.values() for axis in label for leaf in _leaves(axis) for p in leaf.parents}

    def place(axis: Axis, known: bool = False) -> Place:
        parts = terms(axis)
        if len(parts) > 1:
            return Place("sum", axis.find().size, -1, tuple(place(p, known) for p in parts))
        parts = factors(axis)
        if len(parts) > 1:
            return Place("product", axis.find().size, -1, tuple(place(p, known) for p in parts))
        leaf = parts[0] if parts else axis.find()
        if leaf.kind != "atom":
            return place(leaf, known)
        if known and leaf not in number:  # of no parameter
            return Place("fixed", leaf.size)
        if leaf.size == 1 or leaf.fixed:
            return Place("fixed", leaf.size, number.setdefault(leaf, len(number)) if leaf in needed else -1)
        return Place("group", leaf.size, number.setdefault(leaf, len(number)))

    places, frozen = {}, dict[tuple[str, int], str]()
    for name, label in tensors.items():
        places[name] = tuple(place(axis) for axis in label)
        for k, axis in enumerate(label):
            for leaf in _leaves(axis):
                if leaf.fixed and leaf.size > 1:
                    frozen.setdefault((name, k), leaf.fixed)
                members.setdefault(leaf, [])
                if (name, k) not in members[leaf]:
                    members[leaf].append((name, k))
    groups = {}
    for leaf, key in number.items():
        if not leaf.fixed and leaf.size > 1:
            parents = sorted({p.find() for p in leaf.parents}, key=lambda p: number[p])
            groups[key] = Group(
                leaf.size,
                tuple(number[p] for p in parents),
                (*(p.size for p in parents), leaf.size),
                tuple(members[leaf]),
            )
    places = {name: ps for name, ps in places.items() if any(set(p.groups()) for p in ps)}
    sites = [Site(call, name, tuple(place(axis, known=True) for axis in label)) for call, name, label in activations]
    sites = [site for site in sites if any(set(p.groups()) for p in site.places)]
    return Symmetries(groups, places, shapes, frozen, tuple(sites))


def _leaves(axis: Axis) -> list[Axis]:
    return [leaf for term in terms(axis) for leaf in term.leaves()]


# --- the check ------------------------------------------------------------------------------------------------------


def _checked(trial: Trial, found: Symmetries) -> Symmetries:
    """The groups that hold."""
    state, generator = trial.point(1), torch.Generator().manual_seed(0)
    with torch.no_grad():
        before = trial(state)

    def holds(some: Symmetries) -> bool:
        with torch.no_grad():
            return alike(trial(some.applied(state, some.random(generator))), before)

    if all(holds(found) for _ in range(TRIES)):
        return found
    wrong = [
        key
        for key in found.groups
        if not holds(found.without([k for k in found.groups if k != key and k not in found.groups[key].parents]))
    ]
    for key in wrong:
        group = found.groups[key]
        warnings.warn(
            f"permuting {group.size} units of {group.members} changes the outputs; they are left fixed", stacklevel=3
        )
    return found.without(wrong)


def _with_scalings(trial: Trial, found: Symmetries) -> Symmetries:
    """The same with the rescalings of units that hold for large factors too."""
    found = replace(found, scalings=scalings(found, trial.gradient))
    state, generator = trial.point(1, fresh=True), torch.Generator().manual_seed(0)
    with torch.no_grad():
        before = trial(state)

        def holds(some: Symmetries) -> bool:
            return alike(trial(rescaled(state, some, octaves(some, generator))), before)

        if not found.scalings or holds(found):
            return found
        return replace(found, scalings=tuple(s for s in found.scalings if holds(replace(found, scalings=(s,)))))
