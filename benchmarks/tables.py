"""Writes the tables of measured results into README.md and docs/benchmarks.md: `python -m benchmarks.tables`.

A table stands under a comment with its name and ends at an empty line. Every figure is the mean ± standard deviation
over the committed JSON rows (how many).
"""

from __future__ import annotations

import json
import re
import statistics
from collections.abc import Callable, Iterable, Sequence
from functools import partial
from pathlib import Path

from scipy.stats import t as student

from benchmarks.pack import METHODS as PACKINGS
from benchmarks.sparsity import STUDIES
from benchmarks.tasks.mixed import CLASSES

RESULTS = Path(__file__).parent / "results"
ROOT = RESULTS.parent.parent
PAGES = ROOT / "README.md", ROOT / "docs" / "benchmarks.md"
ALIGNED = ("unaligned", "activations", "weights", "mixed", "nearest", "rescaled")
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
    ("tiny", "3200, consensus"): "a Bezier curve that learns what both ends say, 409,600",
    ("robust", 0): "MNIST under PGD, adversarially trained: the straight line",
    ("robust", 200): "a Bezier curve",
}
CONTINUAL = (
    "fine-tuning", "ewc", "si", "lwf", "gpm", "kronecker posterior", "isopath", "a-gem", "er", "penalty", "der++",
    "isopath, examples", "isopath, both", "isopath, drawn", "joint",
)  # fmt: skip
TASKS = {
    "permuted-10": "ten permutations", "permuted-20": "twenty", "rotated-20": "twenty rotations",
    "split-class": "two digits at a time", "split-domain": "even or odd", "split-task": "a head per pair",
    "cifar-class": "CIFAR-10, two classes at a time", "cifar-task": "a head per pair",
}  # fmt: skip
LEARNED = {
    "trace": "**isopath trace**", "penalised": "Bhattacharyya penalty", "replay": "replay with labels",
    "backtracking": "gradient descent, backtracking on drift", "fine_tuning": "plain fine-tuning",
    "joint": "joint training (all of MNIST)",
}  # fmt: skip
MANY = {"independent": "trained one by one", "generator": "**isopath generate**, 100 samples",
        "generator, longer": "the same, four times the steps"}  # fmt: skip
GENERATED = {"mnist": "MNIST", "fashion": "Fashion-MNIST", "cifar16": "CIFAR-10 at 16 × 16"}
SURGEONS = ("magnitude", "diagonal Fisher", "K-FAC", "WoodFisher", "isopath", "isopath, compensated")
PACKED = {
    "mixed": "four tasks in one network, 8 epochs, accuracy, %",
    "permuted": "ten permutations of MNIST in 2 × 100 units, a head per task, 5 epochs, %",
}  # fmt: skip
TEXTS = ("fine-tuning", "replay", "lora", "isopath", "isopath, both", "separate")
SPARSE = {
    "all": "784-300-100-10, all 60,000 images as reference", "longer": "the same, three times the evaluations",
    "512": "784-300-100-10, 512 images",
    "narrow": "784-40-20-10, all images, three times the evaluations", "lenet-5": "LeNet-5, all images, twelve each",
}  # fmt: skip
PAIRED = {  # ours and the strongest of the others
    "sparsity/all": ("isopath, diagonal", "diagonal Fisher, distilled", "784-300-100-10, all images"),
    "sparsity/longer": ("isopath, metric", "gradual, distilled", "the same, three times the evaluations"),
    "sparsity/512": ("isopath, metric", "gradual, distilled by logits", "the same, 512 images"),
    "sparsity/narrow": ("isopath, diagonal", "diagonal Fisher, distilled", "784-40-20-10, all images"),
    "surgery": ("isopath, compensated", "WoodFisher", "the same, no gradient step, 2,048 images"),
}
NETWORK = {"vgg": "VGG", "resnet": "ResNet of half the width", "resnet-20": "ResNet-20"}
IMAGES = {
    "vgg": {"vgg": "", "longer": "; eight passes", "moved": "; sixteen passes over moved copies"},
    **{r: {r: "", f"{r}, moved": "; sixteen passes over moved copies"} for r in ("resnet", "resnet-20")},
}
ROBUST = ("from scratch", "fine-tuned", "isopath")
ATTACKED = {"mnist": "MNIST, L∞ 0.1", "cifar": "CIFAR-10 at 16 × 16, L∞ 2/255"}

