"""A config file: the arguments of a verb in YAML, checked against the signatures, completed and built.

    model: {class_path: networks.Small, init_args: {width: 32}}      # your own class or function, or torch.nn's
    weights: small.safetensors                                       # a state dict, or a run folder
    keep: {class_path: Reference, init_args: {inputs: {class_path: digits, init_args: {classes: [0, 1, 2, 3, 4]}}}}
    objective:                                                       # one objective, or a weighted sum of them
      - {class_path: Task, init_args: {data: {class_path: digits, init_args: {classes: [5, 6, 7, 8, 9]}}}}
      - {weight: 0.1, class_path: Sparsity, init_args: {fraction: 0.6}}
    tolerance: 0.01
    evaluate: {digits: {class_path: Task, init_args: {data: {class_path: digits, init_args: {train: false}}}}}

jsonargparse builds the command line, and this module the config: a sum of objectives, a task that takes two arguments
from one reader, and a model made by any callable are no types that jsonargparse knows, and its error for a mistake deep
in a union lists every alternative that it tried, where one sentence should name the key.
"""

from __future__ import annotations

import contextlib
import inspect
import re
import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, Literal, get_type_hints

import yaml
from torch import Tensor, nn

from isopath.connect import connect
from isopath.generate import generate
from isopath.objectives import Task
from isopath.pack import pack
from isopath.run.data import Data
from isopath.run.hints import admits_objects, asked, fits, said, values_of
from isopath.run.names import ConfigError, found, unknown
from isopath.verbs import trace

Tree = Any  # what YAML holds


def _everywhere(
    evaluate: Mapping[str, Task] | None = None,
    title: str | None = None,
    device: str = "cpu",
    directory: str | None = None,
) -> None:
    """The keys of every config that are no arguments of a verb.

    Args:
        evaluate: tasks by name, scored along the path at the end.
        title: of the report.
        device: where the model and the readers' data go.
        directory: where paths and your own classes are looked up; by default where the command was started.
    """


def _traced(weights: str | None = None, remember: Mapping[str, Task] | None = None) -> None:
    """The keys beside the arguments of `isopath.trace`.

    Args:
        weights: a safetensors file with the model's state dict, or a run folder for the last waypoint in it.
        remember: tasks by name that the memory in `keep:` takes in at the end, as the network does them then: it is
            `memory.safetensors` in the run folder, which `isopath.Memory.load` reads in the next config.
    """


def _connected(
    model: nn.Module,
    weights_a: str,
    weights_b: str,
    prefixes: Mapping[str, str] | None = None,
    data: Any = None,
    align: Literal["activations", "weights", "mixed"] | None = "activations",
    rescale: int = 0,
    consensus: str | None = None,
    plane: int = 11,
) -> None:
    """The keys beside the arguments of `isopath.connect`.

    Args:
        model: the architecture of both networks.
        weights_a: a safetensors file with a state dict, or a run folder: the network at t = 0.
        weights_b: likewise, the network at t = 1.
        prefixes: of the names in these files, and what stands in their place in the model: `{module.: ""}`.
        data: inputs to align on and to estimate running statistics on.
        align: how the second network's units are matched to the first's; null for not at all.
        rescale: steps in which factors of the second network's units are found that lower the straight line to it,
            once it is aligned; 0 for none.
        consensus: the divergence, `kl` for classifiers, from what both networks say of `data:` on average: an objective
            that takes no labels, in the place of `objective:`.
        plane: points on each axis of the loss over the plane of the curve, for the report; 0 for none.
    """


def _packed(model: nn.Module, tasks: Mapping[str, Task], weights: str | None = None) -> None:
    """The keys beside the arguments of `isopath.pack`.

    Args:
        model: the body.
        tasks: what is packed, by name, in order; a task may have a stem: and a head:.
        weights: a safetensors file with the model's state dict, or a run folder for the last waypoint in it.
    """


def _generated(weights: str | None = None, samples: int = 32) -> None:
    """The keys beside the arguments of `isopath.generate`.

    Args:
        weights: a safetensors file with the model's state dict, or a run folder for the last waypoint in it.
        samples: networks that are scored at the end.
    """


# of each verb: the function, the keys besides, and which arguments the command line gives itself
VERBS: dict[str, tuple[Callable[..., Any], Callable[..., None], tuple[str, ...]]] = {
    "trace": (trace, _traced, ("run", "resume", "progress")),
    "connect": (connect, _connected, ("model_a", "model_b", "permutation")),
    "pack": (pack, _packed, ("optimizer",)),
    "generate": (generate, _generated, ("symmetries",)),
}


# --- reading --------------------------------------------------------------------------------------------------------


class _Loader(yaml.SafeLoader):
    """YAML 1.1 with numbers as everybody writes them (it would read 1e-3 as text), in which no key comes twice."""

    def construct_mapping(self, node: yaml.MappingNode, deep: bool = False) -> dict[Any, Any]:
        """A mapping whose keys differ."""
        keys = [self.construct_object(key, deep=True) for key, _ in node.value]  # type: ignore[no-untyped-call]
        twice = next((key for k, key in enumerate(keys) if key in keys[:k] and key != "<<"), None)
        if twice is not None:
            raise yaml.constructor.ConstructorError(None, None, f"the key {twice!r} comes twice", node.start_mark)
        return super().construct_mapping(node, deep)


