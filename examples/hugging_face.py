"""Teach a text classifier something new with the Hugging Face Trainer; it goes on doing what it did.

Takes transformers and accelerate: pip install "isopath[text]".
"""

import copy
import tempfile

import torch
from torch.utils.data import Dataset
from transformers import BertConfig, BertForSequenceClassification, Trainer, TrainingArguments

import isopath as ip


class Texts(Dataset):
    """Rows of word numbers with padding; the label says which of two kinds of words there are more of."""

    def __init__(self, count: int, topic: int, seed: int) -> None:
        generator = torch.Generator().manual_seed(seed)
        self.labels = torch.randint(2, (count,), generator=generator)
        kind = (torch.rand(count, 12, generator=generator) < 0.9).long()
        kind = torch.where(self.labels.unsqueeze(1) == 1, kind, 1 - kind)
        words = 10 + 20 * topic + 10 * kind + torch.randint(4, (count, 12), generator=generator)
        self.mask = (torch.arange(12) < torch.randint(7, 13, (count, 1), generator=generator)).long()
        self.words, self.labels = words * self.mask, self.labels + 2 * topic

    def __len__(self) -> int:
        return len(self.words)

    def __getitem__(self, i: int) -> dict[str, torch.Tensor]:
        return {"input_ids": self.words[i], "attention_mask": self.mask[i], "labels": self.labels[i]}

    @property
    def inputs(self) -> dict[str, torch.Tensor]:
        """As the model takes them."""
        return {"input_ids": self.words, "attention_mask": self.mask}


def train(model: torch.nn.Module, data: Dataset, optimizer: torch.optim.Optimizer, epochs: int) -> None:
    """The Trainer as it is, with gradient accumulation, clipping and a schedule."""
    schedule = torch.optim.lr_scheduler.LambdaLR(optimizer, lambda step: max(0.1, 1 - step / 200))
    with tempfile.TemporaryDirectory() as folder:
        settings = TrainingArguments(
            folder, num_train_epochs=epochs, per_device_train_batch_size=16, gradient_accumulation_steps=2,
            max_grad_norm=1.0, use_cpu=True, report_to=[], save_strategy="no", logging_strategy="no", disable_tqdm=True,
        )  # fmt: skip
        Trainer(model, settings, train_dataset=data, optimizers=(optimizer, schedule)).train()


torch.manual_seed(0)
model = BertForSequenceClassification(BertConfig(
    vocab_size=60, hidden_size=64, num_hidden_layers=1, num_attention_heads=2, intermediate_size=128, num_labels=4,
    max_position_embeddings=12, hidden_dropout_prob=0.0, attention_probs_dropout_prob=0.0,
))  # fmt: skip
old, new = Texts(960, 0, seed=0), Texts(960, 1, seed=1)  # labels 0 and 1, then 2 and 3
train(model, old, torch.optim.AdamW(model.parameters(), 1e-3), epochs=3)
memory = ip.Memory(examples=100, factors=True).remember(model, old.inputs)

held_out = {"old": Texts(500, 0, seed=2), "new": Texts(500, 1, seed=3)}
tests = {name: ip.Task(texts.inputs, texts.labels) for name, texts in held_out.items()}
for name in ("SGD", "Invariant"):
    learner = copy.deepcopy(model)
    optimizer = torch.optim.SGD(learner.parameters(), 0.05, momentum=0.9)
    if name == "Invariant":
        optimizer = ip.optim.Invariant(optimizer, learner, keep=memory, tolerance=0.02, check_every=10)
    train(learner, new, optimizer, epochs=3)
    if name == "Invariant":
        print(f"drift {optimizer.check():.4f} of {optimizer.tolerance} after {optimizer.steps} steps")
    scores = {task: ip.evaluate(learner, test).accuracy for task, test in tests.items()}
    print(f"{name}: old texts {scores['old']:.1%}, new texts {scores['new']:.1%}")
