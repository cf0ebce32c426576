"""Many tasks in one network: none changes what another does."""

import copy
import time

import pytest
import torch
from torch import nn

import isopath as ip
from isopath.check import check_disjoint
from isopath.pack import Packing, packing
from isopath.storage import DamagedFile, load_tensors, save_tensors
from networks import Case, outputs

FAST = {"epochs": 1, "rate": 1e-2}


def separable(classes: int = 3, rows: int = 240, size: int = 12, seed: int = 0) -> tuple[torch.Tensor, torch.Tensor]:
    """Rows whose class a linear map tells, with a margin."""
    generator = torch.Generator().manual_seed(seed)
    centres = 2 * torch.randn(classes, size, generator=generator)
    y = torch.arange(rows) % classes
    return centres[y] + torch.randn(rows, size, generator=generator), y


def body(norm: bool = False, dropout: bool = False, seed: int = 0) -> nn.Module:
    torch.manual_seed(seed)
    extra = [*([nn.BatchNorm1d(40)] if norm else []), nn.ReLU(), *([nn.Dropout(0.2)] if dropout else [])]
    return nn.Sequential(nn.Linear(12, 40), *extra, nn.Linear(40, 30), nn.ReLU(), nn.Linear(30, 3))


def task(seed: int = 0, **more: object) -> ip.Task:
    return ip.Task(*separable(seed=seed), batch_size=40, **more)


@pytest.fixture(scope="module")
def packed() -> Packing:
    torch.set_num_threads(1)
    return ip.pack(body(norm=True), {"a": task(0), "b": task(1)}, share=0.3, epochs=20, rate=1e-2)


# --- what a packing promises ---------------------------------------------------------------------------------------


def test_every_task_is_learned(packed):
    for seed, name in enumerate(packed):
        assert ip.evaluate(packed[name], task(seed)).accuracy > 0.97
    assert ip.evaluate(packed["a"], task(1)).accuracy < 0.8  # and it matters which


def test_owners_are_disjoint_and_complete(packed):
    assert packed.tasks == ("a", "b") and len(packed) == 2 and "a" in packed
    for name, owners in packed.owners.items():
        assert owners.dtype == torch.int16 and owners.shape == dict(packed.model.named_parameters())[name].shape
        assert [int((owners == k).sum()) for k in (1, 2)] == [int(0.3 * owners.numel())] * 2
    assert packed.free + sum(packed.used.values()) == pytest.approx(1)
    assert check_disjoint(packed, {"a": separable()[0], "b": separable()[0]}) == 0


def test_the_check_sees_a_leak(packed, monkeypatch):
    monkeypatch.setattr(packing, "within", lambda values, masks: values)
    assert check_disjoint(packed, {"a": separable()[0]}) == torch.inf


@pytest.mark.parametrize("reuse", [True, False])
@pytest.mark.parametrize("share", [None, 0.1, "auto"])
def test_later_tasks_leave_an_earlier_ones_outputs_bit_identical(tmp_path, packed, reuse, share):
    x, before = separable()[0], {name: packed[name](separable()[0]) for name in packed}
    after = packed.add("c", task(2), share, reuse=reuse, epochs=2)
    after.save(tmp_path / "p.safetensors")
    loaded = Packing.load(tmp_path / "p.safetensors", body(norm=True, seed=1))
    for name, y in before.items():
        assert torch.equal(after[name](x), y) and torch.equal(loaded[name](x), y)
    assert torch.equal(loaded["c"](x), after["c"](x))
    assert after.members["c"].reads == ((1, 2) if reuse else ())
    assert "c" not in packed and packed.tasks == ("a", "b")


def test_without_reuse_a_task_needs_its_own_weights_alone():
    packed = ip.pack(body(), {"a": task(0), "b": task(1)}, 0.4, reuse=False, epochs=20, rate=1e-2)
    owners = packed.owners
    for name, p in packed["b"].named_parameters():
        if name in owners:
            assert bool((p[owners[name] != 2] == 0).all()) and bool((p[owners[name] == 2] != 0).any())
    assert min(ip.evaluate(packed[name], task(k)).accuracy for k, name in enumerate(packed)) > 0.97
    assert "reads" not in str(packed)