_Loader.add_implicit_resolver(
    "tag:yaml.org,2002:float", re.compile(r"^[-+]?(\d+\.?\d*|\.\d+)[eE][-+]?\d+$"), list("-+.0123456789")
)


def read(path: Path, overrides: Sequence[str] = ()) -> dict[str, Tree]:
    """A config file's tree, with overrides such as `"tolerance=0.02"` or `"objective.1.weight=0.3"` applied.

    Raises:
        ConfigError: there is no such file, it is not YAML, or an override names nothing.
    """
    if not path.is_file():
        near = [p.name for p in sorted(path.parent.glob("*.y*ml"))] if path.parent.is_dir() else []
        raise ConfigError(f"there is no config file {path}" + (f"; beside it: {', '.join(near)}" if near else ""))
    tree = _parsed(path.read_text(encoding="utf-8"), str(path))
    if not isinstance(tree, dict):
        raise ConfigError(f"{path} must hold a mapping of keys, got {said(tree)}")
    for override in overrides:
        _override(tree, override)
    return tree


def dumped(tree: Mapping[str, Tree]) -> str:
    """The YAML of a tree, which reads back as the same tree."""
    return yaml.safe_dump(dict(tree), sort_keys=False, width=100, allow_unicode=True)


def _parsed(text: str, source: str) -> Tree:
    try:
        return yaml.load(text, _Loader)
    except yaml.YAMLError as error:
        raise ConfigError(f"{source} is not valid YAML: {error}") from error


def _override(tree: Tree, override: str) -> None:
    key, equals, text = override.partition("=")
    if not equals or not key:
        raise ConfigError(f"--set takes key=value, got {override!r}; for example --set tolerance=0.02")
    *path, last = key.split(".")
    for i, name in enumerate(path):
        tree = _entry(tree, name, ".".join(path[:i]) or "the config")
    index: Any = _index(tree, last, key) if isinstance(tree, list) else last
    if not isinstance(tree, (dict, list)):
        raise ConfigError(f"--set {override}: {'.'.join(path)} is {said(tree)} and has no keys")
    tree[index] = _parsed(text, f"the value of --set {override}")


def _entry(tree: Tree, name: str, where: str) -> Tree:
    if isinstance(tree, list):
        return tree[_index(tree, name, where)]
    if not isinstance(tree, dict) or name not in tree:
        raise unknown(f"--set: {where}", "key", name, list(tree) if isinstance(tree, dict) else [])
    return tree[name]


def _index(tree: list[Tree], name: str, where: str) -> int:
    if not name.isdigit() or int(name) >= len(tree):
        raise ConfigError(f"--set: {where} is a list of {len(tree)}, count from 0; got {name!r}")
    return int(name)


# --- checking and completing ----------------------------------------------------------------------------------------


def resolve(tree: Mapping[str, Tree], verb: str = "trace") -> dict[str, Tree]:
    """The tree with every default filled in from the signatures; resolving twice changes nothing.

    Args:
        tree: of a config file.
        verb: whose arguments it spells, `"trace"`, `"connect"`, `"pack"` or `"generate"`.

    Raises:
        ConfigError: an unknown key or class, a missing argument, or a value of the wrong kind.
    """
    parameters, hints = _schema(verb)
    directory = Path(tree.get("directory") or ".").expanduser().absolute()
    with inside(directory):
        return _filled({**tree, "directory": str(directory)}, parameters, hints, "")


def _schema(verb: str) -> tuple[dict[str, inspect.Parameter], dict[str, Any]]:
    """The keys of a config: the arguments of a verb, and a few besides."""
    function, besides, own = VERBS[verb]
    parameters = {**inspect.signature(besides).parameters, **inspect.signature(_everywhere).parameters}
    parameters = {n: p for n, p in inspect.signature(function).parameters.items() if n not in own} | parameters
    return parameters, {**_hints(function), **_hints(besides), **_hints(_everywhere)}


def _filled(
    given: Mapping[str, Tree], parameters: Mapping[str, inspect.Parameter], hints: Mapping[str, Any], where: str
) -> dict[str, Tree]:
    """Named arguments, each checked against its parameter, with the defaults of those that are not given."""
    named = {k: p for k, p in parameters.items() if p.kind not in (p.VAR_POSITIONAL, p.VAR_KEYWORD)}
    if not any(p.kind == p.VAR_KEYWORD for p in parameters.values()):
        for key in given:
            if key not in named:
                raise unknown(where or "the config", "key", key, list(named))
    missing = [name for name, p in named.items() if p.default is p.empty and name not in given]
    if missing:
        raise ConfigError(f"{where or 'the config'} lacks {missing[0]!r}; its keys are {', '.join(named)}")
    filled = {}
    for name, parameter in named.items():
        inner, hint = f"{where}.{name}" if where else name, hints.get(name, Any)
        if name in given:
            filled[name] = _value(given[name], hint, inner, several=not where and name in ("keep", "objective"))
        elif _speakable(parameter.default, hint):
            filled[name] = _spelled(parameter.default)
    return {**filled, **{key: _value(value, Any, f"{where}.{key}") for key, value in given.items() if key not in named}}


