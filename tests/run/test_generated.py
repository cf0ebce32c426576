"""`isopath generate`: a module and a task in, a folder with a generator out, to the bit after a stop."""

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
from isopath.run import checkpointed
from isopath.run.data import digits
from isopath.storage import read_json, read_lines
from runs import DIGITS, isopath

LAYERS = [
    {"class_path": "torch.nn.Flatten"},
    {"class_path": "torch.nn.Linear", "init_args": {"in_features": 64, "out_features": 12}},
    {"class_path": "torch.nn.ReLU"},
    {"class_path": "torch.nn.Linear", "init_args": {"in_features": 12, "out_features": 10}},
]
SIZES = {"latent": 6, "code": 4, "width": 16, "trunk": 16, "networks": 4}
CONFIG = {
    "model": {"class_path": "torch.nn.Sequential", "init_args": LAYERS},
    "task": {"class_path": "Task", "init_args": {"data": DIGITS, "batch_size": 64}},
    "steps": 60, "rate": 0.003, "diversity": 0.1, "samples": 8, **SIZES,
    "evaluate": {"digits": {"class_path": "Task", "init_args": {"data": DIGITS}}},
}  # fmt: skip


@pytest.fixture(scope="module", name="config")
def generate_config(tmp_path_factory: pytest.TempPathFactory) -> Path:
    file = tmp_path_factory.mktemp("generate") / "generated.yaml"
    file.write_text(yaml.safe_dump(CONFIG, sort_keys=False))
    return file


@pytest.fixture(scope="module", name="run")
def finished(config: Path) -> Path:
    run = config.parent / "run"
    assert isopath("generate", config, "--out", run) == 0
    return run


def model() -> nn.Module:
    return nn.Sequential(nn.Flatten(), nn.Linear(64, 12), nn.ReLU(), nn.Linear(12, 10))


def test_the_folder_holds_what_the_call_gives(run: Path):
    data = digits(True, [0, 1, 2, 3, 4])
    task = ip.Task(data.inputs, data.labels, batch_size=64)
    expected = ip.generate(model(), task, 0.1, 60, rate=0.003, **SIZES)
    got = ip.Generator.load(run / "generator.safetensors", model())
    assert torch.equal(got.sample(3), expected.sample(3))
    metrics = read_json(run / "metrics.json")
    seen = ip.explore(expected, ip.Task(data.inputs, data.labels), 8, seed=1)
    assert metrics["status"] == "trained" and metrics["size"] == expected.size
    assert metrics["manifold"]["accuracy"] == pytest.approx(seen.accuracy)
    assert metrics["manifold"]["distance"] == pytest.approx(seen.distance)
    assert len(read_lines(run / "history.jsonl")[0]) == 60


def test_the_page_draws_what_was_found(run: Path, capsys: pytest.CaptureFixture[str]):
    page = (run / "report.html").read_text()
    drawn = json.loads(re.search(r'id="plots">(.*?)</script>', page, re.S)[1])  # type: ignore[index]
    assert list(drawn) == ["together", "filters", "walks", "axes", "generation"]
    samples, line = drawn["together"]["data"]
    assert len(samples["y"]) == 8 and line["x"] == [1, 2, 4, 8]
    assert len(drawn["filters"]["data"][0]["z"]) == 4 * 8 + 3  # four networks, units of 8 x 8
    assert len(drawn["generation"]["data"][0]["x"]) == 60
    assert "First-layer units" in page and "two of them differ" in page
    assert isopath("show", run) == 0
    assert "trained" in capsys.readouterr().out


