"""A generator once trained: samples, paths, files."""

import copy

import pytest
import rich
import torch
from problems import SMALL, convolved, small, square, task
from torch import nn

import isopath as ip


@pytest.fixture(scope="module")
def generator():
    torch.set_num_threads(1)
    return ip.generate(small(), task(), steps=300, rate=3e-3, **SMALL)


def test_samples_modules_and_ensembles_are_the_same_networks(generator):
    x, _ = square(10, 2)
    thetas = generator.sample(3, seed=5)
    models = generator.models(3, seed=5)
    assert thetas.shape == (3, generator.network.space.dimension)
    assert torch.equal(generator.network.space.flatten(dict(models[1].named_parameters())), thetas[1])
    assert torch.allclose(generator.model(generator.latents(3, 5)[2])(x), models[2](x), atol=1e-6)
    joined = generator.ensemble(3, seed=5)
    assert torch.allclose(joined(x).exp(), torch.stack([m(x).softmax(1) for m in models]).mean(0), atol=1e-6)
    points = ip.Ensemble.at(small(), thetas)
    assert torch.allclose(points(x), joined(x), atol=1e-6)


def test_a_larger_sample_begins_with_the_smaller_one(generator):
    assert torch.equal(generator.latents(5, 1)[:2], generator.latents(2, 1))
    assert not torch.equal(generator.latents(2, 1), generator.latents(2, 2))


def test_a_path_between_latents_ends_on_them_and_stays_at_their_norms(generator):
    a, b = generator.latents(2, 3)
    path = generator.path(a, b)
    assert isinstance(path, ip.paths.Path)
    assert torch.allclose(path(0.0), generator(a[None])[0]) and torch.allclose(path(1.0), generator(b[None])[0])
    norms = [float(path.latent(t).norm()) for t in (0.0, 0.25, 0.5, 1.0)]
    assert norms == pytest.approx([float(a.norm() + t * (b.norm() - a.norm())) for t in (0, 0.25, 0.5, 1)], rel=1e-5)
    assert path.length() >= float((path(1.0) - path(0.0)).norm())
    with pytest.raises(ValueError, match=r"\[0, 1\]"):
        path(1.5)
    for wrong in ((a[None], b[None]), (0, 1), (a[:-1], b)):
        with pytest.raises(ValueError, match="a path joins two latents, tensors"):
            generator.path(*wrong)
    same = generator.path(a, 2 * a)
    assert torch.allclose(same.latent(0.5), 1.5 * a)


def test_what_is_done_along_curves_is_done_along_a_path_between_latents(generator):
    path = generator.path(*generator.latents(2, 3))
    x, y = square(40, 2)
    way = ip.along(path, ip.Task(x, y), points=5, keep=ip.Reference(x))
    ends = [ip.evaluate(path.model(t), ip.Task(x, y)).loss for t in (0, 1)]
    assert [way.loss[0], way.loss[-1]] == pytest.approx(ends) and way.drift[0] == pytest.approx(0, abs=1e-9)
    assert way.lengths[-1] == pytest.approx(path.length(points=5), rel=1e-5)
    assert ip.barrier(path, ip.Task(x, y), points=5) == pytest.approx(way.barrier)
    assert ip.paths.functional_length(path, ip.Reference(x), points=5) > 0
    joined = path.ensemble(3)
    members = torch.stack([path.model(t)(x).softmax(1) for t in (0, 0.5, 1)])
    assert torch.allclose(joined(x).exp(), members.mean(0), atol=1e-6)
    with pytest.raises(ValueError, match="running statistics"):
        ip.along(path, ip.Task(x, y), data=x)


def test_progress_is_shown_to_those_who_ask(capsys):
    ip.generate(small(), task(8), steps=2, **SMALL)
    assert not capsys.readouterr().out
    rich.reconfigure(force_terminal=True, width=80)
    try:
        ip.generate(small(), task(8), steps=2, progress=True, **SMALL)
    finally:
        rich.reconfigure()
    assert "generating" in capsys.readouterr().out


@pytest.mark.parametrize("model", [small, convolved])
def test_a_file_gives_the_same_networks_in_a_model_of_other_weights(tmp_path, model):
    base = model()
    with torch.no_grad():
        for buffer in base.buffers():
            buffer.add_(1)
        next(base.parameters()).requires_grad_(False)  # a frozen one is not made, and not lost
    shape = (40, 2) if model is small else (40, 1, 4, 4)
    given = ip.Task(torch.randn(shape), torch.randint(3, (40,)), batch_size=16)
    made = ip.generate(base, given, steps=3, **SMALL)
    made.save(tmp_path / "g.safetensors")
    other = model()
    with torch.no_grad():
        for p in other.parameters():
            p.add_(7)
        next(other.parameters()).requires_grad_(False)
    before = copy.deepcopy(other.state_dict())
    loaded = ip.Generator.load(tmp_path / "g.safetensors", other)
    assert torch.equal(loaded.sample(3), made.sample(3))
    a, b = loaded.models(1)[0], made.models(1)[0]
    assert all(torch.equal(t, b.state_dict()[name]) for name, t in a.state_dict().items())
    assert (loaded.status, loaded.history) == (made.status, made.history)
    assert all(torch.equal(before[name], t) for name, t in other.state_dict().items())