TOGETHER = ("independent", "fast geometric", "isopath, weights", "isopath, outputs", "isopath, attacked",
            "isopath, transferred")  # fmt: skip
ENSEMBLES = {"fashion": "Fashion-MNIST, L∞ 0.03, %", "cifar16": "CIFAR-10 at 16 × 16, L∞ 2/255, %"}


def by_seed(protocol: str, method: str, key: str) -> dict[int, float]:
    """One figure of every seed that is there."""
    files = sorted((RESULTS / protocol).glob(f"{method}-[0-9].json"))
    found = {int(file.stem.rsplit("-", 1)[1]): json.loads(file.read_text()).get(key) for file in files}
    return {seed: value for seed, value in found.items() if value is not None}


def values(protocol: str, method: str, key: str) -> list[float]:
    """The same, in the order of the seeds."""
    return list(by_seed(protocol, method, key).values())


def spread(numbers: Sequence[float], digits: int = 2, count: bool = True) -> str:
    """Mean ± standard deviation, and how many."""
    if not numbers:
        return "–"
    deviation = f" ± {statistics.stdev(numbers):.{digits}f}" if len(numbers) > 1 else ""
    return f"{statistics.mean(numbers):.{digits}f}{deviation}{f' ({len(numbers)})' if count else ''}"


def ruled(heads: Sequence[str], rows: Iterable[Sequence[str]]) -> str:
    """A table in Markdown, without the rows in which nothing was measured."""
    lines = [f"| {' | '.join(cells)} |" for cells in (heads, *(r for r in rows if any(c != "–" for c in r[1:])))]
    return "\n".join([lines[0], "|---" * len(heads) + "|", *lines[1:]])


def bold(method: str) -> str:
    """Ours stand out."""
    return f"**{method}**" if method.startswith("isopath") else method


def learned() -> str:
    """MNIST, then Fashion-MNIST."""
    places = [(f"mnist_to_fashion/{method}", name) for method, name in LEARNED.items()]
    places.append(("mnist_to_fashion/exchange/penalised-1000", "the penalty with weight 1,000"))
    rows = []
    for place, name in places:
        protocol, method = place.rsplit("/", 1)
        mnist, fashion, drift = (values(protocol, method, key) for key in ("mnist", "fashion", "drift"))
        rows.append([name, spread(mnist), spread(fashion), spread(drift, 5)])
    return ruled(["MNIST → Fashion-MNIST, 500 kept images", "MNIST test, %", "Fashion-MNIST test, %", "drift"], rows)


def turned() -> str:
    """MNIST, then MNIST turned."""
    rows = [["**isopath trace**", f"{kept:,}",
             *(spread(values("rotated_mnist", f"trace-{kept}", f"old_at_{target}")) for target in (85, 90))]
            for kept in (2048, 128)]  # fmt: skip
    return ruled(["MLP, MNIST → MNIST turned by 90°", "kept", "old at new = 85 %", "old at new = 90 %"], rows)


def against() -> str:
    """The trace as an optimiser."""
    gains = [spread(values("equal_cost", method, "gain")) for method in ("trace", "backtracking")]
    scores = [spread(values("from_scratch", method, "accuracy")) for method in ("trace", "sgd")]
    return ruled(["", "trace", "against"], [
        ["fall of the rotated test loss, equal tolerance and cost", gains[0], f"{gains[1]} (descent, backtracking)"],
        ["MNIST test accuracy from random weights, nothing kept, %", scores[0], f"{scores[1]} (tuned SGD)"],
    ])  # fmt: skip


def joined() -> str:
    """Straight lines between networks."""
    rows = []
    for protocol, what in LINES.items():
        cells = [what, spread(values(f"connect/{protocol}", "unaligned", "ends"))]
        for method in ALIGNED:
            middle, rise = (values(f"connect/{protocol}", method, key) for key in ("middle", "barrier"))
            cells.append(f"{spread(middle)} ({statistics.mean(rise):.3f})" if rise else "–")
        rows.append(cells)
    return ruled(["middle of the line between two networks, % (rise of the loss)", "ends", *ALIGNED], rows)


def curved() -> str:
    """Trained curves between networks."""
    rows = []
    for (protocol, steps), what in CURVES.items():
        count, _, taught = str(steps).partition(", ")
        methods = [f"{method}{taught and ', ' + taught}-{count}" for method in ("unaligned", "aligned", "rescaled")]
        low = [values(f"curves/{protocol}", method, "minimum") for method in methods]
        rows.append([what, *map(spread, (values(f"curves/{protocol}", methods[1], "ends"), *low))])
    return ruled(["lowest point of 25 on the way, %", "ends", "as they came", "aligned", "and rescaled"], rows)


