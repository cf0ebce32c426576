import pytest
import torch
from torch import nn
from torch.utils.data import DataLoader, IterableDataset, TensorDataset

import isopath as ip
from isopath.geometry.reference import Drift, Kept, KeptAll, same_device
from isopath.network import Network
from networks import PLAIN, Case, dense, drift, mlp, outputs, relative, tokens, x

MANY = 240


def moved(case: Case, size: float = 0.3):
    """A network, a point off its start, the plain module there and the outputs at the start."""
    network = Network(case.model)
    theta = network.start + size * x(len(network.start), seed=9)
    return network, theta, network.model(theta), outputs(case.model, case.inputs).detach()


@pytest.mark.parametrize("divergence", PLAIN)
def test_drift_is_the_mean_divergence_of_the_modules_own_outputs(case, divergence):
    network, theta, model, kept = moved(case)
    part = case.reference(divergence, batch_size=2).whole(network, network.start)
    assert part.drift(network.start) == pytest.approx(0, abs=1e-14)
    assert part.drift(theta) == pytest.approx(drift(model, case, kept, divergence), rel=1e-8, abs=1e-13)


def test_its_gradient_is_the_derivative_and_its_curvature_the_metric(case):
    network, theta, _, _ = moved(case)
    part, v = case.reference("kl").whole(network, network.start), x(len(theta))
    h = 1e-5
    difference = (part.drift(theta + h * v) - part.drift(theta - h * v)) / (2 * h)
    assert float(part.gradient(theta) @ v) == pytest.approx(difference, rel=1e-5, abs=1e-8)
    h = 1e-4
    quadratic = part.drift(network.start + h * v) + part.drift(network.start - h * v)
    assert quadratic / h**2 == pytest.approx(float(v @ dense(case, "kl") @ v), rel=1e-3)


def test_given_outputs_are_kept_instead_of_the_models_own():
    model, inputs = mlp(), x(5, 4)
    network, given = Network(model), x(5, 3, seed=3)
    part = ip.Reference(inputs, "squared_error", outputs=given).whole(network, network.start)
    expected = 0.5 * (model(inputs) - given).square().sum(-1).mean()
    assert part.drift(network.start) == pytest.approx(float(expected))


def test_masked_tokens_and_rows_of_weight_zero_do_not_count():
    case = tokens()
    network, theta, _, _ = moved(case)
    part = case.reference().whole(network, network.start)
    other = {**case.inputs, "ids": torch.where(case.inputs["mask"], case.inputs["ids"], 0)}
    same = ip.Reference(other, mask="mask").whole(network, network.start)
    as_tensor = ip.Reference(case.inputs, mask=case.inputs["mask"]).whole(network, network.start)
    assert part.drift(theta) == pytest.approx(same.drift(theta)) == pytest.approx(as_tensor.drift(theta))
    weights = torch.tensor([1.0, 0, 2])
    weighted = ip.Reference(x(3, 4), weights=weights)
    network = Network(mlp())
    theta = network.start + 0.3
    one, two = (ip.Reference(x(3, 4)[i : i + 1]).whole(network, network.start).drift(theta) for i in (0, 2))
    assert weighted.whole(network, network.start).drift(theta) == pytest.approx((one + 2 * two) / 3)


# --- two parts ------------------------------------------------------------------------------------------------------


def test_rows_are_split_once_into_those_that_steer_and_those_that_judge():
    network = Network(mlp())
    kept = ip.Reference(x(MANY, 4), split=0.5).bind(network, network.start, seed=3)
    rows = [torch.cat([batch.inputs for batch in part.batches]) for part in (kept.metric_part, kept.check_part)]
    assert kept.split and [len(r) for r in rows] == [kept.metric_part.rows, kept.check_part.rows] == [120, 120]
    assert len(torch.cat(rows).unique(dim=0)) == MANY
    assert kept.batches is kept.metric_part.batches
    again, other = (ip.Reference(x(MANY, 4), split=0.5).bind(network, network.start, seed=s) for s in (3, 4))
    assert torch.equal(again.batches[0].inputs, kept.batches[0].inputs)
    assert not torch.equal(other.batches[0].inputs, kept.batches[0].inputs)


