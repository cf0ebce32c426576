"""What a network costs."""

import pytest
import torch
from torch import nn

import isopath as ip


def test_operations_weights_and_bytes_are_those_of_the_layers():
    model = nn.Sequential(nn.Conv2d(3, 8, 3, padding=1), nn.ReLU(), nn.Flatten(), nn.Linear(8 * 16, 5)).train()
    found = ip.footprint(model, torch.randn(7, 3, 4, 4), passes=3)
    assert found.flops == 2 * (8 * 3 * 9 * 16 + 128 * 5)
    assert found.parameters == found.nonzero == 8 * 28 + 5 * 129 and found.bytes == 4 * found.parameters
    assert 0 < found.seconds < 1 and model.training


def test_a_compact_network_costs_less_and_zeros_alone_only_fewer_bytes():
    model, example = nn.Sequential(nn.Linear(40, 30), nn.ReLU(), nn.Linear(30, 5)), torch.randn(8, 40)
    with torch.no_grad():
        model[0].weight[10:] = model[0].bias[10:] = 0
        model[2].weight[:, 10:] = 0
    whole, small = (ip.footprint(m, example, passes=2) for m in (model, ip.compact(model, example)))
    assert whole.flops == 3 * small.flops and whole.parameters > small.parameters == small.nonzero == whole.nonzero
    assert whole.bytes < 0.6 * 4 * whole.parameters
    assert "parameters (465 not zero)" in str(whole) and "FLOP a row" in str(whole)


def test_keyword_arguments_and_bad_input():
    model = nn.Bilinear(3, 4, 2)
    assert ip.footprint(model, {"input1": torch.randn(5, 3), "input2": torch.randn(5, 4)}, passes=1).parameters == 26
    with pytest.raises(ValueError, match="passes must be >= 1, got 0"):
        ip.footprint(model, (torch.randn(5, 3), torch.randn(5, 4)), passes=0)


def test_operations_inside_fused_kernels_count():
    torch.manual_seed(0)
    n, t, e = 5, 6, 8
    layer = nn.TransformerEncoderLayer(e, 2, 16, batch_first=True)
    products = 4 * e * e + 2 * t * e + 2 * e * 16  # of a token: projections, attention, two linear maps
    assert ip.footprint(layer, torch.randn(n, t, e), passes=1).flops == 2 * t * products
    recurrent = ip.footprint(nn.LSTM(e, 3, batch_first=True), torch.randn(n, t, e), passes=1)
    assert recurrent.flops == 2 * t * 4 * 3 * (e + 3)
