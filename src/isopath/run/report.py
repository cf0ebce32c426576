"""One self-contained page about a run: `write` reads a run folder and leaves `report.html` in it."""

from __future__ import annotations

import json
import math
import os
from collections import defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from html import escape
from pathlib import Path
from typing import Any

import plotly.graph_objects as go
from jinja2 import Environment, FileSystemLoader
from plotly.offline import get_plotlyjs
from plotly.subplots import make_subplots

Row = Mapping[str, Any]
SERIES = ["var(--blue)", "var(--orange)", "var(--green)", "var(--purple)", "var(--amber)", "var(--slate)"]
ATTEMPT = (
    "<b>attempt {attempt}</b> · {verdict}<br>accepted steps {step} · length {length}<br>objective {objective_before} → "
    "{objective}<br>drift {drift}<br>  metric rows {drift_metric} · check rows {drift_check}<br>step length "
    "{step_length} · damping {damping}<br>{evaluations} gradient evaluations · {seconds} s"
)


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


# ---- numbers and words


def number(value: Any) -> float | None:
    """A finite number, or None for everything else a JSON cell may hold."""
    finite = isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value)
    return float(value) if finite else None


def percent(value: Any) -> str:
    """A fraction as text; a value that is almost 1 is never rounded up to 100 %."""
    share = number(value)
    if share is not None and 0.9995 <= share < 1:
        return f"{min(100 * share, 99.99):.2f}\u00a0%"
    return "–" if share is None else f"{100 * share:.1f}\u00a0%"


def shown(value: Any, column: str = "") -> str:
    """A cell as text, formatted after its column's name; "–" for what is missing or not finite."""
    if isinstance(value, str):
        return value or "–"
    if number(value) is None:
        return "–" if value is None or isinstance(value, float) else json.dumps(value)
    if any(word in column for word in ("accuracy", "agreement", "sparsity")):
        return percent(value)
    if "seconds" in column:
        return f"{value:,.1f}"
    return f"{value:,.0f}" if abs(value) >= 1000 or isinstance(value, int) else f"{value:.3g}"


def table(metrics: Row) -> dict[str, Any]:
    """The final table: `columns`, `rows` (by column), `start` and `subject` (rows or {}), `best` (value by column)."""
    raw = metrics.get("table") or {}
    columns = [str(column) for column in raw.get("columns") or []]
    rows = [dict(zip(columns, [*row, *[None] * len(columns)])) for row in raw.get("rows") or []]
    ends = [row for row in rows if row.get("method") != "start"]
    best = {}
    for column in columns:
        values = [value for row in ends if (value := number(row[column])) is not None]
        if len(values) > 1 and ("accuracy" in column or column in ("agreement", "drift")):
            best[column] = min(values) if column == "drift" else max(values)
    subjects = [row for row in ends if str(row.get("method")).startswith("isopath")] or ends
    starts = [row for row in rows if row.get("method") == "start"]
    return {"columns": columns, "rows": rows, "start": [*starts, {}][0], "subject": [*subjects, {}][0], "best": best}


def thinned(values: Sequence[float | None], stretches: int = 400) -> list[int]:
    """Indices to draw: all, or the ends and the lowest and highest value of each of `stretches` stretches."""
    width = math.ceil(len(values) / stretches)
    if width <= 2:
        return list(range(len(values)))
    kept = {0, len(values) - 1}
    for begin in range(0, len(values), width):
        stretch = sorted((v, i) for i, v in enumerate(values[begin : begin + width], begin) if v is not None)
        kept |= {i for _, i in stretch[:1] + stretch[-1:]}
    return sorted(kept)


# ---- figures: each takes its part of the run and returns None where there is nothing to draw. Their colours are the
# page's own custom properties, which its script looks up, so that one style sheet themes the words and the plots.


def _style(figure: go.Figure) -> go.Figure:
    text = {"family": "var(--font)", "size": 13, "color": "var(--ink)"}
    figure.update_layout(
        template="none", autosize=True, margin={"l": 8, "r": 12, "t": 40, "b": 8}, hovermode="closest",
        paper_bgcolor="rgba(0,0,0,0)", plot_bgcolor="rgba(0,0,0,0)", font={**text, "color": "var(--muted)"},
        hoverlabel={"bgcolor": "var(--surface)", "bordercolor": "var(--rule)", "align": "left", "font": text},
        modebar={"bgcolor": "rgba(0,0,0,0)", "color": "var(--rule)", "activecolor": "var(--muted)"},
        legend={"orientation": "h", "x": 0, "y": 1, "yanchor": "bottom", "bgcolor": "rgba(0,0,0,0)", "font": text},
    )  # fmt: skip
    axis = {"automargin": True, "gridcolor": "var(--grid)", "linecolor": "var(--rule)", "zeroline": False,
            "ticks": "", "title": {"standoff": 12, "font": {"size": 13}}}  # fmt: skip
    return figure.update_xaxes(showgrid=False, showline=True, **axis).update_yaxes(**axis)


