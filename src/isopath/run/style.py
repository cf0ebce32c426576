"""What the figures of a report share.

Their colours are the page's own custom properties, which its script looks up, so that one style sheet themes the words
and the plots.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from html import escape
from typing import Any

import plotly.graph_objects as go

Row = Mapping[str, Any]
SERIES = ["var(--blue)", "var(--orange)", "var(--green)", "var(--purple)", "var(--amber)", "var(--slate)"]


def styled(figure: go.Figure) -> go.Figure:
    """The figure in the page's type and colours."""
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


def whole(values: Sequence[Any]) -> dict[str, Any]:
    """An axis of whole numbers."""
    return {"tickformat": ",d", "dtick": 1 if values[-1] - values[0] < 8 else None}


def safe(text: str) -> str:
    """A text from the run, for a figure."""
    return escape(text, quote=False)  # plotly reads a few tags in its texts, and knows no &quot;


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
