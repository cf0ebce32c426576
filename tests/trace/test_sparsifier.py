import itertools

import pytest
import torch
from torch import nn

import isopath as ip
from interruption import killed
from isopath.geometry.saliency import saliency
from isopath.network import Network
from isopath.objectives import prunable, sparsity
from isopath.trace import NaturalGradient, NullSpace, Penalised, Recovery
from isopath.trace.recovery import Rows
from isopath.trace.sparsifier import Sparsifier
from networks import build, mlp, x


def seeded():
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(4, 12), nn.Tanh(), nn.Linear(12, 3)).double()
    for parameter in model.parameters():
        parameter.data *= 3
    return model


QUICK = Recovery(steps=4, batch_size=16, rate=2e-3)


def trace(fraction=0.6, model=None, rows=200, tolerance=0.05, steps=12, recovery=QUICK, score="metric", **more):
    sparse = {name: more.pop(name) for name in ("pattern", "scope") if name in more}
    model = seeded() if model is None else model
    objective = ip.Sparsity(fraction, score=score, **sparse)
    return ip.trace(model, ip.Reference(x(rows, 4)), objective, tolerance, steps, corrector=recovery, **more)


def zeros(theta, network):
    return sparsity(network.space, theta)


@pytest.mark.parametrize("score", ["magnitude", "metric"])
def test_it_ends_exactly_sparse_within_the_tolerance_and_says_so(score):
    path = trace(score=score)
    assert path.status == "converged" and path.reason.startswith("59.5% of the weights are zero, as asked.")
    assert path.drift <= 0.05
    theta = path.waypoints[-1].theta
    assert int((theta[prunable(path.network.space)] == 0).sum()) == 50  # of 84, rounded
    assert path.network.start.ne(0).all()


def test_every_waypoint_is_sparse_and_none_gives_back_what_is_gone():
    path = trace(keep_waypoints="all")
    gone = [waypoint.theta == 0 for waypoint in path.waypoints]
    assert all(bool((b | ~a).all()) for a, b in itertools.pairwise(gone))
    fractions = [zeros(waypoint.theta, path.network) for waypoint in path.waypoints]
    assert fractions[0] == 0 and fractions[-1] == pytest.approx(50 / 84) and len(set(fractions)) > 4
    assert all(waypoint.drift <= 0.05 for waypoint in path.waypoints)
    assert [row["objective"] for row in path.history if row["accepted"]][-1] == pytest.approx(1 - fractions[-1])


def test_recovery_brings_the_drift_down():
    alone = trace(0.7, recovery=None, tolerance=1.0, score="magnitude")
    recovered = trace(0.7, tolerance=1.0, score="magnitude", steps=30, recovery=Recovery(steps=20, batch_size=32))
    assert recovered.drift < 0.5 * alone.drift


def test_those_that_stay_make_up_for_those_that_go():
    network = Network(mlp(12))
    reference = ip.Reference(x(300, 4), divergence="squared_error")
    tracer = Sparsifier.of(network, reference, ip.Sparsity(0.3, score="metric"), tolerance=9.0, recovery=None)
    state = tracer._measured(tracer.start())
    theta, support = tracer._pruned(state, 0.3)
    assert torch.equal(theta == 0, ~support)
    bare = network.start * support
    kept = tracer.kept
    assert kept.drift(theta).judged < 0.8 * kept.drift(bare).judged
    metric, damping = state.frame.metric, state.frame.damping
    stationary = metric.mv(theta - network.start) + damping * (theta - bare)  # on what stays
    assert float((stationary * support).norm()) < 0.02 * float((metric.mv(network.start - bare) * support).norm())


def test_what_moves_the_outputs_least_goes_first():
    network = Network(mlp(12))
    tracer = Sparsifier.of(network, ip.Reference(x(300, 4)), ip.Sparsity(0.3, score="metric"), tolerance=1.0)
    state = tracer._measured(tracer.start())
    _, support = tracer._pruned(state, 0.3)
    cost, weights = saliency(state.frame.metric, network.start, state.frame.damping), prunable(network.space)
    assert cost[weights & ~support].max() <= cost[weights & support].min()
    assert not torch.equal(support, ip.Sparsity(0.3).support(network, network.start))


def test_max_finds_how_sparse_the_tolerance_allows():
    loose, tight = (trace("max", tolerance=tolerance, steps=80) for tolerance in (0.05, 0.002))
    for path in (loose, tight):
        assert path.status == "converged" and "more, however few at a time, broke the tolerance" in path.reason
        assert path.drift <= path.tolerance
    assert zeros(loose.waypoints[-1].theta, loose.network) > zeros(tight.waypoints[-1].theta, tight.network) > 0


def test_a_tolerance_too_tight_is_not_reached_and_says_how_far_it_came():
    path = trace(0.95, tolerance=1e-5, steps=20)
    assert path.status == "target_not_reached" and "of the weights are zero" in path.reason
    assert path.drift <= 1e-5 and any(not row["accepted"] for row in path.history)


