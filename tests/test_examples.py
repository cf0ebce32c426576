import pytest
import torch
from torch.utils.data import DataLoader, Dataset, IterableDataset, TensorDataset

from isopath.examples import Examples, check_finite, to, tree_map
from networks import x

INPUTS, TARGETS = x(7, 3), torch.arange(7)
INDEX = torch.tensor([5, 0, 5])


class Stream(IterableDataset):
    def __init__(self, *columns):
        self.columns = columns

    def __iter__(self):
        return iter(self.columns[0]) if len(self.columns) == 1 else zip(*self.columns)


class Tokenised(Dataset):
    def __len__(self):
        return 7

    def __getitem__(self, i):
        return {"ids": INPUTS[i], "labels": TARGETS[i]}


@pytest.mark.parametrize(
    "source",
    [
        TensorDataset(INPUTS, TARGETS),
        DataLoader(TensorDataset(INPUTS, TARGETS), batch_size=2),
        DataLoader(TensorDataset(INPUTS, TARGETS), batch_size=3, shuffle=True, drop_last=True),
        DataLoader(Stream(INPUTS, TARGETS), batch_size=2),
    ],
    ids=["dataset", "loader", "shuffled", "iterable"],
)
def test_pairs_are_addressed_by_row_whatever_holds_them(source):
    examples = Examples.of(source)
    inputs, targets = examples.take(INDEX)
    assert len(examples) == 7
    assert torch.equal(inputs, INPUTS[INDEX]) and targets.tolist() == [5, 0, 5]


@pytest.mark.parametrize("source", [INPUTS, DataLoader(Stream(INPUTS), batch_size=3)])
def test_inputs_alone_have_no_targets(source):
    inputs, targets = Examples.of(source).take(INDEX)
    assert torch.equal(inputs, INPUTS[INDEX]) and targets is None


def test_trees_of_tensors_are_indexed_leaf_by_leaf():
    tree = {"a": INPUTS, "b": (INPUTS + 1, {"c": INPUTS + 2})}
    inputs, targets = Examples.of(tree, TARGETS).take(INDEX)
    assert torch.equal(inputs["b"][1]["c"], INPUTS[INDEX] + 2) and torch.equal(targets, TARGETS[INDEX])


def test_an_iterable_loader_of_mappings_is_gathered():
    loader = DataLoader(Stream([{"a": row, "b": row + 1} for row in INPUTS]), batch_size=2)
    inputs, _ = Examples.of(loader).take(INDEX)
    assert torch.equal(inputs["b"], INPUTS[INDEX] + 1)


def test_a_mappings_labels_are_the_targets():
    inputs, targets = Examples.of(DataLoader(Tokenised(), batch_size=2)).take(INDEX)
    assert list(inputs) == ["ids"] and targets.tolist() == [5, 0, 5]
    assert Examples.of(Tokenised(), TARGETS + 1).take(INDEX)[1].tolist() == [6, 1, 6]


def test_lists_of_targets_are_taken_and_a_loaders_collation_is_used():
    assert Examples.of(INPUTS, TARGETS.tolist()).take(INDEX)[1].tolist() == [5, 0, 5]
    data = TensorDataset(INPUTS)
    loader = DataLoader(data, batch_size=2, collate_fn=lambda items: 2 * torch.stack([i for (i,) in items]))
    assert torch.equal(Examples.of(loader).take(INDEX)[0], 2 * INPUTS[INDEX])


def test_trees_map_and_move_and_keep_what_is_no_tensor():
    tree = tree_map(lambda leaf: leaf + 1, {"a": torch.zeros(2), "b": [torch.ones(1), "text"]})
    assert tree["a"].tolist() == [1, 1] and tree["b"][1] == "text"
    assert to(torch.zeros(2), torch.device("meta")).is_meta


@pytest.mark.parametrize(
    ("inputs", "targets", "error", "message"),
    [
        (torch.zeros(0, 3), None, ValueError, "inputs has zero rows"),
        (torch.tensor(1.0), None, ValueError, "zero rows"),
        (INPUTS, TARGETS[:3], ValueError, "same number of rows.*7.*3"),
        ((INPUTS, INPUTS[:2]), None, ValueError, "same number of rows.*7.*2"),
        (TensorDataset(torch.zeros(0, 3)), None, ValueError, "dataset with zero rows"),
        (TensorDataset(INPUTS), TARGETS[:3], ValueError, "7 rows and the targets have 3"),
        (DataLoader(Stream(INPUTS[:0])), None, ValueError, "yields no batch"),
        ("text", None, TypeError, "a tensor, a tuple or mapping of tensors.*got a str"),
        (Stream(INPUTS), None, TypeError, "DataLoader, got a Stream"),
        (None, None, TypeError, "got a NoneType"),
    ],
)
def test_bad_data_names_what_was_got(inputs, targets, error, message):
    with pytest.raises(error, match=message):
        Examples.of(inputs, targets)


@pytest.mark.parametrize("bad", [float("nan"), float("inf")])
def test_rows_that_are_not_finite_are_named(bad):
    inputs = INPUTS.clone()
    inputs[4, 1] = bad
    with pytest.raises(ValueError, match=r"inputs\['a'\] is not finite: 1 entries, the first in row 4"):
        Examples.of({"a": inputs})
    check_finite(torch.arange(3), "whole numbers")


def test_targets_given_beside_pairs_stand_in_for_theirs():
    streamed = DataLoader(Stream(INPUTS, TARGETS), batch_size=2)
    for source in (TensorDataset(INPUTS, TARGETS), streamed, Examples.of(INPUTS)):
        assert Examples.of(source, TARGETS + 10).take(INDEX)[1].tolist() == [15, 10, 15]
    with pytest.raises(ValueError, match="has 7 rows and the targets have 6"):
        Examples.of(Examples.of(INPUTS), TARGETS[:6])
