"""What tasks leave behind: rows, curvature, budgets, growing heads, files."""

import copy
import dataclasses

import pytest
import torch
from torch import nn

import isopath as ip
import isopath.run.data
from isopath.geometry.curvature import Curvature
from isopath.network import Network
from isopath.storage import DamagedFile
from networks import matrix

N = 60


def mlp(outputs: int = 4, seed: int = 0) -> nn.Module:
    torch.manual_seed(seed)
    return nn.Sequential(nn.Linear(5, 7), nn.Tanh(), nn.Linear(7, outputs)).double()


def data(seed: int = 0) -> tuple[torch.Tensor, torch.Tensor]:
    x = torch.randn(N, 5, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)
    return x, torch.arange(N) % 4


def curvature(model: nn.Module, x: torch.Tensor) -> Curvature:
    network = Network(model)
    return Curvature.of(network, network.start, ip.Reference(x).whole(network, network.start).batches)


@pytest.mark.parametrize("choose", ["random", "balanced", "herding", "leverage"])
def test_rows_are_shared_by_the_tasks_and_keep_the_outputs_they_had(choose):
    model, (x, y) = mlp(), data()
    memory = ip.Memory(examples=20, choose=choose).remember(model, x, y, name="a")
    (task,) = memory.tasks
    assert task.rows == 20 and len({tuple(row) for row in task.inputs.tolist()}) == 20
    assert torch.allclose(task.outputs, model(task.inputs))
    both = memory.remember(mlp(seed=1), *data(1), name="b")
    assert [t.rows for t in both.tasks] == [10, 10] and torch.equal(both.tasks[0].inputs, task.inputs[:10])
    assert [t.rows for t in memory.tasks] == [20]  # the memory before is as it was
    if choose == "balanced":
        assert both.tasks[1].labels[:8].bincount().tolist() == [2, 2, 2, 2]
    again = ip.Memory(examples=20, choose=choose).remember(model, x, y, name="a")
    assert torch.equal(again.tasks[0].inputs, task.inputs)


def test_herded_rows_have_the_mean_of_all_sooner_than_random_ones():
    model, (x, y) = mlp(), data()
    means = {}
    for choose in ("random", "herding"):
        kept = ip.Memory(examples=8, choose=choose).remember(model, x, y).tasks[0].outputs
        means[choose] = float((kept.softmax(1).sqrt().mean(0) - model(x).softmax(1).sqrt().mean(0)).norm())
    assert means["herding"] < 0.5 * means["random"]


def test_curvature_by_name_is_the_metric_it_came_from():
    model, (x, _) = mlp(), data()
    network = Network(model)
    metric = ip.Reference(x).metric(model, "kronecker", coverage=1.0)
    back = curvature(model, x).metric(network.space)
    v = torch.randn(metric.dimension, dtype=torch.float64)
    assert torch.allclose(back.mv(v), metric.mv(v)) and torch.allclose(back.solve(v, 0.1), metric.solve(v, 0.1))


def test_merging_what_shares_a_factor_is_exact_and_counts_tasks():
    model, (x, _) = mlp(), data()
    one = curvature(model, x)
    v = torch.randn(Network(model).space.dimension, dtype=torch.float64)
    space = Network(model).space
    twice = Curvature.merged([one, one], [1.0, 1.0])
    assert twice.count == 2 and torch.allclose(twice.metric(space).mv(v), 2 * one.metric(space).mv(v))
    thrice = Curvature.merged([twice, one], [1.0, 1.0])
    assert torch.allclose(thrice.metric(space).mv(v), 3 * one.metric(space).mv(v))
    faded = Curvature.merged([twice, one], [0.5, 1.0])
    assert torch.allclose(faded.metric(space).mv(v), 2 * one.metric(space).mv(v))
    whole, cut = (c.metric(space) for c in (one, one.truncated(2)))
    assert 0 < cut.trace() < whole.trace()


def test_a_memory_of_factors_keeps_no_data_and_merged_it_does_not_grow():
    memory = ip.Memory(examples=0, factors=True, merge=True)
    sizes = []
    for k in range(3):
        memory = memory.remember(mlp(seed=k), *data(k))
        sizes.append(memory.bytes)
        assert all(task.inputs is None and task.outputs is None for task in memory.tasks)
    assert sizes[1] == sizes[2]
    assert sum(task.curvature is not None for task in memory.tasks) == 1
    assert memory.tasks[-1].curvature.count == 3
    assert "3 tasks, 0 examples, 1 curvatures" in repr(memory)


