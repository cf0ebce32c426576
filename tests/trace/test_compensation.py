
import pytest
import torch
from torch import nn

import isopath as ip
from interruption import killed
from isopath.geometry.exact import Exact
from isopath.network import Network
from isopath.objectives import prunable, sparsity
from isopath.trace import Compensation, Multiplier, NaturalGradient, Recovery
from isopath.trace.sparsifier import Sparsifier
from networks import build, mlp, x


def linear():
    torch.manual_seed(0)
    return nn.Linear(6, 2, bias=False).double()


def made_up(model, compensation, support, theta=None, divergence="squared_error", metric="kronecker"):
    """A compensation by itself, without a trace."""
    network = Network(model)
    kept = Sparsifier.of(network, ip.Reference(x(200, 6), divergence=divergence), ip.Sparsity(0.5)).kept
    theta = network.start if theta is None else theta
    frame = NaturalGradient(metric).frame(network, theta, kept.batches)
    return compensation(network, kept, frame, theta, support), network, kept, frame


def left():
    """Of two rows of six weights, four stay in the first and three in the second."""
    return torch.tensor([1, 1, 0, 1, 1, 0, 0, 1, 0, 1, 1, 0]).bool()


def regression(model, kept):
    """The least squares of the kept outputs on the inputs that stay, row by row, from the metric's rows."""
    inputs, weights = torch.cat([batch.inputs for batch in kept.batches]), []
    for row, stays in zip(model.weight.detach(), left().view(2, 6)):
        found = torch.zeros(6, dtype=torch.float64)
        found[stays] = torch.linalg.lstsq(inputs[:, stays], inputs @ row).solution
        weights.append(found)
    return torch.cat(weights)


def test_of_a_linear_layer_it_is_least_squares_on_the_inputs_that_stay():
    point, _, kept, _ = made_up(linear(), Compensation(50, 1e-9), left())
    assert torch.allclose(point, regression(linear(), kept), atol=1e-5)
    assert bool((point[~left()] == 0).all())


def test_the_gradient_takes_back_what_went_wrong_before():
    torch.manual_seed(1)
    wrong = linear().weight.detach().flatten() + 0.3 * torch.randn(12).double()
    point, _, kept, _ = made_up(linear(), Compensation(50, 1e-9), left(), wrong)
    assert torch.allclose(point, regression(linear(), kept), atol=1e-5)  # of the kept outputs, not of the wrong ones


def test_the_move_solves_the_damped_system():
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(6, 5), nn.Tanh(), nn.Linear(5, 3)).double()
    theta = Network(model).start
    support = torch.rand(len(theta), generator=torch.Generator().manual_seed(0)).gt(0.1)  # little goes: the whole step
    point, network, kept, frame = made_up(model, Compensation(200, 0.5), support, divergence="hellinger")
    move, metric = (point - theta) * support, Exact(network, theta, kept.batches)
    left_over = metric.mv(move) + 0.5 * frame.damping * move - metric.mv(theta * ~support)
    assert float((left_over * support).norm()) < 1e-5 * float(metric.mv(theta * ~support).norm())


def test_it_never_leaves_more_drift_than_it_found():
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(6, 5), nn.Tanh(), nn.Linear(5, 3)).double()
    for parameter in model.parameters():
        parameter.data *= 8  # far from linear
    for seed in range(5):
        count = sum(p.numel() for p in model.parameters())
        support = torch.rand(count, generator=torch.Generator().manual_seed(seed)).gt(0.6)
        point, network, kept, _ = made_up(model, Compensation(20, 1e-4), support, divergence="hellinger")
        assert kept.drift(point).metric <= kept.drift(network.start * support).metric


