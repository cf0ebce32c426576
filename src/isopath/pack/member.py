"""What belongs to one task alone beside its weights: biases, normalisation, statistics, a stem and a head."""

from __future__ import annotations

import copy
import hashlib
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn

from isopath.network import Output, pick
from isopath.network import _arguments as arguments_of


@dataclass(frozen=True, eq=False)
class Member:
    """One task of a packing.

    Args:
        owner: its number in the table of owners.
        reads: the numbers of the tasks whose weights it reads and never writes.
        share: of the weights of each layer that it was given.
        own: the body's other trainable parameters and the buffers that learning changed, by name.
        stem: what makes the body's inputs of the task's; `None` where they are the body's.
        head: what makes the task's outputs of the body's.
        output: what the head is given of what the body returns (see `Network`).
        about: steps, the last loss, and with `share="auto"` the accuracy before and after.
    """

    owner: int
    reads: tuple[int, ...]
    share: float
    own: Mapping[str, Tensor]
    stem: nn.Module | None = None
    head: nn.Module | None = None
    output: Output = None
    about: Mapping[str, Any] = field(default_factory=dict)


class SubNetwork(nn.Module):
    """A stem, the body and a head, one after the other.

    Args:
        body: the network whose weights tasks share out.
        stem: before it, or `None`.
        head: after it, or `None`.
        output: what the head is given of what the body returns: a key, an attribute, an index or a callable.
    """

    def __init__(
        self, body: nn.Module, stem: nn.Module | None, head: nn.Module | None, output: Output = None
    ) -> None:
        super().__init__()
        self.stem, self.body, self.head, self.output = stem, body, head, output

    def forward(self, *args: Any, **kwargs: Any) -> Any:
        """The head's outputs, or the body's."""
        if self.stem is not None:  # which may give a tuple or a mapping of arguments
            args, kwargs = arguments_of(self.stem(*args, **kwargs))
        found = self.body(*args, **kwargs)
        return found if self.head is None else self.head(pick(found, self.output))


def joined(
    body: nn.Module, stem: nn.Module | None, head: nn.Module | None, output: Output = None
) -> nn.Module:
    """The body with copies of stem and head; alone where a task has neither."""
    if stem is None and head is None:
        return body
    return SubNetwork(body, *copy.deepcopy((stem, head)), output=output)  # together: they may share parameters


def described(module: nn.Module | None) -> dict[str, Any] | None:
    """What is written of a stem or head beside its tensors."""
    if module is None:
        return None
    shape = [module.in_features, module.out_features, module.bias is not None] if type(module) is nn.Linear else None
    return {"linear": shape, "class": type(module).__name__}


def rebuilt(
    about: Mapping[str, Any] | None, tensors: Mapping[str, Tensor], given: nn.Module | None, what: str
) -> nn.Module | None:
    """A stem or head as it was written: a linear layer by itself, any other into the module that is given.

    Raises:
        ValueError: none is given where one is needed, or its tensors do not fit.
    """
    if about is None:
        return None
    if given is None and about["linear"] is None:
        raise ValueError(f"the {what} is a {about['class']}: give an equal module, stems= or heads= {{name: module}}")
    # without numbers of its own: to draw them would move the caller's random state
    if given is not None:
        module = copy.deepcopy(given)
    else:
        inputs, outputs, bias = about["linear"]
        module = nn.Linear(inputs, outputs, bias, device="meta")
    try:
        module.load_state_dict(dict(tensors), assign=given is None)
    except RuntimeError as error:
        raise ValueError(f"the {what} of the file does not fit the module that is given: {error}") from error
    return module


def digest(model: nn.Module, names: set[str]) -> str:
    """A hash of the named parameters, which tasks share and none may change."""
    found = hashlib.sha256()
    for name, tensor in sorted(model.named_parameters()):
        if name in names:
            whole = tensor.detach().cpu().contiguous()
            found.update(name.encode() + str((whole.dtype, tuple(whole.shape))).encode())
            found.update(whole.view(-1).view(torch.uint8).numpy().tobytes() if whole.numel() else b"")
    return found.hexdigest()