@pytest.mark.parametrize("kind", ["kronecker", "ekfac", "diagonal"])
def test_sampled_curvature_tends_to_that_of_all_outputs(kind, tmp_path):
    model, (x, _) = mlp(), data()

    def kept(samples):
        memory = ip.Memory(examples=0, factors=kind, samples=samples).remember(model, x)
        memory.save(tmp_path / "memory.safetensors")
        assert ip.Memory.load(tmp_path / "memory.safetensors").samples == samples
        space = Network(model).space
        return matrix(memory.tasks[0].curvature.metric(space).mv, space.dimension)

    exact = kept(None)
    errors = [float((kept(samples) - exact).norm() / exact.norm()) for samples in (1, 30, 900)]
    assert errors[2] < 0.1 < errors[0] and errors[2] < errors[1] < errors[0]


def test_decay_fades_old_tasks():
    memory = ip.Memory(examples=0, factors=True, decay=0.5)
    for k in range(3):
        memory = memory.remember(mlp(seed=k), *data(k))
    assert [task.weight for task in memory.tasks] == [0.25, 0.5, 1.0]


def test_a_grown_head_has_no_curvature_on_its_new_outputs():
    small, (x, _) = mlp(4), data()
    grown = mlp(6)
    with torch.no_grad():
        grown[0].load_state_dict(small[0].state_dict())
        grown[2].weight[:4], grown[2].bias[:4] = small[2].weight, small[2].bias
    space = Network(grown).space
    metric = curvature(small, x).metric(space)
    v = space.flatten({name: torch.zeros_like(p) for name, p in grown.named_parameters()})
    parts = space.unflatten(v)
    parts["2.weight"][4:] = 1.0
    assert float(metric.mv(space.flatten(parts)).abs().max()) == 0
    memory = ip.Memory(examples=10).remember(small, x)
    assert memory.references().bind(Network(grown), Network(grown).start).drift(Network(grown).start).judged < 1e-12


@pytest.mark.parametrize(("examples", "factors"), [(12, False), (0, True), (5, True)])
@pytest.mark.parametrize("kind", ["tensor", "mapping", "tuple"])
def test_a_file_gives_back_the_same_bits(tmp_path, examples, factors, kind):
    class Wrapped(nn.Module):
        def __init__(self):
            super().__init__()
            self.body = mlp()

        def forward(self, x):
            return {"logits": self.body(x)}

    x, y = data()
    inputs = {"tensor": x, "mapping": {"x": x}, "tuple": (x,)}[kind]
    memory = ip.Memory(examples, factors).remember(Wrapped(), inputs, y, name="a")
    memory = memory.remember(Wrapped(), inputs, y, name="b")
    memory.save(tmp_path / "memory.safetensors")
    back = ip.Memory.load(tmp_path / "memory.safetensors")
    back.save(tmp_path / "again.safetensors")
    assert (tmp_path / "again.safetensors").read_bytes() == (tmp_path / "memory.safetensors").read_bytes()
    assert [t.name for t in back.tasks] == ["a", "b"] and back.bytes == memory.bytes
    network = Network(Wrapped())
    v = torch.randn(network.space.dimension, dtype=torch.float64)
    for one, other in zip(memory.tasks, back.tasks):
        assert type(one.inputs) is type(other.inputs)
        if one.curvature is not None:
            assert torch.equal(one.curvature.metric(network.space).mv(v), other.curvature.metric(network.space).mv(v))


def test_a_file_that_is_cut_short_is_refused_and_the_old_one_stays(tmp_path):
    file = tmp_path / "memory.safetensors"
    ip.Memory(examples=12).remember(mlp(), *data()).save(file)
    whole = file.read_bytes()
    file.write_bytes(whole[:-20])
    with pytest.raises(DamagedFile):
        ip.Memory.load(file)
    file.write_bytes(whole)
    with pytest.raises(TypeError, match="is a function, which no file holds"):
        ip.Memory(examples=4).remember(mlp(), *data(), output=lambda returned: returned).save(file)
    assert file.read_bytes() == whole


