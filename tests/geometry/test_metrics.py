"""Every representation of the metric against the dense JᵀHJ."""

import copy

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn
from torch.autograd.function import once_differentiable

import isopath as ip
from isopath.geometry.kinds import KINDS, metric_of
from isopath.metrics import Combined, Exact, Gram, Identity
from isopath.network import Network
from networks import CASES, PLAIN, Case, NoForwardMode, build, dense, matrix, mlp, quartic, relative, x

EXACT = [("exact", {}), ("exact", {"batch_size": 2}), ("gram", {}), ("gram", {"batch_size": 2})]


@pytest.mark.parametrize("divergence", [*PLAIN, quartic], ids=[*PLAIN, "custom"])
@pytest.mark.parametrize("name", CASES)
def test_exact_and_gram_metrics_are_the_dense_one(name, divergence):
    case = build(name)
    expected, v = dense(case, divergence), x(3, sum(p.numel() for p in case.model.parameters() if p.requires_grad))
    for kind, options in EXACT:
        metric = case.reference(divergence, **options).metric(case.model, kind)
        for u in v:
            assert relative(metric.mv(u), expected @ u) < 1e-10
        assert float(metric.norm(v[0])) == pytest.approx(float(v[0] @ expected @ v[0]) ** 0.5, rel=1e-10)
        assert metric.dimension == len(expected)


def test_spectrum_and_trace_are_those_of_the_dense_metric(case):
    expected = torch.linalg.eigvalsh(dense(case, "kl")).flip(0)
    exact, gram = (case.reference("kl").metric(case.model, kind) for kind in ("exact", "gram"))
    torch.testing.assert_close(gram.spectrum(4), expected[:4], rtol=1e-9, atol=1e-12)
    torch.testing.assert_close(exact.spectrum(4), expected[:4], rtol=1e-6, atol=1e-9)
    assert gram.trace() == pytest.approx(float(expected.sum()), rel=1e-9)
    assert exact.trace() == pytest.approx(float(expected.sum()), rel=1.0)


def test_solves_invert_the_damped_dense_metric(case):
    G = dense(case, "hellinger")
    b, damping = x(len(G)), 0.1 * float(G.trace()) / len(G)
    expected = torch.linalg.solve(G + damping * torch.eye(len(G)).double(), b)
    gram = case.reference().metric(case.model, "gram")
    exact = case.reference().metric(case.model, "exact", tolerance=1e-10)
    assert relative(gram.solve(b, damping), expected) < 1e-8
    assert relative(exact.solve(b, damping), expected) < 1e-6


def test_the_undamped_gram_solve_is_the_pseudo_inverse_and_project_removes_what_outputs_see(case):
    G = dense(case, "hellinger")
    v, gram = x(len(G)), case.reference().metric(case.model, "gram", rtol=1e-10)
    values, vectors = torch.linalg.eigh(G)
    seen = vectors[:, values > 1e-10 * values[-1]]
    assert gram.rank == seen.shape[1]
    assert relative(gram.project(v), v - seen @ (seen.mT @ v)) < 1e-6
    b = G @ v
    assert relative(gram.solve(b, 0.0), seen @ (seen.mT @ v)) < 1e-5


@settings(max_examples=15)
@given(st.integers(0, 10**6), st.sampled_from(["exact", "gram", "kronecker"]), st.sampled_from(["mlp", "conv_bn"]))
def test_metrics_are_symmetric_and_positive_and_their_solves_undo_them(seed, kind, name):
    case = build(name)
    metric = case.reference().metric(case.model, kind, **({"tolerance": 1e-11} if kind == "exact" else {}))
    u, v = x(2, metric.dimension, seed=seed)
    gu, gv = metric.mv(u), metric.mv(v)
    assert abs(float(u @ gv - v @ gu)) < 1e-12 * float(gu.norm() * v.norm())
    assert float(v @ gv) >= 0
    assert relative(metric.solve(gv + 0.01 * v, 0.01), v) < 1e-6