@pytest.mark.parametrize("score", ["magnitude", "saliency"])
def test_in_parallel_tasks_choose_apart_and_do_not_read_one_another(score):
    tasks = {name: task(seed) for seed, name in enumerate("abc")}
    packed = ip.pack(body(norm=True), tasks, 0.33, parallel=True, score=score, epochs=20, rate=1e-2)
    assert all(member.reads == () for member in packed.members.values())
    assert packed.free == pytest.approx(1 - 3 * sum(int(0.33 * o.numel()) for o in packed.owners.values()) / 1770)
    assert min(ip.evaluate(packed[name], tasks[name]).accuracy for name in tasks) > 0.95
    assert check_disjoint(packed, {name: separable()[0] for name in tasks}) == 0


def test_a_task_on_inputs_and_classes_of_its_own():
    x, y = separable(5, 200, 7, seed=3)
    other = ip.Task(x, y, batch_size=40, stem=nn.Linear(7, 12), head=nn.Linear(3, 5))
    stem = copy.deepcopy(other.stem.weight)
    packed = ip.pack(body(), {"a": task(), "b": other}, 0.4, epochs=40, rate=1e-2)
    assert packed["b"](x).shape == (200, 5) and packed["a"](separable()[0]).shape == (240, 3)
    assert ip.evaluate(packed["b"], ip.Task(x, y)).accuracy > 0.9
    assert torch.equal(other.stem.weight, stem)  # the caller's own is not touched


def test_auto_takes_as_few_weights_as_the_accuracy_allows():
    easy = ip.pack(body(), {"a": task()}, "auto", epochs=60, rate=1e-2, tolerance=0.05)
    assert easy.used["a"] < 0.5 and ip.evaluate(easy["a"], task()).accuracy > 0.9
    about = easy.members["a"].about
    assert about["accuracy_after"] >= about["accuracy_before"] - 0.05 and about["rows_held"] == 24
    twice = easy.add("b", task(1))
    assert twice.used["b"] > 0 and twice.settings.share == "auto"


def test_auto_leaves_an_equal_part_for_each_task_to_come():
    hard = ip.Task(separable()[0], torch.randint(3, (240,), generator=torch.Generator().manual_seed(0)), batch_size=40)
    packed = ip.pack(body(), {"a": hard, "b": hard, "c": hard}, "auto", epochs=5, rate=1e-2, tolerance=0)
    assert packed.used["a"] <= 1 / 3 and packed.used["b"] <= (1 - packed.used["a"]) / 2
    assert packed.history[0]["free"] == pytest.approx(1 - packed.used["a"])


def test_each_task_may_have_a_share_of_its_own():
    packed = ip.pack(body(), {"a": task(0), "b": task(1)}, {"a": 0.5, "b": 0.1}, **FAST)
    assert packed.used == {"a": pytest.approx(0.5, abs=0.01), "b": pytest.approx(0.1, abs=0.01)}
    with raises("share= names 'a', and the tasks are 'a', 'b'"):
        ip.pack(body(), {"a": task(0), "b": task(1)}, {"a": 0.5})


def test_few_rows_are_learned_in_500_steps_where_no_epochs_are_given():
    x, y = separable(rows=60)
    packed = ip.pack(body(), {"a": ip.Task(x, y)}, 0.3)
    assert packed.members["a"].about["steps"] == 500 and ip.evaluate(packed["a"], ip.Task(x, y)).accuracy > 0.95


def test_auto_on_a_task_without_accuracy_goes_by_the_loss():
    x, _ = separable()
    values = ip.Task(x, x[:, :3], loss="squared_error", batch_size=40)
    packed = ip.pack(body(), {"a": values}, "auto", epochs=30, rate=1e-2, tolerance=0.2)
    about = packed.members["a"].about
    assert about["loss_after"] <= 1.2 * about["loss_before"]


