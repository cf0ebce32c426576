"""Rescaled units: found where they are known to be, exact for large factors, and a canonical choice among equals."""

import copy

import pytest
import torch
from modules import CASES
from test_finder import built
from torch import nn

from isopath.symmetry import balanced, nearest, symmetries
from isopath.symmetry.rescaling import octaves, rescaled


def moved(model, found, factors):
    twin = copy.deepcopy(model)
    named = {**dict(twin.named_parameters()), **dict(twin.named_buffers())}
    with torch.no_grad():
        for name, value in rescaled({n: t.detach() for n, t in named.items()}, found, factors).items():
            named[name].copy_(value)
    return twin


@pytest.mark.parametrize("name", CASES)
def test_every_known_rescaling_is_found_and_changes_nothing(name):
    model, example = built(name)
    found = symmetries(model, example)
    assert len(found.scalings) == CASES[name].scalings
    if found.scalings:
        twin = moved(model, found, octaves(found, torch.Generator().manual_seed(1), most=3))
        assert torch.allclose(twin(*example), model(*example), rtol=1e-10, atol=1e-10)
        assert any(not torch.equal(a, b) for a, b in zip(twin.parameters(), model.parameters()))


class Gated(nn.Module):
    """Two linear layers into one, through a function of both."""

    def __init__(self, function):
        super().__init__()
        self.a, self.b, self.out, self.function = nn.Linear(4, 6), nn.Linear(4, 6), nn.Linear(6, 3), function

    def forward(self, x):
        return self.out(self.function(self.a(x), self.b(x)))


@pytest.mark.parametrize(
    ("function", "powers"),
    [
        (lambda a, b: a.relu() + 0 * b, [{"a.weight": 1, "a.bias": 1, "out.weight": -1}]),
        (lambda a, b: a.relu() + b, [{"a.weight": 1, "a.bias": 1, "b.weight": 1, "b.bias": 1, "out.weight": -1}]),
        (lambda a, b: a.sigmoid() * b, [{"b.weight": 1, "b.bias": 1, "out.weight": -1}]),
        (lambda a, b: a.square() + 0 * b, [{"a.weight": 1, "a.bias": 1, "out.weight": -2}]),
        (lambda a, b: a.relu() * b, [{"a.weight": 1, "a.bias": 1, "out.weight": -1},
                                     {"b.weight": 1, "b.bias": 1, "out.weight": -1}]),
        (lambda a, b: a.tanh() + b, []),
        (lambda a, b: a.clamp(-1e3, 1e3) + b, []),  # linear as far as the example goes
        (lambda a, b: torch.nn.functional.gelu(a) + 0 * b, []),
    ],
)  # fmt: skip
def test_powers_are_those_of_the_function(function, powers):
    torch.manual_seed(0)
    model = Gated(function)
    found = symmetries(model, torch.randn(3, 4))
    got = [{name: power for (name, _, _), power in s.exponents.items()} for s in found.scalings]
    changed = [{n: p / abs(e["out.weight"]) * 1.0 for n, p in e.items()} for e in got]
    wanted = [{n: p / abs(e["out.weight"]) for n, p in e.items()} for e in powers]
    assert sorted(map(sorted, (e.items() for e in changed))) == sorted(map(sorted, (e.items() for e in wanted)))


def test_a_mask_of_minus_infinity_hides_nothing():
    class Masked(nn.Module):
        def __init__(self):
            super().__init__()
            self.a, self.b = nn.Linear(4, 6), nn.Linear(6, 4)

        def forward(self, x):
            return self.b(self.a(x).clamp(-1e6, 1e6)) + torch.tensor([0.0, 0.0, 0.0, -torch.inf])

    assert symmetries(Masked(), torch.randn(3, 4)).scalings == ()


@pytest.mark.parametrize("name", ["mlp", "resnet20", "vit, packed", "grouped conv", "gpt, tied"])
def test_equal_networks_have_one_balanced_form(name):
    model, example = built(name)
    found = symmetries(model, example)
    factors = octaves(found, torch.Generator().manual_seed(2), most=2)
    other = moved(model, found, factors)
    before = copy.deepcopy(model.state_dict())
    one, two = balanced(model, found), balanced(other, found)
    assert all(torch.equal(a, b) for a, b in zip(before.values(), model.state_dict().values()))
    assert torch.allclose(one(*example), model(*example), rtol=1e-9, atol=1e-9)
    for a, b in zip(one.parameters(), two.parameters()):
        assert torch.allclose(a, b, rtol=1e-6, atol=1e-9)
    size = [float(torch.cat([p.flatten() for p in m.parameters()]).detach().norm()) for m in (model, other, one)]
    assert size[2] <= min(size[:2]) * (1 + 1e-9)


def test_units_in_balance_have_equal_weights_on_both_sides():
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(4, 8), nn.ReLU(), nn.Linear(8, 3)).double()
    twin = balanced(model, symmetries(model, torch.randn(2, 4).double()))
    into = twin[0].weight.square().sum(1) + twin[0].bias.square()
    assert torch.allclose(into, twin[2].weight.square().sum(0))


def test_the_nearest_of_equal_networks_is_the_network_itself():
    model, example = built("conv, flatten 4 x 4, linear")
    found = symmetries(model, example)
    factors = octaves(found, torch.Generator().manual_seed(2), most=2)
    back = nearest(model, moved(model, found, factors), found)
    for a, b in zip(back.parameters(), model.parameters()):
        assert torch.allclose(a, b, rtol=1e-6, atol=1e-8)


def test_the_nearest_is_never_farther_than_the_start():
    (a, example), found = built("resnet20"), None
    torch.manual_seed(7)
    b = CASES["resnet20"].build().double().eval()
    found = symmetries(a, example)
    near = nearest(a, b, found)
    far, close = (
        sum(float((p - q).detach().square().sum()) for p, q in zip(a.parameters(), m.parameters())) for m in (b, near)
    )
    assert close <= far
    assert torch.allclose(near(*example), b(*example), rtol=1e-9, atol=1e-9)
