"""An attack on any module: one function of its inputs, inside its ball, with nothing of the caller's touched."""

import copy

import pytest
import torch
from torch import nn

import isopath as ip
from isopath.attacks import PGD, Victim, cross_entropy_rows
from isopath.network import FORWARD

X = torch.rand(30, 6, generator=torch.Generator().manual_seed(1), dtype=torch.float64)
Y = torch.arange(30) % 3
ATTACK = PGD(0.1, steps=4)


def mlp(seed: int = 0, classes: int = 3) -> nn.Module:
    torch.manual_seed(seed)
    return nn.Sequential(nn.Linear(6, 16), nn.BatchNorm1d(16), nn.Tanh(), nn.Linear(16, classes)).double()


def test_it_raises_the_loss_within_the_ball_in_batches():
    model = mlp().eval()
    attacked = ip.attack(model, X, Y, ATTACK, batch_size=7)
    assert attacked.shape == X.shape and attacked.dtype == X.dtype and not attacked.requires_grad
    assert float((attacked - X).abs().max()) <= 0.1 + 1e-12 and 0 <= float(attacked.min()) <= float(attacked.max()) <= 1
    with torch.no_grad():
        assert bool((cross_entropy_rows(model(attacked), Y) > cross_entropy_rows(model(X), Y)).all())


def test_a_seed_gives_the_same_bits_and_another_seed_others():
    model = mlp()
    first = ip.attack(model, X, Y, ATTACK, seed=3)
    torch.rand(5)  # the global state decides nothing
    assert torch.equal(first, ip.attack(model, X, Y, ATTACK, seed=3))
    assert not torch.equal(first, ip.attack(model, X, Y, ATTACK, seed=4))


def test_nothing_of_the_caller_is_touched_and_dropout_is_off():
    model = nn.Sequential(mlp(), nn.Dropout(0.9))
    model[0][0].weight.requires_grad_(False)
    model[0][3].bias.grad = torch.ones(3, dtype=torch.float64)
    state, random = copy.deepcopy(model.state_dict()), torch.get_rng_state()
    inputs, asked = X.clone().requires_grad_(True), [p.requires_grad for p in model.parameters()]
    attacked = ip.attack(model, inputs, Y, ATTACK)
    assert torch.equal(attacked, ip.attack(model[0], X, Y, ATTACK))
    assert model.training and model[0][1].training and asked == [p.requires_grad for p in model.parameters()]
    assert all(torch.equal(value, state[name]) for name, value in model.state_dict().items())
    assert model[0][0].weight.grad is None and torch.equal(model[0][3].bias.grad, torch.ones_like(model[0][3].bias))
    assert torch.equal(random, torch.get_rng_state())
    assert torch.equal(inputs, X) and inputs.grad is None


@pytest.mark.parametrize("norm", ["linf", "l2"])
def test_an_ensemble_is_attacked_as_one_module_alike_in_a_loop_and_in_one_pass(norm):
    models = [mlp(seed).eval() for seed in range(3)]
    one, other = (ip.attack(ip.Ensemble(models, batched=b), X, Y, PGD(0.2, norm=norm)) for b in (False, True))
    assert torch.allclose(one, other, atol=1e-9)
    whole = PGD(0.2, norm=norm)(
        lambda x: torch.stack([m(x).softmax(-1) for m in models]).mean(0).log(), X, Y, torch.Generator().manual_seed(0)
    )
    assert torch.allclose(one, whole, atol=1e-9)
    assert not torch.allclose(one, ip.attack(models[0], X, Y, PGD(0.2, norm=norm)), atol=1e-3)


def test_a_victim_counts_what_it_computes():
    victim = Victim(ip.Ensemble([mlp(0), mlp(1)]))
    victim(X[:5].requires_grad_(True))
    assert victim.evaluations == 10
    with torch.no_grad():
        victim(X[:3])
    assert victim.evaluations == pytest.approx(10 + 6 * FORWARD)


def test_an_output_of_nan_is_wrong():
    class Broken(nn.Module):
        def forward(self, x):
            return torch.full((len(x), 3), torch.nan)

    assert not Victim(Broken()).right(X, torch.zeros(30, dtype=torch.long)).any()