def test_a_pattern_holds_for_every_task():
    packed = ip.pack(body(), {"a": task(0)}, pattern="1:2", trainable=["0.*", "2.*"], **FAST)
    assert set(packed.owners) == {"0.weight", "2.weight"}
    for owners in packed.owners.values():
        assert bool(((owners == 1).view(-1, 2).sum(1) == 1).all())
    assert packed.settings.share == 0.5


def test_what_is_not_trainable_stays_and_is_shared():
    model = body()
    packed = ip.pack(model, {"a": task(0)}, 0.5, trainable="4.*", **FAST)
    for name, p in packed["a"].named_parameters():
        same = torch.equal(p, dict(model.named_parameters())[name])
        assert same != name.startswith("4.")


def test_a_trained_network_starts_the_first_task():
    x, y = separable()
    model = body()
    optimizer = torch.optim.Adam(model.parameters(), 1e-2)
    for _ in range(60):
        optimizer.zero_grad()
        nn.functional.cross_entropy(model(x), y).backward()
        optimizer.step()
    with torch.no_grad():
        y = model(x)
    kept = ip.Task(x, y.softmax(1), loss=nn.functional.cross_entropy, batch_size=40)  # no label is read
    packed = ip.pack(model, {"old": kept, "new": task(1)}, 0.3, epochs=4)
    assert float((packed["old"](x).argmax(1) == y.argmax(1)).double().mean()) > 0.97


# --- any module ----------------------------------------------------------------------------------------------------


def test_any_network_can_be_packed(case: Case, tmp_path):
    y = torch.zeros_like(outputs(case.model, case.inputs)[:, 0], dtype=torch.int64)
    with torch.no_grad():
        shape = case.model(**case.inputs) if isinstance(case.inputs, dict) else case.model(case.inputs)
    shape = shape["logits"] if isinstance(shape, dict) else getattr(shape, "logits", shape)
    labels = ip.Task(case.inputs, y.view(shape.shape[:-1]), batch_size=5)
    packed = ip.pack(case.model, {"a": labels}, 0.3, **FAST)
    before = outputs(packed["a"], case.inputs)
    more = packed.add("b", labels, seed=1)
    assert torch.equal(outputs(more["a"], case.inputs), before)
    assert not torch.equal(outputs(more["b"], case.inputs), before)
    more.save(tmp_path / "p.safetensors")
    loaded = Packing.load(tmp_path / "p.safetensors", case.model)
    assert torch.equal(outputs(loaded["a"], case.inputs), before)
    assert torch.equal(outputs(loaded["b"], case.inputs), outputs(more["b"], case.inputs))
    picked = "logits" if isinstance(case.inputs, dict) else None
    assert check_disjoint(more, {"a": case.inputs, "b": case.inputs}, picked) == 0


class Buffered(nn.Module):
    """A constant, a count, a buffer that is none at first, and layer norm over two axes."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.norm, self.last = nn.Linear(12, 8), nn.LayerNorm((2, 4)), nn.Linear(8, 3)
        self.register_buffer("constant", torch.randn(8))
        self.register_buffer("count", torch.zeros((), dtype=torch.int64))
        self.register_buffer("cache", None)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        if self.training:
            self.count += 1
            self.cache = torch.ones(1)
        return self.last(self.norm(self.first(x).view(-1, 2, 4)).flatten(1) + self.constant)


def test_buffers_of_all_kinds_come_back_and_normalisation_is_each_tasks_own(tmp_path):
    torch.manual_seed(0)
    packed = ip.pack(Buffered(), {"a": task()}, 0.3, **FAST)
    assert set(packed.owners) == {"first.weight", "last.weight"}
    more = packed.add("b", task(1))
    more.save(tmp_path / "p.safetensors")
    torch.manual_seed(1)
    state = torch.random.get_rng_state()
    loaded = Packing.load(tmp_path / "p.safetensors", Buffered())
    x = separable()[0]
    for name in "ab":
        assert torch.equal(loaded[name](x), more[name](x)) and int(loaded[name].count) == 6
    assert torch.equal(packed["a"](x), more["a"](x))
    assert not torch.equal(torch.random.get_rng_state(), state)  # Buffered() drew; the load itself must not
    state = torch.random.get_rng_state()
    Packing.load(tmp_path / "p.safetensors", loaded.model)
    assert torch.equal(torch.random.get_rng_state(), state)


def test_statistics_that_the_caller_holds_stay_as_they_are():
    model = body(norm=True)
    model[1].eval()
    held = ip.pack(model, {"a": task()}, 0.3, **FAST)["a"]
    moving = ip.pack(body(norm=True), {"a": task()}, 0.3, **FAST)["a"]
    assert not held[1].running_mean.any() and moving[1].running_mean.any()
    assert moving[1].training is False and ip.pack(model.eval(), {"a": task()}, 0.3, **FAST)["a"][1].running_mean.any()


class Encoder(nn.Module):
    """As transformers' encoders are: keyword inputs, an object out."""

    def __init__(self) -> None:
        super().__init__()
        self.body = body()

    def forward(self, features: torch.Tensor, scale: torch.Tensor) -> dict[str, torch.Tensor]:
        return {"last_hidden_state": self.body(features) * scale}


