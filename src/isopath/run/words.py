"""Numbers as words, as the report and the terminal show them."""

from __future__ import annotations

import json
import math
from typing import Any


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
    if any(word in column for word in ("accuracy", "agreement", "sparsity", "share")):
        return percent(value)
    if "seconds" in column:
        return f"{value:,.1f}"
    return f"{value:,.0f}" if abs(value) >= 1000 or isinstance(value, int) else f"{value:.3g}"
