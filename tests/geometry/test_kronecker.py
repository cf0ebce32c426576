"""The Kronecker metric: exact where it must be, close elsewhere, and unbreakable."""

import itertools

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

import isopath as ip
from isopath.geometry import factors
from isopath.geometry.blocks import Lookup
from isopath.geometry.factors import SecondMoment, _patches
from isopath.geometry.kronecker import Kronecker
from isopath.network import Network
from networks import CASES, PLAIN, Case, build, dense, matrix, mlp, relative, x

COSINE_WITH_THE_BLOCKS = 0.93  # of the MLP's K-FAC blocks with the dense ones


def kronecker(case: Case, divergence="hellinger", **options):
    return case.reference(divergence).metric(case.model, "kronecker", **options)


def loose(metric) -> torch.Tensor:
    """The diagonal `(P,)` of what no block covers, zero elsewhere."""
    diagonal = torch.zeros(metric.dimension, dtype=torch.float64)
    for place, values in metric.diagonal:
        diagonal[place] = values
    return diagonal


def part_of(block, v: torch.Tensor) -> torch.Tensor:
    """A layer's part of `v` as its block sees it, `(groups, o, i)` with the bias as the last input."""
    groups, outputs, inputs = block.shape
    width = inputs - (block.bias is not None)
    pieces = [v[block.weight].view(groups, outputs, width)] if block.weight is not None else []
    return torch.cat([*pieces, *([v[block.bias].view(groups, outputs, 1)] if block.bias is not None else [])], -1)


def own_matrix(metric) -> torch.Tensor:
    return matrix(metric.mv, metric.dimension, torch.float64)


@pytest.mark.parametrize("divergence", PLAIN)
def test_one_linear_layer_on_one_row_is_exact(divergence):
    case = Case(nn.Linear(4, 3).double(), x(1, 4))
    metric = kronecker(case, divergence, coverage=1.0)
    assert relative(own_matrix(metric), dense(case, divergence)) < 1e-12


@pytest.mark.parametrize("trainable", [("weight", "bias"), ("weight",), ("bias",)])
def test_one_layer_with_linear_outputs_is_exact_on_many_weighted_rows_and_batches(trainable):
    weights = torch.tensor([1.0, 2, 0, 4, 0.5, 1]).double()
    layer = nn.Linear(4, 3).double()
    for name, parameter in layer.named_parameters():
        parameter.requires_grad_(name in trainable)
    case = Case(layer, x(6, 4), {"weights": weights, "batch_size": 4}, weights)
    assert relative(own_matrix(kronecker(case, "squared_error")), dense(case, "squared_error")) < 1e-12


def test_a_layer_over_tokens_is_exact_for_linear_outputs():
    case = Case(nn.Linear(4, 3).double(), x(2, 3, 4))
    assert relative(own_matrix(kronecker(case, "squared_error")), dense(case, "squared_error")) < 1e-12


@pytest.mark.parametrize("count", [2, 3])
def test_merged_references_are_the_sum_where_the_product_is_exact(count):
    layer = nn.Linear(4, 3).double()
    cases = [Case(layer, x(6, 4, seed=i)) for i in range(count)]
    network = Network(layer)
    kept = sum((c.reference("squared_error") for c in cases[1:]), cases[0].reference("squared_error"))
    merged = Kronecker.of(network, network.start, kept.bind(network, network.start).batches)
    assert relative(own_matrix(merged), sum(dense(c, "squared_error") for c in cases)) < 1e-12


def test_a_convolution_that_fits_once_is_a_linear_layer():
    layer = nn.Conv2d(2, 3, 3).double()
    case = Case(nn.Sequential(layer, nn.Flatten()), x(6, 2, 3, 3))
    assert relative(own_matrix(kronecker(case, "squared_error")), dense(case, "squared_error")) < 1e-12


def test_a_grouped_convolution_has_one_block_per_group():
    case = Case(nn.Sequential(nn.Conv1d(4, 6, 3, groups=2), nn.Flatten()).double(), x(7, 4, 3))
    metric = kronecker(case, "squared_error")
    assert metric.blocks[0].shape == (2, 3, 7)
    assert relative(own_matrix(metric), dense(case, "squared_error")) < 1e-12


