"""The folder of a run: what it says of itself, and who may write in it."""

from __future__ import annotations

import contextlib
import warnings
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, TextIO

import torch

from isopath.run.names import ConfigError
from isopath.storage import read_json, write_text
from isopath.version import __version__


def fresh(out: Path) -> Path:
    """The absolute path of a folder to be made.

    Raises:
        FileExistsError: there is something at `out`.
    """
    out = out.absolute()
    if out.is_file() or (out.is_dir() and any(out.iterdir())):
        raise FileExistsError(
            f"the run folder {out} exists already and is never overwritten; "
            f"go on with it (isopath resume {out}) or choose another --out"
        )
    return out


def described(run: Path) -> dict[str, Any]:
    """What run.json says.

    Raises:
        FileNotFoundError: there is none; the message names runs beside it.
    """
    if not (run / "run.json").is_file():
        there = sorted(p.parent.name for p in run.absolute().parent.glob("*/run.json"))
        beside = f"; beside it: {', '.join(there)}" if there else ""
        raise FileNotFoundError(f"{run} is not a run folder: it has no run.json{beside}")
    return read_json(run / "run.json")


def verb_of(run: Path) -> str:
    """The verb that made a run folder; `"trace"` where it had not come to say so."""
    return described(run).get("verb", "trace") if (run / "run.json").is_file() else "trace"


def run_of(run: Path, *verbs: str) -> Path:
    """The folder of a run that a config describes, made by one of the verbs.

    Raises:
        FileNotFoundError: it is no run folder, or none of the command line.
        ConfigError: another verb made it.
    """
    run = run.absolute()
    if not (run / "config.yaml").is_file():
        described(run)
        raise FileNotFoundError(f"{run} has no config.yaml: it was started from Python; go on with it there")
    verb = verb_of(run)
    if verb not in verbs:
        made = " or ".join(f"isopath {v}" for v in verbs)
        raise ConfigError(f"{run} was made by isopath {verb}, not by {made}; see isopath show {run}")
    return run


@contextlib.contextmanager
def locked(run: Path) -> Iterator[None]:
    """Holds the run: two processes that write one history would spoil it. The lock goes when its process does."""
    with (run / "config.yaml").open() as file:
        if not _lock(file):
            raise BlockingIOError(f"{run} is being written by another process; wait for its end, or stop it first")
        yield


@contextlib.contextmanager
def opened(out: Path, config: str) -> Iterator[None]:
    """Makes a run folder and holds it; one in which nothing has begun when an error comes is removed again."""
    write_text(out / "config.yaml", config)
    with locked(out):
        try:
            yield
        except Exception:
            _withdrawn(out)
            raise


def _lock(file: TextIO) -> bool:
    try:
        import fcntl
    except ImportError:  # not on every system: there the user must take care
        return True
    try:
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    return True


def standing(run: Path) -> str:
    """How a run without an end stands."""
    if not (run / "config.yaml").is_file():
        return "not ended"
    with (run / "config.yaml").open() as file:
        return "stopped before its end" if _lock(file) else "running"


def _withdrawn(run: Path) -> None:
    """Removes a folder in which nothing has begun, so that the corrected command can have its name."""
    if [p.name for p in run.iterdir()] == ["config.yaml"]:
        (run / "config.yaml").unlink()
        run.rmdir()


def swept(run: Path) -> None:
    """Removes the temporary files that a killed process has left."""
    for file in [*run.glob(".*"), *run.glob("waypoints/.*")]:
        if file.is_file():
            file.unlink()


def emptied(run: Path) -> None:
    """Removes what a run without a checkpoint has left beside its config."""
    for name in ("run.json", "history.jsonl", "waypoints.json", "metrics.json"):
        (run / name).unlink(missing_ok=True)
    for file in run.glob("waypoints/*.safetensors"):
        file.unlink()
    with contextlib.suppress(FileNotFoundError):
        (run / "waypoints").rmdir()


def same_ground(about: Mapping[str, Any]) -> None:
    """Takes the run's number of threads, on which the last bits depend, and warns if its versions were others."""
    torch.set_num_threads(int(about.get("threads", torch.get_num_threads())))
    for name, now in (("isopath", __version__), ("torch", str(torch.__version__))):
        if about.get(name) not in (None, now):
            said = f"the run was started with {name} {about[name]}; {now} may end a few bits away"
            warnings.warn(said, stacklevel=3)
