"""What every benchmark shares: one JSON per (protocol, method, seed), resumable, stale only when its code changes."""

from __future__ import annotations

import argparse
import ast
import hashlib
import json
import platform
import sys
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any, TypeVar

import torch

import isopath

Settings = TypeVar("Settings")
RESULTS = Path(__file__).parent / "results"
GROUND = ("space", "module_state", "network", "examples", "objectives/objective", "objectives/task")
RAN = (*GROUND, *(f"geometry/{name}" for name in ("batch", "blocks", "combined", "divergence", "exact", "factors",
       "gram", "identity", "kinds", "kronecker", "metric", "reference", "restricted", "solvers", "sweep")),
       "trace/tracer", "trace/direction", "trace/corrector", "trace/controller")  # fmt: skip
# without what rescales units and what tries symmetries: no matching depends on them
JOINED = (*GROUND, "evaluate", "path",
          *(f"symmetry/{name}" for name in ("arithmetic", "axes", "cells", "finder", "group",
          "labels", "matching", "permutation", "similarity", "views")),
          "connect/curve", "connect/profile", "connect/statistics")  # fmt: skip


def arguments(description: str, **extra: Any) -> argparse.Namespace:
    """The options that all benchmarks take."""
    parser = argparse.ArgumentParser(description=description, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, required=True, help="folder with MNIST/raw and FashionMNIST/raw")
    parser.add_argument("--only", nargs="*", help="methods to run; all by default")
    parser.add_argument("--seeds", type=int, nargs="*", default=[0, 1, 2])
    parser.add_argument("--budget", type=float, default=float("inf"), help="minutes after which nothing new is started")
    parser.add_argument("--threads", type=int, default=2)
    for name, default in extra.items():
        parser.add_argument(f"--{name}", type=type(default), default=default)
    args = parser.parse_args()
    torch.set_num_threads(args.threads)
    args.started = time.perf_counter()
    return args


def fingerprint(ran: Sequence[str] = RAN) -> str:
    """A hash of the code that a benchmark runs (by default what a trace does) where nothing is wrong.

    Comments, docstrings, and what only raises run nothing in a run that came to its end, nor does what packages export.
    """
    root, digest = Path(isopath.__file__).parent, hashlib.sha256()
    for name in ran:
        files = sorted((root / name).rglob("*.py")) if (root / name).is_dir() else [root / f"{name}.py"]
        for file in (file for file in files if file.name != "__init__.py"):
            digest.update(ast.dump(_Running().visit(ast.parse(file.read_text(encoding="utf-8")))).encode())
    return digest.hexdigest()[:16]


class _Running(ast.NodeTransformer):
    """Leaves out docstrings, guards that raise, and functions named `check...` that return nothing, and their calls."""

    def visit_Expr(self, node: ast.Expr) -> ast.AST | None:
        """Constants and calls of checks go."""
        called = node.value.func if isinstance(node.value, ast.Call) else None
        name = getattr(called, "id", getattr(called, "attr", ""))
        return None if isinstance(node.value, ast.Constant) or _checks(name) else self.generic_visit(node)

    def visit_If(self, node: ast.If) -> ast.AST | None:
        """Goes where all it does is to raise."""
        self.generic_visit(node)
        return None if not node.orelse and _raises(node.body) else node

    def visit_Assert(self, node: ast.Assert) -> None:
        """Goes."""

    def visit_Try(self, node: ast.Try) -> Any:
        """Its body, where every handler ends in another error."""
        self.generic_visit(node)
        plain = not node.orelse and not node.finalbody and all(_raises(handler.body) for handler in node.handlers)
        return node.body if plain else node

    def visit_FunctionDef(self, node: ast.FunctionDef) -> ast.AST | None:
        """A check goes."""
        returns = any(isinstance(inner, ast.Return) and inner.value is not None for inner in ast.walk(node))
        return None if _checks(node.name) and not returns else self.generic_visit(node)

    def visit_ImportFrom(self, node: ast.ImportFrom) -> ast.AST | None:
        """Without checks."""
        node.names = [alias for alias in node.names if not _checks(alias.name)]
        return node if node.names else None


def _checks(name: str) -> bool:
    return name.lstrip("_").startswith("check_")


def _raises(body: Sequence[ast.stmt]) -> bool:
    return not body or (len(body) <= 3 and isinstance(body[-1], ast.Raise)
                        and all(isinstance(line, (ast.Assign, ast.Expr)) for line in body[:-1]))  # fmt: skip


