"""A small config, its unbroken run, and what two runs must have in common."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml

from isopath import cli
from isopath.storage import load_tensors

DIGITS = {"class_path": "digits", "init_args": {"classes": [0, 1, 2, 3, 4]}}
NEW = {"class_path": "digits", "init_args": {"classes": [5, 6, 7, 8, 9]}}
CONFIG = {
    "model": {
        "class_path": "torch.nn.Sequential",
        "init_args": [
            {"class_path": "torch.nn.Flatten"},
            {"class_path": "torch.nn.Linear", "init_args": {"in_features": 64, "out_features": 32}},
            {"class_path": "torch.nn.Tanh"},
            {"class_path": "torch.nn.Linear", "init_args": {"in_features": 32, "out_features": 10}},
        ],
    },
    "keep": {"class_path": "Reference", "init_args": {"inputs": DIGITS}},
    "objective": [
        {"class_path": "Task", "init_args": {"data": NEW, "batch_size": 64}},
        {"weight": 0.05, "class_path": "Sparsity", "init_args": {"fraction": 0.5}},
    ],
    "direction": {"class_path": "NaturalGradient", "init_args": {"refresh": 2, "momentum": 0.5}},
    "max_steps": 40,
    "keep_waypoints": 8,
    "evaluate": {"new": {"class_path": "Task", "init_args": {"data": NEW}}},
}


def isopath(*arguments: str | Path) -> int:
    torch.set_num_threads(1)
    return cli.main([str(argument) for argument in arguments])


@pytest.fixture(scope="session", name="config")
def small_config(tmp_path_factory: pytest.TempPathFactory) -> Path:
    file = tmp_path_factory.mktemp("configs") / "small.yaml"
    file.write_text(yaml.safe_dump(CONFIG))
    return file


@pytest.fixture(scope="session", name="unbroken")
def unbroken_run(config: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    run = tmp_path_factory.mktemp("runs") / "unbroken"
    assert isopath("trace", config, "--out", run) == 0
    return run


def rows(run: Path) -> list[dict[str, Any]]:
    lines = (run / "history.jsonl").read_text().splitlines()
    return [{key: value for key, value in json.loads(line).items() if key != "seconds"} for line in lines]


def attempts(run: Path) -> int:
    file = run / "history.jsonl"
    return file.read_bytes().count(b"\n") if file.exists() else 0


def waypoints(run: Path) -> dict[str, bytes]:
    """The tensors of every kept waypoint, bit for bit."""
    found = {}
    for file in sorted((run / "waypoints").iterdir()):
        tensors, _ = load_tensors(file)
        found[file.name] = b"".join(tensors[name].numpy().tobytes() for name in sorted(tensors))
    return found


def figures(run: Path) -> dict[str, Any]:
    metrics = json.loads((run / "metrics.json").read_text())
    seconds = metrics["table"]["columns"].index("seconds")
    return {**metrics, "seconds": None, "table": [row[:seconds] for row in metrics["table"]["rows"]]}


def assert_same(run: Path, unbroken: Path) -> None:
    assert rows(run) == rows(unbroken)
    assert waypoints(run) == waypoints(unbroken)
    assert figures(run) == figures(unbroken)
