"""What operators that move elements do to axes: reshapes, transposes, slices, joins."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence

from torch import Tensor

from isopath.symmetry.axes import Axis, copy, cut, fixed, product, split, total, unify
from isopath.symmetry.labels import Call, Label, Labels, constant, rule


@rule("alias", "detach", "clone", "_to_copy", "contiguous", "lift_fresh", "lift", "zero")
def same(see: Labels, call: Call) -> list[Label]:
    """The same elements."""
    return [see.of(call["self"])]


@rule("view", "_unsafe_view", "reshape", "_reshape_alias", "unflatten")
def view(see: Labels, call: Call) -> list[Label]:
    """Axes merged and taken apart, in the smallest groups whose sizes agree."""
    return [regrouped(see.of(call["self"]), call.out[0].shape, call.name)]


def regrouped(label: Label, sizes: Sequence[int], reason: str) -> Label:
    """Axes of the given sizes over the same elements."""
    found: Label = []
    ins, outs = list(label), list(sizes)
    while ins or outs:
        group, target = ([ins.pop(0)] if ins else []), ([outs.pop(0)] if outs else [])
        while (have := math.prod(a.size for a in group)) != (want := math.prod(target)):
            if have < want:
                group.append(ins.pop(0))
            else:
                target.append(outs.pop(0))
        if len(group) == 1 and len(target) == 1:
            found.append(group[0])
        else:
            found += split(product(group) if group else Axis(1), target, reason)
    return found


@rule("t", "transpose", "permute", "numpy_T", "movedim")
def transpose(see: Labels, call: Call) -> list[Label]:
    """Axes in another order."""
    label = see.of(call["self"])
    if "dims" in call.args:
        return [[label[d] for d in call["dims"]]]
    if "dim0" in call.args:
        order = list(range(len(label)))
        a, b = call["dim0"] % len(order), call["dim1"] % len(order)
        order[a], order[b] = order[b], order[a]
        return [[label[d] for d in order]]
    return [label[::-1]]


@rule("unsqueeze")
def unsqueeze(see: Labels, call: Call) -> list[Label]:
    """One more axis, of size one."""
    label, dim = list(see.of(call["self"])), call["dim"]
    label.insert(dim % (len(label) + 1), Axis(1))
    return [label]


@rule("squeeze")
def squeeze(see: Labels, call: Call) -> list[Label]:
    """Axes of size one dropped."""
    label, dims = see.of(call["self"]), call.args.get("dim")
    chosen = (
        range(len(label))
        if dims is None
        else [d % max(1, len(label)) for d in ([dims] if isinstance(dims, int) else dims)]
    )
    return [[axis for k, axis in enumerate(label) if axis.size != 1 or k not in chosen]]


@rule("expand")
def expand(see: Labels, call: Call) -> list[Label]:
    """Axes of size one repeated: the copies may be permuted as one likes."""
    return [_repeated(see.of(call["self"]), call.out[0])]


def _repeated(label: Label, out: Tensor) -> Label:
    label = [Axis(1)] * (out.ndim - len(label)) + list(label)
    return [axis if axis.size == size else Axis(size) for axis, size in zip(label, out.shape)]


@rule("repeat")
def repeat(see: Labels, call: Call) -> list[Label]:
    """Whole axes repeated."""
    label = see.of(call["self"])
    label = [Axis(1)] * (call.out[0].ndim - len(label)) + list(label)
    return [[product([Axis(times), axis]) if times > 1 else axis for axis, times in zip(label, call["repeats"])]]


@rule("as_strided")
def as_strided(see: Labels, call: Call) -> list[Label] | None:
    """Only where it changes nothing."""
    x = call["self"]
    if x.shape == call.out[0].shape and x.stride() == call.out[0].stride():
        return [see.of(x)]
    return None


# --- parts of an axis -----------------------------------------------------------------------------------------------


def parts(label: Label, dim: int, sizes: Sequence[int], reason: str) -> Iterator[Label]:
    """The labels of consecutive pieces along `dim`; what depends on its index has a copy of its own in each."""
    whole = label[dim].find()
    for piece in cut(whole, sizes, reason):
        yield [piece if k == dim else _copied(axis, whole, piece) for k, axis in enumerate(label)]


def piece(label: Label, dim: int, start: int, taken: int, reason: str) -> Label:
    """The label of a range of indices along `dim`."""
    whole = label[dim].find()
    found = cut(whole, (start, taken, whole.size - start - taken), reason)[1]
    return [found if k == dim else _copied(axis, whole, found) for k, axis in enumerate(label)]


def _copied(axis: Axis, whole: Axis, part: Axis) -> Axis:
    """What stands for `axis` beside a piece of another: its own copy where the piece is one of that axis' own parts."""
    whole = whole.find()
    return copy(axis, whole, part) if whole.kind == "sum" and part.size else axis