def run(
    protocol: str, method: str, seed: int, settings: Mapping[str, Any], args: argparse.Namespace,
    work: Callable[[], dict[str, Any]], ran: Sequence[str] = RAN,
) -> dict[str, Any] | None:
    """A finished result, or that of doing the work now; `None` once the time is up."""
    path = RESULTS / protocol / f"{method}-{seed}.json"
    if path.exists():
        found = json.loads(path.read_text())
        if found["fingerprint"] == fingerprint(ran) and found["settings"] == json.loads(json.dumps(settings)):
            return found
    if (time.perf_counter() - args.started) / 60 > args.budget:
        return None
    began = time.perf_counter()
    scores = work()
    row = {
        "protocol": protocol, "method": method, "seed": seed, "settings": settings, **scores,
        "seconds": round(time.perf_counter() - began, 1), "threads": args.threads, "fingerprint": fingerprint(ran),
        "command": "python -m " + " ".join(["benchmarks." + Path(sys.argv[0]).stem, *_public(sys.argv[1:])]),
        "versions": {
            "isopath": isopath.__version__, "torch": str(torch.__version__), "python": platform.python_version(),
        },
        "machine": f"{platform.machine()}, {torch.get_num_threads()} threads",
    }
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(row, indent=1) + "\n")
    print(f"{protocol} {method} seed {seed}: {scores}", flush=True)
    return row


def chosen(
    grid: Sequence[Settings], tried: Callable[[int, Settings], Mapping[str, Any] | None], key: str, last: bool = False,
    least: bool = False,
) -> Settings | None:  # fmt: skip
    """The settings whose held-out row is best; `None` while they are not all known.

    Args:
        grid: of settings; one alone is not tried.
        tried: gives the row of the kth settings.
        key: of the row, the higher the better.
        last: whether of equal ones the last is taken, not the first.
        least: whether the lower is the better.
    """
    if len(grid) == 1:
        return grid[0]
    scores = []
    for k, settings in enumerate(grid):
        row = tried(k, settings)
        if row is None:
            return None
        scores.append((-row[key] if least else row[key], k if last else -k))
    return grid[max(range(len(grid)), key=scores.__getitem__)]


def labelled(method: str, settings: Mapping[str, Any]) -> str:
    """The name of a held-out row."""
    return " ".join([method, *(f"{v:g}" if isinstance(v, (int, float)) else str(v) for v in settings.values())])


def settled_on(
    place: str, method: str, grid: Sequence[dict[str, Any]], args: Any,
    work: Callable[[dict[str, Any]], dict[str, Any]], key: str, ran: Sequence[str], least: bool = False,
) -> dict[str, Any] | None:  # fmt: skip
    """The settings whose held-out row, with seed 0, is best; `None` while they are not all known.

    Args:
        place: of the method's rows, those of the grid below it.
        method: whose settings are chosen.
        grid: of settings.
        args: as `arguments` gave them.
        work: makes the held-out row of settings.
        key: of the row, the higher the better.
        ran: the code behind it.
        least: whether the lower is the better.
    """

    def tried(k: int, settings: dict[str, Any]) -> dict[str, Any] | None:
        return run(f"{place}/grid", labelled(method, settings), 0, settings, args, lambda: work(settings), ran)

    return chosen(grid, tried, key, least=least)


def _public(words: list[str]) -> list[str]:
    """The command with the data folder's own place left out."""
    return ["DATA" if before == "--data" else word for before, word in zip(["", *words], words)]


def table(rows: Iterable[dict[str, Any] | None], columns: list[str], form: str = "{:.2f}") -> str:
    """Mean ± standard deviation over seeds, a line per method, in Markdown; missing runs are marked."""
    methods: dict[str, list[dict[str, Any]]] = {}
    for row in rows:
        if row is not None:
            methods.setdefault(row["method"], []).append(row)
    lines = ["| method | seeds | " + " | ".join(columns) + " |", "|---" * (len(columns) + 2) + "|"]
    for method, found in methods.items():
        cells = [_cell([row[column] for row in found if row.get(column) is not None], form) for column in columns]
        lines.append(f"| {method} | {len(found)} | " + " | ".join(cells) + " |")
    return "\n".join(lines)


def _cell(values: list[float], form: str) -> str:
    if not values:
        return "–"
    tensor = torch.tensor(values, dtype=torch.float64)
    spread = f" ± {form.format(float(tensor.std()))}" if len(values) > 1 else ""
    return form.format(float(tensor.mean())) + spread
