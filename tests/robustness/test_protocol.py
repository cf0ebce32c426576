"""The protocol: closed forms on linear networks, transfer told from white-box, masked gradients found out."""

import copy

import pytest
import torch
from torch import nn

import isopath as ip
from isopath.attacks.autoattack import installed
from isopath.network import FORWARD
from isopath.robustness import protocol

official = pytest.mark.skipif(not installed(), reason='needs "isopath[robust]"')
X = torch.rand(120, 6, generator=torch.Generator().manual_seed(1))
Y = ((X - 0.5) @ torch.randn(6, 4, generator=torch.Generator().manual_seed(2))).argmax(1)
QUICK = {"autoattack": 0, "restarts": 2, "steps": 5, "large": 8}


def trained(seed: int = 0, classes: int = 4) -> nn.Module:
    torch.manual_seed(seed)
    model = nn.Sequential(nn.Linear(6, 24), nn.ReLU(), nn.Linear(24, classes))
    optimiser = torch.optim.Adam(model.parameters(), 0.02)
    for _ in range(120):
        optimiser.zero_grad()
        nn.functional.cross_entropy(model(X), Y % classes).backward()
        optimiser.step()
    return model


def linear(classes: int) -> nn.Module:
    """Its boundaries meet in the middle of the inputs' range."""
    torch.manual_seed(0)
    model = nn.Linear(6, classes)
    with torch.no_grad():
        model.bias.copy_(-0.5 * model.weight.sum(1))
    return model


class Masked(nn.Module):
    """A network whose cross-entropy saturates, or whose inputs are rounded: as fragile as it was, with no gradient."""

    def __init__(self, model: nn.Module, how: str) -> None:
        super().__init__()
        self.model, self.how = model, how

    def forward(self, x):
        return 1e4 * self.model(x) if self.how == "scaled" else self.model((16 * x).round() / 16)


@pytest.mark.parametrize("norm", ["linf", "l2"])
def test_between_two_classes_of_a_linear_network_it_is_the_closed_form(norm):
    model, eps = linear(2).double(), 0.1
    x, w = X.double(), model.weight[1] - model.weight[0]
    y = model(x).argmax(1)
    margin = (model(x)[:, 1] - model(x)[:, 0]) * (2 * y - 1)
    fall = eps * w.norm(p=1 if norm == "linf" else 2)
    got = ip.robustness(model, x, y, eps, norm=norm, low=None, high=None, autoattack=0)
    assert 20 < got.white_box.right < 110
    nearly = 1.0 if norm == "linf" else 0.99  # steps of one length end near the closest point of a sphere, not on it
    assert int((margin > fall).sum()) <= got.white_box.right <= int((margin > nearly * fall).sum())
    assert got.worst == got.white_box
    assert got.clean.right == 120 and got.member is got.surrogate is got.autoattack is None


def test_within_bounds_the_closed_form_stops_at_them():
    model, eps = linear(2).double(), 0.2
    x, w = X.double(), (model.weight[1] - model.weight[0]).detach()
    y = model(x).argmax(1)
    sign = (2 * y - 1)[:, None].double()
    corner = (x - eps * sign * w.sign()).clamp(0, 1)
    safe = int((model(corner).argmax(1) == y).sum())
    assert 0 < safe < 100 and safe > int((model(x - eps * sign * w.sign()).argmax(1) == y).sum())
    assert ip.robustness(model, x, y, eps, autoattack=0).white_box.right == safe


@official
def test_with_the_official_attacks_it_is_the_closed_form_between_four_classes():
    model, eps = linear(4), 0.03
    x = 0.3 + 0.4 * X
    y = model(x).argmax(1)
    margin = model(x).gather(1, y[:, None]) - model(x)
    fall = eps * (model.weight[y][:, None] - model.weight[None]).norm(p=1, dim=-1)
    safe = ((margin > fall) | nn.functional.one_hot(y, 4).bool()).all(1)
    got = ip.robustness(model, x, y, eps)
    assert got.official == "APGD-CE + APGD-T"
    assert got.autoattack.right == got.worst.right == int(safe.sum()) <= got.white_box.right
    few = ip.robustness(model, x, y, eps, autoattack=50)
    assert few.autoattack.rows == few.worst.rows == 50 and few.white_box.rows == 120
    assert few.autoattack.right == few.worst.right == int(safe[:50].sum())


@official
@pytest.mark.parametrize(("classes", "ran"), [(2, "APGD-CE"), (3, "APGD-CE + APGD-DLR")])
def test_with_few_classes_the_attacks_that_there_are_run(classes, ran):
    got = ip.robustness(trained(classes=classes), X[:20], Y[:20] % classes, 0.1, restarts=1, steps=5)
    assert got.official == ran and got.autoattack.right <= got.clean.right and got.flags == ()


