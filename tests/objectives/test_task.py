import pytest
import torch
import torch.nn.functional as F
from torch import nn
from torch.utils.data import DataLoader, TensorDataset

import isopath as ip
from isopath.check import check_gradient
from isopath.network import Network
from networks import Named, Tokens, mlp, outputs, x

INPUTS, LABELS = x(10, 4), torch.arange(10) % 3


def value(model, task) -> float:
    network = Network(model)
    return float(task(network, network.start))


def test_losses_are_torchs_own_means():
    model = mlp()
    y, bits, goal = outputs(model, INPUTS), (x(10, 3) > 0).double(), x(10, 3, seed=2)
    assert value(model, ip.Task(INPUTS, LABELS)) == pytest.approx(float(F.cross_entropy(y, LABELS)))
    expected = F.binary_cross_entropy_with_logits(y, bits) * 3
    assert value(model, ip.Task(INPUTS, bits, loss="bernoulli")) == pytest.approx(float(expected))
    assert value(model, ip.Task(INPUTS, goal, loss="squared_error")) == pytest.approx(float(1.5 * F.mse_loss(y, goal)))


@pytest.mark.parametrize("loss", [F.cross_entropy, lambda y, t: F.cross_entropy(y, t, reduction="none")])
@pytest.mark.parametrize("batch_size", [256, 3])
def test_a_function_of_rows_or_of_their_mean_is_a_loss(loss, batch_size):
    model = mlp()
    expected = float(F.cross_entropy(outputs(model, INPUTS), LABELS))
    assert value(model, ip.Task(INPUTS, LABELS, loss=loss, batch_size=batch_size)) == pytest.approx(expected)


@pytest.mark.parametrize("loss", ["cross_entropy", "bernoulli", "squared_error"])
def test_gradients_are_right(loss):
    targets = {"cross_entropy": LABELS, "bernoulli": (x(10, 3) > 0).double(), "squared_error": x(10, 3, seed=2)}
    assert check_gradient(ip.Task(INPUTS, targets[loss], loss=loss), mlp()) < 1e-6


def test_weights_and_ignored_labels_change_the_mean_alike():
    model, keep = mlp(), torch.tensor([0, 3, 4])
    weights = torch.zeros(10).index_fill(0, keep, 1.0)
    ignored = torch.full((10,), -100).index_copy(0, keep, LABELS[keep])
    expected = value(model, ip.Task(INPUTS[keep], LABELS[keep]))
    for batch_size in (256, 4):
        assert value(model, ip.Task(INPUTS, LABELS, weights=weights, batch_size=batch_size)) == pytest.approx(expected)
        assert value(model, ip.Task(INPUTS, ignored, batch_size=5)) == pytest.approx(expected)


def test_a_slice_is_a_head_of_its_own():
    model = mlp()
    expected = F.cross_entropy(outputs(model, INPUTS)[:, 1:], LABELS % 2)
    assert value(model, ip.Task(INPUTS, LABELS % 2, outputs=slice(1, 3))) == pytest.approx(float(expected))


def test_mappings_in_and_out_and_token_labels():
    named = Named().double()
    features = {"features": INPUTS, "scale": x(10, 1)}
    assert value(named, ip.Task(features, x(10, 4), loss="squared_error", outputs="hidden")) == pytest.approx(
        float(0.5 * (INPUTS - x(10, 4)).square().sum(-1).mean())
    )
    model, ids = Tokens().double(), torch.arange(12).reshape(3, 4) % 7
    labels = torch.where(ids > 2, ids % 3, -100)
    y = outputs(model, {"ids": ids, "mask": ids})
    got = value(model, ip.Task({"ids": ids, "mask": ids}, labels))
    assert got == pytest.approx(float(F.cross_entropy(y, labels.flatten())))


