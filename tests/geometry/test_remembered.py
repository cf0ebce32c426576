"""What a memory refuses, since it would hold something else than was meant: labels, loaders, networks, settings."""

import pytest
import torch
from torch import nn
from torch.utils.data import DataLoader, SubsetRandomSampler, TensorDataset, WeightedRandomSampler

import isopath as ip
from isopath.network import Network
from networks import mlp

ROWS = torch.randn(200, 4, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
LABELS = torch.arange(200) % 3


def loader(labels):
    return DataLoader(TensorDataset(ROWS, labels), batch_size=16)


@pytest.mark.parametrize("options", [{"examples": 10}, {"examples": 0, "factors": True}], ids=str)
@pytest.mark.parametrize("labels, said", [
    (torch.where(torch.arange(200) == 177, 3, LABELS), "labels go up to 3"),
    (torch.where(torch.arange(200) == 177, -1, LABELS), "labels go from -1 to 2"),
])  # fmt: skip
def test_every_label_is_looked_at_not_those_of_the_rows_that_are_kept(options, labels, said):
    with pytest.raises(ValueError, match=said):
        ip.Memory(**options).remember(mlp(), ROWS, labels)
    if "factors" in options:  # a loader is gone over once
        with pytest.raises(ValueError, match=said):
            ip.Memory(**options).remember(mlp(), loader(labels))
    ip.Memory(**options).remember(mlp(), ROWS, torch.where(torch.arange(200) == 177, -100, LABELS))


def test_a_loader_that_leaves_rows_out_is_refused():
    some = SubsetRandomSampler(range(180))
    drawn = WeightedRandomSampler(torch.ones(200), 200)
    for sampler, said in ((some, "SubsetRandomSampler draws 180 of 200 rows"), (drawn, "WeightedRandomSampler")):
        with pytest.raises(ValueError, match=rf"{said}.*Subset"):
            ip.Memory(examples=10).remember(mlp(), DataLoader(TensorDataset(ROWS, LABELS), sampler=sampler))


@pytest.mark.parametrize("options", [
    {"examples": 10}, {"examples": 10, "choose": "herding"}, {"examples": 0, "factors": True},
    {"examples": 0, "factors": "diagonal"},
], ids=str)  # fmt: skip
def test_a_network_that_gives_no_numbers_is_not_remembered(options):
    model = mlp()
    with torch.no_grad():
        model[0].weight[0, 0] = float("nan")
    with pytest.raises(ValueError, match=r"outputs .* are not finite: there is nothing to keep"):
        ip.Memory(**options).remember(model, ROWS)


def test_settings_that_make_no_sense_are_named():
    for options, said in (
        ({"examples": 1.5}, "examples must be whole numbers >= 0, got"),
        ({"budget": -5}, "budget must be whole numbers >= 0, got"),
        ({"choose": "best"}, "choose must be one of 'random', .* got 'best'"),
    ):
        with pytest.raises(ValueError, match=said):
            ip.Memory(**options)
    with pytest.raises(ValueError, match=r"balanced over labels \(N,\), got \(200, 1\)"):
        ip.Memory(examples=10, choose="balanced").remember(mlp(), ROWS, LABELS[:, None])


def test_a_network_of_other_widths_is_named_with_every_shape_that_differs():
    memory = ip.Memory(examples=0, factors=True).remember(mlp(), ROWS)
    wider = nn.Sequential(nn.Linear(4, 9), nn.Tanh(), nn.Linear(9, 3)).double()
    with pytest.raises(ValueError, match=r"3 parameters do not fit: '0\.weight'"):
        memory.tasks[0].curvature.metric(Network(wider).space)
    model = nn.Sequential(nn.Linear(4, 6), nn.Tanh(), nn.Linear(6, 3), nn.Tanh(), nn.Linear(3, 3)).double()
    both = ip.Memory(examples=10, factors=True).remember(model, ROWS)
    for use in (
        lambda: ip.trace(mlp(), both, ip.Task(ROWS, LABELS)),
        lambda: ip.optim.Invariant(torch.optim.SGD((other := mlp()).parameters(), 0.1), other, both),
    ):
        with pytest.raises(ValueError, match=r"of another network, 2 parameters do not fit: '4\.weight'"):
            use()
