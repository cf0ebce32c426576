"""A small VGG and two small ResNets on CIFAR-10, sparse in single weights or in whole channels.

Images are averaged over 2 x 2 pixels, what two cores allow, and a JPEG copy. 45,000 training images and their mirror
images are the reference; on the other 5,000 settings are chosen, with seed 0. From one trained network per seed (SGD
with Nesterov's momentum, eight epochs of the same 90,000) each method may spend the same gradient evaluations, three
passes over the reference ("longer": eight); what it spent is in the row. Channels and "moved" have sixteen passes, and
seven more copies of the reference, each image moved by up to two pixels. Only the lines that say so, and HSPG, read
labels. isopath keeps the logits, for channels and with labels the probabilities.

unstructured: the methods of `benchmarks/sparsity.py`, their settings chosen of two at 95 %, by surgeons at one rate.
Batch norm takes the statistics of its batches in the steps of all but the normalised ones.

channels: HSPG (half-space stochastic projected gradient, `benchmarks/hspg.py`) against `ip.Sparsity` in channels, both
compacted; with "labels" half of what is kept of each image is its label. Of HSPG's settings whose compact network takes
at most 1 / 2 (1 / 4) of the operations the most accurate is chosen, after ten passes; ours are given by their widths:
half of each layer, or, chosen by the metric over the whole network, what is left when four fifths of the weights go.
"operations" and "faster" are ratios, dense to compact; time is that of 256 images in one run.

    python -m benchmarks.cifar_sparsity --data DATA
"""

from __future__ import annotations

import copy
import itertools
from collections.abc import Callable
from dataclasses import dataclass
from functools import cache, partial
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from torch import nn

import isopath as ip
from benchmarks.connect import Protocol, loaded, trained
from benchmarks.harness import GROUND, JOINED, RESULTS, arguments, labelled, run, settled_on, table
from benchmarks.hspg import hspg
from benchmarks.methods import Pair
from benchmarks.networks import resnet20, vgg
from benchmarks.sparsity import LOGITS, OURS, SIZE, SURGEONS, Settings, cut, gradual, masks, rates, stepped, weights
from isopath.trace import NaturalGradient, Recovery

HELD, PASSES, STEPS = 5000, 3, 50
SLIMMED_PASSES, COPIES, MOVED = 16, 8, 2
SPLIT = 0.98  # of the reference, what recovery sees; the rest judges the drift
KEPT = {"divergence": "squared_error"}
UNITS = (*JOINED, "symmetry/units", "symmetry/compaction", "symmetry/trial")


@dataclass(frozen=True)
class Study:
    """One network, and what is asked of it.

    Args:
        build: the network.
        methods: and the grid of each.
        fractions: of the weights that go, the one settings are chosen at first.
        passes: over the 90,000 that gradient evaluations may be spent on.
        dense: the study whose trained networks are pruned, where it is another one.
        moved: whether the reference holds moved copies too.
    """

    build: Callable[[], nn.Module]
    methods: dict[str, list[Settings]]
    fractions: tuple[float, ...] = ()
    passes: int = PASSES
    dense: str = ""
    moved: bool = False


def ours(*grid: float) -> list[Settings]:
    """With logits kept."""
    return [{"rate": rate, **KEPT} for rate in grid]


