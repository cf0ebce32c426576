"""Teach a network something new with Lightning's Trainer; it goes on doing what it did.

Takes lightning: pip install "isopath[lightning]".
"""

import copy
import logging
import warnings

import lightning
import torch
from torch import Tensor, nn
from torch.utils.data import DataLoader, TensorDataset

import isopath as ip
from isopath.run.data import digits

logging.getLogger("lightning.pytorch").setLevel(logging.ERROR)
warnings.filterwarnings("ignore", module="lightning")


class Digits(lightning.LightningModule):
    """A perceptron on 8 x 8 images; what it must keep is an argument, the rest is Lightning as usual."""

    def __init__(self, keep: ip.Memory | None = None) -> None:
        super().__init__()
        self.net = nn.Sequential(nn.Flatten(), nn.Linear(64, 100), nn.ReLU(), nn.Linear(100, 10))
        self.keep = keep

    def forward(self, x: Tensor) -> Tensor:
        return self.net(x)

    def training_step(self, batch: tuple[Tensor, Tensor], index: int) -> Tensor:
        x, y = batch
        return nn.functional.cross_entropy(self(x), y)

    def on_train_end(self) -> None:
        if self.keep is not None:
            self.trainer.optimizers[0].check()  # what was learned since the last check may have to go back

    def configure_optimizers(self) -> dict:
        optimizer = torch.optim.SGD(self.parameters(), 0.1, momentum=0.9)
        if self.keep is not None:
            optimizer = ip.optim.Invariant(optimizer, self, keep=self.keep, tolerance=0.02, check_every=10)
        return {"optimizer": optimizer, "lr_scheduler": torch.optim.lr_scheduler.StepLR(optimizer, 5, gamma=0.5)}


def fit(model: Digits, classes: range, epochs: int) -> Digits:
    """Lightning's own loop, with clipping and accumulation."""
    data = digits(train=True, classes=classes)
    trainer = lightning.Trainer(
        max_epochs=epochs, gradient_clip_val=1.0, accumulate_grad_batches=2, accelerator="cpu", logger=False,
        enable_checkpointing=False, enable_progress_bar=False, enable_model_summary=False,
    )  # fmt: skip
    trainer.fit(model, DataLoader(TensorDataset(data.inputs, data.labels), batch_size=32, shuffle=True))
    return model


lightning.seed_everything(0, verbose=False)
old, new = range(5), range(5, 10)
first = fit(Digits(), old, epochs=10)
seen = digits(train=True, classes=old)
memory = ip.Memory(examples=100, factors=True).remember(first, seen.inputs)
for name, keep in (("SGD", None), ("Invariant", memory)):
    learner = Digits(keep)
    learner.load_state_dict(copy.deepcopy(first.state_dict()))
    fit(learner, new, epochs=10)
    tests = [digits(train=False, classes=classes) for classes in (old, new)]
    scores = [ip.evaluate(learner, ip.Task(test.inputs, test.labels)).accuracy for test in tests]
    print(f"{name}: digits 0 to 4 {scores[0]:.1%}, digits 5 to 9 {scores[1]:.1%}")
