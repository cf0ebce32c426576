"""The straight line, made low by rescaling."""

import copy

import pytest
import torch
from torch import nn

import isopath as ip
import networks
from isopath.paths import rescaled

X = torch.randn(90, 4, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
Y = (X @ torch.randn(4, 3, generator=torch.Generator().manual_seed(5), dtype=torch.float64)).argmax(1)
TASK = ip.Task(X, Y, batch_size=30)


def fitted(seed: int, norm: bool = False, act: type[nn.Module] = nn.ReLU) -> nn.Module:
    torch.manual_seed(seed)
    first = [nn.Linear(4, 12), *([nn.BatchNorm1d(12)] if norm else []), act()]
    model = nn.Sequential(*first, nn.Linear(12, 8), act(), nn.Linear(8, 3)).double()
    return networks.fitted(model, X, Y)


@pytest.mark.parametrize("norm", [False, True])
def test_the_far_end_computes_the_same_and_the_line_is_lower(norm):
    a, b = fitted(0, norm), fitted(1, norm)
    kept = [copy.deepcopy(m.state_dict()) for m in (a, b)]
    perm = ip.align(a, b, X)
    line = rescaled(a, b, TASK, perm, steps=200, rate=0.02)
    assert torch.allclose(line.model(1)(X), b(X), atol=1e-9)
    assert not torch.allclose(line(1), ip.connect(a, perm(b), curve="segment")(1))
    data = X if norm else None
    plain = ip.along(ip.connect(a, b, curve="segment", permutation=perm), TASK, data=data)
    assert ip.along(line, TASK, data=data).mean("loss") < plain.mean("loss") - 0.01
    assert len(line.history) == 200 and line.history[-1]["evaluations"] > 200 * 30  # what judging cost is counted
    for model, before in zip((a, b), kept):
        assert all(torch.equal(before[key], value) for key, value in model.state_dict().items())


def test_heads_of_attention_are_rescaled_by_parts_of_one_tensor():
    class Attending(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.attention, self.head = nn.MultiheadAttention(8, 2, batch_first=True), nn.Linear(8, 3)

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return self.head(self.attention(x, x, x, need_weights=False)[0].mean(1))

    x = torch.randn(40, 5, 8, generator=torch.Generator().manual_seed(2), dtype=torch.float64)
    y = x[:, 0, :3].argmax(1)
    torch.manual_seed(0)
    a, b = Attending().double().eval(), Attending().double().eval()
    line = rescaled(a, b, ip.Task(x, y, batch_size=20), ip.symmetries(a, x[:2]), steps=30, rate=0.02)
    assert torch.allclose(line.model(1)(x), b(x), atol=1e-9)
    assert not torch.equal(line.model(1).attention.in_proj_weight, b.attention.in_proj_weight)


def test_planted_factors_are_undone():
    a = fitted(0)
    found = ip.symmetries(a, X[:2])
    b = copy.deepcopy(a)
    factors = torch.linspace(0.3, 3, 12, dtype=torch.float64)
    with torch.no_grad():
        b[0].weight.mul_(factors[:, None])
        b[0].bias.mul_(factors)
        b[2].weight.div_(factors)
    line = rescaled(a, b, TASK, found, steps=0)
    assert torch.allclose(line(1), line(0), atol=1e-6) and line.history == []


def test_a_soup_of_rescaled_networks_is_the_middle_of_their_line():
    a, b = fitted(0), fitted(1)
    plain, soup = ip.average([a, b], X), ip.average([a, b], X, objective=TASK)
    line = rescaled(a, b, TASK, ip.align(a, b, X))
    assert torch.allclose(soup(X), line.model(0.5)(X), atol=1e-6)
    assert ip.evaluate(soup, TASK).loss < ip.evaluate(plain, TASK).loss
    with pytest.raises(ValueError, match="give align=True"):
        ip.average([a, b], align=False, objective=TASK)


class Frozen(nn.Module):
    """A batch norm whose statistics are buffers that no training moves."""

    def __init__(self, seed: int) -> None:
        super().__init__()
        generator = torch.Generator().manual_seed(seed)
        self.register_buffer("mean", torch.randn(12, generator=generator, dtype=torch.float64))
        self.register_buffer("scale", torch.rand(12, generator=generator, dtype=torch.float64) + 0.5)
        self.register_buffer("index", torch.arange(12))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return ((x - self.mean) * self.scale)[:, self.index]


@pytest.mark.parametrize("seed", range(3))
def test_buffers_of_the_line_are_those_that_its_points_have(seed):
    a, b = (nn.Sequential(m[0], Frozen(10 * seed + i), *m[1:]) for i, m in enumerate((fitted(0), fitted(1))))
    found = ip.symmetries(a, X[:2])
    plain = ip.along(ip.connect(a, b, curve="segment"), TASK, points=17)
    line = rescaled(a, b, TASK, found, steps=200, rate=0.02)
    assert torch.allclose(line.model(1)(X), b(X), atol=1e-9)
    assert ip.along(line, TASK, points=17).mean("loss") < plain.mean("loss")


def test_a_soup_of_networks_that_do_not_train():
    a, b = fitted(0).requires_grad_(False), fitted(1).requires_grad_(False)
    with torch.no_grad():
        soup = ip.average([a, b], X, objective=TASK)
    assert ip.evaluate(soup, TASK).loss < ip.evaluate(ip.average([a, b], X), TASK).loss


def test_no_line_ends_above_the_one_that_was_given():
    a, b = fitted(0), fitted(1)
    found = ip.symmetries(a, X[:2])
    wild = rescaled(a, b, TASK, found, steps=5, rate=50.0)  # throws the factors away
    plain = ip.connect(a, b, curve="segment")
    assert ip.along(wild, TASK).mean("loss") <= ip.along(plain, TASK).mean("loss") + 1e-3


def test_it_repeats_to_the_bit_and_takes_a_symmetry_or_a_permutation():
    a, b = fitted(0), fitted(1)
    perm = ip.align(a, b, X)
    one, two = (rescaled(a, b, TASK, perm, steps=20, seed=3) for _ in range(2))
    other = rescaled(a, perm(b), TASK, perm.symmetries, steps=20, seed=3)
    assert torch.equal(one(1), two(1)) and torch.equal(one(1), other(1)) and one.history == two.history
    assert not torch.equal(one(1), rescaled(a, b, TASK, perm, steps=20, seed=4)(1))


def test_parameters_that_do_not_move_are_not_rescaled():
    a = fitted(0)
    b = copy.deepcopy(a)
    with torch.no_grad():
        b[0].weight.add_(0.3)
        b[2].weight.add_(0.1)
    line = rescaled(a, b, TASK, ip.symmetries(a, X[:2]), steps=30, trainable=["0.*", "2.*"])
    moved = line.model(1)
    assert torch.equal(moved[4].weight, b[4].weight) and torch.equal(moved[2].weight.sign(), b[2].weight.sign())
    assert not torch.allclose(moved[0].weight, b[0].weight) and torch.allclose(moved(X), b(X), atol=1e-9)
    with pytest.raises(ValueError, match="touch parameters that do not move"):
        rescaled(a, copy.deepcopy(a), TASK, ip.symmetries(a, X[:2]), trainable=["0.*"])


def test_slips_say_what_to_do():
    a, b = fitted(0, act=nn.Tanh), fitted(1, act=nn.Tanh)
    with pytest.raises(ValueError, match="no units can be rescaled"):
        rescaled(a, b, TASK, ip.symmetries(a, X[:2]))
    a, b = fitted(0), fitted(1)
    found = ip.symmetries(a, X[:2])
    with pytest.raises(ValueError, match="steps must be a whole number >= 0 and rate > 0"):
        rescaled(a, b, TASK, found, rate=0.0)
    with pytest.raises(ValueError, match="whole number >= 0"):
        rescaled(a, b, TASK, found, steps=1.5)
    with pytest.raises(ValueError, match="the symmetries have none"):
        rescaled(a, b, TASK, ip.symmetries(a, X[:2], rescalings=False))
    deeper = nn.Sequential(*a, nn.ReLU(), nn.Linear(3, 3).double())
    with pytest.raises(ValueError, match=r"of another model: '6.weight' is missing in model_b"):
        rescaled(a, b, TASK, ip.symmetries(deeper, X[:2]))
    with pytest.raises(TypeError, match="permutation"):
        rescaled(a, b, TASK, None)
