"""How different networks are: against sums over pairs written out, and what must not change it."""

import copy
import math
from itertools import combinations, permutations

import pytest
import torch
import torch.nn.functional as F
from torch import nn

import isopath as ip

X = torch.randn(50, 6, generator=torch.Generator().manual_seed(1), dtype=torch.float64)
Y = torch.arange(50) % 3


def networks(count: int = 4) -> list[nn.Module]:
    torch.manual_seed(0)
    return [nn.Sequential(nn.Linear(6, 8), nn.Tanh(), nn.Linear(8, 3)).double() for _ in range(count)]


def gradients(model, x, y):
    point = x.clone().requires_grad_(True)
    return torch.autograd.grad(F.cross_entropy(model(point), y, reduction="sum"), point)[0]


def cka(a, b):
    a, b = a - a.mean(0), b - b.mean(0)
    return float((a.T @ b).norm() ** 2 / ((a.T @ a).norm() * (b.T @ b).norm()))


@pytest.mark.parametrize("batch_size", [7, 50, 64])
def test_it_is_the_mean_over_pairs_written_out(batch_size):
    models = networks()
    got = ip.compare(models, X, Y, batch_size=batch_size)
    outputs = [m(X).detach() for m in models]
    pairs = list(combinations(range(4), 2))
    disagreement = [float((outputs[a].argmax(1) != outputs[b].argmax(1)).double().mean()) for a, b in pairs]
    assert got.disagreement == pytest.approx(sum(disagreement) / 6) and 0 < got.disagreement < 1
    logs = [y.log_softmax(1) for y in outputs]
    kl = [float((logs[a].exp() * (logs[a] - logs[b])).sum(1).mean()) for a, b in permutations(range(4), 2)]
    assert got.kl == pytest.approx(sum(kl) / 12)
    found = [gradients(m, X, Y) for m in models]
    cosines = torch.stack([F.cosine_similarity(found[a], found[b]) for a, b in pairs])
    assert got.coherence == pytest.approx(float(cosines.mean()))
    assert got.coherence_max == pytest.approx(float(cosines.amax(0).mean()))
    assert (got.networks, got.rows) == (4, 50)


def test_layers_are_compared_by_linear_cka():
    models = networks()
    got = ip.compare(models, X)
    pairs = list(combinations(range(4), 2))
    hidden = [m[0](X).detach() for m in models]
    assert set(got.layers) == {"0", "2"}
    assert got.layers["0"] == pytest.approx(1 - sum(cka(hidden[a], hidden[b]) for a, b in pairs) / 6)
    assert 0 < got.layers["0"] < 1 and got.coherence is None
    assert set(ip.compare(models, X, layers=["1"]).layers) == {"1"} and ip.compare(models, X, layers=()).layers == {}


def test_twins_do_not_differ_and_a_permuted_one_does_so_nowhere_that_counts():
    model = networks(1)[0]
    found = ip.symmetries(model, X[:2])
    twin = ip.Permutation.random(found, torch.Generator().manual_seed(0))(model)
    assert not torch.equal(twin[0].weight, model[0].weight)
    got = ip.compare([model, twin], X, Y)
    assert got.disagreement == 0 and got.kl == pytest.approx(0, abs=1e-12)
    assert got.coherence == pytest.approx(1) and got.coherence_max == pytest.approx(1)
    assert all(distance == pytest.approx(0, abs=1e-12) for distance in got.layers.values())


def test_scale_and_rotation_of_a_layer_do_not_count():
    a, b = nn.Linear(6, 6, bias=False).double(), nn.Linear(6, 6, bias=False).double()
    with torch.no_grad():
        b.weight.copy_(3 * torch.linalg.qr(torch.randn(6, 6, dtype=torch.float64))[0] @ a.weight)
    head = nn.Linear(6, 3).double()
    got = ip.compare([nn.Sequential(a, head), nn.Sequential(b, head)], X, batch_size=20)
    assert got.layers["0"] == pytest.approx(0, abs=1e-12) and got.layers["1"] > 0.01


def test_a_network_with_no_gradient_has_no_direction():
    flat, one, other = networks(3)
    nn.init.zeros_(flat[0].weight)
    got = ip.compare([flat, one, other], X, Y)
    assert got.coherence == pytest.approx(ip.compare([one, other], X, Y).coherence)
    assert got.layers["0"] > 2 / 3 - 1e-9  # a constant layer is at distance 1 from both others
    assert math.isnan(ip.compare([flat, flat], X, Y).coherence)


def test_an_ensemble_is_compared_by_its_members_whatever_they_are_made_of():
    models = networks()
    assert ip.compare(ip.Ensemble(models, batched=True), X, Y) == ip.compare(models, X, Y)
    deep = nn.Sequential(nn.Linear(6, 5), nn.ReLU(), nn.Linear(5, 5), nn.ReLU(), nn.Linear(5, 3)).double()
    assert set(ip.compare([models[0], deep], X).layers) == {"0", "2"}  # by name, those that both have


def test_nothing_of_the_caller_is_touched():
    models = [nn.Sequential(nn.Dropout(0.5), m, nn.BatchNorm1d(3).double()).train() for m in networks(2)]
    states, random = [copy.deepcopy(m.state_dict()) for m in models], torch.get_rng_state()
    assert ip.compare(models, X, Y) == ip.compare(models, X, Y)
    for model, state in zip(models, states):
        assert model.training and all(torch.equal(v, state[k]) for k, v in model.state_dict().items())
        assert all(p.grad is None and p.requires_grad for p in model.parameters())
        assert not any(module._forward_hooks for module in model.modules())
    assert torch.equal(random, torch.get_rng_state())


def test_it_prints_itself():
    got = ip.compare(networks(), X, Y)
    assert repr(got).startswith("Comparison(disagreement=") and "coherence=" in repr(got)
    assert "4 networks on 50 rows" in str(got) and "1 - CKA of layer 0" in str(got) and "cosine" in str(got)
    assert "cosine" not in str(ip.compare(networks(), X))


@pytest.mark.parametrize(
    ("models", "change", "kind", "message"),
    [
        (networks(1), {}, ValueError, "at least two networks, got 1"),
        ([*networks(1), nn.Linear(6, 4).double()], {}, ValueError, r"same C >= 2, got \[\(50, 3\), \(50, 4\)\]"),
        ([nn.Linear(6, 1).double()] * 2, {}, ValueError, r"same C >= 2, got \[\(50, 1\)\]"),
        (networks(2), {"layers": ["9"]}, ValueError, r"network 0 has no layer '9'; it has \['0', '1', '2'\]"),
        (networks(2), {"y": Y[:3]}, ValueError, r"labels must have the shape \(50,\)"),
        (networks(2), {"y": Y.double()}, TypeError, "tensor of integers"),
        (networks(2), {"x": X[:0]}, ValueError, "at least one row"),
    ],
)
def test_mistakes_are_named(models, change, kind, message):
    with pytest.raises(kind, match=message):
        ip.compare(**{"models": models, "x": X, **change})


def test_a_layer_without_a_tensor_for_each_row_is_named_where_it_was_asked_for():
    class Strange(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.table, self.head = nn.Linear(2, 3).double(), nn.Linear(6, 3).double()

        def forward(self, x):
            return self.head(x) + self.table(x.new_ones(1, 2))

    models = [Strange(), Strange()]
    assert set(ip.compare(models, X).layers) == {"head"}
    with pytest.raises(ValueError, match="layer 'table' gave no tensor with 50 rows"):
        ip.compare(models, X, layers=["table"])
