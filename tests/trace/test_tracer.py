"""Every accepted waypoint within the tolerance, recomputed from the modules' own outputs; and how a trace ends."""

import copy
import itertools
from dataclasses import replace

import pytest
import torch
from torch.utils.data import DataLoader, IterableDataset, TensorDataset

import isopath as ip
from isopath.network import Network
from isopath.objectives import sparsity
from isopath.trace import Backtracking, GaussNewton, Tracer
from isopath.trace.state import State
from isopath.trace.status import REASONS
from networks import CASES, Case, build, drift, mlp, outputs, x

TOLERANCE = 0.003
DIRECTIONS = {
    "natural": ip.NaturalGradient(),
    "momentum": ip.NaturalGradient(momentum=0.9, refresh=1),
    "exact": ip.NaturalGradient("exact", {"iterations": 5}),
    "flat": ip.NaturalGradient("identity"),
    "null": ip.NullSpace("gram"),
    "null by factors": ip.NullSpace(momentum=0.5),
    "penalised": ip.Penalised(weight=2.0),
}
CORRECTORS = {"corrected": GaussNewton(threshold=0.0), "threshold": GaussNewton(), "uncorrected": None}
RUNS = [
    *itertools.product(["natural"], CASES, ["threshold"]),
    *itertools.product([d for d in DIRECTIONS if d != "natural"], ["mlp", "conv_bn", "sdpa"], CORRECTORS),
]


def task(case: Case) -> ip.Task:
    """Random labels on the case's own rows: at odds with what is kept."""
    y = Network(case.model)(Network(case.model).start, case.inputs)
    labels = torch.randint(3, y.shape[:-1], generator=torch.Generator().manual_seed(5))
    return ip.Task(case.inputs, labels, batch_size=4)


def goal(seed: int = 5) -> ip.Task:
    return ip.Task(x(40, 4, seed=seed), torch.arange(40) % 3, batch_size=16)


@pytest.mark.parametrize(("direction", "name", "corrector"), RUNS)
def test_every_accepted_waypoint_is_within_the_tolerance(direction, name, corrector):
    case = build(name)
    kept = outputs(case.model, case.inputs).detach()
    settings = {"direction": DIRECTIONS[direction], "corrector": CORRECTORS[corrector], "max_steps": 12}
    theta, accepted = None, 0
    for state in ip.steps(case.model, case.reference(), task(case), TOLERANCE, **settings):
        measured = drift(state.model(), case, kept)
        assert measured <= TOLERANCE
        assert state.drift == pytest.approx(measured, abs=1e-12)
        if state.accepted:
            accepted += 1
        elif state.support is None:
            assert torch.equal(state.theta, theta), "a rejected attempt moves nothing"
        theta = state.theta
    assert accepted > 1 and state.status != "running"


@pytest.mark.parametrize("objective", ["task", "task and sparsity", "sparsity"])
def test_split_references_hold_on_the_whole_in_float32(objective):
    model, case = mlp(12).float(), Case(mlp(12), x(150, 4))
    case = Case(model, case.inputs.float())
    kept, task = outputs(model, case.inputs).detach(), ip.Task(x(40, 4).float(), torch.arange(40) % 3)
    wanted = {"task": task, "task and sparsity": task + ip.Sparsity(0.3), "sparsity": ip.Sparsity(0.3)}[objective]
    path = ip.trace(model, case.reference(), wanted, TOLERANCE, max_steps=40, keep_waypoints="all")
    assert len(path) > 2 or path.status == "converged"
    for step, waypoint in zip(path.steps, path.waypoints):
        measured = drift(path.model(step), case, kept)
        assert measured <= waypoint.drift * (1 + 1e-4) + 1e-9 <= TOLERANCE * (1 + 1e-3)


def test_the_objective_falls_while_the_drift_stays():
    model, reference, objective = mlp(30), ip.Reference(x(6, 4)), goal()
    path = ip.trace(model, reference, objective, 0.01, max_steps=100)
    before, after = (ip.evaluate(path.model(step), objective) for step in (0, None))
    assert after.loss < 0.7 * before.loss and path.drift <= 0.01
    assert path.status in ("budget_spent", "stationary") and path.reason[0].isupper() and path.reason.endswith(".")


