"""Curves: exact ends, the closed form of a quadratic objective, statistics between the ends."""

import copy

import pytest
import torch
from torch import nn

import isopath as ip
from isopath.connect import reestimated
from isopath.connect.curve import begin
from isopath.network import Network
from isopath.path import Bezier, PolyChain, Segment


def mlp(seed: int, norm: bool = False) -> nn.Module:
    torch.manual_seed(seed)
    layers = [nn.Linear(4, 8), *([nn.BatchNorm1d(8)] if norm else []), nn.ReLU(), nn.Linear(8, 3)]
    model = nn.Sequential(*layers)
    if norm:
        model[1].running_mean.uniform_(), model[1].running_var.uniform_(0.5, 2)
    return model


X, Y = torch.randn(90, 4, generator=torch.Generator().manual_seed(0)), torch.arange(90) % 3
TASK = ip.Task(X, Y, batch_size=30)


def same(a: nn.Module, b: nn.Module) -> bool:
    return all(torch.equal(p, q) for p, q in zip(a.state_dict().values(), b.state_dict().values()))


@pytest.mark.parametrize("curve", ["bezier", "chain", "segment"])
@pytest.mark.parametrize("norm", [False, True])
def test_the_ends_are_the_two_networks_to_the_bit(curve, norm):
    a, b = mlp(0, norm).train(), mlp(1, norm)
    before = copy.deepcopy(a), copy.deepcopy(b)
    found = ip.connect(a, b, TASK, curve=curve, bends=2, steps=5)
    assert same(found.model(0), a) and same(found.model(1), b)
    assert same(a, before[0]) and same(b, before[1]) and a.training
    assert not same(found.model(0.5), a)


@pytest.mark.parametrize("curve", ["bezier", "chain"])
def test_training_lowers_the_loss_along_the_curve_and_repeats_to_the_bit(curve):
    a, b = mlp(0), mlp(1)
    straight = ip.along(ip.connect(a, b, curve="segment"), TASK)
    runs = [ip.connect(a, b, TASK, curve=curve, steps=60, rate=0.02) for _ in range(2)]
    assert ip.along(runs[0], TASK).mean("loss") < straight.mean("loss")
    assert torch.equal(runs[0](0.4), runs[1](0.4))
    assert [row["step"] for row in runs[0].history] == list(range(60))
    assert runs[0].history[-1]["evaluations"] == 60 * 30
    assert not torch.equal(ip.connect(a, b, TASK, curve=curve, steps=60, rate=0.02, seed=1)(0.4), runs[0](0.4))


@pytest.mark.parametrize("sampling", ["uniform", "arc"])
def test_the_bend_of_a_quadratic_objective_has_a_closed_form(sampling):
    a, b = mlp(0).double(), mlp(1).double()
    found = ip.connect(a, b, lambda net, theta: theta.square().sum(), steps=3000, rate=0.01, sampling=sampling)
    ends = Network(a).start + Network(b).start
    expected = -0.75 * ends  # where the integral of |γ(t)|² over t is least
    error = float((found.path.points[1] - expected).norm() / expected.norm())
    assert error < 0.05 if sampling == "uniform" else error > 0.05


def test_bezier_curves_contain_the_straight_line():
    a, b = torch.randn(5).double(), torch.randn(5).double()
    for bends in (0, 1, 4):
        points = [torch.lerp(a, b, k / (bends + 1)) for k in range(bends + 2)]
        for t in (0, 0.3, 1):
            assert torch.allclose(Bezier(points)(t), Segment(a, b)(t))
    for path in (Bezier([a, b, a]), PolyChain([a, b, a])):
        assert sum(path.weights(0.3)) == pytest.approx(1)
    middle = [w * p for w, p in zip(PolyChain([a, b, -a]).weights(0.75), [a, b, -a])]
    assert torch.allclose(sum(middle), 0.5 * (b - a))
    with pytest.raises(ValueError, match="at least 2 control points"):
        Bezier([a])


def test_statistics_between_the_ends():
    a, b = mlp(0, True), mlp(1, True)
    found = ip.connect(a, b, curve="segment")
    between = found.model(0.25)
    assert torch.allclose(between[1].running_mean, 0.75 * a[1].running_mean + 0.25 * b[1].running_mean)
    anew = found.model(0.25, X)
    hidden = anew[0](X)
    assert torch.allclose(anew[1].running_mean, hidden.mean(0), atol=1e-6)
    assert torch.allclose(anew[1].running_var, hidden.var(0), atol=1e-5)
    assert anew[1].momentum == a[1].momentum


