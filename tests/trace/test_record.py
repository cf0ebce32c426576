"""A run in a folder: resumed bit for bit, loaded, and safe from damage."""

import itertools
import json
import os

import pytest
import torch
from safetensors.torch import load_file

import isopath as ip
from interruption import killed
from isopath import storage
from isopath.trace import Multiplier
from networks import build, mlp, x

ARGUMENTS = {"tolerance": 0.003, "max_steps": 60, "seed": 2, "keep_waypoints": 6}


def run(folder=None, **changes):
    task = ip.Task(x(40, 4), torch.arange(40) % 3, batch_size=16)
    arguments = {
        "model": build("mlp").model,
        "keep": ip.Reference(x(120, 4)),
        "objective": task + 0.1 * ip.Sparsity(0.3),
        "run": folder,
        **ARGUMENTS,
        **changes,
    }
    return ip.trace(**arguments)


def rows(path):
    return [{k: v for k, v in row.items() if k != "seconds"} for row in path.history]


def same(one, two):
    assert torch.equal(one.point(), two.point())
    assert rows(one) == rows(two)
    assert (one.status, one.reason, one.evaluations, one.drift) == (two.status, two.reason, two.evaluations, two.drift)
    assert one.steps == two.steps
    for step in one.steps:
        assert torch.equal(one.point(step), two.point(step))


@pytest.fixture(scope="module")
def unbroken():
    return run()


def test_a_run_in_a_folder_is_the_run_in_memory(tmp_path, unbroken):
    same(run(tmp_path / "run"), unbroken)


@pytest.mark.parametrize("checkpoints", [True, False])
@pytest.mark.parametrize("after", [1, 2, 7, 12])
def test_a_killed_run_ends_bit_for_bit_where_the_unbroken_one_ends(tmp_path, monkeypatch, unbroken, after, checkpoints):
    killed(lambda: run(tmp_path / "run"), monkeypatch, after, checkpoints)
    same(run(tmp_path / "run", resume=True), unbroken)
    same(ip.Trajectory.load(tmp_path / "run", mlp()), unbroken)


@pytest.mark.parametrize(
    "direction", [ip.NaturalGradient(momentum=0.9, refresh=2), ip.Penalised(), ip.NullSpace("gram")]
)
def test_momentum_and_other_directions_resume_too(tmp_path, monkeypatch, direction):
    changes = {"direction": direction, "max_steps": 30, "keep": ip.Reference(x(12, 4))}
    killed(lambda: run(tmp_path / "run", **changes), monkeypatch, 5)
    same(run(tmp_path / "run", resume=True, **changes), run(**changes))


def test_steps_under_a_multiplier_resume_too(tmp_path, monkeypatch):
    changes = {"corrector": Multiplier(steps=4, batch_size=16, rate=0.02), "tolerance": 0.02}
    killed(lambda: run(tmp_path / "run", **changes), monkeypatch, 9)
    unbroken = run(**changes)
    same(run(tmp_path / "run", resume=True, **changes), unbroken)
    assert len(unbroken.history) > 9


def test_a_sampled_reference_resumes_too(tmp_path, monkeypatch):
    changes = {"keep": ip.Reference(x(300, 4), sample=20), "max_steps": 30}
    killed(lambda: run(tmp_path / "run", **changes), monkeypatch, 5)
    same(run(tmp_path / "run", resume=True, **changes), run(**changes))


def test_a_run_killed_twice_and_a_finished_one_resume_too(tmp_path, monkeypatch, unbroken):
    killed(lambda: run(tmp_path / "run"), monkeypatch, 9)
    killed(lambda: run(tmp_path / "run", resume=True), monkeypatch, 2)
    same(run(tmp_path / "run", resume=True), unbroken)
    same(run(tmp_path / "run", resume=True), unbroken)


def test_the_folder_has_what_it_says(tmp_path, unbroken):
    folder = tmp_path / "run"
    run(folder)
    about, metrics = (json.loads((folder / name).read_text()) for name in ("run.json", "metrics.json"))
    assert about["seed"] == 2 and about["dimension"] == 51 and about["split"][0][2] is True
    assert {"isopath", "torch", "python", "started", "threads"} <= set(about)
    assert metrics["status"] == unbroken.status and metrics["attempts"] == len(unbroken.history)
    history = [json.loads(line) for line in (folder / "history.jsonl").read_text().splitlines()]
    assert [row["attempt"] for row in history] == list(range(1, len(history) + 1))
    files = sorted(p.name for p in (folder / "waypoints").iterdir())
    assert files == [f"{step:06d}.safetensors" for step in unbroken.steps]
    state = mlp()
    state.load_state_dict(load_file(folder / "waypoints" / files[-1]))
    torch.testing.assert_close(ip.evaluate(state, task()).loss, ip.evaluate(unbroken.model(), task()).loss)
    assert not list(folder.rglob(".*")), "no temporary files stay behind"


