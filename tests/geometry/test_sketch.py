"""Rows drawn from a mixture of Gaussians: their moments, labels, numbering, and what a memory of them keeps."""

import warnings

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

import isopath as ip
from isopath.geometry.sketch import BLOCK, Sketch

D = 6


def correlated(n: int, seed: int = 0, rank: int = 2) -> torch.Tensor:
    g = torch.Generator().manual_seed(seed)
    along = torch.randn(n, rank, generator=g, dtype=torch.float64) @ torch.randn(rank, D, generator=g).double()
    return 3 + along + 0.1 * torch.randn(n, D, generator=g, dtype=torch.float64)


@pytest.mark.parametrize("rank", [D, 1, 0])
def test_one_gaussian_has_the_mean_of_the_rows_and_with_all_directions_their_covariance(rank):
    x = correlated(400)
    drawn, labels = Sketch.of(x, parts=1, rank=rank, basis=D).draw(torch.arange(200 * BLOCK))
    assert labels is None and drawn.dtype == x.dtype
    deviation, n = x.std(0), len(drawn)
    assert bool(((drawn.mean(0) - x.mean(0)).abs() < 5 * deviation / n**0.5).all())
    # in the basis of all rows their covariance is diagonal, so that of one Gaussian is whole whatever its rank
    assert bool(((drawn.T.cov() - x.T.cov(correction=0)).abs() < 8 * deviation.outer(deviation) / n**0.5).all())


def test_directions_hold_what_a_diagonal_cannot():
    x, y = correlated(400), torch.arange(400) % 2
    x[y == 1] = x[y == 1].flip(1)  # two covariances, of which the basis of all rows is none
    apart = {}
    for rank in (0, D):
        drawn, labels = Sketch.of(x, y, parts=1, rank=rank, basis=D).draw(torch.arange(100 * BLOCK))
        apart[rank] = float((drawn[labels == 1].T.cov() - x[y == 1].T.cov(correction=0)).norm())
    assert apart[D] < 0.1 * apart[0]


def test_in_its_basis_every_variance_is_kept_whatever_the_rank():
    x = correlated(300)
    for rank in (0, 1, 3):
        sketch = Sketch.of(x, parts=1, rank=rank, basis=D)
        inside = (x - x.mean(0)) @ sketch.basis
        kept = sketch.directions[0].square().sum(1) + sketch.rest[0].square()
        assert torch.allclose(kept, inside.square().mean(0), rtol=1e-8)
    thin = Sketch.of(x, parts=1, rank=2, basis=2)
    shown = thin.basis @ (thin.directions[0] @ thin.directions[0].T + thin.rest[0].square().diag()) @ thin.basis.T
    assert torch.allclose(shown.diagonal() + thin.outside.square(), (x - x.mean(0)).square().mean(0), rtol=1e-8)


def test_what_the_basis_leaves_is_drawn_entry_by_entry():
    x = correlated(400)
    drawn, _ = Sketch.of(x, parts=1, rank=1, basis=1).draw(torch.arange(200 * BLOCK))
    assert torch.allclose(drawn.var(0), x.var(0, correction=0), rtol=0.05)


def test_labels_have_gaussians_of_their_own_and_their_share_of_the_rows():
    x, y = torch.cat([correlated(90), -correlated(30)]), torch.tensor([0] * 90 + [5] * 30)
    sketch = Sketch.of(x, y, parts=3, rank=2, basis=4)
    assert sketch.labels.unique().tolist() == [0, 5] and 4 <= len(sketch.labels) <= 6
    assert torch.isclose(sketch.shares[sketch.labels == 5].sum(), torch.tensor(0.25))
    drawn, labels = sketch.draw(torch.arange(40 * BLOCK))
    assert abs(float((labels == 5).double().mean()) - 0.25) < 0.02
    assert float(drawn[labels == 0].mean()) > 2 and float(drawn[labels == 5].mean()) < -2


def test_parts_follow_clusters():
    centres = torch.tensor([[0.0] * D, [10.0] * D, [-10.0] * D])
    x = centres.repeat(50, 1) + 0.1 * torch.randn(150, D, generator=torch.Generator().manual_seed(1))
    far = Sketch.of(x, parts=3, rank=1, basis=D)
    drawn, _ = far.draw(torch.arange(BLOCK))
    assert float(torch.cdist(drawn, centres).min(1).values.max()) < 3