def _whole(values: Sequence[Any]) -> dict[str, Any]:
    return {"tickformat": ",d", "dtick": 1 if values[-1] - values[0] < 8 else None}


@dataclass(frozen=True)
class Scale:
    """The part of a vertical axis that is drawn; what lies above it is drawn at its `edge`."""

    low: float
    high: float
    log: bool = False

    @classmethod
    def fit(cls, values: Sequence[float], limit: float | None = None) -> Scale:
        """Show all `values`, or what tells them from `limit`; logarithmic where that spans decades."""
        low, high = min(values, default=0.0), max(values, default=1.0)
        if limit is not None:
            if 0 < high < limit / 20:
                return cls(max(min(value for value in values if value > 0), limit * 1e-5) / 2, limit * 3, log=True)
            return cls(0.0, 1.3 * max(limit, min(high, 3 * limit)))
        if low > 0 and high > 50 * low:
            return cls(low / 1.3, high * 1.3, log=True)
        room = 0.12 * (high - low) or 0.1 * abs(high) or 1.0
        return cls(0.0 if 0 <= low < room else low - room, high + room)

    @property
    def edge(self) -> float:
        """Just below the upper end: where a curve that leaves the range is drawn."""
        return self.low * (self.high / self.low) ** 0.96 if self.log else self.low + 0.96 * (self.high - self.low)

    def axis(self) -> dict[str, Any]:
        """The plot's axis."""
        if self.log:
            return {"type": "log", "range": [math.log10(self.low), math.log10(self.high)], "tickformat": "~g"}
        return {"type": "linear", "range": [self.low, self.high]}


def history_figure(history: Sequence[Row], tolerance: float | None) -> go.Figure | None:
    """Objective (above) and drift (below) of every attempt, on one attempt axis, with the tolerance."""
    if not history:
        return None
    figure = _style(make_subplots(rows=2, cols=1, shared_xaxes=True, vertical_spacing=0.06))
    accepted = [row for row in history if row.get("accepted")]
    for panel, key, title in ((1, "objective", "objective (loss)"), (2, "drift", "drift (mean divergence)")):
        seen = [value for row in accepted or history if (value := number(row.get(key))) is not None]
        scale = Scale.fit(seen, tolerance if key == "drift" else None)
        if accepted:
            _accepted(figure, panel, key, accepted, scale)
        _rejected(figure, panel, key, [row for row in history if not row.get("accepted")], scale)
        figure.update_yaxes(row=panel, title_text=title, **scale.axis())
    if tolerance is not None:
        tone, text = {"color": "var(--orange)"}, f"tolerance {tolerance:g}"
        label = {"text": text, "font": tone, "textposition": "start", "yanchor": "top", "padding": 6}
        figure.add_hrect(row=2, col=1, y0=tolerance, y1=scale.high, fillcolor="var(--veil)", line_width=0)
        figure.add_hline(row=2, col=1, y=tolerance, line={**tone, "width": 1.5, "dash": "dash"}, label=label)
    ends = [history[0]["attempt"], history[-1]["attempt"]]
    room = max(0.5, 0.012 * (ends[1] - ends[0]))
    figure.update_xaxes(range=[ends[0] - room, ends[1] + room], **_whole(ends))
    return figure.update_xaxes(row=2, title_text="attempt")


def _accepted(figure: go.Figure, panel: int, key: str, rows: Sequence[Row], scale: Scale) -> None:
    values = [number(row.get(key)) for row in rows]
    kept = thinned(values)
    figure.add_scatter(
        row=panel, col=1, x=[rows[i]["attempt"] for i in kept], hovertext=[_attempt(rows[i]) for i in kept],
        y=[None if (value := values[i]) is None else max(value, scale.low) for i in kept], hoverinfo="text",
        name=f"accepted ({len(rows):,})", legendgroup="accepted", showlegend=panel == 1,
        mode="lines+markers" if len(kept) <= 160 else "lines", marker={"size": 4.5},
        line={"color": "var(--blue)", "width": 2 if len(kept) <= 400 else 1.2},
        fill="tozeroy" if key == "drift" and not scale.log else None, fillcolor="var(--wash)",
    )  # fmt: skip


