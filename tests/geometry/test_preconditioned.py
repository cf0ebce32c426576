"""The exact metric, solved from a Kronecker factor that may be stale."""

import pytest
import torch
from torch import nn

import isopath as ip
from isopath.metrics import Identity, Preconditioned
from isopath.network import Network
from networks import build, dense, relative, x


@pytest.mark.parametrize("name", ["mlp", "conv_bn", "attention", "tokens"])
def test_with_steps_enough_it_solves_the_dense_metric(name):
    case = build(name)
    G = dense(case, "hellinger")
    metric = case.reference().metric(case.model, "preconditioned", iterations=300, tolerance=1e-12)
    b, damping = x(len(G)), 0.1 * float(G.trace()) / len(G)
    damped = G + damping * torch.eye(len(G)).double()
    assert relative(metric.solve(b, damping), torch.linalg.solve(damped, b)) < 1e-8
    assert relative(metric.mv(b), G @ b) < 1e-10


def test_a_few_steps_from_a_stale_factor_come_nearer_than_the_factor_and_than_plain_steps():
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(20, 30), nn.ReLU(), nn.Linear(30, 10)).double()
    kept = ip.Reference(x(300, 20))
    stale = kept.metric(model, "kronecker")
    with torch.no_grad():
        for p in model.parameters():
            p.add_(0.1 * p.std() * torch.randn(p.shape, dtype=p.dtype))
    network = Network(model)
    batches = kept.whole(network, network.start).batches
    exact = kept.metric(model, "exact", tolerance=1e-12, iterations=2000)
    b, damping = x(network.space.dimension), 0.1 * stale.trace() / stale.dimension
    truth = exact.solve(b, damping)
    few = Preconditioned.of(network, network.start, batches, factor=stale, iterations=4)
    plain = Preconditioned(exact, Identity(network.space.dimension), iterations=4)
    found = [metric.solve(b, damping) for metric in (few, stale, plain)]
    cosine = [float(torch.nn.functional.cosine_similarity(v, truth, dim=0)) for v in found]
    assert cosine[0] > 0.95 and cosine[0] > cosine[1] and cosine[0] > cosine[2]


def test_factors_of_another_size_are_refused():
    case = build("mlp")
    with pytest.raises(ValueError, match="dimension"):
        Preconditioned(case.reference().metric(case.model), Identity(3))