@rule("slice")
def slice_(see: Labels, call: Call) -> list[Label]:
    """A range of indices."""
    label, dim, step = see.of(call["self"]), call["dim"], call["step"]
    dim %= len(label)
    size, start = label[dim].size, call["start"] or 0
    start = max(0, start + size) if start < 0 else min(start, size)
    taken = call.out[0].shape[dim]
    if taken == size and step == 1:
        return [label]
    if step != 1:
        label[dim].fix(f"{call.name} with a step")
        return [[fixed(taken, call.name) if k == dim else axis for k, axis in enumerate(label)]]
    return [piece(label, dim, start, taken, call.name)]


@rule("narrow")
def narrow(see: Labels, call: Call) -> list[Label]:
    """A range of indices."""
    label, dim, start, taken = see.of(call["self"]), call["dim"], call["start"], call["length"]
    dim %= len(label)
    return [piece(label, dim, start, taken, call.name)]


@rule("select")
def select(see: Labels, call: Call) -> list[Label]:
    """One index of an axis, which is then fixed."""
    label, dim = see.of(call["self"]), call["dim"]
    dim %= len(label)
    size = label[dim].size
    index = call["index"] % size
    found = piece(label, dim, index, 1, call.name)
    return [[axis for k, axis in enumerate(found) if k != dim]]


@rule("split", "split_with_sizes", "unsafe_split", "unsafe_split_with_sizes", "chunk", "unsafe_chunk", "tensor_split")
def split_(see: Labels, call: Call) -> list[Label]:
    """Consecutive pieces."""
    label, dim = see.of(call["self"]), call["dim"]
    dim %= len(label)
    return list(parts(label, dim, [t.shape[dim] for t in call.out], call.name))


@rule("unbind")
def unbind(see: Labels, call: Call) -> list[Label]:
    """Every index on its own."""
    label, dim = see.of(call["self"]), call["dim"]
    dim %= len(label)
    pieces = parts(label, dim, [1] * label[dim].size, call.name)
    return [[axis for k, axis in enumerate(found) if k != dim] for found in pieces]


@rule("cat", "concat")
def cat(see: Labels, call: Call) -> list[Label]:
    """Axes joined end to end; the others move together, or differently in each piece where that is no matter."""
    labels = [see.of(t) for t in call["tensors"] if t.ndim > 1 or t.shape[0]]
    dim = call["dim"] % len(labels[0])
    pieces = [label[dim] for label in labels]
    whole = total(pieces)
    return [
        [
            whole if k == dim else _beside([x[k] for x in labels], whole, pieces, call.name)
            for k in range(len(labels[0]))
        ]
    ]


@rule("stack")
def stack(see: Labels, call: Call) -> list[Label]:
    """A new axis, with an index for each tensor; the others as in a concatenation."""
    labels, pieces = [see.of(t) for t in call["tensors"]], [Axis(1) for _ in call["tensors"]]
    whole = total(pieces)
    label = [_beside([x[k] for x in labels], whole, pieces, call.name) for k in range(len(labels[0]))]
    label.insert(call["dim"] % (len(label) + 1), whole)
    return [label]


def _beside(axes: Sequence[Axis], whole: Axis, pieces: Sequence[Axis], reason: str) -> Axis:
    """One axis beside joined pieces, from what it is beside each of them."""
    found = [axis.find() for axis in axes]
    if any(axis is not found[0] for axis in found) and all(a.kind == "atom" and not a.fixed for a in found):
        copies = {(whole.find(), part.find()): axis for part, axis in zip(pieces, found)}
        if len(copies) == len(found) and whole.find().kind == "sum":
            return Axis(found[0].size, parents={whole.find()}, copies=copies)
    for axis in found[1:]:
        unify(found[0], axis, reason)
    return found[0]


