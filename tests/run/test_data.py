"""Every format is written here byte by byte or with its own library, then read back against known values."""

from __future__ import annotations

import gzip
import io
import struct
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from isopath.run import data as D

IMAGES = np.arange(2 * 3 * 4, dtype=np.uint8).reshape(2, 3, 4) * 10
CODES = {"u1": 0x08, "i1": 0x09, "i2": 0x0B, "i4": 0x0C, "f4": 0x0D, "f8": 0x0E}


def idx_bytes(array: np.ndarray) -> bytes:
    kind = array.dtype.str[1:]
    header = bytes([0, 0, CODES[kind], array.ndim]) + struct.pack(f">{array.ndim}I", *array.shape)
    return header + array.astype(f">{kind}").tobytes()


def write(path: Path, content: bytes) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(content)
    return path


def image_bytes(array: np.ndarray, mode: str | None = None, kind: str = "PNG") -> bytes:
    from PIL import Image

    image = Image.fromarray(array)
    stream = io.BytesIO()
    (image.convert(mode) if mode else image).save(stream, kind)
    return stream.getvalue()


def table(path: Path, **columns: Any) -> Path:
    import pyarrow as pa
    import pyarrow.parquet as pq

    pq.write_table(pa.table(columns), path)
    return path


def colours(n: int, height: int = 4, width: int = 5, channels: int = 3) -> np.ndarray:
    return np.random.default_rng(0).integers(0, 256, (n, height, width, channels), dtype=np.uint8)


def as_inputs(array: np.ndarray) -> torch.Tensor:
    """What the readers must make of uint8 ``(N, H, W, C)``."""
    return torch.from_numpy(np.ascontiguousarray(array.transpose(0, 3, 1, 2))).float() / 255


def same(tensor: torch.Tensor | None, expected: Any, dtype: torch.dtype) -> bool:
    expected = torch.as_tensor(expected, dtype=dtype)
    return tensor is not None and tensor.dtype == dtype and torch.equal(tensor, expected)


def fails(error: type[Exception], call: Callable[[], Any], *words: str) -> None:
    """The call raises exactly this error, whose sentence has all the words and the house's form."""
    with pytest.raises(error) as caught:
        call()
    message = str(caught.value)
    assert type(caught.value) is error
    for word in ("got", "expected", *words):
        assert word in message, message


# Data


def some_data(labels: list[int] | None) -> D.Data:
    n = 6 if labels is None else len(labels)
    return D.Data(torch.arange(2 * n).reshape(n, 2), None if labels is None else torch.tensor(labels))


def test_rows_by_slice_and_by_tensor() -> None:
    data = some_data([0, 1, 1, 2])
    assert len(data) == 4
    assert same(data.rows(slice(1, 3)).inputs, [[2, 3], [4, 5]], torch.int64)
    assert same(data.rows(torch.tensor([3, 0])).labels, [2, 0], torch.int64)
    assert same(data.rows(torch.tensor([True, False, False, True])).labels, [0, 2], torch.int64)
    assert some_data(None).rows(slice(2)).labels is None


def test_where_keeps_the_order() -> None:
    data = some_data([2, 0, 1, 2]).where([2, 1])
    assert same(data.labels, [2, 1, 2], torch.int64)
    assert same(data.inputs[:, 0], [0, 4, 6], torch.int64)


def test_where_needs_integer_labels_that_exist() -> None:
    fails(ValueError, lambda: some_data([0, 1]).where([7]), "[7]", "[0, 1]")
    fails(ValueError, lambda: some_data([0, 1]).where([]), "[]")
    fails(ValueError, lambda: some_data(None).where([0]), "no class labels")
    fails(ValueError, lambda: D.Data(torch.zeros(2, 1), torch.zeros(2)).where([0]), "no class labels")


