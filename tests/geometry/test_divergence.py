import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from isopath.geometry.divergence import BY_NAME, Custom, divergence_of
from networks import PLAIN, quartic, x

NAMES = sorted(BY_NAME)
SOFTMAX = [name for name in NAMES if BY_NAME[name].softmax]


def test_the_names_are_those_of_the_documentation():
    assert set(NAMES) == {"hellinger", "kl", "bhattacharyya", "bernoulli", "squared_error", "cosine"}
    assert set(NAMES) == set(PLAIN)


@pytest.mark.parametrize("name", NAMES)
def test_rows_equal_the_textbook_formula(name):
    y, y0 = 2 * x(6, 4), 2 * x(6, 4, seed=2)
    torch.testing.assert_close(BY_NAME[name].rows(y, y0), PLAIN[name](y, y0))


@pytest.mark.parametrize(
    ("name", "expected"),
    [
        ("hellinger", 1 - math.sqrt(0.5 * 0.8) - math.sqrt(0.5 * 0.2)),
        ("kl", 0.5 * math.log(0.5 / 0.8) + 0.5 * math.log(0.5 / 0.2)),
        ("bhattacharyya", -math.log(math.sqrt(0.5 * 0.8) + math.sqrt(0.5 * 0.2))),
        ("squared_error", 0.5 * math.log(4) ** 2),
    ],
)
def test_value_by_hand_for_probabilities_80_20_against_50_50(name, expected):
    y, y0 = torch.tensor([[math.log(4), 0.0]], dtype=torch.float64), torch.zeros(1, 2).double()
    assert BY_NAME[name].rows(y, y0).item() == pytest.approx(expected, rel=1e-12)


@pytest.mark.parametrize("name", NAMES)
def test_product_is_the_hessian_where_outputs_agree(name):
    for y0 in 2 * x(5, 4):
        hessian = torch.autograd.functional.hessian(lambda y, y0=y0: BY_NAME[name].rows(y, y0), y0.clone())
        product = torch.stack([BY_NAME[name].product(y0, e) for e in torch.eye(4).double()])
        torch.testing.assert_close(product, hessian, rtol=1e-7, atol=1e-10)


@pytest.mark.parametrize("name", NAMES)
def test_root_squares_to_the_product(name):
    y, u = x(3, 2, 4), x(3, 2, 4, seed=3)
    root = BY_NAME[name].root(y)
    squared = (root.mT @ (root @ u.unsqueeze(-1))).squeeze(-1)
    torch.testing.assert_close(squared, BY_NAME[name].product(y, u))


@pytest.mark.parametrize("name", NAMES)
def test_zero_with_zero_gradient_where_outputs_agree(name):
    y0 = x(5, 4)
    y = y0.clone().requires_grad_(True)
    rows = BY_NAME[name].rows(y, y0)
    assert rows.abs().max() < 1e-15
    assert torch.autograd.grad(rows.sum(), y)[0].abs().max() < 1e-15


@pytest.mark.parametrize("name", SOFTMAX)
def test_softmax_divergences_ignore_a_shift_of_the_logits(name):
    y, y0, shift = x(5, 4), x(5, 4, seed=2), x(5, 1, seed=3)
    torch.testing.assert_close(BY_NAME[name].rows(y + shift, y0), BY_NAME[name].rows(y, y0))
    assert BY_NAME[name].product(y, torch.ones_like(y)).abs().max() < 1e-15


def test_cosine_ignores_the_length_of_the_outputs():
    y, y0 = x(5, 4), x(5, 4, seed=2)
    torch.testing.assert_close(BY_NAME["cosine"].rows(3 * y, 0.5 * y0), BY_NAME["cosine"].rows(y, y0))
    assert BY_NAME["cosine"].product(y, y).abs().max() < 1e-15


@settings(max_examples=30)
@given(st.integers(0, 10**6), st.sampled_from(NAMES), st.floats(0.01, 10))
def test_divergences_are_not_negative_and_hellinger_is_symmetric_and_bounded(seed, name, scale):
    y, y0 = scale * x(4, 5, seed=seed), scale * x(4, 5, seed=seed + 1)
    assert BY_NAME[name].rows(y, y0).min() >= -1e-12
    hellinger = BY_NAME["hellinger"]
    torch.testing.assert_close(hellinger.rows(y, y0), hellinger.rows(y0, y))
    assert hellinger.rows(y, y0).max() <= 1