class Split(nn.Module):
    """A stem that makes two arguments."""

    def forward(self, x: torch.Tensor) -> dict[str, torch.Tensor]:
        return {"features": x, "scale": torch.ones(len(x), 1)}


def test_a_stem_may_make_several_arguments_and_a_head_take_one_of_several_outputs(tmp_path):
    x, y = separable(5)
    one = ip.Task(x, y, batch_size=40, outputs="last_hidden_state", stem=Split(), head=nn.Linear(3, 5))
    packed = ip.pack(Encoder(), {"a": one}, 0.4, epochs=20, rate=1e-2)
    assert ip.evaluate(packed["a"], ip.Task(x, y)).accuracy > 0.9
    packed.save(tmp_path / "p.safetensors")
    with raises("the stem of 'a' is a Split: give an equal module"):
        Packing.load(tmp_path / "p.safetensors", Encoder())
    loaded = Packing.load(tmp_path / "p.safetensors", Encoder(), stems={"a": Split()})
    assert torch.equal(loaded["a"](x), packed["a"](x))
    one = ip.Task(x, y, batch_size=40, outputs=lambda y: y["last_hidden_state"], stem=Split(), head=nn.Linear(3, 5))
    with raises("picks its outputs by a function, which no file holds"):
        ip.pack(Encoder(), {"a": one}, 0.4, **FAST).save(tmp_path / "q.safetensors")


# --- its manners ---------------------------------------------------------------------------------------------------


def test_the_same_seed_gives_the_same_bits_and_nothing_of_the_callers_changes():
    model, state = body(dropout=True), torch.random.get_rng_state()
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    one, two = (ip.pack(model, {"a": task()}, 0.3, **FAST)["a"](separable()[0]) for _ in range(2))
    other = ip.pack(model, {"a": task()}, 0.3, seed=1, **FAST)["a"](separable()[0])
    assert torch.equal(one, two) and not torch.equal(one, other)
    assert torch.equal(torch.random.get_rng_state(), state) and model.training
    assert all(torch.equal(before[name], tensor) for name, tensor in model.state_dict().items())


def test_an_optimiser_of_ones_own_does_not_move_what_others_own(packed):
    decaying = packed.add("c", task(2), epochs=2, optimizer=lambda ps: torch.optim.SGD(ps, 0.05, 0.9, weight_decay=0.1))
    assert torch.equal(decaying["a"](separable()[0]), packed["a"](separable()[0]))
    owned = {name: owners == 1 for name, owners in packed.owners.items()}
    assert all(torch.equal(decaying.values[name][mask], packed.values[name][mask]) for name, mask in owned.items())


def test_a_module_of_a_task_is_a_copy(packed):
    module, before = packed["a"], packed["a"](separable()[0])
    with torch.no_grad():
        for p in module.parameters():
            p.fill_(9.0)
    assert torch.equal(packed["a"](separable()[0]), before) and not module.training


