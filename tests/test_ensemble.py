"""Several networks as one."""

import copy

import pytest
import torch
from torch import nn

import isopath as ip
from networks import Masked


def networks(count=3, norm=True):
    torch.manual_seed(0)
    made = [nn.Sequential(nn.Linear(5, 7), *([nn.BatchNorm1d(7)] if norm else []), nn.ReLU(), nn.Linear(7, 3))
            for _ in range(count)]  # fmt: skip
    for model in made:
        if norm:
            model[1].running_mean.uniform_(), model[1].running_var.uniform_(0.5, 2)
    return [model.double() for model in made]


X = torch.randn(11, 5, generator=torch.Generator().manual_seed(1), dtype=torch.float64)


@pytest.mark.parametrize("mean", ["probabilities", "logits"])
@pytest.mark.parametrize("batched", [False, True])
def test_it_is_the_mean_of_its_members(mean, batched):
    models = networks()
    before = copy.deepcopy(models[0].state_dict())
    together = ip.Ensemble(models, mean, batched=batched)
    outputs = torch.stack([model.eval()(X) for model in models])
    wanted = outputs.mean(0) if mean == "logits" else outputs.softmax(-1).mean(0).log()
    assert torch.allclose(together(X), wanted, atol=1e-12)
    assert torch.allclose(together.train()(X), wanted, atol=1e-12)  # its members stay in eval mode
    assert len(together) == 3
    assert all(torch.equal(before[key], value) for key, value in models[0].state_dict().items())


@pytest.mark.parametrize("batched", [False, True])
def test_gradients_reach_inputs_and_every_member(batched):
    together = ip.Ensemble(networks(), batched=batched)
    x = X.clone().requires_grad_(True)
    together(x).square().sum().backward()
    assert float(x.grad.abs().sum()) > 0
    assert all(p.grad is not None for p in together.parameters())


def test_outputs_are_picked():
    class Named(nn.Module):
        def __init__(self):
            super().__init__()
            self.a = nn.Linear(5, 3).double()

        def forward(self, x):
            return {"scores": self.a(x), "logits": 0 * self.a(x)}

    models = [Named(), Named()]
    together = ip.Ensemble(models, "logits", output="scores")
    assert torch.allclose(together(X), (models[0].a(X) + models[1].a(X)) / 2)


def test_mistakes_are_named():
    with pytest.raises(ValueError, match="at least one network"):
        ip.Ensemble([])
    with pytest.raises(ValueError, match="needs C >= 2 outputs"):
        ip.Ensemble([nn.Linear(5, 1).double()])(X)
    with pytest.raises(ValueError, match="mean must be"):
        ip.Ensemble(networks(), "vote")


def test_along_a_curve_it_has_both_ends():
    a, b = networks(2)
    curve = ip.connect(a, b, curve="segment")
    together = curve.ensemble(2)
    assert torch.allclose(together(X), ip.Ensemble([a, b])(X))
    assert len(curve.ensemble(5, data=X)) == 5
    with pytest.raises(ValueError, match="at least 2 networks"):
        curve.ensemble(1)


def test_networks_that_do_not_fit_together_are_named_at_the_first_call():
    wide = nn.Linear(5, 4).double()
    with pytest.raises(ValueError, match=r"same classes: output has shape \(11, 3\) in network 0 and \(11, 4\)"):
        ip.Ensemble([nn.Linear(5, 3).double(), wide])(X)
    with pytest.raises(ValueError, match=r"weight has shape \(3, 5\) in network 0 and \(4, 5\) in network 2"):
        ip.Ensemble([nn.Linear(5, 3).double(), nn.Linear(5, 3).double(), wide], batched=True)(X)
    with pytest.raises(ValueError, match=r"one architecture.*bias has shape \(3,\) in network 0 and None in network 1"):
        ip.Ensemble([nn.Linear(5, 3).double(), nn.Linear(5, 3, bias=False).double()], batched=True)(X)