@settings(max_examples=15)
@given(st.integers(0, 10**6))
def test_the_projection_is_idempotent_and_symmetric(seed):
    case = build("mlp")
    gram = case.reference("squared_error").metric(case.model, "gram")
    u, v = x(2, gram.dimension, seed=seed)
    once = gram.project(v)
    torch.testing.assert_close(gram.project(once), once, rtol=0, atol=1e-12)
    assert float(u @ once) == pytest.approx(float(gram.project(u) @ v), abs=1e-12)
    assert float(gram.norm(once)) < 1e-12


def test_the_gram_projection_holds_in_float32():
    model, inputs = mlp(20), x(10, 4)
    gram = ip.Reference(inputs.float()).metric(copy.deepcopy(model).float(), "gram")
    v = x(gram.dimension)
    seen = ip.Reference(inputs).metric(model, "gram")
    assert float(seen.norm(gram.project(v.float()).double()) / seen.norm(v)) < 1e-4


def test_a_single_batch_is_recorded_once_and_many_products_agree():
    case = build("attention")
    metric = case.reference().metric(case.model)
    v = x(metric.dimension)
    first = metric.mv(v)
    assert metric._recorded is not None
    assert torch.equal(metric.mv(v), first)
    streamed = case.reference(batch_size=2).metric(case.model)
    streamed.mv(v)
    assert streamed._recorded is None


def test_a_product_does_not_depend_on_the_tangents_graph_or_grad_mode():
    case = build("mlp")
    metric = case.reference().metric(case.model)
    v = x(metric.dimension)
    with torch.no_grad():
        inside = case.reference().metric(case.model).mv(v)
    assert torch.equal(inside, metric.mv(v)) and not inside.requires_grad


# --- operators without forward mode ---------------------------------------------------------------------------------


class NeitherMode(NoForwardMode):
    @staticmethod
    @once_differentiable
    def backward(ctx, grad):
        (inputs,) = ctx.saved_tensors
        return grad * inputs.cos()


class Middle(nn.Module):
    def __init__(self, function):
        super().__init__()
        self.first, self.second, self.function = nn.Linear(4, 5), nn.Linear(5, 3), function

    def forward(self, inputs):
        return self.second(self.function(self.first(inputs)))


@pytest.mark.parametrize("batch_size", [256, 2])
def test_an_operator_without_forward_mode_falls_back_to_double_backward(batch_size):
    model = Middle(NoForwardMode.apply).double()
    same = Middle(torch.sin).double()
    same.load_state_dict(model.state_dict())
    expected, v = dense(Case(same, x(5, 4)), "hellinger"), x(43)
    for kind in ("exact", "gram"):
        metric = ip.Reference(x(5, 4), batch_size=batch_size).metric(model, kind)
        assert relative(metric.mv(v), expected @ v) < 1e-12
        assert kind == "gram" or metric.forward_mode == (batch_size == 256)  # one batch needs it for nothing


class OnceOnly(torch.autograd.Function):
    """Sine with a forward-mode derivative and a backward that is differentiable once only."""

    @staticmethod
    def forward(inputs):
        return inputs.sin()

    @staticmethod
    def setup_context(ctx, inputs, output):
        ctx.save_for_backward(*inputs)
        ctx.save_for_forward(*inputs)

    @staticmethod
    @once_differentiable
    def backward(ctx, gradient):
        return gradient * ctx.saved_tensors[0].cos()

    @staticmethod
    def jvp(ctx, tangent):
        return tangent * ctx.saved_tensors[0].cos()


@pytest.mark.parametrize("batch_size", [256, 2])
def test_an_operator_without_double_backward_falls_back_to_forward_mode(batch_size):
    model, same = Middle(OnceOnly.apply).double(), Middle(torch.sin).double()
    same.load_state_dict(model.state_dict())
    metric, v = ip.Reference(x(5, 4), batch_size=batch_size).metric(model), x(43)
    assert relative(metric.mv(v), dense(Case(same, x(5, 4)), "hellinger") @ v) < 1e-12
    assert metric.forward_mode


