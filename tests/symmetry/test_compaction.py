"""Units are taken out, and the outputs stay."""

import copy

import pytest
import torch
from modules import CASES, Squeeze, built, resnet20
from safetensors.torch import save
from torch import nn

from isopath.symmetry import Units, compact, symmetries


def emptied(model, units, share=0.5, seed=0):
    """Some units of each group with every parameter entry zero; which stay."""
    generator = torch.Generator().manual_seed(seed)
    kept = {key: torch.rand(size, generator=generator) > share for key, size in units.sizes.items()}
    for stays in kept.values():
        stays[0] = True
    masks = units.entries(kept)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if name in masks:
                parameter *= masks[name]
    return kept


def count(model):
    return sum(p.numel() for p in model.parameters())


# what of each can go; the others' units are those of heads, groups, normalised vectors and recurrent layers
REMOVABLE = {
    "mlp": 14, "conv, flatten 4 x 4, linear": 11, "resnet20": 112, "resnet20, option A": 88, "transposed conv": 10,
    "grouped transposed conv": 2, "group norm": 4, "grouped conv": 4, "squeeze and excite": 12,
    "concat and residual": 9, "pixel shuffle": 5, "raw parameters": 6, "a layer used twice": 7,
    "a constant buffer": 5, "lstm": 0, "gru": 0, "mixer": 16, "gpt": 32, "gpt, tied": 32, "vit": 32,
    "vit, packed": 16, "swin": 16, "convnext": 20, "shufflenet": 6, "resnext": 112, "densenet": 30, "googlenet": 27,
    "mobilenet": 42, "bert": 72,
}  # fmt: skip


@pytest.mark.parametrize("name", CASES)
def test_empty_units_are_taken_out_and_the_outputs_stay(name):
    model, example = built(name)
    found = symmetries(model, example, rescalings=False)
    units = Units.of(model, example, found)
    assert sum(units.sizes.values()) == REMOVABLE[name]
    kept = emptied(model, units)
    before, text = copy.deepcopy(model.state_dict()), str(model)
    small = compact(model, example, found)
    assert str(model) == text and all(torch.equal(t, before[n]) for n, t in model.state_dict().items())
    assert torch.allclose(small(*example), model(*example), rtol=1e-9, atol=1e-9)
    gone = sum(int((~stays).sum()) for stays in kept.values())
    assert (count(small) < count(model)) == (gone > 0)
    own = dict(small.named_parameters())
    for name, mask in units.entries(kept).items():
        if name in own:
            assert own[name].numel() == int(mask.sum())  # nothing else is gone, and nothing more left


def test_layers_know_their_new_sizes():
    model, example = built("mobilenet")
    units = Units.of(model, example, symmetries(model, example))
    emptied(model, units)
    small = compact(model, example)
    for layer in small.modules():
        if isinstance(layer, nn.Conv2d):
            assert layer.weight.shape[:2] == (layer.out_channels, layer.in_channels // layer.groups)
        if isinstance(layer, nn.BatchNorm2d):
            assert layer.num_features == len(layer.weight) == len(layer.running_mean)
        if isinstance(layer, nn.Linear):
            assert layer.weight.shape == (layer.out_features, layer.in_features)


def test_a_unit_that_nothing_makes_goes_where_nothing_leaves_it():
    torch.manual_seed(0)
    example = torch.randn(3, 4)
    for between, left in ((nn.ReLU(), 5), (nn.Tanh(), 5), (nn.Sigmoid(), 6)):
        model = nn.Sequential(nn.Linear(4, 6), between, nn.Linear(6, 2))
        with torch.no_grad():
            model[0].weight[2] = 0
            model[0].bias[2] = 0
        small = compact(model, example)
        assert small[0].out_features == left  # a sigmoid of zero is a half: the unit is a bias
        assert torch.allclose(small(example), model(example), atol=1e-6)


def test_a_unit_that_nothing_reads_goes_too():
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(4, 8), nn.GELU(), nn.Linear(8, 6), nn.ReLU(), nn.Linear(6, 3))
    with torch.no_grad():
        model[2].weight[:, 2:5] = 0  # nothing reads three, each with weights, a bias and act(b)
        model[4].weight[:, 1] = 0
    x = torch.rand(5, 4)
    small = compact(model, x)
    assert (small[0].out_features, small[2].out_features) == (5, 5)
    assert torch.allclose(small(x), model(x), atol=1e-6)


