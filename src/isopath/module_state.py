"""What a module holds beside its parameters, and how a forward pass leaves it as it was."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn


class ModuleState:
    """Attributes and buffers of a module tree, put back after a forward pass that moves them.

    A module may keep its last activations as an attribute, count its calls, or update a running mean in eval mode. A
    function of weights and inputs does nothing of the kind: its second call would not be its first, and a tensor of the
    graph that is left behind can be neither copied nor saved. What moves through `.data`, or inside a list that is an
    attribute, is not seen.

    Args:
        module: whose state it is. Submodules are those that it has now.
        buffers: whether those changed in place are put back too; a copy of each is kept. Replaced ones always are.
    """

    def __init__(self, module: nn.Module, buffers: bool = True) -> None:
        # a scripted module keeps its state in C++
        modules = [child for child in module.modules() if not isinstance(child, torch.jit.ScriptModule)]
        self._watched = [child for child in modules if not _leaves_nothing(child)]
        self._buffered = [child for child in modules if child._buffers] if buffers else []
        self._kept: dict[tuple[int, str], _Buffer] = {}

    @contextmanager
    def held(self) -> Iterator[None]:
        """Whatever runs inside leaves the state as it finds it."""
        before = [(dict(vars(module)), dict(module._buffers)) for module in self._watched]
        self._know()
        try:
            yield
        finally:
            self._put_back(before)

    def _know(self) -> None:
        for k, name, buffer in self._named():
            known = self._kept.get((k, name))
            if known is None or not known.fits(buffer):
                self._kept[k, name] = _Buffer(buffer)

    def _put_back(self, before: Sequence[tuple[dict[str, Any], dict[str, Tensor | None]]]) -> None:
        for module, (attributes, buffers) in zip(self._watched, before):
            _restore(vars(module), attributes)
            _restore(module._buffers, buffers)
        for k, name, buffer in self._named():
            if not self._kept[k, name].fits(buffer):
                # a new tensor: the graph may hold the moved one, which must not be written to
                fresh = _cloned(self._kept[k, name].copy)
                self._buffered[k]._buffers[name] = fresh
                self._kept[k, name].buffer, self._kept[k, name].version = fresh, _version(fresh)

    def _named(self) -> Iterator[tuple[int, str, Tensor]]:
        for k, module in enumerate(self._buffered):
            for name, buffer in module._buffers.items():
                if buffer is not None:
                    yield k, name, buffer


def _leaves_nothing(module: nn.Module) -> bool:
    """Whether it is a layer of torch's own: they move buffers at most, but for what hooks do."""
    hooked = module._forward_hooks or module._forward_pre_hooks
    return type(module).__module__.startswith("torch.nn.modules.") and not hooked


class _Buffer:
    """A buffer, how often it had been written to, and a copy of it."""

    def __init__(self, buffer: Tensor) -> None:
        self.buffer, self.version, self.copy = buffer, _version(buffer), _cloned(buffer)

    def fits(self, buffer: Tensor) -> bool:
        """Whether a buffer is this one, unchanged."""
        if buffer is not self.buffer:
            return False
        if buffer.is_inference():  # it counts no writes
            return torch.equal(buffer, self.copy)
        return _version(buffer) == self.version


def _version(tensor: Tensor) -> int:
    return 0 if tensor.is_inference() else tensor._version


def _cloned(tensor: Tensor) -> Tensor:
    with torch.inference_mode(False):  # what is made inside it could take part in no gradient later
        return tensor.detach().clone()


def _restore(now: dict[str, Any], before: dict[str, Any]) -> None:
    """Puts entries back one by one: another thread that runs the module finds it whole at any time."""
    for name in [name for name in now if name not in before]:
        now.pop(name, None)
    for name, value in before.items():
        if now.get(name, now) is not value:
            now[name] = value
