"""The figures of a connection: each takes its part of the run and returns None where there is nothing to draw."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence

import plotly.graph_objects as go
from plotly.subplots import make_subplots

from isopath.run.style import Row, Scale, safe, styled, thinned, whole
from isopath.run.words import number

COLOURS = {"straight line": "var(--slate)", "aligned straight line": "var(--orange)",
           "rescaled straight line": "var(--green)", "isopath curve": "var(--blue)"}  # fmt: skip


def curve_figures(metrics: Row, history: Sequence[Row]) -> dict[str, go.Figure | None]:
    """All of them, by the place that they have on the page."""
    return {
        "profile": profile_figure(metrics.get("profiles") or {}),
        "landscape": landscape_figure(metrics.get("landscape") or {}),
        "training": training_figure(history),
    }


def profile_figure(profiles: Mapping[str, Row]) -> go.Figure | None:
    """Accuracy (above) and loss (below) along the straight lines and the curve."""
    if not profiles:
        return None
    scored = all(value is not None for profile in profiles.values() for value in profile["accuracy"])
    panels = [("accuracy", "accuracy"), ("loss", "loss")] if scored else [("loss", "loss")]
    figure = styled(make_subplots(rows=len(panels), cols=1, shared_xaxes=True, vertical_spacing=0.06))
    for panel, (key, title) in enumerate(panels, start=1):
        for name, profile in profiles.items():
            figure.add_scatter(
                row=panel, col=1, x=profile["t"], y=[*map(number, profile[key])], name=safe(name), legendgroup=name,
                showlegend=panel == 1, mode="lines+markers", marker={"size": 5},
                line={"color": COLOURS.get(name, "var(--green)"), "width": 3 if name == "isopath curve" else 2},
                hovertemplate=f"t = %{{x:.2f}}<br><b>%{{y:{'.2%' if key == 'accuracy' else '.4g'}}}</b>"
                              f"<extra>{safe(name)}</extra>",
            )  # fmt: skip
        form = {"tickformat": ".0%"} if key == "accuracy" else {}
        figure.update_yaxes(row=panel, title_text=title, **form)
    return figure.update_xaxes(row=len(panels), title_text="t, from the first network (0) to the second (1)")


def landscape_figure(plane: Row) -> go.Figure | None:
    """Contours of the loss over the plane of the curve, with the curve, the straight line and both ends."""
    if not plane:
        return None
    grid = [[number(value) for value in row] for row in plane["loss"]]
    finite = sorted(value for row in grid for value in row if value is not None and value > 0)
    if not finite:
        return None
    # on a logarithmic scale, up to where three quarters of the plane lie: the valley is what is looked at
    low, top = math.log10(finite[0]), math.log10(finite[3 * (len(finite) - 1) // 4])
    top = max(top, low + 0.1)
    heights = [[None if value is None else math.log10(max(value, finite[0])) for value in row] for row in grid]
    ticks = [low + (top - low) * i / 4 for i in range(5)]
    figure = styled(go.Figure())
    figure.add_contour(
        x=plane["x"], y=plane["y"], z=heights, zmin=low, zmax=top, customdata=grid,
        contours={"start": low, "end": top, "size": (top - low) / 14}, line={"width": 0.6, "color": "var(--rule)"},
        colorscale=[[0, "var(--blue)"], [1, "var(--surface)"]],
        colorbar={"title": {"text": "loss"}, "thickness": 14, "outlinewidth": 0, "tickvals": ticks,
                  "ticktext": [f"{10**tick:.2g}" for tick in ticks]},
        hovertemplate="loss %{customdata:.4g}<extra></extra>",
    )  # fmt: skip
    ends = plane["ends"]
    figure.add_scatter(
        x=[e[0] for e in ends], y=[e[1] for e in ends], mode="lines", name="straight line", hoverinfo="skip",
        line={"color": "var(--slate)", "width": 2, "dash": "dash"},
    )  # fmt: skip
    figure.add_scatter(
        x=[p[0] for p in plane["curve"]], y=[p[1] for p in plane["curve"]], mode="lines", name="curve",
        hoverinfo="skip", line={"color": "var(--orange)", "width": 3},
    )  # fmt: skip
    figure.add_scatter(
        x=[e[0] for e in ends], y=[e[1] for e in ends], mode="markers+text", text=["first", "second"],
        textposition="bottom center", showlegend=False, hoverinfo="text",
        marker={"size": 13, "color": "var(--surface)", "line": {"color": "var(--ink)", "width": 2}},
        textfont={"color": "var(--ink)"},
    )  # fmt: skip
    figure.update_xaxes(title_text="along the straight line", showgrid=False, constrain="domain")
    return figure.update_yaxes(title_text="across it", scaleanchor="x", showgrid=False, constrain="domain")


def training_figure(history: Sequence[Row]) -> go.Figure | None:
    """The objective of every step."""
    values = [number(row.get("objective")) for row in history]
    seen = [value for value in values if value is not None]
    if not seen:
        return None
    kept = thinned(values)
    figure = styled(go.Figure()).add_scatter(
        x=[history[i].get("step", i) for i in kept], y=[values[i] for i in kept], mode="markers", showlegend=False,
        marker={"size": 4.5, "color": "var(--blue)", "opacity": 0.6},
        hovertemplate="step %{x:,}<br><b>%{y:.4g}</b><extra></extra>",
    )  # fmt: skip
    figure.update_xaxes(title_text="step", **whole([0, len(history)]))
    return figure.update_yaxes(title_text="objective on one batch", **Scale.fit(seen).axis())
