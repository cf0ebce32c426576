import copy
import threading

import pytest
import torch
from torch import nn

import isopath as ip
from isopath.network import Network, pick, plain_kernels, rows_of
from networks import Attention, Case, Encoder, Named, Tokens, build, mlp, outputs, x


def rows(y):
    return y.reshape(-1, y.shape[-1])


def test_outputs_at_the_start_are_the_modules_own_in_eval_mode(case):
    case.model.train()
    network = Network(case.model)
    torch.testing.assert_close(rows(network(network.start, case.inputs)), outputs(case.model, case.inputs))
    assert case.model.training


def test_outputs_elsewhere_are_those_of_a_module_with_these_weights(case):
    network = Network(case.model)
    theta = network.start + 0.1 * x(len(network.start))
    moved = network.model(theta)
    torch.testing.assert_close(rows(network(theta, case.inputs)), outputs(moved, case.inputs))
    network.copy_to(theta, case.model)
    torch.testing.assert_close(outputs(case.model, case.inputs), outputs(moved, case.inputs))
    torch.testing.assert_close(Network(moved).start, theta)


def test_outputs_are_differentiable_in_the_point(case):
    network = Network(case.model)
    theta, v = network.start, x(len(network.start))
    (gradient,) = torch.autograd.grad(network(point := theta.clone().requires_grad_(), case.inputs).sum(), point)
    ahead, behind = (float(network(theta + h * v, case.inputs).sum()) for h in (1e-5, -1e-5))
    assert float(gradient @ v) == pytest.approx((ahead - behind) / 2e-5, rel=1e-5, abs=1e-7)


@pytest.mark.parametrize("make", [Attention, Encoder])
def test_attention_has_forward_and_second_derivatives(make):
    network = Network(make().double())
    theta, v = network.start, x(len(network.start))

    def total(point):
        return network(point, x(2, 3, 4)).square().sum()

    _, pushed = torch.func.jvp(total, (theta,), (v,))
    (pulled,) = torch.autograd.grad(total(point := theta.clone().requires_grad_()), point, create_graph=True)
    assert float(pushed) == pytest.approx(float(pulled @ v))
    assert torch.autograd.grad(pulled @ v, point)[0].any()


def test_the_start_and_the_buffers_are_copies():
    case = build("conv_bn")
    network = Network(case.model)
    before = network(network.start, case.inputs)
    with torch.no_grad():
        case.model[1].running_mean += 1
        for parameter in case.model.parameters():
            parameter.zero_()
    torch.testing.assert_close(network(network.start, case.inputs), before)
    single = nn.Linear(3, 2, bias=False)
    assert Network(single).start.data_ptr() != single.weight.data_ptr()


def test_a_new_model_has_the_callers_modes_buffers_and_no_shared_memory():
    model = nn.Sequential(nn.Linear(4, 3), nn.BatchNorm1d(3), nn.Dropout(0.5)).train()
    model[1].eval()
    network = Network(model)
    made = network.model(network.start + 1)
    assert [m.training for m in made.modules()] == [m.training for m in model.modules()] == [True, True, False, True]
    assert torch.equal(made[0].weight, model[0].weight + 1)
    assert made[1].running_mean.data_ptr() != model[1].running_mean.data_ptr()
    assert {p.data_ptr() for p in made.parameters()}.isdisjoint(p.data_ptr() for p in model.parameters())
    assert all(p.requires_grad for p in made.parameters())


def test_frozen_parameters_stay_and_are_used():
    case = build("frozen")
    network = Network(case.model)
    made = network.model(network.start + 1)
    assert torch.equal(made[0].weight, case.model[0].weight) and not made[0].weight.requires_grad
    assert torch.equal(made[0].bias, case.model[0].bias + 1)


def test_an_optimiser_that_holds_the_parameters_goes_on_after_copy_to():
    model = mlp()
    optimizer, network = torch.optim.SGD(model.parameters(), 0.1), Network(model)
    pointers = [p.data_ptr() for p in model.parameters()]
    network.copy_to(network.start + 1, model)
    assert [p.data_ptr() for p in model.parameters()] == pointers
    assert optimizer.param_groups[0]["params"][0] is model[0].weight


def test_tied_weights_stay_tied():
    network = Network(build("tied").model)
    made = network.model(network.start)
    assert made.first.weight is made.second.weight


def test_gradient_evaluations_are_counted_forward_a_third():
    network = Network(mlp())
    with torch.no_grad():
        network(network.start, x(6, 4))
    assert network.evaluations == pytest.approx(2)
    network(network.start.requires_grad_(), x(6, 4))
    assert network.evaluations == pytest.approx(8)


