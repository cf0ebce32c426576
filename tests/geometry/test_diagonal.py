"""The diagonal metric against the dense one's."""

import pytest
import torch
from torch import nn

import isopath as ip
from networks import PLAIN, Case, build, dense, relative, x

EXACT = ["mlp", "conv", "conv_bn", "grouped", "norms", "sdpa", "named", "weighted", "frozen"]


@pytest.mark.parametrize("divergence", PLAIN)
@pytest.mark.parametrize("name", EXACT)
def test_it_is_the_dense_diagonal(name, divergence):
    case = build(name)
    metric = case.reference(divergence, batch_size=2).metric(case.model, "diagonal", coverage=1.0)
    assert relative(metric.values, dense(case, divergence).diag()) < 1e-10


def test_what_is_not_exact_is_near_and_nothing_is_forgotten(case):
    expected = dense(case, "squared_error").diag()
    values = case.reference("squared_error").metric(case.model, "diagonal", coverage=1.0).values
    assert not (values[expected > 1e-6] < 1e-9).any()
    assert float(torch.nn.functional.cosine_similarity(values, expected, dim=0)) > 0.6


def test_reads_of_one_row_by_one_example_add_up_before_they_are_squared():
    class Bag(nn.Module):
        def __init__(self):
            super().__init__()
            self.table = nn.Embedding(5, 2)

        def forward(self, ids):
            return self.table(ids).sum(1)

    case = Case(Bag().double(), torch.tensor([[0, 0, 1], [3, 1, 1], [2, 3, 0]]))
    values = case.reference("squared_error").metric(case.model, "diagonal").values
    assert relative(values, dense(case, "squared_error").diag()) < 1e-12


def test_its_solve_and_norm_are_those_of_its_matrix():
    case = build("mlp")
    metric = case.reference().metric(case.model, "diagonal")
    v = x(metric.dimension)
    assert relative(metric.mv(metric.solve(v, 0.1)) + 0.1 * metric.solve(v, 0.1), v) < 1e-12
    assert float(metric.norm(v)) == pytest.approx(float(v @ metric.mv(v)) ** 0.5)
    assert metric.trace() == pytest.approx(float(metric.spectrum(metric.dimension).sum()))
    with pytest.raises(ValueError, match="damping > 0"):
        metric.solve(v, 0)


def test_random_columns_are_right_on_average():
    model, rows = nn.Linear(4, 6).double(), x(50, 4)
    exact, sampled = (
        ip.Reference(rows, "kl").metric(model, "diagonal", **options).values
        for options in ({"coverage": 1.0}, {"samples": 400})
    )
    assert relative(sampled, exact) < 0.05
