"""The README's figure, from a run folder of the demo: `python docs/figure.py runs/demo docs/demo.png`."""

from __future__ import annotations

import sys
from pathlib import Path

import matplotlib
import matplotlib.pyplot as plt

from isopath.storage import read_json, read_lines

matplotlib.use("Agg")
BLUE, ORANGE, GREY, INK = "#2f6fb0", "#d9730d", "#9aa3ad", "#23292f"


def draw(run: Path, out: Path) -> None:
    """Accuracy on both tasks along the path, and the drift under its tolerance."""
    metrics, about = read_json(run / "metrics.json"), read_json(run / "run.json")
    rows = [row for row in read_lines(run / "history.jsonl")[0] if row["accepted"]]
    plt.rcParams.update({"font.size": 11, "axes.spines.top": False, "axes.spines.right": False, "text.color": INK})
    figure, (left, right) = plt.subplots(1, 2, figsize=(9.6, 3.5), layout="constrained")
    along = metrics["along"]
    for (name, values), colour in zip(along["series"].items(), (BLUE, ORANGE)):
        left.plot(along["step"], [100 * v for v in values], color=colour, lw=2.4)
        left.annotate(
            f"{name}: {100 * values[-1]:.1f} %", (along["step"][-1], 100 * values[-1]),
            (-4, -34 if colour == BLUE else -52), textcoords="offset points", ha="right", color=colour, weight="bold",
        )  # fmt: skip
    left.set(xlabel="step", ylabel="test accuracy, %", ylim=(-3, 104), title="It learns 5-9 and keeps 0-4")
    steps, drift = [row["step"] for row in rows], [row["drift"] for row in rows]
    right.fill_between(steps, drift, color=BLUE, alpha=0.15, lw=0)
    right.plot(steps, drift, color=BLUE, lw=1.8)
    right.axhline(about["tolerance"], color=INK, lw=1.2, ls=(0, (5, 3)))
    right.annotate("the tolerance you state", (0, about["tolerance"]), (2, 5), textcoords="offset points", color=INK)
    right.set(xlabel="step", ylabel="drift of kept outputs", ylim=(0, 1.25 * about["tolerance"]))
    right.set_title("Every step stays under the tolerance")
    for axes in (left, right):
        axes.grid(axis="y", color=GREY, alpha=0.25)
        axes.tick_params(colors=INK)
    figure.savefig(out, dpi=160)


if __name__ == "__main__":
    draw(Path(sys.argv[1]), Path(sys.argv[2]))