def test_an_extracted_network_is_smaller_and_needs_no_packing(tmp_path):
    packed = ip.pack(body(), {"a": task()}, 0.02, epochs=60, rate=1e-2)
    x = separable()[0]
    alone = packed.extract("a", x[:4])
    assert type(alone) is nn.Sequential and sum(p.numel() for p in alone.parameters()) < 1000
    torch.testing.assert_close(alone(x), packed["a"](x), atol=1e-5, rtol=1e-5)


def test_its_words(packed):
    words = str(packed)
    assert "2 tasks in 1,770 weights of a Sequential, 40.0% free" in words
    assert "a: 531 weights (30.0%), loss" in words and "at the end, reads a" in words and repr(packed) == words


def test_packing_costs_about_what_separate_training_does():
    wide = nn.Sequential(nn.Linear(12, 300), nn.ReLU(), nn.Linear(300, 300), nn.ReLU(), nn.Linear(300, 3))
    tasks = {name: ip.Task(*separable(rows=2400, seed=k), batch_size=120) for k, name in enumerate("ab")}

    def separately() -> None:
        for one in tasks.values():
            model = copy.deepcopy(wide)
            optimizer = torch.optim.Adam(model.parameters(), 1e-3)
            for k in range(40):
                at = slice(k % 20 * 120, (k % 20 + 1) * 120)
                optimizer.zero_grad()
                nn.functional.cross_entropy(model(one.x[at]), one.y[at]).backward()
                optimizer.step()

    def seconds(work) -> float:
        began = time.perf_counter()
        work()
        return time.perf_counter() - began

    together = [seconds(lambda: ip.pack(wide, tasks, 0.3, epochs=2)) for _ in range(2)]
    apart = [seconds(separately) for _ in range(2)]
    assert min(together) < 4 * min(apart)  # a guard; benchmarks/pack.py measures


# --- bad input -----------------------------------------------------------------------------------------------------


def raises(words: str):
    return pytest.raises(ValueError, match=words)


def test_a_name_that_is_taken_is_refused(packed):
    with raises("the name 'a' is taken; the packing has 'a', 'b'"):
        packed.add("a", task())


def test_capacity_that_runs_out_is_an_error_before_training(packed):
    def untouched(*_):
        raise AssertionError("something was trained")

    last = task(loss=untouched)
    with raises("40.0% of the weights are free, and asked for 'c': 50.0%"):
        packed.add("c", last, 0.5)
    with raises("'a', 'b', 'c': 120.0%"):
        ip.pack(body(), {"a": last, "b": last, "c": last}, 0.4)


@pytest.mark.parametrize("share", [0, -0.1, 1.5, "all", True, {"a": 2}, {}])
def test_a_share_out_of_range_is_refused(share):
    with raises("share must lie in"):
        ip.pack(body(), {"a": task()}, share)


@pytest.mark.parametrize(("more", "words"), [
    ({"epochs": 0}, "epochs and rate must be > 0"), ({"rate": -1}, "epochs and rate must be > 0"),
    ({"pattern": "3:2"}, "n:m"), ({"pattern": "1:4", "share": 0.3}, "1:4 gives each task 0.25 of the weights"),
    ({"pattern": "1:4", "share": "auto"}, "has no choice"), ({"pattern": "1:5"}, "does not divide"),
    ({"parallel": True, "share": "auto"}, "need shares"), ({"share": 0.001}, "is none of the"),
    ({"score": "size"}, "score must be 'magnitude' or 'saliency'"),
])  # fmt: skip
def test_settings_that_cannot_be_are_refused(more, words):
    with raises(words):
        ip.pack(body(), {"a": task()}, **more)