def test_take_is_seeded_without_replacement_and_leaves_the_global_state() -> None:
    data = some_data([0, 1] * 20)
    state = torch.get_rng_state()
    first, again, other = data.take(10), data.take(10, seed=0), data.take(10, seed=1)
    assert torch.equal(state, torch.get_rng_state())
    assert torch.equal(first.inputs, again.inputs) and not torch.equal(first.inputs, other.inputs)
    assert first.inputs[:, 0].unique().numel() == 10
    assert first.labels is not None and torch.equal(first.labels, first.inputs[:, 0] // 2 % 2)
    assert sorted(data.take(40).inputs[:, 0].tolist()) == data.inputs[:, 0].tolist()


@pytest.mark.parametrize(("n", "counts"), [(6, [2, 2, 2]), (3, [1, 1, 1]), (9, [3, 3, 3])])
def test_take_balanced(n: int, counts: list[int]) -> None:
    labels = some_data([0] * 30 + [4] * 5 + [9] * 3).take(n, seed=3, balanced=True).labels
    assert labels is not None and labels.unique(return_counts=True)[1].tolist() == counts


def test_take_balanced_spreads_the_remainder_to_within_one() -> None:
    for seed in range(20):
        labels = some_data([0] * 30 + [1] * 5 + [2] * 3).take(8, seed=seed, balanced=True).labels
        assert labels is not None and sorted(labels.bincount().tolist()) == [2, 3, 3]


def test_take_refuses_what_is_not_there() -> None:
    data = some_data([0, 0, 0, 0, 0, 1])
    for n in (0, -1, 7):
        fails(ValueError, partial(data.take, n), f"n={n}", "1 to 6")
    fails(ValueError, lambda: data.take(4, balanced=True), "4 balanced", "1 rows")
    fails(ValueError, lambda: some_data(None).take(2, balanced=True), "no class labels")


def test_data_is_frozen() -> None:
    with pytest.raises(AttributeError):
        some_data([0]).labels = None  # type: ignore[misc]


# IDX


@pytest.mark.parametrize("zipped", [False, True])
@pytest.mark.parametrize("kind", CODES)
def test_idx_reads_every_type(tmp_path: Path, kind: str, zipped: bool) -> None:
    array = np.array([[0, 1, 127], [3, 100, 5]], dtype=kind)
    array = array if kind == "u1" else (-array if "f" not in kind else -array / 4)
    content = idx_bytes(array)
    path = write(tmp_path / "no-suffix", gzip.compress(content) if zipped else content)
    scale = 255 if kind == "u1" else 1
    assert same(D.idx(path).inputs, torch.from_numpy(array.astype("f4")) / scale, torch.float32)


@pytest.mark.parametrize("kind", ["u1", "i2", "f8"])
def test_idx_images_have_a_channel_axis(tmp_path: Path, kind: str) -> None:
    path = write(tmp_path / "x", idx_bytes(IMAGES.astype(kind)))
    expected = torch.from_numpy(IMAGES.astype("f4"))[:, None] / (255 if kind == "u1" else 1)
    assert same(D.idx(path).inputs, expected, torch.float32)


@pytest.mark.parametrize("shape", [(5,), (2, 3), (2, 1, 2, 2), (2, 1, 2, 1, 2)])
def test_idx_keeps_other_ranks(tmp_path: Path, shape: tuple[int, ...]) -> None:
    path = write(tmp_path / "x", idx_bytes(np.ones(shape, dtype="i2")))
    assert D.idx(str(path)).inputs.shape == shape


@pytest.mark.parametrize("kind", ["u1", "i4"])
def test_idx_with_labels(tmp_path: Path, kind: str) -> None:
    images = write(tmp_path / "x", idx_bytes(IMAGES))
    labels = write(tmp_path / "y.gz", gzip.compress(idx_bytes(np.array([7, 3], dtype=kind))))
    assert same(D.idx(images, labels).labels, [7, 3], torch.int64)


@pytest.mark.parametrize(
    ("content", "words"),
    [
        (b"", ["bytes"]),
        (b"\x00\x00\x08", ["00 00 08"]),
        (b"PNG and more", ["50 4e 47 20", "IDX header"]),
        (b"\x00\x00\x0a\x01\x00\x00\x00\x01\x01", ["00 00 0a 01"]),
        (idx_bytes(IMAGES)[:9], ["9 bytes"]),
        (idx_bytes(IMAGES)[:-1], ["39 bytes", "40 for uint8 of shape [2, 3, 4]"]),
        (idx_bytes(IMAGES) + b"\0", ["41 bytes"]),
        (gzip.compress(idx_bytes(IMAGES), mtime=0)[:-9], ["gzip"]),
        (idx_bytes(IMAGES[:0]), ["(0, 1, 3, 4)", "at least one row"]),
        (b"\x00\x00\x08\x00\x05", ["()"]),
        (idx_bytes(np.array([[0, 1], [np.nan, 1]], dtype="f4")), ["not finite in row 1"]),
        (idx_bytes(np.array([[1e300]], dtype="f8")), ["not finite in row 0", "float32"]),
    ],
)
def test_idx_refuses_broken_files(tmp_path: Path, content: bytes, words: list[str]) -> None:
    path = write(tmp_path / "broken", content)
    fails(ValueError, lambda: D.idx(path), str(path), *words)


def test_idx_refuses_labels_that_do_not_match(tmp_path: Path) -> None:
    images = write(tmp_path / "x", idx_bytes(IMAGES))
    labels = write(tmp_path / "y", idx_bytes(np.zeros(3, dtype="u1")))
    fails(ValueError, lambda: D.idx(images, labels), str(images), str(labels), "[3]", "2 inputs")
    fails(ValueError, lambda: D.idx(labels, images), str(images), "(2, 3, 4)", "swapped")


# MNIST


@pytest.mark.parametrize(("name", "suffix"), [("MNIST", ""), ("FashionMNIST", ".gz")])
def test_mnist_layout(tmp_path: Path, name: str, suffix: str) -> None:
    for split, shift in (("train", 0), ("t10k", 1)):
        for kind, array in (("images-idx3", IMAGES + shift), ("labels-idx1", np.array([shift, 9], dtype="u1"))):
            content = idx_bytes(array)
            path = tmp_path / name / "raw" / f"{split}-{kind}-ubyte{suffix}"
            write(path, gzip.compress(content) if suffix else content)
    train, test = D.mnist(tmp_path, name), D.mnist(str(tmp_path), name=name, train=False)
    assert same(train.labels, [0, 9], torch.int64) and same(test.labels, [1, 9], torch.int64)
    assert same(test.inputs, torch.from_numpy(IMAGES + 1).float()[:, None] / 255, torch.float32)


def test_missing_files_list_what_is_there(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    write(tmp_path / "MNIST" / "raw" / "train-images-idx3-ubyte.gz", gzip.compress(idx_bytes(IMAGES)))
    write(tmp_path / "notes.txt", b"")
    raw = str(tmp_path / "MNIST" / "raw")
    fails(FileNotFoundError, lambda: D.mnist(tmp_path), raw, "train-labels", "train-images-idx3-ubyte.gz")
    fails(FileNotFoundError, lambda: D.mnist(tmp_path, "Mnist"), str(tmp_path), "notes.txt", "nearest is 'MNIST'")
    fails(FileNotFoundError, lambda: D.idx(tmp_path / "note.txt"), "MNIST, notes.txt", "nearest is 'notes.txt'")
    fails(FileNotFoundError, lambda: D.idx(tmp_path), str(tmp_path), "MNIST, notes.txt")
    monkeypatch.chdir(tmp_path)
    fails(FileNotFoundError, lambda: D.npz("x.npz"), str(tmp_path), "x.npz", "MNIST, notes.txt")
    (tmp_path / "empty").mkdir()
    fails(FileNotFoundError, lambda: D.npz("empty/x.npz"), "x.npz", "nothing")
    for i in range(25):
        write(tmp_path / "many" / f"{i:02}", b"")
    fails(FileNotFoundError, lambda: D.idx("many/x"), "18, 19 and 5 more")


# npz


@pytest.mark.parametrize(
    ("array", "expected", "dtype"),
    [
        (IMAGES, torch.from_numpy(IMAGES).float()[:, None] / 255, torch.float32),
        (IMAGES.reshape(2, 12), torch.from_numpy(IMAGES.reshape(2, 12)).float() / 255, torch.float32),
        (colours(2, 6), as_inputs(colours(2, 6)), torch.float32),
        (colours(2).transpose(0, 3, 1, 2), as_inputs(colours(2)), torch.float32),
        (colours(2, 3, 3).transpose(0, 3, 1, 2), as_inputs(colours(2, 3, 3)), torch.float32),
        (np.array([[0.5], [1.5]]), [[0.5], [1.5]], torch.float32),
        (np.array([[0.5], [1.5]], dtype=">f8"), [[0.5], [1.5]], torch.float32),
        (np.array([[3, 5], [1, 7]], dtype="i4"), [[3, 5], [1, 7]], torch.int64),
        (np.array([True, False]), [1, 0], torch.int64),
        (np.array([200, 3], dtype="u1"), [200, 3], torch.int64),
    ],
    ids=["grey", "flat pixels", "channels last", "channels first", "3 x 3", "f8", ">f8", "tokens", "bool", "u1 row"],
)
def test_npz_types(tmp_path: Path, array: np.ndarray, expected: Any, dtype: torch.dtype) -> None:
    np.savez(tmp_path / "a.npz", x=array, other=np.array([object()]))
    data = D.npz(tmp_path / "a.npz", labels=None)
    assert data.labels is None and same(data.inputs, expected, dtype) and data.inputs.is_contiguous()


@pytest.mark.parametrize(
    ("labels", "expected", "dtype"),
    [
        (np.array([2, 0], dtype="u1"), [2, 0], torch.int64),
        (np.array([[2], [0]]), [2, 0], torch.int64),
        (np.array([[0.5], [2.0]]), [[0.5], [2.0]], torch.float32),
        (np.array([[1, 0, 1], [0, 0, 1]], dtype="u1"), [[1, 0, 1], [0, 0, 1]], torch.int64),
    ],
    ids=["classes", "column of classes", "regression", "multi-label"],
)
def test_npz_labels(tmp_path: Path, labels: np.ndarray, expected: Any, dtype: torch.dtype) -> None:
    np.savez_compressed(tmp_path / "a.npz", x_train=IMAGES, y_train=labels)
    assert same(D.npz(tmp_path / "a.npz", "x_train", "y_train").labels, expected, dtype)


def test_npz_unknown_key_names_the_nearest(tmp_path: Path) -> None:
    path = str(tmp_path / "a.npz")
    np.savez(path, x_train=IMAGES, y_train=np.zeros(2))
    fails(ValueError, lambda: D.npz(path), path, "key 'x'", "x_train, y_train", "nearest is 'x_train'")
    fails(ValueError, lambda: D.npz(path, "x_train"), path, "key 'y'", "nearest is 'y_train'")


def test_npz_refuses_bad_files(tmp_path: Path) -> None:
    path = tmp_path / "a.npz"
    np.savez(path, x=np.array([{}]), text=np.array(["a"]), wide=np.zeros(1, dtype=complex), y=np.zeros((1, 2)))
    fails(ValueError, lambda: D.npz(path), str(path), "allow_pickle")
    fails(ValueError, lambda: D.npz(path, "text"), str(path), "'text'", "<U1")
    fails(ValueError, lambda: D.npz(path, "wide"), "'wide'", "complex128")
    fails(ValueError, lambda: D.npz(write(tmp_path / "cut.npz", path.read_bytes()[:-30])), "cut.npz", ".npz archive")
    np.save(tmp_path / "one.npy", IMAGES)
    fails(ValueError, lambda: D.npz(tmp_path / "one.npy"), "one.npy", ".npz archive")


def test_npz_refuses_bad_data(tmp_path: Path) -> None:
    path = tmp_path / "a.npz"
    bad = np.array([[0.0], [np.inf], [np.nan]])
    np.savez(path, ok=np.zeros((3, 1)), bad=bad, none=np.zeros((0, 4)), scalar=np.array(1.0), two=np.zeros(2))
    fails(ValueError, lambda: D.npz(path, "bad", "ok"), str(path), "inputs not finite in row 1")
    fails(ValueError, lambda: D.npz(path, "ok", "bad"), str(path), "labels not finite in row 1")
    fails(ValueError, lambda: D.npz(path, "none", None), str(path), "(0, 4)", "at least one row")
    fails(ValueError, lambda: D.npz(path, "scalar", None), str(path), "()")
    fails(ValueError, lambda: D.npz(path, "ok", "two"), str(path), "[2]", "3 inputs")
    fails(ValueError, lambda: D.npz(path, "ok", "scalar"), str(path), "[]", "3 inputs")


# parquet


def test_parquet_numbers(tmp_path: Path) -> None:
    path = table(tmp_path / "a.parquet", a=[1, 2], b=[0.5, 1.5], label=[4, 2])
    data = D.parquet(path, ["b", "a"])
    assert same(data.inputs, [[0.5, 1], [1.5, 2]], torch.float32) and same(data.labels, [4, 2], torch.int64)
    assert same(D.parquet(path, "a", labels="b").inputs, [[1], [2]], torch.float32)
    assert same(D.parquet(path, "a", labels="b").labels, [0.5, 1.5], torch.float32)
    assert same(D.parquet(path, ["a"], labels=None).inputs, [[1], [2]], torch.float32)


def test_parquet_lists(tmp_path: Path) -> None:
    import pyarrow as pa

    fixed = pa.array([[1, 2], [3, 4]], pa.list_(pa.int32(), 2))
    pixels = pa.array(IMAGES.tolist(), pa.list_(pa.large_list(pa.uint8())))
    path = table(tmp_path / "a.parquet", floats=[[0.5, 1], [2, 3]], fixed=fixed, pixels=pixels, label=[0, 1])
    assert same(D.parquet(path, "floats").inputs, [[0.5, 1], [2, 3]], torch.float32)
    assert same(D.parquet(path, "fixed").inputs, [[1, 2], [3, 4]], torch.int64)
    assert same(D.parquet(path, "pixels").inputs, torch.from_numpy(IMAGES).float()[:, None] / 255, torch.float32)
    assert same(D.parquet(path, "fixed", labels="floats").labels, [[0.5, 1], [2, 3]], torch.float32)


def test_parquet_uint8_columns_are_numbers_as_they_stand(tmp_path: Path) -> None:
    path = table(tmp_path / "a.parquet", a=np.array([200, 3], dtype="u1"), label=[0, 1])
    assert same(D.parquet(path, ["a", "a"]).inputs, [[200, 200], [3, 3]], torch.float32)


def test_parquet_images(tmp_path: Path) -> None:
    pixels = colours(3)
    cells = [{"bytes": image_bytes(p), "path": None} for p in pixels]
    path = table(tmp_path / "a.parquet", img=cells, label=[0, 1, 2])
    data = D.parquet(path, "img")
    assert same(data.inputs, as_inputs(pixels), torch.float32) and same(data.labels, [0, 1, 2], torch.int64)
    assert D.parquet(path, ["img"], size=(2, 3), channels=1).inputs.shape == (3, 1, 2, 3)
    flat = np.full((8, 8, 3), 100, dtype=np.uint8)
    jpeg = table(tmp_path / "b.parquet", img=[{"bytes": image_bytes(flat, kind="JPEG"), "path": "x.jpg"}])
    assert torch.allclose(D.parquet(jpeg, "img", labels=None).inputs, torch.tensor(100 / 255), atol=0.01)


def test_parquet_shards_in_the_order_of_their_names(tmp_path: Path) -> None:
    for i in (2, 0, 1):
        dtype = "i4" if i == 2 else "i8"
        table(tmp_path / f"train-{i:05}.parquet", x=np.array([i, 10 + i], dtype=dtype), label=[i, i])
    table(tmp_path / "train-00003.parquet", x=np.array([], dtype="i8"), label=np.array([], dtype="i8"))
    (tmp_path / "notes.txt").write_text("not data")
    for path in (tmp_path, str(tmp_path / "*.parquet"), tmp_path / "train-0000?.parquet"):
        assert same(D.parquet(path, "x").labels, [0, 0, 1, 1, 2, 2], torch.int64)
    table(tmp_path / "test-00000.parquet", x=[1], label=[1])
    fails(ValueError, lambda: D.parquet(tmp_path, "x"), str(tmp_path), "['train', 'test']", "one split")
    assert len(D.parquet(tmp_path / "train*", "x")) == 6


def test_parquet_refuses_bad_columns(tmp_path: Path) -> None:
    columns = {"text": ["a", "b"], "ragged": [[1, 2], [1]], "hole": [1, None], "holes": [[1], [None]], "x": [1, 2]}
    path = table(tmp_path / "a.parquet", **columns, missing=[[1], None], bad=[0.0, float("inf")], lists=[[1], [2]])
    where = str(path)
    fails(ValueError, lambda: D.parquet(path, "text", None), where, "'text'", "dtype object", "to integers")
    fails(ValueError, lambda: D.parquet(path, "ragged", None), where, "'ragged'", "lists of 2 and of 1")
    fails(ValueError, lambda: D.parquet(path, "x", "hole"), where, "'hole'", "1 nulls")
    fails(ValueError, lambda: D.parquet(path, "holes", None), where, "'holes'", "1 nulls")
    fails(ValueError, lambda: D.parquet(path, "missing", None), where, "'missing'", "1 nulls")
    fails(ValueError, lambda: D.parquet(path, "bad", None), where, "not finite in row 1")
    fails(ValueError, lambda: D.parquet(path, ["x", "lists"], None), where, "['x', 'lists']", "one number per row")
    fails(ValueError, lambda: D.parquet(path, [], None), where, "inputs=[]")
    fails(ValueError, lambda: D.parquet(path, "x"), where, "column 'label'", "text, ragged", "nearest is 'hole'")
    fails(ValueError, lambda: D.parquet(path, ["x", "xs"], None), where, "column 'xs'", "nearest is 'x'")


def test_parquet_refuses_bad_files(tmp_path: Path) -> None:
    table(tmp_path / "a.parquet", x=[1])
    cut = write(tmp_path / "cut.parquet", (tmp_path / "a.parquet").read_bytes()[:-8])
    fails(ValueError, lambda: D.parquet(cut, "x", None), str(cut), "parquet file")
    fails(FileNotFoundError, lambda: D.parquet(tmp_path / "*.pq", "x", None), str(tmp_path), "*.pq", "cut.parquet")
    fails(FileNotFoundError, lambda: D.parquet(tmp_path / "b.parquet", "x", None), "nearest is 'a.parquet'")
    write(tmp_path / "folder" / "data.csv", b"")
    fails(FileNotFoundError, lambda: D.parquet(tmp_path / "folder", "x", None), "folder", "data.csv")
    empty = table(tmp_path / "empty.parquet", x=np.array([], dtype="f4"), img=np.array([]))
    fails(ValueError, lambda: D.parquet(empty, "x", None), str(empty), "at least one row")
    table(tmp_path / "s0.parquet", x=[1])
    table(tmp_path / "s1.parquet", x=["one"])
    fails(ValueError, lambda: D.parquet(tmp_path / "s?.parquet", "x", None), "s?.parquet", "same type in every shard")


def test_parquet_refuses_bad_images(tmp_path: Path) -> None:
    import pyarrow as pa

    good = {"bytes": image_bytes(colours(1)[0]), "path": "a.png"}
    for bad in ({"bytes": b"no image", "path": None}, {"bytes": None, "path": "b.png"}, None):
        path = table(tmp_path / "a.parquet", img=[good, bad])
        fails(ValueError, partial(D.parquet, path, "img", None), f"{path} row 1", "image file")
    none = pa.array([], pa.struct([("bytes", pa.binary()), ("path", pa.string())]))
    path = table(tmp_path / "b.parquet", img=none)
    fails(ValueError, lambda: D.parquet(path, "img", None), str(path), "at least one row")
    other = table(tmp_path / "c.parquet", img=[{"x": 1.0}])
    fails(ValueError, lambda: D.parquet(other, "img", None), str(other), "image file")


# image folders


def folder_of(root: Path, **classes: list[bytes]) -> Path:
    for name, files in classes.items():
        for i, content in enumerate(files):
            write(root / name / f"{i}.{'PNG' if i % 2 else 'png'}", content)
    return root


def test_image_folder_classes_sorted_by_name(tmp_path: Path) -> None:
    pixels = colours(3)
    files = [image_bytes(p) for p in pixels]
    root = folder_of(tmp_path, zebra=files[2:], ant=files[:2])
    write(root / "ant" / "notes.txt", b"")
    write(root / ".hidden" / "x.txt", b"")
    write(root / "README.md", b"")
    data = D.image_folder(root)
    assert same(data.inputs, as_inputs(pixels), torch.float32) and same(data.labels, [0, 0, 1], torch.int64)


@pytest.mark.parametrize(
    ("mode", "channels", "expected"),
    [
        *[("L", None, 1), ("1", None, 1), ("RGB", None, 3), ("P", None, 3), ("RGBA", None, 4), ("LA", None, 4)],
        *[("L", 3, 3), ("RGBA", 3, 3), ("RGB", 1, 1), ("P", 1, 1), ("RGB", 4, 4)],
    ],
)
def test_image_folder_channels(tmp_path: Path, mode: str, channels: int | None, expected: int) -> None:
    root = folder_of(tmp_path, a=[image_bytes(colours(1)[0], mode)])
    inputs = D.image_folder(root, channels=channels).inputs
    assert inputs.shape == (1, expected, 4, 5) and inputs.dtype == torch.float32
    assert inputs.min() >= 0 and inputs.max() <= 1


def test_image_folder_with_images_as_small_as_a_channel_axis(tmp_path: Path) -> None:
    pixels = colours(2, height=3, width=4)
    root = folder_of(tmp_path, a=[image_bytes(p) for p in pixels])
    assert same(D.image_folder(root).inputs, as_inputs(pixels), torch.float32)


def test_image_folder_sizes(tmp_path: Path) -> None:
    root = folder_of(tmp_path, a=[image_bytes(colours(1)[0]), image_bytes(colours(1, 6, 7)[0])])
    words = str(root / "a" / "1.PNG"), "(3, 6, 7)", "(3, 4, 5)", str(root / "a" / "0.png"), "size="
    fails(ValueError, lambda: D.image_folder(root), *words)
    assert D.image_folder(root, size=3).inputs.shape == (2, 3, 3, 3)
    assert D.image_folder(root, size=(2, 9)).inputs.shape == (2, 3, 2, 9)
    fails(ValueError, lambda: D.image_folder(root, size=-1), str(root / "a" / "0.png"))
    fails(ValueError, lambda: D.image_folder(root, channels=2), "'2'", "1, 3, 4")


def test_image_folder_refuses_mixed_channels(tmp_path: Path) -> None:
    root = folder_of(tmp_path, a=[image_bytes(colours(1)[0])], b=[image_bytes(colours(1)[0], "L")])
    fails(ValueError, lambda: D.image_folder(root), "(1, 4, 5)", "(3, 4, 5)", "channels=1, 3 or 4")
    assert D.image_folder(root, channels=1).inputs.shape == (2, 1, 4, 5)


def test_image_folder_refuses_what_is_not_one(tmp_path: Path) -> None:
    fails(ValueError, lambda: D.image_folder(tmp_path), str(tmp_path), "no folder in it", "per class")
    fails(FileNotFoundError, lambda: D.image_folder(tmp_path / "a"), str(tmp_path), "missing folder 'a'")
    root = folder_of(tmp_path / "good", a=[image_bytes(colours(1)[0])])
    write(root / "b" / "notes.txt", b"")
    fails(ValueError, lambda: D.image_folder(root), str(root), "no image in folder 'b'")
    fails(FileNotFoundError, lambda: D.image_folder(root / "a" / "0.png"), "missing folder '0.png'")
    cut = folder_of(tmp_path / "cut", a=[image_bytes(colours(1, 40, 40)[0])[:-500]])
    fails(ValueError, lambda: D.image_folder(cut), str(cut / "a" / "0.png"), "image file")
    deep = folder_of(tmp_path / "deep", a=[image_bytes(np.full((4, 4), 40_000, dtype=np.uint16))])
    fails(ValueError, lambda: D.image_folder(deep), str(deep / "a" / "0.png"), "8-bit", "I;16")


@pytest.mark.parametrize("module", ["pyarrow", "PIL"])
def test_missing_extra_names_the_remedy(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, module: str) -> None:
    path = table(tmp_path / "a.parquet", img=[{"bytes": image_bytes(colours(1)[0]), "path": None}])
    root = folder_of(tmp_path / "images", a=[image_bytes(colours(1)[0])])
    real = D.importlib.import_module

    def without(name: str) -> Any:
        if name.startswith(module):
            raise ImportError(f"No module named {name!r}")
        return real(name)

    monkeypatch.setattr(D.importlib, "import_module", without)
    remedy = 'pip install "isopath[data]"'
    with pytest.raises(ImportError) as caught:
        D.parquet(path, "img", labels=None)
    assert remedy in str(caught.value) and module in str(caught.value)
    if module == "PIL":
        with pytest.raises(ImportError, match="isopath"):
            D.image_folder(root)


# digits


def test_digits_split_is_fixed_stratified_and_whole() -> None:
    train, test = D.digits(), D.digits(train=False)
    assert (len(train), len(test)) == (1352, 445)
    assert train.labels is not None and test.labels is not None
    for data in (train, test):
        assert data.inputs.shape[1:] == (1, 8, 8) and data.inputs.dtype == torch.float32
        assert data.inputs.min() == 0 and data.inputs.max() == 1
    share = test.labels.bincount() / (test.labels.bincount() + train.labels.bincount())
    assert ((share - 0.25).abs() < 0.01).all()
    assert train.labels[:12].tolist() == [*range(10), 0, 1]
    assert torch.equal(train.inputs, D.digits().inputs)
    together = torch.cat([train.inputs, test.inputs]).flatten(1)
    from sklearn.datasets import load_digits

    assert np.array_equal(np.sort(together.sum(1) * 16), np.sort(load_digits().data.sum(1).astype("f4")))


def test_digits_classes() -> None:
    data = D.digits(classes=range(5, 10))
    assert data.labels is not None and data.labels.unique().tolist() == [5, 6, 7, 8, 9]
    fails(ValueError, lambda: D.digits(classes=[3, 12]), "'12'", "0, 1, 2")
    fails(ValueError, lambda: D.digits(classes=[]), "[]")
