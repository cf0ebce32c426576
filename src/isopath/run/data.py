"""Readers, so that a config file can name data: a path and a few words become tensors with one row per example.

One rule holds for every format. Inputs of ``uint8`` with more than one number per row are pixels: float32 in [0, 1],
``(N, H, W)`` gains a channel axis, and ``(N, H, W, C)`` becomes ``(N, C, H, W)`` if only the last axis has length 1, 3
or 4. All else is float32, or int64 if the file holds integers (token ids); integer labels ``(N, 1)`` become ``(N,)``.
"""

from __future__ import annotations

import glob
import gzip
import importlib
import io
import math
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from difflib import SequenceMatcher
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

StrPath = str | Path
Size = int | tuple[int, int] | None
IDX_DTYPES = {0x08: ">u1", 0x09: ">i1", 0x0B: ">i2", 0x0C: ">i4", 0x0D: ">f4", 0x0E: ">f8"}
SUFFIXES = {".png", ".jpg", ".jpeg", ".bmp", ".gif", ".webp", ".tif", ".tiff", ".ppm", ".pgm", ".pbm"}
# Pillow's pixel formats, and what each is read as. 16-bit formats are absent: Pillow clips them without a word.
MODES = {"1": "L", "L": "L", "LA": "RGBA", "P": "RGB", "CMYK": "RGB", "YCbCr": "RGB", "RGB": "RGB", "RGBA": "RGBA"}


@dataclass(frozen=True, eq=False)
class Data:
    """Inputs ``(N, ...)`` and, where there are any, labels ``(N,)`` or ``(N, ...)``; its methods return a new one.

    >>> len(Data(torch.zeros(4, 3), labels=torch.tensor([0, 1, 1, 2])).where([1, 2]))
    3
    """

    inputs: Tensor
    labels: Tensor | None = None

    def __len__(self) -> int:
        return len(self.inputs)

    def rows(self, index: slice | Tensor) -> Data:
        """Rows by a slice (a view, no copy), an integer tensor ``(n,)`` or a bool tensor ``(N,)``; or IndexError."""
        return Data(self.inputs[index], None if self.labels is None else self.labels[index])

    def where(self, labels_in: Sequence[int]) -> Data:
        """Rows whose label is in the list, in their order. ValueError if there is none, or no integer labels."""
        labels = self._classes()
        found = torch.isin(labels, torch.tensor(list(labels_in), dtype=torch.int64, device=labels.device))
        if not found.any():
            raise _wrong("Data.where", f"{list(labels_in)}", f"labels among {labels.unique().tolist()}", "Name those.")
        return self.rows(found)

    def take(self, n: int, seed: int = 0, balanced: bool = False) -> Data:
        """``n`` different random rows, the same for the same seed; ``balanced``: as many of each label, to within one.
        ValueError if n is not in 1..N, or if a label has too few rows for a balanced choice."""
        if not 1 <= n <= len(self):
            raise _wrong("Data.take", f"n={n}", f"1 to {len(self)}, the number of rows", "Choose n in that range.")
        order = torch.randperm(len(self), generator=torch.Generator().manual_seed(seed)).to(self.inputs.device)
        if balanced:
            labels = self._classes()
            order = order[_earlier_alike(labels[order]).argsort(stable=True)]
            counts = (labels[order[:n], None] == labels.unique()).sum(0)
            if counts.max() - counts.min() > 1:
                raise _wrong("Data.take", f"a label in {counts.min()} rows", f"{n} balanced rows", "Take fewer.")
        return self.rows(order[:n])

    def _classes(self) -> Tensor:
        if self.labels is None or self.labels.ndim != 1 or self.labels.is_floating_point():
            raise _wrong("Data", "no class labels", "one integer per row", "Name the labels when you read the data.")
        return self.labels


