"""Slips that people make, and what they are told."""

import numpy as np
import pytest
import torch
from torch import nn

import isopath as ip


def net(outputs=3):
    with torch.random.fork_rng():
        torch.manual_seed(0)
        return nn.Sequential(nn.Linear(4, 8), nn.ReLU(), nn.Linear(8, outputs))


def rows(count=12):
    generator = torch.Generator().manual_seed(0)
    return torch.rand(count, 4, generator=generator), torch.arange(count) % 3


X, Y = rows()
WRONG_TARGETS = {
    "beyond": (Y + 1, ValueError, r"labels must be from 0 to 2, the 3 outputs of the model, got . to 3"),
    "below": (Y - 1, ValueError, r"got -1 to"),
    "short": (Y.to(torch.int32), TypeError, r"class indices must be torch.int64, got torch.int32; convert with .long"),
    "real": (Y.float(), TypeError, r"class indices must be torch.int64, got torch.float32"),
    "column": (Y[:, None], ValueError, r"takes class indices \(12,\), got \(12, 1\) torch.int64; use .squeeze\(-1\)"),
    "one-hot": (nn.functional.one_hot(Y, 3), ValueError, r"of one-hot or soft rows take .argmax\(-1\)"),
    "soft": (torch.rand(12, 3), ValueError, r"of one-hot or soft rows take .argmax\(-1\)"),
}  # fmt: skip


@pytest.mark.parametrize("name", WRONG_TARGETS)
def test_targets_that_are_no_classes_of_the_model(name):
    y, kind, said = WRONG_TARGETS[name]
    task = ip.Task(X, y)
    for use in (lambda: ip.evaluate(net(), task), lambda: ip.trace(net(), None, task, max_steps=1),
                lambda: ip.generate(net(), task, steps=1, networks=2),
                lambda: ip.along(ip.connect(net(), net(), curve="segment"), task, points=2)):  # fmt: skip
        with pytest.raises(kind, match=said):
            use()


def test_what_a_loss_of_ones_own_says_is_left_as_it_is():
    def broken(y, target):
        raise RuntimeError("mine")

    with pytest.raises(RuntimeError, match=r"^mine$"):
        ip.evaluate(net(), ip.Task(X, Y, loss=broken))


def test_a_generator_is_explored_on_its_own_classes():
    generator = ip.generate(net(), ip.Task(X, Y), steps=1, networks=2)
    for y, said in ((Y + 30, "labels must be from 0 to 2"), (Y[:, None], r"got \(12, 1\)")):
        with pytest.raises(ValueError, match=said):
            ip.explore(generator, ip.Task(X, y), count=3)


def test_good_targets_of_every_kind_still_pass():
    for y in (Y, Y.to(torch.uint8), torch.where(Y == 0, -100, Y)):
        assert ip.evaluate(net(), ip.Task(X, y)).accuracy is not None
    tokens = nn.Linear(4, 3), torch.rand(5, 7, 4), torch.randint(3, (5, 7))
    assert ip.evaluate(tokens[0], ip.Task(*tokens[1:])).rows == 35


def test_targets_that_are_no_numbers():
    with pytest.raises(TypeError, match=r"targets must be numbers, got a list .*number the classes"):
        ip.Task(X, ["a"] * 12)
    data = [(x, "ab"[i % 2]) for i, x in enumerate(X)]

    class Named(torch.utils.data.Dataset):
        def __len__(self):
            return len(data)

        def __getitem__(self, i):
            return data[i]

    with pytest.raises(TypeError, match=r"targets must be tensors of numbers, got (tuple|list)"):
        ip.evaluate(net(), ip.Task(Named()))
    with pytest.raises(ValueError, match=r"compares outputs .* of the same shape, got .*leave loss= as it is"):
        ip.evaluate(net(), ip.Task(X, Y, loss="squared_error"))
    with pytest.raises(ValueError, match=r"the same number of rows, got \{'inputs': 12, 'targets': 5\}"):
        ip.Task(X, Y[:5])


@pytest.mark.parametrize(
    ("wrong", "kind", "said"),
    [
        ({"max_steps": 1.5}, ValueError, "max_steps must be a whole number >= 1, got 1.5"),
        ({"max_steps": float("inf")}, ValueError, "whole number"),
        ({"max_steps": "5"}, TypeError, "max_steps must be a number, got '5'"),
        ({"max_steps": True}, TypeError, "max_steps must be a number, got True"),
        ({"tolerance": "1%"}, TypeError, "tolerance must be a number, got '1%'"),
        ({"tolerance": -1.0}, ValueError, "tolerance must be > 0"),
        ({"tolerance": float("nan")}, ValueError, "tolerance must be > 0"),
    ],
)
def test_numbers_of_a_trace(wrong, kind, said):
    with pytest.raises(kind, match=said):
        ip.trace(net(), None, ip.Task(X, Y), **wrong)


def test_whole_numbers_may_be_written_as_floats():
    assert ip.trace(net(), None, ip.Task(X, Y), max_steps=2.0).steps[-1] == 2


def sgd(model):
    return torch.optim.SGD(model.parameters(), 0.1)


def test_what_an_invariant_optimiser_takes():
    model, kept = net(), ip.Reference(X)
    for tolerance in (0.0, -1.0, float("nan")):
        with pytest.raises(ValueError, match="tolerance must be > 0"):
            ip.optim.Invariant(sgd(model), model, kept, tolerance=tolerance)
    with pytest.raises(TypeError, match=r"base must be of type Optimizer, got Sequential; the arguments"):
        ip.optim.Invariant(model, sgd(model), kept)
    for keep in (X, None):
        with pytest.raises(TypeError, match="keep must be of type Memory or Reference or References"):
            ip.optim.Invariant(sgd(model), model, keep)


