import pytest
import torch
import torch.nn.functional as F

import isopath as ip
from isopath.evaluate import agreement, evaluate_at
from isopath.network import Network
from networks import Named, Tokens, mlp, outputs, x

INPUTS, LABELS = x(700, 4), torch.arange(700) % 3


@pytest.mark.parametrize("batch_size", [64, 256, 1000])
def test_loss_and_accuracy_over_every_row(batch_size):
    model = mlp()
    y = outputs(model, INPUTS)
    scores = ip.evaluate(model, ip.Task(INPUTS, LABELS, batch_size=batch_size))
    assert scores.loss == pytest.approx(float(F.cross_entropy(y, LABELS)))
    assert scores.accuracy == pytest.approx(float((y.argmax(-1) == LABELS).double().mean()))
    assert scores.rows == 700
    assert repr(scores) == f"Evaluation(accuracy={scores.accuracy:.2%}, loss={scores.loss:.4g}, rows=700)"


def test_labels_of_several_classes_count_entry_by_entry():
    model, bits = mlp(), (x(700, 3, seed=2) > 0).double()
    scores = ip.evaluate(model, ip.Task(INPUTS, bits, loss="bernoulli"))
    assert scores.accuracy == pytest.approx(float(((outputs(model, INPUTS) > 0) == (bits > 0.5)).double().mean()))
    assert scores.rows == 2100


def test_regression_has_no_accuracy():
    scores = ip.evaluate(mlp(), ip.Task(INPUTS, x(700, 3, seed=2), loss="squared_error"))
    assert scores.accuracy is None and scores.rows == 700 and "accuracy" not in repr(scores)


def test_ignored_tokens_count_nowhere():
    model, ids = Tokens().double(), torch.arange(12).reshape(3, 4) % 7
    labels = torch.where(ids > 2, ids % 3, -100)
    y, flat = outputs(model, {"ids": ids, "mask": ids}), labels.flatten()
    scores = ip.evaluate(model, ip.Task({"ids": ids, "mask": ids}, labels))
    assert scores.rows == int((flat != -100).sum())
    assert scores.loss == pytest.approx(float(F.cross_entropy(y, flat)))
    assert scores.accuracy == pytest.approx(float((y.argmax(-1) == flat)[flat != -100].double().mean()))


def test_a_frozen_model_and_one_in_training_mode_are_scored_in_eval_mode_and_left_alone():
    model = torch.nn.Sequential(torch.nn.Linear(4, 3), torch.nn.Dropout(0.9), torch.nn.BatchNorm1d(3)).double()
    model.train().requires_grad_(False)
    mean = model[2].running_mean.clone()
    scores = [ip.evaluate(model, ip.Task(INPUTS, LABELS)) for _ in range(2)]
    assert scores[0] == scores[1] and model.training and torch.equal(model[2].running_mean, mean)


def test_a_point_is_scored_as_its_module():
    network, task = Network(mlp()), ip.Task(INPUTS, LABELS, outputs=slice(0, 3))
    theta = network.start + 0.1
    assert evaluate_at(network, theta, task) == ip.evaluate(network.model(theta), task)


def test_agreement_is_the_share_of_equal_predictions():
    network = Network(mlp())
    a, b = network.start, network.start + 0.5 * x(51)
    equal = outputs(network.model(a), INPUTS).argmax(-1) == outputs(network.model(b), INPUTS).argmax(-1)
    share = float(equal.double().mean())
    assert 0 < share < 1
    assert agreement(network, a, b, INPUTS) == agreement(network, a, b, INPUTS, rows=3) == pytest.approx(share)
    named = Network(Named().double())
    features = {"features": INPUTS, "scale": x(700, 1)}
    assert agreement(named, named.start, named.start, features) == 1