def test_outputs_are_picked_and_a_loss_of_ones_own_has_targets_of_any_shape():
    class Pair(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.net = mlp().eval()

        def forward(self, x):
            return {"other": 0 * x, "scores": self.net(x)}

    got = ip.attack(Pair(), X, Y, ATTACK, output="scores")
    assert torch.equal(got, ip.attack(mlp(), X, Y, ATTACK))
    target = torch.zeros(30, 3, dtype=torch.float64)
    attacked = ip.attack(mlp(), X, target, ATTACK, loss=lambda y, t: (y - t).square().sum(1))
    model = mlp().eval()
    assert bool((model(attacked).square().sum(1) > model(X).square().sum(1)).all())


class Away:
    """An attack that leaves its ball."""

    eps, norm, low, high = 0.1, "linf", 0.0, 1.0

    def __call__(self, function, x, y, generator, loss=None):
        return (x + 0.2).clamp(0, 1)


class Detached(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.net = mlp()

    def forward(self, x):
        return self.net(x.detach())


@pytest.mark.parametrize(
    ("change", "kind", "message"),
    [
        ({"attack": PGD(1.5)}, ValueError, r"eps must be from 0 to 1, the linf distance .*got 1\.5"),
        ({"attack": PGD(2.5, norm="l2")}, ValueError, r"eps must be from 0 to 2\.449, the l2 distance .*\(6,\)"),
        ({"attack": PGD(0.1, low=1.0, high=0.0)}, ValueError, "low must be less than high.*got 1.0 and 0.0"),
        ({"x": X + 1}, ValueError, r"inputs \(30, 6\) range from 1\.01 to 2, outside of .* 0\.0 to 1\.0; give low="),
        ({"x": X.float()}, ValueError, r"does not run on these inputs: got \(2, 6\) torch.float32"),
        ({"x": X * torch.nan}, ValueError, r"inputs \(30, 6\) must be finite"),
        ({"x": X[:0], "y": Y[:0]}, ValueError, r"at least one row, got \(0, 6\)"),
        ({"x": X.long()}, TypeError, "floating-point inputs within a ball, got torch.int64"),
        ({"x": [1.0]}, TypeError, "got list"),
        ({"y": Y[:5]}, ValueError, r"labels must have the shape \(30,\), .*got \(5,\)"),
        ({"y": Y.double()}, TypeError, r"tensor of integers \(30,\), got torch.float64"),
        ({"y": Y + 1}, ValueError, "labels must be from 0 to 2, .*got 1 to 3"),
        ({"model": nn.Linear(6, 1).double()}, ValueError, r"outputs \(N, C\) with C >= 2, got \(2, 1\)"),
        ({"model": Detached()}, ValueError, r"outputs \(\d+, 3\) have no derivative in the inputs"),
        ({"attack": Away()}, ValueError, r"the attack left its ball: it moved by up to 0\.2 \(linf\)"),
        ({"batch_size": 0}, ValueError, "batch_size must be >= 1, got 0"),
        ({"y": Y[:5], "loss": lambda y, t: y.sum(1)}, ValueError, "targets must have 30 rows, .*got 5"),
    ],
)
def test_mistakes_are_named(change, kind, message):
    arguments = {"model": mlp(), "x": X, "y": Y, "attack": ATTACK, **change}
    with pytest.raises(kind, match=message):
        ip.attack(**arguments)


def test_the_largest_radius_is_allowed_and_without_bounds_any():
    ip.attack(mlp(), X, Y, PGD(1.0, steps=1))
    ip.attack(mlp(), X, Y, PGD(6**0.5, steps=1, norm="l2"))
    ip.attack(mlp(), X - 3, Y, PGD(50.0, steps=1, low=None, high=None))


class Curve(nn.Module):
    """Its gradient is NaN at 0, as that of the branch which torch.where does not take."""

    def forward(self, x):
        return torch.where(x <= 0.01, 3 * x, x.clamp_min(0).sqrt())


@pytest.mark.parametrize("norm", ["linf", "l2"])
def test_an_entry_without_a_finite_gradient_holds_nothing_else_still(norm):
    torch.manual_seed(0)
    x = X.clone()
    x[:, 0] = 0
    model = nn.Sequential(Curve(), nn.Linear(6, 3).double())
    attacked = ip.attack(model, x, Y, PGD(0.3, norm=norm, random=False))
    assert bool(((attacked - x) != 0).any(1).all()) and attacked.isfinite().all()
    assert bool((cross_entropy_rows(model(attacked), Y) > cross_entropy_rows(model(x), Y)).all())


def test_a_loss_of_nan_is_the_highest():
    class Broken(nn.Module):
        def forward(self, x):
            return torch.stack([x.sum(1), (1.5 - x.amax(1)).log()], 1)  # NaN where an input is beyond 1.5

    x, y = torch.full((4, 3), 1.4), torch.ones(4).long()
    attacked = ip.attack(Broken(), x, y, PGD(0.3, low=None, high=None))
    assert Broken()(attacked).isnan().any(1).all()


@pytest.mark.parametrize("kind", [torch.int32, torch.int16, torch.uint8])
def test_labels_of_any_whole_type(kind):
    model = mlp()
    assert torch.equal(ip.attack(model, X, Y.to(kind), ATTACK), ip.attack(model, X, Y, ATTACK))
    robust, compared = ip.robustness(model, X, Y.to(kind), 0.1), ip.compare([model, mlp(1)], X, Y.to(kind))
    assert robust.white_box == ip.robustness(model, X, Y, 0.1).white_box
    assert compared.coherence == ip.compare([model, mlp(1)], X, Y).coherence


def test_an_ensemble_picks_its_own_outputs_and_its_surrogate_as_it_is_told():
    class Named(nn.Module):
        def __init__(self, seed):
            super().__init__()
            self.inner = mlp(seed)

        def forward(self, x):
            return {"scores": self.inner(x)}

    members = [Named(0), Named(1)]
    together, plain = ip.Ensemble(members, output="scores"), ip.Ensemble([mlp(0), mlp(1)])
    assert torch.equal(ip.attack(together, X, Y, ATTACK, output="scores"), ip.attack(plain, X, Y, ATTACK))
    got = ip.robustness(together, X, Y, 0.1, surrogate=Named(2), output="scores", autoattack=0)
    wanted = ip.robustness(plain, X, Y, 0.1, surrogate=mlp(2), autoattack=0)
    assert got.surrogate == wanted.surrogate and got.member == wanted.member
    assert ip.compare([together, members[0]], X, output="scores").networks == 2
    by_ensemble = ip.robustness(members[0], X, Y, 0.1, surrogate=together, output="scores", autoattack=0)
    assert by_ensemble.surrogate == ip.robustness(mlp(0), X, Y, 0.1, surrogate=plain, autoattack=0).surrogate
