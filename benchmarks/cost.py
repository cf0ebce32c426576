"""What a product with the exact metric and a step of a path to sparsity cost, in gradients; what fewer channels save.

Ratios of medians within one run. Products: MLP, convolutional and attention networks, all with their reference in one
batch and in two, and the same attention backend. Steps: rounds of 50 steps of 128 rows, with the choice of what goes,
the metric behind it and the judge, to a plain forward and backward pass over 128 rows; LeNet-300-100 with 60,000 rows
and a VGG with 90,000. Channels: the forward pass of 256 images by the VGG of `benchmarks/cifar_sparsity.py`, to that of
what `ip.compact` leaves of it with half of each layer's channels gone, in eights (random weights: the widths are those
of its rows). Takes no data.

    python -m benchmarks.cost --data .
"""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn

import isopath as ip
from benchmarks.cifar_sparsity import SLIMMED, UNITS, fewer
from benchmarks.harness import GROUND, RESULTS, arguments, run, table
from benchmarks.networks import vgg
from benchmarks.sparsity import OURS, network
from isopath.geometry.exact import Exact
from isopath.network import Network
from isopath.trace import NaturalGradient, Recovery

STEPS, SIZE, ROUNDS = 50, 128, 10


class Attention(nn.Module):
    """Two encoder layers of width 64 over 16 tokens, a linear head on their mean."""

    def __init__(self) -> None:
        super().__init__()
        layer = nn.TransformerEncoderLayer(64, 4, 128, batch_first=True)
        self.encoder, self.head = nn.TransformerEncoder(layer, 2, enable_nested_tensor=False), nn.Linear(64, 10)

    def forward(self, x: Tensor) -> Tensor:
        """Class scores."""
        return self.head(self.encoder(x).mean(1))


def networks() -> dict[str, tuple[nn.Module, Tensor]]:
    """Networks with a batch of inputs each."""
    torch.manual_seed(0)
    conv = nn.Sequential(
        nn.Conv2d(1, 16, 3, padding=1), nn.BatchNorm2d(16), nn.ReLU(), nn.MaxPool2d(2), nn.Conv2d(16, 32, 3),
        nn.ReLU(), nn.MaxPool2d(2), nn.Flatten(), nn.Linear(1152, 10),
    )  # fmt: skip
    mlp = nn.Sequential(nn.Linear(784, 300), nn.ReLU(), nn.Linear(300, 100), nn.ReLU(), nn.Linear(100, 10))
    return {
        "mlp": (mlp, torch.randn(512, 784)),
        "conv": (conv, torch.randn(256, 1, 28, 28)),
        "attention": (Attention().eval(), torch.randn(256, 16, 64)),
    }


def timed(work: Callable[[], Any]) -> float:
    """Seconds of one call."""
    began = time.perf_counter()
    work()
    return time.perf_counter() - began


def ratio(model: nn.Module, x: Tensor, batches: int) -> dict[str, float]:
    """Product over gradient, the two in turn so that a drifting machine touches both alike."""
    network = Network(model)
    part = ip.Reference(x, batch_size=len(x) // batches).whole(network, network.start)
    metric = Exact(network, network.start, part.batches)
    v = torch.randn_like(network.start)
    work = {"product": lambda: metric.mv(v), "gradient": lambda: part.gradient(network.start)}
    times: dict[str, list[float]] = {name: [] for name in work}
    for name in [*work] * 3:
        work[name]()
    for _ in range(30):
        for name, call in work.items():
            times[name].append(timed(call))
    ratios = [a / b for a, b in zip(times["product"], times["gradient"])]
    return {
        "ratio": statistics.median(times["product"]) / statistics.median(times["gradient"]),
        "low": statistics.quantiles(ratios, n=10)[0],
        "high": statistics.quantiles(ratios, n=10)[-1],
        "gradient_ms": 1e3 * statistics.median(times["gradient"]),
    }


def sparsifying(name: str) -> dict[str, float]:
    """A step of a path to 90 % zeros over a plain gradient, rounds and gradients in turn."""
    torch.manual_seed(0)
    model, x = {"lenet": (network, (60_000, 784)), "vgg": (vgg, (90_000, 3, 16, 16))}[name]
    model, x, y = model().eval(), torch.rand(x), torch.randint(10, (SIZE,))
    kept = ip.Reference(x, "squared_error", split=0.98, batch_size=1000)
    rounds = ip.steps(model, kept, ip.Sparsity(0.9, score="metric"), 1e9, ROUNDS, corrector=Recovery(STEPS, SIZE),
                      direction=NaturalGradient("kronecker", {"samples": 1}))  # fmt: skip
    for _ in range(2):
        next(rounds)  # the start, and a first round

    def plain() -> None:
        for part in x[: 8 * SIZE].split(SIZE):
            model.zero_grad()
            nn.functional.cross_entropy(model(part), y).backward()

    taken = [(timed(lambda: next(rounds)) / STEPS, timed(plain) / 8) for _ in range(ROUNDS - 1)]
    ratios = [a / b for a, b in taken]
    return {
        "ratio": sum(a for a, _ in taken) / sum(b for _, b in taken), "low": min(ratios), "high": max(ratios),
        "gradient_ms": 1e3 * statistics.median(b for _, b in taken),
    }  # fmt: skip


def slimmer() -> dict[str, float]:
    """The time of the dense network by that of the compact one, in turns."""
    torch.manual_seed(0)
    x = torch.rand(2000, 3, 16, 16).contiguous(memory_format=torch.channels_last)
    dense = vgg().eval().to(memory_format=torch.channels_last)  # type: ignore[call-overload]
    halved = fewer(SLIMMED["isopath, labels"][0])
    *_, last = ip.steps(dense, ip.Reference(x, split=0.9), halved, 1e9, 2, corrector=None)
    small = ip.compact(last.model(), x[:2]).to(memory_format=torch.channels_last)  # type: ignore[call-overload]

    def passed(model: nn.Module) -> Any:
        with torch.no_grad():
            return model(x[:256])

    for model in (dense, small) * 3:
        passed(model)
    taken = [(timed(partial(passed, dense)), timed(partial(passed, small))) for _ in range(40)]
    ratios = [a / b for a, b in taken]
    ends = statistics.quantiles(ratios, n=10)
    return {
        "ratio": statistics.median(a for a, _ in taken) / statistics.median(b for _, b in taken), "low": ends[0],
        "high": ends[-1], "operations": ip.footprint(dense, x[:256]).flops / ip.footprint(small, x[:256]).flops,
    }  # fmt: skip


def main() -> None:
    """Runs what is missing and prints the table."""
    args, rows = arguments(__doc__ or ""), []
    ran = (*GROUND, *UNITS, "objectives/channels")
    rows.append(run("cost", f"channels-vgg, {args.threads} threads", 0, {}, args, slimmer, ran))
    for name in ("lenet", "vgg"):
        ran = (*GROUND, *OURS, "trace/normalisation")
        rows.append(run("cost", f"sparsity-{name}", 0, {"rounds": ROUNDS}, args, partial(sparsifying, name), ran))
    for name, (model, x) in networks().items():
        for batches in (1, 2):

            def work(model: nn.Module = model, x: Tensor = x, batches: int = batches) -> dict[str, Any]:
                return ratio(model, x, batches)

            rows.append(run("cost", f"{name}-{batches}", 0, {"rows": len(x), "batches": batches}, args, work))
    text = table(rows, ["ratio", "low", "high", "gradient_ms", "operations"])
    (RESULTS / "cost.md").write_text(text + "\n")
    print(text)


if __name__ == "__main__":
    main()
