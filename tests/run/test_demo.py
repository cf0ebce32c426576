"""The demo's parts on a small scale; `make demo` runs the whole."""

import pytest
import torch

import isopath as ip
from isopath.evaluate import evaluate_at
from isopath.network import Network
from isopath.objectives import sparsity
from isopath.run import demo
from isopath.run.demo import Baseline, Digits


@pytest.fixture(scope="module", name="data")
def digits_data():
    torch.set_num_threads(1)
    return Digits.load()


@pytest.fixture(scope="module", name="model")
def trained_model(data):
    return demo.trained(data, seed=0, epochs=4)


@pytest.fixture(scope="module", name="path")
def short_path(data, model):
    return ip.trace(
        model,
        keep=ip.Reference(data.kept[:60]),
        objective=ip.Task(data.new.x, data.new.y, batch_size=demo.BATCH),
        tolerance=demo.TOLERANCE,
        max_steps=3,
    )


def test_the_digits_are_parted_by_class_and_by_use(data):
    for task, classes in ((data.old, range(5)), (data.old_test, range(5)), (data.new, range(5, 10))):
        assert set(task.y.tolist()) == set(classes)
    assert len(data.kept) == demo.KEPT and data.kept.shape[1:] == (1, 8, 8)
    old = {image.numpy().tobytes() for image in data.old.x}
    assert all(image.numpy().tobytes() in old for image in data.kept)  # no test image is looked at


def test_training_learns_the_old_digits_and_is_seeded(data, model):
    network = Network(model)
    assert evaluate_at(network, network.start, data.old_test).accuracy > 0.9
    assert evaluate_at(network, network.start, data.new_test).accuracy < 0.1
    state = torch.get_rng_state()
    again, other = (Network(demo.trained(data, seed=seed, epochs=0)).start for seed in (0, 1))
    assert torch.equal(again, Network(demo.trained(data, seed=0, epochs=0)).start) and not torch.equal(again, other)
    assert torch.equal(torch.get_rng_state(), state)


@pytest.mark.parametrize("name", ["fine-tuning", "penalised"])
def test_a_baseline_spends_what_the_trace_spent_and_is_as_sparse_as_it_should(path, data, name):
    baseline = Baseline(path, data, name, seed=0).run()
    assert torch.equal(baseline.points[0], path.point(0))
    assert path.evaluations <= baseline.evaluations <= path.evaluations + 3 * demo.BATCH  # counted in rows
    assert sparsity(path.network.space, baseline.points[-1]) == pytest.approx(demo.FRACTION, abs=1e-3)


def test_the_penalty_pulls_towards_the_old_outputs(path, data):
    plain, penalised = (Baseline(path, data, name, seed=0) for name in ("fine-tuning", "penalised"))
    moved = path.point(0) + 0.05 * torch.randn(path.network.space.dimension, generator=torch.Generator().manual_seed(0))
    at_start = [float(b._loss(path.point(0), 0)) for b in (plain, penalised)]
    assert at_start[0] == pytest.approx(at_start[1], abs=1e-4)
    assert float(penalised._loss(moved, 0)) > float(plain._loss(moved, 0)) + 1e-3


def test_the_findings_have_a_row_for_every_method(path, data):
    found = demo._findings(path, data, {"fine-tuning": Baseline(path, data, "fine-tuning", seed=0).run()})
    rows = {row[0]: row for row in found["table"]["rows"]}
    assert list(rows) == ["start", "isopath trace", "fine-tuning"]
    assert all(len(row) == len(found["table"]["columns"]) for row in rows.values())
    assert rows["start"][3] == pytest.approx(0, abs=1e-6) and rows["start"][4] == 1  # drift, agreement
    assert len(found["spectrum"]) == 50 and {"along", "plane"} <= set(found)


def test_an_existing_folder_is_refused_before_any_work(tmp_path):
    with pytest.raises(FileExistsError, match=r"exists already and is never overwritten; give another --out"):
        demo.demo(tmp_path)