SURGERY = [{"rate": 4e-3, "damping": damping} for damping in (1e-5, 1e-3)]
METHODS = {
    "one-shot": rates(0.0), **dict.fromkeys(("gradual, distilled", LOGITS, "gradual, labels"), rates(4e-3, 8e-3)),
    **dict.fromkeys(("isopath, magnitude", "isopath, metric", "isopath, diagonal"), ours(8e-3, 1.6e-2)),
    **dict.fromkeys(SURGEONS, SURGERY),
    "normalised steps": [{"rate": rate, "weight": 10.0} for rate in (0.03, 0.1)],
}  # fmt: skip
LABELLED: list[Settings] = [{"rate": 1.6e-2, "divergence": "kl", "labels": 0.5}]
STUDIES = {
    "vgg": Study(vgg, METHODS, (0.95, 0.9, 0.98)),
    # at the rates that three passes chose
    "longer": Study(vgg, {LOGITS: rates(4e-3), "isopath, metric": ours(1.6e-2)}, (0.9,), 8, "vgg"),
    "moved": Study(vgg, {**dict.fromkeys((LOGITS, "gradual, labels"), rates(4e-3)), "isopath, metric": ours(1.6e-2),
                         "isopath, labels": LABELLED},
                   (0.9,), SLIMMED_PASSES, "vgg", True),
}
# two residual networks, of 8, 16, 32 and of 16, 32, 64 channels, at the rates that the VGG chose
for _name, _width in {"resnet": 8, "resnet-20": 16}.items():
    _build = partial(resnet20, _width)
    STUDIES[_name] = Study(_build, {"one-shot": rates(0.0), **dict.fromkeys((LOGITS, "gradual, labels"), rates(4e-3)),
                           **dict.fromkeys(("isopath, magnitude", "isopath, metric"), ours(1.6e-2))}, (0.95, 0.9, 0.98))
    STUDIES[f"{_name}, moved"] = Study(_build, {"gradual, labels": rates(4e-3), "isopath, labels": LABELLED},
                                       (0.9,), SLIMMED_PASSES, _name, True)
LEAST = {2: 0.5, 4: 0.75}  # of the weights in eights of each layer's channels: 2.1 and 4.2 times fewer operations
SLIMMING = {"rate": 1.6e-2, "scope": "layer", "multiple": 8, "divergence": "kl"}
SLIMMED: dict[str, list[Settings]] = {
    "HSPG": [{"rate": 0.05, "weight": weight} for weight in (0.02, 0.04, 0.1)],
    "isopath, magnitude": [{**SLIMMING, "fraction": fraction} for fraction in LEAST.values()],
    "isopath, labels": [{**SLIMMING, "fraction": fraction, "labels": 0.5} for fraction in LEAST.values()],
    "isopath, widths chosen": [{**SLIMMING, "scope": "global", "score": "metric", "fraction": 0.8, "labels": 0.5}],
}


def fewer(settings: Settings) -> ip.Sparsity:
    """Whole channels, as settings of ours have it."""
    score, multiple = settings.get("score", "magnitude"), settings["multiple"]
    return ip.Sparsity(settings["fraction"], "channels", settings["scope"], score, multiple=multiple)


@cache
def images(root: Path) -> tuple[Pair, Pair, Pair]:
    """Reference, held-out and test images, with labels."""
    (x, y), test = (loaded(root, "cifar16", train) for train in (True, False))
    twice = torch.cat([x[:-HELD], x[:-HELD].flip(3)]), y[:-HELD].repeat(2)
    placed = [(t.contiguous(memory_format=torch.channels_last), of) for t, of in (twice, (x[-HELD:], y[-HELD:]), test)]
    return placed[0], placed[1], placed[2]


@cache
def reference(root: Path) -> Pair:
    """The images, and copies of them moved by up to two pixels each way, with labels."""
    (x, y), generator = images(root)[0], torch.Generator().manual_seed(5)
    side, every = x.shape[-1], [x]
    wide = F.pad(x, (MOVED,) * 4, mode="reflect")
    for _ in range(COPIES - 1):
        moved, by = torch.empty_like(x), torch.randint(0, 2 * MOVED + 1, (2, len(x)), generator=generator)
        for down, right in itertools.product(range(2 * MOVED + 1), repeat=2):
            rows = (by[0] == down) & (by[1] == right)
            moved[rows] = wide[rows, :, down : down + side, right : right + side]
        every.append(moved)
    return torch.cat(every).contiguous(memory_format=torch.channels_last), y.repeat(COPIES)


def network(root: Path, name: str, seed: int) -> nn.Module:
    """The dense network, cached."""
    study = STUDIES[name]
    protocol = Protocol(study.build, "cifar16", 8, "sgd", 0.1, 5e-4)
    return trained(f"cifar_sparsity-{study.dense or name}", protocol, seed, images(root)[0])


