"""Drive a trace yourself: stop when a condition of your own holds."""

import torch
from torch import nn

import isopath as ip
from isopath.run.data import digits

torch.manual_seed(0)
old, new = digits(train=True, classes=range(5)), digits(train=True, classes=range(5, 10))
model = nn.Sequential(nn.Flatten(), nn.Linear(64, 64), nn.ReLU(), nn.Linear(64, 10))
optimiser = torch.optim.Adam(model.parameters(), 1e-2)
for _ in range(150):
    optimiser.zero_grad()
    nn.functional.cross_entropy(model(old.inputs), old.labels).backward()
    optimiser.step()

task = ip.Task(new.inputs, new.labels, batch_size=64)
for state in ip.steps(model, keep=ip.Reference(old.inputs), objective=task, tolerance=0.02, max_steps=80):
    if state.accepted and ip.evaluate(state.model(), task).accuracy > 0.9:
        break
print(f"step {state.step}: new {ip.evaluate(state.model(), task)}, drift {state.drift:.4f} of 0.02")
print(f"old digits: {ip.evaluate(state.model(), ip.Task(old.inputs, old.labels))}")
