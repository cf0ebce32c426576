import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

import isopath as ip
from isopath.network import Network
from isopath.objectives import Objective, as_objective
from isopath.objectives.objective import check_scalar
from networks import mlp, x

NETWORK = Network(mlp())
TERMS = {
    "task": ip.Task(x(9, 4), torch.arange(9) % 3, batch_size=4),
    "sparsity": ip.Sparsity(0.5),
    "toward": ip.Toward(x(51, seed=5)),
    "function": lambda net, theta: theta.square().sum(),
}


def gradient(objective, theta):
    point = theta.clone().requires_grad_()
    return torch.autograd.grad(objective(NETWORK, point), point)[0]


@settings(max_examples=25)
@given(st.integers(0, 10**6), st.lists(st.tuples(st.floats(-3, 3), st.sampled_from(list(TERMS))), min_size=1))
def test_sums_and_multiples_are_linear_in_value_and_gradient(seed, terms):
    theta = x(51, seed=seed)
    total = sum(weight * as_objective(TERMS[name]) for weight, name in terms)
    expected = sum(weight * TERMS[name](NETWORK, theta) for weight, name in terms)
    assert float(total(NETWORK, theta)) == pytest.approx(float(expected), abs=1e-9)
    slopes = sum(weight * gradient(as_objective(TERMS[name]), theta) for weight, name in terms)
    torch.testing.assert_close(gradient(total, theta), slopes)
    torch.testing.assert_close(gradient(2 * total * 0.25, theta), 0.5 * slopes)


def test_plain_functions_join_from_either_side():
    theta, plain, task = x(51), TERMS["function"], TERMS["task"]
    expected = float(plain(NETWORK, theta) + task(NETWORK, theta))
    assert float((plain + task)(NETWORK, theta)) == float((task + plain)(NETWORK, theta)) == pytest.approx(expected)


def test_freezing_a_sum_freezes_its_terms():
    total = TERMS["task"] + 0.1 * TERMS["sparsity"]
    frozen = total.freeze(1, 2)
    assert torch.equal(frozen.terms[0][1].index, TERMS["task"].freeze(1, 2).index)
    assert [weight for weight, _ in frozen.terms] == [1.0, 0.1]


def test_a_sum_lands_where_its_terms_land_and_is_reached_when_all_are():
    theta = x(51)
    half, task = ip.Sparsity(0.5), TERMS["task"]
    total = task + 0.1 * half
    assert torch.equal(total.project(NETWORK, theta), half.project(NETWORK, theta))
    assert torch.equal(total.support(NETWORK, theta), half.support(NETWORK, theta))
    assert task.project(NETWORK, theta) is None and (task + task).project(NETWORK, theta) is None
    assert (task + task).support(NETWORK, theta) is None
    landed = half.project(NETWORK, theta)
    assert (half + half).reached(NETWORK, landed) and not total.reached(NETWORK, landed)


def test_only_the_call_must_be_given():
    class Norm(Objective):
        def __call__(self, net, theta):
            return theta.norm()

    norm = Norm()
    assert norm.freeze(0, 0) is norm and as_objective(norm) is norm and not norm.reached(NETWORK, x(51))
    with pytest.raises(TypeError, match=r"abstract"):
        Objective()


def test_what_is_no_objective_is_refused():
    with pytest.raises(TypeError, match=r"a callable \(net, theta\) -> scalar, got float"):
        as_objective(0.5)
    with pytest.raises(ValueError, match=r"shape \(3,\), expected a scalar"):
        check_scalar(torch.zeros(3))
    with pytest.raises(TypeError, match=r"returned float, expected a scalar tensor"):
        check_scalar(0.5)
    with pytest.raises(ValueError, match=r"shape \(51,\)"):
        (ip.Sparsity(0.5) + (lambda net, theta: theta))(NETWORK, x(51))