def test_rows_give_way_to_a_byte_budget():
    model, (x, y) = mlp(), data()
    whole = ip.Memory(examples=40).remember(model, x, y).remember(mlp(seed=1), x, y)
    tight = ip.Memory(examples=40, budget=whole.bytes // 2).remember(model, x, y).remember(mlp(seed=1), x, y)
    assert tight.bytes <= whole.bytes // 2 and [t.rows for t in tight.tasks] == [10, 10]
    with pytest.raises(ValueError, match="1 examples cannot be shared by 2 tasks: nothing would be kept of '1'"):
        ip.Memory(examples=1).remember(model, x, y).remember(mlp(seed=1), x, y)
    assert [t.rows for t in ip.Memory(examples=7).remember(model, x).remember(model, x).tasks] == [4, 3]
    with pytest.raises(ValueError, match="do not fit the budget of 50"):
        ip.Memory(examples=4, budget=50).remember(model, x, y)
    with pytest.raises(ValueError, match="do not fit the budget of 100"):
        ip.Memory(examples=4, factors=True, budget=100).remember(model, x, y)


def test_a_trace_keeps_what_a_memory_holds():
    model, (x, y) = mlp(), data()
    memory = ip.Memory(examples=40).remember(model, x, y)
    path = ip.trace(model, keep=memory, objective=ip.Task(*data(5)), tolerance=0.01, max_steps=5)
    kept = memory.tasks[0]
    p, p0 = path.model()(kept.inputs).softmax(1), kept.outputs.softmax(1)
    assert path.steps[-1] > 0 and float((1 - (p * p0).sqrt().sum(1)).mean()) <= 0.01 + 1e-12
    assert ip.trace(model, keep=ip.Memory(), objective=ip.Task(x, y), max_steps=1).drift_kind == "none"


@pytest.mark.parametrize("merge", [False, True])
def test_a_trace_that_keeps_curvature_alone_bounds_the_estimate_and_says_that_it_is_one(merge, tmp_path):
    model, (x, _) = mlp(), data()
    memory = ip.Memory(examples=0, factors=True, merge=merge).remember(model, x)
    keeping = {"objective": ip.Task(*data(5)), "tolerance": 0.01, "max_steps": 20}
    path = ip.trace(model, keep=memory, **keeping, run=tmp_path / "run")
    metric, centre = memory.tasks[0].curvature.bare().metric(path.network.space), path.network.start
    assert path.drift_kind == "estimated" and "an estimate from curvature" in path.reason
    drifts = [0.5 * float(metric.norm(path.point(step) - centre)) ** 2 for step in path.steps]
    assert path.steps[-1] > 0 and max(drifts) <= 0.01 and path.drift == pytest.approx(drifts[-1])
    p, p0 = path.model()(x).softmax(1), model(x).softmax(1)
    free = ip.trace(model, keep=None, **keeping).model()(x).softmax(1)
    moved, wild = (float((1 - (q * p0).sqrt().sum(1)).mean()) for q in (p, free))
    assert moved < 0.05 < wild
    back = ip.Trajectory.load(tmp_path / "run", model)
    assert torch.equal(back.point(), path.point()) and back.drift_kind == "estimated"
    second = memory.remember(path.model(), *data(7))
    both = ip.trace(path.model(), keep=second, objective=ip.Task(*data(9)), tolerance=0.05, max_steps=5)
    assert both.steps[-1] > 0


def test_rows_and_curvature_of_different_tasks_are_kept_together():
    model, (x, _) = mlp(), data()
    memory = ip.Memory(examples=0, factors=True).remember(model, x, name="bare")
    memory = dataclasses.replace(memory, examples=30).remember(model, *data(1), name="rows")
    path = ip.trace(model, keep=memory, objective=ip.Task(*data(5)), max_steps=10)
    task = memory.tasks[1]
    p, p0 = path.model()(task.inputs).softmax(1), task.outputs.softmax(1)
    assert float((1 - (p * p0).sqrt().sum(1)).mean()) <= 0.01
    metric = memory.tasks[0].curvature.bare().metric(path.network.space)
    assert 0.5 * float(metric.norm(path.point() - path.network.start)) ** 2 <= 0.01


@pytest.mark.parametrize("kind", ["kronecker", "ekfac", "diagonal"])
def test_curvature_of_every_kind_is_kept_merged_and_stored(kind, tmp_path):
    model, (x, _) = mlp(), data()
    network = Network(model)
    v = torch.randn(network.space.dimension, dtype=torch.float64)
    expected = ip.Reference(x).metric(model, kind, coverage=1.0).mv(v)
    memory = ip.Memory(examples=0, factors=kind, features=0).remember(model, x)
    assert torch.allclose(memory.tasks[0].curvature.metric(network.space).mv(v), expected)
    memory.save(tmp_path / "memory.safetensors")
    back = ip.Memory.load(tmp_path / "memory.safetensors")
    assert back.factors == kind and torch.equal(
        back.tasks[0].curvature.metric(network.space).mv(v), memory.tasks[0].curvature.metric(network.space).mv(v)
    )
    merged = ip.Memory(examples=0, factors=kind, merge=True, decay=0.5, features=0)
    merged = merged.remember(model, x).remember(model, x)
    assert torch.allclose(merged.tasks[-1].curvature.metric(network.space).mv(v), 1.5 * expected)
    with pytest.raises(ValueError, match=r"factors must be True, 'kronecker', .* got 'dense'"):
        ip.Memory(factors="dense")


def held(name: str) -> tuple[nn.Module, torch.Tensor]:
    torch.manual_seed(0)
    if name == "embedding":
        words = torch.arange(12).view(6, 2) % 6
        return nn.Sequential(nn.Embedding(6, 4), nn.Flatten(), nn.Linear(8, 3)).double(), words
    if name == "convolution":
        layers = nn.Conv2d(2, 6, 2, groups=2), nn.Tanh(), nn.Flatten(), nn.Linear(24, 3)
        return nn.Sequential(*layers).double(), torch.randn(20, 2, 3, 3, dtype=torch.float64)
    return mlp(), data()[0]


@pytest.mark.parametrize("name", ["perceptron", "convolution", "embedding"])
@pytest.mark.parametrize("kind", ["kronecker", "ekfac"])
@pytest.mark.parametrize("rank", [None, 2])
def test_features_add_a_share_of_its_mean_eigenvalue_to_the_factor_of_a_layers_outputs(name, kind, rank):
    model, x = held(name)
    space = Network(model).space
    kept = [
        ip.Memory(examples=0, factors=kind, features=share, rank=rank).remember(model, x).tasks[0].curvature
        for share in (0.0, 0.5)
    ]
    bare, whole = (matrix(c.metric(space).mv, space.dimension) for c in kept)
    added = torch.zeros_like(bare)
    ends = torch.tensor([0, *space.sizes]).cumsum(0).tolist()
    for layer in kept[0].layers:
        own, groups = layer.tensors, layer.groups
        floor = 0.5 * own["output_values"].reshape(groups, -1).sum(1) / own["output_vectors"].shape[-2]
        names = [n for n in (layer.weight, layer.bias) if n is not None]
        index = [torch.arange(ends[k], ends[k + 1]).reshape(groups, layer.outputs if not layer.lookup else 6, -1)
                 for k in (space.names.index(n) for n in names)]  # fmt: skip
        for group, at in enumerate(torch.cat(index, -1)):
            if layer.lookup:
                inputs = torch.diag(own["counts"])
                added[at.flatten()[:, None], at.flatten()] += floor * torch.kron(inputs, torch.eye(at.shape[1]))
                continue
            vectors = own["input_vectors"][group]
            inputs = vectors @ torch.diag(own["input_values"][group]) @ vectors.T
            added[at.flatten()[:, None], at.flatten()] += floor[group] * torch.kron(torch.eye(at.shape[0]), inputs)
    assert torch.allclose(whole, bare + added) and added.any()
    assert torch.equal(matrix(kept[1].bare().metric(space).mv, space.dimension), bare)
    merged = matrix(Curvature.merged([kept[1], kept[1]], [1.0, 2.0]).metric(space).mv, space.dimension)
    assert torch.allclose(merged, 3 * whole)


def test_features_are_stored_and_leave_added_outputs_free(tmp_path):
    model, (x, _) = mlp(), data()
    memory = ip.Memory(examples=0, factors=True, features=0.7).remember(model, x)
    memory.save(tmp_path / "memory.safetensors")
    back = ip.Memory.load(tmp_path / "memory.safetensors")
    space = Network(model).space
    v = torch.randn(space.dimension, dtype=torch.float64)
    metrics = [m.tasks[0].curvature.metric(space) for m in (memory, back)]
    assert back.features == 0.7 and torch.equal(metrics[0].mv(v), metrics[1].mv(v))
    wide = Network(mlp(outputs=6)).space
    added = wide.unflatten(torch.zeros(wide.dimension, dtype=torch.float64))
    added["2.weight"][4:], added["2.bias"][4:] = 1.0, 1.0
    for rank in (None, 2):
        kept = ip.Memory(examples=0, factors=True, features=0.7, rank=rank).remember(model, x).tasks[0].curvature
        assert not kept.metric(wide).mv(wide.flatten(added)).any()


def test_a_network_with_few_outputs_forgets_less_where_its_features_are_kept():
    x, y = (torch.cat(column) for column in zip(*(
        (found.inputs.flatten(1), found.labels) for found in (ip.run.data.digits(train) for train in (True, False))
    )))  # fmt: skip
    first = y < 4
    scores = {}
    for features in (0.0, 0.3):
        torch.manual_seed(0)
        model = nn.Sequential(nn.Linear(64, 64), nn.ReLU(), nn.Linear(64, 64), nn.ReLU(), nn.Linear(64, 2))
        memory = ip.Memory(examples=0, factors=True, features=features)
        for own in (first, ~first):
            base = torch.optim.SGD(model.parameters(), 0.02, momentum=0.9)
            optimizer = ip.optim.Invariant(base, model, memory, tolerance=None, damping=0.3)
            generator = torch.Generator().manual_seed(1)
            for _ in range(300):
                rows = own.nonzero().squeeze(1)[torch.randint(int(own.sum()), (64,), generator=generator)]
                optimizer.zero_grad()
                nn.functional.cross_entropy(model(x[rows]), y[rows] % 2).backward()
                optimizer.step()
            memory = memory.remember(model, x[own])
        scores[features] = [ip.evaluate(model, ip.Task(x[own], y[own] % 2)).accuracy for own in (first, ~first)]
    assert scores[0.3][0] > scores[0.0][0] + 0.1 and scores[0.3][1] > 0.9


def test_a_merged_ekfac_has_the_eigenvalues_of_the_sum_along_its_vectors():
    network = Network(mlp())
    parts = [ip.Reference(data(seed)[0]).whole(network, network.start) for seed in (0, 1)]
    terms = [Curvature.of(network, network.start, part.batches, kind="ekfac") for part in parts]
    merged = Curvature.merged(terms, [1.0, 2.0]).metric(network.space)
    dense = sum(w * matrix(t.metric(network.space).mv, network.space.dimension) for w, t in zip((1.0, 2.0), terms))
    block = merged.blocks[0]
    index = torch.cat([torch.arange(35).reshape(7, 5), torch.arange(35, 42).reshape(7, 1)], 1).flatten()
    basis = torch.kron(block.output_vectors[0].contiguous(), block.input_vectors[0].contiguous())
    expected = (basis * (dense[index][:, index] @ basis)).sum(0).reshape(block.corrected[0].shape)
    assert torch.allclose(block.corrected[0], expected)


def test_embeddings_and_split_factors_are_kept_by_name_and_grow():
    class Table(nn.Module):
        def __init__(self, rows: int) -> None:
            super().__init__()
            self.table, self.head = nn.Embedding(rows, 4), nn.Linear(4, 3)

        def forward(self, ids):
            return self.head(self.table(ids).tanh().mean(1))

    small, ids = Table(6).double(), torch.arange(12).reshape(6, 2) % 6
    memory = ip.Memory(examples=0, factors=True, features=0).remember(small, ids)
    found, space = memory.tasks[0].curvature, Network(small).space
    v = torch.randn(space.dimension, dtype=torch.float64)
    direct = ip.Reference(ids).metric(small, "kronecker", coverage=1.0)
    assert torch.allclose(found.metric(space).mv(v), direct.mv(v))
    twice = Curvature.merged([found, found], [1.0, 1.0]).metric(space)
    assert torch.allclose(twice.mv(v), 2 * direct.mv(v))
    wide = Network(Table(9).double()).space
    grown = wide.unflatten(torch.zeros(wide.dimension, dtype=torch.float64))
    grown["table.weight"][6:] = 1.0
    assert not found.metric(wide).mv(wide.flatten(grown)).any()
    network = Network(small)
    split = Curvature.named(ip.Reference(ids).metric(small, "kronecker", split=2))
    tensors, about = split.tensors()
    back = Curvature.read(tensors, about).metric(network.space)
    assert torch.equal(back.mv(v), split.metric(network.space).mv(v))
    assert torch.allclose(Curvature.merged([split, split], [1.0, 1.0]).metric(space).mv(v), 2 * back.mv(v))


def test_mistakes_are_named():
    model, (x, y) = mlp(), data()
    memory = ip.Memory(examples=4).remember(model, x, y, name="a")
    with pytest.raises(ValueError, match="has a task 'a' already"):
        memory.remember(model, x, y, name="a")
    with pytest.raises(ValueError, match="examples=0 needs factors=True"):
        ip.Memory(examples=0)
    with pytest.raises(ValueError, match=r"samples must be >= 1, got \{'samples': 0\}"):
        ip.Memory(samples=0)
    with pytest.raises(ValueError, match="labels go up to 9, but the head of task '0' has 4 outputs"):
        ip.Memory(examples=N).remember(model, x, torch.arange(N) % 10)
    with pytest.raises(ValueError, match="a balanced choice needs labels"):
        ip.Memory(choose="balanced").remember(model, x)
    with pytest.raises(ValueError, match=r"another network, 2 parameters do not fit: '2.weight': \(4, 7\)"):
        curvature(model, x).metric(Network(mlp(3)).space)


def test_nothing_that_is_given_is_changed():
    model, (x, y) = mlp(), data()
    before, state = copy.deepcopy(model.state_dict()), torch.random.get_rng_state()
    ip.Memory(examples=10, factors=True, choose="leverage").remember(model, x, y)
    assert all(torch.equal(before[key], value) for key, value in model.state_dict().items())
    assert torch.equal(torch.random.get_rng_state(), state)


def test_rows_of_a_dataset_that_draws_anew_are_kept_with_their_own_outputs():
    class Noisy(torch.utils.data.Dataset):
        def __len__(self):
            return N

        def __getitem__(self, i):
            return torch.randn(5, dtype=torch.float64), i % 4

    model = mlp()
    task = ip.Memory(examples=20).remember(model, Noisy()).tasks[0]
    assert torch.allclose(task.outputs, model(task.inputs))


def test_a_frozen_network_is_remembered_by_rows_and_what_moves_by_curvature():
    model, (x, _) = mlp().requires_grad_(False), data()
    assert ip.Memory(examples=5).remember(model, x).tasks[0].rows == 5
    model[2].requires_grad_(True)
    memory = ip.Memory(examples=0, factors=True).remember(model, x)
    assert set(memory.tasks[0].curvature.shapes) == {"2.weight", "2.bias"}
    whole = ip.Memory(examples=0, factors=True).remember(mlp(), x, trainable=["2.*"])
    assert set(whole.tasks[0].curvature.shapes) == {"2.weight", "2.bias"}
    ip.optim.Invariant(torch.optim.SGD(model[2].parameters(), 0.1), model, whole)


def test_entries_whose_products_leave_the_normal_range_stay_out_of_a_metric():
    model, x = mlp().float(), data()[0].float()
    x[:, 0] *= 1e-25  # an input that is nearly always zero
    kept, space = curvature(model, x), Network(model).space

    def tiny(vectors: torch.Tensor) -> bool:
        return bool(((vectors != 0) & (vectors.abs() < torch.finfo(torch.float32).tiny ** 0.5)).any())

    assert tiny(kept.layers[0].tensors["input_vectors"])
    metric = kept.metric(space)
    assert not any(tiny(vectors) for b in metric.blocks for vectors in (b.input_vectors, b.output_vectors))
    whole = kept.layers[0].block({"0.weight": slice(0, 35), "0.bias": slice(35, 42)}, space)
    v, out = torch.randn(space.dimension), torch.empty(space.dimension)
    whole.apply(v, out, lambda values: values)
    exact = ip.Reference(x).metric(model, "kronecker", samples=None, coverage=1.0).mv(v)
    assert torch.allclose(out[:42], exact[:42], atol=1e-5 * float(exact.abs().max()))
