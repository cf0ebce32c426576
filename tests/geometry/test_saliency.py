import pytest
import torch

import isopath as ip
from isopath.geometry.diagonal import Diagonal
from isopath.geometry.identity import Identity
from isopath.geometry.saliency import inverse_diagonal, saliency
from networks import CASES, build, x


def dense_inverse(metric, damping):
    """(G + μI)⁻¹, a column at a time."""
    eye = torch.eye(metric.dimension, dtype=torch.float64)
    return torch.stack([metric.solve(column, damping) for column in eye])


@pytest.mark.parametrize("options", [{}, {"shrinkage": 0.1}, {"rank": 2}, {"rank": 2, "shrinkage": 0.1}, {"split": 3}])
@pytest.mark.parametrize("name", CASES)
def test_the_diagonal_of_the_inverse_is_that_of_the_dense_one(name, options):
    case = build(name)
    metric = case.reference().metric(case.model, kind="kronecker", **options)
    expected = dense_inverse(metric, 0.03).diagonal()
    torch.testing.assert_close(inverse_diagonal(metric, 0.03), expected)


@pytest.mark.parametrize("kind", ["ekfac", "diagonal", "identity"])
def test_other_metrics_with_a_diagonal_at_hand(kind):
    case = build("mlp")
    metric = case.reference().metric(case.model, kind=kind)
    torch.testing.assert_close(inverse_diagonal(metric, 0.1), dense_inverse(metric, 0.1).diagonal())


def test_it_is_the_least_cost_of_a_weight_gone():
    case = build("mlp")
    metric, theta, damping = case.reference().metric(case.model, kind="kronecker"), x(51), 0.02
    whole = torch.linalg.inv(dense_inverse(metric, damping))
    found = saliency(metric, theta, damping)
    for q in (0, 11, 40):  # min ½vᵀ(G + μI)v with v_q = -θ_q, by elimination
        rest = [i for i in range(51) if i != q]
        v = torch.zeros(51).double()
        v[q] = -theta[q]
        v[rest] = torch.linalg.solve(whole[rest][:, rest], -whole[rest, q] * v[q])
        assert float(found[q]) == pytest.approx(float(0.5 * v @ whole @ v), rel=1e-6)


def test_a_ruling_damping_gives_the_magnitude():
    metric = Diagonal(ip.space.Space.of(build("mlp").model), torch.rand(51).double())
    theta = x(51)
    torch.testing.assert_close(saliency(metric, theta, 1e9) / 1e9, 0.5 * theta.square(), rtol=1e-6, atol=0)
    torch.testing.assert_close(saliency(Identity(51, 2.0, torch.float64), theta, 1.0), 1.5 * theta.square())


def test_a_metric_without_one_is_refused():
    case = build("mlp")
    with pytest.raises(TypeError, match="saliency needs a Kronecker-factored or a diagonal metric, got Exact"):
        saliency(case.reference().metric(case.model), x(51), 0.1)
