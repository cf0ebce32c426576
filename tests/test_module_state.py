"""A forward pass leaves a module as it was, and so every call is the first."""

import copy
import threading

import pytest
import torch
from torch import nn

import isopath as ip
from isopath.module_state import ModuleState
from isopath.network import Network
from networks import Keeps, x

INPUTS, LABELS = x(9, 4), torch.arange(9) % 3


class Follows(nn.Module):
    """A linear layer that follows its inputs, in eval mode too: a mean moved in place, one replaced, and a count."""

    def __init__(self):
        super().__init__()
        self.layer = nn.Linear(4, 3).double()
        self.register_buffer("mean", torch.zeros(4).double())
        self.register_buffer("last", torch.zeros(4).double())
        self.calls = 0

    def forward(self, inputs):
        self.mean.mul_(0.5).add_(inputs.detach().mean(0))
        self.last = inputs.detach().mean(0) + self.last
        self.calls += 1
        return self.layer(inputs * self.mean) + self.layer(inputs - self.last) + self.calls


def test_a_second_call_is_the_first_and_has_the_same_gradient():
    torch.manual_seed(0)
    model = Follows()
    network = Network(model)
    theta = network.start.requires_grad_()
    first, second = network(theta, INPUTS), network(theta, INPUTS)
    gradients = [torch.autograd.grad(y.square().sum(), theta)[0] for y in (first, second)]
    assert torch.equal(first, second) and torch.equal(*gradients)
    assert torch.equal(first, copy.deepcopy(model)(INPUTS))  # and it is what the module itself says at first


def test_models_made_of_it_have_the_buffers_that_were_given():
    network = Network(Follows())
    network(network.start, INPUTS)
    made = network.model(network.start)
    assert not made.mean.any() and not made.last.any() and made.calls == 0


def test_what_is_written_between_two_calls_stays():
    module = Follows()
    state = ModuleState(module)
    with state.held():
        module(INPUTS)
    module.mean.fill_(2.0)
    with state.held():
        module(INPUTS)
    assert torch.equal(module.mean, torch.full((4,), 2.0).double()) and not module.last.any()


def test_an_error_inside_leaves_it_as_it_was_too():
    module = Follows()
    with pytest.raises(RuntimeError), ModuleState(module).held():
        module(INPUTS)
        module(INPUTS[:, :2])
    assert module.calls == 0 and not module.mean.any()


def test_a_module_that_keeps_an_activation_goes_through_everything(tmp_path):
    model, task = Keeps(), ip.Task(INPUTS, LABELS)
    model(INPUTS).sum().backward()  # the caller's has run
    path = ip.trace(model, ip.Reference(INPUTS), task, max_steps=2)
    assert path.model()(INPUTS).shape == path.ensemble(2)(INPUTS).shape == (9, 3)
    generator = ip.generate(model, task, steps=3)
    generator.save(tmp_path / "made.safetensors")
    assert len(ip.explore(generator, task, 3).accuracy) == 3
    for batched in (False, True):
        together = ip.Ensemble(generator.models(2), batched=batched)
        together(INPUTS).sum().backward()
        ip.attack(together, INPUTS.sigmoid(), LABELS, ip.attacks.PGD(0.1, steps=2))  # copies what has run
    learned = ip.distill(together, model, INPUTS, epochs=1)
    assert len(ip.Ensemble([learned])) == 1 and ip.footprint(model, INPUTS, 1).flops
    assert ip.compact(model, INPUTS)(INPUTS).shape == (9, 3)


def test_a_copy_shares_nothing_with_what_the_callers_module_keeps():
    class Means(nn.Linear):
        def __init__(self):
            super().__init__(4, 3, dtype=torch.float64)
            self.register_buffer("mean", torch.zeros(3).double())

        def forward(self, inputs):
            y = super().forward(inputs)
            self.mean = 0.9 * self.mean + y.mean(0)
            return y - self.mean

    model = Means()
    model(INPUTS)  # its mean is part of a graph now
    before = model.mean.detach().clone()
    twin = Network(model).model(Network(model).start)
    twin.mean.add_(1.0)
    assert torch.equal(model.mean, before)


def test_calls_in_inference_mode_leave_gradients_possible():
    network = Network(Follows())
    with torch.inference_mode():
        first, second = network(network.start, INPUTS), network(network.start, INPUTS)
    theta = network.start.requires_grad_()
    third = network(theta, INPUTS)
    third.sum().backward()
    assert torch.equal(first, second) and torch.equal(second, third) and theta.grad.isfinite().all()


def test_scripted_members_and_an_ensemble_run_by_several_threads():
    models = [nn.Linear(4, 3).double() for _ in range(2)]
    wanted = ip.Ensemble(models)(INPUTS)
    assert torch.allclose(ip.Ensemble([torch.jit.trace(m, INPUTS) for m in models])(INPUTS), wanted)
    together, failed = ip.Ensemble([Keeps(), Keeps()]), []

    def run():
        try:
            for _ in range(100):
                with torch.no_grad():
                    together(INPUTS)
        except Exception as error:
            failed.append(error)

    threads = [threading.Thread(target=run) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert not failed
