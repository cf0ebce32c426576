"""Curve and permutation in turns."""

import copy

import pytest
import torch
from torch import nn

import isopath as ip
import networks
from isopath.paths import alternating


def mlp(seed: int, norm: bool = False) -> nn.Module:
    torch.manual_seed(seed)
    layers = [nn.Linear(4, 12), *([nn.BatchNorm1d(12)] if norm else []), nn.ReLU(), nn.Linear(12, 3)]
    return nn.Sequential(*layers).double()


X = torch.randn(90, 4, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
Y = (X @ torch.randn(4, 3, generator=torch.Generator().manual_seed(5), dtype=torch.float64)).argmax(1)
TASK = ip.Task(X, Y, batch_size=30)


def trained(seed: int, norm: bool = False) -> nn.Module:
    return fitted(mlp(seed, norm))


def fitted(model: nn.Module) -> nn.Module:
    return networks.fitted(model, X, Y)


@pytest.mark.parametrize("norm", [False, True])
def test_no_round_ends_with_a_worse_permutation_and_the_ends_are_networks_given(norm):
    a, b = trained(0, norm), trained(1, norm)
    before = copy.deepcopy(b.state_dict())
    found = alternating(a, b, TASK, ip.symmetries(a, X[:2]), rounds=5, steps=20, rate=0.01)
    assert len(found.rounds) == 5 and all(row["after"] <= row["before"] for row in found.rounds)
    assert any(row["displaced"] for row in found.rounds)  # from the identity there is something to gain
    assert torch.allclose(found.curve.model(1)(X), b(X), atol=1e-9)
    assert all(torch.equal(p, q) for p, q in zip(found.permutation(b).parameters(), found.curve.model(1).parameters()))
    assert torch.equal(found.curve(0), ip.connect(a, b, curve="segment")(0))
    assert all(torch.equal(before[key], value) for key, value in b.state_dict().items())
    assert len(found.curve.history) == 100


def test_from_a_planted_permutation_nothing_is_left_to_gain():
    a = trained(0)
    found = ip.symmetries(a, X[:2])
    planted = ip.Permutation.random(found, torch.Generator().manual_seed(1))
    result = alternating(a, planted(a), TASK, planted.inverse(), rounds=2, steps=5, rate=1e-6)
    assert not any(row["displaced"] for row in result.rounds)
    assert torch.equal(result.curve(0), result.curve(1))


def test_it_repeats_to_the_bit():
    a, b = trained(0), trained(1)
    runs = [alternating(a, b, TASK, ip.symmetries(a, X[:2]), rounds=2, steps=10) for _ in range(2)]
    assert runs[0].permutation == runs[1].permutation and torch.equal(runs[0].curve(0.4), runs[1].curve(0.4))


def test_a_deep_network_is_permuted_a_few_units_at_a_time():
    def deep() -> nn.Module:
        torch.manual_seed(1)
        hidden = [layer for _ in range(5) for layer in (nn.Linear(10, 10), nn.ReLU())]
        return nn.Sequential(nn.Linear(4, 10), nn.ReLU(), *hidden, nn.Linear(10, 3)).double()

    a = fitted(deep())
    planted = ip.Permutation.random(ip.symmetries(a, X[:2]), torch.Generator().manual_seed(1))
    found = alternating(a, planted(a), TASK, ip.symmetries(a, X[:2]), rounds=3, steps=10, rate=1e-3)
    assert sum(row["displaced"] > 0 for row in found.rounds) >= 2
    assert all(row["after"] <= row["before"] for row in found.rounds)
