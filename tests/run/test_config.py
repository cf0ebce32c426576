"""A config is read, completed from the signatures, and built; what is wrong with it is said in one sentence."""

from __future__ import annotations

import inspect
from pathlib import Path
from typing import Any, Literal

import pytest
import torch
import yaml
from safetensors.torch import save_file
from torch import nn

import isopath as ip
from isopath.run.config import ConfigError, dumped, read, resolve
from isopath.run.data import Data
from isopath.run.data import digits as read_digits
from isopath.run.generated import GenerateJob
from isopath.run.hints import fits
from isopath.run.job import Job, architecture
from isopath.run.packed import PackJob

LINEAR = [
    {"class_path": "torch.nn.Flatten"},
    {"class_path": "torch.nn.Linear", "init_args": {"in_features": 64, "out_features": 10}},
]


def digits(*classes: int, **more: Any) -> dict[str, Any]:
    return {"class_path": "digits", "init_args": {"classes": list(classes)}, **more}


def task(*classes: int, **more: Any) -> dict[str, Any]:
    return {"class_path": "Task", "init_args": {"data": digits(*classes)}, **more}


def config(**changes: Any) -> dict[str, Any]:
    whole = {
        "model": {"class_path": "torch.nn.Sequential", "init_args": LINEAR},
        "keep": {"class_path": "Reference", "init_args": {"inputs": digits(0, 1)}},
        "objective": task(2, 3),
    }
    return {**whole, **changes}


def job(**changes: Any) -> Job:
    return Job.of(resolve(config(**changes)))


def error(**changes: Any) -> str:
    with pytest.raises(ConfigError) as caught:
        job(**changes)
    return str(caught.value)


# --- reading --------------------------------------------------------------------------------------------------------


def written(tmp_path: Path, text: str) -> Path:
    (tmp_path / "c.yaml").write_text(text)
    return tmp_path / "c.yaml"


@pytest.mark.parametrize("text, value", [("1e-3", 1e-3), ("2E5", 2e5), ("1.5e+2", 150.0), (".5e1", 5.0), ("3", 3)])
def test_numbers_are_read_as_everybody_writes_them(tmp_path: Path, text: str, value: float) -> None:
    assert read(written(tmp_path, f"tolerance: {text}")) == {"tolerance": value}


def test_overrides_replace_keys_and_entries_of_lists(tmp_path: Path) -> None:
    path = written(tmp_path, yaml.safe_dump(config(objective=[task(2), task(3)])))
    tree = read(path, ["tolerance=1e-2", "objective.1.weight=0.5", "keep=null", "objective.0.init_args.data.where=[2]"])
    assert (tree["tolerance"], tree["objective"][1]["weight"], tree["keep"]) == (0.01, 0.5, None)
    assert tree["objective"][0]["init_args"]["data"]["where"] == [2]


@pytest.mark.parametrize(
    "override, says",
    [
        ("tolerance", "takes key=value"),
        ("objective.5.weight=1", "a list of 2, count from 0"),
        ("objetive.0.weight=1", "Did you mean 'objective'?"),
        ("tolerance.x=1", "has no keys"),
        ("tolerance=[1", "is not valid YAML"),
    ],
)
def test_an_override_that_names_nothing_is_an_error(tmp_path: Path, override: str, says: str) -> None:
    path = written(tmp_path, yaml.safe_dump(config(objective=[task(2), task(3)], tolerance=0.1)))
    with pytest.raises(ConfigError) as caught:
        read(path, [override])
    assert says in str(caught.value)


def test_a_missing_file_names_its_neighbours(tmp_path: Path) -> None:
    written(tmp_path, "a: 1")
    with pytest.raises(ConfigError, match=r"no config file .*d\.yaml; beside it: c\.yaml"):
        read(tmp_path / "d.yaml")


@pytest.mark.parametrize("text, says", [("a: [1", "not valid YAML"), ("- 1", "must hold a mapping"), ("", "must hold")])
def test_a_file_that_is_no_config(tmp_path: Path, text: str, says: str) -> None:
    with pytest.raises(ConfigError, match=says):
        read(written(tmp_path, text))


# --- completing -----------------------------------------------------------------------------------------------------