def idx(images: StrPath, labels: StrPath | None = None) -> Data:
    """IDX files (the MNIST family), gzipped or not: the content tells, not the name.

    Inputs float32: uint8 in [0, 1], other types with their values as they stand; rank 3 becomes ``(N, 1, H, W)``.
    Raises FileNotFoundError, ValueError for files that are not IDX, cut short, empty, not finite, or do not match.

    >>> idx("train-images-idx3-ubyte.gz", "train-labels-idx1-ubyte.gz").inputs.shape  # doctest: +SKIP
    torch.Size([60000, 1, 28, 28])
    """
    inputs = _tensor(_idx_array(images), images).to(torch.float32)
    inputs = inputs.unsqueeze(1) if inputs.ndim == 3 else inputs  # uint8 has its channel axis already
    values = None if labels is None else _tensor(_idx_array(labels), labels, label=True)
    if values is not None and values.ndim != 1:
        raise _wrong(labels, f"an array of shape {tuple(values.shape)}", "labels, of rank 1", "Are the files swapped?")
    return _checked(images if labels is None else f"{images} with {labels}", inputs, values)


def mnist(root: StrPath, name: str = "MNIST", train: bool = True) -> Data:
    """``<root>/<name>/raw/{train,t10k}-{images-idx3,labels-idx1}-ubyte[.gz]``, as torchvision lays them out.

    ``name`` may be "FashionMNIST". Inputs float32 ``(N, 1, 28, 28)`` in [0, 1], labels int64 ``(N,)``. Raises as
    :func:`idx` does; a missing file lists what the folder has instead.

    >>> mnist("data", name="FashionMNIST", train=False).inputs.shape  # doctest: +SKIP
    torch.Size([10000, 1, 28, 28])
    """
    raw, split = Path(root).expanduser() / name / "raw", "train" if train else "t10k"
    plain = [raw / f"{split}-images-idx3-ubyte", raw / f"{split}-labels-idx1-ubyte"]
    return idx(*(file if file.is_file() else file.with_name(file.name + ".gz") for file in plain))


def npz(path: StrPath, inputs: str = "x", labels: str | None = "y") -> Data:
    """Two arrays of a NumPy ``.npz`` file, by key (labels None: inputs alone), typed by the module's rule.

    Raises FileNotFoundError, and ValueError for a key that is not there (lists those that are), a file that is no
    ``.npz`` or holds pickled objects, empty or non-finite data.

    >>> npz("mnist.npz", inputs="x_train", labels="y_train").inputs.shape  # doctest: +SKIP
    torch.Size([60000, 1, 28, 28])
    """
    file = _existing(path)
    with _reading(file, "an .npz archive of plain numbers"), np.load(file, allow_pickle=False) as archive:
        keys = list(archive.files)
        arrays = {key: archive[key] for key in (inputs, labels) if key in keys}
    _known(file, "key", [inputs] if labels is None else [inputs, labels], keys)
    values = None if labels is None else _tensor(arrays[labels], f"{file} key {labels!r}", label=True)
    return _checked(file, _tensor(arrays[inputs], f"{file} key {inputs!r}"), values)


def parquet(path: StrPath, inputs: str | Sequence[str], labels: str | None = "label", size: Size = None,
            channels: int | None = None) -> Data:
    """Columns of a parquet file, of a glob, or of a folder of shards (in the order of their names).

    ``inputs``: one or several columns of numbers, float32 ``(N, columns)`` as they stand; or a column of (nested)
    lists of one shape, by the module's rule; or a Hugging Face image column, struct{bytes, path}, read as
    :func:`image_folder` reads files. Raises ImportError without pyarrow or Pillow, FileNotFoundError, and ValueError:
    unknown column, nulls, text, ragged lists, a folder that mixes train and test, empty or non-finite data.

    >>> parquet("cifar10/train-*.parquet", inputs="img").inputs.shape  # doctest: +SKIP
    torch.Size([50000, 3, 32, 32])
    """
    names = [inputs] if isinstance(inputs, str) else list(inputs)
    table = _table(path, names if labels is None else [*names, labels])
    values = None if labels is None else _column(path, table, labels, label=True)
    if len(names) == 1 and str(table.schema.field(names[0]).type).startswith("struct"):
        cells = ((f"{path} row {i}", (cell.as_py() or {}).get("bytes")) for i, cell in enumerate(table[names[0]]))
        return _checked(path, _images(cells, size, channels), values)
    columns = [_column(path, table, name) for name in names]
    if len(columns) == 1 and columns[0].ndim > 1:
        return _checked(path, columns[0], values)
    if not columns or any(column.ndim > 1 for column in columns):
        raise _wrong(path, f"inputs={names}", "columns with one number per row, or one of lists", "Choose those.")
    return _checked(path, torch.stack([column.to(torch.float32) for column in columns], dim=1), values)


