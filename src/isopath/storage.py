"""The one place that writes files: whole or not at all, versioned, no pickles."""

from __future__ import annotations

import json
import os
import tempfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor

FORMAT = 1


class DamagedFile(ValueError):
    """A file that is not whole."""


def write_text(path: Path, text: str) -> None:
    """Replaces a file's text atomically: a reader, or a crash, finds the old one or the new one."""
    path.parent.mkdir(parents=True, exist_ok=True)
    handle, temporary = tempfile.mkstemp(dir=path.parent, prefix=f".{path.name}.")
    try:
        with os.fdopen(handle, "w", encoding="utf-8") as file:
            file.write(text)
            file.flush()
            os.fsync(file.fileno())
        os.replace(temporary, path)
    except BaseException:
        Path(temporary).unlink(missing_ok=True)
        raise


def write_json(path: Path, value: Any) -> None:
    """Replaces a JSON file atomically; NaN becomes null."""
    write_text(path, json.dumps(_finite(value), indent=1, allow_nan=False) + "\n")


def read_json(path: Path) -> Any:
    """A JSON file's value.

    Raises:
        FileNotFoundError: there is no such file.
        DamagedFile: it is not whole.
    """
    try:
        return json.loads(path.read_text(encoding="utf-8"))
    except json.JSONDecodeError as error:
        raise DamagedFile(f"{path} is not whole JSON ({error})") from error


def append_line(path: Path, value: Any) -> None:
    """Appends one row to a JSON-lines file in a single write."""
    with path.open("a", encoding="utf-8") as file:
        file.write(json.dumps(_finite(value), allow_nan=False) + "\n")


def read_lines(path: Path) -> tuple[list[Any], bool]:
    """Every whole row of a JSON-lines file, and whether the last one was cut off."""
    if not path.exists():
        return [], False
    rows = []
    for line in path.read_text(encoding="utf-8").splitlines():
        try:
            rows.append(json.loads(line))
        except json.JSONDecodeError:
            return rows, True
    return rows, False


def rewrite_lines(path: Path, rows: list[Any]) -> None:
    """Replaces a JSON-lines file atomically."""
    write_text(path, "".join(json.dumps(_finite(row), allow_nan=False) + "\n" for row in rows))


def save_tensors(path: Path, tensors: Mapping[str, Tensor], about: Mapping[str, Any] | None = None) -> None:
    """Writes a safetensors file atomically, with JSON metadata."""
    path.parent.mkdir(parents=True, exist_ok=True)
    handle, temporary = tempfile.mkstemp(dir=path.parent, prefix=f".{path.name}.")
    os.close(handle)
    try:
        # clones: safetensors refuses views that share storage, and a point's tensors are views of one vector
        whole = {name: tensor.detach().cpu().clone().contiguous() for name, tensor in tensors.items()}
        save_file(whole, temporary, {"format": "pt", "isopath": json.dumps({"version": FORMAT, **(about or {})})})
        with open(temporary, "rb") as file:
            os.fsync(file.fileno())
        os.replace(temporary, path)
    except BaseException:
        Path(temporary).unlink(missing_ok=True)
        raise


def load_tensors(path: Path) -> tuple[dict[str, Tensor], dict[str, Any]]:
    """Tensors and metadata of a safetensors file.

    Raises:
        FileNotFoundError: there is no such file.
        DamagedFile: it is cut off, or not a safetensors file, or of a later format.
    """
    if not path.exists():
        raise FileNotFoundError(f"no file {path}")
    try:
        with safe_open(path, "pt") as file:
            tensors = {name: file.get_tensor(name) for name in file.keys()}
            about = json.loads((file.metadata() or {}).get("isopath", "{}"))
    except (SafetensorError, json.JSONDecodeError, OSError) as error:
        raise DamagedFile(f"{path} is not a whole safetensors file ({error})") from error
    if about.get("version", FORMAT) > FORMAT:
        raise DamagedFile(f"{path} has format {about['version']}, this version reads up to {FORMAT}; upgrade isopath")
    return tensors, about


def _finite(value: Any) -> Any:
    """JSON has no NaN: null stands for it."""
    if isinstance(value, float):
        return value if value == value and abs(value) != float("inf") else None
    if isinstance(value, Mapping):
        return {key: _finite(v) for key, v in value.items()}
    if isinstance(value, (list, tuple)):
        return [_finite(v) for v in value]
    if isinstance(value, (torch.Tensor,)):
        return _finite(value.tolist())
    return value
