"""`isopath pack`: tasks in, a folder with one network for all of them out, to the bit after a stop."""

from __future__ import annotations

import copy
import json
import re
from pathlib import Path

import pytest
import torch
import yaml
from torch import nn

import isopath as ip
from isopath.run import packed
from isopath.run.data import digits
from isopath.storage import read_json, read_lines
from runs import DIGITS, NEW, isopath

HEAD = {"class_path": "torch.nn.Linear", "init_args": {"in_features": 24, "out_features": 10}}
LAYERS = [
    {"class_path": "torch.nn.Flatten"},
    {"class_path": "torch.nn.Linear", "init_args": {"in_features": 64, "out_features": 24}},
    {"class_path": "torch.nn.ReLU"},
]
TASKS = {
    name: {"class_path": "Task", "init_args": {"data": data, "head": HEAD, "batch_size": 64}}
    for name, data in (("low", DIGITS), ("high", NEW))
}
CONFIG = {
    "model": {"class_path": "torch.nn.Sequential", "init_args": LAYERS},
    "tasks": TASKS, "share": 0.3, "epochs": 6, "rate": 0.01,
    "evaluate": {name: {"class_path": "Task", "init_args": {"data": data}}
                 for name, data in (("low", DIGITS), ("high", NEW))},
}  # fmt: skip


@pytest.fixture(scope="module", name="config")
def pack_config(tmp_path_factory: pytest.TempPathFactory) -> Path:
    file = tmp_path_factory.mktemp("pack") / "packed.yaml"
    file.write_text(yaml.safe_dump(CONFIG, sort_keys=False))
    return file


@pytest.fixture(scope="module", name="run")
def finished(config: Path) -> Path:
    run = config.parent / "run"
    assert isopath("pack", config, "--out", run) == 0
    return run


def body() -> nn.Module:
    return nn.Sequential(nn.Flatten(), nn.Linear(64, 24), nn.ReLU())


def test_the_folder_holds_what_the_calls_give(config: Path, run: Path):
    low, high = digits(True, [0, 1, 2, 3, 4]), digits(True, [5, 6, 7, 8, 9])
    torch.manual_seed(0)
    model = body()
    torch.manual_seed(0)
    heads = [nn.Linear(24, 10) for _ in range(2)]
    tasks = {name: ip.Task(data.inputs, data.labels, batch_size=64, head=head)
             for name, data, head in zip(("low", "high"), (low, high), heads)}  # fmt: skip
    expected = ip.pack(model, tasks, 0.3, epochs=6, rate=0.01)
    got = ip.Packing.load(run / "packing.safetensors", body())
    for name, data in (("low", low), ("high", high)):
        assert torch.equal(got[name](data.inputs), expected[name](data.inputs))
    metrics = read_json(run / "metrics.json")
    assert metrics["status"] == "packed" and metrics["free"] == pytest.approx(expected.free)
    accuracy = ip.evaluate(expected["low"], ip.Task(low.inputs, low.labels)).accuracy
    assert accuracy > 0.9 and metrics["accuracy"]["low"] == pytest.approx(accuracy)
    assert metrics["table"]["rows"][1][-1] == "low"  # what the second task reads
    assert [row["task"] for row in read_lines(run / "history.jsonl")[0]] == ["low", "high"]


def test_the_page_draws_owners_and_tasks(run: Path, capsys: pytest.CaptureFixture[str]):
    page = (run / "report.html").read_text()
    drawn = json.loads(re.search(r'id="plots">(.*?)</script>', page, re.S)[1])  # type: ignore[index]
    assert list(drawn) == ["owners", "tasks"]
    assert [bar["name"] for bar in drawn["owners"]["data"]] == ["low", "high", "free"]
    assert "Who owns the weights" in page and "2 tasks share 1,536 weights" in page
    assert isopath("show", run) == 0
    assert "packed" in capsys.readouterr().out


def test_a_run_that_was_stopped_ends_bit_for_bit_where_the_unbroken_one_does(
    config: Path, run: Path, monkeypatch: pytest.MonkeyPatch
):
    broken, genuine = config.parent / "broken", packed.append_line

    def stopping(path: Path, row: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(packed, "append_line", stopping)
    assert isopath("pack", config, "--out", broken) == 130
    assert not (broken / "metrics.json").exists()
    monkeypatch.setattr(packed, "append_line", genuine)
    assert isopath("resume", broken) == 0
    one, two = (ip.Packing.load(folder / "packing.safetensors", body()) for folder in (broken, run))
    x = digits(True).inputs
    assert all(torch.equal(one[name](x), two[name](x)) for name in ("low", "high"))
    assert all(torch.equal(one.owners[name], two.owners[name]) for name in one.owners)
    assert [row["task"] for row in read_lines(broken / "history.jsonl")[0]] == ["low", "high"]


def test_in_parallel_and_with_shares_that_are_found(config: Path):
    for name, override in (("parallel", "parallel=true"), ("auto", "share=auto")):
        assert isopath("pack", config, "--out", config.parent / name, "--set", override, "--set", "epochs=2") == 0
    override = "share={low: 0.5, high: 0.2}"
    assert isopath("pack", config, "--out", config.parent / "own", "--set", override, "--set", "epochs=1") == 0
    shares = read_json(config.parent / "own" / "metrics.json")["layers"]["1.weight"]
    assert shares == {"low": pytest.approx(0.5, abs=0.01), "high": pytest.approx(0.2, abs=0.01)}
    assert read_json(config.parent / "parallel" / "metrics.json")["table"]["rows"][1][-1] == "none"


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"share": 0.7}, "100.0% of the weights are free, and asked for 'low', 'high': 140.0%"),
        ({"share": "much"}, "share must be"),
        ({"tolerance": -1}, "tolerance >= 0"),
        ({"evaluate": {"other": CONFIG["evaluate"]["low"]}}, "evaluate.other is none of the tasks"),
        ({"tasks": {}}, "no task to pack"),
        ({"keep": None}, "no key 'keep'|has no key"),
        ({"optimizer": "torch.optim.SGD"}, "no key 'optimizer'|has no key"),
    ],
)
def test_a_wrong_config_is_one_sentence_and_leaves_no_folder(config: Path, change, said, capsys):
    file, out = config.parent / "wrong.yaml", config.parent / "wrong"
    file.write_text(yaml.safe_dump({**copy.deepcopy(CONFIG), **change}, sort_keys=False))
    assert isopath("pack", file, "--out", out) == 2
    error = capsys.readouterr().err
    assert re.search(said, error) and error.count("\n") == 1, error
    assert not out.exists()
