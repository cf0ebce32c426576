"""Eigenvalues measured along Kronecker eigenvectors."""

import pytest
import torch

from isopath.geometry.blocks import Block
from networks import build, dense, matrix, relative, x


def own(metric) -> torch.Tensor:
    return matrix(metric.mv, metric.dimension)


def places(block) -> torch.Tensor:
    """Indices of a layer's parameters as its block orders them, outputs first, the bias the last input."""
    groups, outputs, inputs = block.shape
    width = inputs - (block.bias is not None)
    parts = []
    if block.weight is not None:
        parts.append(torch.arange(block.weight.start, block.weight.stop).reshape(groups, outputs, width))
    if block.bias is not None:
        parts.append(torch.arange(block.bias.start, block.bias.stop).reshape(groups, outputs, 1))
    return torch.cat(parts, -1)


@pytest.mark.parametrize("name", ["mlp", "conv", "conv_bn", "grouped", "sdpa", "named", "weighted", "frozen"])
def test_its_eigenvalues_are_the_dense_metric_along_its_eigenvectors(name):
    case = build(name)
    G = dense(case, "kl")
    metric = case.reference("kl", batch_size=2).metric(case.model, "ekfac", coverage=1.0)
    for block in metric.blocks:
        assert isinstance(block, Block) and block.corrected is not None
        for g, index in enumerate(places(block).flatten(1)):
            basis = torch.kron(block.output_vectors[g].contiguous(), block.input_vectors[g].contiguous())
            expected = (basis * (G[index][:, index] @ basis)).sum(0).reshape(block.corrected[g].shape)
            assert relative(block.corrected[g], expected) < 1e-10


@pytest.mark.parametrize("name", ["mlp", "conv", "grouped", "sdpa"])
def test_it_is_nearer_to_every_block_than_the_product_of_factors(name):
    case = build(name)
    G = dense(case, "hellinger")
    metrics = {kind: case.reference().metric(case.model, kind, coverage=1.0) for kind in ("kronecker", "ekfac")}
    for block in metrics["ekfac"].blocks:
        for index in places(block).flatten(1):
            errors = {k: float((own(m) - G)[index][:, index].norm()) for k, m in metrics.items()}
            assert errors["ekfac"] <= errors["kronecker"] * (1 + 1e-9)


@pytest.mark.parametrize("shrinkage", [0.0, 0.3])
@pytest.mark.parametrize("name", ["mlp", "conv_bn", "encoder", "tokens"])
def test_solve_norm_trace_and_spectrum_are_those_of_its_own_matrix(name, shrinkage):
    case = build(name)
    metric = case.reference().metric(case.model, "ekfac", shrinkage=shrinkage)
    K, b = own(metric), x(metric.dimension)
    identity = torch.eye(len(K)).double()
    assert torch.linalg.eigvalsh(K).min() > -1e-12
    assert relative(metric.solve(b, 0.01), torch.linalg.solve(K + 0.01 * identity, b)) < 1e-8
    assert float(metric.norm(b)) == pytest.approx(float(b @ K @ b) ** 0.5)
    assert metric.trace() == pytest.approx(float(K.trace()))
    torch.testing.assert_close(metric.spectrum(3), torch.linalg.eigvalsh(K).flip(0)[:3])