def test_each_of_several_references_stays_within_the_tolerance():
    cases = [Case(mlp(20), x(6, 4))]
    model = cases[0].model
    cases += [Case(model, x(120, 4, seed=3)), Case(model, x(5, 4, seed=4))]
    kept = [outputs(model, c.inputs).detach() for c in cases]
    keep = cases[0].reference() + cases[1].reference() + cases[2].reference("squared_error")
    path = ip.trace(model, keep, goal(), TOLERANCE, max_steps=30, keep_waypoints="all")
    for step in path.steps:
        for c, k, divergence in zip(cases, kept, ("hellinger", "hellinger", "squared_error")):
            assert drift(path.model(step), c, k, divergence) <= TOLERANCE
    assert path.steps[-1] > 3 and path.drift_kind == "measured"


def test_nothing_kept_is_legal_and_said():
    path = ip.trace(mlp(), None, goal(), max_steps=60)
    assert path.drift_kind == "none" and path.drift == 0 and "Nothing is kept" in path.reason
    assert ip.evaluate(path.model(), goal()).loss < 0.9 * ip.evaluate(path.model(0), goal()).loss


def test_given_outputs_beyond_the_tolerance_are_refused_at_the_start():
    keep = ip.Reference(x(5, 4), "squared_error", outputs=x(5, 3, seed=3))
    with pytest.raises(ValueError, match=r"the start already drifts by .* more than the tolerance 0.01; raise"):
        ip.trace(mlp(), keep, goal())


# --- a linear network has a closed form -------------------------------------------------------------------------------


@pytest.mark.parametrize("momentum", [0.0, 0.8])
def test_a_linear_network_ends_at_the_constrained_least_squares_solution(momentum):
    model = torch.nn.Linear(6, 2).double()
    kept, inputs, target = x(3, 6), x(30, 6, seed=2), x(30, 2, seed=3)
    direction = ip.NullSpace("gram", momentum=momentum)
    path = ip.trace(
        model,
        ip.Reference(kept, "squared_error"),
        ip.Task(inputs, target, loss="squared_error"),
        tolerance=1e-6,
        max_steps=2000,
        direction=direction,
        corrector=None,
    )
    with_one, kept_one = (torch.cat([a, torch.ones(len(a), 1).double()], 1) for a in (inputs, kept))
    free = torch.linalg.svd(kept_one).Vh[3:]  # what the kept outputs do not see, (4, 7)
    start = torch.cat([model.weight, model.bias[:, None]], 1).detach()
    residual = target - with_one @ start.T
    best = start + torch.linalg.lstsq(with_one @ free.T, residual).solution.T @ free
    end = path.model()
    found = torch.cat([end.weight, end.bias[:, None]], 1).detach()
    assert float((found - best).norm() / (best - start).norm()) < 2e-3
    assert path.drift < 1e-20 and path.status == "stationary"


# --- how it ends ------------------------------------------------------------------------------------------------------


def test_it_converges_where_the_target_is_reachable():
    model, target = mlp(), mlp()
    path = ip.trace(model, ip.Reference(x(5, 4)), ip.Toward(target), tolerance=1.0, max_steps=400)
    end, point = path.point(), Network(target).start
    assert path.status == "converged" and "reached its target" in path.reason
    assert float((end - point).norm() / point.norm()) <= 1e-3


def test_it_spends_its_steps_or_its_evaluations_and_no_more():
    steps = ip.trace(mlp(), ip.Reference(x(5, 4)), goal(), max_steps=5)
    assert steps.status == "budget_spent" and steps.steps[-1] == 5 and "All 5 steps" in steps.reason
    spent = ip.trace(mlp(), ip.Reference(x(5, 4)), goal(), max_evaluations=500)
    assert spent.status == "budget_spent" and 500 <= spent.evaluations < 2500
    assert "500 gradient evaluations" in spent.reason


def test_it_is_stationary_where_the_kept_outputs_see_every_direction():
    model = torch.nn.Linear(2, 3).double()
    inputs = x(6, 2)
    keep, wanted = ip.Reference(inputs, "squared_error"), ip.Task(inputs, x(6, 3, seed=4), loss="squared_error")
    path = ip.trace(model, keep, wanted, 1e-4, direction=ip.NullSpace("gram"))
    assert path.status == "stationary" and path.steps == [0] and "raise the tolerance" in path.reason


def test_it_is_stationary_at_a_minimum():
    model = mlp()
    path = ip.trace(model, ip.Reference(x(5, 4)), ip.Toward(copy.deepcopy(model)) + 0.0 * goal())
    assert path.status == "stationary" and path.steps[-1] == 0 and path.drift == 0


