import itertools

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

import isopath as ip
from isopath.geometry.reference import Drift, KeptAll
from isopath.network import Network
from isopath.trace.controller import Backtracking
from isopath.trace.state import State
from isopath.trace.trajectory import Keeper, Trajectory
from networks import mlp, x

MODEL = mlp()


def traced(**settings) -> Trajectory:
    task = ip.Task(x(40, 4), torch.arange(40) % 3, batch_size=16)
    return ip.trace(MODEL, ip.Reference(x(5, 4)), task, 0.003, **{"max_steps": 20, "keep_waypoints": "all", **settings})


PATH = traced()


def test_its_ends_are_exact_and_step_zero_is_the_start():
    start = Network(MODEL).start
    assert torch.equal(PATH(0.0), start) and torch.equal(PATH.point(0), start)
    assert torch.equal(PATH(1.0), PATH.point()) and torch.equal(PATH.point(PATH.steps[-1]), PATH.point())
    assert torch.equal(Network(PATH.model(0)).start, start)


@settings(max_examples=25)
@given(st.floats(0, 1), st.floats(0, 1))
def test_it_has_constant_speed(s, t):
    assert float((PATH(s) - PATH(t)).norm()) <= abs(s - t) * PATH.length() + 1e-9
    assert torch.equal(PATH(t), PATH(t))


def test_it_passes_through_its_waypoints_at_their_share_of_the_length():
    total = PATH.waypoints[-1].length
    assert PATH.length() == pytest.approx(total)
    for step, waypoint in zip(PATH.steps, PATH.waypoints):
        torch.testing.assert_close(PATH(min(1.0, waypoint.length / total)), PATH.point(step))
    assert len(PATH) == len(PATH.steps) == len(PATH.chain().points) > 3


def test_the_points_handed_out_by_calls_are_copies():
    PATH(0.0).zero_()
    PATH(1.0).zero_()
    assert PATH.point(0).any() and PATH.point().any()


@pytest.mark.parametrize(("count", "since"), [(1, 0.0), (2, 0.0), (2, 0.5), (3, 1 / 3)])
def test_its_ensemble_has_kept_waypoints_alone_evenly_from_a_t_on_to_the_end(count, since):
    found = [Network(model).start for model in PATH.ensemble(count, since).models]
    kept = [next(k for k, step in enumerate(PATH.steps) if torch.equal(PATH.point(step), theta)) for theta in found]
    there = [k for k, w in enumerate(PATH.waypoints) if w.length >= since * PATH.waypoints[-1].length]
    assert len(kept) == count and kept[-1] == len(PATH) - 1 and kept[0] == (there[0] if count > 1 else len(PATH) - 1)
    gaps = [b - a for a, b in itertools.pairwise(kept)]
    assert not gaps or (min(gaps) >= 1 and max(gaps) - min(gaps) <= 1)


def test_its_ensemble_is_one_of_all_who_are_there_or_says_how_many_are():
    whole = PATH.ensemble(len(PATH), mean="logits")
    assert whole.mean == "logits" and torch.equal(Network(whole.models[0]).start, PATH.point(0))
    with pytest.raises(ValueError, match=rf"from t = 1 on, got 1 of the {len(PATH)} kept ones; keep_waypoints"):
        PATH.ensemble(2, since=1.0)
    with pytest.raises(ValueError, match=r"t in \[0, 1\], got 1.5"):
        PATH.ensemble(2, since=1.5)


def test_its_length_under_a_metric_is_what_the_outputs_move():
    metric = ip.Reference(x(5, 4)).metric(PATH.model(0))
    direct = metric.norm(PATH(1.0) - PATH(0.0))
    assert PATH.length(metric) >= float(direct) and PATH.length(metric) < PATH.length()


def test_a_step_that_was_not_kept_names_the_nearest():
    with pytest.raises(KeyError, match=r"step 99 was not kept; the nearest kept one is 20 \(keep_waypoints="):
        PATH.model(99)