def test_what_one_layer_does_not_read_and_another_does_stays():
    class Two(nn.Module):
        def __init__(self):
            super().__init__()
            self.a, self.b, self.c = nn.Conv2d(1, 6, 3), nn.ConvTranspose2d(6, 2, 3), nn.Conv2d(6, 2, 3, padding=2)

        def forward(self, x):
            h = self.a(x).relu()
            return self.b(h) + self.c(h)

    torch.manual_seed(0)
    model, x = Two(), torch.rand(2, 1, 6, 6)
    with torch.no_grad():
        model.c.weight[:, :3] = 0
        model.b.weight[0] = 0
    small = compact(model, x)
    assert torch.allclose(small(x), model(x), atol=1e-6) and small.a.out_channels >= 5


def test_a_bias_left_behind_keeps_its_unit():
    model = nn.Sequential(nn.Linear(4, 6), nn.ReLU(), nn.Linear(6, 2))
    with torch.no_grad():
        model[0].weight[2] = 0
    assert compact(model, torch.randn(3, 4))[0].out_features == 6


def test_one_unit_stays_where_all_are_empty():
    model = nn.Sequential(nn.Linear(4, 6), nn.ReLU(), nn.Linear(6, 2))
    nn.init.zeros_(model[0].weight)
    nn.init.zeros_(model[2].weight)
    small, example = compact(model, torch.randn(3, 4)), torch.randn(3, 4)
    assert small[0].out_features == 1 and torch.allclose(small(example), model(example))


class Written(nn.Module):
    """Its width is written into its code."""

    def __init__(self):
        super().__init__()
        self.first, self.second = nn.Linear(4, 6), nn.Linear(6, 2)

    def forward(self, x):
        return self.second(self.first(x).relu().view(len(x), 2, 3).flatten(1))


def test_a_width_in_the_code_of_forward_keeps_the_units():
    model, example = Written(), torch.randn(3, 4)
    with torch.no_grad():
        model.first.weight[1] = model.first.bias[1] = 0
        model.second.weight[:, 1] = 0
    assert compact(model, example).first.out_features == 6
    units = Units.of(model, example, symmetries(model, example))
    assert units.sizes == {} and "these stay" in str(units)


def test_the_copy_trains_is_copied_and_exported():
    model, example = resnet20(width=16).eval(), torch.randn(2, 3, 8, 8)
    emptied(model, Units.of(model, example, symmetries(model, example)))
    model.requires_grad_(False)
    model[0].weight.requires_grad_(True)
    small = compact(model.train(), example)
    assert small.training and [p.requires_grad for p in small.parameters()].count(True) == 1
    small(example).sum().backward()
    small.eval()
    assert torch.allclose(torch.export.export(small, (example,)).module()(example), small(example), atol=1e-5)
    sizes = [len(save(dict(m.state_dict()))) for m in (small, model)]
    assert sizes[0] < 0.7 * sizes[1]
    assert torch.equal(copy.deepcopy(small)(example), small(example))


def test_totals_are_sums_over_a_units_entries():
    model, example = Squeeze(), torch.randn(2, 3, 8, 8)
    units = Units.of(model, example, symmetries(model, example))
    values = {name: parameter.detach().square() for name, parameter in model.named_parameters()}
    totals = units.totals(values)
    for key, size in units.sizes.items():
        for unit in range(size):
            stays = {key: torch.arange(size) != unit}
            by_mask = sum(float(values[n][~mask].sum()) for n, mask in units.entries(stays).items())
            assert float(totals[key][unit]) == pytest.approx(by_mask, rel=1e-5)


def test_a_head_that_the_example_does_not_run_is_named():
    class Heads(nn.Module):
        def __init__(self):
            super().__init__()
            self.body, self.a, self.b = nn.Linear(4, 16), nn.Linear(16, 3), nn.Linear(16, 3)

        def forward(self, x, other=False):
            return (self.b if other else self.a)(self.body(x).relu())

    model = Heads()
    with torch.no_grad():
        for tensor in (model.body.weight[5:], model.body.bias[5:], model.a.weight[:, 5:], model.b.weight[:, 5:]):
            tensor.zero_()
    with pytest.warns(UserWarning, match=r"'b\.weight' \(1 such parameters\) has no effect on this example"):
        compact(model, torch.randn(3, 4))
    small = compact(nn.Sequential(model.body, nn.ReLU(), model.a), torch.randn(3, 4))  # nothing to say
    assert small[2].weight.shape == (3, 5)
