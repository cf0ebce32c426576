"""Estimates of entropy and dimension against distributions that have both in closed form."""

import math

import pytest
import torch

from isopath.generate import entropy, intrinsic_dimension, participation
from isopath.generate.entropy import spacing, squares


def normal(count, width, seed=0):
    return torch.randn(count, width, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


@pytest.mark.parametrize("width", [1, 2, 4])
def test_the_entropy_of_a_normal_distribution(width):
    exact = 0.5 * width * math.log(2 * math.pi * math.e)
    assert entropy(normal(2000, width)) == pytest.approx(exact, abs=0.1)


def test_scaling_adds_a_logarithm_for_each_dimension():
    points = normal(50, 3)
    assert entropy(5 * points) - entropy(points) == pytest.approx(3 * math.log(5), abs=1e-9)
    assert float(spacing(squares(5 * points)) - spacing(squares(points))) == pytest.approx(math.log(5), abs=1e-9)


def test_spacing_is_that_of_the_definition_and_its_gradient_pushes_neighbours_apart():
    points = normal(6, 3).requires_grad_(True)
    distances = torch.cdist(points, points) + torch.diag(torch.full((6,), torch.inf))
    assert torch.allclose(spacing(squares(points)), distances.amin(1).log().mean())
    (gradient,) = torch.autograd.grad(spacing(squares(points)), points)
    with torch.no_grad():
        assert float(spacing(squares(points + 1e-4 * gradient))) > float(spacing(squares(points)))
    assert torch.allclose(gradient.sum(0), torch.zeros(3, dtype=torch.float64), atol=1e-12)  # no drift


def test_equal_points_are_finite():
    points = torch.ones(3, 4, requires_grad=True)
    value = spacing(squares(points))
    (gradient,) = torch.autograd.grad(value, points)
    assert value.isfinite() and gradient.isfinite().all()
    with pytest.raises(ValueError, match="at least 2 points"):
        spacing(squares(points[:1]))


@pytest.mark.parametrize("dimension", [1, 2, 5])
def test_the_dimension_of_a_flat_set_in_a_larger_space(dimension):
    frame = torch.linalg.qr(normal(40, dimension, seed=1)).Q
    points = normal(800, dimension) @ frame.mT
    found = intrinsic_dimension(torch.cdist(points, points))
    assert found == pytest.approx(dimension, rel=0.12)
    assert participation(points) == pytest.approx(dimension, rel=0.05)
    with pytest.raises(ValueError, match="at least 3"):
        intrinsic_dimension(torch.zeros(2, 2))


def test_samples_that_coincide_have_no_dimension():
    assert intrinsic_dimension(torch.zeros(6, 6)) == 0
    assert entropy(torch.zeros(6, 2)) == -math.inf


def test_neither_a_shift_nor_a_small_scale_costs_digits():
    points = normal(40, 3)
    assert entropy(points + 1e7) == pytest.approx(entropy(points), abs=1e-5)
    assert entropy(1e-8 * points) == pytest.approx(entropy(points) + 3 * math.log(1e-8), abs=1e-6)
    near, far = (squares((points + shift).float()) for shift in (0.0, 100.0))
    assert torch.allclose(near, far, atol=1e-3)
