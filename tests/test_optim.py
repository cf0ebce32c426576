"""The optimiser for a loop of one's own: its step in closed form, its promise, its resume."""

import copy
import io
import tempfile
import warnings
from pathlib import Path

import pytest
import torch
from torch import nn

import isopath as ip
from isopath.geometry.divergence import divergence_of
from isopath.network import Network

N = 80


def mlp(seed: int = 0, outputs: int = 3, norm: bool = False) -> nn.Module:
    torch.manual_seed(seed)
    layers = [nn.Linear(5, 8), *([nn.BatchNorm1d(8)] if norm else []), nn.Tanh(), nn.Linear(8, outputs)]
    return nn.Sequential(*layers).double()


X = torch.randn(N, 5, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
Y = torch.arange(N) % 3
NEW = torch.randn(N, 5, generator=torch.Generator().manual_seed(1), dtype=torch.float64)


def point(model: nn.Module) -> torch.Tensor:
    return torch.cat([p.detach().flatten() for p in model.parameters()])


def backward(model: nn.Module) -> torch.Tensor:
    model.zero_grad()
    nn.functional.cross_entropy(model(NEW), Y).backward()
    return torch.cat([p.grad.flatten() for p in model.parameters()])


def trained(model: nn.Module, optimizer: torch.optim.Optimizer, steps: int) -> nn.Module:
    for _ in range(steps):
        optimizer.zero_grad()
        nn.functional.cross_entropy(model(NEW), Y).backward()
        optimizer.step()
    return model


@pytest.mark.parametrize("options", [{"examples": 0, "factors": True}, {"examples": 30, "factors": True}])
def test_a_step_of_plain_descent_is_the_closed_form(options):
    model = mlp()
    memory = ip.Memory(**options, divergence="kl").remember(model, X)
    network = Network(model)
    metric = memory.tasks[0].curvature.metric(network.space)
    with torch.no_grad():  # away from where the task was left, so that there is a pull
        for p in model.parameters():
            p.add_(0.1 * torch.randn(p.shape, generator=torch.Generator().manual_seed(3), dtype=p.dtype))
    base = torch.optim.SGD(model.parameters(), 0.05)
    optimizer = ip.optim.Invariant(base, model, memory, strength=2.0, damping=0.5, batch_size=30)
    before, gradient = point(model), backward(model)
    if options["examples"]:
        generator = torch.Generator().manual_seed(0)
        rows = torch.randint(30, (30,), generator=generator)
        x, y0 = memory.tasks[0].inputs[rows], memory.tasks[0].outputs[rows]
        theta = before.clone().requires_grad_(True)
        kl = divergence_of("kl").rows(network(theta, x), y0).mean()
        (pull,) = torch.autograd.grad(kl, theta)
        pull = pull + metric.mv(before - network.start)
    else:
        pull = metric.mv(before - network.start)
    damping = 0.5 * 2.0 * metric.trace() / metric.dimension
    step = -0.05 * damping * torch.linalg.solve(
        torch.stack([2.0 * metric.mv(e) for e in torch.eye(len(before), dtype=before.dtype)])
        + damping * torch.eye(len(before), dtype=before.dtype),
        gradient + 2.0 * pull,
    )  # fmt: skip
    optimizer.step()
    assert torch.allclose(point(model) - before, step, rtol=1e-9, atol=1e-12)


@pytest.mark.parametrize("checked", [False, True])
def test_steps_that_are_steered_together_are_the_base_optimisers_and_then_the_metrics_solution_of_their_sum(checked):
    model, plain = mlp(), mlp()
    memory = ip.Memory(examples=0, factors=True).remember(model, X)
    metric, start = memory.tasks[0].curvature.metric(Network(model).space), point(model)
    base = torch.optim.SGD(model.parameters(), 0.5, momentum=0.9)
    # the pull of where the task was left is zero, and held for ten steps
    optimizer = ip.optim.Invariant(base, model, memory, tolerance=None, damping=0.3, renew=10, steer_every=4)
    trained(plain, torch.optim.SGD(plain.parameters(), 0.5, momentum=0.9), 3 if checked else 4)
    trained(model, optimizer, 3)
    if checked:  # what is left over is steered before it is measured
        assert not torch.equal(point(model), start)
        optimizer.check()
    else:
        trained(model, optimizer, 1)
    damping = 0.3 * metric.trace() / metric.dimension
    step = damping * metric.solve(point(plain) - start, damping)
    assert torch.allclose(point(model) - start, step, rtol=1e-9, atol=1e-12)
    assert (point(model) - start).norm() < 0.9 * (point(plain) - start).norm()


def test_kept_outputs_move_less_than_under_the_base_optimiser_at_the_same_loss():
    drifts, losses = [], []
    for keep in (False, True):
        model = mlp()
        start = copy.deepcopy(model)
        optimizer: torch.optim.Optimizer = torch.optim.SGD(model.parameters(), 0.5, momentum=0.9)
        if keep:
            memory = ip.Memory(examples=0, factors=True).remember(model, X)
            optimizer = ip.optim.Invariant(optimizer, model, memory, tolerance=None, strength=20)
        trained(model, optimizer, 60)
        p, p0 = model(X).softmax(1), start(X).softmax(1)
        drifts.append(float((1 - (p * p0).sqrt().sum(1)).mean().detach()))
        losses.append(float(nn.functional.cross_entropy(model(NEW), Y).detach()))
    assert drifts[1] < 0.2 * drifts[0] and losses[1] < 1.0986


@pytest.mark.parametrize("norm", [False, True])
@pytest.mark.parametrize("keep", ["factors", "examples", "both", "drawn", "reference"])
def test_a_break_of_the_tolerance_is_rolled_back(keep, norm):
    model = mlp(norm=norm).train()
    memory = {
        "factors": lambda: ip.Memory(examples=0, factors=True).remember(model, X),
        "examples": lambda: ip.Memory(examples=40).remember(model, X),
        "both": lambda: ip.Memory(examples=40, factors=True).remember(model, X),
        "drawn": lambda: ip.Memory(examples=80, choose="drawn").remember(model, X).remember(model, X + 1),
        "reference": lambda: ip.Reference(X),
    }[keep]()
    base = torch.optim.SGD(model.parameters(), 1.0, momentum=0.9)
    start = point(model)
    optimizer = ip.optim.Invariant(base, model, memory, tolerance=1e-7, strength=0.01, damping=100.0, check_every=5)
    with pytest.warns(UserWarning, match="is above the tolerance 1e-07 after 5 steps"):
        trained(model, optimizer, 5)
    assert torch.equal(point(model), start) and optimizer.rollbacks == 1 and optimizer.strength == 0.02
    assert optimizer.drift() <= 1e-7
    with pytest.warns(UserWarning, match="back to the last check"):
        trained(model, optimizer, 50)
    assert optimizer.check() <= 1e-7


@pytest.mark.parametrize("base", [
    lambda p: torch.optim.SGD(p, 0.1, momentum=0.9),
    lambda p: torch.optim.AdamW(p, 0.01),
    lambda p: torch.optim.RMSprop(p, 0.01),
])  # fmt: skip
@pytest.mark.parametrize("stop, every", [(1, 1), (12, 1), (15, 1), (14, 5)])
@pytest.mark.parametrize("keep", ["factors", "examples", "drawn", "reference"])
def test_a_loop_that_is_broken_off_ends_where_the_unbroken_one_does_to_the_bit(base, keep, stop, every):
    options = {"factors": {"examples": 0, "factors": True}, "drawn": {"examples": 400, "choose": "drawn"}}.get(
        keep, {"examples": 40}
    )
    memory = ip.Reference(X) if keep == "reference" else ip.Memory(**options).remember(mlp(norm=True), X)

    def fresh(state=None):
        model = mlp(norm=True).train()
        if state is not None:
            model.load_state_dict(state)
        return model, ip.optim.Invariant(
            base(model.parameters()), model, memory, tolerance=0.05, check_every=4, refresh=6, steer_every=every
        )

    whole, optimizer = fresh()
    trained(whole, optimizer, 18)
    model, first = fresh()
    trained(model, first, stop)
    file = io.BytesIO()
    torch.save(first.state_dict(), file)
    file.seek(0)
    again, second = fresh(model.state_dict())
    second.load_state_dict(torch.load(file, weights_only=True))
    assert second.drift() == first.drift()
    trained(again, second, 18 - stop)
    assert torch.equal(point(again), point(whole)) and second.steps == optimizer.steps == 18


def test_schedules_clipping_and_accumulation_work_as_on_the_base():
    model = mlp()
    memory = ip.Memory(examples=0, factors=True).remember(model, X)
    base = torch.optim.AdamW(model.parameters(), 0.01)
    optimizer = ip.optim.Invariant(base, model, memory)
    scheduler = torch.optim.lr_scheduler.LambdaLR(optimizer, lambda step: 0.5**step)
    for k in range(4):
        nn.functional.cross_entropy(model(NEW), Y).backward()
        if k % 2:
            torch.nn.utils.clip_grad_norm_(model.parameters(), 0.1)
            optimizer.step()
            optimizer.zero_grad()
            scheduler.step()
    assert base.param_groups[0]["lr"] == pytest.approx(0.0025) and optimizer.steps == 2
    assert all(p.grad is None for p in model.parameters())


def test_running_statistics_of_the_model_are_those_that_drift_is_measured_with():
    model = mlp(norm=True).train()
    memory = ip.Memory(examples=40).remember(model, X)
    optimizer = ip.optim.Invariant(torch.optim.SGD(model.parameters(), 1e-9), model, memory, tolerance=None)
    trained(model, optimizer, 30)
    kept = memory.tasks[0]
    p, p0 = model.eval()(kept.inputs).softmax(1), kept.outputs.softmax(1)
    assert optimizer.drift() == pytest.approx(float((1 - (p * p0).sqrt().sum(1)).mean().detach()), rel=1e-6)
    assert optimizer.drift() > 1e-4


def test_a_closure_is_evaluated_once_before_the_step():
    memory = ip.Memory(examples=0, factors=True).remember(mlp(), X)
    plain, closed = mlp(), mlp()
    trained(plain, ip.optim.Invariant(torch.optim.SGD(plain.parameters(), 0.1), plain, memory), 3)
    optimizer, calls = ip.optim.Invariant(torch.optim.SGD(closed.parameters(), 0.1), closed, memory), []

    def closure():
        optimizer.zero_grad()
        loss = nn.functional.cross_entropy(closed(NEW), Y)
        loss.backward()
        calls.append(float(loss.detach()))
        return loss

    losses = [float(optimizer.step(closure).detach()) for _ in range(3)]
    assert torch.equal(point(plain), point(closed)) and losses == calls


def test_an_empty_memory_leaves_the_base_optimiser_alone():
    a, b = mlp(), mlp()
    trained(a, torch.optim.AdamW(a.parameters(), 0.01), 5)
    trained(b, ip.optim.Invariant(torch.optim.AdamW(b.parameters(), 0.01), b, ip.Memory()), 5)
    assert torch.equal(point(a), point(b))


def test_mistakes_are_named():
    model, other = mlp(), mlp(outputs=2)
    memory = ip.Memory(examples=0, factors=True).remember(model, X)
    with pytest.raises(ValueError, match="LBFGS evaluates the loss inside its step"):
        ip.optim.Invariant(torch.optim.LBFGS(model.parameters()), model, memory)
    with pytest.raises(ValueError, match="2 of the model's are missing from it and 0 are not"):
        ip.optim.Invariant(torch.optim.SGD(model[0].parameters(), 0.1), model, memory)
    with pytest.raises(ValueError, match="the memory is of another network"):
        ip.optim.Invariant(torch.optim.SGD(other.parameters(), 0.1), other, memory)
    sgd = torch.optim.SGD(model.parameters(), 0.1)
    for option, given, kind, said in (
        ("renew", 0, ValueError, "renew must be a whole number >= 1, got 0"),
        ("steer_every", 1.5, ValueError, "steer_every must be a whole number >= 1, got 1.5"),
        ("check_every", None, TypeError, "check_every must be a number, got None"),
        ("tolerance", "0.1", TypeError, "tolerance must be a number, got '0.1'"),
        ("strength", float("nan"), ValueError, "strength must be >= 0 and finite, damping > 0, got nan and 1"),
    ):
        with pytest.raises(kind, match=said):
            ip.optim.Invariant(sgd, model, memory, **{option: given})
    optimizer = ip.optim.Invariant(sgd, model, memory)
    with pytest.raises(ValueError, match="make a new Invariant of it"):
        optimizer.add_param_group({"params": [nn.Parameter(torch.zeros(3))]})
    with pytest.raises(ValueError, match="the state is of a plain optimiser"):
        optimizer.load_state_dict(sgd.state_dict())
    other_memory = ip.Memory(examples=30, factors=True).remember(model, X)
    state = ip.optim.Invariant(torch.optim.SGD(model.parameters(), 0.1), model, other_memory).state_dict()
    with pytest.raises(ValueError, match=r"the state keeps outputs of shapes \[\(30, 3\)\] and 1 curvatures"):
        optimizer.load_state_dict(state)


def test_a_start_that_breaks_the_tolerance_is_refused_at_the_first_step_and_weights_may_be_loaded_before_it():
    model = mlp()
    memory, start = ip.Memory(examples=40).remember(model, X), copy.deepcopy(model.state_dict())
    trained(model, torch.optim.SGD(model.parameters(), 1.0), 20)
    optimizer = ip.optim.Invariant(torch.optim.SGD(model.parameters(), 0.1), model, memory, tolerance=1e-3)
    with pytest.raises(ValueError, match=r"the start already drifts by .* more than the tolerance 0\.001"):
        trained(model, optimizer, 1)
    model.load_state_dict(start)
    trained(model, optimizer, 1)
    assert optimizer.steps == 1 and torch.equal(optimizer._anchor[0], point(mlp()))


def test_frozen_parameters_may_stand_in_the_base_optimiser_and_unfrozen_ones_need_curvature():
    model = mlp()
    model[0].requires_grad_(False)
    memory, frozen = ip.Memory(examples=0, factors=True).remember(model, X), model[0].weight.clone()
    trained(model, ip.optim.Invariant(torch.optim.AdamW(model.parameters(), 0.01), model, memory, tolerance=None), 3)
    assert torch.equal(model[0].weight, frozen) and not torch.equal(model[2].weight, mlp()[2].weight)
    model.requires_grad_(True)
    for task in (memory, ip.Memory.load(_saved(memory))):
        with pytest.raises(ValueError, match=r"no curvature of '0\.weight', '0\.bias', which were frozen"):
            ip.optim.Invariant(torch.optim.AdamW(model.parameters(), 0.01), model, task)
    model[0].requires_grad_(False)
    whole = ip.Memory(examples=0, factors=True).remember(model, X, trainable=lambda name: True)
    ip.optim.Invariant(torch.optim.AdamW(model.requires_grad_(True).parameters(), 0.01), model, whole)


def test_a_merged_memory_still_knows_what_was_frozen_for_an_earlier_task():
    model = mlp()
    model[0].requires_grad_(False)
    memory = ip.Memory(examples=0, factors=True, merge=True).remember(model, X)
    memory = memory.remember(model.requires_grad_(True), X)
    with pytest.raises(ValueError, match=r"no curvature of '0\.weight', '0\.bias', which were frozen"):
        ip.optim.Invariant(torch.optim.AdamW(model.parameters(), 0.01), model, memory)


def _saved(memory):
    path = Path(tempfile.mkdtemp()) / "memory.safetensors"
    memory.save(path)
    return path


def test_a_step_costs_a_gradient_of_the_kept_rows_in_its_batch_and_no_pass_for_outputs_that_are_known():
    model = mlp()
    memory = ip.Memory(examples=60).remember(model, X).remember(model, X + 1)
    optimizer = ip.optim.Invariant(torch.optim.SGD(model.parameters(), 0.1), model, memory, None, batch_size=20)
    trained(model, optimizer, 1)
    before = optimizer.network.evaluations
    trained(model, optimizer, 2)
    assert optimizer.network.evaluations - before == pytest.approx(2 * 2 * 20)


def test_running_statistics_that_curvature_does_not_see_are_warned_of_and_rows_see_them():
    for options, said in (({"examples": 0, "factors": True}, True), ({"examples": 40, "factors": True}, False)):
        model = mlp(norm=True).train()
        memory = ip.Memory(**options).remember(model, X)
        optimizer = ip.optim.Invariant(torch.optim.SGD(model.parameters(), 0.1), model, memory, tolerance=None)
        with warnings.catch_warnings(record=True) as caught:
            warnings.simplefilter("always")
            trained(model, optimizer, 2)
        assert sum("running statistics of 1 batch norms ('1', ...)" in str(w.message) for w in caught) == said
    model[1].eval()
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        memory = ip.Memory(examples=0, factors=True).remember(model, X)
        trained(model, ip.optim.Invariant(torch.optim.SGD(model.parameters(), 0.1), model, memory), 2)


def test_in_mixed_precision_drift_is_measured_in_float32():
    torch.manual_seed(0)
    model = mlp().float()
    memory = ip.Memory(examples=40).remember(model, X.float())
    optimizer = ip.optim.Invariant(torch.optim.SGD(model.parameters(), 0.1), model, memory, check_every=2)
    for _ in range(4):
        optimizer.zero_grad()
        with torch.autocast("cpu", torch.bfloat16):
            loss = nn.functional.cross_entropy(model(NEW.float()), Y)
            loss.backward()
            optimizer.step()
            measured = optimizer.drift()
    assert measured == optimizer.drift()
    with torch.autocast("cpu", torch.bfloat16):
        again = ip.Memory(examples=40, factors=True).remember(mlp().float(), X.float())
    assert torch.equal(again.tasks[0].outputs, memory.tasks[0].outputs)
    kept = memory.tasks[0]
    p, p0 = model(kept.inputs).softmax(1).double(), kept.outputs.softmax(1).double()
    expected = float((1 - (p * p0).sqrt().sum(1)).mean().detach())
    assert optimizer.drift() == pytest.approx(expected, rel=1e-3, abs=1e-7)


def test_a_second_rollback_goes_back_as_far_and_a_schedule_goes_on():
    model = mlp()
    memory = ip.Memory(examples=40).remember(model, X)
    base = torch.optim.SGD(model.parameters(), 1.0, momentum=0.9)
    optimizer = ip.optim.Invariant(base, model, memory, tolerance=1e-9, strength=1e-3, damping=1e3, check_every=3)
    scheduler = torch.optim.lr_scheduler.StepLR(optimizer, 1, 0.9)
    start = point(model)
    with pytest.warns(UserWarning, match="back to the last check"):
        for _ in range(9):
            trained(model, optimizer, 1)
            scheduler.step()
    assert optimizer.rollbacks == 3 and torch.equal(point(model), start)
    assert not base.state or all(float(s["momentum_buffer"].abs().sum()) == 0 for s in base.state.values() if s)
    assert optimizer.param_groups[0] is base.param_groups[0]
    assert base.param_groups[0]["lr"] == pytest.approx(0.9**9)


def test_parameters_of_16_bits_are_refused():
    model = mlp().to(torch.bfloat16)
    with pytest.raises(ValueError, match="in 16 bits, in which a metric cannot be solved"):
        ip.optim.Invariant(torch.optim.SGD(model.parameters(), 0.1), model, ip.Memory())
