"""Group axioms, on groups whose permutations depend on others' indices too."""

import pytest
import torch
from modules import CASES

from isopath.symmetry import Permutation, symmetries

NAMES = ("mlp", "grouped conv", "gpt", "swin")


@pytest.fixture(params=NAMES)
def found(request):
    torch.manual_seed(0)
    case = CASES[request.param]
    model = case.build()
    return model, symmetries(model, case.example())


def drawn(found, seed):
    return Permutation.random(found, torch.Generator().manual_seed(seed))


def test_permutations_are_a_group(found):
    model, groups = found
    p, q, r = (drawn(groups, seed) for seed in range(3))
    one = Permutation.identity(groups)
    assert p @ p.inverse() == one and p.inverse() @ p == one and (p @ q) @ r == p @ (q @ r) and one @ p == p
    state = {name: tensor for name, tensor in model.state_dict().items() if name in groups.places}
    both, turns = (p @ q)(state), p(q(state))
    assert all(torch.equal(both[name], turns[name]) for name in state)
    back = p.inverse()(p(state))
    assert all(torch.equal(back[name], state[name]) for name in state)
    assert any(not torch.equal(both[name], state[name]) for name in state)


def test_it_is_saved_and_loaded(found, tmp_path):
    _, groups = found
    p = drawn(groups, 5)
    p.save(tmp_path / "p.safetensors")
    assert Permutation.load(tmp_path / "p.safetensors", groups) == p


def test_one_for_another_model_is_refused():
    groups = [symmetries(CASES[name].build(), CASES[name].example()) for name in ("mlp", "gpt")]
    p = drawn(groups[0], 0)
    with pytest.raises(ValueError, match="another model"):
        p(CASES["gpt"].build())
    with pytest.raises(ValueError, match="different models"):
        p @ drawn(groups[1], 0)
    with pytest.raises(ValueError, match="shape"):
        Permutation(groups[1], p.moved)
    with pytest.raises(ValueError, match="no permutation"):
        Permutation(groups[0], {key: torch.zeros_like(index) for key, index in p.moved.items()})


def test_it_says_what_moves():
    groups = symmetries(CASES["mlp"].build(), CASES["mlp"].example())
    assert str(Permutation.identity(groups)).startswith("0 of 14 units change place")
    assert "of 14 units change place" in str(drawn(groups, 1)) and "0.weight axis 0" in str(drawn(groups, 1))
