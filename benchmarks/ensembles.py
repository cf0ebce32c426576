"""Ensembles from one trained network against networks trained apart: how far an attack on one carries to the whole.

Fashion-MNIST (eps 0.03) and CIFAR-10 averaged over 2 x 2 pixels (eps 2/255), a small convolutional network (47,000
weights; 66,000 for CIFAR-10). A pool of 12 networks, trained apart (Adam, rate along half a cosine, 5 and 8 epochs),
stands for all tables: the last is the surrogate that no ensemble has, seed s begins with the sth. Ten members each:

independent: ten of the pool.
fast geometric: from the first network on, SGD with momentum whose rate goes down and up again (Garipov et al. 2018,
arXiv 1802.10026), a member at the end of every cycle.
isopath, weights: from the first network, nine traces to `ip.Diversity` in weights from all members so far, outputs on
2,000 training images kept within a tolerance. isopath, outputs: the same, in outputs from the first network's, on
training images as an attack on it leaves them. isopath, attacked: nine networks along the last two thirds of one trace
to `ip.Robust` and, by a weight, the labels of the images as they are; attacks of one step anew in every step. isopath,
transferred: likewise to the labels of the images as one attack of one step on the first network leaves them, and some
times over as they are (Tramèr et al. 2018, arXiv 1705.07204, from one network). Both keep outputs on 10,000 training
images and read labels, and their attacks count.

All grow their nine for a quarter of the gradient evaluations that ten networks take. Settings are chosen on held-out
training images with seed 0, by the lower of both transfers on 1,000 of them among those whose ten are as accurate
together, on 5,000, as ten trained apart; where none are, the most accurate. The protocol of `ip.robustness` on the
first 500 test images; APGD on the first 100.

    python -m benchmarks.ensembles --data DATA
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from functools import cache, partial
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

import isopath as ip
from benchmarks.connect import loaded
from benchmarks.harness import GROUND, RAN, RESULTS, arguments, labelled, run, table
from benchmarks.methods import Pair, batches, cached, fitted
from benchmarks.networks import small_cnn
from isopath.attacks import PGD
from isopath.network import FORWARD, Network
from isopath.objectives import Objective
from isopath.trace import Multiplier

HELD, POOL, MEMBERS, SHARE, KEPT, ALONG, SEEN, OFFICIAL, SIZE = 5000, 12, 10, 0.25, 2000, 10_000, 500, 100, 128
SCORED = ("randomness", "attacks/pgd", "attacks/autoattack", "ensemble", "robustness/protocol", "robustness/trial",
          "robustness/masking")  # fmt: skip
Settings = dict[str, Any]


@dataclass(frozen=True)
class Study:
    """One data set: how far an input may move, and how long a network is trained."""

    eps: float
    epochs: int


STUDIES = {"fashion": Study(0.03, 5), "cifar16": Study(2 / 255, 8)}
DRIFTING = ("isopath, weights", "isopath, outputs")
STEPPED = ("objectives/robust", "trace/lagrangian", "trace/recovery")
GRIDS: dict[str, list[Settings]] = {
    "independent": [{}],
    "fast geometric": [{"rate": rate} for rate in (0.02, 0.05, 0.1)],
    "isopath, weights": [{"tolerance": tolerance} for tolerance in (0.005, 0.02)],
    "isopath, outputs": [{"tolerance": tolerance} for tolerance in (0.005, 0.02)],
    "isopath, attacked": [{"tolerance": 0.1, "rate": 3e-3, "clean": clean} for clean in (1, 2, 4)],
    "isopath, transferred": [{"tolerance": 0.2, "rate": 6e-3, "clean": clean} for clean in (1, 2, 4)],
}


class Standardised(nn.Module):
    """Pixels in [0, 1] to the scale that CIFAR-10's networks are trained on."""

    def __init__(self) -> None:
        super().__init__()
        self.register_buffer("mean", torch.tensor([0.4914, 0.4822, 0.4465])[:, None, None])
        self.register_buffer("deviation", torch.tensor([0.247, 0.2435, 0.2616])[:, None, None])

    def forward(self, x: Tensor) -> Tensor:
        """`(N, 3, H, W)` to the same."""
        return (x - self.mean) / self.deviation


def network(name: str) -> nn.Module:
    """The members' architecture."""
    if name == "fashion":
        return small_cnn()
    layers: list[nn.Module] = [Standardised()]
    for a, b, stride in ((3, 24, 1), (24, 48, 2), (48, 64, 2)):
        layers += [nn.Conv2d(a, b, 3, stride, 1), nn.ReLU()]
    return nn.Sequential(*layers, nn.MaxPool2d(2), nn.Flatten(), nn.Linear(256, 64), nn.ReLU(), nn.Linear(64, 10))


