"""Prints the README's table of measured results from the committed JSON: `python -m benchmarks.readme_table`."""

from __future__ import annotations

import json
import statistics
from collections.abc import Sequence
from pathlib import Path

from benchmarks.pack import METHODS as PACKINGS
from benchmarks.sparsity import STUDIES
from benchmarks.tasks.mixed import CLASSES

RESULTS = Path(__file__).parent / "results"
METHODS = ("unaligned", "activations", "weights", "mixed", "rescaled")
LINES = {
    "mnist_mlp": "MNIST, 3 × 512",
    "cifar_mlp": "CIFAR-10 at 16 × 16, 3 × 512",
    "cifar_mlp_repair": "the same, variances repaired",
    "mnist_deep_norm": "MNIST, 10 × 128 with batch norm",
    "mnist_deep_repair": "MNIST, 5 × 128, variances repaired",
    "cifar_resnet20": "CIFAR-10 at 16 × 16, ResNet-20",
    "fashion_vit": "Fashion-MNIST, vision transformer",
}
CURVES = {
    ("tiny", 0): "CIFAR-10 at 16 × 16, ten layers: the straight line",
    ("tiny", 800): "a Bezier curve, 102,400 gradient evaluations",
    ("tiny", 3200): "a Bezier curve, 409,600",
    ("robust", 0): "MNIST under PGD, adversarially trained: the straight line",
    ("robust", 200): "a Bezier curve",
}
CONTINUAL = (
    "fine-tuning", "ewc", "si", "lwf", "gpm", "kronecker posterior", "isopath", "a-gem", "er", "penalty", "der++",
    "isopath, examples", "isopath, both", "joint",
)  # fmt: skip
TASKS = {
    "permuted-10": "ten permutations", "permuted-20": "twenty", "rotated-20": "twenty rotations",
    "split-class": "two digits at a time", "split-domain": "even or odd", "split-task": "a head per pair",
    "cifar-class": "CIFAR-10, two classes at a time", "cifar-task": "a head per pair",
}  # fmt: skip
MANY = {"independent": "trained one by one, 20 networks", "generator": "**isopath generate**, 100 samples"}
SURGEONS = ("magnitude", "diagonal Fisher", "K-FAC", "WoodFisher", "isopath")
PACKED = {
    "mixed": "four tasks in one network, 8 epochs, accuracy, %",
    "permuted": "ten permutations of MNIST in 2 × 100 units, a head per task, 5 epochs, %",
}  # fmt: skip
TEXTS = ("fine-tuning", "replay", "lora", "isopath", "isopath, both", "separate")
SPARSE = {
    "all": "784-300-100-10, all 60,000 images as reference", "longer": "the same, three times the evaluations",
    "512": "784-300-100-10, 512 images",
    "narrow": "784-40-20-10, all images, three times the evaluations", "lenet-5": "LeNet-5, all images",
}  # fmt: skip


def values(protocol: str, method: str, key: str) -> list[float]:
    """One figure of every seed that is there."""
    files = sorted((RESULTS / protocol).glob(f"{method}-[0-9].json"))
    found = [json.loads(file.read_text()).get(key) for file in files]
    return [value for value in found if value is not None]


def spread(numbers: Sequence[float], digits: int = 2) -> str:
    """Mean ± standard deviation, and how many."""
    if not numbers:
        return "–"
    deviation = f" ± {statistics.stdev(numbers):.{digits}f}" if len(numbers) > 1 else ""
    return f"{statistics.mean(numbers):.{digits}f}{deviation} ({len(numbers)})"


