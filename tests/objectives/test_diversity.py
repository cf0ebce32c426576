import pytest
import torch
from torch import nn

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


def test_a_given_network_is_compared_by_what_it_does_itself():
    inputs = x(20, 4)
    model, other = (nn.Sequential(nn.Linear(4, 6), nn.BatchNorm1d(6), nn.Linear(6, 3)).double().eval() for _ in "ab")
    other.load_state_dict(model.state_dict())
    other[1].running_mean.fill_(0.7)  # the same weights, other statistics
    network = Network(model)
    expected = -float(PLAIN["hellinger"](outputs(model, inputs), outputs(other, inputs)).mean())
    assert float(ip.Diversity([other], inputs)(network, network.start)) == pytest.approx(expected) and expected < 0
    other[0].weight.data.add_(0.3)
    head = Network(model, ["2.*"])  # what does not move is the other's own too
    expected = -float(PLAIN["hellinger"](outputs(model, inputs), outputs(other, inputs)).mean())
    assert float(ip.Diversity([other], inputs)(head, head.start)) == pytest.approx(expected)


def test_points_in_one_tensor_and_inputs_from_a_stream():
    class Stream(torch.utils.data.IterableDataset):
        def __iter__(self):
            return iter(x(8, 4))

    network, points = Network(mlp()), torch.stack([Network(mlp()).start for _ in range(2)])
    assert float(ip.Diversity(points)(network, network.start)) == float(ip.Diversity([*points])(network, network.start))
    streamed = ip.Diversity([mlp()], torch.utils.data.DataLoader(Stream(), 3))
    assert float(streamed(network, network.start)) < 0


@pytest.mark.parametrize(
    ("models", "error", "said"),
    [
        (mlp(), TypeError, "takes a list of networks or of points .* got one Sequential"),
        (["a"], TypeError, "each network of a diversity must be of type Module or Tensor, got str"),
        ([torch.zeros(3)], ValueError, r"point 0 of a diversity has shape \(3,\), expected \(51,\)"),
    ],
)
def test_what_is_no_network(models, error, said):
    network = Network(mlp())
    with pytest.raises(error, match=said):
        ip.Diversity(models)(network, network.start)
