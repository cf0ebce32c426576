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
    layers = (nn.Conv2d(2, 6, 3, bias=False), nn.BatchNorm2d(6), nn.ReLU(), nn.Conv2d(6, 4, 2), nn.BatchNorm2d(4),
              nn.ReLU(), nn.Flatten(), nn.Linear(36, 8), nn.BatchNorm1d(8, momentum=None), nn.Linear(8, 3))  # fmt: skip
    model = nn.Sequential(*layers).double()
    for layer in model:
        if hasattr(layer, "running_mean"):
            for tensor in (layer.running_mean, layer.weight.data, layer.bias.data):
                tensor.normal_()
            layer.running_var.uniform_(0.5, 2.0)
    return model


def batch(rows=40, seed=1, shape=(2, 6, 6)):
    inputs, share = x(rows, *shape, seed=seed), torch.full((rows,), 1 / rows).double()
    return Batch(inputs, x(rows, 3, seed=9), share, divergence_of("squared_error"), None)


def statistics(model, data=None):
    network = Network(model)
    return network, BatchStatistics.found(network, network.start, data or batch())


def test_there_it_does_what_it_did_and_back_is_the_same_point():
    network, normed = statistics(convolutional())
    assert normed.layers == ("1", "4", "8")
    theta, data = network.start, batch()
    there = normed.entered(theta, [data])
    torch.testing.assert_close(normed(there, data.inputs), network(theta, data.inputs), **EXACT)
    assert (normed(theta, data.inputs) - network(theta, data.inputs)).abs().max() > 0.1
    torch.testing.assert_close(normed.left(there, [data]), theta, **EXACT)


def test_statistics_are_those_of_all_batches_and_of_different_sizes():
    network, normed = statistics(convolutional())
    parts = [batch(40, seed) for seed in (1, 2)]
    whole = torch.cat([part.inputs for part in parts])
    mean, variance = normed._moments(network, network.start, parts)["1"]
    units = F.conv2d(whole, network.space.unflatten(network.start)["0.weight"]).transpose(0, 1).flatten(1)
    torch.testing.assert_close(mean, units.mean(1), **EXACT)
    torch.testing.assert_close(variance, units.var(1, correction=0), **EXACT)


def test_gradients_leave_out_what_a_change_of_scale_or_mean_does():
    model = convolutional()
    network, normed = statistics(model)
    data, point = batch(), network.start.clone().requires_grad_(True)
    (gradient,) = torch.autograd.grad(data.drift(normed(point, data.inputs)), point)
    named, weights = network.space.unflatten(gradient), dict(model.named_parameters())
    for layer in ("0", "3"):  # a filter may grow, epsilon aside, and its bias do what it likes
        alike = (named[f"{layer}.weight"] * weights[f"{layer}.weight"]).flatten(1).sum(1)
        norms = named[f"{layer}.weight"].flatten(1).norm(dim=1) * weights[f"{layer}.weight"].flatten(1).norm(dim=1)
        assert (alike.abs() <= 1e-3 * norms).all()
    assert named["3.bias"].abs().max() < 1e-12


class Twice(nn.Module):
    """One batch norm called twice, one whose scale is not trained, one without, and one as usual."""

    def __init__(self):
        super().__init__()
        self.first, self.last = nn.Linear(4, 4), nn.Linear(4, 3)
        self.shared, self.fixed, self.usual = (nn.BatchNorm1d(4) for _ in range(3))
        self.plain, self.tracked = nn.BatchNorm1d(4, affine=False), nn.BatchNorm1d(4, track_running_stats=False)
        self.fixed.weight.requires_grad_(False)

    def forward(self, inputs):
        y = self.shared(torch.tanh(self.shared(self.first(inputs))))
        return self.last(self.tracked(self.plain(self.usual(torch.tanh(self.fixed(y))))))


def test_layers_that_have_no_way_back_keep_their_running_statistics():
    _, normed = statistics(Twice().double(), batch(shape=(4,)))
    assert normed.layers == ("usual",)
    assert [name for name, layer in normed._skeleton.named_modules() if layer.training] == ["usual"]


def test_without_batch_norm_or_with_few_values_there_is_nothing_to_do():
    assert statistics(nn.Linear(4, 3).double(), batch(shape=(4,)))[1] is None
    assert statistics(convolutional(), batch(16))[1].layers == ("1", "4")  # 16 rows, but of many pixels


def test_it_counts_on_the_account_of_the_network():
    network, normed = statistics(convolutional())
    before = network.evaluations
    normed(network.start, batch().inputs)
    assert network.evaluations == pytest.approx(before + 40 / 3) and normed.evaluations == 0


@pytest.mark.parametrize("rows", [200, 64])
def test_a_round_of_recovery_ends_at_a_point_for_running_statistics(rows):
    model = convolutional().train()
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    network, reference = Network(model), ip.Reference(x(rows, 2, 6, 6), "squared_error")
    kept = bind(reference, network, 0)
    read = Rows(network, kept, 0)
    moved = network.start + 0.1 * x(network.space.dimension, seed=3)
    recovery = Recovery(steps=60, batch_size=64, rate=3e-3, warmup=5)
    support = torch.ones_like(moved, dtype=torch.bool)
    theta, _ = recovered(recovery, read, moved, support, Moments.none(moved), 3e-3, 0)
    assert kept.drift(theta).judged < 0.2 * kept.drift(moved).judged
    ended = network.model(theta)
    assert all(torch.equal(tensor, ended.state_dict()[name]) for name, tensor in before.items() if "running" in name)
    assert all(torch.equal(tensor, model.state_dict()[name]) for name, tensor in before.items())


def test_what_is_kept_of_several_sets_keeps_running_statistics():
    network = Network(convolutional())
    reference = ip.Reference(x(100, 2, 6, 6), "squared_error")
    both = bind(reference + ip.Reference(x(100, 2, 6, 6, seed=5), "squared_error"), network, 0)
    assert Rows(network, both, 0).batches(0, 32, 64) == []
    assert [len(part.inputs) for part in Rows(network, bind(reference, network, 0), 0).batches(0, 32, 64)] == [32, 32]


@pytest.mark.parametrize("pattern", ["unstructured", "channels"])
def test_a_sparse_path_through_batch_norm(pattern):
    model = convolutional()
    reference = ip.Reference(x(300, 2, 6, 6), "squared_error")
    drifts = {}
    for own in (True, False):
        recovery = Recovery(steps=30, batch_size=64, rate=1e-2, batch_statistics=own)
        path = ip.trace(model, reference, ip.Sparsity(0.5, pattern), 1e6, 24, corrector=recovery)
        assert path.status == "converged"
        drifts[own] = path.drift
    assert drifts[True] != drifts[False]
    sparse = path.model()
    weights = [layer.weight for layer in sparse if hasattr(layer, "weight") and layer.weight.ndim > 1]
    assert sum(int((w == 0).sum()) for w in weights) >= 0.45 * sum(w.numel() for w in weights)