@cache
def images(root: Path, name: str) -> tuple[Pair, Pair, Pair]:
    """Training, held-out and test images in [0, 1], with labels."""
    (x, y), (x_test, y_test) = (loaded(root, name, train) for train in (True, False))
    if name == "fashion":
        x, x_test = x.reshape(-1, 1, 28, 28), x_test.reshape(-1, 1, 28, 28)
    else:
        scale = Standardised()
        x, x_test = ((t * scale.deviation + scale.mean).clamp(0, 1) for t in (x, x_test))
    x, x_test = (t.contiguous(memory_format=torch.channels_last) for t in (x, x_test))
    return (x[:-HELD], y[:-HELD]), (x[-HELD:], y[-HELD:]), (x_test, y_test)


def alone(root: Path, name: str, seed: int) -> nn.Module:
    """A network of the pool, cached."""
    train, epochs = images(root, name)[0], STUDIES[name].epochs
    torch.manual_seed(seed)

    def fit(model: nn.Module) -> None:
        optimiser, steps = torch.optim.Adam(model.parameters(), 2e-3), epochs * len(train[0]) // SIZE
        fitted(model, optimiser, train, SIZE, steps, seed, lambda t: 0.5 * (1 + math.cos(math.pi * t)))

    return cached(f"ensembles-{name}-{seed}", network(name), fit)


def fast_geometric(start: nn.Module, train: Pair, rate: float, budget: float, seed: int) -> list[nn.Module]:
    """A member at the end of every cycle: the rate falls from its largest to a twentieth, and jumps back."""
    net, stream, members = Network(start), batches(train, SIZE, seed), [start]
    theta, velocity, steps = net.start.clone(), torch.zeros_like(net.start), int(budget / (MEMBERS - 1) / SIZE)
    for _ in range(MEMBERS - 1):
        for k in range(steps):
            x, y = next(stream)
            point = theta.requires_grad_(True)
            (gradient,) = torch.autograd.grad(F.cross_entropy(net(point, x), y), point)
            velocity = 0.9 * velocity + gradient
            theta = theta.detach() - rate * (1 - 0.95 * k / steps) * velocity
        members.append(net.model(theta).eval())
    return members


def apart(start: nn.Module, train: Pair, by: str, tolerance: float, eps: float, budget: float,
          seed: int) -> tuple[list[nn.Module], float]:  # fmt: skip
    """Members along invariant paths, and the gradient evaluations spent."""
    rows = torch.randperm(len(train[0]), generator=torch.Generator().manual_seed(seed))
    kept, members, spent = train[0][rows[:KEPT]], [start], 0.0
    for k in range(1, MEMBERS):
        if by == "weights":
            objective: Any = ip.Diversity(members)
        else:
            own = train[0][rows[KEPT + 1000 * (k - 1) :][:1000]]
            with torch.no_grad():
                said = start(own).argmax(1)
            attack = PGD(eps, 10)
            objective = ip.Diversity([start], attack(start, own, said, torch.Generator().manual_seed(k)))
            spent += len(own) * attack.evaluations
        path = ip.trace(start, ip.Reference(kept), objective, tolerance, 1000, seed + k,
                        max_evaluations=(budget - spent) / (MEMBERS - k))  # fmt: skip
        spent += path.evaluations
        members.append(path.model())
    return members, spent


def on_the_way(start: nn.Module, train: Pair, objective: Objective, tolerance: float, rate: float, budget: float,
               seed: int) -> tuple[list[nn.Module], float]:  # fmt: skip
    """The start and nine points along the last two thirds of a trace; the gradient evaluations spent."""
    rows = torch.randperm(len(train[0]), generator=torch.Generator().manual_seed(seed))[:ALONG]
    # few looks at few rows, and a weak pull at first: what is kept takes less than a third of the budget
    corrector, kept = Multiplier(50, 32, rate, first=0.1), ip.Reference(train[0][rows], sample=1024)
    theta, found = [], 0.0
    for state in ip.steps(start, kept, objective, tolerance, 100_000, seed, max_evaluations=budget,
                          corrector=corrector):  # fmt: skip
        found = state.evaluations
        if state.accepted:
            theta.append(state.theta)
    chosen, net = MEMBERS - 1, Network(start)
    places = [round((len(theta) - 1) * (1 - k * 2 / 3 / (chosen - 1))) for k in reversed(range(chosen))]
    return [start, *(net.model(theta[place]).eval() for place in places)], found


def wanted(start: nn.Module, train: Pair, method: str, settings: Settings, eps: float,
           seed: int) -> tuple[Objective, float]:  # fmt: skip
    """What a trace along which members lie goes to, and the gradient evaluations spent on it before."""
    attack = PGD(eps, 1, 1.25 * eps)  # the step of Wong, Rice & Kolter 2020, arXiv 2001.03994
    if method == "isopath, attacked":
        resisting = ip.Robust(*train, attack=attack, batch_size=64, seed=seed)
        return resisting + settings["clean"] * ip.Task(*train, batch_size=64), 0.0
    attacked = ip.attack(start, *train, attack, seed)
    clean = settings["clean"]
    seen = ip.Task(torch.cat([attacked, *[train[0]] * clean]), train[1].repeat(1 + clean), batch_size=96)
    return seen, len(train[0]) * (attack.evaluations + FORWARD)