def test_an_operator_without_double_backward_either_is_named():
    class Loss(nn.Module):
        def __init__(self):
            super().__init__()
            self.body = nn.Linear(4, 5)

        def forward(self, inputs):
            scores = self.body(inputs).reshape(3, 2, 5).log_softmax(-1)
            lengths = torch.tensor([3, 3]), torch.tensor([2, 2])
            loss = nn.functional.ctc_loss(scores, torch.ones(2, 2).long(), *lengths, reduction="none")
            return loss.reshape(2, 1)

    with pytest.raises(NotImplementedError, match=r"ctc_loss.*neither a forward-mode.*kronecker"):
        ip.Reference(x(6, 4), "squared_error").metric(Loss().double()).mv(x(25))


def test_a_function_that_refuses_a_second_derivative_is_named_and_never_dropped():
    with pytest.raises(NotImplementedError, match=r"NeitherMode"):
        ip.Reference(x(5, 4)).metric(Middle(NeitherMode.apply).double()).mv(x(43))


def test_the_kronecker_metric_needs_no_forward_mode():
    model, same = Middle(NeitherMode.apply).double(), Middle(torch.sin).double()
    same.load_state_dict(model.state_dict())
    metrics = [ip.Reference(x(5, 4)).metric(m, "kronecker") for m in (model, same)]
    torch.testing.assert_close(metrics[0].mv(x(43)), metrics[1].mv(x(43)))


# --- identity, sums, names ------------------------------------------------------------------------------------------


def test_identity_is_flat_space():
    metric = build("mlp").reference().metric(mlp(), "identity")
    v = x(metric.dimension)
    assert torch.equal(metric.mv(v), v) and float(metric.norm(v)) == pytest.approx(float(v.norm()))
    torch.testing.assert_close(metric.solve(v, 1.0), v / 2)
    assert metric.trace() == metric.dimension and metric.spectrum(2).tolist() == [1, 1]
    assert Identity(3, 0.0).norm(torch.ones(3)) == 0


@pytest.mark.parametrize("first", ["gram", "kronecker", "exact"])
def test_a_sum_of_metrics_is_the_sum_of_the_dense_ones(first):
    a, b = Case(mlp(), x(5, 4)), None
    b = Case(a.model, x(5, 4, seed=7))
    G = dense(a, "kl") + dense(b, "kl")
    options = {"tolerance": 1e-10} if first == "exact" else {}
    terms = [a.reference("kl").metric(a.model, first, **options), b.reference("kl").metric(b.model, "gram")]
    if first == "kronecker":
        G += matrix(terms[0].mv, len(G)) - dense(a, "kl")
    total, v = Combined(terms, iterations=200, tolerance=1e-9), x(len(G))
    assert relative(total.mv(v), G @ v) < 1e-10
    assert relative(total.solve(v, 0.1), torch.linalg.solve(G + 0.1 * torch.eye(len(G)).double(), v)) < 1e-6
    assert float(total.norm(v)) == pytest.approx(float(v @ G @ v) ** 0.5)
    torch.testing.assert_close(total.spectrum(2), torch.linalg.eigvalsh(G).flip(0)[:2], rtol=1e-6, atol=1e-9)


def test_a_sum_with_the_identity_has_a_spectrum_in_float64():
    case = build("mlp")
    gram = case.reference().metric(case.model, "gram")
    total = Combined([case.reference().metric(case.model, "identity"), gram])
    torch.testing.assert_close(total.spectrum(2), gram.spectrum(2) + 1)
    assert total.trace() == pytest.approx(gram.trace() + gram.dimension)


def test_sums_need_one_dimension():
    with pytest.raises(ValueError, match=r"one dimension, got \[2, 3\]"):
        Combined([Identity(2), Identity(3)])


