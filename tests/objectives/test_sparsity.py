import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

import isopath as ip
from isopath.check import check_gradient
from isopath.network import Network
from isopath.objectives import prunable, sparsity
from networks import build, mlp, x

NETWORK = Network(mlp())  # 24 + 18 weights that count, 6 + 3 biases that do not


@settings(max_examples=50)
@given(st.integers(0, 10**6), st.floats(0, 0.99))
def test_the_projection_is_idempotent_exact_in_count_and_nearest(seed, fraction):
    theta, objective = x(51, seed=seed), ip.Sparsity(fraction)
    landed = objective.project(NETWORK, theta)
    zeros, weights = landed == 0, prunable(NETWORK.space)
    assert int(zeros.sum()) == round(fraction * 42) and not zeros[~weights].any()
    assert torch.equal(objective.project(NETWORK, landed), landed)
    assert objective.reached(NETWORK, landed)
    assert torch.equal(landed[~zeros], theta[~zeros])
    if zeros.any() and (weights & ~zeros).any():  # 0.99 of 42 weights is all of them
        assert theta[zeros].abs().max() <= theta[weights & ~zeros].abs().min()


@settings(max_examples=20)
@given(st.integers(0, 10**6), st.floats(0.1, 0.9))
def test_its_value_is_half_the_squared_distance_to_the_projection(seed, fraction):
    theta, objective = x(51, seed=seed), ip.Sparsity(fraction)
    distance = 0.5 * (theta - objective.project(NETWORK, theta)).square().sum()
    assert float(objective(NETWORK, theta)) == pytest.approx(float(distance))
    point = theta.clone().requires_grad_()
    (gradient,) = torch.autograd.grad(objective(NETWORK, point), point)
    torch.testing.assert_close(gradient, theta - objective.project(NETWORK, theta))


def test_ties_do_not_change_the_count():
    landed = ip.Sparsity(0.5).project(NETWORK, torch.ones(51).double())
    assert int((landed == 0).sum()) == 21


@pytest.mark.parametrize("name", ["conv_bn", "frozen", "raw"])
def test_matrices_and_kernels_count_and_vectors_do_not(name):
    network = Network(build(name).model)
    counted = [shape.numel() for shape in network.space.shapes if len(shape) >= 2]
    assert int(prunable(network.space).sum()) == sum(counted)
    theta = ip.Sparsity(0.5).project(network, network.start)
    assert sparsity(network.space, theta) == pytest.approx(round(0.5 * sum(counted)) / sum(counted))


def test_too_few_zeros_have_not_reached_it():
    objective = ip.Sparsity(0.5)
    landed = objective.project(NETWORK, x(51))
    fewer = landed.clone()
    fewer[(landed == 0).nonzero()[:2]] = 1e-12
    assert objective.reached(NETWORK, landed) and not objective.reached(NETWORK, fewer)


def test_its_gradient_is_right():
    assert check_gradient(ip.Sparsity(0.5), mlp(), step=1e-6) < 1e-6


@pytest.mark.parametrize("fraction", [-0.1, 1.0, 60, float("nan")])
def test_a_fraction_out_of_range_is_refused(fraction):
    with pytest.raises(ValueError, match=r"fraction must lie in \[0, 1\), got .*60 % of the weights"):
        ip.Sparsity(fraction)
