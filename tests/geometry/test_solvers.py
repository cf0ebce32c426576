import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from isopath.geometry.solvers import conjugate_gradients, lanczos
from networks import relative, x


def definite(size: int, seed: int = 1) -> torch.Tensor:
    root = x(size, size, seed=seed)
    return root @ root.mT / size + 0.1 * torch.eye(size).double()


@settings(max_examples=20)
@given(st.integers(0, 10**6), st.integers(1, 12))
def test_conjugate_gradients_solve_in_as_many_steps_as_dimensions(seed, size):
    A, b = definite(size, seed), x(size, seed=seed + 1)
    assert relative(A @ conjugate_gradients(A.mv, b, 3 * size, 1e-10), b) < 1e-8


def test_conjugate_gradients_spend_no_more_products_than_asked_and_leave_b_alone():
    A, b, calls = definite(30), x(30), []
    before = b.clone()
    conjugate_gradients(lambda v: calls.append(1) or A @ v, b, 5, 1e-12)
    assert len(calls) == 5 and torch.equal(b, before)


def test_an_exact_preconditioner_needs_one_step():
    A, b, calls = definite(30), x(30), []
    inverse = torch.linalg.inv(A)
    solved = conjugate_gradients(lambda v: calls.append(1) or A @ v, b, 10, 1e-8, inverse.mv)
    assert len(calls) == 1 and relative(A @ solved, b) < 1e-8


def test_zero_is_solved_by_zero_and_an_indefinite_operator_stops():
    assert not conjugate_gradients(definite(4).mv, torch.zeros(4).double(), 10, 1e-6).any()
    assert torch.isfinite(conjugate_gradients(lambda v: -v, x(4), 10, 1e-6)).all()


@pytest.mark.parametrize(("size", "k"), [(1, 1), (10, 3), (10, 10), (60, 5), (10, 99)])
def test_lanczos_finds_the_largest_eigenvalues(size, k):
    A = torch.diag(2.0 ** -torch.arange(size).double())
    turn = torch.linalg.qr(x(size, size))[0]
    values = lanczos((turn @ A @ turn.mT).mv, size, k, A[0])
    assert values.shape == (min(k, size),)
    torch.testing.assert_close(values, A.diag()[:k], rtol=1e-6, atol=1e-9)


def test_lanczos_of_a_low_rank_operator_fills_up_with_zeros():
    u = x(20)
    values = lanczos(lambda v: u * (u @ v), 20, 4, u)
    torch.testing.assert_close(values, torch.tensor([float(u @ u), 0, 0, 0]).double())
