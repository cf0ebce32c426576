import pytest
import torch
import torch.nn.functional as F
from torch import nn

import isopath as ip
from isopath.geometry.batch import Batch
from isopath.geometry.divergence import divergence_of
from isopath.network import Network
from isopath.trace import Recovery
from isopath.trace.normalisation import BatchStatistics
from isopath.trace.recovery import Moments, Rows, recovered
from isopath.trace.tracer import bind
from networks import x

EXACT = {"rtol": 1e-11, "atol": 1e-11}


def convolutional():
    torch.manual_seed(0)
    layers = (
        nn.Conv2d(2, 6, 3, 1, 1, bias=False), nn.BatchNorm2d(6), nn.ReLU(), nn.Conv2d(6, 4, 2), nn.BatchNorm2d(4),
        nn.ReLU(), nn.Flatten(), nn.Linear(100, 8), nn.BatchNorm1d(8, momentum=None), nn.Linear(8, 3),
    )  # fmt: skip
    model = nn.Sequential(*layers).double()
    for layer in model:
        if hasattr(layer, "running_mean"):
            for tensor in (layer.running_mean, layer.bias.data):
                tensor.normal_(0, 0.3)
            layer.running_var.uniform_(0.1, 0.5), layer.weight.data.uniform_(0.5, 1.5)
    return model


def batch(rows=44, seed=1, shape=(2, 6, 6)):
    inputs, share = x(rows, *shape, seed=seed), torch.full((rows,), 1 / rows).double()
    return Batch(inputs, x(rows, 3, seed=9), share, divergence_of("squared_error"), None)


def statistics(model, data=None):
    network = Network(model)
    return network, BatchStatistics.found(network, network.start, data or batch())


def test_there_it_does_what_it_did_and_back_is_the_same_point():
    network, normed = statistics(convolutional())
    assert normed.layers == ("1", "4")
    theta, data = network.start, batch()
    there = normed.entered(theta, [data])
    torch.testing.assert_close(normed(there, data.inputs), network(theta, data.inputs), **EXACT)
    assert (normed(theta, data.inputs) - network(theta, data.inputs)).abs().max() > 0.1
    torch.testing.assert_close(normed.left(there, [data]), theta, **EXACT)


def test_statistics_are_those_of_all_batches_and_of_different_sizes():
    network, normed = statistics(convolutional())
    parts = [batch(44, 1), batch(60, 2)]
    whole = torch.cat([part.inputs for part in parts])
    mean, variance = normed._moments(network, network.start, parts)["1"]
    units = F.conv2d(whole, network.space.unflatten(network.start)["0.weight"], padding=1).transpose(0, 1).flatten(1)
    torch.testing.assert_close(mean, units.mean(1), **EXACT)
    torch.testing.assert_close(variance, units.var(1, correction=0), **EXACT)


def test_gradients_leave_out_what_a_change_of_scale_or_mean_does():
    model = convolutional()
    network, normed = statistics(model)
    data, point = batch(), network.start.clone().requires_grad_(True)
    (gradient,) = torch.autograd.grad(data.drift(normed(point, data.inputs)), point)
    named, weights = network.space.unflatten(gradient), dict(model.named_parameters())
    for layer in ("0", "3"):  # a filter may grow, epsilon aside, and its bias do what it likes
        filters, slopes = (tensor[f"{layer}.weight"].detach().flatten(1) for tensor in (weights, named))
        assert ((filters * slopes).sum(1).abs() <= 1e-3 * filters.norm(dim=1) * slopes.norm(dim=1)).all()
    assert named["3.bias"].abs().max() < 1e-12


class Odd(nn.Module):
    """Batch norms that cannot be left again, and one called by keyword that can."""

    def __init__(self):
        super().__init__()
        self.first, self.last = nn.Conv1d(4, 4, 1), nn.Linear(4, 3)
        self.twice, self.fixed, self.usual, self.a, self.b = (nn.BatchNorm1d(4) for _ in range(5))
        self.plain, self.untracked = nn.BatchNorm1d(4, affine=False), nn.BatchNorm1d(4, track_running_stats=False)
        self.all = nn.SyncBatchNorm(4)
        self.fixed.weight.requires_grad_(False)
        self.b.bias = self.a.bias

    def forward(self, inputs):
        y = self.twice(torch.tanh(self.twice(self.first(inputs))))
        for layer in (self.fixed, self.plain, self.untracked, self.all, self.a, self.b):
            y = layer(torch.tanh(y))
        return self.last(self.usual(input=torch.tanh(y)).mean(2))