def task():
    return ip.Task(x(40, 4), torch.arange(40) % 3)


def test_a_saved_trajectory_loads_with_its_points_on_disk(tmp_path, unbroken):
    folder = unbroken.save(tmp_path / "saved")
    loaded = ip.Trajectory.load(folder, mlp())
    same(loaded, unbroken)
    assert loaded.waypoints[0].theta is None and len(loaded) == len(unbroken)
    assert loaded.drift_kind == unbroken.drift_kind and loaded.tolerance == unbroken.tolerance
    assert torch.equal(loaded(0.4), unbroken(0.4)) and loaded.length() == pytest.approx(unbroken.length())
    with pytest.raises(FileExistsError, match="never overwritten"):
        unbroken.save(folder)
    same(ip.Trajectory.load(loaded.save(tmp_path / "again"), mlp()), unbroken)


def test_a_selection_of_parameters_loads_as_it_was_traced(tmp_path):
    path = run(tmp_path / "run", trainable=["2.*"])
    loaded = ip.Trajectory.load(tmp_path / "run", build("mlp").model)
    assert torch.equal(loaded.point(), path.point()) and loaded.network.space.names == ("2.weight", "2.bias")


# --- refusals and damage ----------------------------------------------------------------------------------------------


def test_an_existing_folder_is_never_overwritten(tmp_path):
    (tmp_path / "notes.txt").write_text("mine")
    with pytest.raises(FileExistsError, match="exists already and is never overwritten; resume it, or choose another"):
        run(tmp_path)
    assert [p.name for p in tmp_path.iterdir()] == ["notes.txt"]


def test_a_folder_without_a_run_does_not_resume_or_load(tmp_path):
    with pytest.raises(FileNotFoundError, match="no checkpoint to go on from"):
        run(tmp_path, resume=True)
    with pytest.raises(FileNotFoundError, match=r"has no run.json: not a run folder, or a run that has not ended"):
        ip.Trajectory.load(tmp_path, mlp())


def test_an_unfinished_run_does_not_load(tmp_path, monkeypatch):
    killed(lambda: run(tmp_path / "run"), monkeypatch, 4)
    with pytest.raises(FileNotFoundError, match=r"has no metrics.json.*not ended"):
        ip.Trajectory.load(tmp_path / "run", mlp())


def test_a_cut_history_line_is_dropped_and_said(tmp_path, monkeypatch, unbroken):
    killed(lambda: run(tmp_path / "run"), monkeypatch, 9)
    history = tmp_path / "run" / "history.jsonl"
    history.write_text(history.read_text()[:-20])
    with pytest.warns(UserWarning, match="last line of .*history.jsonl was cut off"):
        resumed = run(tmp_path / "run", resume=True)
    assert torch.equal(resumed.point(), unbroken.point())
    assert [row["attempt"] for row in resumed.history] == list(range(1, len(resumed.history) + 1))


def test_a_damaged_checkpoint_goes_on_from_the_last_whole_waypoint_and_says_so(tmp_path, monkeypatch):
    killed(lambda: run(tmp_path / "run"), monkeypatch, 12)
    files = sorted((tmp_path / "run" / "waypoints").iterdir())
    for file in (tmp_path / "run" / "checkpoint.safetensors", files[-1]):
        file.write_bytes(file.read_bytes()[:-9])
    step = int(files[-2].stem)
    with pytest.warns(UserWarning, match=f"going on from the waypoint of step {step}, not bit for bit"):
        resumed = run(tmp_path / "run", resume=True)
    assert resumed.status != "running" and resumed.drift <= 0.003 and resumed.steps[0] == 0
    assert resumed.steps == sorted(set(resumed.steps))


def test_a_full_disk_stops_with_the_last_waypoint_intact(tmp_path, monkeypatch, unbroken):
    fsync, count = os.fsync, itertools.count()

    def full(handle):
        if next(count) > 8:
            raise OSError(28, "No space left on device")
        fsync(handle)

    with monkeypatch.context() as patch:
        patch.setattr(os, "fsync", full)
        with pytest.raises(OSError, match="No space left"):
            run(tmp_path / "run")
    for file in (tmp_path / "run" / "waypoints").iterdir():
        storage.load_tensors(file)
    same(run(tmp_path / "run", resume=True), unbroken)
