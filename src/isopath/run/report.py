"""One self-contained page about a run: `write` reads a run folder and leaves `report.html` in it."""

from __future__ import annotations

import json
import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from jinja2 import Environment, FileSystemLoader
from plotly.offline import get_plotlyjs

from isopath.run.curve_figures import curve_figures
from isopath.run.generated_figures import generated_figures
from isopath.run.packed_figures import packed_figures
from isopath.run.style import Row
from isopath.run.trace_figures import accuracy_figure, history_figure, plane_figure, spectrum_figure
from isopath.run.words import number, percent, shown


def write(run: Path) -> Path:
    """Write `RUN/report.html`, one file that needs no network, and return its path.

    An older report is replaced in one step, and parts of the run that are missing leave no section behind. Raises
    FileNotFoundError if `run` holds no `run.json`, ValueError if it or `metrics.json` is not what this version reads.
    """
    run = Path(run)
    page, target, scratch = render(run), run / "report.html", run / f".report.{os.getpid()}.tmp"
    try:
        scratch.write_text(page, encoding="utf-8")
        os.replace(scratch, target)
    finally:
        scratch.unlink(missing_ok=True)
    return target


def render(run: Path) -> str:
    """The page of a run folder, as text; see `write` for the errors. Broken lines of the history are noted on it."""
    if not (run / "run.json").is_file():
        raise FileNotFoundError(f"{run} is not a run folder: it has no run.json.")
    info = _json(run / "run.json")
    if info.get("format", 1) != 1:
        raise ValueError(f"{run / 'run.json'} has format {info['format']!r}; this version of isopath reads format 1.")
    metrics, (history, notes) = _json(run / "metrics.json"), _history(_content(run / "history.jsonl").split("\n"))
    if info.get("verb") == "connect":
        figures = curve_figures(metrics, history)
    elif info.get("verb") == "pack":
        figures = packed_figures(metrics)
    elif info.get("verb") == "generate":
        figures = generated_figures(metrics, history)
    else:
        figures = {
            "history": history_figure(history, number(info.get("tolerance"))),
            "accuracy": accuracy_figure(metrics.get("along") or {}),
            "plane": plane_figure(metrics.get("plane") or {}),
            "spectrum": spectrum_figure(metrics.get("spectrum") or []),
        }
    drawn = {key: figure.to_plotly_json() for key, figure in figures.items() if figure is not None}
    # "<" would let a text from the run close the script element that carries it.
    plots = json.dumps(drawn, separators=(",", ":"), allow_nan=False).replace("<", "\\u003c")
    pages = Environment(loader=FileSystemLoader(Path(__file__).with_name("templates")), autoescape=True)
    pages.filters.update(shown=shown, percent=percent, number=number)
    return pages.get_template("report.html").render(
        name=run.resolve().name, info=info, metrics=metrics, history=history, notes=notes, table=table(metrics),
        config=_content(run / "config.yaml").strip(), figures=drawn, plots=plots, plotlyjs=get_plotlyjs(),
    )  # fmt: skip


def _content(path: Path) -> str:
    return path.read_text(encoding="utf-8", errors="replace") if path.is_file() else ""


def _json(path: Path) -> Row:
    try:
        content = json.loads(_content(path) or "{}")
    except ValueError as error:
        raise ValueError(f"{path} is not valid JSON: {error}.") from error
    if not isinstance(content, dict):
        raise ValueError(f"{path} must hold a JSON object, not {type(content).__name__}.")
    return content


def _history(lines: Sequence[str]) -> tuple[list[dict[str, Any]], list[str]]:
    lines = [line for line in lines if line.strip()]
    rows, broken, notes = [], [], []
    for index, line in enumerate(lines, start=1):
        try:
            rows.append({"attempt": index, **json.loads(line)})
        except (ValueError, TypeError):
            broken.append(index)
    if broken and broken[-1] == len(lines):
        broken.pop()
        notes.append("The last line of history.jsonl is cut off and was ignored: the run stopped while writing it.")
    if broken:
        notes.append(f"Unreadable lines of history.jsonl were ignored: {', '.join(map(str, broken))}.")
    return rows, notes


def table(metrics: Row) -> dict[str, Any]:
    """The final table: `columns`, `rows` (by column), `start` and `subject` (rows or {}), `best` (value by column)."""
    raw = metrics.get("table") or {}
    columns = [str(column) for column in raw.get("columns") or []]
    rows = [dict(zip(columns, [*row, *[None] * len(columns)])) for row in raw.get("rows") or []]
    ends = [row for row in rows if row.get("method") != "start"]
    best = {}
    for column in columns:
        values = [value for row in ends if (value := number(row[column])) is not None]
        if columns[0] == "method" and len(values) > 1 and ("accuracy" in column or column in ("agreement", "drift")):
            best[column] = min(values) if column == "drift" else max(values)
    compared = columns[:1] == ["method"]
    subjects = [row for row in ends if str(row.get("method")).startswith("isopath")] or (ends if compared else [])
    starts = [row for row in rows if row.get("method") == "start"]
    return {"columns": columns, "rows": rows, "start": [*starts, {}][0], "subject": [*subjects, {}][0], "best": best}
