"""Figures along a curve against their definitions."""

import pytest
import torch
from torch import nn

import isopath as ip
from isopath.connect import Profile, repaired
from isopath.connect.statistics import _moments

X, Y = torch.randn(60, 4, generator=torch.Generator().manual_seed(0)), torch.arange(60) % 3
TASK = ip.Task(X, Y)


def mlp(seed: int) -> nn.Module:
    torch.manual_seed(seed)
    return nn.Sequential(nn.Linear(4, 9), nn.ReLU(), nn.Linear(9, 7), nn.ReLU(), nn.Linear(7, 3))


def test_a_barrier_is_the_rise_above_the_line_between_the_ends():
    profile = Profile((0.0, 0.5, 1.0), (1.0, 3.0, 2.0), (0.9, 0.5, 0.7), None, (0.0, 3.0, 4.0))
    assert profile.barrier == 1.5 and profile.accuracy_barrier == pytest.approx(0.3)
    assert profile.mean("loss") == 2.25 and profile.mean("loss", by_length=True) == pytest.approx((3 * 2 + 1 * 2.5) / 4)
    assert "barrier=1.5" in repr(profile) and "0.5000 to 0.9000" in repr(profile)


def test_figures_are_those_of_the_networks_themselves():
    curve = ip.connect(mlp(0), mlp(1), curve="segment")
    profile = ip.along(curve, TASK, points=5, keep=ip.Reference(X))
    for t, loss, accuracy, drift in zip(profile.t, profile.loss, profile.accuracy, profile.drift):
        module = curve.model(t)
        assert loss == pytest.approx(float(nn.functional.cross_entropy(module(X), Y)), rel=1e-5)
        assert accuracy == pytest.approx(float((module(X).argmax(1) == Y).float().mean()))
        p, q = module(X).softmax(1), curve.model(0)(X).softmax(1)
        assert drift == pytest.approx(float((1 - (p * q).sqrt().sum(1)).mean()), abs=1e-5)
    assert profile.lengths[-1] == pytest.approx(curve.length(), rel=1e-5)
    assert ip.barrier(curve, TASK, points=5) == profile.barrier
    with pytest.raises(ValueError, match="at least 2 points"):
        ip.along(curve, TASK, points=1)


def test_repair_gives_every_hidden_unit_the_statistics_in_between():
    a, b = mlp(0), mlp(1)
    curve = ip.connect(a, b, curve="segment")
    found = repaired(curve.model(0.3), (a, b), 0.3, X, batch_size=7)
    goal, got = [_moments(m, ["0", "2"], X, 60) for m in (a, b)], _moments(found, ["0", "2"], X, 60)
    for name in ("0", "2"):
        for i in (0, 1):
            assert torch.allclose(got[name][i], 0.7 * goal[0][name][i] + 0.3 * goal[1][name][i], atol=1e-5)
    assert torch.equal(found[4].weight, curve.model(0.3)[4].weight)


def test_the_average_of_one_network_in_many_orders_is_that_network():
    a = mlp(0)
    groups = ip.symmetries(a, X[:2])
    models = [a, *(ip.Permutation.random(groups, torch.Generator().manual_seed(i))(a) for i in range(3))]
    mean = ip.average(models, X)
    assert torch.allclose(mean(X), a(X), atol=1e-5)
    assert not torch.allclose(ip.average(models, align=False)(X), a(X), atol=1e-2)
    with pytest.raises(ValueError, match="needs data"):
        ip.average(models)
    with pytest.raises(ValueError, match="at least 2"):
        ip.average([a], X)
