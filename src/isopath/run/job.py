"""A config, built: the arguments of a trace, and the tasks to score it on."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from functools import reduce
from operator import add
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from isopath.geometry.memory import Memory
from isopath.objectives import Objective, Task, as_objective
from isopath.run.config import Tree, inside
from isopath.run.data import Data
from isopath.run.names import ConfigError, found
from isopath.storage import DamagedFile, load_weights, read_json

BESIDES = ("weights", "remember", "evaluate", "title", "device", "directory")


@dataclass(frozen=True, eq=False)
class Job:
    """What a config describes, built.

    Attributes:
        arguments: of `isopath.trace`.
        tasks: to score, by name.
        title: of the report; empty for the run's name.
        remember: tasks that the memory takes in at the end, by name.
    """

    arguments: dict[str, Any]
    tasks: dict[str, Task]
    title: str
    remember: dict[str, Task]

    @classmethod
    def of(cls, tree: Mapping[str, Tree]) -> Job:
        """Builds a resolved config: reads its data, makes its model, fills in its weights.

        The model is made under a generator seeded with `seed`, so a run that is resumed starts from the same weights.

        Raises:
            ConfigError: something cannot be built; the message says where and why.
        """
        with inside(Path(tree["directory"])):
            device = device_of(tree["device"])
            arguments = {key: value for key, value in tree.items() if key not in BESIDES}
            arguments["model"] = _model(tree, device)
            arguments["keep"] = summed(tree["keep"], "keep", device)
            arguments["objective"] = summed(tree["objective"], "objective", device)
            for key in ("trainable", "direction", "corrector", "controller"):
                arguments[key] = built(tree[key], key, device)
            tasks = built(tree["evaluate"] or {}, "evaluate", device)
            remember = built(tree["remember"] or {}, "remember", device)
            _check_remembered(remember, arguments["keep"])
        return cls(arguments, tasks, tree["title"] or "", remember)

    def remembered(self, model: nn.Module) -> Memory:
        """The memory that was kept, with the config's tasks as a model does them."""
        memory: Memory = self.arguments["keep"]
        for name, task in self.remember.items():
            head: Any = task.outputs  # no slice: a file would not hold it
            memory = memory.remember(model, task.x, task.y, name, head, self.arguments["trainable"])
        return memory


def _check_remembered(tasks: Mapping[str, Task], keep: Any) -> None:
    """Raises `ConfigError` for what a memory could not take in, before anything is run."""
    if tasks and not isinstance(keep, Memory):
        raise ConfigError("remember: adds to a memory, and keep: is none; an empty one keeps nothing yet: keep: "
                          "{class_path: Memory, init_args: {examples: 200}}")  # fmt: skip
    for name, task in tasks.items():
        if name in {old.name for old in keep.tasks}:
            raise ConfigError(f"remember: the memory has a task {name!r} already; give this one another name")
        if not isinstance(task.outputs, str | int | None):
            raise ConfigError(f"remember.{name}: a file holds no head that is a slice or a function; let the model "
                              "return a mapping or a tuple, and name the head's key or index in outputs:")  # fmt: skip


def built(value: Tree, where: str, device: torch.device) -> Any:
    """Every `class_path` in a resolved tree called with its `init_args`, the innermost first."""
    if isinstance(value, list):
        return [built(item, f"{where}.{i}", device) for i, item in enumerate(value)]
    if not isinstance(value, Mapping):
        return value
    if "class_path" not in value:
        return {key: built(item, f"{where}.{key}", device) for key, item in value.items()}
    target = found(value["class_path"], where)
    arguments = built(value["init_args"], f"{where}.init_args", device)
    try:
        if isinstance(arguments, list):
            made = target(*arguments)
        else:
            made = target(**(_unpacked(target, arguments) if _own(target) else arguments))
        return _placed(made, value, device) if isinstance(made, Data) else made
    except Exception as error:
        raise ConfigError(f"{where} ({value['class_path']}): {error}") from error


def _own(target: Any) -> bool:
    return str(getattr(target, "__module__", "")).split(".")[0] == "isopath"


def _unpacked(target: Any, arguments: dict[str, Any]) -> dict[str, Any]:
    """The readers give inputs and labels together; a task takes both, everything else the inputs."""
    task = isinstance(target, type) and issubclass(target, Task)
    if task and isinstance(arguments.get("data", arguments.get("x")), Data):
        data = arguments.pop("data", None) or arguments["x"]
        arguments = {"y": data.labels, **arguments, "x": data.inputs}
        arguments["y"] = data.labels if arguments["y"] is None else arguments["y"]
    elif task and "data" in arguments:
        arguments["x"] = arguments.pop("data")
    return {key: value.inputs if isinstance(value, Data) else value for key, value in arguments.items()}