@pytest.mark.parametrize(
    ("use", "said"),
    [
        (lambda: ip.Ensemble(net()), "takes a list of networks, got one Sequential; put it in a list"),
        (lambda: ip.compare(net(), X, Y), "a comparison takes a list of networks, got one Sequential"),
        (lambda: ip.compare([net(), net()], {"x": X}), "x must be of type Tensor, got dict"),
        (lambda: ip.evaluate(net(), (X, Y)), r"of type Task, got tuple; give ip.Task\(x, y\)"),
        (lambda: ip.evaluate([net()], ip.Task(X, Y)), "what is evaluated must be an nn.Module, got list"),
        (lambda: ip.robustness([net(), net()], X, Y, 0.1), r"attacked must be an nn.Module, got list.*ip.Ensemble"),
        (lambda: ip.explore(net(), ip.Task(X, Y)), "what is explored must be of type Generator, got Sequential"),
        (lambda: ip.distill([net()], net(), X), "the teacher must be an nn.Module, got list"),
        (lambda: ip.barrier(net(), ip.Task(X, Y)), r"a path of networks, got Sequential; make one with ip.connect"),
        (lambda: ip.along(ip.connect(net(), net(), curve="segment"), (X, Y)), "must be of type Task, got tuple"),
        (lambda: ip.compact("net", X), "what is made compact must be an nn.Module, got str"),
    ],
)
def test_things_in_each_others_places(use, said):
    with pytest.raises(TypeError, match=said):
        use()


def test_a_run_is_read_into_the_architecture_that_was_traced(tmp_path):
    ip.trace(net(), None, ip.Task(X, Y), max_steps=1).save(tmp_path / "run")
    assert ip.Trajectory.load(tmp_path / "run", net()).model()(X).shape == (12, 3)
    longer = nn.Sequential(*net(), nn.ReLU(), nn.Linear(3, 3))
    with pytest.raises(ValueError, match=r"the run of another module: 2 parameters differ: '4\.weight': missing in"):
        ip.Trajectory.load(tmp_path / "run", longer)
    with pytest.raises(ValueError, match=r"'2.weight': \(3, 8\) in the run, \(5, 8\) here"):
        ip.Trajectory.load(tmp_path / "run", net(5))
    part = ip.trace(net(), None, ip.Task(X, Y), max_steps=1, trainable=["2.*"])
    part.save(tmp_path / "part")
    assert torch.equal(ip.Trajectory.load(tmp_path / "part", net()).model()[0].weight, net()[0].weight)


@pytest.mark.parametrize(
    ("use", "said"),
    [
        (lambda: ip.align(net(), net(), X, method="mixed", weight="0.5"), "weight must be a number, got '0.5'"),
        (lambda: ip.connect(net(), net(), ip.Task(X, Y), steps="10"), "steps must be a number, got '10'"),
        (lambda: ip.connect(net(), net(), curve="segment").model("0.5"), "t must be a number, got '0.5'"),
        (lambda: ip.connect(net(), net(), curve="segment").ensemble("3"), "count must be a number, got '3'"),
        (lambda: ip.barrier(ip.connect(net(), net(), curve="segment"), ip.Task(X, Y), points="9"), "points must be a"),
        (lambda: ip.pack(net(), {"a": ip.Task(X, Y)}, share=0.3, epochs="1"), "epochs must be a number, got '1'"),
        (lambda: ip.generate(net(), ip.Task(X, Y), steps=1, diversity="0.1"), "diversity must be a number"),
        (lambda: ip.Robust(X, Y, eps="0.1"), "eps must be a number, got '0.1'"),
        (lambda: ip.Memory(examples="200"), "examples must be a number, got '200'"),
        (lambda: ip.distill(net(), net(), X, epochs="3"), "epochs must be a number, got '3'"),
    ],
)
def test_words_in_the_place_of_numbers(use, said):
    with pytest.raises(TypeError, match=said):
        use()


def test_numbers_of_other_libraries_are_numbers():
    line = ip.connect(net(), net(), curve="segment")
    assert torch.equal(line.model(np.float32(0.5))[0].weight, line.model(0.5)[0].weight)
    assert torch.equal(line.model(torch.tensor(0.5))[0].weight, line.model(0.5)[0].weight)
    assert ip.Memory(examples=np.int64(5)).examples == 5


def test_a_model_is_not_run_to_find_out_whether_it_runs():
    class Counting(nn.Sequential):
        calls = 0

        def forward(self, x):
            self.calls += 1
            return super().forward(x)

    model = Counting(*net())
    ip.symmetries(model, X[:2]), ip.footprint(model, X[:2], passes=1)
    assert model.calls == 0


@pytest.mark.parametrize("verb", ["symmetries", "align", "footprint", "compact"])
def test_inputs_on_which_the_model_does_not_run(verb):
    wrong, model = torch.rand(2, 5), net()
    use = (lambda: ip.align(model, net(), wrong)) if verb == "align" else (lambda: getattr(ip, verb)(model, wrong))
    with pytest.raises(ValueError, match=r"Sequential does not run on the (example|data): got 0: \(2, 5\) torch.f"):
        use()
    assert model.training and all(module.training for module in model)


@pytest.mark.parametrize("bad", [{"weight": 2.0}, {"sweeps": 0}, {"batch_size": 0}])
def test_an_alignment_of_numbers_out_of_range(bad):
    with pytest.raises(ValueError, match=r"weight must lie in \[0, 1\], sweeps and batch_size be >= 1"):
        ip.align(net(), net(), X, method="mixed", **bad)
