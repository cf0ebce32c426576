"""The training of a generator: what it goes down, how it ends, and that it can be broken off."""

import copy

import pytest
import torch
from problems import SMALL, convolved, small, square, task
from torch import nn

import isopath as ip
from isopath.generate.generation import finished, training_of
from isopath.generate.settings import Settings


def training(model=None, given=None, **options):
    return training_of(model or small(), given or task(), Settings(**{**SMALL, "steps": 20, **options}))


def spread(generator):
    return ip.explore(generator, task(seed=1), 8).distance


def test_it_learns_and_more_diversity_takes_the_networks_apart():
    near, far = (ip.generate(small(), task(), d, 400, rate=3e-3, **SMALL) for d in (0.0, 0.5))
    scores = [ip.evaluate(model, task(seed=1)).accuracy for model in far.models(8)]
    assert min(scores) > 0.75
    assert near.status == far.status == "trained"
    assert spread(far) > 1.3 * spread(near)


def test_diversity_is_not_bought_with_trivial_symmetries():
    run = training()
    thetas = run.hypernetwork(run.latents(0)).detach()
    named = run.family.space.unflatten(thetas[1])
    order = torch.randperm(8, generator=torch.Generator().manual_seed(0))
    moved = {"0.weight": 5 * named["0.weight"][order], "0.bias": 5 * named["0.bias"][order],
             "2.weight": named["2.weight"][:, order] / 5, "2.bias": named["2.bias"] + 3}  # fmt: skip
    twin = torch.cat([moved[name].reshape(-1) for name in run.family.space.names])
    others = torch.stack([thetas[0], thetas[1], twin])
    assert float(run._spread(others)) < -3  # two of the three are one network
    assert float(run._spread(others, permuted=False)) > -2
    larger = torch.cat([(factor * part).reshape(-1) for factor, part in zip((5, 5, 0.2, 1), named.values())])
    assert float(run._spread(torch.stack([thetas[0], thetas[1], larger]), permuted=False)) < -3


def test_the_step_goes_down_loss_minus_weighted_spacing():
    run = training(diversity=0.3)
    thetas = run.hypernetwork(run.latents(0))
    expected = float((run._loss(thetas) - 0.3 * run._spread(thetas)).detach())
    row = next(iter(run))
    assert row["objective"] == pytest.approx(expected, rel=1e-6)
    assert row["objective"] == pytest.approx(row["loss"] - 0.3 * row["spacing"], rel=1e-6)


def test_schedules():
    weights = {name: [Settings(1.0, name).weight(t) for t in (0.0, 0.25, 0.5, 1.0)]
               for name in ("constant", "falling", "rising")}  # fmt: skip
    assert weights["constant"] == [1, 1, 1, 1]
    assert weights["falling"] == pytest.approx([1, 0.8536, 0.5, 0], abs=1e-4)
    assert weights["rising"] == [0, 0.5, 1, 1]
    assert Settings(2.0, lambda t: t * t).weight(0.5) == 0.5


def test_broken_off_and_gone_on_with_it_ends_with_the_same_bits():
    whole = training()
    rows = list(whole)
    first = training()
    begun = [next(iter(first)) for _ in range(9)]
    state = {name: tensor.clone() for name, tensor in first.state().items()}
    second = training()
    second.restore(state)
    assert begun + list(second) == rows
    assert all(torch.equal(a, b) for a, b in zip(whole.hypernetwork.parameters(), second.hypernetwork.parameters()))
    assert second.status == "trained"


def test_the_same_seed_gives_the_same_bits_and_nothing_of_the_callers_changes():
    model, given = convolved(), ip.Task(torch.randn(40, 1, 4, 4), torch.randint(3, (40,)), batch_size=16)
    before, modes = copy.deepcopy(model.state_dict()), [m.training for m in model.modules()]
    state = torch.get_rng_state()
    a, b = (ip.generate(model, given, steps=5, seed=3, **SMALL).sample(2) for _ in range(2))
    assert torch.equal(a, b)
    assert not torch.equal(a, ip.generate(model, given, steps=5, seed=4, **SMALL).sample(2))
    assert torch.equal(torch.get_rng_state(), state)
    assert all(torch.equal(before[name], tensor) for name, tensor in model.state_dict().items())
    assert [m.training for m in model.modules()] == modes
    assert all(p.grad is None for p in model.parameters())


def test_without_progress_it_stops_early_and_says_so():
    given = ip.Task(*square(), loss=lambda y, t: 0 * y.sum(-1) + 1.0, batch_size=32)
    run = training(given=given, diversity=0.0, patience=4)
    assert len(list(run)) < 20
    assert run.status == "stationary" and "patience" in run.reason


def test_a_loss_that_is_not_finite_ends_it_with_the_weights_before():
    calls = []

    def broken(y, t):
        calls.append(1)
        return y.sum(-1) * (float("nan") if len(calls) > 3 else 1.0)

    run = training(given=ip.Task(*square(), loss=broken, batch_size=32))
    assert len(list(run)) == 4
    assert run.status == "diverged" and "rate" in run.reason
    assert all(p.isfinite().all() for p in run.hypernetwork.parameters())