def test_defaults_come_from_the_signatures() -> None:
    tree = resolve(config())
    for name, parameter in inspect.signature(ip.trace).parameters.items():
        if isinstance(parameter.default, (int, float)) and name not in ("resume", "progress"):
            assert tree[name] == parameter.default, name
    assert tree["keep"]["init_args"]["divergence"] == "hellinger"
    assert tree["corrector"]["class_path"] == "GaussNewton"
    assert tree["objective"]["init_args"]["data"]["init_args"]["train"] is True
    assert not {"run", "resume", "progress"} & set(tree)


def test_resolving_and_writing_twice_changes_nothing(tmp_path: Path) -> None:
    changes = {"objective": [task(2), {"weight": 0.1, "class_path": "Sparsity", "init_args": {"fraction": 0.5}}]}
    tree = resolve(config(direction="NullSpace", evaluate={"all": task(2, 3)}, **changes))
    again = read(written(tmp_path, dumped(tree)))
    assert again == tree
    assert resolve(again) == tree


def test_a_key_that_comes_twice_is_refused(tmp_path: Path) -> None:
    file = tmp_path / "twice.yaml"
    file.write_text("tasks: {a: 1, b: 2, a: 3}")
    with pytest.raises(ConfigError, match="the key 'a' comes twice"):
        read(file)


def test_every_shipped_config_resolves() -> None:
    shipped = sorted(Path(__file__).parents[2].glob("examples/configs/*.yaml"))
    assert shipped
    for path in shipped:
        given = read(path)
        if "weights_a" in given:
            tree = resolve(given, "connect")
            assert resolve(tree, "connect") == tree
            assert isinstance(architecture(tree, torch.device("cpu")), nn.Module)
        elif "tasks" in given:
            tree = resolve(given, "pack")
            assert resolve(tree, "pack") == tree
            assert list(PackJob.of(tree).tasks) == ["digits 0-4", "digits 5-9", "all digits"]
        elif "task" in given:
            tree = resolve(given, "generate")
            assert resolve(tree, "generate") == tree
            assert GenerateJob.of(tree).settings.steps == 400
        else:
            tree = {**resolve(given), "weights": None}
            if (tree["keep"] or {}).get("class_path") == "isopath.Memory.load":  # which the run before makes
                tree["keep"] = resolve({**given, "keep": "Memory"})["keep"]
            assert isinstance(Job.of(tree).arguments["model"], nn.Module)


# --- building -------------------------------------------------------------------------------------------------------


def test_a_config_calls_what_python_calls() -> None:
    made = job(tolerance=0.02, direction={"class_path": "NullSpace", "init_args": {"floor": 1e-3}}, max_steps=3)
    kept = made.arguments["keep"]
    assert isinstance(kept, ip.Reference)
    assert torch.equal(kept.inputs, read_digits(classes=[0, 1]).inputs)
    goal = made.arguments["objective"]
    assert isinstance(goal, ip.Task)
    assert torch.equal(goal.y, read_digits(classes=[2, 3]).labels)
    assert made.arguments["direction"] == ip.NullSpace(floor=1e-3)
    path = ip.trace(**made.arguments)
    assert path.drift <= 0.02 and path.steps[-1] <= 3


def test_objectives_and_references_add_and_scale() -> None:
    goal = job(objective=[task(2), {"weight": 0.1, "class_path": "Sparsity", "init_args": {"fraction": 0.6}}])
    (one, first), (tenth, second) = goal.arguments["objective"].terms
    assert (one, tenth) == (1.0, 0.1)
    assert isinstance(first, ip.Task) and second == ip.Sparsity(0.6)
    halved = job(objective=task(2, weight=0.5)).arguments["objective"].terms
    assert [weight for weight, _ in halved] == [0.5]
    both = [{"class_path": "Reference", "init_args": {"inputs": digits(c)}} for c in (0, 1)]
    assert len(job(keep=both).arguments["keep"].parts) == 2
    assert job(keep=None).arguments["keep"] is None


def test_a_reader_takes_rows() -> None:
    data = digits(0, 1, 2, where=[0, 1], take={"n": 20, "balanced": True})
    inputs = job(keep={"class_path": "Reference", "init_args": {"inputs": data}}).arguments["keep"].inputs
    assert torch.equal(inputs, read_digits(classes=[0, 1]).take(20, balanced=True).inputs)
    goal = {"class_path": "Task", "init_args": {"data": digits(2, take=7)}}
    assert len(job(objective=goal).arguments["objective"]) == 7