def test_steps_too_small_are_said_where_every_step_breaks_the_tolerance():
    def jump(net, theta):
        return theta.sum()

    class Jumpy(torch.nn.Linear):
        def forward(self, inputs):
            y = super().forward(inputs)
            return y + 1e3 * ((self.weight - self.start).abs().max() > 0).to(y) * inputs[:, :3]

    model = Jumpy(4, 3).double()
    model.register_buffer("start", model.weight.detach().clone())
    path = ip.trace(model, ip.Reference(x(5, 4)), jump)
    assert path.status == "step_too_small" and path.steps == [0] and "still broke the tolerance of 0.01" in path.reason
    assert all(row["why"] == "drift" and not row["accepted"] for row in path.history)


def test_a_target_out_of_reach_is_said_with_what_was_achieved():
    path = ip.trace(mlp(), ip.Reference(x(5, 4)), goal() + ip.Sparsity(0.99), 1e-4, max_steps=12)
    assert path.status == "target_not_reached" and "0.0% of the weights are zero" in path.reason
    assert path.drift <= 1e-4


def test_reasons_are_sentences_and_small_references_are_said():
    assert all(text.endswith(".") for text in REASONS.values())
    small, large = (ip.trace(mlp(), ip.Reference(x(n, 4)), goal(), max_steps=2).reason for n in (5, 120))
    assert "too small to split" in small and "too small to split" not in large


# --- landing ----------------------------------------------------------------------------------------------------------


def test_it_lands_on_exact_zeros_and_stays_there():
    case = Case(mlp(20), x(8, 4))
    kept, network = outputs(case.model, case.inputs).detach(), Network(case.model)
    landed = None
    for state in ip.steps(case.model, case.reference(), goal() + ip.Sparsity(0.4), 0.02, max_steps=80):
        assert drift(state.model(), case, kept) <= 0.02
        zeros = state.theta == 0
        if landed is not None:
            assert torch.equal(zeros & landed, landed), "what landed stays zero"
        elif state.support is not None:
            landed = zeros
    weights = 4 * 20 + 20 * 3
    assert sparsity(network.space, state.theta) == pytest.approx(round(0.4 * weights) / weights)
    assert int((state.theta == 0).sum()) == round(0.4 * weights)
    assert not landed[80:100].any(), "biases are left alone"


def test_sparsity_alone_converges_when_it_lands():
    path = ip.trace(mlp(20), ip.Reference(x(8, 4)), ip.Sparsity(0.4), 0.02)
    assert path.status == "converged"
    assert int((path.point() == 0).sum()) == 56


# --- reproducible, counted, pure --------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["mlp", "conv_bn", "attention"])
def test_the_same_seed_gives_the_same_bits_and_another_one_others(name):
    case = build(name)

    def run(seed):
        return ip.trace(case.model, case.reference(), task(case), max_steps=8, seed=seed)

    one, two, other = run(3), run(3), run(4)
    assert torch.equal(one.point(), two.point())
    rows = [[{k: v for k, v in row.items() if k != "seconds"} for row in path.history] for path in (one, two)]
    assert rows[0] == rows[1] and not torch.equal(one.point(), other.point())


def test_a_step_is_a_pure_function_of_the_state():
    tracer = Tracer.of(Network(mlp()), ip.Reference(x(5, 4)), goal())
    state = tracer.start()
    for _ in range(3):
        theta = state.theta.clone()
        one, two = tracer.step(state), tracer.step(state)
        assert torch.equal(one.theta, two.theta) and one.evaluations == two.evaluations and one.row() == two.row()
        assert torch.equal(state.theta, theta)
        state = one


def test_history_has_a_row_per_attempt_and_evaluations_grow():
    path = ip.trace(mlp(), ip.Reference(x(5, 4)), goal(), 1e-5, max_steps=40)
    assert [row["attempt"] for row in path.history] == list(range(1, len(path.history) + 1))
    spent = [row["evaluations"] for row in path.history]
    assert spent == sorted(spent) and spent[-1] == pytest.approx(path.evaluations, abs=1e-2)
    assert all(row["drift"] <= 1e-5 for row in path.history if row["accepted"])
    assert all(row["why"] == "accepted" for row in path.history if row["accepted"])


