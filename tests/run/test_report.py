"""The report of synthetic run folders: what is on the page, what is left out, and what never gets through."""

from __future__ import annotations

import json
import math
import random
from pathlib import Path
from typing import Any

import pytest

from isopath.run import report

TOLERANCE = 0.01
COLUMNS = ["method", "old accuracy", "new accuracy", "drift", "agreement", "sparsity", "gradient evaluations",
           "seconds", "status"]  # fmt: skip
TRACED = "The objective stopped falling by more than 0.1 % a step, and the final projection made exactly 60 % of the " \
         "weights zero; drift stayed below the tolerance at every accepted step."  # fmt: skip
TABLE = [
    ["start", 0.9911, 0.0, 0.0, 1.0, 0.0, None, None, None],
    ["isopath trace", 0.9867, 0.9487, 0.00934, 0.9889, 0.6, 119_812.3, 20.14, TRACED],
    ["fine-tuning", 0.2133, 0.9732, 0.7121, 0.2178, 0.0, 119_904.0, 9.81,
     "Ran for the trace's number of gradient evaluations; nothing holds the old task."],
    ["penalised", 0.9356, 0.9018, 0.0413, 0.9400, math.nan, 120_032.0, 14.52,
     "Ran for the trace's number of gradient evaluations; ended above the tolerance."],
]  # fmt: skip


def attempts(count: int, reject: float = 0.12, seed: int = 0) -> list[dict[str, Any]]:
    """A plausible history: the objective falls, the drift climbs to the tolerance and is held there."""
    chance = random.Random(seed)
    rows: list[dict[str, Any]] = []
    step, drift = 0, 0.0
    for attempt in range(1, count + 1):
        time = attempt / count
        level = 0.13 + 2.5 * math.exp(-5 * time)
        before = level * math.exp(chance.gauss(0, 0.07))
        why = "accepted" if chance.random() > reject else chance.choice(["drift", "drift", "objective"])
        after = before * (1.02 + chance.random() * 0.3 if why == "objective" else 0.97)
        if why == "accepted":
            step += 1
            drift = 0.0093 * (1 - math.exp(-9 * time)) * (1 - 0.09 * chance.random())
        judged = TOLERANCE * (1.02 + chance.expovariate(2.5)) if why == "drift" else drift
        rows.append({
            "attempt": attempt, "step": step, "accepted": why == "accepted", "why": why, "objective_before": before,
            "objective": after, "drift": judged, "drift_metric": judged * 0.91, "drift_check": judged,
            "step_length": 0.11 * (0.4 if why == "drift" else 1.0), "damping": 0.001, "length": 0.09 * step,
            "evaluations": 913.0 * attempt, "seconds": 0.154 * attempt,
        })  # fmt: skip
    return rows


def measured() -> dict[str, Any]:
    """A plausible `metrics.json`."""
    steps = sorted({round(116 * i / 28) for i in range(29)})
    turn = [i / 28 for i in range(29)]
    return {
        "status": "converged", "reason": TRACED, "steps": 116, "attempts": 131, "drift": 0.00934,
        "drift_kind": "measured", "evaluations": 119_812.3, "seconds": 20.14,
        "table": {"columns": COLUMNS, "rows": TABLE},
        "along": {"step": steps, "series": {
            "old digits 0-4": [0.9911 - 0.0044 * t + 0.002 * math.sin(31 * t) for t in turn],
            "new digits 5-9": [0.9487 * (1 - math.exp(-5.5 * t)) / (1 - math.exp(-5.5)) for t in turn]}},
        "spectrum": [41.0 * math.exp(-0.42 * i ** 0.9) * (1 + 0.1 * math.sin(5 * i)) for i in range(48)] + [0.0, -1e-9],
        "plane": {"explained": [0.71, 0.19], "paths": {
            "isopath trace": [[4.4 * t, 2.9 * math.sin(2.1 * t) * t ** 0.6] for t in turn],
            "fine-tuning": [[3.1 * t ** 0.8, -2.2 * t ** 1.4 + 0.15 * math.sin(9 * t)] for t in turn]}},
    }  # fmt: skip


INFO = {"format": 1, "isopath": "0.1.0", "torch": "2.13.0", "python": "3.11.7", "seed": 0, "verb": "demo",
        "title": "Digits 0–4 → 0–9, 60 % sparse", "tolerance": TOLERANCE, "dimension": 30122, "device": "cpu",
        "threads": 2, "started": "2026-03-02T09:41:07+00:00"}  # fmt: skip
