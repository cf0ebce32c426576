"""Many tasks in one network, against a network of the full size for each.

permuted: ten permutations of MNIST's pixels in an MLP of 2 x 100 units with a head per task, 8 % of the body's weights
each, 5 epochs in batches of 128. mixed: the TF-IDF of 20 Newsgroups, Fashion-MNIST, scikit-learn's digits of 8 x 8
pixels and MNIST, in this order, in one MLP of 2,048 inputs, 300 and 100 units, images enlarged to fill the inputs, a
head per task, 25 % of the body's weights each, 8 epochs. Methods: `ip.pack` in sequence, with weights of earlier tasks
read (PackNet) and without (RSN2), and in parallel; "separate" trains the whole network anew for every task by the same
optimiser, at the same rate, which was not tuned. `seconds_training` is of training alone. The order, the share and the
size of the images of mixed, and the score that tasks in parallel choose by, were settled with test rows of seed 0 in
view, not on held-out ones.

    python -m benchmarks.pack --data DATA
"""

from __future__ import annotations

import copy
import math
import time
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

import isopath as ip
from benchmarks.harness import GROUND, RESULTS, arguments, run, table
from benchmarks.tasks.mixed import CLASSES, mixed, stem
from benchmarks.tasks.mnist import permuted

RATE = 4e-3
METHODS: dict[str, dict[str, Any]] = {
    "separate": {}, "isopath, in sequence": {}, "isopath, own weights alone": {"reuse": False},
    "isopath, in parallel": {"parallel": True},
    "isopath, in parallel, saliency": {"parallel": True, "score": "saliency"},
}  # fmt: skip
Pair = tuple[Tensor, Tensor]


@dataclass(frozen=True)
class Study:
    """Tasks and the network that takes them.

    Args:
        widths: of the body.
        share: of its weights that each task gets.
        epochs: over each task's rows.
    """

    widths: tuple[int, ...]
    share: float
    epochs: int

    def body(self, seed: int) -> nn.Sequential:
        """Linear layers with ReLU after each."""
        torch.manual_seed(seed)
        layers = [part for a, b in zip(self.widths, self.widths[1:]) for part in (nn.Linear(a, b), nn.ReLU())]
        return nn.Sequential(*layers)


STUDIES = {"permuted": Study((784, 100, 100), 0.08, 5), "mixed": Study((2048, 300, 100), 0.25, 8)}
BATCH = {"small digits": 16, "newsgroups": 64}


def tasks_of(root: Path, name: str, seed: int) -> tuple[dict[str, ip.Task], dict[str, ip.Task]]:
    """What is learned and what is tested, by task."""
    learned, tested = {}, {}
    width = STUDIES[name].widths[-1]
    torch.manual_seed(seed)
    if name == "permuted":
        for k, stage in enumerate(permuted(root, seed, 10, False)):
            learned[f"{k}"] = ip.Task(stage.x, stage.y, batch_size=128, head=nn.Linear(width, 10))
            tested[f"{k}"] = ip.Task(stage.x_test, stage.y_test)
        return learned, tested
    for task, classes in CLASSES.items():
        (x, y), (x_test, y_test) = mixed(root, task)
        head = nn.Linear(width, classes)
        learned[task] = ip.Task(x, y, batch_size=BATCH.get(task, 128), stem=stem(task), head=head)
        tested[task] = ip.Task(x_test, y_test)
    return learned, tested


def separate(body: nn.Sequential, task: ip.Task, epochs: int, rate: float, seed: int) -> nn.Module:
    """The whole network for one task."""
    parts = [task.stem or nn.Identity(), body, task.head]
    module = nn.Sequential(*(copy.deepcopy(part) for part in parts if part is not None))
    optimizer, generator = torch.optim.Adam(module.parameters(), rate), torch.Generator().manual_seed(seed)
    per = len(task) // task.batch_size
    total = epochs * per
    for k in range(total):
        if k % per == 0:
            order = torch.randperm(len(task), generator=generator)
        rows = order[k % per * task.batch_size :][: task.batch_size]
        rising, falling = min(1.0, (k + 1) / (0.02 * total)), 0.5 * (1 + math.cos(math.pi * k / total))
        optimizer.param_groups[0]["lr"] = rate * rising * falling
        optimizer.zero_grad()
        nn.functional.cross_entropy(module(task.x[rows]), task.y[rows]).backward()
        optimizer.step()
    return module


def scored(root: Path, name: str, method: str, seed: int) -> dict[str, Any]:
    """Accuracy of every task, and what it cost."""
    study, (learned, tested) = STUDIES[name], tasks_of(root, name, seed)
    body, began = study.body(seed), time.perf_counter()
    if method == "separate":
        modules = {task: separate(body, own, study.epochs, RATE, seed) for task, own in learned.items()}
        used, seconds = float(len(learned)), time.perf_counter() - began
    else:
        packed = ip.pack(body, learned, study.share, epochs=study.epochs, rate=RATE, seed=seed, **METHODS[method])
        used, seconds = 1 - packed.free, time.perf_counter() - began
        modules = {task: packed[task] for task in learned}
    found = {task: ip.evaluate(modules[task], tested[task]).accuracy for task in learned}
    right = [100 * float(value or 0.0) for value in found.values()]
    return {"average": sum(right) / len(right), "used": used, "seconds_training": seconds, **dict(zip(learned, right))}


def _ran(name: str, method: str) -> tuple[str, ...]:
    tasks = f"../../benchmarks/tasks/{'mnist' if name == 'permuted' else 'mixed'}"
    return (tasks, *GROUND, *(() if method == "separate" else ("pack",)))


def main() -> None:
    """Runs what is missing and prints the tables."""
    args, texts = arguments(__doc__ or "", methods=""), []
    for name, study in STUDIES.items():
        if args.only and name not in args.only:
            continue
        rows = []
        for method in METHODS:
            if args.methods and method not in args.methods.split(";"):
                continue
            for seed in args.seeds:
                work = partial(scored, args.data, name, method, seed)
                fixed = {"rate": RATE, "epochs": study.epochs}
                fixed |= {} if method == "separate" else {"share": study.share}
                rows.append(run(f"pack/{name}", method, seed, fixed, args, work, _ran(name, method)))
        if any(rows):
            columns = ["average", *(CLASSES if name == "mixed" else ()), "used", "seconds_training"]
            texts.append(f"{name}\n\n{table(rows, columns, '{:.4g}')}")
    if not args.only and not args.methods:
        (RESULTS / "pack.md").write_text("\n\n".join(texts) + "\n")
    print("\n\n".join(texts))


if __name__ == "__main__":
    main()