def test_momentum_is_the_running_mean_of_the_gradients_on_the_way():
    scales = torch.logspace(0, 1, 51).double()

    def bowl(net, theta):
        return 0.5 * (scales * (theta - 1).square()).sum()

    strategies = {"direction": ip.NaturalGradient(momentum=0.5), "controller": Backtracking(stride=1)}
    states = [state for state in ip.steps(mlp(), None, bowl, max_steps=9, **strategies) if state.accepted]
    assert len(states) == 10
    mean = None
    for before, after in itertools.pairwise(states):
        gradient = scales * (before.theta - 1)
        mean = gradient if mean is None else 0.5 * mean + 0.5 * gradient
        torch.testing.assert_close(after.momentum, mean)
        torch.testing.assert_close(after.theta - before.theta, -mean * (after.step_length / mean.norm()))


def test_a_momentum_that_leads_nowhere_is_dropped_and_the_gradient_tried_at_the_rate_of_before():
    scales = torch.logspace(0, 4, 51).double()

    def bowl(net, theta):
        return 0.5 * (scales * theta.square()).sum()

    tracer = Tracer.of(Network(mlp()), None, bowl, direction=ip.NaturalGradient(momentum=0.9))
    state = tracer.step(tracer.start())
    assert state.accepted
    gradient = scales * state.theta
    across = torch.zeros_like(gradient)  # almost at a right angle to the gradient, where the bowl is steepest
    across[-1], across[-2] = -gradient[-2], gradient[-1]
    state = replace(state, momentum=1e3 * across, rate=1e-4, stride=1, ready=None)
    refused = tracer.step(state)
    assert not refused.accepted and refused.why == "objective"
    assert refused.momentum is None and refused.rate == state.rate
    again = tracer.step(refused)
    assert again.accepted and again.step == state.step + 1
    torch.testing.assert_close(again.theta, state.theta - again.step_length * gradient / gradient.norm())


# --- large and streamed references ------------------------------------------------------------------------------------


class Stream(IterableDataset):
    def __iter__(self):
        return iter(x(300, 4))


SOURCES = {
    "tensor": lambda: x(300, 4),
    "dataset": lambda: TensorDataset(x(300, 4)),
    "shuffled loader": lambda: DataLoader(TensorDataset(x(300, 4), torch.zeros(300)), batch_size=7, shuffle=True),
    "iterable loader": lambda: DataLoader(Stream(), batch_size=32),
}


@pytest.mark.parametrize("source", SOURCES)
def test_a_streamed_reference_traces_as_the_tensor_does(source):
    runs = [
        ip.trace(mlp(), ip.Reference(inputs, sample=120), goal(), max_steps=6)
        for inputs in (x(300, 4), SOURCES[source]())
        if torch.manual_seed(0)
    ]
    assert torch.equal(runs[0].point(), runs[1].point()) and runs[0].drift == runs[1].drift


def test_a_sampled_reference_is_whole_at_every_kept_waypoint():
    case = Case(mlp(12), x(300, 4))
    kept = outputs(case.model, case.inputs).detach()
    path = ip.trace(case.model, case.reference(sample=20), goal(), TOLERANCE, max_steps=30, keep_waypoints="all")
    assert path.drift_kind == "sampled"
    for step, waypoint in zip(path.steps, path.waypoints):
        assert waypoint.drift == pytest.approx(drift(path.model(step), case, kept), abs=1e-12)
        assert waypoint.drift <= TOLERANCE


def test_waypoints_that_break_the_tolerance_on_the_whole_are_not_kept():
    inputs = x(300, 4)
    order = torch.randperm(300, generator=torch.Generator().manual_seed(0))
    inputs[order[:20]] *= 1e-3  # the sample sees next to nothing
    path = ip.trace(mlp(12), ip.Reference(inputs, sample=20), goal(), TOLERANCE, max_steps=60, keep_waypoints="all")
    assert max(waypoint.drift for waypoint in path.waypoints) <= TOLERANCE
    assert path.steps[-1] < 60 and "they were not kept. A larger sample=" in path.reason


