"""Symmetries and weight matching at the size of ResNet-50 and BERT-base, with random weights: seconds and memory.

The definitions are those of the test suite (`tests/symmetry/modules.py`). Takes no data.

    python -m benchmarks.scale --data .
"""

from __future__ import annotations

import importlib.util
import sys
import time
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import nn

import isopath as ip
from benchmarks.harness import JOINED, RESULTS, arguments, run, table


def definitions() -> Any:
    """The test suite's modules."""
    path = Path(__file__).parent.parent / "tests" / "symmetry" / "modules.py"
    spec = importlib.util.spec_from_file_location("symmetric_modules", path)
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules[spec.name] = module
    spec.loader.exec_module(module)
    return module


def built(name: str, seed: int) -> tuple[nn.Module, Any]:
    """A module and an example."""
    torch.manual_seed(seed)
    modules = definitions()
    if name == "resnet50":
        return modules.bottlenecks((3, 4, 6, 3), 64, 1000), torch.randn(1, 3, 64, 64)
    return modules.Bert(30522, 768, 12, 12), (torch.randint(100, (1, 8)), torch.ones(1, 8))


def discovery(name: str, seed: int) -> dict[str, Any]:
    """The time of finding and checking every group."""
    model, example = built(name, seed)
    began = time.perf_counter()
    found = ip.symmetries(model, example, rescalings=False)
    taken = time.perf_counter() - began
    began = time.perf_counter()
    whole = ip.symmetries(model, example)
    more = {"with_rescalings": time.perf_counter() - began, "rescalings": len(whole.scalings)}
    count = sum(p.numel() for p in model.parameters())
    return {"find_seconds": taken, "groups": len(found.groups), "units": found.units, "parameters": count, **more}


def resident(kind: str) -> int:
    """Memory of this process in KiB: `"VmRSS"` now, `"VmHWM"` at its peak (Linux)."""
    lines = Path("/proc/self/status").read_text().splitlines()
    return int(next(line for line in lines if line.startswith(kind)).split()[1])


def matching(seed: int) -> dict[str, Any]:
    """The time and the memory of aligning two networks by weights."""
    (a, example), (b, _) = built("resnet50", seed), built("resnet50", seed + 1)
    found = ip.symmetries(a, example, check=False, rescalings=False)
    Path("/proc/self/clear_refs").write_text("5")  # the peak starts anew: finding had one of its own
    before = resident("VmRSS")
    began = time.perf_counter()
    moved = ip.align(a, b, example, method="weights", symmetries=found)
    taken = time.perf_counter() - began
    kib = resident("VmHWM") - before
    size = sum(p.numel() * p.element_size() for p in a.parameters())
    return {"align_seconds": taken, "memory": 1024 * kib / size, "displaced": sum(moved.displaced.values())}


def main() -> None:
    """Runs what is missing and prints the table; the matching comes first, so that its peak of memory shows."""
    args, rows = arguments(__doc__ or ""), []
    for seed in args.seeds[:1]:  # a process has one peak
        rows.append(run("scale", "resnet50-align", seed, {}, args, partial(matching, 2 * seed), JOINED))
    for name in ("resnet50", "bert"):
        for seed in args.seeds:
            rows.append(run("scale", f"{name}-find", seed, {}, args, partial(discovery, name, seed), JOINED))
    columns = ["find_seconds", "with_rescalings", "align_seconds", "memory", "groups", "units", "parameters"]
    text = table(rows, columns, "{:.4g}")
    (RESULTS / "scale.md").write_text(text + "\n")
    print(text)


if __name__ == "__main__":
    main()