def test_no_gaussian_is_of_a_few_rows():
    x = torch.cat([correlated(60), correlated(3) + 50, correlated(30) - 50])  # three far ones would be a part
    sketch = Sketch.of(x, parts=5, rank=2, basis=D)
    assert bool((sketch.shares * len(x) >= 10).all()) and torch.isclose(sketch.shares.sum(), torch.tensor(1.0))
    assert len(Sketch.of(x[:12], parts=5, rank=2, basis=D).shares) == 1
    with pytest.warns(UserWarning, match=r"labels \[7\] have fewer than 10 rows"):
        assert Sketch.of(x, torch.tensor([7] * 9 + [2] * 84)).labels.unique().tolist() == [2]
    with pytest.raises(ValueError, match="at least 10 rows of one label, got 12 rows in all"):
        Sketch.of(x[:12], torch.arange(12) % 2)


def test_scales_far_apart_are_all_drawn():
    x = torch.randn(400, D, generator=torch.Generator().manual_seed(0))
    x[:, 0] *= 2e5
    drawn, _ = Sketch.of(x).draw(torch.arange(100 * BLOCK))
    assert torch.allclose(drawn.std(0), x.std(0), rtol=0.1)


def test_the_default_dtype_is_not_read():
    x = correlated(40)
    rows, _ = Sketch.of(x).draw(torch.arange(9))
    torch.set_default_dtype(torch.float64)
    try:
        assert torch.equal(Sketch.of(x).draw(torch.arange(9))[0], rows)
    finally:
        torch.set_default_dtype(torch.float32)
    Sketch.of(x.float()[:, 0], seed=-1).draw(torch.arange(3))  # rows of one entry; any whole number is a seed


@settings(max_examples=25, deadline=None)
@given(index=st.lists(st.integers(0, 5 * BLOCK), min_size=1, max_size=40), seed=st.integers(0, 3))
def test_a_row_is_the_same_whatever_else_is_drawn(index, seed):
    sketch = Sketch.of(correlated(50), torch.arange(50) % 3, 2, 2, 4, seed)
    wanted = torch.tensor(index)
    rows, labels = sketch.draw(wanted)
    every, of = sketch.draw(torch.arange(6 * BLOCK))
    assert torch.equal(rows, every[wanted]) and torch.equal(labels, of[wanted])
    assert len(every.unique(dim=0)) == len(every)  # and no two are the same


def test_few_rows_wide_rows_and_equal_rows_do_not_break_it():
    wide = torch.randn(17, 40, generator=torch.Generator().manual_seed(0))  # fewer rows than entries
    sketch = Sketch.of(wide, parts=3, rank=24, basis=96)
    assert sketch.basis.shape == (40, 40) and bool(sketch.draw(torch.arange(9))[0].isfinite().all())
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        same = Sketch.of(torch.ones(20, 3, 2), torch.arange(20) % 2, parts=4)
    drawn, _ = same.draw(torch.arange(10))
    assert drawn.shape == (10, 3, 2) and torch.allclose(drawn, torch.ones(10, 3, 2), atol=1e-4)


# --- in a memory ------------------------------------------------------------------------------------------------------


def classifier(steps: int = 200) -> tuple[nn.Module, torch.Tensor, torch.Tensor]:
    torch.manual_seed(0)
    x, y = torch.randn(240, 5), torch.arange(240) % 3
    x = x + 3 * nn.functional.one_hot(y, 5)
    model = nn.Sequential(nn.Linear(5, 16), nn.ReLU(), nn.Linear(16, 3))
    optimizer = torch.optim.Adam(model.parameters(), 0.02)
    for _ in range(steps):
        optimizer.zero_grad()
        nn.functional.cross_entropy(model(x), y).backward()
        optimizer.step()
    return model, x, y


def drawn(examples: int = 300, **options: object) -> ip.Memory:
    return ip.Memory(examples=examples, choose="drawn", sketch=(2, 2, 4), **options)


def test_drawn_rows_are_no_rows_of_the_data_and_the_network_sees_their_labels():
    model, x, y = classifier()
    (task,) = drawn().remember(model, x, y).tasks
    assert task.rows == 300 and not (torch.cdist(task.inputs, x).min(1).values < 1e-4).any()
    with torch.no_grad():
        assert torch.allclose(task.outputs, model(task.inputs), atol=1e-6)
    assert torch.equal(task.outputs.argmax(1), task.labels)
    assert task.bytes == task.sketch.bytes + 300 * (3 * 4 + 8 + 8)


