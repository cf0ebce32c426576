"""Several networks as one."""

import copy

import pytest
import torch
from torch import nn

import isopath as ip


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
