"""`isopath connect`: two checkpoints in, a folder with permutation, curve and report out, to the bit after a stop."""

from __future__ import annotations

import json
import re
from pathlib import Path

import pytest
import torch
import yaml
from safetensors.torch import save_file
from torch import nn

import isopath as ip
from isopath.run import checkpointed
from isopath.run.data import digits
from isopath.storage import load_tensors, read_json, read_lines
from runs import CONFIG, DIGITS, isopath


def network(seed: int) -> nn.Module:
    torch.manual_seed(seed)
    return nn.Sequential(nn.Flatten(), nn.Linear(64, 32), nn.Tanh(), nn.Linear(32, 10))


def trained(seed: int) -> nn.Module:
    model, data = network(seed), digits(True, [0, 1, 2, 3, 4])
    optimiser = torch.optim.Adam(model.parameters(), 0.01)
    for _ in range(40):
        optimiser.zero_grad()
        nn.functional.cross_entropy(model(data.inputs), data.labels).backward()
        optimiser.step()
    return model


@pytest.fixture(scope="module", name="config")
def connect_config(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("connect")
    torch.set_num_threads(1)
    for name, seed in (("a", 0), ("b", 1)):
        state = {f"module.{key}": value for key, value in trained(seed).state_dict().items()}
        save_file(state, folder / f"{name}.safetensors")
    tree = {
        "model": CONFIG["model"],
        "weights_a": str(folder / "a.safetensors"),
        "weights_b": str(folder / "b.safetensors"),
        "prefixes": {"module.": ""},
        "data": DIGITS,
        "objective": {"class_path": "Task", "init_args": {"data": DIGITS, "batch_size": 64}},
        "steps": 30,
        "plane": 4,
        "evaluate": {"digits": {"class_path": "Task", "init_args": {"data": DIGITS}}},
    }
    file = folder / "joined.yaml"
    file.write_text(yaml.safe_dump(tree))
    return file


@pytest.fixture(scope="module", name="run")
def finished(config: Path) -> Path:
    run = config.parent / "run"
    assert isopath("connect", config, "--out", run) == 0
    return run


def test_the_folder_holds_what_the_calls_give(config: Path, run: Path):
    a, b = trained(0).eval(), trained(1).eval()
    data = digits(True, [0, 1, 2, 3, 4])
    permutation = ip.align(a, b, data.inputs)
    curve = ip.connect(a, b, ip.Task(data.inputs, data.labels, batch_size=64), steps=30, permutation=permutation)
    loaded = ip.Permutation.load(run / "permutation.safetensors", permutation.symmetries)
    assert loaded == permutation
    back = ip.paths.Curve.load(run, network(5))
    assert all(torch.equal(back(t), curve(t)) for t in (0, 0.5, 1))
    rows, _ = read_lines(run / "history.jsonl")
    assert rows == curve.history and back.history == rows
    metrics = read_json(run / "metrics.json")
    lowest = min(ip.along(curve, ip.Task(data.inputs, data.labels)).accuracy)
    methods = {row[0]: row for row in metrics["table"]["rows"]}
    assert list(methods) == ["straight line", "aligned straight line", "isopath curve"]
    assert methods["isopath curve"][1] == pytest.approx(lowest)
    assert f"{100 * lowest:.2f} %" in metrics["reason"]
    assert metrics["displaced"] == sum(permutation.displaced.values())
    assert len(metrics["landscape"]["loss"]) == 4


def test_the_page_draws_profile_plane_and_training(run: Path, capsys: pytest.CaptureFixture[str]):
    page = (run / "report.html").read_text()
    drawn = json.loads(re.search(r'id="plots">(.*?)</script>', page, re.S)[1])  # type: ignore[index]
    assert list(drawn) == ["profile", "landscape", "training"]
    assert "From one network to the other" in page and "isopath curve" in page
    assert isopath("show", run) == 0
    assert "units displaced" in capsys.readouterr().out


@pytest.mark.parametrize("after", [1, 13])
def test_a_run_that_was_stopped_ends_bit_for_bit_where_the_unbroken_one_does(
    config: Path, run: Path, after: int, monkeypatch: pytest.MonkeyPatch
):
    broken = config.parent / f"broken-{after}"
    monkeypatch.setattr(checkpointed, "EVERY", 0.0)
    genuine, count = checkpointed.append_line, 0

    def stopping(path: Path, row: object) -> None:
        nonlocal count
        genuine(path, row)
        count += 1
        if count > after:
            raise KeyboardInterrupt

    monkeypatch.setattr(checkpointed, "append_line", stopping)
    assert isopath("connect", config, "--out", broken) == 130
    assert not (broken / "metrics.json").exists()
    monkeypatch.setattr(checkpointed, "append_line", genuine)
    assert isopath("resume", broken) == 0
    for k in range(3):
        name = f"points/{k:03d}.safetensors"
        assert (broken / name).read_bytes() == (run / name).read_bytes()
    assert (broken / "history.jsonl").read_text() == (run / "history.jsonl").read_text()


def test_without_tasks_or_alignment_there_is_still_a_curve(config: Path):
    run = config.parent / "bare"
    assert isopath("connect", config, "--out", run, "--set", "align=null", "--set", "evaluate=null",
                   "--set", "curve=segment", "--set", "objective=null") == 0  # fmt: skip
    assert not (run / "permutation.safetensors").exists()
    assert torch.equal(load_tensors(run / "points" / "001.safetensors")[0]["1.weight"], trained(1)[1].weight)


@pytest.mark.parametrize(
    ("override", "said"),
    [
        ("prefixes={model.: ''}", "weights_a: .* has 'module.1.bias', which the model lacks.*prefixes"),
        ("weights_b=nowhere.safetensors", "weights_b: no file"),
        ("data=null", "align needs data:"),
        ("align=magic", "align must be 'activations' or 'weights' or 'mixed' or null, got 'magic'"),
        ("objective=null", "a curve is trained on an objective"),
        ("tolerance=0.1", "no key 'tolerance'|has no key"),
        ("curve=circle", "curve must be"),
        ("rescale=5", "no units can be rescaled"),
    ],
)
def test_mistakes_are_said_in_one_line_and_leave_no_folder(
    config: Path, override: str, said: str, capsys: pytest.CaptureFixture[str]
):
    run = config.parent / "mistaken"
    assert isopath("connect", config, "--out", run, "--set", override) == 2
    error = capsys.readouterr().err
    assert re.search(said, error) and error.count("\n") == 1, error
    assert not run.exists()


def test_the_line_is_rescaled_before_the_curve_is_trained(config: Path, capsys: pytest.CaptureFixture[str]):
    tree, folder = yaml.safe_load(config.read_text()), config.parent / "relu"
    tree["model"] = yaml.safe_load(yaml.safe_dump(tree["model"]).replace("torch.nn.Tanh", "torch.nn.ReLU"))
    folder.mkdir()
    (folder / "joined.yaml").write_text(yaml.safe_dump({**tree, "rescale": 300}))
    assert isopath("connect", folder / "joined.yaml", "--out", folder / "run") == 0
    metrics = read_json(folder / "run" / "metrics.json")
    rows = {row[0]: row for row in metrics["table"]["rows"]}
    assert list(rows) == ["straight line", "aligned straight line", "rescaled straight line", "isopath curve"]
    assert 0 < rows["rescaled straight line"][-1] < rows["isopath curve"][-1] == metrics["evaluations"]
    lines = metrics["profiles"]
    assert sum(lines["rescaled straight line"]["loss"]) < sum(lines["aligned straight line"]["loss"])
    assert lines["rescaled straight line"]["loss"][-1] == pytest.approx(lines["straight line"]["loss"][-1], abs=1e-5)
    kept = folder / "run" / "rescaled" / "points" / "001.safetensors"
    state, _ = load_tensors(kept)
    save_file({name: tensor.clone() for name, tensor in {**state, "1.bias": state["1.bias"] + 1e-3}.items()}, kept)
    (folder / "run" / "metrics.json").unlink()
    assert isopath("resume", folder / "run") == 0  # the factors that were kept are taken, not found again
    again = read_json(folder / "run" / "metrics.json")["profiles"]["rescaled straight line"]["loss"]
    assert again != lines["rescaled straight line"]["loss"]
    assert isopath("connect", folder / "joined.yaml", "--out", folder / "no", "--set", "rescale=-5") == 2
    assert "rescale must be >= 0 steps, got -5" in capsys.readouterr().err
    refused = folder / "joined.yaml", "--out", folder / "no", "--set", "align=null"
    assert isopath("connect", *refused) == 2
    assert "rescale lowers the objective along the line to an aligned network" in capsys.readouterr().err


def test_a_connection_is_no_trace(run: Path, capsys: pytest.CaptureFixture[str]):
    assert isopath("evaluate", run) == 2
    assert "was made by isopath connect, not by isopath trace" in capsys.readouterr().err


def test_other_checkpoints_of_the_same_names_are_refused(config: Path, run: Path, capsys: pytest.CaptureFixture[str]):
    file = config.parent / "b.safetensors"
    whole = file.read_bytes()
    try:
        save_file({f"module.{key}": value for key, value in trained(2).state_dict().items()}, file)
        assert isopath("resume", run) == 2
    finally:
        file.write_bytes(whole)
    assert "are not those that the run started from" in capsys.readouterr().err


def test_a_curve_learns_what_both_say_where_there_are_no_labels(config: Path, capsys: pytest.CaptureFixture[str]):
    run = config.parent / "consensus"
    asked = config, "--out", run, "--set", "consensus=kl", "--set", "objective=null"
    assert isopath("connect", *asked) == 0
    a, b, data = trained(0), trained(1), digits(True, [0, 1, 2, 3, 4]).inputs
    curve = ip.connect(a, b, ip.paths.consensus([a, b], data), steps=30, permutation=ip.align(a, b, data))
    assert torch.equal(ip.paths.Curve.load(run, network(5))(0.5), curve(0.5))
    assert read_json(run / "metrics.json")["evaluations"] == pytest.approx(30 * 128 + 2 / 3 * len(data))
    mistakes = {
        "data=null": "align needs data:",
        "objective=" + json.dumps(yaml.safe_load(config.read_text())["objective"]): "give data: and no objective:",
        "consensus=near": "unknown divergence 'near'",
    }
    for mistake, said in mistakes.items():
        assert isopath("connect", *asked[:2], config.parent / "no", *asked[3:], "--set", mistake) == 2
        assert said in capsys.readouterr().err