def test_points_need_their_architecture():
    model = nn.Linear(3, 2)
    thetas = torch.randn(4, 8)
    x = torch.randn(5, 3)
    joined = ip.Ensemble.at(model, thetas)
    each = [(x @ theta[:6].view(2, 3).mT + theta[6:]).softmax(1) for theta in thetas]
    assert torch.allclose(joined(x).exp(), torch.stack(each).mean(0), atol=1e-6)
    with pytest.raises(TypeError, match=r"Ensemble.at\(model, thetas\)"):
        ip.Ensemble(thetas)
    with pytest.raises(ValueError, match="at least one network"):
        ip.Ensemble.at(model, [])
    with pytest.raises(ValueError, match=r"theta has shape \(7,\), expected \(8,\)"):
        ip.Ensemble.at(model, thetas[:, :7])


def test_classes_on_another_axis():
    torch.manual_seed(0)
    models, x = [nn.Conv2d(2, 3, 1).double() for _ in range(3)], torch.randn(5, 2, 4, 4).double()
    wanted = torch.stack([m(x).softmax(1) for m in models]).mean(0)
    assert torch.allclose(ip.Ensemble(models, dim=1)(x).exp(), wanted, atol=1e-12)
    assert torch.allclose(ip.Ensemble(models, dim=-3)(x).exp(), wanted, atol=1e-12)
    with pytest.raises(ValueError, match=r"outputs \(5, 3, 4, 4\) have their classes on one of 4 axes; say .* dim="):
        ip.Ensemble(models)(x)
    with pytest.raises(ValueError, match=r"an axis dim=4 of classes, got \(5, 3, 4, 4\)"):
        ip.Ensemble(models, dim=4)(x)
    with pytest.raises(ValueError, match=r"got \(11,\); of a regression"):
        ip.Ensemble([nn.Sequential(m, nn.Flatten(0)) for m in (nn.Linear(5, 1).double(),) * 2])(X)


def test_classes_that_all_rule_out_have_a_gradient_and_one_that_some_do_too():
    torch.manual_seed(0)
    models, x = [Masked() for _ in range(2)], torch.randn(6, 4).double()
    models.append(nn.Linear(4, 3).double())
    for some in (models[:1], models[:2], models):
        point = x.clone().requires_grad_(True)
        together = ip.Ensemble(some)(point)
        (gradient,) = torch.autograd.grad(nn.functional.cross_entropy(together, torch.arange(6) % 2), point)
        wanted = torch.stack([m(point).softmax(1) for m in some]).mean(0)
        assert gradient.isfinite().all() and gradient.any() and torch.allclose(together.exp(), wanted, atol=1e-12)


def test_a_part_of_the_outputs():
    models = networks(2)
    wanted = torch.stack([m.eval()(X)[:, 1:] for m in models]).softmax(-1).mean(0)
    assert torch.allclose(ip.Ensemble(models, output=slice(1, None))(X).exp(), wanted, atol=1e-12)


@pytest.mark.parametrize(
    ("given", "said"),
    [
        ({"a": nn.Linear(2, 2)}, "got dict; take its .values"),
        (3, "takes a list of networks, got int"),
        (["a"], "each network of an ensemble must be an nn.Module, got str"),
    ],
)
def test_what_is_no_list_of_networks(given, said):
    with pytest.raises(TypeError, match=said):
        ip.Ensemble(given)


def test_networks_that_vmap_cannot_run_say_so():
    models = [nn.Sequential(nn.LSTM(3, 4, batch_first=True)) for _ in range(2)]
    together, x = ip.Ensemble(models, output=0, dim=-1, batched=True), torch.randn(2, 5, 3)
    with pytest.raises(ValueError, match=r"do not run in one pass of vmap .* use batched=False"):
        together(x)
    together.batched = False
    assert together(x).shape == (2, 5, 4)