@pytest.mark.parametrize("name", NAMES)
def test_tiny_differences_keep_their_digits_in_float32(name):
    y0 = (3 * x(200, 10)).float()
    y = y0 + 1e-3 * x(200, 10, seed=2).float()
    exact = BY_NAME[name].rows(y.double(), y0.double())
    rows = BY_NAME[name].rows(y, y0).double()
    assert rows.min() >= 0
    assert abs(rows.mean() - exact.mean()) / exact.mean() < 1e-3


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("size", [1e2, 1e4])
def test_extreme_logits_stay_finite_with_finite_gradients(name, size):
    y0 = size * torch.tensor([[1.0, -1.0, 0.0], [-1.0, 1.0, 0.0], [1.0, 1.0, -1.0]])
    y = y0.flip(0).clone().requires_grad_(True)
    rows = BY_NAME[name].rows(y, y0)
    (gradient,) = torch.autograd.grad(rows.sum(), y)
    assert torch.isfinite(rows).all() and torch.isfinite(gradient).all()
    assert torch.isfinite(BY_NAME[name].root(y0)).all() and torch.isfinite(BY_NAME[name].product(y0, y0.sign())).all()


def test_hellinger_of_opposite_certainties_is_one():
    y = torch.tensor([[1e4, -1e4]])
    assert BY_NAME["hellinger"].rows(y, -y).item() == 1.0


@pytest.mark.parametrize("name", SOFTMAX)
def test_a_softmax_of_one_output_is_an_error_that_names_the_alternatives(name):
    with pytest.raises(ValueError, match=r'C >= 2.*C = 1.*"bernoulli".*"squared_error"'):
        BY_NAME[name].check(torch.zeros(5, 1))


def test_other_divergences_take_one_output_and_none_takes_a_vector():
    for name in set(NAMES) - set(SOFTMAX):
        BY_NAME[name].check(torch.zeros(5, 1))
    with pytest.raises(ValueError, match=r"\(N, C\).*got \(5,\)"):
        BY_NAME["squared_error"].check(torch.zeros(5))


def test_a_users_function_has_its_hessian_derived():
    y0 = x(2, 3, 4)
    custom = Custom(quartic)
    expected = torch.diag_embed(2 * (1 + y0.square()))
    torch.testing.assert_close(custom.hessian(y0), expected)
    root = custom.root(y0)
    torch.testing.assert_close(root.mT @ root, expected)
    assert custom.rows(y0 + 0.1, y0).shape == (2, 3)


def test_a_users_function_of_the_wrong_shape_is_an_error():
    with pytest.raises(ValueError, match=r"shape \(\), expected one value per row, \(5,\)"):
        Custom(lambda y, y0: (y - y0).square().sum()).rows(x(5, 3), x(5, 3))


def test_divergence_of_takes_names_divergences_and_functions_only():
    assert divergence_of("kl") is BY_NAME["kl"] is divergence_of(BY_NAME["kl"])
    assert isinstance(divergence_of(quartic), Custom)
    with pytest.raises(ValueError, match=r"unknown divergence 'helinger'.*hellinger"):
        divergence_of("helinger")
    with pytest.raises(TypeError, match=r"function of \(y, y0\), got int"):
        divergence_of(3)  # type: ignore[arg-type]


@pytest.mark.parametrize("name", SOFTMAX)
def test_a_class_that_both_rule_out_counts_nothing_and_one_that_the_start_does_not_what_it_must(name):
    y, y0 = 2 * x(6, 4), 2 * x(6, 4, seed=2)
    narrow = BY_NAME[name].rows(y, y0)
    ruled = torch.full((6, 1), -math.inf).double()
    wide, wide0 = (torch.cat([t, ruled], 1) for t in (y, y0))
    wide.requires_grad_(True)
    got = BY_NAME[name].rows(wide, wide0)
    torch.testing.assert_close(got, narrow)
    (gradient,) = torch.autograd.grad(got.sum(), wide)
    assert gradient.isfinite().all() and not gradient[:, 4].any()
    small = torch.cat([y, torch.full((6, 1), -80.0).double()], 1)  # all but ruled out
    torch.testing.assert_close(BY_NAME[name].rows(small, wide0), narrow)
    likely, nearly = torch.cat([y, torch.zeros(6, 1)], 1), torch.cat([y0, torch.full((6, 1), -80.0)], 1)
    torch.testing.assert_close(BY_NAME[name].rows(likely, wide0), BY_NAME[name].rows(likely, nearly))
