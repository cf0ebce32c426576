import pytest
import torch

import isopath as ip
from isopath.geometry.reference import KeptAll
from isopath.metrics import Gram, Identity
from isopath.network import Network
from isopath.trace.corrector import GaussNewton
from isopath.trace.direction import DAMPING, Frame
from networks import Case, build, dense, mlp, relative, x

KINDS = ["kronecker", "exact", "gram", "identity"]


def bound(case: Case, divergence: str = "hellinger"):
    network = Network(case.model)
    return network, KeptAll((case.reference(divergence).bind(network, network.start),))


@pytest.mark.parametrize("kind", KINDS)
def test_the_natural_gradient_is_the_damped_solve_and_descends(kind):
    case = build("mlp")
    network, kept = bound(case)
    direction = ip.NaturalGradient(kind)
    frame, m = direction.frame(network, network.start, kept.batches), x(51)
    tangent = direction.tangent(m.clone(), frame)
    torch.testing.assert_close(frame.metric.mv(tangent) / frame.damping + tangent, -m, rtol=1e-4, atol=1e-5)
    assert float(m @ tangent) < 0
    if kind in ("kronecker", "gram"):
        assert frame.damping == pytest.approx(DAMPING * frame.metric.trace() / 51)


def test_the_natural_gradient_of_the_exact_metric_is_that_of_the_dense_one():
    case = build("conv_bn")
    network, kept = bound(case)
    direction = ip.NaturalGradient("gram")
    frame, m = direction.frame(network, network.start, kept.batches), x(network.space.dimension)
    G, mu = dense(case, "hellinger"), frame.damping
    expected = -torch.linalg.solve(torch.eye(len(G)).double() + G / mu, m)
    assert relative(direction.tangent(m, frame), expected) < 1e-8


@pytest.mark.parametrize("kind", ["gram", "exact", "kronecker"])
def test_the_null_space_tangent_hardly_moves_the_outputs(kind):
    case = build("mlp")
    network, kept = bound(case, "squared_error")
    direction, exact = ip.NullSpace(kind), case.reference("squared_error").metric(case.model)
    m = x(51)
    null = direction.tangent(m.clone(), direction.frame(network, network.start, kept.batches))
    shares = exact.norm(null) / null.norm() / (exact.norm(m) / m.norm())
    assert shares < {"gram": 1e-10, "exact": 0.05, "kronecker": 0.5}[kind]
    assert float(m @ null) < 0


def test_the_penalised_tangent_is_a_unit_vector_and_its_penalty_is_in_the_gradient():
    direction = ip.Penalised(weight=3.0)
    m = x(51)
    torch.testing.assert_close(direction.tangent(m, Frame(Identity(51), 1.0)), -m / m.norm())
    assert direction.penalty == 3.0 and ip.NaturalGradient().penalty == 0
    assert direction.metric == "identity"


@pytest.mark.parametrize("momentum", [0.0, 0.9])
def test_momentum_is_a_running_mean_of_gradients(momentum):
    direction, past = ip.NaturalGradient(momentum=momentum), None
    gradients = x(6, 4)
    for g in gradients:
        past = direction.averaged(g, past)
    expected = gradients[0]
    for g in gradients[1:]:
        expected = momentum * expected + (1 - momentum) * g
    torch.testing.assert_close(past, expected)


def test_where_nothing_is_kept_or_nothing_seen_the_tangent_is_the_gradient():
    network, m = Network(mlp()), x(51)
    for direction in (ip.NaturalGradient(), ip.NullSpace()):
        empty = direction.frame(network, network.start, [])
        torch.testing.assert_close(direction.tangent(m.clone(), empty), -m)
        assert empty.metric.norm(m) == 0
    model = mlp()
    with torch.no_grad():
        model[2].bias.copy_(torch.tensor([1e4, -1e4, 0]))
    network, kept = bound(Case(model, x(5, 4)))
    for kind in ("kronecker", "gram", "exact"):
        direction = ip.NaturalGradient(kind)
        frame = direction.frame(network, network.start, kept.batches)
        torch.testing.assert_close(direction.tangent(m.clone(), frame), -m)