@pytest.mark.parametrize("stride", [1, 2])
@pytest.mark.parametrize("padding", [0, 1, "same", "valid"])
@pytest.mark.parametrize("dilation", [1, 2])
@pytest.mark.parametrize("groups", [1, 2])
def test_patches_are_what_a_convolution_multiplies(stride, padding, dilation, groups):
    if stride == 2 and padding == "same":
        pytest.skip("torch has no strided 'same' convolution")
    for rank, convolve in ((1, F.conv1d), (2, F.conv2d), (3, F.conv3d)):
        kernel = (3, 2, 2)[:rank]
        inputs, weight = x(2, 4, *(7, 6, 5)[:rank]), x(6, 4 // groups, *kernel)
        expected = convolve(inputs, weight, None, stride, padding, dilation, groups)
        rows = _patches(inputs, weight.shape[2:], stride, padding, dilation, groups)  # (g, n, positions, width)
        out = torch.einsum("gnpw,gow->ngop", rows, weight.reshape(groups, 6 // groups, -1))
        torch.testing.assert_close(out.reshape(expected.shape), expected)


def test_the_blocks_of_an_mlp_are_close_to_the_dense_ones():
    with torch.random.fork_rng():
        torch.manual_seed(0)
        model = nn.Sequential(nn.Linear(8, 12), nn.Tanh(), nn.Linear(12, 5)).double()
    case = Case(model, x(100, 8))
    G, K = dense(case, "hellinger"), own_matrix(kronecker(case))
    for block in (slice(0, 108), slice(108, None)):
        a, b = G[block, block], K[block, block]
        assert float((a * b).sum() / (a.norm() * b.norm())) > COSINE_WITH_THE_BLOCKS
        assert 0.8 < float(b.trace() / a.trace()) < 1.25


@pytest.mark.parametrize("name", ["norms", "conv_bn", "grouped"])
def test_scales_and_shifts_of_normalisation_have_the_dense_diagonal(name):
    case = build(name)
    expected, metric = dense(case, "kl").diag(), kronecker(case, "kl", coverage=1.0)
    diagonal = loose(metric)
    covered = diagonal > 0
    kinds = (nn.LayerNorm, nn.BatchNorm2d, nn.GroupNorm)
    assert covered.sum() == sum(p.numel() for m in case.model.modules() if isinstance(m, kinds) for p in m.parameters())
    torch.testing.assert_close(diagonal[covered], expected[covered])


@pytest.mark.parametrize("name", ["raw", "tied", "lstm"])
def test_parameters_of_other_operators_have_the_dense_diagonal_on_one_row(name):
    case = build(name)
    case = case._replace(inputs=case.inputs[:1])
    expected, metric = dense(case, "hellinger").diag(), kronecker(case, coverage=1.0)
    diagonal = loose(metric)
    covered = diagonal > 0
    assert covered.any()
    torch.testing.assert_close(diagonal[covered], expected[covered])


def test_no_parameter_is_forgotten(case):
    expected, own = dense(case, "squared_error").diag(), own_matrix(kronecker(case, "squared_error")).diag()
    assert not (own[expected > 1e-6] < 1e-9).any()
    assert float(F.cosine_similarity(own, expected, dim=0)) > 0.7


@pytest.mark.parametrize("shrinkage", [0.0, 0.3])
@pytest.mark.parametrize("damping", [1e-4, 1.0])
def test_a_solve_is_the_inverse_of_its_own_matrix(case, shrinkage, damping):
    metric = kronecker(case, shrinkage=shrinkage)
    K, b = own_matrix(metric), x(metric.dimension)
    assert relative(K, K.mT) < 1e-12
    assert torch.linalg.eigvalsh(K).min() > -1e-12
    assert relative(metric.solve(b, damping), torch.linalg.solve(K + damping * torch.eye(len(K)).double(), b)) < 1e-8
    assert float(metric.norm(b)) == pytest.approx(float(b @ K @ b) ** 0.5)


@pytest.mark.parametrize("shrinkage", [0.0, 0.3])
def test_trace_and_spectrum_are_those_of_its_own_matrix(shrinkage):
    case = build("conv_bn")
    metric = kronecker(case, shrinkage=shrinkage)
    values = torch.linalg.eigvalsh(own_matrix(metric)).flip(0)
    assert metric.trace() == pytest.approx(float(values.sum()))
    torch.testing.assert_close(metric.spectrum(5), values[:5])
    assert metric.spectrum(10**6).shape == (metric.dimension,)


@pytest.mark.parametrize("name", ["mlp", "grouped"])
def test_shrinkage_adds_a_share_of_the_mean_eigenvalue_to_each_factor(name):
    metric = kronecker(build(name), shrinkage=0.2)
    for block in metric.blocks:
        groups, outputs, inputs = block.shape
        v = x(metric.dimension)
        part = part_of(block, v)
        applied, solved = (torch.full_like(v, torch.nan) for _ in range(2))
        block.apply(v, applied, lambda values: values)
        block.apply(v, solved, lambda values: 1 / (values + 0.01))
        elsewhere = torch.ones_like(v, dtype=torch.bool)
        for place in (block.weight, block.bias):
            if place is not None:
                elsewhere[place] = False
        assert bool(applied[elsewhere].isnan().all()) and torch.equal(v, x(metric.dimension))  # only its own part
        expected = torch.empty_like(part)
        for g in range(groups):
            va, vb = block.input_vectors[g], block.output_vectors[g]
            A, B = va @ block.input_values[g].diag() @ va.mT, vb @ block.output_values[g].diag() @ vb.mT
            A = A + 0.2 * A.trace() / inputs * torch.eye(inputs).double()
            B = B + 0.2 * B.trace() / outputs * torch.eye(outputs).double()
            expected[g] = B @ part[g] @ A
            torch.testing.assert_close(part_of(block, applied)[g], expected[g])
            found = part_of(block, solved)[g]
            torch.testing.assert_close(B @ found @ A + 0.01 * found, part[g])
        torch.testing.assert_close(block.quadratic(v), (part * expected).sum())


def test_batches_stream_into_the_same_blocks(case):
    whole = kronecker(case, "squared_error")
    streamed = case.reference("squared_error", batch_size=2).metric(case.model, "kronecker")
    blocks = loose(whole) == 0  # the signs of the other operators' estimates are drawn batch by batch
    for block in whole.blocks:  # and those of outputs at several positions, which mix below
        if isinstance(block, Lookup):
            blocks[block.weight] = False
    v = x(whole.dimension)
    assert relative(streamed.mv(v)[blocks], whole.mv(v)[blocks]) < 1e-10


def test_coverage_buys_curvature_with_backward_passes():
    model, inputs = nn.Linear(4, 10).double(), x(20, 4)
    traces, costs = [], []
    for coverage in (0.3, 0.8, 1.0):
        network = Network(model)
        part = ip.Reference(inputs).whole(network, network.start)
        spent = network.evaluations
        traces.append(Kronecker.of(network, network.start, part.batches, coverage).blocks[0].output_values.sum())
        costs.append(network.evaluations - spent)
    assert traces == sorted(traces) and traces[0] >= 0.3 * traces[-1]
    assert costs == sorted(costs) and costs[-1] == pytest.approx(20 * (1 + 2 / 3 * 9))


# --- embeddings, and factors that are sampled, truncated or split ---------------------------------------------------


class Table(nn.Module):
    def __init__(self, padding: int | None = None) -> None:
        super().__init__()
        self.table = nn.Embedding(6, 3, padding_idx=padding)

    def forward(self, ids: torch.Tensor) -> torch.Tensor:
        return self.table(ids).flatten(1)


@pytest.mark.parametrize("padding", [None, 0])
def test_an_embedding_read_once_by_each_example_is_exact(padding):
    case = Case(Table(padding).double(), torch.tensor([[0], [2], [2], [5], [0], [1]]))
    metric = kronecker(case, "squared_error", coverage=1.0)
    assert type(metric.blocks[0]).__name__ == "Lookup"
    G = dense(case, "squared_error")
    if padding is None:
        assert relative(own_matrix(metric), G) < 1e-12
    else:  # what is never trained has no curvature
        assert not own_matrix(metric)[:3].any() and not G[:3].any()
    b = x(metric.dimension)
    K = own_matrix(metric)
    assert relative(metric.solve(b, 0.1), torch.linalg.solve(K + 0.1 * torch.eye(len(K)).double(), b)) < 1e-12
    assert float(metric.norm(b)) == pytest.approx(float(b @ K @ b) ** 0.5)
    assert metric.trace() == pytest.approx(float(K.trace()))


def test_positions_that_all_examples_read_alike_count_once_for_each():
    class Placed(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.places = nn.Embedding(4, 3)

        def forward(self, tokens):
            return tokens + self.places(torch.arange(tokens.shape[1]).unsqueeze(0))

    case = Case(Placed().double(), x(5, 4, 3))
    metric, G = kronecker(case, "squared_error", coverage=1.0), dense(case, "squared_error")
    assert relative(own_matrix(metric), G) < 0.35
    assert metric.trace() == pytest.approx(float(G.trace()), rel=0.3)


def test_a_table_that_is_also_a_matrix_has_a_diagonal():
    class Both(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.table = nn.Embedding(6, 3)

        def forward(self, ids):
            return self.table(ids).mean(1) @ self.table.weight.T

    metric = kronecker(Case(Both().double(), torch.tensor([[0, 1], [2, 3]])))
    assert not metric.blocks and (loose(metric) > 0).any()


def test_split_factors_are_the_diagonal_pieces_of_whole_ones(case):
    whole, split = (own_matrix(kronecker(case, "kl", split=s)) for s in (None, 2))
    diagonal = whole.diag()
    assert torch.allclose(split.diag(), diagonal, rtol=1e-9, atol=1e-14)
    kept = split != 0
    assert torch.allclose(split[kept], whole[kept], rtol=1e-7, atol=1e-12)
    metric = kronecker(case, "kl", split=2)
    b = x(metric.dimension)
    damped = split + 0.1 * torch.eye(len(split)).double()
    assert relative(metric.solve(b, 0.1), torch.linalg.solve(damped, b)) < 1e-9
    assert float(metric.norm(b)) == pytest.approx(float(b @ split @ b) ** 0.5, abs=1e-12)
    assert metric.trace() == pytest.approx(float(split.trace()))


def test_truncated_factors_keep_the_leading_directions():
    case = build("mlp")
    whole, cut = (kronecker(case, rank=rank) for rank in (None, 2))
    for one, other in zip(whole.blocks, cut.blocks):
        assert torch.equal(one.input_vectors[..., :2], other.input_vectors)
        assert torch.equal(one.output_values[..., :2], other.output_values)
    assert 0 < cut.trace() < whole.trace()
    with pytest.raises(ValueError, match="rank must be >= 1, got 0"):
        kronecker(case, rank=0)


def test_random_columns_are_right_on_average_and_cost_a_pass_each():
    model, rows = nn.Linear(4, 10).double(), x(40, 4)
    network = Network(model)
    batches = ip.Reference(rows, "kl").whole(network, network.start).batches
    exact = own_matrix(Kronecker.of(network, network.start, batches, 1.0))
    spent = network.evaluations
    few = Kronecker.of(network, network.start, batches, samples=1)
    assert network.evaluations - spent == 40 and few.trace() > 0
    many = Kronecker.of(network, network.start, batches, samples=500)
    assert relative(own_matrix(many), exact) < 0.05


@pytest.mark.parametrize("kind", ["kronecker", "ekfac", "diagonal"])
def test_a_loader_is_streamed(kind, monkeypatch):
    case = build("conv_bn")
    expected = case.reference("kl", batch_size=2).metric(case.model, kind)
    loader = torch.utils.data.DataLoader(torch.utils.data.TensorDataset(case.inputs), batch_size=3)
    monkeypatch.setattr(ip.Reference, "whole", None)  # which would hold all rows at once
    metric = ip.Reference(loader, "kl", batch_size=2).metric(case.model, kind)
    v = x(metric.dimension)
    assert torch.equal(metric.mv(v), expected.mv(v))


# --- what must not break it -----------------------------------------------------------------------------------------


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_dead_units_and_dead_inputs_do_not_break_it(dtype):
    model = nn.Sequential(nn.Linear(40, 30), nn.ReLU(), nn.Linear(30, 3)).to(dtype)
    with torch.no_grad():
        model[0].bias[5:] = -1e3
    inputs = x(60, 40).to(dtype)
    inputs[:, 10:] = 0
    metric = ip.Reference(inputs).metric(model, "kronecker", shrinkage=0.1)
    b = x(metric.dimension).to(dtype)
    solved = metric.solve(b, 1e-6)
    assert torch.isfinite(solved).all() and torch.isfinite(metric.spectrum(10)).all()
    assert relative(metric.mv(solved) + 1e-6 * solved, b) < (1e-2 if dtype == torch.float32 else 1e-7)


def test_no_curvature_at_all_leaves_the_damping():
    model = mlp().float()
    with torch.no_grad():
        model[2].bias.copy_(torch.tensor([1e4, -1e4, 0]))
    metric = ip.Reference(x(5, 4).float()).metric(model, "kronecker", shrinkage=0.1)
    b = x(metric.dimension).float()
    assert metric.trace() == 0 and not metric.mv(b).any()
    torch.testing.assert_close(metric.solve(b, 0.5), 2 * b)


@pytest.mark.parametrize("rows", [3, 60])
def test_layers_wider_than_the_rows_keep_only_directions_with_curvature(rows):
    case = Case(nn.Sequential(nn.Linear(50, 3)).double(), x(rows, 50))
    metric = kronecker(case, "squared_error")
    assert metric.blocks[0].input_vectors.shape[-1] == min(rows, 51)
    assert relative(own_matrix(metric), dense(case, "squared_error")) < 1e-10
    b, damped = x(153), own_matrix(metric) + 1e-3 * torch.eye(153).double()
    assert relative(metric.solve(b, 1e-3), torch.linalg.solve(damped, b)) < 1e-8


def test_a_layer_of_more_than_1024_inputs_is_exact_on_few_rows():
    metric = ip.Reference(x(20, 1500), "squared_error").metric(nn.Linear(1500, 2).double(), "kronecker")
    exact = ip.Reference(x(20, 1500), "squared_error").metric(nn.Linear(1500, 2).double())
    v = x(metric.dimension)
    assert relative(metric.mv(v), exact.mv(v)) < 1e-10


@settings(max_examples=20)
@given(st.integers(0, 10**6), st.integers(1, 8), st.lists(st.integers(1, 30), min_size=1, max_size=6))
def test_a_sketch_of_rows_of_low_rank_is_exact(seed, rank, pieces):
    basis = x(2, rank, 20, seed=seed)
    rows = [torch.einsum("gnr,grw->gnw", x(2, count, rank, seed=seed + i), basis) for i, count in enumerate(pieces)]
    every = torch.cat(rows, 1)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(factors, "CAP", 8)
        patch.setattr(factors, "EXTRA", 2)
        moment = SecondMoment()
        for piece in rows:
            moment.add(piece)
        values, vectors = moment.eigen()
    torch.testing.assert_close(vectors @ (values.unsqueeze(-1) * vectors.mT), every.mT @ every)
    assert values.shape[-1] <= 8


def test_a_sketch_of_full_rank_keeps_the_largest_directions(monkeypatch):
    monkeypatch.setattr(factors, "CAP", 8)
    monkeypatch.setattr(factors, "EXTRA", 4)
    scales = 0.5 ** torch.arange(20.0).double()
    rows, moment = x(1, 200, 20) * scales, SecondMoment()
    for piece in rows.split(7, 1):
        moment.add(piece)
    values, vectors = moment.eigen()
    expected = torch.linalg.eigvalsh(rows.mT @ rows).flip(-1)
    torch.testing.assert_close(values[:, :4], expected[:, :4], rtol=1e-3, atol=0)
    assert (values <= expected[:, :8] * (1 + 1e-9)).all()
    torch.testing.assert_close(vectors.mT @ vectors, torch.eye(8).double().unsqueeze(0))


def test_many_rows_at_once_never_make_a_matrix_of_their_own_size(monkeypatch):
    monkeypatch.setattr(factors, "CAP", 8)
    monkeypatch.setattr(factors, "EXTRA", 4)
    sizes, eigh = [], torch.linalg.eigh
    monkeypatch.setattr(torch.linalg, "eigh", lambda m: sizes.append(m.shape[-1]) or eigh(m))
    moment = SecondMoment()
    moment.add(x(1, 500, 20))
    moment.eigen()
    assert max(sizes) <= 4 * 8


def test_layers_are_found_where_they_are_used():
    names = {"encoder": 5, "attention": 3, "sdpa": 2, "raw": 1, "named": 2, "conv": 3}
    assert {name: len(kronecker(build(name)).blocks) for name in names} == names


def test_two_uses_of_one_layer_share_a_block_and_two_partners_none():
    class Twice(nn.Module):
        def __init__(self):
            super().__init__()
            self.layer, self.head = nn.Linear(4, 4), nn.Linear(4, 3)

        def forward(self, inputs):
            return self.head(self.layer(self.layer(inputs).tanh()).tanh())

    metric = kronecker(Case(Twice().double(), x(5, 4)))
    assert len(metric.blocks) == 2 and not loose(metric).any()
    tied = kronecker(build("tied"))
    assert len(tied.blocks) == 1 and (loose(tied) > 0).sum() == 16 + 4 + 4


@pytest.mark.parametrize("name", CASES)
def test_building_it_twice_gives_the_same_bits(name):
    a, b = (kronecker(build(name)) for _ in range(2))
    assert torch.equal(loose(a), loose(b))
    for one, two in itertools.zip_longest(a.blocks, b.blocks):
        assert torch.equal(one.eigenvalues, two.eigenvalues)


def test_a_parameter_that_an_einsum_reads_gets_a_diagonal():
    class Mixed(nn.Module):
        def __init__(self):
            super().__init__()
            self.first, self.mix = nn.Linear(4, 5).double(), nn.Parameter(x(5, 3))

        def forward(self, inputs):
            return torch.einsum("ni,ij->nj", self.first(inputs).tanh(), self.mix)

    model, inputs = Mixed(), x(1, 4)
    metric = ip.Reference(inputs).metric(model, "kronecker")
    exact = dense(Case(model, inputs), "hellinger")
    place = Network(model).space.where(lambda name, _: name == "mix")
    torch.testing.assert_close(loose(metric)[place], exact.diagonal()[place])