def _rejected(figure: go.Figure, panel: int, key: str, rows: Sequence[Row], scale: Scale) -> None:
    color = "var(--orange)" if key == "drift" else "var(--purple)"
    for why in dict.fromkeys(str(row.get("why")) for row in rows if (row.get("why") == "drift") == (key == "drift")):
        group = [row for row in rows if str(row.get("why")) == why]
        heights = [math.inf if (value := number(row.get(key))) is None else value for row in group]
        kept = sorted(thinned(heights, 80), key=lambda i: heights[i] > scale.edge)  # the legend shows the first
        size = 9 if len(kept) <= 100 else 6
        figure.add_scatter(
            row=panel, col=1, mode="markers", x=[group[i]["attempt"] for i in kept], hoverinfo="text",
            y=[min(max(heights[i], scale.low), scale.edge) for i in kept], hovertext=[_attempt(group[i]) for i in kept],
            name=f"rejected: {_safe(why)} ({len(group):,})", legendgroup=why,
            marker={"symbol": ["x-thin" if heights[i] <= scale.edge else "triangle-up" for i in kept], "size": size,
                    "color": color, "opacity": 1, "line": {"color": color, "width": size / 5}},
        )  # fmt: skip


def _safe(text: str) -> str:
    return escape(text, quote=False)  # plotly reads a few tags in its texts, and knows no &quot;


def _attempt(row: Row) -> str:
    said = {key: _safe(shown(value, key)) for key, value in row.items()}
    said["verdict"] = "accepted" if row.get("accepted") else f"rejected: {said.get('why', '–')}"
    return ATTEMPT.format_map(defaultdict(lambda: "–", said))


def accuracy_figure(along: Row) -> go.Figure | None:
    """Accuracy of every task at the kept waypoints."""
    steps, series = along.get("step") or [], along.get("series") or {}
    seen = [value for values in series.values() for value in map(number, values) if value is not None]
    if not steps or not seen:
        return None
    figure = _style(go.Figure())
    for index, (task, values) in enumerate(series.items()):
        figure.add_scatter(
            x=steps, y=[*map(number, values)], name=_safe(str(task)), mode="lines+markers",
            line={"color": SERIES[(index + 2) % 6], "width": 2, "dash": ("solid", "dash", "dot")[index // 6 % 3]},
            marker={"size": 6}, hovertemplate="<b>%{y:.2%}</b> at step %{x:,}<extra>%{fullData.name}</extra>",
        )  # fmt: skip
    room = 0.06 * (max(seen) - min(seen)) or 0.05
    span = [max(min(seen) - room, -0.02), min(max(seen) + room, 1.02)]
    figure.update_yaxes(title_text="accuracy", range=span, tickformat=".0%" if room > 0.003 else ".1%")
    return figure.update_xaxes(title_text="accepted step", **_whole(steps))


def plane_figure(plane: Row) -> go.Figure | None:
    """Paths on the first two principal components of their waypoints, with equal units on both axes."""
    paths = {str(name): [(number(x), number(y)) for x, y in path] for name, path in (plane.get("paths") or {}).items()}
    paths = {name: path for name, path in paths.items() if path}
    if not paths:
        return None
    figure = _style(go.Figure())
    for name, path, color in reversed([*zip(paths, paths.values(), SERIES * len(paths))]):
        last = len(path) - 1
        figure.add_scatter(
            x=[x for x, _ in path], y=[y for _, y in path], name=_safe(name), mode="lines+markers",
            line={"color": color, "width": 2.2}, marker={"symbol": ["circle"] * last + ["diamond"], "opacity": 1,
                                                         "size": [5] * last + [13], "line": {"width": 0}},
            hovertemplate=f"waypoint %{{pointNumber}} of {last}, (%{{x:.3g}}, %{{y:.3g}})<extra>{_safe(name)}</extra>",
        )  # fmt: skip
    x, y = map(list, zip(*{path[0] for path in paths.values()}))
    figure.add_scatter(
        x=x, y=y, mode="markers+text", text="start", textposition="top center", hoverinfo="text", showlegend=False,
        marker={"size": 13, "color": "var(--surface)", "line": {"color": "var(--ink)", "width": 2}},
    )  # fmt: skip
    shares = [*(f" ({percent(share)} of variance)" for share in plane.get("explained") or []), "", ""]
    figure.update_xaxes(title_text=f"component 1{shares[0]}", showgrid=True).update_layout(legend_traceorder="reversed")
    return figure.update_yaxes(title_text=f"component 2{shares[1]}", scaleanchor="x")


def spectrum_figure(spectrum: Sequence[Any]) -> go.Figure | None:
    """The metric's eigenvalues in descending order, on a logarithmic axis; those that are not positive are left out."""
    pairs = [(rank, value) for rank, value in enumerate(map(number, spectrum), start=1) if value and value > 0]
    if not pairs:
        return None
    ranks, values = map(list, zip(*pairs))
    figure = _style(go.Figure()).add_scatter(
        x=ranks, y=values, mode="lines+markers", showlegend=False,
        line={"color": "var(--blue)", "width": 1.5}, marker={"size": 5},
        hovertemplate="<b>direction %{x:,}</b><br>eigenvalue %{y:.3g}<extra></extra>",
    )  # fmt: skip
    figure.update_xaxes(title_text="direction, by rank", **_whole(ranks))
    return figure.update_yaxes(title_text="eigenvalue (2 × drift / distance²)", type="log", tickformat="~g")