def test_an_honest_network_shows_no_sign_and_reads_well():
    got = ip.robustness(trained(), X, Y, 0.1, surrogate=trained(5), autoattack=0)
    assert got.flags == () and got.large.right == 0 and got.large.rows == 32 and got.large_eps == 1
    assert got.white_box.right <= got.surrogate.right < got.clean.right
    text = str(got)
    for part in ("one network", "transfer from the surrogate", "eps = 0.1 (linf)", "95% interval", "not run",
                 "masked gradients? no sign", f"{got.evaluations:,.0f}", "120"):  # fmt: skip
        assert part in text
    assert "member" not in text
    assert repr(got).startswith("Robustness(clean=")


@pytest.mark.parametrize("how", ["scaled", "rounded"])
def test_masked_gradients_are_found_out(how):
    model = trained()
    got = ip.robustness(Masked(model, how), X, Y, 0.08, surrogate=model, autoattack=0)
    assert got.white_box.value > 0.75 and got.surrogate.value < 0.4  # it is fragile, though PGD does not see it
    assert got.worst.right <= got.surrogate.right and got.large.right == got.large.rows == 32
    assert len(got.flags) == 3
    for flag, words in zip(got.flags, ("transfer from the surrogate is stronger", "stay right under", "no gradient")):
        assert words in flag and flag in str(got)


def test_members_that_are_sure_mask_an_ensemble_with_one_that_is_not():
    """No gradient is zero here: that of the whole follows the untrained member, and the transfer goes through."""
    torch.manual_seed(1)
    whole = ip.Ensemble([trained(), nn.Sequential(nn.Linear(6, 24), nn.ReLU(), nn.Linear(24, 4))])
    with torch.no_grad():
        whole.models[0][2].weight.mul_(5)
        whole.models[0][2].bias.mul_(5)
    got = ip.robustness(whole, X, Y, 0.15, autoattack=0)
    assert got.member.right < got.white_box.right and got.worst.right <= got.member.right
    assert "transfer from member 0 is stronger" in got.flags[0] and not any("no gradient" in f for f in got.flags)


@official
def test_the_doubts_of_the_official_code_are_flags_each_said_once():
    with pytest.warns(DeprecationWarning, match="mine"):  # and other warnings go on to the caller
        got = ip.robustness(_Warns(Masked(trained(), "rounded")), X, Y, 0.1, restarts=1, batch_size=40)
    assert [flag for flag in got.flags if "AutoAttack: there are" in flag] == [got.flags[-1]]


class _Warns(nn.Module):
    def __init__(self, model: nn.Module) -> None:
        super().__init__()
        self.model = model

    def forward(self, x):
        import warnings

        warnings.warn("mine", DeprecationWarning, stacklevel=2)
        return self.model(x)


def test_the_ensemble_is_judged_as_a_whole_and_transfer_is_from_the_member_named():
    honest = [trained(seed) for seed in range(3)]
    blind = copy.deepcopy(honest[0])
    nn.init.zeros_(blind[0].weight)  # what it says does not depend on the input: an attack on it goes nowhere
    whole = ip.Ensemble([blind, *honest])
    got = [ip.robustness(whole, X, Y, 0.1, member=m, autoattack=0) for m in (0, 1)]
    assert got[0].white_box == got[1].white_box and got[0].networks == 4
    assert got[0].member.value > 0.7 and got[1].member.value < 0.4 and got[1].white_box.value < 0.4
    assert got[0].worst.right <= min(got[0].member.right, got[0].white_box.right)
    assert "transfer from member 1" in str(got[1]) and "an ensemble of 4 networks as a whole" in str(got[1])


def test_one_pass_for_all_members_gives_what_a_loop_gives():
    models = [trained(seed).double() for seed in range(3)]
    one, other = (
        ip.robustness(ip.Ensemble(models, batched=b), X.double(), Y, 0.1, surrogate=models[0], **QUICK)
        for b in (False, True)
    )
    assert one == other


def test_an_ensemble_of_one_is_its_network():
    model = trained()
    assert ip.robustness(ip.Ensemble([model]), X, Y, 0.1, **QUICK).white_box == (
        ip.robustness(model, X, Y, 0.1, **QUICK).white_box
    )
    assert ip.robustness(ip.Ensemble([model]), X, Y, 0.1, **QUICK).member is None


def test_every_restart_is_judged_and_more_of_them_never_hurt():
    model = trained()
    scores = [ip.robustness(model, X, Y, 0.08, restarts=n, steps=1, autoattack=0).white_box.right for n in (1, 4, 16)]
    assert scores[0] > scores[1] >= scores[2]


