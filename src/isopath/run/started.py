"""A run from a config file, and its resumption, as `connect`, `pack` and `generate` have them."""

from __future__ import annotations

import warnings
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import TypeVar

from isopath.run.config import Tree, dumped, read, resolve
from isopath.run.folder import described, fresh, locked, opened, run_of, same_ground, swept

Job = TypeVar("Job")


def started(
    verb: str, config: Path, out: Path, overrides: Sequence[str], build: Callable[[Mapping[str, Tree]], Job],
    work: Callable[[Job, Path], Path],
) -> Path:  # fmt: skip
    """Runs a config in a new run folder and gives the path of its report.

    Args:
        verb: whose config it is.
        config: the file.
        out: the folder to make.
        overrides: of keys in the config.
        build: makes the job of a resolved config.
        work: does it in the folder, from where the folder stands.

    Raises:
        FileExistsError: there is something at `out`.
        ConfigError: the config is wrong.
    """
    out = fresh(out)
    tree = resolve(read(config, overrides), verb)
    job = build(tree)
    with opened(out, dumped(tree)):
        return work(job, out)


def resumed(
    verb: str, run: Path, build: Callable[[Mapping[str, Tree]], Job], work: Callable[[Job, Path], Path]
) -> Path:
    """Goes on with a run where it stopped, and gives the path of its report.

    Args:
        verb: that made the run.
        run: its folder.
        build: makes the job of a resolved config.
        work: does it in the folder, from where the folder stands.

    Raises:
        FileNotFoundError: `run` is no run folder of the command line.
        BlockingIOError: another process is writing it.
    """
    run = run_of(run, verb)
    with locked(run):
        swept(run)
        if (run / "run.json").exists():
            same_ground(described(run))
        if (run / "metrics.json").exists():
            warnings.warn(f"{run} has ended already; its figures and report are written anew", stacklevel=3)
        return work(build(resolve(read(run / "config.yaml"), verb)), run)