def test_tasks_share_the_rows_and_the_first_keeps_its_own():
    model, x, y = classifier()
    one = drawn().remember(model, x, y)
    two = one.remember(model, x + 1, y)
    assert [t.rows for t in two.tasks] == [150, 150]
    assert torch.equal(two.tasks[0].inputs, one.tasks[0].inputs[:150])
    assert not torch.equal(two.tasks[0].inputs, two.tasks[1].inputs)


def test_a_file_holds_the_sketch_and_not_the_rows(tmp_path):
    model, x, y = classifier()
    memory, file = drawn(2000, factors=True).remember(model, x, y), tmp_path / "memory.safetensors"
    memory.save(file)
    back = ip.Memory.load(file)
    assert back.choose == "drawn" and back.sketch == (2, 2, 4) and back.bytes == memory.bytes
    assert torch.allclose(back.tasks[0].inputs, memory.tasks[0].inputs, atol=1e-5)
    assert torch.equal(back.tasks[0].labels, memory.tasks[0].labels)
    rows = memory.tasks[0].inputs
    curved = memory.tasks[0].curvature.bytes
    assert file.stat().st_size < curved + 0.8 * rows.numel() * 4 + 2000 * 28


def test_without_labels_no_row_is_turned_away_and_numbers_are_no_labels():
    model, x, _ = classifier()
    (task,) = drawn(70).remember(model, x).tasks
    assert task.rows == 70 and task.labels is None and task.drawn.tolist() == list(range(70))
    loader = torch.utils.data.DataLoader(torch.utils.data.TensorDataset(x), batch_size=16)
    assert drawn(70).remember(model, loader).tasks[0].rows == 70
    with pytest.warns(UserWarning, match="do not number its outputs. columns"):
        assert drawn(70).remember(model, x, -torch.ones(240, dtype=torch.int64)).tasks[0].labels is None
    for y in (torch.randn(240, 3), torch.randn(240)):
        (again,) = drawn(70, divergence="squared_error").remember(model, x, y).tasks
        assert again.labels is None and again.rows == 70


def test_a_trace_over_drawn_rows_calls_its_drift_an_estimate():
    model, x, y = classifier()
    path = ip.trace(model, keep=drawn().remember(model, x, y), objective=ip.Task(x + 1, y), tolerance=0.01, max_steps=3)
    assert path.drift_kind == "estimated" and "drawn rows: nothing checks it" in path.reason


@pytest.mark.parametrize("factors", [False, True])
def test_an_optimiser_holds_what_two_tasks_drew(factors):
    model, x, y = classifier()
    memory = drawn(400, factors=factors).remember(model, x, y).remember(model, x.flip(1), y)

    def left(keep: ip.Memory) -> float:
        torch.manual_seed(1)
        own = nn.Sequential(nn.Linear(5, 16), nn.ReLU(), nn.Linear(16, 3))
        own.load_state_dict(model.state_dict())
        optimizer = ip.optim.Invariant(torch.optim.SGD(own.parameters(), 0.1), own, keep, tolerance=None, strength=5.0)
        assert len(optimizer._rows) <= 1
        for _ in range(100):
            optimizer.zero_grad()
            nn.functional.cross_entropy(own(x), (y + 1) % 3).backward()
            optimizer.step()
        before, now = model(x).softmax(1), own(x).softmax(1)
        return float((1 - (before * now).sqrt().sum(1)).mean().detach())

    free = left(ip.Memory())
    assert left(memory) < 0.2 * free


def test_several_heads_are_pulled_apart():
    model, x, y = classifier()
    memory = drawn(100).remember(model, x, y).remember(model, x, y % 2, output=lambda out: out[:, :2])
    optimizer = ip.optim.Invariant(torch.optim.SGD(model.parameters(), 0.1), model, memory)
    assert len(optimizer._rows) == 2 and len(optimizer._judges()) == 2


def test_rows_of_other_shapes_are_pulled_apart():
    torch.manual_seed(0)
    model = nn.Sequential(nn.Conv2d(1, 3, 3), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(3, 2))
    memory = drawn(60).remember(model, torch.randn(40, 1, 8, 8)).remember(model, torch.randn(40, 1, 10, 10))
    optimizer = ip.optim.Invariant(torch.optim.SGD(model.parameters(), 0.1), model, memory)
    assert len(optimizer._rows) == 2