def test_a_run_that_was_stopped_ends_bit_for_bit_where_the_unbroken_one_does(
    config: Path, run: Path, monkeypatch: pytest.MonkeyPatch
):
    broken, genuine, written = config.parent / "broken", checkpointed.append_line, []

    def stopping(path: Path, row: object) -> None:
        written.append(row)
        genuine(path, row)
        if len(written) == 25:
            raise KeyboardInterrupt

    monkeypatch.setattr(checkpointed, "append_line", stopping)
    monkeypatch.setattr(checkpointed, "EVERY", 0.0)  # a checkpoint at every step
    assert isopath("generate", config, "--out", broken) == 130
    assert not (broken / "metrics.json").exists()
    monkeypatch.setattr(checkpointed, "append_line", genuine)
    assert isopath("resume", broken) == 0
    one, two = (ip.Generator.load(folder / "generator.safetensors", model()) for folder in (broken, run))
    assert torch.equal(one.sample(4), two.sample(4))
    assert read_lines(broken / "history.jsonl")[0] == read_lines(run / "history.jsonl")[0]


def test_around_a_trained_network_that_a_file_holds(config: Path):
    torch.manual_seed(1)
    given = model()
    ip.save_weights(given, config.parent / "w.safetensors")
    out, tree = config.parent / "around", {**CONFIG, "weights": str(config.parent / "w.safetensors")}
    file = config.parent / "around.yaml"
    file.write_text(yaml.safe_dump({**tree, "start": "model", "steps": 1, "rate": 1e-9}))
    assert isopath("generate", file, "--out", out) == 0
    made = ip.Generator.load(out / "generator.safetensors", model())
    weight = nn.utils.parameters_to_vector(given.parameters())
    assert float((made.sample(1)[0] - weight).detach().norm() / weight.detach().norm()) < 0.5
    assert read_json(out / "metrics.json")["given"] is not None


def test_several_tasks_are_scored_and_one_without_classes_has_losses(config: Path, tmp_path: Path):
    tests = {"digits": CONFIG["evaluate"]["digits"], "again": CONFIG["evaluate"]["digits"]}
    (tmp_path / "two.yaml").write_text(yaml.safe_dump({**CONFIG, "steps": 2, "evaluate": tests}, sort_keys=False))
    assert isopath("generate", tmp_path / "two.yaml", "--out", tmp_path / "two") == 0
    table = read_json(tmp_path / "two" / "metrics.json")["table"]
    assert table["columns"] == ["networks", "digits accuracy", "again accuracy"]
    assert all(row[1] == row[2] for row in table["rows"])
    last = {"class_path": "torch.nn.Linear", "init_args": {"in_features": 12, "out_features": 1}}
    loss = {"class_path": "Task", "init_args": {"data": DIGITS, "loss": "squared_error"}}
    tree = {**CONFIG, "steps": 2, "task": loss, "evaluate": {"value": loss}}
    tree["model"] = {"class_path": "torch.nn.Sequential", "init_args": [*LAYERS[:3], last]}
    (tmp_path / "loss.yaml").write_text(yaml.safe_dump(tree, sort_keys=False))
    assert isopath("generate", tmp_path / "loss.yaml", "--out", tmp_path / "loss") == 0
    assert read_json(tmp_path / "loss" / "metrics.json")["table"]["columns"] == ["networks", "value loss"]


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"diversity": -1}, "diversity must be >= 0"),
        ({"networks": 1}, "networks must be >= 2"),
        ({"samples": 2}, "samples must be >= 3"),
        ({"start": "model"}, "name its file with weights"),
        ({"start": "anywhere"}, "start must be"),
        ({"task": {"class_path": "Robust", "init_args": {"data": DIGITS}}}, "trained on a Task, got Robust"),
        ({"keep": None}, "no key 'keep'|has no key"),
    ],
)
def test_a_wrong_config_is_one_sentence_and_leaves_no_folder(config: Path, change, said, capsys):
    file, out = config.parent / "wrong.yaml", config.parent / "wrong"
    file.write_text(yaml.safe_dump({**copy.deepcopy(CONFIG), **change}, sort_keys=False))
    assert isopath("generate", file, "--out", out) == 2
    error = capsys.readouterr().err
    assert re.search(said, error) and error.count("\n") == 1, error
    assert not out.exists()
