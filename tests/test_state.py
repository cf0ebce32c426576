"""Nothing that the caller owns is changed, and memory stays within a few vectors."""

import copy
import random
import subprocess
import sys

import numpy as np
import pytest
import torch
from torch.utils.data import DataLoader, IterableDataset, TensorDataset

import isopath as ip
from isopath.check import check_gradient, check_metric, check_order
from isopath.network import Network
from networks import Case, build, mlp, x


def labels(case: Case) -> torch.Tensor:
    network = Network(case.model)
    return torch.zeros(network(network.start, case.inputs).shape[:-1]).long()


def tensors_of(case: Case) -> dict[str, torch.Tensor]:
    inputs = case.inputs if isinstance(case.inputs, dict) else {"inputs": case.inputs}
    return {**case.model.state_dict(), **inputs}


def global_state() -> list:
    return [
        torch.get_rng_state().tolist(),
        np.random.get_state()[1].tolist(),  # noqa: NPY002
        random.getstate(),
        torch.is_grad_enabled(),
        torch.get_default_dtype(),
        torch.get_num_threads(),
        torch.backends.mha.get_fastpath_enabled(),
        torch.backends.mkldnn.enabled,
        torch.are_deterministic_algorithms_enabled(),
    ]


def trace(case: Case, tmp_path) -> None:
    task = ip.Task(case.inputs, labels(case), batch_size=3)
    objective = task + 0.1 * ip.Sparsity(0.2) + 0.1 * ip.Diversity([case.model])
    path = ip.trace(case.model, case.reference(), objective, max_steps=4, run=tmp_path / "run")
    path.model().train()
    path.save(tmp_path / "saved")


def metrics(case: Case, tmp_path) -> None:
    for kind in ("exact", "gram", "kronecker"):
        metric = case.reference().metric(case.model, kind)
        metric.solve(metric.mv(x(metric.dimension)), 0.1)
        metric.spectrum(2)


def checks(case: Case, tmp_path) -> None:
    check_metric(case.model, case.reference())
    check_gradient(ip.Task(case.inputs, labels(case)), case.model)
    check_order(case.model, case.reference("squared_error"), halvings=5)
    ip.evaluate(case.model, ip.Task(case.inputs, labels(case)))


@pytest.mark.parametrize("work", [trace, metrics, checks], ids=lambda work: work.__name__)
@pytest.mark.parametrize("training", [True, False])
def test_the_model_its_data_and_the_global_state_are_left_alone(case, work, training, tmp_path):
    case.model.train(training)
    for module in list(case.model.modules())[1::2]:
        module.eval()
    parameters = dict(case.model.named_parameters())
    before = {name: tensor.clone() for name, tensor in tensors_of(case).items()}
    flags = {name: (p.requires_grad, p.grad, id(p)) for name, p in parameters.items()}
    modes, state = [m.training for m in case.model.modules()], global_state()
    work(case, tmp_path)
    assert global_state() == state
    assert [m.training for m in case.model.modules()] == modes
    assert {name: (p.requires_grad, p.grad, id(p)) for name, p in case.model.named_parameters()} == flags
    for name, tensor in tensors_of(case).items():
        assert torch.equal(tensor, before[name]) and not (name == "inputs" and tensor.requires_grad), name


class Stream(IterableDataset):
    def __iter__(self):
        return iter(x(120, 4))


@pytest.mark.parametrize("generator", [None, 3])
def test_loaders_leave_the_global_random_state_alone(generator):
    own = None if generator is None else torch.Generator().manual_seed(generator)
    model, state = mlp(), (global_state(), own and own.get_state().tolist())
    data = TensorDataset(x(120, 4), torch.arange(120) % 3)
    loader = DataLoader(data, batch_size=8, shuffle=True, generator=own)
    stream = DataLoader(Stream(), batch_size=8, generator=own)
    ip.trace(model, ip.Reference(stream) + ip.Reference(loader, sample=50), ip.Task(loader), max_steps=3)
    assert (global_state(), own and own.get_state().tolist()) == state


def test_the_global_random_state_decides_nothing():
    points = []
    for seed in (0, 1):
        case = build("attention")
        torch.manual_seed(seed)
        objective = ip.Task(case.inputs, labels(case), batch_size=2) + ip.Diversity([case.model])
        points.append(ip.trace(case.model, case.reference(), objective, max_steps=4).point())
    assert torch.equal(*points)


def test_inputs_that_require_gradients_get_none():
    inputs = x(5, 4).requires_grad_()
    path = ip.trace(mlp(), ip.Reference(inputs), ip.Task(inputs, torch.arange(5) % 3), max_steps=3)
    assert inputs.grad is None and not path.point().requires_grad


def test_a_traced_model_is_independent_of_the_caller_and_of_the_path():
    model = mlp()
    before = copy.deepcopy(model.state_dict())
    path = ip.trace(model, ip.Reference(x(5, 4)), ip.Task(x(9, 4), torch.arange(9) % 3), max_steps=3)
    end = path.point().clone()
    made = path.model()
    with torch.no_grad():
        for parameter in made.parameters():
            parameter.zero_()
    assert torch.equal(path.point(), end)
    assert all(torch.equal(tensor, before[name]) for name, tensor in model.state_dict().items())


MEMORY = """
import resource, torch, isopath as ip
from torch import nn

torch.set_num_threads(1)
peak = lambda: resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
width = {width}
model = nn.Sequential(nn.Linear(width, width), nn.Tanh(), nn.Linear(width, 4))
size = 4 * sum(p.numel() for p in model.parameters())
ip.trace(nn.Linear(4, 4), ip.Reference(torch.randn(8, 4)), ip.Task(torch.randn(8, 4), torch.arange(8) % 4), max_steps=2)
inputs, labels = torch.randn(16, width), torch.arange(16) % 4
before = peak()
path = ip.trace(model, ip.Reference(inputs[:8]), ip.Task(inputs, labels), max_steps=3, keep_waypoints=2, {arguments})
print(size, peak() - before, len(path), path.steps[-1])
"""


@pytest.mark.parametrize("momentum", [0.0, 0.9])
def test_a_trace_of_sixteen_million_parameters_adds_at_most_eight_vectors(momentum):
    code = MEMORY.format(width=4000, arguments=f"direction=ip.NaturalGradient(momentum={momentum})")
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    size, added, kept, steps = map(int, done.stdout.split())
    vectors = added / size - kept
    assert steps == 3
    assert vectors <= 8, f"{vectors:.1f} vectors of P beyond the model and {kept} kept waypoints"