CONFIG = """\
keep:
  rows: 450
  divergence: hellinger
objective:
  - class_path: isopath.Task
    init_args: {loss: cross_entropy, weight: 1.0}
  - class_path: isopath.Sparsity
    init_args: {fraction: 0.6, weight: 0.1}
tolerance: 0.01
max_steps: 200
seed: 0
"""


def write_run(folder: Path, history: list[dict[str, Any]] | None = None, **metrics: Any) -> Path:
    """A whole run folder; entries of `metrics` replace those of `measured()`, and None takes one away."""
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "run.json").write_text(json.dumps(INFO))
    (folder / "config.yaml").write_text(CONFIG)
    rows = attempts(131) if history is None else history
    (folder / "history.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    kept = {key: value for key, value in {**measured(), **metrics}.items() if value is not None}
    (folder / "metrics.json").write_text(json.dumps(kept))
    return folder


def page_of(folder: Path) -> str:
    """The written page without plotly's own code."""
    text = report.write(folder).read_text(encoding="utf-8")
    return text.replace(report.get_plotlyjs(), "PLOTLY")


def traces(page: str, plot: str = "history") -> list[dict[str, Any]]:
    """The traces of a plot, as the page's script reads them."""
    spec = page.split('id="plots">', 1)[1].split("</script>", 1)[0]
    return json.loads(spec)[plot]["data"]


@pytest.fixture
def run(tmp_path: Path) -> Path:
    return write_run(tmp_path / "run")


def test_it_is_one_file_without_a_network(run: Path) -> None:
    page = page_of(run)
    assert page.startswith("<!DOCTYPE html>") and page.count("PLOTLY") == 1
    assert "default-src 'none'" in page
    assert not any(word in page for word in ("http:", "https:", "src=", "@import", "url("))


def test_the_sections_stand_in_order(run: Path) -> None:
    page = page_of(run)
    marks = ["<h1>Digits 0–4 → 0–9, 60 % sparse</h1>", 'id="status"', 'class="cards"', 'id="history"', 'id="accuracy"',
             'id="plane"', 'id="spectrum"', "<h2>Results</h2>", "<details>", "<h2>Versions"]  # fmt: skip
    places = [page.index(mark) for mark in marks]
    assert places == sorted(places)
    assert page.count("<figcaption>") == 4
    assert "divergence: hellinger" in page and "2.13.0" in page and "2026-03-02 09:41" in page


def test_the_cards_hold_the_key_figures(run: Path) -> None:
    cards = page_of(run).split('class="cards"', 1)[1].split("<figure>", 1)[0].replace("\xa0", " ")
    for text in ("0.00934", "93 % of the tolerance of 0.01, measured", "98.7 %", "−0.4 points from 99.1 %", "94.9 %",
                 "+94.9 points from 0.0 %", "60.0 %", "98.9 %", "119.8 k", "20.1", "on cpu, 2 threads"):  # fmt: skip
        assert f">{text}<" in cards


@pytest.mark.parametrize(("status", "words", "tone"), [
    ("converged", "Converged", "green"), ("stationary", "Stationary", "blue"),
    ("budget_spent", "Budget spent", "amber"), ("target_not_reached", "Target not reached", "orange"),
    ("step_too_small", "Step too small", "purple"), ("on_fire", "On fire", "slate"),
])  # fmt: skip
def test_every_status_has_its_own_banner(tmp_path: Path, status: str, words: str, tone: str) -> None:
    page = page_of(write_run(tmp_path, status=status, reason="What happened; what to try."))
    assert f'style="--tone: var(--{tone})" id="status"' in page
    assert f"<strong>{words}</strong><p>What happened; what to try.</p>" in page


@pytest.mark.parametrize(("part", "trace"), [
    ("along", "Accuracy along"), ("plane", "path in weight space"), ("spectrum", "Spectrum of"), ("table", "Results"),
])  # fmt: skip
def test_a_missing_part_leaves_no_trace(run: Path, part: str, trace: str) -> None:
    assert f"<h2>{trace}" in page_of(run).replace("<h2>The ", "<h2>")
    page = page_of(write_run(run, **{part: None}))
    assert trace not in page.split("<body>")[1] and f'id="{part}"' not in page


def test_a_run_that_has_only_begun(tmp_path: Path) -> None:
    (tmp_path / "run.json").write_text("{}")
    page = page_of(tmp_path)
    assert f"<h1>{tmp_path.name}</h1>" in page and "<strong>Unfinished</strong>" in page
    assert not any(word in page for word in ("PLOTLY", "<figure>", 'class="cards"', "<details>", "<table>"))


def test_empty_cells_are_dashes_and_the_best_stand_out(run: Path) -> None:
    page = page_of(run).replace("\xa0", " ")
    rows = page.split("<tbody>")[1].split("</tbody>")[0].split("</tr>")
    assert rows[0].count("–") == 3 and "best" not in rows[0]
    assert 'data-label="sparsity" class="number">–<' in rows[3]
    assert '<span class="best">98.7 %</span>' in rows[1] and '<span class="best">97.3 %</span>' in rows[2]
    assert '<span class="over" title="above the tolerance">0.712</span>' in rows[2]
    assert not any(word in page for word in ("nan", "NaN", ">None<", ">null<"))


def test_text_from_the_run_is_escaped(run: Path) -> None:
    evil = "<script>alert('x')</script>"
    info = INFO | {"title": evil, "device": evil, "verb": evil, evil: evil}
    write_run(run, [attempts(1)[0] | {"accepted": False, "why": evil}], reason=evil, drift_kind=evil, status=evil,
              table={"columns": ["method", evil], "rows": [[evil, evil]]}, along={"step": [0], "series": {evil: [1.0]}},
              plane={"paths": {evil: [[0, 1]]}})  # fmt: skip
    (run / "run.json").write_text(json.dumps(info))
    (run / "config.yaml").write_text(evil)
    page = page_of(run)
    assert "alert(" in page and "<script>alert" not in page.lower() and "</script>\\" not in page
    assert page.count("<script") == page.count("</script>") == 3
    assert traces(page)[0]["name"].startswith("rejected: &lt;script&gt;")


def test_a_cut_off_line_is_ignored_and_noted(run: Path) -> None:
    lines = (run / "history.jsonl").read_text().splitlines()
    (run / "history.jsonl").write_text("\n".join(lines[:50]) + "\n" + lines[50][:37])
    page = page_of(run)
    assert "The last line of history.jsonl is cut off and was ignored" in page and "of 50 attempts" in page
    (run / "history.jsonl").write_text("\n".join([lines[0], "17", lines[2], "", lines[3]]) + "\n")
    assert "Unreadable lines of history.jsonl were ignored: 2." in page_of(run)


def test_what_cannot_be_read_is_an_error_and_keeps_the_old_page(run: Path) -> None:
    before = report.write(run).read_bytes()
    (run / "metrics.json").write_text('{"status": ')
    with pytest.raises(ValueError, match=r"metrics\.json is not valid JSON"):
        report.write(run)
    (run / "metrics.json").write_text("[]")
    with pytest.raises(ValueError, match="must hold a JSON object, not list"):
        report.write(run)
    (run / "run.json").write_text('{"format": 2}')
    with pytest.raises(ValueError, match="reads format 1"):
        report.write(run)
    with pytest.raises(FileNotFoundError, match="is not a run folder"):
        report.write(run / "elsewhere")
    assert (run / "report.html").read_bytes() == before


def test_a_failed_write_leaves_nothing_behind(run: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    before, names = report.write(run).read_bytes(), sorted(path.name for path in run.iterdir())

    def refuse(*_: object) -> None:
        raise OSError("No space left on device")

    monkeypatch.setattr(report.os, "replace", refuse)
    with pytest.raises(OSError, match="No space"):
        report.write(run)
    assert sorted(path.name for path in run.iterdir()) == names and (run / "report.html").read_bytes() == before


def test_rejected_attempts_stand_in_the_panel_of_their_reason(run: Path) -> None:
    rows = attempts(131)
    drawn = {trace["name"]: trace for trace in traces(page_of(run))}
    for why, axis in (("objective", "y"), ("drift", "y2")):
        expected = [row["attempt"] for row in rows if row["why"] == why]
        trace = drawn[f"rejected: {why} ({len(expected)})"]
        assert sorted(trace["x"]) == expected and trace["yaxis"] == axis
    assert "rejected: drift<br>" in drawn["rejected: drift (11)"]["hovertext"][0]


def test_the_drift_axis_shows_the_curve_and_the_tolerance() -> None:
    near = report.history_figure(attempts(60), TOLERANCE)
    assert near is not None and near.layout.yaxis2.type == "linear"
    assert near.layout.yaxis2.range == pytest.approx((0.0, 1.3 * TOLERANCE))
    assert {shape.y0 for shape in near.layout.shapes} == {TOLERANCE}
    highest = max(max(trace.y) for trace in near.data if trace.yaxis == "y2")
    assert highest == pytest.approx(0.96 * 0.013), "what lies beyond the scale is drawn at its edge"
    far = report.history_figure([row | {"drift": row["drift"] / 1000} for row in attempts(60)], TOLERANCE)
    assert far is not None and far.layout.yaxis2.type == "log"
    curve = next(trace.y for trace in far.data if trace.yaxis == "y2" and trace.name.startswith("accepted"))
    assert 10 ** far.layout.yaxis2.range[1] > TOLERANCE > 1000 * max(curve) and len(set(curve)) > 20


def test_one_attempt_and_none_accepted(tmp_path: Path) -> None:
    single = traces(page_of(write_run(tmp_path / "one", attempts(1, reject=0.0))))
    assert [trace["mode"] for trace in single] == ["lines+markers"] * 2 and single[0]["name"] == "accepted (1)"
    rows = [row | {"accepted": False, "why": why, "objective": objective} for row, why, objective in
            zip(attempts(3), ("drift", "objective", "objective"), (1.0, 2.0, math.nan))]  # fmt: skip
    page = page_of(write_run(tmp_path / "none", rows))
    assert sorted(trace["name"] for trace in traces(page)) == ["rejected: drift (1)", "rejected: objective (2)"]
    assert "steps, in 0 of 3 attempts" in page
    assert traces(page)[0]["marker"]["symbol"] == ["x-thin", "triangle-up"], "no objective: beyond every scale"


def test_ten_thousand_attempts_are_thinned_and_keep_their_extremes(tmp_path: Path) -> None:
    rows = attempts(10_000, reject=0.3)
    path = report.write(write_run(tmp_path, rows))
    assert path.stat().st_size < 8e6
    drawn = {trace["name"].split(" (")[0]: trace for trace in traces(page_of(tmp_path))}
    assert all(len(trace["x"]) < 1000 for trace in drawn.values())
    accepted = [row for row in rows if row["accepted"]]
    assert max(drawn["accepted"]["y"]) == max(row["drift"] for row in accepted)
    assert drawn["accepted"]["x"][0] == accepted[0]["attempt"] and drawn["accepted"]["x"][-1] == accepted[-1]["attempt"]
    count = sum(row["why"] == "drift" for row in rows)
    assert f"rejected: drift ({count:,})" in {trace["name"] for trace in traces(page_of(tmp_path))}
    worst = max((row for row in rows if row["why"] == "drift"), key=lambda row: row["drift"])
    assert worst["attempt"] in drawn["rejected: drift"]["x"]


def test_the_spectrum_leaves_out_what_a_logarithm_cannot_show() -> None:
    figure = report.spectrum_figure([3.0, None, 0.5, 0.0, -1e-9, math.nan])
    assert figure is not None and list(figure.data[0].x) == [1, 3] and figure.layout.yaxis.type == "log"
    assert report.spectrum_figure([0.0]) is None


def test_the_plane_marks_start_and_ends(run: Path) -> None:
    *paths, start = traces(page_of(run), "plane")
    assert [path["name"] for path in paths] == ["fine-tuning", "isopath trace"]
    assert all(path["marker"]["symbol"][-1] == "diamond" for path in paths)
    assert start["text"] == "start" and start["x"] == [paths[0]["x"][0]]


@pytest.mark.parametrize(("value", "column", "text"), [
    (0.98765, "old accuracy", "98.8\xa0%"), (0.99996, "agreement", "99.99\xa0%"), (1.0, "agreement", "100.0\xa0%"),
    (0.9996, "agreement", "99.96\xa0%"), (0.0123456, "drift", "0.0123"), (119_812.3, "gradient evaluations", "119,812"),
    (20.14, "seconds", "20.1"), (30122, "", "30,122"), (math.inf, "drift", "–"), (None, "", "–"), ("", "", "–"),
    (True, "", "true"), ([1, 2], "", "[1, 2]"),
])  # fmt: skip
def test_cells_are_formatted_after_their_column(value: Any, column: str, text: str) -> None:
    assert report.shown(value, column) == text