def test_labels_that_leave_the_head_are_refused():
    x, y = separable()
    with raises("the labels of 'a' run from 0 to 7, and its outputs are 3"):
        ip.pack(body(), {"a": ip.Task(x, torch.where(y == 2, 7, y))}, 0.3)
    with raises("two rows of 'a' do not go through the body"):
        ip.pack(body(), {"a": ip.Task(x[:, :5], y)}, 0.3)
    with raises("two rows of 'a' do not go through its stem"):
        ip.pack(body(), {"a": ip.Task(x, y, stem=nn.Linear(5, 12))}, 0.3)
    with raises("two rows of 'a' do not go through its head"):
        ip.pack(body(), {"a": ip.Task(x, y, head=nn.Linear(5, 12))}, 0.3)
    with raises("the loss of 'a' cannot be computed from outputs"):
        ip.pack(body(), {"a": ip.Task(x, y.float())}, 0.3)
    with raises("'a' has one"):
        ip.pack(body(), {"a": ip.Task(x[:1], y[:1])}, "auto")
    with raises("no task to pack"):
        ip.pack(body(), {}, 0.3)
    for wrong in ([task()], {"a": (x, y)}, task()):
        with pytest.raises(TypeError, match=r"tasks must be a mapping"):
            ip.pack(body(), wrong, 0.3)


def test_settings_of_a_task_that_joins(packed):
    with pytest.raises(TypeError, match=r"add takes no trainable=; the settings of a task are epochs, optimizer"):
        packed.add("c", task(2), trainable="0.*")
    fewer = packed.add("c", task(2), 0.1, epochs=1)
    assert fewer.settings == packed.settings  # another share of one task is not the next one's
    grouped = ip.pack(body(), {"a": task()}, 0.2, trainable="2.*", **FAST).add("b", task(1), pattern="1:4")
    assert bool((grouped.owners["2.weight"].view(-1, 4) == 2).any(1).float().mean() > 0.5)
    with raises("takes names or glob patterns"):
        ip.pack(body(), {"a": task()}, 0.2, trainable=lambda name: True)


def test_a_loss_that_is_not_finite_is_an_error_that_says_where():
    with pytest.raises(FloatingPointError, match="lower rate="):
        ip.pack(body(), {"a": task(loss=lambda y, t: y.sum(1) * torch.inf)}, 0.3)


def test_a_stem_in_a_trace_is_refused():
    with raises("learned where tasks are packed"):
        ip.trace(body(), None, task(head=nn.Linear(3, 3)), max_steps=1)


def test_an_unknown_task_is_refused(packed):
    with pytest.raises(KeyError, match="no task 'z' in this packing; it has 'a', 'b'"):
        packed["z"]


def test_a_full_network_says_so_where_shares_are_found():
    full = ip.pack(body(), {"a": task()}, 1.0, **FAST)
    with raises("no weight of '0.weight' is free for 'b'"):
        full.add("b", task(1), "auto")


# --- files ---------------------------------------------------------------------------------------------------------


@pytest.fixture
def file(packed, tmp_path):
    packed.save(tmp_path / "p.safetensors")
    return tmp_path / "p.safetensors"


def rewritten(file, change):
    """The file with other tensors or another description."""
    tensors, about = load_tensors(file)
    change(tensors, about)
    save_tensors(file, tensors, about)


def test_a_file_comes_back_and_takes_another_task(file, packed):
    loaded = Packing.load(file, body(norm=True, seed=1))
    assert str(loaded) == str(packed) and loaded.settings == packed.settings
    x = separable()[0]
    one, two = (p.add("c", task(2))["c"](x) for p in (packed, loaded))
    assert torch.equal(one, two)


@pytest.mark.parametrize(("change", "words"), [
    (lambda t, a: t.pop("tasks/1/own/0.bias"), "'a' has no '0.bias' of its own"),
    (lambda t, a: t["owners/0.weight"].fill_(7), "belong to 7, which is no task"),
    (lambda t, a: t["owners/0.weight"].fill_(2), "'a' does not own the weights that it claimed"),
    (lambda t, a: a["tasks"][1].update(owner=1), "two tasks have one number"),
    (lambda t, a: t.update({"owners/0.weight": t["owners/0.weight"][:5]}), "does not have the weights' shapes"),
])  # fmt: skip
def test_a_damaged_file_is_refused_whole(file, change, words):
    rewritten(file, change)
    before = file.read_bytes()
    with pytest.raises(DamagedFile, match=words):
        Packing.load(file, body(norm=True))
    assert file.read_bytes() == before