def test_copy_to_writes_in_place():
    model = mlp()
    pointer = model[0].weight.data_ptr()
    PATH.copy_to(model)
    assert model[0].weight.data_ptr() == pointer and torch.equal(Network(model).start, PATH.point())
    PATH.copy_to(model, step=0)
    assert torch.equal(Network(model).start, Network(MODEL).start)


def test_it_says_how_it_ended():
    text = repr(PATH)
    assert PATH.status in text and PATH.reason in text and "measured" in text and "steps=20" in text


@pytest.mark.parametrize("count", [2, 3, 5, "all"])
def test_as_many_waypoints_are_kept_as_asked_the_first_and_the_last_always(count):
    path = traced(keep_waypoints=count, controller=Backtracking(stride=1), max_steps=40)
    assert path.steps[0] == 0 and path.steps[-1] == 40
    assert len(path) == 41 if count == "all" else len(path) <= count
    assert path.steps == sorted(set(path.steps))


@settings(max_examples=30)
@given(st.lists(st.floats(0.01, 1.0), min_size=1, max_size=120), st.integers(2, 12))
def test_waypoints_are_thinned_evenly_by_length(lengths, count):
    keeper, walked = Keeper(KeptAll(), 0.01, count), 0.0
    for step, length in enumerate([0.0, *lengths]):
        walked += length
        state = State(torch.tensor([walked]), step=step, length=walked, parts=Drift(0, 0))
        keeper.offer(state)
    keeper.offer(state, last=True)
    kept = [w.length for w in keeper.waypoints]
    assert len(kept) <= count and kept[0] == 0 and kept[-1] == walked
    gaps = [b - a for a, b in itertools.pairwise(kept)]
    assert max(gaps) <= 4 * walked / (len(kept) - 1) + 2 * max(lengths)


def test_a_last_state_of_a_known_step_replaces_it():
    keeper = Keeper(KeptAll(), 0.01)
    for theta, last in ((1.0, False), (2.0, False), (3.0, True)):
        keeper.offer(State(torch.tensor([theta]), step=4), last)
    assert [float(w.theta) for w in keeper.waypoints] == [3.0]


class Sampled:
    """Something kept whose whole drift costs three evaluations and is one of those given."""

    kind = "sampled"

    def __init__(self, network, drifts):
        self.network, self.drifts = network, iter(drifts)

    def whole_drift(self, theta):
        self.network.evaluations += 3
        return next(self.drifts)


def test_whole_drifts_are_evaluated_counted_and_refused_once_a_point():
    network = Network(MODEL)
    keeper = Keeper(Sampled(network, [0.0, 0.005, 0.02]), 0.01)
    states = [State(torch.tensor([float(i)]), step=i, length=float(i), network=network) for i in range(3)]
    for state in states:
        keeper.offer(state)
    assert keeper.offer(states[-1], last=True) is None  # already turned down
    assert [w.drift for w in keeper.waypoints] == [0.0, 0.005]
    assert keeper.refused == 1 and keeper.evaluations == 9


def test_a_trace_counts_the_whole_reference_at_its_waypoints():
    kept, task = x(40, 4), ip.Task(x(40, 4), torch.arange(40) % 3)
    path = ip.trace(MODEL, ip.Reference(kept, sample=10), task, 0.003, max_steps=6)
    assert path.drift_kind == "sampled"
    assert path.evaluations > path.history[-1]["evaluations"]


def test_the_states_of_steps_are_those_that_trace_keeps():
    task = ip.Task(x(40, 4), torch.arange(40) % 3, batch_size=16)
    states = [s for s in ip.steps(MODEL, ip.Reference(x(5, 4)), task, 0.003, max_steps=20) if s.accepted]
    assert [s.step for s in states] == PATH.steps
    for state in states:
        assert torch.equal(state.theta, PATH.point(state.step))
        assert torch.equal(Network(state.model()).start, state.theta)


def test_driving_it_yourself_stops_where_you_leave():
    task = ip.Task(x(40, 4), torch.arange(40) % 3)
    for state in ip.steps(MODEL, None, task):
        if state.step >= 3:
            break
    assert state.status == "running" and state.step >= 3