def test_inputs_and_labels_may_be_named_one_by_one() -> None:
    given = {"class_path": "Task", "init_args": {"x": digits(2, 3), "batch_size": 16}}
    goal = job(objective=given).arguments["objective"]
    assert torch.equal(goal.y, read_digits(classes=[2, 3]).labels) and goal.batch_size == 16


def test_a_span_is_a_slice_of_outputs() -> None:
    outputs = {"class_path": "span", "init_args": {"start": 5}}
    goal = job(objective={"class_path": "Task", "init_args": {"data": digits(2), "outputs": outputs}})
    assert goal.arguments["objective"].outputs == slice(5, None)


def test_a_model_of_ones_own_in_the_directory(tmp_path: Path) -> None:
    (tmp_path / "own_networks.py").write_text(
        "from torch import nn\ndef small(width: int = 8) -> nn.Module:\n"
        "    return nn.Sequential(nn.Flatten(), nn.Linear(64, width), nn.Tanh(), nn.Linear(width, 10))\n"
    )
    model = {"class_path": "own_networks.small", "init_args": {"width": 4}}
    made = job(model=model, directory=str(tmp_path)).arguments["model"]
    assert made[1].out_features == 4
    assert "has no key 'widht'; valid: width. Did you mean 'width'?" in error(
        model={**model, "init_args": {"widht": 4}}, directory=str(tmp_path)
    )


def test_the_model_depends_on_the_seed_alone() -> None:
    before = torch.get_rng_state()
    a, b, c = (job(seed=seed).arguments["model"] for seed in (1, 1, 2))
    assert torch.equal(a[1].weight, b[1].weight) and not torch.equal(a[1].weight, c[1].weight)
    assert torch.equal(before, torch.get_rng_state())


def test_weights_are_filled_in(tmp_path: Path) -> None:
    weights = {"1.weight": torch.randn(10, 64), "1.bias": torch.randn(10)}
    save_file(weights, tmp_path / "w.safetensors")
    model = job(weights=str(tmp_path / "w.safetensors")).arguments["model"]
    assert torch.equal(model[1].weight, weights["1.weight"])
    ip.trace(model, None, ip.Sparsity(0.5), max_steps=2).save(tmp_path / "run")
    ended = job(weights=str(tmp_path / "run")).arguments["model"]
    assert not torch.equal(ended[1].weight, weights["1.weight"])


@pytest.mark.parametrize(
    "tensors, says",
    [
        ({"1.weight": torch.zeros(10, 64)}, "lacks 1 of the model's 2: 1.bias"),
        ({"1.weight": torch.zeros(9, 64), "1.bias": torch.zeros(10)}, "has shape (9, 64)"),
        ({"2.weight": torch.zeros(10, 64)}, "has '2.weight', which the model lacks"),
    ],
)
def test_weights_of_another_model_are_refused(tmp_path: Path, tensors: dict[str, torch.Tensor], says: str) -> None:
    save_file(tensors, tmp_path / "w.safetensors")
    assert says in error(weights=str(tmp_path / "w.safetensors"))


def test_tied_weights_may_come_once(tmp_path: Path) -> None:
    (tmp_path / "own_tied.py").write_text(
        "from torch import nn\ndef tied():\n    a, b = nn.Linear(64, 64), nn.Linear(64, 64)\n"
        "    b.weight = a.weight\n    return nn.Sequential(nn.Flatten(), a, b)\n"
    )
    save_file({"1.weight": torch.ones(64, 64), "1.bias": torch.ones(64), "2.bias": torch.ones(64)}, tmp_path / "w")
    made = job(model="own_tied.tied", directory=str(tmp_path), weights=str(tmp_path / "w")).arguments["model"]
    assert bool((made[2].weight == 1).all())


# --- what is wrong, where, and what to write instead ----------------------------------------------------------------

SPARSE = {"class_path": "Sparsity", "init_args": {"fraction": 0.6}}


