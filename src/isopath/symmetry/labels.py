"""The axes of every tensor that a module computes, as one forward pass goes through it."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, TypeVar

import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from isopath.symmetry.axes import Axis, fixed

Label = list[Axis]


@dataclass(frozen=True)
class Call:
    """One call of an operator.

    Attributes:
        name: of the operator, `"aten.mm"`.
        args: by the names in its schema, defaults included.
        out: the tensors that it gave.
    """

    name: str
    args: Mapping[str, Any]
    out: Sequence[Tensor]

    def __getitem__(self, name: str) -> Any:
        return self.args[name]


# arguments by which activations enter a contraction
ENTERING = {
    "aten.mm": ("self", "mat2"), "aten.bmm": ("self", "mat2"), "aten.addmm": ("mat1", "mat2"),
    "aten.baddbmm": ("batch1", "batch2"), "aten.convolution": ("input",),
}  # fmt: skip
Rule = Callable[["Labels", Call], list[Label] | None]  # None: not understood
RULES: dict[str, Rule] = {}


Some = TypeVar("Some", bound=Rule)


def rule(*names: str) -> Callable[[Some], Some]:
    """Registers what an operator (`"mm"` for `aten.mm`, every overload) does to axes."""

    def registered(function: Some) -> Some:
        for name in names:
            RULES[f"aten.{name}"] = function
        return function

    return registered


class Labels(TorchDispatchMode):
    """Runs a module and labels the axes of what it computes.

    An operator without a rule makes every axis that it reads fixed: what is not understood is not permuted. A tensor
    that no operator made (a constant, a mask) has axes that are fixed, but for those along which it does not vary.

    Args:
        buffers: the module's buffers; statistics of normalisation layers are permuted with their channels, the others
            are constants.

    Attributes:
        read: identities of the tensors that some operator read.
        calls: names and output shapes, in order.
        seen: the labels of every tensor, with the tensor.
        coupled: pairs of axes mixed over, and axes that were there beside them.
        data: identities of the tensors that depend on the inputs.
        sites: where activations enter a contraction and leave it: number of the call, argument (`"out"` for what
            leaves), label.
    """

    def __init__(self, buffers: Iterable[Tensor] = ()) -> None:
        super().__init__()
        self.buffers = {id(buffer) for buffer in buffers}
        self.read: set[int] = set()
        self.calls: list[tuple[str, tuple[torch.Size, ...]]] = []
        self.seen: dict[int, tuple[Tensor, Label]] = {}
        self.coupled: list[tuple[Label, Label]] = []
        self.data: set[int] = set()
        self.sites: list[tuple[int, str, Label]] = []
        self.contractions = 0
        self._known: set[tuple[int, torch.Size, tuple[int, ...]]] = set()

    def of(self, tensor: Tensor) -> Label:
        """The axes of a tensor."""
        if id(tensor) not in self.seen:
            self.seen[id(tensor)] = tensor, constant(tensor)
        return self.seen[id(tensor)][1]

    def statistics(self, tensor: Tensor) -> Label:
        """The axes of running statistics, which are permuted if they are buffers."""
        if id(tensor) in self.buffers and id(tensor) not in self.seen:
            self.put(tensor, [Axis(size) for size in tensor.shape])
        return self.of(tensor)

    def put(self, tensor: Tensor, label: Label) -> None:
        """Labels a tensor."""
        self.seen[id(tensor)] = tensor, label

    def couple(self, mixed: Iterable[Axis], beside: Iterable[Axis]) -> None:
        """Takes note that an operator mixes along some axes: those beside them may not depend on their index."""
        self.coupled.append((list(mixed), list(beside)))

    def site(self, call: Call, names: Iterable[str]) -> None:
        """Takes note of the activations that enter a contraction and of what leaves it, each once."""
        for name, tensor in [*((name, call[name]) for name in names), ("out", call.out[0])]:
            key = tensor.data_ptr(), tensor.shape, tensor.stride()
            if id(tensor) in self.data and key not in self._known:
                self._known.add(key)
                self.sites.append((self.contractions, name, self.of(tensor)))

    def _understood(self, found: Rule | None, call: Call) -> list[Label] | None:
        """What a rule says; `None` where there is none, or where it does not know this form of its operator."""
        if found is None:
            return None
        try:
            labels = found(self, call)
        except (KeyError, IndexError, TypeError, ValueError, AssertionError):
            return None
        return labels if labels is not None and _fits(labels, call.out) else None

    def __torch_dispatch__(self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: Any = None) -> Any:
        """Runs an operator and labels what it gives."""
        kwargs = kwargs or {}
        schema = func._schema
        named = {a.name: a.default_value if a.has_default_value() else None for a in schema.arguments}
        named |= dict(zip((a.name for a in schema.arguments), args)) | kwargs
        given = {id(t) for t in tree_leaves((args, kwargs)) if isinstance(t, Tensor)}
        self.read |= given
        out = func(*args, **kwargs)
        tensors = [t for t in tree_leaves(out) if isinstance(t, Tensor)]
        name = "aten." + func.overloadpacket.__name__ if func.namespace == "aten" else str(func.overloadpacket)
        call = Call(name, named, tensors)
        self.calls.append((str(func), tuple(t.shape for t in tensors)))
        found = RULES.get(call.name) or RULES.get(call.name.rstrip("_"))
        if found is None and torch.Tag.pointwise in func.tags:
            found = RULES["aten.add"]
        labels = self._understood(found, call) or unknown(self, call)
        written = [named[a.name] for a in schema.arguments if a.alias_info is not None and a.alias_info.is_write]
        for tensor, label in zip(tensors, labels):
            # one that is written in place keeps its label, unless it is a view that changes shape in place
            if torch.Tag.inplace_view in func.tags or not any(tensor is w for w in written):
                self.put(tensor, label)
            if given & self.data:
                self.data.add(id(tensor))
        if call.name in ENTERING:
            self.site(call, ENTERING[call.name])
            self.contractions += 1
        return out


def _fits(labels: list[Label], out: Sequence[Tensor]) -> bool:
    sizes = [[axis.find().size for axis in label] for label in labels]
    return all(found == list(tensor.shape) for found, tensor in zip(sizes, out))


def unknown(see: Labels, call: Call) -> list[Label]:
    """Fixes everything that goes in, and everything that comes out."""
    for tensor in tree_leaves(dict(call.args)):
        if isinstance(tensor, Tensor):
            for axis in see.of(tensor):
                axis.fix(call.name)
    return [[fixed(size, call.name) for size in tensor.shape] for tensor in call.out]


def constant(tensor: Tensor) -> Label:
    """Axes of a tensor that nothing computed: free where it does not vary, else fixed."""
    label: Label = []
    for k, size in enumerate(tensor.shape):
        first = tensor.narrow(k, 0, min(1, size)).expand_as(tensor)
        same = bool(((tensor == first) | ((tensor != tensor) & (first != first))).all())
        # where it does not vary, it may be permuted differently at each index of the other axes
        label.append(Axis(size, parents=set(label)) if same else fixed(size, "a constant"))
    return label