def test_layers_that_have_no_way_back_keep_their_running_statistics():
    network, normed = statistics(Odd().double(), batch(shape=(4, 30)))
    assert normed.layers == ("usual",)
    assert [name for name, layer in normed._skeleton.named_modules() if layer.training] == ["usual"]
    data = batch(shape=(4, 30))
    there = normed.entered(network.start, [data])
    torch.testing.assert_close(normed(there, data.inputs), network(network.start, data.inputs), **EXACT)


def test_without_batch_norm_or_with_few_values_there_is_nothing_to_do():
    assert statistics(nn.Linear(4, 3).double(), batch(shape=(4,)))[1] is None
    assert statistics(convolutional(), batch(40))[1].layers == ("1",)  # 40 rows of 36 pixels, then of 25
    assert statistics(convolutional(), batch(20))[1] is None


def test_half_precision_is_summed_in_single():
    model = convolutional().to(torch.bfloat16)
    network, data = Network(model), batch()
    data = Batch(data.inputs.bfloat16(), data.kept.bfloat16(), data.weight.bfloat16(), data.divergence, None)
    normed = BatchStatistics.found(network, network.start, data)
    mean, variance = normed._moments(network, network.start, [data])["1"]
    units = F.conv2d(data.inputs, model[0].weight, padding=1).detach().double().transpose(0, 1).flatten(1)
    torch.testing.assert_close(mean, units.mean(1), rtol=1e-4, atol=1e-4)
    torch.testing.assert_close(variance, units.var(1, correction=0), rtol=1e-4, atol=1e-4)


def test_it_counts_on_the_account_of_the_network():
    network, normed = statistics(convolutional())
    before = network.evaluations
    normed(network.start, batch().inputs)
    assert network.evaluations == pytest.approx(before + 44 / 3) and normed.evaluations == 0


def test_a_step_of_recovery_goes_down_the_gradient_there_and_comes_back():
    model = convolutional().train()
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    network, size, rate = Network(model), 64, 1e-3
    read = Rows(network, bind(ip.Reference(x(200, 2, 6, 6), "squared_error"), network, 0), 0)
    moved = network.start + 0.1 * x(network.space.dimension, seed=3)
    recovery, support = Recovery(1, size, rate, warmup=0), torch.ones_like(moved, dtype=torch.bool)
    theta, _ = recovered(recovery, read, moved, support, Moments.none(moved), rate, 0)
    measured = read.batches(0, size, 256)
    normed = BatchStatistics.found(network, moved, measured[0])
    there = normed.entered(moved, measured)
    gradient = read.gradient(there, 0, size, normed)
    assert (gradient - read.gradient(moved, 0, size)).norm() > 0.1 * gradient.norm()
    adam = gradient / (gradient.abs() + 1e-3 * gradient.abs().mean())  # its first step
    torch.testing.assert_close(theta, normed.left(there - rate * adam, measured), **EXACT)
    ended = network.model(theta)
    assert all(torch.equal(tensor, ended.state_dict()[name]) for name, tensor in before.items() if "running" in name)
    assert all(torch.equal(tensor, model.state_dict()[name]) for name, tensor in before.items())


def test_what_is_kept_of_several_sets_keeps_running_statistics():
    network = Network(convolutional())
    reference = ip.Reference(x(100, 2, 6, 6), "squared_error")
    both = bind(reference + ip.Reference(x(100, 2, 6, 6, seed=5), "squared_error"), network, 0)
    assert Rows(network, both, 0).batches(0, 32, 64) == []
    found = Rows(network, bind(reference, network, 0), 0).batches(0, 32, 64)
    assert [len(part.inputs) for part in found] == [32, 32]


@pytest.mark.parametrize("pattern", ["unstructured", "channels"])
def test_a_sparse_path_through_batch_norm(pattern):
    drifts = {}
    for own in (True, False):
        recovery = Recovery(steps=30, batch_size=64, rate=1e-2, batch_statistics=own)
        reference = ip.Reference(x(300, 2, 6, 6), "squared_error")
        path = ip.trace(convolutional(), reference, ip.Sparsity(0.5, pattern), 1e6, 24, corrector=recovery)
        assert path.status == "converged"
        drifts[own] = path.drift
        weights = [layer.weight for layer in path.model() if hasattr(layer, "weight") and layer.weight.ndim > 1]
        assert sum(int((w == 0).sum()) for w in weights) >= 0.45 * sum(w.numel() for w in weights)
    assert drifts[True] != drifts[False] and drifts[True] < 2 * drifts[False]


def test_rows_of_which_each_is_one_value_keep_running_statistics():
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(4, 16), nn.BatchNorm1d(16), nn.ReLU(), nn.Linear(16, 3)).double()
    paths = [ip.trace(model, ip.Reference(x(400, 4)), ip.Sparsity(0.5), 1e6, 12,
                      corrector=Recovery(10, 128, batch_statistics=own)) for own in (True, False)]  # fmt: skip
    assert torch.equal(paths[0].point(), paths[1].point())
