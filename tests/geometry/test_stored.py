"""Metrics without their data: files and sums over tasks."""

import pytest
import torch

import isopath as ip
from isopath.storage import DamagedFile
from networks import build, matrix, mlp, relative, x

KINDS = ["kronecker", "ekfac", "diagonal", "low_rank"]


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("name", ["mlp", "grouped", "tokens"])
def test_a_file_gives_back_the_same_metric(kind, name, tmp_path):
    case = build(name)
    metric = case.reference().metric(case.model, kind)
    ip.metrics.save(metric, tmp_path / "metric.safetensors")
    back = ip.metrics.load(tmp_path / "metric.safetensors", case.model)
    v = x(metric.dimension)
    assert type(back) is type(metric)
    assert relative(ip.metrics.merged([back, metric]).mv(v), 2 * metric.mv(v)) < 1e-9
    assert torch.allclose(back.mv(v), metric.mv(v), rtol=1e-12, atol=1e-14)
    assert torch.allclose(back.solve(v, 0.1), metric.solve(v, 0.1), rtol=1e-12, atol=1e-14)


@pytest.mark.parametrize("kind", KINDS)
def test_the_sum_of_a_metric_with_itself_is_a_multiple_and_decays(kind):
    case = build("mlp")
    metric = case.reference().metric(case.model, kind)
    v = x(metric.dimension)
    assert relative(ip.metrics.merged([metric, metric]).mv(v), 2 * metric.mv(v)) < 1e-9
    assert relative(ip.metrics.merged([metric, metric], [0.5, 1.0]).mv(v), 1.5 * metric.mv(v)) < 1e-9


def test_low_rank_and_diagonal_sums_are_those_of_the_matrices():
    model = mlp()
    references = [ip.Reference(x(5, 4, seed=seed)) for seed in (1, 2)]
    for kind, options in (("low_rank", {"rank": 12}), ("diagonal", {})):
        terms = [reference.metric(model, kind, **options) for reference in references]
        expected = sum(w * matrix(m.mv, m.dimension) for w, m in zip((0.3, 1.0), terms))
        found = ip.metrics.merged(terms, [0.3, 1.0], rank=24)
        assert relative(matrix(found.mv, found.dimension), expected) < 1e-9
    cut = ip.metrics.merged([reference.metric(model, "low_rank", rank=12) for reference in references], rank=3)
    assert len(cut.values) == 3 and relative(cut.vectors.mT @ cut.vectors, torch.eye(3).double()) < 1e-9


def test_mistakes_are_named(tmp_path):
    case, file = build("mlp"), tmp_path / "metric.safetensors"
    with pytest.raises(TypeError, match="Exact needs its rows for every product"):
        ip.metrics.save(case.reference().metric(case.model), file)
    low, other = (case.reference().metric(case.model, kind) for kind in ("low_rank", "diagonal"))
    with pytest.raises(ValueError, match="one kind and one network, got Diagonal, LowRank"):
        ip.metrics.merged([low, other])
    with pytest.raises(ValueError, match="got none"):
        ip.metrics.merged([])
    with pytest.raises(TypeError, match="each metric must be of type Kronecker or Diagonal or LowRank, got Exact"):
        ip.metrics.merged([case.reference().metric(case.model)])
    for weights in ([1.0], [1.0, -1.0]):
        with pytest.raises(ValueError, match="one number >= 0 for each of 2 metrics"):
            ip.metrics.merged([other, other], weights)
    shrunk = case.reference().metric(case.model, "kronecker", shrinkage=0.1)
    for use in (lambda: ip.metrics.save(shrunk, file), lambda: ip.metrics.merged([shrunk, shrunk])):
        with pytest.raises(ValueError, match=r"factors are shrunk, .* build it without shrinkage="):
            use()
    for metric in (low, other):
        ip.metrics.save(metric, file)
        with pytest.raises(ValueError, match="of another network"):
            ip.metrics.load(file, mlp(7))
    ip.Memory(examples=3).remember(case.model, case.inputs).save(file)
    with pytest.raises(ValueError, match="holds no metric"):
        ip.metrics.load(file, case.model)
    file.write_bytes(file.read_bytes()[:-9])
    with pytest.raises(DamagedFile):
        ip.metrics.load(file, case.model)
