"""Axes as products and sums of atoms, made equal where an operator makes them move together."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from typing import Literal


@dataclass(eq=False)
class Axis:
    """One axis of a tensor, or a part of one: an atom, a product or a sum of others.

    An atom stands for a permutation of its indices that is not known yet. A product of axes (outer to inner) is what a
    reshape merges, a sum is what a concatenation joins. Axes that an operator moves together are linked (union-find),
    and an atom is refined into a product or a sum where a later operator takes it apart: the permutations that are left
    are those that respect the parts.

    Attributes:
        size: the number of indices.
        kind: what it is made of.
        parts: of a product or a sum.
        fixed: why its indices may not be permuted; `None` while they may.
        parents: atoms on whose index its permutation may depend: units within a head may be permuted differently in
            each head.
        copies: what stands for it where a parent was cut: one axis for each part of that parent.
    """

    size: int
    kind: Literal["atom", "product", "sum"] = "atom"
    parts: list[Axis] = field(default_factory=list)
    fixed: str | None = None
    parents: set[Axis] = field(default_factory=set)
    copies: dict[tuple[Axis, Axis], Axis] = field(default_factory=dict)
    _link: Axis | None = None

    def find(self) -> Axis:
        """What it is linked to in the end."""
        node = self
        while node._link is not None:
            node = node._link
        if self._link is not None:
            self._link = node
        return node

    def leaves(self) -> Iterator[Axis]:
        """Its atoms."""
        node = self.find()
        if node.kind == "atom":
            yield node
        for part in node.parts:
            yield from part.leaves()

    def inside(self) -> Iterator[Axis]:
        """Itself and everything that it is made of."""
        node = self.find()
        yield node
        for part in node.parts:
            yield from part.inside()

    def fix(self, reason: str) -> None:
        """Forbids every permutation of its indices."""
        for leaf in self.leaves():
            if leaf.fixed is None:
                leaf.fixed = reason
                for other in leaf.copies.values():
                    other.fix(reason)

    @property
    def movable(self) -> bool:
        """Whether any of its indices may still be permuted."""
        return any(leaf.fixed is None and leaf.size > 1 for leaf in self.leaves())


def fixed(size: int, reason: str) -> Axis:
    """An axis whose indices stay where they are."""
    return Axis(size, fixed=reason)


def product(axes: Sequence[Axis]) -> Axis:
    """Several axes merged into one, the first outermost."""
    parts = [factor for axis in axes for factor in factors(axis)]
    if len(parts) == 1:
        return parts[0]
    return Axis(math.prod(part.size for part in parts), "product", parts)


def total(axes: Sequence[Axis]) -> Axis:
    """Several axes joined end to end."""
    parts = [term for axis in axes for term in terms(axis) if term.size]
    return parts[0] if len(parts) == 1 else Axis(sum(part.size for part in parts), "sum", parts)


def factors(axis: Axis) -> list[Axis]:
    """What it is a product of, outer to inner; nothing for an axis of size one."""
    axis = axis.find()
    if axis.kind == "product":
        return [factor for part in axis.parts for factor in factors(part)]
    return [] if axis.size == 1 else [axis]


def terms(axis: Axis) -> list[Axis]:
    """What a sum is made of; a product whose outermost factor is a sum is one too."""
    axis = axis.find()
    if axis.kind == "sum":
        return [term for part in axis.parts for term in terms(part)]
    outer, *inner = factors(axis) or [axis]
    if inner and outer.kind == "sum":
        return [product([part, *(copy(f, outer, part) for f in inner)]) for part in terms(outer)]
    return [axis]


def copy(axis: Axis, parent: Axis, part: Axis) -> Axis:
    """What stands for `axis` where only `part` of `parent` is left: itself where it does not depend on `parent`."""
    axis, parent, part = axis.find(), parent.find(), part.find()
    if axis.kind == "product":
        return product([copy(p, parent, part) for p in axis.parts])
    if axis.kind == "sum":
        return total([copy(p, parent, part) for p in axis.parts])
    if axis.fixed or parent not in {p.find() for p in axis.parents}:
        return axis
    key = (parent, part)
    if key in axis.copies:
        return axis.copies[key].find()
    for (_, before), other in list(axis.copies.items()):
        if part in set(before.inside()):  # a part of one that was copied for already
            return copy(other, before, part)
    others = {copy(p, parent, part) for p in axis.parents if p.find() is not parent}
    axis.copies[key] = found = Axis(axis.size, parents=others | ({part} if part.size > 1 else set()))
    if part.kind == "sum":
        for term in terms(part):
            found.copies[part, term] = copy(axis, parent, term)
    return found


def split(axis: Axis, sizes: Sequence[int], reason: str) -> list[Axis]:
    """Axes of the given sizes whose product it is; all of it becomes fixed where its own parts do not fit them."""
    left, found = factors(axis), []
    for size in sizes:
        taken: list[Axis] = []
        while (held := math.prod(f.size for f in taken)) < size:
            first, need = left.pop(0), size // held
            if size % held or not _divided(first, need, left):
                axis.fix(reason)
                return [fixed(s, reason) for s in sizes]
            taken.append(first.find() if first.find().kind != "product" else factors(first)[0])
        found.append(product(taken) if taken else Axis(1))
    return found


def _divided(first: Axis, need: int, left: list[Axis]) -> bool:
    """Whether `first` fits into `need`, taken apart if it is an atom; what is over goes back."""
    if need % first.size == 0:
        return True
    if first.kind != "atom" or first.size % need:
        return False
    outer = Axis(need, fixed=first.fixed, parents=set(first.parents))
    inner = Axis(first.size // need, fixed=first.fixed, parents={*first.parents, outer})
    _refined(first, "product", [outer, inner])
    left.insert(0, inner)
    return True


def _refined(atom: Axis, kind: Literal["product", "sum"], parts: list[Axis]) -> None:
    """Takes an atom apart, and what stands for it likewise."""
    copies, atom.copies = atom.copies, {}
    atom.kind, atom.parts = kind, parts
    for (parent, part), other in copies.items():
        unify(copy(atom, parent, part), other, "refinement")


def cut(axis: Axis, sizes: Sequence[int], reason: str) -> list[Axis]:
    """Axes of the given sizes whose sum it is; all of it becomes fixed where its own parts do not fit them."""
    left, found = terms(axis), []
    for size in sizes:
        taken: list[Axis] = []
        while (held := sum(t.size for t in taken)) < size:
            first, need = left.pop(0), size - held
            if first.size > need:
                pieces = _cut_term(first, need)
                if pieces is None:
                    axis.fix(reason)
                    return [fixed(s, reason) for s in sizes]
                first, rest = pieces
                left.insert(0, rest)
            taken.append(first)
        found.append(total(taken) if taken else Axis(0))
    return found


def _cut_term(term: Axis, need: int) -> tuple[Axis, Axis] | None:
    """A term in two pieces, the first of size `need`: an atom anywhere, a product between its outer indices."""
    term = term.find()
    if term.kind == "atom":
        pieces = [Axis(size, fixed=term.fixed, parents=set(term.parents)) for size in (need, term.size - need)]
        _refined(term, "sum", pieces)
        return pieces[0], pieces[1]
    outer, *inner = factors(term)
    width = math.prod(f.size for f in inner)
    if need % width:
        return None
    cuts = _cut_term(outer, need // width)
    if cuts is None:
        return None
    first, second = (product([part, *(copy(f, outer, part) for f in inner)]) for part in cuts)
    return first, second


def unify(a: Axis, b: Axis, reason: str) -> None:
    """Makes two axes move together; both become fixed where their parts do not fit each other."""
    a, b = a.find(), b.find()
    if a is b or (a.size == 1 and b.size == 1):
        return
    assert a.size == b.size, (a.size, b.size)
    if a.kind != "atom":
        a, b = b, a
    if a.kind == "atom":
        if a in set(b.inside()):  # part of itself: only the identity
            b.fix(reason)
            return
        if a.fixed:
            b.fix(a.fixed)
        elif b.kind == "atom":
            b.parents |= a.parents
        copies, a.copies, a._link = a.copies, {}, b
        for (parent, part), other in copies.items():
            unify(copy(b, parent, part), other, reason)
        return
    if len(terms(a)) > 1 or len(terms(b)) > 1:
        _unify_sums(a, b, reason)
        return
    _unify_products(a, b, reason)


def _unify_sums(a: Axis, b: Axis, reason: str) -> None:
    ends = [set(_ends(x)) for x in (a, b)]
    cuts = sorted(ends[0] | ends[1])
    sizes = [high - low for low, high in zip([0, *cuts], cuts)]
    for one, other in zip(cut(a, sizes, reason), cut(b, sizes, reason)):
        unify(one, other, reason)


def _ends(axis: Axis) -> Iterator[int]:
    at = 0
    for term in terms(axis):
        at += term.size
        yield at


def _unify_products(a: Axis, b: Axis, reason: str) -> None:
    ones, others = factors(a), factors(b)
    while ones and others:
        one, other = ones[0], others[0]
        if one.size == other.size:
            unify(ones.pop(0), others.pop(0), reason)
            continue
        (large, small), queue = ((one, other), ones) if one.size > other.size else ((other, one), others)
        if large.kind != "atom" or large.size % small.size:
            a.fix(reason)
            b.fix(reason)
            return
        queue.pop(0)
        inner: list[Axis] = []
        _divided(large, small.size, inner)
        queue[:0] = [large.parts[0], inner[0]]
