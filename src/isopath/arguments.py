"""What users hand over, checked: each error says what was got, what was expected, and what to do."""

from __future__ import annotations

from numbers import Real
from typing import Any

import torch
from torch import Tensor, nn


def named(given: Any) -> str:
    """What something is, for a message."""
    return given.__name__ if isinstance(given, type) else type(given).__name__


def check_module(given: Any, what: str, remedy: str = "give an nn.Module") -> None:
    """Raises `TypeError` unless it is a module."""
    if not isinstance(given, nn.Module):
        raise TypeError(f"{what} must be an nn.Module, got {named(given)}; {remedy}")


def check_number(given: Any, name: str) -> None:
    """Raises `TypeError` unless it is a real number."""
    if isinstance(given, Tensor) and given.numel() == 1 and given.dtype != torch.bool and not given.is_complex():
        return
    if isinstance(given, bool) or not isinstance(given, Real):
        raise TypeError(f"{name} must be a number, got {given!r}")


def check_numbers(**given: Any) -> None:
    """Raises `TypeError` unless each is a real number, or `None`."""
    for name, value in given.items():
        if value is not None:
            check_number(value, name)


def check_count(given: Any, name: str) -> None:
    """Raises `TypeError` or `ValueError` unless it is a whole number of at least one."""
    check_number(given, name)
    if not given >= 1 or not float(given).is_integer():
        raise ValueError(f"{name} must be a whole number >= 1, got {given}")


def check_kind(given: Any, kinds: type | tuple[type, ...], what: str, remedy: str) -> None:
    """Raises `TypeError` unless it is an instance of one of the kinds."""
    if not isinstance(given, kinds):
        words = [kind.__name__ for kind in (kinds if isinstance(kinds, tuple) else (kinds,))]
        raise TypeError(f"{what} must be of type {' or '.join(words)}, got {named(given)}; {remedy}")


def check_classes(y: Tensor, target: Any, loss: Any) -> None:
    """Raises `ValueError` where class indices have another shape than the outputs leave for them, or are below zero.

    On a CPU, that is, where the loss of a negative class is some number; elsewhere the kernel stops at it.
    """
    if loss != "cross_entropy" or not isinstance(target, Tensor):
        return
    if target.shape == y.shape[:-1]:
        if target.device.type == "cpu" and bool(((target < 0) & (target != -100)).any()):
            check_range(y, target)
        return
    got, expected = tuple(target.shape), tuple(y.shape[:-1])
    if target.is_floating_point() or target.shape == y.shape:
        remedy = "of one-hot or soft rows take .argmax(-1), or give loss= a function of your own"
    else:
        remedy = "use .squeeze(-1)" if got == (*expected, 1) else "give one class for every row of the outputs"
    raise ValueError(
        f"the cross-entropy of outputs {tuple(y.shape)} takes class indices {expected}, got {got} {target.dtype}; "
        f"{remedy}"
    )


def check_targets(y: Tensor, target: Any, loss: Any) -> None:
    """Says what is wrong with targets on which a loss failed, where that can be seen.

    Args:
        y: outputs `(N, C)` or `(N, T, C)`.
        target: of the same rows.
        loss: its name, or a function.

    Raises:
        TypeError: they are no tensor, or class indices of another type than int64.
        ValueError: a class is out of range, or their shape does not fit.
    """
    if not isinstance(target, Tensor):
        raise TypeError(f"targets must be tensors of numbers, got {named(target)}; number the classes 0, 1, 2, ...")
    if not isinstance(loss, str):
        return  # what a function takes is its own
    if loss != "cross_entropy":
        if target.numel() != y.numel():
            raise ValueError(
                f"the loss {loss!r} compares outputs {tuple(y.shape)} with targets of the same shape, got "
                f"{tuple(target.shape)}; for class indices leave loss= as it is"
            )
        return
    check_classes(y, target, loss)
    if target.dtype not in (torch.int64, torch.uint8):
        raise TypeError(f"class indices must be torch.int64, got {target.dtype}; convert with .long()")
    check_range(y, target)


def check_range(y: Tensor, target: Tensor) -> None:
    """Raises `ValueError` where a class is not one of the outputs `(..., C)`; -100 is none."""
    counted, classes = target[target != -100], y.shape[-1]
    if not counted.numel():
        return
    low, high = int(counted.min()), int(counted.max())
    if low < 0 or high >= classes:
        raise ValueError(
            f"labels must be from 0 to {classes - 1}, the {classes} outputs of the model, got {low} to {high}; number "
            "the classes from 0, or give the model as many outputs"
        )
