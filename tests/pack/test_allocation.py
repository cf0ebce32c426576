import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import nn

from isopath.pack import Owners
from isopath.pack.allocation import Pattern, best, drafted, fits


def table(*sizes: int) -> Owners:
    return Owners.none(nn.Sequential(*(nn.Linear(size, 1) for size in sizes)))


def test_a_claim_of_an_owned_weight_is_refused():
    owners = table(4)
    mask = torch.tensor([[True, True, False, False]])
    owners = owners.claimed({"0.weight": mask}, 1)
    assert owners.free == 0.5 and owners.counts(1) == {"0.weight": 2}
    with pytest.raises(ValueError, match=r"1 of the weights of '0.weight' that task 2 claims have an owner"):
        owners.claimed({"0.weight": torch.tensor([[False, True, True, False]])}, 2)
    with pytest.raises(ValueError, match="numbered 1 to 32767, got 0"):
        owners.claimed({"0.weight": ~mask}, 0)


def test_a_module_without_weights_is_refused():
    with pytest.raises(ValueError, match="no trainable parameter of two or more dimensions"):
        Owners.none(nn.LayerNorm(3))


def test_the_best_of_a_layer_are_its_largest_among_those_given():
    score = torch.tensor([[5.0, 4.0, 3.0, 2.0]])
    found = best({"a": score}, {"a": torch.tensor([[False, True, True, True]])}, 0.5, Pattern())
    assert found["a"].tolist() == [[False, True, True, False]]


def test_a_pattern_gives_n_of_every_m():
    score = torch.arange(8.0).view(2, 4)
    found = best({"a": score}, {"a": torch.ones(2, 4, dtype=torch.bool)}, 0.5, Pattern("2:4"))
    assert found["a"].tolist() == [[False, False, True, True]] * 2
    assert Pattern("2:4").share == 0.5 and Pattern().share is None


@pytest.mark.parametrize("word", ["4:2", "2:2", "0:4", "two", "1:x"])
def test_an_unknown_pattern_is_refused(word):
    with pytest.raises(ValueError, match="'unstructured' or 'n:m'"):
        Pattern(word)


@given(st.integers(5, 40), st.integers(1, 5), st.data())
def test_a_draft_is_disjoint_complete_and_within_what_is_free(size, tasks, data):
    share = data.draw(st.floats(1 / size, 1 / tasks))
    generator = torch.Generator().manual_seed(data.draw(st.integers(0, 99)))
    free = torch.ones(1, size, dtype=torch.bool)
    count = Pattern().count(size, share)
    spare = size - tasks * count
    free[0, torch.randperm(size, generator=generator)[:spare]] = False  # just as many as are asked for
    scores = [{"a": torch.rand(1, size, generator=generator)} for _ in range(tasks)]
    masks = [mask["a"] for mask in drafted(scores, {"a": free}, [share] * tasks, Pattern())]
    assert [int(mask.sum()) for mask in masks] == [count] * tasks
    total = torch.stack(masks).sum(0)
    assert int(total.max()) <= 1 and not bool((total > 0)[~free].any())


def test_a_draft_gives_each_weight_to_the_task_that_ranks_it_highest():
    # in units of their own: the second task's scores are a thousand times larger
    first, second = torch.tensor([[4.0, 3.0, 2.0, 1.0]]), 1000 * torch.tensor([[1.0, 2.0, 3.0, 4.0]])
    free = {"a": torch.ones(1, 4, dtype=torch.bool)}
    a, b = drafted([{"a": first}, {"a": second}], free, [0.5, 0.5], Pattern())
    assert a["a"].tolist() == [[True, True, False, False]] and b["a"].tolist() == [[False, False, True, True]]


def test_a_draft_by_groups_gives_each_task_its_own_of_every_group():
    scores = [{"a": torch.rand(3, 8, generator=torch.Generator().manual_seed(k))} for k in range(3)]
    masks = drafted(scores, {"a": torch.ones(3, 8, dtype=torch.bool)}, [0.25] * 3, Pattern("1:4"))
    for mask in masks:
        assert bool((mask["a"].view(-1, 4).sum(1) == 1).all())
    assert int(torch.stack([mask["a"] for mask in masks]).sum(0).max()) == 1


def test_what_does_not_fit_is_refused_and_named():
    owners = table(10, 20)
    with pytest.raises(ValueError, match=r"100.0% of the weights are free, and asked for 'a', 'b': 120.0%"):
        fits(owners, {"a": 0.6, "b": 0.6}, Pattern())
    with pytest.raises(ValueError, match=r"5.00% is none of the 10 weights of '0.weight'.*at least 10.00%"):
        fits(owners, {"a": 0.05}, Pattern())
    with pytest.raises(ValueError, match=r"the share of 'a' must lie in \(0, 1\], got 0"):
        fits(owners, {"a": 0}, Pattern())
    taken = owners.claimed({"0.weight": torch.ones(1, 10, dtype=torch.bool)}, 1)
    with pytest.raises(ValueError, match=r"0 of 10 neighbouring weights of '0.weight' are free, and asked for 'b': 5"):
        fits(taken, {"b": 0.5}, Pattern())


def test_a_row_that_the_pattern_does_not_divide_is_refused():
    with pytest.raises(ValueError, match=r"'0.weight' has 10 weights for each output, which 2:4 does not divide"):
        Pattern("2:4").check(table(10))
