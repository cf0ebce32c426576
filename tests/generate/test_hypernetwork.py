"""The network that makes weights: what it starts as, how large it is, and how its networks are run."""

import pytest
import torch
from problems import convolved, small, square
from torch import nn

from isopath.generate.family import Family
from isopath.generate.hypernetwork import NEAR, Hypernetwork
from isopath.generate.layout import Layout
from isopath.network import Network


def made(model, start=None, **sizes):
    network = Network(model)
    sizes = {"latent": 6, "code": 4, "width": 16, "trunk": 16, **sizes}
    layout, generator = Layout.of(network.space), torch.Generator().manual_seed(0)
    return network, Hypernetwork(layout, **sizes, generator=generator, start=start, plain=network.start)


def test_first_networks_have_weights_as_large_as_a_fresh_layer():
    model = nn.Sequential(nn.Linear(100, 50), nn.ReLU(), nn.Linear(50, 10))
    network, hypernetwork = made(model, code=16, width=64, trunk=64)
    thetas = hypernetwork(torch.randn(200, 6))
    sizes = {name: float(v.std()) for name, v in network.space.unflatten(thetas.detach()[0]).items()}
    for name, inputs in (("0.weight", 100), ("2.weight", 50)):
        assert sizes[name] == pytest.approx((2 / inputs) ** 0.5, rel=0.5)


def test_normalisations_lie_around_their_own_values():
    network, hypernetwork = made(convolved())
    thetas = hypernetwork(torch.randn(100, 6)).detach()
    scales = torch.stack([network.space.unflatten(theta)["1.weight"] for theta in thetas])
    assert float((scales.mean(0) - 1).abs().max()) < 0.4 and float(scales.std()) < 0.3


def test_around_a_trained_network_the_first_ones_are_near_it():
    model = small()
    start = Network(model).start
    _, hypernetwork = made(model, start)
    thetas = hypernetwork(torch.randn(200, 6)).detach()
    assert float((thetas - start).norm(dim=1).mean() / start.norm()) < 4 * NEAR
    assert torch.equal(hypernetwork.centre, start)


def test_it_grows_with_units_and_not_with_weights():
    def wide(width):
        return nn.Sequential(nn.Linear(20, width), nn.ReLU(), nn.Linear(width, width), nn.ReLU(), nn.Linear(width, 4))

    (one, a), (other, b) = made(wide(40)), made(wide(400))
    assert other.space.dimension / one.space.dimension > 60
    assert b.size / a.size < 11
    assert b.naive_size == 6 * 16 + 16 + 17 * other.space.dimension


def test_the_same_generator_gives_the_same_bits_and_the_callers_is_left_alone():
    before = torch.get_rng_state()
    a, b = (made(small())[1] for _ in range(2))
    assert torch.equal(torch.get_rng_state(), before)
    assert all(torch.equal(p, q) for p, q in zip(a.parameters(), b.parameters()))
    assert all(p.isfinite().all() for p in a.parameters())


@pytest.mark.parametrize("chunk", [1, 2, 5])
def test_a_vmap_is_the_loop(chunk):
    model, (x, _) = small().double(), square(12)
    network = Network(model)
    thetas = torch.stack([network.start + k for k in range(3)])
    x = x.double()
    together = Family(network, chunk)(thetas, x)
    assert torch.allclose(together, torch.stack([network(theta, x) for theta in thetas]), atol=1e-12)
    apart = Family(network, chunk, apart=True)(thetas, x)
    assert torch.allclose(apart, torch.cat([network(t, part) for t, part in zip(thetas, x.split(4))]), atol=1e-12)


def test_rows_are_counted_and_shared_out_evenly():
    network = Network(small())
    family = Family(network, apart=True)
    thetas = network.start.expand(3, -1).requires_grad_(True)
    family(thetas, square(12)[0])
    assert network.evaluations == 12
    with pytest.raises(ValueError, match="10 rows cannot be shared out among 3 networks"):
        family(thetas, square(10)[0])
