"""A multiplier that holds the drift: against the closed form, within the tolerance, resumed, refused."""

import itertools

import pytest
import torch
from torch import nn

import isopath as ip
from isopath.attacks import PGD
from isopath.trace import GaussNewton, Lagrangian, Multiplier
from isopath.verbs import steps
from networks import build, x

QUICK = Multiplier(steps=5, batch_size=32, rate=0.02)
LABELS = torch.arange(200) % 3


def seeded():
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(4, 12), nn.Tanh(), nn.Linear(12, 3)).double()


def trace(tolerance=0.02, max_steps=100, model=None, objective=None, corrector=QUICK, **more):
    model = seeded() if model is None else model
    objective = ip.Task(x(200, 4), LABELS, batch_size=32) if objective is None else objective
    return ip.trace(model, ip.Reference(x(300, 4)), objective, tolerance, max_steps, corrector=corrector, **more)


def test_it_ends_where_the_multiplier_of_the_closed_form_holds_it():
    torch.manual_seed(0)
    start, wanted = nn.Linear(4, 2, bias=False).double(), nn.Linear(4, 2, bias=False).double()
    inputs = x(80, 4)  # too few to split: one part steers and judges
    objective = ip.Task(inputs, wanted(inputs).detach(), "squared_error", batch_size=80)
    apart = (start(inputs) - wanted(inputs)).detach()
    whole = float(apart.square().sum(1).mean() / 2)  # the drift of going all the way
    tolerance, multiplier = 0.2 * whole, Multiplier(steps=5, batch_size=80, rate=2e-3, aim=0.8)
    kept = ip.Reference(inputs, "squared_error")
    *_, last = steps(start, kept, objective, tolerance, 1500, corrector=multiplier)
    # min (1 - s)² whole subject to s² whole <= aim·tolerance, along W = W0 + s (W* - W0): λ = (1 - s)/s
    share = (multiplier.aim * tolerance / whole) ** 0.5
    expected = torch.lerp(start.weight, wanted.weight, share).detach().flatten()
    assert torch.allclose(last.theta, expected, atol=0.02 * float((expected - start.weight.detach().flatten()).norm()))
    assert multiplier.first * last.correction == pytest.approx((1 - share) / share, rel=0.1)
    assert last.drift == pytest.approx(multiplier.aim * tolerance, rel=0.05)


@pytest.mark.parametrize("tolerance", [0.003, 0.02])
def test_every_accepted_point_is_within_the_tolerance_and_the_objective_falls(tolerance):
    path = trace(tolerance, keep_waypoints="all")
    accepted = [row for row in path.history if row["accepted"]]
    assert all(row["drift"] <= tolerance for row in accepted) and path.drift <= tolerance
    assert all(path.drift_kind == "measured" and waypoint.drift <= tolerance for waypoint in path.waypoints)
    assert accepted[-1]["objective"] < accepted[0]["objective_before"] - 0.01
    assert path.status == "budget_spent" and path.waypoints[-1].step == 100


def test_a_larger_tolerance_lowers_the_objective_further():
    task = ip.Task(x(200, 4), LABELS)
    losses = [ip.evaluate(trace(tolerance).model(), task).loss for tolerance in (0.001, 0.01, 0.1)]
    assert losses[0] > losses[1] > losses[2]


def test_a_break_is_taken_back_raises_the_multiplier_and_is_tried_on_other_rows():
    task = ip.Task(x(200, 4), LABELS, batch_size=32)
    fast = Multiplier(steps=5, batch_size=32, rate=0.2, first=0.01)
    states = list(steps(seeded(), ip.Reference(x(300, 4)), task, 1e-3, 60, corrector=fast))
    pairs = [(a, b) for a, b in itertools.pairwise(states) if not b.accepted]
    assert pairs
    for before, after in pairs:
        assert torch.equal(before.theta, after.theta) and after.step == before.step and after.why == "drift"
        assert after.correction == min(1000, 1.5 * before.correction) and after.rate == (before.rate or 1) / 2
        assert after.tried.judged > 1e-3 and after.drift <= 1e-3
        assert after.momentum is before.momentum and after.second is before.second
    twice = [(a, b) for a, b in itertools.pairwise(states) if not a.accepted and not b.accepted]
    assert twice and all(a.objective_before != b.objective_before for a, b in twice)


def test_it_gives_up_in_words_where_no_step_is_short_enough():
    path = trace(1e-12, corrector=Multiplier(steps=5, rate=0.5, warmup=0))
    assert path.status == "step_too_small" and "broke the tolerance of 1e-12" in path.reason
    assert torch.equal(path.point(), path.network.start)


