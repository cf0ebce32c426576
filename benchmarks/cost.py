"""The cost of one product with the exact metric, in gradient evaluations of the same batch and attention backend.

Ratios of medians within one run; MLP, convolutional and attention networks, all with their reference in one batch and
in two. Takes no data.

    python -m benchmarks.cost --data .
"""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn

import isopath as ip
from benchmarks.harness import RESULTS, arguments, run, table
from isopath.geometry.exact import Exact
from isopath.network import Network


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


def main() -> None:
    """Runs what is missing and prints the table."""
    args, rows = arguments(__doc__ or ""), []
    for name, (model, x) in networks().items():
        for batches in (1, 2):

            def work(model: nn.Module = model, x: Tensor = x, batches: int = batches) -> dict[str, Any]:
                return ratio(model, x, batches)

            rows.append(run("cost", f"{name}-{batches}", 0, {"rows": len(x), "batches": batches}, args, work))
    text = table(rows, ["ratio", "low", "high", "gradient_ms"])
    (RESULTS / "cost.md").write_text(text + "\n")
    print(text)


if __name__ == "__main__":
    main()
