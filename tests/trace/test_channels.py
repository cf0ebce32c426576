"""A path along the fraction of the weights that goes with whole units."""

import itertools

import pytest
import torch
from torch import nn

import isopath as ip
from interruption import killed
from isopath.network import Network
from isopath.objectives import channels, prunable, sparsity
from isopath.symmetry import Units, symmetries
from isopath.trace import Recovery
from isopath.trace.sparsifier import PROBED, REFRESH, Sparsifier
from networks import build, mlp, x

QUICK = Recovery(steps=4, batch_size=16, rate=2e-3)


def net(width=12):
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(4, width), nn.Tanh(), nn.Linear(width, width), nn.ReLU(), nn.Linear(width, 3))


def seeded():
    """With outputs that are not small."""
    model = net(8)
    for parameter in model.parameters():
        parameter.data *= 3
    return model


def trace(fraction=0.5, model=None, tolerance=0.5, steps=16, rows=200, score="magnitude", scope="global", **more):
    objective = ip.Sparsity(fraction, pattern="channels", score=score, scope=scope)
    more = {"corrector": QUICK, **more}
    return ip.trace(model or net(), ip.Reference(x(rows, 4).float()), objective, tolerance, steps, **more)


def units_of(model, width=4):
    inputs = x(2, width).float()
    return Units.of(model, inputs, symmetries(model, inputs))


@pytest.mark.parametrize("score", ["magnitude", "metric"])
def test_whole_units_go_and_the_smaller_module_is_the_network(score):
    path = trace(score=score)
    assert path.status == "converged" and path.drift <= 0.5
    model, inputs = path.model(), x(64, 4).float()
    small = ip.compact(model, inputs)
    assert torch.allclose(small(inputs), model(inputs), atol=1e-5)
    theta, weights = path.waypoints[-1].theta, prunable(path.network.space)
    assert sparsity(path.network.space, theta) >= 0.5
    assert sum(p.numel() for p in small.parameters() if p.ndim >= 2) == int((theta[weights] != 0).sum())
    for layer in (small[0], small[2]):
        assert bool((layer.weight != 0).any(1).all())


def test_pace_and_rate_come_back_after_a_refusal():
    objective, kept = ip.Sparsity(0.3, pattern="channels"), ip.Reference(x(200, 4).float())
    recovery = Recovery(steps=8, batch_size=16, rate=2e-3)
    states = list(ip.steps(seeded(), kept, objective, 0.04, 24, corrector=recovery))
    refused = [k for k, state in enumerate(states) if state.attempt and not state.accepted]
    assert refused and states[refused[-1]].rate < 1 and states[refused[-1]].correction < 1
    assert states[-1].status == "converged" and states[-1].rate == states[-1].correction == 1


def test_every_waypoint_has_whole_units_and_none_comes_back():
    path = trace(keep_waypoints="all")
    units = units_of(net())
    sizes = [channels.magnitudes(units, path.network.space, waypoint.theta) for waypoint in path.waypoints]
    for before, after in itertools.pairwise(sizes):
        assert all(bool((after[key][before[key] == 0] == 0).all()) for key in before)
    gone = [sum(int((values == 0).sum()) for values in found.values()) for found in sizes]
    assert gone[0] == 0 and gone[-1] > 4
    for waypoint, found in zip(path.waypoints, sizes):
        kept = {key: values > 0 for key, values in found.items()}
        model = path.network.model(waypoint.theta)
        for name, mask in units.entries(kept).items():
            assert bool((dict(model.named_parameters())[name][~mask] == 0).all())


def test_channels_go_every_few_rounds_and_what_stays_recovers_between():
    path = trace(steps=24, keep_waypoints="all")
    fractions = [1 - row["objective"] for row in path.history if row["accepted"]]
    rises = [i for i, (a, b) in enumerate(itertools.pairwise([0.0, *fractions])) if b > a]
    assert len(rises) > 1 and all(i % REFRESH == 0 for i in rises)


def test_the_channel_whose_loss_is_measured_least_goes_first():
    model, inputs = net(), x(400, 4).float()
    objective = ip.Sparsity(0.05, pattern="channels", score="metric")
    tracer = Sparsifier.of(Network(model), ip.Reference(inputs), objective, tolerance=1.0, seed=0)
    state = tracer.start()
    _, support = tracer._pruned(state, 0.05)
    units, found = units_of(model), []
    for key, size in units.sizes.items():
        for unit in range(size):
            point = channels.emptied(units, tracer.network.space, tracer.network.start, key, unit)
            assert bool((point == 0).any())
            found.append((tracer._rows.drift(point, 0, PROBED), point))
    least = min(found, key=lambda pair: pair[0])[1]
    assert torch.equal(least == 0, ~support)


def test_a_resumed_run_ends_where_the_unbroken_one_does(tmp_path, monkeypatch):
    whole = trace(score="metric")
    # between two rounds in which channels go
    killed(lambda: trace(score="metric", run=tmp_path / "cut"), monkeypatch, 6)
    resumed = trace(score="metric", run=tmp_path / "cut", resume=True)
    assert torch.equal(resumed.waypoints[-1].load(resumed.network), whole.waypoints[-1].theta)


def test_each_group_gives_its_share():
    small = ip.compact(trace(0.7, scope="layer").model(), x(2, 4).float())
    assert small[0].out_features < 7 and abs(small[0].out_features - small[2].out_features) <= 1


def test_one_unit_stays_in_each_group_and_more_is_refused_before_anything_is_done():
    with pytest.raises(ValueError, match=r"channels but one of each kind 96.5% .* zero, got a fraction of 97.0%"):
        trace(0.97)
    small = ip.compact(trace(0.96, tolerance=9.0).model(), x(2, 4).float())
    assert [small[0].out_features, small[2].out_features] == [1, 1]


