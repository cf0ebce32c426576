"""Shortest paths in function space: closed forms, and the metric's own length."""

import math

import pytest
import torch
from torch import nn

import isopath as ip
from isopath.paths import functional_length, geodesic

X = torch.randn(60, 4, generator=torch.Generator().manual_seed(0), dtype=torch.float64)


def mlp(seed: int) -> nn.Module:
    torch.manual_seed(seed)
    return nn.Sequential(nn.Linear(4, 8), nn.Tanh(), nn.Linear(8, 3)).double()


def linear(seed: int) -> nn.Module:
    torch.manual_seed(seed)
    return nn.Linear(4, 3).double()


def bent(a: nn.Module, b: nn.Module, bends: int = 1) -> ip.paths.Curve:
    """A Bezier curve far from straight."""
    return ip.connect(a, b, lambda net, theta: theta.sum(), bends=bends, steps=30, rate=0.05)


def test_on_a_linear_network_the_geodesic_is_the_straight_line():
    a, b = linear(0), linear(1)
    keep = ip.Reference(X, divergence="squared_error")
    straight = functional_length(ip.connect(a, b, curve="segment"), keep)
    with torch.no_grad():
        distance = float((b(X) - a(X)).square().sum(1).mean().sqrt())
    assert straight == pytest.approx(distance, rel=1e-9)
    start = bent(a, b)
    assert functional_length(start, keep) > 1.05 * distance
    found = geodesic(start, keep, steps=1500, rate=0.05)
    assert functional_length(found, keep) == pytest.approx(distance, rel=5e-4)
    assert functional_length(start, keep) > 1.05 * distance  # the curve that was given is as it was


def test_the_length_is_that_of_the_metric_of_each_point():
    curve, keep = bent(mlp(0), mlp(1)), ip.Reference(X)
    by_metric = curve.length(lambda theta: keep.metric(curve.at(theta, 0.5)), points=129)
    assert functional_length(curve, keep, points=129) == pytest.approx(by_metric, rel=1e-3)


def test_a_geodesic_is_shorter_and_not_below_the_great_circle():
    a, b = mlp(0), mlp(1)
    keep = ip.Reference(X)
    straight = ip.connect(a, b, curve="segment")
    found = geodesic(straight, keep, steps=600, rate=0.02, raise_to=3)
    before, after = (functional_length(curve, keep) for curve in (straight, found))
    with torch.no_grad():
        overlap = (a(X).softmax(1) * b(X).softmax(1)).sqrt().sum(1).clamp(max=1)
    # on the sphere of √p the distance is the angle; the metric's length element is half that of √2·√p
    circle = math.sqrt(float(overlap.acos().square().mean()))
    assert circle < after < before
    assert [row["step"] for row in found.history] == list(range(600))
    assert found.history[-1]["evaluations"] == pytest.approx(600 * 60 * (2 + 1 / 3))


def test_raising_the_degree_leaves_the_curve_where_it_was():
    curve, keep = bent(mlp(0), mlp(1)), ip.Reference(X)
    raised = geodesic(curve, keep, steps=0, raise_to=4)
    assert len(raised.path.points) == 6
    for t in (0.0, 0.2, 0.5, 0.9, 1.0):
        assert torch.allclose(raised(t), curve(t), atol=1e-12)
    with pytest.raises(ValueError, match="raise_to must be at least the 4 inner points"):
        geodesic(raised, keep, raise_to=1)


def test_it_repeats_to_the_bit():
    curve, keep = bent(mlp(0), mlp(1)), ip.Reference(X)
    one, two = (geodesic(curve, keep, steps=20, seed=3)(0.3) for _ in range(2))
    assert torch.equal(one, two)


def test_masks_and_weights_of_the_reference_count():
    curve = bent(mlp(0), mlp(1))
    some = functional_length(curve, ip.Reference(X[:20]))
    weights = (torch.arange(60) < 20).double()
    assert functional_length(curve, ip.Reference(X, weights=weights)) == pytest.approx(some, rel=1e-9)
    assert functional_length(curve, ip.Reference(X)) != pytest.approx(some, rel=1e-3)
