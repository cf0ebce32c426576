"""The one place that writes files: whole or not at all, versioned, no pickles."""

from __future__ import annotations

import json
import os
import tempfile
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor, nn

from isopath.arguments import check_kind

FORMAT = 1


class DamagedFile(ValueError):
    """A file that is not whole."""


@contextmanager
def _replacing(path: Path) -> Iterator[Path]:
    """A temporary file beside `path` that takes its place, flushed to disk, once the block is through."""
    path.parent.mkdir(parents=True, exist_ok=True)
    handle, name = tempfile.mkstemp(dir=path.parent, prefix=f".{path.name}.")
    os.close(handle)
    temporary = Path(name)
    try:
        yield temporary
        temporary.chmod(0o666 & ~_umask())  # mkstemp's files are for their owner alone
        with temporary.open("rb") as file:
            os.fsync(file.fileno())
        os.replace(temporary, path)
    except BaseException:
        temporary.unlink(missing_ok=True)
        raise


def _umask() -> int:
    """The process's umask, which can only be read by setting it."""
    mask = os.umask(0o077)
    os.umask(mask)
    return mask


def write_text(path: Path, text: str) -> None:
    """Replaces a file's text atomically: a reader, or a crash, finds the old one or the new one."""
    with _replacing(path) as temporary:
        temporary.write_text(text, encoding="utf-8")


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
    """Writes a safetensors file atomically, with JSON metadata: the same tensors and metadata, the same bytes.

    Raises:
        OSError: it could not be written, as on a full disk; what was there before is whole.
    """
    # clones: safetensors refuses views that share storage, and a point's tensors are views of one vector
    whole = {name: tensor.detach().cpu().clone().contiguous() for name, tensor in tensors.items()}
    metadata = {"isopath": json.dumps({"version": FORMAT, **(about or {})})}  # one key: several have no fixed order
    with _replacing(path) as temporary:
        try:
            save_file(whole, temporary, metadata)
        except SafetensorError as error:
            raise OSError(f"{path} could not be written ({error})") from error


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
            names = file.keys()
            tensors = {name: file.get_tensor(name) for name in names}
            about = json.loads((file.metadata() or {}).get("isopath", "{}"))
    except (SafetensorError, json.JSONDecodeError, OSError) as error:
        raise DamagedFile(f"{path} is not a whole safetensors file ({error})") from error
    if about.get("version", FORMAT) > FORMAT:
        raise DamagedFile(f"{path} has format {about['version']}, this version reads up to {FORMAT}; upgrade isopath")
    return tensors, about


def save_weights(weights: nn.Module | Mapping[str, Tensor], path: str | Path) -> None:
    """Writes weights as a safetensors file in which zeros take no room, or next to none.

    A tensor with enough zeros is stored as its other values in row-major order (`"name.values"`) and their places,
    whichever takes fewer bytes: a bit for each entry (`"name.bits"`, eight to a byte, the first in the lowest bit), or
    the distance of each to the one before (`"name.gaps"`, one or two bytes; the first to place -1, less one each).
    Others are stored as they are; a zero's sign is lost. Written whole or not at all.

    Args:
        weights: a module, whose parameters and buffers are saved, or tensors by name.
        path: the file.
    """
    check_kind(weights, (nn.Module, Mapping), "what is saved", "of a path take .model()")
    stored, shapes = _stored(weights)
    save_tensors(Path(path), stored, {"sparse": shapes} if shapes else None)


def weights_size(weights: nn.Module | Mapping[str, Tensor]) -> int:
    """The bytes that `save_weights` spends on the tensors, without the file's header."""
    tensors = weights.state_dict() if isinstance(weights, nn.Module) else weights
    stored = _stored({name: t for name, t in tensors.items() if isinstance(t, Tensor)})[0]
    return sum(tensor.numel() * tensor.element_size() for tensor in stored.values())


def load_weights(path: str | Path) -> dict[str, Tensor]:
    """Weights by name, for `load_state_dict`, from a file of `save_weights` or any other safetensors file.

    Raises:
        FileNotFoundError: there is no such file.
        DamagedFile: it is not whole, or its parts do not fit.
    """
    tensors, about = load_tensors(Path(path))
    for name, shape in about.get("sparse", {}).items():
        values = tensors.pop(f"{name}.values", None)
        bits, gaps = tensors.pop(f"{name}.bits", None), tensors.pop(f"{name}.gaps", None)
        places = None
        if bits is not None:
            places = torch.from_numpy(np.unpackbits(bits.numpy(), bitorder="little")).nonzero().squeeze(1)
        elif gaps is not None:
            places = ((gaps.long() & 0xFFFF) + 1).cumsum(0) - 1  # what is stored in two bytes has no sign
        whole = torch.Size(shape).numel()
        if values is None or places is None or len(places) != len(values) or (len(places) and places[-1] >= whole):
            raise DamagedFile(f"{path} has no values and places that fit for {name!r} of shape {tuple(shape)}")
        tensors[name] = torch.zeros(whole, dtype=values.dtype).index_put_((places,), values).view(shape)
    return tensors


def _stored(weights: nn.Module | Mapping[str, Tensor]) -> tuple[dict[str, Tensor], dict[str, list[int]]]:
    """The tensors of the file, and the shapes of those that are stored without their zeros."""
    tensors = weights.state_dict() if isinstance(weights, nn.Module) else weights
    stored: dict[str, Tensor] = {}
    shapes: dict[str, list[int]] = {}
    for name, tensor in tensors.items():
        if not isinstance(tensor, Tensor):
            raise TypeError(
                f"{name!r} is no tensor but a {type(tensor).__name__}, which a safetensors file cannot hold; save the "
                "others, {name: t for name, t in module.state_dict().items() if isinstance(t, torch.Tensor)}"
            )
        parts = _sparse(tensor.detach().cpu())
        named = {f"{name}.{kind}": part for kind, part in (parts or {}).items()}
        if parts is None or any(other in tensors for other in named):
            stored[name] = tensor
        else:
            shapes[name] = list(tensor.shape)
            stored |= named
    return stored, shapes


def _sparse(tensor: Tensor) -> dict[str, Tensor] | None:
    """Values that are not zero and their places; `None` where that takes no fewer bytes than all."""
    if tensor.is_floating_point() and tensor.element_size() < 2:
        return None  # of eight bits torch cannot say which are zero
    flat = tensor.contiguous().view(-1)
    places = flat.nonzero().squeeze(1)
    gaps = torch.diff(places, prepend=torch.tensor([-1])) - 1
    widest = int(gaps.max()) if len(gaps) else 0
    size = 1 if widest < 2**8 else 2 if widest < 2**16 else None
    by_gaps = len(places) * size if size else float("inf")
    by_bits = (len(flat) + 7) // 8
    values = flat[places]
    if len(places) * flat.element_size() + min(by_gaps, by_bits) >= len(flat) * flat.element_size():
        return None
    if by_bits <= by_gaps:
        return {"values": values, "bits": torch.from_numpy(np.packbits((flat != 0).numpy(), bitorder="little"))}
    narrow = gaps.to(torch.uint8) if size == 1 else gaps.sub((gaps >= 2**15).long() * 2**16).to(torch.int16)
    return {"values": values, "gaps": narrow}


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