def _value(value: Tree, hint: Any, where: str, several: bool = False) -> Tree:
    if several and isinstance(value, list) and value:
        return [_value(term, hint, f"{where}.{i}", several=True) for i, term in enumerate(value)]
    if isinstance(value, str) and not fits(value, hint) and admits_objects(hint):
        value = {"class_path": value}
    if isinstance(value, Mapping) and "class_path" in value:
        return _node(value, hint, where, weighted=several and where.startswith("objective"))
    if not fits(value, hint):
        remedy = "; an object is a mapping with class_path: and init_args:" if isinstance(value, Mapping) else ""
        raise ConfigError(f"{where} must be {asked(hint)}, got {said(value)}{remedy}")
    if isinstance(value, Mapping):
        return {key: _value(inner, values_of(hint), f"{where}.{key}") for key, inner in value.items()}
    if isinstance(value, list):
        return [_value(inner, Any, f"{where}.{i}") for i, inner in enumerate(value)]
    return value


def _node(node: Mapping[str, Tree], hint: Any, where: str, weighted: bool) -> dict[str, Tree]:
    """`class_path` and `init_args`, the arguments checked against the signature and completed."""
    target = found(node["class_path"], f"{where}.class_path")
    reader = getattr(target, "__module__", "") == Data.__module__
    valid = ["class_path", "init_args", *(["weight"] if weighted else []), *(["where", "take"] if reader else [])]
    for key in node:
        if key not in valid:
            raise unknown(where, "key", key, valid)
    if isinstance(target, type) and not fits(target, hint):
        raise ConfigError(f"{where} must be {asked(hint)}, got the class {node['class_path']}")
    resolved = {"class_path": node["class_path"], "init_args": _arguments(target, node.get("init_args"), where)}
    if weighted:
        resolved = {"weight": _value(node.get("weight", 1.0), float, f"{where}.weight"), **resolved}
    if node.get("where") is not None:
        resolved["where"] = _value(node["where"], list[int], f"{where}.where")
    if node.get("take") is not None:
        take = node["take"] if isinstance(node["take"], Mapping) else {"n": node["take"]}
        parameters = dict(list(inspect.signature(Data.take).parameters.items())[1:])
        resolved["take"] = _filled(take, parameters, _hints(Data.take), f"{where}.take")
    return resolved


def _arguments(target: Callable[..., Any], given: Tree, where: str) -> Tree:
    where = f"{where}.init_args"
    try:
        signature = inspect.signature(target)
    except (TypeError, ValueError):  # of some built-in callables there is none to check against
        return _value(given or {}, Any, where)
    if isinstance(given, list):
        try:
            signature.bind(*given)
        except TypeError as error:
            raise ConfigError(f"{where}: {error}") from error
        return [_value(value, Any, f"{where}.{i}") for i, value in enumerate(given)]
    if given is not None and not isinstance(given, Mapping):
        raise ConfigError(f"{where} must be a mapping of arguments or a list of positional ones, got {said(given)}")
    parameters, given = dict(signature.parameters), given or {}
    if isinstance(target, type) and issubclass(target, Task):
        parameters.pop("index", None)  # a task's own, for the batch of a step
        data = inspect.Parameter("data", inspect.Parameter.KEYWORD_ONLY)
        both = {name: p for name, p in parameters.items() if name not in ("x", "y")}
        parameters = {"data": data, **both} if "x" not in given else parameters
    return _filled(given, parameters, _hints(target), where)


def _hints(target: Any) -> dict[str, Any]:
    try:
        return get_type_hints(target.__init__ if isinstance(target, type) else target)  # type: ignore[misc]
    except Exception:  # a name that only a type checker sees: then there is nothing to check
        return {}


def _speakable(default: Any, hint: Any) -> bool:
    """Whether YAML can say a default; one that only a tensor could replace is left out."""
    if default is None:
        return hint != (Tensor | None)
    return isinstance(default, (bool, int, float, str, list, tuple, dict)) or hasattr(default, "__dataclass_fields__")


def _spelled(default: Any) -> Tree:
    if hasattr(default, "__dataclass_fields__"):
        fields = {name: _spelled(getattr(default, name)) for name in default.__dataclass_fields__}
        return {"class_path": type(default).__name__, "init_args": fields}
    return list(default) if isinstance(default, tuple) else default


@contextlib.contextmanager
def inside(directory: Path) -> Iterator[None]:
    """Works in a directory, whose modules can be imported.

    Raises:
        ConfigError: there is no such directory.
    """
    if not directory.is_dir():
        raise ConfigError(f"directory: there is no folder {directory}; give the one that paths are relative to")
    # first, as for a script: a networks.py here must win over an installed one
    if str(directory) not in sys.path:
        sys.path.insert(0, str(directory))
    with contextlib.chdir(directory):
        yield
