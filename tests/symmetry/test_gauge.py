"""The gauge: equal networks get one point, and no function changes on the way."""

from functools import cache
from itertools import pairwise

import pytest
import torch
from modules import CASES
from test_finder import built
from torch import nn

from isopath.network import Network
from isopath.space import Space
from isopath.symmetry import Permutation
from isopath.symmetry.gauge import Gauge
from isopath.symmetry.rescaling import octaves, rescaled

COUPLED = ("concat and residual", "a layer used twice")  # units whose norms depend on one another
SCALED = [name for name in CASES if CASES[name].scalings]


@cache
def ground(name):
    model, example = built(name)
    network = Network(model.double())
    theta = network.start + 0.05 * torch.randn_like(network.start)
    return network, example, theta, Gauge.of(model.double(), example)


def applied(network, theta, change):
    named = dict(network.space.unflatten(theta))
    return torch.cat([{**named, **change(named)}[name].reshape(-1) for name in network.space.names])


@pytest.mark.parametrize("name", CASES)
def test_a_fixed_point_is_the_same_classifier(name):
    network, example, theta, gauge = ground(name)
    fixed = gauge.fixed(theta.unsqueeze(0))[0]
    before, after = (network(point, example).softmax(-1) for point in (theta, fixed))
    assert torch.allclose(before, after, rtol=1e-9, atol=1e-9)
    assert torch.allclose(gauge.fixed(fixed.unsqueeze(0))[0], fixed, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("name", SCALED)
def test_rescaled_networks_get_one_point(name):
    network, _, theta, gauge = ground(name)
    if name in COUPLED:
        assert len(gauge.scaled) < CASES[name].scalings
        return
    assert len(gauge.scaled) == CASES[name].scalings
    factors = octaves(gauge.found, torch.Generator().manual_seed(1), most=2)
    other = applied(network, theta, lambda named: rescaled(named, gauge.found, factors))
    points = gauge.fixed(torch.stack([theta, other]))
    assert not torch.allclose(theta, other)
    assert torch.allclose(points[0], points[1], rtol=1e-5, atol=1e-6)


def mlp():
    model = nn.Sequential(nn.Linear(5, 8), nn.ReLU(), nn.Linear(8, 6), nn.ReLU(), nn.Linear(6, 3)).double()
    return model, torch.randn(4, 5, dtype=torch.float64)


def test_permuted_and_shifted_networks_are_at_distance_zero():
    model, x = mlp()
    gauge, network = Gauge.of(model, x), Network(model)
    assert gauge.shifts == ("4.weight", "4.bias") and gauge.rounds == 1
    permutation = Permutation.random(gauge.found, torch.Generator().manual_seed(1))
    shift = torch.randn(6, dtype=torch.float64)
    other = applied(network, network.start, lambda named: permutation({k: named[k] for k in gauge.found.places}))
    other = applied(network, other, lambda n: {"4.weight": n["4.weight"] + shift, "4.bias": n["4.bias"] + 2})
    assert torch.allclose(network(network.start, x).softmax(-1), network(other, x).softmax(-1))
    points = gauge.fixed(torch.stack([network.start, other]))
    assert (points[0] - points[1]).norm() > 1
    assert float(gauge.distances(points).max()) < 1e-9


def test_outputs_that_no_softmax_reads_are_not_shifted():
    model, x = mlp()
    assert Gauge.of(model, x, softmax=False).shifts == ()
    squashed = nn.Sequential(*model, nn.Sigmoid())  # a shift before it is none after it
    assert Gauge.of(squashed, x).shifts == ()


def test_the_gauge_is_differentiable_and_blind_to_rescaling():
    model, x = mlp()
    gauge, theta = Gauge.of(model, x), Network(model).start.requires_grad_(True)
    value = gauge.aligned(gauge.fixed(theta.unsqueeze(0)), theta.detach()).square().sum()
    (gradient,) = torch.autograd.grad((value - 1).square(), theta)
    named = Network(model).space.unflatten(theta.detach() * gradient)
    # along the orbit of a rescaling nothing changes: Σ e <∂f/∂θ, θ> = 0 for each unit
    flow = named["0.weight"].sum(1) + named["0.bias"] - named["2.weight"].sum(0)
    assert gradient.norm() > 1e-3
    assert torch.allclose(flow, torch.zeros_like(flow), atol=1e-9)


def test_a_unit_without_weights_stays_finite():
    model, x = mlp()
    with torch.no_grad():
        model[0].weight[0], model[0].bias[0] = 0.0, 0.0
    fixed = Gauge.of(model, x).fixed(Network(model).start.unsqueeze(0))
    assert fixed.isfinite().all()


@pytest.mark.parametrize("hidden", [(16,), (16, 16), (12, 12, 12), (8, 24, 16, 8)])
def test_shuffled_copies_come_to_one_point_next_to_a_third(hidden):
    sizes = (5, *hidden, 3)
    layers = [part for a, b in pairwise(sizes) for part in (nn.Linear(a, b), nn.ReLU())][:-1]
    model, x = nn.Sequential(*layers).double(), torch.randn(4, 5, dtype=torch.float64)
    gauge, network = Gauge.of(model, x), Network(model)
    for seed in range(3):
        generator = torch.Generator().manual_seed(seed)
        third = torch.randn(network.start.shape, generator=generator, dtype=torch.float64)
        permutation = Permutation.random(gauge.found, generator)
        copy = applied(network, network.start, lambda n, p=permutation: p({k: n[k] for k in gauge.found.places}))
        points = gauge.fixed(torch.stack([network.start, copy]))
        assert (points[0] - points[1]).norm() > 1
        near = gauge.aligned(points, gauge.fixed(third.unsqueeze(0))[0])
        assert torch.allclose(near[0], near[1], atol=1e-9)


def test_units_with_a_part_that_is_no_points_stay_where_they_are():
    model, x = mlp()
    some = Space.of(model, ["4.*"])
    gauge, theta = Gauge.of(model, x, some), Network(model, ["4.*"]).start
    named = some.unflatten(theta)
    other = torch.cat([named["4.weight"][:, torch.tensor([1, 0, 2, 3, 4, 5])].reshape(-1), named["4.bias"]])
    assert float(gauge.distances(gauge.fixed(torch.stack([theta, other]))).max()) > 0.1
    norm = nn.Sequential(nn.Linear(5, 8), nn.BatchNorm1d(8), nn.ReLU(), nn.Linear(8, 3)).double()
    assert Gauge.of(norm, x).permuted.units == 8  # a fresh norm's statistics are the same for all
    with torch.no_grad():
        norm[1].running_mean += torch.arange(8)
    assert Gauge.of(norm, x).permuted.units == 0
