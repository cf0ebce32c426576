"""The figures of a trace: each takes its part of the run and returns None where there is nothing to draw."""

from __future__ import annotations

import math
from collections import defaultdict
from collections.abc import Sequence
from typing import Any

import plotly.graph_objects as go
from plotly.subplots import make_subplots

from isopath.run.style import SERIES, Row, Scale, safe, styled, thinned, whole
from isopath.run.words import number, percent, shown

ATTEMPT = (
    "<b>attempt {attempt}</b> · {verdict}<br>accepted steps {step} · length {length}<br>objective {objective_before} → "
    "{objective}<br>drift {drift}<br>  metric rows {drift_metric} · check rows {drift_check}<br>step length "
    "{step_length} · damping {damping}<br>{evaluations} gradient evaluations · {seconds} s"
)


def history_figure(history: Sequence[Row], tolerance: float | None) -> go.Figure | None:
    """Objective (above) and drift (below) of every attempt, on one attempt axis, with the tolerance."""
    if not history:
        return None
    figure = styled(make_subplots(rows=2, cols=1, shared_xaxes=True, vertical_spacing=0.06))
    accepted = [row for row in history if row.get("accepted")]
    for panel, key, title in ((1, "objective", "objective"), (2, "drift", "drift (mean divergence)")):
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
    figure.update_xaxes(range=[ends[0] - room, ends[1] + room], **whole(ends))
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
            name=f"rejected: {safe(why)} ({len(group):,})", legendgroup=why,
            marker={"symbol": ["x-thin" if heights[i] <= scale.edge else "triangle-up" for i in kept], "size": size,
                    "color": color, "opacity": 1, "line": {"color": color, "width": size / 5}},
        )  # fmt: skip


def _attempt(row: Row) -> str:
    said = {key: safe(shown(value, key)) for key, value in row.items()}
    said["verdict"] = "accepted" if row.get("accepted") else f"rejected: {said.get('why', '–')}"
    return ATTEMPT.format_map(defaultdict(lambda: "–", said))


def accuracy_figure(along: Row) -> go.Figure | None:
    """Accuracy of every task at the kept waypoints."""
    steps, series = along.get("step") or [], along.get("series") or {}
    seen = [value for values in series.values() for value in map(number, values) if value is not None]
    if not steps or not seen:
        return None
    figure = styled(go.Figure())
    for index, (task, values) in enumerate(series.items()):
        figure.add_scatter(
            x=steps, y=[*map(number, values)], name=safe(str(task)), mode="lines+markers",
            line={"color": SERIES[(index + 2) % 6], "width": 2, "dash": ("solid", "dash", "dot")[index // 6 % 3]},
            marker={"size": 6}, hovertemplate="<b>%{y:.2%}</b> at step %{x:,}<extra>%{fullData.name}</extra>",
        )  # fmt: skip
    room = 0.06 * (max(seen) - min(seen)) or 0.05
    span = [max(min(seen) - room, -0.02), min(max(seen) + room, 1.02)]
    figure.update_yaxes(title_text="accuracy", range=span, tickformat=".0%" if room > 0.003 else ".1%")
    return figure.update_xaxes(title_text="accepted step", **whole(steps))


def plane_figure(plane: Row) -> go.Figure | None:
    """Paths on the first two principal components of their waypoints, with equal units on both axes."""
    paths = {str(name): [(number(x), number(y)) for x, y in path] for name, path in (plane.get("paths") or {}).items()}
    paths = {name: path for name, path in paths.items() if path}
    if not paths:
        return None
    figure = styled(go.Figure())
    for name, path, color in reversed([*zip(paths, paths.values(), SERIES * len(paths))]):
        last = len(path) - 1
        figure.add_scatter(
            x=[x for x, _ in path], y=[y for _, y in path], name=safe(name), mode="lines+markers",
            line={"color": color, "width": 2.2}, marker={"symbol": ["circle"] * last + ["diamond"], "opacity": 1,
                                                         "size": [5] * last + [13], "line": {"width": 0}},
            hovertemplate=f"waypoint %{{pointNumber}} of {last}, (%{{x:.3g}}, %{{y:.3g}})<extra>{safe(name)}</extra>",
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
    figure = styled(go.Figure()).add_scatter(
        x=ranks, y=values, mode="lines+markers", showlegend=False,
        line={"color": "var(--blue)", "width": 1.5}, marker={"size": 5},
        hovertemplate="<b>direction %{x:,}</b><br>eigenvalue %{y:.3g}<extra></extra>",
    )  # fmt: skip
    figure.update_xaxes(title_text="direction, by rank", **whole(ranks))
    return figure.update_yaxes(title_text="eigenvalue (2 × drift / distance²)", type="log", tickformat="~g")
