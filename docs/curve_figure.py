"""The README's figure of joined networks, from the results: `python docs/curve_figure.py docs/joined.png`."""

from __future__ import annotations

import sys
from pathlib import Path

import matplotlib
import matplotlib.pyplot as plt

from isopath.storage import read_json

matplotlib.use("Agg")
BLUE, ORANGE, GREY, GREEN, INK = "#2f6fb0", "#d9730d", "#9aa3ad", "#2e8b57", "#23292f"
KINDS = {"second network as it came": GREY, "its units aligned": ORANGE, "and rescaled": BLUE,
         "a curve, no labels used": GREEN}
RESULTS = Path(__file__).parent.parent / "benchmarks" / "results"
PANELS = [
    ("CIFAR-10, perceptron 3 × 512", "connect/cifar_mlp", ["unaligned", "mixed", "rescaled"]),
    ("CIFAR-10, ten layers", "curves/tiny", ["unaligned-0", "aligned-0", "rescaled-0", "aligned, consensus-3200"]),
    ("CIFAR-10, ResNet-20", "connect/cifar_resnet20", ["unaligned", "activations", "rescaled"]),
    ("Fashion-MNIST, transformer", "connect/fashion_vit", ["unaligned", "activations", "rescaled"]),
]


def accuracies(protocol: str, method: str) -> list[list[float]]:
    """Of every pair, in percent, on the grid of t."""
    rows = [read_json(file) for file in sorted((RESULTS / protocol).glob(f"{method}-*.json"))]
    found = [[float(value) for value in row["accuracy"]] for row in rows]
    return [[100 * v for v in values] if max(values) <= 1 else values for values in found]


def draw(out: Path) -> None:
    """Accuracy from one network to the other on straight lines, as they came, aligned and rescaled, and on a curve."""
    plt.rcParams.update({"font.size": 11, "axes.spines.top": False, "axes.spines.right": False, "text.color": INK})
    figure, panels = plt.subplots(1, len(PANELS), figsize=(11.6, 3.1), layout="constrained", sharey=True)
    for axes, (title, protocol, methods) in zip(panels, PANELS):
        for method, colour in zip(methods, KINDS.values()):
            pairs = accuracies(protocol, method)
            for values in pairs:
                grid = [i / (len(values) - 1) for i in range(len(values))]
                axes.plot(grid, values, color=colour, lw=2.2, alpha=0.85)
            if pairs:
                middle = sum(values[len(values) // 2] for values in pairs) / len(pairs)
                x, y = {BLUE: (16, 1) if len(methods) > 3 else (0, 9), GREEN: (0, 7)}.get(colour, (0, -15))
                axes.annotate(f"{middle:.0f} %", (0.5, middle), (x, y), textcoords="offset points", color=colour,
                              ha="center", weight="bold")  # fmt: skip
        axes.set_title(title, fontsize=11)
        axes.set(xlabel="t", xticks=[0, 0.5, 1], ylim=(0, 100))
        axes.grid(axis="y", color=GREY, alpha=0.25)
        axes.tick_params(colors=INK)
    panels[0].set_ylabel("test accuracy, %")
    for i, (said, colour) in enumerate(KINDS.items()):
        place = (0.03, 92 - 9 * i) if colour != GREEN else (0.03, 90)
        panels[int(colour == GREEN)].annotate(said, place, color=colour, fontsize=10, weight="bold")
    figure.savefig(out, dpi=144)


if __name__ == "__main__":
    draw(Path(sys.argv[1]))
