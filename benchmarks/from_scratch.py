"""A trace from random weights with nothing kept, against SGD with momentum, at equal gradient evaluations on MNIST.

SGD's rate is the best of a grid on seed 0, on 5,000 held-out training images; both decay to zero over the budget.

    python -m benchmarks.from_scratch --data DATA
"""

from __future__ import annotations

from typing import Any

import torch

import isopath as ip
from benchmarks import methods
from benchmarks.harness import RESULTS, arguments, run, table
from benchmarks.rotated_mnist import mlp
from isopath.network import Network
from isopath.run import data as files

BUDGET, BATCH = 300_000, 64
RATES = (0.01, 0.03, 0.1)


def fresh(seed: int) -> Network:
    """A network with random weights."""
    torch.manual_seed(seed)
    return Network(mlp())


def main() -> None:
    """Runs what is missing and prints the table."""
    args, rows = arguments(__doc__ or ""), []
    train, test = ((d.inputs, d.labels) for d in (files.mnist(args.data, "MNIST", t) for t in (True, False)))
    part, valid = ((train[0][:55_000], train[1][:55_000]), (train[0][55_000:], train[1][55_000:]))
    grid = {}
    for rate in RATES:

        def search(rate: float = rate) -> dict[str, Any]:
            network = fresh(0)
            return {"valid": methods.accuracy(network, methods.sgd(network, part, BUDGET, 0, rate, BATCH), valid)}

        found = run("from_scratch/grid", f"sgd-{rate}", 0, {"budget": BUDGET, "rate": rate}, args, search)
        grid[rate] = found["valid"] if found else 0.0
    best = max(grid, key=grid.__getitem__)
    for name in args.only or ["trace", "sgd"]:
        for seed in args.seeds:

            def work(name: str = name, seed: int = seed) -> dict[str, Any]:
                network = fresh(seed)
                if name == "sgd":
                    theta = methods.sgd(network, part, BUDGET, seed, best, BATCH)
                    spent = network.evaluations
                else:
                    path = ip.trace(
                        network.model(network.start), None, ip.Task(*part, batch_size=BATCH), max_steps=10**6,
                        max_evaluations=BUDGET, seed=seed,
                    )  # fmt: skip
                    theta, spent = path.point(), path.evaluations
                return {"accuracy": methods.accuracy(network, theta, test), "evaluations": spent}

            fixed = {"budget": BUDGET, "batch": BATCH, **({"rate": best} if name == "sgd" else {})}
            rows.append(run("from_scratch", name, seed, fixed, args, work))
    text = table(rows, ["accuracy", "evaluations"], "{:.4g}")
    (RESULTS / "from_scratch.md").write_text(text + "\n")
    print(text)


if __name__ == "__main__":
    main()
