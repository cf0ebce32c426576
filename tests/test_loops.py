"""The optimiser in other people's training loops, unchanged: the Hugging Face Trainer and Lightning."""

import copy
import logging
from pathlib import Path

import pytest
import torch
from torch import nn
from torch.utils.data import DataLoader, Dataset, TensorDataset

import isopath as ip

transformers = pytest.importorskip("transformers")
lightning = pytest.importorskip("lightning")
pytestmark = [
    pytest.mark.filterwarnings("ignore::DeprecationWarning"),
    pytest.mark.filterwarnings("ignore::FutureWarning"),
    pytest.mark.filterwarnings("ignore::UserWarning"),
]
logging.getLogger("lightning.pytorch").setLevel(logging.ERROR)
TOLERANCE = 1e-3


class Texts(Dataset):
    """Word numbers with padding masks; what the first word is decides the label."""

    def __init__(self, count: int, seed: int) -> None:
        generator = torch.Generator().manual_seed(seed)
        self.words = torch.randint(1, 30, (count, 6), generator=generator)
        self.mask = (torch.arange(6) < torch.randint(3, 7, (count, 1), generator=generator)).long()
        self.labels = (self.words[:, 0] > 15).long() if seed else (self.words[:, 0] <= 15).long()

    def __len__(self) -> int:
        return len(self.words)

    def __getitem__(self, i: int) -> dict[str, torch.Tensor]:
        return {"input_ids": self.words[i], "attention_mask": self.mask[i], "labels": self.labels[i]}

    @property
    def inputs(self) -> dict[str, torch.Tensor]:
        return {"input_ids": self.words, "attention_mask": self.mask}


def bert() -> nn.Module:
    torch.manual_seed(0)
    return transformers.BertForSequenceClassification(
        transformers.BertConfig(
            vocab_size=30, hidden_size=8, num_hidden_layers=1, num_attention_heads=2, intermediate_size=16,
            num_labels=2, max_position_embeddings=6, hidden_dropout_prob=0.0, attention_probs_dropout_prob=0.0,
        )
    )  # fmt: skip


def trainer(model: nn.Module, memory: ip.Memory | None, folder: Path, stop: int | None = None):
    optimizer: torch.optim.Optimizer = torch.optim.AdamW(model.parameters(), 0.1)
    if memory is not None:
        optimizer = ip.optim.Invariant(optimizer, model, memory, tolerance=TOLERANCE, check_every=2)
    schedule = torch.optim.lr_scheduler.LambdaLR(optimizer, lambda step: 1 - step / 10)
    settings = transformers.TrainingArguments(
        str(folder), num_train_epochs=2, max_steps=8, per_device_train_batch_size=4, gradient_accumulation_steps=2,
        max_grad_norm=1.0, use_cpu=True, report_to=[], logging_strategy="no", disable_tqdm=True, save_strategy="steps",
        save_steps=4, seed=0,
    )  # fmt: skip
    made = transformers.Trainer(model, settings, train_dataset=Texts(32, 1), optimizers=(optimizer, schedule))
    if stop is not None:

        class Stop(transformers.TrainerCallback):
            def on_step_end(self, args, state, control, **kwargs):
                control.should_training_stop = state.global_step >= stop

        made.add_callback(Stop())
    return made, optimizer


def drift(model: nn.Module, start: nn.Module, inputs: dict[str, torch.Tensor]) -> float:
    with torch.no_grad():
        p, p0 = (m.eval()(**inputs).logits.softmax(1) for m in (model, start))
    return float((1 - (p * p0).sqrt().sum(1)).mean())


