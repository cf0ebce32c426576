"""The figures of a generator: each takes its part of the run and returns None where there is nothing to draw."""

from __future__ import annotations

from collections.abc import Sequence

import plotly.graph_objects as go
from plotly.subplots import make_subplots

from isopath.run.style import Row, safe, styled, thinned, whole
from isopath.run.words import number

GAP = 1  # cells between two pictures


def generated_figures(metrics: Row, history: Sequence[Row]) -> dict[str, go.Figure | None]:
    """All of them, by the place that they have on the page."""
    seen = metrics.get("manifold") or {}
    return {
        "together": together_figure(seen, number(metrics.get("given"))),
        "filters": filters_figure(metrics.get("filters") or []),
        "walks": walks_figure(seen),
        "axes": axes_figure(seen),
        "generation": generation_figure(history),
    }


def together_figure(seen: Row, given: float | None) -> go.Figure | None:
    """Accuracy of the mean of the first k samples, over the samples themselves."""
    curve = {int(k): number(value) for k, value in (seen.get("ensemble") or {}).items()}
    if len(curve) < 2:
        return None
    figure, single = styled(go.Figure()), [number(value) for value in seen["accuracy"]]
    # a little to and fro, so that equal accuracies can be told apart
    places = [0.88 + 0.24 * (i * 0.618 % 1) for i in range(len(single))]
    figure.add_scatter(
        x=places, y=single, mode="markers", name="samples", hovertemplate="<b>%{y:.2%}</b><extra>a sample</extra>",
        marker={"size": 7, "color": "var(--slate)", "opacity": 0.45},
    )  # fmt: skip
    figure.add_scatter(
        x=list(curve), y=list(curve.values()), mode="lines+markers", name="their mean probabilities",
        line={"color": "var(--blue)", "width": 3}, marker={"size": 8},
        hovertemplate="%{x} together<br><b>%{y:.2%}</b><extra></extra>",
    )  # fmt: skip
    if given is not None:
        figure.add_scatter(
            x=[min(places), max(curve)], y=[given, given], mode="lines", name="the network as given", hoverinfo="skip",
            line={"color": "var(--orange)", "width": 2, "dash": "dash"},
        )  # fmt: skip
    figure.update_xaxes(type="log", tickvals=list(curve), title_text="networks together")
    return figure.update_yaxes(tickformat=".1%", title_text="accuracy")


def filters_figure(samples: Sequence[Sequence[Sequence[Sequence[float]]]]) -> go.Figure | None:
    """First-layer units as pictures: a row for each sampled network, a column for each unit."""
    if not samples or not samples[0]:
        return None
    high, wide = len(samples[0][0]), len(samples[0][0][0])
    grid: list[list[float | None]] = []
    for sample in samples:
        for row in range(high):
            line: list[float | None] = []
            for unit in sample:
                line += [*unit[row], *[None] * GAP]
            grid.append(line[:-GAP])
        grid += [[None] * len(grid[-1])] * GAP
    figure = styled(go.Figure()).add_heatmap(
        z=grid[:-GAP], zmin=-1, zmax=1, showscale=False, hoverinfo="skip",
        colorscale=[[0, "var(--blue)"], [0.5, "var(--surface)"], [1, "var(--orange)"]],
    )  # fmt: skip
    middles = [k * (high + GAP) + (high - 1) / 2 for k in range(len(samples))]
    names = [f"network {k + 1}" for k in range(len(samples))]
    figure.update_yaxes(
        autorange="reversed", tickvals=middles, ticktext=names, showgrid=False, scaleanchor="x", constrain="domain"
    )
    places = [k * (wide + GAP) + (wide - 1) / 2 for k in range(len(samples[0]))]
    return figure.update_xaxes(
        tickvals=places, ticktext=[str(k + 1) for k in range(len(places))], title_text="unit", showline=False,
        constrain="domain",
    )  # fmt: skip


def walks_figure(seen: Row) -> go.Figure | None:
    """Accuracy of the networks on the way from one latent to another."""
    walks = seen.get("walks") or []
    if not walks:
        return None
    figure = styled(go.Figure())
    for k, walk in enumerate(walks):
        at = [i / (len(walk) - 1) for i in range(len(walk))]
        figure.add_scatter(
            x=at, y=[*map(number, walk)], mode="lines+markers", name="between two latents", showlegend=k == 0,
            line={"color": "var(--blue)", "width": 2}, opacity=0.75, marker={"size": 6},
            hovertemplate=f"pair {k + 1}, t = %{{x:.2f}}<br><b>%{{y:.2%}}</b><extra></extra>",
        )  # fmt: skip
    figure.update_xaxes(title_text="t, from one latent (0) to the other (1)")
    return figure.update_yaxes(tickformat=".1%", title_text="accuracy")


def axes_figure(seen: Row) -> go.Figure | None:
    """Variance along the principal axes of the samples: of weights in the gauge, and of predicted probabilities."""
    parts = [("weights", "weights, symmetries taken out", "var(--blue)"),
             ("functions", "predictions", "var(--orange)")]  # fmt: skip
    figure = styled(go.Figure())
    for key, name, colour in parts:
        shares = [number(value) for value in seen.get(key) or []]
        if len(shares) < 2:
            return None
        figure.add_scatter(
            x=list(range(1, len(shares) + 1)), y=shares, mode="lines+markers", name=safe(name), marker={"size": 6},
            line={"color": colour, "width": 2},
            hovertemplate=f"axis %{{x}}<br><b>%{{y:.2%}}</b> of the variance<extra>{safe(name)}</extra>",
        )  # fmt: skip
    figure.update_xaxes(title_text="principal axis of the samples", **whole([1, len(seen["weights"])]))
    return figure.update_yaxes(tickformat=".0%", rangemode="tozero", title_text="share of the variance")


def generation_figure(history: Sequence[Row]) -> go.Figure | None:
    """Loss (above) and the distance of neighbours (below) of every step."""
    if not history:
        return None
    figure = styled(make_subplots(rows=2, cols=1, shared_xaxes=True, vertical_spacing=0.06))
    for row, (key, title, colour) in enumerate(
        (("loss", "loss of the samples", "var(--blue)"), ("spacing", "log distance to the nearest", "var(--green)")), 1
    ):
        values = [number(entry.get(key)) for entry in history]
        kept = thinned(values)
        figure.add_scatter(
            row=row, col=1, x=[history[i].get("step", i) for i in kept], y=[values[i] for i in kept], mode="markers",
            showlegend=False, marker={"size": 4.5, "color": colour, "opacity": 0.6},
            hovertemplate="step %{x:,}<br><b>%{y:.4g}</b><extra></extra>",
        )  # fmt: skip
        figure.update_yaxes(row=row, title_text=title, **({"type": "log", "tickformat": "~g"} if row == 1 else {}))
    return figure.update_xaxes(row=2, title_text="step", **whole([0, len(history)]))