def test_a_file_cut_short_or_of_another_kind_is_refused(file, tmp_path):
    cut = tmp_path / "cut.safetensors"
    cut.write_bytes(file.read_bytes()[:-100])
    with pytest.raises(DamagedFile, match="not a whole safetensors file"):
        Packing.load(cut, body(norm=True))
    ip.save_weights(body(), tmp_path / "w.safetensors")
    with raises("is no packing"):
        Packing.load(tmp_path / "w.safetensors", body())


def test_a_model_that_does_not_fit_is_refused(file):
    with raises(r"the Sequential: '0.weight': \(40, 12\) float32 in the file, \(4, 12\) float32 in the model"):
        Packing.load(file, nn.Sequential(nn.Linear(12, 4), nn.BatchNorm1d(4), nn.ReLU(), nn.Linear(4, 3)))
    with raises("float32 in the file, .* float64 in the model"):
        Packing.load(file, body(norm=True).double())
    unbiased = body(norm=True)
    unbiased[0].bias = None
    with raises(r"'0.bias': \(40,\) float32 in the file, none in the model"):
        Packing.load(file, unbiased)
    with raises("name 'z', which is none of the file's: a, b"):
        Packing.load(file, body(norm=True), heads={"z": nn.Linear(3, 3)})


def test_other_frozen_parameters_are_refused(tmp_path):
    model = body()
    ip.pack(model, {"a": task()}, 0.5, trainable="4.*", **FAST).save(tmp_path / "p.safetensors")
    Packing.load(tmp_path / "p.safetensors", model)
    with torch.no_grad():
        model[0].weight[0, 0] += 1
    with raises("the frozen parameters of the Sequential"):
        Packing.load(tmp_path / "p.safetensors", model)


def test_stems_and_heads_come_back_from_a_file(tmp_path):
    x = separable(4, 80, 6)[0]
    head = nn.Sequential(nn.ReLU(), nn.Linear(3, 4))
    mine = ip.Task(x, separable(4, 80, 6)[1], stem=nn.Linear(6, 12), head=head)
    packed = ip.pack(body(), {"a": mine}, 0.3, **FAST)
    packed.save(tmp_path / "p.safetensors")
    with raises("the head of 'a' is a Sequential: give an equal module"):
        Packing.load(tmp_path / "p.safetensors", body())
    with raises("the head of 'a' of the file does not fit"):
        Packing.load(tmp_path / "p.safetensors", body(), heads={"a": nn.Linear(3, 4)})
    loaded = Packing.load(tmp_path / "p.safetensors", body(), heads={"a": head})
    assert torch.equal(loaded["a"](x), packed["a"](x))


def test_a_save_that_fails_leaves_the_old_file(file, packed, monkeypatch):
    before = file.read_bytes()
    monkeypatch.setattr("os.replace", lambda *_: (_ for _ in ()).throw(OSError("no space")))
    with pytest.raises(OSError, match="no space"):
        packed.add("c", task(2), **FAST).save(file)
    assert file.read_bytes() == before and list(file.parent.iterdir()) == [file]


def test_more_tasks_than_a_layer_has_weights_are_refused_by_auto():
    with raises("10 of 10 weights of '2.weight' are free for 11 tasks, each of which needs one"):
        net = nn.Sequential(nn.Linear(6, 10), nn.Tanh(), nn.Linear(10, 1))
        each = ip.Task(torch.randn(20, 6), torch.randn(20, 1), loss="squared_error")
        ip.pack(net, {str(k): each for k in range(11)}, "auto", **FAST)


def test_a_packing_of_shares_by_name_asks_for_that_of_another_task():
    one = ip.pack(body(), {"a": task()}, {"a": 0.3}, **FAST)
    with raises("the packing's shares are those of 'a'; say that of 'b' with share="):
        one.add("b", task(1))
    assert one.add("b", task(1), 0.3).tasks == ("a", "b")
