"""Every symmetry that is found is exact in float64, and the known ones are found."""

import copy
import warnings

import pytest
import torch
from modules import CASES, Squeeze, built, mlp, resnet20
from torch import nn

from isopath.check import check_symmetry
from isopath.symmetry import Permutation, Symmetries, align, symmetries


@pytest.mark.parametrize("name", CASES)
def test_every_known_unit_is_found_and_moving_them_changes_nothing(name):
    model, example = built(name)
    with warnings.catch_warnings():
        warnings.simplefilter("error")  # a group that fails its check would warn
        found = symmetries(model, example)
    assert found.units == CASES[name].units
    generator = torch.Generator().manual_seed(3)
    for _ in range(3):
        moved = Permutation.random(found, generator)(model)
        assert torch.allclose(moved(*example), model(*example), rtol=1e-10, atol=1e-10)
    before, after = model.state_dict(), moved.state_dict()
    assert any(not torch.equal(before[key], after[key]) for key in before)


def test_running_statistics_left_behind_change_the_outputs():
    model, example = built("resnet20")
    found = symmetries(model, example)
    permutation = Permutation.random(found, torch.Generator().manual_seed(0))
    wrong = copy.deepcopy(model)
    moved = permutation(dict(model.named_parameters()))
    for name, parameter in wrong.named_parameters():
        parameter.data = moved[name].detach()
    assert not torch.allclose(wrong(*example), model(*example), rtol=1e-3)


class Through(nn.Module):
    """A function between two linear layers."""

    def __init__(self, function):
        super().__init__()
        self.first, self.second, self.function = nn.Linear(4, 6), nn.Linear(6, 3), function

    def forward(self, x):
        return self.second(self.function(self.first(x)))


@pytest.mark.parametrize(
    ("function", "units"),
    [
        (torch.relu, 6),
        (lambda h: h.softmax(-1), 6),
        (lambda h: h / h.norm(dim=-1, keepdim=True), 6),
        (lambda h: h.sort(-1).values, 0),
        (lambda h: h.cumsum(-1), 0),
        (lambda h: h.flip(-1), 0),
        (lambda h: h + torch.arange(6.0), 0),
        (lambda h: h + torch.ones(6), 6),
        (lambda h: h.view(-1, 3, 2).amax(-1).repeat(1, 2), 3 + 6 + 2),  # blocks, units in each, and equal copies
        (lambda h: torch.cat([h[:, :2], h[:, 2:].tanh()], 1), 6),
        (lambda h: torch.fft.fft(h).real, 0),
        (lambda h: h[:, [3, 1, 2, 0, 4, 5]], 0),
        (lambda h: torch.einsum("ni,nj->nij", h, h).sum(1), 6),
        (lambda h: torch.where(h > h.mean(-1, keepdim=True), h, -h), 6),
    ],
)
def test_what_an_operator_does_is_understood_or_frozen(function, units):
    torch.manual_seed(1)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        found = symmetries(Through(function), torch.randn(2, 4))
    assert found.units == units
    if not units:
        assert found.frozen["first.weight", 0].startswith(("aten.", "a constant"))


def test_a_group_that_fails_its_check_is_dropped_with_a_warning(monkeypatch):
    from isopath.symmetry import labels

    monkeypatch.setitem(labels.RULES, "aten.cumsum", labels.RULES["aten.clone"])  # a wrong rule
    model = nn.Sequential(nn.Linear(4, 5), nn.ReLU(), Through(lambda h: h.cumsum(-1)))
    model[2].first = nn.Linear(5, 6)
    with pytest.warns(UserWarning, match="permuting 6 units"):
        found = symmetries(model, torch.randn(2, 4))
    assert found.units == 5


def test_the_caller_is_left_alone():
    model, example = resnet20().train(), torch.randn(2, 3, 8, 8)
    before = copy.deepcopy(model.state_dict())
    state = torch.get_rng_state()
    symmetries(model, example)
    assert model.training and torch.equal(state, torch.get_rng_state())
    assert all(torch.equal(value, before[key]) for key, value in model.state_dict().items())


