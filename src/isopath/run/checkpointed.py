"""A training in a run folder: its history as it goes, and a checkpoint to go on from."""

from __future__ import annotations

import time
from collections.abc import Iterable, Iterator, Mapping
from itertools import islice
from pathlib import Path
from typing import Protocol

from rich.console import Console
from rich.progress import track
from torch import Tensor

from isopath.storage import append_line, load_tensors, read_lines, rewrite_lines, save_tensors

EVERY = 2.0  # seconds between checkpoints


class Resumable(Iterable[dict[str, float]], Protocol):
    """A training that gives a row per step and goes on from where it stands."""

    step: int

    def state(self) -> dict[str, Tensor]:
        """What another process needs to go on."""

    def restore(self, state: Mapping[str, Tensor]) -> None:
        """Goes back to where `state` was taken."""


def trained(training: Resumable, steps: int, run: Path, console: Console, what: str) -> list[dict[str, float]]:
    """Trains from the run's checkpoint on, if there is one, and gives its whole history.

    Args:
        training: as it starts.
        steps: that it takes at most.
        run: the folder.
        console: where progress is shown, if it is a terminal.
        what: is trained, for the progress bar.
    """
    checkpoint, history = run / "checkpoint.safetensors", run / "history.jsonl"
    if checkpoint.exists():
        training.restore(load_tensors(checkpoint)[0])
    rows, _ = read_lines(history)
    rewrite_lines(history, rows[: training.step])
    saved = time.perf_counter()
    for row in _shown(training, steps - training.step, console, what):
        append_line(history, row)
        if time.perf_counter() - saved > EVERY:
            save_tensors(checkpoint, training.state())
            saved = time.perf_counter()
    save_tensors(checkpoint, training.state())
    return read_lines(history)[0]


def _shown(training: Resumable, left: int, console: Console, what: str) -> Iterator[dict[str, float]]:
    if not console.is_terminal:
        yield from training
    else:
        yield from track(islice(training, left), f"training the {what}", total=left, console=console, transient=True)
