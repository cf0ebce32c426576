"""How robust is an ensemble, as a whole? Transfer from one member is not white-box, and the table keeps them apart."""

import torch
from sklearn.datasets import load_digits
from torch import nn

import isopath as ip

images, labels = load_digits(return_X_y=True)
x, y = torch.tensor(images, dtype=torch.float32) / 16, torch.tensor(labels)
train, test = slice(0, 1400), slice(1400, 1500)


def trained(seed: int) -> nn.Module:
    """A perceptron of its own seed."""
    torch.manual_seed(seed)
    model = nn.Sequential(nn.Linear(64, 64), nn.ReLU(), nn.Linear(64, 10))
    optimiser = torch.optim.Adam(model.parameters(), 1e-2)
    for _ in range(60):
        optimiser.zero_grad()
        nn.functional.cross_entropy(model(x[train]), y[train]).backward()
        optimiser.step()
    return model


ensemble = ip.Ensemble([trained(seed) for seed in range(3)])
print(ip.robustness(ensemble, x[test], y[test], eps=0.1, surrogate=trained(3), autoattack=25))
print()
print(ip.compare(ensemble, x[test], y[test]))