def measured(root: Path, name: str, method: str, settings: Settings, seed: int, held: bool) -> dict[str, Any]:
    """An ensemble of ten, attacked."""
    train, *others = images(root, name)
    study, (x, y) = STUDIES[name], others[0 if held else 1]
    start, surrogate = alone(root, name, seed), alone(root, name, POOL - 1)
    whole = MEMBERS * study.epochs * len(train[0])
    budget = spent = SHARE * whole
    if method == "independent":
        members, spent = [alone(root, name, (seed + k) % (POOL - 1)) for k in range(MEMBERS)], whole
    elif method == "fast geometric":
        members = fast_geometric(start, train, settings["rate"], budget, seed)
    elif method in ("isopath, attacked", "isopath, transferred"):
        objective, before = wanted(start, train, method, settings, study.eps, seed)
        members, spent = on_the_way(start, train, objective, settings["tolerance"], settings["rate"],
                                    0.97 * budget - before, seed)  # fmt: skip
        spent += before
    else:
        by = method.removeprefix("isopath, ")
        members, spent = apart(start, train, by, settings["tolerance"], study.eps, budget, seed)
    ensemble = ip.Ensemble(members)
    one, ten = (100 * float(ip.evaluate(m, ip.Task(x, y)).accuracy or 0) for m in (start, ensemble))
    found = {"start": one, "clean": ten, "evaluations": spent}
    if held:
        scores = ip.robustness(ensemble, x[:1000], y[:1000], study.eps, surrogate, steps=10, restarts=1, autoattack=0,
                               large=8, seed=seed)  # fmt: skip
    else:
        scores = ip.robustness(ensemble, x[:SEEN], y[:SEEN], study.eps, surrogate, autoattack=OFFICIAL, seed=seed)
        pair = ip.compare(members, x[:SEEN], y[:SEEN], layers=())
        found |= {"coherence": pair.coherence, "disagreement": 100 * pair.disagreement, "flags": scores.flags}
        found |= {} if scores.autoattack is None else {"autoattack": 100 * scores.autoattack.value}
    assert scores.member is not None and scores.surrogate is not None
    found |= {"member": 100 * scores.member.value, "surrogate": 100 * scores.surrogate.value,
              "white_box": 100 * scores.white_box.value, "worst": 100 * scores.worst.value}  # fmt: skip
    return {**found, "transfer": min(found["member"], found["surrogate"])}


def settled(args: Any, name: str, method: str, ran: tuple[str, ...]) -> Settings | None:
    """The settings of a method; `None` while their held-out rows are not all known."""
    place, grid = f"ensembles/{name}/grid", GRIDS[method]
    if len(grid) == 1:
        return grid[0]

    def tried(method: str, settings: Settings, ran: tuple[str, ...]) -> dict[str, Any] | None:
        work = partial(measured, args.data, name, method, settings, 0, True)
        return run(place, labelled(method, settings), 0, settings, args, work, ran)

    apart, rows = tried("independent", {}, (*GROUND, *SCORED)), [tried(method, settings, ran) for settings in grid]

    def score(row: dict[str, Any]) -> tuple[bool, float]:
        assert apart is not None
        equal = row["clean"] >= apart["clean"]
        return equal, row["transfer" if equal else "clean"]

    known = [row for row in rows if row is not None]
    if apart is None or len(known) < len(grid):
        return None  # the time is up
    return max(zip(known, grid), key=lambda pair: score(pair[0]))[1]


def main() -> None:
    """Runs what is missing and prints the tables."""
    args, texts = arguments(__doc__ or "", methods=""), []
    for name in STUDIES:
        if args.only and name not in args.only:
            continue
        rows = []
        for method in GRIDS:
            if args.methods and method not in args.methods.split(";"):
                continue
            own = ("objectives/diversity",) if method in DRIFTING else STEPPED
            ran = (*RAN, *own, *SCORED) if method.startswith("isopath") else (*GROUND, *SCORED)
            best = settled(args, name, method, ran)
            for seed in args.seeds if best is not None else ():
                assert best is not None
                work = partial(measured, args.data, name, method, best, seed, False)
                rows.append(run(f"ensembles/{name}", method, seed, best, args, work, ran))
        if any(rows):
            columns = ["start", "clean", "member", "surrogate", "white_box", "autoattack", "worst", "coherence",
                       "disagreement", "evaluations"]  # fmt: skip
            texts.append(f"{name}\n\n{table(rows, columns, '{:.4g}')}")
    if not args.only and not args.methods:
        (RESULTS / "ensembles.md").write_text("\n\n".join(texts) + "\n")
    print("\n\n".join(texts))


if __name__ == "__main__":
    main()
