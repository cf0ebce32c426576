"""A metric restricted to a support: the solve happens inside it."""

import pytest
import torch

from isopath.geometry.restricted import Restricted
from networks import build, matrix, relative, x


@pytest.fixture(name="metric", params=["exact", "kronecker"])
def some_metric(request):
    case = build("mlp")
    return case.reference().metric(case.model, request.param)


def support_of(metric) -> torch.Tensor:
    return x(metric.dimension, seed=3) > -0.3


def test_the_solve_is_that_of_the_dense_restricted_system(metric):
    support, b, damping = support_of(metric), x(metric.dimension, seed=2), 0.05
    restricted = Restricted(metric, support, iterations=500, tolerance=1e-13)
    found = restricted.solve(b, damping)
    inside = matrix(metric.mv, metric.dimension, torch.float64)[support][:, support]
    expected = torch.linalg.solve(inside + damping * torch.eye(len(inside)).double(), b[support])
    assert relative(found[support], expected) < 1e-6
    assert bool((found[~support] == 0).all())


def test_masking_the_whole_solution_would_be_another_one(metric):
    support, b, damping = support_of(metric), x(metric.dimension, seed=2), 0.05
    found = Restricted(metric, support, iterations=500, tolerance=1e-13).solve(b, damping)
    assert relative(metric.solve(b * support, damping)[support], found[support]) > 1e-3


def test_few_iterations_stop_at_the_tolerance_off_the_support_still_zero(metric):
    support, b, damping = support_of(metric), x(metric.dimension, seed=2), 0.05
    found = Restricted(metric, support, iterations=50, tolerance=1e-2).solve(b, damping)
    residual = (metric.mv(found) + damping * found - b)[support]
    assert float(residual.norm()) <= 1.01e-2 * float(b[support].norm())
    assert bool((found[~support] == 0).all())


def test_products_norm_and_spectrum_are_those_of_the_restricted_matrix(metric):
    support, v = support_of(metric), x(metric.dimension, seed=4)
    restricted, mask = Restricted(metric, support), support.double()
    whole = mask[:, None] * matrix(metric.mv, metric.dimension, torch.float64) * mask
    assert restricted.dimension == metric.dimension
    assert relative(restricted.mv(v), whole @ v) < 1e-9
    assert float(restricted.norm(v)) == pytest.approx(float(v @ whole @ v) ** 0.5)
    assert relative(restricted.spectrum(3), torch.linalg.eigvalsh(whole).flip(0)[:3]) < 1e-6
    assert restricted.trace() >= float(whole.trace()) - 1e-9
