"""What networks say together."""

import copy

import pytest
import torch
from torch import nn
from torch.utils.data import DataLoader, IterableDataset, TensorDataset

import isopath as ip
import networks
from isopath.geometry.divergence import divergence_of
from isopath.network import Network
from isopath.paths import consensus

X = torch.randn(90, 4, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
Y = (X @ torch.randn(4, 3, generator=torch.Generator().manual_seed(5), dtype=torch.float64)).argmax(1)


def mlp(seed: int, outputs: int = 3) -> nn.Module:
    torch.manual_seed(seed)
    return nn.Sequential(nn.Linear(4, 12), nn.ReLU(), nn.Dropout(0.5), nn.Linear(12, outputs)).double()


def value(task: ip.Task, model: nn.Module) -> float:
    network = Network(model)
    return float(task(network, network.start))


def test_it_is_the_mean_divergence_from_the_mean_prediction():
    a, b = (mlp(seed).eval() for seed in (0, 1))
    with torch.no_grad():
        mean = (a(X).softmax(1) + b(X).softmax(1)) / 2
        kl = (mean * (mean.log() - a(X).log_softmax(1))).sum(1).mean()
        root = (mean.sqrt() - a(X).softmax(1).sqrt()).square().sum(1).mean() / 2
        apart = ((a(X) - b(X)) / 2).square().sum(1).mean() / 2
    for divergence, expected in (("kl", kl), (divergence_of("kl"), kl), ("hellinger", root), ("squared_error", apart)):
        assert value(consensus([a, b], X, divergence), a) == pytest.approx(float(expected), rel=1e-10)
    own = consensus([a, b], X, lambda y, y0: (y - y0).square().sum(-1) / 2, batch_size=7)
    assert value(own, a) == pytest.approx(float(apart), rel=1e-10) and own.batch_size == 7
    assert not own.y.requires_grad


def test_a_network_agrees_with_itself_and_nothing_is_modified():
    model = mlp(0).train()
    before = copy.deepcopy(model.state_dict())
    assert value(consensus([model], X), model) == pytest.approx(0, abs=1e-15)
    assert model.training and all(torch.equal(before[k], v) for k, v in model.state_dict().items())


class Shuffled(IterableDataset):
    def __iter__(self):
        return iter(TensorDataset(X[torch.randperm(90)], Y))


GIVEN = {
    "a dataset": TensorDataset(X, Y), "a loader": DataLoader(TensorDataset(X, Y), 7),
    "a stream in another order each time": DataLoader(Shuffled(), 9), "a tensor": X,
}  # fmt: skip


@pytest.mark.parametrize("given", GIVEN.values(), ids=GIVEN)
def test_inputs_of_every_kind_get_the_targets_of_their_rows(given):
    model = mlp(0)
    assert value(consensus([model], given), model) == pytest.approx(0, abs=1e-15)


def test_outputs_are_picked_and_token_outputs_count_each_token():
    class Named(nn.Module):
        def __init__(self):
            super().__init__()
            self.layer = nn.Linear(4, 3).double()

        def forward(self, tokens):
            return {"said": self.layer(tokens)}

    torch.manual_seed(0)
    a, b, tokens = Named(), Named(), X.reshape(15, 6, 4)
    flat = consensus([a.layer, b.layer], X)
    whole = consensus([a, b], {"tokens": tokens}, output="said", batch_size=4)
    assert value(whole, a) == pytest.approx(value(flat, a.layer), rel=1e-12)


def test_a_curve_learns_it_without_labels():
    a, b = (networks.fitted(mlp(seed), X, Y) for seed in (0, 1))
    objective, perm = consensus([a, b], X, batch_size=30), ip.align(a, b, X)
    straight = ip.connect(a, b, curve="segment", permutation=perm)
    found = ip.connect(a, b, objective, steps=300, rate=0.02, permutation=perm)
    before, after = (ip.along(curve, objective) for curve in (straight, found))
    assert after.mean("loss") < 0.7 * before.mean("loss") and set(after.accuracy) == {None}
    assert ip.along(found, ip.Task(X, Y)).mean("loss") < ip.along(straight, ip.Task(X, Y)).mean("loss")


def test_bad_input_is_refused():
    with pytest.raises(ValueError, match="at least one network, got none"):
        consensus([], X)
    with pytest.raises(ValueError, match="zero rows"):
        consensus([mlp(0)], X[:0])
    with pytest.raises(ValueError, match="the same classes"):
        consensus([mlp(0), mlp(1, 5)], X)
    with pytest.raises(ValueError, match="unknown divergence 'near'"):
        consensus([mlp(0)], X, "near")
    with pytest.raises(ValueError, match='use divergence="bernoulli" for a logit'):
        consensus([mlp(0, 1)], X)
    with pytest.raises(ValueError, match="Sequential does not run on the inputs of a consensus"):
        consensus([mlp(0)], X[:, :3])
    with pytest.raises(ValueError, match="batch_size must be a whole number >= 1, got 0"):
        consensus([mlp(0)], X, batch_size=0)
    with pytest.raises(TypeError, match="a Dataset or a DataLoader"):
        consensus([mlp(0)], "images")
    broken = mlp(0)
    broken[0].bias.data[0] = torch.inf
    with pytest.raises(ValueError, match="the networks' output is not finite"):
        consensus([broken], X)


def test_rows_of_different_lengths_are_refused():
    rows = [torch.ones(2 + k // 3, 4, dtype=torch.float64) for k in range(6)]
    with pytest.raises(ValueError, match=r"one shape for all rows, got \(2, 3\) and \(3, 3\); pad every batch"):
        consensus([nn.Linear(4, 3).double()], DataLoader(rows), batch_size=3)