def accuracy(model: nn.Module, data: Pair) -> float:
    """Percent."""
    return 100 * float(ip.evaluate(model, ip.Task(*data, batch_size=1000)).accuracy or 0)


def traced(
    model: nn.Module, x: torch.Tensor, objective: ip.Sparsity, settings: Settings, seed: int,
    budget: float, metric: str = "kronecker", outputs: torch.Tensor | None = None,
) -> Any:  # fmt: skip
    """Ours: the sparse network and the gradient evaluations spent."""
    rounds = int(budget) // (STEPS * SIZE)
    recovery, direction = Recovery(STEPS, SIZE, settings["rate"]), NaturalGradient(metric, {"samples": 1})
    kept = ip.Reference(x, settings["divergence"], outputs, split=SPLIT, batch_size=1000)
    *_, last = ip.steps(model, kept, objective, 1e9, rounds, seed, max_evaluations=budget, corrector=recovery,
                        direction=direction)  # fmt: skip
    return last.model(), last.evaluations


def pruned(root: Path, name: str, method: str, settings: Settings, fraction: float, seed: int,
           held: bool) -> dict[str, Any]:  # fmt: skip
    """Single weights: accuracy before and after, and what it cost."""
    (x, y), *others = images(root)
    model, data = network(root, name, seed), others[0 if held else 1]
    sparse, spent, budget, rate = copy.deepcopy(model), 0.0, STUDIES[name].passes * len(x), settings["rate"]
    x, y = reference(root) if STUDIES[name].moved else (x, y)
    if method == "one-shot":
        cut(sparse, masks(sparse, fraction))
    elif method == "normalised steps":
        spent = stepped(sparse, x, fraction, rate, settings["weight"], budget, seed)
    elif method.startswith("isopath"):
        objective = ip.Sparsity(fraction, score="magnitude" if method.endswith("magnitude") else "metric")
        metric = "diagonal" if method.endswith("diagonal") else "kronecker"
        outputs = mixed(model, x, y, settings["labels"]) if "labels" in settings else None
        sparse, spent = traced(model, x, objective, settings, seed, budget, metric, outputs)
    else:
        labels = y if method.endswith("labels") else None
        spent = gradual(sparse, x, labels, fraction, rate, budget, seed, method == LOGITS, SURGEONS.get(method),
                        settings.get("damping", 0.0))  # fmt: skip
    zero = sum(int((p == 0).sum()) for p in weights(sparse)) / sum(p.numel() for p in weights(sparse))
    before, after = accuracy(model, data), accuracy(sparse, data)
    return {"dense": before, "accuracy": after, "lost": before - after, "zero": zero, "evaluations": spent}


def mixed(model: nn.Module, x: torch.Tensor, y: torch.Tensor, share: float) -> torch.Tensor:
    """Log of what the network says and the label, weighed: the outputs to keep where labels may be read."""
    with torch.no_grad():
        said = torch.cat([model(part).softmax(1) for part in x.split(1000)])
    return said.lerp(F.one_hot(y, said.shape[1]).to(said), share).clamp_min(1e-6).log()


def slimmed(root: Path, method: str, settings: Settings, seed: int, held: bool) -> dict[str, Any]:
    """Channels of the VGG: accuracy and cost of the compact network beside the dense one's."""
    (first, _), *others = images(root)
    model, data, budget = network(root, "vgg", seed), others[0 if held else 1], SLIMMED_PASSES * len(first)
    x, y = reference(root)
    if method == "HSPG":
        sparse = copy.deepcopy(model)
        spent = hspg(sparse, x, y, settings["rate"], settings["weight"], budget, seed)
    else:
        outputs = mixed(model, x, y, settings["labels"]) if "labels" in settings else None
        sparse, spent = traced(model, x, fewer(settings), settings, seed, budget, outputs=outputs)
    small = ip.compact(sparse, x[:2]).to(memory_format=torch.channels_last)  # type: ignore[call-overload]
    with torch.no_grad():
        apart = float((small(x[:256]) - sparse(x[:256])).abs().max())
    costs = [ip.footprint(m, x[:256]) for m in (model, small)]
    before, after = accuracy(model, data), accuracy(small, data)
    return {"dense": before, "accuracy": after, "lost": before - after, "operations": costs[0].flops / costs[1].flops,
            "faster": costs[0].seconds / costs[1].seconds, "parameters": costs[1].parameters,
            "smaller": costs[0].parameters / costs[1].parameters, "compacted_apart": apart,
            "evaluations": spent}  # fmt: skip