def test_an_end_is_an_end_after_a_restoration_too():
    given = ip.Task(*square(), loss=lambda y, t: 0 * y.sum(-1) + 1.0, batch_size=32)
    run = training(given=given, diversity=0.0, patience=4)
    steps = len(list(run))
    again = training(given=given, diversity=0.0, patience=4)
    again.restore(run.state())
    assert again.status == "stationary" and list(again) == [] and again.step == steps


def test_a_weight_that_rises_is_no_lack_of_progress():
    given = ip.Task(*square(), loss=lambda y, t: 0 * y.sum(-1) + 1.0, batch_size=32)
    stops = [len(list(training(given=given, schedule=s, steps=60, patience=25))) for s in ("constant", "rising")]
    assert stops[1] >= stops[0]


def test_a_state_that_was_taken_stays_as_it_is():
    run = training()
    next(iter(run))
    state = run.state()
    before = {name: tensor.clone() for name, tensor in state.items()}
    next(iter(run))
    assert all(torch.equal(before[name], tensor) for name, tensor in state.items())


def test_latents_that_are_looked_at_were_not_trained_on():
    run = training()
    seen = torch.cat([run.latents(k) for k in range(20)])
    made = finished(run, [])
    drawn = torch.cat([made.latents(4, seed) for seed in range(20)])
    assert float(torch.cdist(seen, drawn).min()) > 1e-6


def test_whole_epochs():
    run = training()
    rows = torch.cat([run._rows() for run.step in range(6)])  # 200 rows, 6 steps of 32
    assert len(rows.unique()) == 192
    short = training(given=task(3))
    assert short._rows().tolist() == short._rows().tolist() and len(short._rows()) == 4 * 3


class Recurrent(nn.Module):
    def __init__(self):
        super().__init__()
        self.cell, self.head = nn.LSTM(2, 3, batch_first=True), nn.Linear(3, 4)

    def forward(self, x):
        return {"scores": self.head(self.cell(x.unsqueeze(1))[0][:, 0])}


def test_without_a_batching_rule_and_with_outputs_by_name():
    x, y = square(64)
    given = ip.Task(x, y, batch_size=32, outputs="scores")
    with torch.random.fork_rng():
        made = ip.generate(Recurrent(), given, steps=3, **SMALL)
    assert made.status == "trained" and ip.explore(made, given, 4).distance > 0


@pytest.mark.parametrize("kind", ["tokens", "regression", "double", "some", "slice", "around"])
def test_all_kinds_of_tasks(kind):
    x, y = square(64)
    model, options = small(), dict(SMALL)
    if kind == "tokens":
        x, y = x.unsqueeze(1).expand(-1, 3, -1), torch.stack([y, y, torch.full_like(y, -100)], 1)
    given = ip.Task(x, y, batch_size=32)
    if kind == "regression":
        given = ip.Task(x, torch.randn(64, 4), loss="squared_error", batch_size=32)
    if kind == "double":
        model, given = model.double(), ip.Task(x.double(), y, batch_size=32)
    if kind == "slice":
        given = ip.Task(x, y % 2, outputs=slice(0, 2), batch_size=32)
    options |= {"some": {"trainable": ["2.*"]}, "around": {"start": "model"}}.get(kind, {})
    made = ip.generate(model, given, steps=3, schedule="rising", permutations=kind != "some", **options)
    assert made.status == "trained"
    assert made.sample(2).dtype == next(model.parameters()).dtype
    assert made.ensemble(2).mean == ("logits" if kind == "regression" else "probabilities")
    if kind != "regression":
        assert 0 <= ip.explore(made, given, 4).disagreement <= 1


def test_half_precision_is_refused():
    with pytest.raises(ValueError, match=r"bfloat16.*rounding"):
        ip.generate(small().bfloat16(), ip.Task(square()[0].bfloat16(), square()[1]))


def test_what_is_generated_does_not_follow_the_callers_frozen_parameters():
    model = small()
    model[0].weight.requires_grad_(False)
    made = ip.generate(model, task(), steps=1, **SMALL)
    before = made.models(1)[0](square(5)[0])
    with torch.no_grad():
        model[0].weight.add_(3)
    assert torch.equal(made.models(1)[0](square(5)[0]), before)


@pytest.mark.parametrize(
    ("option", "said"),
    [
        ({"diversity": -1.0}, "diversity must be >= 0"), ({"networks": 1}, "networks must be >= 2"),
        ({"steps": 0}, "steps must be a whole number >= 1"), ({"steps": 2.5}, "steps must be a whole number"),
        ({"rate": 0.0}, "rate must be > 0"), ({"latent": 0}, "latent must be a whole number >= 1"),
        ({"start": "there"}, "start must be 'nothing' or 'model'"), ({"schedule": "up"}, "schedule must be one of"),
        ({"schedule": lambda t: -1.0}, "finite factor >= 0"), ({"patience": 0}, "patience must be >= 1"),
    ],
)  # fmt: skip
def test_bad_options(option, said):
    with pytest.raises(ValueError, match=said):
        ip.generate(small(), task(), **option)


def test_what_is_no_task():
    x, y = square()
    with pytest.raises(TypeError, match="trained on a Task, got Reference"):
        ip.generate(small(), ip.Reference(x))
    with pytest.raises(TypeError, match="got Robust"):
        ip.generate(small(), ip.Robust(x, y))
