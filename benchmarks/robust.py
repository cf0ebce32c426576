"""Robustness from a network that is trained already: a trace to the attacked loss against adversarial training.

MNIST, largest change 0.1, a small convolutional network (47,000 weights). All start from one network per seed, trained
on clean images for three epochs (Adam), or from random weights ("from scratch"), and are trained on PGD attacks of five
steps. From scratch 1,200,000 gradient evaluations may be spent, attacks included, by the others half as many. Rates and
tolerances are chosen on 5,000 held-out training images with seed 0, by accuracy under PGD of ten steps on 1,000 of
them. from scratch, fine-tuned: Adam, rate to zero. isopath: `ip.trace` to `ip.Robust`, its clean outputs on 2,000
training images kept within a tolerance.

The protocol of `ip.robustness` on the first 500 test images: white-box PGD-20 with five starts, APGD-CE and APGD-T, and
the worst of all for each image; clean is the accuracy on all test images, start that of the network before.

    python -m benchmarks.robust --data DATA
"""

from __future__ import annotations

from functools import partial
from typing import Any

import torch
from torch import Tensor, nn

import isopath as ip
from benchmarks import methods
from benchmarks.connect import loaded
from benchmarks.harness import GROUND, RAN, RESULTS, arguments, run, settled_on, table
from benchmarks.networks import small_cnn
from isopath.attacks import PGD
from isopath.network import Network

HELD, KEPT, SEEN, EPS, SIZE = 5000, 2000, 500, 0.1, 128
BUDGET = 1_200_000.0
LAST = 0.03 * BUDGET  # what a trace's last step may take beyond its budget: test rows leave room for it
TRAINED = (*GROUND, "attacks/pgd", "objectives/robust")
SCORED = ("attacks/autoattack", "robustness/protocol", "robustness/trial", "robustness/masking")
Settings = dict[str, Any]
GRIDS: dict[str, list[Settings]] = {
    "from scratch": [{"rate": rate} for rate in (1e-3, 2e-3, 4e-3, 8e-3)],
    "fine-tuned": [{"rate": rate} for rate in (1e-3, 2e-3, 4e-3, 8e-3)],
    "isopath": [{"tolerance": tolerance} for tolerance in (0.003, 0.01, 0.03)],
}


def images(args: Any, held: bool) -> tuple[methods.Pair, methods.Pair]:
    """Training and test images, or the held-out training images in place of the test set."""
    (x, y), test = (_shaped(loaded(args.data, "mnist", train)) for train in (True, False))
    return ((x[:-HELD], y[:-HELD]), (x[-HELD:], y[-HELD:])) if held else ((x, y), test)


def _shaped(pair: methods.Pair) -> methods.Pair:
    return pair[0].reshape(-1, 1, 28, 28), pair[1]


def clean(train: methods.Pair, seed: int, held: bool) -> nn.Module:
    """Trained on clean images, cached."""
    torch.manual_seed(seed)

    def fit(model: nn.Module) -> None:
        optimiser = torch.optim.Adam(model.parameters(), 2e-3)
        methods.fitted(model, optimiser, train, SIZE, 3 * len(train[0]) // SIZE, seed, lambda t: 1 - t)

    return methods.cached(f"mnist_clean-{'held-' if held else ''}{seed}", small_cnn(), fit)


def attacked(args: Any, method: str, settings: Settings, seed: int, held: bool) -> dict[str, Any]:
    """One network trained on attacks: clean and robust accuracy, and what was spent."""
    train, test = images(args, held)
    model, budget = clean(train, seed, held), BUDGET if method == "from scratch" else BUDGET / 2
    task = ip.Robust(*train, attack=PGD(EPS, 5), batch_size=SIZE, seed=seed)
    if method == "isopath":
        kept = train[0][torch.randperm(len(train[0]), generator=torch.Generator().manual_seed(seed))[:KEPT]]
        budget -= 0 if held else LAST
        path = ip.trace(model, ip.Reference(kept), task, settings["tolerance"], 100_000, seed, max_evaluations=budget)
        trained, spent, said = path.model(), path.evaluations, path.status
    else:
        torch.manual_seed(seed)
        network, step = Network(small_cnn() if method == "from scratch" else model), iter(range(1_000_000))

        def loss(theta: Tensor) -> Tensor:
            return task.freeze(next(step), seed)(network, theta)

        theta = methods.adam(network, network.start, loss, budget, settings["rate"])
        trained, spent, said = network.model(theta).eval(), network.evaluations, "trained"
    start, after = (100 * float(ip.evaluate(m, ip.Task(*test)).accuracy or 0) for m in (model, trained))
    found = {"start": start, "clean": after, "evaluations": spent, "status": said}
    if held:
        few = ip.Robust(test[0][:1000], test[1][:1000], attack=PGD(EPS, 10), batch_size=1000)
        return {**found, "robust": 100 * float(ip.evaluate(trained, few).accuracy or 0)}
    scores = ip.robustness(trained, test[0][:SEEN], test[1][:SEEN], EPS, seed=seed)
    assert scores.autoattack is not None, scores.official
    return {**found, "white_box": 100 * scores.white_box.value, "autoattack": 100 * scores.autoattack.value,
            "worst": 100 * scores.worst.value, "interval": list(scores.worst.interval), "flags": scores.flags,
            "spent_scoring": scores.evaluations}  # fmt: skip


def main() -> None:
    """Runs what is missing and prints the table."""
    args, rows = arguments(__doc__ or ""), []
    for method, grid in GRIDS.items():
        if args.only and method not in args.only:
            continue
        ran = (*(RAN if method == "isopath" else ()), *TRAINED)

        def held(settings: Settings, method: str = method) -> dict[str, Any]:
            return attacked(args, method, settings, 0, True)

        best = settled_on("robust/mnist", method, grid, args, held, "robust", ran)
        for seed in args.seeds if best else ():
            assert best is not None
            work = partial(attacked, args, method, best, seed, False)
            rows.append(run("robust/mnist", method, seed, best, args, work, (*ran, *SCORED)))
    columns = ["start", "clean", "white_box", "autoattack", "worst", "evaluations"]
    text = table(rows, columns, "{:.4g}")
    if not args.only:
        (RESULTS / "robust.md").write_text(text + "\n")
    print(text)


if __name__ == "__main__":
    main()
