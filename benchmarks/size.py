"""A Kronecker metric at the size of ResNet-18 (11 M) and MiniLM-L6 (22 M), with random weights: time and memory.

Times are ratios within one run: of building, to gradient passes over the same 2,000 inputs; of a step of
`ip.optim.Invariant`, to one of its base optimiser, five and five (ten and ten) in turns, median to median. The error of
G v, of truncated and split factors to whole ones, is on 200 inputs. "cnn" and "mlp" are the small networks of
`benchmarks/protocols.py` for CIFAR-10 (batches of 32) and MNIST (of 128); "together" steers five steps together, "ten"
ten, which then also share one pull. Takes no data; MiniLM's definition takes transformers.

    python -m benchmarks.size --data .
"""

from __future__ import annotations

import itertools
import statistics
import time
from collections.abc import Callable
from functools import partial
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

import isopath as ip
from benchmarks.harness import GROUND, RESULTS, arguments, run, table
from benchmarks.protocols import PROTOCOLS
from isopath.geometry.curvature import Curvature
from isopath.network import Network

ROWS, RANK, CHECKED = 2000, 128, 200
RAN = (*GROUND, "optim", *(f"geometry/{name}" for name in ("blocks", "curvature", "estimated", "factors", "kronecker",
       "memory", "sweep")))  # fmt: skip
KINDS = {"truncated": {"rank": RANK}, "default": {}, "split": {"split": 512}}
TURNS, FIVE, TEN = {"resnet18": 9, "minilm": 7, "cnn": 80, "mlp": 80}, 5, 10


class Residual(nn.Module):
    """Two convolutions and a shortcut."""

    def __init__(self, inputs: int, outputs: int, stride: int) -> None:
        super().__init__()
        self.first, self.second = nn.Conv2d(inputs, outputs, 3, stride, 1, bias=False), _conv(outputs)
        self.norms = nn.ModuleList([nn.BatchNorm2d(outputs) for _ in range(2)])
        self.short = nn.Conv2d(inputs, outputs, 1, stride, bias=False) if stride > 1 else nn.Identity()

    def forward(self, x: Tensor) -> Tensor:
        """`(N, C, H, W)`."""
        y = self.norms[1](self.second(self.norms[0](self.first(x)).relu()))
        return (y + self.short(x)).relu()


def _conv(width: int) -> nn.Conv2d:
    return nn.Conv2d(width, width, 3, 1, 1, bias=False)


def resnet18() -> tuple[nn.Module, Any, int]:
    """The network, 2,000 images of 64 x 64 pixels and a batch size."""
    layers: list[nn.Module] = [nn.Conv2d(3, 64, 7, 2, 3, bias=False), nn.BatchNorm2d(64), nn.ReLU()]
    layers.append(nn.MaxPool2d(3, 2, 1))
    for inputs, outputs in ((64, 64), (64, 128), (128, 256), (256, 512)):
        layers += [Residual(inputs, outputs, 1 if inputs == outputs else 2), Residual(outputs, outputs, 1)]
    model = nn.Sequential(*layers, nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(512, 10))
    return model, torch.rand(ROWS, 3, 64, 64), 64


def minilm(tokens: int = 32) -> tuple[nn.Module, Any, int]:
    """The network, 2,000 texts and a batch size."""
    from transformers import BertConfig, BertForSequenceClassification

    config = BertConfig(
        vocab_size=30522, hidden_size=384, num_hidden_layers=6, num_attention_heads=12, intermediate_size=1536,
        num_labels=4, hidden_dropout_prob=0.0, attention_probs_dropout_prob=0.0,
    )  # fmt: skip
    words = torch.randint(1000, 30000, (ROWS, tokens))
    return BertForSequenceClassification(config), {"input_ids": words, "attention_mask": torch.ones_like(words)}, 32


def small(protocol: str, *shape: int) -> tuple[nn.Module, Any, int]:
    """The network of a continual protocol, as many random inputs as are kept, and its batch size."""
    p = PROTOCOLS[protocol]
    return p.network(0), torch.rand(CHECKED, *shape), p.size


MODELS: dict[str, Callable[[], tuple[nn.Module, Any, int]]] = {"resnet18": resnet18, "minilm": minilm}
STEPPED = {
    **MODELS, "minilm": partial(minilm, 96), "cnn": partial(small, "cifar-class", 3, 16, 16),
    "mlp": partial(small, "permuted-20", 784),
}  # fmt: skip


def _rows(inputs: Any, rows: slice) -> Any:
    return {key: value[rows] for key, value in inputs.items()} if isinstance(inputs, dict) else inputs[rows]


