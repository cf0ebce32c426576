"""The loss over the plane through a curve."""

import pytest
import torch
from torch import nn

import isopath as ip
from isopath.paths import plane


def mlp(seed: int) -> nn.Module:
    torch.manual_seed(seed)
    return nn.Sequential(nn.Linear(4, 8), nn.BatchNorm1d(8), nn.ReLU(), nn.Linear(8, 3)).double()


X, Y = torch.randn(40, 4, generator=torch.Generator().manual_seed(0), dtype=torch.float64), torch.arange(40) % 3
TASK = ip.Task(X, Y)


@pytest.mark.parametrize("kind", ["bezier", "segment", "chain"])
def test_grid_and_curve_share_their_coordinates(kind):
    a, b = mlp(0), mlp(1)
    curve = ip.connect(a, b, TASK, curve=kind, steps=20, rate=0.05)
    found = plane(curve, TASK, points=5, margin=0.0)
    assert len(found.loss) == len(found.y) == 5 and len(found.accuracy[0]) == len(found.x) == 5
    distance = float((curve(1) - curve(0)).norm())
    assert found.ends == ((0.0, 0.0), (pytest.approx(distance), 0.0))
    assert found.curve[0] == pytest.approx((0, 0), abs=1e-9)
    assert found.curve[-1] == pytest.approx((distance, 0), abs=1e-9)
    lengths = [((x - u) ** 2 + (y - v) ** 2) ** 0.5 for (x, y), (u, v) in zip(found.curve, found.curve[1:])]
    assert sum(lengths) == pytest.approx(curve.length(points=65), rel=1e-6)  # nothing of the curve lies off the plane


def test_a_grid_point_is_the_network_there():
    a, b = mlp(0), mlp(1)
    curve = ip.connect(a, b, curve="segment")
    found = plane(curve, TASK, points=3, margin=0.0)  # a straight line: its grid has no height
    assert found.loss[0][0] == pytest.approx(ip.evaluate(a, TASK).loss)
    assert found.loss[1][2] == pytest.approx(ip.evaluate(b, TASK).loss)
    assert found.loss[0][1] == pytest.approx(ip.evaluate(curve.model(0.5), TASK).loss)


def test_mistakes_are_named():
    a = mlp(0)
    with pytest.raises(ValueError, match="both ends are the same network"):
        plane(ip.connect(a, a, curve="segment"), TASK)
    with pytest.raises(ValueError, match="at least 2 points"):
        plane(ip.connect(a, mlp(1), curve="segment"), TASK, points=1)