def test_the_judged_drift_bounds_the_whole():
    case = Case(mlp(), x(MANY, 4))
    network, theta, model, before = moved(case)
    kept = case.reference(split=0.25).bind(network, network.start)
    both = kept.drift(theta)
    assert both.judged == max(both.metric, both.check)
    assert Drift(0.1, 0.2).judged == Drift(0.2, 0.1).judged == 0.2
    assert 0.25 * both.metric + 0.75 * both.check == pytest.approx(drift(model, case, before))
    assert kept.gradient(theta).equal(kept.metric_part.gradient(theta))
    assert drift(model, case, before) <= both.judged


@pytest.mark.parametrize(("count", "split"), [(99, False), (100, True)])
def test_few_rows_serve_both_purposes(count, split):
    network = Network(mlp())
    kept = ip.Reference(x(count, 4)).bind(network, network.start)
    assert kept.split is split and kept.kind == "measured"
    drifts = kept.drift(network.start + 0.1)
    assert (drifts.metric == drifts.check) is not split


def test_a_large_reference_is_sampled_and_evaluated_whole_on_request():
    case = Case(mlp(), x(MANY, 4))
    network, theta, model, before = moved(case)
    kept = case.reference(sample=120, batch_size=50).bind(network, network.start)
    assert kept.kind == "sampled" and kept.metric_part.rows + kept.check_part.rows == 120
    assert kept.whole_drift(theta) == pytest.approx(drift(model, case, before))
    assert kept.whole_drift(theta) != pytest.approx(kept.drift(theta).judged)


def test_the_whole_of_a_weighted_sample_counts_weights():
    weights = torch.arange(MANY).double()
    case = Case(mlp(), x(MANY, 4), {"weights": weights}, weights)
    network, theta, model, before = moved(case)
    kept = case.reference(sample=50, batch_size=7).bind(network, network.start)
    assert kept.whole_drift(theta) == pytest.approx(drift(model, case, before))


# --- streams --------------------------------------------------------------------------------------------------------


class Stream(IterableDataset):
    def __iter__(self):
        return iter(x(MANY, 4))


@pytest.mark.parametrize(
    "source",
    [
        TensorDataset(x(MANY, 4), torch.zeros(MANY)),
        DataLoader(TensorDataset(x(MANY, 4), torch.zeros(MANY)), batch_size=32, shuffle=True),
        DataLoader(Stream(), batch_size=32),
    ],
    ids=["dataset", "shuffled loader", "iterable loader"],
)
@pytest.mark.parametrize("sample", [2048, 120])
def test_a_streamed_reference_has_the_drift_of_the_tensor(source, sample):
    network = Network(mlp())
    theta = network.start + 0.2
    whole, streamed = (
        ip.Reference(inputs, sample=sample, batch_size=64).bind(network, network.start, seed=1)
        for inputs in (x(MANY, 4), source)
    )
    assert streamed.drift(theta) == whole.drift(theta)
    assert streamed.whole_drift(theta) == whole.whole_drift(theta)
    assert torch.equal(streamed.gradient(theta), whole.gradient(theta))


# --- sums -----------------------------------------------------------------------------------------------------------


def test_references_add_each_with_its_own_drift():
    network = Network(mlp())
    a, b = ip.Reference(x(5, 4)), ip.Reference(3 * x(150, 4, seed=2), "kl", sample=120)
    kept, theta = (a + b).bind(network, network.start, seed=2), network.start + 0.2
    one, two = a.bind(network, network.start, 2), b.bind(network, network.start, 3)
    assert len(a + b) == 155 and kept.kind == "sampled" and not kept.split
    assert kept.drift(theta).judged == max(one.drift(theta).judged, two.drift(theta).judged)
    assert kept.whole_drift(theta) == max(one.whole_drift(theta), two.whole_drift(theta))
    torch.testing.assert_close(kept.gradient(theta), one.gradient(theta) + two.gradient(theta))
    assert len(kept.batches) == len(one.batches) + len(two.batches)
    assert len(((a + b) + a).parts) == len((a + (b + a)).parts) == 3


def test_nothing_kept_has_no_drift():
    empty, theta = KeptAll(), x(4)
    assert empty.kind == "none" and empty.batches == [] and empty.drift(theta).judged == 0
    assert empty.whole_drift(theta) == 0 and not empty.gradient(theta).any()