def test_a_module_that_differs_between_calls_is_refused():
    class Moody(nn.Module):
        def __init__(self):
            super().__init__()
            self.body = nn.Linear(4, 3)
            self.calls = 0

        def forward(self, x):
            self.calls += 1
            return self.body(x).relu() if self.calls % 2 else self.body(x)

    with pytest.raises(ValueError, match="second call"):
        symmetries(Moody(), torch.randn(2, 4))


def test_parameters_in_one_memory_are_fixed_unless_they_are_the_same():
    model = mlp()
    memory = torch.randn(8 * 4 + 6)
    model[0].weight = nn.Parameter(memory[:32].view(8, 4))
    model[2].bias = nn.Parameter(memory[32:])
    found = symmetries(model, torch.randn(2, 4))
    assert found.units == 0 and found.frozen["0.weight", 0] == "shares memory with another parameter"


def test_a_parameter_that_is_never_read_stays():
    model = Squeeze()
    model.idle = nn.Linear(3, 3)
    found = symmetries(model, torch.randn(2, 3, 8, 8))
    assert found.units == CASES["squeeze and excite"].units and found.frozen["idle.weight", 0] == "never read"


def test_the_table_says_what_moves_and_why_the_rest_does_not():
    text = str(symmetries(mlp(), torch.randn(2, 4)))
    assert "2 groups of units, 14 units in all" in text
    assert "2.weight axis 1" in text and "0.weight axis 1: an input" in text and "4.bias axis 0: an output" in text
    heads = str(symmetries(nn.Sequential(CASES["vit"].build()), CASES["vit"].example()))
    assert "within each index of" in heads


def test_a_table_written_by_hand():
    torch.manual_seed(0)
    model = mlp()
    table = {
        "0.weight": ("first", None), "0.bias": ("first",), "2.weight": ("second", "first"), "2.bias": ("second",),
        "4.weight": (None, "second"),
    }  # fmt: skip
    given, found = Symmetries.of_table(model, table), symmetries(model, torch.randn(2, 4))
    assert given.units == found.units == 14 and given.places == found.places
    assert check_symmetry(model, torch.randn(3, 4), given) < 1e-14
    moved = Permutation.random(given, torch.Generator().manual_seed(1))(model)
    back = align(model, moved, torch.randn(2, 4), method="weights", symmetries=given)(moved)
    assert all(torch.equal(a, b) for a, b in zip(model.parameters(), back.parameters()))
    with pytest.raises(ValueError, match=r"'3.weight' 1 axes.*unknown"):
        Symmetries.of_table(model, {"3.weight": ("a",)})
    with pytest.raises(ValueError, match=r"'a' has 8 units, but axis 0 of '2.bias' 6"):
        Symmetries.of_table(model, {"0.bias": ("a",), "2.bias": ("a",)})


def test_experts_that_no_row_is_sent_to_at_some_points():
    class Sparse(nn.Module):
        def __init__(self):
            super().__init__()
            self.gate = nn.Linear(4, 6)
            self.experts = nn.ModuleList(nn.Sequential(nn.Linear(4, 5), nn.ReLU(), nn.Linear(5, 3)) for _ in range(6))

        def forward(self, x):
            chosen, parts = self.gate(x).argmax(1), []
            for k, expert in enumerate(self.experts):
                rows = (chosen == k).nonzero().flatten()
                if len(rows):
                    parts.append(torch.zeros(len(x), 3, dtype=x.dtype).index_copy(0, rows, expert(x[rows])))
            return torch.stack(parts).sum(0)

    for seed in range(4):
        torch.manual_seed(seed)
        model, inputs = Sparse().double(), torch.randn(3, 4).double()
        found = symmetries(model, inputs)
        moved = Permutation.random(found, torch.Generator().manual_seed(3))(model)
        assert torch.allclose(moved(inputs), model(inputs), rtol=1e-10, atol=1e-10)