def _logits(model: nn.Module, inputs: Any) -> Tensor:
    found: Any = model(**inputs) if isinstance(inputs, dict) else model(inputs)
    result: Tensor = getattr(found, "logits", found)
    return result


def building(name: str, kind: str, seed: int) -> dict[str, Any]:
    """Gradient passes that building takes, one random column of the outputs' curvature; memory; error of G v."""
    torch.manual_seed(seed)
    model, inputs, size = MODELS[name]()
    model.eval()
    labels, began = torch.randint(4, (ROWS,)), time.perf_counter()
    for start in range(0, ROWS, size):
        rows = slice(start, start + size)
        model.zero_grad()
        F.cross_entropy(_logits(model, _rows(inputs, rows)), labels[rows]).backward()
    one, network = time.perf_counter() - began, Network(model)
    kept, began = ip.Reference(inputs, "kl", batch_size=size), time.perf_counter()
    metric = kept.metric(model, "kronecker", samples=1, **KINDS[kind])
    taken = time.perf_counter() - began
    numbers = sum(p.numel() * p.element_size() for p in model.parameters())
    found = {
        "build_passes": taken / one, "gradient_pass_seconds": one, "parameters": network.space.dimension,
        "memory": Curvature.named(metric).bytes / numbers,  # type: ignore[arg-type]
    }  # fmt: skip
    if kind in ("truncated", "split"):
        few = ip.Reference(_rows(inputs, slice(0, CHECKED)), "kl", batch_size=size)
        whole = few.metric(model, "kronecker", samples=1, rank=5000)
        metric = few.metric(model, "kronecker", samples=1, **KINDS[kind])  # type: ignore[assignment]
        theta = network.start
        v = sum(
            torch.autograd.grad(F.cross_entropy(network(point, _rows(inputs, rows)), labels[rows]), point)[0]
            for point, rows in [(theta.clone().requires_grad_(True), slice(0, CHECKED))]
        )
        exact = whole.mv(v)
        found["error"] = float((metric.mv(v) - exact).norm() / exact.norm())
    return found


def stepping(name: str, together: int, seed: int) -> dict[str, Any]:
    """The time of a steered step by that of a plain one, factors of one task truncated; building apart.

    Texts have 96 tokens here.
    """
    torch.manual_seed(seed)
    model, inputs, size = STEPPED[name]()
    labels, batch = torch.randint(4, (size,)), _rows(inputs, slice(0, size))
    memory = ip.Memory(examples=0, factors=True, rank=RANK, divergence="kl")
    memory = memory.remember(model, _rows(inputs, slice(0, CHECKED)))

    turn = max(together, FIVE)

    def timed(optimizer: torch.optim.Optimizer) -> float:
        began = time.perf_counter()
        for _ in range(turn):
            optimizer.zero_grad()
            F.cross_entropy(_logits(model, batch), labels).backward()
            optimizer.step()
        return (time.perf_counter() - began) / turn

    base = partial(torch.optim.SGD, list(model.parameters()), 1e-5, momentum=0.9)
    began = time.perf_counter()
    steered = ip.optim.Invariant(base(), model, memory, tolerance=None, renew=turn, steer_every=together)
    starting = time.perf_counter() - began
    plain, own, in_turn = base(), [], []
    for _ in range(TURNS[name]):  # the first warms up
        own.append(timed(steered))
        in_turn.append(timed(plain))
    step, without = (statistics.median(times[1:]) for times in (own, in_turn))
    return {"step": step / without, "plain_seconds": without, "start_seconds": starting, "batch": size}


def main() -> None:
    """Runs what is missing and prints the table."""
    args = arguments(__doc__ or "")
    works: dict[str, tuple[dict[str, Any], Callable[[], dict[str, Any]]]] = {}
    for name, together in [*itertools.product(STEPPED, (1, FIVE)), ("cnn", TEN), ("mlp", TEN)]:
        method = f"{name}-step" + {1: "", FIVE: ", together", TEN: ", ten"}[together]
        works[method] = {"steer_every": together}, partial(stepping, name, together, 0)
    for kind, name in itertools.product(KINDS, MODELS):
        works[f"{name}-{kind}"] = KINDS[kind], partial(building, name, kind, 0)
    rows = [run("size", method, 0, settings, args, work, RAN) for method, (settings, work) in works.items()
            if not args.only or method in args.only]  # fmt: skip
    columns = ["build_passes", "memory", "error", "step", "gradient_pass_seconds", "plain_seconds", "parameters"]
    text = table(rows, columns, "{:.4g}")
    if not args.only:
        (RESULTS / "size.md").write_text(text + "\n")
    print(text)


if __name__ == "__main__":
    main()
