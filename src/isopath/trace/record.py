"""A trace in a folder: written as it goes, resumed where it stopped."""

from __future__ import annotations

import platform
import warnings
from collections.abc import Mapping
from dataclasses import replace
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from isopath.arguments import check_module
from isopath.geometry.reference import Drift
from isopath.network import Network
from isopath.storage import (
    FORMAT,
    DamagedFile,
    append_line,
    load_tensors,
    read_json,
    read_lines,
    rewrite_lines,
    save_tensors,
    write_json,
)
from isopath.trace.state import State
from isopath.trace.trajectory import Keeper, Trajectory, Waypoint

# fmt: off
SCALARS = (
    "accepted", "why", "step", "attempt", "objective_before", "objective", "step_length", "rate", "refused",
    "typical", "stride", "age", "correction", "free", "initial", "watched", "rejected", "length",
    "evaluations", "damping", "status", "reason",
)
# fmt: on


class Record:
    """The run folder of one trace.

    `run.json` says what ran; `history.jsonl` has a row per attempt; `waypoints/` the kept points under the model's own
    parameter names; `checkpoint.safetensors` everything the next attempt depends on, replaced whole. A process killed
    at any moment leaves a folder that resumes from its last checkpoint and ends bit for bit where it would have.

    Args:
        folder: where.
    """

    def __init__(self, folder: Path) -> None:
        self.folder = folder

    @classmethod
    def create(cls, folder: Path, about: Mapping[str, Any]) -> Record:
        """A new folder.

        Raises:
            FileExistsError: something is there already; runs are never overwritten.
        """
        used = folder.exists() and any(p.name != "config.yaml" for p in folder.iterdir())
        if used or (folder / "run.json").exists():
            raise FileExistsError(
                f"the run folder {folder} exists already and is never overwritten; resume it, or choose another name"
            )
        folder.mkdir(parents=True, exist_ok=True)
        write_json(folder / "run.json", {"format": FORMAT, **versions(), **about})
        return cls(folder)

    # --- writing ----------------------------------------------------------------------------------------------------

    def attempt(self, row: Mapping[str, Any]) -> None:
        """Appends a row to the history."""
        append_line(self.folder / "history.jsonl", row)

    def waypoint(self, waypoint: Waypoint, network: Network) -> Waypoint:
        """Writes a waypoint and gives it back as one that lives on disk."""
        assert waypoint.theta is not None
        file = self.folder / "waypoints" / f"{waypoint.step:06d}.safetensors"
        save_tensors(file, network.space.unflatten(waypoint.theta), waypoint.row())
        return replace(waypoint, theta=None, file=file)

    def checkpoint(self, state: State, keeper: Keeper, seconds: float) -> None:
        """Replaces the checkpoint, then drops the waypoint files that no checkpoint names any more."""
        tensors = {
            name: tensor
            for name in ("theta", "momentum", "second", "support")
            if (tensor := getattr(state, name)) is not None
        }
        scalars = {name: getattr(state, name) for name in SCALARS}
        scalars["parts"] = [state.parts.metric, state.parts.check]
        rows = [waypoint.row() for waypoint in keeper.waypoints]
        spent = {"seconds": seconds, "refused": keeper.refused, "whole": keeper.evaluations}
        about = {"state": scalars, "waypoints": rows, **spent}
        save_tensors(self.folder / "checkpoint.safetensors", tensors, about)
        write_json(self.folder / "waypoints.json", rows)
        named = {waypoint.file for waypoint in keeper.waypoints}
        for file in (self.folder / "waypoints").glob("*.safetensors"):
            if file not in named:
                file.unlink()

    def finish(self, trajectory: Trajectory) -> None:
        """Writes how it ended."""
        path = self.folder / "metrics.json"
        before = read_json(path) if path.exists() else {}
        write_json(path, {**before, **summary(trajectory)})

    # --- reading ----------------------------------------------------------------------------------------------------

    def resume(self, network: Network, keeper: Keeper) -> tuple[State, list[dict[str, Any]], float]:
        """State, history and seconds of the last whole checkpoint; later rows and files are dropped.

        Args:
            network: of the model that was traced.
            keeper: gets the waypoints and what was spent on them.

        Raises:
            FileNotFoundError: the folder holds no checkpoint and no waypoint.
        """
        try:
            tensors, about = load_tensors(self.folder / "checkpoint.safetensors")
            state = self._state(about["state"], tensors, network)
            keeper.waypoints = self._whole([self._on_disk(row) for row in about["waypoints"]], state, network)
            keeper.refused, keeper.evaluations = about.get("refused", 0), about.get("whole", 0.0)
            seconds = float(about["seconds"])
        except DamagedFile as error:
            state, keeper.waypoints = self._last_waypoint(network)
            seconds = 0.0
            warnings.warn(f"{error}; going on from the waypoint of step {state.step}, not bit for bit", stacklevel=2)
        rows, cut = read_lines(self.folder / "history.jsonl")
        if cut:
            warnings.warn(f"the last line of {self.folder / 'history.jsonl'} was cut off and is dropped", stacklevel=2)
        rows = [row for row in rows if row["attempt"] <= state.attempt]
        if state.accepted and len(rows) == state.attempt - 1:  # the one that was cut off: the state knows it
            rows.append({**replace(state, tried=state.parts).row(), "seconds": round(seconds, 3)})
        rewrite_lines(self.folder / "history.jsonl", rows)
        return state, rows, seconds

    def _whole(self, waypoints: list[Waypoint], state: State, network: Network) -> list[Waypoint]:
        """The waypoints whose file is whole; those that the state knows are written anew, the others are dropped."""
        whole, known = [], {0: network.start, state.step: state.theta}
        for waypoint in waypoints:
            try:
                waypoint.load(network)
            except (DamagedFile, FileNotFoundError) as error:
                theta = known.get(waypoint.step)
                warnings.warn(f"{error}; it is {'dropped' if theta is None else 'written anew'}", stacklevel=3)
                if theta is None:
                    continue
                waypoint = self.waypoint(replace(waypoint, theta=theta), network)
            whole.append(waypoint)
        return whole

    def _state(self, scalars: dict[str, Any], tensors: Mapping[str, Tensor], network: Network) -> State:
        parts = Drift(*scalars.pop("parts"))
        watched = tuple((int(i), total, int(count)) for i, total, count in scalars.pop("watched"))
        values: dict[str, Any] = {name: float("nan") if value is None else value for name, value in scalars.items()}
        moved: dict[str, Any] = {name: tensor.to(network.space.device) for name, tensor in tensors.items()}
        return State(network=network, parts=parts, watched=watched, **moved, **values)

    def _last_waypoint(self, network: Network) -> tuple[State, list[Waypoint]]:
        """The last waypoint that is whole, as a state."""
        whole = []
        for file in sorted((self.folder / "waypoints").glob("*.safetensors")):
            try:
                tensors, about = load_tensors(file)
            except DamagedFile:
                continue
            whole.append((self._on_disk(about), tensors))
        if not whole:
            raise FileNotFoundError(f"{self.folder} holds no whole checkpoint and no whole waypoint; start again")
        last, tensors = whole[-1]
        rows, _ = read_lines(self.folder / "history.jsonl")
        row: dict[str, Any] = next((r for r in reversed(rows) if r["accepted"] and r["step"] == last.step), {})
        theta = network.space.flatten(tensors)
        state = State(
            theta,
            step=last.step,
            attempt=row.get("attempt", 0),
            parts=Drift(last.drift, last.drift),
            length=last.length,
            evaluations=row.get("evaluations", 0.0),
            network=network,
        )
        return state, [waypoint for waypoint, _ in whole]

    def _on_disk(self, row: Mapping[str, Any]) -> Waypoint:
        file = self.folder / "waypoints" / f"{row['step']:06d}.safetensors"
        objective = float("nan") if row["objective"] is None else row["objective"]
        return Waypoint(row["step"], row["length"], row["drift"], objective, file=file)

    @classmethod
    def save(cls, trajectory: Trajectory, folder: Path) -> Path:
        """Writes a finished trajectory as a run folder."""
        network = trajectory.network
        record = cls.create(folder, {"verb": "trace", "tolerance": trajectory.tolerance, **about(network)})
        for row in trajectory.history:
            record.attempt(row)
        for waypoint in trajectory.waypoints:
            record.waypoint(replace(waypoint, theta=waypoint.load(network)), network)
        write_json(folder / "waypoints.json", [waypoint.row() for waypoint in trajectory.waypoints])
        record.finish(trajectory)
        return folder

    @classmethod
    def load(cls, folder: Path, model: nn.Module) -> Trajectory:
        """Reads one back; its waypoints stay on disk.

        Raises:
            FileNotFoundError: the folder is no run folder, or the run has not ended.
            ValueError: the run is that of another module.
        """
        for name in ("run.json", "metrics.json", "waypoints.json"):
            if not (folder / name).exists():
                raise FileNotFoundError(f"{folder} has no {name}: not a run folder, or a run that has not ended")
        run, metrics = read_json(folder / "run.json"), read_json(folder / "metrics.json")
        rows, _ = read_lines(folder / "history.jsonl")
        waypoints = [cls(folder)._on_disk(row) for row in read_json(folder / "waypoints.json")]
        names = set(run["parameters"])
        _check_module(model, run.get("shapes"), folder)
        return Trajectory(
            Network(model, lambda name: name in names),
            waypoints,
            rows,
            metrics["status"],
            metrics["reason"],
            metrics["drift_kind"],
            run["tolerance"],
            metrics["evaluations"],
            metrics["seconds"],
        )


