import json
import os

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from safetensors import SafetensorError
from torch import nn

from isopath import storage
from isopath.storage import (
    DamagedFile,
    append_line,
    load_tensors,
    load_weights,
    read_json,
    read_lines,
    save_tensors,
    save_weights,
    weights_size,
    write_json,
)
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


@settings(deadline=None, max_examples=60)
@given(
    size=st.integers(0, 3000), share=st.sampled_from([0.0, 1e-3, 0.02, 0.2, 0.9, 1.0]), seed=st.integers(0, 9),
    kind=st.sampled_from([torch.float32, torch.float64, torch.bfloat16, torch.int64, torch.bool]),
)  # fmt: skip
def test_weights_come_back_to_the_bit_and_zeros_take_no_room(tmp_path_factory, size, share, seed, kind):
    generator = torch.Generator().manual_seed(seed)
    tensor = (torch.randn(size, generator=generator).abs() + 1) * (torch.rand(size, generator=generator) < share)
    tensor = tensor.to(kind).view(-1, 1)
    file = tmp_path_factory.mktemp("weights") / "a.safetensors"
    save_weights({"a": tensor, "b": torch.ones(3)}, file)
    found = load_weights(file)
    assert torch.equal(found["a"], tensor) and found["a"].dtype == kind and torch.equal(found["b"], torch.ones(3))
    whole = (tensor.numel()) * tensor.element_size()
    assert weights_size({"a": tensor}) <= min(whole, int((tensor != 0).sum()) * tensor.element_size() + size // 8 + 1)
    assert os.path.getsize(file) - weights_size({"a": tensor, "b": torch.ones(3)}) < 600


def test_far_places_and_few_values_are_stored_by_their_distances(tmp_path):
    tensor = torch.zeros(200_000)
    tensor[[0, 3, 40_000, 100_000, 160_000]] = torch.arange(1.0, 6)  # a distance beyond 2¹⁵: no sign
    for whole, size in ((tensor, 5 * 6), (torch.zeros(300_000).index_fill_(0, torch.tensor([299_999]), 1), 4 + 37_500)):
        save_weights({"a": whole}, tmp_path / "a.safetensors")
        assert torch.equal(load_weights(tmp_path / "a.safetensors")["a"], whole)
        assert weights_size({"a": whole}) == size


def test_a_modules_file_shrinks_and_loads(tmp_path):
    model = nn.Sequential(nn.Linear(100, 50), nn.BatchNorm1d(50), nn.Linear(50, 3))
    with torch.no_grad():
        model[0].weight[torch.rand(50, 100, generator=torch.Generator().manual_seed(0)) < 0.95] = 0
    save_weights(model, tmp_path / "sparse.safetensors")
    assert os.path.getsize(tmp_path / "sparse.safetensors") < 0.2 * sum(p.numel() for p in model.parameters()) * 4
    other = nn.Sequential(nn.Linear(100, 50), nn.BatchNorm1d(50), nn.Linear(50, 3))
    other.load_state_dict(load_weights(tmp_path / "sparse.safetensors"))
    assert all(torch.equal(a, b) for a, b in zip(model.state_dict().values(), other.state_dict().values()))
    save_tensors(tmp_path / "plain.safetensors", model.state_dict())
    assert torch.equal(load_weights(tmp_path / "plain.safetensors")["0.weight"], model[0].weight)


def test_names_that_would_meet_are_stored_whole(tmp_path):
    tensors = {"a": torch.zeros(100), "a.values": torch.ones(2)}
    save_weights(tensors, tmp_path / "a.safetensors")
    found = load_weights(tmp_path / "a.safetensors")
    assert all(torch.equal(found[name], tensor) for name, tensor in tensors.items())


def test_parts_that_do_not_fit_are_refused(tmp_path):
    about = {"sparse": {"a": [10]}}
    places = torch.tensor([1, 30], dtype=torch.uint8)
    for parts in ({"a.values": torch.ones(2), "a.gaps": places}, {"a.values": torch.ones(3), "a.gaps": places},
                  {"a.values": torch.ones(2)}):  # fmt: skip
        save_tensors(tmp_path / "a.safetensors", parts, about)
        with pytest.raises(DamagedFile, match=r"no values and places that fit for 'a' of shape \(10,\)"):
            load_weights(tmp_path / "a.safetensors")


def test_eight_bits_are_stored_as_they_are_and_what_is_no_tensor_is_named(tmp_path):
    narrow = torch.zeros(40).to(torch.float8_e4m3fn)
    save_weights({"a": narrow}, tmp_path / "a.safetensors")
    assert torch.equal(load_weights(tmp_path / "a.safetensors")["a"].float(), torch.zeros(40))

    class Extra(nn.Linear):
        def get_extra_state(self):
            return {"calls": 3}

    with pytest.raises(TypeError, match="'_extra_state' is no tensor but a dict"):
        save_weights(Extra(2, 2), tmp_path / "b.safetensors")
    assert weights_size(Extra(2, 2)) == 24 and not (tmp_path / "b.safetensors").exists()
    with pytest.raises(TypeError, match="what is saved must be of type Module or Mapping, got int"):
        save_weights(3, tmp_path / "b.safetensors")
