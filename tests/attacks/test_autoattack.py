"""The official AutoAttack behind the call of PGD; and PGD beside that of foolbox."""

import builtins
import logging
import sys

import pytest
import torch
from torch import nn

import isopath as ip
from isopath.attacks import PGD, AutoAttack
from isopath.attacks.autoattack import AutoAttackWarning, installed

official = pytest.mark.skipif(not installed(), reason='needs "isopath[robust]"')
X = torch.rand(40, 6, generator=torch.Generator().manual_seed(1))


def linear(classes: int = 4) -> nn.Module:
    torch.manual_seed(0)
    return nn.Linear(6, classes)


def right(model, x, y):
    return model(x).argmax(-1) == y


@official
@pytest.mark.parametrize(("norm", "dual", "eps"), [("linf", 1, 0.03), ("l2", 2, 0.08)])
def test_on_a_linear_network_it_breaks_exactly_the_rows_within_reach(norm, dual, eps):
    model, inputs = linear(), 0.3 + 0.4 * X  # so far from the bounds that the ball is inside
    y = model(inputs).argmax(-1)
    margin = model(inputs).gather(1, y[:, None]) - model(inputs)
    reach = eps * (model.weight[y][:, None] - model.weight[None]).norm(p=dual, dim=-1)
    safe = ((margin - reach) > 0).logical_or(torch.nn.functional.one_hot(y, 4).bool()).all(1)
    assert 0.2 < float(safe.float().mean()) < 0.8
    attacked = ip.attack(model, inputs, y, AutoAttack(eps, norm))
    assert torch.equal(right(model, attacked, y), safe)
    change = (attacked - inputs).flatten(1)
    assert float((change.abs().amax(1) if norm == "linf" else change.norm(dim=1)).max()) <= eps * (1 + 1e-5)
    assert torch.equal(attacked[safe], inputs[safe])  # a row that is not broken is given back


@official
@pytest.mark.parametrize(
    ("shape", "dtype"), [((6,), torch.float64), ((2, 3), torch.float32), ((1, 2, 3), torch.float64)]
)
def test_inputs_of_any_shape_type_and_range(shape, dtype):
    model = nn.Sequential(nn.Flatten(), linear()).to(dtype)
    inputs = (4 * X - 1).reshape(-1, *shape).to(dtype)
    y = model(inputs).argmax(-1)
    attacked = ip.attack(model, inputs, y, AutoAttack(0.5, low=-1.0, high=3.0), batch_size=25)
    assert attacked.dtype == dtype and attacked.shape == inputs.shape
    few = right(model, attacked, y)
    assert 0 < int(few.sum()) < 40
    assert int(few.sum()) <= int(right(model, ip.attack(model, inputs, y, PGD(0.5, low=-1.0, high=3.0)), y).sum())


@official
@pytest.mark.parametrize("attacks", [("apgd-ce",), ("apgd-t",), ("fab-t",), ("square",)])
def test_inputs_and_networks_whose_channels_are_last_in_memory(attacks):
    torch.manual_seed(0)
    model = nn.Sequential(nn.Conv2d(3, 8, 3), nn.ReLU(), nn.Flatten(), nn.Linear(32, 4))
    inputs, attack = torch.rand(12, 3, 4, 4), AutoAttack(0.02, attacks=attacks)
    y = model(inputs).argmax(-1)
    found = ip.attack(model, inputs, y, attack)
    assert 0 < int(right(model, found, y).sum()) < 12
    last = torch.channels_last
    torch.testing.assert_close(ip.attack(model.to(memory_format=last), inputs.to(memory_format=last), y, attack), found)


@official
@pytest.mark.parametrize("attacks", [("apgd-dlr",), ("fab-t",), ("square",)])
def test_the_other_attacks_run(attacks):
    model = nn.Sequential(nn.Flatten(), nn.Linear(4, 3))
    inputs = torch.rand(6, 1, 2, 2)
    y = model(inputs).argmax(-1)
    attacked = ip.attack(model, inputs, y, AutoAttack(0.5, attacks=attacks))
    assert int(right(model, attacked, y).sum()) < 6


@official
def test_the_process_is_left_as_it_was(capfd, caplog):
    model, y = linear(), torch.arange(40) % 4
    model.train()
    state, calls = torch.get_rng_state(), []

    def tracer(frame, event, argument):
        calls.append(event)

    sys.settrace(tracer)
    try:
        with caplog.at_level(logging.DEBUG):
            first = ip.attack(model, X, y, AutoAttack(0.1), seed=2)
        assert sys.gettrace() is tracer
    finally:
        sys.settrace(None)
    assert torch.equal(state, torch.get_rng_state())
    assert torch.equal(first, ip.attack(model, X, y, AutoAttack(0.1), seed=2))
    assert model.training and model.weight.grad is None and model.weight.requires_grad
    assert capfd.readouterr() == ("", "") and not caplog.records