def test_the_kinds_are_named_and_an_unknown_one_lists_them():
    kinds = {"exact", "gram", "kronecker", "ekfac", "low_rank", "diagonal", "preconditioned", "identity"}
    assert set(KINDS) == kinds
    case = build("mlp")
    with pytest.raises(ValueError, match=r"unknown metric 'kfac'; the kinds are exact, gram, kronecker"):
        metric_of("kfac", Network(case.model), x(51), [])


def test_solves_of_singular_metrics_without_damping_say_what_to_do():
    case = build("mlp")
    for kind in ("exact", "kronecker"):
        metric = case.reference().metric(case.model, kind)
        with pytest.raises(ValueError, match=r"damping > 0.*got 0"):
            metric.solve(x(metric.dimension), 0)
    with pytest.raises(ValueError, match=r"damping must be >= 0, got -1"):
        case.reference().metric(case.model, "gram").solve(x(51), -1)


def test_too_many_rows_for_a_gram_matrix_name_the_alternatives():
    with pytest.raises(ValueError, match=r"6000 output components.*4096.*kronecker"):
        ip.Reference(x(2000, 4)).metric(mlp(), "gram")


def test_a_metric_of_some_parameters_is_the_block_of_the_whole_one():
    case = build("mlp")
    expected = dense(case, "hellinger")[-21:, -21:]
    part = case.reference().metric(case.model, trainable=["2.*"])
    assert relative(matrix(part.mv, 21), expected) < 1e-12


def test_a_parameter_that_no_output_reads_has_zero_curvature():
    class Extra(nn.Module):
        def __init__(self):
            super().__init__()
            self.unused, self.body = nn.Parameter(torch.ones(3).double()), mlp()

        def forward(self, inputs):
            return self.body(inputs)

    model, v = Extra(), x(54)
    for kind in ("exact", "gram", "kronecker"):
        metric = ip.Reference(x(5, 4)).metric(model, kind)
        assert not metric.mv(v)[:3].any() and metric.mv(v)[3:].any()
        alone = ip.Reference(x(5, 4)).metric(model, kind, trainable=["unused"])
        assert not alone.mv(v[:3]).any()


@pytest.mark.parametrize("name, batch_size, thirds", [("mlp", 256, 4), ("conv_bn", 256, 5), ("mlp", 2, 6)])
def test_products_are_counted_in_gradient_evaluations(name, batch_size, thirds):
    case = build(name)
    network = Network(case.model)
    part = ip.Reference(case.inputs, batch_size=batch_size).whole(network, network.start)
    spent = network.evaluations
    Exact(network, network.start, part.batches).mv(x(network.space.dimension))
    assert network.evaluations - spent == pytest.approx(part.rows * thirds / 3)


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
@pytest.mark.parametrize("kind", ["exact", "gram", "kronecker"])
@pytest.mark.parametrize("name", ["mlp", "conv_bn", "attention", "lstm"])
def test_metrics_on_a_cuda_device_equal_those_on_the_cpu(name, kind):
    case = build(name)
    here = case.reference().metric(case.model, kind)
    v = x(here.dimension)
    there = ip.Reference(case.inputs.cuda()).metric(copy.deepcopy(case.model).cuda(), kind)
    assert there.mv(v.cuda()).is_cuda
    assert relative(there.mv(v.cuda()).cpu(), here.mv(v)) < 1e-8
    assert relative(there.solve(v.cuda(), 0.1).cpu(), here.solve(v, 0.1)) < 1e-5


def test_gram_blocks_do_not_change_the_result():
    case = build("conv")
    network = Network(case.model)
    part = case.reference("squared_error").whole(network, network.start)
    a, b = (Gram(network, network.start, part.batches, block=block) for block in (4, 64))
    torch.testing.assert_close(a.spectrum(9), b.spectrum(9))