def main() -> None:
    """The tables."""
    names = {
        "trace": "**isopath trace**", "penalised": "Bhattacharyya penalty", "replay": "replay with labels",
        "backtracking": "gradient descent, backtracking on drift", "fine_tuning": "plain fine-tuning",
        "joint": "joint training (all of MNIST)",
    }  # fmt: skip
    print("| MNIST → Fashion-MNIST, 500 kept images | MNIST test, % | Fashion-MNIST test, % | drift |")
    print("|---|---|---|---|")
    for method, name in names.items():
        row = [values("mnist_to_fashion", method, key) for key in ("mnist", "fashion", "drift")]
        if not row[0]:
            continue
        print(f"| {name} | {spread(row[0])} | {spread(row[1])} | {spread(row[2], 5)} |")
    row = [values("mnist_to_fashion/exchange", "penalised-1000", key) for key in ("mnist", "fashion", "drift")]
    print(f"| the penalty with weight 1,000 | {spread(row[0])} | {spread(row[1])} | {spread(row[2], 5)} |")
    print("\n| MLP, MNIST → MNIST turned by 90° | kept | old at new = 85 % | old at new = 90 % |\n|---|---|---|---|")
    for kept in (2048, 128):
        row = [values("rotated_mnist", f"trace-{kept}", f"old_at_{target}") for target in (85, 90)]
        print(f"| **isopath trace** | {kept:,} | {spread(row[0])} | {spread(row[1])} |")
    print("\n| | trace | against |\n|---|---|---|")
    gains = [spread(values("equal_cost", method, "gain")) for method in ("trace", "backtracking")]
    what = "fall of the rotated test loss, equal tolerance and cost"
    print(f"| {what} | {gains[0]} | {gains[1]} (descent, backtracking) |")
    scores = [spread(values("from_scratch", method, "accuracy")) for method in ("trace", "sgd")]
    print(f"| MNIST test accuracy from random weights, nothing kept, % | {scores[0]} | {scores[1]} (tuned SGD) |")
    print(f"\n| middle of the line between two networks, % (rise of the loss) | ends | {' | '.join(METHODS)} |")
    print("|---" * (len(METHODS) + 2) + "|")
    for protocol, what in LINES.items():
        cells = [spread(values(f"connect/{protocol}", "unaligned", "ends"))]
        for method in METHODS:
            middle, rise = (values(f"connect/{protocol}", method, key) for key in ("middle", "barrier"))
            cells.append(f"{spread(middle)} ({statistics.mean(rise):.3f})" if rise else "–")
        print(f"| {what} | {' | '.join(cells)} |")
    print("\n| lowest point of 25 on the way, % | ends | as they came | aligned |\n|---|---|---|---|")
    for (protocol, steps), what in CURVES.items():
        low = [values(f"curves/{protocol}", f"{method}-{steps}", "minimum") for method in ("unaligned", "aligned")]
        ends = values(f"curves/{protocol}", f"aligned-{steps}", "ends")
        print(f"| {what} | {spread(ends)} | {spread(low[0])} | {spread(low[1])} |")
    what = "MNIST, average over all tasks at the end, three seeds (CIFAR-10: two), % (forgetting)"
    tasks = {name: head for name, head in TASKS.items() if values(f"continual/{name}", "isopath*", "average")}
    print(f"\n| {what} | {' | '.join(tasks.values())} |")
    print("|---" * (len(tasks) + 1) + "|")
    for method in CONTINUAL:
        cells = []
        for protocol in tasks:
            average, lost = (values(f"continual/{protocol}", method, key) for key in ("average", "forgetting"))
            said = spread(average).removesuffix(" (3)").removesuffix(" (2)")
            cells.append(said + (f" ({statistics.mean(lost):.1f})" if lost else ""))
        if any(cell != "–" for cell in cells):
            name = f"**{method}**" if method.startswith("isopath") else method
            print(f"| {name} | {' | '.join(cells)} |")
    for reference, what in SPARSE.items():
        shares = [f"{100 * fraction:g}" for fraction in STUDIES[reference].fractions]
        heads = " | ".join(f"{share} % zero" for share in shares)
        print(f"\n| points of MNIST accuracy lost: {what} | {heads} |")
        print("|---" * (len(shares) + 1) + "|")
        for method in STUDIES[reference].methods:
            cells = [spread(values(f"sparsity/{reference}/{share}", method, "lost")) for share in shares]
            if any(cell != "–" for cell in cells):
                print(f"| {f'**{method}**' if method.startswith('isopath') else method} | {' | '.join(cells)} |")
    print("\n| 784-40-20-10, accuracy with no gradient step afterwards | 90 % zero | 95 % zero | 98 % zero |")
    print("|---|---|---|---|")
    for method in SURGEONS:
        cells = [spread(values(f"surgery/{share}", method, "accuracy")) for share in (90, 95, 98)]
        if any(cell != "–" for cell in cells):
            print(f"| {f'**{method}**' if method == 'isopath' else method} | {' | '.join(cells)} |")
    for name, what in PACKED.items():
        columns = ["average", *(CLASSES if name == "mixed" else ())]
        print(f"\n| {what} | {' | '.join(columns)} | weights used |")
        print("|---" * (len(columns) + 2) + "|")
        for method in PACKINGS:
            used = values(f"pack/{name}", method, "used")
            cells = [spread(values(f"pack/{name}", method, column)) for column in columns]
            if used:
                label = f"**{method}**" if method.startswith("isopath") else method
                print(f"| {label} | {' | '.join(cells)} | {100 * statistics.mean(used):.0f} % |")
    heads = "one network | the best | together | two differ | distance | dimension"
    print(f"\n| a small CNN on MNIST, test accuracy, % | {heads} |\n|---|---|---|---|---|---|---|")
    for method, name in MANY.items():
        keys = ("accuracy", "best", "together", "disagreement", "distance", "dimension")
        cells = [spread(values("generate/mnist", method, key), 1 if key == "dimension" else 2) for key in keys]
        print(f"| {name} | {' | '.join(cells)} |")
    print("\n| MiniLM, four text tasks one after the other, % | average at the end | forgetting |\n|---|---|---|")
    for method in TEXTS:
        average, lost = (values("texts", method, key) for key in ("average", "forgetting"))
        if average:
            name = f"**{method}**" if method.startswith("isopath") else method
            print(f"| {name} | {statistics.mean(average):.1f} | {f'{statistics.mean(lost):.1f}' if lost else '–'} |")


if __name__ == "__main__":
    main()
