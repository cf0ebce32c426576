"""The order of imports: a module imports only from the layers below it."""

import ast
from pathlib import Path

import pytest

import isopath

ROOT = Path(isopath.__file__).parent
LAYERS = (
    "version arguments",
    "space module_state randomness network examples storage",
    "path",
    "symmetry",
    "geometry metrics",
    "attacks ensemble",
    "objectives",
    "trace",
    "optim",
    "evaluate",
    "robustness",
    "connect generate pack",
    "paths",
    "check",
    "run.progress",  # what the verbs show; the rest of the room reads their signatures
    "verbs",
    "__init__",
    "run",
    "cli __main__",
)
RANK = {name: rank for rank, layer in enumerate(LAYERS) for name in layer.split()}
APART = {"trace", "connect", "generate", "pack"}
MODULES = sorted(ROOT.rglob("*.py"))


def room(name: str) -> str:
    """The layer's name of a dotted module: its first part, unless a longer one has a layer of its own."""
    parts = name.split(".")[1:]
    if ".".join(parts[:2]) in RANK:
        return ".".join(parts[:2])
    known = parts and ((ROOT / parts[0]).is_dir() or (ROOT / f"{parts[0]}.py").exists())
    return parts[0] if known else "__init__"


def is_for_types(node: ast.AST) -> bool:
    return isinstance(node, ast.If) and ast.unparse(node.test) == "TYPE_CHECKING"


def imported(tree: ast.AST) -> list[str]:
    """Dotted names of the package's own modules, at the top and inside functions; not those for types alone."""
    found = []
    for node in ast.iter_child_nodes(tree):
        if isinstance(node, ast.Import):
            found += [alias.name for alias in node.names if alias.name.split(".")[0] == "isopath"]
        elif isinstance(node, ast.ImportFrom):
            assert not node.level, "imports are absolute"
            if node.module == "isopath":
                found += [f"isopath.{alias.name}" for alias in node.names]
            elif node.module and node.module.startswith("isopath."):
                found.append(node.module)
        elif not is_for_types(node):
            found += imported(node)
    return found


def where(file: Path) -> str:
    return room(".".join(("isopath", *file.relative_to(ROOT).with_suffix("").parts)))


@pytest.mark.parametrize("file", MODULES, ids=[str(m.relative_to(ROOT)) for m in MODULES])
def test_a_module_imports_only_from_its_layer_and_those_below(file):
    here = where(file)
    assert here in RANK, f"{here} has no layer: add it to LAYERS, and say why"
    for name in imported(ast.parse(file.read_text())):
        there = room(name)
        assert RANK[there] <= RANK[here] or there == "version", f"{file.name} ({here}) imports {name}"
        assert here == there or not {here, there} <= APART, f"{here} and {there} meet in points and paths only"


def test_foundations_stand_in_their_own_order():
    order = ["space", "module_state", "network", "examples", "storage"]
    for i, name in enumerate(order):
        used = {room(found) for found in imported(ast.parse((ROOT / f"{name}.py").read_text()))}
        assert used <= set(order[:i]) | {"version", "arguments"}


BELOW_RUN = [module for module in MODULES if RANK.get(where(module), 0) <= RANK["verbs"]]


def calls(file: Path) -> list[ast.Call]:
    return [node for node in ast.walk(ast.parse(file.read_text())) if isinstance(node, ast.Call)]


@pytest.mark.parametrize("file", BELOW_RUN, ids=lambda m: m.name)
def test_nothing_above_run_prints_or_writes_files(file):
    names = {ast.unparse(call.func) for call in calls(file)}
    assert "print" not in names
    if file.stem != "storage":
        assert not {name for name in names if name.split(".")[-1] in ("open", "write_text", "write_bytes", "save_file")}


@pytest.mark.parametrize("file", BELOW_RUN, ids=lambda m: m.name)
def test_nothing_above_run_draws_from_global_random_state_or_pickles(file):
    for call in calls(file):
        name, text = ast.unparse(call.func), ast.unparse(call)
        assert name not in ("torch.manual_seed", "torch.seed", "torch.save", "torch.load"), text
        own = name == "np.random.default_rng" and call.args  # a generator with a seed of its own
        assert own or not name.startswith(("random.", "np.random.", "pickle.")), text
        if name in ("torch.randn", "torch.rand", "torch.randperm", "torch.randint"):
            assert "generator" in {keyword.arg for keyword in call.keywords}, text


def test_every_public_name_is_there_and_documented():
    for name in set(isopath.__all__) - {"__version__"}:
        assert getattr(isopath, name).__doc__, name
    assert (ROOT / "py.typed").exists()
