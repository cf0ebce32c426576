"""The figures of a packing: who owns the weights of each layer, and how good each task is."""

from __future__ import annotations

import plotly.graph_objects as go

from isopath.run.style import SERIES, Row, safe, styled
from isopath.run.words import number


def packed_figures(metrics: Row) -> dict[str, go.Figure | None]:
    """All of them, by the place that they have on the page."""
    return {"owners": owners_figure(metrics), "tasks": tasks_figure(metrics)}


def owners_figure(metrics: Row) -> go.Figure | None:
    """A bar for each layer, cut into the tasks' shares; what is free is pale."""
    layers = metrics.get("layers") or {}
    if not layers:
        return None
    figure, names = styled(go.Figure()), list(layers)[::-1]  # plotly stacks from below
    bars = [(task, SERIES[k % len(SERIES)], "/" if k >= len(SERIES) else "", [layers[n].get(task, 0) for n in names])
            for k, task in enumerate(metrics["tasks"])]  # fmt: skip
    bars.append(("free", "var(--grid)", "", [1 - sum(layers[name].values()) for name in names]))
    for task, colour, shape, shares in bars:
        figure.add_bar(
            x=[*map(number, shares)], y=[safe(name) for name in names], orientation="h", name=safe(task), width=0.6,
            marker={"color": colour, "pattern": {"shape": shape}, "line": {"width": 0}},
            hovertemplate=f"%{{y}}<br><b>%{{x:.1%}}</b><extra>{safe(task)}</extra>",
        )  # fmt: skip
    figure.update_layout(barmode="stack", legend={"traceorder": "normal"})
    figure.update_yaxes(showgrid=False)
    return figure.update_xaxes(tickformat=".0%", dtick=0.2, range=[0, 1.005], title_text="share of the layer's weights")


def tasks_figure(metrics: Row) -> go.Figure | None:
    """A point for each task that was scored."""
    scores = {name: number(value) for name, value in (metrics.get("accuracy") or {}).items()}
    known = {name: value for name, value in scores.items() if value is not None}
    if len(known) < 2:
        return None
    order = {name: k for k, name in enumerate(metrics["tasks"])}
    colours = [SERIES[order[name] % len(SERIES)] for name in known]
    figure = styled(go.Figure())
    figure.add_bar(
        x=[safe(name) for name in known], y=list(known.values()), width=0.5, marker={"color": colours},
        text=[f"{100 * value:.1f} %" for value in known.values()], textposition="outside", cliponaxis=False,
        hovertemplate="%{x}<br><b>%{y:.2%}</b><extra></extra>", showlegend=False,
    )  # fmt: skip
    return figure.update_yaxes(tickformat=".0%", range=[0, 1.05], title_text="accuracy")
