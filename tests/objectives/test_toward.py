import pytest
import torch
from torch import nn

import isopath as ip
from isopath.check import check_gradient
from isopath.network import Network
from networks import mlp, x


def test_its_value_is_half_the_squared_distance_to_a_module_or_a_point():
    network, other = Network(mlp()), mlp()
    target = Network(other).start
    expected = 0.5 * float((network.start - target).square().sum())
    for given in (other, target, target.float().double()):
        assert float(ip.Toward(given)(network, network.start)) == pytest.approx(expected, rel=1e-6)
    assert check_gradient(ip.Toward(other), mlp()) < 1e-8


def test_it_is_reached_when_close_relative_to_the_target():
    network, target = Network(mlp()), x(51)
    beside = x(51, seed=2)
    beside = beside / beside.norm() * target.norm()
    near, far = target + 0.9e-3 * beside, target + 1.1e-3 * beside
    assert ip.Toward(target).reached(network, near) and not ip.Toward(target).reached(network, far)
    assert ip.Toward(target, close=0.01).reached(network, far)


def test_another_architecture_is_refused():
    network = Network(mlp())
    with pytest.raises(ValueError, match=r"'0.weight' has shape \(7, 4\), expected \(6, 4\)"):
        ip.Toward(mlp(7))(network, network.start)
    with pytest.raises(ValueError, match=r"no tensor named '0.weight'"):
        ip.Toward(nn.Linear(4, 3))(network, network.start)


def test_only_the_parameters_that_move_count():
    network, other = Network(mlp(), ["2.*"]), mlp()
    value = float(ip.Toward(other)(network, network.start))
    last = torch.nn.utils.parameters_to_vector(other[2].parameters())
    assert value == pytest.approx(float(0.5 * (network.start - last).square().sum()))