def in_turn() -> str:
    """Tasks one after the other."""
    tasks = {name: head for name, head in TASKS.items() if values(f"continual/{name}", "isopath*", "average")}
    rows = []
    for method in CONTINUAL:
        cells = [bold(method)]
        for protocol in tasks:
            average, lost = (values(f"continual/{protocol}", method, key) for key in ("average", "forgetting"))
            cells.append(spread(average, count=False) + (f" ({statistics.mean(lost):.1f})" if lost else ""))
        rows.append(cells)
    what = "MNIST, average over all tasks at the end, % (forgetting)"
    return ruled([what, *tasks.values()], rows)


def texts() -> str:
    """Text tasks one after the other."""
    rows = []
    for method in TEXTS:
        average, lost = (values("texts", method, key) for key in ("average", "forgetting"))
        rows.append([bold(method), spread(average, 1), spread(lost, 1)])
    return ruled(["MiniLM, four text tasks one after the other, %", "average at the end", "forgetting"], rows)


def pruned(study: str) -> str:
    """MNIST networks made sparse."""
    shares = [f"{100 * fraction:g}" for fraction in STUDIES[study].fractions]
    rows = [[bold(method), *(spread(values(f"sparsity/{study}/{share}", method, "lost")) for share in shares)]
            for method in STUDIES[study].methods]  # fmt: skip
    return ruled([f"points of MNIST accuracy lost: {SPARSE[study]}", *(f"{s} % zero" for s in shares)], rows)


def paired() -> str:
    """How much more the strongest other method loses than ours, seed by seed, with Student's interval of 95 %."""
    rows = []
    for place, (ours, other, what) in PAIRED.items():
        shares = sorted((p.name for p in (RESULTS / place).iterdir() if p.name != "grid"), key=float)
        for share in shares:
            here, there = (by_seed(f"{place}/{share}", method, "lost") for method in (ours, other))
            apart = [there[seed] - here[seed] for seed in here.keys() & there.keys()]
            if len(apart) > 1:
                half = student.ppf(0.975, len(apart) - 1) * statistics.stdev(apart) / len(apart) ** 0.5
                mean = statistics.mean(apart)
                said = f"{mean:.2f} [{mean - half:.2f}, {mean + half:.2f}] ({len(apart)})"
                rows.append([f"{what}: {share} % zero", bold(ours), other, said])
    heads = ["points of MNIST accuracy", "ours", "the strongest other", "that it loses more, paired by seed, 95 %"]
    return ruled(heads, rows)


def pruned_images(name: str) -> str:
    """CIFAR-10 networks made sparse."""
    from benchmarks.cifar_sparsity import STUDIES as NETWORKS

    shares, rows = (90, 95, 98), []
    for study, said in IMAGES[name].items():
        for method in NETWORKS[study].methods:
            lost = [values(f"cifar_sparsity/{study}/{share}", method, "lost") for share in shares]
            rows += [[bold(method) + said, *map(spread, lost)]] if any(lost) else []
    dense = spread(values(f"cifar_sparsity/{name}/95", "one-shot", "dense"), 1, count=False)
    what = f"points of CIFAR-10 accuracy lost ({dense} %): a {NETWORK[name]}"
    return ruled([what, *(f"{share} % zero" for share in shares)], rows)


def slimmed() -> str:
    """CIFAR-10 networks with fewer channels."""
    from benchmarks.cifar_sparsity import LEAST, SLIMMED

    keys, rows = ("operations", "lost", "smaller"), []
    for least in LEAST:
        for method in SLIMMED:
            found = [values(f"cifar_sparsity/channels/{least}", method, key) for key in keys]
            rows += [[f"{bold(method)}, at least {least} times", *map(spread, found)]] if any(found) else []
    heads = ("fewer operations", "points lost", "fewer parameters")
    return ruled(["channels of the VGG", *heads], rows)


def operated() -> str:
    """Surgery."""
    rows = [[bold(method), *(spread(values(f"surgery/{share}", method, "accuracy")) for share in (90, 95, 98))]
            for method in SURGEONS]  # fmt: skip
    heads = ["784-40-20-10, accuracy with no gradient step afterwards", *(f"{s} % zero" for s in (90, 95, 98))]
    return ruled(heads, rows)