def summary(trajectory: Trajectory) -> dict[str, Any]:
    """How a trace ended, as `metrics.json` has it."""
    return {
        "status": trajectory.status,
        "reason": trajectory.reason,
        "steps": trajectory.steps[-1],
        "attempts": len(trajectory.history),
        "drift": trajectory.drift,
        "drift_kind": trajectory.drift_kind,
        "evaluations": trajectory.evaluations,
        "seconds": trajectory.seconds,
    }


def _check_module(model: Any, written: Mapping[str, list[int]] | None, folder: Path) -> None:
    check_module(model, "what a run is read into", "give the architecture that was traced")
    if written is None:  # a folder of before shapes were written
        return
    here, there = _shapes(model), {name: tuple(shape) for name, shape in written.items()}
    names = [name for name in {**here, **there} if here.get(name) != there.get(name)]
    if names:
        pairs = [(name, there.get(name, "missing"), here.get(name, "missing")) for name in names[:3]]
        said = "; ".join(f"{name!r}: {run} in the run, {own} here" for name, run, own in pairs)
        raise ValueError(
            f"{folder} is the run of another module: {len(names)} parameters differ: {said}; give the architecture "
            "that was traced"
        )


def _shapes(model: nn.Module) -> dict[str, tuple[int, ...]]:
    return {name: tuple(parameter.shape) for name, parameter in model.named_parameters()}


def about(network: Network) -> dict[str, Any]:
    """What of a network a run folder states."""
    space = network.space
    return {
        "dimension": space.dimension,
        "parameters": list(space.names),
        "shapes": {name: list(shape) for name, shape in _shapes(network.model(network.start)).items()},
        "dtype": str(space.dtype),
        "device": str(space.device),
        "threads": torch.get_num_threads(),
    }


def versions() -> dict[str, Any]:
    """Versions and the time of a run."""
    from isopath.version import __version__

    return {
        "isopath": __version__,
        "torch": str(torch.__version__),
        "python": platform.python_version(),
        "started": datetime.now(UTC).isoformat(timespec="seconds"),
    }