def test_a_frame_takes_the_metrics_options():
    network, kept = bound(build("mlp"))
    frame = ip.NaturalGradient("gram", {"rtol": 0.1}).frame(network, network.start, kept.batches)
    assert isinstance(frame.metric, Gram) and frame.metric.rank < 10
    plain = ip.NaturalGradient(options={"shrinkage": 0.0}).frame(network, network.start, kept.batches)
    assert plain.metric.blocks[0].shrinkage is None


@pytest.mark.parametrize(
    ("settings", "message"),
    [({"momentum": 1.0}, r"momentum must lie in \[0, 1\), got 1.0"), ({"refresh": 0}, "refresh must be >= 1.*got 0")],
)
def test_settings_out_of_range_are_refused(settings, message):
    for direction in (ip.NaturalGradient, ip.NullSpace, ip.Penalised):
        with pytest.raises(ValueError, match=message):
            direction(**settings)


# --- the corrector ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", KINDS)
def test_a_correction_lowers_the_drift(kind):
    case = build("mlp")
    network, kept = bound(case)
    theta = network.start + 0.3 * x(51)
    frame = ip.NaturalGradient(kind).frame(network, theta, kept.batches)
    before = kept.drift(theta)
    found = GaussNewton(iterations=3)(kept, frame, theta, before, 1e-4, 1.0)
    assert found.applied and found.drift.judged < before.judged
    assert found.drift == kept.drift(found.theta) and 0 < found.length <= 1


def test_a_linear_networks_drift_is_corrected_in_one_step():
    model = torch.nn.Linear(6, 3).double()
    network, kept = bound(Case(model, x(4, 6)), "squared_error")
    theta = network.start + x(21)
    frame = Frame(ip.Reference(x(4, 6), "squared_error").metric(model, "gram"), 0.0)
    found = GaussNewton()(kept, frame, theta, kept.drift(theta), 1e-4, 1.0)
    assert found.drift.judged < 1e-20
    still = ip.Reference(x(4, 6), "squared_error").metric(model, "gram").project(theta - found.theta)
    assert float(still.norm()) < 1e-10, "only what the outputs see is pulled back"


def test_small_drifts_are_left_alone_and_frozen_coordinates_stay():
    network, kept = bound(build("mlp"))
    theta = network.start + 0.1 * x(51)
    frame, drift = ip.NaturalGradient().frame(network, theta, kept.batches), kept.drift(theta)
    alone = GaussNewton(threshold=0.1)(kept, frame, theta, drift, 11 * drift.judged, 1.0)
    assert alone.theta is theta and not alone.applied
    support = torch.arange(51) % 2 == 0
    found = GaussNewton()(kept, frame, theta, drift, drift.judged / 2, 1.0, support)
    assert found.applied and torch.equal(found.theta[~support], theta[~support])


def test_a_correction_that_does_not_help_is_not_applied():
    network, kept = bound(build("mlp"))
    theta = network.start + 0.1 * x(51)
    frame = Frame(Identity(51, -1.0), 0.0)  # uphill
    found = GaussNewton(tries=2)(kept, frame, theta, kept.drift(theta), 1e-9, 1.0)
    assert not found.applied and found.theta is theta and found.length == pytest.approx(0.16)


def test_what_rounding_leaves_of_a_projection_is_no_direction():
    model = torch.nn.Linear(2, 3).double()
    network = Network(model)
    kept = ip.Reference(x(6, 2), "squared_error").whole(network, network.start)  # its rows see every parameter
    frame = ip.NullSpace("gram").frame(network, network.start, kept.batches)
    for seed in range(5):
        assert not ip.NullSpace("gram").tangent(x(9, seed=seed), frame).any()
    few = ip.Reference(x(2, 2), "squared_error").whole(network, network.start)
    frame = ip.NullSpace("gram").frame(network, network.start, few.batches)
    assert ip.NullSpace("gram").tangent(x(9), frame).norm() > 0.1