def test_kernel_settings_are_restored_even_after_an_error():
    settings = torch.backends.mha.get_fastpath_enabled(), torch.backends.mkldnn.enabled
    with pytest.raises(KeyError), plain_kernels(recurrent=True):
        assert not torch.backends.mha.get_fastpath_enabled() and not torch.backends.mkldnn.enabled
        raise KeyError
    assert (torch.backends.mha.get_fastpath_enabled(), torch.backends.mkldnn.enabled) == settings


@pytest.mark.parametrize(
    ("inputs", "count"),
    [(x(3, 2), 3), ((x(4, 2), x(9)), 4), ({"flag": True, "x": x(5)}, 5), ({"a": {"b": x(2, 2)}}, 2), ((), 1)],
)
def test_rows_are_those_of_the_first_tensor(inputs, count):
    assert rows_of(inputs) == count


def test_pick_finds_logits_keys_indices_attributes_and_callables():
    y = x(2, 3)
    holder = type("Output", (), {"logits": y, "other": y + 1})()
    assert pick(y) is pick({"logits": y}) is pick(holder) is pick((None, y), 1) is pick([y, None], -2) is y
    assert pick({"a": y}, "a") is y and torch.equal(pick(holder, "other"), y + 1)
    assert torch.equal(pick(holder, lambda returned: returned.other), y + 1)


@pytest.mark.parametrize(
    ("returned", "output", "message"),
    [
        ({"scores": 1}, None, r"a dict with the keys \['scores'\].*output='key'"),
        ((x(2), 1), None, r"a tuple of \['Tensor', 'int'\].*output=index"),
        ((x(2),), 3, r"output=3"),
        (object(), "scores", "a object"),
        (x(2), lambda returned: 3, "output=<function"),
    ],
)
def test_a_missing_output_says_what_there_is(returned, output, message):
    with pytest.raises(TypeError, match=message):
        pick(returned, output)


def test_positional_keyword_and_single_inputs_arrive_as_the_module_takes_them():
    model, features, scale = Named().double(), x(5, 4), x(5, 1, seed=2)
    network = Network(model)
    by_name = network(network.start, {"features": features, "scale": scale})
    torch.testing.assert_close(network(network.start, (features, scale)), by_name)
    torch.testing.assert_close(network(network.start, [features, scale]), by_name)


def test_a_module_that_cannot_be_copied_says_why():
    model = mlp()
    model.lock = threading.Lock()
    with pytest.raises(TypeError, match=r"Sequential cannot be copied.*lock.*remove"):
        Network(model)


def test_copy_to_another_architecture_names_what_is_missing_or_differs():
    network = Network(mlp(6))
    with pytest.raises(ValueError, match=r"Linear has no parameter '0.weight' \(4 are missing\)"):
        network.copy_to(network.start, nn.Linear(4, 3))
    with pytest.raises(ValueError, match=r"'0.weight' has shape \(7, 4\), expected \(6, 4\)"):
        network.copy_to(network.start, mlp(7))


def test_the_skeleton_shares_parameters_so_that_a_network_costs_one_vector():
    model = mlp()
    network = Network(model)
    assert {id(p) for p in network._skeleton.parameters()} == {id(p) for p in model.parameters()}


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
def test_a_network_on_cuda_has_the_same_outputs(case):
    network = Network(copy.deepcopy(case.model).cuda())
    to = {k: v.cuda() for k, v in case.inputs.items()} if isinstance(case.inputs, dict) else case.inputs.cuda()
    torch.testing.assert_close(rows(network(network.start, to)).cpu(), outputs(case.model, case.inputs))


def test_token_models_return_three_axes():
    ids = torch.zeros(2, 4).long()
    network = Network(Tokens().double())
    assert network(network.start, Case(Tokens(), {"ids": ids, "mask": ids}).inputs).shape == (2, 4, 3)


def test_frozen_parameters_of_a_path_are_its_own():
    torch.manual_seed(0)
    model, inputs = mlp(), x(9, 4)
    path = ip.trace(model, ip.Reference(inputs), ip.Task(inputs, torch.arange(9) % 3), max_steps=2, trainable=["2.*"])
    said = path.model()(inputs)
    with torch.no_grad():
        model[0].weight.add_(1.0)  # the caller trains on
    assert torch.equal(path.model()(inputs), said)
    assert torch.equal(path.ensemble(1)(inputs), said.log_softmax(1))
