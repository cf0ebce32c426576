import json
import os

import pytest
import torch
from safetensors import SafetensorError

from isopath import storage
from isopath.storage import DamagedFile, append_line, load_tensors, read_json, read_lines, save_tensors, write_json
from networks import x


def test_tensors_and_their_description_come_back(tmp_path):
    file = tmp_path / "deep" / "a.safetensors"
    vector = x(6)
    save_tensors(file, {"a": vector[:4].view(2, 2), "b": vector[4:], "c": torch.tensor([True])}, {"step": 3})
    tensors, about = load_tensors(file)
    assert torch.equal(tensors["a"], vector[:4].view(2, 2)) and tensors["c"].dtype == torch.bool
    assert about == {"version": storage.FORMAT, "step": 3}


def test_json_comes_back_with_null_for_what_json_lacks(tmp_path):
    write_json(tmp_path / "a.json", {"nan": float("nan"), "list": (1, float("inf")), "tensor": torch.ones(2)})
    assert read_json(tmp_path / "a.json") == {"nan": None, "list": [1, None], "tensor": [1, 1]}


def test_lines_are_appended_and_a_cut_one_is_dropped(tmp_path):
    file = tmp_path / "history.jsonl"
    assert read_lines(file) == ([], False)
    for i in range(3):
        append_line(file, {"i": i, "x": 0.1 + i})
    assert read_lines(file) == ([{"i": i, "x": 0.1 + i} for i in range(3)], False)
    file.write_text(file.read_text()[:-4])
    rows, cut = read_lines(file)
    assert len(rows) == 2 and cut
    storage.rewrite_lines(file, rows)
    assert read_lines(file) == (rows, False)


@pytest.mark.parametrize(
    "write", [lambda p: write_json(p, {"new": 1}), lambda p: save_tensors(p, {"new": torch.ones(1000)})]
)
def test_a_failed_write_leaves_the_old_file_and_no_rubbish(tmp_path, monkeypatch, write):
    file = tmp_path / "file"
    write_json(file, {"old": 1})

    def full(*_):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(OSError, match=r"No space"):
        write(file)
    assert json.loads(file.read_text()) == {"old": 1} and list(tmp_path.iterdir()) == [file]


def test_tensors_on_a_full_disk_are_an_oserror_and_the_old_ones_stay(tmp_path, monkeypatch):
    file = tmp_path / "a.safetensors"
    save_tensors(file, {"a": x(3)})

    def full(*_):
        raise SafetensorError("I/O error: No space left on device (os error 28)")

    monkeypatch.setattr(storage, "save_file", full)
    with pytest.raises(OSError, match=r"a\.safetensors could not be written .*No space"):
        save_tensors(file, {"a": x(4)})
    assert torch.equal(load_tensors(file)[0]["a"], x(3)) and list(tmp_path.iterdir()) == [file]


def test_files_are_as_readable_as_the_umask_says(tmp_path):
    before = os.umask(0o027)
    try:
        write_json(tmp_path / "a.json", {})
        save_tensors(tmp_path / "a.safetensors", {"a": x(1)})
        append_line(tmp_path / "a.jsonl", {})
        assert os.umask(0o027) == 0o027  # left as it was
    finally:
        os.umask(before)
    assert {file.stat().st_mode & 0o777 for file in tmp_path.iterdir()} == {0o640}


def test_the_same_tensors_are_the_same_bytes(tmp_path):
    for i in range(8):
        save_tensors(tmp_path / str(i), {"b": x(3), "a": x(2)}, {"step": 1, "drift": 0.5})
    assert len({file.read_bytes() for file in tmp_path.iterdir()}) == 1


def test_damaged_files_are_named(tmp_path):
    file = tmp_path / "a.safetensors"
    save_tensors(file, {"a": x(100)})
    file.write_bytes(file.read_bytes()[:-10])
    with pytest.raises(DamagedFile, match=r"a\.safetensors is not a whole safetensors file"):
        load_tensors(file)
    (tmp_path / "a.json").write_text('{"cut": ')
    with pytest.raises(DamagedFile, match=r"a\.json is not whole JSON"):
        read_json(tmp_path / "a.json")
    with pytest.raises(FileNotFoundError, match=r"no file"):
        load_tensors(tmp_path / "none")


def test_a_later_format_asks_for_an_upgrade(tmp_path, monkeypatch):
    monkeypatch.setattr(storage, "FORMAT", 99)
    save_tensors(tmp_path / "a", {"a": x(1)})
    monkeypatch.undo()
    with pytest.raises(DamagedFile, match=r"format 99.*up to 1; upgrade"):
        load_tensors(tmp_path / "a")