def test_files_of_other_modules_and_of_other_kinds(generator, tmp_path):
    file = tmp_path / "g.safetensors"
    generator.save(file)
    wide = nn.Sequential(nn.Linear(2, 9), nn.ReLU(), nn.Linear(9, 4))
    with pytest.raises(ValueError, match=r"another module: 3 tensors differ: '0.weight': \(8, 2\) in the file, \(9"):
        ip.Generator.load(file, wide)
    ip.save_weights(wide, tmp_path / "w.safetensors")
    with pytest.raises(ValueError, match="no generator's file"):
        ip.Generator.load(tmp_path / "w.safetensors", wide)
    file.write_bytes(file.read_bytes()[:-9])
    with pytest.raises(ValueError, match="not a whole"):
        ip.Generator.load(file, small())


class Ordered(nn.Module):
    def __init__(self, names):
        super().__init__()
        for name in names:
            setattr(self, name, nn.Linear(4, 4))

    def forward(self, x):
        return self.a(x).relu() + self.b(x)


def test_a_file_of_the_same_shapes_in_another_order_or_with_other_frozen_parts(tmp_path):
    given = ip.Task(torch.randn(20, 4), torch.randint(4, (20,)), batch_size=8)
    model = Ordered("ab")
    ip.generate(model, given, steps=1, **SMALL).save(tmp_path / "g.safetensors")
    with pytest.raises(ValueError, match="another order"):
        ip.Generator.load(tmp_path / "g.safetensors", Ordered("ba"))
    frozen = nn.Sequential(nn.Linear(4, 6).requires_grad_(False), nn.ReLU(), nn.Linear(6, 4))
    ip.generate(frozen, given, steps=1, **SMALL).save(tmp_path / "f.safetensors")
    other = nn.Sequential(nn.Linear(5, 6).requires_grad_(False), nn.ReLU(), nn.Linear(6, 4))
    with pytest.raises(ValueError, match=r"1 tensors differ: '0.weight': \(6, 4\) in the file, \(6, 5\) here"):
        ip.Generator.load(tmp_path / "f.safetensors", other)


def test_a_file_in_double_precision(tmp_path):
    made = ip.generate(small().double(), ip.Task(square()[0].double(), square()[1]), steps=2, **SMALL)
    made.save(tmp_path / "g.safetensors")
    assert torch.equal(ip.Generator.load(tmp_path / "g.safetensors", small().double()).sample(3), made.sample(3))


def test_models_along_a_path(generator):
    path, x = generator.path(*generator.latents(2)), square(5)[0]
    assert torch.equal(path.model(0.0)(x), generator.models(1)[0](x))
    z = generator.latents(1)[0]
    assert torch.allclose(generator.path(z, -z).latent(0.25), 0.5 * z)


def test_no_networks_and_latents_of_another_size(generator):
    with pytest.raises(ValueError, match="count must be a whole number >= 1"):
        generator.sample(0)
    with pytest.raises(ValueError, match="count must be a whole number >= 1"):
        generator.ensemble(0)
    with pytest.raises(ValueError, match=r"z has shape \(2, 5\), expected \(n, 6\)"):
        generator(torch.zeros(2, 5))


def test_exploring_gives_what_a_loop_gives(generator):
    test = task(seed=1)
    found = ip.explore(generator, test, 8, seed=2)
    models = generator.models(8, seed=2)
    assert found.accuracy == pytest.approx([ip.evaluate(m, test).accuracy for m in models])
    assert found.ensemble[8] == pytest.approx(ip.evaluate(generator.ensemble(8, seed=2), test).accuracy)
    assert found.ensemble[1] == pytest.approx(found.accuracy[0])
    said = torch.stack([m(test.x).argmax(1) for m in models])
    pairs = [(said[i] != said[j]).double().mean() for i in range(8) for j in range(i)]
    assert found.disagreement == pytest.approx(float(sum(pairs)) / len(pairs))
    assert 0 < found.distance < 1.5 and found.dimension > 0
    assert sum(found.weights) == pytest.approx(1, abs=1e-6) and sum(found.functions) == pytest.approx(1, abs=1e-6)
    assert len(found.walks) == 4 and len(found.walks[0]) == 9
    assert found.walks[0][0] == pytest.approx(found.accuracy[0])
    with pytest.raises(ValueError, match="count must be >= 3"):
        ip.explore(generator, test, 2)


