"""Attacks: inside the ball, as strong as the closed form on a linear network, and honest about their cost."""

import pytest
import torch
from torch import nn

import isopath as ip
from isopath.attacks import PGD, cross_entropy_rows
from isopath.network import FORWARD, Network
from isopath.objectives import Robust


def linear(seed: int = 0) -> nn.Module:
    torch.manual_seed(seed)
    return nn.Linear(6, 2).double()


X = 0.2 + 0.6 * torch.rand(40, 6, generator=torch.Generator().manual_seed(1), dtype=torch.float64)
Y = torch.arange(40) % 2


def generator() -> torch.Generator:
    return torch.Generator().manual_seed(0)


@pytest.mark.parametrize(("norm", "dual"), [("linf", 1), ("l2", 2)])
def test_on_a_linear_network_the_attack_is_the_closed_form(norm, dual):
    model, eps = linear(), 0.1
    attacked = PGD(eps, steps=20, step_size=1.0, norm=norm, low=None, high=None)(model, X, Y, generator())
    margin = model(X)[torch.arange(40), 1 - Y] - model(X)[torch.arange(40), Y]
    worst = margin + eps * (model.weight[1] - model.weight[0]).norm(p=dual)  # Hölder's inequality, met with equality
    got = model(attacked)[torch.arange(40), 1 - Y] - model(attacked)[torch.arange(40), Y]
    assert torch.allclose(got, worst, rtol=1e-6)


@pytest.mark.parametrize("norm", ["linf", "l2"])
@pytest.mark.parametrize("restarts", [1, 3])
def test_attacked_inputs_stay_in_the_ball_and_in_range_and_are_no_better(norm, restarts):
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(6, 16), nn.Tanh(), nn.Linear(16, 2)).double()
    attack = PGD(0.3, norm=norm, restarts=restarts)
    attacked = attack(model, X, Y, generator())
    change = (attacked - X).flatten(1)
    size = change.abs().amax(1) if norm == "linf" else change.norm(dim=1)
    assert float(size.max()) <= 0.3 + 1e-12 and float(attacked.min()) >= 0 and float(attacked.max()) <= 1
    assert float(size.max()) > 0.2
    assert cross_entropy_rows(model(attacked), Y).mean() > cross_entropy_rows(model(X), Y).mean()
    assert torch.equal(attacked, attack(model, X, Y, generator()))


def test_more_restarts_are_never_weaker():
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(6, 16), nn.Tanh(), nn.Linear(16, 2)).double()
    one, many = (PGD(0.3, steps=2, restarts=n)(model, X, Y, generator()) for n in (1, 8))
    assert bool((cross_entropy_rows(model(many), Y) >= cross_entropy_rows(model(one), Y) - 1e-12).all())


def test_a_robust_task_scores_and_trains_on_the_attacked_inputs_and_counts_their_cost():
    model = linear()
    network, task = Network(model), Robust(X, Y, 0.1, attack=PGD(0.1, steps=5, restarts=2), batch_size=20)
    clean, robust = (ip.evaluate(model, t) for t in (ip.Task(X, Y), task))
    assert robust.loss > clean.loss and robust.accuracy <= clean.accuracy
    frozen = task.freeze(3, 0)
    theta = network.start.requires_grad_(True)
    value = frozen(network, theta)
    assert network.evaluations == pytest.approx(20 * (1 + 10 + 2 * FORWARD))
    assert float(value.detach()) == float(frozen(network, theta).detach())
    (gradient,) = torch.autograd.grad(value, theta)
    with torch.no_grad():
        assert frozen(network, theta - 0.05 * gradient) < value
    assert isinstance(frozen, Robust) and frozen.attack == task.attack


def test_mistakes_are_named():
    with pytest.raises(ValueError, match="norm must be"):
        PGD(0.1, norm="l1")
    for wrong in ({"eps": -0.1}, {"eps": float("nan")}, {"eps": 0.1, "step_size": -1.0}):
        with pytest.raises(ValueError, match="eps must be >= 0 and step_size > 0"):
            PGD(**wrong)
    with pytest.raises(ValueError, match=r"steps must be a whole number >= 1, got 2\.5"):
        PGD(0.1, steps=2.5)
    with pytest.raises(ValueError, match=r"the inputs range from -1 to 2, outside of what the attack holds"):
        PGD(0.1)(linear(), torch.linspace(-1, 2, 18, dtype=torch.float64).reshape(3, 6), Y[:3], generator())
    with pytest.raises(ValueError, match=r"needs the loss of each row, \(3,\), got \(\)"):
        PGD(0.1)(linear(), X[:3], Y[:3], generator(), torch.nn.functional.cross_entropy)
    with pytest.raises(TypeError, match=r"floating-point inputs within a ball, got torch\.int64"):
        PGD(0.1)(linear(), torch.zeros(3, 6, dtype=torch.int64), Y[:3], generator())
