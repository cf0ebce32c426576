"""One task's part of a memory: rows with their outputs, curvature, or both."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any

from torch import Tensor

from isopath.examples import tree_map
from isopath.geometry.curvature import Curvature
from isopath.geometry.sketch import Sketch
from isopath.network import Output


@dataclass(frozen=True, eq=False)
class Remembered:
    """One task's part of a memory.

    Attributes:
        name: of the task.
        inputs, outputs, labels: the kept rows, the one to keep longest first; `None` where no data are kept.
        columns: how many outputs the network had.
        curvature: of the outputs over the task's inputs, at `centre`; `None` where it is not kept.
        centre: the weights that the task was left with, by name.
        weight: of the task among the others.
        head: which output of the model belongs to it.
        sketch: of the task's inputs, where the kept rows are drawn from one. They can be drawn again, so that neither
            `bytes` nor a file counts them.
        drawn: which of the sketch's rows were kept, `(n,)`.
        frozen: names of the parameters whose curvature was not measured: they did not move.
    """

    name: str
    inputs: Any = None
    outputs: Tensor | None = None
    labels: Tensor | None = None
    columns: int = 0
    curvature: Curvature | None = None
    centre: Mapping[str, Tensor] | None = None
    weight: float = 1.0
    head: Output = None
    sketch: Sketch | None = None
    drawn: Tensor | None = None
    frozen: tuple[str, ...] = ()

    @property
    def rows(self) -> int:
        """How many rows are kept."""
        return 0 if self.outputs is None else len(self.outputs)

    def first(self, count: int) -> Remembered:
        """With `count` rows at most."""
        if self.rows <= count:
            return self
        if not count:
            return replace(self, inputs=None, outputs=None, labels=None, sketch=None, drawn=None)
        cut = {key: tree_map(lambda t: t[:count].clone(), getattr(self, key)) for key in ("inputs", *ROWS)}
        return replace(self, **cut)

    @property
    def bytes(self) -> int:
        """What its tensors take."""
        kept = [t for t in (getattr(self, key) for key in ROWS) if t is not None] + list((self.centre or {}).values())
        kept += [] if self.sketch else [leaf for _, leaf in _named(self.inputs)]
        own = sum(part.bytes for part in (self.sketch, self.curvature) if part is not None)
        return sum(t.numel() * t.element_size() for t in kept) + own

    # --- files -------------------------------------------------------------------------------------------------------

    def stored(self, prefix: str) -> tuple[dict[str, Tensor], dict[str, Any]]:
        """Tensors under names that begin with a prefix, and what goes beside them.

        Raises:
            TypeError: its head is a function, which no file holds.
        """
        if callable(self.head):
            raise TypeError(f"the head of task {self.name!r} is a function, which no file holds; name it by a key")
        tensors = {key: getattr(self, key) for key in ROWS if getattr(self, key) is not None}
        about: dict[str, Any] = {"name": self.name, "columns": self.columns, "weight": self.weight, "head": self.head,
                                 "kind": _kind(self.inputs), "curvature": "", "frozen": self.frozen}  # fmt: skip
        if self.sketch is not None:
            tensors |= {f"sketch.{name}": tensor for name, tensor in self.sketch.tensors().items()}
            about["sketch"] = {**self.sketch.about, "sum": float(self.inputs.double().sum())}
        else:
            tensors |= {f"inputs{place}": leaf for place, leaf in _named(self.inputs)}
        if self.curvature is not None:
            own, about["curvature"] = self.curvature.tensors()
            tensors |= {f"curvature.{name}": tensor for name, tensor in own.items()}
            tensors |= {f"centre.{name}": tensor for name, tensor in (self.centre or {}).items()}
        return {f"{prefix}{name}": tensor for name, tensor in tensors.items()}, about

    @classmethod
    def read(cls, tensors: Mapping[str, Tensor], prefix: str, about: Mapping[str, Any]) -> Remembered:
        """What `stored` gave; rows that were drawn are drawn again."""
        own = _under(tensors, prefix)
        curvature = Curvature.read(_under(own, "curvature."), about["curvature"]) if about["curvature"] else None
        sketch = Sketch.read(_under(own, "sketch."), about["sketch"]) if "sketch" in about else None
        inputs = _unnamed(_under(own, "inputs"), about["kind"]) if sketch is None else sketch.draw(own["drawn"])[0]
        if sketch is not None and abs(float(inputs.double().sum()) - about["sketch"]["sum"]) > 1e-4 * float(
            inputs.double().abs().sum()
        ):
            raise ValueError(f"the rows of task {about['name']!r} cannot be drawn again: this torch draws others "
                             "from the same seed; remember the task anew")  # fmt: skip
        return cls(
            about["name"], inputs, own.get("outputs"), own.get("labels"), about["columns"], curvature,
            _under(own, "centre.") or None, about["weight"], about["head"], sketch, own.get("drawn"),
            tuple(about.get("frozen", ())),
        )  # fmt: skip


ROWS = ("outputs", "labels", "drawn")  # with one entry for each kept row, as the inputs have


def _under(tensors: Mapping[str, Tensor], prefix: str) -> dict[str, Tensor]:
    return {name.removeprefix(prefix): t for name, t in tensors.items() if name.startswith(prefix)}


def _kind(inputs: Any) -> str:
    if isinstance(inputs, Mapping):
        return "mapping"
    return "none" if inputs is None else "tensor" if isinstance(inputs, Tensor) else "tuple"


def _named(inputs: Any) -> list[tuple[str, Tensor]]:
    if inputs is None:
        return []
    if isinstance(inputs, Tensor):
        return [("", inputs)]
    items = inputs.items() if isinstance(inputs, Mapping) else enumerate(inputs)
    return [(f".{key}", value) for key, value in items if isinstance(value, Tensor)]


def _unnamed(tensors: Mapping[str, Tensor], kind: str) -> Any:
    if kind == "none":
        return None
    if kind == "tensor":
        return tensors[""]
    named = {name.removeprefix("."): t for name, t in tensors.items()}
    return named if kind == "mapping" else tuple(named[str(i)] for i in range(len(named)))