def test_the_fraction_is_of_all_weights_and_no_more_than_a_unit_above():
    space, model = Network(net()).space, net()
    units = units_of(model)
    scores = channels.magnitudes(units, space, Network(model).start)
    count = int(prunable(space).sum())
    for fraction in (0.0, 0.1, 0.37, 0.8):
        gone = ~channels.support(units, space, scores, fraction, by_layer=False) & prunable(space)
        assert fraction * count - 0.5 <= int(gone.sum()) <= fraction * count + 28  # a row and a column of twelve, and 4


@pytest.mark.parametrize("scope", ["global", "layer"])
@pytest.mark.parametrize("multiple", [4, 5, 7])
def test_what_stays_is_a_multiple_at_every_waypoint(multiple, scope):
    objective = ip.Sparsity(0.5, "channels", scope, multiple=multiple)
    path = ip.trace(net(), ip.Reference(x(200, 4).float()), objective, 0.5, 24, corrector=QUICK, keep_waypoints="all")
    assert path.status == "converged" and sparsity(path.network.space, path.point()) >= 0.5
    seen = set()
    for step in path.steps:
        small = ip.compact(path.model(step), x(2, 4).float())
        seen |= {small[0].out_features, small[2].out_features}
    assert all(width == 12 or (width > 0 and width % multiple == 0) for width in seen) and len(seen) > 1


def test_groups_with_fewer_units_than_the_multiple_stay_whole():
    units = units_of(net())
    space, scores = Network(net()).space, channels.magnitudes(units, Network(net()).space, Network(net()).start)
    assert bool(channels.support(units, space, scores, 1.0, False, multiple=16).all())
    whole = channels.support(units, space, scores, 1.0, False, multiple=12)
    assert bool(whole.all())
    left = channels.support(units, space, scores, 1.0, False, multiple=8)
    assert int((space.unflatten(left.double())["0.bias"] != 0).sum()) == 8


def test_max_finds_how_few_the_tolerance_allows():
    loose, tight = (trace("max", seeded(), tolerance=t, rows=80, steps=80, score="metric") for t in (0.05, 0.002))
    assert loose.status == tight.status == "converged" and tight.drift <= 0.002
    assert "broke the tolerance" in tight.reason and "no more can go" in trace("max", tolerance=9.0, steps=60).reason
    widths = [sum(p.numel() for p in ip.compact(p.model(), x(2, 4).float()).parameters()) for p in (loose, tight)]
    assert widths[0] < widths[1]


@pytest.mark.parametrize("name", ["conv_bn", "encoder"])
def test_other_networks(name):
    case = build(name)
    objective = ip.Sparsity(0.2, pattern="channels", score="metric")
    path = ip.trace(case.model, case.reference(), objective, 0.9, 6, corrector=QUICK)
    assert path.status == "converged"
    before = sum(p.numel() for p in case.model.parameters())
    small = ip.compact(path.model(), case.inputs[:2]).eval()
    assert sum(p.numel() for p in small.parameters()) < before
    assert torch.allclose(small(case.inputs), path.model().eval()(case.inputs), atol=1e-6)


def test_weights_that_do_not_move_keep_their_units():
    path = trace(0.3, trainable=["0.*", "2.*"])
    small = ip.compact(path.model(), x(2, 4).float())
    assert small[0].out_features < 12 and small[2].out_features == 12


class Vectors(nn.Module):
    """Units whose only parameters are vectors, beside some that have weights."""

    def __init__(self):
        super().__init__()
        self.up, self.down = nn.Parameter(torch.randn(6)), nn.Parameter(torch.randn(6))
        self.first, self.second = nn.Linear(4, 8), nn.Linear(8, 3)

    def forward(self, x):
        alone = ((x.sum(1, keepdim=True) * self.up).tanh() * self.down).sum(1, keepdim=True)
        return self.second(self.first(x).relu()) + alone


def test_units_without_weights_stay():
    torch.manual_seed(0)
    model, inputs = Vectors(), x(2, 4).float()
    units = Units.of(model, inputs, symmetries(model, inputs))
    assert sorted(units.sizes.values()) == [6, 8]
    path = trace(0.5, model)
    small = ip.compact(path.model(), inputs)
    assert small.first.out_features == 4 and small.up.shape == small.down.shape == (6,)
    with torch.no_grad():
        model.up[2] = model.down[2] = 0
    assert ip.compact(model, inputs).up.shape == (5,)


def test_bad_input_is_refused():
    with pytest.raises(ValueError, match=r"channels are found by running the network on a few inputs, and keep= has"):
        ip.trace(net(), None, ip.Sparsity(0.3, pattern="channels"), max_steps=2)
    with pytest.raises(ValueError, match=r"the model has no channel that can go: 0 units"):
        ip.trace(nn.Linear(4, 3), ip.Reference(x(20, 4).float()), ip.Sparsity(0.3, pattern="channels"), max_steps=2)
    with pytest.raises(ValueError, match=r"pattern='channels' .* need a trace whose only objective is the sparsity"):
        task = ip.Task(x(8, 4), torch.zeros(8).long())
        ip.trace(mlp(), None, task + ip.Sparsity(0.3, pattern="channels"), max_steps=2)
    with pytest.raises(ValueError, match=r"multiple counts channels, got pattern='unstructured'"):
        ip.Sparsity(0.3, multiple=8)
    with pytest.raises(ValueError, match=r"multiple must be a whole number >= 1, got 0"):
        ip.Sparsity(0.3, "channels", multiple=0)
    with pytest.raises(ValueError, match=r"channels but 8 of each kind"):
        ip.trace(net(), ip.Reference(x(20, 4).float()), ip.Sparsity(0.9, "channels", multiple=8), max_steps=2)