@pytest.mark.parametrize("scope", ["global", "layer"])
def test_two_of_four(scope):
    model = nn.Sequential(nn.Linear(4, 8), nn.Tanh(), nn.Linear(8, 3)).double()
    path = trace(0.5, model=model, pattern="2:4", scope=scope, tolerance=0.3)
    assert path.status == "converged"
    for layer in (path.model()[0], path.model()[2]):
        assert layer.weight.view(-1, 4).eq(0).sum(1).eq(2).all() and layer.bias.ne(0).all()


def test_each_layer_gives_its_share():
    model = trace(0.5, scope="layer", tolerance=0.3).model()
    assert [float((layer.weight == 0).double().mean()) for layer in (model[0], model[2])] == [0.5, 0.5]


def test_the_same_seed_gives_the_same_bits_and_a_resumed_run_ends_where_the_unbroken_one_does(tmp_path, monkeypatch):
    whole = trace(run=tmp_path / "whole")
    again = trace()
    assert torch.equal(whole.waypoints[-1].load(whole.network), again.waypoints[-1].theta)

    killed(lambda: trace(run=tmp_path / "cut"), monkeypatch, 7)
    resumed = trace(run=tmp_path / "cut", resume=True)
    assert torch.equal(resumed.waypoints[-1].load(resumed.network), again.waypoints[-1].theta)
    assert len(resumed.history) == len(again.history)


def test_steps_read_no_row_that_judges_and_every_other_once_a_pass():
    network, inputs = Network(mlp()), x(150, 4)
    reference = ip.Reference(inputs, sample=120)
    kept = Sparsifier.of(network, reference, ip.Sparsity(0.5), seed=3).kept
    drawn = Rows(network, kept, 3)._parts[0]
    judged = torch.cat([batch.inputs for batch in kept.parts[0].check_part.batches])
    read = torch.cat([drawn.batch(step, 40, 3).inputs for step in range(3)])
    assert len(judged) == 30 and len(read) == 120 and len(read.unique(dim=0)) == 120
    assert not (read[:, None] == judged).all(-1).any()
    assert not torch.equal(drawn.batch(3, 40, 3).inputs, read[:40])  # the next pass has another order
    assert torch.equal(drawn.batch(1, 40, 3).inputs, read[40:80])  # and a step always the same rows
    assert not torch.equal(drawn.batch(1, 40, 4).inputs, read[40:80])


def test_a_step_of_recovery_costs_one_gradient_of_its_batch():
    network = Network(mlp())
    rows = Rows(network, Sparsifier.of(network, ip.Reference(x(150, 4)), ip.Sparsity(0.5)).kept, 0)
    before = network.evaluations
    rows.gradient(network.start, 0, 32)
    assert network.evaluations - before == 32


@pytest.mark.parametrize("name", ["conv_bn", "attention", "grouped"])
def test_other_networks(name):
    case = build(name)
    path = ip.trace(case.model, case.reference(), ip.Sparsity(0.5, score="metric"), 0.9, 6, corrector=QUICK)
    assert path.status == "converged"
    assert zeros(path.waypoints[-1].theta, path.network) == pytest.approx(0.5, abs=0.02)


def test_a_memory_of_factors_alone():
    model = mlp(12)
    memory = ip.Memory(examples=0, factors=True).remember(model, x(200, 4))
    path = ip.trace(model, memory, ip.Sparsity(0.4, score="metric"), 0.1, 8, corrector=QUICK)
    assert path.status == "converged" and path.drift_kind == "estimated"


@pytest.mark.parametrize("direction", [Penalised(), NullSpace(), NaturalGradient("diagonal")])
def test_any_direction_whose_metric_has_a_diagonal(direction):
    assert trace(0.3, direction=direction, tolerance=0.3).status == "converged"


def test_a_round_tried_again_reads_other_rows(monkeypatch):
    read, gradient = [], Rows.gradient

    def watched(self, theta, step, size, network=None):
        read.append(step)
        return gradient(self, theta, step, size, network)

    monkeypatch.setattr(Rows, "gradient", watched)
    path = trace(0.95, tolerance=1e-5, steps=20)
    assert any(not row["accepted"] for row in path.history)
    assert read == list(range(QUICK.steps * len(path.history)))