def test_the_same_seed_gives_the_same_bits_and_a_step_is_pure():
    one, two, other = trace(seed=3), trace(seed=3), trace(seed=4)
    assert torch.equal(one.point(), two.point()) and not torch.equal(one.point(), other.point())
    states = steps(seeded(), ip.Reference(x(300, 4)), ip.Task(x(200, 4), LABELS), 0.02, 40, corrector=QUICK)
    third = [next(states) for _ in range(3)][-1]
    tracer = Lagrangian.of(
        third.network, ip.Reference(x(300, 4)), ip.Task(x(200, 4), LABELS), tolerance=0.02, max_steps=40,
        multiplier=QUICK,
    )  # fmt: skip
    moments = third.momentum.clone(), third.second.clone()
    again = [tracer.step(third) for _ in range(2)]
    assert torch.equal(again[0].theta, again[1].theta) and torch.equal(again[0].theta, next(states).theta)
    assert torch.equal(third.momentum, moments[0]) and torch.equal(third.second, moments[1])


@pytest.mark.parametrize("name", ["mlp", "conv"])
def test_only_the_trainable_parameters_move_and_the_model_is_untouched(name):
    case = build(name)
    before = {key: value.clone() for key, value in case.model.state_dict().items()}
    first = next(iter(before))
    objective = ip.Task(case.inputs, torch.arange(len(case.inputs)) % 3)
    path = ip.trace(case.model, case.reference(), objective, 0.05, 10, corrector=QUICK, trainable=first)
    after = path.model().state_dict()
    assert all(torch.equal(before[key], value) for key, value in case.model.state_dict().items())
    assert [key for key, value in after.items() if not torch.equal(before[key], value)] == [first]


def test_an_attacked_objective_takes_it_by_itself_and_another_corrector_where_asked():
    inputs = x(200, 4).sigmoid()
    robust = ip.Robust(inputs, LABELS, attack=PGD(0.05, 2), batch_size=32)
    arguments = (seeded(), ip.Reference(inputs), robust, 0.05, 10)
    own, asked = list(steps(*arguments)), list(steps(*arguments, corrector=GaussNewton()))
    assert own[-1].attempt == 1 and own[-1].second is not None and own[-1].step == 10  # 20 steps an attempt
    assert asked[-1].second is None


def test_several_references_and_a_memory_of_curvature_are_kept_within_the_tolerance():
    model, task = seeded(), ip.Task(x(200, 4), LABELS, batch_size=32)
    both = ip.Reference(x(150, 4)) + ip.Reference(3 * x(150, 4), "squared_error")
    path = ip.trace(model, both, task, 0.01, 60, corrector=QUICK)
    assert path.status == "budget_spent" and 0 < path.drift <= 0.01
    memory = ip.Memory(examples=0, factors=True).remember(model, x(150, 4))
    estimated = ip.trace(model, memory, task, 0.01, 60, corrector=QUICK)
    assert estimated.drift_kind == "estimated" and 0 < estimated.drift <= 0.01


def test_with_nothing_kept_it_is_adam():
    task = ip.Task(x(64, 4), LABELS[:64], batch_size=64)
    path = ip.trace(seeded(), None, task, 0.01, 40, corrector=Multiplier(steps=10, rate=0.02, warmup=0))
    model = seeded()
    optimiser = torch.optim.Adam(model.parameters(), 0.02)
    for k in range(40):
        optimiser.param_groups[0]["lr"] = 0.02 * (1 - k / 40)
        optimiser.zero_grad()
        nn.functional.cross_entropy(model(x(64, 4)), LABELS[:64]).backward()
        optimiser.step()
    expected = torch.cat([p.detach().flatten() for p in model.parameters()])
    assert torch.allclose(path.point(), expected, rtol=1e-6, atol=1e-8)


def test_it_lands_on_the_set_of_a_sparsity_beside_other_objectives():
    objective = ip.Task(x(200, 4), LABELS, batch_size=32) + 0.1 * ip.Sparsity(0.3)
    path = trace(0.3, 200, objective=objective)
    zero = float((path.point() == 0).double().mean())
    assert path.status != "target_not_reached" and zero > 0.2 and path.drift <= 0.3


@pytest.mark.parametrize(
    ("made", "message"),
    [
        (lambda: Multiplier(steps=0), "steps must be a whole number >= 1"),
        (lambda: Multiplier(aim=1.5), r"aim must lie in \(0, 1\)"),
        (lambda: Multiplier(first=-1), "first must be > 0"),
        (lambda: Multiplier(rate=0), "rate, gain and first must be > 0"),
    ],
    ids=["steps", "aim", "first", "rate"],
)
def test_mistakes_are_named(made, message):
    with pytest.raises(ValueError, match=message):
        made()


def test_a_sparsity_alone_has_a_corrector_of_its_own():
    with pytest.raises(TypeError, match="corrected by Recovery or Compensation, not by Multiplier"):
        ip.trace(seeded(), ip.Reference(x(120, 4)), ip.Sparsity(0.5), corrector=Multiplier())
