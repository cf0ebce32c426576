"""A sequence of runs: what one remembers in its folder, the next one keeps."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml

import isopath as ip
from isopath.run.config import resolve
from isopath.run.data import digits
from isopath.run.job import Job
from isopath.run.names import ConfigError
from runs import CONFIG, DIGITS, NEW, isopath


def task(data: dict[str, Any], **more: Any) -> dict[str, Any]:
    return {"class_path": "Task", "init_args": {"data": data, **more}}


def config(keep: dict[str, Any] | None, learned: dict[str, Any], remember: Any, **changes: Any) -> dict[str, Any]:
    short = {"max_steps": 12, "keep_waypoints": 4, "evaluate": {}}
    return {**CONFIG, **short, "keep": keep, "objective": task(learned), "remember": remember, **changes}


def run(folder: Path, name: str, tree: dict[str, Any]) -> Path:
    file = folder / f"{name}.yaml"
    file.write_text(yaml.safe_dump(tree))
    assert isopath("trace", file, "--out", folder / name) == 0
    return folder / name


@pytest.mark.parametrize("settings", [{"examples": 40}, {"examples": 0, "factors": True, "rank": 8}], ids=str)
def test_the_second_run_keeps_what_the_first_remembered(tmp_path: Path, settings: dict[str, Any]) -> None:
    empty = {"class_path": "Memory", "init_args": settings}
    first = run(tmp_path, "first", config(empty, DIGITS, {"old": task(DIGITS)}))
    file = first / "memory.safetensors"
    kept = {"class_path": "isopath.Memory.load", "init_args": {"path": str(file)}}
    second = run(tmp_path, "second", config(kept, NEW, {"new": task(NEW)}, weights=str(first)))

    memory = ip.Memory.load(second / "memory.safetensors")
    assert [old.name for old in memory.tasks] == ["old", "new"]
    assert len(ip.Memory.load(file)) == 1
    metrics = json.loads((second / "metrics.json").read_text())
    assert metrics["spectrum"], "of rows, or of the curvature that is kept"
    assert metrics["drift"] <= 0.01 and metrics["steps"] > 0
    agreed = metrics["table"]["rows"][1][metrics["table"]["columns"].index("agreement")]
    assert (agreed is None) == (settings["examples"] == 0)

    before = (second / "memory.safetensors").read_bytes()
    assert isopath("resume", second) == 0, "an ended run is written anew"
    assert (second / "memory.safetensors").read_bytes() == before


def test_what_is_remembered_is_what_python_remembers(tmp_path: Path) -> None:
    tree = config({"class_path": "Memory", "init_args": {"examples": 30}}, DIGITS, {"old": task(DIGITS)})
    found = ip.Memory.load(run(tmp_path, "run", tree) / "memory.safetensors").tasks[0]
    made = Job.of(resolve(tree))
    data = digits(classes=[0, 1, 2, 3, 4])
    model = ip.trace(**made.arguments).model()
    expected = ip.Memory(examples=30).remember(model, data.inputs, data.labels, "old").tasks[0]
    assert found.labels is not None and expected.labels is not None
    assert torch.equal(found.inputs, expected.inputs) and torch.equal(found.labels, expected.labels)
    torch.testing.assert_close(found.outputs, expected.outputs)


def test_a_memory_that_is_still_empty_is_a_run_that_keeps_nothing(tmp_path: Path) -> None:
    tree = config({"class_path": "Memory"}, DIGITS, None)
    metrics = json.loads((run(tmp_path, "run", tree) / "metrics.json").read_text())
    assert "spectrum" not in metrics and "Nothing is kept" in metrics["reason"]
    assert not (tmp_path / "run" / "memory.safetensors").exists()


def test_what_a_memory_cannot_take_in_is_refused_before_the_run(tmp_path: Path) -> None:
    reference = {"class_path": "Reference", "init_args": {"inputs": DIGITS}}
    for keep in (reference, None):
        with pytest.raises(ConfigError, match=r"remember: adds to a memory, and keep: is none; an empty one"):
            Job.of(resolve(config(keep, NEW, {"new": task(NEW)})))
    file = tmp_path / "memory.safetensors"
    Job.of(resolve(config({"class_path": "Memory"}, NEW, {"old": task(DIGITS)}))).remembered(
        torch.nn.Sequential(torch.nn.Flatten(), torch.nn.Linear(64, 10))
    ).save(file)
    kept = {"class_path": "isopath.Memory.load", "init_args": {"path": str(file)}}
    with pytest.raises(ConfigError, match=r"remember: the memory has a task 'old' already"):
        Job.of(resolve(config(kept, NEW, {"old": task(NEW)})))
    part = {"class_path": "span", "init_args": {"start": 5, "stop": 10}}
    with pytest.raises(ConfigError, match=r"remember.new: a file holds no head that is a slice or a function"):
        Job.of(resolve(config(kept, NEW, {"new": task(NEW, outputs=part)})))
    with pytest.raises(ConfigError, match=r"no file"):
        missing = {"class_path": "isopath.Memory.load", "init_args": {"path": str(tmp_path / "none")}}
        Job.of(resolve(config(missing, NEW, None)))