def test_bad_input_is_refused():
    ip.Sparsity(2 / 3, pattern="1:3")  # 1 - 1/3 is not 2/3 in floating point
    with pytest.raises(ValueError, match=r"'0.weight' has 4 weights for each output, which 1:3 does not divide"):
        trace(1 - 1 / 3, pattern="1:3")
    with pytest.raises(ValueError, match=r"2:4 makes 0.5 of the weights zero, got 0.6"):
        ip.Sparsity(0.6, pattern="2:4")
    with pytest.raises(ValueError, match=r"'channels' or 'n:m' with 0 < n < m, got '4:2'"):
        ip.Sparsity(0.5, pattern="4:2")
    with pytest.raises(ValueError, match=r"score must be one of 'magnitude', 'metric', got 'size'"):
        ip.Sparsity(0.5, score="size")
    with pytest.raises(ValueError, match=r"need a trace whose only objective is the sparsity"):
        ip.trace(mlp(), None, ip.Task(x(8, 4), torch.zeros(8).long()) + ip.Sparsity("max"), max_steps=2)
    with pytest.raises(TypeError, match=r"score='metric' needs a direction whose metric is one of .* got 'gram'"):
        trace(direction=NaturalGradient("gram"))
    with pytest.raises(TypeError, match=r"Recovery corrects a trace whose only objective is a Sparsity"):
        ip.trace(mlp(), None, ip.Task(x(8, 4), torch.zeros(8).long()), corrector=QUICK)
    with pytest.raises(ValueError, match=r"steps and batch_size must be >= 1, rate > 0"):
        Recovery(steps=0)
    with pytest.raises(ValueError, match=r"there is nothing to make sparse"):
        trace(trainable="*.bias")


@pytest.mark.parametrize("fraction", [0.3, 0.35, 0.4, 0.6])
def test_each_layers_own_fraction_is_reached_whatever_it_rounds_to(fraction):
    torch.manual_seed(0)
    layers = [nn.Linear(3, 3), *(m for _ in range(5) for m in (nn.Tanh(), nn.Linear(3, 3)))]
    model = nn.Sequential(nn.Linear(4, 3), nn.Tanh(), *layers).double()
    path = trace(fraction, model, scope="layer", score="magnitude", tolerance=1e6)
    zero = [int((p == 0).sum()) for p in path.model().parameters() if p.ndim == 2]
    assert zero == [round(fraction * p.numel()) for p in model.parameters() if p.ndim == 2]
    assert path.status == "converged" and "as asked" in path.reason


def test_neither_a_norms_parameters_nor_biases_of_any_shape_are_weights():
    model = nn.Sequential(nn.Unflatten(1, (2, 2)), nn.LayerNorm([2, 2]), nn.Flatten(), nn.Linear(4, 3)).double()
    attention = nn.MultiheadAttention(4, 2, add_bias_kv=True)
    assert Network(model).space.weights == {"3.weight"}
    assert Network(attention).space.weights == {"in_proj_weight", "out_proj.weight"}
    path = trace(0.5, model, score="magnitude", tolerance=1e6)
    assert bool((path.model()[1].weight != 0).all())
    assert zeros(path.point(), path.network) == 0.5


@pytest.mark.parametrize("old", [False, True])
def test_a_parametrized_weight_is_refused_and_the_remedy_works(old):
    torch.manual_seed(0)
    layer = nn.Linear(4, 8).double()
    layer = nn.utils.weight_norm(layer) if old else nn.utils.parametrizations.weight_norm(layer)
    model = nn.Sequential(layer, nn.Tanh(), nn.Linear(8, 3).double())
    with pytest.raises(ValueError, match=r"zeros are not the weight's; take it off the layer first, torch\.nn"):
        trace(0.5, model)
    with pytest.raises(ValueError, match="zeros are not the weight's"):
        ip.pack(model, {"a": ip.Task(x(9, 4), torch.arange(9) % 3)})
    if old:
        nn.utils.remove_weight_norm(layer)
    else:
        nn.utils.parametrize.remove_parametrizations(layer, "weight")
    assert trace(0.5, model, score="magnitude", tolerance=1e6).status == "converged"


def test_patterns_of_transposed_convolutions_are_refused_and_one_row_finds_channels():
    layers = nn.Unflatten(1, (4, 1)), nn.ConvTranspose1d(4, 4, 2), nn.ReLU(), nn.Flatten(), nn.Linear(8, 3)
    model = nn.Sequential(*layers)
    with pytest.raises(ValueError, match=r"'1\.weight' is the weight of a transposed convolution"):
        trace(0.5, model.double(), pattern="2:4")
    with pytest.raises(ValueError, match=r"'1\.weight' is the weight of a transposed convolution"):
        ip.pack(model, {"a": ip.Task(x(9, 4), torch.arange(9) % 3)}, pattern="2:4")
    path = trace(0.3, rows=1, pattern="channels", score="magnitude", tolerance=1e6)
    assert path.status == "converged" and "too small to split" in path.reason


def test_a_budget_that_runs_out_is_named():
    path = trace(0.9, tolerance=1e-3, steps=200, max_evaluations=1000.0)
    assert path.status == "target_not_reached" and "gradient evaluations allowed are spent" in path.reason
    assert "larger max_evaluations" in path.reason