def text_pruned() -> str:
    """MiniLM made sparse."""
    from benchmarks.text_sparsity import METHODS

    place = "text_sparsity/60"
    rows = [[bold(method), *(spread(values(place, method, key), 1) for key in ("accuracy", "lost"))]
            for method in METHODS]  # fmt: skip
    start = spread(values(place, "one-shot", "dense"), 1, count=False)
    return ruled([f"MiniLM on SST-2 ({start} %), 60 % of its linear weights zero", "accuracy, %", "points lost"], rows)


def packed(name: str) -> str:
    """Tasks in one network."""
    columns, rows = ["average", *(CLASSES if name == "mixed" else ())], []
    for method in PACKINGS:
        used = values(f"pack/{name}", method, "used")
        cells = [spread(values(f"pack/{name}", method, column)) for column in columns]
        rows.append([bold(method), *cells, f"{100 * statistics.mean(used):.0f} %" if used else "–"])
    return ruled([PACKED[name], *columns, "weights used"], rows)


def generated() -> str:
    """A manifold of networks."""
    keys = ("accuracy", "best", "together", "disagreement", "distance", "dimension")
    rows = []
    for place, what in GENERATED.items():
        for method, name in MANY.items():
            found = [values(f"generate/{place}", method, key) for key in keys]
            cells = [spread(one, 1 if key == "dimension" else 2) for key, one in zip(keys, found)]
            rows += [[f"{what}: {name}", *cells]] if any(found) else []
    heads = ["one network", "the best", "together", "two differ", "distance", "dimension"]
    return ruled(["small CNNs, test accuracy, %", *heads], rows)


def robust(study: str) -> str:
    """Adversarial training against a trace."""
    keys, rows = ("clean", "white_box", "autoattack", "worst"), []
    for method in ROBUST:
        found = [values(f"robust/{study}", method, key) for key in keys]
        spent = values(f"robust/{study}", method, "evaluations")
        said = f"{statistics.mean(spent) / 1e6:.2f} million" if spent else "–"
        rows.append([bold(method), *(spread(one, 1) for one in found), said])
    heads = [f"{ATTACKED[study]}, %", "clean", "PGD-20", "APGD-CE + APGD-T", "worst of all", "gradient evaluations"]
    return ruled(heads, rows)


def ensembles(name: str) -> str:
    """Ensembles of ten, from one network and trained apart."""
    keys, rows = ("start", "clean", "member", "surrogate", "white_box", "autoattack"), []
    for method in TOGETHER:
        found = [values(f"ensembles/{name}", method, key) for key in keys]
        spent = values(f"ensembles/{name}", method, "evaluations")
        said = f"{statistics.mean(spent) / 1e6:.2f} million" if spent else "–"
        rows.append([bold(method), *(spread(one, 1) for one in found), said])
    heads = ("one network", "ten together", "transferred from one of them", "from an outside network", "PGD-20",
             "APGD-CE + APGD-T", "gradient evaluations")  # fmt: skip
    return ruled([ENSEMBLES[name], *heads], rows)