@rule("constant_pad_nd")
def pad(see: Labels, call: Call) -> list[Label]:
    """Constants on both sides of an axis, to be permuted as one likes."""
    label, pads = list(see.of(call["self"])), call["pad"]
    for k in range(len(pads) // 2):
        low, high = pads[2 * k], pads[2 * k + 1]
        at = len(label) - 1 - k
        if low < 0 or high < 0:
            label[at].fix(call.name)
            label[at] = fixed(call.out[0].shape[at], call.name)
        elif low or high:
            label[at] = total([Axis(low), label[at], Axis(high)])
    return [label]


@rule(
    "roll", "flip", "rot90", "cumsum", "reflection_pad1d", "reflection_pad2d", "replication_pad2d", "replication_pad1d"
)
def shifted(see: Labels, call: Call) -> list[Label]:
    """Indices change places along some axes, which are then fixed."""
    label, dims = see.of(call["self"]), call.args.get("dims", call.args.get("dim"))
    if "padding" in call.args:
        dims = range(len(label) - len(call["padding"]) // 2, len(label))
    chosen = {d % len(label) for d in ([dims] if isinstance(dims, int) else dims)} or set(range(len(label)))
    for k in chosen:
        label[k].fix(call.name)
    sizes = call.out[0].shape
    return [[fixed(sizes[k], call.name) if k in chosen else axis for k, axis in enumerate(label)]]


@rule("index_select", "embedding")
def index_select(see: Labels, call: Call) -> list[Label]:
    """Rows by number: numbers are data, so that axis is fixed."""
    if call.name == "aten.embedding":
        table, index, dim = see.of(call["weight"]), see.of(call["indices"]), 0
    else:
        table, index, dim = see.of(call["self"]), see.of(call["index"]), call["dim"]
    dim %= len(table)
    table[dim].fix(call.name)
    for axis in index:
        axis.fix(call.name)
    return [[*table[:dim], *index, *table[dim + 1 :]]]


@rule("index")
def index(see: Labels, call: Call) -> list[Label] | None:
    """Rows by number along one axis."""
    label, given = see.of(call["self"]), call["indices"]
    places = [k for k, i in enumerate(given) if i is not None]
    if len(places) != 1 or given[places[0]].dtype.itemsize == 1:
        return None
    at, numbers = places[0], see.of(given[places[0]])
    label[at].fix(call.name)
    for axis in numbers:
        axis.fix(call.name)
    return [[*label[:at], *numbers, *label[at + 1 :]]]


@rule("pixel_shuffle")
def pixel_shuffle(see: Labels, call: Call) -> list[Label]:
    """Blocks of channels spread over the plane."""
    label, r = see.of(call["self"]), call["upscale_factor"]
    inner = split(label[-3], (label[-3].size // r**2, r, r), call.name)
    for axis in (*inner[1:], *label[-2:]):
        axis.fix(call.name)
    return [[*label[:-3], inner[0], *(fixed(size, call.name) for size in call.out[0].shape[-2:])]]


@rule("pixel_unshuffle")
def pixel_unshuffle(see: Labels, call: Call) -> list[Label]:
    """Pieces of the plane gathered into channels."""
    label, r = see.of(call["self"]), call["downscale_factor"]
    for axis in label[-2:]:
        axis.fix(call.name)
    channels = product([label[-3], fixed(r, call.name), fixed(r, call.name)])
    return [[*label[:-3], channels, *(fixed(size, call.name) for size in call.out[0].shape[-2:])]]


@rule("channel_shuffle", "native_channel_shuffle")
def channel_shuffle(see: Labels, call: Call) -> list[Label]:
    """Groups and their channels, the other way round."""
    label, groups = list(see.of(call["self"])), call["groups"]
    outer, inner = split(label[1], (groups, label[1].size // groups), call.name)
    label[1] = product([inner, outer])
    return [label]


@rule("im2col")
def im2col(see: Labels, call: Call) -> list[Label]:
    """Windows of the plane as channels."""
    label = see.of(call["self"])
    for axis in label[-2:]:
        axis.fix(call.name)
    window = math.prod(call["kernel_size"])
    return [[*label[:-3], product([label[-3], fixed(window, call.name)]), fixed(call.out[0].shape[-1], call.name)]]


@rule("unfold")
def unfold(see: Labels, call: Call) -> list[Label]:
    """Windows along one axis, as another."""
    label, dim = list(see.of(call["self"])), call["dimension"]
    dim %= len(label)
    label[dim].fix(call.name)
    label[dim] = fixed(call.out[0].shape[dim], call.name)
    return [[*label, fixed(call["size"], call.name)]]


@rule(
    "zeros_like",
    "ones_like",
    "full_like",
    "new_zeros",
    "new_ones",
    "new_full",
    "zeros",
    "ones",
    "full",
    "arange",
    "scalar_tensor",
    "eye",
    "linspace",
)
def made(see: Labels, call: Call) -> list[Label]:
    """A new constant, of which nothing but its shape comes from elsewhere."""
    return [constant(call.out[0])]


@rule("empty", "empty_like", "new_empty", "empty_strided", "new_empty_strided", "empty_permuted")
def empty(see: Labels, call: Call) -> list[Label]:
    """A new tensor, to be filled."""
    return [[Axis(size) for size in call.out[0].shape]]