def image_folder(root: StrPath, size: Size = None, channels: int | None = None) -> Data:
    """``<root>/<class name>/*.png|jpg|...``: float32 ``(N, C, H, W)`` in [0, 1], int64 labels by sorted class name.

    ``size`` stretches every image to (height, width), an int to a square; ``channels`` is 1 (grey), 3 or 4 (alpha),
    by default what the images have. Raises ImportError without Pillow, FileNotFoundError, and ValueError for shapes
    that differ (names the first two), a class without images, an image that cannot be read or is not 8-bit.

    >>> image_folder("flowers/train", size=64, channels=3).inputs.shape  # doctest: +SKIP
    torch.Size([2040, 3, 64, 64])
    """
    folder = _existing(root, folder=True)
    names = sorted(p.name for p in folder.iterdir() if p.is_dir() and not p.name.startswith("."))
    found = [[p for p in sorted((folder / name).iterdir()) if p.suffix.lower() in SUFFIXES] for name in names]
    if not found or [] in found:
        got = f"no image in folder {names[found.index([])]!r}" if found else "no folder in it"
        raise _wrong(folder, got, "one folder of *.png, *.jpg, ... per class", "Sort the images into such folders.")
    labels = torch.repeat_interleave(torch.tensor([len(files) for files in found]))
    named = ((str(file), file.read_bytes()) for files in found for file in files)
    return _checked(folder, _images(named, size, channels), labels)


def digits(train: bool = True, classes: Sequence[int] | None = None) -> Data:
    """scikit-learn's bundled handwritten digits: float32 ``(N, 1, 8, 8)`` in [0, 1], int64 labels; no download.

    Every fourth row of each digit is the test part: stratified, and the same with every version of every library.
    ``classes`` keeps some of the digits, under their own labels; ValueError for one outside 0..9.

    >>> len(digits()), digits(train=False, classes=[0, 1]).inputs.shape
    (1352, torch.Size([89, 1, 8, 8]))
    """
    _known("digits", "class", list(classes or ()), list(range(10)))
    from sklearn.datasets import load_digits  # slow to import, and most runs name other data

    pixels, target = load_digits(return_X_y=True)
    labels = torch.from_numpy(target).to(torch.int64)
    inputs = torch.from_numpy(pixels).to(torch.float32).div_(16).reshape(-1, 1, 8, 8)
    part = Data(inputs, labels).rows((_earlier_alike(labels) % 4 == 3) != train)
    return part if classes is None else part.where(classes)


def _idx_array(path: StrPath) -> np.ndarray:
    file = _existing(path)
    raw = file.read_bytes()
    if raw.startswith(b"\x1f\x8b"):
        with _reading(file, "a whole gzip file"):
            raw = gzip.decompress(raw)
    if len(raw) < 4 or raw[:2] != b"\0\0" or raw[2] not in IDX_DTYPES:
        raise _wrong(file, f"bytes {raw[:4].hex(' ')}", "an IDX header, 00 00 <type> <rank>", "Is it the right file?")
    dtype, start = np.dtype(IDX_DTYPES[raw[2]]), 4 + 4 * raw[3]
    shape = [int.from_bytes(raw[i : i + 4], "big") for i in range(4, start, 4)]
    if len(raw) != (expected := start + math.prod(shape) * dtype.itemsize):
        raise _wrong(file, f"{len(raw)} bytes", f"{expected} for {dtype.name} of shape {shape}", "Copy the file again.")
    return np.frombuffer(raw, dtype, offset=start).reshape(shape)


