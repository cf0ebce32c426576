"""The figure of continual learning, from the results: `python docs/learning_figure.py docs/learning.png`."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

import matplotlib
import matplotlib.pyplot as plt

from isopath.storage import read_json

matplotlib.use("Agg")
BLUE, ORANGE, GREY, INK = "#2f6fb0", "#d9730d", "#9aa3ad", "#23292f"
RESULTS = Path(__file__).parent.parent / "benchmarks" / "results" / "continual"
PANELS = {
    "permuted-10": ("Ten permutations of MNIST, no data kept", 50),
    "split-class": ("MNIST, two digits at a time, at most 200 rows kept", 0),
    "split-domain": ("Even or odd: no data kept (both: and 200 rows)", 40),
    "cifar-class": ("CIFAR-10, two classes at a time, 500 rows kept", 0),
}  # and where the axis begins
MANY = "permuted-10"


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


def spread(places: list[float], gap: float, top: float) -> list[float]:
    """The nearest places (least squares) that are a gap away from each other, none above the top."""
    order, groups = sorted(range(len(places)), key=places.__getitem__), []
    for rank, k in enumerate(order):  # monotone regression of the places less what the gaps below take
        groups.append([places[k] - rank * gap])
        while len(groups) > 1 and mean(groups[-2]) > mean(groups[-1]):
            groups[-2:] = [groups[-2] + groups[-1]]
    flat, placed = [mean(group) for group in groups for _ in group], list(places)
    for rank, k in enumerate(order):
        placed[k] = min(flat[rank] + rank * gap, top - (len(order) - 1 - rank) * gap)
    return placed


def over_time(axes: plt.Axes, protocol: str) -> None:
    """A line for each method, named at its end."""
    title, low = PANELS[protocol]
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
    places = spread([end for _, end, _, _ in ends], 0.062 * (100 - low), 100 - 0.02 * (100 - low))
    for (x, _, method, colour), place in zip(ends, places):
        weight = "bold" if colour == BLUE else "normal"
        axes.annotate(method, (x, place), (6, 0), textcoords="offset points", va="center", color=colour, fontsize=9,
                      weight=weight)  # fmt: skip
    axes.annotate("all tasks at once", (0, 1.01), xycoords="axes fraction", color=ORANGE, fontsize=9, va="bottom")
    axes.set_title(title, fontsize=11, pad=16)
    axes.set(xlabel="tasks learned", ylim=(low, 100))
    axes.grid(axis="y", color=GREY, alpha=0.25)
    axes.tick_params(colors=INK)


def against(axes: plt.Axes, column: str, unit: float, label: str, title: str) -> None:
    """A point for each method: accuracy against what it takes."""
    for method, found in rows(MANY).items():
        if method == "joint":
            continue
        taken, last = mean([row[column] for row in found]) / unit, mean([row["average"] for row in found])
        ours = method.startswith("isopath")
        axes.plot(taken, last, "o", color=colour_of(method), ms=8)
        axes.annotate(method, (taken, last), (7, 6 if ours else -9), textcoords="offset points", va="center",
                      color=colour_of(method), fontsize=9, weight="bold" if ours else "normal")  # fmt: skip
    axes.set_title(title, fontsize=11, pad=16)
    axes.set(xlabel=label, ylim=(PANELS[MANY][1], 100))
    axes.margins(x=0.3)
    axes.grid(axis="y", color=GREY, alpha=0.25)


def draw(out: Path) -> None:
    """Accuracy over the tasks seen so far, and against the memory and the time that it takes."""
    plt.rcParams.update({"font.size": 11, "axes.spines.top": False, "axes.spines.right": False, "text.color": INK})
    figure, panels = plt.subplots(2, 3, figsize=(13.6, 7.4), layout="constrained")
    for axes, protocol in zip(panels[:, :2].flat, PANELS):
        over_time(axes, protocol)
    against(panels[0, 2], "bytes", 2**20, "MiB kept", "Ten permutations: what is kept")
    against(panels[1, 2], "seconds_a_task", 1, "seconds a task, one thread", "... and the time that it takes")
    for row in panels:
        row[0].set_ylabel("accuracy on the tasks so far, %")
    figure.savefig(out, dpi=144)


if __name__ == "__main__":
    draw(Path(sys.argv[1]))