def _ran(method: str, units: bool = False) -> tuple[str, ...]:
    ours = method.startswith("isopath")
    found = (*OURS, "trace/normalisation", "connect/statistics") if ours else GROUND
    more = (*UNITS, *(("objectives/channels",) if ours else ())) if units else ()
    return tuple(dict.fromkeys((*found, *more)))


def unstructured(args: Any, name: str) -> list[str]:
    """What is missing of one network, and its tables."""
    study, texts = STUDIES[name], []
    methods = [m for m in study.methods if not args.methods or m in args.methods.split(";")]
    settled: dict[str, Settings | None] = {}
    for method in methods:

        def work(settings: Settings, method: str = method) -> dict[str, Any]:
            return pruned(args.data, name, method, settings, study.fractions[0], 0, True)

        place = f"cifar_sparsity/{name}"
        settled[method] = settled_on(place, method, study.methods[method], args, work, "accuracy", _ran(method))
    for fraction in study.fractions:
        rows = []
        for method, settings in settled.items():
            for seed in args.seeds[:2] if settings is not None else ():
                work = partial(pruned, args.data, name, method, settings, fraction, seed, False)
                place = f"cifar_sparsity/{name}/{100 * fraction:g}"
                rows.append(run(place, method, seed, settings or {}, args, work, _ran(method)))
        if any(rows):
            text = table(rows, ["dense", "accuracy", "lost", "evaluations"], "{:.4g}")
            texts.append(f"{name}, {100 * fraction:g} % of the weights zero\n\n{text}")
    return texts


def channels(args: Any) -> list[str]:
    """What is missing of the channels, and their tables."""
    tried: list[tuple[Settings, Any]] = []
    methods = [m for m in SLIMMED if not args.methods or m in args.methods.split(";")]
    for settings in SLIMMED["HSPG"] if "HSPG" in methods else ():
        work = partial(slimmed, args.data, "HSPG", settings, 0, True)
        label = labelled("HSPG", settings)
        row = run("cifar_sparsity/channels/grid", label, 0, settings, args, work, _ran("HSPG", True))
        tried += [(settings, row)] if row else []
    texts = []
    for k, least in enumerate(LEAST):
        rows = []
        for method in methods:
            settled: Settings | None = SLIMMED[method][k] if k < len(SLIMMED[method]) else None
            if method == "HSPG":
                enough = [(row["accuracy"], i) for i, (_, row) in enumerate(tried) if row["operations"] >= least]
                settled = tried[max(enough)[1]][0] if enough else None
            for seed in args.seeds[:2] if settled is not None else ():
                assert settled is not None
                work = partial(slimmed, args.data, method, settled, seed, False)
                place = f"cifar_sparsity/channels/{least}"
                rows.append(run(place, method, seed, settled, args, work, _ran(method, True)))
        if any(rows):
            columns = ["dense", "accuracy", "lost", "operations", "faster", "smaller", "evaluations"]
            texts.append(f"channels, at least {least} times fewer operations\n\n" + table(rows, columns, "{:.4g}"))
    return texts


def main() -> None:
    """Runs what is missing and prints the tables."""
    args, texts = arguments(__doc__ or "", methods=""), []
    if not args.only or "channels" in args.only:
        texts += channels(args)
    for name in STUDIES:
        if not args.only or name in args.only:
            texts += unstructured(args, name)
    if not args.only and not args.methods:
        (RESULTS / "cifar_sparsity.md").write_text("\n\n".join(texts) + "\n")
    print("\n\n".join(texts))


if __name__ == "__main__":
    main()