def _table(path: StrPath, columns: list[str]) -> Any:  # a pyarrow.Table: these columns of all shards
    pa, pq = _extra("pyarrow"), _extra("pyarrow.parquet")
    place, tables = Path(path).expanduser(), []
    shards = sorted(place.glob("*.parquet") if place.is_dir() else map(Path, glob.glob(str(place))))
    splits = [split for split in ("train", "test", "val", "dev") if any(s.name.startswith(split) for s in shards)]
    if place.is_dir() and len(splits) > 1:
        raise _wrong(place, f"files of {splits}", "those of one split", "Name them, as in 'folder/train*.parquet'.")
    for shard in shards or [_existing(place)]:
        with _reading(shard, "a parquet file"), pq.ParquetFile(shard) as file:
            names = file.schema_arrow.names
            tables.append(file.read(columns=[name for name in dict.fromkeys(columns) if name in names]))
        _known(shard, "column", columns, names)
    with _reading(path, "the same type in every shard"):
        return pa.concat_tables(tables, promote_options="permissive")


def _column(path: StrPath, table: Any, name: str, label: bool = False) -> Tensor:
    """A column of numbers ``(N,)``, or of nested lists of one shape ``(N, ...)``."""
    values, shape, source = table[name].combine_chunks(), [len(table)], f"{path} column {name!r}"
    while values.null_count == 0 and str(values.type).split("<")[0].endswith("list"):
        lengths = _extra("pyarrow.compute").list_value_length(values).unique().to_pylist()
        if len(lengths) > 1:
            raise _wrong(source, f"lists of {lengths[0]} and of {lengths[1]}", "one length", "Pad or cut the lists.")
        shape, values = shape + lengths, values.flatten()
    if values.null_count:
        raise _wrong(source, f"{values.null_count} nulls", "a value everywhere", "Fill or drop them.")
    return _tensor(values.to_numpy(zero_copy_only=False).reshape(shape), source, label)


def _images(named: Iterable[tuple[str, bytes | None]], size: Size, channels: int | None) -> Tensor:
    """Decoded image files ``(N, C, H, W)``, float32 in [0, 1]."""
    pil, first = _extra("PIL.Image"), ""
    arrays: list[np.ndarray] = []
    _known("images", "number of channels", [channels], [None, 1, 3, 4])
    for name, raw in named:
        with _reading(name, "the bytes of an image file"):
            image = pil.open(io.BytesIO(raw or b""))
            _known("8-bit images are read", "pixel format", [image.mode], list(MODES))
            image = image.convert({None: MODES[image.mode], 1: "L", 3: "RGB", 4: "RGBA"}[channels])
            height, width = (size, size) if isinstance(size, int) else size or (image.height, image.width)
            image = image.resize((width, height), pil.Resampling.BILINEAR)
        pixels = np.atleast_3d(np.asarray(image)).transpose(2, 0, 1)
        first = first or f"{pixels.shape} of {name}"
        if arrays and pixels.shape != arrays[0].shape:
            raise _wrong(name, f"shape {pixels.shape}", first, "Give size=(height, width), channels=1, 3 or 4.")
        arrays.append(pixels)
    return _tensor(np.stack(arrays), first) if arrays else torch.empty(0)