@pytest.mark.parametrize("keep", ["factors", "examples"])
def test_the_trainer_keeps_the_promise_and_the_plain_optimiser_does_not(keep, tmp_path):
    start, old = bert(), Texts(64, 0)
    memory = ip.Memory(examples=40 if keep == "examples" else 0, factors=keep == "factors").remember(start, old.inputs)
    drifts = {}
    for name, kept in (("plain", None), ("kept", memory)):
        model = copy.deepcopy(start)
        made, optimizer = trainer(model, kept, tmp_path / name)
        made.train()
        if kept is not None:
            assert optimizer.steps == 8 and optimizer.check() <= TOLERANCE
        drifts[name] = drift(model, start, old.inputs)
    assert drifts["kept"] < 2 * TOLERANCE < 5 * TOLERANCE < drifts["plain"]


def test_the_trainer_resumes_to_the_bit(tmp_path):
    start, old = bert(), Texts(64, 0)
    memory = ip.Memory(examples=20, factors=True).remember(start, old.inputs)
    whole, stopped, again = (copy.deepcopy(start) for _ in range(3))
    trainer(whole, memory, tmp_path / "whole")[0].train()
    trainer(stopped, memory, tmp_path / "broken", stop=4)[0].train()
    trainer(again, memory, tmp_path / "broken")[0].train(resume_from_checkpoint=True)
    assert all(torch.equal(p, q) for p, q in zip(whole.parameters(), again.parameters()))
    assert not all(torch.equal(p, q) for p, q in zip(whole.parameters(), stopped.parameters()))


def test_a_loader_of_tokenised_batches_is_remembered_as_its_texts_are():
    model, texts = bert(), Texts(40, 0)
    loaded = ip.Memory(examples=10, factors=True).remember(model, DataLoader(texts, batch_size=8))
    given = ip.Memory(examples=10, factors=True).remember(model, texts.inputs)
    assert torch.equal(loaded.tasks[0].outputs, given.tasks[0].outputs)
    assert set(loaded.tasks[0].inputs) == {"input_ids", "attention_mask"}


@pytest.mark.parametrize("precision", ["32-true", "bf16-mixed"])
def test_lightning_keeps_the_promise_with_clipping_accumulation_and_schedules(precision):
    class Module(lightning.LightningModule):
        def __init__(self, memory: ip.Memory | None) -> None:
            super().__init__()
            torch.manual_seed(0)
            self.net, self.memory = nn.Sequential(nn.Linear(5, 16), nn.Tanh(), nn.Linear(16, 3)), memory

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return self.net(x)

        def training_step(self, batch, index):
            return nn.functional.cross_entropy(self(batch[0]), batch[1])

        def configure_optimizers(self):
            base = torch.optim.AdamW(self.parameters(), 0.02)
            self.steered = base
            if self.memory is not None:
                self.steered = ip.optim.Invariant(base, self, self.memory, tolerance=TOLERANCE, check_every=2)
            return {"optimizer": self.steered, "lr_scheduler": torch.optim.lr_scheduler.StepLR(self.steered, 1, 0.5)}

    x, new = (torch.randn(64, 5, generator=torch.Generator().manual_seed(s)) for s in (0, 1))
    y, drifts = (new[:, 0] > 0).long(), {}
    memory = ip.Memory(examples=0, factors=True).remember(Module(None), x)
    for name, kept in (("plain", None), ("kept", memory)):
        module, start = Module(kept), Module(None)
        made = lightning.Trainer(
            max_epochs=2, gradient_clip_val=1.0, accumulate_grad_batches=2, accelerator="cpu", logger=False,
            enable_checkpointing=False, enable_progress_bar=False, enable_model_summary=False, precision=precision,
        )  # fmt: skip
        made.fit(module, DataLoader(TensorDataset(new, y), batch_size=8))
        with torch.no_grad():
            p, p0 = (m.eval()(x).softmax(1) for m in (module, start))
        drifts[name] = float((1 - (p * p0).sqrt().sum(1)).mean())
        if kept is not None:
            assert module.steered.steps == 8 and module.steered.check() <= TOLERANCE
            assert module.steered.param_groups[0]["lr"] == 0.005
    assert drifts["kept"] < 2 * TOLERANCE < drifts["plain"]
