"""Two networks with the same outputs, far apart: `Diversity` walks away from the start along an invariant path."""

import torch
from torch import nn

import isopath as ip

torch.manual_seed(0)
x = torch.randn(400, 8)
model = nn.Sequential(nn.Linear(8, 48), nn.Tanh(), nn.Linear(48, 3))
path = ip.trace(model, keep=ip.Reference(x), objective=ip.Diversity([model]), tolerance=0.001, max_steps=60)
start, end = path.point(0), path.point()
print(path)
print(f"moved by {float((end - start).norm() / start.norm()):.0%} of the weights' norm at drift {path.drift:.5f}")
