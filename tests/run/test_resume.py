"""Runs that are stopped, killed or damaged, and what they end with."""

from __future__ import annotations

import errno
import json
import os
import random
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from itertools import count
from pathlib import Path
from typing import Any

import pytest

from isopath import storage, verbs
from isopath.storage import load_tensors
from isopath.trace import record
from runs import assert_same, attempts, figures, isopath, rows, small_config, unbroken_run, waypoints  # noqa: F401 (fixtures)


def stopped(config: Path, run: Path, monkeypatch: pytest.MonkeyPatch, after: int, error: BaseException) -> int:
    """A trace in which the write of row `after` of the history fails."""
    whole, allowed = storage.append_line, iter(range(after))

    def failing(path: Path, value: Any) -> None:
        if next(allowed, None) is None:
            raise error
        whole(path, value)

    with monkeypatch.context() as patch:
        patch.setattr(record, "append_line", failing)
        return isopath("trace", config, "--out", run)


FULL = OSError(errno.ENOSPC, "No space left on device")


@pytest.mark.parametrize("share", [0.0, 0.1, 0.4, 0.9])
def test_ctrl_c_says_how_to_go_on(
    share: float, config: Path, unbroken: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:  # fmt: skip
    run = tmp_path / "run"
    after = int(share * attempts(unbroken))
    assert stopped(config, run, monkeypatch, after, KeyboardInterrupt()) == 130
    assert f"isopath: stopped; to go on: isopath resume {run}" in capsys.readouterr().err
    assert isopath("show", run) == 0
    assert "stopped before its end" in capsys.readouterr().out
    assert isopath("resume", run) == 0
    assert_same(run, unbroken)


@pytest.mark.parametrize("what", ["append_line", "save_tensors", "write_json"])
@pytest.mark.parametrize("after", [1, 4])
def test_a_full_disk_stops_with_a_sentence_and_loses_nothing(
    what: str, after: int, config: Path, unbroken: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:  # fmt: skip
    run, written = tmp_path / "run", getattr(storage, what)
    allowed = iter(range(after))

    def failing(*arguments: Any, **named: Any) -> None:
        if next(allowed, None) is None:
            raise FULL
        written(*arguments, **named)

    with monkeypatch.context() as patch:
        patch.setattr(record, what, failing)
        code = isopath("trace", config, "--out", run)
    if code == 0:
        pytest.skip(f"a short run writes less often by {what}")
    err = capsys.readouterr().err
    assert code == 2 and "the disk is full" in err and f"isopath resume {run}" in err and len(err.splitlines()) == 1
    for file in (run / "waypoints").glob("*.safetensors"):
        load_tensors(file)
    assert isopath("resume", run) == 0
    assert_same(run, unbroken)


@pytest.mark.skipif(not hasattr(signal, "SIGXFSZ"), reason="needs limits on the size of files")
def test_a_disk_that_is_really_full(config: Path, tmp_path: Path) -> None:
    limited = (
        "import resource, signal, sys; signal.signal(signal.SIGXFSZ, signal.SIG_IGN)\n"
        "from isopath.cli import main\n"
        "resource.setrlimit(resource.RLIMIT_FSIZE, (6000, resource.RLIM_INFINITY))\n"
        "sys.exit(main(sys.argv[1:]))"
    )
    command = [sys.executable, "-c", limited, "trace", str(config), "--out", str(tmp_path / "run")]
    ended = subprocess.run(command, capture_output=True, text=True, check=False)
    assert ended.returncode == 2
    assert "the disk is full" in ended.stderr and len(ended.stderr.splitlines()) == 1


def cut(file: Path, share: float = 0.5) -> None:
    whole = file.read_bytes()
    file.write_bytes(whole[: int(share * len(whole))])


@pytest.fixture
def broken(config: Path, unbroken: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    run, after = tmp_path / "run", attempts(unbroken) * 3 // 4
    # a checkpoint at every chance, so that there are waypoints before it and rows after it
    clock = count(0.0, 2.0)
    with monkeypatch.context() as patch:
        patch.setattr(verbs.time, "perf_counter", lambda: next(clock))
        assert stopped(config, run, monkeypatch, after, KeyboardInterrupt()) == 130
    return run


def test_a_cut_off_line_is_recomputed(broken: Path, unbroken: Path, capsys: pytest.CaptureFixture[str]) -> None:
    file = broken / "history.jsonl"
    file.write_text(file.read_text()[:-20])
    assert isopath("resume", broken) == 0
    assert "was cut off" in capsys.readouterr().err
    assert_same(broken, unbroken)


def test_a_cut_off_line_before_the_checkpoint_is_restored(broken: Path, unbroken: Path) -> None:
    _, about = load_tensors(broken / "checkpoint.safetensors")
    lines = (broken / "history.jsonl").read_text().splitlines()[: about["state"]["attempt"]]
    (broken / "history.jsonl").write_text("\n".join(lines)[:-20])
    assert isopath("resume", broken) == 0
    assert_same(broken, unbroken)


@pytest.mark.parametrize("which", [0, 1, -1])
def test_a_truncated_waypoint_is_named_and_the_run_goes_on(
    which: int, broken: Path, unbroken: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    _, about = load_tensors(broken / "checkpoint.safetensors")
    file = broken / "waypoints" / f"{about['waypoints'][which]['step']:06d}.safetensors"
    cut(file)
    assert isopath("resume", broken) == 0
    assert f"{file} is not a whole safetensors file" in capsys.readouterr().err
    assert rows(broken) == rows(unbroken)
    last = max(waypoints(unbroken))
    assert waypoints(broken)[last] == waypoints(unbroken)[last]


def test_a_truncated_checkpoint_goes_on_from_the_last_whole_waypoint(
    broken: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    cut(broken / "checkpoint.safetensors")
    assert isopath("resume", broken) == 0
    assert "going on from the waypoint of step" in capsys.readouterr().err
    assert json.loads((broken / "metrics.json").read_text())["drift"] <= 0.01


@pytest.mark.parametrize("left", [[], ["run.json"], ["run.json", "history.jsonl", "waypoints/000000.safetensors"]])
def test_a_run_without_a_checkpoint_starts_from_the_beginning(
    left: list[str], unbroken: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    run = tmp_path / "run"
    for name in ["config.yaml", *left]:
        (run / name).parent.mkdir(parents=True, exist_ok=True)
        (run / name).write_bytes((unbroken / name).read_bytes())
    (run / ".checkpoint.safetensors.x1").write_bytes(b"half")
    assert isopath("resume", run) == 0
    assert "starts from the beginning" in capsys.readouterr().err
    assert not list(run.glob(".check*"))
    assert_same(run, unbroken)


def test_a_run_that_has_ended_is_only_written_anew(
    unbroken: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    before = rows(unbroken), waypoints(unbroken), figures(unbroken)
    assert isopath("resume", unbroken) == 0
    assert "has ended already" in capsys.readouterr().err
    assert (rows(unbroken), waypoints(unbroken), figures(unbroken)) == before


def test_a_changed_model_is_refused(broken: Path, capsys: pytest.CaptureFixture[str]) -> None:
    text = (broken / "config.yaml").read_text()
    (broken / "config.yaml").write_text(text.replace("seed: 0", "seed: 1"))
    assert isopath("resume", broken) == 2
    assert "does not have the weights that the run started from" in capsys.readouterr().err


def test_another_version_is_named(broken: Path, capsys: pytest.CaptureFixture[str]) -> None:
    about = json.loads((broken / "run.json").read_text())
    (broken / "run.json").write_text(json.dumps({**about, "torch": "1.0"}))
    assert isopath("resume", broken) == 0
    assert "the run was started with torch 1.0" in capsys.readouterr().err


def start(*arguments: str | Path) -> subprocess.Popen[bytes]:
    command = [sys.executable, "-m", "isopath.cli", *map(str, arguments)]
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    return subprocess.Popen(command, env=environment, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)


def killed(process: subprocess.Popen[bytes], ready: Callable[[], bool]) -> bool:
    """Kills a process as soon as `ready`; whether it was still running."""
    while process.poll() is None and not ready():
        time.sleep(0.001)
    process.send_signal(signal.SIGKILL)
    return process.wait() == -signal.SIGKILL


def test_a_killed_run_ends_where_the_unbroken_one_ends(config: Path, unbroken: Path, tmp_path: Path) -> None:
    moments = random.Random(0)
    run, total = tmp_path / "at once", attempts(unbroken)
    assert killed(start("trace", config, "--out", run), (run / "config.yaml").exists)
    assert isopath("resume", run) == 0
    assert_same(run, unbroken)
    run, first = tmp_path / "twice", moments.randrange(1, total // 3)
    assert killed(start("trace", config, "--out", run), lambda: attempts(run) >= first)
    second = moments.randrange(first + 1, 2 * total // 3)
    assert killed(start("resume", run), lambda: attempts(run) >= second)
    assert isopath("resume", run) == 0
    assert_same(run, unbroken)


def test_two_processes_never_write_one_run(config: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    run = tmp_path / "run"
    process = start("trace", config, "--out", run, "--set", "max_steps=100000", "--set", "objective.1=" + slow())
    try:
        while process.poll() is None and attempts(run) < 1:
            time.sleep(0.01)
        assert isopath("show", run) == 0
        assert "running" in capsys.readouterr().out
        assert isopath("resume", run) == 2
        assert "is being written by another process" in capsys.readouterr().err
    finally:
        process.kill()
        process.wait()


def slow() -> str:
    """A term that keeps a trace busy."""
    return "{class_path: Diversity, init_args: {models: [{class_path: torch.zeros, init_args: [2410]}]}}"
