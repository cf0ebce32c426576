"""Robustness from a network that is trained already: a trace to the attacked loss against adversarial training.

MNIST, largest change 0.1, a small convolutional network (47,000 weights); CIFAR-10 averaged over 2 x 2 pixels (a JPEG
copy), largest change 2/255, a convolutional network of 141,000 weights without batch norm. All start from one network
per seed, trained on clean images for three epochs, or eight (Adam), or from random weights ("from scratch"), and are
trained on PGD attacks of five steps. From scratch 1,200,000 gradient evaluations may be spent, attacks included (on
CIFAR-10 1,800,000), by the others half as many. Rates (of ours on CIFAR-10 the tolerance) are chosen on 5,000 held-out
training images with seed 0, by accuracy under PGD of ten steps on 1,000 of them, of ours where the clean accuracy is at
most two points below the start. from scratch, fine-tuned: Adam, rate to zero. isopath: `ip.trace` to `ip.Robust`, its
clean outputs on 10,000 training images kept within a tolerance.

The protocol of `ip.robustness` on the first 500 test images: white-box PGD-20 with five starts, APGD-CE and APGD-T, and
the worst of all for each image; clean is the accuracy on all test images, start that of the network before.

    python -m benchmarks.robust --data DATA
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn

import isopath as ip
from benchmarks import methods
from benchmarks.connect import DEVIATION, MEAN, loaded
from benchmarks.harness import GROUND, RAN, RESULTS, arguments, run, settled_on, table
from benchmarks.networks import plain_cnn, small_cnn
from isopath.attacks import PGD
from isopath.network import Network
from isopath.trace import Multiplier

HELD, KEPT, SEEN, SIZE = 5000, 10_000, 500, 128
TRAINED = (*GROUND, "attacks/pgd", "objectives/robust")
OURS = (*RAN, "trace/lagrangian", "trace/recovery")
SCORED = ("attacks/autoattack", "robustness/protocol", "robustness/trial", "robustness/masking")
Settings = dict[str, Any]


@dataclass(frozen=True)
class Study:
    """One network on one data set.

    Args:
        data: as `benchmarks.connect.loaded` names it.
        build: the network, for images in [0, 1].
        eps: the largest change of a pixel.
        epochs: of the clean network.
        budget: gradient evaluations of training from scratch.
        grids: of the settings of each method.
        spare: share of the budget that the last steps and the looks at the whole reference may take beyond it.
    """

    data: str
    build: Callable[[], nn.Module]
    eps: float
    epochs: int
    budget: float
    grids: dict[str, list[Settings]]
    spare: float


def grids(rates: tuple[float, ...], ours: list[Settings]) -> dict[str, list[Settings]]:
    """Rates of training from scratch and of fine-tuning; ours."""
    trained = [{"rate": rate} for rate in rates]
    return {"from scratch": trained, "fine-tuned": trained, "isopath": ours}


MNIST: list[Settings] = [{"tolerance": 0.03, "rate": rate} for rate in (4e-3, 8e-3)]
CIFAR: list[Settings] = [{"tolerance": tolerance} for tolerance in (0.05, 0.1)]
STUDIES = {
    "mnist": Study("mnist", small_cnn, 0.1, 3, 1_200_000.0, grids((1e-3, 2e-3, 4e-3, 8e-3), MNIST), 0.06),
    "cifar": Study("cifar16", plain_cnn, 2 / 255, 8, 1_800_000.0, grids((1e-3, 3e-3), CIFAR), 0.05),
}


def images(args: Any, study: Study, held: bool) -> tuple[methods.Pair, methods.Pair]:
    """Training and test images in [0, 1], or the held-out training images in place of the test set."""
    (x, y), test = (_shaped(loaded(args.data, study.data, train)) for train in (True, False))
    return ((x[:-HELD], y[:-HELD]), (x[-HELD:], y[-HELD:])) if held else ((x, y), test)


def _shaped(pair: methods.Pair) -> methods.Pair:
    x = pair[0].reshape(-1, 1, 28, 28) if pair[0][0].numel() == 784 else pair[0] * DEVIATION + MEAN
    return x.clamp(0, 1), pair[1]


def clean(name: str, train: methods.Pair, seed: int, held: bool) -> nn.Module:
    """Trained on clean images, cached."""
    study = STUDIES[name]
    torch.manual_seed(seed)

    def fit(model: nn.Module) -> None:
        optimiser = torch.optim.Adam(model.parameters(), 2e-3)
        methods.fitted(model, optimiser, train, SIZE, study.epochs * len(train[0]) // SIZE, seed, lambda t: 1 - t)

    return methods.cached(f"{name}_clean-{'held-' if held else ''}{seed}", study.build(), fit)


def attacked(args: Any, name: str, method: str, settings: Settings, seed: int, held: bool) -> dict[str, Any]:
    """One network trained on attacks: clean and robust accuracy, and what was spent."""
    study = STUDIES[name]
    train, test = images(args, study, held)
    model, budget = clean(name, train, seed, held), study.budget / (1 if method == "from scratch" else 2)
    task = ip.Robust(*train, attack=PGD(study.eps, 5), batch_size=SIZE, seed=seed)
    if method == "isopath":
        kept = train[0][torch.randperm(len(train[0]), generator=torch.Generator().manual_seed(seed))[:KEPT]]
        budget -= 0 if held else study.spare * study.budget
        corrector = Multiplier(rate=settings.get("rate", Multiplier.rate))
        path = ip.trace(model, ip.Reference(kept), task, settings["tolerance"], 100_000, seed, max_evaluations=budget,
                        corrector=corrector, keep_waypoints=2)  # fmt: skip
        trained, spent, said = path.model(), path.evaluations, path.status
    else:
        torch.manual_seed(seed)
        network, step = Network(study.build() if method == "from scratch" else model), iter(range(1_000_000))

        def loss(theta: Tensor) -> Tensor:
            return task.freeze(next(step), seed)(network, theta)

        theta = methods.adam(network, network.start, loss, budget, settings["rate"])
        trained, spent, said = network.model(theta).eval(), network.evaluations, "trained"
    start, after = (100 * float(ip.evaluate(m, ip.Task(*test)).accuracy or 0) for m in (model, trained))
    found = {"start": start, "clean": after, "evaluations": spent, "status": said}
    if held:
        few = ip.Robust(test[0][:1000], test[1][:1000], attack=PGD(study.eps, 10), batch_size=1000)
        robust = 100 * float(ip.evaluate(trained, few).accuracy or 0)
        return {**found, "robust": robust, "score": robust if method != "isopath" or after >= start - 2 else 0.0}
    scores = ip.robustness(trained, test[0][:SEEN], test[1][:SEEN], study.eps, seed=seed)
    assert scores.autoattack is not None, scores.official
    return {**found, "white_box": 100 * scores.white_box.value, "autoattack": 100 * scores.autoattack.value,
            "worst": 100 * scores.worst.value, "interval": list(scores.worst.interval), "flags": scores.flags,
            "spent_scoring": scores.evaluations}  # fmt: skip


def rows_of(args: Any, name: str) -> list[dict[str, Any] | None]:
    """What is missing of a study, and all its rows."""
    rows: list[dict[str, Any] | None] = []
    for method, grid in STUDIES[name].grids.items():
        if args.methods and method not in args.methods.split(";"):
            continue
        ran = (*(OURS if method == "isopath" else ()), *TRAINED)

        def held(settings: Settings, method: str = method) -> dict[str, Any]:
            return attacked(args, name, method, settings, 0, True)

        best = settled_on(f"robust/{name}", method, grid, args, held, "score" if name == "cifar" else "robust", ran)
        for seed in args.seeds if best else ():
            assert best is not None
            work = partial(attacked, args, name, method, best, seed, False)
            rows.append(run(f"robust/{name}", method, seed, best, args, work, (*ran, *SCORED)))
    return rows


def main() -> None:
    """Runs what is missing and prints the tables."""
    args, texts = arguments(__doc__ or "", methods=""), []
    columns = ["start", "clean", "white_box", "autoattack", "worst", "evaluations"]
    for name in STUDIES:
        if not args.only or name in args.only:
            texts.append(f"{name}\n\n" + table(rows_of(args, name), columns, "{:.4g}"))
    text = "\n\n".join(texts)
    if not args.only and not args.methods:
        (RESULTS / "robust.md").write_text(text + "\n")
    print(text)


if __name__ == "__main__":
    main()
