"""The demo: a network that knows the digits 0-4 learns 5-9 and becomes sparse, and goes on doing what it did."""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from rich.console import Console
from torch import Tensor, nn

from isopath.evaluate import agreement, evaluate_at
from isopath.geometry.divergence import divergence_of
from isopath.geometry.reference import Reference
from isopath.network import Network
from isopath.objectives import Sparsity, Task, sparsity
from isopath.run import findings, report
from isopath.run.data import digits
from isopath.run.printed import print_table
from isopath.storage import read_json, write_json, write_text
from isopath.trace.trajectory import Trajectory
from isopath.verbs import trace

TOLERANCE, FRACTION, STEPS, BATCH, KEPT = 0.01, 0.6, 120, 64, 300
TITLE = "Digits 0-4 learn 5-9 and become 60 % sparse"
CONFIG = f"""# What the demo runs, as a call:
# ip.trace(model, keep=ip.Reference(images_of_0_to_4),  # 300 of them
#          objective=ip.Task(digits_5_to_9, labels) + 0.1 * ip.Sparsity({FRACTION}),
#          tolerance={TOLERANCE}, max_steps={STEPS}, seed=seed)
tolerance: {TOLERANCE}
max_steps: {STEPS}
batch_size: {BATCH}
sparsity: {FRACTION}
"""


@dataclass(frozen=True)
class Digits:
    """Old digits 0-4 and new digits 5-9, for training and for testing."""

    old: Task
    new: Task
    old_test: Task
    new_test: Task
    kept: Tensor  # the images of old digits that a method may look at while it learns the new ones

    @classmethod
    def load(cls) -> Digits:
        """Scikit-learn's digits, 8 x 8 pixels."""
        halves = {"old": range(5), "new": range(5, 10)}
        tasks: dict[str, Any] = {}
        for name, classes in halves.items():
            for suffix, train in (("", True), ("_test", False)):
                data = digits(train, list(classes))
                tasks[name + suffix] = Task(data.inputs, data.labels, batch_size=BATCH)
        return cls(**tasks, kept=digits(True, list(range(5))).take(KEPT, seed=0).inputs)


def demo(out: Path = Path("runs/demo"), seed: int = 0) -> Path:
    """Trains, traces, runs both baselines, prints one table and writes the report; in under a minute on two cores.

    Args:
        out: the run folder to write.
        seed: of everything.

    Returns:
        The report's path.

    Raises:
        FileExistsError: the folder is there already.
    """
    console, data = Console(highlight=False), Digits.load()
    if out.exists():
        raise FileExistsError(f"the run folder {out} exists already and is never overwritten; give another --out")
    console.print("Training a convolutional network on the digits 0-4 ...")
    model = trained(data, seed)
    console.print("Tracing it: learn 5-9, 60 % of the weights zero, outputs on 0-4 within the tolerance ...")
    path = trace(
        model,
        keep=Reference(data.kept),
        objective=Task(data.new.x, data.new.y, batch_size=BATCH) + 0.1 * Sparsity(FRACTION),
        tolerance=TOLERANCE,
        max_steps=STEPS,
        seed=seed,
        run=out,
        progress=True,
    )
    console.print("Fine-tuning it, plainly and with the Bhattacharyya penalty, for the same gradient evaluations ...")
    others = {name: Baseline(path, data, name, seed).run() for name in ("fine-tuning", "penalised")}
    write_text(out / "config.yaml", CONFIG + f"seed: {seed}\n")
    write_json(out / "run.json", {**read_json(out / "run.json"), "verb": "demo", "title": TITLE})
    metrics = {**read_json(out / "metrics.json"), **_findings(path, data, others)}
    write_json(out / "metrics.json", metrics)
    page = report.write(out)
    print_table(metrics, console, f"{path.status}: {path.reason}")
    return page


def network_for_digits() -> nn.Module:
    """Two convolutions and two linear layers, ten outputs; 151,306 parameters."""
    return nn.Sequential(
        nn.Conv2d(1, 32, 3, padding=1),
        nn.ReLU(),
        nn.Conv2d(32, 64, 3, padding=1),
        nn.ReLU(),
        nn.MaxPool2d(2),
        nn.Flatten(),
        nn.Linear(1024, 128),
        nn.ReLU(),
        nn.Linear(128, 10),
    )