def test_a_row_that_is_wrong_stays_wrong_and_a_larger_radius_never_helps():
    model = trained()
    wrong = torch.where(torch.arange(120) < 30, (Y + 1) % 4, Y)
    scores = [ip.robustness(model, X, wrong, eps, **QUICK) for eps in (0.0, 0.05, 0.2)]
    assert scores[0].clean.right <= 90 and scores[0].white_box.right == scores[0].clean.right
    assert scores[0].white_box.right >= scores[1].white_box.right > scores[2].white_box.right
    nothing = ip.robustness(model, X[:20], (model(X[:20]).argmax(1) + 1) % 4, 0.1, **QUICK)
    assert nothing.clean.right == nothing.worst.right == nothing.large.rows == 0 and "nan%" in str(nothing)


def test_the_cost_is_counted_for_every_network_of_the_whole():
    model = trained()
    alone, four = (
        ip.robustness(m, X, Y, 0.0, **QUICK | {"restarts": 1}).evaluations for m in (model, ip.Ensemble([model] * 4))
    )
    n = int((model(X).argmax(1) == Y).sum())
    attacked = 5 + 2 * FORWARD  # five steps, one look at the loss, one at the class
    reached = ip.robustness(model, X, Y, 0.0, **QUICK | {"restarts": 1}).large.rows
    assert reached == 8
    assert alone == pytest.approx(FORWARD * 122 + n * attacked + 8 * attacked + n)
    transfer = 2 * FORWARD + n * (5 + FORWARD) + 4 * n * FORWARD  # on the member alone, judged by all four
    assert four == pytest.approx(4 * alone + transfer)


def test_a_seed_gives_the_same_digits_and_nothing_of_the_caller_is_touched():
    model = nn.Sequential(nn.Dropout(0.5), trained(), nn.BatchNorm1d(4)).train()
    model.zero_grad()
    model[1][0].bias.grad = torch.ones(24)
    model[1][2].weight.requires_grad_(False)
    state, random = copy.deepcopy(model.state_dict()), torch.get_rng_state()
    first = ip.robustness(model, X, Y, 0.1, surrogate=model, **QUICK)
    assert first == ip.robustness(model, X, Y, 0.1, surrogate=model, **QUICK)
    assert model.training and model[0].training and torch.equal(random, torch.get_rng_state())
    assert all(torch.equal(value, state[name]) for name, value in model.state_dict().items())
    assert torch.equal(model[1][0].bias.grad, torch.ones(24)) and model[1][0].weight.grad is None
    assert not model[1][2].weight.requires_grad and model[1][0].weight.requires_grad


def test_without_the_official_package_bounds_or_rows_the_table_says_so(monkeypatch):
    model = trained()
    assert "not run: autoattack=0" in str(ip.robustness(model, X, Y, 0.1, **QUICK))
    rest = QUICK | {"autoattack": None}
    free = ip.robustness(model, X - 0.5, Y, 0.1, low=None, high=None, **rest)
    assert "not run: it needs bounds" in str(free) and free.autoattack is None and 0.9 < free.large_eps <= 1
    monkeypatch.setattr(protocol, "installed", lambda: False)
    got = ip.robustness(model, X, Y, 0.1, **rest)
    assert got.official == 'not run: pip install "isopath[robust]"' and got.autoattack is None and got.worst.rows == 120


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"eps": -0.1}, "eps must be >= 0"),
        ({"eps": 1.1}, "eps must be from 0 to 1"),
        ({"x": X - 1}, "outside of what the attack holds valid"),
        ({"member": 2, "model": ip.Ensemble([trained(), trained()])}, "member must be from 0 to 1, .*got 2"),
        ({"surrogate": nn.Linear(6, 2)}, "labels must be from 0 to 1"),
        ({"surrogate": nn.Linear(5, 4)}, r"does not run on these inputs: got \(2, 6\)"),
        ({"y": Y[:7]}, r"labels must have the shape \(120,\)"),
        ({"confidence": 1.0}, r"confidence within \(0, 1\), got .* and 1\.0"),
        ({"restarts": 0}, "restarts must be a whole number >= 1, got 0"),
        ({"norm": "l1"}, "norm must be"),
    ],
)
def test_mistakes_are_named(change, message):
    arguments = {"model": nn.Linear(6, 4), "x": X, "y": Y, "eps": 0.1, **change}
    with pytest.raises(ValueError, match=message):
        ip.robustness(**arguments)


def test_rows_where_the_gradient_is_not_finite_are_counted():
    class Curve(nn.Module):
        def forward(self, x):
            return torch.where(x <= 0, 3 * x, x.sqrt())

    model, x = nn.Sequential(Curve(), trained()), X.clone()
    x[:40, 0] = 0
    found = ip.robustness(model, x, model(x).argmax(1), 0.1, **QUICK)
    assert found.clean.right == 120
    assert [f for f in found.flags if "at 40 of the 120 rows classified right the gradient" in f and "not finite" in f]
