"""What a command prints at its end."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from rich.console import Console
from rich.table import Table

from isopath.run import report


def print_table(metrics: Mapping[str, Any], console: Console, ended: str | None = None) -> None:
    """The final table on its side: a column per method, so that it fits a terminal; below it how the trace ended."""
    final = metrics.get("table") or {}
    rows, columns = final.get("rows") or [], final.get("columns") or []
    if not rows:
        return
    table = Table("", *[str(row[0]) for row in rows], caption=ended, caption_justify="left", caption_style="")
    for i, column in enumerate(columns[1:], start=1):
        table.add_row(column, *[report.shown(row[i], column) for row in rows])
    console.print(table)