def trained(data: Digits, seed: int, epochs: int = 12) -> nn.Module:
    """The network after training on the old digits."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        network = Network(network_for_digits())
    steps = epochs * len(data.old) // BATCH
    theta = adam(network, network.start, lambda point, step: data.old.freeze(step, seed)(network, point), steps)
    return network.model(theta)


def adam(
    network: Network, theta: Tensor, loss: Callable[[Tensor, int], Tensor], steps: int, rate: float = 2e-3
) -> Tensor:
    """Adam for a number of steps, its rate going down in a straight line."""
    point = theta.clone().requires_grad_(True)
    optimiser = torch.optim.Adam([point], rate)
    for step in range(steps):
        optimiser.param_groups[0]["lr"] = rate * (1 - step / steps)
        (point.grad,) = torch.autograd.grad(loss(point, step), point)
        optimiser.step()
    return point.detach()


class Baseline:
    """Fine-tuning on the new digits until the trace's gradient evaluations are spent, pruned to the same sparsity.

    The smallest weights are set to zero half way and stay there, so that the second half makes up for them. The
    `"penalised"` one adds the FIP authors' penalty, -log Σ√(p p₀) to the start's outputs on a batch of old digits.
    """

    def __init__(self, path: Trajectory, data: Digits, name: str, seed: int) -> None:
        self.network, self.data, self.name, self.seed = path.network, data, name, seed
        self.budget, self.start = path.evaluations, path.point(0)
        self.points: list[Tensor] = []
        self.seconds = 0.0

    def run(self) -> Baseline:
        """Trains; `points` has the way and the end."""
        began, self.network.evaluations = time.perf_counter(), 0.0
        point, mask = self.start.clone().requires_grad_(True), torch.ones_like(self.start)
        optimiser, step = torch.optim.Adam([point], 1e-3), 0
        self.points = [self.start]
        while (spent := self.network.evaluations / self.budget) < 1:
            optimiser.param_groups[0]["lr"] = 1e-3 * (1 - spent)
            (point.grad,) = torch.autograd.grad(self._loss(point, step), point)
            optimiser.step()
            if spent > 0.5 and bool(mask.all()):
                mask = Sparsity(FRACTION).support(self.network, point.detach()).to(point)
            point.data *= mask
            step += 1
            if len(self.points) < 32 * spent:
                self.points.append(point.detach().clone())
        self.points.append(point.detach().clone())
        self.evaluations, self.seconds = self.network.evaluations, time.perf_counter() - began
        return self

    def _loss(self, point: Tensor, step: int) -> Tensor:
        loss = self.data.new.freeze(step, self.seed)(self.network, point)
        if self.name != "penalised":
            return loss
        generator = torch.Generator().manual_seed(step)
        batch = self.data.kept[torch.randint(KEPT, (BATCH,), generator=generator)]
        with torch.no_grad():
            before = self.network(self.start, batch)
        return loss + 10.0 * divergence_of("bhattacharyya").rows(self.network(point, batch), before).mean()


def _findings(path: Trajectory, data: Digits, others: dict[str, Baseline]) -> dict[str, Any]:
    """The table, accuracies along the path, the spectrum and the plane."""
    network, columns = path.network, ["method", "old accuracy", "new accuracy", "drift", "agreement", "sparsity"]
    start = path.point(0)

    def figures(theta: Tensor) -> list[float | None]:
        old, new = (evaluate_at(network, theta, task).accuracy for task in (data.old_test, data.new_test))
        drift = Reference(data.kept).whole(network, start).drift(theta)
        return [old, new, drift, agreement(network, start, theta, data.old_test.x), sparsity(network.space, theta)]

    rows = [
        ["start", *figures(start), None, None, None],
        ["isopath trace", *figures(path.point()), path.evaluations, path.seconds, path.status],
    ]
    for name, other in others.items():
        rows.append([name, *figures(other.points[-1]), other.evaluations, other.seconds, "budget_spent"])
    tasks = {"old digits 0-4": data.old_test, "new digits 5-9": data.new_test}
    paths = {"isopath trace": [path.point(step) for step in path.steps]}
    paths |= {name: other.points for name, other in others.items()}
    metric = Reference(data.kept).metric(path.model(), "kronecker")
    return {
        "table": {"columns": [*columns, "gradient evaluations", "seconds", "status"], "rows": rows},
        "along": findings.along(path, tasks),
        "spectrum": metric.spectrum(50).tolist(),
        "plane": findings.plane(paths),
    }
