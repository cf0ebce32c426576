import pytest
import torch

import isopath as ip
from isopath.check import check_gradient
from isopath.network import Network
from networks import PLAIN, mlp, outputs, x


def test_in_weights_it_is_minus_the_mean_log_distance():
    network, others = Network(mlp()), [mlp(), mlp()]
    points = [Network(other).start for other in others]
    expected = -sum(float((network.start - p).norm().log()) for p in points) / 2
    assert float(ip.Diversity(others)(network, network.start)) == pytest.approx(expected, abs=5e-3)
    assert float(ip.Diversity(points)(network, network.start)) == pytest.approx(expected, abs=5e-3)


@pytest.mark.parametrize("divergence", ["hellinger", "kl", "squared_error"])
def test_in_outputs_it_is_minus_the_mean_divergence(divergence):
    model, others, inputs = mlp(), [mlp(), mlp()], x(8, 4)
    network = Network(model)
    y = outputs(model, inputs)
    expected = -sum(float(PLAIN[divergence](y, outputs(o, inputs)).mean()) for o in others) / 2
    assert float(ip.Diversity(others, inputs, divergence)(network, network.start)) == pytest.approx(expected)


@pytest.mark.parametrize("inputs", [None, x(8, 4)])
def test_gradients_are_right(inputs):
    assert check_gradient(ip.Diversity([mlp(), mlp()], inputs), mlp()) < 1e-6


@pytest.mark.parametrize("inputs", [None, x(8, 4)])
def test_a_path_can_leave_one_of_the_networks_themselves(inputs):
    model = mlp()
    network = Network(model)
    theta = network.start.requires_grad_()
    objective = ip.Diversity([model], inputs)
    (gradient,) = torch.autograd.grad(objective(network, theta), theta)
    assert torch.isfinite(gradient).all() and gradient.norm() > 0
    assert torch.equal(gradient, torch.autograd.grad(objective(network, theta), theta)[0])


def test_the_nearest_network_repels_most():
    network = Network(mlp())
    near, far = network.start + 0.1, network.start + 10
    theta = network.start.requires_grad_()
    pulls = [torch.autograd.grad(ip.Diversity([p.detach()])(network, theta), theta)[0] for p in (near, far)]
    assert pulls[0].norm() > 50 * pulls[1].norm()


def test_batches_of_a_step_make_up_the_whole_and_the_others_run_once():
    network, others, inputs = Network(mlp()), [mlp(), mlp()], x(24, 4)
    objective = ip.Diversity(others, inputs, batch_size=8)
    theta = network.start + 0.1
    whole = float(objective(network, theta))
    assert network.evaluations == pytest.approx((2 + 1) * 24 / 3)  # forward passes: two networks once, and this one
    parts = [float(objective.freeze(k, 5)(network, theta)) for k in range(3)]
    assert network.evaluations == pytest.approx((2 + 2) * 24 / 3)
    assert sum(parts) / 3 == pytest.approx(whole) and len(set(parts)) == 3
    assert float(objective.freeze(1, 5)(network, theta)) == parts[1] != float(objective.freeze(1, 6)(network, theta))
    in_weights = ip.Diversity(others)
    assert float(in_weights.freeze(3, 1)(network, theta)) == float(in_weights(network, theta))


def test_another_network_has_its_own_outputs_to_leave():
    others, inputs = [mlp()], x(8, 4)
    objective, networks = ip.Diversity(others, inputs.float()), [Network(mlp()), Network(mlp().float())]
    found = [objective(network, network.start + 0.1) for network in (*networks[1:], *networks[1:])]
    assert found[0] == found[1] and found[0].dtype == torch.float32
    frozen = [mlp(), mlp()]
    frozen[1][0].weight.requires_grad_(False).add_(1)
    again = ip.Diversity(others, inputs)
    values = [float(again(network, network.start + 0.1)) for network in map(Network, (*frozen, frozen[0]))]
    assert values[0] == values[2] != values[1]
    fresh = Network(frozen[1])
    assert values[1] == float(ip.Diversity(others, inputs)(fresh, fresh.start + 0.1))


def test_inputs_come_from_a_loader_too():
    network, others, inputs = Network(mlp()), [mlp()], x(12, 4)
    theta = network.start + 0.1
    expected = float(ip.Diversity(others, inputs)(network, theta))
    pairs = torch.utils.data.TensorDataset(inputs, torch.zeros(12))
    loader = torch.utils.data.DataLoader(pairs, batch_size=5)
    assert float(ip.Diversity(others, loader)(network, theta)) == pytest.approx(expected)


def test_rows_and_batches_that_are_none_are_errors():
    with pytest.raises(ValueError, match="batch_size must be >= 1, got 0"):
        ip.Diversity([mlp()], x(4, 4), batch_size=0)
    network = Network(mlp())
    with pytest.raises(ValueError, match="a diversity's inputs"):
        ip.Diversity([mlp()], x(0, 4))(network, network.start)


def test_no_network_to_leave_is_an_error():
    with pytest.raises(ValueError, match=r"at least one network to move away from, got none"):
        ip.Diversity([])


def test_outputs_move_apart_from_those_of_the_start():
    torch.manual_seed(0)
    model, elsewhere = mlp(16), 2 * x(100, 4)
    path = ip.trace(model, ip.Reference(x(200, 4)), ip.Diversity([model], elsewhere), 5e-3, 30)
    apart = PLAIN["hellinger"](outputs(model, elsewhere), outputs(path.model(), elsewhere)).mean()
    assert path.status != "stationary" and path.drift <= 5e-3
    assert float(apart) > 2 * path.drift > 0
