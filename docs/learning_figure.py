"""The README's figure of continual learning, from the results: `python docs/learning_figure.py docs/learning.png`."""

from __future__ import annotations

import itertools
import sys
from pathlib import Path
from typing import Any

import matplotlib
import matplotlib.pyplot as plt

from isopath.storage import read_json

matplotlib.use("Agg")
BLUE, ORANGE, GREY, INK = "#2f6fb0", "#d9730d", "#9aa3ad", "#23292f"
RESULTS = Path(__file__).parent.parent / "benchmarks" / "results" / "continual"
PANELS = [("permuted-10", "Ten permutations of MNIST, no data kept"), ("split-class", "Two digits at a time, 200 kept")]


def rows(protocol: str) -> dict[str, list[dict[str, Any]]]:
    """Results of every method, over seeds."""
    found: dict[str, list[dict[str, Any]]] = {}
    for file in sorted((RESULTS / protocol).glob("*.json")):
        row = read_json(file)
        found.setdefault(row["method"], []).append(row)
    return found


def seen(row: dict[str, Any]) -> list[float]:
    """The mean accuracy over the tasks seen so far, after each."""
    return [sum(r[: t + 1]) / (t + 1) for t, r in enumerate(row["R"])]


def mean(values: list[float]) -> float:
    """Of a list."""
    return sum(values) / len(values)


def colour_of(method: str) -> str:
    """Ours in blue, joint training in orange, the rest in grey."""
    return BLUE if method.startswith("isopath") else ORANGE if method == "joint" else GREY


def spread(places: list[float], gap: float) -> list[float]:
    """The same places, pushed apart until neighbours are a gap away from each other."""
    order, placed = sorted(range(len(places)), key=places.__getitem__), list(places)
    for before, after in itertools.pairwise(order):
        placed[after] = max(placed[after], placed[before] + gap)
    excess = max(0.0, placed[order[-1]] - 99)
    return [place - excess if placed[order[-1]] - place < 30 else place for place in placed]


def over_time(axes: plt.Axes, protocol: str, title: str) -> None:
    """A line for each method, named at its end."""
    ends = []
    for method, found in rows(protocol).items():
        colour, last = colour_of(method), mean([row["average"] for row in found])
        if method == "joint":
            axes.axhline(last, color=colour, lw=1.6, ls=(0, (4, 3)))
            continue
        lines = [seen(row) for row in found]
        values = [mean(list(at)) for at in zip(*lines)]
        axes.plot(range(1, len(values) + 1), values, color=colour, lw=2.6 if colour == BLUE else 1.6)
        ends.append((len(values), values[-1], method, colour))
    places = spread([end for _, end, _, _ in ends], 3.6 if protocol == PANELS[0][0] else 7)
    for (x, _, method, colour), place in zip(ends, places):
        weight = "bold" if colour == BLUE else "normal"
        axes.annotate(method, (x, place), (6, 0), textcoords="offset points", va="center", color=colour, fontsize=9,
                      weight=weight)  # fmt: skip
    axes.annotate("all tasks at once", (1, 100.5), color=ORANGE, fontsize=9, va="bottom", annotation_clip=False)
    axes.set_title(title, fontsize=11, pad=16)
    axes.set(xlabel="tasks learned", ylim=(50 if protocol == PANELS[0][0] else 0, 100))
    axes.grid(axis="y", color=GREY, alpha=0.25)
    axes.tick_params(colors=INK)


def against_memory(axes: plt.Axes, protocol: str) -> None:
    """A point for each method."""
    for method, found in rows(protocol).items():
        if method == "joint":
            continue
        size, last = mean([row["bytes"] for row in found]) / 2**20, mean([row["average"] for row in found])
        axes.plot(size, last, "o", color=colour_of(method), ms=8)
        axes.annotate(method, (size, last), (7, 0), textcoords="offset points", va="center", color=colour_of(method),
                      fontsize=9, weight="bold" if method.startswith("isopath") else "normal")  # fmt: skip
    axes.set_title("what is kept of ten tasks", fontsize=11, pad=16)
    axes.set(xlabel="MiB kept", ylim=(50, 100))
    axes.margins(x=0.28)
    axes.grid(axis="y", color=GREY, alpha=0.25)


def draw(out: Path) -> None:
    """Accuracy over the tasks seen so far, and against the memory that it takes."""
    plt.rcParams.update({"font.size": 11, "axes.spines.top": False, "axes.spines.right": False, "text.color": INK})
    figure, panels = plt.subplots(1, 3, figsize=(12.6, 3.6), layout="constrained")
    for axes, (protocol, title) in zip(panels, PANELS):
        over_time(axes, protocol, title)
    against_memory(panels[2], PANELS[0][0])
    panels[0].set_ylabel("accuracy on the tasks so far, %")
    figure.savefig(out, dpi=144)


if __name__ == "__main__":
    draw(Path(sys.argv[1]))