class Heads(nn.Module):
    """Two heads, by name: the first is that of `logits`."""

    def __init__(self):
        super().__init__()
        self.body, self.old, self.new = nn.Linear(2, 8), nn.Linear(8, 4), nn.Linear(8, 4)

    def forward(self, x):
        hidden = self.body(x).relu()
        return {"logits": self.old(hidden), "new": self.new(hidden)}


@pytest.mark.parametrize("outputs", ["new", lambda y: y["new"]])
def test_networks_together_are_what_was_trained(outputs, tmp_path):
    x, y = square(60)
    made = ip.generate(Heads(), ip.Task(x, y, outputs=outputs), steps=5, **SMALL)
    wanted = torch.stack([m(x)["new"].softmax(1) for m in made.models(3)]).mean(0)
    assert torch.allclose(made.ensemble(3)(x).exp(), wanted, atol=1e-6)
    a, b = made.latents(2)
    ends = torch.stack([made.model(z)(x)["new"].softmax(1) for z in (a, b)]).mean(0)
    assert torch.allclose(made.path(a, b).ensemble(2)(x).exp(), ends, atol=1e-5)
    made.save(tmp_path / "made.safetensors")
    if callable(outputs):
        with pytest.raises(ValueError, match="that a function picks, and no file holds one; pass output="):
            ip.Generator.load(tmp_path / "made.safetensors", Heads())
    again = ip.Generator.load(tmp_path / "made.safetensors", Heads(), output=outputs if callable(outputs) else None)
    assert torch.equal(again.ensemble(3)(x), made.ensemble(3)(x))


def test_a_part_of_the_outputs_and_classes_on_the_second_axis(tmp_path):
    x, y = square(60)
    part = ip.generate(small(), ip.Task(x, y % 2, outputs=slice(1, 3)), steps=3, **SMALL)
    part.save(tmp_path / "part.safetensors")
    wanted = torch.stack([m(x)[:, 1:3].softmax(1) for m in part.models(3)]).mean(0)
    for one in (part, ip.Generator.load(tmp_path / "part.safetensors", small())):
        assert torch.allclose(one.ensemble(3)(x).exp(), wanted, atol=1e-6)
    images = torch.randn(12, 1, 5, 5)
    task = ip.Task(images, (images[:, 0] > 0).long(), loss=nn.functional.cross_entropy)
    made = ip.generate(nn.Conv2d(1, 3, 3, padding=1), task, steps=3, **SMALL)
    wanted = torch.stack([m(images).softmax(1) for m in made.models(3)]).mean(0)
    assert torch.allclose(made.ensemble(3)(images).exp(), wanted, atol=1e-6)
    right = float((made.models(1, 1)[0](images).argmax(1) == task.y).double().mean())
    assert ip.explore(made, task, 3).accuracy[0] == pytest.approx(right)


def test_a_file_holds_what_no_state_dict_does(tmp_path):
    class Features(nn.Module):
        def __init__(self):
            super().__init__()
            self.register_buffer("drawn", torch.randn(2, 16), persistent=False)
            self.head = nn.Linear(16, 4)

        def forward(self, x):
            return self.head((x @ self.drawn).cos())

    x, y = square(20)
    made = ip.generate(Features(), ip.Task(x, y), steps=3, **SMALL)
    made.save(tmp_path / "made.safetensors")
    again = ip.Generator.load(tmp_path / "made.safetensors", Features())
    assert torch.equal(again.models(1)[0](x), made.models(1)[0](x))


def test_a_file_of_another_precision_is_refused(generator, tmp_path):
    generator.save(tmp_path / "made.safetensors")
    with pytest.raises(ValueError, match=r"makes weights of torch\.float32, and the module's are torch\.float64"):
        ip.Generator.load(tmp_path / "made.safetensors", small().double())


def test_what_networks_draw_by_themselves_is_the_seeds_and_latents_are_nobodys_precision():
    class Noisy(nn.Module):
        def __init__(self):
            super().__init__()
            self.inner = small()

        def forward(self, x):
            return self.inner(nn.functional.dropout(x, 0.5, training=True))

    x, y = square(40)
    before = torch.get_rng_state()
    a, b = (ip.generate(Noisy(), ip.Task(x, y), steps=3, **SMALL) for _ in range(2))
    assert torch.equal(a.sample(2), b.sample(2)) and torch.equal(before, torch.get_rng_state())
    drawn = a.latents(3)
    torch.set_default_dtype(torch.float64)
    try:
        assert torch.equal(drawn, a.latents(3))
    finally:
        torch.set_default_dtype(torch.float32)