# --- bad input --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("changes", "error", "message"),
    [
        ({"tolerance": 0}, ValueError, "tolerance must be > 0, got 0; 0.01 keeps"),
        ({"tolerance": -1.0}, ValueError, "tolerance must be > 0, got -1.0"),
        ({"tolerance": float("nan")}, ValueError, "tolerance must be > 0, got nan"),
        ({"max_steps": 0}, ValueError, "max_steps must be a whole number >= 1, got 0"),
        ({"keep": x(5, 4)}, TypeError, "keep must be a Reference, a sum of them, or None, got Tensor"),
        ({"objective": "task"}, TypeError, r"callable \(net, theta\) -> scalar, got str"),
        ({"objective": lambda net, theta: theta}, ValueError, r"shape \(51,\), expected a scalar"),
        ({"objective": lambda net, theta: 0.5}, TypeError, "returned float, expected a scalar tensor"),
        ({"objective": lambda net, theta: theta.sum() / 0 * 0}, ValueError, "the objective is nan at"),
        ({"model": mlp().requires_grad_(False)}, ValueError, "no trainable parameter.*requires_grad"),
        ({"trainable": ["head.*"]}, ValueError, r"'head.\*' matches no parameter; the names are \['0.weight'"),
        ({"keep_waypoints": 1}, ValueError, 'keep_waypoints must be an integer >= 2 or "all", got 1'),
        ({"resume": True}, ValueError, "resume=True needs run="),
        ({"keep": ip.Reference(x(5, 4).float())}, ValueError, "float32.*float64"),
        ({"keep": ip.Reference(x(5, 7))}, ValueError, r"\(5, 7\)"),
        ({"model": mlp().to("meta")}, ValueError, "inputs are on cpu, the model is on meta"),
        ({"model": torch.nn.Linear(4, 1).double()}, ValueError, 'needs C >= 2 outputs, got C = 1.*"bernoulli"'),
    ],
)
def test_bad_arguments_say_what_was_got_and_expected(changes, error, message):
    arguments = {"model": mlp(), "keep": ip.Reference(x(5, 4)), "objective": goal(), **changes}
    with pytest.raises(error, match=message):
        ip.trace(**arguments)
    if not {"objective", "keep_waypoints", "resume"} & set(changes):
        with pytest.raises(error, match=message):
            ip.steps(**arguments)


def test_an_objective_that_turns_nan_along_the_way_is_stepped_around():
    def fence(net, theta):
        return (theta[0] - theta.detach()[0] + 1e-3).log() - theta[1] if theta.requires_grad else theta[1] / 0 * 0

    path = ip.trace(mlp(), ip.Reference(x(5, 4)), fence)
    assert path.status == "stationary" and path.steps == [0]


def test_dropout_is_off_and_the_mode_comes_back():
    model = torch.nn.Sequential(torch.nn.Linear(4, 6), torch.nn.Dropout(0.5), torch.nn.Linear(6, 3)).double().train()
    path = ip.trace(model, ip.Reference(x(5, 4)), goal(), max_steps=3)
    assert model.training and path.model().training and path.drift <= 0.01


def test_only_the_chosen_parameters_move():
    model = mlp()
    path = ip.trace(model, ip.Reference(x(5, 4)), goal(), max_steps=5, trainable=["2.*"])
    assert torch.equal(path.model()[0].weight, model[0].weight)
    assert not torch.equal(path.model()[2].weight, model[2].weight)


@pytest.mark.parametrize("first", [1e-6, 1e3])
def test_the_first_step_length_does_not_matter_much(first):
    controller = Backtracking(first=first, patience=60)
    path = ip.trace(mlp(), ip.Reference(x(5, 4)), goal(), max_steps=60, controller=controller)
    assert ip.evaluate(path.model(), goal()).loss < 0.98 * ip.evaluate(path.model(0), goal()).loss


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_a_trace_on_cuda_holds_the_tolerance(dtype):
    model, inputs = mlp(12).to("cuda", dtype), x(150, 4).to("cuda", dtype)
    case = Case(model, inputs)
    kept = outputs(model, inputs).detach()
    objective = ip.Task(x(40, 4).to(dtype), torch.arange(40) % 3) + ip.Sparsity(0.3)
    path = ip.trace(model, case.reference(), objective, TOLERANCE, max_steps=20, keep_waypoints="all")
    for step in path.steps:
        assert drift(path.model(step), case, kept) <= TOLERANCE * (1 + 1e-3)


def test_a_trace_goes_on_while_the_objective_falls_over_fifths_of_the_budget():
    tracer = Tracer.of(Network(mlp()), ip.Reference(x(20, 4)), goal(), max_steps=200)

    def still(values, free=0.0, step=100, count=10):
        bins = tuple((i, count * value, count) for i, value in enumerate(values))
        return tracer._still(State(tracer.network.start, watched=bins, free=free, step=step))

    level = [1.0] * 11
    assert still(level) == 1.0
    assert still([1.0] * 6 + [0.9] * 5) is None  # it fell
    assert still([1.0] * 6 + [1.1] * 5) == pytest.approx(1.1)
    assert still(level, free=0.4) is None  # the corrector had nothing to do of late
    assert still(level[:8]) is None and still(level, count=4) is None  # too little to go by
