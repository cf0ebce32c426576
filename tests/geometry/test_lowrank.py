"""The leading eigenpairs of the metric."""

import pytest
import torch

from networks import build, dense, relative, x


def test_its_pairs_are_the_dense_metric_s(case):
    G = dense(case, "kl")
    values = torch.linalg.eigvalsh(G).flip(0)
    metric = case.reference("kl").metric(case.model, "low_rank", rank=4)
    count = len(metric.values)
    torch.testing.assert_close(metric.values, values[:count], rtol=1e-6, atol=1e-10)
    assert relative(metric.vectors.mT @ metric.vectors, torch.eye(count).double()) < 1e-10
    assert relative(G @ metric.vectors, metric.vectors * metric.values) < 1e-5


@pytest.mark.parametrize("name", ["mlp", "conv", "tokens"])
def test_with_all_pairs_it_is_the_dense_metric(name):
    case = build(name)
    G = dense(case, "hellinger")
    metric = case.reference().metric(case.model, "low_rank", rank=len(G))
    b = x(len(G))
    assert relative(metric.mv(b), G @ b) < 1e-8
    assert relative(metric.solve(b, 0.01), torch.linalg.solve(G + 0.01 * torch.eye(len(G)).double(), b)) < 1e-8
    assert float(metric.norm(b)) == pytest.approx(float(b @ G @ b) ** 0.5)
    assert metric.trace() == pytest.approx(float(G.trace()))
    assert metric.spectrum(len(G)).shape == (len(G),)


def test_off_its_pairs_there_is_the_damping_alone():
    case = build("mlp")
    metric = case.reference().metric(case.model, "low_rank", rank=2)
    v = x(metric.dimension)
    v = v - metric.vectors @ (metric.vectors.mT @ v)
    assert float(metric.norm(v)) < 1e-12
    torch.testing.assert_close(metric.solve(v, 0.5), 2 * v)
    with pytest.raises(ValueError, match="rank must be >= 1"):
        case.reference().metric(case.model, "low_rank", rank=0)
