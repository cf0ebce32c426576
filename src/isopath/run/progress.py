"""A progress bar for a trace, for those who ask."""

from __future__ import annotations

from collections.abc import Iterator

from rich.progress import BarColumn, Progress, TextColumn, TimeElapsedColumn

from isopath.trace.state import State
from isopath.trace.tracer import Tracer


def shown(states: Iterator[State], tracer: Tracer, visible: bool) -> Iterator[State]:
    """The same states, with a bar on the terminal if `visible`."""
    if not visible:
        yield from states
        return
    columns = (
        TextColumn("tracing"),
        BarColumn(),
        TextColumn("{task.fields[text]}"),
        TimeElapsedColumn(),
    )
    with Progress(*columns, transient=True) as bar:
        task = bar.add_task("trace", total=1.0, text="")
        for state in states:
            share = state.step / tracer.max_steps
            if tracer.max_evaluations:
                share = max(share, state.evaluations / tracer.max_evaluations)
            drift = f"drift {state.drift:.4f} of {tracer.tolerance:g}"
            text = f"step {state.step}  objective {state.objective:.4f}  {drift}"
            bar.update(task, completed=min(share, 1.0), text=text)
            yield state
