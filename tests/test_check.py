import pytest
import torch
from torch import nn

import isopath as ip
from isopath.check import (
    check_gradient,
    check_line,
    check_metric,
    check_order,
    check_symmetry,
    dense_metric,
    slope,
)
from isopath.network import Network
from networks import Attention, Encoder, NoForwardMode, ScaledDotProduct, build, dense, mlp, x


def smooth_conv() -> nn.Module:
    layers = nn.Conv2d(1, 4, 3, padding=1), nn.Tanh(), nn.Conv2d(4, 4, 2, stride=2), nn.GELU()
    return nn.Sequential(*layers, nn.Flatten(), nn.Linear(16, 3)).double()


SMOOTH = {
    "mlp": (lambda: mlp(20), (4, 4)),
    "gelu": (lambda: mlp(20, nn.GELU), (4, 4)),
    "conv": (smooth_conv, (4, 1, 4, 4)),
    "attention": (lambda: Attention().double(), (4, 3, 4)),
    "sdpa": (lambda: ScaledDotProduct().double(), (4, 3, 4)),
    "encoder": (lambda: smooth_encoder(), (4, 3, 4)),
}


def smooth_encoder() -> nn.Module:
    model = Encoder().double()
    model.block.activation = torch.nn.functional.gelu
    model.block.activation_relu_or_gelu = 2
    return model


@pytest.mark.parametrize("name", SMOOTH)
def test_a_null_space_step_has_order_two_and_a_corrected_one_order_four(name):
    make, shape = SMOOTH[name]
    check = check_order(make(), ip.Reference(x(*shape), "squared_error"))
    assert check.predictor_order == pytest.approx(2, abs=0.15)
    assert check.corrected_order == pytest.approx(4, abs=0.3)


@pytest.mark.parametrize("name", ["mlp", "conv", "attention"])
def test_a_stale_jacobian_leaves_order_three_and_no_projection_order_one(name):
    make, shape = SMOOTH[name]
    model, reference = make(), ip.Reference(x(*shape), "squared_error")
    stale, unprojected = check_order(model, reference, jacobian="stale"), check_order(model, reference, project=False)
    assert stale.corrected_order == pytest.approx(3, abs=0.3)
    assert unprojected.predictor_order == pytest.approx(1, abs=0.15)


def test_the_order_of_a_given_tangent_and_what_the_check_shows():
    model, reference = mlp(20), ip.Reference(x(4, 4), "squared_error")
    check = check_order(model, reference, tangent=x(163), first=0.2, halvings=8)
    assert check.predictor_order == pytest.approx(2, abs=0.15)
    assert check.lengths == tuple(0.2 * 0.5**i for i in range(8))
    assert repr(check) == f"OrderCheck(predictor={check.predictor_order:.2f}, corrected={check.corrected_order:.2f})"


@pytest.mark.parametrize("order", [1, 2, 4.5])
def test_slope_is_the_order_of_a_power_above_rounding(order):
    lengths = [0.5**i for i in range(12)]
    assert slope(lengths, [3 * h**order if 3 * h**order > 1e-9 else 1e-16 for h in lengths]) == pytest.approx(order)
    with pytest.raises(ValueError, match=r"only 1 values lie above rounding"):
        slope([1, 0.5], [1, 0])


def test_check_metric_passes_exact_metrics_and_measures_approximate_ones():
    case = build("mlp")
    for kind in ("exact", "gram"):
        check = check_metric(case.model, case.reference(), kind)
        assert max(check.product, check.symmetry) < 1e-12 and check.solve < 1e-5
        assert check.cosine == pytest.approx(1)
    check = check_metric(case.model, case.reference(), "kronecker")
    assert 1e-3 < check.product < 1 and 0.7 < check.cosine < 1 and check.symmetry < 1e-12
    flat = check_metric(case.model, case.reference(), "identity")
    assert flat.product > 1 and flat.cosine < check.cosine
    assert repr(check).startswith("MetricCheck(product=")


def test_its_dense_metric_is_the_one_that_the_tests_compute(case):
    network = Network(case.model)
    part = case.reference().whole(network, network.start)
    torch.testing.assert_close(dense_metric(network, part, network.start), dense(case, "hellinger"))


def test_check_metric_takes_a_custom_operator_without_forward_mode():
    class Model(nn.Linear):
        def forward(self, inputs):
            return NoForwardMode.apply(super().forward(inputs))

    assert check_metric(Model(4, 3).double(), ip.Reference(x(5, 4))).product < 1e-12


def test_a_network_too_large_for_a_dense_check_is_refused():
    with pytest.raises(ValueError, match=r"dense check of 40400 parameters is too large"):
        check_metric(nn.Linear(100, 400), ip.Reference(torch.zeros(2, 100)))


def test_check_gradient_passes_a_right_gradient_and_fails_a_wrong_one():
    model = mlp()
    assert check_gradient(ip.Task(x(9, 4), torch.arange(9) % 3), model) < 1e-6
    assert check_gradient(lambda net, theta: (theta * theta.detach()).sum(), model) > 0.3


def perceptron(seed: int) -> nn.Module:
    torch.manual_seed(seed)
    return nn.Sequential(nn.Flatten(), nn.Linear(4, 9), nn.ReLU(), nn.Linear(9, 7), nn.ReLU(), nn.Linear(7, 3))


def test_found_symmetries_are_exact_and_wrong_ones_show():
    model, inputs = perceptron(0), x(5, 4).float()
    found = ip.symmetries(model, inputs)
    assert check_symmetry(model, inputs) < 1e-14
    places = {name: place for name, place in found.places.items() if name != "3.weight"}  # columns that stay behind
    wrong = ip.symmetry.Symmetries(found.groups, places, found.shapes)
    assert check_symmetry(model, inputs, wrong) > 1e-3


@pytest.mark.parametrize("seed", range(5))
def test_the_distance_of_activations_bounds_the_barrier(seed):
    a, b = perceptron(seed), perceptron(seed + 10)
    inputs, labels = 3 * x(40, 4, seed=seed).float(), torch.arange(40) % 3
    apart = check_line(a, b, inputs, labels)
    assert apart.barrier <= apart.bound
    near = check_line(a, ip.align(a, b, inputs)(b), inputs, labels)
    assert near.barrier <= near.bound
    same = check_line(a, a, inputs, labels)
    assert same.bound == 0 and abs(same.barrier) < 1e-12
    curve = ip.connect(a, b, curve="segment")
    assert ip.barrier(curve, ip.Task(inputs, labels)) == pytest.approx(apart.barrier, abs=1e-5)


def test_a_planted_permutation_has_a_bound_of_zero_once_it_is_undone():
    a, inputs, labels = perceptron(3), x(40, 4).float(), torch.arange(40) % 3
    b = ip.Permutation.random(ip.symmetries(a, inputs), torch.Generator().manual_seed(0))(a)
    assert check_line(a, b, inputs, labels).bound > 0.05
    assert check_line(a, ip.align(a, b, inputs)(b), inputs, labels).bound == 0
    with pytest.raises(TypeError, match="Tanh"):
        check_line(nn.Sequential(nn.Linear(4, 3), nn.Tanh()), nn.Sequential(nn.Linear(4, 3), nn.Tanh()), inputs, labels)
