"""Does a value from YAML fit a type hint? The kinds that YAML has are checked; everything else is the constructor's."""

from __future__ import annotations

import types
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from typing import Any, Literal, Union, get_args, get_origin

SCALARS = {int: "a whole number", float: "a number", bool: "true or false", str: "a text", type(None): "null"}


def fits(value: Any, hint: Any) -> bool:
    """Whether a YAML value, or a class whose instance it stands for, may be given where `hint` is asked for."""
    origin, arguments = get_origin(hint), get_args(hint)
    if hint is Any:
        return True
    if origin in (Union, types.UnionType):
        return any(fits(value, part) for part in arguments)
    if origin is Literal:
        return value in arguments
    if isinstance(value, type):
        return _class_fits(value, origin or hint)
    if isinstance(value, Mapping) and "class_path" in value:
        return True  # what it makes is only known once it is made
    if hint in SCALARS:
        return _scalar_fits(value, hint)
    if hint is Path:
        return isinstance(value, str)
    return _structure_fits(value, hint, origin, arguments)


def _scalar_fits(value: Any, hint: type) -> bool:
    if hint is float:
        return isinstance(value, (int, float)) and not isinstance(value, bool)
    return isinstance(value, hint) and not (hint is int and isinstance(value, bool))


def _structure_fits(value: Any, hint: Any, origin: Any, arguments: tuple[Any, ...]) -> bool:
    kind = origin or hint
    if not isinstance(kind, type):
        return True  # Any, a type variable
    if issubclass(kind, tuple):
        if not isinstance(value, list) or not arguments:
            return isinstance(value, list)
        each = arguments[:1] * len(value) if Ellipsis in arguments else arguments
        return len(each) == len(value) and all(map(fits, value, each))
    if kind is not Callable and issubclass(kind, Mapping):
        return isinstance(value, Mapping)
    if issubclass(list, kind) and kind is not object:  # list, Sequence, Iterable
        texts = isinstance(value, str) and arguments == (str,) and kind is Iterable
        return texts or (isinstance(value, list) and all(fits(item, arguments[0]) for item in value if arguments))
    return kind is object


def _class_fits(value: type, kind: Any) -> bool:
    if kind is Callable:
        return any("__call__" in vars(parent) for parent in value.__mro__)
    if not isinstance(kind, type) or getattr(kind, "_is_protocol", False):
        return True
    return issubclass(value, kind)


def values_of(hint: Any) -> Any:
    """What a hint asks of the values of a mapping."""
    parts = get_args(hint) if get_origin(hint) in (Union, types.UnionType) else (hint,)
    for part in parts:
        kind = get_origin(part)
        if isinstance(kind, type) and kind is not Callable and issubclass(kind, Mapping):
            return get_args(part)[1]
    return Any


def admits_objects(hint: Any) -> bool:
    """Whether a hint asks for something that only a class makes."""
    parts = get_args(hint) if get_origin(hint) in (Union, types.UnionType) else (hint,)
    return any(_made(part) for part in parts)


def _made(hint: Any) -> bool:
    kind = get_origin(hint) or hint
    plain = ("builtins", "typing", "pathlib")
    if isinstance(kind, type) and issubclass(kind, Mapping):  # YAML has mappings of its own
        return False
    return kind is Callable or (isinstance(kind, type) and kind.__module__.partition(".")[0] not in plain)


def said(value: Any) -> str:
    """A YAML value, as an error names it."""
    if isinstance(value, Mapping):
        return "a mapping with the keys " + (", ".join(map(str, value)) or "(none)")
    return f"a list of {len(value)}" if isinstance(value, list) else repr(value)


def asked(hint: Any) -> str:
    """What a type hint asks for, as an error names it."""
    if get_origin(hint) in (Union, types.UnionType):
        return " or ".join(dict.fromkeys(asked(part) for part in get_args(hint)))
    if get_origin(hint) is Literal:
        return " or ".join(map(repr, get_args(hint)))
    if hint in SCALARS:
        return SCALARS[hint]
    kind = get_origin(hint) or hint
    if kind is Callable:
        return "a callable"
    if isinstance(kind, type) and issubclass(list, kind):
        return "a list"
    return f"a {getattr(kind, '__name__', kind)}"
