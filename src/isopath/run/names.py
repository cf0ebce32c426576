"""Names in a config: a dotted path, or a short name, to the class or function that it means."""

from __future__ import annotations

import importlib
from collections.abc import Callable
from difflib import get_close_matches
from pathlib import Path
from typing import Any

from isopath.run.hints import said

TOP = ("Reference", "Memory", "Task", "Robust", "Sparsity", "Toward", "Diversity", "NaturalGradient", "NullSpace",
       "Penalised")  # fmt: skip
SHORT: dict[str, str] = {
    **dict.fromkeys(TOP, "isopath"),
    **dict.fromkeys(("GaussNewton", "Multiplier", "Recovery", "Compensation", "Backtracking"), "isopath.trace"),
    **dict.fromkeys(("digits", "mnist", "idx", "npz", "parquet", "image_folder"), "isopath.run.data"),
    "PGD": "isopath.attacks",
    "span": "isopath.run.names",
}


class ConfigError(ValueError):
    """A config that says something it cannot: where, what was expected, and the nearest valid word."""


def span(start: int | None = None, stop: int | None = None) -> slice:
    """A slice, for `outputs:` of a task: `{class_path: span, init_args: {start: 0, stop: 10}}`."""
    return slice(start, stop)



def found(path: Any, where: str) -> Callable[..., Any]:
    """The class or function of a dotted path or a short name.

    Raises:
        ConfigError: there is none; the message says which part is missing and suggests the nearest name.
    """
    if not isinstance(path, str):
        raise ConfigError(f"{where} must be a dotted path, such as torch.nn.Linear, got {said(path)}")
    if path in SHORT:
        return getattr(importlib.import_module(SHORT[path]), path)
    parts = path.split(".")
    if len(parts) < 2 or not all(part.isidentifier() for part in parts):
        raise unknown(where, "short name", path, list(SHORT), " A class of your own is a dotted path: module.Class.")
    for cut in range(len(parts) - 1, 0, -1):
        module = _imported(".".join(parts[:cut]), where)
        if module is not None:
            return _attribute(module, parts[cut:], where)
    raise ConfigError(f"{where}: no module {parts[0]!r} to find {path!r} in, neither installed nor in {Path.cwd()}")


def _imported(name: str, where: str) -> Any:
    try:
        return importlib.import_module(name)
    except ModuleNotFoundError as error:
        if error.name and (name == error.name or name.startswith(f"{error.name}.")):
            return None
        raise ConfigError(f"{where}: importing {name} failed: {error}") from error
    except Exception as error:
        raise ConfigError(f"{where}: importing {name} failed: {type(error).__name__}: {error}") from error


def _attribute(found: Any, names: list[str], where: str) -> Callable[..., Any]:
    for name in names:
        if not hasattr(found, name):
            public = [n for n in dir(found) if not n.startswith("_")]
            raise unknown(f"{where}: {found.__name__}", "member", name, public)
        found = getattr(found, name)
    if not callable(found):
        raise ConfigError(f"{where}: {'.'.join(names)} is {said(found)}, expected a class or a function")
    return found


def unknown(where: str, what: str, name: object, valid: list[str], more: str = "") -> ConfigError:
    """An error for a name that is not known: those that are, and the nearest of them."""
    listed = ", ".join(valid[:24]) + (f" and {len(valid) - 24} more" if valid[24:] else "") or "none"
    near = get_close_matches(str(name), valid, 1, cutoff=0.5)
    hint = f" Did you mean {near[0]!r}?" if near else ""
    return ConfigError(f"{where} has no {what} {name!r}; valid: {listed}.{hint}{more}")
