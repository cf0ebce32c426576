"""The README's figure of joined networks, from the results: `python docs/curve_figure.py docs/joined.png`."""

from __future__ import annotations

import sys
from pathlib import Path

import matplotlib
import matplotlib.pyplot as plt

from isopath.storage import read_json

matplotlib.use("Agg")
BLUE, ORANGE, GREY, INK = "#2f6fb0", "#d9730d", "#9aa3ad", "#23292f"
RESULTS = Path(__file__).parent.parent / "benchmarks" / "results"
PANELS = [
    ("MNIST, perceptron 3 × 512\nstraight line", "connect/mnist_mlp", ["unaligned", "weights"]),
    ("CIFAR-10, ResNet-20\nstraight line", "connect/cifar_resnet20", ["unaligned", "activations"]),
    ("CIFAR-10, ten layers\ntrained Bezier curve", "curves/tiny", ["unaligned-3200", "aligned-3200"]),
    ("MNIST, under attack\nstraight line", "curves/robust", ["unaligned-0", "aligned-0"]),
]


def accuracies(protocol: str, method: str) -> list[list[float]]:
    """Of every pair, in percent, on the grid of t."""
    rows = [read_json(file) for file in sorted((RESULTS / protocol).glob(f"{method}-*.json"))]
    found = [[float(value) for value in row["accuracy"]] for row in rows]
    return [[100 * v for v in values] if max(values) <= 1 else values for values in found]


def draw(out: Path) -> None:
    """Accuracy from one network to the other, before and after alignment."""
    plt.rcParams.update({"font.size": 11, "axes.spines.top": False, "axes.spines.right": False, "text.color": INK})
    figure, panels = plt.subplots(1, len(PANELS), figsize=(11.6, 3.1), layout="constrained", sharey=True)
    for axes, (title, protocol, methods) in zip(panels, PANELS):
        for method, colour in zip(methods, (GREY, BLUE)):
            pairs = accuracies(protocol, method)
            for values in pairs:
                grid = [i / (len(values) - 1) for i in range(len(values))]
                axes.plot(grid, values, color=colour, lw=2.2, alpha=0.85)
            if pairs:
                low = min(min(values) for values in pairs)
                place = (0, 8 if colour == BLUE else -14)
                axes.annotate(f"{low:.0f} %", (0.5, low), place, textcoords="offset points", ha="center",
                              color=colour, weight="bold")  # fmt: skip
        axes.set_title(title, fontsize=11)
        axes.set(xlabel="t", xticks=[0, 0.5, 1], ylim=(-6, 104))
        axes.grid(axis="y", color=GREY, alpha=0.25)
        axes.tick_params(colors=INK)
    panels[0].set_ylabel("test accuracy, %")
    panels[0].annotate("second network as it came", (0.03, 6), color=GREY, fontsize=10, weight="bold")
    panels[0].annotate("its units aligned", (0.03, 18), color=BLUE, fontsize=10, weight="bold")
    figure.savefig(out, dpi=144)


if __name__ == "__main__":
    draw(Path(sys.argv[1]))