@official
def test_its_doubts_are_warnings():
    class Random(nn.Module):
        def forward(self, x):
            return x[:, :4] + torch.rand(len(x), 4)

    with pytest.warns(AutoAttackWarning, match="it seems to be a randomized defense"):
        ip.attack(Random(), X, torch.arange(40) % 4, AutoAttack(0.1, attacks=("apgd-ce",)))


@official
def test_what_does_not_fit_the_network_is_named():
    with pytest.raises(ValueError, match=r"apgd-t needs at least 4 classes, got outputs of 3; use attacks=\('apgd-ce'"):
        ip.attack(linear(3), X, torch.arange(40) % 3, AutoAttack(0.1))
    with pytest.raises(ValueError, match=r"square needs images \(N, C, H, W\) with H = W, got \(40, 6\)"):
        ip.attack(linear(), X, torch.arange(40) % 4, AutoAttack(0.1, attacks=("square",)))


def test_mistakes_are_named():
    with pytest.raises(ValueError, match="norm must be one of"):
        AutoAttack(0.1, "l1")
    with pytest.raises(ValueError, match=r"attacks must be some of .*, got \['pgd'\]"):
        AutoAttack(0.1, attacks=("pgd",))
    with pytest.raises(ValueError, match="attacks must be some of"):
        AutoAttack(0.1, attacks=())
    with pytest.raises(ValueError, match="needs the range of valid inputs, got low=None"):
        AutoAttack(0.1, low=None)
    with pytest.raises(ValueError, match=r"inputs \(40, 6\) range from .*give low= and high="):
        ip.attack(linear(), X + 1, torch.arange(40) % 4, AutoAttack(0.1))
    with pytest.raises(ValueError, match="eps must be from 0 to 1"):
        ip.attack(linear(), X, torch.arange(40) % 4, AutoAttack(-0.1))


def test_without_the_package_the_error_says_how_to_get_it(monkeypatch):
    real = builtins.__import__

    def missing(name, *rest):
        if name == "pyautoattack":
            raise ImportError("No module named 'pyautoattack'")
        return real(name, *rest)

    monkeypatch.setattr(builtins, "__import__", missing)
    with pytest.raises(ImportError, match=r"needs the package pyautoattack .*pip install \"isopath\[robust\]\""):
        ip.attack(linear(), X, torch.arange(40) % 4, AutoAttack(0.1))


@pytest.mark.parametrize("norm", ["linf", "l2"])
def test_pgd_breaks_about_as_many_rows_as_that_of_foolbox_with_the_same_budget(norm):
    foolbox = pytest.importorskip("foolbox", exc_type=ImportError)
    torch.manual_seed(0)
    model, x = nn.Sequential(nn.Linear(12, 32), nn.ReLU(), nn.Linear(32, 4)), torch.rand(200, 12)
    y, eps = (x @ torch.randn(12, 4)).argmax(1), {"linf": 0.08, "l2": 0.25}[norm]
    optimiser = torch.optim.Adam(model.parameters(), 0.02)
    for _ in range(100):
        optimiser.zero_grad()
        nn.functional.cross_entropy(model(x), y).backward()
        optimiser.step()
    theirs = {"linf": foolbox.attacks.LinfPGD, "l2": foolbox.attacks.L2PGD}[norm]
    attack = theirs(rel_stepsize=2.5 / 20, steps=20, random_start=True)
    _, _, broken = attack(foolbox.PyTorchModel(model.eval(), bounds=(0, 1)), x, y, epsilons=eps)
    ours = ~right(model, ip.attack(model, x, y, PGD(eps, 20, norm=norm)), y)
    assert 40 < int(broken.sum()) < 160
    assert int(ours.sum()) >= int(broken.sum()) - 4


@official
def test_its_settings_are_those_of_the_official_standard_version():
    from pyautoattack import AutoAttack as Official

    model = linear(12)
    standard = Official(model, eps=0.1, version="standard")
    ours = AutoAttack(0.1)._official(model, 12, 0, torch.device("cpu"))
    for name in ("apgd", "apgd_targeted"):
        for setting in ("n_restarts", "n_iter", "eot_iter", "thr_decr", "loss", "use_largereps"):
            assert getattr(getattr(ours, name), setting) == getattr(getattr(standard, name), setting), setting
    assert ours.apgd_targeted.n_target_classes == standard.apgd_targeted.n_target_classes == 9
    assert (ours.fab.n_restarts, ours.fab.n_target_classes) == (standard.fab.n_restarts, standard.fab.n_target_classes)
    assert ours.square.n_queries == standard.square.n_queries