def _tensor(array: np.ndarray, source: object, label: bool = False) -> Tensor:
    """A tensor that owns its memory, by the rule at the head of this module."""
    if array.dtype.kind not in "biuf" or array.dtype.itemsize > 8:
        raise _wrong(source, f"dtype {array.dtype}", "numbers of at most 64 bits", "Convert it (text: to integers).")
    tensor = torch.from_numpy(np.require(array, array.dtype.newbyteorder("="), ["C", "W"]))
    if label or tensor.dtype != torch.uint8 or tensor.ndim < 2:
        tensor = tensor.to(torch.float32 if tensor.is_floating_point() else torch.int64)
        return tensor[:, 0] if label and tensor.dtype == torch.int64 and tensor.shape[1:] == (1,) else tensor
    if tensor.ndim == 4 and tensor.shape[3] in (1, 3, 4) and tensor.shape[1] not in (1, 3, 4):
        tensor = tensor.movedim(3, 1).contiguous()
    return (tensor.unsqueeze(1) if tensor.ndim == 3 else tensor).to(torch.float32).div_(255)


def _checked(source: object, inputs: Tensor, labels: Tensor | None = None) -> Data:
    if inputs.ndim == 0 or inputs.numel() == 0:
        raise _wrong(source, f"inputs of shape {tuple(inputs.shape)}", "at least one row", "Is it the right file?")
    if labels is not None and labels.shape[:1] != inputs.shape[:1]:
        raise _wrong(source, f"labels {list(labels.shape)}", f"one to each of {len(inputs)} inputs", "Check the split.")
    for what, tensor in (("inputs", inputs), ("labels", labels)):
        if tensor is not None and not (finite := tensor.isfinite()).all():
            bad = f"{what} not finite in row {int((~finite).nonzero()[0, 0])}"
            raise _wrong(source, bad, "finite float32", "Drop or fill such rows.")
    return Data(inputs, labels)


def _earlier_alike(labels: Tensor) -> Tensor:
    """For each row, how many rows before it have its label: ``(N,)`` -> ``(N,)``."""
    _, kind, counts = labels.unique(return_inverse=True, return_counts=True)
    order = kind.argsort(stable=True)
    earlier = torch.arange(len(order), device=order.device) - (counts.cumsum(0) - counts)[kind[order]]
    return torch.empty_like(order).scatter_(0, order, earlier)


def _existing(path: StrPath, folder: bool = False) -> Path:
    """The path if it is there; else FileNotFoundError, with what the nearest folder above it has."""
    place = Path(path).expanduser().absolute()
    if not (place.is_dir() if folder else place.is_file()):
        near = next(p for p in (place, *place.parents) if p.is_dir())
        there = sorted(p.name for p in near.iterdir() if p.is_dir() or not folder)
        _known(near, f"missing {'folder' if folder else 'file'}", [place.relative_to(near)], there, FileNotFoundError)
    return place


def _known(source: object, what: str, wanted: list[Any], known: list[Any], error: Any = ValueError) -> None:
    """Raises ``error`` for a name that is not known, with those that are and the nearest of them."""
    names = list(map(str, known))
    for name in [n for n in map(str, wanted) if n not in names]:
        shown = ", ".join(names[:20]) + (f" and {len(names) - 20} more" if names[20:] else "")
        first = name.split("/")[0].lower()  # of a path, the part that is missing
        nearest = max(names, key=lambda n: SequenceMatcher(None, n.lower(), first).ratio(), default="nothing")
        raise error(f"{source}: got the {what} '{name}'; expected one of: {shown}. The nearest is '{nearest}'.")


def _wrong(source: object, got: str, expected: str, remedy: str) -> ValueError:
    return ValueError(f"{source}: got {got}; expected {expected}. {remedy}")


@contextmanager
def _reading(source: object, expected: str) -> Iterator[None]:
    """Every decoder fails on a broken file with exceptions of its own; make them one that names the file."""
    try:
        yield
    except Exception as error:
        raise _wrong(source, f"a file that cannot be read ({error})", expected, "Copy or convert it again.") from error


def _extra(module: str) -> Any:
    try:
        return importlib.import_module(module)
    except ImportError as error:
        raise ImportError(f'{module} is missing; expected with this format: pip install "isopath[data]"') from error
