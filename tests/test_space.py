import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

from isopath.space import Space, check_plain
from networks import Tied, build, x


def test_a_point_has_the_trainable_parameters_in_order_and_tied_ones_once(case):
    space = Space.of(case.model)
    trainable = {name: p for name, p in case.model.named_parameters() if p.requires_grad}
    assert space.names == tuple(trainable) and space.dtype == torch.float64
    assert space.dimension == sum(space.sizes) == sum(p.numel() for p in trainable.values())
    theta = space.flatten(trainable)
    assert torch.equal(theta, torch.nn.utils.parameters_to_vector(trainable.values()))


def test_tied_parameters_appear_under_their_first_name():
    names = Space.of(Tied()).names
    assert "first.weight" in names and "second.weight" not in names


@settings(max_examples=20)
@given(st.integers(0, 10**6), st.sampled_from(["mlp", "conv_bn", "tied", "lstm", "frozen"]))
def test_flatten_and_unflatten_undo_each_other(seed, name):
    space = Space.of(build(name).model)
    theta = x(space.dimension, seed=seed)
    named = space.unflatten(theta)
    assert torch.equal(space.flatten(named), theta)
    assert [tensor.shape for tensor in named.values()] == list(space.shapes)


def test_flatten_copies_and_unflatten_is_differentiable():
    model = nn.Linear(3, 2, bias=False)
    space = Space.of(model)
    theta = space.flatten(dict(model.named_parameters()))
    assert not theta.requires_grad and theta.data_ptr() != model.weight.data_ptr()
    point = theta.requires_grad_(True)
    (gradient,) = torch.autograd.grad(space.unflatten(point)["weight"][1].sum(), point)
    assert gradient.tolist() == [0, 0, 0, 1, 1, 1]


@pytest.mark.parametrize(
    ("trainable", "names"),
    [
        (None, ["0.bias", "2.weight", "2.bias"]),
        ("0.*", ["0.weight", "0.bias"]),
        (["2.bias", "0.bias"], ["0.bias", "2.bias"]),
        (lambda name: name.endswith("weight"), ["0.weight", "2.weight"]),
    ],
)
def test_parameters_are_selected_by_gradient_name_pattern_or_predicate(trainable, names):
    assert list(Space.of(build("frozen").model, trainable).names) == names


def test_where_masks_by_name_and_shape():
    space = Space.of(nn.Linear(3, 2))
    assert space.where(lambda name, shape: len(shape) == 2).tolist() == [True] * 6 + [False] * 2
    assert space.where(lambda name, shape: name == "bias").sum() == 2


def test_no_trainable_parameter_is_an_error_with_a_remedy():
    with pytest.raises(ValueError, match=r"Linear has no trainable parameter: 2 parameters.*requires_grad.*trainable="):
        Space.of(nn.Linear(3, 2).requires_grad_(False))
    with pytest.raises(ValueError, match=r"Flatten has no trainable parameter: 0 parameters"):
        Space.of(nn.Flatten())


def test_an_unmatched_pattern_lists_the_names():
    with pytest.raises(ValueError, match=r"'head\.\*' matches no parameter.*weight"):
        Space.of(nn.Linear(3, 2), ["weight", "head.*"])


def test_mixed_dtypes_are_an_error_with_a_remedy():
    model = nn.Sequential(nn.Linear(3, 2), nn.Linear(2, 2).double())
    with pytest.raises(ValueError, match=r"one dtype and device.*float32.*float64.*\.to\("):
        Space.of(model)


def test_wrong_points_and_tensors_name_got_and_expected():
    space = Space.of(nn.Linear(3, 2))
    with pytest.raises(ValueError, match=r"shape \(7,\), expected \(8,\)"):
        space.unflatten(torch.zeros(7))
    with pytest.raises(ValueError, match=r"no tensor named 'bias'.*weight"):
        space.flatten({"weight": torch.zeros(2, 3)})
    with pytest.raises(ValueError, match=r"'weight' has shape \(3, 2\), expected \(2, 3\)"):
        space.flatten({"weight": torch.zeros(3, 2), "bias": torch.zeros(2)})


def test_plain_parameters_whose_names_end_in_g_and_v_are_weights():
    class Gated(nn.Module):
        def __init__(self):
            super().__init__()
            self.w_v, self.w_g = nn.Parameter(torch.randn(3, 4)), nn.Parameter(torch.randn(3, 4))

    space = Space.of(Gated())
    check_plain(space)
    assert space.weights == {"w_v", "w_g"} and not space.made_of
