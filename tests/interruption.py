"""A recorded run that dies in the middle."""

from __future__ import annotations

import itertools
import time
from collections.abc import Callable
from typing import Any

import pytest

from isopath.trace.record import Record


def killed(run: Callable[[], Any], monkeypatch: pytest.MonkeyPatch, after: int, checkpoints: bool = True) -> None:
    """Dies once `after` attempts are recorded, with a checkpoint at every chance or only at the start."""
    clock, attempt, count = itertools.count(step=10.0 if checkpoints else 0.0), Record.attempt, itertools.count(1)

    def dying(self: Record, row: dict[str, Any]) -> None:
        attempt(self, row)
        if next(count) >= after:
            raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(Record, "attempt", dying)
        patch.setattr(time, "perf_counter", lambda: next(clock))
        with pytest.raises(KeyboardInterrupt):
            run()