# --- bad input ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"inputs": torch.zeros(0, 4)}, "a reference's inputs has zero rows; give at least one"),
        ({"inputs": torch.full((5, 4), torch.nan)}, "inputs is not finite: 20 entries, the first in row 0"),
        ({"divergence": "l2"}, "unknown divergence 'l2'"),
        ({"split": 1.0}, "split must lie between 0 and 1, got 1.0"),
        ({"batch_size": 0}, "batch_size and sample must be >= 1, got 0"),
        ({"sample": 0}, "must be >= 1, got 256 and 0"),
        ({"weights": torch.ones(3)}, "weights has 3 rows, expected 5, one per input"),
        ({"outputs": torch.ones(3, 3)}, "outputs has 3 rows, expected 5"),
        ({"mask": torch.ones(3, 2)}, "mask has 3 rows, expected 5"),
        ({"weights": -torch.ones(5)}, "weights must be >= 0 with a positive sum"),
        ({"weights": torch.zeros(5)}, "weights must be >= 0 with a positive sum"),
        ({"weights": torch.full((5,), torch.nan)}, "weights must be"),
    ],
)
def test_bad_arguments_are_refused_before_any_work(arguments, message):
    with pytest.raises(ValueError, match=message):
        ip.Reference(**{"inputs": x(5, 4), **arguments})


@pytest.mark.parametrize(
    ("model", "arguments", "message"),
    [
        (mlp, {"inputs": x(5, 4).float()}, "float32.*float64"),
        (mlp, {"inputs": x(5, 7)}, r"\(5, 7\)|5x7"),
        (mlp, {"outputs": x(5, 2)}, r"rows of shape \(2,\), the model's are \(3,\)"),
        (mlp, {"outputs": torch.full((5, 3), torch.inf)}, "outputs is not finite"),
        (mlp, {"mask": torch.ones(5, 2)}, r"mask has shape \(5, 2\), expected \(5,\)"),
        (lambda: nn.Linear(4, 1).double(), {}, 'C = 1; use divergence="bernoulli"'),
        (lambda: nn.Sequential(nn.Linear(4, 3), nn.Flatten(0)).double(), {}, r"shape \(N, C\).*got \(15,\)"),
        (mlp, {"mask": torch.zeros(5)}, "no weight: every one is masked or weighs zero"),
    ],
)
def test_bad_data_for_the_model_names_got_and_expected(model, arguments, message):
    with pytest.raises(ValueError, match=message):
        ip.Reference(**{"inputs": x(5, 4), **arguments}).metric(model())


def test_outputs_that_are_not_finite_name_the_row():
    class Logarithm(nn.Linear):
        def forward(self, inputs):
            return super().forward(inputs) + inputs[:, :1].log()

    inputs = x(5, 4).abs()
    inputs[3, 0] = 0
    with pytest.raises(ValueError, match=r"output on the reference is not finite: 3 entries, the first in row 3"):
        ip.Reference(inputs).metric(Logarithm(4, 3).double())


def test_inputs_of_another_kind_or_on_another_device_are_refused():
    with pytest.raises(TypeError, match=r"a reference's inputs must be a tensor.*got a int"):
        ip.Reference(3)
    with pytest.raises(ValueError, match=r"inputs are on cpu, the model is on meta; move one with \.to"):
        ip.Reference(x(5, 4)).metric(mlp().to("meta"))
    with pytest.raises(ValueError, match=r"on cpu, the model is on cuda:1"):
        same_device({"a": torch.arange(2), "b": x(2)}, torch.device("cuda:1"), "inputs")


def test_a_metric_of_a_reference_is_over_every_row():
    case = Case(mlp(), x(MANY, 4))
    v = x(51)
    expected = dense(case, "hellinger") @ v
    assert relative(case.reference(sample=10).metric(case.model).mv(v), expected) < 1e-10


def test_binding_draws_from_a_generator_of_its_own():
    network, state = Network(mlp()), torch.get_rng_state()
    Kept.of(ip.Reference(x(MANY, 4)), network, network.start, 0)
    assert torch.equal(torch.get_rng_state(), state)