def _placed(data: Data, node: Mapping[str, Tree], device: torch.device) -> Data:
    data = data.where(node["where"]) if "where" in node else data
    data = data.take(**node["take"]) if "take" in node else data
    return replace(data, inputs=data.inputs.to(device), labels=None if data.labels is None else data.labels.to(device))


def summed(tree: Tree, where: str, device: torch.device) -> Any:
    """One reference or objective, or the sum of a list of them."""
    if not isinstance(tree, list):
        return _weighted(tree, where, device)
    return reduce(add, [_weighted(term, f"{where}.{i}", device) for i, term in enumerate(tree)])


def _weighted(tree: Tree, where: str, device: torch.device) -> Any:
    made = built(tree, where, device)
    if not where.startswith("objective"):
        return made
    try:
        objective: Objective = as_objective(made)
    except TypeError as error:
        raise ConfigError(f"{where}: {error}") from error
    return objective if tree["weight"] == 1 else tree["weight"] * objective


def device_of(name: str) -> torch.device:
    """The device of a config, tried out.

    Raises:
        ConfigError: it cannot be used here.
    """
    try:
        torch.empty(0, device=name)
        return torch.device(name)
    except Exception as error:
        raise ConfigError(f"device: {name!r} cannot be used here: {error}") from error


def _model(tree: Mapping[str, Tree], device: torch.device) -> nn.Module:
    model = architecture(tree, device)
    if tree["weights"] is not None:
        load(model, Path(tree["weights"]).expanduser())
    return model


def architecture(tree: Mapping[str, Tree], device: torch.device) -> nn.Module:
    """The model of a config, made under a generator seeded with `seed`.

    Raises:
        ConfigError: it cannot be built, or is no module.
    """
    with torch.random.fork_rng():
        torch.manual_seed(tree["seed"])
        model = built(tree["model"], "model", device)
    if not isinstance(model, nn.Module):
        raise ConfigError(f"model must be a torch.nn.Module, got {type(model).__name__} from {tree['model']}")
    return model.to(device)


def load(model: nn.Module, path: Path, where: str = "weights", prefixes: Mapping[str, str] | None = None) -> None:
    """Fills a model with a state dict that has every parameter and buffer, tied ones under one of their names.

    Args:
        model: to fill.
        path: a safetensors file, or a run folder for its last waypoint.
        where: the key of the config, for errors.
        prefixes: of names in the file, and what stands in their place in the model.

    Raises:
        ConfigError: there is no such file, or it does not fit the model.
    """
    file = _last_waypoint(path, where) if path.is_dir() else path
    try:
        tensors = load_weights(file)
    except (FileNotFoundError, DamagedFile) as error:
        raise ConfigError(f"{where}: {error}") from error
    tensors = {_renamed(name, prefixes or {}): tensor for name, tensor in tensors.items()}
    state = model.state_dict()
    for name, tensor in tensors.items():
        if name not in state:
            raise ConfigError(
                f"{where}: {file} has {name!r}, which the model lacks; its names are {', '.join(state)}"
                + ("" if where == "weights" else "; prefixes: maps the beginnings of names")
            )
        if tensor.shape != state[name].shape:
            got, expected = tuple(tensor.shape), tuple(state[name].shape)
            raise ConfigError(f"{where}: {name!r} has shape {got} in {file} and {expected} in the model")
    given = {_place(state[name]) for name in tensors}
    missing = [name for name, value in state.items() if name not in tensors and _place(value) not in given]
    if missing:
        raise ConfigError(f"{where}: {file} lacks {len(missing)} of the model's {len(state)}: {', '.join(missing[:6])}")
    model.load_state_dict(tensors, strict=False)


def _renamed(name: str, prefixes: Mapping[str, str]) -> str:
    """A name with its longest known prefix replaced."""
    known = max((prefix for prefix in prefixes if name.startswith(prefix)), key=len, default="")
    return prefixes[known] + name[len(known) :] if known else name


def _place(tensor: Tensor) -> tuple[int, torch.Size]:
    return tensor.data_ptr(), tensor.shape


def _last_waypoint(run: Path, where: str) -> Path:
    if not (run / "waypoints.json").is_file():
        raise ConfigError(f"{where}: {run} is a folder without waypoints.json: no run, or one that has not started")
    step = read_json(run / "waypoints.json")[-1]["step"]
    return run / "waypoints" / f"{step:06d}.safetensors"