def test_reestimation_leaves_modes_and_plain_networks_alone():
    model = mlp(0, True).train()
    twin = reestimated(model, X, batch_size=45)
    assert twin.training and twin[1].training and not same(model, twin)
    assert same(reestimated(mlp(0), X), mlp(0))


def test_a_curve_of_a_network_with_batch_norm_trains_on_batch_statistics():
    a, b = mlp(0, True), mlp(1, True)
    for model in (a, b):
        model[1].running_var.fill_(1e6)  # with these statistics the hidden layer would be dead
    found = ip.connect(a, b, TASK, steps=100, rate=0.02)
    assert ip.along(found, TASK, points=3, data=X).loss[1] < 1.0


def test_a_permutation_is_applied_first():
    a = mlp(0)
    groups = ip.symmetries(a, X[:2])
    moved = ip.Permutation.random(groups, torch.Generator().manual_seed(1))
    b = moved(a)
    apart = ip.connect(a, b, curve="segment")
    back = ip.connect(a, b, curve="segment", permutation=ip.align(a, b, X))
    assert not torch.allclose(apart.model(0.5)(X), a(X), atol=0.05)
    assert torch.allclose(back.model(0.5)(X), a(X), atol=1e-6) and ip.barrier(back, TASK) == pytest.approx(0, abs=1e-6)
    assert back.length() == 0 and "Segment" in repr(back)


def test_bad_input_is_named():
    a, b = mlp(0), mlp(1)
    with pytest.raises(ValueError, match=r"'0.weight': \(8, 4\) and \(5, 4\)"):
        ip.connect(a, nn.Sequential(nn.Linear(4, 5), nn.ReLU(), nn.Linear(5, 3)), curve="segment")
    for options, message in (
        ({"curve": "spline"}, "curve must be"),
        ({"sampling": "even"}, "sampling must be"),
        ({"bends": 0}, "bends must be"),
    ):  # fmt: skip
        with pytest.raises(ValueError, match=message):
            ip.connect(a, b, TASK, **options)
    with pytest.raises(ValueError, match="trained on an objective"):
        ip.connect(a, b)
    with pytest.raises(ValueError, match=r"\[0, 1\]"):
        ip.connect(a, b, curve="segment").model(1.5)


@pytest.mark.parametrize("curve", ["bezier", "chain"])
@pytest.mark.parametrize("stop", [0, 1, 17])
def test_training_that_is_broken_off_ends_where_the_unbroken_one_does_to_the_bit(curve, stop):
    a, b, arguments = mlp(0, True), mlp(1, True), (TASK, curve, 2, 40, 0.02, "arc", None, None, 3)
    whole, training = begin(a, b, *arguments)
    rows = list(training)
    _, first = begin(a, b, *arguments)
    before = [next(iter(first)) for _ in range(stop)]
    state = {name: value.clone() for name, value in first.state().items()}
    again, second = begin(a, b, *arguments)
    second.restore(state)
    assert before + list(second) == rows
    assert all(torch.equal(p, q) for p, q in zip(again.path.points, whole.path.points))


@pytest.mark.parametrize("curve", ["bezier", "chain", "segment"])
def test_a_saved_curve_is_read_back_to_the_bit(tmp_path, curve):
    a, b = mlp(0, True), mlp(1, True)
    found = ip.connect(a, b, TASK, curve=curve, bends=2, steps=5)
    found.save(tmp_path / "curve")
    back = ip.paths.Curve.load(tmp_path / "curve", mlp(7, True))
    for t in (0, 0.3, 1):
        assert same(back.model(t), found.model(t))
    assert back.history == found.history
    with pytest.raises(FileExistsError, match="holds a curve already"):
        found.save(tmp_path / "curve")
    with pytest.raises(ValueError):
        ip.paths.Curve.load(tmp_path / "curve", nn.Linear(4, 3))


def test_parameters_that_do_not_move_must_be_equal():
    a, b = mlp(0), mlp(1)
    with pytest.raises(ValueError, match=r"2 parameters that do not move differ in the two networks, '0\.weight'"):
        ip.connect(a, b, TASK, trainable=["2.*"])
    b[0].load_state_dict(a[0].state_dict())
    assert same(ip.connect(a, b, curve="segment", trainable=["2.*"]).model(1), b)
    with pytest.raises(ValueError, match=r"torch\.bfloat16, in which a curve cannot be trained"):
        ip.connect(a.bfloat16(), b.bfloat16(), TASK)