def summary() -> str:
    """One line for each thing that can be asked of a trained network."""

    def one(protocol: str, method: str, key: str, digits: int = 1) -> str:
        found = values(protocol, method, key)
        return f"{statistics.mean(found):.{digits}f}" if found else "–"

    def accuracies(protocol: str, method: str, *keys: str) -> str:
        return " / ".join(one(protocol, method, key) for key in keys)

    def after(protocol: str, method: str) -> str:
        return one(protocol, method, "average")

    pair, tasks = ("mnist", "fashion"), "continual/"
    rows = [
        ["learn Fashion-MNIST and keep MNIST from 500 images without labels: MNIST / Fashion-MNIST, %",
         accuracies("mnist_to_fashion", "trace", *pair),
         f"{accuracies('mnist_to_fashion', 'penalised', *pair)} (penalty), "
         f"{accuracies('mnist_to_fashion', 'fine_tuning', *pair)} (fine-tuning)"],
        ["ten permutations of MNIST one after the other, no data kept: %", after(tasks + "permuted-10", "isopath"),
         f"{after(tasks + 'permuted-10', 'kronecker posterior')} (Kronecker posterior), "
         f"{after(tasks + 'permuted-10', 'gpm')} (GPM); {after(tasks + 'permuted-10', 'joint')} together"],
        ["MNIST, two digits at a time among all ten, a sketch of each task kept and no image: %",
         after(tasks + "split-class", "isopath, drawn"),
         f"{after(tasks + 'split-class', 'der++')} (DER++ with 200 images); "
         f"{after(tasks + 'split-class', 'joint')} together"],
        ["CIFAR-10, two classes at a time, 500 examples: %", after(tasks + "cifar-class", "isopath, examples"),
         f"{after(tasks + 'cifar-class', 'der++')} (DER++)"],
        ["MiniLM, four text tasks, no text kept: %", after("texts", "isopath"),
         f"{after('texts', 'fine-tuning')} (fine-tuning), {after('texts', 'separate')} (a network each)"],
        ["98 % of a network's weights zero, no labels, 24 evaluations an image: points lost",
         one("sparsity/longer/98", "isopath, metric", "lost", 2),
         f"{one('sparsity/longer/98', 'gradual, distilled', 'lost', 2)} (gradual pruning with distillation)"],
        ["95 % of a small network's weights zero, from 2,048 images, no training loop: %",
         one("surgery/95", "isopath, compensated", "accuracy"),
         f"{one('surgery/95', 'WoodFisher', 'accuracy')} (WoodFisher), "
         f"{one('surgery/95', 'K-FAC', 'accuracy')} (K-FAC)"],
        ["hold out against attack (MNIST, L∞ 0.1, AutoAttack), the clean outputs kept: % under attack / clean",
         accuracies("robust/mnist", "isopath", "worst", "clean"),
         f"{accuracies('robust/mnist', 'from scratch', 'worst', 'clean')} (adversarial training from scratch, twice "
         f"the evaluations), {accuracies('robust/mnist', 'fine-tuned', 'worst', 'clean')} (fine-tuning)"],
        ["ten networks from one, Fashion-MNIST, L∞ 0.03: % clean / under attacks on one of them / under PGD-20",
         accuracies("ensembles/fashion", "isopath, attacked", *(three := ("clean", "member", "white_box"))),
         f"{accuracies('ensembles/fashion', 'independent', *three)} (ten trained apart, four times the evaluations), "
         f"{accuracies('ensembles/fashion', 'fast geometric', *three)} (fast geometric)"],
        ["two transformers joined by a straight line: accuracy at its middle, %",
         one("connect/fashion_vit", "rescaled", "middle"),
         f"{one('connect/fashion_vit', 'activations', 'middle')} (aligned alone), "
         f"{one('connect/fashion_vit', 'unaligned', 'middle')} (as they came); "
         f"{one('connect/fashion_vit', 'unaligned', 'ends')} at the ends"],
        ["four tasks in one network: average, %", after("pack/mixed", "isopath, in sequence"),
         f"{after('pack/mixed', 'separate')} (four networks)"],
        ["networks sampled from a generator, %: each, 100 together",
         accuracies("generate/mnist", "generator", "accuracy", "together"),
         f"{accuracies('generate/mnist', 'independent', 'accuracy', 'together')} (20 trained one by one)"],
    ]  # fmt: skip
    return ruled(["asked of a trained network", "isopath", "against"], rows)


TABLES: dict[str, Callable[[], str]] = {
    "summary": summary, "learned": learned, "turned": turned, "against": against, "joined": joined, "curved": curved,
    "in turn": in_turn, "texts": texts, "operated": operated, "text pruned": text_pruned,
    "generated": generated, "paired": paired, "slimmed": slimmed,
    **{f"pruned {name}": partial(pruned_images, name) for name in IMAGES},
    **{f"robust {study}": partial(robust, study) for study in ATTACKED},
    **{f"ensembles {name}": partial(ensembles, name) for name in ENSEMBLES},
    **{f"pruned {study}": partial(pruned, study) for study in SPARSE},
    **{f"packed {name}": partial(packed, name) for name in PACKED},
}  # fmt: skip


def main() -> None:
    """Every table that a page has a place for."""
    for page in PAGES:
        text = page.read_text(encoding="utf-8")
        for name, table in TABLES.items():
            place = re.compile(rf"<!-- {name} -->\n\n(?:(?:\|.*\n)+\n)?")
            text = place.sub(f"<!-- {name} -->\n\n{table()}\n\n", text)
        page.write_text(text, encoding="utf-8")


if __name__ == "__main__":
    main()
