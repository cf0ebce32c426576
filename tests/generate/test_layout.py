"""Units: every entry of a point belongs to one, and goes back where it came from."""

import pytest
import torch
from torch import nn

from isopath.generate.layout import Layout
from isopath.space import Space
from networks import CASES, build


def test_units_and_points_are_one_to_one(case):
    space = Space.of(case.model)
    layout, thetas = Layout.of(space), torch.randn(3, space.dimension, dtype=torch.float64)
    rows = layout.taken(thetas)
    assert torch.equal(layout.joined(rows), thetas)
    assert sum(block[0].numel() for block in rows) == space.dimension
    assert [block.shape[1:] for block in rows] == [(sheet.units, sheet.width) for sheet in layout.sheets]


def test_a_unit_is_a_row_with_its_bias():
    model = nn.Sequential(nn.Conv2d(2, 4, 3), nn.BatchNorm2d(4), nn.Flatten(), nn.Linear(4, 3))
    layout = Layout.of(Space.of(model))
    assert [(sheet.units, sheet.width, sheet.plain) for sheet in layout.sheets] == [
        (4, 19, False), (4, 2, True), (3, 5, False),
    ]  # fmt: skip
    rows = layout.taken(layout.space.flatten(dict(model.named_parameters())).unsqueeze(0))
    assert torch.equal(rows[0][0, 1, :18], model[0].weight[1].detach().flatten())
    assert torch.equal(rows[2][0, :, -1], model[3].bias.detach())
    assert layout.units == 11


@pytest.mark.parametrize("name", list(CASES)[:3])
def test_evened_layers_count_by_their_units(name):
    space = Space.of(build(name).model)
    layout = Layout.of(space)
    thetas = torch.randn(2, space.dimension, dtype=torch.float64) * torch.tensor([[1.0], [7.0]])
    evened = layout.evened(thetas)
    assert torch.allclose(evened.square().sum(1), torch.full((2,), float(layout.units), dtype=torch.float64))
    assert torch.allclose(layout.evened(3 * thetas), evened)