def test_a_path_keeps_more_than_with_the_factors_alone_and_ends_exactly_sparse():
    found = {}
    for corrector in (Compensation(), None):
        torch.manual_seed(0)
        model = nn.Sequential(nn.Linear(4, 12), nn.Tanh(), nn.Linear(12, 3)).double()
        for parameter in model.parameters():
            parameter.data *= 3
        before = [p.detach().clone() for p in model.parameters()]
        path = ip.trace(model, ip.Reference(x(400, 4)), ip.Sparsity(0.6, score="metric"), 1.0, 12, corrector=corrector)
        assert path.status == "converged"
        theta = path.waypoints[-1].theta
        assert int((theta[prunable(path.network.space)] == 0).sum()) == round(0.6 * 84)
        assert all(torch.equal(a, b) for a, b in zip(before, model.parameters()))
        found[corrector] = path.drift
    assert found[Compensation()] < 0.6 * found[None]


@pytest.mark.parametrize("score", ["magnitude", "metric"])
@pytest.mark.parametrize("pattern", ["unstructured", "2:4", "channels"])
def test_every_pattern_and_score(pattern, score):
    objective = ip.Sparsity(0.5, pattern, score=score)
    torch.manual_seed(0)
    model = mlp(16)
    drifts = [ip.trace(model, ip.Reference(x(200, 4)), objective, 1.0, 6, corrector=corrector).drift
              for corrector in (Compensation(), Recovery(1, 8, 1e-12))]  # fmt: skip
    assert drifts[0] < drifts[1]


@pytest.mark.parametrize("name", ["conv_bn", "attention", "grouped"])
def test_other_networks(name):
    case = build(name)
    kept, objective = case.reference(), ip.Sparsity(0.5, score="metric")
    path = ip.trace(case.model, kept, objective, 0.9, 6, corrector=Compensation(10))
    assert path.status == "converged"
    assert sparsity(path.network.space, path.waypoints[-1].theta) == pytest.approx(0.5, abs=0.02)


@pytest.mark.parametrize("examples", [0, 20])
def test_memories_with_and_without_rows(examples):
    model = mlp(12)
    memory = ip.Memory(examples=examples, factors=True).remember(model, x(200, 4))
    objective = ip.Sparsity(0.4, score="metric")
    path = ip.trace(model, memory, objective, 0.5, 8, corrector=Compensation())
    assert path.status == "converged"
    assert path.drift < ip.trace(model, memory, objective, 0.5, 8, corrector=Recovery(1, 8, 1e-12)).drift


def test_it_resumes_to_the_bit(tmp_path, monkeypatch):
    torch.manual_seed(0)
    model = mlp(12)

    def traced(**more):
        return ip.trace(model, ip.Reference(x(100, 4)), ip.Sparsity(0.6, score="metric"), 0.5, 8,
                        corrector=Compensation(), **more)  # fmt: skip

    whole = traced()
    killed(lambda: traced(run=tmp_path / "cut"), monkeypatch, 5)
    resumed = traced(run=tmp_path / "cut", resume=True)
    assert torch.equal(resumed.waypoints[-1].load(resumed.network), whole.waypoints[-1].theta)
    assert len(resumed.history) == len(whole.history)


def test_bad_input_is_refused():
    with pytest.raises(ValueError, match=r"damping must be > 0 \(the exact metric is singular\), got 0"):
        Compensation(damping=0)
    with pytest.raises(ValueError, match="iterations"):
        Compensation(0)
    with pytest.raises(TypeError, match=r"Compensation corrects a trace whose only objective is a Sparsity"):
        ip.trace(mlp(), None, ip.Task(x(8, 4), torch.zeros(8).long()), corrector=Compensation())
    with pytest.raises(TypeError, match=r"Compensation needs a direction whose metric is one of .* got 'gram'"):
        ip.trace(mlp(), ip.Reference(x(20, 4)), ip.Sparsity(0.5), corrector=Compensation(),
                 direction=NaturalGradient("gram"))  # fmt: skip
    with pytest.raises(TypeError, match=r"Recovery or Compensation, not by Multiplier"):
        ip.trace(mlp(), ip.Reference(x(20, 4)), ip.Sparsity(0.5), corrector=Multiplier())