@pytest.mark.parametrize(
    "changes, says",
    [
        ({"tolerence": 1}, "the config has no key 'tolerence'; valid: model, keep, objective, tolerance"),
        ({"tolerence": 1}, "Did you mean 'tolerance'?"),
        ({"run": "x"}, "has no key 'run'"),
        ({"tolerance": "abc"}, "tolerance must be a number, got 'abc'"),
        ({"max_steps": 1.5}, "max_steps must be a whole number, got 1.5"),
        ({"seed": True}, "seed must be a whole number, got True"),
        ({"objective": 5}, "objective must be"),
        ({"objective": {"Task": {}}}, "an object is a mapping with class_path: and init_args:"),
        ({"objective": [task(2), {**SPARSE, "wieght": 1}]}, "objective.1 has no key 'wieght'; valid: class_path"),
        ({"objective": {**SPARSE, "init_args": {"fractoin": 1}}}, "objective.init_args has no key 'fractoin'"),
        ({"objective": {**SPARSE, "init_args": {"fraction": 2}}}, "objective (Sparsity): fraction must lie in [0, 1)"),
        ({"objective": {"class_path": "Sparsity"}}, "objective.init_args lacks 'fraction'"),
        ({"objective": {"class_path": "Sparsty"}}, "Did you mean 'Sparsity'?"),
        ({"objective": {"class_path": "torch.nn.Sparsty"}}, "torch.nn has no member 'Sparsty'"),
        ({"objective": {"class_path": "torch.nn.Linear.x"}}, "has no member 'x'"),
        ({"objective": {"class_path": "torch.__version__"}}, "expected a class or a function"),
        ({"objective": {"class_path": 3}}, "must be a dotted path"),
        ({"model": "no_such_module.Net"}, "no module 'no_such_module'"),
        ({"model": "isopath.run.names.span"}, "model must be a torch.nn.Module, got slice"),
        ({"model": "Reference"}, "model must be a Module, got the class Reference"),
        ({"direction": "Sparsity"}, "direction must be a Direction or null, got the class Sparsity"),
        ({"keep": {"class_path": "Reference", "init_args": {"inputs": digits(0, tkae=3)}}}, "Did you mean 'take'?"),
        ({"keep": {"class_path": "Reference", "init_args": {"inputs": digits(0, take=10**6)}}}, "n=1000000"),
        ({"keep": {"class_path": "Reference", "init_args": {"inputs": digits(11)}}}, "keep.init_args.inputs (digits)"),
        ({"keep": {"class_path": "Reference", "init_args": []}}, "missing a required argument: 'inputs'"),
        ({"keep": {"class_path": "Reference", "init_args": "x"}}, "must be a mapping of arguments"),
        ({"evaluate": {"all": 3}}, "evaluate.all must be a Task"),
        ({"evaluate": {"all": {"class_path": "Sparsity", "init_args": {"fraction": 0.1}}}}, "must be a Task"),
        ({"weights": "none.safetensors"}, "weights: no file none.safetensors"),
        ({"weights": "."}, "no run, or one that has not started"),
        ({"directory": "/no/such/folder"}, "there is no folder /no/such/folder"),
        ({"device": "abacus"}, "device: 'abacus' cannot be used here"),
    ],
)
def test_errors_name_the_place_and_the_remedy(changes: dict[str, Any], says: str) -> None:
    message = error(**changes)
    assert says in message and "\n" not in message.strip()


def test_an_own_module_that_fails_says_so(tmp_path: Path) -> None:
    (tmp_path / "own_broken.py").write_text("import not_installed_anywhere\n")
    says = error(model="own_broken.Net", directory=str(tmp_path))
    assert "importing own_broken failed: No module named 'not_installed_anywhere'" in says


@pytest.mark.parametrize(
    "value, hint, expected",
    [
        (1, float, True),
        (True, float, False),
        (True, bool, True),
        (None, int | None, True),
        ("a", Literal["a", "b"], True),
        ("c", Literal["a", "b"], False),
        ([1, 2], tuple[int, int], True),
        ([1, 2, 3], tuple[int, int], False),
        ([1, 2, 3], tuple[int, ...], True),
        ([1, "a"], list[int], False),
        ({"a": 1}, dict[str, int], True),
        ("x", Path, True),
        ("x", torch.Tensor, False),
        ("x", Any, True),
        ({"class_path": "x"}, torch.Tensor, True),
        (nn.Linear, nn.Module, True),
        (Data, nn.Module, False),
    ],
)
def test_hints_are_checked_as_far_as_yaml_goes(value: Any, hint: Any, expected: bool) -> None:
    assert fits(value, hint) is expected
