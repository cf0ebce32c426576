"""A new task with a head of its own: a network that names digits learns which of them have a closed loop."""

import torch
from torch import Tensor, nn

import isopath as ip
from isopath.run.data import digits
from isopath.trace import Multiplier


class Heads(nn.Module):
    """A body and a head for each task; the outputs go by the tasks' names."""

    def __init__(self, body: nn.Module, **heads: nn.Module) -> None:
        super().__init__()
        self.body, self.heads = body, nn.ModuleDict(heads)

    def forward(self, x: Tensor) -> dict[str, Tensor]:
        """Logits by name."""
        seen = self.body(x)
        return {name: head(seen) for name, head in self.heads.items()}


torch.manual_seed(0)
data, test = digits(train=True), digits(train=False)
trained = nn.Sequential(nn.Flatten(), nn.Linear(64, 64), nn.ReLU(), nn.Linear(64, 10))
optimiser = torch.optim.Adam(trained.parameters(), 1e-2)
for _ in range(150):
    optimiser.zero_grad()
    nn.functional.cross_entropy(trained(data.inputs), data.labels).backward()
    optimiser.step()

model = Heads(trained[:-1], digit=trained[-1])
memory = ip.Memory(examples=0, factors=True).remember(model, data.inputs, data.labels, "digits", output="digit")

model.heads["loop"] = nn.Linear(64, 2)  # the memory knows nothing of it: it is free to move
loops = torch.isin(data.labels, torch.tensor([0, 6, 8, 9])).long()
task = ip.Task(data.inputs, loops, outputs="loop")
path = ip.trace(model, keep=memory, objective=task, max_steps=300, corrector=Multiplier(rate=1e-2))

answers = torch.isin(test.labels, torch.tensor([0, 6, 8, 9])).long()
print(path)
for name, found in (("start", path.model(step=0)), ("end", path.model())):
    named = ip.evaluate(found, ip.Task(test.inputs, test.labels, outputs="digit"))
    closed = ip.evaluate(found, ip.Task(test.inputs, answers, outputs="loop"))
    print(f"{name}: which digit {named.accuracy:.1%}, a closed loop {closed.accuracy:.1%}")