def test_a_small_batch_leans_to_no_task():
    model, x, y = classifier()
    memory = drawn(120, decay=0.1).remember(model, x, y).remember(model, x + 1, y)
    optimizer = ip.optim.Invariant(torch.optim.SGD(model.parameters(), 0.1), model, memory)
    theta = optimizer.network.start + 0.05 * torch.randn(len(optimizer.network.start))
    (whole,) = optimizer._rows
    exact = whole.reference._part(whole.network, whole.kept.start, torch.arange(120)).gradient(theta)
    mean = torch.stack([whole.gradient(theta, step, 4) for step in range(2000)]).mean(0)
    assert float((mean - exact).norm() / exact.norm()) < 0.15


def test_many_drawn_rows_are_all_looked_at_where_a_waypoint_is_kept(monkeypatch):
    model, x, y = classifier()
    looked, whole = [], ip.geometry.reference.Kept.whole_drift
    monkeypatch.setattr(ip.geometry.reference.Kept, "whole_drift", lambda self, t: looked.append(1) or whole(self, t))
    memory = drawn(3000).remember(model, x, y)
    ip.trace(model, keep=memory, objective=ip.Task(x + 1, y), tolerance=0.05, max_steps=2)
    assert looked


def test_classes_that_the_model_does_not_see_are_named_and_curvature_stays():
    model, x, y = classifier()
    with torch.no_grad():
        model[2].bias[1] = -1e4
    with pytest.warns(UserWarning, match=r"for labels \[0, 2\]; the model does not see the others"):
        drawn().remember(model, x, y)
    with pytest.warns(UserWarning, match="of 300 rows 0 are kept"):
        (task,) = drawn(factors=True).remember(model, x[y == 1], y[y == 1]).tasks
    assert task.rows == 0 and task.curvature is not None


def test_a_file_whose_rows_would_be_others_is_refused(tmp_path, monkeypatch):
    model, x, y = classifier()
    drawn().remember(model, x, y).save(tmp_path / "memory.safetensors")
    draw = Sketch.draw
    monkeypatch.setattr(Sketch, "draw", lambda self, index: draw(self, index + 1))
    with pytest.raises(ValueError, match="cannot be drawn again"):
        ip.Memory.load(tmp_path / "memory.safetensors")


def test_one_pull_of_all_tasks_is_the_sum_of_theirs():
    model, x, y = classifier()
    memory = drawn(120, decay=0.5).remember(model, x, y).remember(model, x + 1, y)
    optimizer = ip.optim.Invariant(torch.optim.SGD(model.parameters(), 0.1), model, memory, batch_size=10_000)
    theta = optimizer.network.start + 0.05 * torch.randn(len(optimizer.network.start))
    (whole,) = optimizer._rows
    rows = whole.reference._part(whole.network, whole.kept.start, torch.arange(120)).gradient(theta)
    each = [r.reference._part(r.network, r.kept.start, torch.arange(60)).gradient(theta) for r in optimizer._told]
    assert torch.allclose(whole.weight * rows, sum(r.weight * g for r, g in zip(optimizer._told, each)), atol=1e-6)


def test_what_cannot_be_drawn_says_so():
    model, x, y = classifier()
    with pytest.raises(TypeError, match=r"one floating-point tensor, got torch\.int64; for others keep"):
        drawn().remember(model, torch.zeros(9, 5, dtype=torch.int64))
    with pytest.raises(TypeError, match="got dict"):
        drawn().remember(model, {"input": x})
    for wrong in ((0, 2, 3), (2.5, 2, 4), 8, (1, 2)):
        with pytest.raises(ValueError, match="sketch must be"):
            ip.Memory(sketch=wrong)
    with pytest.raises(ValueError, match="labels go up to 7, but the head"):
        drawn().remember(model, x, y + 5)
    lazy = nn.Sequential(nn.Linear(5, 3))
    nn.init.zeros_(lazy[0].weight)
    lazy[0].bias.data = torch.tensor([0.0, 0.0, 9.0])
    with pytest.raises(ValueError, match="gives none of the rows drawn for task '0'"), pytest.warns(UserWarning):
        drawn().remember(lazy, x[y < 2], y[y < 2])
