"""The executable: what every verb prints and writes, its help, and its errors."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import yaml

from isopath import cli
from runs import isopath, small_config, unbroken_run  # noqa: F401 (fixtures)

# --- what the verbs print and write ---------------------------------------------------------------------------------


def test_a_trace_leaves_a_whole_run_folder(unbroken: Path) -> None:
    assert {p.name for p in unbroken.iterdir()} >= {
        "run.json", "config.yaml", "history.jsonl", "waypoints", "waypoints.json", "metrics.json", "report.html",
    }  # fmt: skip
    metrics = json.loads((unbroken / "metrics.json").read_text())
    assert metrics["drift"] <= 0.01
    assert metrics["table"]["columns"] == [
        "method", "new accuracy", "drift", "agreement", "sparsity", "gradient evaluations", "seconds", "status",
    ]  # fmt: skip
    start, end = metrics["table"]["rows"]
    assert start[:1] + start[2:4] == ["start", 0.0, 1.0] and end[1] > start[1]
    steps = [row["step"] for row in json.loads((unbroken / "waypoints.json").read_text())]
    assert metrics["along"]["step"] == steps
    assert metrics["along"]["series"]["new"][0] == start[1] and metrics["along"]["series"]["new"][-1] == end[1]
    assert metrics["spectrum"] == sorted(metrics["spectrum"], reverse=True) and 0 < len(metrics["spectrum"]) <= 50
    assert len(metrics["plane"]["paths"]["isopath trace"]) == len(steps)
    assert 0.5 < sum(metrics["plane"]["explained"]) <= 1 + 1e-9


def test_trace_prints_a_table_and_ends_with_the_report(
    config: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert isopath("trace", config, "--out", tmp_path / "r", "--set", "max_steps=2", "--set", "title=Two steps") == 0
    out, err = capsys.readouterr()
    assert out.splitlines()[-1] == str(tmp_path / "r" / "report.html")
    assert "new accuracy" in out and "budget_spent" in out and err == ""
    assert json.loads((tmp_path / "r" / "run.json").read_text())["title"] == "Two steps"
    assert yaml.safe_load((tmp_path / "r" / "config.yaml").read_text())["max_steps"] == 2


def test_show_evaluate_and_report(unbroken: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert isopath("show", unbroken) == 0
    out = capsys.readouterr().out
    metrics = json.loads((unbroken / "metrics.json").read_text())
    assert metrics["status"] in out and "kept waypoints" in out and "gradient evaluations" in out
    assert metrics["reason"] in out
    assert isopath("evaluate", unbroken, "--step", "0") == 0
    assert "step 0" in capsys.readouterr().out
    (unbroken / "report.html").unlink()
    assert isopath("report", unbroken) == 0
    assert capsys.readouterr().out.strip() == str(unbroken / "report.html")
    assert (unbroken / "report.html").exists()


def test_evaluate_names_the_nearest_kept_step(unbroken: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert isopath("evaluate", unbroken, "--step", "100000") == 2
    last = json.loads((unbroken / "waypoints.json").read_text())[-1]["step"]
    assert f"the nearest kept one is {last}" in capsys.readouterr().err


@pytest.mark.parametrize("verb", list(cli.VERBS))
def test_every_help_shows_a_worked_example(verb: str, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as ended:
        isopath(verb, "--help")
    assert ended.value.code == 0
    assert f"example:\n  isopath {verb}" in capsys.readouterr().out


def test_the_config_in_the_help_is_one(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    from isopath.run.config import read, resolve

    spelled = cli.VERBS["trace"][1].split("A config spells the call:\n")[1]
    (tmp_path / "c.yaml").write_text(spelled.replace("networks.Small, init_args: {width: 32}", "own_small.Small"))
    (tmp_path / "own_small.py").write_text("from torch import nn\nclass Small(nn.ReLU):\n    width = 1\n")
    monkeypatch.chdir(tmp_path)
    assert resolve(read(tmp_path / "c.yaml"))["tolerance"] == 0.01


# --- mistakes -------------------------------------------------------------------------------------------------------


def test_an_existing_folder_is_never_overwritten(
    config: Path, unbroken: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    before = {p: p.stat().st_mtime_ns for p in unbroken.rglob("*")}
    assert isopath("trace", config, "--out", unbroken) == 2
    assert "never overwritten" in capsys.readouterr().err
    assert {p: p.stat().st_mtime_ns for p in unbroken.rglob("*")} == before


@pytest.mark.parametrize(
    "arguments, says",
    [
        (["trace", "CONFIG", "--out", "NEW", "--set", "tolerence=1"], "Did you mean 'tolerance'?"),
        (["trace", "CONFIG", "--out", "NEW", "--set", "tolerance=-1"], "tolerance must be > 0, got -1"),
        (["trace", "CONFIG", "--out", "NEW", "--set", "model.init_args.1.init_args.in_features=3"], "mat1 and mat2"),
        (["trace", "nothing.yaml", "--out", "NEW"], "no config file nothing.yaml"),
        (["trace"], "required"),
        (["tarce"], "invalid choice: 'tarce'"),
        (["show", "NEW"], "is not a run folder"),
        (["resume", "NEW"], "is not a run folder"),
        (["evaluate", "NEW"], "is not a run folder"),
        (["report", "NEW"], "is not a run folder"),
    ],
)
def test_a_mistake_is_one_line_and_leaves_nothing(
    arguments: list[str], says: str, config: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    places = {"CONFIG": str(config), "NEW": str(tmp_path / "new")}
    assert isopath(*[places.get(argument, argument) for argument in arguments]) == 2
    out, err = capsys.readouterr()
    assert says in err and len(err.splitlines()) == 1 and out == ""
    assert not (tmp_path / "new").exists()


def test_debug_shows_the_traceback(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("ISOPATH_DEBUG", "1")
    with pytest.raises(FileNotFoundError):
        isopath("show", "nowhere")


def test_a_run_started_from_python_or_by_the_demo_is_not_resumed(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "run.json").write_text('{"verb": "demo"}')
    assert isopath("resume", tmp_path) == 2
    assert "has no config.yaml" in capsys.readouterr().err
    (tmp_path / "config.yaml").write_text("seed: 0\n")
    assert isopath("evaluate", tmp_path) == 2
    assert "was made by isopath demo" in capsys.readouterr().err