@pytest.mark.parametrize("batch_size", [3, 5, 10, 99])
def test_each_epoch_sees_every_row_at_most_once_in_an_order_of_its_own(batch_size):
    task = ip.Task(INPUTS, LABELS, batch_size=batch_size)
    size = min(batch_size, 10)
    steps = 10 // size
    batches = [task.freeze(step, 0).index for step in range(2 * steps)]
    epochs = [torch.cat(batches[:steps]), torch.cat(batches[steps:])]
    for epoch in epochs:
        assert len(epoch) == len(epoch.unique()) == steps * size
    assert not torch.equal(*epochs)


def test_a_frozen_task_is_its_batch_and_the_seed_decides_it():
    task, model = ip.Task(INPUTS, LABELS, batch_size=4), mlp()
    frozen = task.freeze(1, seed=5)
    rows = frozen.index
    assert value(model, frozen) == pytest.approx(value(model, ip.Task(INPUTS[rows], LABELS[rows])))
    assert torch.equal(task.freeze(1, seed=5).index, rows)
    assert not torch.equal(task.freeze(1, seed=6).index, rows)
    assert frozen.examples is task.examples and len(frozen) == 10


def test_datasets_and_loaders_bring_their_targets():
    model, data = mlp(), TensorDataset(INPUTS, LABELS)
    expected = value(model, ip.Task(INPUTS, LABELS))
    for source in (data, DataLoader(data, batch_size=4, shuffle=True)):
        assert value(model, ip.Task(source)) == pytest.approx(expected)


@pytest.mark.parametrize(
    ("arguments", "error", "message"),
    [
        ({"loss": "l1"}, ValueError, "unknown loss 'l1'; the names are cross_entropy, bernoulli, squared_error"),
        ({"batch_size": 0}, ValueError, "batch_size must be >= 1, got 0"),
        ({"y": None}, TypeError, "a task needs targets: pass y"),
        ({"y": LABELS[:4]}, ValueError, "same number of rows.*10.*4"),
        ({"x": INPUTS[:0], "y": LABELS[:0]}, ValueError, "a task's inputs has zero rows"),
        ({"x": INPUTS / 0}, ValueError, "a task's inputs is not finite.*row 0"),
        ({"x": "digits"}, TypeError, "a task's inputs must be a tensor.*got a str"),
        ({"weights": torch.ones(4)}, ValueError, r"weights must be >= 0 of shape \(10,\), one per row, got \(4,\)"),
    ],
)
def test_bad_arguments_are_refused_before_any_work(arguments, error, message):
    with pytest.raises(error, match=message):
        ip.Task(**{"x": INPUTS, "y": LABELS, **arguments})


@pytest.mark.parametrize(
    ("inputs", "targets", "message"),
    [(x(10, 5), LABELS, r"\(10, 5\)|10x5"), (torch.arange(40).reshape(10, 4), LABELS, "int64.*float32")],
)
def test_inputs_that_the_model_cannot_take_name_got_and_expected(inputs, targets, message):
    with pytest.raises(ValueError, match=message):
        value(nn.Linear(4, 3), ip.Task(inputs, targets))


@pytest.mark.parametrize("loss", ["squared_error", "bernoulli"])
@pytest.mark.parametrize("batch_size", [3, 256])
def test_outputs_of_one_number_a_row_are_rows(loss, batch_size):
    column, goal = nn.Linear(4, 1).double(), (x(10, seed=2) > 0).double()
    flat = nn.Sequential(column, nn.Flatten(0))
    expected = value(column, ip.Task(INPUTS, goal[:, None], loss=loss))
    assert value(flat, ip.Task(INPUTS, goal, loss=loss, batch_size=batch_size)) == pytest.approx(expected)


def test_an_attack_of_ones_own_makes_a_robust_loss_and_its_passes_are_counted():
    class Up:
        eps, norm, low, high = 0.1, "linf", None, None

        def __call__(self, function, x, y, generator, loss=None):
            function(x)  # a look
            return x + self.eps

    model = mlp()
    network = Network(model)
    got = ip.Robust(INPUTS, LABELS, attack=Up())(network, network.start)
    assert float(got) == pytest.approx(value(model, ip.Task(INPUTS + 0.1, LABELS)))
    assert network.evaluations == pytest.approx(10 * 2 / 3)
