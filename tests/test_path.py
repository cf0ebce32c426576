import itertools
import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from isopath.metrics import Identity
from isopath.network import Network
from isopath.paths import Path, PolyChain, Segment
from networks import build, x


class Circle(Path):
    def __call__(self, t):
        angle = torch.tensor(2 * math.pi * t).double()
        return torch.stack([angle.cos(), angle.sin()])


def test_a_segment_is_straight_with_exact_ends():
    a, b = x(5), x(5, seed=2)
    path = Segment(a, b)
    assert torch.equal(path(0), a) and torch.equal(path(1), b)
    torch.testing.assert_close(path(0.25), 0.75 * a + 0.25 * b)
    assert path.length() == pytest.approx(float((b - a).norm()))


@settings(max_examples=25)
@given(st.integers(0, 10**6), st.integers(1, 6), st.floats(0, 1), st.floats(0, 1))
def test_a_chain_has_exact_ends_and_constant_speed(seed, count, s, t):
    points = list(x(count, 4, seed=seed))
    path = PolyChain(points)
    assert torch.equal(path(0.0), points[0]) and torch.equal(path(1.0), points[-1])
    assert float((path(s) - path(t)).norm()) <= abs(s - t) * path.length() + 1e-9
    walked = [path(t * i / 40) for i in range(41)]
    assert sum(float((b - a).norm()) for a, b in itertools.pairwise(walked)) <= t * path.length() + 1e-9


def test_a_chain_passes_through_its_points_at_their_share_of_the_length():
    points = [torch.tensor([0.0, 0]).double(), torch.tensor([3.0, 0]).double(), torch.tensor([3.0, 1]).double()]
    path = PolyChain(points)
    torch.testing.assert_close(path(0.75), points[1], rtol=0, atol=1e-12)
    torch.testing.assert_close(path(0.875), torch.tensor([3.0, 0.5]).double(), rtol=0, atol=1e-12)


def test_repeated_points_and_single_points_are_paths():
    point = x(3)
    assert torch.equal(PolyChain([point])(0.3), point)
    assert torch.equal(PolyChain([point, point])(0.3), point)
    assert torch.equal(PolyChain([point, point, point + 1])(1), point + 1)


def test_the_ends_handed_out_are_not_the_paths_own():
    a = torch.zeros(2)
    Segment(a, torch.ones(2))(0).add_(5)
    assert not a.any()


def test_a_curved_path_is_sampled_for_its_length():
    assert Circle().length() == pytest.approx(2 * math.pi, rel=1e-3)
    assert Circle().length(points=3) == pytest.approx(4)
    assert [round(float(p[0])) for p in Circle().sample(5)] == [1, 0, -1, 0, 1]


def test_length_under_a_metric_and_under_one_per_point():
    path = Segment(torch.zeros(2), torch.tensor([3.0, 4.0]))
    assert path.length(Identity(2, 4.0)) == pytest.approx(10)
    middles = []
    chain = PolyChain([torch.zeros(2), torch.ones(2), torch.tensor([1.0, 3.0])])
    assert chain.length(lambda p: middles.append(p) or Identity(2, 9.0)) == pytest.approx(3 * (2 + 2**0.5))
    assert [m.tolist() for m in middles] == [[0.5, 0.5], [1, 2]]


def test_length_in_outputs_is_the_distance_that_outputs_move():
    case = build("frozen")  # linear in the parameters that follow the last activation
    metric = case.reference("squared_error").metric(case.model, trainable=["2.*"])
    a, step = x(21), x(21, seed=4)
    length = Segment(a, a + step).length(metric)
    network = Network(case.model, ["2.*"])
    moved = network(a + step, case.inputs) - network(a, case.inputs)
    assert length == pytest.approx(float(moved.square().sum(-1).mean().detach()) ** 0.5)


@pytest.mark.parametrize("t", [-0.1, 1.1, float("nan")])
def test_outside_the_unit_interval_is_an_error(t):
    with pytest.raises(ValueError, match=r"t in \[0, 1\], got"):
        Segment(x(2), x(2))(t)


def test_a_path_needs_a_point():
    with pytest.raises(ValueError, match=r"at least one point, got none"):
        PolyChain([])
